"""The request of the page "Create Namespace", byte for byte, and what its two indexes do."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.http.processes import Server
from tests.media import RED, video

#: The body of the page's curl command.
REQUEST = b"""{
  "namespace_name": "spotify_playlists_dev",
  "description": "This namespace contains playlists from Spotify",
  "feature_extractors": [
    {
      "feature_extractor_id": "video_extractor_1.0.0",
      "feature_extractor_name": "video_extractor",
      "version": "1.0.0"
    }
  ],
  "payload_indexes": [
    {
      "field_name": "metadata.title",
      "field_schema": {
        "lowercase": true,
        "max_token_len": 15,
        "min_token_len": 2,
        "tokenizer": "word",
        "type": "text"
      },
      "type": "text"
    },
    {
      "field_name": "metadata.description",
      "field_schema": {
        "is_tenant": true,
        "type": "keyword"
      },
      "type": "keyword"
    }
  ]
}"""

#: Every top-level field of the page's sample answer, and its type.
ANSWER = {
    "namespace_id": str,
    "namespace_name": str,
    "infrastructure": dict,
    "description": str,
    "feature_extractors": list,
    "payload_indexes": list,
    "document_count": int,
    "created_at": str,
    "updated_at": str,
}


@pytest.fixture(scope="module")
def http(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        client.headers["Content-Type"] = "application/json"
        yield client


@pytest.fixture(scope="module")
def namespace(http: httpx.Client) -> Iterator[dict[str, Any]]:
    answer = http.post("/v1/namespaces", content=REQUEST)
    assert answer.status_code == 200, answer.text
    yield answer.json()
    assert http.delete("/v1/namespaces/spotify_playlists_dev").status_code == 200


def test_every_field_of_the_pages_answer_is_there(namespace: dict[str, Any]) -> None:
    for name, kind in ANSWER.items():
        assert type(namespace[name]) is kind, (name, namespace[name])
    assert namespace["namespace_name"] == "spotify_playlists_dev"
    assert namespace["description"] == "This namespace contains playlists from Spotify"
    assert namespace["document_count"] == 0
    for name in ("created_at", "updated_at"):
        assert datetime.fromisoformat(namespace[name]).utcoffset() is not None


def test_the_answer_echoes_extractor_and_indexes(namespace: dict[str, Any]) -> None:
    (extractor,) = namespace["feature_extractors"]
    assert extractor["feature_extractor_id"] == "video_extractor_1.0.0"
    assert (extractor["feature_extractor_name"], extractor["version"]) == ("video_extractor", "1.0.0")
    title, description = namespace["payload_indexes"][:2]
    assert (title["field_name"], title["type"]) == ("metadata.title", "text")
    assert title["field_schema"] == {
        "type": "text",
        "tokenizer": "word",
        "min_token_len": 2,
        "max_token_len": 15,
        "lowercase": True,
    }
    assert (description["field_name"], description["type"]) == ("metadata.description", "keyword")
    assert description["field_schema"] == {"type": "keyword", "is_tenant": True}
    assert not title["is_protected"]
    assert not description["is_protected"]


def test_the_infrastructure_is_the_resolved_one(namespace: dict[str, Any]) -> None:
    infrastructure = namespace["infrastructure"]
    assert infrastructure["compute_tier"] == "shared"
    assert 3 <= len(infrastructure["qdrant_collection"]) <= 128
    assert infrastructure["max_concurrent_jobs"] == 10
    assert infrastructure["autoscaling_enabled"] is True
    assert infrastructure.get("qdrant_api_key") is None


def test_a_read_gives_the_same_by_id_and_by_name(http: httpx.Client, namespace: dict[str, Any]) -> None:
    for identifier in (namespace["namespace_id"], "spotify_playlists_dev"):
        answer = http.get(f"/v1/namespaces/{identifier}")
        assert answer.status_code == 200
        read = answer.json()
        assert {name: read[name] for name in ANSWER if name != "document_count"} == {
            name: namespace[name] for name in ANSWER if name != "document_count"
        }


def test_the_same_name_again_is_refused(http: httpx.Client, namespace: dict[str, Any]) -> None:
    answer = http.post("/v1/namespaces", content=REQUEST)
    assert answer.status_code == 409
    assert answer.json()["error"]["type"] == "AlreadyExistsError"


# --- what the indexes do -----------------------------------------------------------------------------

TITLES = {
    # "x" has one letter, "acknowledgement" fifteen, "incomprehensible" sixteen.
    "Mozart x acknowledgement incomprehensible": "classical",
    "Evening jazz": "Jazz",
    "No description": None,
}


@pytest.fixture(scope="module")
def collection_id(either_server: Server, http: httpx.Client, namespace: dict[str, Any]) -> str:
    """A collection with one document for each of TITLES."""
    scope = {"X-Namespace": namespace["namespace_id"]}

    def post(path: str, body: Any) -> dict[str, Any]:
        answer = http.post(path, json=body, headers=scope)
        assert answer.status_code == 200, answer.text
        return answer.json()

    bucket_id = post(
        "/v1/buckets", {"bucket_name": "clips", "schema": {"properties": {"clip": {"type": "video"}}}}
    )["bucket_id"]
    collection = post(
        "/v1/collections",
        {
            "collection_name": "playlists",
            "source": {"type": "bucket", "bucket_ids": [bucket_id]},
            "feature_extractor": {
                "feature_extractor_name": "video_extractor",
                "version": "1.0.0",
                "input_mappings": {"video": "clip"},
                "field_passthrough": [
                    {"source_path": "metadata.title"},
                    {"source_path": "metadata.description"},
                ],
            },
        },
    )
    clip = base64.b64encode(video([(1, RED)])).decode()
    object_ids = [
        post(
            f"/v1/buckets/{bucket_id}/objects",
            {
                "metadata": {"title": title} | ({"description": description} if description else {}),
                "blobs": [{"property": "clip", "type": "video", "data": clip}],
            },
        )["object_id"]
        for title, description in TITLES.items()
    ]
    batch = post(f"/v1/buckets/{bucket_id}/batches", {"object_ids": object_ids})
    task_id = post(f"/v1/buckets/{bucket_id}/batches/{batch['batch_id']}/submit", {})["task_id"]
    task = either_server.wait_for_task(task_id, timeout_s=90)
    assert task["status"] == "COMPLETED", task
    return collection["collection_id"]


def titles(http: httpx.Client, namespace: dict[str, Any], collection_id: str, filters: Any) -> set[str]:
    answer = http.post(
        f"/v1/collections/{collection_id}/documents/list",
        json={"filters": filters},
        headers={"X-Namespace": namespace["namespace_id"]},
    )
    assert answer.status_code == 200, answer.text
    return {document["metadata"]["title"] for document in answer.json()["results"]}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param("mozart", True, id="lower case"),
        pytest.param("MOZART", True, id="upper case"),
        pytest.param("acknowledgement", True, id="fifteen letters"),
        pytest.param("acknowledgement Mozart", True, id="two words"),
        pytest.param("x", False, id="one letter"),
        pytest.param("incomprehensible", False, id="sixteen letters"),
        pytest.param("moz", False, id="half a word"),
        pytest.param("Mozart Haydn", False, id="a word that is not there"),
    ],
)
def test_the_text_index_decides_what_a_text_filter_finds(
    http: httpx.Client, namespace: dict[str, Any], collection_id: str, words: str, found: bool
) -> None:
    condition = {"field": "metadata.title", "operator": "text", "value": words}
    expected = {next(iter(TITLES))} if found else set()
    assert titles(http, namespace, collection_id, condition) == expected


def test_the_keyword_index_answers(http: httpx.Client, namespace: dict[str, Any], collection_id: str) -> None:
    def found(**condition: Any) -> set[str]:
        return titles(http, namespace, collection_id, {"field": "metadata.description", **condition})

    assert found(operator="eq", value="jazz") == {"Evening jazz"}
    assert found(operator="eq", value="jazz", case_sensitive=True) == set()
    assert found(operator="exists", value=False) == {"No description"}
    assert len(titles(http, namespace, collection_id, {})) == len(TITLES)


def test_the_engine_reports_both_indexes(
    http: httpx.Client, namespace: dict[str, Any], collection_id: str
) -> None:
    answer = http.get(f"/v1/namespaces/{namespace['namespace_id']}/stats")
    assert answer.status_code == 200, answer.text
    stats = answer.json()
    assert stats["document_count"] == len(TITLES)
    reported = {index["field_name"]: index for index in stats["payload_indexes"]}
    keyword = reported["metadata.description"]
    assert keyword["type"] == "keyword"
    assert keyword["params"]["is_tenant"] is True
    assert keyword["points"] == 2, "the document without a description is not in it"
    text = reported["metadata.title"]
    assert text["type"] == "text"
    assert text["points"] == len(TITLES)
    expected = {"tokenizer": "word", "min_token_len": 2, "max_token_len": 15, "lowercase": True}
    assert {name: text["params"][name] for name in expected} == expected
    assert http.get(f"/v1/namespaces/{namespace['namespace_id']}").json()["document_count"] == len(TITLES)
