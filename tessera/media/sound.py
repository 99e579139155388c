"""Sound: samples as speech recognisers want them, how loud it is, and where it is silent.

Files are read as a stream; what is kept of an hour is one number for each 20 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tessera import media
from tessera.errors import BadSample

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

#: What recognisers are trained on.
RATE = 16_000
#: Sound with fewer samples a second is no sound, but a header that makes hours of a few bytes.
LOWEST_RATE = 2_000
#: One level is measured over so long.
LEVEL_S = 0.02
#: What is quieter than this (dB below full scale) is silence, in a recording whose loud parts are louder by
#: `_BELOW_LOUD_DB`; in a quieter recording the threshold goes down with it.
SILENCE_DB = -40
_BELOW_LOUD_DB = 20
#: The level of digital silence: 16 bits hold no less.
_FLOOR_DB = -96.0
#: A silence that parts two spans; shorter ones are those between words.
SHORTEST_SILENCE_S = 0.4
#: A sound shorter than this (a click) ends no silence.
_SHORTEST_SOUND_S = 0.08
#: Sound is taken to begin so much before its first loud moment, and to end so much behind the last one.
_PAD_S = 0.1
#: Formats without a header that tells how long they are; FFmpeg guesses from the rate of the first frames.
_GUESSING = frozenset({"aac", "mp3", "amr"})
#: Samples that are handed on together.
_BLOCK = RATE * 10
#: A stream that jumps by more than this has a gap (or an overlap) there.
_GAP_S = 0.1

Samples = npt.NDArray[np.int16]
Levels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sound:
    """What a container says of its sound."""

    duration_s: float
    channels: int
    rate: int
    codec: str
    mime_type: str


def probe(path: Path) -> Sound:
    """Return what the sound of a file is; one whose container tells no exact duration is read to its end for it.

    Raises `BadSample`: ``unsupported``, ``unreadable``, ``limit`` (duration).
    """
    with media.opened(path, "sound") as container:
        stream = _stream(container)
        duration_s = _duration(container, stream)
        context = stream.codec_context
        known = (context.layout.nb_channels, context.sample_rate, context.name)
        media.check_duration(duration_s, "sound")
        return Sound(duration_s, *known, media.sniff(path) or "application/octet-stream")


def samples(path: Path) -> Iterator[Samples]:
    """Yield the sound of a file from its start, mono, 16 bits, `RATE` a second, in blocks of some seconds.

    A gap in the stream is filled with silence, so that a sample's number is its time. Raises `BadSample`.
    """
    with media.opened(path, "sound") as container:
        waiting: list[Samples] = []
        length = 0
        for block in _resampled(container, _stream(container)):
            waiting.append(block)
            length += len(block)
            if length >= _BLOCK:
                yield np.concatenate(waiting)
                waiting, length = [], 0
        if waiting:
            yield np.concatenate(waiting)


def levels(path: Path) -> Levels:
    """Return how loud each `LEVEL_S` of the sound is: the root mean square, in dB of full scale (0 is loudest)."""
    step = round(RATE * LEVEL_S)
    measured: list[Levels] = []
    rest = np.empty(0, np.int16)
    for block in samples(path):
        whole = np.concatenate([rest, block])
        count = len(whole) // step
        measured.append(_level(whole[: count * step].reshape(count, step)))
        rest = whole[count * step :]
    if len(rest):
        measured.append(_level(rest[None]))
    return np.concatenate(measured) if measured else np.empty(0, np.float32)


def _level(rows: Samples) -> Levels:
    power = (rows.astype(np.float32) / 32768) ** 2
    decibels: Levels = 10 * np.log10(np.maximum(power.mean(axis=1), 10 ** (_FLOOR_DB / 10)))
    return decibels


def sounding(level: Levels, threshold_db: float | None = None) -> list[tuple[float, float]]:
    """Return from when to when there is sound, in seconds, ascending, with at least `SHORTEST_SILENCE_S` between.

    `threshold_db` (of full scale) parts sound from silence; None fits it to the recording (`SILENCE_DB`).
    """
    if not len(level):
        return []
    if threshold_db is None:
        threshold_db = min(SILENCE_DB, max(_FLOOR_DB + 3, float(np.percentile(level, 95)) - _BELOW_LOUD_DB))
    loud = np.concatenate([[False], level > threshold_db, [False]])
    edges = np.flatnonzero(np.diff(loud)) * LEVEL_S
    spans: list[tuple[float, float]] = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if spans and begin - spans[-1][1] < SHORTEST_SILENCE_S:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    total = len(level) * LEVEL_S
    return [
        (max(0.0, float(begin) - _PAD_S), min(total, float(end) + _PAD_S))
        for begin, end in spans
        if end - begin >= _SHORTEST_SOUND_S
    ]


def stretches(
    path: Path, spans: Sequence[tuple[float, float]], longest_s: float
) -> Iterator[tuple[float, Samples]]:
    """Yield (start in seconds, samples) of each of `spans` (ascending), parted where it is longer than `longest_s`.

    A stretch that is too long is parted at its quietest moment in the last third. Only one is in memory.
    """
    source = samples(path)
    held, offset = np.empty(0, np.int16), 0

    for begin_s, end_s in spans:
        start, stop = round(begin_s * RATE), round(end_s * RATE)
        while start < stop:
            end = min(stop, start + round(longest_s * RATE))
            while offset + len(held) < end:
                block = next(source, None)
                if block is None:
                    stop = end = min(end, offset + len(held))
                    break
                if offset + len(held) < start:  # nobody asks for what lies before
                    offset, held = offset + len(held), held[:0]
                held = np.concatenate([held, block])
            part = held[max(0, start - offset) : max(0, end - offset)]
            if end < stop:
                part = part[: _quietest(part)]
            if not len(part):
                break
            yield start / RATE, part
            start += len(part)
            held, offset = held[max(0, start - offset) :], max(offset, start)


def _quietest(part: Samples) -> int:
    """Return where to part a stretch: the quietest `LEVEL_S` of its last third."""
    step = round(RATE * LEVEL_S)
    begin = len(part) * 2 // 3
    count = (len(part) - begin) // step
    if count < 1:
        return len(part)
    return (
        begin
        + int(np.argmin(_level(part[begin : begin + count * step].reshape(count, step)))) * step
        + step // 2
    )


def _stream(container: InputContainer) -> AudioStream:
    stream: Any = container.streams.best("audio")
    if stream is None:
        raise BadSample("unsupported", "The file holds no sound.")
    # A stream whose format has no decoder here has no context, whatever PyAV's types say.
    if stream.codec_context is None:
        raise BadSample("unsupported", "The sound is in a format that has no decoder here.")
    rate = stream.codec_context.sample_rate
    if rate < LOWEST_RATE:
        raise BadSample(
            "unsupported", f"The sound has {rate} samples a second; {LOWEST_RATE} are the least that is read."
        )
    found: AudioStream = stream
    return found


def _duration(container: InputContainer, stream: AudioStream) -> float:
    if stream.duration and stream.time_base and container.format.name not in _GUESSING:
        return float(stream.duration * stream.time_base)
    if container.duration and container.format.name not in _GUESSING:
        return container.duration / 1_000_000
    begin_s = (container.start_time or 0) / 1_000_000
    end_s = begin_s
    for packet in media.packets(container, stream):
        if packet.pts is not None and packet.time_base is not None:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end_s - begin_s


def _resampled(container: InputContainer, stream: AudioStream) -> Iterator[Samples]:
    """Yield mono samples at `RATE`, gaps filled; damaged parts are passed over, and are gaps."""
    import av

    resampler: Any = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    begin_s = (container.start_time or 0) / 1_000_000
    done = 0
    for packet in media.packets(container, stream):
        frames = []
        with suppress(av.error.InvalidDataError, av.error.PatchWelcomeError):
            frames = stream.decode(packet)
        for frame in frames:
            missing = 0
            if frame.time is not None:
                missing = round((frame.time - begin_s) * RATE) - done
                frame.pts = None  # the resampler would fill gaps in its own way
            if missing > _GAP_S * RATE:
                media.check_duration((done + missing) / RATE, "sound")
                while missing > 0:
                    filled = np.zeros(min(missing, _BLOCK), np.int16)
                    yield filled
                    done, missing = done + len(filled), missing - len(filled)
            for made in resampler.resample(frame):
                block = made.to_ndarray().reshape(-1)
                done += len(block)
                yield block
    with suppress(av.error.FFmpegError):
        for made in resampler.resample(None):
            yield made.to_ndarray().reshape(-1)
