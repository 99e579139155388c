"""PDF files to pages: the words that are written on them and where, their rules, pictures, and what they look like.

Read by PDFium. It is not made for several threads at once; workers have one each. What is wrong with a file is
a `BadSample`; sizes are checked before anything is drawn.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import alarms
from tessera.errors import BadSample
from tessera.media.layout import Box, Rule, Word, around

if TYPE_CHECKING:
    from PIL.Image import Image
    from pypdfium2 import PdfDocument, PdfPage

#: Most pages of a file, and most characters, drawn things and rules of a page that are looked at.
MAX_PAGES = 2_000
MAX_PAGE_CHARS = 200_000
MAX_PAGE_OBJECTS = 20_000
MAX_PAGE_RULES = 2_000
#: A page is drawn with at most this many pixels, whatever its size and the resolution that is asked for.
MAX_RENDERED_PIXELS = 16 * 2**20
#: Longest time for one look at a page: PDFium draws what a hostile file asks for, and cannot be stopped.
PAGE_S = 60.0
#: Drawn lines thinner than this are rules, in points.
_THIN = 2.5
#: A rule is at least so long.
_LONG = 8.0
#: A gap between letters, in letter heights, from which on they are two words.
_WORD_GAP = 0.2
_BOLD_WEIGHT = 600
_POINTS_PER_INCH = 72.0


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it is displayed. `pictures` are the places of the pictures on it.

    `unmapped` is the part (0…1) of its letters of which the file does not say what they are.
    """

    number: int
    width: float
    height: float
    words: tuple[Word, ...]
    rules: tuple[Rule, ...]
    pictures: tuple[Box, ...]
    unmapped: float
    _page: Any

    @property
    def is_scanned(self) -> bool:
        """Whether what can be read on it is in pictures: they cover most of it, and hardly anything is written."""
        covered = sum(_area(self.visible(box)) for box in self.pictures) / max(1.0, self.width * self.height)
        return covered > 0.5 and sum(len(word.text) for word in self.words) < 50

    def visible(self, box: Box) -> Box:
        """Return the part of `box` that lies on the page."""
        left, top, right, bottom = box
        return (
            min(max(0.0, left), self.width),
            min(max(0.0, top), self.height),
            min(max(0.0, right), self.width),
            min(max(0.0, bottom), self.height),
        )

    def render(self, dpi: float, box: Box | None = None) -> tuple[Image, float]:
        """Return what the page, or the part in `box`, looks like (RGB), and the pixels of a point."""
        scale = dpi / _POINTS_PER_INCH
        left, top, right, bottom = box or (0.0, 0.0, self.width, self.height)
        area = max(1.0, (right - left) * (bottom - top))
        scale = min(scale, math.sqrt(MAX_RENDERED_PIXELS / area))
        crop = (left, self.height - bottom, self.width - right, top)
        with _reading():
            drawn = self._page.render(scale=scale, crop=crop, rev_byteorder=True)
            image: Image = drawn.to_pil().convert("RGB")
        return image, scale


def pages(path: Path) -> Iterator[Page]:
    """Yield the pages of a PDF file; each can be rendered until the next one comes.

    Raises `BadSample`: ``unreadable`` for what is no PDF, is damaged or wants a password, ``limit`` beyond `MAX_PAGES`,
    ``too_large`` for a page that holds too much.
    """
    with _opened(path) as document:
        with _reading():
            count = len(document)
        if count > MAX_PAGES:
            raise BadSample("limit", f"The PDF has {count} pages, more than {MAX_PAGES}; split it.")
        for number in range(count):
            with _reading():
                page = document[number]
                made = _page(number, page)
            yield made
            with _reading():
                page.close()


def count(path: Path) -> int:
    """Return how many pages a PDF file has. Raises `BadSample` (``unreadable``)."""
    with _opened(path) as document, _reading():
        return len(document)


@contextmanager
def _opened(path: Path) -> Iterator[PdfDocument]:
    try:
        from pypdfium2 import PdfDocument
        from pypdfium2.raw import FPDF_ERR_PASSWORD
    except ImportError as error:
        raise BadSample(
            "model_missing",
            "PDF files cannot be read here: install what reads them with `pip install 'tessera[media]'`.",
        ) from error
    try:
        document = PdfDocument(path)
    except Exception as error:
        code = getattr(error, "err_code", None)
        if code == FPDF_ERR_PASSWORD:
            raise BadSample("unreadable", "The PDF is protected by a password.") from error
        raise BadSample("unreadable", "The file is no PDF, or is damaged.") from error
    try:
        yield document
    finally:
        document.close()


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever PDFium stumbles over into one error."""
    try:
        with alarms.within(PAGE_S):
            yield
    except BadSample:
        raise
    except Exception as error:
        raise BadSample("unreadable", "The PDF is damaged: a page cannot be read.") from error


def _page(number: int, page: PdfPage) -> Page:
    width, height = page.get_size()
    place = _Placing(page, width, height)
    words, unmapped = _words(page, place)
    rules, pictures = _drawn(page, place)
    return Page(number, width, height, words, rules, pictures, unmapped, page)


class _Placing:
    """Turns the coordinates of a page's content into points from the upper left corner of what is displayed."""

    def __init__(self, page: PdfPage, width: float, height: float) -> None:
        from pypdfium2 import raw

        # The library answers in whole pixels: of a page drawn this much larger.
        fine = 64.0
        across, down = max(1, round(width * fine)), max(1, round(height * fine))

        def device(x: float, y: float) -> tuple[float, float]:
            left, top = ctypes.c_int(), ctypes.c_int()
            raw.FPDF_PageToDevice(page, 0, 0, across, down, 0, x, y, ctypes.byref(left), ctypes.byref(top))
            return left.value / across * width, top.value / down * height

        span = 1000.0
        self._origin = device(0, 0)
        right, up = device(span, 0), device(0, span)
        self._x = tuple((a - b) / span for a, b in zip(right, self._origin, strict=True))
        self._y = tuple((a - b) / span for a, b in zip(up, self._origin, strict=True))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the content is displayed."""
        return (
            self._origin[0] + self._x[0] * x + self._y[0] * y,
            self._origin[1] + self._x[1] * x + self._y[1] * y,
        )

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        """Return where a rectangle of the content is displayed."""
        (a, b), (c, d) = self.point(left, bottom), self.point(right, top)
        return min(a, c), min(b, d), max(a, c), max(b, d)


# --- what is written -----------------------------------------------------------------------------------


def _words(page: PdfPage, place: _Placing) -> tuple[tuple[Word, ...], float]:
    """Return the words of a page in the order of the file, and the part of its letters that is not known."""
    from pypdfium2 import raw

    text = page.get_textpage()
    try:
        count = text.count_chars()
        if count > MAX_PAGE_CHARS:
            raise BadSample(
                "too_large", f"A page of the PDF has {count} characters, more than {MAX_PAGE_CHARS}."
            )
        words: list[Word] = []
        letters: list[tuple[str, Box]] = []
        unmapped = known = first = 0
        loose = raw.FS_RECTF()
        for index in range(count):
            letter = _letter(raw.FPDFText_GetUnicode(text, index))
            if not letter.isspace():
                raw.FPDFText_GetLooseCharBox(text, index, loose)
                box = place.box(loose.left, loose.bottom, loose.right, loose.top)
                known += 1
                unmapped += raw.FPDFText_HasUnicodeMapError(text, index) == 1 or _is_unknown(letter)
            if letters and (letter.isspace() or not _goes_on(letters[-1][1], box)):
                words.append(_word(letters, _is_bold(text, first)))
                letters = []
            if not letter.isspace():
                first = first if letters else index
                letters.append((letter, box))
        if letters:
            words.append(_word(letters, _is_bold(text, first)))
        return tuple(word for word in words if word.text), unmapped / known if known else 0.0
    finally:
        text.close()


def _letter(code: int) -> str:
    if code == 0x02:  # PDFium's sign for a hyphen at the end of a line
        return "-"
    return chr(code) if code >= 0x20 and not 0xD800 <= code <= 0xDFFF else " "


def _is_unknown(letter: str) -> bool:
    return letter == "\ufffd" or "\ue000" <= letter <= "\uf8ff"


def _goes_on(before: Box, box: Box) -> bool:
    """Say whether a letter stands on the line of the one before it, and near enough to belong to its word."""
    height = max(1e-3, min(before[3] - before[1], box[3] - box[1]))
    shared = min(before[3], box[3]) - max(before[1], box[1])
    return shared > 0.5 * height and -height < box[0] - before[2] < _WORD_GAP * height


def _is_bold(text: Any, index: int) -> bool:
    """Say whether a letter is of a bold font: by its weight where the file tells it, else by the font's name."""
    from pypdfium2 import raw

    if raw.FPDFText_GetFontWeight(text, index) >= _BOLD_WEIGHT:
        return True
    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    length = raw.FPDFText_GetFontInfo(text, index, name, len(name), flags)
    return 0 < length <= len(name) and re.search(rb"bold|black|heavy", name.value, re.IGNORECASE) is not None


def _word(letters: Sequence[tuple[str, Box]], is_bold: bool) -> Word:
    box = around([place for _, place in letters])
    unknown = sum(_is_unknown(letter) for letter, _ in letters) / len(letters)
    text = "".join(letter for letter, _ in letters)
    return Word(text, box, box[3] - box[1], is_bold, 1.0 - unknown)


# --- what is drawn -------------------------------------------------------------------------------------


def _drawn(page: PdfPage, place: _Placing) -> tuple[tuple[Rule, ...], tuple[Box, ...]]:
    """Return the rules on a page, edges of rectangles among them, and the places of its pictures."""
    from pypdfium2 import raw

    rules: list[Rule] = []
    pictures: list[Box] = []
    kinds = [raw.FPDF_PAGEOBJ_PATH, raw.FPDF_PAGEOBJ_IMAGE]
    for number, thing in enumerate(page.get_objects(filter=kinds, max_depth=4)):
        if number >= MAX_PAGE_OBJECTS:
            break
        if thing.type == raw.FPDF_PAGEOBJ_IMAGE:
            pictures.append(place.box(*thing.get_bounds()))
        elif len(rules) < MAX_PAGE_RULES:
            rules += _rules(thing, place)
    return tuple(rules[:MAX_PAGE_RULES]), tuple(pictures)


def _rules(thing: Any, place: _Placing) -> list[Rule]:
    """Return the straight lines of a path that lie or stand; a thin rectangle is one line, others are four."""
    from pypdfium2 import raw

    matrix = thing.get_matrix()
    count = raw.FPDFPath_CountSegments(thing)
    if not 2 <= count <= 1000:
        return []
    lines: list[Box] = []
    start = here = (0.0, 0.0)
    x, y = ctypes.c_float(), ctypes.c_float()
    for index in range(count):
        segment = raw.FPDFPath_GetPathSegment(thing, index)
        raw.FPDFPathSegment_GetPoint(segment, x, y)
        point = place.point(*matrix.on_point(x.value, y.value))
        kind = raw.FPDFPathSegment_GetType(segment)
        if kind == raw.FPDF_SEGMENT_BEZIERTO:
            return []
        if kind == raw.FPDF_SEGMENT_MOVETO:
            start = point
        else:
            lines.append((*here, *point))
        if raw.FPDFPathSegment_GetClose(segment):
            lines.append((*point, *start))
        here = point
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in lines]
    if not boxes:
        return []
    whole = around(boxes)
    if min(whole[2] - whole[0], whole[3] - whole[1]) <= _THIN:
        boxes = [whole]
    return [Rule(box) for box in boxes if _is_rule(box)]


def _is_rule(box: Box) -> bool:
    across, down = box[2] - box[0], box[3] - box[1]
    return min(across, down) <= _THIN and max(across, down) >= _LONG


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
