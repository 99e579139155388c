"""Judging relevance: datasets of judged queries, and evaluations that run over them in the background."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera import cli
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server
from tests.http.test_command_line import run

DATASETS = "/retrievers/evaluations/datasets"
COMPARE = "/retrievers/evaluations/compare"
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

    def clone_in_order(self, order: str) -> str:
        """Return the name of a retriever that puts the books into another order."""
        stages = self.get(f"/retrievers/{self.newest}")["stages"]
        stages[1]["config"]["parameters"]["order"] = order
        name = f"{order}-{next(_numbers)}"
        body = {"retriever_name": name, "stages": stages}
        self.post(f"/retrievers/{self.newest}/clone", body, status=201)
        return name

    def evaluate(self, dataset: str, retriever: str = "newest", **config: Any) -> tuple[Any, Any]:
        """Run an evaluation to its end; return its record and its task."""
        body = {"dataset_name": dataset, **({"evaluation_config": config} if config else {})}
        path = f"/retrievers/{retriever}/evaluations"
        started = self.send("POST", path, body, status=202)
        task = self.wait(started["task_id"])
        return self.get(f"{path}/{started['evaluation_id']}"), task


def query(query_id: str, since: Any, *relevant: str, **scores: int) -> dict[str, Any]:
    judged = {"relevant_documents": list(relevant), "relevance_scores": scores or None}
    return {"query_id": query_id, "query_input": {"since": since}, **judged}


def fill(client: httpx.Client) -> Shelf:
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
    return here


@pytest.fixture(scope="module")
def shelf(server: Server) -> Iterator[Shelf]:
    with server.client() as client:
        yield fill(client)
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
    assert (page["datasets"], page["page"], page["page_size"]) == ([{**read, "queries": []}], 1, 1)
    assert read["query_count"] == 1
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
    assert shelf.get(f"/retrievers/newest/evaluations?dataset_name={record['dataset_id']}")["total"] == 1


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


def test_an_evaluation_ends_with_its_retriever(shelf: Shelf) -> None:
    retriever = shelf.clone_in_order("asc")
    name = shelf.dataset(*(query(f"q{number}", 2000, "b11") for number in range(2000)))
    asked = {"dataset_name": name}
    started = shelf.send("POST", f"/retrievers/{retriever}/evaluations", asked, status=202)
    shelf.delete(f"/retrievers/{retriever}")
    task = shelf.get(f"/tasks/{started['task_id']}")
    assert (task["status"], task["error"]) == ("CANCELED", "The retriever was deleted.")
    assert shelf.delete(f"{DATASETS}/{name}")["success"] is True


def test_what_does_not_exist_or_is_out_of_bounds_is_refused(shelf: Shelf) -> None:
    path = f"/retrievers/{shelf.newest}/evaluations"
    assert "dataset" in shelf.refused(404, "POST", path, {"dataset_name": "nowhere"})
    name = shelf.dataset(query("q", 2000, "b11"))
    shelf.refused(404, "POST", "/retrievers/nowhere/evaluations", {"dataset_name": name})
    shelf.refused(404, "GET", f"{path}/eval_0123456789abcdef")
    for config in ({"k_values": [0]}, {"k_values": []}, {"metrics": ["luck"]}, {"k_values": [1001]}):
        body = {"dataset_name": name, "evaluation_config": config}
        assert next(iter(config)) in shelf.refused(422, "POST", path, body)
    deep = [{"k_values": [1000]}, shelf.dataset(*(query(f"q{n}", 2000, "b11") for n in range(501)))]
    body = {"dataset_name": deep[1], "evaluation_config": deep[0]}
    assert "at most 998" in shelf.refused(422, "POST", path, body)


# --- two of them -----------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/retrievers/evaluations/compare", 200)
def test_two_retrievers_are_compared_query_by_query(shelf: Shelf) -> None:
    """One finds the newest first, the other the oldest: of eight queries the newest is right at seven."""
    oldest = shelf.clone_in_order("asc")
    queries = [query(f"q{number}", 2000, "b11") for number in range(7)] + [query("old", 2000, "b00")]
    fails = {"query_id": "bad", "query_input": {}, "relevant_documents": ["b01"]}
    name = shelf.dataset(fails, *queries)
    first, second = (
        shelf.evaluate(name, retriever)[0]["evaluation_id"] for retriever in (oldest, shelf.newest)
    )
    both = {"baseline_evaluation_id": first, "candidate_evaluation_id": second}
    found = shelf.post(COMPARE, {**both, "metric": "mrr"})
    by = found["decided_by"]
    assert (by["metric"], by["k"], found["compared_queries"], found["left_out_queries"]) == (
        "mrr",
        10,
        8,
        ["bad"],
    )
    assert (by["wins"], by["losses"], by["ties"]) == (7, 1, 0)
    # b11 is the oldest's twelfth hit, so at 10 each query is all or nothing: of 256 patterns of signs, those with at
    # most one of its own kind reach as far, 9 on either side.
    assert (by["baseline"], by["candidate"], by["difference"]) == (1 / 8, 7 / 8, 6 / 8)
    assert by["p_value"] == 18 / 256
    low, high = by["interval_95"]
    assert 0 <= low < 6 / 8 < high <= 1
    assert found["verdict"] == "no_difference_shown"
    assert "does not show that there is none" in found["message"]
    assert [(each["query_id"], each["difference"]) for each in found["queries"]][6:] == [
        ("q6", 1.0),
        ("old", -1.0),
    ]
    # A larger k at which all seven are found too, and another figure; the list of queries can be cut.
    other = shelf.post(COMPARE, {**both, "metric": "recall", "k": 20, "query_limit": 2})
    assert (other["decided_by"]["p_value"], other["decided_by"]["ties"], len(other["queries"])) == (1.0, 8, 2)
    figures = {(each["metric"], each["k"]) for each in found["figures"]}
    assert len(found["figures"]) == len(figures) == 6 * 4


@pytest.mark.parametrize(("count", "is_shown"), [(6, True), (5, False)])
def test_a_difference_that_is_shown_has_a_winner_and_few_queries_have_none(
    shelf: Shelf, count: int, is_shown: bool
) -> None:
    oldest = shelf.clone_in_order("asc")
    name = shelf.dataset(*(query(f"q{number}", 2000, "b11") for number in range(count)))
    one, other = (shelf.evaluate(name, each)[0]["evaluation_id"] for each in (oldest, shelf.newest))
    found = shelf.post(COMPARE, {"baseline_evaluation_id": one, "candidate_evaluation_id": other})
    turned = shelf.post(COMPARE, {"baseline_evaluation_id": other, "candidate_evaluation_id": one})
    assert found["decided_by"]["p_value"] == turned["decided_by"]["p_value"] == 2 / 2**count
    if not is_shown:
        assert (found["verdict"], turned["verdict"]) == ("too_few_queries", "too_few_queries")
        assert found["decided_by"]["interval_95"] is None
        assert "judge more" in found["message"]
    else:
        assert (found["verdict"], turned["verdict"]) == ("candidate_better", "baseline_better")
        assert "'newest' is better" in found["message"]
        assert "'newest' is better" in turned["message"]


def test_what_cannot_be_compared_is_refused(shelf: Shelf) -> None:
    def compare(status: int, first: str, second: str, **more: Any) -> str:
        body = {"baseline_evaluation_id": first, "candidate_evaluation_id": second, **more}
        return shelf.refused(status, "POST", COMPARE, body)

    name, other = shelf.dataset(query("q", 2000, "b11")), shelf.dataset(query("q", 2000, "b11"))
    one, _ = shelf.evaluate(name, k_values=[1], metrics=["mrr"])
    two, _ = shelf.evaluate(name, k_values=[1, 5], metrics=["mrr", "f2"])
    three, _ = shelf.evaluate(name, k_values=[3])
    far, _ = shelf.evaluate(other)
    failed, _ = shelf.evaluate(shelf.dataset(query("unjudged", 2000)))
    one, two, three, far, failed = (each["evaluation_id"] for each in (one, two, three, far, failed))
    assert "two datasets" in compare(400, one, far)
    assert "Name two" in compare(400, one, one)
    assert "no metric at one k in common" in compare(400, one, three)
    assert "only completed ones" in compare(409, one, failed)
    assert "eval_0123456789abcdef" in compare(404, one, "eval_0123456789abcdef")
    assert "What both have: mrr@1." in compare(422, one, two, metric="ndcg")
    assert "What both have: mrr@1." in compare(422, one, two, k=5)
    assert "metric" in compare(422, one, two, metric="luck")


@pytest.mark.slow
def test_an_evaluation_whose_server_was_killed_goes_on_and_all_goes_with_the_namespace(
    tmp_path: Path,
) -> None:
    server = Server.start(
        tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": "evaluation.noted:2:self"}
    )
    try:
        with server.client() as client:
            place = fill(client)
            name = place.dataset(*(query(f"q{number}", 2011, "b11") for number in range(5)))
            path = f"/retrievers/{place.newest}/evaluations"
            started = place.send("POST", path, {"dataset_name": name}, status=202)
        assert server.wait_until_dead(60)
        server = Server.start(tmp_path / "data")
        with server.client() as client:
            place.client = client
            assert place.wait(started["task_id"])["status"] == "COMPLETED"
            record = place.get(f"{path}/{started['evaluation_id']}")
            assert (record["evaluated_queries"], record["overall_metrics"]["mrr"]) == (5, 1.0)
            assert [each["query_id"] for each in record["query_results"]] == [f"q{n}" for n in range(5)]
            client.delete("/v1/namespaces/judged-shelf").raise_for_status()
            with closing(sqlite3.connect(server.data / "tessera.sqlite3")) as database:
                for table in ("evaluation_datasets", "evaluations", "evaluation_queries"):
                    assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    finally:
        server.kill(group=True)


# --- from the command line -------------------------------------------------------------------------------


def tessera(server: Server, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = run(server, "retriever", *arguments, "-n", "judged-shelf")
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_a_retriever_is_run_and_explained(server: Server, shelf: Shelf) -> None:
    done = tessera(server, "run", "newest", "--input", "since=2009", "--limit", "2")
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["b11", "b10"]
    answer = json.loads(tessera(server, "run", shelf.newest, "--input", "since=2009", "--json").stdout)
    assert [hit["document_id"] for hit in answer["documents"]] == ["b11", "b10", "b09"]
    for given, said in (("since", "is no NAME=VALUE"), ("until=3", "its inputs: since")):
        assert said in tessera(server, "run", "newest", "--input", given, code=2).stderr
    for given in ("since=NaN", "since=1e999", f"since={'[' * 5000}"):  # no JSON, so it goes as it is written
        assert "whole number" in tessera(server, "run", "newest", "--input", given, code=4).stderr
    for wrong in ("..", ""):  # would be another path
        assert "no id or name" in tessera(server, "run", wrong, code=2).stderr
    assert "UTF-8" in tessera(server, "run", "\udcff", code=2).stderr
    assert "since" in tessera(server, "run", "newest", code=4).stderr
    assert "nowhere" in tessera(server, "run", "nowhere", code=4).stderr
    rows = [
        line.split("\t")
        for line in tessera(server, "explain", "newest", "--input", "since=2009").stdout.splitlines()
    ]
    assert [(row[0], row[2]) for row in rows] == [("1", "attribute_filter"), ("2", "sort_attribute")]
    assert "since" in tessera(server, "explain", "newest").stderr


def test_two_retrievers_are_compared_from_the_command_line(server: Server, shelf: Shelf) -> None:
    oldest = shelf.clone_in_order("asc")
    name = shelf.dataset(*(query(f"q{number}", 2000, "b11") for number in range(6)))
    done = tessera(server, "compare", oldest, "newest", "--dataset", name, "--metric", "mrr", "--k", "3")
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    (decided,) = [row for row in rows if row[0] == "mrr@3 *"]
    assert decided[1:4] == ["0.0000", "1.0000", "+1.0000"]
    assert decided[5:] == ["0.0312", "6", "0", "0"]
    assert [row[0] for row in rows if len(row) == 4] == [f"q{number}" for number in range(6)]
    assert done.stdout.endswith("'newest' is better.\n")
    told = json.loads(tessera(server, "compare", "newest", oldest, "--dataset", name, "--json").stdout)
    assert told["verdict"] == "baseline_better"
    assert "nowhere" in tessera(server, "compare", oldest, "newest", "--dataset", "nowhere", code=4).stderr
    unjudged = shelf.dataset(query("unjudged", 2000))
    refused = tessera(server, "compare", oldest, "newest", "--dataset", unjudged, code=1)
    assert "no relevant document" in refused.stderr


def test_a_dataset_is_imported_from_a_file(server: Server, shelf: Shelf, tmp_path: Path) -> None:
    lines, table = tmp_path / "judged.jsonl", tmp_path / "judged.CSV"
    lines.write_text(
        '{"query_id": "a", "query_input": {"since": 2009}, "relevant_documents": ["b11"], '
        '"relevance_scores": {"b11": 3}}\n\n{"query": "new", "relevant_documents": ["b10", "b11"]}\n'
    )
    table.write_text(
        '\ufeffquery,relevant_documents,relevance_scores\r\n"old,\nnew",b01 b02,2 0\r\nx,b01,\r\n'
    )
    for file, name, expected in (
        (
            lines,
            "from-lines",
            [
                ("a", {"since": 2009}, ["b11"], {"b11": 3}),
                ("line-3", {"since": "new"}, ["b10", "b11"], None),
            ],
        ),
        (
            table,
            "from-table",
            [
                ("line-2", {"since": "old,\nnew"}, ["b01", "b02"], {"b01": 2, "b02": 0}),
                ("line-4", {"since": "x"}, ["b01"], None),
            ],
        ),
    ):
        asked = ("dataset", "import", str(file), "--name", name, "--input", "since", "-n", "judged-shelf")
        done = run(server, *asked)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Dataset {name}" in done.stdout
        assert "has 2 queries" in done.stdout
        made = shelf.get(f"/retrievers/evaluations/datasets/{name}")["queries"]
        found = [
            (each["query_id"], each["query_input"], each["relevant_documents"], each["relevance_scores"])
            for each in made
        ]
        assert found == expected
    again = run(server, *asked)
    assert (again.returncode, "exists in this namespace" in again.stderr) == (4, True)


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("x.jsonl", '{"query": "a", "relevant_documents": []}\n{', 1, "x.jsonl, line 2: no JSON"),
        ("x.jsonl", '{"query": NaN, "relevant_documents": []}', 1, "line 1: no JSON (NaN"),
        ("x.jsonl", '\n{"query": "a"}', 1, "line 2: relevant_documents"),
        ("x.jsonl", '{"relevant_documents": []}', 1, "line 1: needs either query"),
        ("x.jsonl", '{"query": "a", "query_id": "q", "relevant_documents": []}\n' * 2, 1, "that of line 1"),
        ("x.jsonl", "[]", 1, "line 1: no JSON object"),
        ("x.csv", "query,ids\n", 1, "line 1: the column 'relevant_documents' is missing"),
        ("x.csv", 'query,relevant_documents\na,b\n"c,d', 1, "line 3: no CSV"),
        ("x.csv", "query,relevant_documents\na,b,c\n", 1, "line 2: 3 cells, where line 1 has 2"),
        ("x.csv", "query,relevant_documents,relevance_scores\na,b c,1\n", 1, "line 2: relevance_scores"),
        ("x.csv", "query,relevant_documents\n", 1, "0 queries; a dataset has 1 to 5000"),
        ("x.csv", b"query,relevant_documents\n\xff,b\n", 1, "line 2: these bytes are no UTF-8"),
        ("x.txt", "", 2, "must end with .jsonl, .ndjson or .csv"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_its_line_and_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | bytes, code: int, says: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = ["dataset", "import", str(file), "--name", "n", "-n", "n", "--data", str(tmp_path / "none")]
    assert cli.main(asked) == code
    assert says in capsys.readouterr().err
