"""Crawling: the pages of a site, breadth first, as its robots.txt allows and within bounds.

Every request goes through the server's fetcher, which checks and pins addresses (``fetching.py``); this module decides
what is asked for. No cookies, no scripts, no credentials.
"""

from __future__ import annotations

import functools
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tessera import content
from tessera.errors import BadSample
from tessera.fetching import Fetched, Fetcher, FetchError, Target, parse, shown
from tessera.media import markup

#: Our name in robots.txt, as it stands in ``User-Agent``.
PRODUCT = "tessera"
#: Of a robots.txt so much is read (RFC 9309, 2.5), and what it asks to wait between two pages is held to this.
MAX_ROBOTS_BYTES = 500 * 2**10
MAX_CRAWL_DELAY_S = 30.0
#: Addresses that wait to be fetched, and problems that are told.
MAX_WAITING = 100_000
MAX_TOLD = 100

_PAGES = frozenset({"text/html", "application/xhtml+xml", "text/plain"})
_PIECE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a crawl may take. `may_visit` decides over addresses that links lead to."""

    max_depth: int
    max_pages: int
    timeout_s: float
    delay_s: float = 0.0
    max_retries: int = 3
    retry_base_s: float = 1.0
    retry_max_s: float = 30.0
    stays_on_site: bool = True
    may_visit: Callable[[str], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class WebPage:
    """A page that was read: its address after redirects, how many links away it is, and what is in it."""

    url: str
    depth: int
    markup: markup.Markup
    text: str
    links: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What became of the addresses that were met."""

    pages: int = 0
    #: Addresses that could not be read, each with why; at most `MAX_TOLD`.
    failed: list[dict[str, str]] = field(default_factory=list)
    refused_by_robots: int = 0
    no_pages: int = 0
    #: Why the crawl ended before all was seen: ``max_pages``, ``crawl_timeout``; None when it was.
    stopped_by: str | None = None

    def fail(self, url: str, why: str) -> None:
        """Note an address that could not be read."""
        if len(self.failed) < MAX_TOLD:
            self.failed.append({"url": shown(url), "reason": why[:_PIECE_CHARS]})


class _NoPage(Exception):
    """What came is no page of text."""


class _Enough(Exception):
    """So much of a file is read."""


class Crawl:
    """One crawl from one address. Iterate over `pages`; `report` is complete behind the last one."""

    def __init__(
        self,
        fetcher: Fetcher,
        seed: str,
        bounds: Bounds,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        largest = min(fetcher.max_bytes, markup.MAX_HTML_BYTES)
        self._fetcher = replace(fetcher, max_bytes=largest, bound=", the most that is read of a page")
        self._bounds = bounds
        self._seed = parse(seed)
        self._sleep, self._clock = sleep, clock
        self._deadline = clock() + bounds.timeout_s
        self._robots: dict[str, Robots] = {}
        self._asked = 0
        self._last_s: float | None = None
        self.report = Report()

    def pages(self) -> Iterator[WebPage]:
        """Yield the pages, the seed first, then what is one link away, and so on.

        Raises `FetchError` when the seed itself cannot be fetched, `BadSample` when it may not be or is no page.
        """
        first = _address(self._seed)
        waiting: deque[tuple[str, int]] = deque([(first, 0)])
        met = {first}
        read: set[str] = set()
        while waiting:
            if self._asked >= self._bounds.max_pages:
                self.report.stopped_by = "max_pages"
                return
            if self._clock() >= self._deadline:
                self.report.stopped_by = "crawl_timeout"
                return
            url, depth = waiting.popleft()
            page = self._visit(url, depth)
            if page is None or page.url in read:
                continue
            read.add(page.url)
            met.add(page.url)
            if "noindex" not in page.markup.robots and page.text:
                self.report.pages += 1
                yield page
            if depth >= self._bounds.max_depth or "nofollow" in page.markup.robots:
                continue
            for link in page.links:
                if link not in met and len(met) < MAX_WAITING and self._may_follow(link):
                    met.add(link)
                    waiting.append((link, depth + 1))

    def _visit(self, url: str, depth: int) -> WebPage | None:
        """Return the page at `url`, or None with a note in the report. The seed's troubles are the crawl's."""
        is_seed = depth == 0
        try:
            target = parse(url)
            robots = self._robots_of(target)
            if not robots.allow(target.path):
                self._refused(target, is_seed)
                return None
            self._asked += 1
            self._wait(robots.delay_s)
            came, data = self._fetched_page(url)
            where = parse(came.url)
            if not is_seed and self._leaves(where):
                return None
            if not self._robots_of(where).allow(where.path):
                self._refused(where, is_seed)
                return None
            if is_seed:
                self._seed = where
            return _page(came, where, data, depth)
        except _NoPage as error:
            if is_seed:
                raise BadSample("unsupported", f"{shown(url)} is no page of text: {error}.") from None
            self.report.no_pages += 1
        except BadSample as error:
            if is_seed:
                raise
            self.report.fail(url, error.message)
        except FetchError as error:
            if is_seed:
                raise
            self.report.fail(url, error.message)
        return None

    def _refused(self, target: Target, is_seed: bool) -> None:
        """Note that robots.txt forbids a page; of the seed that is the end."""
        if is_seed:
            raise BadSample(
                "unsupported",
                f"The robots.txt of {target.origin} does not let {PRODUCT} read {target.shown}.",
            )
        self.report.refused_by_robots += 1

    def _fetched(self, url: str, data: bytearray, take: Callable[[bytes], object]) -> Fetched:
        """Fetch an address; what may pass is tried again, each time after twice the wait.

        `take` adds to `data`, of which nothing is left when another attempt begins.
        """
        for attempt in range(self._bounds.max_retries + 1):
            data.clear()
            left_s = max(0.1, self._deadline - self._clock())
            fetcher = replace(self._fetcher, total_s=min(self._fetcher.total_s, left_s))
            try:
                return fetcher.fetch(url, take)
            except FetchError as error:
                wait_s = min(self._bounds.retry_max_s, self._bounds.retry_base_s * 2**attempt)
                late = self._clock() + wait_s >= self._deadline
                if not error.may_pass or attempt == self._bounds.max_retries or late:
                    raise
                self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _fetched_page(self, url: str) -> tuple[Fetched, bytes]:
        data = bytearray()

        def take(piece: bytes) -> None:
            # Its first bytes tell a film from a page; there is no need for the rest.
            if not data and (kind := content.sniff(piece)) is not None:
                raise _NoPage(f"it begins as {kind}")
            data.extend(piece)

        came = self._fetched(url, data, take)
        return came, bytes(data)

    def _wait(self, asked_s: float) -> None:
        """Leave the site alone for as long as it, or whoever crawls, asks."""
        delay_s = max(self._bounds.delay_s, asked_s)
        if self._last_s is not None and delay_s:
            left_s = min(self._last_s + delay_s, self._deadline) - self._clock()
            if left_s > 0:
                self._sleep(left_s)
        self._last_s = self._clock()

    def _robots_of(self, target: Target) -> Robots:
        """Return what the site of `target` allows; where the seed's cannot be had, nothing is crawled."""
        if target.origin not in self._robots:
            try:
                self._robots[target.origin] = self._read_robots(target)
            except FetchError as error:
                if not self._robots:
                    raise
                self.report.fail(f"{target.origin}/robots.txt", error.message)
                self._robots[target.origin] = NOTHING
        return self._robots[target.origin]

    def _read_robots(self, target: Target) -> Robots:
        """Read a site's robots.txt: none allows all; one that cannot be had now allows nothing (RFC 9309, 2.3.1)."""
        data = bytearray()

        def take(piece: bytes) -> None:
            data.extend(piece)
            if len(data) >= MAX_ROBOTS_BYTES:
                raise _Enough

        try:
            self._fetched(f"{target.origin}/robots.txt", data, take)
        except _Enough:
            pass
        except FetchError as error:
            if error.kind == "bad_status" and 400 <= (error.status_code or 0) < 500:
                return EVERYTHING
            if error.kind in {"redirect", "bad_content", "too_large"}:
                return EVERYTHING
            raise
        return read_robots(data[:MAX_ROBOTS_BYTES].decode("utf-8", "replace"), PRODUCT)

    def _leaves(self, target: Target) -> bool:
        return self._bounds.stays_on_site and (target.host, target.port) != (self._seed.host, self._seed.port)

    def _may_follow(self, url: str) -> bool:
        try:
            target = parse(url)
        except FetchError:
            return False
        return not self._leaves(target) and self._bounds.may_visit(url)


def _page(came: Fetched, where: Target, data: bytes, depth: int) -> WebPage:
    kind = came.content_type
    if kind is not None and kind not in _PAGES:
        raise _NoPage(f"its server calls it {kind[:100]}")
    if b"\x00" in data[:1024] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _NoPage("its bytes are no text")
    if kind == "text/plain" or (kind is None and not markup.looks_like_html(data)):
        text = "\n".join(
            line.rstrip() for line in data.decode(_charset(came), "replace").splitlines()
        ).strip()
        return WebPage(_address(where), depth, markup.Markup(), text, ())
    found = markup.read(data, came.charset)
    base = urllib.parse.urljoin(_address(where), found.base or "")
    links = dict.fromkeys(link for written in found.links if (link := _resolved(base, written)) is not None)
    return WebPage(_address(where), depth, found, found.text, tuple(links))


def _charset(came: Fetched) -> str:
    try:
        "".encode(came.charset or "utf-8")
    except LookupError:
        return "utf-8"
    return came.charset or "utf-8"


def _resolved(base: str, written: str) -> str | None:
    """Return where a link leads, in its one plain form and without fragment; None for what is not fetched."""
    try:
        return _address(parse(urllib.parse.urljoin(base, written)))
    except (FetchError, ValueError):
        return None


def _address(target: Target) -> str:
    return f"{target.origin}{target.path}"


# --- robots.txt ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Robots:
    """What a site lets us read: rules of a path pattern and whether it is allowed."""

    rules: tuple[tuple[str, bool], ...] = ()
    delay_s: float = 0.0

    def allow(self, path: str) -> bool:
        """Say whether a path with its query may be read: by the longest rule that matches, of equals the kinder."""
        if path == "/robots.txt":
            return True
        path = _plain(path)
        found = [(len(pattern), allowed) for pattern, allowed in self.rules if _matches(pattern, path)]
        return max(found, default=(0, True))[1]


EVERYTHING, NOTHING = Robots(), Robots((("/", False),))


def read_robots(text: str, product: str) -> Robots:
    """Return the rules for `product` in a robots.txt (RFC 9309): of its own groups, else of those for ``*``."""
    own: list[tuple[str, bool]] = []
    common: list[tuple[str, bool]] = []
    delays: dict[str, float] = {}
    agents: set[str] = set()
    has_own = in_rules = False
    for line in text.lstrip("\ufeff").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon:
            continue
        if name == "user-agent":
            agents = set() if in_rules else agents
            in_rules = False
            # A name may carry a version, which does not count.
            agents.add(value.partition("/")[0].strip().lower())
            has_own |= product in agents
        elif name in {"allow", "disallow", "crawl-delay"}:
            in_rules = True
            for agent, rules in ((product, own), ("*", common)):
                if agent in agents and name == "crawl-delay":
                    delays[agent] = _seconds(value)
                elif agent in agents and value:
                    rules.append((_plain(value), name == "allow"))
    chosen, agent = (own, product) if has_own else (common, "*")
    return Robots(tuple(chosen), delays.get(agent, 0.0))


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), MAX_CRAWL_DELAY_S) if seconds == seconds else 0.0


@functools.lru_cache(maxsize=1024)
def _plain(path: str) -> str:
    """Return a path in which the same letters are written the same way, with or without percent signs."""
    return urllib.parse.quote(
        urllib.parse.unquote(path, errors="surrogateescape"),
        safe="/?=&*$%:@!,;+()'~-._",
        errors="surrogateescape",
    )


def _matches(pattern: str, path: str) -> bool:
    """Say whether a pattern with ``*`` and a final ``$`` matches the beginning of `path`; time is linear."""
    is_whole = pattern.endswith("$")
    first, *parts = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not parts:
        return not is_whole or at == len(path)
    last = parts.pop() if is_whole else ""
    for part in parts:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return path.endswith(last) and len(path) - len(last) >= at if is_whole else True


def visits(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return what decides over addresses by regular expressions (RE2): one of `include` if any, none of `exclude`.

    Raises `ValueError` for a pattern that is none.
    """
    import re2

    def compiled(patterns: Sequence[str]) -> list[re2._Regexp[str]]:
        try:
            return [re2.compile(pattern) for pattern in patterns]
        except re2.error as error:
            raise ValueError(f"is no regular expression that RE2 knows: {error}") from error

    wanted, unwanted = compiled(include), compiled(exclude)

    def may_visit(url: str) -> bool:
        if any(pattern.search(url) for pattern in unwanted):
            return False
        return not wanted or any(pattern.search(url) for pattern in wanted)

    return may_visit
