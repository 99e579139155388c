"""Health answers without a key, in the shape that clients decode, whatever else goes on."""

from __future__ import annotations

import httpx

from tests.http.processes import Server


def test_health_has_every_part(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/health?deep=false&metrics=false")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "OK"
    assert body["data"] == {
        "cache": True,
        "metadata": True,
        "vector_store": True,
        "object_storage": True,
        "task_queue": True,
        "inference": True,
    }
    assert body["errors"] is None
    assert body["meta"]["version"]


def test_liveness_and_beat(server: Server) -> None:
    for path in ("/v1/health/liveness", "/v1/health/beat"):
        assert httpx.get(f"{server.url}{path}").json() == {"status": "OK"}


def test_public_routes_need_no_key_and_survive_a_bad_one(server: Server) -> None:
    for path in (
        "/v1/health",
        "/v1/collections/features/extractors",
        "/v1/retrievers/stages",
        "/openapi.json",
    ):
        assert httpx.get(server.url + path).status_code == 200, path
        assert (
            httpx.get(server.url + path, headers={"Authorization": "Bearer nonsense"}).status_code == 200
        ), path
