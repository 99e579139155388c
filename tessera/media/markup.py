"""HTML to parts: headings, paragraphs, lists, code and rows of tables, with title, links and what robots may do.

Parsed by Lexbor (selectolax) as browsers do. Nothing that a page names is fetched here, no script runs, and the tree is
walked without recursion, however deep it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tessera import alarms
from tessera.errors import BadSample
from tessera.locators import Locator
from tessera.media.layout import Kind
from tessera.media.parts import MAX_COLUMNS, Part, cut, rows, shared

#: Largest page, in bytes; a tree takes about twenty times as much.
MAX_HTML_BYTES = 16 * 2**20
MAX_LINKS = 10_000
#: Longest time to parse one page: it grows with the square of the depth.
PARSE_S = 60.0

_TITLE_CHARS, _ANCHOR_CHARS = 1_000, 200
_SKIPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "svg",
        "math",
        "iframe",
        "object",
        "embed",
        "canvas",
        "audio",
        "video",
        "select",
        "option",
        "textarea",
        "button",
        "input",
        "nav",
        "head",
        "dialog",
    ]
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCKS = _HEADINGS | frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "caption",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "header",
        "hgroup",
        "hr",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
_LOOKS_LIKE = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|title|meta|h[1-6]|p|div|table|ul|ol|article|section|main|a|span|br)\b",
    re.IGNORECASE,
)
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?([a-zA-Z0-9_.:-]{1,40})""", re.IGNORECASE)
#: Encodings that a page may declare, but that HTML forbids or that are no encodings of texts.
_NEVER = frozenset({"utf-7", "base64", "hex", "rot13", "zlib", "bz2", "idna", "punycode", "unicode_escape"})


@dataclass(slots=True)
class Markup:
    """A page: what it is called and says of itself, its parts, and where its links lead, as they are written."""

    title: str | None = None
    description: str | None = None
    language: str | None = None
    base: str | None = None
    #: Words of ``<meta name="robots">``: ``noindex``, ``nofollow`` …
    robots: frozenset[str] = frozenset()
    parts: list[Part] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All words of the page, a line for each part."""
        return "\n".join(part.text for part in self.parts)


def looks_like_html(head: bytes) -> bool:
    """Say whether bytes from the beginning of a file look like HTML."""
    return b"\x00" not in head[:1024] and _LOOKS_LIKE.search(head[:4096]) is not None


def read(data: bytes, charset: str | None = None) -> Markup:
    """Return the page in `data`; `charset` is what its server said of it.

    Raises `BadSample`: ``too_large``, ``unreadable`` for what is no HTML at all.
    """
    if len(data) > MAX_HTML_BYTES:
        raise BadSample(
            "too_large", f"The page has {len(data) >> 20} MiB; at most {MAX_HTML_BYTES >> 20} are read."
        )
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise BadSample(
            "model_missing",
            "HTML cannot be read here: install what reads it with `pip install 'tessera[media]'`.",
        ) from error
    with alarms.within(PARSE_S):
        try:
            tree = LexborHTMLParser(_decoded(data, charset))
        except Exception as error:
            raise BadSample("unreadable", "The page cannot be parsed as HTML.") from error
        page = Markup()
        _about(tree, page)
        body = tree.body
        if body is not None:
            _links(tree, page)
            main = tree.css_first("main") or tree.css_first("article")
            collected = _Collector().collect(main) if main is not None else []
            page.parts = collected or _Collector().collect(body)
    return page


def _decoded(data: bytes, charset: str | None) -> str:
    """Return the text of a page: by its byte order mark, its server, its own word, else UTF-8 or Windows-1252."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    declared = _CHARSET.search(data[:4096])
    for named in (charset, declared[1].decode("ascii") if declared else None, "utf-8"):
        if named and named.lower().replace("_", "-") not in _NEVER:
            try:
                return data.decode(named)
            except (UnicodeDecodeError, LookupError, ValueError):
                continue
    return data.decode("cp1252", "replace")


def _about(tree: Any, page: Markup) -> None:
    title = tree.css_first("title")
    if title is not None:
        page.title = " ".join(_words(title).split())[:_TITLE_CHARS] or None
    root = tree.root
    if root is not None:
        page.language = _attribute(root, "lang")
    base = tree.css_first("base[href]")
    if base is not None:
        page.base = _attribute(base, "href")
    for meta in tree.css("meta[name]"):
        name, said = (_attribute(meta, "name") or "").lower(), _attribute(meta, "content") or ""
        if name == "description":
            page.description = " ".join(said.split())[:_TITLE_CHARS] or None
        elif name == "robots":
            page.robots |= {word.strip().lower() for word in said.split(",")}


def _links(tree: Any, page: Markup) -> None:
    known: dict[str, None] = {}
    for link in tree.css("a[href]"):
        address = (_attribute(link, "href") or "").strip()
        if address and "nofollow" not in (_attribute(link, "rel") or "").lower().split():
            known[address] = None
        if len(known) >= MAX_LINKS:
            break
    page.links = list(known)


def _attribute(node: Any, name: str) -> str | None:
    value = node.attributes.get(name)
    return value if isinstance(value, str) and value.strip() else None


def _words(node: Any) -> str:
    return "".join(
        inner.text_content or "" for way, inner in _walk(node) if way == "in" and inner.tag == "-text"
    )


def _walk(root: Any) -> Iterator[tuple[Literal["in", "out"], Any]]:
    """Yield the nodes below `root` when they begin and when they end; what nobody reads is passed over."""
    node, end = root.child, root.mem_id
    while node is not None:
        skipped = node.tag in _SKIPPED
        if not skipped:
            yield "in", node
            if node.child is not None:
                node = node.child
                continue
            yield "out", node
        while node.next is None:
            node = node.parent
            if node is None or node.mem_id == end:
                return
            yield "out", node
        node = node.next


class _Collector:
    """Takes a page's nodes in order and makes parts of them."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._buffer: list[str] = []
        self._kind: Kind = "paragraph"
        self._anchor: str | None = None
        self._lists = self._tables = self._code = 0
        self._items: list[str] = []
        self._rows: list[list[str]] = []
        self._has_names = False

    def collect(self, root: Any) -> list[Part]:
        """Return the parts below `root`."""
        for way, node in _walk(root):
            if way == "in":
                self._begin(node)
            else:
                self._end(node)
        self._flush()
        return [
            replace(part, place=Locator.in_flow(number, part.place.anchor))
            for number, part in enumerate(self._parts)
        ]

    def _begin(self, node: Any) -> None:
        tag = node.tag
        if tag == "-text":
            self._buffer.append(node.text_content or "")
            return
        if tag == "br":
            self._buffer.append("\n")
        if tag not in _BLOCKS:
            self._note(node)
            return
        if self._tables:
            self._in_table(tag)
        elif self._lists:
            if tag == "li":
                self._item()
            self._buffer.append(" ")
        else:
            self._flush()
        self._note(node)
        if tag == "table" and not self._lists:
            self._tables += 1
        elif tag in {"ul", "ol"} and not self._tables:
            self._lists += 1
        elif tag == "pre" and not self._tables and not self._lists:
            self._code += 1
            self._kind = "code"
        elif tag in _HEADINGS and not self._tables and not self._lists:
            self._kind = "heading"

    def _end(self, node: Any) -> None:
        tag = node.tag
        if tag not in _BLOCKS:
            return
        if self._tables:
            if tag in {"td", "th"} and self._tables == 1:
                self._cell()
            elif tag == "table":
                self._tables -= 1
                if not self._tables:
                    self._table()
            self._buffer.append(" ")
        elif self._lists:
            if tag == "li":
                self._item()
            elif tag in {"ul", "ol"}:
                self._lists -= 1
                if not self._lists:
                    self._list()
            self._buffer.append(" ")
        else:
            self._flush()
            if tag == "pre" and self._code:
                self._code -= 1
                self._kind = "code" if self._code else "paragraph"

    def _note(self, node: Any) -> None:
        anchor = node.attributes.get("id")
        if anchor and len(anchor) <= _ANCHOR_CHARS and not (self._tables or self._lists):
            self._anchor = anchor

    def _taken(self) -> str:
        text = "".join(self._buffer)
        self._buffer = []
        return text

    def _add(self, kind: Kind, text: str) -> None:
        self._parts += cut(Part(kind, text, Locator.in_flow(0, self._anchor)))

    def _flush(self) -> None:
        text, kind = self._taken(), self._kind
        self._kind = "code" if self._code else "paragraph"
        if kind == "code":
            if text.strip():
                self._add("code", text.strip("\n").expandtabs(4).rstrip())
        elif words := shared(" ".join(text.split())):
            self._add(kind, words)

    def _item(self) -> None:
        words = " ".join(self._taken().split())
        if words:
            self._items.append(words)

    def _list(self) -> None:
        self._item()
        if self._items:
            self._add("list", "\n".join(self._items))
        self._items = []

    def _in_table(self, tag: str) -> None:
        if self._tables == 1:
            if tag == "tr":
                self._buffer = []
                self._rows.append([])
            elif tag in {"td", "th"}:
                self._buffer = []
                self._has_names |= tag == "th" and len(self._rows) == 1
        self._buffer.append(" ")

    def _cell(self) -> None:
        if self._rows and len(self._rows[-1]) < MAX_COLUMNS:
            self._rows[-1].append(" ".join(self._taken().split()))

    def _table(self) -> None:
        found = [row for row in self._rows if row]
        place = Locator.in_flow(0, self._anchor)
        self._parts += rows(found, lambda _: place, has_names=self._has_names)
        self._rows, self._has_names = [], False
        self._buffer = []
