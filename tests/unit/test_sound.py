"""Sound of every container, where it is silent, and what is said in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera import sample_media, speech
from tessera.errors import BadSample, InferenceServiceUnavailableError
from tessera.inference import POCKETSPHINX, Models
from tessera.media import sound
from tessera.transcription import recognise
from tests.media import SAID, SPEECH, sound_as


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path / "models", offline=True)


def test_the_sample_is_small_and_says_what_it_says() -> None:
    assert SPEECH.stat().st_size <= 300 * 1024
    found = sound.probe(SPEECH)
    assert (found.rate, found.channels, found.codec, found.mime_type) == (16_000, 1, "flac", "audio/flac")
    assert found.duration_s > SAID[-1]["end_time"]


@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("flac", "flac"),
        ("mp3", "libmp3lame"),
        ("m4a", "aac"),
        ("ogg", "libopus"),
        ("aac", "aac"),
        ("aiff", "pcm_s16be"),
        ("mkv", "flac"),
        ("mp4", "aac"),
    ],
)
def test_sound_of_every_container_is_the_same(ending: str, codec: str, tmp_path: Path) -> None:
    rate = 48_000 if codec == "libopus" else 44_100
    path = sound_as(SPEECH, tmp_path / f"speech.{ending}", codec, rate=rate, until_s=4)
    assert sound.probe(path).duration_s == pytest.approx(4, abs=0.2)
    heard = np.concatenate(list(sound.samples(path)))
    assert heard.dtype == np.int16
    assert len(heard) / sound.RATE == pytest.approx(4, abs=0.2)
    (begin, end), *_ = sound.sounding(sound.levels(path))
    assert begin == pytest.approx(SAID[0]["start_time"], abs=0.2)
    assert end == pytest.approx(SAID[0]["end_time"], abs=0.2)


def test_silences_are_found_where_they_are() -> None:
    found = sound.sounding(sound.levels(SPEECH))
    assert len(found) == len(SAID)
    for (begin, end), line in zip(found, SAID, strict=True):
        assert begin == pytest.approx(line["start_time"], abs=0.2)
        assert end == pytest.approx(line["end_time"], abs=0.2)


def test_levels_are_decibels_of_full_scale(tmp_path: Path) -> None:
    """A sine of full scale has a root mean square of -3 dB, one of a hundredth of it -43 dB."""
    path = tmp_path / "tones.wav"
    tone = np.sin(2 * np.pi * 440 * np.arange(sound.RATE) / sound.RATE)
    write_wav(path, np.concatenate([tone, 0.01 * tone, np.zeros(sound.RATE)]) * 32_767)
    level = sound.levels(path)
    assert len(level) == 150
    assert level[:50] == pytest.approx(-3.01, abs=0.2)
    assert level[50:100] == pytest.approx(-43.01, abs=0.3)
    assert (level[100:] <= -90).all()
    assert sound.sounding(level) == [(0.0, pytest.approx(1.1, abs=0.05))]
    assert sound.sounding(level, -50) == [(0.0, pytest.approx(2.1, abs=0.05))]
    assert sound.sounding(level, 0) == []
    assert sound.sounding(np.full(50, -96, np.float32)) == []


def test_a_quiet_recording_is_not_all_silence(tmp_path: Path) -> None:
    """Speech 30 dB lower: a threshold that stands still would hear nothing of it."""
    path = tmp_path / "quiet.wav"
    heard = np.concatenate(list(sound.samples(SPEECH)))
    write_wav(path, heard / 31.6)
    assert len(sound.sounding(sound.levels(path))) == len(SAID)


def test_a_click_ends_no_silence(tmp_path: Path) -> None:
    path = tmp_path / "click.wav"
    samples = np.zeros(3 * sound.RATE)
    samples[sound.RATE : sound.RATE + 200] = 20_000
    write_wav(path, samples)
    assert sound.sounding(sound.levels(path), -40) == []


def test_a_gap_in_the_stream_is_silence_so_that_times_stay(tmp_path: Path) -> None:
    import av

    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=sound.RATE, layout="mono")
        for second in (0, 3):
            frame = av.AudioFrame.from_ndarray(np.full((1, sound.RATE), 9000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = sound.RATE, second * sound.RATE
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    found = sound.sounding(sound.levels(path))
    assert found == [
        (0, pytest.approx(1.1, abs=0.05)),
        (pytest.approx(2.9, abs=0.05), pytest.approx(4, abs=0.05)),
    ]


def test_stretches_are_the_samples_of_their_time_and_never_too_long() -> None:
    whole = np.concatenate(list(sound.samples(SPEECH)))
    spans = [(0.5, 2.0), (2.0, 2.5), (5.0, 22.0)]
    parts = list(sound.stretches(SPEECH, spans, 6.0))
    for start_s, samples in parts:
        start = round(start_s * sound.RATE)
        assert len(samples) <= 6 * sound.RATE
        assert (samples == whole[start : start + len(samples)]).all()
    starts = [round(start_s, 3) for start_s, _ in parts]
    assert starts[:3] == [0.5, 2.0, 5.0]
    assert sum(len(samples) for _, samples in parts) == round((1.5 + 0.5 + 17) * sound.RATE)
    (start_s, samples) = list(sound.stretches(SPEECH, [(20.0, 900.0)], 30.0))[-1]
    assert start_s + len(samples) / sound.RATE == pytest.approx(len(whole) / sound.RATE, abs=0.01)


def test_what_holds_no_sound_says_so(tmp_path: Path) -> None:
    silent = tmp_path / "silent.mp4"
    silent.write_bytes(sample_media.video(shots=sample_media.SHOTS[:1], lines=()))
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    for path, said in ((silent, "holds no sound"), (text, "is no sound")):
        for function in (sound.probe, sound.levels):
            with pytest.raises(BadSample, match=said) as caught:
                function(path)
            assert caught.value.kind == "unsupported"


# --- words ----------------------------------------------------------------------------------------------


def test_word_error_rate() -> None:
    assert speech.error_rate("one two three four", "one two three four") == 0
    assert speech.error_rate("One, two three: four!", "one too three") == 0.5
    assert speech.error_rate("one", "one and two") == 2


def test_speech_is_heard_with_the_time_of_each_word(models: Models) -> None:
    heard = recognise(SPEECH, models, POCKETSPHINX, "en", sound.sounding(sound.levels(SPEECH)))
    assert heard.source == POCKETSPHINX
    rate = speech.error_rate(
        " ".join(line["text"] for line in SAID), " ".join(piece.text for piece in heard.pieces)
    )
    print(f"word error rate {rate:.3f}")
    assert rate <= 0.3
    times = [time_s for piece in heard.pieces for time_s in (piece.start_s, piece.end_s)]
    assert times == sorted(times)
    for word, line in (("harbor", 0), ("basket", 1), ("afternoon", 2), ("fever", 4)):
        piece = next(piece for piece in heard.pieces if piece.text == word)
        assert SAID[line]["start_time"] <= piece.start_s < piece.end_s <= SAID[line]["end_time"] + 0.1


def test_a_stretch_is_heard_alike_whatever_came_before(models: Models) -> None:
    """A recogniser that adapts to a voice would make documents depend on their neighbours."""
    recogniser = models.recogniser(POCKETSPHINX)
    parts = [samples for _, samples in sound.stretches(SPEECH, [(0.4, 2.9), (3.6, 5.0)], 20)]
    alone = [recogniser.words(samples, "en") for samples in parts]
    assert [recogniser.words(samples, "en") for samples in reversed(parts)] == alone[::-1]


def test_the_best_recogniser_that_is_installed_is_chosen(models: Models) -> None:
    chosen = models.choose_recogniser(None, "en-GB")
    assert chosen is not None and chosen.model_id == POCKETSPHINX
    assert models.choose_recogniser(None, "de") is None
    assert "tessera models pull faster-whisper" in models.missing_recogniser("de")
    folder = models.directory / "faster-whisper-tiny"
    folder.mkdir(parents=True)
    (folder / "model.bin").touch()
    for language in ("en", "de", None):
        found = models.choose_recogniser(None, language)
        assert found is not None and found.model_id == "faster-whisper-tiny"
    with pytest.raises(BadSample, match="tessera models pull faster-whisper-small"):
        models.choose_recogniser("faster-whisper-small")
    with pytest.raises(BadSample, match="not for speech"):
        models.choose_recogniser("all-MiniLM-L6-v2")


def test_without_the_extra_the_error_names_it(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    gone = {"pocketsphinx", "faster_whisper", "rapidocr"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else find(name, *a)
    )
    assert models.choose_recogniser(None, "en") is None
    assert "tessera[speech]" in models.missing_recogniser("en")
    with pytest.raises(BadSample, match=r"tessera\[speech\]"):
        models.choose_recogniser(POCKETSPHINX)
    with pytest.raises(BadSample, match=r"tessera\[media\]"):
        models.choose("reading", "rapidocr-pp-ocrv6-small")
    with pytest.raises(InferenceServiceUnavailableError, match=r"tessera\[speech\]"):
        models.pull(POCKETSPHINX)


def test_damaged_files_of_a_recogniser_say_so(models: Models) -> None:
    folder = models.directory / "faster-whisper-tiny"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"nothing")
    with pytest.raises(InferenceServiceUnavailableError, match="cannot be loaded"):
        models.recogniser("faster-whisper-tiny")


def write_wav(path: Path, samples: Any) -> None:
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.RATE)
        file.writeframes(np.asarray(samples).astype("<i2").tobytes())
