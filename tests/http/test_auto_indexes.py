"""Indexes that a namespace gets by itself, and the command of explain, taken as it stands."""

from __future__ import annotations

import itertools
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

DOCUMENTS = 40
SETTINGS = {"TESSERA_AUTO_INDEX_USES": "3", "TESSERA_AUTO_INDEX_DOCUMENTS": "10"}
_numbers = itertools.count(1)


class Garden(Loop):
    """Ready-made plants. `height` and `width` are numbers in each, `mixed` is one in every second, else a text."""

    everything: str

    def ask(self, *conditions: Any) -> set[str]:
        """Return the ids that a filter finds."""
        body = {"inputs": {}, "filters": {"AND": list(conditions)}, "limit": 100}
        found = self.post(f"/retrievers/{self.everything}/execute", body)
        return {hit["document_id"] for hit in found["documents"]}

    def told(self, *conditions: Any) -> Any:
        """Return what explain says of a filter."""
        body = {"inputs": {}, "filters": {"AND": list(conditions)}}
        return self.post(f"/retrievers/{self.everything}/execute/explain", body)

    def indexes(self) -> dict[str, Any]:
        shown = self.client.get(f"/v1/namespaces/{self.namespace_id}").raise_for_status().json()
        return {index["field_name"]: index for index in shown["payload_indexes"]}

    def events(self) -> list[Any]:
        """Return the audit events of changes that the server made by itself."""
        asked = {"resource_id": self.namespace_id, "limit": 100}
        events = self.get("/organizations/audit/logs?" + urlencode(asked))["results"]
        return [event for event in events if event["actor_type"] == "system"]


def eq(field: str, value: Any) -> Any:
    return {"field": field, "operator": "eq", "value": value}


def wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def auto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("auto") / "data", environment=SETTINGS)
    yield server
    server.stop()


@pytest.fixture
def garden(auto_server: Server) -> Iterator[Garden]:
    with auto_server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": f"garden-{next(_numbers)}",
                "feature_extractors": [PASSTHROUGH],
                "payload_indexes": [{"field_name": "width", "type": "integer"}],
                "auto_create_indexes": True,
            },
        )
        here = Garden(client, made.raise_for_status().json())
        collection = here.collection(here.bucket())
        documents = [
            {
                "document_id": f"p{n}",
                "payload": {"height": n % 4, "width": n % 2, "mixed": n if n % 2 else f"{n}", "rare": n},
            }
            for n in range(DOCUMENTS)
        ]
        here.post(
            f"/namespaces/{here.namespace_id}/documents/upsert",
            {"collection_id": collection, "documents": documents},
        )
        here.everything = here.post(
            "/retrievers",
            {
                "retriever_name": "everything",
                "collection_identifiers": [collection],
                "stages": [{"stage_id": "sort_attribute", "parameters": {"sort_field": "rare"}}],
            },
        )["retriever_id"]
        yield here


def test_a_field_that_is_used_gets_an_index_and_loses_it_unused(garden: Garden, auto_server: Server) -> None:
    expected = {f"p{n}" for n in range(1, DOCUMENTS, 4)}
    (warning,) = garden.told(eq("height", 1))["execution_plan"][0]["warnings"]
    assert "after 3 more uses" in warning
    for _ in range(3):
        assert garden.ask(eq("height", 1)) == expected
    wait_until(lambda: "height" in garden.indexes())
    assert garden.indexes()["height"] == {
        "field_name": "height",
        "type": "integer",
        "field_schema": garden.indexes()["width"]["field_schema"],
        "is_protected": False,
        "is_auto": True,
    }
    assert "is_auto" not in garden.indexes()["width"]
    (condition,) = garden.told(eq("height", 1))["execution_plan"][0]["filters"]
    assert (condition["served_by"], condition["is_auto"]) == ("index", True)
    assert garden.ask(eq("height", 1)) == expected
    (event,) = garden.events()
    assert event["changes"]["auto_index"] == {"field": "height", "action": "added", "reason": "used"}

    auto_server.stop()
    with sqlite3.connect(auto_server.data / "tessera.sqlite3") as database:
        database.execute("UPDATE filter_uses SET last_used_at = '2020-01-01T00:00:00.000000Z'")
    auto_server.launch_again()
    wait_until(lambda: "height" not in garden.indexes())
    assert {"width", "collection_id"} <= set(garden.indexes())
    assert garden.ask(eq("height", 1)) == expected
    assert [event["changes"]["auto_index"]["action"] for event in garden.events()][:1] == ["dropped"]


def test_an_index_that_misses_values_is_not_kept(garden: Garden) -> None:
    for _ in range(4):
        assert garden.ask(eq("mixed", 1)) == {"p1"}
    wait_until(lambda: len(garden.events()) == 2)
    assert "mixed" not in garden.indexes()
    reasons = {event["changes"]["auto_index"]["reason"] for event in garden.events()}
    assert f"20 of {DOCUMENTS} documents in it" in reasons

    def warns() -> bool:
        (warning,) = garden.told(eq("mixed", 1))["execution_plan"][0]["warnings"]
        return "does not hold every document's value" in warning

    wait_until(warns)  # that it is refused is noted after it was dropped


def test_a_user_takes_an_index_over_and_turning_it_off_drops_the_others(garden: Garden) -> None:
    for _ in range(3):
        garden.ask(eq("height", 1), eq("rare", 5))
    wait_until(lambda: {"height", "rare"} <= set(garden.indexes()))
    own = [{"field_name": name, "type": "integer"} for name in ("width", "height")]
    path = f"/namespaces/{garden.namespace_id}"
    garden.patch(path, {"payload_indexes": own})
    assert "is_auto" not in garden.indexes()["height"]
    assert garden.indexes()["rare"]["is_auto"] is True
    garden.patch(path, {"auto_create_indexes": False})
    assert {"width", "height"} <= set(garden.indexes())
    assert "rare" not in garden.indexes()
    for _ in range(5):
        assert garden.ask(eq("rare", 5)) == {"p5"}
    (warning,) = garden.told(eq("rare", 5))["execution_plan"][0]["warnings"]
    assert "auto_create_indexes" not in warning


def test_two_types_for_one_field_that_fall_due_at_once_make_one_index(garden: Garden) -> None:
    """The second one took the first one's index away, and the audit log called that an addition."""
    for _ in range(3):
        low = {"field": "height", "operator": "gte", "value": 1}
        high = {"field": "height", "operator": "lte", "value": 1.5}
        garden.ask(low, high)
    wait_until(lambda: "height" in garden.indexes())
    garden.ask(eq("rare", 1))
    garden.ask(eq("rare", 1))
    garden.ask(eq("rare", 1))
    wait_until(lambda: "rare" in garden.indexes())  # a turn later
    assert garden.indexes()["height"]["is_auto"] is True
    assert {event["changes"]["auto_index"]["action"] for event in garden.events()} == {"added"}


def test_an_index_comes_back_after_the_flag_was_off(garden: Garden) -> None:
    path = f"/namespaces/{garden.namespace_id}"
    for flag in (True, False, True):
        garden.patch(path, {"auto_create_indexes": flag})
        if flag:
            for _ in range(3):
                garden.ask(eq("rare", 5))
            wait_until(lambda: "rare" in garden.indexes())
        else:
            assert "rare" not in garden.indexes()


def test_the_command_of_explain_taken_as_it_stands(garden: Garden) -> None:
    garden.patch(f"/namespaces/{garden.namespace_id}", {"auto_create_indexes": False})
    before = garden.told(eq("height", 1))
    (condition,) = before["execution_plan"][0]["filters"]
    assert (condition["served_by"], condition["index"]) == ("scan", None)
    (command,) = before["optimization_suggestions"]
    garden.client.request(command["method"], command["path"], json=command["body"]).raise_for_status()
    after = garden.told(eq("height", 1))
    (condition,) = after["execution_plan"][0]["filters"]
    assert (condition["served_by"], condition["index"]) == ("index", "height")
    assert (after["optimization_suggestions"], after["execution_plan"][0]["warnings"]) == ([], [])
    assert condition["estimated_points"] == DOCUMENTS // 4
    cost = "estimated_cost"
    assert after[cost]["total_duration_ms"] < before[cost]["total_duration_ms"]
    assert "width" in garden.indexes()


@pytest.mark.slow
def test_how_much_faster_the_command_of_explain_makes_a_filter(garden: Garden) -> None:
    """Prints the factor, with 20,000 documents of which the filter lets a two-hundredth through."""
    path = f"/namespaces/{garden.namespace_id}"
    garden.patch(path, {"auto_create_indexes": False})
    collection = garden.get(f"/retrievers/{garden.everything}")["collection_ids"][0]
    for start in range(0, 20_000, 1000):
        documents = [
            {"document_id": f"m{n}", "payload": {"height": n % 200 + 100, "rare": n, "width": 1}}
            for n in range(start, start + 1000)
        ]
        garden.post(f"{path}/documents/upsert", {"collection_id": collection, "documents": documents})
    expected = {f"m{n}" for n in range(7, 20_000, 200)}

    def median_ms() -> float:
        taken = []
        for _ in range(15):
            begun = time.perf_counter()
            assert garden.ask(eq("height", 107)) == expected
            taken.append((time.perf_counter() - begun) * 1000)
        return statistics.median(taken)

    before = median_ms()
    (command,) = garden.told(eq("height", 107))["optimization_suggestions"]
    garden.client.request(command["method"], command["path"], json=command["body"]).raise_for_status()
    (condition,) = garden.told(eq("height", 107))["execution_plan"][0]["filters"]
    assert condition["served_by"] == "index"
    after = median_ms()
    factor = before / after
    print(
        f"a filter without an index: {before:.1f} ms, after explain's command {after:.1f} ms: {factor:.1f}x"
    )
