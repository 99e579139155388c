"""Media files that name other files or addresses: no decoder follows them, a listener counts."""

from __future__ import annotations

import base64
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera import content, media, sample_media
from tessera.errors import BadSample

SECRET = "WORDS-OF-ANOTHER-FILE"


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[int]]]:
    """A port of this machine, and the connections that it got."""
    server = socket.create_server(("127.0.0.1", 0))
    count: list[int] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            count.append(1)
            connection.close()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1], count
    server.close()


def atom(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def with_external_data(url: str) -> bytes:
    """Return an MP4 whose samples are said to lie at `url` (the data reference box of ISO/IEC 14496-12, 8.7.2)."""
    movie = sample_media.video()
    own = atom(b"url ", b"\x00\x00\x00\x01")
    assert own in movie
    # As long as the one that it replaces is impossible; the boxes around it are re-counted.
    return grown(movie, own, atom(b"url ", b"\x00\x00\x00\x00", url.encode(), b"\x00"))


def grown(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace the box `old` by `new` and grow every box around it."""
    at = data.index(old)
    more = len(new) - len(old)

    def walk(start: int, end: int) -> bytes:
        out = b""
        while start < end:
            size = int.from_bytes(data[start : start + 4], "big")
            kind = data[start + 4 : start + 8]
            stop = start + size
            if start <= at < stop:
                if start == at:
                    out += new
                else:
                    inner = start + (16 if kind == b"dref" else 8)
                    out += struct.pack(">I", size + more) + data[start + 4 : inner] + walk(inner, stop)
            else:
                out += data[start:stop]
            start = stop
        return out

    return walk(0, len(data))


def doors(port: int, folder: Path) -> dict[str, bytes]:
    url = f"http://127.0.0.1:{port}/x"
    secret = folder / "secret.txt"
    secret.write_text(SECRET)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    places = [
        url,
        f"tcp://127.0.0.1:{port}",
        f"concat:{url}|{url}",
        f"subfile,,start,0,end,9,,:{secret}",
        f"file://{secret}",
        f"crypto:{url}",
        f"cache:{url}",
        f"async:{url}",
        f"rtmp://127.0.0.1:{port}/x",
        f"rtsp://127.0.0.1:{port}/x",
        f"gopher://127.0.0.1:{port}/x",
        f"data:text/plain;base64,{base64.b64encode(url.encode()).decode()}",
        str(secret),
    ]
    found = {f"hls-{n}": playlist.format(place).encode() for n, place in enumerate(places)}
    found |= {
        f"concat-{n}": f"ffconcat version 1.0\nfile '{place}'\n".encode() for n, place in enumerate(places)
    }
    found |= {f"mov-{n}": with_external_data(place) for n, place in enumerate(places[:6])}
    found["hls-key"] = (
        f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n'.encode()
    )
    found["hls-behind-video"] = sample_media.video()[:4000] + playlist.format(url).encode()
    found["dash"] = (
        f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{url}</BaseURL><AdaptationSet mimeType="video/mp4">'
        f"<Representation><BaseURL>{url}</BaseURL><SegmentList><Initialization sourceURL='{url}'/></SegmentList>"
        f"</Representation></AdaptationSet></Period></MPD>"
    ).encode()
    found["xxe"] = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY % b SYSTEM "{url}">%b;]><a/>'.encode()
    found["svg"] = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<image width="9" height="9" xlink:href="{url}"/>'
        f'<use href="{url}#a"/><style>@import "{url}";</style><script href="{url}"/></svg>'
    ).encode()
    found["mvg"] = (
        f"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 9,9 '{url}'\npop graphic-context".encode()
    )
    found["eps"] = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({url}) run ({secret}) (r) file\n".encode()
    )
    found["sdp"] = (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    ).encode()
    found["asx"] = f'<ASX VERSION="3"><ENTRY><REF HREF="{url}"/></ENTRY></ASX>'.encode()
    found["pls"] = f"[playlist]\nFile1={url}\nNumberOfEntries=1\n".encode()
    found["m3u"] = f"#EXTM3U\n{url}\n".encode()
    found["smil"] = f'<smil><body><video src="{url}"/></body></smil>'.encode()
    found["webvtt"] = (
        f"WEBVTT\n\nSTYLE\n@import url({url});\n\n00:00.000 --> 00:01.000\n<c>{url}</c>\n".encode()
    )
    found["srt"] = f"1\n00:00:00,000 --> 00:00:01,000\n<img src='{url}'>\n".encode()
    found["ass"] = f"[Script Info]\nScriptType: v4.00+\nVideo File: {url}\nAudio File: {url}\n".encode()
    return found


def decoded(**options: str) -> Callable[[Path], str]:
    """Return a reader that gives a file to FFmpeg whatever it is, past the look at its first bytes."""

    def read(path: Path) -> str:
        av = pytest.importorskip("av")
        try:
            with av.open(str(path), options=options) as container:
                return repr([bytes(packet) for packet in container.demux()])
        except (av.error.FFmpegError, ValueError) as error:
            raise BadSample("unreadable", str(error)) from error

    return read


READERS: dict[str, Callable[[Path], Any]] = {
    # Each of the two options alone keeps FFmpeg from connecting anywhere.
    "formats": decoded(format_whitelist=media.DECODER_OPTIONS["format_whitelist"]),
    "protocols": decoded(
        protocol_whitelist=media.DECODER_OPTIONS["protocol_whitelist"],
        allowed_extensions="ALL",
        extension_picky="0",
    ),
    "picture": media.open_picture,
    "probe": media.probe,
    "frames": lambda path: list(media.frames_at(path, [0.0, 1.0])),
    "subtitles": media.embedded_subtitles,
}


def test_no_decoder_opens_another_file_or_address(tmp_path: Path, listener: tuple[int, list[int]]) -> None:
    """Under names that a reader may go by, in every reader that we have."""
    port, count = listener
    files = doors(port, tmp_path)
    assert len(files) > 40
    for name, data in files.items():
        for suffix in (".mp4", ".m3u8"):
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(data)
            for reader in READERS.values():
                try:
                    told = repr(reader(path))
                except BadSample as error:
                    told = error.message
                assert SECRET not in told
            for kind in content.FORMATS:
                try:
                    content.identify(path, kind, f"{kind}/x")
                except content.BadContent as error:
                    assert SECRET not in error.message
            path.unlink()
    # Whoever connected before is counted before this one.
    socket.create_connection(("127.0.0.1", port)).close()
    wait_for(lambda: bool(count))
    assert count == [1]


def test_an_unconfined_ffmpeg_would_be_counted(tmp_path: Path, listener: tuple[int, list[int]]) -> None:
    """The files above are real ones: without our two options the first playlist connects."""
    av = pytest.importorskip("av")
    port, count = listener
    before = len(count)
    path = tmp_path / "list.m3u8"
    path.write_bytes(doors(port, tmp_path)["hls-0"])
    options = {"protocol_whitelist": "file,tcp,http", "allowed_extensions": "ALL", "extension_picky": "0"}
    with pytest.raises(av.error.FFmpegError):
        av.open(str(path), options=options)
    wait_for(lambda: len(count) > before)


def wait_for(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not probe():
        assert time.monotonic() < deadline
        time.sleep(0.01)
