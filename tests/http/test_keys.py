"""Making, listing, changing, rotating and revoking keys; users; the organization."""

from __future__ import annotations

import itertools

import httpx
import pytest

from tests.http.processes import Server

KEYS = "/v1/organizations/users/admin@localhost/api-keys"
_names = itertools.count()


@pytest.fixture
def name() -> str:
    return f"key-{next(_names)}"


def test_a_new_key_has_every_field_that_clients_require(client: httpx.Client, name: str) -> None:
    made = client.post(KEYS, json={"name": name, "permissions": ["read"]}).json()
    for field in ("key", "key_hash", "internal_id", "user_id", "name", "key_id", "organization_id"):
        assert isinstance(made[field], str) and made[field], field
    assert made["key"].startswith(made["key_prefix"]) and 10 <= len(made["key_prefix"]) <= 13
    assert made["key_type"] == "standard" and made["status"] == "active"
    assert made["description"] == "" and made["permissions"] == ["read"] and made["scopes"] == []
    # Never the stored values: a digest of the digest, and the public id.
    assert made["internal_id"] == made["organization_id"]
    assert len(made["key_hash"]) == 64


def test_without_permissions_a_key_reads_and_writes(client: httpx.Client, name: str) -> None:
    assert client.post(KEYS, json={"name": name}).json()["permissions"] == ["read", "write"]


def test_lists_never_show_a_secret(client: httpx.Client, name: str) -> None:
    made = client.post(KEYS, json={"name": name}).json()
    answer = client.get(KEYS)
    assert made["key"] not in answer.text
    listed = next(entry for entry in answer.json()["results"] if entry["key_id"] == made["key_id"])
    assert "key" not in listed
    assert listed["key_hash"] == made["key_hash"]
    assert answer.json()["total_count"] == len(answer.json()["results"])


def test_names_are_unique_until_revoked(client: httpx.Client, name: str) -> None:
    first = client.post(KEYS, json={"name": name}).json()
    taken = client.post(KEYS, json={"name": name})
    assert taken.status_code == 409 and taken.json()["error"]["type"] == "AlreadyExistsError"
    assert client.delete(f"{KEYS}/{name}").json() == {"message": f"Key '{name}' is revoked.", "success": True}
    assert client.delete(f"{KEYS}/{name}").status_code == 200
    second = client.post(KEYS, json={"name": name}).json()
    assert second["key_id"] != first["key_id"]
    every = client.get(KEYS, params={"include_revoked": True}).json()["results"]
    assert [(e["key_id"], e["status"]) for e in every if e["name"] == name] == [
        (first["key_id"], "revoked"),
        (second["key_id"], "active"),
    ]
    plain = client.get(KEYS).json()["results"]
    assert [e["key_id"] for e in plain if e["name"] == name] == [second["key_id"]]


def test_rotation_replaces_the_secret(server: Server, client: httpx.Client, name: str) -> None:
    old = client.post(KEYS, json={"name": name}).json()
    new = client.post(f"{KEYS}/{name}/rotate").json()
    assert new["key_id"] == old["key_id"] and new["key"] != old["key"]
    with server.client(key=old["key"]) as dead, server.client(key=new["key"]) as alive:
        assert dead.get("/v1/me").status_code == 401
        assert alive.get("/v1/me").status_code == 200


def test_changes_are_in_force_at_once(server: Server, client: httpx.Client, name: str) -> None:
    made = client.post(KEYS, json={"name": name, "permissions": ["read"], "description": "mine"}).json()
    changed = client.patch(f"{KEYS}/{name}", json={"permissions": ["admin"], "name": f"{name}-new"}).json()
    assert (changed["name"], changed["description"], changed["permissions"]) == (
        f"{name}-new",
        "mine",
        ["admin"],
    )
    with server.client(key=made["key"]) as other:
        assert other.get(KEYS).status_code == 200
    ended = client.patch(f"{KEYS}/{name}-new", json={"status": "revoked"}).json()
    assert ended["status"] == "revoked" and ended["revoked_at"] and ended["revoked_by"]
    again = client.patch(f"{KEYS}/{name}-new", json={"status": "active"})
    assert again.status_code == 400 and "final" in again.json()["error"]["message"]


def test_an_end_in_the_past_is_refused(client: httpx.Client, name: str) -> None:
    answer = client.post(KEYS, json={"name": name, "expires_at": "2020-01-01T00:00:00+02:00"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "expires_at"]


def test_a_name_that_no_path_can_hold_is_refused(client: httpx.Client, name: str) -> None:
    for wrong in ("a/b", "..", "line\nbreak", "key_0f3a9c5e77d1b2c4"):
        answer = client.post(KEYS, json={"name": wrong})
        assert answer.status_code == 422, wrong
        assert answer.json()["detail"][0]["loc"] == ["body", "name"]
    assert client.post(KEYS, json={"name": name}).status_code == 200
    assert client.patch(f"{KEYS}/{name}", json={"name": "a/b"}).status_code == 422


def test_absent_users_and_keys_are_404(client: httpx.Client) -> None:
    for method, path in (
        ("POST", "/v1/organizations/users/nobody@example.org/api-keys"),
        ("GET", "/v1/organizations/users/nobody@example.org/api-keys"),
        ("DELETE", f"{KEYS}/absent"),
        ("POST", f"{KEYS}/absent/rotate"),
        ("PATCH", f"{KEYS}/absent"),
        ("GET", "/v1/organizations/users/nobody@example.org"),
    ):
        answer = client.request(method, path, json={"name": "x"} if method in ("POST", "PATCH") else None)
        assert answer.status_code == 404, (method, path)
        assert set(answer.json()["error"]["details"]) == {"resource", "id"}


def test_users(client: httpx.Client) -> None:
    made = client.post(
        "/v1/organizations/users", json={"email": "Ana@example.org", "user_name": "Ana"}
    ).json()
    assert (made["role"], made["status"], made["metadata"]) == ("member", "active", {})
    twice = client.post("/v1/organizations/users", json={"email": "ana@Example.org", "user_name": "Ana"})
    assert twice.status_code == 409
    assert client.get("/v1/organizations/users/ana@example.org").json() == made
    emails = [user["email"] for user in client.get("/v1/organizations/users").json()["results"]]
    assert emails[0] == "admin@localhost" and "Ana@example.org" in emails
    assert client.get("/v1/organizations/users?role=viewer").json()["results"] == []
    assert client.delete("/v1/organizations/users/Ana@example.org").status_code == 200
    assert client.get("/v1/organizations/users/Ana@example.org").status_code == 404
    own = client.delete("/v1/organizations/users/admin@localhost")
    assert own.status_code == 400


def test_me(client: httpx.Client, server: Server) -> None:
    me = client.get("/v1/me").json()
    assert me["user_email"] == "admin@localhost"
    assert me["key"]["permissions"] == ["admin"]
    assert me["key"]["key_prefix"] == server.api_key[:13]
    assert me["organization_id"].startswith("org_")


def test_the_organization_and_its_infrastructure(client: httpx.Client, server: Server) -> None:
    before = client.get("/v1/organizations").json()
    assert before["organization_id"].startswith("org_") and "int_" not in str(before)
    assert before["infrastructure"] is None and before["credit_count"] == 0
    missing = client.patch("/v1/organizations", json={"infrastructure": {"compute_tier": "dedicated_cpu"}})
    assert [tuple(entry["loc"]) for entry in missing.json()["detail"]] == [
        ("body", "infrastructure", "qdrant_url"),
        ("body", "infrastructure", "qdrant_api_key"),
        ("body", "infrastructure", "ray_head_node_url"),
    ]
    wanted = {
        "compute_tier": "shared",
        "qdrant_url": "http://127.0.0.1:6333",
        "ray_head_node_url": "ray://127.0.0.1:10001",
    }
    secret = "organization-canary"
    try:
        answer = client.patch(
            "/v1/organizations", json={"infrastructure": {**wanted, "qdrant_api_key": secret}}
        )
        assert answer.json()["infrastructure"] == {**wanted, "ray_dashboard_url": None}
        assert "canary" not in answer.text + client.get("/v1/organizations").text
        assert all(secret.encode() not in path.read_bytes() for path in server.data.glob("tessera.sqlite3*"))
        # The key may be left out while the URL stays.
        again = client.patch("/v1/organizations", json={"infrastructure": wanted})
        assert again.status_code == 200
        moved = client.patch(
            "/v1/organizations", json={"infrastructure": {**wanted, "qdrant_url": "http://127.0.0.1:7333"}}
        )
        assert moved.status_code == 200
        dedicated = {**wanted, "compute_tier": "dedicated_cpu"}
        # The key went with the URL that it was for.
        assert client.patch("/v1/organizations", json={"infrastructure": dedicated}).status_code == 422
    finally:
        removed = client.patch("/v1/organizations", json={"infrastructure": None})
    assert removed.json()["infrastructure"] is None
    assert (
        client.patch("/v1/organizations", json={}).json()["organization_name"] == before["organization_name"]
    )
