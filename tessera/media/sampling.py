"""Frames of a video in passing: all of them small, or those of every half second that show something new."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera import media

Frames = npt.NDArray[np.uint8]

#: A frame is compared with an earlier one in so many fields, across and down, of so many pixels a side each.
_FIELDS = (16, 9)
_FIELD_SIDE = 10
#: It shows something new when in one field pixels changed by this much (of 255) in the mean: a few letters do.
_NEW = 8.0


def small_frames(
    path: Path, width: int, height: int, most_per_s: float, count: int
) -> Iterator[tuple[list[float], Frames]]:
    """Yield all frames, scaled to `width`×`height` (not turned), `count` at a time, with their times in seconds.

    ``uint8[n, height, width, 3]``, red, green, blue. Of a video with more than `most_per_s` frames a second only
    every second, third … is taken. Raises `BadSample` as `media.probe` does.
    """
    from av.video.reformatter import VideoReformatter

    with media.opened(path) as container:
        stream = media.picture_stream(container, path)
        # Smoothing the edges of blocks takes a quarter of the time, and nothing of it is left in frames so small.
        stream.codec_context.options = {"skip_loop_filter": "all"}
        begin_s = media.begin_of(stream)
        step = max(1, math.ceil(float(stream.average_rate or 0) / most_per_s))
        scaler = VideoReformatter()
        times: list[float] = []
        frames = np.empty((count, height, width, 3), np.uint8)
        for number, frame in enumerate(media.decoded(container, stream)):
            if number % step:
                continue
            small = scaler.reformat(frame, width, height, "rgb24", interpolation="FAST_BILINEAR")
            frames[len(times)] = small.to_ndarray()
            times.append((frame.time or 0.0) - begin_s)
            if len(times) == count:
                yield times, frames
                times, frames = [], np.empty_like(frames)
        if times:
            yield times, frames[: len(times)]


def new_frames(path: Path, interval_s: float, side: int) -> Iterator[tuple[float, Frames]]:
    """Yield a frame of about every `interval_s`, if it shows something that the last one yielded does not.

    (time in seconds, ``uint8[height, width, 3]``), upright, of at most `side` pixels on the longer side. Raises
    `BadSample` as `media.probe` does.
    """
    from av.video.reformatter import VideoReformatter

    across, down = (count * _FIELD_SIDE for count in _FIELDS)
    with media.opened(path) as container:
        stream = media.picture_stream(container, path)
        begin_s = media.begin_of(stream)
        scaler, glancer = VideoReformatter(), VideoReformatter()
        known: npt.NDArray[np.int16] | None = None
        due_s = 0.0
        for frame in media.decoded(container, stream):
            time_s = (frame.time or 0.0) - begin_s
            if time_s < due_s:
                continue
            due_s = max(due_s + interval_s, time_s + interval_s / 2)
            glance = glancer.reformat(frame, across, down, "gray", interpolation="AREA").to_ndarray()
            grey = glance.astype(np.int16)
            if known is not None and not _is_new(grey, known):
                continue
            known = grey
            scale = min(1.0, side / max(frame.width, frame.height))
            width, height = (max(1, round(length * scale)) for length in (frame.width, frame.height))
            sized: Any = scaler.reformat(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
            # The display matrix turns counterclockwise, as numpy does.
            yield time_s, np.rot90(sized, round(frame.rotation / 90)) if frame.rotation else sized


def _is_new(grey: npt.NDArray[np.int16], known: npt.NDArray[np.int16]) -> bool:
    across, down = _FIELDS
    fields = np.abs(grey - known).reshape(down, _FIELD_SIDE, across, _FIELD_SIDE).mean(axis=(1, 3))
    return bool(fields.max() > _NEW)
