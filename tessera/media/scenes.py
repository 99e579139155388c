"""Where a video's picture changes: cuts, told from flashes, pans and fades, in one pass over its frames.

The measure is that of PySceneDetect's content detector, the mean difference in hue, saturation and value between
two frames, held against the mean of its neighbours as its adaptive detector does
(https://www.scenedetect.com/docs/latest/api/detectors.html). Three things are ours: hue and saturation count as
far as a pixel has light and colour (those of black and grey are the encoder's noise); a difference is a cut only
if the picture from before does not come back, moved or not (a flash, a jolt); and a fade through black is one
cut, in its darkest moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tessera.media.sampling import small_frames

#: Frames are looked at in this size, whatever their shape: a cut changes the whole picture.
WIDTH, HEIGHT = 64, 36
#: Of videos with more frames a second than this every second one is looked at, or every third …
MOST_FRAMES_PER_S = 32.0
#: Scenes are at least so long: of two cuts that lie nearer the clearer one counts.
SHORTEST_SCENE_S = 0.4
#: Frames on each side that tell what is usual; the adaptive detector's ``window_width``.
WINDOW = 2
#: A cut is this many times what is usual around it (the adaptive detector's ``adaptive_threshold``), which is
#: taken to be at least `_STILL`; and it is at least so much, of 255: less than their ``min_content_val`` of 15,
#: because grey and dark pixels add no noise here.
RATIO = 3.0
LEAST_CHANGE = 6.0
_STILL = 0.5
#: So much later, at most, the picture from before a flash is back; it then differs from it by less than this
#: part of the change.
FLASH_S = 0.35
_CAME_BACK = 0.5
#: A picture may have moved by so many of the small pixels, to the side and up or down.
_MOVES = (12, 4)
#: A frame is dark when its mean value is below (of 255). A fade takes at least so long to come and to go.
_DARK = 16.0
_FADE_S = 0.12
#: Frames that are computed together, and those kept on both sides of them.
_BLOCK = 128
_MARGIN = 24

#: ``float32[n, 3, HEIGHT, WIDTH]``: hue 0…180 (it is an angle: 180 is 0 again), saturation and value 0…255.
Hsv = npt.NDArray[np.float32]
Line = npt.NDArray[np.float32]


def cuts(path: Path, threshold: float = 0.5) -> list[float]:
    """Return when new scenes begin, in seconds from the start, ascending; 0 is not among them.

    `threshold` (0…1) says how clear a cut must be: at 0.5 three times what is usual around it, at 0 half as
    much, at 1 twice as much. Raises `BadSample` as `media.probe` does.
    """
    factor = 2.0 ** (2 * threshold - 1)
    found: list[tuple[float, float]] = []
    lines = []
    for times, hsv, first, last in _blocks(path):
        change = _changes(hsv)
        found += _clear_cuts(times, hsv, change, first, last, factor)
        lines.append((times[first:last], hsv[first:last, 2].mean(axis=(1, 2))))
    if not lines:
        return []
    times, values = (np.concatenate(part) for part in zip(*lines, strict=True))
    found += [(time_s, 0.0) for time_s in _fades(times, values, [time_s for time_s, _ in found])]
    return _apart(found)


def to_hsv(frames: npt.NDArray[np.uint8]) -> Hsv:
    """Return ``uint8[n, height, width, 3]`` frames of red, green and blue as `Hsv` (OpenCV's ranges)."""
    planes = np.ascontiguousarray(np.moveaxis(frames, 3, 0)).astype(np.int16)
    red, green, blue = planes
    value = planes.max(axis=0)
    spread = value - planes.min(axis=0)
    scale = np.float32(30) / np.maximum(spread, 1)
    hue = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, (blue - red) * scale + 60, (red - green) * scale + 120),
    )
    hue[hue < 0] += 180
    saturation = spread * np.float32(255) / np.maximum(value, 1)
    return np.stack([hue, saturation, value], axis=1, dtype=np.float32)


def difference(one: Hsv, other: Hsv) -> Line:
    """Return how much the pictures of `one` differ from those of `other` (``[…, 3, height, width]``), 0…255.

    The mean of the differences in value, in saturation where there is light, and in hue where there is colour.
    """
    delta = np.abs(one - other)
    light = np.minimum(one[..., 2, :, :], other[..., 2, :, :]) / 255
    colour = light * np.minimum(one[..., 1, :, :], other[..., 1, :, :]) / 255
    hue = np.minimum(delta[..., 0, :, :], 180 - delta[..., 0, :, :]) * colour
    total = hue + delta[..., 1, :, :] * light + delta[..., 2, :, :]
    mean: Line = total.mean(axis=(-2, -1)) / 3
    return mean


def _changes(hsv: Hsv) -> Line:
    return np.concatenate([np.zeros(1, np.float32), difference(hsv[1:], hsv[:-1])])


def _blocks(path: Path) -> Iterator[tuple[Line, Hsv, int, int]]:
    """Yield times and small pictures, block by block, and which of them are new: the rest is what lies around."""
    times: list[float] = []
    kept: Hsv | None = None
    first = 0
    for part_times, frames in small_frames(path, WIDTH, HEIGHT, MOST_FRAMES_PER_S, _BLOCK):
        times += part_times
        hsv = to_hsv(frames)
        kept = hsv if kept is None else np.concatenate([kept, hsv])
        last = len(times) - _MARGIN
        if last > first:
            yield np.asarray(times, np.float32), kept, first, last
            drop = max(0, last - _MARGIN)
            times, kept, first = times[drop:], kept[drop:], last - drop
    if kept is not None and first < len(times):
        yield np.asarray(times, np.float32), kept, first, len(times)


def _clear_cuts(
    times: Line, hsv: Hsv, change: Line, first: int, last: int, factor: float
) -> Iterator[tuple[float, float]]:
    """Yield the cuts among the frames `first` to `last`, each with how clear it is."""
    for index in np.flatnonzero(change[first:last] >= LEAST_CHANGE * factor) + first:
        around = [*change[max(1, index - WINDOW) : index], *change[index + 1 : index + 1 + WINDOW]]
        usual = max(float(np.mean(around)) if around else 0.0, _STILL)
        clear = float(change[index]) / usual
        if clear >= RATIO * factor and not _comes_back(times, hsv, int(index), float(change[index])):
            yield float(times[index]), clear


def _comes_back(times: Line, hsv: Hsv, index: int, change: float) -> bool:
    """Tell whether the change at `index` is the begin, or the end, of something that passes."""
    begin = int(np.searchsorted(times, times[index] - FLASH_S))
    end = int(np.searchsorted(times, times[index] + FLASH_S))
    most = _CAME_BACK * change
    return bool(
        _least_difference(hsv[index - 1], hsv[index:end]) < most
        or _least_difference(hsv[index], hsv[begin : index - 1]) < most
    )


def _least_difference(picture: Hsv, others: Hsv) -> float:
    """Return the least difference of `picture` to one of `others`, wherever it has moved."""
    if not len(others):
        return np.inf
    least = np.inf
    for across in range(-_MOVES[0], _MOVES[0] + 1, 2):
        for down in range(-_MOVES[1], _MOVES[1] + 1, 2):
            here = picture[:, max(0, down) : HEIGHT + min(0, down), max(0, across) : WIDTH + min(0, across)]
            there = others[
                :, :, max(0, -down) : HEIGHT + min(0, -down), max(0, -across) : WIDTH + min(0, -across)
            ]
            least = min(least, float(difference(here, there).min()))
    return least


def _fades(times: Line, values: Line, known: list[float]) -> Iterator[float]:
    """Yield the middle of each dark time that was come to and left slowly."""
    dark = np.concatenate([[False], values < _DARK, [False]])
    edges = np.flatnonzero(np.diff(dark))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if begin == 0 or end == len(values):
            continue  # the video begins or ends black
        early, late = times[begin] - _FADE_S, times[end - 1] + _FADE_S
        if any(early - _FADE_S <= time_s <= late + _FADE_S for time_s in known):
            continue
        yield float((times[begin] + times[end - 1]) / 2)


def _apart(found: list[tuple[float, float]]) -> list[float]:
    """Return the times of cuts, of those too near to each other the clearest one."""
    kept: list[float] = []
    for time_s, _ in sorted(found, key=lambda item: -item[1]):
        if time_s >= SHORTEST_SCENE_S and all(abs(time_s - other) >= SHORTEST_SCENE_S for other in kept):
            kept.append(time_s)
    return sorted(kept)
