"""Bytes to pictures, frames and subtitles, from files made here."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera import media, sample_media
from tessera.errors import BadSample
from tessera.media import Cue
from tests.damage import HEIC
from tests.media import SPEECH, sound_as, turned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def mp4(folder: Path) -> Path:
    path = folder / "video.mp4"
    path.write_bytes(sample_media.video())
    return path


@pytest.fixture(scope="module")
def mkv(folder: Path) -> Path:
    path = folder / "video.mkv"
    path.write_bytes(sample_media.video(container="matroska"))
    return path


def encoded(path: Path, image: Image.Image, form: str, **options: Any) -> Path:
    image.save(path, form, **options)
    return path


def refused(kind: str, function: Any, *arguments: Any) -> str:
    with pytest.raises(BadSample) as caught:
        result = function(*arguments)
        list(result)
    assert caught.value.kind == kind
    return caught.value.message


# --- sample media -------------------------------------------------------------------------------------


def test_sample_media_are_what_they_say(tmp_path: Path) -> None:
    made = sample_media.make_all(tmp_path)
    assert len(made) == 1 + 20 + 30
    assert all(path.stat().st_size for path in made.values())
    assert set(sample_media.COPIES) | set(sample_media.COPIES.values()) <= set(made)
    again = sample_media.make_all(tmp_path / "again")
    assert all(made[name].read_bytes() == again[name].read_bytes() for name in made)


# --- pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_pictures_of_every_format(form: str, tmp_path: Path) -> None:
    drawn = sample_media.shot_picture(sample_media.SHOTS[0])
    picture = media.open_picture(encoded(tmp_path / "picture", drawn, form))
    assert (picture.width, picture.height) == (320, 240)
    difference = np.abs(np.asarray(picture.image.convert("RGB"), dtype=int) - np.asarray(drawn, dtype=int))
    assert difference.mean() < 8


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (40, 20), "red")
    lying.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright: blue comes on top
    picture = media.open_picture(encoded(tmp_path / "p.jpg", lying, "JPEG", exif=exif, quality=95))
    assert (picture.width, picture.height) == (20, 40)
    assert picture.image.size == (20, 40)
    red, _, blue = picture.image.convert("RGB").getpixel((10, 5))  # type: ignore[misc]
    assert blue > 200 > 50 > red


def test_a_picture_of_a_phone(tmp_path: Path) -> None:
    """HEIC says itself how it is turned, and in its EXIF once more: it is turned once."""
    picture = media.open_picture(HEIC)
    assert (picture.width, picture.height, picture.image.size) == (64, 96, (64, 96))
    assert media.picture_size(HEIC) == (64, 96)
    assert picture.taken.at == "2026-05-04T10:11:12"
    red, _, blue = picture.image.convert("RGB").getpixel((32, 8))  # type: ignore[misc]
    assert blue > 200 > 50 > red
    cut = tmp_path / "cut.heic"
    for part in (40, 300, 650):
        cut.write_bytes(HEIC.read_bytes()[:part])
        assert "damaged or cut off" in refused("unreadable", media.open_picture, cut)
    drawn = encoded(tmp_path / "called.heic", Image.new("RGB", (8, 8)), "JPEG")
    assert media.open_picture(drawn).width == 8, "the bytes count"


def test_without_its_reader_a_heic_picture_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = refused("model_missing", media.open_picture, HEIC)
    assert "pip install 'tessera[heif]'" in message and "JPEG" in message


def test_a_large_picture_is_handed_on_small_and_keeps_its_size_in_words(tmp_path: Path) -> None:
    picture = media.open_picture(encoded(tmp_path / "p.jpg", Image.new("RGB", (4000, 1000)), "JPEG"))
    assert (picture.width, picture.height) == (4000, 1000)
    assert max(picture.image.size) <= media.WORKING_SIDE


def test_sixteen_bits_and_transparency(tmp_path: Path) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))
    values = np.asarray(media.open_picture(encoded(tmp_path / "deep.png", deep, "PNG")).image.convert("L"))
    assert values.min() < 5
    assert values.max() > 250
    clear = media.open_picture(
        encoded(tmp_path / "clear.png", Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "PNG")
    )
    assert clear.image.mode == "RGBA"
    small = Image.open(io.BytesIO(media.thumbnail(clear.image)))
    assert small.getpixel((4, 4)) == (255, 255, 255)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A few hundred bytes that claim a gigapixel."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    for side in (9_000, 40_000):
        header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        path = tmp_path / f"{side}.png"
        path.write_bytes(data + chunk(b"IEND", b""))
        assert "pixels" in refused("too_large", media.open_picture, path)


def test_thumbnails_are_small_jpegs() -> None:
    data = media.thumbnail(Image.new("RGB", (1000, 3000), "green"))
    small = Image.open(io.BytesIO(data))
    assert small.format == "JPEG"
    assert small.size == (160, 480)


# --- video --------------------------------------------------------------------------------------------


def test_a_container_without_pictures_says_where_it_belongs(tmp_path: Path) -> None:
    memo = sound_as(SPEECH, tmp_path / "memo.mp4", "aac", until_s=1)
    message = refused("unsupported", lambda path: [media.probe(path)], memo)
    assert "only sound" in message
    assert "property of type audio" in message and "input `audio`" in message


def test_probe(mp4: Path, mkv: Path) -> None:
    for path, mime_type in ((mp4, "video/mp4"), (mkv, "video/x-matroska")):
        video = media.probe(path)
        assert video.duration_s == pytest.approx(60, abs=0.2)
        assert (video.width, video.height, video.frames_per_s) == (320, 240, 10)
        assert not video.has_audio
        assert video.mime_type == mime_type


@pytest.mark.parametrize("slack_s", [0.0, 1.5])
def test_frames_are_those_shown_at_their_time(mp4: Path, slack_s: float) -> None:
    """In the middle of every shot, near its ends, and far apart, so that both seeking and decoding on are used."""
    starts = np.cumsum([0, *(shot.seconds for shot in sample_media.SHOTS)])
    places = [(number, part) for number in range(len(sample_media.SHOTS)) for part in (0.25, 0.5, 0.98)]
    times = [starts[number] + part * sample_media.SHOTS[number].seconds for number, part in places]
    frames = list(media.frames_at(mp4, times, slack_s=slack_s))
    assert len(frames) == len(times)
    drawn = [
        [np.asarray(sample_media.shot_picture(shot, part), dtype=int) for part in (0.25, 0.5, 0.98)]
        for shot in sample_media.SHOTS
    ]
    for frame, (number, _) in zip(frames, places, strict=True):
        assert frame is not None
        found = np.asarray(frame, dtype=int)
        distances = [min(np.abs(found - picture).mean() for picture in shot) for shot in drawn]
        assert int(np.argmin(distances)) == number


def test_seeking_finds_the_very_frame(mp4: Path) -> None:
    """Frame k is shown from k/10 s on; far jumps seek, and must not land beside it."""
    import av

    times = [0.0, 0.09, 20.05, 33.3, 51.99, 59.95]
    sought = list(media.frames_at(mp4, times))
    with av.open(str(mp4)) as container:
        decoded = [frame.to_image(interpolation="AREA") for frame in container.decode(video=0)]
    assert len(decoded) == 600
    for time_s, frame in zip(times, sought, strict=True):
        assert frame is not None
        assert np.array_equal(np.asarray(frame), np.asarray(decoded[int(time_s * 10 + 1e-6)])), time_s


def test_behind_the_end_there_is_no_frame(mp4: Path) -> None:
    last, behind, far = media.frames_at(mp4, [59.99, 60.5, 75])
    assert last is not None
    assert behind is not None, "durations in containers are not exact"
    assert far is None


def test_an_animation_is_a_video(tmp_path: Path) -> None:
    shots = [sample_media.shot_picture(shot) for shot in sample_media.SHOTS[:3]]
    path = tmp_path / "a.gif"
    shots[0].save(path, "GIF", save_all=True, append_images=shots[1:], duration=500)
    assert media.probe(path).duration_s == pytest.approx(1.5, abs=0.2)
    assert media.open_picture(path).width == 320


def test_a_turned_video_is_shown_upright(tmp_path: Path) -> None:
    """What phones do: the frames lie on their side, and the container says so."""
    path = tmp_path / "turned.mp4"
    path.write_bytes(turned(sample_media.video(shots=sample_media.SHOTS[:1], lines=())))
    video = media.probe(path)
    assert (video.width, video.height) == (240, 320)
    (frame,) = media.frames_at(path, [4.0])
    assert frame is not None
    drawn = sample_media.shot_picture(sample_media.SHOTS[0], 0.5).rotate(-90, expand=True)
    assert np.abs(np.asarray(frame, dtype=int) - np.asarray(drawn, dtype=int)).mean() < 6


def test_a_file_that_was_cut_off_ends_where_it_breaks(mkv: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.mkv"
    half.write_bytes(mkv.read_bytes()[: mkv.stat().st_size // 3])
    frames = list(media.frames_at(half, [1, 58]))
    assert frames[0] is not None
    assert frames[1] is None
    assert 0 < len(media.embedded_subtitles(half)) < len(sample_media.LINES)


def test_files_that_name_other_files_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(sample_media.video(shots=sample_media.SHOTS[:1], lines=()))
    for name, text in {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:8\n#EXTINF:8,\n{secret}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "movie.mpd": f"<MPD><BaseURL>{secret}</BaseURL></MPD>",
    }.items():
        path = tmp_path / name
        path.write_text(text)
        refused("unsupported", media.probe, path)
        refused("unsupported", media.frames_at, path, [0])


def test_what_is_no_video(tmp_path: Path, folder: Path) -> None:
    picture = encoded(tmp_path / "p.png", Image.new("RGB", (8, 8)), "PNG")
    assert "image/png" in refused("unsupported", media.probe, picture)
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    assert "empty" in refused("unreadable", media.probe, empty)


def test_bytes_that_flipped_bring_frames_or_a_typed_error(mp4: Path, mkv: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(20)
    pictures = sample_media.pictures()
    whole = {"a.mp4": mp4.read_bytes(), "a.mkv": mkv.read_bytes()}
    whole |= {name: pictures[name] for name in ("city.png", "red-circle-small.jpg", "sunset-large.webp")}
    path = tmp_path / "damaged"
    seen = {"good": 0, "bad": 0}
    for number in range(150):
        name = list(whole)[number % len(whole)]
        data = bytearray(whole[name])
        for place in random.integers(0, min(len(data), 3000), 1 + number % 20):
            data[place] = random.integers(256)
        path.write_bytes(bytes(data[: random.integers(1, len(data))] if number % 3 == 0 else data))
        try:
            if name.startswith("a."):
                media.probe(path)
                list(media.frames_at(path, [1, 30]))
                media.embedded_subtitles(path)
            else:
                media.open_picture(path)
            seen["good"] += 1
        except BadSample as error:
            assert "object has no attribute" not in error.message
            seen["bad"] += 1
    assert min(seen.values()) > 10, seen


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 44100), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert "no pictures" in refused("unsupported", media.probe, path)


def test_without_pyav_the_error_names_the_extra(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    for function, arguments in (
        (media.probe, [mp4]),
        (media.frames_at, [mp4, [0]]),
        (media.embedded_subtitles, [mp4]),
    ):
        assert "tessera[media]" in refused("model_missing", function, *arguments)


# --- subtitles ----------------------------------------------------------------------------------------


def test_embedded_subtitles(mp4: Path, mkv: Path) -> None:
    expected = [(line.start_s, line.end_s, line.text) for line in sample_media.LINES]
    for path in (mp4, mkv):
        assert [(cue.start_s, cue.end_s, cue.text) for cue in media.embedded_subtitles(path)] == expected


@pytest.mark.parametrize("codec", ["srt", "ass", "webvtt"])
def test_markup_is_taken_off(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "marked.mkv"
    line = sample_media.Line(1, 3, r"The {\i1}rope{\i0} had frozen,\Nas stiff as a stick.")
    write_track(path, codec, [line])
    assert media.embedded_subtitles(path) == [Cue(1, 3, "The rope had frozen, as stiff as a stick.")]


def test_the_track_in_the_wanted_language_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    write_track(path, "srt", [sample_media.Line(1, 2, "Guten Tag")], [sample_media.Line(1, 2, "Good day")])
    assert media.embedded_subtitles(path, "en")[0].text == "Good day"
    assert media.embedded_subtitles(path, "de")[0].text == "Guten Tag"
    assert media.embedded_subtitles(path)[0].text == "Guten Tag"


def test_a_video_without_subtitles_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mute.mp4"
    path.write_bytes(sample_media.video(shots=sample_media.SHOTS[:1], lines=()))
    assert media.embedded_subtitles(path) == []


def test_srt_text() -> None:
    cues = media.parse_subtitles(sample_media.srt())
    assert [(cue.start_s, cue.end_s, cue.text) for cue in cues] == [
        (line.start_s, line.end_s, line.text) for line in sample_media.LINES
    ]


def test_srt_as_people_write_it() -> None:
    text = (
        "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>Hello</i> &amp; good\r\nday\r\n\r\n"
        "2\r\n0:00:03.5 --> 0:00:04,25  X1:100\r\n{\\an8}Above\r\n\r\n\r\n"
        "3\r\n00:00:05,000 --> 00:00:05,000\r\nNo length\r\n\r\n"
        "4\r\n00:00:06,000 --> 00:00:07,000\r\n\r\n"
        "5\r\n01:00:00,000 --> 01:00:01,000\r\n1999\r\n"
    )
    assert media.parse_subtitles(text) == [
        Cue(1, 2.5, "Hello & good day"),
        Cue(3.5, 4.25, "Above"),
        Cue(5, 10, "No length"),
        Cue(3600, 3601, "1999"),
    ]


def test_webvtt() -> None:
    text = (
        "WEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nNOTE nothing\n\nintro\n"
        "00:01.000 --> 00:02.000 align:start position:0%\n<v Ann>Hello <c.loud>there</c>\n- who?\n\n"
        "01:00:03.000 --> 01:00:04.000\nBye\n"
    )
    assert media.parse_subtitles(text) == [Cue(1, 2, "Hello there - who?"), Cue(3603, 3604, "Bye")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_subtitle_files_in_their_encodings(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\nKäse für alle\n".encode(encoding))
    assert media.read_subtitles(path) == [Cue(1, 2, "Käse für alle")]


def test_what_is_no_subtitle_file(tmp_path: Path) -> None:
    assert "00:00:01,000 --> " in refused("unreadable", media.parse_subtitles, "Dear diary, today …")
    path = tmp_path / "huge.srt"
    with path.open("wb") as file:
        file.truncate(media.MAX_SUBTITLE_BYTES + 1)
    refused("too_large", media.read_subtitles, path)
    many = "00:00:01,000 --> 00:00:02,000\nx\n\n" * (media.MAX_CUES + 1)
    refused("limit", media.parse_subtitles, many)


def write_track(path: Path, codec: str, *tracks: list[sample_media.Line]) -> None:
    """Write a second of video with subtitle tracks: the first German, the second English."""
    import av

    with av.open(str(path), "w", format="matroska") as target:
        seen = target.add_stream("mpeg4", rate=10)
        seen.width, seen.height, seen.pix_fmt = 64, 64, "yuv420p"
        streams = []
        for language in ("ger", "eng")[: len(tracks)]:
            said = target.add_stream(codec)
            said.codec_context.subtitle_header = sample_media._ASS_HEADER
            said.codec_context.time_base = sample_media._MILLISECONDS
            said.metadata["language"] = language
            streams.append(said)
        for number in range(10):
            image = Image.new("RGB", (64, 64), (number * 20, 0, 0))
            target.mux(seen.encode(av.VideoFrame.from_image(image)))
        target.mux(seen.encode())
        for said, lines in zip(streams, tracks, strict=True):
            for number, line in enumerate(lines):
                target.mux(sample_media._packet(said, number, line))
