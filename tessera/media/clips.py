"""Cutting spans out of videos as files of their own: MP4, H.264 and AAC, that browsers play."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera import media
from tessera.errors import BadSample

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: Clips are at most so long, wide or high, and large; a longer span's clip is its beginning.
LONGEST_S = 120.0
SIDE = 1280
MAX_BYTES = 32 * 2**20
_AUDIO_RATE = 44_100
_CLOCK = Fraction(1, 90_000)


def clip(path: Path, start_s: float, end_s: float) -> bytes:
    """Return the span of a video as an MP4, encoded again so that it begins at the very frame, with its sound.

    Raises `BadSample`: as `media.probe` does, and ``too_large`` when the clip grows beyond `MAX_BYTES`.
    """
    end_s = min(end_s, start_s + LONGEST_S)
    shown = media.probe(path)
    out = io.BytesIO()
    with media.opened(path) as container:
        import av

        pictures = media.picture_stream(container, path)
        sounds: Any = container.streams.best("audio")
        begin_s = media.begin_of(pictures)
        container.seek(int((start_s + begin_s) * 1_000_000), backward=True)
        with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
            writer = _Writer(target, shown, pictures, sounds, begin_s + start_s)
            for frame in _frames(container, pictures, sounds, begin_s + end_s):
                writer.write(frame)
                if out.tell() > MAX_BYTES:
                    raise BadSample(
                        "too_large",
                        f"The clip from {start_s:g} s to {end_s:g} s is larger than {MAX_BYTES >> 20} MiB; "
                        "use shorter segments.",
                    )
            writer.end()
    return out.getvalue()


def _frames(
    container: InputContainer, pictures: VideoStream, sounds: AudioStream | None, end_s: float
) -> Iterator[VideoFrame | AudioFrame]:
    """Yield frames of both streams until each has reached `end_s`."""
    import av

    open_streams: dict[int, Any] = {
        stream.index: stream for stream in (pictures, sounds) if stream is not None
    }
    for packet in media.packets(container, *open_streams.values()):
        stream = packet.stream
        if stream.index not in open_streams:
            if not open_streams:
                return
            continue
        decoded: list[Any] = []
        with suppress(av.error.InvalidDataError, av.error.PatchWelcomeError):
            decoded = stream.decode(packet)
        for frame in decoded:
            if frame.time is not None and frame.time >= end_s:
                del open_streams[stream.index]
                break
            yield frame
        if not open_streams:
            return


class _Writer:
    """Encodes what comes from `start_s` on, both streams beginning at 0."""

    def __init__(
        self,
        target: OutputContainer,
        shown: media.Video,
        pictures: VideoStream,
        sounds: AudioStream | None,
        start_s: float,
    ) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._target, self._start_s = target, start_s
        scale = min(1.0, SIDE / max(shown.width, shown.height))
        # H.264 in 4:2:0 wants even sides.
        self._size = tuple(max(2, round(side * scale / 2) * 2) for side in (shown.width, shown.height))
        rate = pictures.average_rate or Fraction(25)
        options = {"preset": "veryfast", "crf": "24", "threads": "1"}
        self._video: Any = target.add_stream("libx264", rate=min(rate, Fraction(60)), options=options)
        self._video.width, self._video.height = self._size
        self._video.pix_fmt = "yuv420p"
        self._video.codec_context.time_base = _CLOCK
        self._scaler = VideoReformatter()
        self._last = -1
        self._audio: Any = None
        if sounds is not None and sounds.codec_context is not None:
            self._audio = target.add_stream("aac", rate=_AUDIO_RATE)
            self._audio.layout = "stereo"
            self._resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_AUDIO_RATE)
            self._samples = 0

    def write(self, frame: VideoFrame | AudioFrame) -> None:
        """Encode a frame, if it lies in the span."""
        import av

        time_s = frame.time
        if time_s is None or time_s < self._start_s:
            return
        if isinstance(frame, av.VideoFrame):
            self._picture(frame, time_s)
        elif self._audio is not None:
            frame.pts = None
            for made in self._resampler.resample(frame):
                self._sound(made)

    def end(self) -> None:
        """Write what the encoders still hold."""
        self._target.mux(self._video.encode())
        if self._audio is not None:
            for made in self._resampler.resample(None):
                self._sound(made)
            self._target.mux(self._audio.encode())

    def _picture(self, frame: VideoFrame, time_s: float) -> None:
        import av

        number = round((time_s - self._start_s) / _CLOCK)
        if number <= self._last:
            return
        if frame.rotation:
            # The display matrix turns counterclockwise, as numpy does.
            turned: Any = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
        width, height = self._size
        small = self._scaler.reformat(frame, width, height, "yuv420p", interpolation="FAST_BILINEAR")
        small.pts, small.time_base = number, _CLOCK
        small.pict_type = 0
        self._last = number
        self._target.mux(self._video.encode(small))

    def _sound(self, frame: AudioFrame) -> None:
        frame.pts, frame.time_base = self._samples, Fraction(1, _AUDIO_RATE)
        self._samples += frame.samples
        self._target.mux(self._audio.encode(frame))
