"""Keys: refused before anything is read, hierarchical permissions, and scopes that hide the rest."""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.processes import Server

KEYS = "/v1/organizations/users/admin@localhost/api-keys"
_names = itertools.count()


@pytest.fixture
def key(client: httpx.Client) -> Callable[..., dict[str, Any]]:
    """A function that makes a key."""

    def make(**fields: Any) -> dict[str, Any]:
        answer = client.post(KEYS, json={"name": f"auth-{next(_names)}", **fields})
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    return make


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "An API key is needed"),
        ("", "must read: Bearer"),
        ("Bearer", "must read: Bearer"),
        ("Basic YTpi", "must read: Bearer"),
        ("sk_live_" + "0" * 48, "must read: Bearer"),
        ("Bearer secret", "not an API key"),
        ("Bearer sk_live_" + "0" * 48, "not known"),
        ("Bearer sk_live_" + "0" * 5000, "not an API key"),
        ("Bearer sk_live_'; DROP TABLE api_keys; --", "not an API key"),
    ],
)
def test_without_a_valid_key_it_is_401(server: Server, header: str | None, said: str) -> None:
    answer = httpx.get(f"{server.url}/v1/me", headers={} if header is None else {"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["type"] == "UnauthorizedError" and said in error["message"]
    assert "0000" not in answer.text and "DROP" not in answer.text


def test_the_key_comes_before_path_permission_and_body(server: Server) -> None:
    bad = {"Authorization": "Bearer sk_live_" + "0" * 48, "Content-Type": "application/json"}
    assert httpx.post(f"{server.url}{KEYS}", content=b"{nonsense", headers=bad).status_code == 401
    assert httpx.post(f"{server.url}{KEYS}", content=b"x" * 20_000_000, headers=bad).status_code == 401
    assert httpx.get(f"{server.url}/v1/no/such/path", headers=bad).status_code == 401
    assert httpx.delete(f"{server.url}/v1/me", headers=bad).status_code == 401


def test_spellings_of_the_header(server: Server) -> None:
    url, key = f"{server.url}/v1/me", server.api_key
    assert httpx.get(url, headers={"authorization": f"bearer {key}"}).status_code == 200
    # A client that sets the header twice with one value means it once.
    twice = [("Authorization", f"Bearer {key}")] * 2
    assert httpx.get(url, headers=twice).status_code == 200
    two = [("Authorization", f"Bearer {key}"), ("Authorization", "Bearer sk_live_" + "0" * 48)]
    assert httpx.get(url, headers=two).status_code == 401


def test_permissions_are_hierarchical(server: Server, key: Callable[..., dict[str, Any]]) -> None:
    needs = [
        ("GET", "/v1/me", "read"),
        ("POST", "/v1/namespaces/list", "read"),
        ("POST", "/v1/namespaces", "write"),
        ("PATCH", "/v1/namespaces/absent", "write"),
        ("DELETE", "/v1/namespaces/absent", "delete"),
        ("GET", KEYS, "admin"),
        ("POST", KEYS, "admin"),
        ("PATCH", "/v1/organizations", "admin"),
    ]
    order = ["read", "write", "delete", "admin"]
    for granted in order:
        with server.client(key=key(permissions=[granted])["key"]) as client:
            for method, path, needed in needs:
                answer = client.request(
                    method, path, content=b"{broken" if method in ("POST", "PATCH") else None
                )
                allowed = order.index(granted) >= order.index(needed)
                assert (answer.status_code != 403) == allowed, (granted, method, path, answer.text)
                if not allowed:
                    error = answer.json()["error"]
                    assert error["details"] == {
                        "required": needed,
                        "granted": order[: order.index(granted) + 1],
                    }
                    assert needed in error["message"]


def test_a_key_without_permissions_may_nothing(server: Server, key: Callable[..., dict[str, Any]]) -> None:
    with server.client(key=key(permissions=[])["key"]) as client:
        assert client.get("/v1/me").status_code == 403


def test_a_revoked_key_is_refused_with_its_next_request(
    server: Server, client: httpx.Client, key: Callable[..., dict[str, Any]]
) -> None:
    made = key()
    with server.client(key=made["key"]) as other:
        assert other.get("/v1/me").status_code == 200
        assert client.delete(f"{KEYS}/{made['name']}").json()["success"] is True
        answer = other.get("/v1/me")
    assert answer.status_code == 401 and "revoked" in answer.json()["error"]["message"]


def test_an_expired_key_is_refused(
    server: Server, client: httpx.Client, key: Callable[..., dict[str, Any]]
) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    made = key(expires_at=soon)
    with server.client(key=made["key"]) as other:
        assert other.get("/v1/me").status_code == 200
        deadline = time.monotonic() + 10
        while (answer := other.get("/v1/me")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
    assert answer.status_code == 401 and "expired" in answer.json()["error"]["message"]
    listed = {entry["name"]: entry["status"] for entry in client.get(KEYS).json()["results"]}
    assert listed[made["name"]] == "expired"


def test_the_keys_of_a_suspended_user_stop(server: Server, client: httpx.Client) -> None:
    user = client.post(
        "/v1/organizations/users", json={"email": "eve@example.org", "user_name": "Eve"}
    ).json()
    path = f"/v1/organizations/users/{user['email']}"
    made = client.post(f"{path}/api-keys", json={"name": "hers"}).json()
    with server.client(key=made["key"]) as other:
        assert other.get("/v1/me").json()["user_email"] == "eve@example.org"
        assert client.patch(path, json={"status": "suspended"}).json()["status"] == "suspended"
        assert other.get("/v1/me").status_code == 401
        client.patch(path, json={"status": "active"})
        assert other.get("/v1/me").status_code == 200
        assert client.delete(path).status_code == 200
        assert other.get("/v1/me").status_code == 401


def test_a_scoped_key_sees_its_namespaces_only(
    server: Server, key: Callable[..., dict[str, Any]], namespace: Callable[..., dict[str, Any]]
) -> None:
    mine, other = namespace(namespace_name="customer_a"), namespace(namespace_name="staff")
    scope = {"resource_type": "namespace", "resource_id": "customer_*", "operations": ["read"]}
    made = key(scopes=[scope], permissions=["admin"])
    assert made["scopes"][0]["operations"] == ["read_data"]
    with server.client(key=made["key"]) as scoped:
        assert scoped.get(f"/v1/namespaces/{mine['namespace_id']}").status_code == 200
        hidden = scoped.get("/v1/namespaces/staff")
        absent = scoped.get("/v1/namespaces/nobody")
        assert hidden.status_code == absent.status_code == 404
        assert hidden.text.replace("staff", "nobody") == absent.text
        assert scoped.get(f"/v1/namespaces/{other['namespace_id']}").status_code == 404
        names = {
            entry["namespace_name"] for entry in scoped.get("/v1/namespaces?limit=1000").json()["results"]
        }
        assert names == {"customer_a"}
        # It must not be able to make itself a key without a scope.
        assert scoped.post(KEYS, json={"name": "escape"}).status_code == 403
        assert scoped.patch("/v1/organizations", json={"organization_name": "mine"}).status_code == 403


def test_scoped_routes_need_a_namespace(
    server: Server,
    client: httpx.Client,
    key: Callable[..., dict[str, Any]],
    namespace: Callable[..., dict[str, Any]],
) -> None:
    made = namespace()
    answer = client.post("/v1/retrievers/list")
    assert answer.status_code == 400
    assert "X-Namespace" in answer.json()["error"]["message"]
    for identifier in (made["namespace_id"], made["namespace_name"]):
        assert client.post("/v1/retrievers/list", headers={"X-Namespace": identifier}).status_code == 200
    for name, coding in (("Größe 音 😀", "utf-8"), ("Größe", "latin-1")):
        namespace(namespace_name=name)
        listed = client.post("/v1/retrievers/list", headers={"X-Namespace": name.encode(coding)})
        assert listed.status_code == 200, listed.text
    absent = client.post("/v1/retrievers/list", headers={"X-Namespace": "nobody"})
    assert absent.status_code == 404
    # With a key for one namespace there is nothing to choose.
    one = key(scopes=[{"resource_type": "namespace", "resource_id": made["namespace_id"]}])
    with server.client(key=one["key"]) as scoped:
        assert scoped.post("/v1/retrievers/list").status_code == 200


def test_only_digests_are_stored(server: Server, key: Callable[..., dict[str, Any]]) -> None:
    secret = key()["key"]
    for path in server.data.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
        (found,) = connection.execute(
            "SELECT count(*) FROM api_keys WHERE key_hash = ?", (hashlib.sha256(secret.encode()).digest(),)
        ).fetchone()
    assert found == 1


def test_last_used_is_noted(server: Server, client: httpx.Client, key: Callable[..., dict[str, Any]]) -> None:
    made = key()
    assert made["last_used_at"] is None
    with server.client(key=made["key"]) as other:
        other.get("/v1/me")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        listed = {entry["key_id"]: entry["last_used_at"] for entry in client.get(KEYS).json()["results"]}
        if listed[made["key_id"]] is not None:
            break
        time.sleep(0.05)
    assert listed[made["key_id"]].endswith("Z")
