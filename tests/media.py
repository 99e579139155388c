"""Sample media made by script, with known colours, cuts and words."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

#: (seconds, red-green-blue): one shot of a video, of one colour.
Shot = tuple[float, tuple[int, int, int]]
#: (start in seconds, end in seconds, words): one subtitle.
Cue = tuple[float, float, str]

#: Six sentences in flite's voice slt (``scripts/make-speech``), and when each is said.
SPEECH = Path(__file__).parent / "data" / "speech.flac"
SAID = json.loads(SPEECH.with_suffix(".json").read_text())

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)

_ASS_HEADER = (
    b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name, Fontname, Fontsize\n"
    b"Style: Default,Arial,16\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
)


def video(shots: Sequence[Shot], cues: Sequence[Cue] = (), *, size: int = 96, rate: int = 10) -> bytes:
    """Return an MP4 of plain colours (MPEG-4 part 2), with `cues` as an embedded subtitle track."""
    import av
    from av.packet import Packet

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        pictures = container.add_stream("mpeg4", rate=rate)
        pictures.width, pictures.height, pictures.pix_fmt = size, size, "yuv420p"
        words = container.add_stream("mov_text") if cues else None
        if words is not None:
            words.codec_context.subtitle_header = _ASS_HEADER
        for seconds, colour in shots:
            picture = np.full((size, size, 3), colour, dtype=np.uint8)
            for _ in range(round(seconds * rate)):
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(pictures.encode())
        for start_s, end_s, text in cues:
            data = text.encode()
            # A mov_text sample is the text behind its length in two bytes (3GPP TS 26.245, 5.17).
            packet = Packet(len(data).to_bytes(2, "big") + data)
            packet.stream, packet.time_base = words, Fraction(1, 1000)
            packet.pts = packet.dts = round(start_s * 1000)
            packet.duration = round((end_s - start_s) * 1000)
            container.mux(packet)
    return out.getvalue()


def photograph(
    data: bytes,
    *,
    at: str | None = "2021:06:05 07:08:09",
    zone: str | None = "+02:00",
    place: tuple[float, float] | None = (48.137, -11.5756),
    orientation: int = 1,
) -> bytes:
    """Return the picture in `data` as a JPEG with Exif tags, as a camera writes them."""
    from PIL import Image

    out = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    tags = Image.Exif()
    tags[0x0112] = orientation
    shot = tags.get_ifd(0x8769)
    if at is not None:
        shot[0x9003] = at
    if zone is not None:
        shot[0x9011] = zone
    if place is not None:
        north, east = place
        tags.get_ifd(0x8825).update(
            {1: "S" if north < 0 else "N", 2: degrees(north), 3: "W" if east < 0 else "E", 4: degrees(east)}
        )
    image.convert("RGB").save(out, "JPEG", exif=tags)
    return out.getvalue()


def degrees(value: float) -> tuple[float, float, float]:
    """Return degrees, minutes and seconds."""
    minutes, seconds = divmod(abs(value) * 3600, 60)
    return float(minutes // 60), float(minutes % 60), round(seconds, 4)


def turned(mp4: bytes) -> bytes:
    """Return a video of 320×240 as a phone that was held upright writes it: its container turns it by 90°."""
    data = bytearray(mp4)
    # The unit matrix in the track's header (ISO 14496-12, 8.3.2) becomes a turn by 90°.
    unit = b"".join(value.to_bytes(4, "big") for value in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turn = b"".join(
        value.to_bytes(4, "big", signed=True)
        for value in (0, 0x10000, 0, -0x10000, 0, 0, 240 << 16, 0, 0x40000000)
    )
    place = data.index(unit, data.index(b"tkhd"))
    data[place : place + len(unit)] = turn
    return bytes(data)


def sound_as(source: Path, target: Path, codec: str, *, rate: int = 44_100, until_s: float = 60) -> Path:
    """Encode the sound of a file once more, up to a time; the ending of `target` names the container."""
    import av

    with av.open(str(source)) as taken, av.open(str(target), "w") as made:
        stream = made.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(stream.format.name, "mono", rate, frame_size=stream.frame_size or 1024)
        for frame in taken.decode(audio=0):
            if frame.time > until_s:
                break
            for part in resampler.resample(frame):
                made.mux(stream.encode(part))
        for part in resampler.resample(None):
            made.mux(stream.encode(part))
        made.mux(stream.encode())
    return target


def picture(colour: tuple[int, int, int], *, size: int = 64) -> bytes:
    """Return a PNG of one colour."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()
