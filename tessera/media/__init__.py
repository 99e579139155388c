"""Bytes to pictures, frames, thumbnails, sound and subtitles. What is wrong with a file is a `BadSample`.

Files come from users: sizes are checked before anything is decoded, containers that could name other files
(playlists, concatenations) are not opened, and what a decoder raises is turned into one typed error. This
runs in worker processes, so that a decoder that crashes takes one row with it.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tessera import alarms, content, exif, languages
from tessera.errors import BadSample

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image

#: Largest picture, and largest frame of a video (8K), in pixels.
MAX_PICTURE_PIXELS = 64 * 2**20
MAX_FRAME_PIXELS = 8192 * 4608
#: Longest video.
MAX_DURATION_S = 12 * 3600.0
#: Largest subtitle file, and most subtitles of one video.
MAX_SUBTITLE_BYTES = 8 * 2**20
MAX_CUES = 100_000
#: Longest time to decode one picture.
PICTURE_S = 60.0
#: Pictures and frames are handed on with at most this many pixels a side: models look at fewer.
WORKING_SIDE = 768
#: Longer side and quality of a thumbnail.
THUMBNAIL_SIDE = 480
THUMBNAIL_QUALITY = 82

#: Pillow's readers that are used: none that starts a program (EPS) or reads what nobody sends.
_PICTURE_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF")
_DECODED = frozenset(
    {f"image/{kind}" for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "jp2", "heic")}
)
_PICTURES = "JPEG, PNG, GIF, WebP, AVIF, HEIC, TIFF, BMP or JPEG 2000"
#: FFmpeg's readers that are used: none that opens other files or addresses (hls, dash, concat).
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,gif,srt,webvtt,ass,"
    "wav,flac,mp3,aac,aiff,amr"
)
#: What every file is opened with: nothing but files, and none that could name another.
DECODER_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
_TEXT_SUBTITLES = frozenset({"mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text"})
#: Frames further ahead than this are reached by seeking, nearer ones by decoding on.
_SEEK_AHEAD_S = 12.0
#: With slack nearer ones may be sought too, but not so near that the same key frame would be found again.
_SEEK_SPARES_S = 4.0
#: The last frame stands for this much more than its own time: durations in containers are not that exact.
_HOLD_S = 1.0


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright, RGB or RGBA, its size as displayed before any scaling, and when it was taken."""

    image: Image
    width: int
    height: int
    taken: exif.Taken = exif.UNKNOWN


@dataclass(frozen=True, slots=True)
class Video:
    """What a video's container says of it, as displayed."""

    duration_s: float
    width: int
    height: int
    frames_per_s: float | None
    has_audio: bool
    mime_type: str


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: plain text (no markup), shown from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    text: str


def sniff(path: Path) -> str | None:
    """Return the media type that the file's bytes tell, or None."""
    return content.sniff_file(path)


# --- pictures -----------------------------------------------------------------------------------------


def open_picture(path: Path, side: int = WORKING_SIDE) -> Picture:
    """Decode a picture file; of an animation, the first frame. It is made smaller until it has `side` pixels a side.

    Raises `BadSample`: ``too_large`` before anything is decoded, ``unsupported``, ``unreadable``.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with alarms.within(PICTURE_S), decoding("picture"), warnings.catch_warnings():
        # Pillow warns of what is odd in a file, and of large pictures; the bound below is ours.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(path, formats=_picture_formats(path))
        except UnidentifiedImageError:
            raise _not_a("picture", path, _PICTURES) from None
        with opened as image:
            width, height = image.size
            if width * height > MAX_PICTURE_PIXELS:
                raise BadSample(
                    "too_large",
                    f"The picture has {width}×{height} pixels; at most {MAX_PICTURE_PIXELS >> 20} Mi are decoded.",
                )
            if image.format == "JPEG":
                image.draft("RGB", (side, side))
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "I;16" or upright.mode.startswith(("I", "F")):
                upright = _from_deep(upright)
            has_alpha = upright.mode in {"RGBA", "LA", "PA"} or "transparency" in upright.info
            decoded = upright.convert("RGBA" if has_alpha else "RGB")
            # 5 to 8: the picture lies on its side, width and height change places (EXIF 2.3, 4.6.4).
            tags = image.getexif()
            turned = tags.get(0x0112, 1) in range(5, 9)
            taken = exif.read(tags)
        decoded.thumbnail((side, side), Image.Resampling.BOX)
        return Picture(decoded, *((height, width) if turned else (width, height)), taken)


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height of a picture file as its header tells them. Raises `BadSample`."""
    from PIL import Image, UnidentifiedImageError

    with decoding("picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=_picture_formats(path)) as image:
                width, height = image.size
        except UnidentifiedImageError:
            raise _not_a("picture", path, _PICTURES) from None
    return width, height


def _picture_formats(path: Path) -> tuple[str, ...]:
    """Return which of Pillow's readers may look at a file; that of HEIC is made known to Pillow when one comes."""
    if sniff(path) != "image/heic":
        return tuple(kind for kind in _PICTURE_FORMATS if kind != "HEIF")
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise BadSample(
            "model_missing",
            "HEIC pictures cannot be decoded here: install what does it with `pip install 'tessera[heif]'`, or "
            "convert the picture to JPEG.",
        ) from error
    # The picture alone: no small copies or depths beside it, and no threads of the library's own.
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return ("HEIF",)


def thumbnail(image: Image) -> bytes:
    """Return a JPEG of at most 480 pixels a side; transparent parts become white."""
    from PIL import Image as Pillow

    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if small.mode == "RGBA":
        ground = Pillow.new("RGBA", small.size, "white")
        small = Pillow.alpha_composite(ground, small)
    out = io.BytesIO()
    small.convert("RGB").save(out, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return out.getvalue()


def as_png(image: Image) -> bytes:
    """Return a picture without loss."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def settle_picture(paths: tuple[str, str]) -> tuple[str, str] | None:
    """Decode the picture file ``paths[0]`` and write what models see of it as ``paths[1]``, a small PNG.

    For a process of its own. Returns the kind and the message of what is wrong with the picture, or None.
    """
    source, target = map(Path, paths)
    try:
        open_picture(source).image.save(target, "PNG", compress_level=1)
    except BadSample as error:
        return error.kind, error.message
    return None


def _from_deep(image: Image) -> Image:
    """Bring more than eight bits a pixel to eight, by the range that the picture uses."""
    low, high = image.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    scale = 255 / (high - low) if high > low else 0.0
    return image.convert("F").point(lambda value: value * scale - low * scale).convert("L")


# --- video --------------------------------------------------------------------------------------------


def probe(path: Path) -> Video:
    """Return what a video is. A container that does not tell its duration is read to its end for it.

    Raises `BadSample`: ``unsupported``, ``unreadable``, ``too_large`` (frame size), ``limit`` (duration).
    """
    with opened(path) as container:
        stream = picture_stream(container, path)
        duration_s = _duration(container, stream)
        context = stream.codec_context
        width, height = context.width, context.height
        frame = next(iter(decoded(container, stream)), None)
        if frame is None:
            raise _no_frame()
        if round(frame.rotation) % 180:
            width, height = height, width
        rate = stream.average_rate
        return Video(
            duration_s,
            width,
            height,
            float(rate) if rate else None,
            bool(container.streams.audio),
            sniff(path) or "application/octet-stream",
        )


def frames_at(
    path: Path, times_s: Sequence[float], *, slack_s: float | Sequence[float] = 0.0
) -> Generator[Image | None, None, None]:
    """Yield the frame that is shown at each of `times_s` (ascending, from the start of the video).

    The frames are RGB, upright, at most `WORKING_SIDE` pixels a side. None stands for a time at which no
    frame is shown any more: the pictures end before the sound, or the file was cut off. With `slack_s` (one for
    all, or for each) a key frame so little before the time is taken as it is, which spares decoding up to it.
    Raises `BadSample` as `probe` does.
    """
    with opened(path) as container:
        import av

        stream = picture_stream(container, path)
        begin_s = begin_of(stream)
        source = decoded(container, stream)
        shown = ahead = next(source, None)
        if shown is None:
            raise _no_frame()
        slacks = repeat(slack_s) if isinstance(slack_s, int | float) else slack_s
        for time_s, slack in zip(times_s, slacks, strict=False):
            seek_ahead_s = min(_SEEK_AHEAD_S, max(slack, _SEEK_SPARES_S)) if slack else _SEEK_AHEAD_S
            if ahead is not None and time_s - _time(shown, begin_s) > seek_ahead_s and stream.time_base:
                with suppress(av.error.FFmpegError):
                    container.seek(int((time_s + begin_s) / stream.time_base), stream=stream)
                source = decoded(container, stream)
                ahead = next(source, None)
                if ahead is not None:
                    shown = ahead
                    if 0 <= time_s - _time(shown, begin_s) <= slack:
                        yield _image(shown)
                        continue
            while ahead is not None and _time(ahead, begin_s) <= time_s + 1e-6:
                shown, ahead = ahead, next(source, None)
            ended = ahead is None and time_s > _time(shown, begin_s) + _lasts(shown, stream) + _HOLD_S
            yield None if ended else _image(shown)


def _time(frame: VideoFrame, begin_s: float) -> float:
    return (frame.time or 0.0) - begin_s


def _lasts(frame: VideoFrame, stream: VideoStream) -> float:
    # A container that does not tell how long a frame is shown means: until the end.
    return _seconds(frame.duration or None, stream) or math.inf


def decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield frames from where the container stands; a damaged one is passed over, as players do."""
    import av

    for packet in packets(container, stream):
        with suppress(av.error.InvalidDataError, av.error.PatchWelcomeError):
            yield from stream.decode(packet)


def packets(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """Yield packets; a container that is damaged from some place on ends there."""
    import av

    source = container.demux(*streams)
    with suppress(av.error.InvalidDataError):
        yield from source


def _image(frame: VideoFrame) -> Image:
    scale = min(1.0, WORKING_SIDE / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    convert: Callable[..., Image] = frame.to_image
    image = convert(width=width, height=height, interpolation="AREA")
    # The display matrix turns counterclockwise, as Pillow does.
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


@contextmanager
def opened(path: Path, what: Literal["video", "sound"] = "video") -> Iterator[InputContainer]:
    """Open a file for its pictures or its sound; within, whatever a decoder raises is a `BadSample`."""
    try:
        import av
    except ImportError as error:
        raise BadSample(
            "model_missing",
            f"{what.capitalize()} cannot be decoded here: install what does it with `pip install 'tessera[media]'`.",
        ) from error

    with decoding(what):
        mime_type = sniff(path)
        kinds = ("video",) if what == "video" else ("audio", "video")
        if mime_type is None or not any(content.fits(mime_type, kind) for kind in kinds):
            raise _not_a(what, path, content.FORMATS["video" if what == "video" else "audio"])
        with av.open(str(path), options=dict(DECODER_OPTIONS), metadata_errors="replace") as container:
            yield container


def picture_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first stream of pictures, ready to be decoded. Raises `BadSample`."""
    import av

    # The cover of a recording is a stream of one picture, and no film.
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        holds = f"The file ({sniff(path)}) holds no pictures"
        if not container.streams.audio:
            raise BadSample("unsupported", f"{holds}.")
        raise BadSample(
            "unsupported",
            f"{holds}, only sound. Put it into a property of type audio that a collection maps to the input `audio`; "
            "MP3, WAV, FLAC, M4A and video containers are read there.",
        )
    stream = streams[0]
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        raise BadSample("unsupported", "The video is in a format that has no decoder here.")
    if context.width * context.height > MAX_FRAME_PIXELS:
        raise BadSample(
            "too_large",
            f"The video's frames have {context.width}×{context.height} pixels; at most "
            f"{MAX_FRAME_PIXELS / 2**20:.0f} Mi are decoded.",
        )
    stream.thread_type = "AUTO"
    return stream


def _duration(container: InputContainer, stream: VideoStream) -> float:
    duration_s = _seconds(stream.duration, stream)
    if duration_s is None and container.duration:
        duration_s = container.duration / 1_000_000
    if duration_s is None:
        begin_s = _seconds(stream.start_time, stream) or 0.0
        ends = [
            _seconds(packet.pts + (packet.duration or 0), stream) or 0.0
            for packet in packets(container, stream)
            if packet.pts is not None
        ]
        duration_s = max(ends, default=begin_s) - begin_s
        container.seek(0)
    check_duration(duration_s, "video")
    return max(duration_s, 0.0)


def check_duration(duration_s: float, what: str) -> None:
    """Raise `BadSample` (``limit``) for what lasts longer than `MAX_DURATION_S`."""
    if duration_s > MAX_DURATION_S:
        raise BadSample(
            "limit",
            f"The {what} lasts {duration_s / 3600:.1f} h; at most {MAX_DURATION_S / 3600:.0f} h are taken.",
        )


def begin_of(stream: VideoStream) -> float:
    """Return the time of a stream's first frame, in seconds on the container's clock."""
    return _seconds(stream.start_time, stream) or 0.0


def _seconds(value: int | None, stream: VideoStream) -> float | None:
    return None if value is None or stream.time_base is None else float(value * stream.time_base)


# --- subtitles ----------------------------------------------------------------------------------------


def embedded_subtitles(path: Path, language: str | None = None) -> list[Cue]:
    """Return the text subtitles inside a video in the order of their start; none when there are none.

    Of several tracks the one in `language` (``en``, ``eng``) is taken, else the default, else the first.
    """
    with opened(path) as container:
        tracks = [track for track in container.streams.subtitles if _codec_name(track) in _TEXT_SUBTITLES]
        if not tracks:
            return []
        begin_s = float(container.start_time or 0) / 1_000_000
        track = min(tracks, key=lambda stream: _rank(stream, language))
        cues: list[Cue] = []
        for packet in packets(container, track):
            if not packet.size or packet.pts is None or packet.time_base is None:
                continue
            shown = track.decode2(packet)
            text = " ".join(
                plain for rect in (shown or ()) if (plain := _plain_ass(getattr(rect, "dialogue", b"")))
            )
            if text:
                start_s = max(float(packet.pts * packet.time_base) - begin_s, 0.0)
                length_s = float((packet.duration or 0) * packet.time_base)
                cues.append(Cue(round(start_s, 3), round(start_s + length_s, 3), text))
                _check_count(cues)
        return _tidy(cues)


def read_subtitles(path: Path) -> list[Cue]:
    """Return the subtitles of an ``.srt`` or ``.vtt`` file. Raises `BadSample` as `parse_subtitles` does."""
    if path.stat().st_size > MAX_SUBTITLE_BYTES:
        raise BadSample("too_large", f"The subtitle file is larger than {MAX_SUBTITLE_BYTES >> 20} MiB.")
    data = path.read_bytes()
    encoding = content.encoding_of(data)
    if encoding != "utf-8-sig":
        text = data.decode(encoding, "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            # What subtitle editors write when it is not UTF-8.
            text = data.decode("cp1252", "replace")
    return parse_subtitles(text)


#: ``00:01:02,500 --> 00:01:04.000``, hours may be missing; what follows on the line (VTT's settings) is passed over.
_CLOCK = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMING = re.compile(rf"^[ \t]*{_CLOCK}[ \t]*-->[ \t]*{_CLOCK}[^\n]*$", re.MULTILINE)
_TAG = re.compile(r"<[^<>\n]{0,200}>")
_ASS_OVERRIDE = re.compile(r"\{[^{}]{0,400}\}")


def has_subtitles(text: str) -> bool:
    """Tell whether a text looks like an SRT or WebVTT file."""
    return _TIMING.search(text, 0, 20_000) is not None


def parse_subtitles(text: str) -> list[Cue]:
    """Return the cues of an SRT or WebVTT text, without markup, in the order of their start.

    Raises `BadSample`: ``unreadable`` when there is not one, ``limit`` beyond 100,000.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    cues: list[Cue] = []
    timings = list(_TIMING.finditer(text))
    for number, timing in enumerate(timings):
        end = timings[number + 1].start() if number + 1 < len(timings) else len(text)
        # A cue ends at the first empty line; the next one's number or name stands behind it.
        body = re.split(r"\n[ \t]*\n", text[timing.end() : end].lstrip("\n") + "\n\n", maxsplit=1)[0]
        if text[timing.end() : end].startswith("\n\n"):
            body = ""
        plain = _plain_markup(body)
        if plain:
            cues.append(Cue(_clock(timing.groups()[:4]), _clock(timing.groups()[4:]), plain))
            _check_count(cues)
    if not timings:
        raise BadSample(
            "unreadable",
            "The text is neither SRT nor WebVTT: it has no line like 00:00:01,000 --> 00:00:02,500.",
        )
    return _tidy(cues)


def _clock(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction or 0}")


def _plain_markup(text: str) -> str:
    without = _ASS_OVERRIDE.sub("", _TAG.sub("", text))
    return " ".join(html.unescape(without).split())


def _plain_ass(dialogue: bytes) -> str:
    text = _ASS_OVERRIDE.sub("", dialogue.decode("utf-8", "replace"))
    return " ".join(re.sub(r"\\[Nnh]", " ", text).split())


def _tidy(cues: list[Cue]) -> list[Cue]:
    """Sort cues, and let one without an end last until the next one starts, at most five seconds."""
    cues = sorted(cues, key=lambda cue: (cue.start_s, cue.end_s))
    tidy = []
    for number, cue in enumerate(cues):
        if cue.end_s > cue.start_s:
            tidy.append(cue)
            continue
        following = cues[number + 1].start_s if number + 1 < len(cues) else cue.start_s + 5
        tidy.append(Cue(cue.start_s, min(max(following, cue.start_s), cue.start_s + 5), cue.text))
    return tidy


def _codec_name(stream: Any) -> str | None:
    # A stream whose format has no decoder here has no context, whatever PyAV's types say.
    return stream.codec_context.name if stream.codec_context is not None else None


def _check_count(cues: Sequence[Cue]) -> None:
    if len(cues) > MAX_CUES:
        raise BadSample("limit", f"There are more than {MAX_CUES} subtitles.")


def _rank(stream: Any, language: str | None) -> tuple[bool, bool, int]:
    code = languages.code_of(language or "")
    wanted = {language, *languages.SPELLINGS.get(code or "", ())}
    return (
        stream.language is None or stream.language not in wanted,
        not stream.disposition & 1,
        stream.index,
    )


# --- errors -------------------------------------------------------------------------------------------


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises over a file into `BadSample`; on untrusted bytes that is anything."""
    try:
        yield
    except (BadSample, GeneratorExit):
        raise
    except MemoryError as error:
        raise BadSample("too_large", f"The {what} does not fit into memory.") from error
    except Exception as error:
        if type(error).__name__ == "DecompressionBombError":
            raise BadSample(
                "too_large",
                f"The {what} has more pixels than are decoded; {MAX_PICTURE_PIXELS >> 20} Mi are at most.",
            ) from error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.split(": '")[0].replace("\n", " ")[:200]
        raise BadSample("unreadable", f"The {what} cannot be decoded: {reason}.") from error


def _no_frame() -> BadSample:
    return BadSample("unreadable", "The video holds no frame that can be decoded.")


def _not_a(what: str, path: Path, formats: str) -> BadSample:
    if path.stat().st_size == 0:
        return BadSample("unreadable", "The file is empty.")
    found = sniff(path)
    if what == "picture" and found in _DECODED:
        return BadSample("unreadable", f"The file begins like {found}, but is damaged or cut off.")
    said = f"it looks like {found}" if found else "its bytes tell no known format"
    return BadSample("unsupported", f"The file is no {what} that can be read ({said}); {formats} can be.")
