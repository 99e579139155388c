"""Retrievers: every shape of a stage, every kind of query, what is refused, and what stays apart."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import Loop
from tests.http.processes import Server
from tests.media import GREEN, RED, picture

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
IMAGE_URI = "mixpeek://image_extractor@v1/google_siglip_base_v1"
TEXTS = {
    "tent": ("A tent that withstands heavy rain and strong wind.", 2019),
    "lamp": ("A reading lamp with warm light.", 2021),
    "soup": ("Simmer red lentils with ginger to a thick soup.", 2023),
    "boots": ("Hiking boots with a sole that grips on wet rock.", 2025),
}
SEARCH = {
    "stage_name": "search",
    "stage_type": "filter",
    "config": {
        "stage_id": "feature_search",
        "parameters": {"feature_uri": TEXT_URI, "input": {"text": "{{INPUT.q}}"}, "limit": 10},
    },
}
SCHEMA = {"q": {"type": "text", "required": True}}


class Place(Loop):
    """A namespace with four texts and two pictures."""

    texts: str
    pictures: str


@pytest.fixture(scope="module")
def place(either_server: Server) -> Iterator[Place]:
    with either_server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": "retrievers",
                "feature_extractors": [
                    {"feature_extractor_name": name, "version": "v1"}
                    for name in ("text_extractor", "image_extractor")
                ],
                "payload_indexes": [{"field_name": "metadata.year", "type": "integer"}],
            },
        )
        here = Place(client, made.raise_for_status().json())
        bucket = here.bucket()
        here.texts = here.collection(
            bucket,
            {
                "feature_extractor_name": "text_extractor",
                "version": "v1",
                "input_mappings": {"text": "note"},
                "field_passthrough": [{"source_path": "metadata.year"}, {"source_path": "metadata.name"}],
            },
        )
        ids = [
            here.note(bucket, text, metadata={"year": year, "name": name})
            for name, (text, year) in TEXTS.items()
        ]
        assert here.run(bucket, ids)["status"] == "COMPLETED"
        images = here.bucket({"image": {"type": "image"}})
        here.pictures = here.collection(
            images,
            {
                "feature_extractor_name": "image_extractor",
                "version": "v1",
                "input_mappings": {"image": "image"},
                "field_passthrough": [{"source_path": "metadata.name"}],
            },
        )
        ids = [
            here.object(
                images,
                {
                    "blobs": [{"property": "image", "type": "image", "data": _encoded(colour)}],
                    "metadata": {"name": name},
                },
            )
            for name, colour in (("red", RED), ("green", GREEN))
        ]
        assert here.run(images, ids)["status"] == "COMPLETED"
        yield here
        client.delete(f"/v1/namespaces/{here.namespace_id}")


def _encoded(colour: tuple[int, int, int]) -> str:
    return base64.b64encode(picture(colour)).decode()


def _run(
    place: Place, stages: list[Any], body: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """Execute stages without storing them."""
    sent = {"stages": stages, "collection_identifiers": [place.texts], **fields, **(body or {})}
    answer: dict[str, Any] = place.post("/retrievers/execute", sent)
    return answer


def _names(answer: dict[str, Any]) -> list[str]:
    return [document["name"] for document in answer["documents"]]


def _feature(**parameters: Any) -> dict[str, Any]:
    return {"stage_id": "feature_search", "parameters": {"feature_uri": TEXT_URI, **parameters}}


def _stage(stage_id: str, **parameters: Any) -> dict[str, Any]:
    return {"stage_id": stage_id, "parameters": parameters}


# --- stored retrievers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(SEARCH, id="config"),
        pytest.param(
            {
                "stage_type": "filter",
                "stage_id": "feature_search",
                "parameters": SEARCH["config"]["parameters"],
            },
            id="flat",
        ),
        pytest.param(
            {
                "stage_name": "knn_search",
                "version": "v1",
                "parameters": {
                    "feature_address": "mixpeek://text_extractor@v1/text_embedding",
                    "input_mapping": {"text": "q"},
                    "limit": 10,
                },
            },
            id="november 2025",
        ),
        pytest.param(
            {
                "type": "feature_search",
                "feature_extractor": {"type": "text"},
                "query": "{{INPUT.q}}",
                "limit": 10,
            },
            id="high level",
        ),
    ],
)
def test_every_shape_of_a_stage_becomes_the_first_and_finds_the_same(
    place: Place, stage: dict[str, Any]
) -> None:
    made = place.post(
        "/retrievers",
        {
            "retriever_name": f"shape {stage.get('stage_name', stage.get('type', 'flat'))}",
            "collection_identifiers": [place.texts],
            "input_schema": SCHEMA,
            "stages": [stage],
        },
    )
    assert made["retriever"]["retriever_id"] == made["retriever_id"]
    (stored,) = made["stages"]
    assert stored["config"]["stage_id"] == "feature_search"
    assert stored["parameters"] == stored["config"]["parameters"]
    assert stored["stage_type"] == "filter"
    path = f"/retrievers/{made['retriever_id']}"
    assert place.get(path)["stages"] == made["stages"]
    answer = place.post(f"{path}/execute", {"inputs": {"q": "sleeping outside in bad weather"}})
    assert _names(answer)[0] == "tent"
    scores = [document["score"] for document in answer["documents"]]
    assert scores == sorted(scores, reverse=True)
    (statistics,) = answer["stage_statistics"]["stages"].values()
    assert (statistics["input_count"], statistics["output_count"], statistics["efficiency"]) == (0, 4, 0.0)
    place.delete(path)
    place.refused(404, "GET", path)


def test_metadata_changes_and_stages_do_not(place: Place) -> None:
    body = {"retriever_name": "one", "stages": [SEARCH], "input_schema": {"properties": SCHEMA}}
    made = place.post("/retrievers", {**body, "collection_ids": [place.texts]})
    assert made["input_schema"]["q"]["type"] == "text"
    assert "one" in place.refused(409, "POST", "/retrievers", body)
    assert "clone" in place.refused(400, "PATCH", "/retrievers/one", {"tags": ["t"], "stages": []})
    # Whoever sends back what was read changes nothing of it.
    same = {**made, "description": "d", "tags": ["t"]}
    changed = place.patch("/retrievers/one", same)
    assert (changed["description"], changed["tags"], changed["stages"]) == ("d", ["t"], made["stages"])
    listed = place.post("/retrievers/list", {"search": "ON"})
    assert [item["retriever_id"] for item in listed["results"]] == [made["retriever_id"]]
    assert listed["pagination"]["total"] == listed["total_count"] == 1
    place.delete("/retrievers/one")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"stages": [{"stage_id": "teleport"}]}, 422, ["teleport", "feature_search"]),
        ({"stages": []}, 422, ["stages"]),
        (
            {"stages": [_feature(feature_uri="mixpeek://text_extractor@v1/nothing", query="x")]},
            400,
            [TEXT_URI],
        ),
        ({"stages": [_feature(feature_uri="no uri", query="x")]}, 400, ["no uri", TEXT_URI]),
        ({"collection_identifiers": ["col_0000000000000000"]}, 400, ["col_0000000000000000"]),
        ({"stages": [_feature(query="{{INPUT.other}}")]}, 422, ["INPUT.other", "q"]),
        ({"stages": [_feature(query="{{INPUT.q | upper}}")]}, 422, ["INPUT.q | upper", "{{INPUT.name}}"]),
        ({"stages": [_feature(query="{{ 7 * 7 }}")]}, 422, ["7 * 7"]),
        ({"stages": [{"stage_id": "limit", "parameters": {"limit": 0}}]}, 422, ["limit"]),
        ({"stages": [{"stage_id": "limit", "parameters": {"limit": True}}]}, 422, ["limit", "not true"]),
        ({"stages": [_feature(query="{{INPUT.q}}", facets=True)]}, 422, ["facets", "list"]),
        ({"stages": [_feature(query="{{INPUT.q}}", facets=0)]}, 422, ["facets", "list"]),
        ({"stages": [_feature(query="{{INPUT.q}}", facets=[True])]}, 422, ["facets"]),
        (
            {"stages": [_feature(query="{{INPUT.q}}", collection_identifiers=0)]},
            422,
            ["collection_identifiers"],
        ),
        ({"stages": [{"stage_id": "attribute_filter", "parameters": {}}]}, 422, ["conditions"]),
        ({"stages": [_stage("group_by", field="internal_id")]}, 422, ["internal_id"]),
        (
            {
                "stages": [
                    _stage("json_transform", template={"a": "{{DOC.internal_id}} {{STAGE.search.count}}"})
                ]
            },
            422,
            ["{{DOC.internal_id}}", "{{STAGE.search.count}}"],
        ),
        (
            {"stages": [_stage("document_enrich", collection_id="col_0", source_field="name")]},
            400,
            ["target_collection_id", "col_0"],
        ),
        (
            {"stages": [_stage("document_enrich", collection_id="{{INPUT.q}}", source_field="name")]},
            422,
            ["target_collection_id"],
        ),
        ({"input_schema": {"q": {"type": "poem"}}}, 422, ["q"]),
        (
            {"input_schema": {**SCHEMA, "n": {"type": "integer", "default": "abc"}}},
            422,
            ["default of input 'n'", "whole number", "'abc'"],
        ),
        (
            {"input_schema": {**SCHEMA, "n": {"type": "integer", "enum": [1, "2"]}}},
            422,
            ["enum of input 'n'", "'2'"],
        ),
    ],
)
def test_what_is_wrong_is_told_when_it_is_created(
    place: Place, change: dict[str, Any], status: int, words: list[str]
) -> None:
    body = {
        "retriever_name": "wrong",
        "collection_identifiers": [place.texts],
        "stages": [SEARCH],
        "input_schema": SCHEMA,
    }
    said = place.refused(status, "POST", "/retrievers", {**body, **change})
    for word in words:
        assert word in said
    place.refused(404, "GET", "/retrievers/wrong")


def test_an_input_is_of_its_type_or_refused_by_name(place: Place) -> None:
    filtering = _stage("attribute_filter", field="metadata.year", operator="gte", value="{{INPUT.since}}")
    kinds: dict[str, tuple[Any, list[Any]]] = {
        "integer": (2020, ["abc", "2020", 2020.5, True, [2020], {}]),
        "number": (2020.5, ["abc", False]),
        "date": ("2020-01-31", ["tomorrow", 2020]),
        "string": ("2020", [2020, True]),
    }
    for kind, (good, wrong) in kinds.items():
        body = {
            "collection_identifiers": [place.texts],
            "input_schema": {"since": {"type": kind}},
            "stages": [filtering],
        }
        place.post("/retrievers/execute", {**body, "inputs": {"since": good}})
        for value in wrong:
            asked = {**body, "inputs": {"since": value}}
            said = place.refused(422, "POST", "/retrievers/execute", asked)
            assert "Input since must be" in said
    stored = {**body, "retriever_name": "typed", "input_schema": {"since": {"type": "integer"}}}
    place.post("/retrievers", stored)
    for path in ("execute", "execute/explain"):
        said = place.refused(422, "POST", f"/retrievers/typed/{path}", {"inputs": {"since": "abc"}})
        assert said == "Input since must be a whole number, not 'abc'."


# --- queries -------------------------------------------------------------------------------------------


def test_a_missing_input_is_named_and_a_default_fills_it(place: Place) -> None:
    fields = {"stages": [SEARCH], "input_schema": SCHEMA, "collection_identifiers": [place.texts]}
    assert "q" in place.refused(422, "POST", "/retrievers/execute", fields)
    schema = {"q": {"type": "text", "default": "something to eat"}}
    assert _names(_run(place, [SEARCH], input_schema=schema))[0] == "soup"


def test_a_query_may_be_a_vector_or_a_document(place: Place) -> None:
    body = {"inputs": {"q": "light for reading"}, "input_schema": SCHEMA}
    sent = {"stages": [SEARCH], "collection_identifiers": [place.texts], **body}
    first = place.post("/retrievers/execute?return_vectors=true", sent)["documents"][0]
    assert first["name"] == "lamp"
    (vector,) = [v for k, v in _vectors(first).items() if k.endswith("embedding")]
    assert len(vector) == 384
    by_vector = _run(place, [_feature(query={"vector": vector}, limit=1)])
    assert _names(by_vector) == ["lamp"]
    assert by_vector["documents"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert _names(_run(place, [_feature(query={"document_id": first["document_id"]}, limit=1)])) == ["lamp"]


def _vectors(document: dict[str, Any]) -> dict[str, Any]:
    found = document.get("vectors") or document.get("_vectors") or {}
    assert found, f"no vectors among {sorted(document)}"
    return dict(found)


def test_a_picture_finds_its_like(place: Place) -> None:
    stage = {
        "stage_id": "feature_search",
        "parameters": {"feature_uri": IMAGE_URI, "query": {"image": _encoded(RED)}},
    }
    answer = _run(place, [stage], collection_identifiers=[place.pictures])
    assert _names(answer) == ["red", "green"]


@pytest.mark.parametrize(
    ("stage", "status", "words"),
    [
        (_feature(query={"vector": [1.0, 2.0]}), 400, ["2", "384"]),
        (_feature(query={"vector": ["a"]}), 422, ["numbers"]),
        (_feature(query={"image": "no base64!"}), 400, ["base64"]),
        (_feature(query={"image": "ftp://example.org/a.png"}), 400, ["URL", "ftp", "https"]),
        (_feature(query={"document_id": "doc_" + "0" * 32}), 404, ["doc_"]),
        (_feature(query="   "), 422, ["blank"]),
        (_feature(), 422, ["query"]),
        (
            _feature(query="x", filters={"field": "a", "operator": "like", "value": 1}),
            422,
            ["like", "contains"],
        ),
        (
            {"stage_id": "feature_search", "parameters": {"feature_uri": IMAGE_URI, "query": "a red car"}},
            400,
            ["text", "clip"],
        ),
    ],
)
def test_a_query_that_cannot_be_answered_says_why(
    place: Place, stage: dict[str, Any], status: int, words: list[str]
) -> None:
    sent = {"stages": [stage], "collection_identifiers": [place.texts]}
    said = place.refused(status, "POST", "/retrievers/execute", sent)
    for word in words:
        assert word.lower() in said.lower()


def test_filters_narrow_before_the_nearest_are_taken(place: Place) -> None:
    after_2020 = {"field": "metadata.year", "operator": "gt", "value": 2020}
    answer = _run(place, [_feature(query="camping in the rain", limit=1)], filters=after_2020)
    assert _names(answer) == ["boots"]
    inside = _run(place, [_feature(query="camping in the rain", limit=1, filters=after_2020)])
    assert _names(inside) == ["boots"]


@pytest.mark.parametrize("case", ["ROCK", "rock"])
def test_an_attribute_filter_means_the_same_first_and_later(place: Place, case: str) -> None:
    wanted = {
        "stage_id": "attribute_filter",
        "parameters": {
            "conditions": {
                "OR": [
                    {"field": "metadata.year", "operator": "lt", "value": 2020},
                    {"field": "text", "operator": "contains", "value": case},
                ]
            }
        },
    }
    first = _run(place, [wanted])
    later = _run(place, [_feature(query="anything", limit=10), wanted])
    assert sorted(_names(first)) == sorted(_names(later)) == ["boots", "tent"]
    narrowed = _run(place, [wanted, _feature(query="a soup", limit=10)])
    assert sorted(_names(narrowed)) == ["boots", "tent"]


def test_two_searches_are_fused(place: Place) -> None:
    searches = [
        {"feature_uri": TEXT_URI, "query": text, "top_k": 1, "weight": weight}
        for text, weight in (("a tent in the rain", 1), ("lentil soup", 2))
    ]
    answer = _run(place, [{"stage_id": "feature_search", "parameters": {"searches": searches}}])
    assert _names(answer) == ["soup", "tent"]
    # Reciprocal rank fusion: weight / (60 + rank).
    assert [document["score"] for document in answer["documents"]] == pytest.approx([2 / 61, 1 / 61])
    every = [{"feature_uri": TEXT_URI, "query": text} for text in ("a tent in the rain", "lentil soup")]
    for method in ("rrf", "dbsf", "weighted", "max"):
        stage = {"stage_id": "feature_search", "parameters": {"searches": every, "fusion": method}}
        scores = [document["score"] for document in _run(place, [stage])["documents"]]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)


def test_limits_and_pages_cut_without_gaps(place: Place) -> None:
    everything = _names(_run(place, [_feature(query="outdoor", limit=10)]))
    assert len(everything) == 4
    assert (
        _names(
            _run(
                place,
                [_feature(query="outdoor", limit=10), {"stage_id": "limit", "parameters": {"limit": 2}}],
            )
        )
        == everything[:2]
    )
    pages: list[str] = []
    cursor = None
    while True:
        pagination = {"method": "cursor", "limit": 3, **({"cursor": cursor} if cursor else {})}
        answer = _run(place, [_feature(query="outdoor", limit=10)], pagination=pagination)
        pages += _names(answer)
        cursor = answer["pagination"]["next_cursor"]
        if cursor is None:
            break
    assert pages == everything
    second = _run(
        place,
        [_feature(query="outdoor", limit=10)],
        pagination={"method": "offset", "page_size": 3, "page_number": 2},
    )
    assert _names(second) == everything[3:]
    said = place.refused(
        422,
        "POST",
        "/retrievers/execute",
        {"stages": [_feature(query="x")], "pagination": {"method": "magic"}},
    )
    assert "cursor" in said


def test_stages_work_on_what_the_ones_before_let_through(place: Place) -> None:
    """Sorted, joined and put in another form before the page is cut; a first stage reads the collections."""
    join = _stage(
        "document_enrich",
        collection_id=place.texts,
        source_field="name",
        lookup_field="name",
        select_fields="year",
        result_field="twin",
    )
    form = _stage(
        "json_transform", template={"name": "{{DOC.name}}", "told": "{{DOC.twin.year}} {{INPUT.q}}"}
    )
    stages = [
        _feature(query="{{INPUT.q}}", limit=10),
        _stage("score_normalize"),
        _stage("sort_attribute", sort_field="year"),
        join,
        form,
    ]
    answer = _run(place, stages, inputs={"q": "tea"}, limit=3)
    assert [each["told"] for each in answer["documents"]] == ["2025 tea", "2023 tea", "2021 tea"]
    assert "year" not in answer["documents"][0]
    assert answer["pagination"]["total"] == 4
    cursor = answer["pagination"]["next_cursor"]
    rest = _run(place, stages, inputs={"q": "tea"}, limit=3, pagination={"cursor": cursor})
    assert _names(rest) == ["tent"]
    scores = [each["score"] for each in answer["documents"] + rest["documents"]]
    assert (min(scores), max(scores)) == (0, 1)
    place.refused(422, "POST", "/retrievers/execute", {"stages": [form], "inputs": {}})
    elsewhere = {**join["parameters"], "collection_id": place.pictures, "allow_missing": False}
    assert _run(place, [_stage("document_enrich", **elsewhere)])["documents"] == []


def test_stages_that_come_first_read_the_collections(place: Place) -> None:
    newer = _stage("attribute_filter", field="year", operator="gte", value=2021)
    assert _names(_run(place, [newer, _stage("sort_attribute", field="year", order="asc")])) == [
        "lamp", "soup", "boots",
    ]  # fmt: skip
    figures = [{"function": "avg", "field": "year"}, {"function": "count"}]
    reckoned = [newer, _stage("aggregate", aggregations=figures), _stage("mmr")]
    (found,) = _run(place, reckoned, return_vectors=True)["documents"]
    assert found["aggregations"] == {"avg_year": 2023, "count": 3}
    assert found["collection_id"] == place.texts
    (found,) = _run(place, [newer, _stage("rag_prepare", citation=False)])["documents"]
    assert len(found["citations"]) == 3
    assert TEXTS["soup"][0] in found["context"]
    assert place.namespace_id not in found["context"]
    sampled = [_names(_run(place, [_stage("sample", size=2)], return_vectors=True)) for _ in range(2)]
    assert len(sampled[0]) == 2
    assert sampled[0] == sampled[1]
    assert len(_run(place, [_stage("group_by", field="name", max_groups=3)])["documents"]) == 3


def test_hits_unlike_each_other_come_first_by_their_stored_vectors(place: Place) -> None:
    search = _feature(query="a tent in the rain", limit=10)
    alone = _names(_run(place, [search]))
    assert _names(_run(place, [search, _stage("mmr", **{"lambda": 1, "feature_uri": TEXT_URI})])) == alone
    several = _names(_run(place, [search, _stage("mmr", **{"lambda": 0.3})]))
    assert several[0] == alone[0]
    assert sorted(several) == sorted(alone)
    wrong = {"stages": [search, _stage("mmr", feature_uri="mixpeek://no@v1/thing")]}
    assert TEXT_URI in place.refused(400, "POST", "/retrievers/execute", wrong)


@pytest.mark.operation("POST", "/v1/documents/search", 200)
def test_documents_are_searched_without_a_retriever(place: Place) -> None:
    sent = {"query": "something to eat", "collection_ids": [place.texts], "page_size": 2}
    answer = place.post("/documents/search", sent)
    assert _names(answer)[0] == "soup"
    assert len(answer["results"]) == 2


@pytest.mark.parametrize(
    "text", ["{{INPUT.q}}", "{{7*7}}", "'; DROP TABLE namespaces; --", "${jndi:x}", "{% for %}"]
)
def test_an_input_is_never_evaluated(place: Place, text: str) -> None:
    answer = _run(place, [SEARCH], inputs={"q": text}, input_schema=SCHEMA)
    assert len(answer["documents"]) == 4


# --- apart ---------------------------------------------------------------------------------------------


def test_another_namespace_sees_neither_retriever_nor_documents(place: Place, either_server: Server) -> None:
    made = place.post(
        "/retrievers",
        {
            "retriever_name": "mine",
            "stages": [SEARCH],
            "input_schema": SCHEMA,
            "collection_ids": [place.texts],
        },
    )
    with either_server.client() as client:
        sent = {"feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}]}
        other = Loop(client, client.post("/v1/namespaces", json={"namespace_name": "other", **sent}).json())
        for identifier in (made["retriever_id"], "mine"):
            other.refused(404, "GET", f"/retrievers/{identifier}")
            other.refused(404, "POST", f"/retrievers/{identifier}/execute", {"inputs": {"q": "x"}})
        said = other.refused(
            400,
            "POST",
            "/retrievers/execute",
            {"stages": [_feature(query="x")], "collection_ids": [place.texts]},
        )
        assert place.texts in said
        found = place.documents(place.texts)[0]["document_id"]
        stage = _feature(query={"document_id": found})
        other.refused(404, "POST", "/retrievers/execute", {"stages": [stage]})
        client.delete(f"/v1/namespaces/{other.namespace_id}")
    place.delete("/retrievers/mine")


def test_the_stages_are_described_without_a_key(server: Server) -> None:
    stages = httpx.get(f"{server.url}/v1/retrievers/stages").raise_for_status().json()
    categories = {stage["stage_id"]: stage["category"] for stage in stages}
    assert categories.items() >= {
        "feature_search": "filter", "attribute_filter": "filter", "limit": "reduce",
        "sort_attribute": "sort", "sort_relevance": "sort", "score_normalize": "sort", "mmr": "sort",
        "sample": "reduce", "deduplicate": "reduce", "group_by": "reduce", "aggregate": "reduce", "cluster": "reduce",
        "unwind": "apply", "json_transform": "apply", "rag_prepare": "apply", "document_enrich": "enrich",
    }.items()  # fmt: skip
    for stage in stages:
        assert stage["category"] in {"filter", "sort", "reduce", "apply", "enrich"}
        assert stage["parameter_schema"]["properties"]
