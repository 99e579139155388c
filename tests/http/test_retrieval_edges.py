"""Retrieval at its edges: what templates, filters, cursors and inputs may hold, and more documents than are read."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server
from tests.media import RED, picture

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
IMAGE_URI = "mixpeek://image_extractor@v1/google_siglip_base_v1"
WORDS = ["rain", "lamp", "soup", "boots", "river", "piano", "tiger", "clock"]


@pytest.fixture(scope="module")
def loop(either_server: Server) -> Iterator[Loop]:
    with either_server.client() as client:
        extractors = [TEXT, {"feature_extractor_name": "image_extractor", "version": "v1"}, PASSTHROUGH]
        body = {"namespace_name": "retrieval edges", "feature_extractors": extractors}
        made = client.post("/v1/namespaces", json=body)
        loop = Loop(client, made.raise_for_status().json())
        bucket = loop.bucket()
        mapped = {"input_mappings": {"text": "note"}, "field_passthrough": [{"source_path": "metadata.n"}]}
        loop.collection(bucket, {**TEXT, **mapped}, collection_name="notes")
        ids = [loop.note(bucket, word, metadata={"n": n}) for n, word in enumerate(WORDS)]
        assert loop.run(bucket, ids)["status"] == "COMPLETED"
        yield loop
        client.delete(f"/v1/namespaces/{loop.namespace_id}")


def search(**parameters: Any) -> dict[str, Any]:
    if "searches" not in parameters:
        parameters = {"feature_uri": TEXT_URI, "query": "weather", "limit": 100, **parameters}
    return {"stage_id": "feature_search", "parameters": parameters}


def keep(**condition: Any) -> dict[str, Any]:
    return {"stage_id": "attribute_filter", "parameters": condition}


def execute(loop: Loop, *stages: dict[str, Any], **fields: Any) -> Any:
    return loop.post("/retrievers/execute", {"stages": list(stages), **fields})


def refused(loop: Loop, status: int, *stages: dict[str, Any], **fields: Any) -> str:
    body = {"stages": list(stages), **fields}
    return loop.refused(status, "POST", "/retrievers/execute", body)


def create(loop: Loop, *stages: dict[str, Any], status: int = 200, **fields: Any) -> Any:
    body = {"retriever_name": "edge", "collection_identifiers": ["notes"], "stages": list(stages), **fields}
    if status != 200:
        return loop.refused(status, "POST", "/retrievers", body)
    made = loop.post("/retrievers", body)
    loop.delete(f"/retrievers/{made['retriever_id']}")
    return made


def numbers(answer: Any) -> list[int]:
    return [document["n"] for document in answer["documents"]]


# --- templates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "inputs"),
    [
        ({"searches": "{{INPUT.s}}"}, {"s": [{"feature_uri": TEXT_URI, "query": "weather"}]}),
        ({"searches": ["{{INPUT.s}}"]}, {"s": {"feature_uri": TEXT_URI, "query": "weather"}}),
        ({"feature_uri": "{{INPUT.s}}", "query": "weather"}, {"s": TEXT_URI}),
        ({"feature_uri": TEXT_URI, "query": "{{INPUT.s}}"}, {"s": {"text": "weather"}}),
        ({"feature_uri": TEXT_URI, "query": "weather", "limit": "{{INPUT.s}}"}, {"s": 8}),
        ({"feature_uri": TEXT_URI, "query": "weather", "filters": "{{INPUT.s}}"}, {"s": {"n": 0}}),
        ({"feature_uri": TEXT_URI, "query": "weather", "filters": {"n": "{{INPUT.s}}"}}, {"s": 0}),
    ],
)
def test_any_parameter_may_be_an_input(loop: Loop, parameters: Any, inputs: Any) -> None:
    """A search that was an input as a whole was a 500 when its retriever was created."""
    schema = {"s": {"type": "object", "required": True}}
    create(loop, search(**parameters), input_schema=schema)
    assert numbers(execute(loop, search(**parameters), inputs=inputs))[0] == 0


def test_an_input_that_does_not_fit_is_a_422(loop: Loop) -> None:
    assert "top_k" in refused(loop, 422, search(limit="{{INPUT.k}}"), inputs={"k": "many"})
    assert "fusion" in refused(loop, 422, search(fusion="{{INPUT.k}}"), inputs={"k": "magic"})
    said = refused(
        loop, 422, search(filters="{{INPUT.k}}"), inputs={"k": {"field": "n", "operator": "like", "value": 1}}
    )
    assert "like" in said
    assert "100000" in refused(loop, 422, search(query="a {{INPUT.k}}"), inputs={"k": "x" * 100_001})


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("{{DOC.title}}", "{{DOC.title}} has no value"),
        ("{{CONTEXT.user}}", "{{CONTEXT.user}} has no value"),
        ("{{STAGE.later.count}}", "nothing, it is the first"),
    ],
)
def test_an_expression_that_can_have_no_value_is_told_at_once(
    loop: Loop, expression: str, words: str
) -> None:
    assert words in create(loop, search(query=expression), status=422)


def test_a_stage_sees_how_many_the_one_before_let_through(loop: Loop) -> None:
    stages = [
        {**search(), "stage_name": "found"},
        {"stage_id": "limit", "parameters": {"limit": "{{STAGE.found.count}}"}},
    ]
    assert len(execute(loop, *stages)["documents"]) == len(WORDS)
    wrong = [stages[0], {"stage_id": "limit", "parameters": {"limit": "{{STAGE.fund.count}}"}}]
    assert "{{STAGE.found.count}}" in create(loop, *wrong, status=422)


def test_deep_and_hostile_parameters_are_refused(loop: Loop) -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    for stage in (search(query=deep), keep(conditions={"AND": deep}), search(query="{{" + " " * 100_000)):
        answer = loop.client.post("/v1/retrievers/execute", json={"stages": [stage]}, headers=loop.headers)
        assert 400 <= answer.status_code < 500, answer.text


# --- filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (keep(field="n", operator="like", value=1), "like"),
        (keep(conditions={"AND": [{"field": "n", "operator": "gt"}]}), "needs a value"),
        (keep(conditions=[{"field": "n", "operator": "between", "value": 1}]), "between"),
        (search(filters={"OR": {"n": 1}}), "OR takes a list"),
        (search(searches=[{"feature_uri": TEXT_URI, "query": "x", "filters": {"field": "n", "operator": "x"}}]), "'x'"),
    ],
)  # fmt: skip
def test_a_wrong_filter_is_told_when_it_is_created(loop: Loop, stage: Any, words: str) -> None:
    assert words in create(loop, stage, status=422)


def test_a_filter_that_waits_for_an_input_is_read_when_it_comes(loop: Loop) -> None:
    schema = {"n": {"type": "integer"}, "op": {"type": "string"}}
    dynamic = keep(field="n", operator="gte", value={"type": "dynamic", "field": "inputs.n"})
    create(loop, dynamic, keep(field="n", operator="{{INPUT.op}}", value=1), input_schema=schema)
    assert sorted(numbers(execute(loop, dynamic, inputs={"n": 6}))) == [6, 7]
    assert "'between'" in refused(
        loop, 422, keep(field="n", operator="{{INPUT.op}}", value=1), inputs={"op": "between"}
    )


@pytest.mark.parametrize(
    "condition",
    [
        {"field": "n", "operator": "gte", "value": 4},
        {"field": "text", "operator": "contains", "value": "O"},
        {"field": "text", "operator": "regex", "value": "^[lb]"},
        {"field": "absent", "operator": "is_null"},
        {"conditions": [{"field": "n", "operator": "lt", "value": 3}, {"NOT": {"n": 1}}]},
    ],
)
def test_a_leading_filter_lets_through_what_a_later_one_does(loop: Loop, condition: Any) -> None:
    later = execute(loop, search(), keep(**condition))
    first = execute(loop, keep(**condition), search())
    assert numbers(first) == numbers(later) != []
    alone = execute(loop, keep(**condition))
    assert sorted(numbers(alone)) == sorted(numbers(later))
    counts = [[s["input_count"], s["output_count"]] for s in first["stage_statistics"]["stages"].values()]
    passed = len(numbers(first))
    assert counts == [[0, passed], [passed, passed]]
    for statistics in (*later["stage_statistics"]["stages"].values(),):
        assert isinstance(statistics["output_count"], int)
        share = statistics["output_count"] / statistics["input_count"] if statistics["input_count"] else 0
        assert statistics["efficiency"] == share


def test_two_leading_filters_narrow_each_other(loop: Loop) -> None:
    stages = [keep(field="n", operator="gte", value=2), keep(field="n", operator="lt", value=5)]
    answer = execute(loop, *stages, limit=2)
    assert answer["pagination"]["total"] == 3
    rest = execute(loop, *stages, pagination={"method": "offset", "page_size": 2, "page_number": 2})
    assert sorted(numbers(answer) + numbers(rest)) == [2, 3, 4]
    cut = execute(loop, *stages, {"stage_id": "limit", "parameters": {"limit": 5, "offset": 1}})
    assert len(numbers(cut)) == 2
    assert numbers(execute(loop, keep(field="n", operator="gt", value=99), search())) == []


# --- pages ---------------------------------------------------------------------------------------------


def test_a_cursor_is_good_for_its_search_only(loop: Loop) -> None:
    """It was good for any inputs, any filter, and any other search that was not stored."""
    asked = {"inputs": {"q": "weather"}, "filters": {"field": "n", "operator": "lt", "value": 7}}
    stage = search(query="{{INPUT.q}}")
    first = execute(loop, stage, **asked, limit=3)
    page = {"method": "cursor", "limit": 3, "cursor": first["pagination"]["next_cursor"]}
    second = execute(loop, stage, **asked, pagination=page)
    assert not set(numbers(first)) & set(numbers(second))
    assert second["pagination"]["page"] == 2
    for other in ({"inputs": {"q": "food"}}, {"filters": None}):
        assert "cursor" in refused(loop, 400, stage, **{**asked, **other}, pagination=page)
    assert "cursor" in refused(loop, 400, search(query="weather"), **asked, pagination=page)
    forged = {**page, "cursor": page["cursor"][:-2] + "AA"}
    assert "cursor" in refused(loop, 400, stage, **asked, pagination=forged)


@pytest.mark.parametrize(
    "pagination",
    [{"limit": 0}, {"limit": 501}, {"limit": "5"}, {"limit": True}, {"method": "offset", "page_number": 0}],
)
def test_pages_have_bounds(loop: Loop, pagination: Any) -> None:
    assert "pagination." in refused(loop, 422, search(), pagination=pagination)


# --- queries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vector",
    [["1.5"] * 384, [True] * 384, [None] * 384, [1e300] * 384, [], [[0.1] * 384], [[1], [1, 2]], "abc"],
)
def test_a_vector_is_a_list_of_finite_numbers(loop: Loop, vector: Any) -> None:
    refused(loop, 422, search(query={"vector": vector}))


def test_nan_is_no_json(loop: Loop) -> None:
    body = b'{"stages": [{"stage_id": "feature_search", "parameters": {"query": {"vector": [NaN]}}}]}'
    headers = {**loop.headers, "Content-Type": "application/json"}
    answer = loop.client.post("/v1/retrievers/execute", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text


def test_a_picture_is_taken_as_objects_take_it(loop: Loop) -> None:
    data = base64.encodebytes(picture(RED)).decode()
    assert "\n" in data.strip()
    for given in (data, f"data:image/png;base64,{data.strip()}"):
        stage = search(feature_uri=IMAGE_URI, query={"image": given})
        assert execute(loop, stage)["documents"] == []
    for wrong in (base64.b64encode(b"no picture").decode(), "data:image/png;base64,", 5, "s3://b/a.png"):
        assert "image" in refused(loop, 400, search(feature_uri=IMAGE_URI, query={"image": wrong}))
    cut = base64.b64encode(picture(RED, size=512)[:200]).decode()
    assert IMAGE_URI in refused(loop, 400, search(feature_uri=IMAGE_URI, query={"image": cut}))


# --- names and collections -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list", "Stages", "a/b", " a", "ret_0123456789abcdef", "a\nb"])
def test_names_that_would_be_taken_for_something_else(loop: Loop, name: str) -> None:
    assert "retriever_name" in create(loop, search(), status=422, retriever_name=name)
    made = loop.post("/retrievers", {"retriever_name": "to rename", "stages": [search()]})
    path = f"/retrievers/{made['retriever_id']}"
    assert "retriever_name" in loop.refused(422, "PATCH", path, {"retriever_name": name})
    assert loop.get(path)["retriever_name"] == "to rename"
    loop.delete(path)


def test_names_taken_and_given(loop: Loop) -> None:
    first = loop.post("/retrievers", {"retriever_name": "é one", "stages": [search()]})
    second = loop.post("/retrievers", {"retriever_name": "two", "stages": [search()]})
    path = f"/retrievers/{second['retriever_id']}"
    assert "é one" in loop.refused(409, "PATCH", path, {"retriever_name": "e\u0301 one"}), (
        "the same name composed"
    )
    changed = loop.patch(path, {"retriever_name": "second", "tags": ["a"], "description": None})
    assert (changed["retriever_name"], changed["retriever"]["tags"]) == ("second", ["a"])
    assert loop.get("/retrievers/second")["retriever_id"] == second["retriever_id"]
    listed = loop.post("/retrievers/list", {"limit": 1})
    assert listed["results"][0]["retriever_id"] == second["retriever_id"], "the newest first"
    rest = loop.post("/retrievers/list", {"limit": 1, "cursor": listed["pagination"]["next_cursor"]})
    assert [item["retriever_id"] for item in rest["results"]] == [first["retriever_id"]]
    for made in (first, second):
        loop.delete(f"/retrievers/{made['retriever_id']}")
        loop.refused(404, "DELETE", f"/retrievers/{made['retriever_id']}")


def test_no_collection_named_means_all_of_them(loop: Loop) -> None:
    """An empty list in the request found nothing, while one in the retriever meant all."""
    made = loop.post("/retrievers", {"retriever_name": "all", "stages": [search()]})
    path = f"/retrievers/{made['retriever_id']}/execute"
    bodies: list[dict[str, Any]] = [{}, {"collection_identifiers": []}, {"collection_identifiers": ["notes"]}]
    for body in bodies:
        assert len(loop.post(path, body)["documents"]) == len(WORDS)
    loop.delete(path.removesuffix("/execute"))
