"""Stages that search in other words, compare with another collection, and read query and text together."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.language_endpoint import Endpoint
from tests.media import BLUE, GREEN, RED, picture
from tests.toys import cross_encoder

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
IMAGE_URI = "mixpeek://image_extractor@v1/google_siglip_base_v1"
NOTES = {
    "car-1": "The automobile needs a new gearbox and clutch.",
    "car-2": "A car with a worn gearbox, its clutch slips.",
    "car-3": "Every car has a clutch and a gearbox to change gears.",
    "car-4": "The gearbox of the van was repaired.",
    "soup": "Ginger soup with red lentils.",
    "tent": "A tent for heavy rain and strong wind.",
}
MANUAL = {
    "m1": "Ginger soup with red lentils",
    "m2": "A tent for heavy rain and strong winds",
    "m3": "To exchange the gearbox, take the clutch out of the automobile",
}


class Place(Loop):
    notes: str
    manual: str
    pictures: str
    endpoint: Endpoint

    def execute(self, *stages: Any, **fields: Any) -> Any:
        body = {"stages": list(stages), "collection_identifiers": [self.notes], **fields}
        return self.post("/retrievers/execute", body)


@pytest.fixture(scope="module")
def made(server: Server, language_endpoint: Endpoint) -> Iterator[Place]:
    with server.client() as client:
        extractors = [
            {"feature_extractor_name": name, "version": "v1"}
            for name in ("text_extractor", "image_extractor")
        ]
        answer = client.post(
            "/v1/namespaces", json={"namespace_name": "comparing", "feature_extractors": extractors}
        )
        here = Place(client, answer.raise_for_status().json())
        here.endpoint = language_endpoint
        extractor = {
            **TEXT,
            "input_mappings": {"text": "note"},
            "field_passthrough": [{"source_path": "metadata.name"}],
        }
        made = []
        for notes in (NOTES, MANUAL):
            bucket = here.bucket()
            made.append(here.collection(bucket, extractor))
            objects = [here.note(bucket, text, metadata={"name": name}) for name, text in notes.items()]
            assert here.run(bucket, objects)["status"] == "COMPLETED"
        here.notes, here.manual = made
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
        shown = [
            here.object(images, {"blobs": [{"property": "image", "type": "image", "data": _encoded(colour)}],
                                 "metadata": {"name": name}})
            for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE))
        ]  # fmt: skip
        assert here.run(images, shown)["status"] == "COMPLETED"
        yield here
        client.delete("/v1/namespaces/comparing")


@pytest.fixture
def place(made: Place) -> Place:
    made.endpoint.reset()
    return made


def _encoded(colour: tuple[int, int, int]) -> str:
    return base64.b64encode(picture(colour)).decode()


def stage(stage_id: str, **parameters: Any) -> dict[str, Any]:
    return {"stage_id": stage_id, "parameters": parameters}


def names(answer: Any) -> list[str]:
    return [document["name"] for document in answer["documents"]]


def told(answer: Any) -> Any:
    return list(answer["stage_statistics"]["stages"].values())[-1]


WORDS = {"searches": [{"query": "{{INPUT.q}}", "lexical": True}], "final_top_k": 10}
SORTED = stage("sort_attribute", sort_field="name", order="asc")


# --- query_expand --------------------------------------------------------------------------------------


def test_synonyms_find_what_is_named_otherwise(place: Place) -> None:
    plain = place.execute(stage("feature_search", **WORDS), inputs={"q": "Car clutch"})
    assert names(plain)[:2] != []
    expanded = stage(
        "query_expand",
        feature_search_config=WORDS,
        synonyms={"car": ["automobile", "van"], "boat": ["ship"]},
    )
    answer = place.execute(expanded, inputs={"q": "Car clutch"})
    assert told(answer)["metadata"]["queries"] == ["Car clutch", "automobile clutch", "van clutch"]
    assert "car-4" not in names(plain)
    assert "car-4" in names(answer)
    found = next(document for document in answer["documents"] if document["name"] == "car-4")
    assert found["query_expand"]["matched_variations"] == ["van clutch"]
    assert found["query_expand"]["individual_ranks"][:2] == [None, None]
    assert not place.endpoint.calls


def test_the_first_hits_bring_the_words_that_tell_them_apart(place: Place) -> None:
    expanded = stage("query_expand", method="feedback", feature_search_config=WORDS, feedback_documents=3)
    answer = place.execute(expanded, inputs={"q": "car"})
    assert set(told(answer)["metadata"]["terms"]) >= {"clutch", "gearbox"}
    assert not {"car", "the", "tent"} & set(told(answer)["metadata"]["terms"])
    # "automobile" is never asked for, but its document speaks of gearbox and clutch.
    assert names(answer)[:2] == ["car-2", "car-3"] or names(answer)[:2] == ["car-3", "car-2"]
    assert "car-1" in names(answer)
    assert "soup" not in names(answer)
    assert told(answer)["metadata"]["method"] == "feedback"
    assert not place.endpoint.calls


def test_a_model_writes_other_forms(place: Place) -> None:
    short = stage("query_expand", query="{{INPUT.q}}", vector_index=TEXT_URI, num_variations=2, top_k=3)
    answer = place.execute(short, inputs={"q": "soup with ginger"})
    assert told(answer)["metadata"]["queries"] == [
        "soup with ginger", "ginger with soup", "soup with ginger explained",
    ]  # fmt: skip
    assert (told(answer)["metadata"]["method"], told(answer)["llm_calls"]) == ("model", 1)
    assert names(answer)[0] == "soup"
    assert len(names(answer)) == 3
    first = answer["documents"][0]["query_expand"]
    assert first["individual_ranks"] == [1, 1, 1]
    assert first["fusion_score"] == pytest.approx(3 / 61)
    (prompt,) = place.endpoint.prompts
    assert prompt["data"] == {"query": "soup with ginger"}
    assert "Write 2 other" in prompt["task"]


def test_a_model_that_gives_nothing_leaves_the_query(place: Place) -> None:
    place.endpoint.spoil = lambda *_: "never"
    expanded = stage("query_expand", method="model", feature_search_config=WORDS)
    answer = place.execute(expanded, inputs={"q": "lentils"})
    assert names(answer) == ["soup"]
    assert "as it is" in told(answer)["error"]
    body = {"stages": [stage("query_expand", method="model", feature_search_config=WORDS, on_error="raise")]}
    place.refused(503, "POST", "/retrievers/execute", {**body, "inputs": {"q": "lentils"}})


def test_only_searches_for_the_text_get_other_forms(place: Place) -> None:
    vector = [0.0] * 383 + [1.0]
    config = {"searches": [{"query": "lentils", "lexical": True}, {"feature_uri": TEXT_URI, "query": vector}]}
    expanded = stage("query_expand", feature_search_config=config, synonyms={"lentils": ["tent"]})
    answer = place.execute(expanded)
    assert {"soup", "tent"} <= set(names(answer))
    only = stage("query_expand", feature_search_config={"searches": [config["searches"][1]]})
    said = place.refused(400, "POST", "/retrievers/execute", {"stages": [only]})
    assert "text" in said


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"feature_search_config": {"searches": [{"feature_uri": TEXT_URI}]}}, 422, "needs a query"),
        ({"feature_search_config": {"searches": [{"query": "x", "feature_uri": "mixpeek://no@v1/x"}]}}, 400, "no@v1"),
        ({"feature_search_config": {"query": "x"}, "fusion_strategy": "dbsf"}, 422, "fusion"),
        ({"feature_search_config": {"query": "x"}, "num_expansions": 11}, 422, "num_expansions"),
        ({"feature_search_config": {"query": "x"}, "expansion_prompt": "{{DOC.x}}"}, 422, "DOC.x"),
        ({"feature_search_config": {"query": "x"}, "api_key": "sk-1"}, 422, "secrets.name"),
    ],
)  # fmt: skip
def test_what_cannot_be_expanded_is_told(place: Place, parameters: Any, status: int, says: str) -> None:
    body = {"retriever_name": "wrong", "stages": [stage("query_expand", **parameters)]}
    assert says in place.refused(status, "POST", "/retrievers", body)


# --- cross_compare -------------------------------------------------------------------------------------


def test_what_is_equal_alike_or_new_is_told(place: Place) -> None:
    asked = stage(
        "cross_compare",
        reference_collection_id=place.manual,
        source_field="text",
        reference_field="text",
        match_tiers=["exact", "fuzzy", "semantic"],
        semantic_threshold=0.7,
    )
    changed = stage(
        "json_transform", template={"text": "{{INPUT.prefix}}ginger  soup with red LENTILS", "start_time": 7}
    )
    answer = place.execute(SORTED, asked)
    found = {finding["source_content"]: finding for finding in answer["documents"]}
    assert len(found) == 6
    assert found[NOTES["soup"]]["match_tier"] == found[NOTES["tent"]]["match_tier"] == "fuzzy"
    assert {found[NOTES[f"car-{number}"]]["match_tier"] for number in range(1, 5)} <= {"semantic", "none"}
    tent = found[NOTES["tent"]]
    assert tent["reference_match"] == MANUAL["m2"]
    assert tent["match_score"] == tent["confidence"] > 0.95
    assert (tent["classification"], tent["element_type"]) == ("exact_match", "text")
    assert tent["source_document_id"].startswith("doc_")
    assert tent["document_id"] == f"{tent['source_document_id']}#0"
    answer = place.execute(SORTED, changed, asked, inputs={"prefix": ""})
    first = answer["documents"][0]
    assert (first["match_tier"], first["match_score"], first["source_location"]) == ("exact", 1.0, 7)
    assert told(answer)["metadata"] == {
        "documents_compared": 6, "documents_left_out": 0, "references": 3,
    }  # fmt: skip


def test_meaning_is_compared_where_letters_differ(place: Place) -> None:
    asked = stage(
        "cross_compare",
        reference_collection_id=place.manual,
        source_field="text",
        reference_field="text",
        match_tiers=["semantic"],
        semantic_threshold=0.5,
        output_mode="enrich",
        output_field="compared",
        classifications=[{"min_score": 0.99, "label": "same"}, {"min_score": 0, "label": "near"}],
        no_match_label="new",
    )
    one = {"field": "name", "operator": "in", "value": ["car-1", "soup"]}
    answer = place.execute(SORTED, asked, filters=one)
    assert names(answer) == ["car-1", "soup"]
    (car,), (soup,) = (document["compared"] for document in answer["documents"])
    assert (car["match_tier"], car["classification"], car["reference_match"]) == (
        "semantic",
        "near",
        MANUAL["m3"],
    )
    assert (soup["match_tier"], soup["reference_match"]) == ("semantic", MANUAL["m1"])
    far = {**asked, "parameters": {**asked["parameters"], "semantic_threshold": 1.0}}
    (finding,) = place.execute(SORTED, far, filters=one)["documents"][0]["compared"]
    assert (finding["match_tier"], finding["classification"], finding["match_score"]) == ("none", "new", 0.0)


def test_looks_are_compared_by_stored_vectors(place: Place) -> None:
    asked = stage(
        "cross_compare",
        reference_collection_id=place.pictures,
        source_field="name",
        reference_field="name",
        match_tiers=["visual"],
        visual_feature_uri=IMAGE_URI,
    )
    answer = place.execute(SORTED, asked, collection_identifiers=[place.pictures])
    found = [
        (finding["source_content"], finding["reference_match"], finding["element_type"])
        for finding in answer["documents"]
    ]
    assert found == [(name, name, "visual") for name in ("blue", "green", "red")]


@pytest.mark.parametrize(
    ("mode", "text", "expected"),
    [
        ("lines", "One\n\n Two \nOne", ["One", "Two"]),
        ("list", ["a", 1, "b"], ["a", "b"]),
        ("labels", "Click **Import Data** or press Save.\n- Audit Log — who did what\nConfigure the API Keys now",
         ["Import Data", "Audit Log", "API Keys"]),
    ],
)  # fmt: skip
def test_elements_are_taken_out_of_texts(place: Place, mode: str, text: Any, expected: list[str]) -> None:
    form = stage("json_transform", template={"content": "{{INPUT.text}}"})
    asked = stage("cross_compare", reference_collection_id=place.manual, extraction_mode=mode)
    only = {"field": "name", "operator": "eq", "value": "soup"}
    answer = place.execute(SORTED, form, asked, filters=only, inputs={"text": text})
    assert [finding["source_content"] for finding in answer["documents"]] == expected


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"reference_collection_id": "col_0"}, 400, "reference_collection_id"),
        ({"reference_collection_id": "{{INPUT.c}}"}, 422, "reference_collection_id"),
        ({"reference_collection_id": "x", "match_tiers": ["visual"]}, 422, "visual_feature_uri"),
        ({"reference_collection_id": "x", "match_tiers": ["smell"]}, 422, "match_tiers"),
        ({"source_field": "text"}, 422, "reference_collection_id"),
    ],
)
def test_what_cannot_be_compared_is_told(place: Place, parameters: Any, status: int, says: str) -> None:
    body = {"retriever_name": "wrong", "stages": [stage("cross_compare", **parameters)]}
    assert says in json.dumps(place.send("POST", "/retrievers", body, status=status))


# --- rerank --------------------------------------------------------------------------------------------


def test_a_cross_encoder_orders_hits_once_it_is_installed(place: Place, server: Server) -> None:
    assert "rerank" in {item["stage_id"] for item in place.get("/retrievers/stages")}
    for model, pull in (
        ("BAAI__bge_reranker_v2_m3", "tessera models pull bge-reranker-v2-m3"),
        ("cohere-rerank-v3", "tessera models pull ms-marco-MiniLM-L-6-v2"),
        (None, "tessera models pull ms-marco-MiniLM-L-6-v2"),
    ):
        asked = stage("rerank", query="soup", **({"model": model} if model else {}))
        body = {"retriever_name": "rerank", "stages": [SORTED, asked]}
        assert pull in place.refused(400, "POST", "/retrievers", body)
    other = {"retriever_name": "r", "stages": [stage("rerank", model="all-MiniLM-L6-v2", query="x")]}
    assert "is for text" in place.refused(400, "POST", "/retrievers", other)
    home = server.data / "models" / "bge-reranker-base"
    worth = cross_encoder(home, [*NOTES.values()])
    try:
        before = place.execute(stage("feature_search", query="gearbox", limit=6))
        for model in ("BAAI/bge-reranker-base", "cohere-rerank-v3"):
            reranked = stage(
                "rerank", model=model, query="{{INPUT.q}}", top_n=4, document_field="text", batch_size=2
            )
            answer = place.execute(
                stage("feature_search", query="gearbox", limit=6), reranked, inputs={"q": "soup"}
            )
            assert told(answer)["metadata"] == {"model": "bge-reranker-base"}
            expected = sorted(NOTES, key=lambda name: -worth(f"soup {NOTES[name]}"))[:4]
            assert names(answer) == expected
            for position, document in enumerate(answer["documents"], 1):
                assert document["score"] == pytest.approx(worth(f"soup {document['text']}"), abs=1e-4)
                assert document["scores"]["rerank"] == document["score"]
                assert document["rerank_position"] == position
                alone = next(d for d in before["documents"] if d["name"] == document["name"])
                assert document["original_score"] == pytest.approx(alone["score"])
    finally:
        shutil.rmtree(home)
    said = place.refused(
        400, "POST", "/retrievers", {"retriever_name": "r", "stages": [stage("rerank", query="x")]}
    )
    assert "tessera models pull" in said
