"""The audit log tells who changed what, and who read it where that is wanted; usage counts every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server

LOGS = "/v1/organizations/audit/logs"
SETTINGS = "/v1/organizations/audit/settings"
KEYS = "/v1/organizations/users/admin@localhost/api-keys"


@pytest.fixture
def newest(client: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    """A function that returns the newest events about a resource, the oldest first."""

    def read(resource_id: str, **query: Any) -> list[dict[str, Any]]:
        answer = client.get(LOGS, params={"resource_id": resource_id, **query})
        assert answer.status_code == 200, answer.text
        return list(reversed(answer.json()["results"]))

    return read


@pytest.fixture
def reads_audited(client: httpx.Client) -> Iterator[None]:
    assert client.patch(SETTINGS, json={"read_auditing_enabled": True}).json() == {
        "read_auditing_enabled": True
    }
    yield
    client.patch(SETTINGS, json={"read_auditing_enabled": False})


def test_a_life_of_everything_is_written_down(
    client: httpx.Client,
    namespace: Callable[..., dict[str, Any]],
    newest: Callable[..., list[dict[str, Any]]],
) -> None:
    place = namespace()
    loop = Loop(client, place)
    bucket = loop.bucket()
    collection = loop.collection(bucket, TEXT)
    retriever = loop.post(
        "/retrievers",
        {
            "retriever_name": "r",
            "collection_identifiers": [collection],
            "stages": [{"stage_name": "limit", "parameters": {"limit": 1}}],
        },
    )["retriever_id"]
    for path in (f"/buckets/{bucket}", f"/collections/{collection}", f"/retrievers/{retriever}"):
        loop.patch(path, {"description": "changed"})
    loop.delete(f"/retrievers/{retriever}")
    loop.delete(f"/collections/{collection}")
    loop.delete(f"/buckets/{bucket}")
    client.patch(f"/v1/namespaces/{place['namespace_id']}", json={"description": "changed"})
    client.delete(f"/v1/namespaces/{place['namespace_id']}")
    for noun, identifier in (
        ("bucket", bucket),
        ("collection", collection),
        ("retriever", retriever),
        ("namespace", place["namespace_id"]),
    ):
        events = newest(identifier)
        assert [event["action"] for event in events] == [
            f"{noun}_created",
            f"{noun}_updated",
            f"{noun}_deleted",
        ]
        assert {event["resource_type"] for event in events} == {noun}
        assert events[1]["changes"] == {"fields": ["description"]}
        for event in events:
            assert event["actor_id"].startswith("usr_") and event["actor_type"] == "user"
            assert event["key_id"].startswith("key_") and event["status"] == "success"
            assert event["ip_address"] == "127.0.0.1" and "httpx" in event["user_agent"]
            assert client.get(f"{LOGS}/{event['audit_id']}").json() == event


def test_keys_users_and_secrets(client: httpx.Client, newest: Callable[..., list[dict[str, Any]]]) -> None:
    key = client.post(KEYS, json={"name": "audited"}).json()["key_id"]
    scope = [{"resource_type": "namespace", "resource_id": "x"}]
    client.patch(f"{KEYS}/audited", json={"scopes": scope})
    client.patch(f"{KEYS}/audited", json={"permissions": ["read"]})
    client.post(f"{KEYS}/audited/rotate")
    client.delete(f"{KEYS}/audited")
    client.delete(f"{KEYS}/audited")
    assert [event["action"] for event in newest(key)] == [
        "api_key_created",
        "api_key_scope_updated",
        "permission_updated",
        "api_key_rotated",
        "api_key_revoked",
    ]
    user = client.post(
        "/v1/organizations/users", json={"email": "audited@x.example", "user_name": "Au"}
    ).json()
    client.patch("/v1/organizations/users/audited@x.example", json={"user_name": "Aud"})
    client.patch("/v1/organizations/users/audited@x.example", json={"role": "viewer"})
    client.delete("/v1/organizations/users/audited@x.example")
    assert [event["action"] for event in newest(user["user_id"])] == [
        "user_created",
        "user_updated",
        "permission_updated",
        "user_deleted",
    ]
    secret = {"secret_name": "audited-secret", "secret_value": "canary-in-audit"}
    client.post("/v1/organizations/secrets", json=secret)
    client.delete("/v1/organizations/secrets/audited-secret")
    assert [event["action"] for event in newest("audited-secret")] == ["secret_created", "secret_deleted"]
    assert "canary-in-audit" not in client.get(LOGS, params={"limit": 1000}).text


def test_what_fails_leaves_no_event(client: httpx.Client) -> None:
    total = client.get(LOGS).json()["total"]
    assert client.post(KEYS, json={"name": "admin"}).status_code == 409
    assert client.delete(f"{KEYS}/absent").status_code == 404
    assert client.post("/v1/namespaces", json={}).status_code == 422
    assert client.get(LOGS).json()["total"] == total


def test_pages_and_filters(client: httpx.Client) -> None:
    for number in range(3):
        client.post(KEYS, json={"name": f"page-{number}"})
    first = client.get(LOGS, params={"limit": 2, "action": "api_key_created"}).json()
    assert (first["skip"], first["limit"], len(first["results"])) == (0, 2, 2)
    assert first["total"] >= 3
    second = client.get(LOGS, params={"limit": 2, "skip": 1, "action": "api_key_created"}).json()
    assert second["results"][0] == first["results"][1]
    newest = first["results"][0]
    at = newest["timestamp"]
    for query, found in (
        ({"resource_type": "api_key", "actor_id": newest["actor_id"]}, True),
        ({"actor_id": "usr_0000000000000000"}, False),
        ({"start": at, "end": at}, True),
        ({"start": "2999-01-01"}, False),
        ({"end": "2001-01-01T00:00:00+01:00"}, False),
    ):
        ids = [e["audit_id"] for e in client.get(LOGS, params={**query, "limit": 1000}).json()["results"]]
        assert (newest["audit_id"] in ids) == found, query
    for query in ({"limit": 0}, {"limit": 1001}, {"skip": -1}, {"skip": 10**20}, {"start": "yesterday"}):
        assert client.get(LOGS, params=query).status_code == 422, query
    assert client.get(f"{LOGS}/aud_0000000000000000").status_code == 404


def test_reads_are_written_down_only_when_that_is_wanted(
    client: httpx.Client,
    namespace: Callable[..., dict[str, Any]],
    newest: Callable[..., list[dict[str, Any]]],
    request: pytest.FixtureRequest,
) -> None:
    assert client.get(SETTINGS).json() == {"read_auditing_enabled": False}
    place = namespace()
    path = f"/v1/namespaces/{place['namespace_id']}"
    client.get(path).raise_for_status()
    request.getfixturevalue("reads_audited")
    client.get(path).raise_for_status()
    assert client.get("/v1/namespaces/nobody").status_code == 404
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        actions = [event["action"] for event in newest(place["namespace_id"])]
        if len(actions) > 1:
            break
        time.sleep(0.05)
    assert actions == ["namespace_created", "namespace_accessed"]
    assert newest("nobody") == []
    loop = Loop(client, place)
    bucket = loop.bucket()
    retriever = loop.post(
        "/retrievers",
        {
            "retriever_name": "audited",
            "collection_identifiers": [loop.collection(bucket, TEXT)],
            "stages": [{"stage_name": "limit", "parameters": {"limit": 1}}],
        },
    )["retriever_id"]
    loop.post(f"/retrievers/{retriever}/execute", {"inputs": {}})
    deadline = time.monotonic() + 5
    while (
        "retriever_queried" not in [event["action"] for event in newest(retriever)]
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    assert newest(retriever)[-1]["action"] == "retriever_queried"


def test_usage_counts_requests_by_key_class_and_route(client: httpx.Client, server: Server) -> None:
    made = client.post(KEYS, json={"name": "counted"}).json()
    with server.client(key=made["key"]) as other:
        for _ in range(3):
            other.get("/v1/me")
        other.post("/v1/retrievers/list")
        other.get("/v1/organizations/usage")
    path = f"/v1/organizations/api-keys/{made['key_id']}/usage"
    deadline = time.monotonic() + 10
    while (usage := client.get(path).json())["total"]["requests"] < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (usage["total"]["requests"], usage["total"]["errors"]) == (5, 2)
    assert usage["key_id"] == made["key_id"] and usage["by_api"]["metadata"]["requests"] == 5
    assert sum(day["requests"] for day in usage["by_day"].values()) == 5
    routes = client.get(f"{path}/endpoints").json()
    assert {(route["endpoint"], route["requests"], route["errors"]) for route in routes} == {
        ("GET /v1/me", 3, 0),
        ("POST /v1/retrievers/list", 1, 1),
        ("GET /v1/organizations/usage", 1, 1),
    }
    whole = client.get("/v1/organizations/usage").json()
    assert whole["by_key"][made["key_id"]]["requests"] == 5
    assert client.get("/v1/organizations").json()["current_month_usage"] >= 5
    none = client.get(path, params={"start": "2001-01-01", "end": "2001-02-01"}).json()
    assert none["total"] == {"requests": 0, "errors": 0, "average_ms": 0.0}
    for absent in (
        "/v1/organizations/api-keys/key_0000000000000000/usage",
        "/v1/organizations/api-keys/key_0000000000000000/usage/endpoints",
    ):
        assert client.get(absent).status_code == 404
    assert client.get(path, params={"start": "soon"}).status_code == 422
