"""From words on a page to its blocks: headings, paragraphs, lists and rows of tables. Pure geometry.

Nothing here knows where words came from: a PDF's text or a reader of scanned pictures. Boxes are
``(left, top, right, bottom)`` in points from the upper left corner of the page as displayed.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Box = tuple[float, float, float, float]
Kind = Literal["heading", "paragraph", "list", "table_row", "figure", "code"]

#: Letters of one block differ in size by no more than this factor; boxes of words that were read from a picture
#: differ by which letters are in them.
_SAME_SIZE, _SAME_SIZE_READ = 1.12, 1.6
#: Letters of a heading are larger than those of the page by this factor.
_LARGER = 1.15
#: A gap of so many letter heights between two words on a line is one between columns or cells.
_COLUMN_GAP = 1.0
#: The lines of a block lie at most so many letter heights apart.
_LINE_GAP = 0.7
#: Most words of a cell in a table that has no rules, on average: newspapers have columns too.
_CELL_WORDS = 4.5
#: Ends of rules that are so near to each other (points) meet.
_SNAP = 3.0
_BULLET = re.compile(r"\s*(?:[•‣◦▪·*–-]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+\S")
_NUMERIC = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or several that stand together. `size` is the height of its line, `confidence` 0…1."""

    text: str
    box: Box
    size: float
    is_bold: bool = False
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Rule:
    """A thin straight line, horizontal or vertical."""

    box: Box

    @property
    def is_horizontal(self) -> bool:
        """Whether it lies rather than stands."""
        left, top, right, bottom = self.box
        return right - left >= bottom - top


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a page. `cells` are those of a table's row, `header` the names of its columns where there are."""

    kind: Kind
    text: str
    box: Box
    confidence: float
    cells: tuple[str, ...] = ()
    header: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Segment:
    """Words on one line with no column's gap between them."""

    words: tuple[Word, ...]
    text: str
    box: Box
    size: float
    is_bold: bool


def _segment(words: Sequence[Word]) -> _Segment:
    return _Segment(
        tuple(words),
        " ".join(word.text for word in words),
        around([word.box for word in words]),
        max(1.0, statistics.median(word.size for word in words)),
        all(word.is_bold for word in words),
    )


_Row = list[_Segment]


def blocks(
    words: Sequence[Word],
    rules: Sequence[Rule] = (),
    *,
    were_read: bool = False,
    with_tables: bool = True,
    line_gap: float = 15.0,
) -> list[Block]:
    """Return the blocks of a page from top to bottom, columns from left to right.

    `were_read` says that the words come from a picture, so that their heights are rough. Tables are found by their
    rules, else by columns of short texts that stand below each other. `line_gap` is the most, in points, that two
    lines of a block lie apart.
    """
    found: list[tuple[Box, Block]] = []
    left = list(words)
    for grid in _grids(rules) if with_tables else ():
        made, left = _ruled_table(left, grid)
        found += [(grid.box, block) for block in made]
    lines = _rows(left)
    tables, lines = _plain_tables(lines) if with_tables else ([], lines)
    for table in tables:
        made = _table_blocks([[s.text for s in row] for row in table], [_boxes(row) for row in table], table)
        found += [(around([block.box for block in made]), block) for block in made]
    body = _body_size(words)
    for segments in _columns([segment for line in lines for segment in line], were_read, line_gap):
        block = _prose(segments, body, were_read)
        found.append((block.box, block))
    # The rows of a table stay together, whatever stands beside it.
    found.sort(key=lambda item: (round(item[0][1]), item[0][0], item[1].box[1]))
    return [block for _, block in found]


def around(boxes: Iterable[Box]) -> Box:
    """Return the box that holds all of `boxes`."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


# --- lines ---------------------------------------------------------------------------------------------


def _rows(words: Sequence[Word]) -> list[_Row]:
    """Return the lines of the page, each cut where a column ends."""
    lines: list[list[Word]] = []
    bands: list[tuple[float, float]] = []
    for word in sorted(words, key=lambda word: (word.box[1] + word.box[3], word.box[0])):
        top, bottom = word.box[1], word.box[3]
        # The last few lines: what is sorted by its middle belongs to one of those.
        for number in range(len(lines) - 1, max(-1, len(lines) - 4), -1):
            if _shared((top, bottom), bands[number]) > 0.6:
                lines[number].append(word)
                bands[number] = (min(top, bands[number][0]), max(bottom, bands[number][1]))
                break
        else:
            lines.append([word])
            bands.append((top, bottom))
    return [_segments(line) for line in lines]


def _segments(line: list[Word]) -> _Row:
    ordered = sorted(line, key=lambda word: word.box[0])
    segments: list[list[Word]] = [[ordered[0]]]
    for before, word in itertools.pairwise(ordered):
        if word.box[0] - before.box[2] > _COLUMN_GAP * min(before.size, word.size):
            segments.append([word])
        else:
            segments[-1].append(word)
    return [_segment(words) for words in segments]


def _shared(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return how much of the shorter of two ranges lies in the other, 0…1."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, both) / max(1e-6, min(one[1] - one[0], other[1] - other[0]))


def _boxes(row: _Row) -> list[Box]:
    return [segment.box for segment in row]


# --- tables with rules ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the rules of one table stand (`across`, from left to right) and lie (`down`)."""

    across: tuple[float, ...]
    down: tuple[float, ...]

    @property
    def box(self) -> Box:
        return self.across[0], self.down[0], self.across[-1], self.down[-1]


def _grids(rules: Sequence[Rule]) -> list[_Grid]:
    """Return the tables that rules make: those that meet, with at least two columns and two rows."""
    groups: list[list[Rule]] = []
    for rule in rules:
        meeting = [group for group in groups if any(_meet(rule.box, other.box) for other in group)]
        merged = [rule, *(other for group in meeting for other in group)]
        groups = [group for group in groups if group not in meeting] + [merged]
    grids = []
    for group in groups:
        across = _places(rule.box[0] for rule in group if not rule.is_horizontal)
        down = _places(rule.box[1] for rule in group if rule.is_horizontal)
        if len(across) >= 3 and len(down) >= 3:
            grids.append(_Grid(across, down))
    return grids


def _meet(one: Box, other: Box) -> bool:
    return (
        one[0] <= other[2] + _SNAP
        and other[0] <= one[2] + _SNAP
        and one[1] <= other[3] + _SNAP
        and other[1] <= one[3] + _SNAP
    )


def _places(values: Iterable[float]) -> tuple[float, ...]:
    """Return where rules are, those that are nearly at one place taken for one."""
    places: list[float] = []
    for value in sorted(values):
        if not places or value - places[-1] > _SNAP:
            places.append(value)
    return tuple(places)


def _ruled_table(words: Sequence[Word], grid: _Grid) -> tuple[list[Block], list[Word]]:
    """Return the rows of the table with what stands in its cells, and the words outside."""
    cells: dict[tuple[int, int], list[Word]] = {}
    outside: list[Word] = []
    for word in words:
        row, column = (
            _index(grid.down, word.box[1], word.box[3]),
            _index(grid.across, word.box[0], word.box[2]),
        )
        if row is None or column is None:
            outside.append(word)
        else:
            cells.setdefault((row, column), []).append(word)
    texts, boxes, lines = [], [], []
    for row in range(len(grid.down) - 1):
        inside = [cells.get((row, column), []) for column in range(len(grid.across) - 1)]
        if any(inside):
            texts.append([" ".join(s.text for line in _rows(cell) for s in line) for cell in inside])
            boxes.append([(grid.across[0], grid.down[row], grid.across[-1], grid.down[row + 1])])
            lines.append([_segment(cell) for cell in inside if cell])
    return _table_blocks(texts, boxes, lines), outside


def _index(places: Sequence[float], low: float, high: float) -> int | None:
    """Return between which two of `places` the middle lies, None outside."""
    middle = (low + high) / 2
    return next(
        (number for number in range(len(places) - 1) if places[number] <= middle <= places[number + 1]), None
    )


# --- tables without rules ------------------------------------------------------------------------------


def _plain_tables(rows: Sequence[_Row]) -> tuple[list[list[_Row]], list[_Row]]:
    """Return runs of lines whose texts stand in columns, and the other lines."""
    tables: list[list[_Row]] = []
    others: list[_Row] = []
    run: list[_Row] = []
    for row in [*rows, []]:
        if run and (len(row) < 2 or not _continues(run, row)):
            if _is_table(run):
                tables.append(run)
            else:
                others += run
            run = []
        if len(row) >= 2:
            run.append(row)
        elif row:
            others.append(row)
    return tables, others


def _continues(run: Sequence[_Row], row: _Row) -> bool:
    """Say whether `row` is a further one of the table `run`: near, and each text in one of its columns."""
    size = max(segment.size for segment in run[-1])
    gap = min(box[1] for box in _boxes(row)) - max(box[3] for box in _boxes(run[-1]))
    if gap > 1.5 * size:
        return False
    widest = max(run, key=len)
    return all(
        any(_shared((box[0], box[2]), (column[0], column[2])) > 0.3 for column in _boxes(widest))
        for box in _boxes(row)
    ) or len(row) > len(widest)


def _is_table(run: Sequence[_Row]) -> bool:
    texts = [segment.text for row in run for segment in row]
    return len(run) >= 2 and statistics.fmean(len(text.split()) for text in texts) <= _CELL_WORDS


def _table_blocks(
    texts: Sequence[Sequence[str]], boxes: Sequence[Sequence[Box]], rows: Sequence[_Row]
) -> list[Block]:
    """Return a block for each row; a first row that names the columns is in every other one, not by itself."""
    is_bold = all(s.is_bold for s in rows[0]) and not all(s.is_bold for row in rows[1:] for s in row)
    header = names_of_columns(texts, stands_out=is_bold)
    made = []
    for cells, places, row in list(zip(texts, boxes, rows, strict=True))[1 if header else 0 :]:
        text = row_text(header, cells)
        made.append(Block("table_row", text, around(places), _sureness(row), tuple(cells), header))
    return made


def row_text(header: Sequence[str], cells: Sequence[str]) -> str:
    """Return a row as one text, with the names of its columns where there are."""
    if header and len(header) == len(cells):
        return "; ".join(
            f"{name}: {cell}" if name else cell for name, cell in zip(header, cells, strict=True) if cell
        )
    return "; ".join(cell for cell in cells if cell)


def names_of_columns(texts: Sequence[Sequence[str]], *, stands_out: bool) -> tuple[str, ...]:
    """Return the names of a table's columns: a first row without numbers that stands out, or above rows with some."""
    if len(texts) < 2:
        return ()
    first = texts[0]
    if sum(map(bool, first)) < 2 or any(map(_NUMERIC.search, first)):
        return ()
    has_numbers = any(_NUMERIC.search(cell) for row in texts[1:] for cell in row)
    return tuple(first) if has_numbers or stands_out else ()


# --- prose ---------------------------------------------------------------------------------------------


def _columns(segments: Sequence[_Segment], were_read: bool, line_gap: float) -> list[list[_Segment]]:
    """Put each line to the block above it, if it is of the same column, near, and of the same letters."""
    made: list[list[_Segment]] = []
    near: list[list[_Segment]] = []
    for segment in sorted(segments, key=lambda one: (one.box[1], one.box[0])):
        near = [block for block in near if block[-1].box[3] + line_gap >= segment.box[1]]
        for block in reversed(near):
            if _follows(block[-1], segment, were_read, line_gap):
                block.append(segment)
                break
        else:
            made.append([segment])
            near.append(made[-1])
    return made


def _follows(above: _Segment, below: _Segment, were_read: bool, line_gap: float) -> bool:
    gap = below.box[1] - above.box[3]
    size = min(above.size, below.size)
    if not -0.7 * size <= gap <= min(line_gap, _LINE_GAP * size * (1.6 if were_read else 1.0)):
        return False
    if max(above.size, below.size) > size * (_SAME_SIZE_READ if were_read else _SAME_SIZE):
        return False
    if above.is_bold != below.is_bold:
        return False
    return _shared((above.box[0], above.box[2]), (below.box[0], below.box[2])) > 0.3


def _prose(segments: Sequence[_Segment], body: float, were_read: bool) -> Block:
    lines = [segment.text for segment in segments]
    box = around([segment.box for segment in segments])
    size = statistics.median(segment.size for segment in segments)
    sure = _sureness(segments)
    larger = size >= body * (_LARGER if not were_read else _SAME_SIZE_READ)
    short = len(lines) <= 3 and sum(len(line.split()) for line in lines) <= 20
    if short and (larger or (all(segment.is_bold for segment in segments) and len(lines) == 1)):
        return Block("heading", joined(lines), box, sure)
    if sum(map(bool, map(_BULLET.match, lines))) * 2 >= len(lines):
        return Block("list", "\n".join(lines), box, sure)
    return Block("paragraph", joined(lines), box, sure)


def joined(lines: Sequence[str]) -> str:
    """Return lines as one text; a word that was cut at the end of a line is whole again."""
    text = ""
    for line in lines:
        if re.search(r"[^\W\d_][-\u00ad\u2010]$", text) and line[:1].islower():
            text = text[:-1] + line
        else:
            text = f"{text} {line}" if text else line
    return text


def _body_size(words: Sequence[Word]) -> float:
    """Return the height of most letters on the page."""
    weights: dict[float, int] = {}
    for word in words:
        size = round(word.size * 2) / 2
        weights[size] = weights.get(size, 0) + len(word.text)
    return max(weights, key=lambda size: weights[size], default=0.0)


def _sureness(segments: Iterable[_Segment]) -> float:
    words = [word for segment in segments for word in segment.words]
    letters = sum(len(word.text) for word in words)
    return sum(word.confidence * len(word.text) for word in words) / letters if letters else 0.0


def shifted(block: Block, left: float, top: float) -> Block:
    """Return `block` moved to the right and down."""
    box = block.box
    return replace(block, box=(box[0] + left, box[1] + top, box[2] + left, box[3] + top))
