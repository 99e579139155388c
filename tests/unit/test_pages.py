"""Pages of PDF files: what is displayed is what is found, whatever the file makes of it; and what is no page."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tessera import sample_pages
from tessera.causes import KINDS
from tessera.extractors.base import BadSample, Feature, Input, Sample
from tessera.media import layout
from tessera.media import pages as pages_module
from tessera.media.layout import Rule, Word, blocks
from tessera.media.pages import Page, pages
from tessera.registry import Registry
from tessera.sample_pages import Sheet, pdf, scanned

SENTENCE = "The kettle whistles on the stove while it rains."


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.load(tmp_path_factory.mktemp("models"), offline=True)


def read(folder: Path, *sheets: Sheet) -> list[Page]:
    (folder / "a.pdf").write_bytes(pdf(sheets))
    return list(pages(folder / "a.pdf"))


def found(page: Page, **options: Any) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks(page.words, page.rules, **options)]


def extract(registry: Registry, folder: Path, data: bytes, **parameters: Any) -> list[Feature]:
    (folder / "b.pdf").write_bytes(data)
    extractor = registry.extractor("document_graph_extractor", "v1")
    (outcome,) = extractor.extract(
        [Sample({"pdf": Input(path=folder / "b.pdf")})], extractor.Params.model_validate(parameters)
    )
    if isinstance(outcome, BadSample):
        raise outcome
    return list(outcome)


# --- reading -------------------------------------------------------------------------------------------


def test_without_a_reader_of_pdf_the_way_out_is_to_install_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next step was to convert the file, and a plain retry after the installation passed it over."""
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(BadSample, match=r"tessera\[media\]") as caught:
        list(pages(tmp_path / "a.pdf"))
    kind = KINDS[caught.value.kind]
    assert (kind.cause, kind.may_pass) == ("model_missing", True)
    assert "Install what the message names" in kind.next_step


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_boxes_are_where_the_words_are_displayed(tmp_path: Path, rotate: int) -> None:
    """A page that its file turns is drawn turned: the ink lies inside the box, and nowhere else."""
    sheet = Sheet(300, 200, rotate=rotate)
    sheet.text(40, 60, SENTENCE, 10)
    (tmp_path / "a.pdf").write_bytes(pdf([sheet]))
    for page in pages(tmp_path / "a.pdf"):
        assert (page.width, page.height) == ((200, 300) if rotate % 180 else (300, 200))
        left, top, right, bottom = layout.around([word.box for word in page.words])
        image, scale = page.render(144)
        ink = Image.eval(image.convert("L"), lambda value: 255 - value).getbbox()
        assert ink is not None
        a, b, c, d = (side / scale for side in ink)
        assert left - 1 <= a < c <= right + 1
        assert top - 1 <= b < d <= bottom + 1
        assert (right - left) * (bottom - top) < 2.2 * (c - a) * (d - b)
        assert "".join(word.text for word in page.words if rotate == 0) in SENTENCE.replace(" ", "")


def test_a_part_of_a_page_is_drawn_as_it_lies_there(tmp_path: Path) -> None:
    sheet = Sheet(300, 200)
    sheet.text(40, 60, "left", 10)
    sheet.text(200, 150, "right", 10)
    (tmp_path / "a.pdf").write_bytes(pdf([sheet]))
    for page in pages(tmp_path / "a.pdf"):
        box = next(word.box for word in page.words if word.text == "right")
        image, scale = page.render(144, box)
        expected = ((box[2] - box[0]) * scale, (box[3] - box[1]) * scale)
        assert image.size == pytest.approx(expected, abs=1.5)
        whole, _ = page.render(144)
        pixels = tuple(round(side * scale) for side in box)
        assert sum(image.convert("L").histogram()[:100]) == pytest.approx(
            sum(whole.crop(pixels).convert("L").histogram()[:100]),
            rel=0.1,  # type: ignore[arg-type]
        )


def test_a_page_of_any_size_is_drawn_within_bounds(tmp_path: Path) -> None:
    sheet = Sheet(14_400, 14_400)
    sheet.text(100, 100, SENTENCE, 200)
    (tmp_path / "a.pdf").write_bytes(pdf([sheet]))
    for page in pages(tmp_path / "a.pdf"):
        image, scale = page.render(300)
        assert image.width * image.height <= 1.01 * pages_module.MAX_RENDERED_PIXELS
        assert scale == pytest.approx(image.width / 14_400, rel=0.01)


def test_what_is_no_pdf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = pdf([Sheet()])
    for name, data, told in [
        ("noise", bytes(range(256)), "no PDF"),
        ("empty", b"", "no PDF"),
        ("no pages", pdf([]), "no PDF"),
        ("locked", (Path(__file__).parents[1] / "fixtures/locked.pdf").read_bytes(), "password"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadSample, match=told) as caught:
            list(pages(tmp_path / name))
        assert caught.value.kind == "unreadable"
    (tmp_path / "good").write_bytes(good)
    monkeypatch.setattr(pages_module, "MAX_PAGES", 0)
    with pytest.raises(BadSample, match="more than 0") as caught:
        list(pages(tmp_path / "good"))
    assert caught.value.kind == "limit"


def test_a_page_with_too_many_letters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = Sheet()
    sheet.text(60, 60, SENTENCE)
    monkeypatch.setattr(pages_module, "MAX_PAGE_CHARS", 10)
    with pytest.raises(BadSample) as caught:
        read(tmp_path, sheet)
    assert caught.value.kind == "too_large"


# --- layout --------------------------------------------------------------------------------------------


def test_paragraphs_end_at_gaps_and_columns_stay_apart(tmp_path: Path) -> None:
    sheet = Sheet()
    for number, line in enumerate(("One paragraph that goes", "on in a second line.")):
        sheet.text(60, 100 + 13 * number, line)
    sheet.text(60, 150, "Another one stands below it, after a gap.")
    sheet.text(330, 100, "What stands beside it belongs")
    sheet.text(330, 113, "to a column of its own, does it not?")
    (page,) = read(tmp_path, sheet)
    assert found(page) == [
        ("paragraph", "One paragraph that goes on in a second line."),
        ("paragraph", "What stands beside it belongs to a column of its own, does it not?"),
        ("paragraph", "Another one stands below it, after a gap."),
    ]


def test_words_cut_at_the_end_of_a_line_are_whole() -> None:
    assert layout.joined(["a light-", "house on a well-", "Known rock", "12-", "14 May"]) == (
        "a lighthouse on a well- Known rock 12- 14 May"
    )


def test_headings_lists_and_the_order_of_reading(tmp_path: Path) -> None:
    sheet = Sheet()
    sheet.text(60, 80, "Large title of the page", 18)
    sheet.text(60, 120, "Bold and alone", bold=True)
    sheet.text(60, 135, "The text below it is set in letters of the usual size and weight.")
    for number, mark in enumerate(("-", "1.", "(b)")):
        sheet.text(70, 200 + 14 * number, f"{mark} item")
    (page,) = read(tmp_path, sheet)
    assert found(page) == [
        ("heading", "Large title of the page"),
        ("heading", "Bold and alone"),
        ("paragraph", "The text below it is set in letters of the usual size and weight."),
        ("list", "- item\n1. item\n(b) item"),
    ]


ROWS = (("Name", "Height"), ("Ben Nevis", "1345"), ("Snowdon", "1085"))
EXPECTED = [("table_row", "Name: Ben Nevis; Height: 1345"), ("table_row", "Name: Snowdon; Height: 1085")]


@pytest.mark.parametrize("ruled", [True, False])
def test_rows_of_tables_name_their_columns(tmp_path: Path, ruled: bool) -> None:
    sheet = Sheet()
    sheet.text(60, 80, "These are the heights of two mountains, measured in metres above the sea:")
    sheet.table(60, 120, ROWS, ruled=ruled)
    (page,) = read(tmp_path, sheet)
    assert found(page)[1:] == EXPECTED
    assert [kind for kind, _ in found(page, with_tables=False)].count("table_row") == 0


def test_a_table_without_names_of_columns_and_with_empty_cells(tmp_path: Path) -> None:
    sheet = Sheet()
    sheet.table(60, 120, (("1", "Ben Nevis", "1345"), ("2", "", "1085")), ruled=True)
    (page,) = read(tmp_path, sheet)
    made = blocks(page.words, page.rules)
    assert [(block.text, block.cells) for block in made] == [
        ("1; Ben Nevis; 1345", ("1", "Ben Nevis", "1345")),
        ("2; 1085", ("2", "", "1085")),
    ]


def test_a_frame_around_a_page_is_no_table(tmp_path: Path) -> None:
    sheet = Sheet()
    for line in ((20, 20, 575, 20), (575, 20, 575, 820), (20, 820, 575, 820), (20, 20, 20, 820)):
        sheet.rule(*line)
    sheet.text(60, 80, SENTENCE)
    (page,) = read(tmp_path, sheet)
    assert len(page.rules) == 4
    assert found(page) == [("paragraph", SENTENCE)]


def test_narrow_columns_of_prose_are_no_table() -> None:
    words = []
    for row in range(6):
        for column, text in enumerate(("some words of the left column", "other words of the right one")):
            left = 60.0 + 240 * column
            words.append(Word(text, (left, 100.0 + 13 * row, left + 150, 112.0 + 13 * row), 12.0))
    assert [block.kind for block in blocks(words)] == ["paragraph", "paragraph"]


def test_layout_takes_what_makes_no_sense() -> None:
    assert blocks([]) == []
    flat = [Word("x", (5.0, 5.0, 5.0, 5.0), 0.0), Word("y", (5.0, 5.0, 5.0, 5.0), 0.0)]
    assert " ".join(block.text for block in blocks(flat)) == "x y"
    rules = [Rule((0.0, float(n), 100.0, float(n))) for n in range(0, 50, 10)]
    assert " ".join(block.text for block in blocks(flat, rules)) == "x y"


# --- the extractor -------------------------------------------------------------------------------------


def test_a_picture_on_a_page_with_text_is_read_too(registry: Registry, tmp_path: Path) -> None:
    picture = scanned(("Beware of the dog",), 300, 120)
    sheet = Sheet(picture=picture.picture)
    sheet.text(60, 80, SENTENCE)
    sheet.content.append("q 300 0 0 120 100 400 cm /I1 Do Q")
    made = extract(registry, tmp_path, pdf([sheet]), min_text_length=5)
    assert [(f.fields["object_type"], f.fields["text"]) for f in made] == [
        ("paragraph", SENTENCE),
        ("figure", "Beware of the dog"),
    ]
    assert made[1].fields["bbox"] == [100, 842 - 520, 400, 842 - 400]
    text_only = extract(registry, tmp_path, pdf([sheet]), use_layout_detection=False)
    assert [f.fields["text"] for f in text_only] == [SENTENCE]


def test_what_is_switched_off_is_not_made(registry: Registry, tmp_path: Path) -> None:
    sheet = Sheet(300, 200)
    sheet.text(30, 40, SENTENCE, 10)
    sheet.text(30, 80, "short", 10)
    off = {"run_text_embedding": False, "generate_thumbnails": False}
    (made,) = extract(registry, tmp_path, pdf([sheet]), **off)
    assert not made.vectors
    assert not made.files
    extractor = registry.extractor("document_graph_extractor", "v1")
    outputs = extractor.outputs(extractor.Params.model_validate(off))
    assert not outputs.vectors
    assert "thumbnail_url" not in outputs.fields
    assert len(extract(registry, tmp_path, pdf([sheet]), min_text_length=5, **off)) == 2


@pytest.mark.parametrize(("score", "tag"), [(0.9, "A"), (0.85, "A"), (0.7, "B"), (0.5, "C"), (0.3, "D")])
def test_confidence_has_a_tag(registry: Registry, tmp_path: Path, score: float, tag: str) -> None:
    sheet = Sheet(300, 200)
    sheet.text(30, 40, SENTENCE, 10)
    (made,) = extract(registry, tmp_path, pdf([sheet]), base_confidence=score, run_text_embedding=False)
    assert (made.fields["confidence_score"], made.fields["confidence_tag"]) == (score, tag)


def test_a_page_with_nothing_to_read_says_so(registry: Registry, tmp_path: Path) -> None:
    blank = io.BytesIO()
    Image.new("L", (60, 60), 255).save(blank, "JPEG")
    empty = Sheet(100, 100, picture=(blank.getvalue(), 60, 60), content=["q 100 0 0 100 0 0 cm /I1 Do Q"])
    for sheet in (Sheet(), empty):
        with pytest.raises(BadSample, match="no text that can be read") as caught:
            extract(registry, tmp_path, pdf([sheet]))
        assert caught.value.kind == "unreadable"


def test_a_layout_that_is_not_there_is_refused(registry: Registry) -> None:
    params = registry.extractor("document_graph_extractor", "v1").Params
    with pytest.raises(ValueError, match="'pymupdf' is"):
        params.model_validate({"layout_detector": "docling"})
    taken = params.model_validate({"layout_detector": None, "use_vlm_correction": True, "vlm_model": "x"})
    assert taken == params()


def test_the_sample_report_is_the_same_every_time() -> None:
    assert sample_pages.report() == sample_pages.report()
