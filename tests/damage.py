"""Files that harm whoever opens them: bombs, cut, mislabelled and mutated ones, made by script from whole ones.

Every file keeps as much of its beginning as makes it look like what it claims to be: what does not is refused
before any batch sees it. Nothing here depends on anything but its arguments.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.media import BLUE, GREEN, RED, picture, video

#: A picture that lies on its side as phones leave it: blue comes on top when it is turned.
HEIC = Path(__file__).parent / "data" / "photo.heic"
#: What a whole file of each kind is, by the type of its property.
PROPERTY = {
    "text": "text",
    "png": "image",
    "jpeg": "image",
    "gif": "image",
    "webp": "image",
    "bmp": "image",
    "tiff": "image",
    "heic": "image",
    "mp4": "video",
    "mkv": "video",
    "wav": "audio",
    "flac": "audio",
    "pdf": "pdf",
}


@dataclass(frozen=True)
class File:
    """A file, the type of its property, and which causes its failure may have; none: it is whole."""

    name: str
    type: str
    data: bytes
    causes: frozenset[str] = frozenset()


# --- whole files ---------------------------------------------------------------------------------------


def whole(kind: str, number: int = 0) -> File:
    """Return the `number`-th whole file of a kind, small and unlike its neighbours."""
    colour = ((number * 37) % 256, (number * 91) % 256, (number * 153) % 256)
    if kind == "text":
        data = f"Note {number}: the lighthouse keeper counts {number * 7} ships.".encode()
    elif kind in ("mp4", "mkv"):
        data = _video(kind, number % 3)
    elif kind in ("wav", "flac"):
        data = _sound(kind, number % 3)
    elif kind == "pdf":
        text = f"Page {number}: the keeper of the lighthouse counts {number * 7} ships in the fog."
        data = pdf(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
    elif kind == "heic":
        data = HEIC.read_bytes()  # nothing here could make one
    else:
        data = _encoded(kind, colour)
    return File(f"whole-{number}.{kind}", PROPERTY[kind], data)


@functools.cache
def _video(kind: str, number: int) -> bytes:
    shots = [(1.0, (RED, GREEN, BLUE)[number]), (1.0, BLUE)]
    data = video(shots)
    return data if kind == "mp4" else _remuxed(data)


def _remuxed(data: bytes) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return out.getvalue()


@functools.cache
def _sound(kind: str, number: int) -> bytes:
    """Return a second of a tone with pauses, mono, 16,000 samples a second."""
    import av
    import numpy as np

    at = np.arange(16_000) / 16_000
    wave = np.sin(at * 2 * np.pi * (220 + 110 * number)) * (at % 0.5 < 0.3) * 12_000
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream("pcm_s16le" if kind == "wav" else "flac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode()])
    return out.getvalue()


def _encoded(kind: str, colour: tuple[int, int, int]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    small = Image.open(io.BytesIO(picture(colour, size=48)))
    # A gradient beside the colour, so that there is something to compress.
    ramp = Image.linear_gradient("L").resize((48, 24)).convert("RGB")
    small.paste(ramp, (0, 24))
    small.save(out, kind.upper())
    return out.getvalue()


# --- bombs ---------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *between: bytes, data: bytes = b"") -> bytes:
    """Return a PNG that claims to be so large, with further chunks before its data."""
    header = struct.pack(">II", width, height) + b"\x08\x02\x00\x00\x00"
    body = b"".join(between) + chunk(b"IDAT", data or zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def box(name: bytes, data: bytes) -> bytes:
    """Return a box of an ISO base media file."""
    return struct.pack(">I", len(data) + 8) + name + data


def _nested(name: bytes, depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(name, data)
    return data


def _patched(data: bytes, after: bytes, offset: int, value: bytes) -> bytes:
    place = data.index(after) + len(after) + offset
    return data[:place] + value + data[place + len(value) :]


def _set_everywhere(data: bytes, after: bytes, offset: int, value: bytes) -> bytes:
    found = bytearray(data)
    place = found.find(after)
    while place >= 0:
        at = place + len(after) + offset
        found[at : at + len(value)] = value
        place = found.find(after, place + 1)
    return bytes(found)


def _gif(width: int, height: int, frames: int) -> bytes:
    """Return a GIF whose every frame covers a canvas so large and says nothing."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\x00\x00" + bytes(6)
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, width, height) + b"\x00\x02\x02\x44\x01\x00"
    return head + frame * frames + b"\x3b"


def _ebml(identifier: int, data: bytes, size: bytes | None = None) -> bytes:
    name = identifier.to_bytes((identifier.bit_length() + 7) // 8, "big")
    length = size if size is not None else (len(data) | 1 << 56).to_bytes(8, "big")
    return name + length + data


def _matroska(width: int, height: int, duration_s: float) -> bytes:
    """Return a Matroska file of one video track that claims a size and a duration, and has one frame of noise."""
    head = _ebml(0x1A45DFA3, _ebml(0x4282, b"matroska"))
    info = _ebml(
        0x1549A966,
        _ebml(0x2AD7B1, (1_000_000).to_bytes(4, "big")) + _ebml(0x4489, struct.pack(">d", duration_s * 1000)),
    )
    pixels = _ebml(0xE0, _ebml(0xB0, width.to_bytes(4, "big")) + _ebml(0xBA, height.to_bytes(4, "big")))
    track = _ebml(
        0xAE,
        _ebml(0xD7, b"\x01")
        + _ebml(0x73C5, b"\x01")
        + _ebml(0x83, b"\x01")
        + _ebml(0x86, b"V_MPEG4/ISO/ASP")
        + pixels,
    )
    block = _ebml(0xA3, b"\x81\x00\x00\x80" + bytes(64))
    cluster = _ebml(0x1F43B675, _ebml(0xE7, b"\x00") + block)
    return head + _ebml(0x18538067, info + _ebml(0x1654AE6B, track) + cluster)


def pdf(content: bytes, *further: bytes, box: bytes = b"0 0 600 200", resources: bytes = b"") -> bytes:
    """Return a PDF of one page with this content (7.3.8); `further` objects are numbered from 6 on."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Resources<</Font<</F1 5 0 R>>%s>>/Contents 4 0 R>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        page % (box, resources),
        content if content.startswith(b"<<") else stream(content),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *further,
    ]
    return pdf_of(objects)


def pdf_of(objects: Sequence[bytes]) -> bytes:
    """Return a PDF of these objects, the first of which is its catalogue."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF"
    return bytes(out) + end % (size, table, size, len(out))


def stream(data: bytes, head: bytes = b"") -> bytes:
    """Return a stream object of a PDF."""
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (head, len(data), data)


def _flat(data: bytes) -> bytes:
    return stream(zlib.compress(data, 9), b"/Filter/FlateDecode")


_BAD_PICTURE = frozenset({"unreadable", "too_large"})
_BAD_VIDEO = frozenset({"unreadable", "unsupported", "too_large", "limit"})


def bombs() -> Iterator[File]:
    """Yield small files that unfold, claim or nest enormously."""
    too_large = frozenset({"too_large"})
    yield File("gigapixel.png", "image", png(40_000, 40_000), too_large)
    yield File("four-billion.png", "image", png(2**31 - 1, 2**31 - 1), _BAD_PICTURE)
    deep = zlib.compress(bytes(200 * 2**20), 9)
    yield File("long-text.png", "image", png(8, 8, chunk(b"zTXt", b"k\x00\x00" + deep)), _BAD_PICTURE)
    yield File(
        "profile.png", "image", png(8, 8, chunk(b"iCCP", b"k\x00\x00" + deep), data=deep[:99]), _BAD_PICTURE
    )
    yield File("no-data.png", "image", png(8000, 8000), _BAD_PICTURE)
    jpeg = whole("jpeg").data
    at = jpeg.index(b"\xff\xc0") + 5
    yield File("gigapixel.jpeg", "image", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], too_large)
    yield File("gigapixel.gif", "image", _gif(65_535, 65_535, 1), too_large)
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02\x00\x00\x00" + b"\xfe\x3f\x00" * 2
    webp = b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
    yield File("canvas.webp", "image", webp, _BAD_PICTURE)
    heic = whole("heic").data
    claims = _set_everywhere(heic, b"ispe", 4, struct.pack(">II", 60_000, 60_000))
    yield File("gigapixel.heic", "image", claims, _BAD_PICTURE)
    bmp = whole("bmp").data
    yield File("gigapixel.bmp", "image", bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:], too_large)
    yield File(
        "upside.bmp", "image", bmp[:18] + struct.pack("<ii", -(2**31), -(2**31)) + bmp[26:], _BAD_PICTURE
    )
    # An image file directory that is its own successor, and one that promises 65,535 entries.
    loop = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 0) + struct.pack("<I", 8)
    yield File("loop.tiff", "image", loop, _BAD_PICTURE)
    yield File("entries.tiff", "image", b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(60), _BAD_PICTURE)
    yield from _video_bombs()
    yield from _sound_bombs()
    yield from _pdf_bombs()
    yield File("blank.txt", "text", b" \n\t" * 50, frozenset({"unreadable"}))


def _video_bombs() -> Iterator[File]:
    mp4 = whole("mp4").data
    # The shortest of what the media header, the list of times and the edit list say counts.
    endless = _patched(mp4, b"mdhd", 16, b"\x7f\xff\xff\xff").replace(b"edts", b"free")
    endless = _patched(endless, b"stts", 12, b"\x0f\xff\xff\xff")
    yield File("endless.mp4", "video", endless, frozenset({"limit"}))
    yield File("no-samples.mp4", "video", mp4[: mp4.index(b"mdat") + 4], _BAD_VIDEO)
    yield File("samples.mp4", "video", _patched(mp4, b"stsz", 8, b"\x7f\xff\xff\xff"), _BAD_VIDEO)
    yield File("times.mp4", "video", _patched(mp4, b"stts", 4, b"\x7f\xff\xff\xff"), _BAD_VIDEO)
    head = box(b"ftyp", b"isom\x00\x00\x02\x00isommp41")
    yield File("nested.mp4", "video", head + _nested(b"moov", 5000), _BAD_VIDEO)
    yield File("boxes.mp4", "video", head + box(b"moov", box(b"trak", b"") * 20_000), _BAD_VIDEO)
    yield File(
        "promised.mp4", "video", head + struct.pack(">I", 1) + b"mdat" + b"\x7f" + b"\xff" * 7, _BAD_VIDEO
    )
    yield File("giant.mkv", "video", _matroska(100_000, 100_000, 10), frozenset({"too_large", "unreadable"}))
    yield File("endless.mkv", "video", _matroska(64, 64, 1e9), frozenset({"limit"}))
    unknown = _ebml(0x1A45DFA3, _ebml(0x4282, b"matroska")) + _ebml(
        0x18538067, _ebml(0x1F43B675, b"", b"\x01" + b"\xff" * 7) * 5000, b"\x01" + b"\xff" * 7
    )
    yield File("unknown.mkv", "video", unknown, _BAD_VIDEO)


def _sound_bombs() -> Iterator[File]:
    bad = frozenset({"unreadable", "unsupported", "limit"})
    wav = whole("wav").data
    # Two bytes a second: half a day of sound in the header's words, and in a file of kilobytes.
    slow = wav[:24] + struct.pack("<II", 1, 2) + wav[32:]
    yield File("slow.wav", "audio", slow, bad)
    yield File("channels.wav", "audio", wav[:22] + b"\xff\xff" + wav[24:], bad)
    yield File("no-sound.wav", "audio", wav[:44], bad)
    yield File("no-sound.flac", "audio", whole("flac").data[:42], bad)


def _pdf_bombs() -> Iterator[File]:
    bad = frozenset({"unreadable", "too_large", "limit"})
    blank = frozenset({"unreadable"})
    yield File("blank.pdf", "pdf", pdf(b""), blank)
    yield File("blanks.pdf", "pdf", pdf(_flat(b" " * 2**26)), blank)
    twice = zlib.compress(zlib.compress(bytes(2**28), 9), 9)
    yield File("twice.pdf", "pdf", pdf(stream(twice, b"/Filter[/FlateDecode/FlateDecode]")), blank)
    yield File("states.pdf", "pdf", pdf(_flat(b"q Q " * 2**21)), blank)
    yield File("drawn.pdf", "pdf", pdf(_flat(b"0 0 1 1 re f " * 300_000)), bad)
    picture = (
        b"/Type/XObject/Subtype/Image/Width 100000/Height 100000/BitsPerComponent 8/ColorSpace/DeviceRGB"
    )
    image = stream(zlib.compress(bytes(2**20), 9), picture + b"/Filter/FlateDecode")
    shown = b"q 600 0 0 200 0 0 cm /I Do Q"
    yield File("picture.pdf", "pdf", pdf(shown, image, resources=b"/XObject<</I 6 0 R>>"), blank)
    catalogue = b"<</Type/Catalog/Pages 2 0 R>>"
    kids = b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 100000>>"
    yield File("own-child.pdf", "pdf", pdf_of([catalogue, kids]), bad)
    count = b"<</Type/Pages/Kids[]/Count 2147483647>>"
    yield File("count.pdf", "pdf", pdf_of([catalogue, count]), bad)
    yield File("arrays.pdf", "pdf", pdf(b"[" * 2**17), blank)
    nested = b"<</Type/Catalog/Pages 2 0 R/X " + b"<</A " * 50_000 + b"1" + b">>" * 50_001
    yield File("nested.pdf", "pdf", pdf_of([nested, b"<</Type/Pages/Kids[]/Count 0>>"]), bad)
    tree = [b"<</Type/Pages/Kids[%d 0 R]/Count 1>>" % (number + 3) for number in range(3000)]
    yield File("deep.pdf", "pdf", pdf_of([catalogue, *tree, b"<</Type/Page/MediaBox[0 0 9 9]>>"]), bad)


def laughs() -> File:
    """Return a PDF whose forms draw each other, ten times over twenty levels: nothing but its end ends that."""
    head = b"/Type/XObject/Subtype/Form/BBox[0 0 200 200]/Resources<<%s>>"
    forms = [stream(b"/X Do " * 10, head % (b"/XObject<</X %d 0 R>>" % (number + 7))) for number in range(20)]
    data = pdf(b"/X Do", *forms, stream(b"0 0 1 1 re f", head % b""), resources=b"/XObject<</X 6 0 R>>")
    return File("laughs.pdf", "pdf", data, frozenset({"limit", "ours"}))


# --- damaged and mutated files -------------------------------------------------------------------------


def cut(file: File, part: float) -> File:
    """Return the beginning of a file."""
    end = max(16, int(len(file.data) * part))
    return File(f"cut-{file.name}", file.type, file.data[:end], frozenset({"unreadable", "unsupported"}))


def hollow(file: File, keep: int = 64) -> File:
    """Return a file of which only the first bytes are left, and noise as long as the rest was."""
    noise = random.Random(file.name).randbytes(max(0, len(file.data) - keep))
    return File(
        f"hollow-{file.name}", file.type, file.data[:keep] + noise, frozenset({"unreadable", "unsupported"})
    )


def mutated(kind: str, seed: int) -> File:
    """Return a whole file with something random done to it; it may still be whole."""
    chance = random.Random(f"{kind}-{seed}")
    file = whole(kind, chance.randrange(3))
    data = bytearray(file.data)
    keep = 16  # or it does not even look like one
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        _MUTATIONS[chance.randrange(len(_MUTATIONS))](data, chance, keep)
    return File(f"mutated-{seed}.{kind}", file.type, bytes(data[: 2**20]))


def _flip(data: bytearray, chance: random.Random, keep: int) -> None:
    if len(data) > keep:
        data[chance.randrange(keep, len(data))] ^= 1 << chance.randrange(8)


def _extreme(data: bytearray, chance: random.Random, keep: int) -> None:
    size = chance.choice((1, 2, 4, 8))
    if len(data) > keep + size:
        at = chance.randrange(keep, len(data) - size)
        data[at : at + size] = chance.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * size


def _drop(data: bytearray, chance: random.Random, keep: int) -> None:
    if len(data) > keep + 1:
        at = chance.randrange(keep, len(data))
        del data[at : at + chance.randrange(1, 64)]


def _double(data: bytearray, chance: random.Random, keep: int) -> None:
    if len(data) > keep + 1:
        at = chance.randrange(keep, len(data))
        data[at:at] = data[at : at + chance.randrange(1, 256)]


def _end(data: bytearray, chance: random.Random, keep: int) -> None:
    del data[chance.randrange(keep, len(data) + 1) :]


_MUTATIONS: tuple[Callable[[bytearray, random.Random, int], None], ...] = (
    _flip,
    _flip,
    _flip,
    _extreme,
    _extreme,
    _drop,
    _double,
    _end,
)
