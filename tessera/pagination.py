"""Pages of lists: what a request asks for, and where an answer stands.

A cursor is opaque and signed. It carries a position and a digest of everything else that was asked, so
that it cannot be used with other filters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import orjson

from tessera.errors import BadRequestError, Problem, quote, raise_problems

MAX_LIMIT = 1000
MAX_OFFSET = 10_000
DEFAULT_LIMIT = 10

#: Spellings of the cursor; the first that is given counts.
_CURSORS = ("cursor", "next_cursor", "after")
#: Keys that a list takes in the query or in the body.
PAGE_KEYS = frozenset({"limit", "page_size", "offset", "page", *_CURSORS, "include_total"})

_SIGNATURE_BYTES = 12


class _Signs(Protocol):
    @property
    def signing_key(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The page that a request asks for.

    `position` is what its cursor carries, None without one. `digest` stands for all that the request asks
    besides the page; `path` is where the list is.
    """

    limit: int = DEFAULT_LIMIT
    offset: int = 0
    position: Mapping[str, Any] | None = None
    digest: str = ""
    path: str = ""


def read_page(
    wh: _Signs,
    path: str,
    query: Mapping[str, Any],
    body: Mapping[str, Any],
    *,
    namespace: str = "",
    default_limit: int = DEFAULT_LIMIT,
) -> PageRequest:
    """Read the page from `query` and `body`, query winning. `query` holds texts, `body` decoded JSON.

    Raises `ValidationError` with all that is out of bounds, `BadRequestError` for a cursor that is not
    one of this server's or belongs to another list, filter or sort.
    """
    problems: list[Problem] = []

    def integer(names: tuple[str, ...], low: int, high: int) -> int | None:
        for place, given in (("query", query), ("body", body)):
            for name in names:
                if given.get(name) is not None:
                    return _bounded(given[name], (place, name), low, high, problems)
        return None

    limit = integer(("limit", "page_size"), 1, MAX_LIMIT) or default_limit
    offset = integer(("offset",), 0, MAX_OFFSET)
    page = integer(("page",), 1, MAX_OFFSET)
    problems += [
        Problem(
            ("body", name),
            f"{name} must be a string, a next_cursor of an answer, not {quote(body[name])}.",
            "cursor",
        )
        for name in _CURSORS
        if not isinstance(body.get(name), str | None)
    ]
    raise_problems(problems)
    if offset is None:
        offset = 0 if page is None else (page - 1) * limit
    cursor = next(
        (
            given[name]
            for given in (query, body)
            for name in _CURSORS
            if isinstance(given.get(name), str) and given[name]
        ),
        None,
    )
    digest = _digest(path, namespace, query, body)
    position = None if cursor is None else decode_cursor(wh, cursor)
    if position is not None:
        if position.get("d") not in (None, digest):
            raise BadRequestError(
                "The cursor belongs to another list, filter or sort. Send the same request again with it, or "
                "start without a cursor."
            )
        offset = int(position.get("o", 0))
    return PageRequest(limit, offset, position, digest, path)


def paginate(
    wh: _Signs, page: PageRequest, total: int, returned: int, position: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the `pagination` of an answer that shows `returned` of `total` rows.

    `position` is where the next page begins, for lists whose cursors hold more than an offset; it is used
    while there is a next page. All four integers are always given.
    """
    end = page.offset + returned
    more = returned > 0 and end < total
    following = {"o": end, **(position or {}), "d": page.digest}
    return {
        "total": total,
        "page": page.offset // page.limit + 1,
        "page_size": page.limit,
        "total_pages": -(-total // page.limit),
        # Behind the largest offset only the cursor leads on.
        "next_page": _link(page, end) if more and end <= MAX_OFFSET else None,
        "previous_page": _link(page, max(0, page.offset - page.limit)) if page.offset else None,
        "next_cursor": encode_cursor(wh, following) if more else None,
    }


def encode_cursor(wh: _Signs, position: Mapping[str, Any]) -> str:
    """Return `position` (plain JSON) as an opaque text that only this server can make."""
    payload = orjson.dumps(position)
    return base64.urlsafe_b64encode(_signature(wh, payload) + payload).decode().rstrip("=")


def decode_cursor(wh: _Signs, cursor: str) -> dict[str, Any]:
    """Return the position inside `cursor`. Raises `BadRequestError` for what this server did not make."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
    if not payload or not hmac.compare_digest(signature, _signature(wh, payload)):
        raise BadRequestError(
            f"The cursor {quote(cursor[:20])}… is not one that this server gave out. Start without a cursor."
        )
    position: dict[str, Any] = orjson.loads(payload)
    return position


def _signature(wh: _Signs, payload: bytes) -> bytes:
    return hmac.digest(wh.signing_key, b"cursor\x00" + payload, "sha256")[:_SIGNATURE_BYTES]


def _digest(path: str, namespace: str, query: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    asked = [
        path,
        namespace,
        {key: value for key, value in query.items() if key not in PAGE_KEYS},
        {key: value for key, value in body.items() if key not in PAGE_KEYS},
    ]
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _link(page: PageRequest, offset: int) -> str:
    return f"{page.path}?{urlencode({'limit': page.limit, 'offset': offset})}"


def _bounded(
    value: object, location: tuple[str, str], low: int, high: int, problems: list[Problem]
) -> int | None:
    number = _whole(value)
    if number is None or not low <= number <= high:
        place, name = location
        what = f"Query parameter {name}" if place == "query" else name
        problems.append(
            Problem(
                location,
                f"{what} must be a whole number from {low} to {high}, not {quote(value)}.",
                "out_of_range",
            )
        )
        return None
    return number


def _whole(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None
