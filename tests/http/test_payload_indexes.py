"""All eight types of payload index, through the API, on both engines: reported, counted, added, dropped."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

UUID = "2f9e4b1c-8f5d-4f60-9a53-0d2c8e1b7a66"

#: type → (parameters sent, parameters that the engine must state, values it indexes, values it does not)
TYPES: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any], list[Any]]] = {
    "keyword": ({"is_tenant": True}, {"is_tenant": True}, ["rock", ["a", "b"]], [5]),
    "integer": ({"lookup": True, "range": False}, {"lookup": True, "range": False}, [7], ["7", 2.5]),
    "float": ({}, {}, [2.5, 3], ["2.5"]),
    "bool": ({}, {}, [True, False], ["true"]),
    "geo": ({}, {}, [{"lat": 52.5, "lon": 13.4}], ["Berlin"]),
    "datetime": ({}, {}, ["2026-11-23T10:00:00Z", "2026-11-23"], ["soon"]),
    "text": (
        {"tokenizer": "whitespace", "min_token_len": 3, "max_token_len": 9, "lowercase": False},
        {"tokenizer": "whitespace", "min_token_len": 3, "max_token_len": 9, "lowercase": False},
        ["some words here"],
        [12],
    ),
    "uuid": ({"is_tenant": False}, {}, [UUID], ["no uuid"]),
}


@pytest.fixture(scope="module")
def client(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        yield client


def _namespace(client: httpx.Client, indexes: list[dict[str, Any]]) -> dict[str, Any]:
    body = {
        "namespace_name": f"indexes_{uuid.uuid4().hex[:8]}",
        "feature_extractors": [{"feature_extractor_name": "passthrough_extractor", "version": "v1"}],
        "payload_indexes": indexes,
    }
    answer = client.post("/v1/namespaces", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _wanted() -> list[dict[str, Any]]:
    return [
        {"field_name": f"metadata.{kind}", "type": kind, "field_schema": {"type": kind, **params}}
        for kind, (params, *_) in TYPES.items()
    ]


def _reported(loop: Loop) -> dict[str, Any]:
    stats = loop.get(f"/namespaces/{loop.namespace_id}/stats")
    return {item["field_name"]: item for item in stats["payload_indexes"]}


def _fill(loop: Loop) -> str:
    """One document for each value of each type; returns the collection's id."""
    bucket = loop.bucket({})
    collection = loop.collection(bucket, {"feature_extractor_name": "passthrough_extractor", "version": "v1"})
    objects = [
        loop.object(bucket, {"metadata": {kind: value}})
        for kind, (_, _, good, bad) in TYPES.items()
        for value in [*good, *bad]
    ]
    assert loop.run(bucket, objects)["status"] == "COMPLETED"
    return collection


def test_the_engine_reports_type_parameters_and_only_values_of_the_type(client: httpx.Client) -> None:
    loop = Loop(client, _namespace(client, _wanted()))
    _fill(loop)
    reported = _reported(loop)
    for kind, (_, stated, good, _) in TYPES.items():
        index = reported[f"metadata.{kind}"]
        assert index["type"] == kind
        assert {name: index["params"].get(name) for name in stated} == stated
        assert index["points"] == len(good), f"{kind}: {index['points']} points, not {len(good)}"


def test_patch_adds_and_drops_indexes_while_documents_are_there(client: httpx.Client) -> None:
    loop = Loop(client, _namespace(client, []))
    collection = _fill(loop)

    def rocks() -> int:
        filters = {"field": "metadata.keyword", "operator": "eq", "value": "ROCK"}
        return len(loop.documents(collection, filters=filters))

    def words(text: str) -> int:
        filters = {"field": "metadata.text", "operator": "text", "value": text}
        return len(loop.documents(collection, filters=filters))

    assert not {name for name in _reported(loop) if name.startswith("metadata.")}
    assert (rocks(), words("SOME"), words("so")) == (1, 1, 0)
    changed = loop.patch(f"/namespaces/{loop.namespace_id}", {"payload_indexes": _wanted()})
    assert [index["field_name"] for index in changed["payload_indexes"][:8]] == [
        f"metadata.{kind}" for kind in TYPES
    ]
    reported = _reported(loop)
    assert {name: reported[f"metadata.{name}"]["points"] for name in TYPES} == {
        kind: len(good) for kind, (_, _, good, _) in TYPES.items()
    }
    # The text index keeps case, so what it decides has changed; equality has not.
    assert (rocks(), words("SOME"), words("some")) == (1, 0, 1)
    loop.patch(f"/namespaces/{loop.namespace_id}", {"payload_indexes": None})
    assert not {name for name in _reported(loop) if name.startswith("metadata.")}
    assert (rocks(), words("SOME")) == (1, 1)


@pytest.mark.parametrize(
    ("params", "query", "found"),
    [
        ({}, "met", True),
        ({"min_token_len": 4}, "met", False),
        ({}, "semidetached", True),
        ({"max_token_len": 8}, "semidetached", False),
        ({}, "ELEPHANT", True),
        ({"lowercase": False}, "ELEPHANT", False),
        ({}, "straight", True),
        ({"tokenizer": "whitespace"}, "straight", False),
        ({}, "eleph", False),
        ({"tokenizer": "prefix"}, "eleph", True),
    ],
)
def test_every_text_parameter_changes_a_result(
    client: httpx.Client, params: dict[str, Any], query: str, found: bool
) -> None:
    index = {"field_name": "metadata.t", "type": "text", "field_schema": {"type": "text", **params}}
    loop = Loop(client, _namespace(client, [index]))
    bucket = loop.bucket({})
    collection = loop.collection(bucket)
    text = "Elephant met straight-forward semidetached neighbours"
    loop.run(bucket, [loop.object(bucket, {"metadata": {"t": text}})])
    filters = {"field": "metadata.t", "operator": "text", "value": query}
    assert len(loop.documents(collection, filters=filters)) == int(found)


@pytest.mark.slow
def test_an_index_over_many_documents_is_in_force_when_patch_returns(
    client: httpx.Client, namespace: Callable[..., dict[str, Any]]
) -> None:
    """Above 2,000 documents a view is built beside; searches and health go on meanwhile."""
    made = namespace(feature_extractors=[PASSTHROUGH])
    loop = Loop(client, made)
    bucket_id = loop.bucket()
    collection_id = loop.collection(bucket_id, field_passthrough=[{"source_path": "metadata.n"}])
    ids = []
    for start in range(0, 2100, 100):
        objects = [
            {"blobs": [{"property": "note", "type": "text", "data": f"note {n}"}], "metadata": {"n": n}}
            for n in range(start, start + 100)
        ]
        made_objects = loop.post(f"/buckets/{bucket_id}/objects/batch", {"objects": objects})["succeeded"]
        ids += [item["object_id"] for item in made_objects]
    for start in range(0, 2100, 700):
        assert loop.run(bucket_id, ids[start : start + 700])["status"] == "COMPLETED"
    gaps, stop = [0.0], threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
            last = time.monotonic()
            while not stop.is_set():
                other.get("/v1/health").raise_for_status()
                gaps.append(time.monotonic() - last)
                last = time.monotonic()

    watching = threading.Thread(target=watch)
    watching.start()
    path = f"/v1/namespaces/{loop.namespace_id}"
    answer = client.patch(path, json={"payload_indexes": [{"field_name": "metadata.n", "type": "integer"}]})
    assert answer.status_code == 200, answer.text
    stop.set()
    watching.join()
    stats = client.get(f"{path}/stats").raise_for_status().json()
    assert {(found["field_name"], found["points"]) for found in stats["payload_indexes"]} >= {
        ("metadata.n", 2100)
    }
    found = loop.documents(collection_id, filters={"field": "metadata.n", "operator": "lt", "value": 10})
    assert len(found) == 10
    assert stats["document_count"] == 2100
    print(f"longest gap between answers of /v1/health: {max(gaps) * 1000:.0f} ms")
