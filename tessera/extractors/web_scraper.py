"""Web pages: a crawl from one address, and for each page its title, its text, its links and their meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from tessera.causes import of_fetch
from tessera.crawling import Bounds, Crawl, Report, WebPage, visits
from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    text_vector,
    words_of,
)
from tessera.extractors.text import read_text, split
from tessera.fetching import MAX_URL_LENGTH, FetchError

Vector = npt.NDArray[np.float32]

#: Of a page's text so much is kept, and so many of its links.
MAX_PAGE_CHARS = 1_000_000
MAX_PAGE_LINKS = 200
_MOST_PATTERNS, _PATTERN_CHARS = 100, 500


class WebScraperParams(Params):
    """How far a crawl goes, and how its pages are cut."""

    max_depth: int = Field(
        2, ge=0, le=1000, description="Links that are followed from the first page: 0 is that page alone."
    )
    max_pages: int = Field(50, ge=1, le=10_000, description="Pages that are asked for.")
    crawl_timeout: int = Field(300, ge=10, le=3600, description="Longest time of one crawl in seconds.")
    stay_on_site: bool = Field(True, description="Follow links on the same host and port only.")
    include_patterns: list[str] = Field(
        [], max_length=_MOST_PATTERNS, description="Follow only links whose URL has one of these (RE2)."
    )
    exclude_patterns: list[str] = Field(
        [], max_length=_MOST_PATTERNS, description="Do not follow links whose URL has one of these (RE2)."
    )
    chunk_strategy: Literal["none", "sentences", "paragraphs", "words", "characters"] = Field(
        "none", description="Unit in which `chunk_size` counts; `none` makes one document a page."
    )
    chunk_size: int = Field(500, ge=1, le=10_000, description="Units in one piece.")
    chunk_overlap: int = Field(
        50, ge=0, le=5_000, description="Units that a piece shares with the one before."
    )
    document_id_strategy: Literal["url", "position", "content"] = Field(
        "url",
        description="What keeps a document's id when it is crawled again: its URL, its number in the crawl, its text.",
    )
    generate_text_embeddings: bool = Field(True, description="Embed the text, to be found by meaning.")
    crawl_mode: Literal["deterministic"] = Field(
        "deterministic", description="Breadth first; nothing is guided by a language model."
    )
    render_strategy: Literal["static", "auto"] = Field(
        "auto", description="Pages are read as they are sent; their scripts are not run."
    )
    max_retries: int = Field(3, ge=0, le=10, description="Further attempts at what may pass, such as a 503.")
    retry_base_delay: float = Field(
        1, ge=0.1, le=30, description="Wait before the first of them, in seconds."
    )
    retry_max_delay: float = Field(
        30, ge=1, le=300, description="Longest wait; each is twice the one before."
    )
    delay_between_requests: float = Field(
        0, ge=0, le=60, description="Least time between two pages in seconds; robots.txt may ask for more."
    )
    model: str | None = Field(
        None, description="Text model; a vendor's name stands for the default. `tessera models` lists ours."
    )

    @field_validator("crawl_mode", "render_strategy", mode="before")
    @classmethod
    def _not_here(cls, value: object, info: Any) -> object:
        if value in {"semantic", "javascript"}:
            raise ValueError(f"{value!r} is not available in this version; leave {info.field_name} out")
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator(
        "include_patterns", "exclude_patterns", "chunk_strategy", "document_id_strategy", mode="before"
    )
    @classmethod
    def _default(cls, value: object, info: Any) -> object:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("include_patterns", "exclude_patterns")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        if any(len(pattern) > _PATTERN_CHARS for pattern in value):
            raise ValueError(f"has a pattern of more than {_PATTERN_CHARS} characters")
        visits(value, ())
        return value

    @model_validator(mode="before")
    @classmethod
    def _never_sent(cls, value: Any) -> Any:
        for name in ("proxies", "custom_headers", "captcha_service_provider", "response_shape"):
            if isinstance(value, Mapping) and value.get(name):
                raise ValueError(f"{name} is not available in this version; leave it out")
        return value

    @model_validator(mode="after")
    def _overlap(self) -> WebScraperParams:
        if self.chunk_strategy != "none" and self.chunk_overlap >= self.chunk_size:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) is smaller than chunk_size ({self.chunk_size})"
            )
        return self


class WebScraperExtractor(Extractor):
    """Sites found by meaning and by words, page by page."""

    name = "web_scraper"
    description = (
        "Crawls a site from one address, as its robots.txt allows, and embeds the text of each page. Scripts are not "
        "run; pictures and code have no vectors of their own."
    )
    icon = "globe"
    category = "web"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"url": ("string", "text")}
    positions = ("url", "chunk_index")
    max_inputs: ClassVar[Mapping[str, int]] = {"url": 1}
    cost_tier = 2
    reads_elsewhere = True
    Params = WebScraperParams
    vector_name = "intfloat__multilingual_e5_large_instruct"

    def outputs(self, params: WebScraperParams) -> Outputs:
        """Return the vector of a page's text unless it is not wanted, and what is kept of a page."""
        vectors: tuple[VectorOutput, ...] = ()
        if params.generate_text_embeddings:
            model = self.models.choose("text", params.model)
            vectors = (text_vector(self.vector_name, model, "Meaning of the page's text"),)
        return Outputs(vectors, _FIELDS, sparse=(words_of("title", "text"),))

    def extract(
        self, samples: Sequence[Sample], params: WebScraperParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield the pages of each crawl. An address that cannot be read is told; a page on the way only noted."""
        for sample in samples:
            try:
                yield self._features(_url(sample), params)
            except BadSample as error:
                yield error
            except FetchError as error:
                yield BadSample(of_fetch(error.kind, may_pass=error.may_pass), error.message)
            except InferenceServiceUnavailableError as error:
                yield BadSample("model_missing", error.message)

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query text."""
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _features(self, url: str, params: WebScraperParams) -> list[Feature]:
        bounds = Bounds(
            params.max_depth,
            params.max_pages,
            params.crawl_timeout,
            params.delay_between_requests,
            params.max_retries,
            params.retry_base_delay,
            params.retry_max_delay,
            params.stay_on_site,
            visits(params.include_patterns, params.exclude_patterns),
        )
        crawl = Crawl(self.fetcher, url, bounds)
        made = [
            feature
            for number, page in enumerate(crawl.pages())
            for feature in _pieces(number, page, params, crawl.report)
        ]
        if not made:
            raise BadSample(
                "unreadable",
                "No page has text that can be read and kept. Scripts are not run, and pages that say noindex are left "
                "out.",
            )
        made[0] = _with(made[0], {"crawl": _told(crawl.report)}, {})
        if params.document_id_strategy == "content":
            made = list({feature.position: feature for feature in reversed(made)}.values())[::-1]
        if not params.generate_text_embeddings:
            return made
        model = self.models.text(self.models.choose("text", params.model).model_id)
        vectors = model.embed([feature.fields["text"] for feature in made])
        return [
            _with(feature, {}, {self.vector_name: vector})
            for feature, vector in zip(made, vectors, strict=True)
        ]


_FIELDS: Mapping[str, FieldOutput] = {
    "url": FieldOutput("string", "Address of the page, behind all redirects and without fragment."),
    "title": FieldOutput("string", "What the page calls itself."),
    "description": FieldOutput("string", "What the page says of itself, for those who list it."),
    "language": FieldOutput("string", "Language of the page, as it says."),
    "text": FieldOutput("text", "The page's words, or a piece of them."),
    "chunk_index": FieldOutput("integer", "Number of the piece on its page, from 0."),
    "depth": FieldOutput("integer", "Links between the first page and this one."),
    "links": FieldOutput("array", f"Where the page leads, at most {MAX_PAGE_LINKS} addresses."),
    "crawl": FieldOutput(
        "object",
        "On the first document of a crawl: pages read, failed addresses with the reason, and what ended it early.",
    ),
}


def _url(sample: Sample) -> str:
    source = sample.inputs.get("url")
    if source is None:
        raise BadSample(
            "missing_input",
            "The source has no input `url`. Keep the URL in a property of type string and map it: "
            '`"input_mappings": {"url": "<property>"}`.',
        )
    url = read_text(source).strip()
    if "\n" in url or len(url) > MAX_URL_LENGTH:
        raise BadSample(
            "unreadable",
            "The input `url` is a longer text, no URL. A property of type text that is given a URL holds what is "
            "behind it; use one of type string.",
        )
    return url


def _pieces(number: int, page: WebPage, params: WebScraperParams, report: Report) -> Iterator[Feature]:
    """Yield the documents of a page, still without vectors."""
    text = page.text
    if len(text) > MAX_PAGE_CHARS:
        report.fail(page.url, f"only the first {MAX_PAGE_CHARS} characters of its text are kept")
        text = text[:MAX_PAGE_CHARS]
    spans = split(text, params.chunk_strategy, params.chunk_size, params.chunk_overlap)
    about = {
        "title": page.markup.title,
        "description": page.markup.description,
        "language": page.markup.language,
    }
    for index, (start, end) in enumerate(spans):
        piece = text[start:end]
        positions: dict[str, tuple[str | int, ...]] = {
            "url": (page.url, index),
            "position": (number, index),
            "content": (hashlib.sha256(piece.encode("utf-8", "replace")).hexdigest(),),
        }
        fields = {
            "url": page.url,
            "text": piece,
            "chunk_index": index,
            "depth": page.depth,
            "links": list(page.links[:MAX_PAGE_LINKS]),
            **{name: said for name, said in about.items() if said is not None},
        }
        yield Feature(positions[params.document_id_strategy], fields, locator=Locator.in_text(start, end))


def _with(feature: Feature, fields: Mapping[str, Any], vectors: Mapping[str, Vector]) -> Feature:
    return Feature(
        feature.position,
        {**feature.fields, **fields},
        {**feature.vectors, **vectors},
        feature.files,
        feature.locator,
    )


def _told(report: Report) -> dict[str, Any]:
    return {
        "pages": report.pages,
        "failed": list(report.failed),
        "refused_by_robots": report.refused_by_robots,
        "no_pages": report.no_pages,
        "stopped_by": report.stopped_by,
    }
