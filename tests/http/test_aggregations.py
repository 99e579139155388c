"""Aggregation over a collection's documents, on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

SALES = [
    {"shop": "Rome", "price": 10, "tags": ["a", "b"], "sold": "2026-01-01T10:30:00Z", "box": {"kg": 1}},
    {"shop": "Rome", "price": 2.5, "tags": ["a"], "sold": "2026-01-04T23:59:59+02:00"},
    {"shop": "rome", "price": 20, "tags": [], "sold": "2026-02-01"},
    {"shop": "Oslo", "price": "dear", "sold": "no date"},
    {"price": 30, "tags": ["b"]},
]


class Sales:
    def __init__(self, client: httpx.Client) -> None:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "sales", "feature_extractors": [PASSTHROUGH]}
        )
        self.loop = loop = Loop(client, made.raise_for_status().json())
        collection = loop.collection(loop.bucket(), PASSTHROUGH)
        for number, payload in enumerate(SALES):
            loop.post(f"/collections/{collection}/documents", {"document_id": f"s{number}", **payload})
        self.path = f"/collections/{collection}/documents/aggregate"

    def __call__(self, *, group_by: Any = (), aggregations: Any = None, **body: Any) -> list[list[Any]]:
        """Return (group values…, figures…) of each result."""
        aggregations = aggregations or [{"function": "count", "alias": "n"}]
        fields = [{"field": each} if isinstance(each, str) else each for each in group_by]
        answer = self.loop.post(self.path, {"group_by": fields, "aggregations": aggregations, **body})
        self.total = answer["total_groups"]
        return [[*row["group"].values(), *row["metrics"].values()] for row in answer["results"]]


@pytest.fixture(scope="module")
def sales(either_server: Server) -> Iterator[Sales]:
    with either_server.client() as client:
        sales = Sales(client)
        yield sales
        client.delete(f"/v1/namespaces/{sales.loop.namespace_id}")


def figure(function: str, field: str | None = "price") -> dict[str, Any]:
    return {"function": function, "alias": function, **({"field": field} if field else {})}


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/documents/aggregate", 200)
def test_groups_come_in_order_with_their_figures(sales: Sales) -> None:
    functions = ["count", "sum", "avg", "min", "max", "count_distinct", "push"]
    found = sales(group_by=["shop"], aggregations=[figure(name) for name in functions])
    assert found == [
        ["Oslo", 1, 0, None, "dear", "dear", 1, ["dear"]],
        ["Rome", 2, 12.5, 6.25, 2.5, 10, 2, [10, 2.5]],
        ["rome", 1, 20, 20.0, 20, 20, 1, [20]],
        [None, 1, 30, 30.0, 30, 30, 1, [30]],
    ]
    assert sales.total == 4
    assert sales(aggregations=[figure("sum"), figure("first", "shop"), figure("last")]) == [
        [62.5, "Rome", 30]
    ]
    assert sales(aggregations=[figure("count", None)], filters={"shop": "nowhere"}) == [[0]]
    assert sales(group_by=["shop"], filters={"shop": "nowhere"}) == []


def test_arrays_are_values_until_they_are_unwound(sales: Sales) -> None:
    assert sales(group_by=["tags"]) == [[["a", "b"], 1], [["a"], 1], [["b"], 1], [[], 1], [None, 1]]
    unwound = sales(group_by=["tags"], unwind="tags", aggregations=[figure("sum")])
    assert unwound == [["a", 12.5], ["b", 40], [[], 20], [None, 0]]
    assert sales(aggregations=[figure("add_to_set", "tags")]) == [[["a", "b"]]]
    assert sales(group_by=["box.kg"], filters={"shop": "Rome"}) == [[1, 1], [None, 2]]


def test_moments_are_cut_and_taken_apart_in_utc(sales: Sales) -> None:
    def by(**field: str) -> list[Any]:
        return [row[0] for row in sales(group_by=[{"field": "sold", "alias": "at", **field}])]

    assert by(date_trunc="month") == ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z", None]
    assert by(date_trunc="week") == ["2025-12-29T00:00:00Z", "2026-01-26T00:00:00Z", None]
    assert by(date_trunc="hour") == [
        "2026-01-01T10:00:00Z",
        "2026-01-04T21:00:00Z",
        "2026-02-01T00:00:00Z",
        None,
    ]
    assert by(date_part="dayOfWeek") == [1, 5, None]
    assert by(date_part="week") == [1, 5, None]
    assert by(date_part="dayOfYear") == [1, 4, 32, None]


def test_ranges_having_sorting_and_limit(sales: Sales) -> None:
    bucket = {"field": "price", "boundaries": [5, 10, 20]}
    assert sales(group_by=["price"], range_buckets=[bucket]) == [
        ["10-20", 1],
        ["5-10", 1],
        ["<5", 1],
        [">20", 1],
        ["other", 1],
    ]
    named = {**bucket, "default_bucket": "else"}
    assert sales(group_by=[{"field": "price", "alias": "range"}], range_buckets=[named], sort_by="n") == [
        ["else", 3],
        ["10-20", 1],
        ["5-10", 1],
    ]
    beside = sales(group_by=["shop"], range_buckets=[named], sort_by="shop", sort_direction="asc", limit=2)
    assert beside == [["Oslo", "else", 1], ["Rome", "5-10", 1]]
    assert sales.total == 5
    total = [{"function": "sum", "field": "price", "alias": "total"}]
    having = [
        {"field": "total", "operator": "gt", "value": 12.5},
        {"field": "shop", "operator": "ne", "value": "x"},
    ]
    assert sales(group_by=["shop"], aggregations=total, having=having, sort_by="total") == [
        [None, 30],
        ["rome", 20],
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"aggregations": []}, "at least 1 item"),
        ({"aggregations": [{"function": "sum", "alias": "n"}]}, "sum needs field"),
        ({"aggregations": [{"function": "median", "field": "a", "alias": "n"}]}, "must be one of count"),
        ({"aggregations": [{"function": "count"}]}, "alias is required"),
        ({"sort_by": "nothing"}, "name one of: n"),
        ({"having": [{"field": "x", "operator": "gt", "value": 1}]}, "name one of: n"),
        ({"group_by": [{"field": "a", "alias": "n"}]}, "n is the name of two values"),
        ({"group_by": [{"field": "a", "date_trunc": "day", "date_part": "day"}]}, "exclude each other"),
        ({"group_by": [{"field": "internal_id"}]}, "a path of a field is needed"),
        ({"range_buckets": [{"field": "a", "boundaries": [2, 1]}]}, "must ascend"),
        ({"limit": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_reckoned_is_named(sales: Sales, body: dict[str, Any], said: str) -> None:
    whole = {"aggregations": [{"function": "count", "alias": "n"}], **body}
    assert said in sales.loop.refused(422, "POST", sales.path, whole)


def test_over_too_many_documents_it_is_refused_and_a_filter_helps(tmp_path: Path) -> None:
    """An answer over a part of the documents would look like one over all of them."""
    server = Server.start(tmp_path / "data", environment={"TESSERA_MAX_SCAN_DOCUMENTS": "10"})
    try:
        with server.client() as client:
            indexes = [{"field_name": "n", "type": "integer"}]
            made = client.post(
                "/v1/namespaces",
                json={
                    "namespace_name": "many",
                    "feature_extractors": [PASSTHROUGH],
                    "payload_indexes": indexes,
                },
            )
            loop = Loop(client, made.raise_for_status().json())
            path = f"/collections/{loop.collection(loop.bucket(), PASSTHROUGH)}/documents"
            for n in range(12):
                loop.post(path, {"document_id": f"d{n}", "n": n, "word": "lamp"})
            count = {"aggregations": [{"function": "count", "alias": "n"}], "group_by": [{"field": "word"}]}
            few = {"field": "n", "operator": "lt", "value": 10}
            for below, body in (
                ("aggregate", count),
                ("list", {"group_by": "word"}),
                ("list", {"search": "lamp"}),
            ):
                said = loop.refused(400, "POST", f"{path}/{below}", body)
                assert "12 documents, more than 10" in said, said
                loop.post(f"{path}/{below}", {**body, "filters": few})
    finally:
        assert server.stop() == 0
