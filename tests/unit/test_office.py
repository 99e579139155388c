"""Office files: what they fall into, where each part lies, and what a hostile one costs."""

from __future__ import annotations

import io
import socket
import zipfile
from pathlib import Path

import pytest

from tessera import content
from tessera.errors import BadSample
from tessera.extractors.base import Feature, Input, Sample
from tessera.locators import fragment
from tessera.media import office
from tessera.media.parts import Part
from tessera.registry import Registry
from tests.office import CSV, HTML, changed, docx_file, pptx_file, saved, xlsx_file

pytest.importorskip("docx")


def parts_of(data: bytes, folder: Path) -> list[Part]:
    path = folder / "file"
    path.write_bytes(data)
    return list(office.parts(path))


def shape(found: list[Part]) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in found]


ROWS = [
    ("table_row", "Part: Fresnel prism; Price: 412.00"),
    ("table_row", "Part: Brass frame; Price: 97.50"),
]


def test_a_text_falls_into_headings_paragraphs_lists_and_rows(tmp_path: Path) -> None:
    found = parts_of(docx_file(), tmp_path)
    assert shape(found) == [
        ("heading", "The lamp of the lighthouse"),
        ("paragraph", "The lamp was lit for the first time on 3 May 1871, and burned whale oil."),
        ("list", "First keeper: Ann Moss, for nine years\nSecond keeper: Tom Reed"),
        *ROWS,
        ("paragraph", "After the table nothing of interest follows, only this."),
    ]
    assert [part.place.to_json() for part in found] == [
        {"kind": "block", "block": number} for number in range(6)
    ]
    assert found[3].cells == ("Fresnel prism", "412.00")
    assert fragment(found[3].place) == "block=3"


def test_a_text_is_read_as_it_stands_now(tmp_path: Path) -> None:
    """With what was inserted and is in content controls, without what was deleted; text boxes not twice."""
    words = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = (
        f'<w:document xmlns:w="{words}"><w:body><w:sdt><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p>'
        "</w:sdtContent></w:sdt><w:p><w:r><w:t>Kept </w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
        '<w:r><w:tab/><w:t>end</w:t></w:r></w:p><w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="99999999"/></w:tcPr>'
        "<w:p><w:r><w:t>wide</w:t></w:r></w:p></w:tc></w:tr></w:tbl></w:body></w:document>"
    )
    found = parts_of(changed(docx_file(), {"word/document.xml": body.encode()}), tmp_path)
    assert [part.text for part in found] == ["In a control.", "Kept new end", "wide"]
    assert len(found[2].cells) <= 1000


def test_shapes_of_a_slide_have_their_boxes_and_its_number(tmp_path: Path) -> None:
    found = parts_of(pptx_file(), tmp_path)
    assert shape(found) == [
        ("heading", "The lamp of the lighthouse"),
        ("list", "Lit in 1871 for the first time\nBurned whale oil for years"),
        ROWS[0],
        ("paragraph", "Say that prisms are ground by hand."),
    ]
    assert [part.page for part in found] == [0, 0, 1, 1]
    place = found[2].place.to_json()
    assert (place["kind"], place["page"], place["width"], place["height"]) == ("page", 1, 720.0, 540.0)
    assert place["bbox"][:3] == [72.0, 144.0, 432.0]
    assert "bbox" not in found[3].place.to_json(), "notes stand on no slide"


def test_rows_of_sheets_and_where_their_cells_are(tmp_path: Path) -> None:
    found = parts_of(xlsx_file(), tmp_path)
    assert shape(found) == [
        ("table_row", "Part: Fresnel prism; Price: 412; Ordered: 1871-05-03"),
        ("table_row", "Part: Wick; Price: 0.25"),
        ("table_row", "Keeper: Ann Moss; Years: 9"),
        ("table_row", "The prism is ground by hand."),
    ]
    assert [fragment(part.place) for part in found] == [
        "'Spare%20parts'!A2:C2",
        "'Spare%20parts'!A3:B3",
        "'Spare%20parts'!C8:D8",
        "Notes!A1:A1",
    ]
    assert found[2].place.to_json() == {
        "kind": "cells",
        "page": 0,
        "row": 7,
        "sheet": "Spare parts",
        "cells": "C8:D8",
    }
    assert found[3].page == 1


def test_rows_of_csv(tmp_path: Path) -> None:
    found = parts_of(CSV, tmp_path)
    assert shape(found) == [ROWS[0], ("table_row", "Part: Wick; waxed; Price: 0.25")]
    assert found[1].cells == ("Wick; waxed", "0.25")
    assert [fragment(part.place) for part in found] == ["row=2", "row=3"]


@pytest.mark.parametrize(("make", "mime_type"), [(docx_file, content.DOCX), (pptx_file, content.PPTX)])
def test_they_are_told_by_their_bytes_and_fit_a_property_for_pages(
    make: object, mime_type: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(make())  # type: ignore[operator]
    assert content.identify(tmp_path / "file", "pdf", None) == mime_type


# --- what means harm ----------------------------------------------------------------------------------


def bomb(levels: int = 12) -> str:
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(levels))
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><x>&e{levels};</x>'


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (docx_file, "word/document.xml"),
        (docx_file, "word/styles.xml"),
        (pptx_file, "ppt/slides/slide1.xml"),
        (xlsx_file, "xl/worksheets/sheet1.xml"),
        (xlsx_file, "xl/workbook.xml"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_wherever_they_are_declared(
    data: object, part: str, encoding: str, tmp_path: Path
) -> None:
    hostile = changed(data(), {part: bomb().encode(encoding)})  # type: ignore[operator]
    with pytest.raises(BadSample, match="entities") as caught:
        parts_of(hostile, tmp_path)
    assert caught.value.kind == "unreadable"


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    zeros = b"<w>" + b" " * (office.MAX_TREE_BYTES + 1) + b"</w>"
    for data in (docx_file(), pptx_file()):
        hostile = changed(data, {"docProps/app.xml": zeros})
        assert len(hostile) < 2**20
        with pytest.raises(BadSample, match="unpacks to") as caught:
            parts_of(hostile, tmp_path)
        assert caught.value.kind == "too_large"
    many = changed(xlsx_file(), {f"xl/media/{number}": b"" for number in range(office.MAX_FILES)})
    with pytest.raises(BadSample, match="unpacks to"):
        parts_of(many, tmp_path)


def test_an_archive_that_lies_about_its_sizes_gives_no_more_than_it_says(tmp_path: Path) -> None:
    real = b"<x>" + b" " * 2**22 + b"</x>"
    data = bytearray(changed(docx_file(), {"word/zeros.xml": real}))
    stated = len(real).to_bytes(4, "little")
    assert data.count(stated) >= 2
    lying = bytes(data).replace(stated, (100).to_bytes(4, "little"))
    with pytest.raises(BadSample, match="damaged"):
        parts_of(lying, tmp_path)


def test_what_lies_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    """A listener counts: pictures, templates, linked workbooks and links by URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        office_types = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        kinds = (
            "image",
            "attachedTemplate",
            "hyperlink",
            "oleObject",
            "externalLink",
            "externalLinkPath",
            "video",
        )
        relations = "".join(
            f'<Relationship Id="rX{n}" Type="{office_types}/{kind}" Target="{url}" TargetMode="External"/>'
            for n, kind in enumerate(kinds)
        )
        for data, part in (
            (docx_file(), "word/_rels/document.xml.rels"),
            (pptx_file(), "ppt/slides/_rels/slide1.xml.rels"),
            (xlsx_file(), "xl/_rels/workbook.xml.rels"),
        ):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                old = archive.read(part).decode()
            new = old.replace("</Relationships>", relations + "</Relationships>")
            assert new != old
            assert parts_of(changed(data, {part: new.encode()}), tmp_path)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_other_files_are_named(tmp_path: Path) -> None:
    old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000)
    for data, kind, words in (
        (old, "unsupported", "older Office format"),
        (b"%PDF-1.7\n", "unsupported", "application/pdf"),
        (docx_file()[:2000], "unsupported", "application/zip"),
        (b"", "unreadable", "empty"),
        (b"\xff\x00\x80", "unreadable", "neither"),
        (changed(docx_file(), {"[Content_Types].xml": b"<x/>"}), "unreadable", "damaged"),
    ):
        with pytest.raises(BadSample, match=words) as caught:
            parts_of(data, tmp_path)
        assert caught.value.kind == kind


def test_a_long_text_is_cut_and_an_endless_table_refused(tmp_path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_paragraph("lamp " * 9_000)
    found = parts_of(saved(document), tmp_path)
    assert [part.kind for part in found] == ["paragraph"] * 3
    assert " ".join(part.text for part in found).split() == ["lamp"] * 9_000
    with pytest.raises(BadSample, match="rows") as caught:
        parts_of(b"a,b\n" * 60_000, tmp_path)
    assert caught.value.kind == "limit"


# --- the extractor ------------------------------------------------------------------------------------


def extracted(sample: dict[str, Input], folder: Path) -> list[Feature]:
    extractor = Registry.load(folder, offline=True).extractor("document_graph_extractor", "v1")
    (outcome,) = extractor.extract([Sample(sample)], extractor.Params())
    if isinstance(outcome, BadSample):
        raise outcome
    return list(outcome)


def test_each_file_becomes_documents_with_text_cells_and_place(tmp_path: Path) -> None:
    for name, input_name, data in (
        ("a.docx", "pdf", docx_file()),
        ("a.pptx", "pdf", pptx_file()),
        ("a.xlsx", "excel", xlsx_file()),
        ("a.csv", "excel", CSV),
        ("a.html", "html", HTML.encode()),
    ):
        (tmp_path / name).write_bytes(data)
        made = extracted({input_name: Input(path=tmp_path / name)}, tmp_path)
        (row,) = [one for one in made if "Fresnel prism" in one.fields["text"]]
        assert row.fields["cells"][0] == "Fresnel prism"
        assert row.fields["object_type"] == "table_row"
        assert (row.fields["confidence_tag"], row.fields["confidence_score"]) == ("A", 0.85)
        assert row.vectors and row.locator is not None
        assert len({one.position for one in made}) == len(made)


def test_texts_beside_a_file_are_left_alone_unless_they_are_html(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(docx_file())
    file = Input(path=tmp_path / "a.docx")
    alone = extracted({"pdf": file}, tmp_path)
    assert len(extracted({"pdf": file, "html": Input(text="A caption.")}, tmp_path)) == len(alone)
    assert len(extracted({"pdf": file, "html": Input(text=HTML)}, tmp_path)) > len(alone)
    with (tmp_path / "large.txt").open("wb") as large:
        large.truncate(17 * 2**20)
    large_text = Input(path=tmp_path / "large.txt")
    assert len(extracted({"pdf": file, "html": large_text}, tmp_path)) == len(alone)
    with pytest.raises(BadSample, match="larger than"):
        extracted({"html": large_text}, tmp_path)
    with pytest.raises(BadSample, match="text_extractor") as caught:
        extracted({"html": Input(text="A caption.")}, tmp_path)
    assert caught.value.kind == "unsupported"
