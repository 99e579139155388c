"""What each extractor does of its own; what all of them keep is in ``contracts/test_extractors.py``."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from PIL import Image

from tessera import media, sample_media
from tessera.extractors import text as text_module
from tessera.extractors import video as video_module
from tessera.extractors.base import BadSample, Extractor, Feature, Input, Locator, Sample
from tessera.extractors.text import TextParams, split
from tessera.extractors.video import VideoParams
from tessera.media import spans
from tessera.media.spans import Span
from tessera.registry import Registry
from tests.media import photograph


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(tmp_path_factory.mktemp("models"), offline=True)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "video.mp4"
    path.write_bytes(sample_media.video())
    return path


def extract(extractor: Extractor, inputs: dict[str, Input], **params: Any) -> list[Feature]:
    (outcome,) = extractor.extract([Sample(inputs)], extractor.Params(**params))
    if isinstance(outcome, BadSample):
        raise outcome
    return list(outcome)


# --- cutting text -------------------------------------------------------------------------------------

PROSE = (
    'Dr. Smith bought wireless headphones, e.g. for planes.  They cancel noise! "Really?" Yes…\n'
    "J. K. wrote it down.\n\n  A new paragraph (with a bracket.) Ends here\fA page 2.5 long. 東京は大きい。とても。"
)


def pieces(unit: Any, size: int, overlap: int = 0, text: str = PROSE) -> list[str]:
    return [text[start:end] for start, end in split(text, unit, size, overlap)]


def test_sentences() -> None:
    assert pieces("sentences", 1) == [
        "Dr. Smith bought wireless headphones, e.g. for planes.",
        "They cancel noise!",
        '"Really?"',
        "Yes…",
        "J. K. wrote it down.",
        "A new paragraph (with a bracket.)",
        "Ends here\fA page 2.5 long.",
        "東京は大きい。",
        "とても。",
    ]


def test_other_units() -> None:
    assert pieces("none", 1) == [PROSE]
    assert pieces("words", 3)[:2] == ["Dr. Smith bought", "wireless headphones, e.g."]
    assert pieces("paragraphs", 1)[1].startswith("A new paragraph")
    assert [page[:6] for page in pieces("pages", 1)] == ["Dr. Sm", "A page"]
    assert pieces("characters", 4, text="abcdefghij") == ["abcd", "efgh", "ij"]


def test_overlap() -> None:
    assert pieces("characters", 4, 2, "abcdefgh") == ["abcd", "cdef", "efgh"]
    assert pieces("words", 2, 1, "a b c d") == ["a b", "b c", "c d"]
    assert pieces("words", 5, 4, "a b") == ["a b"]


@pytest.mark.parametrize("unit", ["characters", "words", "sentences", "paragraphs", "pages"])
def test_every_unit_is_in_a_piece_and_pieces_are_in_order(unit: Any) -> None:
    random = np.random.default_rng(9)
    letters = list('ab. !?\n\n\f…。\t"XÄ')
    for _ in range(200):
        text = "".join(random.choice(letters, size=int(random.integers(1, 60))))
        size = int(random.integers(1, 6))
        overlap = int(random.integers(0, size))
        spans = split(text, unit, size, overlap)
        assert spans == sorted(set(spans))
        assert all(0 <= start < end <= len(text) for start, end in spans)
        covered = {place for start, end in spans for place in range(start, end)}
        assert all(place in covered for place, letter in enumerate(text) if not letter.isspace())


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", ["." * 2_000_000 + "x", ".)" * 1_000_000, "\n " * 1_000_000, "." + "'" * 2_000_000]
)
def test_texts_made_to_be_slow_are_not(text: str) -> None:
    for unit in ("words", "sentences", "paragraphs", "pages"):
        try:
            split(text, unit, 1000)
        except BadSample as error:
            assert error.kind == "limit"


def test_text_pieces_carry_their_place(registry: Registry) -> None:
    made = extract(
        registry.extractor("text_extractor", "v1"),
        {"text": Input(text=PROSE)},
        split_by="sentences",
        chunk_size=2,
    )
    for number, feature in enumerate(made):
        fields = feature.fields
        assert fields["text"] == PROSE[fields["start_char"] : fields["end_char"]]
        assert fields["chunk_index"] == number
        assert feature.position == (fields["start_char"],)
        assert feature.locator == Locator.in_text(fields["start_char"], fields["end_char"])


CAPTIONS = """1
00:00:01,000 --> 00:00:04,000
The kettle is on.

2
00:00:20,000 --> 00:01:20,000
This one is <i>long</i>.

3
00:02:05,500 --> 00:02:07,000
And later it whistles.
"""


def test_subtitles_are_cut_by_time(registry: Registry) -> None:
    """A subtitle belongs where its middle lies; segments in which nothing is said have no document."""
    made = extract(
        registry.extractor("text_extractor", "v1"),
        {"text": Input(text=CAPTIONS)},
        split_by="time_segments",
        segment_length_seconds=30,
    )
    assert [(item.position, item.fields, item.locator) for item in made] == [
        (
            (number * 30_000,),
            {"text": text, "chunk_index": place, "start_time": start / 1000, "end_time": end / 1000},
            Locator.at_time(start, end),
        )
        for place, (number, text, start, end) in enumerate(
            [
                (0, "The kettle is on.", 1000, 4000),
                (1, "This one is long.", 20_000, 80_000),
                (4, "And later it whistles.", 125_500, 127_000),
            ]
        )
    ]
    with pytest.raises(BadSample, match="no times") as caught:
        extract(
            registry.extractor("text_extractor", "v1"), {"text": Input(text=PROSE)}, split_by="time_segments"
        )
    assert caught.value.kind == "unsupported"


def test_a_whole_text_has_no_position_and_is_all_of_its_source(registry: Registry, tmp_path: Path) -> None:
    extractor = registry.extractor("text_extractor", "v1")
    (made,) = extract(extractor, {"text": Input(text=PROSE)})
    assert (made.position, made.fields) == ((), {"text": PROSE})
    assert made.locator == Locator.in_text(0, len(PROSE))
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes(PROSE.encode(encoding))
        (same,) = extract(extractor, {"text": Input(path=tmp_path / "a.txt")})
        assert same.fields == made.fields


def test_too_many_pieces_and_too_much_text(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = registry.extractor("text_extractor", "v1")
    with pytest.raises(BadSample, match="raise chunk_size") as caught:
        extract(extractor, {"text": Input(text="x" * 20_000)}, split_by="characters", chunk_size=1)
    assert caught.value.kind == "limit"
    monkeypatch.setattr(text_module, "MAX_TEXT_BYTES", 100)
    with pytest.raises(BadSample) as caught:
        extract(extractor, {"text": Input(text="ä" * 51)})
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"split_by": "sentences", "chunk_size": 5, "chunk_overlap": 5}, "smaller than chunk_size"),
        ({"split_by": "time_segments", "segment_length_seconds": 10}, "30"),
        ({"source_type": "youtube"}, "time_segments"),
        ({"split_by": "verses"}, "paragraphs"),
        ({"chunk_size": 0}, "greater than or equal to 1"),
    ],
)
def test_text_parameters_that_cannot_be(params: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        TextParams.model_validate(params)


def test_the_vendors_text_parameters_are_taken() -> None:
    params = TextParams.model_validate(
        {
            "extractor_type": "text_extractor",
            "split_by": None,
            "response_shape": {"type": "object"},
            "llm_provider": "openai",
            "llm_model": "gpt-4o",
        }
    )
    assert params.split_by == "none"


# --- video --------------------------------------------------------------------------------------------


def test_spans_and_their_words() -> None:
    cues = [media.Cue(1, 3, "a"), media.Cue(9, 10.5, "b"), media.Cue(9.9, 11, "c"), media.Cue(90, 91, "late")]
    cut = spans.every(25.2, 10)
    assert cut == [Span(0, 10), Span(10, 20), Span(20, 25.2)]
    assert [[cue.text for cue in cues] for cues in spans.placed(cues, cut)] == [["a", "b"], ["c"], ["late"]]
    assert [[cue.text for cue in cues] for cues in spans.during(cues, cut)] == [
        ["a", "b", "c"],
        ["b", "c"],
        [],
    ]
    assert spans.every(20.4, 10) == [Span(0, 10), Span(10, 20.4)]
    assert spans.every(0.0, 10) == [Span(0, 0)]
    with pytest.raises(BadSample, match="time_split_interval"):
        spans.every(12 * 3600, 1)


def test_spans_between_boundaries() -> None:
    assert spans.at([4, 4.2, 9.8], 10, None) == [Span(0, 4), Span(4, 10)]
    assert spans.at([3], 63, 30) == [Span(0, 3), Span(3, 33), Span(33, 63)]
    assert spans.at([], 90, 30) == [Span(0, 30), Span(30, 60), Span(60, 90)]
    assert spans.at([], 100, None) == [Span(0, 100)]
    assert spans.at([70], 60, None) == [Span(0, 60)]
    assert spans.at([], 0.0, 30) == [Span(0, 0)]
    assert spans.at([], 0.3, 30) == [Span(0, 0.3)]
    with pytest.raises(BadSample, match="max_segment_duration"):
        spans.at([], 12 * 3600, 1)


def test_a_long_silence_is_a_span_of_its_own_and_a_short_one_belongs_to_what_was_heard() -> None:
    assert spans.by_silence([(1, 4), (4.6, 8), (12, 15)], 20) == [1, 4.6, 8, 12, 15]
    assert spans.by_silence([(0, 4), (5, 9)], 10) == [5]
    assert spans.by_silence([], 10) == []


def test_a_video_is_found_by_picture_and_by_words(registry: Registry, sample: Path, tmp_path: Path) -> None:
    extractor = registry.extractor("video_extractor", "1.0.0")
    made = extract(extractor, {"video": Input(path=sample)})
    assert [feature.position for feature in made] == [(start * 1000,) for start in range(0, 60, 10)]
    assert [feature.fields["end_time"] for feature in made] == [10, 20, 30, 40, 50, 60]
    seen, said = extractor.outputs(extractor.Params()).vectors

    def best(vector_name: str, query: Any) -> int:
        return int(np.argmax([feature.vectors[vector_name] @ query for feature in made]))

    for words, span in (("astronomy", 2), ("repairing musical instruments", 3), ("selling fruit", 5)):
        assert best(said.name, extractor.embed_query(said, "text", words)) == span
    for shot, span in ((0, 0), (1, 1), (3, 2), (4, 3), (5, 4), (6, 5)):
        picture = tmp_path / f"{shot}.png"
        sample_media.shot_picture(sample_media.SHOTS[shot]).save(picture)
        assert best(seen.name, extractor.embed_query(seen, "image", picture)) == span


def test_subtitles_beside_a_video_win(registry: Registry, sample: Path, tmp_path: Path) -> None:
    extractor = registry.extractor("video_extractor", "v1")
    srt = tmp_path / "other.srt"
    srt.write_text("1\n00:00:21,000 --> 00:00:23,000\nSomething else\n")
    for inputs in (
        {"video": Input(path=sample, sidecars={"subtitles": srt})},
        {"video": Input(path=sample), "subtitles": Input(path=srt, filename="other.srt")},
        {"video": Input(path=sample), "subtitles": Input(text=srt.read_text())},
        # As a bucket object without mappings comes: its one text fits both inputs.
        {"video": Input(path=sample), "subtitles": Input(path=srt), "text": Input(path=srt)},
    ):
        made = extract(extractor, inputs)
        assert {feature.fields["start_time"]: feature.fields.get("transcription") for feature in made} == {
            0: None,
            10: None,
            20: "Something else",
            30: None,
            40: None,
            50: None,
        }
        spoken = [extractor.said_name in feature.vectors for feature in made]  # type: ignore[attr-defined]
        assert spoken == [False, False, True, False, False, False]


def test_a_title_beside_a_video_is_a_document_of_its_own(registry: Registry, sample: Path) -> None:
    title = Input(text="A day between harbour and market")
    made = extract(
        registry.extractor("multimodal_extractor", "v1"),
        {"video": Input(path=sample), "text": title, "subtitles": title},
    )
    assert len(made) == 7
    assert made[-1].position == ("text",)
    assert made[-1].fields == {"text": title.text}
    assert "harbour" in made[0].fields["transcription"]


def test_what_is_named_a_subtitle_file_must_be_one(registry: Registry, sample: Path) -> None:
    notes = Input(text="Dear diary", filename="diary.srt")
    with pytest.raises(BadSample, match="neither SRT nor WebVTT"):
        extract(
            registry.extractor("video_extractor", "v1"), {"video": Input(path=sample), "subtitles": notes}
        )


def test_long_videos_are_looked_at_once_a_span(
    registry: Registry, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = registry.extractor("video_extractor", "v1")
    exact = extract(extractor, {"video": Input(path=sample)})
    monkeypatch.setattr(video_module, "EXACT_UP_TO_S", 1.0)
    quick = extract(extractor, {"video": Input(path=sample)})
    assert [feature.fields for feature in quick] == [feature.fields for feature in exact]
    for one, other in zip(exact, quick, strict=True):
        name = extractor.seen_name  # type: ignore[attr-defined]
        assert float(one.vectors[name] @ other.vectors[name]) > 0.7
        assert other.files["thumbnail_url"][1] == "image/jpeg"


def test_what_is_switched_off_is_not_written(registry: Registry, sample: Path) -> None:
    extractor = registry.extractor("video_extractor", "v1")
    off: dict[str, Any] = {"run_multimodal_embedding": False, "enable_thumbnails": False}
    made = extract(extractor, {"video": Input(path=sample)}, **off)
    assert [vector.name for vector in extractor.outputs(VideoParams(**off)).vectors] == [
        "video_extractor_v1_transcription_embedding"
    ]
    assert len(made) == 6
    assert not any(feature.files for feature in made)
    mute = {"run_transcription": False}
    made = extract(extractor, {"video": Input(path=sample)}, **mute)
    assert len(extractor.outputs(VideoParams(**mute)).vectors) == 1
    assert not any("transcription" in feature.fields for feature in made)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"run_video_description": True}, "not available"),
        ({"split_method": "chapters"}, "'time', 'scene' or 'silence'"),
        ({"scene_detection_threshold": 2}, "less than or equal to 1"),
        ({"silence_db_threshold": 3}, "less than or equal to 0"),
        ({"max_segment_duration": 0}, "greater than or equal to 1"),
        ({"time_split_interval": 0}, "greater than or equal to 1"),
    ],
)
def test_video_parameters_that_cannot_be(params: dict[str, Any], said: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=said):
        VideoParams.model_validate(params)


def test_words_in_a_single_picture_are_read_and_embedded(registry: Registry, tmp_path: Path) -> None:
    from PIL import ImageDraw, ImageFont

    picture = sample_media.shot_picture(sample_media.SHOTS[1]).resize((640, 480))
    font = ImageFont.load_default(40)
    ImageDraw.Draw(picture).text(
        (90, 380), "copper kettle", "white", font, stroke_width=3, stroke_fill="black"
    )
    picture.save(tmp_path / "p.png")
    extractor = registry.extractor("multimodal_extractor", "v1")
    (made,) = extract(extractor, {"image": Input(path=tmp_path / "p.png")}, run_ocr=True)
    assert made.fields["ocr_text"] == "copper kettle"
    assert set(made.vectors) == {extractor.seen_name, extractor.said_name}  # type: ignore[attr-defined]
    (made,) = extract(
        extractor, {"image": Input(path=tmp_path / "p.png")}, run_ocr=True, run_ocr_embedding=False
    )
    assert set(made.vectors) == {extractor.seen_name}  # type: ignore[attr-defined]


def test_an_image_without_thumbnail(registry: Registry, tmp_path: Path) -> None:
    extractor = registry.extractor("image_extractor", "v1")
    path = tmp_path / "p.png"
    path.write_bytes(sample_media.pictures()["city.png"])
    (made,) = extract(extractor, {"image": Input(path=path)}, enable_thumbnails=False)
    assert made.fields == {"width": 320, "height": 240}
    assert not made.files
    assert "thumbnail_url" not in extractor.outputs(extractor.Params(enable_thumbnails=False)).fields


def test_when_and_where_a_picture_was_taken(registry: Registry, tmp_path: Path) -> None:
    """The photograph was taken with the camera on its side: it is shown upright, and its place is in that view."""
    extractor = registry.extractor("image_extractor", "v1")
    path = tmp_path / "p.jpg"
    path.write_bytes(photograph(sample_media.pictures()["city.png"], orientation=6))
    (made,) = extract(extractor, {"image": Input(path=path)})
    assert made.fields == {
        "width": 240,
        "height": 320,
        "taken_at": "2021-06-05T07:08:09+02:00",
        "taken_where": {"lat": 48.137, "lon": -11.5756},
    }
    assert made.locator == Locator.in_picture((0, 0, 240, 320), (240, 320))
    with Image.open(io.BytesIO(made.files["thumbnail_url"][0])) as small:
        assert small.size == (240, 320)
        assert not small.getexif(), "a thumbnail tells nothing of it"
    (private,) = extract(extractor, {"image": Input(path=path)}, read_exif=False)
    assert private.fields == {"width": 240, "height": 320}
    assert (
        not {"taken_at", "taken_where"} & extractor.outputs(extractor.Params(read_exif=False)).fields.keys()
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"at": "0000:00:00 00:00:00", "place": (0.0, 0.0)}, {}),
        ({"at": "yesterday", "place": None}, {}),
        ({"zone": "CEST", "place": None}, {"taken_at": "2021-06-05T07:08:09"}),
        ({"at": None, "place": (-33.8568, 151.2153)}, {"taken_where": {"lat": -33.8568, "lon": 151.2153}}),
        ({"at": None, "place": (95.0, 10.0)}, {}),
    ],
)
def test_tags_that_make_no_sense_are_left_out(
    registry: Registry, tmp_path: Path, tags: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = tmp_path / "p.jpg"
    path.write_bytes(photograph(sample_media.pictures()["city.png"], **tags))
    (made,) = extract(registry.extractor("image_extractor", "v1"), {"image": Input(path=path)})
    assert {name: value for name, value in made.fields.items() if name.startswith("taken")} == expected
