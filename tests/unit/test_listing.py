"""Lists over rows: both filter forms, search, and an order that is the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.errors import ValidationError
from tessera.listing import choose

ROWS: list[dict[str, Any]] = [
    {"id": "c", "name": "Beta", "size": 2},
    {"id": "a", "name": "alpha", "size": None},
    {"id": "b", "name": "Alpha", "size": 10},
    {"id": "d", "name": None, "size": "2"},
]


def ids(**asked: Any) -> str:
    asked = {"filters": None, "search": None, "sort": None, **asked}
    return "".join(row["id"] for row in choose(ROWS, search_in=("id", "name"), id_field="id", **asked))


def test_rows_come_as_they_are_unless_asked() -> None:
    assert ids() == ids(filters={}) == ids(search="") == "cabd"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"name": "ALPHA"}, "ab"),
        ({"name": {"$eq": "beta"}}, "c"),
        ({"name": {"$regex": "^al"}}, "ab"),
        ({"size": {"$gt": 1, "$lt": 10}}, "c"),
        ({"name": {"$in": ["beta"]}, "size": 2}, "c"),
        ({"field": "size", "operator": "gte", "value": 2}, "cb"),
        ({"OR": [{"name": "beta"}, {"size": {"$gte": 10}}]}, "cb"),
        ({"AND": [{"name": "alpha"}], "size": 10}, "b"),
        ({"NOT": [{"name": "alpha"}]}, "cd"),
    ],
)
def test_filters_in_both_forms(filters: Any, expected: str) -> None:
    assert ids(filters=filters) == expected


def test_case_counts_when_asked() -> None:
    assert ids(filters={"name": "alpha"}, case_sensitive=True) == "a"
    assert ids(search="AL") == "ab"
    assert ids(search="Al", case_sensitive=True) == "b"


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(ValidationError, match="where"):
        ids(filters={"name": {"$where": "1"}})


def test_numbers_before_strings_nothing_last_ties_by_id() -> None:
    assert ids(sort=("size", "asc")) == "cbda"
    assert ids(sort=("size", "desc")) == "dbca"
    assert ids(sort=("name", "asc")) == "bcad", "strings by code point"
    assert ids(sort=("absent", "desc")) == "abcd"
