"""How the answer of an execution is cut: by cursor, offset, scroll or keyset.

The stages run anew for each page. What tells the methods apart is what a client holds in its hand between two
pages: an opaque cursor, a number, a `scroll_id` that is good for a time, or the last document that it has seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tessera.errors import BadRequestError, Problem, ValidationError, quote
from tessera.pagination import decode_cursor, encode_cursor
from tessera.ports import Hit

METHODS = ("cursor", "offset", "scroll", "keyset")


class _Signs(Protocol):
    @property
    def signing_key(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Ranked:
    """What the stages brought: the page that was asked for, and how many there are. `offset` is null if unknown.

    `stopped` says why they were not all run, `credits` what they took; what is not `is_repeatable` is not kept.
    """

    hits: list[Hit]
    total: int
    offset: int | None
    limit: int
    has_more: bool
    statistics: dict[str, Any]
    stopped: str | None = None
    credits: float = 0.0
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class After:
    """The last document that a client has seen; the score that it had says where it stood, should it be gone."""

    document_id: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The page to answer: `limit` documents from `offset` on, or those behind `after`."""

    method: str
    offset: int
    limit: int
    after: After | None = None
    scroll_ttl_s: int | None = None


def read_cut(wh: _Signs, pagination: Mapping[str, Any], limit: int | None, digest: Callable[[], str]) -> Cut:
    """Read ``pagination`` of a request, whose own `limit` wins; a cursor must be one for `digest`.

    Raises `ValidationError` for what is out of bounds, `BadRequestError` for a cursor of another search.
    """
    method = pagination.get("method", "cursor")
    if method == "cursor":
        size = limit or _number(pagination, "limit", _number(pagination, "page_size", 10, 1, 500), 1, 500)
        if pagination.get("cursor"):
            return Cut(method, _position(wh, pagination, "cursor", digest)["o"], size)
        return Cut(method, (_number(pagination, "page_number", 1, 1, 10_000) - 1) * size, size)
    if method == "offset":
        size = limit or _number(pagination, "page_size", 10, 1, 500)
        return Cut(method, (_number(pagination, "page_number", 1, 1, 10_000) - 1) * size, size)
    if method == "scroll":
        size = limit or _number(pagination, "limit", 100, 1, 1000)
        ttl_s = _number(pagination, "scroll_ttl", 300, 60, 3600)
        if not pagination.get("scroll_id"):
            return Cut(method, 0, size, scroll_ttl_s=ttl_s)
        position = _position(wh, pagination, "scroll_id", digest)
        if position.get("x", 0) < time.time():
            raise BadRequestError(
                "The scroll_id has expired: each is good for scroll_ttl seconds. Start again without one."
            )
        return Cut(method, position["o"], size, scroll_ttl_s=ttl_s)
    if method == "keyset":
        size = limit or _number(pagination, "limit", 10, 1, 500)
        return Cut(method, 0, size, after=_after(pagination.get("after")))
    raise _wrong("method", f"is {quote(method)}; allowed here: {', '.join(map(repr, METHODS))}.", "enum")


def position_after(hits: Sequence[Hit], after: After) -> int:
    """Return where in a ranking the documents behind `after` begin.

    One that is not found any more stood where its score says: nothing behind it is left out, and of documents with
    the very same score some may come again.
    """
    for number, hit in enumerate(hits):
        if hit.document_id == after.document_id:
            return number + 1
    if after.score is None:
        raise BadRequestError(
            f"pagination.after names document {quote(after.document_id)}, which is not among the results (any more). "
            "Send its score too, as the answer gave both, or start again without `after`."
        )
    for number, hit in enumerate(hits):
        if hit.score is not None and hit.score <= after.score:
            return number
    return len(hits)


def following(wh: _Signs, cut: Cut, found: Ranked, digest: Callable[[], str]) -> dict[str, Any]:
    """Return the ``pagination`` of an answer: where it stands, and what to send for the next page."""
    more = found.has_more
    cursor = None
    if more and found.offset is not None:
        position: dict[str, Any] = {"o": found.offset + found.limit, "r": digest()}
        if cut.scroll_ttl_s is not None:
            position["x"] = int(time.time()) + cut.scroll_ttl_s
        cursor = encode_cursor(wh, position)
    told: dict[str, Any] = {
        "method": cut.method,
        "total": found.total,
        "page": None if found.offset is None else found.offset // found.limit + 1,
        "page_size": found.limit,
        "total_pages": -(-found.total // found.limit),
        "next_cursor": cursor if cut.method in ("cursor", "offset") else None,
        "has_more": more,
    }
    if cut.method == "scroll":
        told["scroll_id"] = cursor
    if cut.method == "keyset":
        last = found.hits[-1] if more and found.hits else None
        told["after"] = None if last is None else {"document_id": last.document_id, "score": last.score}
    return told


def _position(
    wh: _Signs, pagination: Mapping[str, Any], name: str, digest: Callable[[], str]
) -> dict[str, Any]:
    position = decode_cursor(wh, str(pagination[name]))
    is_scroll = "x" in position
    if (
        position.get("r") != digest()
        or not isinstance(position.get("o"), int)
        or is_scroll != (name == "scroll_id")
    ):
        raise BadRequestError(
            f"pagination.{name} belongs to another retriever, other inputs or other filters. Send what it came "
            "with, or start again without a cursor."
        )
    return position


def _after(raw: Any) -> After | None:
    if raw is None or raw == {}:
        return None
    if not isinstance(raw, Mapping) or not isinstance(raw.get("document_id"), str):
        raise _wrong(
            "after",
            "must name the last document that was seen, as the answer before gave it: "
            '{"document_id": "doc_…", "score": 0.5}.',
            "after",
        )
    score = raw.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise _wrong("after", f"has the score {quote(score)}; a number is needed, or none.", "after")
    return After(raw["document_id"], score)


def _number(pagination: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = pagination.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"is {quote(value)}; a whole number from {low} to {high} is needed.", "range")
    return value


def _wrong(name: str, says: str, kind: str) -> ValidationError:
    return ValidationError([Problem(("body", "pagination", name), f"pagination.{name} {says}", kind)])
