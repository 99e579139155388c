"""The quickstart as written, over HTTP; then the page's namespace with a video in it."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import httpx
import pytest

from tests.http.processes import Server
from tests.media import BLUE, GREEN, RED, picture, video

TEXT = "Lightweight wireless headphones with active noise cancellation."
QUESTION = "wireless headphones with noise cancelling"


class Api:
    """The few lines of HTTP that the quickstart's reader would write; every answer must be a 200."""

    def __init__(self, server: Server, http: httpx.Client) -> None:
        self.server, self.http = server, http

    def send(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        return self.send("POST", path, body)

    def get(self, path: str) -> Any:
        return self.send("GET", path)

    def process(self, bucket_id: str, object_ids: list[str]) -> None:
        """Steps 5 and 6: make a batch, submit it, and look at its task until it is done."""
        batch = self.post(f"/v1/buckets/{bucket_id}/batches", {"object_ids": object_ids})
        task = self.post(
            f"/v1/buckets/{bucket_id}/batches/{batch['batch_id']}/submit",
            {"include_processing_history": True},
        )
        assert self.server.wait_for_task(task["task_id"], timeout_s=90)["status"] == "COMPLETED"


@pytest.fixture
def api(server: Server, client: httpx.Client) -> Api:
    return Api(server, client)


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("scoped_by", ["namespace_id", "namespace_name"])
def test_the_quickstart_works_as_written(api: Api, scoped_by: str) -> None:
    namespace = api.post(
        "/v1/namespaces",
        {
            "namespace_name": unique("quickstart"),
            "description": "…",
            "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}],
        },
    )
    api.http.headers["X-Namespace"] = namespace[scoped_by]

    bucket = api.post(
        "/v1/buckets",
        {
            "bucket_name": "quickstart-bucket",
            "description": "…",
            "schema": {"properties": {"product_text": {"type": "text", "required": True}}},
        },
    )
    bucket_id = bucket["bucket_id"]

    collection = api.post(
        "/v1/collections",
        {
            "collection_name": "quickstart-docs",
            "source": {"type": "bucket", "bucket_id": bucket_id},
            "feature_extractor": {
                "feature_extractor_name": "text_extractor",
                "version": "v1",
                "input_mappings": {"text": "product_text"},
                "field_passthrough": [{"source_path": "metadata.category"}],
                "parameters": {"model": "multilingual-e5-large-instruct"},
            },
        },
    )
    collection_id = collection["collection_id"]
    assert {"text", "category"} <= set(collection["output_schema"]["properties"])

    item = api.post(
        f"/v1/buckets/{bucket_id}/objects",
        {
            "key_prefix": "/catalog",
            "metadata": {"category": "headphones"},
            "blobs": [{"property": "product_text", "type": "text", "data": TEXT}],
        },
    )
    api.process(bucket_id, [item["object_id"]])

    found = api.post(
        f"/v1/collections/{collection_id}/documents/list",
        {
            "limit": 10,
            "filters": {"field": "metadata.category", "operator": "eq", "value": "headphones"},
            "return_url": False,
        },
    )
    (document,) = found["results"]
    assert document["root_object_id"] == item["object_id"]
    assert document["text"] == TEXT

    stages = {
        "the short form": {
            "stage_type": "filter",
            "stage_id": "feature_search",
            "parameters": {
                "feature_uri": "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1",
                "input": {"text": "{{INPUT.query_text}}"},
                "limit": 20,
            },
        },
        "the form of November 2025": {
            "stage_name": "knn_search",
            "version": "v1",
            "parameters": {
                "feature_address": "mixpeek://text_extractor@v1/text_embedding",
                "input_mapping": {"text": "query_text"},
                "limit": 20,
            },
        },
    }
    for number, stage in enumerate(stages.values()):
        retriever = api.post(
            "/v1/retrievers",
            {
                "retriever_name": f"quickstart-search-{number}",
                "input_schema": {"properties": {"query_text": {"type": "text", "required": True}}},
                "collection_ids": [collection_id],
                "stages": [stage],
                "cache_config": {"enabled": True, "ttl_seconds": 300},
            },
        )
        answer = api.post(
            f"/v1/retrievers/{retriever['retriever_id']}/execute",
            {"inputs": {"query_text": QUESTION}, "limit": 5, "return_urls": False},
        )
        (hit,) = answer["documents"]
        assert hit["document_id"] == document["document_id"]
        # What the model says of these two sentences; far above that of unrelated ones (about 0.1).
        assert hit["score"] > 0.5
        assert answer["execution_id"].startswith("exec_")
        assert answer["status"] == "completed"
        (statistics,) = answer["stage_statistics"]["stages"].values()
        assert statistics["output_count"] == 1
        assert {"credits_used", "time_elapsed_ms"} <= set(answer["budget"])


def test_the_pages_namespace_takes_a_video(api: Api) -> None:
    shots = [(4, RED), (4, GREEN), (4, BLUE)]
    cues = [
        (0.5, 3.5, "A chef slices ripe tomatoes for the salad."),
        (4.5, 7.5, "The orbiting satellite photographs the moon."),
        (8.5, 11.5, "Two children build a castle of sand."),
    ]
    namespace = api.post(
        "/v1/namespaces",
        {
            "namespace_name": unique("spotify_playlists_dev"),
            "feature_extractors": [{"feature_extractor_name": "video_extractor", "version": "1.0.0"}],
        },
    )
    api.http.headers["X-Namespace"] = namespace["namespace_id"]
    bucket = api.post(
        "/v1/buckets",
        {"bucket_name": "clips", "schema": {"properties": {"clip": {"type": "video", "required": True}}}},
    )
    collection = api.post(
        "/v1/collections",
        {
            "collection_name": "scenes",
            "source": {"type": "bucket", "bucket_id": bucket["bucket_id"]},
            "feature_extractor": {
                "feature_extractor_name": "video_extractor",
                "version": "1.0.0",
                "input_mappings": {"video": "clip"},
                "parameters": {"time_split_interval": 4},
            },
        },
    )
    clip = base64.b64encode(video(shots, cues)).decode()
    objects = [
        api.post(
            f"/v1/buckets/{bucket['bucket_id']}/objects",
            {"blobs": [{"property": "clip", "type": "video", "data": data}]},
        )["object_id"]
        for data in (f"data:video/mp4;base64,{clip}", clip)
    ]
    api.process(bucket["bucket_id"], objects[:1])

    path = f"/v1/collections/{collection['collection_id']}/documents/list"
    documents = api.post(path, {})["results"]
    documents.sort(key=lambda document: document["start_time"])
    assert [document["start_time"] for document in documents] == [0, 4, 8]
    assert [document["end_time"] for document in documents] == pytest.approx([4, 8, 12], abs=0.2)
    for document, (_, _, words) in zip(documents, cues, strict=True):
        assert document["root_object_id"] == objects[0]
        assert words in document["transcription"]
        assert document["thumbnail_url"]

    catalogue = api.get("/v1/collections/features/extractors/video_extractor_1.0.0")
    by_name = {
        vector["index"]["name"]: vector["feature_uri"] for vector in catalogue["required_vector_indexes"]
    }
    of_pictures = by_name["video_extractor_v1_multimodal_embedding"]
    of_words = by_name["video_extractor_v1_transcription_embedding"]
    green = base64.b64encode(picture(GREEN)).decode()
    for uri, query in (
        (of_words, "a space probe taking pictures of the lunar surface"),
        (of_pictures, {"input_mode": "content", "value": f"data:image/png;base64,{green}"}),
    ):
        retriever = api.post(
            "/v1/retrievers",
            {
                "retriever_name": unique("by"),
                "collection_ids": [collection["collection_id"]],
                "stages": [
                    {
                        "stage_type": "filter",
                        "stage_id": "feature_search",
                        "parameters": {"searches": [{"feature_uri": uri, "query": query}]},
                    }
                ],
            },
        )
        answer = api.post(f"/v1/retrievers/{retriever['retriever_id']}/execute", {"inputs": {}})
        assert answer["documents"][0]["start_time"] == 4, uri

    # The same file again, as plain base64, gives the other object its own documents.
    api.process(bucket["bucket_id"], objects[1:])
    assert len(api.post(path, {"limit": 100})["results"]) == 6
