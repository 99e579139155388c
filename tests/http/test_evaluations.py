"""Judging relevance: datasets of judged queries, and evaluations that run over them in the background."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

DATASETS = "/retrievers/evaluations/datasets"
_numbers = itertools.count(1)


class Shelf(Loop):
    """A namespace with twelve books b00 to b11, and a retriever that puts the newest first."""

    books: str
    newest: str

    def dataset(self, *queries: Any) -> str:
        name = f"judged-{next(_numbers)}"
        body = {"dataset_name": name, "queries": list(queries)}
        assert self.send("POST", DATASETS, body, status=201)["query_count"] == len(queries)
        return name

    def evaluate(self, dataset: str, **config: Any) -> tuple[Any, Any]:
        """Run an evaluation to its end; return its record and its task."""
        body = {"dataset_name": dataset, **({"evaluation_config": config} if config else {})}
        path = f"/retrievers/{self.newest}/evaluations"
        started = self.send("POST", path, body, status=202)
        task = self.wait(started["task_id"])
        return self.get(f"{path}/{started['evaluation_id']}"), task


def query(query_id: str, since: Any, *relevant: str, **scores: int) -> dict[str, Any]:
    judged = {"relevant_documents": list(relevant), "relevance_scores": scores or None}
    return {"query_id": query_id, "query_input": {"since": since}, **judged}


@pytest.fixture(scope="module")
def shelf(server: Server) -> Iterator[Shelf]:
    with server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": "judged-shelf",
                "feature_extractors": [PASSTHROUGH],
                "payload_indexes": [{"field_name": "year", "type": "integer"}],
            },
        )
        here = Shelf(client, made.raise_for_status().json())
        here.books = here.collection(here.bucket())
        for number in range(12):
            fields = {"document_id": f"b{number:02}", "year": 2000 + number}
            here.post(f"/collections/{here.books}/documents", fields)
        conditions = {"field": "year", "operator": "gte", "value": "{{INPUT.since}}"}
        body = {
            "retriever_name": "newest",
            "collection_identifiers": [here.books],
            "input_schema": {"since": {"type": "integer", "required": True}},
            "stages": [
                {"stage_id": "attribute_filter", "parameters": conditions},
                {"stage_id": "sort_attribute", "parameters": {"sort_field": "year", "order": "desc"}},
            ],
        }
        here.newest = here.post("/retrievers", body)["retriever_id"]
        yield here
        client.delete("/v1/namespaces/judged-shelf")


@pytest.mark.operation("POST", "/v1/retrievers/evaluations/datasets", 201)
@pytest.mark.operation("GET", "/v1/retrievers/evaluations/datasets", 200)
@pytest.mark.operation("GET", "/v1/retrievers/evaluations/datasets/{dataset_identifier}", 200)
@pytest.mark.operation("DELETE", "/v1/retrievers/evaluations/datasets/{dataset_identifier}", 200)
def test_a_dataset_from_create_to_delete(shelf: Shelf) -> None:
    name = shelf.dataset(query("q1", 2000, "b10", b10=3))
    read = shelf.get(f"{DATASETS}/{name}")
    assert read["queries"] == [query("q1", 2000, "b10", b10=3)]
    assert read["internal_id"].startswith("org_")  # never the secret id
    assert shelf.get(f"{DATASETS}/{read['dataset_id']}") == read
    page = shelf.get(f"{DATASETS}?page=1&page_size=1")
    assert (page["datasets"], page["page"], page["page_size"]) == ([read], 1, 1)
    body = {"dataset_name": name, "queries": read["queries"]}
    assert read["dataset_id"] in shelf.refused(409, "POST", DATASETS, body)
    assert shelf.delete(f"{DATASETS}/{name}")["success"] is True
    shelf.refused(404, "GET", f"{DATASETS}/{read['dataset_id']}")
    shelf.refused(404, "DELETE", f"{DATASETS}/{name}")


@pytest.mark.parametrize(
    ("queries", "named"),
    [
        ([], "queries"),
        ([query("q1", 1, "a"), query("q1", 2, "b")], "query_id"),
        ([query("q1", 1, "a", a=-1)], "relevance_scores"),
        ([{"query_id": "q1", "query_input": {}}], "relevant_documents"),
    ],
)
def test_a_bad_dataset_is_refused(shelf: Shelf, queries: Any, named: str) -> None:
    assert named in shelf.refused(422, "POST", DATASETS, {"dataset_name": "bad", "queries": queries})


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/evaluations", 202)
@pytest.mark.operation("GET", "/v1/retrievers/{retriever_id}/evaluations", 200)
@pytest.mark.operation("GET", "/v1/retrievers/{retriever_id}/evaluations/{evaluation_id}", 200)
def test_an_evaluation_has_the_figures_that_a_hand_finds(shelf: Shelf) -> None:
    """Found: b11 b10 b09 b08 b07 …; the second query finds b11 alone, which is what it should."""
    name = shelf.dataset(query("graded", 2000, "b10", "b08", "b00", b10=3, b00=2), query("one", 2011, "b11"))
    record, task = shelf.evaluate(name)
    assert (task["status"], task["task_type"]) == ("COMPLETED", "api_evaluations_run")
    assert task["additional_data"]["progress"]["done"] == 2
    assert (record["status"], record["evaluated_queries"], record["skipped_queries"]) == ("completed", 2, 0)
    graded, one = record["query_results"]
    assert graded["retrieved_documents"][:5] == ["b11", "b10", "b09", "b08", "b07"]
    expected = {"precision": 0.4, "recall": 2 / 3, "f1": 0.5, "map": 1 / 3, "ndcg": 0.487932, "mrr": 0.5}
    assert graded["metrics_by_k"]["5"] == pytest.approx(expected, abs=1e-6)
    assert one["metrics_by_k"]["5"] == pytest.approx(
        {"precision": 0.2, "recall": 1, "f1": 1 / 3, "map": 1, "ndcg": 1, "mrr": 1}
    )
    assert list(record["metrics_by_k"]) == ["1", "5", "10", "20"]
    assert record["metrics_by_k"]["5"]["ndcg"] == pytest.approx((0.487932 + 1) / 2, abs=1e-6)
    assert record["overall_metrics"] == record["metrics_by_k"]["20"]
    (listed,) = shelf.get(f"/retrievers/newest/evaluations?dataset_name={name}&status=completed")[
        "evaluations"
    ]
    assert listed == {**record, "query_results": None}
    assert shelf.get(f"/retrievers/newest/evaluations?dataset_name={name}&status=failed")["total"] == 0


def test_queries_that_fail_are_listed_and_in_no_mean(shelf: Shelf) -> None:
    bad = {"query_id": "bad", "query_input": {}, "relevant_documents": ["b01"]}
    name = shelf.dataset(bad, query("unjudged", 2000), query("good", 2011, "b11"))
    record, task = shelf.evaluate(name, k_values=[1], metrics=["precision"])
    assert task["status"] == "COMPLETED_WITH_ERRORS"
    assert (record["evaluated_queries"], record["skipped_queries"]) == (1, 2)
    assert record["metrics_by_k"] == {"1": {"precision": 1.0}}
    first, second, third = record["query_results"]
    assert (first["status"], second["status"], third["status"]) == ("skipped", "skipped", "evaluated")
    assert "since" in first["error"]
    assert "no relevant document" in second["error"]


def test_an_evaluation_of_which_no_query_succeeds_has_failed(shelf: Shelf) -> None:
    record, task = shelf.evaluate(shelf.dataset(query("unjudged", 2000)))
    assert (record["status"], task["status"]) == ("failed", "FAILED")
    assert "no relevant document" in record["error_message"]
    assert record["overall_metrics"] is None


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/evaluations/{evaluation_id}/cancel", 200)
def test_an_evaluation_is_cancelled_once(shelf: Shelf) -> None:
    name = shelf.dataset(*(query(f"q{number}", 2000, "b11") for number in range(2000)))
    path = f"/retrievers/{shelf.newest}/evaluations"
    started = shelf.send("POST", path, {"dataset_name": name}, status=202)
    assert started["evaluation_id"] in shelf.refused(409, "DELETE", f"{DATASETS}/{name}")
    cancelled = shelf.post(f"{path}/{started['evaluation_id']}/cancel")
    assert (cancelled["status"], cancelled["error_message"]) == ("failed", "The evaluation was cancelled.")
    assert shelf.wait(started["task_id"])["status"] == "CANCELED"
    shelf.refused(409, "POST", f"{path}/{started['evaluation_id']}/cancel")
    shelf.delete(f"{DATASETS}/{name}")


def test_what_does_not_exist_or_is_out_of_bounds_is_refused(shelf: Shelf) -> None:
    path = f"/retrievers/{shelf.newest}/evaluations"
    assert "dataset" in shelf.refused(404, "POST", path, {"dataset_name": "nowhere"})
    name = shelf.dataset(query("q", 2000, "b11"))
    shelf.refused(404, "POST", "/retrievers/nowhere/evaluations", {"dataset_name": name})
    shelf.refused(404, "GET", f"{path}/eval_0123456789abcdef")
    for config in ({"k_values": [0]}, {"k_values": []}, {"metrics": ["luck"]}, {"k_values": [1001]}):
        body = {"dataset_name": name, "evaluation_config": config}
        assert next(iter(config)) in shelf.refused(422, "POST", path, body)
