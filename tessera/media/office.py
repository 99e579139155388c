"""Office files to parts: paragraphs of DOCX, shapes of slides with their boxes, rows of sheets and of CSV.

Read by python-docx, python-pptx and openpyxl, in a worker. An archive is looked at before a library opens it: how much
it unpacks to, and that no part of it declares entities. Links and pictures that are elsewhere are names here; nobody
follows them.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tessera import alarms
from tessera.content import DOCX, PPTX, XLSX, encoding_of
from tessera.errors import BadSample
from tessera.locators import Box, Locator
from tessera.media import sniff
from tessera.media.layout import Kind
from tessera.media.parts import MAX_COLUMNS, Part, cut, rows, shared

#: What an archive may unpack to, all of it, and the parts that are read as a tree of XML.
MAX_UNPACKED_BYTES = 512 * 2**20
MAX_TREE_BYTES = 64 * 2**20
MAX_FILES = 10_000
#: Longest time to open a file, or to read a slide or a thousand rows of it.
STEP_S = 120.0
#: Largest CSV file.
MAX_CSV_BYTES = 64 * 2**20
MAX_ROWS = 50_000
#: Rows that are looked at together.
_ROWS_AT_ONCE = 1_000
#: Groups of shapes in groups, and tables in cells, are followed so deep.
_DEEPEST = 8
_EMU_PER_POINT = 12_700
_DECLARATIONS = tuple(
    word.encode(encoding)
    for word in ("<!DOCTYPE", "<!ENTITY")
    for encoding in ("utf-8", "utf-16-le", "utf-16-be")
)
_PIECE_BYTES = 2**20


def parts(path: Path) -> Iterator[Part]:
    """Yield the parts of a DOCX, PPTX, XLSX or CSV file in its order.

    Raises `BadSample`: ``unsupported`` for another file, ``unreadable`` for a damaged one, ``too_large``.
    """
    mime_type = sniff(path)
    readers = {DOCX: _document, PPTX: _slides, XLSX: _sheets}
    if mime_type in readers:
        with _reading(), path.open("rb") as file:
            _check_archive(file, as_trees=mime_type != XLSX)
        yield from readers[mime_type](path)
    elif mime_type == "application/vnd.ms-excel":
        raise BadSample(
            "unsupported",
            "The file is of an older Office format, or protected by a password; save it as DOCX, PPTX or XLSX "
            "without one.",
        )
    elif mime_type is None:
        yield from _lines(path)
    else:
        raise BadSample("unsupported", f"The file is no Office file that can be read ({mime_type}).")


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever a library stumbles over into one error."""
    try:
        with alarms.within(STEP_S):
            yield
    except BadSample:
        raise
    except ImportError as error:
        raise BadSample(
            "model_missing",
            "Office files cannot be read here: install what reads them with `pip install 'tessera[media]'`.",
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise BadSample("unreadable", "The Office file is damaged: a part of it cannot be read.") from error


def _check_archive(file: IO[bytes], *, as_trees: bool) -> None:
    """Refuse an archive that unpacks to too much, or in which XML declares anything (ECMA-376 forbids it).

    What an archive says of its sizes is held to: `zipfile` gives no more bytes of a file than its list says.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        trees = sum(entry.file_size for entry in entries if _is_xml(entry.filename))
        if len(entries) > MAX_FILES or size > MAX_UNPACKED_BYTES or (as_trees and trees > MAX_TREE_BYTES):
            raise BadSample(
                "too_large",
                f"The Office file unpacks to {size >> 20} MiB in {len(entries)} files, {trees >> 20} MiB of it XML; "
                f"at most {MAX_UNPACKED_BYTES >> 20} MiB in {MAX_FILES} files are read, of texts and slides "
                f"{MAX_TREE_BYTES >> 20} MiB of XML.",
            )
        for entry in entries:
            if _is_xml(entry.filename):
                with archive.open(entry) as part:
                    _refuse_declarations(part)


def _is_xml(name: str) -> bool:
    return name.lower().endswith((".xml", ".rels", ".vml"))


def _refuse_declarations(part: IO[bytes]) -> None:
    before = b""
    while piece := part.read(_PIECE_BYTES):
        seen = before + piece
        if any(word in seen for word in _DECLARATIONS):
            raise BadSample(
                "unreadable", "The Office file declares XML entities, which such a file never does."
            )
        before = piece[-32:]


# --- texts ---------------------------------------------------------------------------------------------


def _document(path: Path) -> Iterator[Part]:
    with _reading(), path.open("rb") as file:
        import docx

        document: Any = docx.Document(file)
        names = {style.style_id: (style.name or "") for style in document.styles}
        blocks = list(_blocks(document.element.body))
    numbers = itertools.count()
    for kind, group in itertools.groupby(blocks, lambda block: _kind(block, names)):
        with _reading():
            made = list(_parts_of(kind, list(group), numbers))
        for part in made:
            yield from cut(part)


def _blocks(body: Any) -> Iterator[Any]:
    """Yield paragraphs and tables in order, those in content controls too."""
    for element in body:
        name = _local(element)
        if name in {"p", "tbl"}:
            yield element
        elif name in {"sdt", "sdtContent"}:
            yield from _blocks(element)


def _kind(block: Any, names: dict[str, str]) -> Kind:
    """Return what a paragraph or a table is, by its style and its numbering."""
    if _local(block) == "tbl":
        return "table_row"
    styles = block.xpath("./w:pPr/w:pStyle/@w:val")
    name = names.get(styles[0], styles[0]).lower() if styles else ""
    if name.startswith(("heading", "title", "subtitle")):
        return "heading"
    numbered = block.xpath("./w:pPr/w:numPr")
    return "list" if numbered or name.startswith("list") else "paragraph"


def _parts_of(kind: Kind, group: Sequence[Any], numbers: Iterator[int]) -> Iterator[Part]:
    """Yield the parts of blocks of one kind that follow each other; items of a list are one part."""
    if kind == "table_row":
        for block in group:
            table = [[_cell(cell) for cell in _cells(row)] for row in block.xpath("./w:tr")]
            marked = bool(block.xpath("./w:tr[1]/w:trPr/w:tblHeader"))
            yield from rows(table, lambda _: Locator.in_flow(next(numbers)), has_names=marked)
        return
    texts = [text for block in group if (text := shared(_text(block)))]
    if kind == "list" and texts:
        texts = ["\n".join(texts)]
    for text in texts:
        yield Part(kind, text, Locator.in_flow(next(numbers)))


def _cells(row: Any) -> list[Any]:
    """Return the cells of a row; one that goes over several columns is followed by None for each further one."""
    found: list[Any] = []
    for cell in row.xpath("./w:tc | ./w:sdt/w:sdtContent/w:tc"):
        spans = cell.xpath("./w:tcPr/w:gridSpan/@w:val")
        further = min(int(spans[0]) - 1, MAX_COLUMNS) if spans and spans[0].isdecimal() else 0
        found += [cell, *[None] * further]
    return found[:MAX_COLUMNS]


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    return " ".join(shared(" ".join(_text(block) for block in cell.xpath(".//w:p"))).split())


def _text(paragraph: Any) -> str:
    """Return the words of a paragraph as they stand now: without what was deleted, and without its text boxes."""
    found = []
    for piece in paragraph.xpath(".//w:t | .//w:tab | .//w:br | .//w:cr"):
        above = itertools.takewhile(lambda parent: parent is not paragraph, piece.iterancestors())
        inside = set(map(_local, above))
        if inside & {"del", "moveFrom", "txbxContent", "p"}:
            continue
        found.append({"t": piece.text or "", "tab": " "}.get(_local(piece), "\n"))
    return "".join(found)


def _local(element: Any) -> str:
    name = element.tag
    return name.rpartition("}")[2] if isinstance(name, str) else ""


# --- slides --------------------------------------------------------------------------------------------


def _slides(path: Path) -> Iterator[Part]:
    with _reading(), path.open("rb") as file:
        import pptx

        shown: Any = pptx.Presentation(file)
        size = (shown.slide_width / _EMU_PER_POINT, shown.slide_height / _EMU_PER_POINT)
        slides = list(shown.slides)
    for number, slide in enumerate(slides):
        with _reading():
            title = slide.shapes.title
            made = list(
                _shapes(slide.shapes, None if title is None else title.shape_id, number, size, None, 0)
            )
            made.sort(key=lambda part: (part.kind != "heading", _corner(part)))
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                notes = shared(slide.notes_slide.notes_text_frame.text)
                made += [Part("paragraph", notes, Locator.on_page(number), number)] if notes else []
        for part in made:
            yield from cut(part)


def _corner(part: Part) -> tuple[float, float]:
    box = part.place.bbox
    return (round(box[1]), box[0]) if box else (0.0, 0.0)


def _shapes(
    shapes: Any, title: int | None, number: int, size: tuple[float, float], group: Box | None, depth: int
) -> Iterator[Part]:
    """Yield what is written in shapes; those of a group have the group's box, as theirs are in its own measure."""
    for shape in shapes:
        box = group or _box(shape)
        place = Locator.on_page(number, box, size) if box else Locator.on_page(number)
        if hasattr(shape, "shapes"):
            if depth < _DEEPEST:
                yield from _shapes(shape.shapes, title, number, size, box, depth + 1)
        elif getattr(shape, "has_table", False):
            table = [
                [" ".join(shared(cell.text).split()) for cell in itertools.islice(row.cells, MAX_COLUMNS)]
                for row in shape.table.rows
            ]
            yield from rows(table, _always(place), number, has_names=bool(shape.table.first_row))
        elif shape.has_text_frame:
            lines = [line for paragraph in shape.text_frame.paragraphs if (line := shared(paragraph.text))]
            if not lines:
                continue
            if shape.shape_id == title:
                yield Part("heading", " ".join(lines), place, number)
            else:
                yield Part("list" if len(lines) > 1 else "paragraph", "\n".join(lines), place, number)


def _always(place: Locator) -> Any:
    return lambda _: place


def _box(shape: Any) -> Box | None:
    sides = (shape.left, shape.top, shape.width, shape.height)
    if any(side is None for side in sides):
        return None
    left, top, width, height = (side / _EMU_PER_POINT for side in sides)
    return left, top, left + width, top + height


# --- sheets --------------------------------------------------------------------------------------------


def _sheets(path: Path) -> Iterator[Part]:
    with path.open("rb") as file:
        with _reading():
            import openpyxl

            workbook: Any = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        for number, sheet in enumerate(workbook.worksheets):
            with _reading():
                # What a sheet says of its size is as good as the program that wrote it.
                sheet.reset_dimensions()
                lines = sheet.iter_rows(values_only=True)
            for table in _tables(_stepwise(lines)):
                yield from _rows_of_sheet(table, number, str(sheet.title))


def _rows_of_sheet(table: Sequence[tuple[int, list[str]]], number: int, title: str) -> Iterator[Part]:
    from openpyxl.utils import get_column_letter

    first = min(next(at for at, cell in enumerate(cells) if cell) for _, cells in table)

    def place(index: int) -> Locator:
        row, cells = table[index]
        used = [at for at, cell in enumerate(cells) if cell] or [first]
        span = f"{get_column_letter(used[0] + 1)}{row + 1}:{get_column_letter(used[-1] + 1)}{row + 1}"
        return Locator.in_sheet(number, row, title, span)

    yield from rows([cells[first:] for _, cells in table], place, number)


def _stepwise(lines: Iterable[Sequence[Any]]) -> Iterator[list[str]]:
    """Yield rows as texts, a bounded number of them in one look at the file."""
    source = iter(lines)
    while True:
        with _reading():
            step = [
                [_written(value) for value in line[:MAX_COLUMNS]]
                for line in itertools.islice(source, _ROWS_AT_ONCE)
            ]
        if not step:
            return
        yield from step


def _tables(lines: Iterable[list[str]]) -> Iterator[list[tuple[int, list[str]]]]:
    """Yield the tables of a sheet: rows that follow each other without an empty one, each with its number."""
    table: list[tuple[int, list[str]]] = []
    for number, cells in enumerate(lines):
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            table.append((number, cells))
            if len(table) > MAX_ROWS:
                raise BadSample("limit", f"A table has more than {MAX_ROWS} rows; split it.")
        elif table:
            yield table
            table = []
    if table:
        yield table


def _written(value: Any) -> str:
    """Return a cell's value as people write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, datetime.datetime):
        at_midnight = value.time() == datetime.time()
        return value.date().isoformat() if at_midnight else value.isoformat(" ", "seconds")
    return " ".join(str(value).split())


# --- CSV -----------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[Part]:
    size = path.stat().st_size
    if size > MAX_CSV_BYTES:
        raise BadSample(
            "too_large", f"The table has {size >> 20} MiB; at most {MAX_CSV_BYTES >> 20} are read."
        )
    data = path.read_bytes()
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError:
        raise BadSample("unreadable", "The file is neither an Office file nor CSV in UTF-8.") from None
    if not text.strip() or "\x00" in text:
        raise BadSample("unreadable", "The file is empty, or no text.")
    head = text[:20_000].partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    try:
        lines = [
            [" ".join(cell.split()) for cell in line[:MAX_COLUMNS]]
            for line in csv.reader(io.StringIO(text), delimiter=delimiter)
        ]
    except csv.Error as error:
        raise BadSample("unreadable", f"The CSV file cannot be read: {error}.") from error
    for table in _tables(iter(lines)):
        places = [Locator.in_sheet(0, number) for number, _ in table]
        yield from rows([cells for _, cells in table], places.__getitem__)
