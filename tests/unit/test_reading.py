"""Words in pictures, and how long they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

from tessera import reading, sample_media
from tessera.inference import Models
from tessera.media import sampling
from tessera.reading import Text, over_time
from tests.media import BLUE, RED, video


def at(text: str, left: float = 0, top: float = 0, confidence: float = 0.9) -> Text:
    return Text(text, (left, top, left + 10 * len(text), top + 20), confidence)


def shown(*readings: tuple[float, list[Text] | None], end_s: float = 99) -> list[tuple[str, float, float]]:
    return [(one.text, one.start_s, one.end_s) for one in over_time(readings, end_s)]


def test_the_same_words_on_successive_frames_are_one_span() -> None:
    assert shown((0, []), (1, [at("red door")]), (2, [at("Red Door")]), (3, []), (4, [at("red door")])) == [
        ("red door", 1, 3),
        ("red door", 4, 99),
    ]


def test_frames_that_show_nothing_new_are_not_read() -> None:
    assert shown((0, [at("red door")]), (1, None), (2, None), (3, []), end_s=4) == [("red door", 0, 3)]


def test_a_slip_of_the_reader_makes_no_new_span_and_the_commonest_reading_wins() -> None:
    readings = [at("marble staircase"), at("marble staicase", confidence=1), at("marble staircase")]
    assert shown(*((float(number), [one]) for number, one in enumerate(readings))) == [
        ("marble staircase", 0, 99)
    ]


def test_texts_that_stand_together_are_followed_one_by_one() -> None:
    logo, first, second = at("channel nine"), at("good evening", top=80), at("the weather", top=80)
    assert shown((0, [logo, first]), (1, [logo, second]), (2, [logo]), end_s=3) == [
        ("good evening", 0, 1),
        ("the weather", 1, 2),
        ("channel nine", 0, 3),
    ]


def test_parts_of_a_line_are_joined_and_lines_of_a_block_too() -> None:
    apart = [at("door", left=48), at("red"), at("menu", left=400), at("behind it", top=26)]
    assert [one.text for one in reading.lines(apart)] == ["red door", "menu", "behind it"]
    blocks = reading.blocks(reading.lines(apart))
    assert [one.text for one in blocks] == ["red door behind it", "menu"]
    assert blocks[0].box == (0, 0, 90, 46)


@pytest.mark.parametrize("size", [(480, 360), (1280, 720)])
def test_burned_in_words_are_read_with_their_blanks_and_their_place(size: tuple[int, int]) -> None:
    picture = sample_media.shot_picture(sample_media.SHOTS[1]).resize(size)
    font = ImageFont.load_default(size[1] // 10)
    place = (size[0] // 5, size[1] * 3 // 4)
    ImageDraw.Draw(picture).text(place, "copper kettle", "white", font, stroke_width=2, stroke_fill="black")
    (text,) = Models(Path("nowhere"), offline=True).reader().read(picture)
    assert text.text == "copper kettle"
    assert text.box[0] == pytest.approx(place[0], abs=size[0] / 30)
    assert text.box[1] == pytest.approx(place[1], abs=size[1] / 20)
    assert text.confidence > 0.6


def test_pictures_without_words_have_none() -> None:
    reader = Models(Path("nowhere"), offline=True).reader()
    for shot in sample_media.SHOTS[3:5]:
        assert reader.read(sample_media.shot_picture(shot)) == []


def test_only_frames_with_something_new_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "plain.mp4"
    path.write_bytes(video([(3, RED), (3, BLUE), (3, RED)]))
    found = list(sampling.new_frames(path, 0.5, 960))
    assert [time_s for time_s, _ in found] == pytest.approx([0, 3, 6], abs=0.3)
    assert {frame.shape for _, frame in found} == {(96, 96, 3)}
    red, blue, again = (frame.reshape(-1, 3).mean(axis=0) for _, frame in found)
    assert np.argmax(red) == np.argmax(again) == 0
    assert np.argmax(blue) == 2
