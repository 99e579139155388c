"""Dedicated namespaces: provisioned on their own Qdrant in the call, or refused with nothing left behind."""

from __future__ import annotations

import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient

from tests import qdrant_rest
from tests.http.processes import Server

#: Found nowhere in clear but on the Qdrant server itself.
KEY = f"canary-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qdrant_rest.Server]:
    """A Qdrant of the namespace's owner (the stand-in: a test may not fill somebody's server with leftovers)."""
    server = qdrant_rest.start(tmp_path_factory.mktemp("own-qdrant"), api_key=KEY)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def ray_head() -> Iterator[str]:
    """Something that accepts connections where a Ray head would: more is not asked of it while creating."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"ray://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def sent(qdrant: qdrant_rest.Server, ray_head: str) -> dict[str, Any]:
    """A request for a dedicated namespace."""
    name = f"own_{uuid.uuid4().hex[:8]}"
    return {
        "namespace_name": name,
        "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}],
        "payload_indexes": [{"field_name": "metadata.year", "type": "integer"}],
        "infrastructure": {
            "compute_tier": "dedicated_cpu",
            "qdrant_url": qdrant.url,
            "qdrant_api_key": KEY,
            "qdrant_collection": f"{name}_collection",
            "ray_head_node_url": ray_head,
        },
    }


@pytest.fixture
def there(qdrant: qdrant_rest.Server) -> Iterator[QdrantClient]:
    """The official client of that Qdrant."""
    client = QdrantClient(url=qdrant.url, api_key=KEY, check_compatibility=False)
    yield client
    client.close()


def names(there: QdrantClient) -> set[str]:
    return {item.name for item in there.get_collections().collections}


def doomed(server: Server) -> list[str]:
    with sqlite3.connect(f"file:{server.data / 'tessera.sqlite3'}?mode=ro", uri=True) as connection:
        return [row[0] for row in connection.execute("SELECT view_id FROM doomed_views")]


def test_the_collection_is_there_when_the_call_returns(
    client: httpx.Client, sent: dict[str, Any], there: QdrantClient
) -> None:
    answer = client.post("/v1/namespaces", json=sent)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert KEY not in answer.text
    infrastructure = made["infrastructure"]
    assert (infrastructure["compute_tier"], infrastructure["source"]) == ("dedicated_cpu", "namespace")
    assert infrastructure["qdrant_url"] == sent["infrastructure"]["qdrant_url"]
    alias = sent["infrastructure"]["qdrant_collection"]
    found = there.get_collection(alias)
    assert found.config.params.vectors["text_extractor_v1_embedding"].size == 384
    assert found.payload_schema["metadata.year"].data_type == "integer"
    assert f"{made['namespace_id']}-1" in names(there)
    assert client.get(f"/v1/namespaces/{made['namespace_id']}").json() == made
    stats = client.get(f"/v1/namespaces/{made['namespace_id']}/stats").json()
    assert {index["field_name"] for index in stats["payload_indexes"]} >= {"metadata.year"}
    client.delete(f"/v1/namespaces/{made['namespace_id']}").raise_for_status()


def test_deleting_it_removes_the_collection_and_only_that(
    client: httpx.Client, server: Server, sent: dict[str, Any], there: QdrantClient
) -> None:
    there.create_collection("somebody_elses", vectors_config={})
    made = client.post("/v1/namespaces", json=sent).raise_for_status().json()
    task = client.delete(f"/v1/namespaces/{made['namespace_id']}").json()["task_id"]
    assert server.wait_for_task(task)["status"] == "COMPLETED"
    assert names(there) == {"somebody_elses"}
    again = client.post("/v1/namespaces", json=sent)
    assert again.status_code == 200, again.text
    client.delete(f"/v1/namespaces/{again.json()['namespace_id']}")
    there.delete_collection("somebody_elses")


def test_a_collection_that_exists_is_a_conflict_and_stays_untouched(
    client: httpx.Client, server: Server, sent: dict[str, Any], there: QdrantClient
) -> None:
    alias = sent["infrastructure"]["qdrant_collection"]
    there.create_collection(alias, vectors_config={})
    answer = client.post("/v1/namespaces", json=sent)
    assert answer.status_code == 409, answer.text
    assert alias in answer.json()["error"]["message"]
    assert alias in names(there)
    assert not [name for name in names(there) if name.startswith("ns_")]
    assert client.get(f"/v1/namespaces/{sent['namespace_name']}").status_code == 404
    assert doomed(server) == []
    there.delete_collection(alias)
    made = client.post("/v1/namespaces", json=sent).raise_for_status().json()
    client.delete(f"/v1/namespaces/{made['namespace_id']}")


def test_two_namespaces_cannot_have_one_collection(client: httpx.Client, sent: dict[str, Any]) -> None:
    made = client.post("/v1/namespaces", json=sent).raise_for_status().json()
    second = {**sent, "namespace_name": sent["namespace_name"] + "_2"}
    answer = client.post("/v1/namespaces", json=second)
    assert answer.status_code == 409, answer.text
    assert client.get(f"/v1/namespaces/{made['namespace_id']}/stats").status_code == 200
    client.delete(f"/v1/namespaces/{made['namespace_id']}")


@pytest.mark.parametrize(
    ("change", "kind", "retryable", "words"),
    [
        ({"qdrant_url": "http://127.0.0.1:9"}, "QdrantError", True, "cannot be reached"),
        ({"qdrant_api_key": "another key"}, "QdrantError", False, "refused the key"),
        ({"ray_head_node_url": "ray://127.0.0.1:9"}, "ServiceUnavailableError", True, "Ray head"),
    ],
)
def test_what_cannot_be_used_is_a_503_that_names_it_and_leaves_nothing(
    client: httpx.Client,
    server: Server,
    sent: dict[str, Any],
    there: QdrantClient,
    change: dict[str, Any],
    kind: str,
    retryable: bool,
    words: str,
) -> None:
    broken = {**sent, "infrastructure": {**sent["infrastructure"], **change}}
    began = time.monotonic()
    answer = client.post("/v1/namespaces", json=broken)
    assert time.monotonic() - began < 10
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["details"]["retryable"]) == (kind, retryable)
    assert words in error["message"]
    assert ("Retry-After" in answer.headers) == retryable
    assert KEY not in answer.text
    assert "another key" not in answer.text
    assert not [name for name in names(there) if name.startswith("ns_")]
    assert client.get(f"/v1/namespaces/{sent['namespace_name']}").status_code == 404
    assert doomed(server) == []


def test_a_qdrant_that_does_not_answer_is_a_503_within_10_s(
    client: httpx.Client, server: Server, sent: dict[str, Any]
) -> None:
    """It takes the connection and stays silent."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        infrastructure = {**sent["infrastructure"], "qdrant_url": url}
        answer = client.post("/v1/namespaces", json={**sent, "infrastructure": infrastructure})
        assert time.monotonic() - began < 10
    assert answer.status_code == 503, answer.text
    assert (answer.json()["error"]["type"], "Retry-After" in answer.headers) == ("QdrantError", True)
    assert "did not answer in time" in answer.json()["error"]["message"]
    assert client.get(f"/v1/namespaces/{sent['namespace_name']}").status_code == 404
    assert doomed(server) == []


def test_of_several_requests_at_once_one_gets_the_collection(
    client: httpx.Client, server: Server, sent: dict[str, Any], there: QdrantClient
) -> None:
    requests = [{**sent, "namespace_name": f"{sent['namespace_name']}_{number}"} for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda body: client.post("/v1/namespaces", json=body), requests))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
    made = next(answer.json() for answer in answers if answer.status_code == 200)
    alias = sent["infrastructure"]["qdrant_collection"]
    assert {(a.alias_name, a.collection_name) for a in there.get_aliases().aliases} >= {
        (alias, f"{made['namespace_id']}-1")
    }
    await_names(there, {f"{made['namespace_id']}-1"})
    assert doomed(server) == []
    client.delete(f"/v1/namespaces/{made['namespace_id']}")


def test_moves_at_once_leave_one_view_and_nothing_else(
    client: httpx.Client, server: Server, sent: dict[str, Any], there: QdrantClient
) -> None:
    shared = {key: value for key, value in sent.items() if key != "infrastructure"}
    path = f"/v1/namespaces/{client.post('/v1/namespaces', json=shared).raise_for_status().json()['namespace_id']}"
    change = {"infrastructure": sent["infrastructure"]}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.patch(path, json=change), range(4)))
    # One that was overtaken says so and is sent again; none breaks what another made.
    statuses = {answer.status_code for answer in answers}
    assert 200 in statuses <= {200, 409}, [answer.text for answer in answers]
    assert client.patch(path, json=change).status_code == 200
    assert client.get(f"{path}/stats").json()["payload_indexes"]
    with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
        (view_id,) = connection.execute(
            "SELECT view_id FROM namespaces WHERE namespace_id = ?", (path.rpartition("/")[2],)
        ).fetchone()
    assert view_id not in doomed(server)
    await_names(there, {view_id})
    aliases = {a.alias_name: a.collection_name for a in there.get_aliases().aliases}
    assert aliases[sent["infrastructure"]["qdrant_collection"]] == view_id
    client.delete(path)


def test_a_server_that_is_killed_while_it_provisions_leaves_nothing(
    tmp_path: Path, sent: dict[str, Any], there: QdrantClient
) -> None:
    """Killed when the collection is there and the namespace is not: creating, and then moving."""
    await_names(there, set())
    armed = {"TESSERA_TEST_FAILPOINT": "namespaces.provisioned:1:self"}
    server = Server.start(tmp_path / "data", environment=armed)
    try:
        with server.client() as client, pytest.raises(httpx.TransportError):
            client.post("/v1/namespaces", json=sent)
        assert server.wait_until_dead(10)
        assert len([name for name in names(there) if name.startswith("ns_")]) == 1
        server = Server.start(tmp_path / "data", environment=armed)
        await_names(there, set())
        with server.client() as client:
            assert client.get(f"/v1/namespaces/{sent['namespace_name']}").status_code == 404
            shared = {key: value for key, value in sent.items() if key != "infrastructure"}
            made = client.post("/v1/namespaces", json=shared).raise_for_status().json()
            path, change = (
                f"/v1/namespaces/{made['namespace_id']}",
                {"infrastructure": sent["infrastructure"]},
            )
            with pytest.raises(httpx.TransportError):
                client.patch(path, json=change)
        assert server.wait_until_dead(10)
        server = Server.start(tmp_path / "data")
        await_names(there, set())
        with server.client() as client:
            assert client.get(path).raise_for_status().json() == made
            moved = client.patch(path, json=change)
            assert moved.status_code == 200, moved.text
            assert client.get(f"{path}/stats").json()["payload_indexes"]
            task_id = client.delete(path).json()["task_id"]
        assert server.wait_for_task(task_id)["status"] == "COMPLETED"
        await_names(there, set())
    finally:
        server.stop()


def await_names(there: QdrantClient, wanted: set[str]) -> None:
    deadline = time.monotonic() + 20
    while names(there) != wanted:
        assert time.monotonic() < deadline, names(there)
        time.sleep(0.1)


def test_the_same_request_again_with_its_idempotency_key_makes_nothing_more(
    client: httpx.Client, sent: dict[str, Any], there: QdrantClient
) -> None:
    header = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (client.post("/v1/namespaces", json=sent, headers=header) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert names(there) == {f"{first.json()['namespace_id']}-1"}
    client.delete(f"/v1/namespaces/{first.json()['namespace_id']}")


def test_an_empty_namespace_changes_its_place(
    client: httpx.Client, sent: dict[str, Any], there: QdrantClient
) -> None:
    shared = {key: value for key, value in sent.items() if key != "infrastructure"}
    made = client.post("/v1/namespaces", json=shared).raise_for_status().json()
    path = f"/v1/namespaces/{made['namespace_id']}"
    answer = client.patch(path, json={"infrastructure": sent["infrastructure"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["infrastructure"]["source"] == "namespace"
    assert f"{made['namespace_id']}-2" in names(there)
    assert client.get(f"{path}/stats").json()["payload_indexes"]
    # The same again, without the key, changes nothing.
    same = {k: v for k, v in sent["infrastructure"].items() if k != "qdrant_api_key"}
    assert client.patch(path, json={"infrastructure": same}).json() == answer.json()
    back = client.patch(path, json={"infrastructure": {"compute_tier": "shared"}})
    assert back.status_code == 200, back.text
    assert back.json()["infrastructure"]["source"] == "server"
    assert client.get(f"{path}/stats").json()["payload_indexes"]
    client.delete(path)


def test_shared_namespaces_use_what_their_organization_brings(
    client: httpx.Client, sent: dict[str, Any], there: QdrantClient
) -> None:
    of_organization = {k: v for k, v in sent["infrastructure"].items() if k != "qdrant_collection"}
    shared = {key: value for key, value in sent.items() if key != "infrastructure"}
    before = client.post("/v1/namespaces", json={**shared, "namespace_name": f"{sent['namespace_name']}_0"})
    changed = client.patch("/v1/organizations", json={"infrastructure": of_organization})
    assert changed.status_code == 200, changed.text
    try:
        assert KEY not in changed.text
        made = client.post("/v1/namespaces", json=shared)
        assert made.status_code == 200, made.text
        infrastructure = made.json()["infrastructure"]
        assert (infrastructure["compute_tier"], infrastructure["source"]) == ("dedicated_cpu", "organization")
        assert infrastructure["ray_head_node_url"] == of_organization["ray_head_node_url"]
        assert f"{made.json()['namespace_id']}-1" in names(there)
        stays = client.get(f"/v1/namespaces/{before.json()['namespace_id']}").json()["infrastructure"]
        assert (stays["compute_tier"], stays["source"]) == ("shared", "server")
        client.delete(f"/v1/namespaces/{made.json()['namespace_id']}")
    finally:
        client.patch("/v1/organizations", json={"infrastructure": None}).raise_for_status()
        client.delete(f"/v1/namespaces/{before.json()['namespace_id']}")


def test_the_key_is_nowhere_in_clear(client: httpx.Client, server: Server, sent: dict[str, Any]) -> None:
    made = client.post("/v1/namespaces", json=sent).raise_for_status().json()
    needle = KEY.encode()
    holding = [path for path in _files(server.data) if needle in path.read_bytes()]
    assert holding == []
    assert KEY not in server.log
    client.delete(f"/v1/namespaces/{made['namespace_id']}")


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
