"""Spans cut out of videos as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tessera import media, sample_media
from tessera.errors import BadSample
from tessera.media import clips, sound
from tests.media import BLUE, GREEN, RED, SAID, SPEECH, turned, video


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "film.mp4"
    path.write_bytes(sample_media.film(SPEECH))
    return path


def test_a_clip_is_the_span_to_the_frame_with_its_sound(film: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(clips.clip(film, 10.3, 16.2))
    found = media.probe(clip)
    assert found.duration_s == pytest.approx(5.9, abs=0.15)
    assert (found.width, found.height, found.has_audio) == (640, 480, True)
    for place_s in (0.05, 0.5, 0.9, 5.7):
        pictures = [
            next(media.frames_at(path, [time_s]))
            for path, time_s in ((film, 10.3 + place_s), (clip, place_s))
        ]
        one, other = (np.asarray(picture, dtype=float) for picture in pictures)
        assert np.abs(one - other).mean() < 10
    (begin, _), *_ = sound.sounding(sound.levels(clip))
    begins = [line["start_time"] for line in SAID if line["start_time"] > 10.3]
    assert any(begin + 10.3 == pytest.approx(time_s, abs=0.3) for time_s in (10.3, *begins))
    with io.BytesIO(clip.read_bytes()) as file:
        assert file.read(12)[4:8] == b"ftyp"


def test_a_clip_of_a_video_without_sound_and_of_odd_sides(tmp_path: Path) -> None:
    path, clip = tmp_path / "odd.mp4", tmp_path / "clip.mp4"
    path.write_bytes(video([(2, RED), (2, GREEN), (2, BLUE)], size=98))
    clip.write_bytes(clips.clip(path, 2, 4))
    assert not media.probe(clip).has_audio
    frames = [np.asarray(frame) for frame in media.frames_at(clip, [0.1, 1.8])]
    assert [int(frame.reshape(-1, 3).mean(axis=0).argmax()) for frame in frames] == [1, 1]


def test_a_clip_is_bounded(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SIDE", 320)
    monkeypatch.setattr(clips, "LONGEST_S", 2.0)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(clips.clip(film, 1, 20))
    found = media.probe(clip)
    assert (found.width, found.height) == (320, 240)
    assert found.duration_s == pytest.approx(2, abs=0.15)
    monkeypatch.setattr(clips, "MAX_BYTES", 10_000)
    with pytest.raises(BadSample, match="shorter segments") as caught:
        clips.clip(film, 1, 20)
    assert caught.value.kind == "too_large"


def test_a_turned_video_has_upright_clips(tmp_path: Path) -> None:
    """As phones film: the frames lie on their side, and the container says so."""
    path, clip = tmp_path / "turned.mp4", tmp_path / "clip.mp4"
    path.write_bytes(turned(sample_media.video(shots=sample_media.SHOTS[:1], lines=())))
    shown = media.probe(path)
    clip.write_bytes(clips.clip(path, 1, 3))
    found = media.probe(clip)
    assert (found.width, found.height) == (shown.width, shown.height)
    one, other = (
        np.asarray(next(media.frames_at(file, [time_s])), dtype=float)
        for file, time_s in ((path, 2.0), (clip, 1.0))
    )
    assert np.abs(one - other).mean() < 10
