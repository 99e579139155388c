"""Crawling, over a site on an address that stands for the public Internet."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tessera.crawling import Bounds, Crawl, WebPage, read_robots, visits
from tessera.errors import BadSample
from tessera.extractors.base import Extractor, Feature, Input, Sample
from tessera.fetching import Fetcher, FetchError
from tessera.registry import Registry
from tests.website import PUBLIC, Site, fetcher_of_tests, serving

pytest.importorskip("selectolax")


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as found:
        found.serve("/robots.txt", b"", 404)
        yield found


def html(site: Site, path: str, *links: str, words: str = "", head: str = "") -> str:
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    top = f"<html><head><title>Page {path}</title>{head}</head>"
    body = f"{top}<body><p>Words of {path}. {words}</p>{anchors}</body></html>"
    return site.serve(path, body.encode(), Content_Type="text/html; charset=utf-8")


def crawled(
    site: Site, url: str, slept: list[float] | None = None, **bounds: Any
) -> tuple[list[WebPage], Crawl]:
    taken = {"max_depth": 2, "max_pages": 50, "timeout_s": 60.0} | bounds
    crawl = Crawl(fetcher_of_tests(), url, Bounds(**taken), sleep=(slept if slept is not None else []).append)
    return list(crawl.pages()), crawl


def paths(site: Site, pages: list[WebPage]) -> list[str]:
    return [page.url.removeprefix(site.url("")) for page in pages]


def asked(site: Site) -> list[str]:
    return [path for path, _ in site.requests]


def test_a_site_is_read_breadth_first_as_deep_and_as_far_as_it_may(site: Site) -> None:
    seed = html(site, "/", "/a", "b", "#top", "mailto:x@example.org", "javascript:void(0)", "data:,x")
    html(site, "/a", "/a/deep", "/", "/b?q=1#part")
    html(site, "/b", "/a")
    html(site, "/a/deep", "/a/deep/deeper")
    html(site, "/a/deep/deeper")
    pages, crawl = crawled(site, seed)
    assert [(path, page.depth) for path, page in zip(paths(site, pages), pages, strict=True)] == [
        ("/", 0),
        ("/a", 1),
        ("/b", 1),
        ("/a/deep", 2),
        ("/b?q=1", 2),
    ]
    assert pages[1].markup.title == "Page /a"
    assert "Words of /a." in pages[1].text
    assert crawl.report.stopped_by is None
    assert len(asked(site)) == len(set(asked(site))) == 6, "nothing is asked for twice"
    assert paths(site, crawled(site, seed, max_depth=0)[0]) == ["/"]
    pages, crawl = crawled(site, seed, max_pages=2)
    assert paths(site, pages) == ["/", "/a"]
    assert crawl.report.stopped_by == "max_pages"


def test_other_sites_are_not_read_unless_asked_for(site: Site) -> None:
    with serving() as other:
        other.serve("/robots.txt", b"", 404)
        outside = html(other, "/outside")
        away = site.redirect("/away", outside)
        seed = html(site, "/", outside, away, "/in")
        html(site, "/in")
        pages, _ = crawled(site, seed)
        assert paths(site, pages) == ["/", "/in"]
        pages, _ = crawled(site, seed, stays_on_site=False)
        assert [page.url for page in pages] == [seed, outside, site.url("/in")], (
            "the redirect is the same page"
        )


def test_patterns_choose_links(site: Site) -> None:
    seed = html(site, "/", "/docs/a", "/docs/old/b", "/blog/c")
    for path in ("/docs/a", "/docs/old/b", "/blog/c"):
        html(site, path)
    pages, _ = crawled(site, seed, may_visit=visits([r"/docs/"], [r"/old/"]))
    assert paths(site, pages) == ["/", "/docs/a"]
    with pytest.raises(ValueError, match="RE2"):
        visits(["("], [])


def test_robots_are_obeyed(site: Site) -> None:
    site.serve(
        "/robots.txt",
        b"User-agent: *\nDisallow: /\n\n"
        b"User-agent: Tessera/1.0\nCrawl-delay: 7\nDisallow: /private\nAllow: /private/ok\n",
    )
    seed = html(site, "/", "/private/x", "/private/ok", "/hidden", "/last")
    html(site, "/private/x")
    html(site, "/private/ok")
    html(site, "/hidden", "/behind", head='<meta name="robots" content="noindex">')
    html(site, "/behind", "/further", head='<meta name="robots" content="nofollow">')
    html(site, "/further")
    html(site, "/last")
    slept: list[float] = []
    pages, crawl = crawled(site, seed, slept, max_depth=5)
    assert paths(site, pages) == ["/", "/private/ok", "/last", "/behind"]
    assert "/private/x" not in asked(site)
    assert crawl.report.refused_by_robots == 1
    assert len(slept) == 4
    assert all(6 < wait <= 7 for wait in slept)
    with pytest.raises(BadSample, match=r"robots\.txt") as caught:
        crawled(site, site.url("/private/x"))
    assert caught.value.kind == "unsupported"
    assert "/private/x" not in asked(site)
    with pytest.raises(BadSample, match=r"robots\.txt"):
        crawled(site, site.redirect("/moved", site.url("/private/x")))


def test_a_site_whose_robots_cannot_be_read_now_is_left_alone(site: Site) -> None:
    seed = html(site, "/")
    site.serve("/robots.txt", b"", 503)
    slept: list[float] = []
    with pytest.raises(FetchError, match="503"):
        crawled(site, seed, slept, max_retries=2, retry_base_s=0.5)
    assert slept == [0.5, 1.0], "a little later, then later still"
    assert asked(site) == ["/robots.txt"] * 3


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Disallow:", "/x", True),
        ("Disallow: /", "/x", False),
        ("Disallow: /", "/robots.txt", True),
        ("Disallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("Allow: /a/b\nDisallow: /a", "/a/c", False),
        ("Disallow: /a\nAllow: /a", "/a", True),
        ("Disallow: /*.php", "/x/y.php5", False),
        ("Disallow: /*.php$", "/x/y.php5", True),
        ("Disallow: /*.php$", "/x/y.php", False),
        ("Disallow: /a*b*c", "/a-b-c", False),
        ("Disallow: /a*b*c", "/a-c-b", True),
        ("Disallow: /x$", "/x", False),
        ("Disallow: /x$", "/xy", True),
        ("Disallow: /a%3cd", "/a<d", False),
        ("Disallow: /k%C3%A4se", "/käse", False),
        ("Disallow: *q=", "/s?q=1", False),
        ("disallow : /x # why", "/x", False),
    ],
)
def test_rules_of_robots(rules: str, path: str, allowed: bool) -> None:
    assert read_robots(f"User-Agent: *\n{rules}\n", "tessera").allow(path) is allowed


def test_groups_of_robots() -> None:
    text = "User-agent: a\nUser-agent: TESSERA\nDisallow: /x\nUser-agent: *\nDisallow: /\n"
    text += "User-agent: tessera\nDisallow: /y"
    robots = read_robots(text, "tessera")
    assert [robots.allow(path) for path in ("/x", "/y", "/z")] == [False, False, True]
    assert not read_robots("User-agent: tesseract\nAllow: /\nUser-agent: *\nDisallow: /", "tessera").allow(
        "/"
    )
    assert read_robots("garbage\n\x00\n<html>", "tessera").allow("/")


def test_what_cannot_be_read_on_the_way_is_noted_and_no_more(site: Site) -> None:
    seed = html(site, "/", "/gone", "/film", "/pdf", "/json", "/broken", "/plain", "/busy", "/big")
    site.serve("/gone", b"", 404)
    site.serve("/film", b"\x00\x00\x00\x18ftypmp42" + bytes(100_000), Content_Type="text/html")
    site.serve("/pdf", b"%PDF-1.7 ...", Content_Type="application/pdf")
    site.serve("/json", b"{}", Content_Type="application/json")
    site.serve("/broken", b"short", Content_Length="500", Content_Type="text/html")
    site.serve("/plain", b"Plain words.\r\nTwo lines.", Content_Type="text/plain")
    site.serve("/big", b" " * 17 * 2**20, Content_Type="text/html")
    answers = [503, 200]

    def busy(request: Any) -> None:
        request.send_response(answers.pop(0))
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(b"<p>Here at last.</p>")

    site.pages["/busy"] = busy
    slept: list[float] = []
    pages, crawl = crawled(site, seed, slept, max_retries=1)
    assert paths(site, pages) == ["/", "/plain", "/busy"]
    assert [page.text for page in pages[1:]] == ["Plain words.\nTwo lines.", "Here at last."]
    report = crawl.report
    assert [item["url"].removeprefix(site.url("")) for item in report.failed] == ["/gone", "/broken", "/big"]
    assert ["404" in report.failed[0]["reason"], "broke off" in report.failed[1]["reason"]] == [True, True]
    assert (report.no_pages, report.pages) == (3, 3)
    for path, kind in (("/pdf", "unsupported"), ("/json", "unsupported")):
        with pytest.raises(BadSample, match="no page") as caught:
            crawled(site, site.url(path))
        assert caught.value.kind == kind
    with pytest.raises(FetchError, match="404"):
        crawled(site, site.url("/gone"))


def test_a_robots_txt_that_broke_off_is_read_anew(site: Site) -> None:
    """Joined to the half of the first attempt, its first line was none, and everything was allowed."""
    rules = b"User-agent: *\nDisallow: /secret\n"
    answers = [(rules[:7], len(rules)), (rules, len(rules))]

    def breaking(request: Any) -> None:
        sent, promised = answers.pop(0)
        request.send_response(200)
        request.send_header("Content-Length", str(promised))
        request.end_headers()
        request.wfile.write(sent)

    site.pages["/robots.txt"] = breaking
    seed = html(site, "/", "/secret")
    html(site, "/secret")
    slept: list[float] = []
    pages, crawl = crawled(site, seed, slept, max_retries=1)
    assert (answers, len(slept)) == ([], 1)
    assert paths(site, pages) == ["/"]
    assert crawl.report.refused_by_robots == 1


def test_links_into_private_networks_are_refused_and_nothing_connects(site: Site) -> None:
    """From a page and by a redirect, also when the crawl may leave the site."""
    with socket.create_server(("127.0.0.1", 0)) as private:
        inside = f"http://127.0.0.1:{private.getsockname()[1]}/admin"
        site.redirect("/jump", inside)
        seed = html(
            site,
            "/",
            inside,
            "/jump",
            "http://localhost:1/",
            "http://169.254.169.254/latest",
            "file:///etc/passwd",
        )
        pages, crawl = crawled(site, seed, stays_on_site=False, max_retries=0)
        assert paths(site, pages) == ["/"]
        assert len(crawl.report.failed) >= 3
        assert all("not public" in item["reason"] for item in crawl.report.failed)
        private.settimeout(0.2)
        with pytest.raises(TimeoutError):
            private.accept()


def test_a_crawl_ends_at_its_time(site: Site) -> None:
    """A site that leads on for ever; each page takes ten minutes on a clock of ours."""
    now = [0.0]

    def endless(request: Any) -> None:
        now[0] += 600
        request.send_response(200)
        request.send_header("Content-Type", "text/html")
        request.end_headers()
        request.wfile.write(f'<p>More</p><a href="{request.path}x">on</a>'.encode())

    for length in range(20):
        site.pages[f"/{'x' * length}"] = endless
    crawl = Crawl(fetcher_of_tests(), site.url("/"), Bounds(1000, 1000, timeout_s=1500), clock=lambda: now[0])
    assert paths(site, list(crawl.pages())) == ["/", "/x", "/xx"]
    assert crawl.report.stopped_by == "crawl_timeout"


# --- the extractor ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scraper(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return Registry.load(tmp_path_factory.mktemp("models"), offline=True).extractor("web_scraper", "v1")


def extracted(
    scraper: Extractor, url: str, fetcher: Fetcher | None = None, **params: object
) -> list[Feature]:
    scraper.fetcher = fetcher or fetcher_of_tests()
    (outcome,) = scraper.extract([Sample({"url": Input(text=url)})], scraper.Params.model_validate(params))
    if isinstance(outcome, BadSample):
        raise outcome
    return list(outcome)


def test_a_page_is_a_document_under_its_address(site: Site, scraper: Extractor) -> None:
    seed = html(site, "/", "/a", "/gone", head='<meta name="description" content="First.">')
    html(site, "/a", words="A lighthouse with a lamp.")
    site.serve("/gone", b"", 404)
    made = extracted(scraper, seed)
    assert [feature.position for feature in made] == [(seed, 0), (site.url("/a"), 0)]
    first, second = (feature.fields for feature in made)
    assert (first["title"], first["description"], first["depth"]) == ("Page /", "First.", 0)
    assert first["links"] == [site.url("/a"), site.url("/gone")]
    assert first["crawl"]["pages"] == 2
    assert [item["url"] for item in first["crawl"]["failed"]] == [site.url("/gone")]
    assert "crawl" not in second
    assert made[1].vectors["intfloat__multilingual_e5_large_instruct"].shape == (384,)
    assert extracted(scraper, seed, generate_text_embeddings=False)[0].vectors == {}


def test_pages_are_cut_and_named_as_asked(site: Site, scraper: Extractor) -> None:
    seed = html(site, "/", "/copy", words="One. Two. Three. Four. Five.")
    site.pages["/copy"] = site.pages["/"]
    cut = extracted(scraper, seed, max_depth=0, chunk_strategy="sentences", chunk_size=2, chunk_overlap=0)
    assert [feature.fields["chunk_index"] for feature in cut] == list(range(len(cut)))
    assert len(cut) >= 3
    assert [feature.position for feature in extracted(scraper, seed, document_id_strategy="position")] == [
        (0, 0),
        (1, 0),
    ]
    assert len(extracted(scraper, seed, document_id_strategy="content")) == 1, "the same words, once"


def test_what_an_address_leads_to_decides_the_failure(site: Site, scraper: Extractor) -> None:
    for url, kind in (
        ("no url", "fetch_bad_url"),
        ("ftp://example.org/", "fetch_bad_url"),
        ("http://127.0.0.1:1/", "fetch_refused_address"),
        (site.serve("/gone", b"", 404), "fetch_bad_status"),
        (site.serve("/busy", b"", 503), "fetch_unavailable"),
        (site.serve("/empty", b"<p></p>", Content_Type="text/html"), "unreadable"),
        ("<p>a text\nthat is none</p>", "unreadable"),
    ):
        with pytest.raises(BadSample) as caught:
            extracted(scraper, url, max_retries=0)
        assert caught.value.kind == kind, url
    with pytest.raises(BadSample) as caught:
        extracted(scraper, f"http://{PUBLIC}:{site.port}/", Fetcher(max_bytes=2**20))
    assert caught.value.kind == "fetch_refused_address", "by default nothing that is not public is read"


def test_parameters_of_what_is_not_here_are_refused(scraper: Extractor) -> None:
    params = scraper.Params
    for bad in (
        {"crawl_mode": "semantic"},
        {"render_strategy": "javascript"},
        {"proxies": ["http://proxy"]},
        {"custom_headers": {"Cookie": "x"}},
        {"include_patterns": ["("]},
        {"chunk_strategy": "words", "chunk_size": 10, "chunk_overlap": 10},
        {"max_pages": 0},
    ):
        with pytest.raises(ValueError, match="Param"):
            params.model_validate(bad)
    assert params.model_validate({"crawl_mode": None, "include_patterns": None, "proxies": None}) == params()
