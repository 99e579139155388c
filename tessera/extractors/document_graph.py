"""PDF and Office files and HTML: their blocks, each with its place, its kind, how sure its words are, its meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from tessera import media
from tessera.content import DOCX, PPTX, XLSX
from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Input,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    text_vector,
    words_of,
)
from tessera.media import layout, markup, office
from tessera.media.pages import Page, pages
from tessera.media.parts import Part
from tessera.models import IndexType, PayloadIndex

if TYPE_CHECKING:
    from tessera.reading import Reader

Vector = npt.NDArray[np.float32]

#: Most blocks of one file.
MAX_BLOCKS = 50_000
#: From which score on a block has which tag; below the last one it is D.
_TAGS = (("A", 0.85), ("B", 0.70), ("C", 0.50))
#: Pictures on a page that also has text are read when they cover this part of it, at most so many.
_LARGE_PICTURE, _MOST_PICTURES = 0.05, 8
#: A heading or a row of a table may be shorter than `min_text_length`, but not shorter than this.
_SHORTEST = 2
_POINTS_PER_INCH = 72.0


class DocumentGraphParams(Params):
    """What of a page becomes a document, and how scanned pages are read."""

    use_layout_detection: bool = Field(
        True, description="Find tables, and read scanned pages and pictures; false takes written text alone."
    )
    layout_detector: Literal["pymupdf"] = Field(
        "pymupdf", description="Fast detection by rules and gaps; what really reads the file is PDFium."
    )
    vertical_threshold: float = Field(
        15, ge=1, le=100, description="Most points between two lines of a block."
    )
    min_text_length: int = Field(
        20, ge=1, le=500, description="Shorter blocks are left out, but for headings and rows of tables."
    )
    base_confidence: float = Field(
        0.85, ge=0, le=1, description="Score of text that is written in the file, before deductions."
    )
    run_text_embedding: bool = Field(True, description="Embed each block, to be found by meaning.")
    render_dpi: int = Field(150, ge=72, le=300, description="Resolution at which scanned pages are read.")
    generate_thumbnails: bool = Field(
        True, description="Make a JPEG of each page, at most 480 pixels a side."
    )
    model: str | None = Field(
        None, description="Text model; a vendor's name stands for the default. `tessera models` lists ours."
    )

    @field_validator("layout_detector", mode="before")
    @classmethod
    def _layout_detector(cls, value: object) -> object:
        if value == "docling":
            raise ValueError("'docling' is not available in this version; 'pymupdf' is")
        return "pymupdf" if value is None else value


@dataclass(frozen=True, slots=True)
class Found:
    """A block, the page on which it stands, its number there, and its place."""

    position: tuple[str | int, ...]
    page: int
    number: int
    kind: layout.Kind
    text: str
    cells: tuple[str, ...]
    score: float
    place: Locator


class DocumentGraphExtractor(Extractor):
    """Pages taken apart into blocks: a sentence or the row of a table is found with its page and its place on it."""

    name = "document_graph_extractor"
    description = (
        "Takes PDF and Office files and HTML apart into headings, paragraphs, lists and rows of tables, scanned "
        "pages too, and embeds each one."
    )
    icon = "file-text"
    category = "document"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "pdf": ("pdf",),
        "excel": ("excel",),
        "html": ("text",),
    }
    positions = ("page_number", "block_number")
    max_inputs: ClassVar[Mapping[str, int]] = {"pdf": 1, "excel": 1, "html": 1}
    cost_tier = 2
    Params = DocumentGraphParams
    vector_name = "document_graph_extractor_v1_text_embedding"

    def outputs(self, params: DocumentGraphParams) -> Outputs:
        """Return the vector unless it is not wanted, each block's text, its kind and its place."""
        vectors: tuple[VectorOutput, ...] = ()
        if params.run_text_embedding:
            model = self.models.choose("text", params.model)
            vectors = (text_vector(self.vector_name, model, "Meaning of the block"),)
        indexes = (
            PayloadIndex(
                field_name="page_number",
                type=IndexType.INTEGER,
                field_schema={"type": "integer", "lookup": True, "range": True},
                is_protected=True,
            ),
            PayloadIndex(
                field_name="object_type",
                type=IndexType.KEYWORD,
                field_schema={"type": "keyword", "is_tenant": False},
                is_protected=True,
            ),
        )
        return Outputs(vectors, _fields(params), indexes, sparse=(words_of("text"),))

    def extract(
        self, samples: Sequence[Sample], params: DocumentGraphParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the blocks of each file; all of a file go through the model together."""
        for sample in samples:
            try:
                yield self._features(sample, params)
            except BadSample as error:
                yield error
            except InferenceServiceUnavailableError as error:
                yield BadSample("model_missing", error.message)

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query text."""
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    # --- one source -----------------------------------------------------------------------------------

    def _features(self, sample: Sample, params: DocumentGraphParams) -> list[Feature]:
        found: list[Found] = []
        thumbnails: dict[int, bytes] = {}
        for one in self._found(sample, params, thumbnails):
            if len(one.text) >= _shortest(one.kind, params):
                found.append(one)
            if len(found) > MAX_BLOCKS:
                raise BadSample("limit", f"The file falls into more than {MAX_BLOCKS} blocks; split it.")
        if not found:
            raise BadSample("unreadable", "The file has no text that can be read.")
        vectors: Iterable[Vector | None] = (None for _ in found)
        if params.run_text_embedding:
            model = self.models.text(self.models.choose("text", params.model).model_id)
            vectors = model.embed([one.text for one in found])
        return [
            self._feature(one, vector, thumbnails.get(one.page) if one.position[0] == one.page else None)
            for one, vector in zip(found, vectors, strict=True)
        ]

    def _found(
        self, sample: Sample, params: DocumentGraphParams, thumbnails: dict[int, bytes]
    ) -> Iterator[Found]:
        """Yield the blocks of all inputs; thumbnails of the pages of a PDF go into `thumbnails` by page."""
        given = {name: source for name, source in sample.inputs.items() if name in self.inputs}
        pages_of, sheets, text = (given.get(name) for name in ("pdf", "excel", "html"))
        read = False
        if pages_of is not None and pages_of.path is not None:
            read = True
            if media.sniff(pages_of.path) in (DOCX, PPTX, XLSX):
                yield from _numbered("pdf", office.parts(pages_of.path), params)
            else:
                yield from self._pages(pages_of.path, params, thumbnails)
        if sheets is not None and sheets.path is not None:
            read = True
            yield from _numbered("excel", office.parts(sheets.path), params)
        data = None if text is None else _markup(text, is_needed=not read)
        if data is not None and (not read or markup.looks_like_html(data)):
            yield from _numbered("html", _page(data).parts, params)
        elif not read:
            raise BadSample(
                "missing_input",
                "The source has no file as input `pdf`, `excel` or `html`; map one in `input_mappings`.",
            )

    def _pages(
        self, path: Path, params: DocumentGraphParams, thumbnails: dict[int, bytes]
    ) -> Iterator[Found]:
        """Yield the blocks of a PDF."""
        for page in pages(path):
            size = (page.width, page.height)
            for number, (block, score) in enumerate(self._blocks(page, params)):
                if params.generate_thumbnails and page.number not in thumbnails:
                    thumbnails[page.number] = _thumbnail(page)
                place = Locator.on_page(page.number, block.box, size)
                yield Found(
                    (page.number, number),
                    page.number,
                    number,
                    block.kind,
                    block.text,
                    block.cells,
                    score,
                    place,
                )

    def _blocks(self, page: Page, params: DocumentGraphParams) -> Iterator[tuple[layout.Block, float]]:
        """Yield the blocks of a page, in order, with how sure their words are (0…1)."""
        if params.use_layout_detection and page.is_scanned:
            for block in self._read(page, None, params):
                yield block, block.confidence
            return
        written = layout.blocks(
            page.words,
            page.rules,
            with_tables=params.use_layout_detection,
            line_gap=params.vertical_threshold,
        )
        for block in written:
            yield block, params.base_confidence * block.confidence * (1 - page.unmapped)
        if params.use_layout_detection:
            for box in _large_pictures(page):
                for block in self._read(page, box, params):
                    yield block, block.confidence

    def _read(self, page: Page, box: layout.Box | None, params: DocumentGraphParams) -> list[layout.Block]:
        """Return the blocks that can be read on a page that is a picture, or in the picture in `box`."""
        image, scale = page.render(params.render_dpi, box)
        reader: Reader = self.models.reader()
        words = [
            layout.Word(
                line.text,
                (line.box[0] / scale, line.box[1] / scale, line.box[2] / scale, line.box[3] / scale),
                (line.box[3] - line.box[1]) / scale,
                confidence=line.confidence,
            )
            for line in reader.read(image)
        ]
        made = layout.blocks(words, were_read=True, line_gap=params.vertical_threshold)
        if box is None:
            return made
        texts = "\n".join(block.text for block in made)
        if not texts:
            return []
        whole = layout.Block("figure", texts, box, min(block.confidence for block in made))
        return [whole]

    def _feature(self, one: Found, vector: Vector | None, thumbnail: bytes | None) -> Feature:
        fields: dict[str, Any] = {
            "text": one.text,
            "object_type": one.kind,
            "page_number": one.page,
            "block_number": one.number,
            "confidence_score": round(one.score, 4),
            "confidence_tag": next((tag for tag, least in _TAGS if round(one.score, 4) >= least), "D"),
        }
        if one.place.bbox is not None:
            fields["bbox"] = list(one.place.bbox)
        if one.cells:
            fields["cells"] = list(one.cells)
        vectors = {} if vector is None else {self.vector_name: vector}
        files = {} if thumbnail is None else {"thumbnail_url": (thumbnail, "image/jpeg")}
        return Feature(one.position, fields, vectors, files, one.place)


def _fields(params: DocumentGraphParams) -> dict[str, FieldOutput]:
    fields = {
        "text": FieldOutput(
            "text", "The words of the block; of a table's row, with the names of its columns."
        ),
        "object_type": FieldOutput("string", "heading, paragraph, list, table_row, figure or code."),
        "page_number": FieldOutput(
            "integer", "Page, slide or sheet of the file, from 0; 0 in a text without pages."
        ),
        "block_number": FieldOutput("integer", "Number of the block on its page, from 0."),
        "bbox": FieldOutput(
            "array", "Where there is one: left, top, right, bottom in points from the upper left corner."
        ),
        "confidence_score": FieldOutput("number", "How sure the words are, 0 to 1."),
        "confidence_tag": FieldOutput("string", "A from 0.85, B from 0.7, C from 0.5, else D."),
    }
    if params.use_layout_detection:
        fields["cells"] = FieldOutput("array", "The cells of a table's row.")
    if params.generate_thumbnails:
        fields["thumbnail_url"] = FieldOutput("string", "A JPEG of the page.")
    return fields


def _shortest(kind: layout.Kind, params: DocumentGraphParams) -> int:
    if kind in {"heading", "table_row"}:
        return min(_SHORTEST, params.min_text_length)
    return params.min_text_length


def _numbered(name: str, found: Iterable[Part], params: DocumentGraphParams) -> Iterator[Found]:
    """Yield the parts of an Office file or of HTML as blocks, each with its number on its page."""
    numbers: Counter[int] = Counter()
    for part in found:
        number = numbers[part.page]
        numbers[part.page] += 1
        yield Found(
            (name, part.page, number),
            part.page,
            number,
            part.kind,
            part.text,
            part.cells,
            params.base_confidence,
            part.place,
        )


def _markup(source: Input, *, is_needed: bool) -> bytes | None:
    """Return the bytes of an input that may be HTML, None where there is nothing, or too much that nobody needs."""
    if source.path is None:
        return source.text.encode("utf-8", "replace") if source.text is not None else None
    if source.path.stat().st_size > markup.MAX_HTML_BYTES:
        if not is_needed:
            return None
        raise BadSample("too_large", f"The page is larger than {markup.MAX_HTML_BYTES >> 20} MiB.")
    return source.path.read_bytes()


def _page(data: bytes) -> markup.Markup:
    if not markup.looks_like_html(data):
        raise BadSample(
            "unsupported",
            "The text is no HTML: nothing like <p> or <html> begins it. text_extractor takes plain texts.",
        )
    return markup.read(data)


def _large_pictures(page: Page) -> list[layout.Box]:
    """Return the largest pictures of a page that may have words in them."""
    whole = page.width * page.height
    areas = {box: (box[2] - box[0]) * (box[3] - box[1]) for box in map(page.visible, page.pictures)}
    large = [box for box, area in areas.items() if area >= _LARGE_PICTURE * whole]
    return sorted(large, key=lambda box: -areas[box])[:_MOST_PICTURES]


def _thumbnail(page: Page) -> bytes:
    dpi = _POINTS_PER_INCH * media.THUMBNAIL_SIDE / max(page.width, page.height)
    return media.thumbnail(page.render(dpi)[0])
