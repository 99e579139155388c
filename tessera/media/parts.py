"""What a file without drawn pages falls into: parts with a kind, a text and a place, and tables as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tessera.locators import Locator
from tessera.media.layout import Kind, names_of_columns, row_text

#: Longest text of one part; what is longer is cut at a blank.
MAX_PART_CHARS = 20_000
#: Most columns of a table that are read.
MAX_COLUMNS = 1_000


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file. `page` is its slide or sheet, 0 in a text without pages; `cells` are those of a row."""

    kind: Kind
    text: str
    place: Locator
    page: int = 0
    cells: tuple[str, ...] = ()


def shared(text: str) -> str:
    """Return a text with single blanks and no empty lines."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def cut(part: Part) -> Iterator[Part]:
    """Yield a part, in pieces when it is too long for one."""
    text = part.text
    while len(text) > MAX_PART_CHARS:
        end = text.rfind(" ", MAX_PART_CHARS // 2, MAX_PART_CHARS) + 1 or MAX_PART_CHARS
        yield replace(part, text=text[:end].rstrip())
        text = text[end:].lstrip()
    if text:
        yield replace(part, text=text)


def rows(
    table: Sequence[Sequence[str]], place: Callable[[int], Locator], page: int = 0, *, has_names: bool = False
) -> Iterator[Part]:
    """Yield the rows of a table; a first row that names the columns is in every other one, not by itself.

    `place` gives a row's place by its number. `has_names` says that the first row is marked as the columns' names.
    """
    width = max((len(row) for row in table), default=0)
    even = [(*row, *[""] * (width - len(row))) for row in table]
    header = names_of_columns(even, stands_out=has_names)
    if has_names and len(even) > 1 and any(even[0]):
        header = tuple(even[0])
    for number, row in enumerate(even):
        if any(row) and not (header and number == 0):
            yield from cut(Part("table_row", row_text(header, row), place(number), page, row))
