"""Office files and pages that say what is known, and ones that mean harm."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

HTML = """<!doctype html><html lang="en"><head><title>The lighthouse  of Cape Wren</title>
<meta name="description" content="Its lamp, its keepers."><script>var hidden = "never seen";</script></head>
<body><nav><a href="/home">Home</a></nav><main>
<h1 id="lamp">The lamp of the lighthouse</h1>
<p>The <b>lamp</b> was lit for the first time on 3 May 1871, and burned&nbsp;whale oil.</p>
<p>Loose text that stands beside<br>a <a href="keepers.html#all">list of keepers</a> of the lamp.</p>
<ul><li>First keeper: Ann Moss, for nine years</li><li>Second keeper: <em>Tom Reed</em></li></ul>
<table id="prices"><tr><th>Part</th><th>Price</th></tr><tr><td>Fresnel prism</td><td>412.00</td></tr>
<tr><td>Brass frame</td><td>97.50</td></tr></table>
<pre><code>def light(lamp):
    return lamp.on()</code></pre>
</main></body></html>"""


def docx_file() -> bytes:
    """A text with headings, paragraphs, a list and a table."""
    import docx

    document = docx.Document()
    document.add_heading("The lamp of the lighthouse", 1)
    document.add_paragraph("The lamp was lit for the first time on 3 May 1871, and burned whale oil.")
    for item in ("First keeper: Ann Moss, for nine years", "Second keeper: Tom Reed"):
        document.add_paragraph(item, style="List Bullet")
    table = document.add_table(3, 2)
    for row, cells in enumerate((("Part", "Price"), ("Fresnel prism", "412.00"), ("Brass frame", "97.50"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    document.add_paragraph("After the table nothing of interest follows, only this.")
    return saved(document)


def pptx_file() -> bytes:
    """Two slides: a title with points, and a table with notes."""
    import pptx
    from pptx.util import Pt

    shown = pptx.Presentation()
    slide = shown.slides.add_slide(shown.slide_layouts[1])
    slide.shapes.title.text = "The lamp of the lighthouse"
    slide.placeholders[1].text = "Lit in 1871 for the first time\nBurned whale oil for years"
    slide = shown.slides.add_slide(shown.slide_layouts[6])
    table = slide.shapes.add_table(2, 2, Pt(72), Pt(144), Pt(360), Pt(72)).table
    for row, cells in enumerate((("Part", "Price"), ("Fresnel prism", "412.00"))):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    slide.notes_slide.notes_text_frame.text = "Say that prisms are ground by hand."
    return saved(shown)


def xlsx_file() -> bytes:
    """A workbook of two sheets, one with two tables."""
    import datetime

    import openpyxl

    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Spare parts"
    for row in (
        ("Part", "Price", "Ordered"),
        ("Fresnel prism", 412.0, datetime.date(1871, 5, 3)),
        ("Wick", 0.25, None),
    ):
        sheet.append(row)
    sheet["C7"], sheet["D7"] = "Keeper", "Years"
    sheet["C8"], sheet["D8"] = "Ann Moss", 9
    workbook.create_sheet("Notes")["A1"] = "The prism is ground by hand."
    return saved(workbook)


CSV = b'Part;Price\nFresnel prism;412.00\n"Wick; waxed";0.25\n'


def saved(document: object) -> bytes:
    out = io.BytesIO()
    document.save(out)  # type: ignore[attr-defined]
    return out.getvalue()


def changed(archive: bytes, parts: Mapping[str, bytes]) -> bytes:
    """The archive with other contents of some of its parts, or with further ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename not in parts:
                new.writestr(entry.filename, old.read(entry))
        for name, data in parts.items():
            new.writestr(name, data)
    return out.getvalue()
