"""Every operation of organizations with its status and fields; permissions and scopes by table; the operator."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import ROOT, Server

OPERATOR = "operator-secret-of-the-tests-0123456789"
PRIVATE = "/v1/private/organizations"
USERS = "/v1/organizations/users"
KEYS = f"{USERS}/admin@localhost/api-keys"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an operator, and pages of two origins that may call it."""
    server = Server.start(
        tmp_path_factory.mktemp("governed") / "data",
        environment={
            "TESSERA_OPERATOR_SECRET": OPERATOR,
            "TESSERA_CORS_ORIGINS": "https://app.example.org, https://*.staging.example.org",
        },
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def key(client: httpx.Client) -> Callable[..., str]:
    def make(**fields: Any) -> str:
        answer = client.post(KEYS, json={"name": f"org-{next(_numbers)}", **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["key"])

    return make


# --- every operation ----------------------------------------------------------------------------------

KEY_FIELDS = {
    "key_id",
    "key_hash",
    "key_prefix",
    "key_type",
    "internal_id",
    "organization_id",
    "user_id",
    "name",
    "description",
    "permissions",
    "scopes",
    "status",
    "created_at",
    "created_by",
    "revoked_at",
    "revoked_by",
}
USER_FIELDS = {"user_id", "organization_id", "email", "user_name", "role", "status", "metadata", "created_at"}
ORGANIZATION_FIELDS = {
    "organization_id",
    "organization_name",
    "account_type",
    "credit_count",
    "rate_limits",
    "created_at",
    "updated_at",
}
PERSON = f"{USERS}/table@example.org"
#: (method, path, body, status, fields that clients require), in an order in which each can be done.
OPERATIONS: list[tuple[str, str, Any, int, set[str]]] = [
    ("POST", USERS, {"email": "table@example.org", "user_name": "Ta"}, 200, USER_FIELDS),
    ("GET", USERS, None, 200, {"results", "total_count", "skip", "limit"}),
    ("GET", PERSON, None, 200, USER_FIELDS),
    ("PATCH", PERSON, {"role": "viewer", "avatar_url": "https://x.example/a.png"}, 200, USER_FIELDS),
    ("POST", f"{PERSON}/api-keys", {"name": "k"}, 200, KEY_FIELDS | {"key"}),
    ("GET", f"{PERSON}/api-keys", None, 200, {"results", "total_count"}),
    ("PATCH", f"{PERSON}/api-keys/k", {"description": "d"}, 200, KEY_FIELDS),
    ("POST", f"{PERSON}/api-keys/k/rotate", None, 200, KEY_FIELDS | {"key"}),
    ("DELETE", f"{PERSON}/api-keys/k", None, 200, {"message", "success"}),
    ("DELETE", PERSON, None, 200, {"message", "success"}),
    ("GET", "/v1/organizations", None, 200, ORGANIZATION_FIELDS),
    ("PATCH", "/v1/organizations", {"metadata": {"a": 1}}, 200, ORGANIZATION_FIELDS),
    (
        "GET",
        "/v1/organizations/usage",
        None,
        200,
        {"organization_id", "start", "end", "total", "by_api", "by_key"},
    ),
    ("GET", "/v1/organizations/audit/logs", None, 200, {"results", "total", "skip", "limit"}),
    ("GET", "/v1/organizations/audit/settings", None, 200, {"read_auditing_enabled"}),
    ("PATCH", "/v1/organizations/audit/settings", {}, 200, {"read_auditing_enabled"}),
    (
        "POST",
        "/v1/organizations/secrets",
        {"secret_name": "t", "secret_value": "v"},
        201,
        {"secret_name", "created"},
    ),
    ("GET", "/v1/organizations/secrets", None, 200, {"secrets", "count"}),
    ("PUT", "/v1/organizations/secrets/t", {"secret_value": "w"}, 200, {"secret_name", "updated"}),
    ("DELETE", "/v1/organizations/secrets/t", None, 200, {"secret_name", "deleted"}),
    ("GET", "/v1/me", None, 200, {"organization_id", "account_type", "key"}),
]


def promised() -> list[tuple[str, str, int]]:
    lines = (ROOT / "tests/operations/organizations.txt").read_text().splitlines()
    return [(m, p, int(s)) for m, p, s in (line.split() for line in lines if not line.startswith("#"))]


def marked(test: Callable[..., None], *, operator: bool) -> Callable[..., None]:
    """Mark a test with every operation of organizations that is (not) the operator's."""
    for operation in promised():
        if operation[1].startswith(PRIVATE) == operator:
            test = pytest.mark.operation(*operation)(test)
    return test


@functools.partial(marked, operator=False)
def test_every_operation_has_its_status_and_fields(client: httpx.Client) -> None:
    for method, path, body, status, fields in OPERATIONS:
        answer = client.request(method, path, json=body)
        assert answer.status_code == status, (method, path, answer.text)
        assert fields <= set(answer.json()), (method, path, answer.text)
        assert answer.headers["content-type"] == "application/json"
        assert "int_" not in answer.text
    key_id = client.get("/v1/me").json()["key"]["key_id"]
    event = client.get("/v1/organizations/audit/logs").json()["results"][0]
    found = client.get(f"/v1/organizations/audit/logs/{event['audit_id']}")
    assert found.status_code == 200 and found.json() == event
    assert set(event) >= {"audit_id", "timestamp", "resource_type", "resource_id", "action", "actor_id"}
    usage = client.get(f"/v1/organizations/api-keys/{key_id}/usage")
    assert usage.status_code == 200 and usage.json()["key_id"] == key_id
    routes = client.get(f"/v1/organizations/api-keys/{key_id}/usage/endpoints")
    assert routes.status_code == 200 and isinstance(routes.json(), list)


def test_permissions_by_table(server: Server, key: Callable[..., str]) -> None:
    """All of it needs admin, but what every key may know of itself and its organization."""
    open_to_readers = {("GET", "/v1/organizations"), ("GET", "/v1/me")}
    for permission in ("read", "write", "delete"):
        with server.client(key=key(permissions=[permission])) as client:
            for method, path, body, _, _ in OPERATIONS:
                answer = client.request(method, path, json=body)
                expected = 200 if (method, path) in open_to_readers else 403
                assert answer.status_code == expected, (permission, method, path, answer.text)


def test_a_confined_admin_key_governs_nothing(server: Server, key: Callable[..., str]) -> None:
    """Also not through a scope on the organization that allows less than to administer it."""
    organization = server.client().get("/v1/organizations").json()["organization_id"]
    reading = {"resource_type": "organization", "resource_id": organization, "operations": ["read"]}
    for scope, status in (
        ({"resource_type": "namespace", "resource_id": "*"}, 403),
        ({"resource_type": "collection", "resource_id": "*"}, 403),
        ({"resource_type": "user", "resource_id": "someone"}, 403),
        (reading, 403),
        ({**reading, "operations": ["manage_permissions"]}, 200),
        ({"resource_type": "organization", "resource_id": "*"}, 200),
    ):
        with server.client(key=key(permissions=["admin"], scopes=[scope])) as client:
            for path in (USERS, KEYS, "/v1/organizations/secrets", "/v1/organizations/audit/logs"):
                assert client.get(path).status_code == status, (scope, path)
            assert client.get("/v1/organizations/usage").status_code == status


def test_what_an_organization_says_of_itself(client: httpx.Client) -> None:
    before = client.get("/v1/organizations").json()
    assert before["account_type"] == "enterprise" and before["credit_count"] == 0
    assert set(before["rate_limits"]) == {"metadata", "data", "search", "upload", "compute"}
    changed = client.patch(
        "/v1/organizations",
        json={
            "organization_name": "Birds",
            "logo_url": "https://x.example/logo.png",
            "billing_email": "a@x.example",
            "metadata": {"plan": ["z"]},
            "rate_limits": {"search": 100_000},
        },
    ).json()
    assert (changed["organization_name"], changed["metadata"]) == ("Birds", {"plan": ["z"]})
    assert changed["rate_limits"]["search"] == 100_000 and changed["rate_limits"]["data"] is None
    assert client.get("/v1/me").json()["rate_limits"] == {"search": 100_000}
    back = {
        "organization_name": before["organization_name"],
        "logo_url": None,
        "billing_email": None,
        "metadata": {},
        "rate_limits": None,
    }
    assert client.patch("/v1/organizations", json=back).json()["rate_limits"]["search"] is None
    assert client.get("/v1/me").json()["rate_limits"] is None
    assert client.patch("/v1/organizations", json={"rate_limits": {"search": 0}}).status_code == 422


# --- scopes by table ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_places(server: Server) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """Two namespaces with a bucket, a collection and a retriever of the same names each."""
    with server.client() as client:
        found = []
        for name in ("scoped_one", "scoped_two"):
            made = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]})
            loop = Loop(client, made.raise_for_status().json())
            bucket = loop.bucket(bucket_name="box")
            collection = loop.collection(bucket, TEXT, collection_name="coll")
            retriever = loop.post(
                "/retrievers",
                {
                    "retriever_name": "retr",
                    "collection_identifiers": [collection],
                    "stages": [{"stage_name": "limit", "parameters": {"limit": 1}}],
                },
            )
            found.append(
                {
                    "namespace": loop.namespace_id,
                    "name": name,
                    "bucket": bucket,
                    "collection": collection,
                    "retriever": retriever["retriever_id"],
                }
            )
        yield found[0], found[1]
        for place in found:
            client.delete(f"/v1/namespaces/{place['namespace']}")


READS = [
    ("namespace", "GET", "/v1/namespaces/{namespace}"),
    ("bucket", "GET", "/v1/buckets/{bucket}"),
    ("bucket", "GET", "/v1/buckets/box"),
    ("bucket", "POST", "/v1/buckets/{bucket}/objects/list"),
    ("bucket", "POST", "/v1/buckets/{bucket}/batches/list"),
    ("collection", "GET", "/v1/collections/{collection}"),
    ("collection", "GET", "/v1/collections/coll"),
    ("collection", "POST", "/v1/collections/{collection}/documents/list"),
    ("collection", "GET", "/v1/collections/{collection}/features"),
    ("retriever", "GET", "/v1/retrievers/{retriever}"),
    ("retriever", "POST", "/v1/retrievers/retr/execute"),
]


def test_scopes_by_table(
    server: Server, key: Callable[..., str], two_places: tuple[dict[str, str], dict[str, str]]
) -> None:
    """Key × route × own or foreign resource."""
    one, two = two_places
    inside = {"namespace", "bucket", "collection", "retriever"}
    table: list[tuple[list[dict[str, Any]], set[str], set[str]]] = [
        # (scopes, what of the first place is reached, what of the second)
        ([], inside, inside),
        ([{"resource_type": "organization", "resource_id": "*"}], inside, inside),
        ([{"resource_type": "organization", "resource_id": "org_other"}], set(), set()),
        ([{"resource_type": "namespace", "resource_id": one["namespace"]}], inside, set()),
        ([{"resource_type": "namespace", "resource_id": "scoped_tw*"}], set(), inside),
        ([{"resource_type": "namespace", "resource_id": "scoped_?ne"}], set(), set()),
        ([{"resource_type": "namespace", "resource_id": "*"}], inside, inside),
        ([{"resource_type": "bucket", "resource_id": one["bucket"]}], {"bucket"}, set()),
        ([{"resource_type": "bucket", "resource_id": "bo*"}], {"bucket"}, {"bucket"}),
        ([{"resource_type": "collection", "resource_id": two["collection"]}], set(), {"collection"}),
        ([{"resource_type": "retriever", "resource_id": one["retriever"]}], {"retriever"}, set()),
        (
            [
                {"resource_type": "namespace", "resource_id": two["namespace"]},
                {"resource_type": "retriever", "resource_id": one["retriever"]},
            ],
            {"retriever"},
            inside,
        ),
        ([{"resource_type": "cluster", "resource_id": "*"}], set(), set()),
        ([{"resource_type": "user", "resource_id": "*"}], set(), set()),
    ]
    for scopes, *reached in table:
        with server.client(key=key(scopes=scopes, permissions=["read"])) as client:
            for place, allowed in zip((one, two), reached, strict=True):
                for noun, method, template in READS:
                    for header in (place["namespace"], place["name"]):
                        path = template.format(**place)
                        body = {} if method == "POST" else None
                        answer = client.request(method, path, json=body, headers={"X-Namespace": header})
                        expected = 200 if noun in allowed else 404
                        assert answer.status_code == expected, (scopes, method, path, header, answer.text)
                        if expected == 404:
                            assert answer.json()["error"]["details"]["resource"] == "namespace"


def test_a_scope_may_allow_less_than_the_key(
    server: Server, key: Callable[..., str], two_places: tuple[dict[str, str], dict[str, str]]
) -> None:
    place, _ = two_places
    for kind, path in (
        ("namespace", f"/v1/namespaces/{place['namespace']}"),
        ("bucket", f"/v1/buckets/{place['bucket']}"),
        ("collection", f"/v1/collections/{place['collection']}"),
        ("retriever", f"/v1/retrievers/{place['retriever']}"),
    ):
        for operations, status in ((["read"], 403), (["write_data"], 200), (None, 200)):
            scope = {"resource_type": kind, "resource_id": place[kind], "operations": operations}
            with server.client(key=key(permissions=["admin"], scopes=[scope])) as client:
                headers = {"X-Namespace": place["namespace"]}
                assert client.get(path, headers=headers).status_code == 200
                answer = client.patch(path, json={"description": "x"}, headers=headers)
                assert answer.status_code == status, (kind, operations, answer.text)


def test_a_scope_on_one_resource_adds_to_a_weaker_one_on_its_namespace(
    server: Server, key: Callable[..., str], two_places: tuple[dict[str, str], dict[str, str]]
) -> None:
    place, _ = two_places
    scopes = [
        {"resource_type": "namespace", "resource_id": place["namespace"], "operations": ["read"]},
        {"resource_type": "collection", "resource_id": place["collection"]},
    ]
    with server.client(key=key(permissions=["admin"], scopes=scopes), namespace=place["namespace"]) as client:
        for path, status in (
            ("collections/" + place["collection"], 200),
            ("buckets/" + place["bucket"], 403),
        ):
            assert client.get(f"/v1/{path}").status_code == 200
            answer = client.patch(f"/v1/{path}", json={"description": "y"})
            assert answer.status_code == status, answer.text
        assert client.patch("/v1/collections/absent", json={"description": "y"}).status_code in (403, 404)
        assert client.get("/v1/collections/absent").status_code == 404


def test_a_retriever_key_reads_no_more_than_its_retriever(
    server: Server,
    client: httpx.Client,
    key: Callable[..., str],
    two_places: tuple[dict[str, str], dict[str, str]],
) -> None:
    place, _ = two_places
    loop = Loop(client, {"namespace_id": place["namespace"]})
    hidden = loop.collection(place["bucket"], TEXT, collection_name="hidden")
    scope = {"resource_type": "retriever", "resource_id": place["retriever"]}
    path = f"/v1/retrievers/{place['retriever']}/execute"
    try:
        with server.client(
            key=key(scopes=[scope], permissions=["admin"]), namespace=place["namespace"]
        ) as narrow:
            for allowed in (None, ["coll"], [place["collection"]]):
                answer = narrow.post(path, json={"collection_identifiers": allowed})
                assert answer.status_code == 200, answer.text
            texts = []
            for other in ("hidden", hidden, "absent"):
                answer = narrow.post(path, json={"collection_identifiers": [other]})
                assert answer.status_code == 400, answer.text
                texts.append(answer.text.replace(other, "x"))
            assert len(set(texts)) == 1
            assert narrow.post("/v1/retrievers/execute", json={"stages": []}).status_code == 404
        wide = client.post(path, json={"collection_identifiers": ["hidden"]}, headers=loop.headers)
        assert wide.status_code == 200
    finally:
        loop.delete(f"/collections/{hidden}")


def test_a_scope_on_keys_lets_nobody_out_of_a_scope(
    server: Server, client: httpx.Client, key: Callable[..., str]
) -> None:
    scope = {"resource_type": "api_key", "resource_id": "*"}
    client.post(KEYS, json={"name": "to-revoke"}).raise_for_status()
    with server.client(key=key(permissions=["admin"], scopes=[scope])) as narrow:
        assert narrow.get(KEYS).status_code == 200
        for method, path, body in (
            ("POST", KEYS, {"name": "escape"}),
            ("PATCH", f"{KEYS}/to-revoke", {"scopes": []}),
            ("POST", f"{KEYS}/to-revoke/rotate", None),
            ("PATCH", "/v1/organizations", {"rate_limits": None}),
        ):
            assert narrow.request(method, path, json=body).status_code == 403, (method, path)
        assert narrow.delete(f"{KEYS}/to-revoke").status_code == 200


def test_what_has_ended_stays_ended(client: httpx.Client, server: Server) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1.5))
    made = {}
    for name, ends in (("ends-by-itself", {"expires_at": soon}), ("is-ended", {}), ("is-revoked", {})):
        made[name] = client.post(KEYS, json={"name": name, **ends}).raise_for_status().json()["key"]
    for name, status in (("is-ended", "expired"), ("is-revoked", "revoked")):
        assert client.patch(f"{KEYS}/{name}", json={"status": status}).json()["status"] == status
    deadline = time.monotonic() + 20
    with server.client(key=made["ends-by-itself"]) as other:
        while other.get("/v1/me").status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for name, secret in made.items():
        for change in (
            {"expires_at": None},
            {"expires_at": "2999-01-01T00:00:00Z"},
            {"status": "active"},
            {"permissions": ["admin"]},
            {"scopes": []},
        ):
            answer = client.patch(f"{KEYS}/{name}", json=change)
            assert answer.status_code == 400 and "final" in answer.text, (name, change, answer.text)
        assert client.post(f"{KEYS}/{name}/rotate").status_code == 400
        assert client.patch(f"{KEYS}/{name}", json={"description": "of old"}).status_code == 200
        with server.client(key=secret) as other:
            assert other.get("/v1/me").status_code == 401
        assert client.delete(f"{KEYS}/{name}").status_code == 200


def test_nobody_locks_themselves_out(client: httpx.Client) -> None:
    for status in ("suspended", "pending"):
        answer = client.patch(f"{USERS}/admin@localhost", json={"status": status, "user_name": "Gone"})
        assert answer.status_code == 400 and "another admin" in answer.text
    assert client.get(f"{USERS}/admin@localhost").json()["user_name"] != "Gone"
    assert client.patch(f"{USERS}/admin@localhost", json={"status": "active"}).status_code == 200


def test_a_pending_user_has_no_working_key_yet(client: httpx.Client, server: Server) -> None:
    person = {"email": "pending@example.org", "user_name": "Soon", "status": "pending"}
    client.post(USERS, json=person).raise_for_status()
    path = f"{USERS}/pending@example.org"
    made = client.post(f"{path}/api-keys", json={"name": "early"}).json()["key"]
    with server.client(key=made) as other:
        assert other.get("/v1/me").status_code == 401
        client.patch(path, json={"status": "active"}).raise_for_status()
        assert other.get("/v1/me").status_code == 200
    client.delete(path).raise_for_status()


def test_last_use_is_written_once_a_minute(client: httpx.Client, server: Server) -> None:
    made = client.post(KEYS, json={"name": "used-often"}).json()

    def last_use() -> str | None:
        listed = {entry["key_id"]: entry for entry in client.get(KEYS).json()["results"]}
        found: str | None = listed[made["key_id"]]["last_used_at"]
        return found

    with server.client(key=made["key"]) as other:
        other.get("/v1/me").raise_for_status()
        deadline = time.monotonic() + 20
        while (first := last_use()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for _ in range(20):
            other.get("/v1/me").raise_for_status()
    # What is queued behind them is written after them: usage of the same requests.
    path = f"/v1/organizations/api-keys/{made['key_id']}/usage"
    while client.get(path).json()["total"]["requests"] < 21:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert last_use() == first


# --- origins ------------------------------------------------------------------------------------------


def test_a_key_for_some_pages_works_nowhere_else(server: Server, client: httpx.Client) -> None:
    allowed = ["https://app.example.org", "https://*.example.com"]
    made = client.post(KEYS, json={"name": "page", "allowed_origins": allowed}).json()
    assert made["allowed_origins"] == allowed
    with server.client(key=made["key"]) as page:
        for headers, status in (
            ({}, 403),
            ({"Origin": "https://app.example.org"}, 200),
            ({"Origin": "https://APP.example.org"}, 200),
            ({"Origin": "http://app.example.org"}, 403),
            ({"Origin": "https://app.example.org:8443"}, 403),
            ({"Origin": "https://app.example.org.evil.example"}, 403),
            ({"Origin": "https://a.example.com"}, 200),
            ({"Origin": "https://a.b.example.com"}, 200),
            ({"Origin": "https://example.com"}, 403),
            ({"Origin": "https://evilexample.com"}, 403),
            ({"Origin": "null"}, 403),
            ({"Referer": "https://app.example.org/some/page?x=1"}, 200),
            ({"Referer": "https://evil.example/https://app.example.org"}, 403),
        ):
            answer = page.get("/v1/me", headers=headers)
            assert answer.status_code == status, (headers, answer.text)
        client.patch(f"{KEYS}/page", json={"allowed_origins": None}).raise_for_status()
        assert page.get("/v1/me").status_code == 200
    for wrong in (["example.org"], ["https://x.example/path"], ["https://*"], "https://x.example"):
        assert client.patch(f"{KEYS}/page", json={"allowed_origins": wrong}).status_code == 422, wrong


def test_pages_of_other_origins_may_call_only_where_that_is_set(server: Server, governed: Server) -> None:
    preflight = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    wanted = {
        **preflight,
        "Access-Control-Request-Headers": "authorization,content-md5,content-type,x-namespace",
    }
    answer = httpx.options(f"{governed.url}/v1/namespaces", headers=wanted)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.org"
    assert "access-control-allow-credentials" not in answer.headers
    # An error can be read by the page too.
    for origin, allowed in (
        ("https://app.example.org", True),
        ("https://a.staging.example.org", True),
        ("https://staging.example.org", False),
        ("https://evil.example", False),
        ("https://app.example.org.evil.example", False),
        ("https://a.staging.example.org.evil.example", False),
        ("https://evil.example/.staging.example.org", False),
    ):
        answer = httpx.get(f"{governed.url}/v1/me", headers={"Origin": origin})
        assert answer.status_code == 401
        assert ("access-control-allow-origin" in answer.headers) == allowed, origin
        if allowed:
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    off = httpx.options(f"{server.url}/v1/namespaces", headers=preflight)
    assert "access-control-allow-origin" not in off.headers and off.status_code in (401, 405)


# --- the operator -------------------------------------------------------------------------------------


def test_without_an_operators_secret_there_is_no_such_route(server: Server, client: httpx.Client) -> None:
    absent = client.get("/v1/public-nothing/organizations")
    for method, path in (("POST", PRIVATE), ("GET", PRIVATE), ("DELETE", f"{PRIVATE}/x")):
        answer = client.request(method, path, json={"organization_name": "x"})
        assert answer.status_code == absent.status_code == 404
        assert answer.json()["error"]["details"]["resource"] == "route"
    assert (
        httpx.get(f"{server.url}{PRIVATE}", headers={"Authorization": f"Bearer {OPERATOR}"}).status_code
        == 401
    )


@functools.partial(marked, operator=True)
def test_the_operator_makes_a_second_organization(governed: Server) -> None:
    for wrong in (governed.api_key, OPERATOR[:-1], OPERATOR + "0"):
        with governed.client(key=wrong) as client:
            assert client.get(PRIVATE).status_code == 401, wrong
    with governed.client(key=OPERATOR) as operator:
        # The secret is no key: it opens nothing else.
        assert operator.get("/v1/namespaces").status_code == 401
        made = operator.post(
            PRIVATE,
            json={
                "organization_name": "second",
                "account_type": "pro",
                "users": [{"email": "eve@b.example", "user_name": "Eve", "role": "admin"}],
            },
        )
        assert made.status_code == 200, made.text
        organization = made.json()
        assert set(organization) >= ORGANIZATION_FIELDS and "int_" not in made.text
        assert [user["email"] for user in organization["users"]] == ["eve@b.example"]
        assert operator.post(PRIVATE, json={"organization_name": "second"}).status_code == 409
        assert operator.post(PRIVATE, json={}).status_code == 422
        path = f"{PRIVATE}/{organization['organization_id']}"
        assert operator.get(path).json() == operator.get(f"{PRIVATE}/second").json() == organization
        listed = operator.get(PRIVATE).json()
        assert listed["total_count"] == len(listed["results"]) == 2
        changed = operator.patch(path, json={"account_type": "team", "rate_limits": {"search": 100_000}})
        assert changed.json()["account_type"] == "team"
        bootstrap = operator.post(f"{path}/users/eve@b.example/bootstrap-key")
        assert bootstrap.status_code == 200 and KEY_FIELDS | {"key"} <= set(bootstrap.json())
        assert operator.post(f"{path}/users/nobody@b.example/bootstrap-key").status_code == 404
        assert operator.get(f"{PRIVATE}/org_0000000000000000").status_code == 404
        taken = operator.patch(path, json={"organization_name": "default"})
        assert taken.status_code == 409 and taken.json()["error"]["type"] == "AlreadyExistsError"
        assert operator.patch(path, json={"organization_name": "second"}).status_code == 200
    with governed.client(key=bootstrap.json()["key"]) as eve, governed.client() as admin:
        me = eve.get("/v1/me").json()
        assert (me["user_email"], me["account_type"], me["rate_limits"]) == (
            "eve@b.example",
            "team",
            {"search": 100_000},
        )
        # Two organizations may use the same names, and neither knows of the other.
        body = {"namespace_name": "shared-name", "feature_extractors": [TEXT]}
        mine, theirs = (client.post("/v1/namespaces", json=body).json() for client in (eve, admin))
        assert mine["namespace_id"] != theirs["namespace_id"]
        for client, own, other in ((eve, mine, theirs), (admin, theirs, mine)):
            assert client.get(f"/v1/namespaces/{other['namespace_id']}").status_code == 404
            found = client.get("/v1/namespaces/shared-name").json()
            assert found["namespace_id"] == own["namespace_id"]
            assert [n["namespace_id"] for n in client.get("/v1/namespaces").json()["results"]] == [
                own["namespace_id"]
            ]
        assert eve.get(f"{USERS}/admin@localhost").status_code == 404
        # An organization is not told that another has its name; the operator is not left to guess which is meant.
        eve.patch("/v1/organizations", json={"organization_name": "default"}).raise_for_status()
        with governed.client(key=OPERATOR) as operator:
            for method in ("GET", "DELETE"):
                ambiguous = operator.request(method, f"{PRIVATE}/default")
                assert ambiguous.status_code == 400 and organization["organization_id"] in ambiguous.text
        eve.patch("/v1/organizations", json={"organization_name": "second"}).raise_for_status()
        acts = {event["actor_type"] for event in eve.get("/v1/organizations/audit/logs").json()["results"]}
        assert acts == {"operator", "user"}
        assert operator_removes(governed, organization["organization_id"]) == 200
        assert eve.get("/v1/me").status_code == 401
        assert admin.get("/v1/namespaces/shared-name").status_code == 200
    assert OPERATOR not in governed.log


def operator_removes(server: Server, organization_id: str) -> int:
    with server.client(key=OPERATOR) as operator:
        status = operator.delete(f"{PRIVATE}/{organization_id}").status_code
        assert operator.get(f"{PRIVATE}/{organization_id}").status_code == 404
        assert operator.delete(f"{PRIVATE}/default").status_code == 400
    deadline = time.monotonic() + 20
    with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
        for table in ("organizations", "users", "api_keys", "secrets", "namespaces", "audit_events"):
            statement = f"SELECT count(*) FROM {table} WHERE organization_id = ?"
            while connection.execute(statement, (organization_id,)).fetchone() != (0,):
                assert time.monotonic() < deadline, table
                time.sleep(0.05)
    return status
