"""What a request carries inline: decoded strictly, and known by its bytes."""

from __future__ import annotations

import base64
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tessera.content import (
    DOCX,
    FORMATS,
    MOST_ARCHIVE_LIST_BYTES,
    XLSX,
    BadContent,
    begins_as_text,
    decode,
    family,
    identify,
    sniff,
    sniff_file,
    url_scheme,
)

LIMIT = 1 << 20


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def box(brand: bytes) -> bytes:
    return b"\x00\x00\x00\x18ftyp" + brand + b"\x00" * 32


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return out.getvalue()


SAMPLES = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff\xe0", "image/jpeg"),
    (b"GIF89a", "image/gif"),
    (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    (b"II*\x00", "image/tiff"),
    (b"BM" + (26).to_bytes(4, "little") + b"\x00" * 20, "image/bmp"),
    (box(b"avif"), "image/avif"),
    (box(b"heic"), "image/heic"),
    (box(b"heim"), "image/heic"),
    (box(b"mif1"), "image/heic"),
    (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1avif" + bytes(40), "image/avif"),
    (box(b"isom"), "video/mp4"),
    (box(b"qt  "), "video/quicktime"),
    (box(b"M4A "), "audio/mp4"),
    (b"\x1aE\xdf\xa3\x01\x00webm", "video/webm"),
    (b"\x1aE\xdf\xa3\x01\x00matroska", "video/x-matroska"),
    (b"RIFF\x00\x00\x00\x00AVI LIST", "video/x-msvideo"),
    (b"\x00\x00\x01\xba", "video/mpeg"),
    (b"\x47" + b"\x00" * 187 + b"\x47" + b"\x00" * 187, "video/mp2t"),
    (b"OggS" + b"\x00" * 24 + b"\x80theora", "video/ogg"),
    (b"OggS" + b"\x00" * 24 + b"OpusHead", "audio/ogg"),
    (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
    (b"FORM\x00\x00\x00\x00AIFF", "audio/aiff"),
    (b"fLaC", "audio/flac"),
    (b"ID3\x04", "audio/mpeg"),
    (b"\xff\xfb\x90\x00", "audio/mpeg"),
    (b"\xff\xf1\x50\x80", "audio/aac"),
    (b"%PDF-1.7", "application/pdf"),
    (b"\r\n%PDF-1.4", "application/pdf"),
    (archive("[Content_Types].xml", "xl/workbook.xml"), XLSX),
    (archive("word/document.xml"), DOCX),
    (archive("words/document.xml"), "application/zip"),
    (b"PK\x03\x04 cut off", "application/zip"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/vnd.ms-excel"),
]


@pytest.mark.parametrize(("data", "mime_type"), SAMPLES, ids=[mime for _, mime in SAMPLES])
def test_bytes_tell_their_type(data: bytes, mime_type: str) -> None:
    assert sniff(data) == mime_type


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xff\xff\xff", b"BM not a picture", b"hello", b"<svg/>", b"\x47G"]
)
def test_what_is_nothing_known_is_not_guessed(data: bytes) -> None:
    assert sniff(data) is None


def test_the_bytes_decide_not_what_is_declared() -> None:
    png = b"\x89PNG\r\n\x1a\n and so on"
    assert decode(f"data:image/jpeg;base64,{b64(png)}", "image", max_bytes=LIMIT).mime_type == "image/png"
    with pytest.raises(BadContent, match="holds image/png, but video is needed"):
        decode(f"data:video/mp4;base64,{b64(png)}", "video", max_bytes=LIMIT)


def test_a_declared_type_stands_where_bytes_say_nothing() -> None:
    made = decode(f"data:audio/x-new;base64,{b64(b'whatever')}", "audio", max_bytes=LIMIT)
    assert made.mime_type == "audio/x-new"
    with pytest.raises(BadContent, match="not recognised as audio"):
        decode(b64(b"whatever"), "audio", max_bytes=LIMIT)
    with pytest.raises(BadContent, match="not recognised as audio"):
        decode(f"data:application/octet-stream;base64,{b64(b'whatever')}", "audio", max_bytes=LIMIT)


@pytest.mark.parametrize(
    ("kind", "data", "mime_type"),
    [
        ("video", b"GIF89a", "image/gif"),
        ("audio", box(b"isom"), "video/mp4"),
        ("excel", b"a,b\n1,2\n", "text/csv"),
        ("excel", archive("xl/workbook.xml"), XLSX),
    ],
)
def test_a_kind_takes_what_may_hold_it(kind: str, data: bytes, mime_type: str) -> None:
    assert decode(b64(data), kind, max_bytes=LIMIT).mime_type == mime_type


def test_sizes_are_those_of_the_decoded_bytes() -> None:
    assert len(decode("ä" * 8, "text", max_bytes=16).data) == 16
    with pytest.raises(BadContent, match="has 18 bytes when decoded; at most 16"):
        decode("ä" * 9, "text", max_bytes=16)


@pytest.mark.parametrize(
    "value", ["ab\ud800", "data:,ab\ud800", "data:text/plain;charset=nowhere,abc", "data:,%ff"]
)
def test_text_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(BadContent) as caught:
        decode(value, "text", max_bytes=LIMIT)
    assert caught.value.kind == "encoding"


def test_urls_are_told_from_texts() -> None:
    assert url_scheme(" https://example.com/a?b=c ") == "https"
    assert url_scheme("S3://bucket/key") == "s3"
    for text in ("see https://example.com", "https://a b", "a:b", "data:,x", "://x", "1http://x"):
        assert url_scheme(text) is None


def test_families_are_the_kinds_of_blobs() -> None:
    assert [family(mime) for mime in ("image/png", "application/pdf", XLSX, "text/plain", "font/woff")] == [
        "image",
        "pdf",
        "excel",
        "text",
        "other",
    ]
    assert set(FORMATS) == {"image", "video", "audio", "pdf", "excel", "text"}


@pytest.mark.parametrize(
    ("kind", "data", "declared", "mime_type"),
    [
        ("text", "Grüße ".encode() * 500_000, "text/markdown", "text/markdown"),
        ("text", b"a,b", "application/x-unknown", "text/plain"),
        ("text", "Grüße 音 ".encode("utf-16"), None, "text/plain"),
        ("excel", "ä,b\n1,2\n".encode("utf-16"), None, "text/csv"),
        ("image", b"BM" + (70_000).to_bytes(4, "little") + bytes(69_994), None, "image/bmp"),
        ("excel", archive("xl/workbook.xml", *map(str, range(200))), None, XLSX),
        ("excel", "ä,b\n".encode() * 5000, None, "text/csv"),
        ("video", b"what nobody knows", "video/x-own", "video/x-own"),
    ],
)
def test_files_are_identified(
    tmp_path: Path, kind: str, data: bytes, declared: str | None, mime_type: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert identify(file, kind, declared) == mime_type


@pytest.mark.parametrize(
    ("kind", "data", "declared", "said"),
    [
        ("text", b"", "text/plain", "is empty"),
        ("text", "ä".encode() * 3_000_000 + b"\xc3", "text/plain", "utf-8"),
        ("text", "ä".encode("utf-16") + b"\x00", "text/plain", "utf-16"),
        ("image", b"%PDF-1.7".ljust(5000), "image/png", "holds application/pdf"),
        ("image", b"words", None, "not recognised as image"),
        ("image", b"words", "application/octet-stream", "not recognised as image"),
        ("excel", archive(*("x" * 200 + str(n) for n in range(5000))), None, "holds application/zip"),
        ("excel", b"PK\x03\x04" + bytes(100_000), None, "holds application/zip"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, kind: str, data: bytes, declared: str | None, said: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    with pytest.raises(BadContent) as error:
        identify(file, kind, declared)
    assert said in error.value.message


def test_a_list_that_only_zip64_says_is_long_is_not_read(tmp_path: Path) -> None:
    """The library believed ZIP64 over the plain record, and read a gigabyte of zeros for a list."""
    plain = archive("xl/workbook.xml")
    end = plain.index(b"PK\x05\x06")
    gap = 2**30
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.write(plain[:4])
        out.seek(gap)
        record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, gap - 4, 4)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, gap, 1)
        out.write(record + locator + plain[end:])
    tracemalloc.start()
    try:
        assert sniff_file(file) == "application/zip"
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_workbook_with_zip64_records_is_one(tmp_path: Path) -> None:
    plain = archive("[Content_Types].xml", "xl/workbook.xml")
    end = plain.index(b"PK\x05\x06")
    at = int.from_bytes(plain[end + 16 : end + 20], "little")
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, end - at, at)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    file = tmp_path / "file"
    file.write_bytes(plain[:end] + record + locator + plain[end:])
    assert sniff_file(file) == XLSX
    with zipfile.ZipFile(file) as whole:
        assert len(whole.namelist()) == 2, "it is a good one"


def test_a_workbook_whose_list_would_fill_the_memory_is_none(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(archive("xl/workbook.xml", *("y" * 200 + str(n) for n in range(5000))))
    assert file.stat().st_size > MOST_ARCHIVE_LIST_BYTES
    assert sniff_file(file) == "application/zip"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_says_text_where_it_could_be_sound(encoding: str) -> None:
    words = "\ufeffGrüße, 音.\r\n".encode(encoding)
    assert sniff(words) is None
    assert [begins_as_text(words[:end]) for end in (8, 9, 10, len(words))] == [True] * 4
    frame = bytes((0xFF, 0xFE, 0x94, 0x00)) + bytes(range(200))
    assert (sniff(frame), begins_as_text(frame)) == ("audio/mpeg", False)
    uri = f"data:text/plain;base64,{base64.b64encode(words).decode()}"
    assert decode(uri, "text", max_bytes=100).data.decode().lstrip("\ufeff") == "Grüße, 音.\r\n"
