"""Interactions: what people did with hits is stored as it was said, stays in its namespace, and goes when asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

BASE = "/retrievers/interactions"
FIRST = {"stage_id": "limit", "parameters": {"limit": 3}}


class Place(Loop):
    """A namespace with three documents and a retriever that ran once."""

    retriever: str
    execution: str

    def add(self, **fields: Any) -> Any:
        body = {"feature_id": "d0", "interaction_type": ["click"], "position": 0, **fields}
        return self.post(BASE, body)

    def listed(self, **body: Any) -> list[str]:
        answer = self.post(f"{BASE}/list", {"limit": 1000, **body})
        assert answer["items"] == answer["results"]
        return [row["interaction_id"] for row in answer["results"]]


def made(client: httpx.Client, name: str) -> Place:
    answer = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [PASSTHROUGH]})
    here = Place(client, answer.raise_for_status().json())
    collection = here.collection(here.bucket())
    for number in range(3):
        here.post(f"/collections/{collection}/documents", {"document_id": f"d{number}"})
    here.retriever = here.post("/retrievers", {"retriever_name": f"{name}-three", "stages": [FIRST]})[
        "retriever_id"
    ]
    here.execution = here.post(f"/retrievers/{here.retriever}/execute", {})["execution_id"]
    return here


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Place]:
    with server.client() as client:
        yield made(client, "interacting")
        client.delete("/v1/namespaces/interacting")


@pytest.mark.operation("POST", "/v1/retrievers/interactions", 200)
@pytest.mark.operation("GET", "/v1/retrievers/interactions/{interaction_id}", 200)
@pytest.mark.operation("POST", "/v1/retrievers/interactions/list", 200)
@pytest.mark.operation("DELETE", "/v1/retrievers/interactions/{interaction_id}", 200)
def test_an_interaction_from_create_to_delete(place: Place) -> None:
    said = {
        "feature_id": "d1",
        "interaction_type": ["view", "click", "view"],
        "position": 2,
        "user_id": "una",
        "session_id": "s1",
        "execution_id": place.execution,
        "query_snapshot": {"text": "tents", "filters": {"AND": []}},
        "document_score": 0.5,
        "result_set_size": 3,
        "feature_uri": "mixpeek://text_extractor@v1/x",
        "metadata": {"device": "phone", "seconds": 7},
        "occurred_at": "2026-01-01T10:00:00+02:00",
    }
    stored = place.post(BASE, said)
    assert stored["interaction_id"].startswith("itx_")
    assert stored["retriever_id"] == place.retriever, "the execution says whose it was"
    assert stored["interaction_type"] == ["view", "click"]
    assert stored["occurred_at"] == "2026-01-01T08:00:00.000000Z"
    assert stored["timestamp"].endswith("Z") and stored["deduplicated"] is False
    same = said.keys() - {"interaction_type", "occurred_at"}
    assert {name: stored[name] for name in same} == {name: said[name] for name in same}
    path = f"{BASE}/{stored['interaction_id']}"
    assert place.get(path) == stored
    assert stored["interaction_id"] in place.listed(user_id="una")
    by_name = place.get(f"/retrievers/{place.retriever}")["retriever_name"]
    assert place.listed(user_id="una", retriever_id=by_name) == [stored["interaction_id"]]
    gone = place.delete(path)
    assert (gone["success"], gone["interaction_id"]) == (True, stored["interaction_id"])
    assert "interaction" in place.refused(404, "GET", path)
    place.refused(404, "DELETE", path)
    assert stored["interaction_id"] not in place.listed()


@pytest.mark.operation("POST", "/v1/retrievers/interactions/batch", 200)
def test_many_are_stored_together_or_none(place: Place) -> None:
    before = place.listed()
    one = {"document_id": "d2", "interaction_type": ["purchase"], "position": 1}
    answer = place.post(f"{BASE}/batch", {"interactions": [one, {**one, "position": 5}]})
    assert (answer["created"], answer["failed"]) == (2, 0)
    ids = [each["interaction_id"] for each in answer["results"]]
    assert [each["index"] for each in answer["results"]] == [0, 1] and set(ids) <= set(place.listed())
    wrong = {"interactions": [one, {**one, "position": -1}]}
    assert "position" in place.refused(422, "POST", f"{BASE}/batch", wrong)
    wrong = {"interactions": [one, {**one, "retriever_id": "nobody"}]}
    assert "retriever" in place.refused(404, "POST", f"{BASE}/batch", wrong)
    place.refused(422, "POST", f"{BASE}/batch", {"interactions": []})
    place.refused(422, "POST", f"{BASE}/batch", {"interactions": [one] * 1001})
    assert len(place.listed()) == len(before) + 2


def test_lists_are_filtered_sorted_and_paged(place: Place) -> None:
    made = [
        place.add(user_id="lister", session_id=f"s{n % 2}", position=n, metadata={"note": f"word{n}"})
        for n in range(5)
    ]
    ids = [one["interaction_id"] for one in made]
    mine = {"user_id": "lister"}
    assert sorted(place.listed(**mine)) == sorted(ids)
    assert place.listed(**mine, filters={"position": 3}) == [ids[3]]
    high = {"AND": [{"field": "position", "operator": "gte", "value": 3}]}
    assert sorted(place.listed(**mine, filters=high)) == sorted(ids[3:])
    assert place.listed(**mine, sort={"field": "position", "direction": "desc"}) == ids[::-1]
    assert place.listed(**mine, search="WORD2") == [ids[2]]
    assert sorted(place.listed(**mine, session_id="s1")) == sorted(ids[1::2])
    assert place.listed(**mine, interaction_type="purchase") == []
    page = place.post(f"{BASE}/list?limit=2", mine)
    assert (page["pagination"]["total"], len(page["results"])) == (5, 2)
    cursor = page["pagination"]["next_cursor"]
    second = place.post(f"{BASE}/list?limit=2&cursor={cursor}", mine)
    assert [r["interaction_id"] for r in (*page["results"], *second["results"])] == place.listed(**mine)[:4]
    assert "interaction_type" in place.refused(422, "POST", f"{BASE}/list", {"interaction_type": "gaze"})
    assert place.listed(retriever_id="nowhere") == []


@pytest.mark.parametrize(
    ("status", "fields", "says"),
    [
        (422, {"interaction_type": []}, "interaction_type"),
        (422, {"interaction_type": ["gaze"]}, "click"),
        (422, {"position": "1"}, "position"),
        (422, {"position": 1.5}, "position"),
        (422, {"feature_id": ""}, "feature_id"),
        (422, {"result_set_size": 0}, "zero_results"),
        (422, {"metadata": {"x": "y" * 20_000}}, "16384"),
        (422, {"occurred_at": "soon"}, "occurred_at"),
        (422, {"document_score": "high"}, "document_score"),
        (404, {"retriever_id": "ret_0000000000000000"}, "retriever"),
    ],
)
def test_what_is_wrong_is_said(place: Place, status: int, fields: Any, says: str) -> None:
    body = {"feature_id": "d0", "interaction_type": ["click"], "position": 0, **fields}
    assert says in place.refused(status, "POST", BASE, body)


def test_edges_of_what_may_be_said(place: Place) -> None:
    nothing = place.add(interaction_type=["zero_results"], result_set_size=0)
    assert nothing["result_set_size"] is None
    later = place.add(occurred_at="2999-01-01T00:00:00Z")
    assert later["occurred_at"] == later["timestamp"]
    # One whose log is gone, or of stages that are not stored.
    assert place.add(execution_id="exec_0000000000000000")["retriever_id"] is None
    by_name = place.get(f"/retrievers/{place.retriever}")["retriever_name"]
    assert place.add(retriever_id=by_name)["retriever_id"] == place.retriever
    other = place.post("/retrievers", {"retriever_name": "other", "stages": [FIRST]})["retriever_id"]
    body = {"feature_id": "d0", "interaction_type": ["click"], "position": 0}
    wrong = {**body, "execution_id": place.execution, "retriever_id": other}
    assert place.retriever in place.refused(422, "POST", BASE, wrong)


def test_another_namespace_sees_nothing_and_deletion_takes_all(server: Server, place: Place) -> None:
    mine = place.add(user_id="walled")
    with server.client() as client:
        other = made(client, "walled-off")
        assert other.listed(user_id="walled") == []
        path = f"{BASE}/{mine['interaction_id']}"
        absent = other.refused(404, "GET", f"{BASE}/itx_{'0' * 16}")
        same = other.refused(404, "GET", path)
        assert same.replace(mine["interaction_id"], "X") == absent.replace(f"itx_{'0' * 16}", "X")
        other.refused(404, "DELETE", path)
        # An execution of elsewhere is one that is not known.
        assert other.add(execution_id=place.execution)["retriever_id"] is None
        other.refused(404, "POST", BASE, {**FIRSTLY, "retriever_id": place.retriever})
        client.delete("/v1/namespaces/walled-off")
        again = made(client, "walled-off")
        assert again.listed() == []
        client.delete("/v1/namespaces/walled-off")
    assert place.get(f"{BASE}/{mine['interaction_id']}") == mine


FIRSTLY = {"feature_id": "d0", "interaction_type": ["click"], "position": 0}


def test_the_log_of_the_server_holds_nothing_of_it(server: Server, place: Place) -> None:
    place.add(user_id="una-zqxj@example.org", session_id="sess-zqxj", query_snapshot={"text": "query-zqxj"})
    place.refused(422, "POST", BASE, {**FIRSTLY, "user_id": "una-zqxj", "position": -1})
    audited = place.get("/organizations/audit/logs?limit=1000")
    assert "zqxj" not in str(audited) and "zqxj" not in server.log
