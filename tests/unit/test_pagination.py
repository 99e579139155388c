"""Pages: bounds, precedence of the query, and cursors that fit one request only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tessera.errors import BadRequestError, ValidationError
from tessera.pagination import decode_cursor, encode_cursor, paginate, read_page

WH = SimpleNamespace(signing_key=b"k" * 32)


def read(query: dict[str, Any] | None = None, body: dict[str, Any] | None = None, **more: Any) -> Any:
    return read_page(WH, "/v1/buckets/list", query or {}, body or {}, **more)


@pytest.mark.parametrize(
    ("query", "body", "limit", "offset"),
    [
        ({}, {}, 10, 0),
        ({"limit": "5"}, {"limit": 7}, 5, 0),
        ({}, {"limit": 7, "offset": 3}, 7, 3),
        ({"page_size": "20"}, {}, 20, 0),
        ({}, {"page": 3, "page_size": 4}, 4, 8),
        ({"page": "2"}, {}, 10, 10),
        ({"offset": "5"}, {"page": 9}, 10, 5),
        ({"limit": "1000", "offset": "10000"}, {}, 1000, 10_000),
        ({}, {"limit": None, "offset": None, "cursor": None}, 10, 0),
        ({"cursor": ""}, {}, 10, 0),
        ({}, {"limit": 5.0}, 5, 0),
    ],
)
def test_reads_query_and_body(query: dict[str, Any], body: dict[str, Any], limit: int, offset: int) -> None:
    page = read(query, body)
    assert (page.limit, page.offset) == (limit, offset)


@pytest.mark.parametrize(
    ("query", "body", "names"),
    [
        ({"limit": "0"}, {}, ["limit"]),
        ({"limit": "1001"}, {}, ["limit"]),
        ({"offset": "-1"}, {}, ["offset"]),
        ({"limit": "ten", "offset": "10001"}, {}, ["limit", "offset"]),
        ({}, {"limit": True}, ["limit"]),
        ({}, {"limit": "²"}, ["limit"]),
        ({}, {"limit": 1e400}, ["limit"]),
        ({}, {"limit": 2.5}, ["limit"]),
        ({}, {"page": 0}, ["page"]),
        ({"page": "0"}, {}, ["page"]),
        ({"offset": "--5"}, {}, ["offset"]),
        ({"limit": "1" * 400}, {}, ["limit"]),
    ],
)
def test_refuses_all_that_is_out_of_bounds(
    query: dict[str, Any], body: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        read(query, body)
    assert [problem.location[1] for problem in caught.value.problems] == names
    assert all("whole number from" in problem.message for problem in caught.value.problems)


def test_default_limit_is_the_lists_own() -> None:
    assert read(default_limit=100).limit == 100


def test_pages_through_to_the_end_by_cursor() -> None:
    body: dict[str, Any] = {"filters": {"a": 1}, "limit": 4}
    seen: list[int] = []
    while True:
        page = read({}, body)
        rows = list(range(10))[page.offset : page.offset + page.limit]
        seen += rows
        answer = paginate(WH, page, 10, len(rows))
        assert (answer["total"], answer["page_size"], answer["total_pages"]) == (10, 4, 3)
        if answer["next_cursor"] is None:
            break
        body = {**body, "cursor": answer["next_cursor"]}
    assert seen == list(range(10))
    assert (answer["page"], answer["next_page"]) == (3, None)


def test_next_and_previous_page_are_links() -> None:
    answer = paginate(WH, read({"limit": "2", "offset": "2"}), 6, 2)
    assert answer["page"] == 2
    assert answer["next_page"] == "/v1/buckets/list?limit=2&offset=4"
    assert answer["previous_page"] == "/v1/buckets/list?limit=2&offset=0"


def test_nothing_follows_an_empty_list() -> None:
    answer = paginate(WH, read(), 0, 0)
    assert answer == {
        "total": 0,
        "page": 1,
        "page_size": 10,
        "total_pages": 0,
        "next_page": None,
        "previous_page": None,
        "next_cursor": None,
    }


def test_a_list_may_put_its_own_position_into_the_cursor() -> None:
    answer = paginate(WH, read(), 30, 10, {"k": ["b", 2]})
    assert read({"cursor": answer["next_cursor"]}).position["k"] == ["b", 2]


@pytest.mark.parametrize(
    ("query", "body", "namespace"),
    [
        ({}, {"filters": {"a": 2}}, "films"),
        ({}, {"filters": {"a": 1}, "search": "x"}, "films"),
        ({"sort": "name"}, {"filters": {"a": 1}}, "films"),
        ({}, {"filters": {"a": 1}}, "songs"),
    ],
)
def test_a_cursor_of_another_request_is_refused(
    query: dict[str, Any], body: dict[str, Any], namespace: str
) -> None:
    cursor = paginate(WH, read({}, {"filters": {"a": 1}}, namespace="films"), 30, 10)["next_cursor"]
    with pytest.raises(BadRequestError, match="another list, filter or sort"):
        read({**query, "cursor": cursor}, body, namespace=namespace)


@pytest.mark.parametrize(
    "forge", [lambda c: c[:-2] + "AA", lambda c: "x" + c, lambda c: "%%%", lambda c: "ä"]
)
def test_a_forged_cursor_is_refused(forge: Any) -> None:
    cursor = encode_cursor(WH, {"o": 10})
    assert decode_cursor(WH, cursor) == {"o": 10}
    with pytest.raises(BadRequestError, match="not one that this server gave out"):
        read({"cursor": forge(cursor)})


@pytest.mark.parametrize("given", [5, ["x"], {}, True])
@pytest.mark.parametrize("name", ["cursor", "next_cursor", "after"])
def test_a_cursor_that_is_no_text_is_refused_by_name(name: str, given: Any) -> None:
    with pytest.raises(ValidationError, match=f"^{name} must be a string"):
        read({}, {name: given})


def test_a_cursor_of_another_server_is_refused() -> None:
    other = SimpleNamespace(signing_key=b"o" * 32)
    with pytest.raises(BadRequestError):
        decode_cursor(WH, encode_cursor(other, {"o": 10}))
