"""Learned fusion from end to end: executions show, people click, weights follow; and what says so when they do not."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
CODES = [f"qx{number}zv" for number in range(8)]
LEAST = 20


class Place(Loop):
    """Eight notes, each with a code of its own; a retriever that trusts meaning, for people who look for codes."""

    notes: str
    retriever: str
    by_code: dict[str, str]

    def ask(self, code: str) -> Any:
        return self.post(f"/retrievers/{self.retriever}/execute", {"inputs": {"query": code}, "limit": 8})

    def fusion(self) -> Any:
        return self.ask(CODES[0])["stage_statistics"]["stages"]["feature_search"]["metadata"]["fusion"]

    def click(self, rng: random.Random, rounds: int) -> None:
        """Let somebody look for codes and like little else; the lower the place, the less they look."""
        said = []
        for number in range(rounds):
            code = CODES[number % len(CODES)]
            answer = self.ask(code)
            for position, hit in enumerate(answer["documents"]):
                liked = 0.95 if hit["document_id"] == self.by_code[code] else 0.05
                if rng.random() < liked / (position + 1) ** 0.7:
                    said.append(
                        {
                            "feature_id": hit["document_id"],
                            "interaction_type": ["click"],
                            "position": position,
                            "execution_id": answer["execution_id"],
                        }
                    )
        self.post("/retrievers/interactions/batch", {"interactions": said})


def stage(**fields: Any) -> dict[str, Any]:
    return {
        "stage_id": "feature_search",
        "stage_name": "feature_search",
        "parameters": {
            "searches": [
                {"feature_uri": TEXT_URI, "query": "{{INPUT.query}}", "weight": 0.9},
                {"query": "{{INPUT.query}}", "lexical": True, "weight": 0.1},
            ],
            "fusion": "learned",
            "learning_config": {"min_interactions": LEAST},
            **fields,
        },
    }


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Place]:
    with server.client() as client:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "learning", "feature_extractors": [TEXT]}
        )
        here = Place(client, made.raise_for_status().json())
        bucket = here.bucket()
        here.notes = here.collection(bucket, {**TEXT, "input_mappings": {"text": "note"}})
        here.run(bucket, [here.note(bucket, f"A note about tents and rain, {code}.") for code in CODES])
        found = here.documents(here.notes)
        here.by_code = {code: d["document_id"] for d in found for code in CODES if code in d["text"]}
        body = {
            "retriever_name": "learner",
            "stages": [stage()],
            "input_schema": {"query": {"type": "text", "required": True}},
            "cache_config": {"enabled": True},
        }
        here.retriever = here.post("/retrievers", body)["retriever_id"]
        yield here
        client.delete("/v1/namespaces/learning")


def test_weights_follow_what_people_click_and_fall_back_with_it(place: Place) -> None:
    before = place.fusion()
    assert before["weights"] == {TEXT_URI: 0.9, "bm25": 0.1} and before["executions"] == 0
    assert f"0 of {LEAST}" in before["fallback"]
    hit = place.ask(CODES[1])["documents"][0]
    assert set(hit["features"]["bm25"]) == {"rank", "score", "share"}
    explained = place.post(f"/retrievers/{place.retriever}/explain", {"inputs": {"query": "x"}})
    (note,) = (n for n in explained["execution_plan"][0]["optimization_notes"] if "weights" in n)
    assert f"0 of {LEAST}" in note and "those stated" in note

    place.click(random.Random(5), 48)
    after = place.fusion()
    assert after["fallback"] is None and after["executions"] >= LEAST
    assert after["weights"]["bm25"] > 0.5 and sum(after["weights"].values()) == pytest.approx(1)
    for code in CODES:
        assert place.ask(code)["documents"][0]["document_id"] == place.by_code[code]
    explained = place.post(f"/retrievers/{place.retriever}/explain", {"inputs": {"query": "x"}})
    assert any(
        "learned from what people chose" in n for n in explained["execution_plan"][0]["optimization_notes"]
    )
    logged = place.get(f"/retrievers/{place.retriever}/executions?limit=1")["results"][0]
    one = place.get(f"/retrievers/{place.retriever}/executions/{logged['execution_id']}")
    assert one["documents"] == [] and "metadata" not in str(one["stage_statistics"])

    # What people take back is learned no more.
    for row in place.post("/retrievers/interactions/list", {"limit": 1000})["results"]:
        place.delete(f"/retrievers/interactions/{row['interaction_id']}")
    assert place.fusion() == before


def test_what_is_erased_teaches_nothing_more(place: Place, server: Server) -> None:
    answer = place.ask(CODES[2])
    place.get(f"/retrievers/{place.retriever}/executions")  # what was shown is written by now
    mine = place.by_code[CODES[2]]
    assert shown(server, mine) > 0
    assert mine in [hit["document_id"] for hit in answer["documents"]]
    task = place.post(f"/namespaces/{place.namespace_id}/erase", {"document_ids": [mine]})
    assert server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
    assert shown(server, mine) == 0 and shown(server, place.by_code[CODES[3]]) > 0


def shown(server: Server, document_id: str) -> int:
    """Return how often a document is noted to have been shown."""
    with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
        asked = "SELECT count(*) FROM impressions WHERE document_id = ?"
        return int(connection.execute(asked, (document_id,)).fetchone()[0])


def test_stages_that_are_not_stored_and_one_search_alone_learn_nothing(place: Place) -> None:
    body = {"stages": [stage()], "inputs": {"query": "tents"}, "collection_identifiers": [place.notes]}
    told = place.post("/retrievers/execute", body)["stage_statistics"]["stages"]["feature_search"]
    assert "stored" in told["metadata"]["fusion"]["fallback"]
    alone = stage(searches=[{"feature_uri": TEXT_URI, "query": "tents"}])
    answer = place.post("/retrievers/execute", {**body, "stages": [alone]})
    assert "fusion" not in str(answer["stage_statistics"]) and len(answer["documents"]) == 7


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"algorithm": "thompson_sampling"}, "conditional_logit"),
        ({"reward_signal": "gaze"}, "positive_feedback"),
        ({"reward_signal": ""}, "click"),
        ({"context_features": ["INPUT.user_id"]}, "all users"),
        ({"min_interactions": 0}, "min_interactions"),
    ],
)
def test_what_is_not_learned_is_said_at_creation(place: Place, config: Any, says: str) -> None:
    body = {
        "retriever_name": "x",
        "stages": [stage(learning_config=config)],
        "input_schema": {"query": {"type": "text"}},
    }
    assert says in place.refused(422, "POST", "/retrievers", body)
