"""A PDF made by script: prose, a table with rules, one without, two columns, a list and a scanned page.

For the demo and the tests: which sentence and which cell stands where is known. Written out by hand (ISO 32000-1, 7.5),
so that no library has to agree with itself.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

#: Points; A4.
WIDTH, HEIGHT = 595.0, 842.0
SCAN_DPI = 150

#: What is on the pages.
TITLE = "Annual report of the lighthouse keepers"
PROSE = (
    "The lamp on Skerry Rock burned for three hundred and sixty nights without a fault.",
    "Its lens was polished by hand every morning before the relief boat came.",
    "Two storms in November broke the railing of the gallery, which was welded in spring.",
)
STOCK = (
    ("Part", "Number", "In store", "Price"),
    ("Mantle burner", "XK-4471-B", "12", "38.50"),
    ("Fresnel prism", "QZ-0090-A", "3", "412.00"),
    ("Clockwork spring", "ML-2210-C", "7", "95.25"),
)
TIDES = (
    ("Harbour", "High water", "Low water"),
    ("Oban", "05:41", "11:58"),
    ("Tobermory", "06:10", "12:24"),
    ("Mallaig", "06:32", "12:47"),
)
LIST = ("wind the clockwork at dusk", "trim the wick at midnight", "draw the curtains at dawn")
LEFT = "The left column tells of the years in which whale oil was burned in the lamp of the tower."
RIGHT = "The right column tells of the paraffin that replaced it and of the mantle which came later."
SCANNED = (
    "Letter of the inspector",
    "The foghorn was heard eleven miles out",
    "on the night of the fourth of March.",
)


@dataclass(slots=True)
class Sheet:
    """One page: its content stream, and a picture that covers it, if there is one. From the upper left, in points."""

    width: float = WIDTH
    height: float = HEIGHT
    rotate: int = 0
    content: list[str] = field(default_factory=list)
    picture: tuple[bytes, int, int] | None = None

    def text(self, left: float, baseline: float, words: str, size: float = 11, *, bold: bool = False) -> None:
        """Write a line of Helvetica."""
        font = "F2" if bold else "F1"
        plain = words.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        self.content.append(f"BT /{font} {size:g} Tf {left:g} {self.height - baseline:g} Td ({plain}) Tj ET")

    def rule(self, left: float, top: float, right: float, bottom: float) -> None:
        """Draw a thin line."""
        self.content.append(f"0.5 w {left:g} {self.height - top:g} m {right:g} {self.height - bottom:g} l S")

    def table(self, left: float, top: float, rows: Sequence[Sequence[str]], *, ruled: bool) -> None:
        """Write cells in columns 120 points wide and rows 20 points high."""
        right, bottom = left + 120 * len(rows[0]), top + 20 * len(rows)
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                self.text(left + 120 * column + 5, top + 20 * number + 14, cell, 10)
        if ruled:
            for number in range(len(rows) + 1):
                self.rule(left, top + 20 * number, right, top + 20 * number)
            for column in range(len(rows[0]) + 1):
                self.rule(left + 120 * column, top, left + 120 * column, bottom)


def report() -> bytes:
    """Return the PDF: a page of prose and tables, one of two columns and a list, and a scanned one."""
    first = Sheet()
    first.text(60, 80, TITLE, 18, bold=True)
    for number, sentence in enumerate(PROSE):
        first.text(60, 120 + 14 * number, sentence)
    first.text(60, 200, "Spare parts", 14, bold=True)
    first.table(60, 220, STOCK, ruled=True)
    first.text(60, 340, "Tides", 14, bold=True)
    first.table(60, 360, TIDES, ruled=False)
    second = Sheet()
    for left, words in ((60, LEFT), (310, RIGHT)):
        for number, line in enumerate(_wrapped(words * 3, 42)):
            second.text(left, 100 + 14 * number, line)
    for number, item in enumerate(LIST):
        second.text(70, 400 + 14 * number, f"{number + 1}. {item}")
    return pdf([first, second, scanned(SCANNED)])


def scanned(lines: Sequence[str], width: float = 420.0, height: float = 240.0) -> Sheet:
    """Return a page of that size that is one picture of `lines`, as a scanner makes it."""
    from PIL import Image, ImageDraw, ImageFont

    scale = SCAN_DPI / 72
    image = Image.new("L", (round(width * scale), round(height * scale)), 250)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14 * scale)
    for number, line in enumerate(lines):
        draw.text((40 * scale, (60 + 30 * number) * scale), line, fill=20, font=font)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    sheet = Sheet(width, height, picture=(out.getvalue(), image.width, image.height))
    sheet.content.append(f"q {width:g} 0 0 {height:g} 0 0 cm /I1 Do Q")
    return sheet


def pdf(sheets: Iterable[Sheet]) -> bytes:
    """Return a PDF of these pages."""
    fonts = {3: "Helvetica", 4: "Helvetica-Bold"}
    objects: dict[int, bytes] = {1: b"<< /Type /Catalog /Pages 2 0 R >>"}
    for number, name in fonts.items():
        objects[number] = (
            f"<< /Type /Font /Subtype /Type1 /BaseFont /{name} /Encoding /WinAnsiEncoding >>".encode()
        )
    pages = []
    for sheet in sheets:
        page = max(objects) + 1
        pages.append(page)
        images = ""
        if sheet.picture is not None:
            data, width, height = sheet.picture
            images = f"/XObject << /I1 {page + 2} 0 R >> "
            objects[page + 2] = _stream(
                f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceGray "
                "/BitsPerComponent 8 /Filter /DCTDecode",
                data,
            )
        objects[page] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {sheet.width:g} {sheet.height:g}] /Rotate {sheet.rotate} "
            f"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> {images}>> /Contents {page + 1} 0 R >>"
        ).encode()
        content = "\n".join(sheet.content).encode("cp1252", "replace")
        objects[page + 1] = _stream("/Filter /FlateDecode", zlib.compress(content))
    kids = " ".join(f"{page} 0 R" for page in pages)
    objects[2] = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode()
    return _written(objects)


def _stream(dictionary: str, data: bytes) -> bytes:
    return f"<< {dictionary} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"


def _written(objects: dict[int, bytes]) -> bytes:
    """Return the file with its table of where each object stands (7.5.4)."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    places = {}
    for number in sorted(objects):
        places[number] = len(out)
        out += f"{number} 0 obj\n".encode() + objects[number] + b"\nendobj\n"
    table = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{places[number]:010} 00000 n \n".encode() for number in sorted(objects))
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n".encode()
    return bytes(out)


def _wrapped(words: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in words.replace(".", ". ").split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]
