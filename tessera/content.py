"""What a request may carry inline: text, base64 and data URIs, decoded strictly, and what bytes and files really are.

The type of bytes is decided by the bytes; what a client declares is believed only where they say nothing.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import re
import unicodedata
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import IO

OCTET_STREAM = "application/octet-stream"
#: A ZIP archive with a longer list of files is not looked into.
MOST_ARCHIVE_LIST_BYTES = 2**20
#: So much of a file tells what it is.
_HEAD_BYTES = 4096
_OFFICE = "application/vnd.openxmlformats-officedocument"
XLSX = f"{_OFFICE}.spreadsheetml.sheet"
DOCX = f"{_OFFICE}.wordprocessingml.document"
PPTX = f"{_OFFICE}.presentationml.presentation"
#: What a ZIP archive is that has a file in one of these folders.
_OFFICE_FOLDERS = {b"xl/": XLSX, b"word/": DOCX, b"ppt/": PPTX}

_URL = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]{0,31})://\S*\s*")
_MEDIA_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_BLANKS = str.maketrans("", "", "\r\n\t ")

#: Containers that may hold nothing but sound.
_AUDIO_CONTAINERS = frozenset(
    {
        "video/mp4",
        "video/webm",
        "video/x-matroska",
        "video/ogg",
        "video/quicktime",
        "video/3gpp",
        "video/x-ms-asf",
    }
)
_PAGES = frozenset({"application/pdf", DOCX, PPTX})
_EXCEL = frozenset({XLSX, "application/vnd.ms-excel", "text/csv"})

#: What each kind of blob may be, as people read it.
FORMATS = {
    "image": "PNG, JPEG, GIF, WebP, AVIF, HEIC, TIFF, BMP or JPEG 2000",
    "video": "MP4, MOV, WebM, Matroska, AVI, MPEG, Ogg, FLV, ASF or GIF",
    "audio": "MP3, WAV, FLAC, Ogg, AAC, M4A, AIFF, AMR or a video container",
    "pdf": "PDF, DOCX or PPTX",
    "excel": "XLSX, XLS or CSV",
    "text": "UTF-8 text, or UTF-16 or UTF-32 with a byte order mark",
}


@dataclass(frozen=True, slots=True)
class Content:
    """Decoded bytes and their media type."""

    data: bytes
    mime_type: str


class BadContent(ValueError):
    """A value that cannot be taken as content. `kind` is a stable word; ``url`` says that it is a URL."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def url_scheme(value: str) -> str | None:
    """Return the scheme when all of `value` is one URL (``https``, ``s3``, ``gs``, ``file`` …), else None."""
    match = _URL.fullmatch(value)
    return match[1].lower() if match else None


def decode(value: object, kind: str, *, max_bytes: int) -> Content:
    """Turn the `data` of a blob of type `kind` (a key of `FORMATS`) into bytes.

    A text is taken as it stands, or out of a data URI; anything else is base64 or a data URI. Raises
    `BadContent` for a URL, for what does not decode, for more than `max_bytes`, and for bytes that are
    something else than `kind`.
    """
    if not isinstance(value, str):
        wanted = "a string" if kind == "text" else "a string of base64 or a data URI"
        raise BadContent("type", f"must be {wanted}, not {_named(value)}.")
    scheme = url_scheme(value)
    if scheme is not None:
        example = "data:text/plain;charset=utf-8,…" if kind == "text" else f"data:{_EXAMPLES[kind]};base64,…"
        raise BadContent(
            "url",
            f"is a URL of scheme {scheme[:32]}; http://, https:// and s3:// are fetched. Send one of those, or the "
            f"content itself: {'as text' if kind == 'text' else 'as base64'} or as a data URI ({example}).",
        )
    if value[:5].lower() == "data:":
        data, declared, charset = _data_uri(value)
    elif kind == "text":
        data, declared, charset = _encoded(value), "text/plain", "utf-8"
    else:
        data, declared, charset = _base64(value), None, None
    if not data:
        raise BadContent("empty", "is empty; leave the blob out, or give it content.")
    if len(data) > max_bytes:
        raise BadContent(
            "too_large", f"has {len(data)} bytes when decoded; at most {max_bytes} are allowed in a request."
        )
    if kind == "text":
        return Content(_as_utf8(data, charset), declared if declared in _TEXT_TYPES else "text/plain")
    return Content(data, _checked_type(data, kind, declared))


def identify(path: Path, kind: str, declared: str | None) -> str:
    """Return the media type of a file that is to be of type `kind` (a key of `FORMATS`).

    `declared` is believed only where the bytes say nothing. Raises `BadContent` as `decode` does.
    """
    size = path.stat().st_size
    if not size:
        raise BadContent("empty", "is empty.")
    if kind == "text":
        _refuse_other_text(path)
        return declared if declared in _TEXT_TYPES and declared is not None else "text/plain"
    seen = sniff_file(path)
    if seen is None and kind == "excel":
        with path.open("rb") as file:
            seen = "text/csv" if begins_as_text(file.read(_HEAD_BYTES)) else None
    mime_type = seen or declared
    if mime_type is None or mime_type == OCTET_STREAM:
        raise BadContent("unrecognised", f"is not recognised as {kind}: {FORMATS[kind]}.")
    return _fitting(mime_type, kind)


def sniff_file(path: Path) -> str | None:
    """Return the media type that a file's bytes tell, or None when they tell nothing."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if head[:4] == b"PK\x03\x04":
            return _archive_type(file)
    return sniff(head, path.stat().st_size)


def sniff(data: bytes, size_bytes: int | None = None) -> str | None:
    """Return the media type that the first bytes of `data` tell, or None when they tell nothing.

    `size_bytes` is how long the content is, when `data` is only its beginning.
    """
    for offset, magic, mime_type in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return mime_type
    head = data[:64]
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(head[8:12])
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "audio/aiff"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12]) or _picture_brand(head) or "video/mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/webm" if b"webm" in head else "video/x-matroska"
    if head[:4] == b"OggS":
        return "video/ogg" if b"theora" in head else "audio/ogg"
    size_bytes = len(data) if size_bytes is None else size_bytes
    if head[:2] == b"BM" and len(data) >= 26 and int.from_bytes(head[2:6], "little") in (0, size_bytes):
        return "image/bmp"
    if head[:4] == b"PK\x03\x04":
        return _archive_type(io.BytesIO(data))
    if head[:1] == b"\x47" and data[188:189] == b"\x47" and data[376:377] in (b"\x47", b""):
        return "video/mp2t"
    if b"%PDF-" in data[:1024]:
        return "application/pdf"
    # FF FE is also the sync word of a frame of MPEG audio, layer I.
    return None if begins_as_text(head) else _sound_frame(head)


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text by its byte order mark, as Python calls it; without a mark it is UTF-8.

    What it names leaves the mark out when it decodes.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return "utf-8-sig"


def begins_as_text(head: bytes) -> bool:
    """Say whether bytes from the beginning of a file are text, cut anywhere: UTF-8, or what a byte order mark names."""
    encoding = encoding_of(head)
    if encoding != "utf-8-sig":
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            return False
        # No control characters, and nothing that Unicode does not assign.
        return all(letter.isspace() or unicodedata.category(letter) not in _NO_TEXT for letter in text)
    if b"\x00" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # cut inside a character
    return True


def family(mime_type: str) -> str:
    """Return the kind of a media type: ``image``, ``video``, ``audio``, ``pdf``, ``excel``, ``text`` or ``other``.

    ``pdf`` is everything that has pages: the API has no other word for it.
    """
    if mime_type in _PAGES:
        return "pdf"
    if mime_type in _EXCEL:
        return "excel"
    first = mime_type.partition("/")[0]
    return first if first in ("image", "video", "audio", "text") else "other"


_EXAMPLES = {
    "image": "image/png",
    "video": "video/mp4",
    "audio": "audio/mpeg",
    "pdf": "application/pdf",
    "excel": XLSX,
}
#: Byte order marks that are no UTF-8. The longer ones come first: one of UTF-32 begins like one of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = frozenset(("Cc", "Cn", "Co"))
_TEXT_TYPES = frozenset(
    {"text/plain", "text/markdown", "text/csv", "text/html", "application/json", "text/vtt"}
)

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"\x00\x00\x00\x0cjP  ", "image/jp2"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-asf"),
    (0, b"\x00\x00\x01\xba", "video/mpeg"),
    (0, b"\x00\x00\x01\xb3", "video/mpeg"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/vnd.ms-excel"),
)
#: Major brands of ISO base media files (ISO/IEC 14496-12) that are not plain MP4 video.
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "image/heic"),
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"3gp4": "video/3gpp",
    b"3gp5": "video/3gpp",
}


def _picture_brand(head: bytes) -> str | None:
    """Return what a file of pictures is whose major brand names no codec: its other brands do (ISO/IEC 23008-12)."""
    if head[8:12] not in (b"mif1", b"msf1"):
        return None
    brands = head[16 : int.from_bytes(head[:4], "big")]
    return "image/avif" if b"avif" in brands or b"avis" in brands else "image/heic"


def _checked_type(data: bytes, kind: str, declared: str | None) -> str:
    seen = sniff(data)
    if seen is None and kind == "excel" and _is_text(data):
        seen = "text/csv"
    mime_type = seen or declared
    if mime_type is None or mime_type == OCTET_STREAM:
        raise BadContent(
            "unrecognised",
            f"decodes to {len(data)} bytes that are not recognised as {kind}: {FORMATS[kind]}. If they are, send them "
            f"as a data URI that names their media type (data:{_EXAMPLES[kind]};base64,…).",
        )
    return _fitting(mime_type, kind)


def _fitting(mime_type: str, kind: str) -> str:
    if not fits(mime_type, kind):
        raise BadContent("mismatch", f"holds {mime_type}, but {kind} is needed: {FORMATS[kind]}.")
    return mime_type


def fits(mime_type: str, kind: str) -> bool:
    """Say whether content of this media type can be a blob of type `kind`."""
    if family(mime_type) == kind:
        return True
    return (kind == "video" and mime_type == "image/gif") or (
        kind == "audio" and mime_type in _AUDIO_CONTAINERS
    )


def _data_uri(value: str) -> tuple[bytes, str | None, str | None]:
    """Split ``data:[<media type>][;name=value…][;base64],<data>`` (RFC 2397)."""
    head, comma, rest = value[5:].partition(",")
    if not comma:
        raise BadContent("encoding", "begins as a data URI but has no comma before its data.")
    media_type, *parameters = [part.strip() for part in head.split(";")]
    media_type = media_type.lower()
    if media_type and not _MEDIA_TYPE.fullmatch(media_type):
        raise BadContent("encoding", "is a data URI whose media type is not valid (data:image/png;base64,…).")
    charset = next((p[8:].strip('"') for p in parameters if p.lower().startswith("charset=")), None)
    if parameters and parameters[-1].lower() == "base64":
        return _base64(urllib.parse.unquote(rest)), media_type or None, charset
    return urllib.parse.unquote_to_bytes(_encoded(rest)), media_type or "text/plain", charset


def _base64(value: str) -> bytes:
    try:
        return base64.b64decode(value.translate(_BLANKS).encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise BadContent(
            "encoding",
            "is not valid base64 (letters, digits, + and /, padded with = to a multiple of four). Send base64 or a "
            "data URI.",
        ) from None


def _encoded(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadContent("encoding", "holds half a surrogate pair, which is not valid text.") from None


def _as_utf8(data: bytes, charset: str | None) -> bytes:
    named = charset or encoding_of(data).removesuffix("-sig")
    try:
        return data.decode(named).encode()
    except (UnicodeDecodeError, LookupError, UnicodeEncodeError):
        raise BadContent("encoding", f"does not decode as {named[:40]} text; send UTF-8.") from None


def _refuse_other_text(path: Path) -> None:
    try:
        with path.open("rb") as file:
            encoding = encoding_of(file.read(4))
            file.seek(0)
            decoder = codecs.getincrementaldecoder(encoding)()
            while piece := file.read(2**20):
                decoder.decode(piece)
                if encoding == "utf-8-sig" and b"\0" in piece:
                    raise BadContent(
                        "encoding",
                        "holds zero bytes, as UTF-16 without a byte order mark does; send UTF-8, or UTF-16 with the "
                        "mark.",
                    )
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        named = encoding.removesuffix("-sig")
        raise BadContent("encoding", f"does not decode as {named} text; send UTF-8.") from None


def _is_text(data: bytes) -> bool:
    try:
        return b"\x00" not in data and bool(data.decode())
    except UnicodeDecodeError:
        return False


def _archive_type(file: IO[bytes]) -> str:
    """Return what a ZIP archive is by the folders in its list of files (APPNOTE 4.3.12, 4.3.16).

    Read here and not by a library: nothing of what the archive says of its sizes is believed, and no more than
    `MOST_ARCHIVE_LIST_BYTES` is read of it.
    """
    size = file.seek(0, io.SEEK_END)
    begin = max(0, size - 66_000)
    file.seek(begin)
    tail = file.read(66_000)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        return "application/zip"
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    # Between the list and its end there may be the two records of ZIP64 (4.3.14, 4.3.15), 56 and 20 bytes.
    end -= 76 if tail[end - 20 : end - 16] == b"PK\x06\x07" else 0
    if length > min(MOST_ARCHIVE_LIST_BYTES, begin + end):
        return "application/zip"
    # The list lies before its end, wherever it says that it lies: something may stand before the archive.
    file.seek(begin + end - length)
    entries = file.read(length)
    at = 0
    while entries[at : at + 4] == b"PK\x01\x02":
        name = entries[at + 46 : at + 51]
        for folder, mime_type in _OFFICE_FOLDERS.items():
            if name.startswith(folder):
                return mime_type
        at += 46 + sum(
            int.from_bytes(entries[at + place : at + place + 2], "little") for place in (28, 30, 32)
        )
    return "application/zip"


def _sound_frame(head: bytes) -> str | None:
    """Recognise a bare MPEG audio or ADTS frame by its sync word and the fields that cannot be everything."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:
        return "audio/aac"
    layer, bitrate, rate = head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if layer and bitrate not in (0, 15) and rate != 3 else None


def _named(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    return {int: "a number", float: "a number", dict: "an object", list: "a list"}.get(
        type(value), "something else"
    )
