"""Where in its source a document lies: one form for time, pages, text and regions of pictures.

A locator is a small JSON object under the field `locator` of a document. `kind` says which of the other keys
it has; all are left out that do not apply.

========  ==============================================================  ===========================
kind      keys                                                            fragment of a media URL
========  ==============================================================  ===========================
time      `start_ms`, `end_ms`; a place in the frame: `bbox`, `width`,    ``#t=12.5,20`` (Media Fragments
          `height`                                                        URI 1.0, 4.2.1), ``&xywh=…``
page      `page` from 0; a block on it: `bbox`, `width`, `height`         ``#page=3`` from 1, ``&viewrect=…``
                                                                          (PDF open parameters, RFC 8118)
text      `start_char`, `end_char` (behind the last one), from 0          ``#char=10,42`` (RFC 5147)
region    `bbox`, `width`, `height`                                       ``#xywh=10,20,300,200`` (4.2.2)
cells     `page` from 0, `sheet` its name, `cells` as ``B4:E4``           ``#Prices!B4:E4`` (hyperlinks of Excel);
                                                                          of CSV, `row` from 0: ``#row=4`` (RFC 7111)
block     `block` from 0, of a text without pages; `anchor` an id         ``#prices`` (the anchor), else
          before it                                                       ``#block=7``, which only we know
========  ==============================================================  ===========================

A slide is a page. `bbox` is ``[left, top, right, bottom]`` from the upper left corner of what is displayed, in the unit
of `width` and `height`, which are those of the whole page (points, 1/72 inch) or picture (pixels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

__all__ = [
    "FIELD",
    "Box",
    "Locator",
    "adjacent",
    "fragment",
    "joined",
    "locator_of",
    "source_field",
    "source_fields",
]

#: Field of a document that holds its locator.
FIELD = "locator"
#: The inputs of extractors that are sources of places of each kind.
_SOURCES = {
    "time": ("video", "audio"),
    "page": ("pdf", "document"),
    "text": ("text",),
    "region": ("image",),
    "cells": ("excel",),
    "block": ("pdf", "html"),
}

Kind = Literal["time", "page", "text", "region", "cells", "block"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Locator:
    """A place in a source. Make one by `at_time`, `on_page`, `in_text`, `in_picture`, `in_sheet` or `in_flow`."""

    kind: Kind
    start_ms: int | None = None
    end_ms: int | None = None
    page: int | None = None
    start_char: int | None = None
    end_char: int | None = None
    bbox: Box | None = None
    width: float | None = None
    height: float | None = None
    sheet: str | None = None
    cells: str | None = None
    row: int | None = None
    block: int | None = None
    anchor: str | None = None

    @classmethod
    def at_time(
        cls,
        start_ms: int,
        end_ms: int,
        bbox: Sequence[float] | None = None,
        size: tuple[float, float] | None = None,
    ) -> Locator:
        """Return a span of a video or a recording; with `bbox`, a place in its frames of `size` pixels."""
        return cls("time", start_ms, end_ms, bbox=_box(bbox), width=_side(size, 0), height=_side(size, 1))

    @classmethod
    def on_page(
        cls, page: int, bbox: Sequence[float] | None = None, size: tuple[float, float] | None = None
    ) -> Locator:
        """Return a page, counted from 0; with `bbox`, a block on that page of `size` points."""
        return cls("page", page=page, bbox=_box(bbox), width=_side(size, 0), height=_side(size, 1))

    @classmethod
    def in_text(cls, start_char: int, end_char: int) -> Locator:
        """Return a range of characters (Unicode code points); `end_char` is behind the last one."""
        return cls("text", start_char=start_char, end_char=end_char)

    @classmethod
    def in_picture(cls, bbox: Sequence[float], size: tuple[float, float]) -> Locator:
        """Return a region of a picture of `size` pixels as displayed; ``(0, 0, width, height)`` is all of it."""
        return cls("region", bbox=_box(bbox), width=_side(size, 0), height=_side(size, 1))

    @classmethod
    def in_sheet(cls, page: int, row: int, sheet: str | None = None, cells: str | None = None) -> Locator:
        """Return a row of a table, counted from 0, on a page of a workbook; without `sheet` it is one of CSV."""
        return cls("cells", page=page, row=row, sheet=sheet, cells=cells)

    @classmethod
    def in_flow(cls, block: int, anchor: str | None = None) -> Locator:
        """Return a block, counted from 0, of a text without pages; `anchor` is the last id before it."""
        return cls("block", block=block, anchor=anchor)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without the keys that do not apply."""
        found = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        if self.bbox is not None:
            found["bbox"] = list(self.bbox)
        return found


def locator_of(payload: Mapping[str, Any]) -> Locator | None:
    """Return where the document with this payload lies, None when nothing (readable) says so.

    Documents from before there were locators tell by `start_time` and `end_time` (s), or by `start_char` and
    `end_char`.
    """
    stored = payload.get(FIELD)
    if stored is not None and isinstance(stored, Mapping):
        return _read(stored)
    if "end_time" in payload:
        times = payload.get("start_time"), payload["end_time"]
        if all(map(_is_number, times)):
            start_ms, end_ms = (round(float(time) * 1000) for time in times)  # type: ignore[arg-type]
            return Locator.at_time(start_ms, end_ms)
    if "end_char" in payload:
        return _read(
            {"kind": "text", "start_char": payload.get("start_char"), "end_char": payload["end_char"]}
        )
    return None


def fragment(locator: Locator) -> str:
    """Return the fragment, without ``#``, that leads a viewer of the source's media type to the place."""
    box = locator.bbox
    if locator.kind == "time" and locator.start_ms is not None and locator.end_ms is not None:
        span = f"t={_seconds(locator.start_ms)},{_seconds(locator.end_ms)}"
        return span if box is None else f"{span}&xywh={_corner_and_size(box)}"
    if locator.kind == "page" and locator.page is not None:
        page = f"page={locator.page + 1}"
        return page if box is None else f"{page}&viewrect={_corner_and_size(box)}"
    if locator.kind == "text":
        return f"char={locator.start_char},{locator.end_char}"
    if locator.kind == "cells":
        # A sheet's name with anything but letters and numbers stands in quotes (ECMA-376, 18.17).
        sheet = locator.sheet or ""
        named = sheet if sheet.isalnum() else "'" + sheet.replace("'", "''") + "'"
        return quote(f"{named}!{locator.cells}", safe="!:'") if sheet else f"row={(locator.row or 0) + 1}"
    if locator.kind == "block":
        return quote(locator.anchor, safe="") if locator.anchor else f"block={locator.block}"
    return f"xywh={_corner_and_size(box)}" if box is not None else ""


def source_field(input_name: str) -> str:
    """Return the field of a document that leads to the file that was an extractor's input."""
    return f"source_{input_name}_url"


def source_fields(locator: Locator) -> tuple[str, ...]:
    """Return the fields that may lead to the file in which `locator` is a place."""
    return tuple(map(source_field, _SOURCES[locator.kind]))


def adjacent(one: Locator, other: Locator, gap_ms: int) -> bool:
    """Say whether two spans of time touch, overlap, or lie at most `gap_ms` apart."""
    if one.kind != "time" or other.kind != "time":
        return False
    assert one.start_ms is not None and one.end_ms is not None
    assert other.start_ms is not None and other.end_ms is not None
    return max(one.start_ms, other.start_ms) - min(one.end_ms, other.end_ms) <= gap_ms


def joined(locators: Sequence[Locator]) -> Locator:
    """Return the span of time that covers all of `locators`, which are spans of one source."""
    starts = [locator.start_ms for locator in locators if locator.start_ms is not None]
    ends = [locator.end_ms for locator in locators if locator.end_ms is not None]
    return Locator.at_time(min(starts), max(ends))


# --- inside --------------------------------------------------------------------------------------------


def _read(stored: Mapping[str, Any]) -> Locator | None:
    """Return the locator that a JSON object spells; None for what is something else under that name."""
    box = stored.get("bbox")
    bbox = _box(box) if isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) else None
    width, height = stored.get("width"), stored.get("height")
    size = (float(width), float(height)) if _is_number(width) and _is_number(height) else None  # type: ignore[arg-type]
    match stored.get("kind"):
        case "time" if _is_range(stored.get("start_ms"), stored.get("end_ms")):
            return Locator.at_time(stored["start_ms"], stored["end_ms"], bbox, size)
        case "page" if _is_range(0, stored.get("page")):
            return Locator.on_page(stored["page"], bbox, size)
        case "text" if _is_range(stored.get("start_char"), stored.get("end_char")):
            return Locator.in_text(stored["start_char"], stored["end_char"])
        case "region" if bbox is not None and size is not None:
            return Locator.in_picture(bbox, size)
        case "cells" if _is_range(0, stored.get("page")) and _is_range(0, stored.get("row")):
            return Locator.in_sheet(
                stored["page"], stored["row"], _text(stored.get("sheet")), _text(stored.get("cells"))
            )
        case "block" if _is_range(0, stored.get("block")):
            return Locator.in_flow(stored["block"], _text(stored.get("anchor")))
    return None


def _is_range(first: object, last: object) -> bool:
    return all(type(value) is int for value in (first, last)) and 0 <= first <= last  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _box(values: Sequence[float] | None) -> Box | None:
    if values is None:
        return None
    left, top, right, bottom = (round(float(value), 2) for value in values)
    return left, top, right, bottom


def _side(size: tuple[float, float] | None, number: int) -> float | None:
    return None if size is None else round(float(size[number]), 2)


def _seconds(ms: int) -> str:
    """Spell milliseconds as seconds without needless zeros: ``12.5``, ``20``."""
    return f"{ms / 1000:.3f}".rstrip("0").rstrip(".")


def _corner_and_size(box: Box) -> str:
    left, top, right, bottom = box
    return ",".join(str(round(value)) for value in (left, top, right - left, bottom - top))
