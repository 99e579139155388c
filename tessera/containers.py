"""Whether a container of video holds nothing but sound, told by its list of streams. Nothing is decoded.

Read here and not by a library, so that whoever sends files needs none: the lists are walked by seeking, at most
`_MOST` entries of them, and what is damaged counts as video; whoever decodes it says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

_MOST = 4096
#: ISO/IEC 14496-12, 8.4.3: handlers of pictures, of sound.
_PICTURES = frozenset({b"vide", b"auxv", b"pict"})
_SOUND = b"soun"
#: Matroska (RFC 9559, 5.1): elements on the way to a track's type, and the first that lies behind the tracks.
_SEGMENT, _TRACKS, _TRACK, _TRACK_TYPE, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0x1F43B675
_MATROSKA_PICTURES, _MATROSKA_SOUND = 1, 2
#: ASF, 9.1: types of streams.
_ASF_VIDEO, _ASF_SOUND = (
    bytes.fromhex(f"{begin}4d5bcf11a8fd00805f5c442b") for begin in ("c0ef19bc", "409e69f8")
)
_MOST_ASF_HEADER_BYTES = 2**20


def holds_only_sound(path: Path) -> bool:
    """Say whether an MP4, MOV, 3GP, Matroska, WebM or ASF file has streams of sound and none of pictures."""
    with path.open("rb") as file:
        head = file.read(30)
        end = file.seek(0, 2)
        if head[:4] == b"\x1aE\xdf\xa3":
            kinds = set(_matroska(file, end))
            return _MATROSKA_SOUND in kinds and _MATROSKA_PICTURES not in kinds
        if head[:4] == b"\x30\x26\xb2\x75":
            file.seek(0)
            header = file.read(min(int.from_bytes(head[16:24], "little"), _MOST_ASF_HEADER_BYTES))
            return _ASF_SOUND in header and _ASF_VIDEO not in header
        if head[4:8] == b"ftyp":
            handlers = set(_handlers(file, end))
            return _SOUND in handlers and not handlers & _PICTURES
    return False


def _handlers(file: IO[bytes], end: int) -> Iterator[bytes]:
    for movie, movie_end in _boxes(file, 0, end, b"moov"):
        for track, track_end in _boxes(file, movie, movie_end, b"trak"):
            for media, media_end in _boxes(file, track, track_end, b"mdia"):
                for handler, _ in _boxes(file, media, media_end, b"hdlr"):
                    file.seek(handler + 8)
                    yield file.read(4)


def _boxes(file: IO[bytes], at: int, end: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of what is in each box of the name `wanted` between two places."""
    for _ in range(_MOST):
        if at + 8 > end:
            return
        file.seek(at)
        head = file.read(16)
        size, begin = int.from_bytes(head[:4], "big"), at + 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16], "big"), at + 16
        elif size == 0:
            size = end - at
        if at + size < begin:
            return
        if head[4:8] == wanted:
            yield begin, min(end, at + size)
        at += size


def _matroska(file: IO[bytes], end: int) -> Iterator[int]:
    for segment, begin, segment_end in _elements(file, 0, end):
        if segment != _SEGMENT:
            continue
        for name, at, tracks_end in _elements(file, begin, segment_end):
            if name == _CLUSTER:
                return
            if name != _TRACKS:
                continue
            for track, entry, entry_end in _elements(file, at, tracks_end):
                for field, value, _ in _elements(file, entry, entry_end) if track == _TRACK else ():
                    if field == _TRACK_TYPE:
                        file.seek(value)
                        yield int.from_bytes(file.read(1), "big")
            return


def _elements(file: IO[bytes], at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield name, begin and end of what is in each element (EBML, RFC 8794) between two places."""
    for _ in range(_MOST):
        file.seek(at)
        head = file.read(12)
        # The first byte's leading zeros say how long a number is; a name keeps its marker, a size does not.
        name_length = 9 - head[0].bit_length() if head and head[0] else 9
        if at >= end or name_length > 4 or len(head) <= name_length:
            return
        first = head[name_length]
        size_length = 9 - first.bit_length()
        if size_length > 8 or len(head) < name_length + size_length:
            return
        bits = 7 * size_length
        size = int.from_bytes(head[name_length : name_length + size_length], "big") & ((1 << bits) - 1)
        begin = at + name_length + size_length
        stop = end if size == (1 << bits) - 1 else min(end, begin + size)
        yield int.from_bytes(head[:name_length], "big"), begin, stop
        at = stop
