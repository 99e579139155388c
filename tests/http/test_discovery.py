"""Discovery says enough to set a namespace up with; direct inference gives the vectors that searches use."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http.loop import TEXT, Loop, encoded
from tests.http.processes import Server
from tests.language_endpoint import Endpoint
from tests.media import RED, picture

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
#: Stages whose examples name what this namespace has not, with a word of the refusal: another thing, or a model.
LACKING = {
    "cross_compare": "guidelines",
    "document_enrich": "products",
    "taxonomy_enrich": "topics",
    "rerank": "tessera models pull",
}


@pytest.fixture(scope="module")
def found(server: Server) -> Any:
    return httpx.get(f"{server.url}/v1/discovery").raise_for_status().json()


@pytest.mark.operation("GET", "/v1/discovery", 200)
@pytest.mark.operation("GET", "/v1/discovery/extractors", 200)
@pytest.mark.operation("GET", "/v1/discovery/stages", 200)
@pytest.mark.operation("GET", "/v1/discovery/schema", 200)
def test_its_parts_are_read_without_a_key(server: Server) -> None:
    with server.client() as anybody:
        del anybody.headers["Authorization"]
        whole = anybody.get("/v1/discovery").raise_for_status().json()
        for part, name in (("extractors", "extractors"), ("stages", "stages"), ("schema", "manifest_schema")):
            assert anybody.get(f"/v1/discovery/{part}").raise_for_status().json() == whole[name]
        catalogue = anybody.get("/v1/collections/features/extractors").json()
        listed = anybody.get("/v1/retrievers/stages").json()
    assert [each["name"] for each in whole["extractors"]] == [e["feature_extractor_name"] for e in catalogue]
    assert [each["stage_id"] for each in whole["stages"]] == [stage["stage_id"] for stage in listed]
    tiers = {each["stage_id"]: each["cost_tier"] for each in whole["stages"]}
    assert (tiers["limit"], tiers["feature_search"], tiers["llm_filter"]) == (
        "cheap",
        "moderate",
        "expensive",
    )


def test_every_example_is_taken_as_it_is(client: httpx.Client, found: Any) -> None:
    """A namespace, a bucket, a collection and each stage, by nothing but what discovery says."""
    (text,) = (e for e in found["extractors"] if (e["name"], e["version"]) == ("text_extractor", "v1"))
    usage = text["example_usage"]
    made = client.post("/v1/namespaces", json={**usage["namespace"], "namespace_name": "discovered"})
    here = Loop(client, made.raise_for_status().json())
    try:
        here.post("/buckets", usage["bucket"])
        here.post("/collections", usage["collection"])
        for stage in found["stages"]:
            body = {"stages": [stage["example_config"]], "input_schema": {"query": {"type": "text"}}}
            answer = client.post(
                "/v1/retrievers", json={"retriever_name": stage["stage_id"], **body}, headers=here.headers
            )
            if answer.status_code != 200:
                assert LACKING[stage["stage_id"]] in answer.text, (stage["stage_id"], answer.text)
    finally:
        client.delete("/v1/namespaces/discovered")


def test_the_schema_orders_what_can_be_created(found: Any) -> None:
    schema = found["manifest_schema"]
    assert schema["resource_types"] == list(schema["schemas"]) == list(schema["examples"])
    seen: list[str] = []
    for name in schema["resource_types"]:
        assert set(schema["dependency_graph"][name]) <= set(seen)
        seen.append(name)
        example = json.loads(schema["examples"][name])
        assert set(schema["schemas"][name].get("required", ())) <= set(example), name
    assert {"namespace", "bucket", "collection", "retriever"} <= set(seen)


# --- inference -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(server: Server) -> Any:
    extractors = [TEXT, {"feature_extractor_name": "image_extractor", "version": "v1"}]
    with server.client() as client:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "inference", "feature_extractors": extractors}
        )
        yield Loop(client, made.raise_for_status().json())
        client.delete("/v1/namespaces/inference")


@pytest.mark.operation("POST", "/v1/inference", 200)
def test_a_text_has_the_vector_that_finds_it(place: Loop) -> None:
    name = "multilingual_e5_large_instruct_v1"
    one = place.post("/inference", {"inference_name": name, "inputs": {"text": "a tent for rain"}})
    assert (one["provider"], one["cached"]) == ("tessera", False) and one["latency_ms"] > 0
    vector = one["data"]["embedding"]
    inputs = {"texts": ["a tent for rain", "boots"]}
    both = place.post("/inference", {"feature_uri": TEXT_URI, "inputs": inputs})["data"]["embeddings"]
    assert np.allclose(both[0], vector, atol=1e-5) and not np.allclose(both[1], vector, atol=0.1)
    bucket = place.bucket()
    collection = place.collection(bucket, {**TEXT, "input_mappings": {"text": "note"}})
    place.run(bucket, [place.note(bucket, "a tent for rain"), place.note(bucket, "boots")])
    stage = {"stage_id": "feature_search", "parameters": {"feature_uri": TEXT_URI, "query": vector}}
    body = {"stages": [stage], "collection_identifiers": [collection], "limit": 1}
    (hit,) = place.post("/retrievers/execute", body)["documents"]
    assert hit["text"] == "a tent for rain" and hit["score"] > 0.99
    by_model = place.post("/inference", {"provider": "any", "model": one["model"], "inputs": {"text": "x"}})
    assert len(by_model["data"]["embedding"]) == len(vector)


def test_a_picture_has_a_vector(place: Loop) -> None:
    body = {
        "inference_name": "google_siglip_base_v1",
        "inputs": {"image": encoded(picture(RED))},
    }
    answer = place.post("/inference", body)
    (entry,) = (
        e
        for e in place.get("/collections/features/extractors")
        if e["feature_extractor_id"] == "image_extractor_v1"
    )
    assert len(answer["data"]["embedding"]) == entry["required_vector_indexes"][0]["index"]["dimensions"]


def test_prompts_go_to_the_language_model(place: Loop, language_endpoint: Endpoint) -> None:
    language_endpoint.reset()
    answer = place.post("/inference", {"provider": "openai", "model": "m", "inputs": {"prompts": ["a", "b"]}})
    assert answer["data"] == {"responses": ["A", "B"]}
    assert (answer["provider"], answer["model"]) == ("openai_compatible", "small")
    assert answer["tokens_used"]["total"] > 0 and len(language_endpoint.calls) == 2


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (422, {"inputs": {"audio_url": "https://a.example/x.mp3"}, "model": "whisper-1"}, "prompts"),
        (422, {"inputs": {"text": "a"}}, "multilingual_e5_large_instruct_v1"),
        (422, {"inputs": {"text": "  "}, "model": "x"}, "not blank"),
        (422, {"inputs": {"texts": ["a"] * 101}, "model": "x"}, "1 to 100"),
        (400, {"inputs": {"text": "a"}, "model": "text-embedding-3-large"}, "Its features"),
        (400, {"inputs": {"text": "a"}, "inference_name": "nope"}, "inference_name 'nope' is not a feature"),
        (422, {"inputs": {"prompts": ["a"], "image_url": "https://a.example/x.png"}}, "image_url"),
        (422, {"inputs": {"prompts": ["a"]}, "parameters": {"temperature": 9}}, "temperature"),
        (422, {"inputs": ["a"]}, "inputs"),
        (400, {"inputs": {"image": "%%%"}, "inference_name": "google_siglip_base_v1"}, "image"),
    ],
)
def test_what_cannot_be_inferred_is_said(place: Loop, status: int, body: Any, says: str) -> None:
    assert says in place.refused(status, "POST", "/inference", body)


def test_inference_is_inside_a_namespace(client: httpx.Client) -> None:
    body = {"inputs": {"text": "a"}, "inference_name": "x"}
    assert client.post("/v1/inference", json=body).status_code == 400
    assert client.post("/v1/inference", json=body, headers={"X-Namespace": "nobodys"}).status_code == 404
