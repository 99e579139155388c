"""What one does with a stored retriever beside running it: clones, pages, streams, logs, plans, kept results."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
TEXT = {"feature_extractor_name": "text_extractor", "version": "v1"}
_numbers = itertools.count(1)


class Shelf(Loop):
    """A namespace with twelve books and their authors, all ready-made."""

    books: str
    authors: str

    def put(self, collection: str, document_id: str, **fields: Any) -> None:
        self.post(f"/collections/{collection}/documents", {"document_id": document_id, **fields})

    def retriever(self, *stages: Any, **fields: Any) -> str:
        body = {
            "retriever_name": f"shelf-{next(_numbers)}",
            "collection_identifiers": [self.books],
            "stages": list(stages),
            **fields,
        }
        return str(self.post("/retrievers", body)["retriever_id"])

    def execute(self, retriever: str, **body: Any) -> Any:
        return self.post(f"/retrievers/{retriever}/execute", body)

    def ask_raw(self, retriever: str, body: Any, query: str = "") -> Any:
        """Return the answer to an execution with any body."""
        path = f"/v1/retrievers/{retriever}/execute{query}"
        return self.client.post(path, json=body, headers=self.headers)

    def ask(self, retriever: str, tag: str | None = None, query: str = "", **body: Any) -> Any:
        """Return the whole answer to an execution."""
        headers = {**self.headers, **({"If-None-Match": tag} if tag else {})}
        return self.client.post(f"/v1/retrievers/{retriever}/execute{query}", json=body, headers=headers)


@pytest.fixture(scope="module")
def shelf(server: Server) -> Iterator[Shelf]:
    with server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": "shelf",
                "feature_extractors": [TEXT, PASSTHROUGH],
                "payload_indexes": [{"field_name": "year", "type": "integer"}],
            },
        )
        here = Shelf(client, made.raise_for_status().json())
        bucket = here.bucket()
        here.books, here.authors = here.collection(bucket), here.collection(bucket)
        for number in range(12):
            here.put(here.books, f"b{number:02}", year=2000 + number, author=f"a{number % 3}", shelf="left")
        for number in range(3):
            here.put(here.authors, f"a{number}", name=f"Author {number}")
        yield here
        client.delete("/v1/namespaces/shelf")


FILTER = {"stage_id": "attribute_filter", "parameters": {"field": "year", "operator": "gte", "value": 2000}}
SORT = {"stage_id": "sort_attribute", "parameters": {"sort_field": "year", "order": "desc"}}
JOIN = {
    "stage_id": "document_enrich",
    "parameters": {
        "source_field": "author",
        "target_field": "document_id",
        "fields_to_merge": ["name"],
        "output_field": "by",
    },
}


def joined(shelf: Shelf) -> dict[str, Any]:
    return {**JOIN, "parameters": {**JOIN["parameters"], "target_collection_id": shelf.authors}}  # type: ignore[dict-item]


def ids(answer: Any) -> list[str]:
    return [item["document_id"] for item in answer["documents"]]


@pytest.mark.operation("POST", "/v1/retrievers", 200)
@pytest.mark.operation("POST", "/v1/retrievers/list", 200)
@pytest.mark.operation("GET", "/v1/retrievers", 200)
@pytest.mark.operation("GET", "/v1/retrievers/stages", 200)
@pytest.mark.operation("GET", "/v1/retrievers/{retriever_id}", 200)
@pytest.mark.operation("DELETE", "/v1/retrievers/{retriever_id}", 200)
def test_a_retriever_from_create_to_delete(shelf: Shelf) -> None:
    assert {"feature_search", "attribute_filter"} <= {s["stage_id"] for s in shelf.get("/retrievers/stages")}
    retriever = shelf.retriever(FILTER)
    read = shelf.get(f"/retrievers/{retriever}")
    assert shelf.get(f"/retrievers/{read['retriever_name']}") == read
    assert read in shelf.post("/retrievers/list", {"limit": 1000})["results"]
    assert read in shelf.get("/retrievers?limit=1000")["results"]
    assert shelf.delete(f"/retrievers/{retriever}")["success"] is True
    shelf.refused(404, "GET", f"/retrievers/{retriever}")


# --- clone, patch ----------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/clone", 201)
def test_a_clone_is_a_retriever_of_its_own(shelf: Shelf) -> None:
    source = shelf.retriever(FILTER, SORT, tags=["a"], description="all", cache_config={"ttl_seconds": 5})
    name = f"clone-{next(_numbers)}"
    made = shelf.post(f"/retrievers/{source}/clone", {"retriever_name": name}, status=201)
    assert made["source_retriever_id"] == source
    cloned = made["retriever"]
    before = shelf.get(f"/retrievers/{source}")
    different = {"retriever_id", "retriever_name", "created_at", "updated_at", "collection_identifiers"}
    assert {k: v for k, v in cloned.items() if k not in different} == {
        k: v for k, v in before.items() if k not in different
    }
    assert cloned["retriever_id"] != source and cloned["retriever_name"] == name
    shelf.delete(f"/retrievers/{source}")
    assert ids(shelf.execute(cloned["retriever_id"], limit=2)) == ["b11", "b10"]
    limit = {"stage_id": "limit", "parameters": {"limit": 1}}
    other = {"retriever_name": f"{name}-2", "stages": [limit], "tags": ["b"], "description": "one"}
    short = shelf.post(f"/retrievers/{name}/clone", other, status=201)["retriever"]
    assert (short["tags"], short["description"]) == (["b"], "one")
    assert len(shelf.execute(short["retriever_id"])["documents"]) == 1
    assert name in shelf.refused(409, "POST", f"/retrievers/{name}/clone", {"retriever_name": name})
    wrong = {"retriever_name": "x", "stages": [{"stage_id": "teleport"}]}
    assert "teleport" in shelf.refused(422, "POST", f"/retrievers/{name}/clone", wrong)
    shelf.refused(404, "POST", "/retrievers/nobody/clone", {"retriever_name": "y"})


@pytest.mark.operation("PATCH", "/v1/retrievers/{retriever_id}", 200)
def test_what_a_retriever_does_is_fixed(shelf: Shelf) -> None:
    retriever = shelf.retriever(FILTER)
    path = f"/retrievers/{retriever}"
    read = shelf.get(path)
    assert shelf.patch(path, {**read, "visibility": "private"})["visibility"] == "private"
    for change in (
        {"stages": [SORT]},
        {"input_schema": {"q": {"type": "text"}}},
        {"collection_ids": [shelf.authors]},
        {"cache_config": {"enabled": True}},
        {"budget_limits": {"max_time_ms": 1}},
    ):
        assert "/clone" in shelf.refused(400, "PATCH", path, {**change, "tags": ["no"]})
    assert shelf.get(path)["tags"] == []


# --- executions ------------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/executions/list", 200)
@pytest.mark.operation("GET", "/v1/retrievers/{retriever_id}/executions", 200)
@pytest.mark.operation("GET", "/v1/retrievers/{retriever_id}/executions/{execution_id}", 200)
def test_executions_are_kept_without_what_they_found(shelf: Shelf) -> None:
    wanted = {"stage_id": "limit", "parameters": {"limit": "{{INPUT.n}}"}}
    retriever = shelf.retriever(FILTER, wanted, input_schema={"n": {"type": "integer"}})
    done = [shelf.execute(retriever, inputs={"n": n}) for n in (1, 2)]
    failed = shelf.ask(retriever, inputs={"n": 0})
    assert failed.status_code == 422
    path = f"/retrievers/{retriever}/executions"
    listed = shelf.post(f"{path}/list")
    assert [item["status"] for item in listed["results"]] == ["failed", "completed", "completed"]
    assert [item["execution_id"] for item in listed["results"][1:]] == [
        item["execution_id"] for item in reversed(done)
    ]
    assert listed["pagination"].items() >= {"total": 3, "limit": 10, "offset": 0, "has_next": False}.items()
    assert shelf.get(path) == listed
    only = shelf.post(f"{path}/list", {"status": "failed", "limit": 1})
    assert (only["total"], len(only["results"])) == (1, 1)
    last = shelf.get(f"{path}/{done[1]['execution_id']}")
    assert last["stage_statistics"]["stages"]["limit"]["output_count"] == 2
    assert (last["status"], last["total_returned"], last["stages_completed"]) == ("completed", 2, 2)
    assert last["documents"] == [] and last["duration_ms"] > 0
    one = shelf.get(f"{path}/{listed['results'][0]['execution_id']}")
    assert one["error"] and one["stage_statistics"]["stages"] == {}
    shelf.refused(404, "GET", f"{path}/exec_0123456789abcdef")
    other = shelf.retriever(FILTER)
    shelf.refused(404, "GET", f"/retrievers/{other}/executions/{done[0]['execution_id']}")
    # With a retriever its executions go.
    shelf.execute(retriever, inputs={"n": 1})
    shelf.delete(f"/retrievers/{retriever}")
    shelf.refused(404, "GET", path)
    assert shelf.get(f"/retrievers/{other}/executions")["results"] == []


# --- pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [[FILTER], [FILTER, SORT]], ids=["unread", "ranked"])
@pytest.mark.parametrize("method", ["cursor", "offset", "scroll", "keyset"])
def test_every_method_shows_every_document_once(shelf: Shelf, method: str, stages: list[Any]) -> None:
    retriever = shelf.retriever(*stages)
    whole = ids(shelf.execute(retriever, limit=100))
    assert len(whole) == 12
    seen: list[str] = []
    pagination: dict[str, Any] = {"method": method, **{"offset": {"page_size": 5}}.get(method, {"limit": 5})}
    for number in range(1, 4):
        answer = shelf.execute(retriever, pagination=pagination)
        seen += ids(answer)
        told = answer["pagination"]
        assert (told["total"], told["method"], told["has_more"]) == (12, method, number < 3)
        pagination |= {
            "cursor": {"cursor": told["next_cursor"]},
            "offset": {"page_number": number + 1},
            "scroll": {"scroll_id": told.get("scroll_id")},
            "keyset": {"after": told.get("after")},
        }[method]
    assert seen == whole
    if method != "offset":
        assert told["next_cursor"] is None and told.get("scroll_id") is None and told.get("after") is None


def test_a_keyset_goes_on_where_its_document_was(shelf: Shelf) -> None:
    bucket = shelf.bucket()
    mine = shelf.collection(bucket)
    for number in range(6):
        shelf.put(mine, f"k{mine[-4:]}{number}", weight=number)
    retriever = shelf.retriever(
        {"stage_id": "sort_attribute", "parameters": {"sort_field": "weight", "order": "asc"}},
        collection_identifiers=[mine],
    )
    first = shelf.execute(retriever, pagination={"method": "keyset", "limit": 2})
    after = first["pagination"]["after"]
    # What comes in before it does not move what follows.
    shelf.put(mine, f"k{mine[-4:]}x", weight=-1)
    second = shelf.execute(retriever, pagination={"method": "keyset", "limit": 2, "after": after})
    assert [item["weight"] for item in second["documents"]] == [2, 3]
    shelf.delete(f"/collections/{mine}/documents/{after['document_id']}")
    gone = {"method": "keyset", "limit": 2, "after": {"document_id": after["document_id"]}}
    body = {"pagination": gone}
    assert "score" in shelf.refused(400, "POST", f"/retrievers/{retriever}/execute", body)


@pytest.mark.parametrize(
    ("pagination", "says"),
    [
        ({"method": "keyset", "after": "b01"}, "document_id"),
        ({"method": "keyset", "after": {"document_id": "b01", "score": "high"}}, "score"),
        ({"method": "scroll", "scroll_ttl": 59}, "60 to 3600"),
        ({"method": "scroll", "limit": 1001}, "1 to 1000"),
        ({"method": "magic"}, "'scroll'"),
    ],
)
def test_pages_that_cannot_be(shelf: Shelf, pagination: Any, says: str) -> None:
    retriever = shelf.retriever(FILTER)
    path = f"/retrievers/{retriever}/execute"
    assert says in shelf.refused(422, "POST", path, {"pagination": pagination})


def test_a_scroll_id_is_no_cursor(shelf: Shelf) -> None:
    retriever = shelf.retriever(FILTER)
    scroll = shelf.execute(retriever, pagination={"method": "scroll", "limit": 2})["pagination"]["scroll_id"]
    for page in ({"cursor": scroll}, {"method": "scroll", "scroll_id": "nonsense"}):
        shelf.refused(400, "POST", f"/retrievers/{retriever}/execute", {"pagination": page})


# --- streams ---------------------------------------------------------------------------------------------


def events(shelf: Shelf, path: str, body: Any) -> list[Any]:
    with shelf.client.stream("POST", f"/v1{path}", json=body, headers=shelf.headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/execute", 200)
@pytest.mark.operation("POST", "/v1/retrievers/execute", 200)
def test_a_stream_tells_of_each_stage_and_ends_with_the_answer(shelf: Shelf) -> None:
    stages = [FILTER, SORT, {"stage_name": "few", "stage_id": "limit", "parameters": {"limit": 3}}]
    retriever = shelf.retriever(*stages)
    plain = shelf.execute(retriever, limit=2)
    stored = events(shelf, f"/retrievers/{retriever}/execute", {"limit": 2, "stream": True})
    adhoc = events(
        shelf,
        "/retrievers/execute",
        {"limit": 2, "stream": True, "stages": stages, "collection_identifiers": [shelf.books]},
    )
    for told in (stored, adhoc):
        assert [(event["event_type"], event.get("stage_index")) for event in told] == [
            *(pair for n in range(3) for pair in (("stage_start", n), ("stage_complete", n))),
            ("execution_complete", None),
        ]
        assert len({event["execution_id"] for event in told}) == 1
        assert {event["total_stages"] for event in told} == {3}
        ends = [event for event in told if event["event_type"] == "stage_complete"]
        assert [event["statistics"]["output_count"] for event in ends] == [12, 12, 3]
        # Nobody had to read documents for the first; the others show what they leave, as far as a page goes.
        assert [ids(event) for event in ends] == [[], ["b11", "b10"], ["b11", "b10"]]
        assert ids(told[-1]) == ids(plain) and told[-1]["pagination"]["total"] == 3
    assert (
        shelf.get(f"/retrievers/{retriever}/executions/{stored[0]['execution_id']}")["status"] == "completed"
    )


def test_a_stream_says_what_goes_wrong(shelf: Shelf) -> None:
    wanted = {"stage_id": "limit", "parameters": {"limit": "{{INPUT.n}}"}}
    retriever = shelf.retriever(wanted, input_schema={"n": {"type": "integer", "required": True}})
    path = f"/retrievers/{retriever}/execute"
    # Before the first event it is an answer like any other.
    assert "n" in shelf.refused(422, "POST", path, {"stream": True})
    told = events(shelf, path, {"stream": True, "inputs": {"n": 0}})
    assert [event["event_type"] for event in told] == ["stage_start", "execution_error"]
    assert told[-1]["error"]["status"] == 422 and "limit" in told[-1]["error"]["message"]


# --- explain ---------------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/execute/explain", 200)
@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/explain", 200)
def test_explain_names_the_index_or_the_command_that_adds_it(shelf: Shelf) -> None:
    conditions = {
        "AND": [
            {"field": "year", "operator": "gte", "value": 2006},
            {"field": "author", "operator": "eq", "value": "a1"},
        ]
    }
    search = {
        "stage_id": "feature_search",
        "parameters": {"feature_uri": TEXT_URI, "query": "{{INPUT.q}}", "limit": 3},
    }
    retriever = shelf.retriever(
        {"stage_id": "attribute_filter", "parameters": {"conditions": conditions}},
        search,
        input_schema={"q": {"type": "text", "required": True}},
    )
    path = f"/retrievers/{retriever}/execute/explain"
    plan = shelf.post(path, {"inputs": {"q": "a lamp"}})
    assert shelf.post(f"/retrievers/{retriever}/explain", {"inputs": {"q": "a lamp"}}) == plan
    assert (plan["retriever_id"], plan["total_estimated_stages"]) == (retriever, 2)
    first, second = plan["execution_plan"]
    year, author = first["filters"]
    assert (year["field"], year["index"], year["index_type"], year["served_by"]) == (
        "year",
        "year",
        "integer",
        "index",
    )
    assert (year["estimated_points"], year["warning"]) == (6, None)
    assert (author["index"], author["served_by"], author["estimated_points"]) == (None, "scan", 4)
    assert (first["estimated_input"], first["estimated_output"]) == (12, 2)
    assert (second["estimated_input"], second["estimated_output"]) == (2, 2)
    (command,) = plan["optimization_suggestions"]
    assert first["warnings"] == [author["warning"]]
    assert command["path"] in author["warning"] and json.dumps(command["body"]["payload_indexes"][-1])
    # The command as it stands keeps the indexes that there are.
    answer = shelf.client.request(command["method"], command["path"], json=command["body"])
    assert answer.status_code == 200, answer.text
    again = shelf.post(path, {"inputs": {"q": "a lamp"}})["execution_plan"][0]
    assert [(item["field"], item["index_type"], item["served_by"]) for item in again["filters"]] == [
        ("year", "integer", "index"),
        ("author", "keyword", "index"),
    ]
    assert again["warnings"] == []
    # Without inputs: what can be told.
    short = shelf.post(path)
    assert short["missing_inputs"] == ["q"]
    assert short["execution_plan"][1]["optimization_notes"]
    # Filters of the request stand at the stage that is first.
    asked = {"filters": {"field": "shelf", "operator": "regex", "value": "^l"}, "inputs": {"q": "x"}}
    regex = shelf.post(path, asked)["execution_plan"][0]["filters"][0]
    assert (regex["source"], regex["served_by"]) == ("the request's filters", "scan")
    assert "no index serves regex" in regex["warning"]


def test_explain_shows_the_filters_of_a_query_that_gets_further_forms(shelf: Shelf) -> None:
    author = {"field": "shelf", "operator": "eq", "value": "a1"}
    searching = {
        "searches": [{"feature_uri": TEXT_URI, "query": "a lamp", "filters": author}],
        "final_top_k": 2,
    }
    parameters = {"synonyms": {"lamp": ["light"]}, "feature_search_config": searching}
    retriever = shelf.retriever({"stage_id": "query_expand", "parameters": parameters})
    (stage,) = shelf.post(f"/retrievers/{retriever}/execute/explain")["execution_plan"]
    (told,) = stage["filters"]
    assert (told["source"], told["field"], told["served_by"]) == ("filters of search 0", "shelf", "scan")
    assert stage["warnings"] == [told["warning"]]
    assert (stage["estimated_output"], stage["estimate_basis"]) == (2, "rule")
    assert stage["estimated_duration_ms"] > 5


# --- kept results ----------------------------------------------------------------------------------------


def test_a_result_is_kept_until_anything_is_written(shelf: Shelf) -> None:
    retriever = shelf.retriever(SORT, joined(shelf), cache_config={})

    def ask(**more: Any) -> tuple[str, Any]:
        answer = shelf.ask(retriever, limit=3, **more)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-cache-status"], answer.json()

    status, first = ask()
    assert (status, first["cache_hit"], first["documents"][0]["by"]) == ("MISS", False, {"name": "Author 2"})
    status, second = ask()
    assert (status, second["cache_hit"]) == ("HIT", True)
    assert second["documents"] == first["documents"] and second["pagination"] == first["pagination"]
    assert second["execution_id"] != first["execution_id"]
    assert {s["cache_hit"] for s in second["stage_statistics"]["stages"].values()} == {True}
    assert ask(filters={"year": 2003})[0] == "MISS", "another question"
    # A write to the collection that is joined.
    shelf.put(shelf.authors, "a2", name="Renamed")
    status, third = ask()
    assert (status, third["documents"][0]["by"]) == ("MISS", {"name": "Renamed"})
    assert ask()[0] == "HIT"
    shelf.delete(f"/collections/{shelf.authors}/documents/a2")
    status, fourth = ask()
    assert (status, "by" in fourth["documents"][0]) == ("MISS", False)
    shelf.put(shelf.authors, "a2", name="Author 2")
    # The retriever's own change.
    ask()
    shelf.patch(f"/retrievers/{retriever}", {"description": "changed"})
    assert ask()[0] == "MISS"
    shelf.delete(f"/retrievers/{retriever}")


def test_an_etag_saves_the_answer(shelf: Shelf) -> None:
    retriever = shelf.retriever(SORT, cache_config={"enabled": True, "ttl_seconds": 60})
    first = shelf.ask(retriever, limit=3)
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
        again = shelf.ask(retriever, known, limit=3)
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], again.headers["x-cache-status"]) == (tag, "HIT")
    assert shelf.ask(retriever, '"other"', limit=3).status_code == 200
    # A write that changes nothing of the answer: read anew, and still the same.
    shelf.put(shelf.authors, "a9", name="Nobody")
    still = shelf.ask(retriever, tag, limit=3)
    assert (still.status_code, still.headers["x-cache-status"]) == (304, "MISS")
    shelf.put(shelf.books, "b99", year=2099, author="a1")
    new = shelf.ask(retriever, tag, limit=3)
    assert new.status_code == 200 and new.headers["etag"] != tag and ids(new.json())[0] == "b99"
    shelf.delete(f"/collections/{shelf.books}/documents/b99")


def test_what_is_not_kept(shelf: Shelf) -> None:
    plain, off = shelf.retriever(SORT), shelf.retriever(SORT, cache_config={"enabled": False})
    on = shelf.retriever(SORT, cache_config={})
    for retriever, query in ((plain, ""), (off, ""), (on, "?skip_cache=true"), (on, "?return_vectors=true")):
        for _ in range(2):
            answer = shelf.ask(retriever, query=query, limit=1)
            assert answer.headers["x-cache-status"] == "BYPASS" and "etag" not in answer.headers
            assert answer.json()["cache_hit"] is False
    bad = {"retriever_name": "x", "stages": [SORT], "cache_config": {"ttl_seconds": 0}}
    assert "ttl_seconds" in shelf.refused(422, "POST", "/retrievers", bad)


@pytest.mark.parametrize(
    "pairs", [100, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_no_write_is_ever_hidden(server: Server, shelf: Shelf, pairs: int) -> None:
    """Write, then read: the answer has it, while others ask the same all the time and keep what they get."""
    rng = random.Random(20261128)
    bucket = shelf.bucket()
    items, names = shelf.collection(bucket), shelf.collection(bucket)
    join = {**JOIN["parameters"], "target_collection_id": names}  # type: ignore[dict-item]
    retriever = shelf.retriever(
        {"stage_id": "sort_attribute", "parameters": {"sort_field": "rank", "order": "asc"}},
        {"stage_id": "document_enrich", "parameters": join},
        collection_identifiers=[items],
        cache_config={},
    )
    truth: dict[str, tuple[int, str]] = {}
    labels = {f"{names[-6:]}n{n}": "" for n in range(3)}
    stop = threading.Event()
    wrong: list[str] = []

    def others() -> None:
        with server.client() as client:
            while not stop.is_set():
                answer = client.post(
                    f"/v1/retrievers/{retriever}/execute", json={"limit": 500}, headers=shelf.headers
                )
                if answer.status_code != 200:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=others, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    statuses: dict[str, int] = {}
    try:
        for number in range(pairs):
            way = rng.choice(["put", "put", "delete", "label"])
            if way == "label":
                name = rng.choice(sorted(labels))
                labels[name] = f"label {number}"
                shelf.put(names, name, name=labels[name])
            elif way == "put" or not truth:
                document_id = f"{items[-6:]}i{rng.randrange(20)}"
                truth[document_id] = (number, rng.choice(sorted(labels)))
                shelf.put(items, document_id, rank=number, author=truth[document_id][1])
            else:
                document_id = rng.choice(sorted(truth))
                del truth[document_id]
                shelf.delete(f"/collections/{items}/documents/{document_id}")
            answer = shelf.ask(retriever, limit=500)
            assert answer.status_code == 200, answer.text
            status = answer.headers["x-cache-status"]
            statuses[status] = statuses.get(status, 0) + 1
            found = [
                (item["document_id"], (item["rank"], item["author"]), (item.get("by") or {}).get("name", ""))
                for item in answer.json()["documents"]
            ]
            expected = [
                (document_id, place, labels[place[1]])
                for document_id, place in sorted(truth.items(), key=lambda pair: pair[1][0])
            ]
            assert found == expected, (number, way, status)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    print(f"{pairs} pairs: {statuses}")
    # It was a cache all the while.
    assert shelf.ask(retriever, limit=500).status_code == 200
    assert shelf.ask(retriever, limit=500).headers["x-cache-status"] == "HIT"


# --- the short way of plain requests ---------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/execute", 200)
@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/execute", 404)
@pytest.mark.operation("POST", "/v1/retrievers/{retriever_id}/execute", 422)
def test_a_plain_request_is_answered_as_any_other(shelf: Shelf) -> None:
    """A query or an If-None-Match sends a request the framework's way; the answers are the same."""
    retriever = shelf.retriever(FILTER, input_schema={"q": {"type": "text", "required": True}})
    bodies: list[Any] = [
        {"inputs": {"q": "x"}, "limit": 3, "unknown": {"key": 1}},
        {"inputs": {"q": "x"}, "filters": {"AND": [{"field": "year", "operator": "eq", "value": 2003}]}},
        {"inputs": {}},
        {"inputs": [1]},
        {"inputs": {"q": "x"}, "limit": "many"},
        [],
        "text",
    ]
    for body in bodies:
        plain = shelf.ask_raw(retriever, body)
        other = shelf.ask_raw(retriever, body, "?return_vectors=false")
        assert plain.status_code == other.status_code, (body, plain.text)
        for header in ("content-type", "x-cache-status", "x-ignored-fields"):
            assert plain.headers.get(header) == other.headers.get(header)
        one, two = plain.json(), other.json()
        assert one.keys() == two.keys()
        for name in ("documents", "pagination", "detail", "status"):
            assert one.get(name) == two.get(name), (body, name)
        assert [one.get("error") and one["error"]["message"]] == [
            two.get("error") and two["error"]["message"]
        ]
    assert shelf.ask_raw("ret_none", bodies[0]).status_code == 404
    assert shelf.ask_raw(retriever, bodies[0]).headers["x-ignored-fields"] == "unknown"
