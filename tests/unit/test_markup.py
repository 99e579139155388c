"""HTML to parts."""

from __future__ import annotations

import pytest

from tessera.errors import BadSample
from tessera.locators import fragment
from tessera.media import markup
from tests.office import HTML

pytest.importorskip("selectolax")


def shape(html: str) -> list[tuple[str, str]]:
    return [(part.kind, part.text) for part in markup.read(html.encode()).parts]


def test_a_page_falls_into_parts_with_title_links_and_anchors() -> None:
    page = markup.read(HTML.encode())
    assert (page.title, page.description, page.language) == (
        "The lighthouse of Cape Wren",
        "Its lamp, its keepers.",
        "en",
    )
    assert page.links == ["/home", "keepers.html#all"]
    assert [(part.kind, part.text) for part in page.parts] == [
        ("heading", "The lamp of the lighthouse"),
        ("paragraph", "The lamp was lit for the first time on 3 May 1871, and burned whale oil."),
        ("paragraph", "Loose text that stands beside a list of keepers of the lamp."),
        ("list", "First keeper: Ann Moss, for nine years\nSecond keeper: Tom Reed"),
        ("table_row", "Part: Fresnel prism; Price: 412.00"),
        ("table_row", "Part: Brass frame; Price: 97.50"),
        ("code", "def light(lamp):\n    return lamp.on()"),
    ]
    assert [part.place.block for part in page.parts] == list(range(7))
    assert [fragment(part.place) for part in page.parts] == ["lamp"] * 4 + ["prices"] * 3
    assert "never seen" not in page.text


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<div>one<div>two</div>three</div>", ["one", "two", "three"]),
        ("<ul><li>a<ul><li>b</li></ul></li><li><p>c</p></li></ul>d", ["a\nb\nc", "d"]),
        ("<table><tr><td>a<table><tr><td>b</td></tr></table>c</td><td>d</td></tr></table>", ["a b c; d"]),
        ("<ul><li><table><tr><td>a</td><td>b</td></tr></table></li></ul>", ["a b"]),
        ("<p>unclosed<p>twice <b>bold</p> on", ["unclosed", "twice bold", "on"]),
        ("<h2>a <i>b</i></h2><pre>x\n  y</pre>z", ["a b", "x\n  y", "z"]),
        ("<p>&lt;b&gt; &amp; &#x2014; &nbsp;x</p>", ["<b> & \u2014 x"]),
        ("<td>stray</td>", ["stray"]),
        ("", []),
    ],
)
def test_pages_as_people_write_them(html: str, expected: list[str]) -> None:
    assert [text for _, text in shape(f"<body>{html}</body>")] == expected


def test_after_code_comes_a_paragraph() -> None:
    assert shape("<pre>x = 1</pre><p>words</p><h1>title</h1>tail") == [
        ("code", "x = 1"),
        ("paragraph", "words"),
        ("heading", "title"),
        ("paragraph", "tail"),
    ]


def test_encodings() -> None:
    words = "<p>Käse für 3 €</p>"
    for data, charset in (
        (words.encode(), None),
        (words.encode("utf-16"), None),
        (b"\xef\xbb\xbf" + words.encode(), "latin-1"),
        (('<meta charset="windows-1252">' + words).encode("cp1252"), None),
        (words.encode("cp1252"), "windows-1252"),
        (words.encode("cp1252"), None),
        (words.encode(), "no-such-charset"),
        (words.encode(), "base64"),
    ):
        assert markup.read(data, charset).text == "Käse für 3 €"


def test_a_deep_tree_and_a_long_one_end() -> None:
    deep = "<div>" * 5_000 + "deep" + "<ul>" * 1000
    assert shape(deep) == [("paragraph", "deep")]
    assert len(shape("<p>a</p>" * 20_000)) == 20_000
    with pytest.raises(BadSample, match="MiB"):
        markup.read(b" " * (markup.MAX_HTML_BYTES + 1))


def test_what_looks_like_html() -> None:
    for good in (b"<!DOCTYPE html>", b"\n <HTML>", b"text <p>and", b"<div class='x'>"):
        assert markup.looks_like_html(good)
    for bad in (b"plain", b"a < b and b > c", b"{}", b"<svg xmlns='x'>", b"%PDF", b"<html>\x00"):
        assert not markup.looks_like_html(bad)


def test_what_robots_may_do() -> None:
    page = markup.read(
        b'<meta name="robots" content="NoIndex, nofollow"><a href="a">a</a><a rel="x nofollow" href="b">b</a>'
    )
    assert page.robots == {"noindex", "nofollow"}
    assert page.links == ["a"]
