"""Namespaces over HTTP: every status that the contract names, exact JSON types, messages that help."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.http.processes import Server

TEXT = {"feature_extractor_name": "text_extractor", "version": "v1"}
_numbers = itertools.count(1)
Create = Callable[..., dict[str, Any]]


def fresh(prefix: str = "ns") -> str:
    return f"{prefix} {next(_numbers)} {time.time_ns() % 10**9}"


def body(**changes: Any) -> dict[str, Any]:
    made = {"namespace_name": fresh(), "feature_extractors": [TEXT], **changes}
    return {key: value for key, value in made.items() if value is not ...}


@pytest.fixture
def key(client: httpx.Client, server: Server) -> Iterator[Callable[..., httpx.Client]]:
    """A function that makes a key and returns a client with it."""
    clients: list[httpx.Client] = []

    def make(**fields: Any) -> httpx.Client:
        answer = client.post(
            "/v1/organizations/users/admin@localhost/api-keys", json={"name": fresh("key"), **fields}
        )
        assert answer.status_code == 200, answer.text
        clients.append(server.client(key=answer.json()["key"]))
        return clients[-1]

    yield make
    for made in clients:
        made.close()


def error(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check the envelope of an error and return its `error`."""
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert found["success"] is False
    assert found["status"] == status
    assert found["error"]["type"] == kind
    assert found["error"]["message"]
    assert found["error"]["details"] is None or isinstance(found["error"]["details"], dict)
    assert answer.headers["content-type"] == "application/json"
    assert "detail" in found or status != 422
    return dict(found["error"])


# --- the answer ---------------------------------------------------------------------------------------

#: Every field and its exact JSON types.
TYPES: dict[str, tuple[type, ...]] = {
    "object": (str,),
    "namespace_id": (str,),
    "namespace_name": (str,),
    "namespace_type": (str,),
    "infrastructure": (dict,),
    "cluster_id": (type(None),),
    "description": (str, type(None)),
    "feature_extractors": (list,),
    "payload_indexes": (list,),
    "payload_index_count": (int,),
    "document_count": (int,),
    "document_count_complete": (bool,),
    "bucket_count": (int,),
    "collection_count": (int,),
    "object_count": (int,),
    "auto_create_indexes": (bool,),
    "vector_inference_map": (dict,),
    "mode": (str,),
    "namespace_ready": (bool,),
    "clone_status": (type(None),),
    "source_namespace_id": (type(None),),
    "expires_at": (type(None),),
    "created_at": (str,),
    "updated_at": (str,),
}


def check_shape(answer: dict[str, Any]) -> None:
    assert set(answer) == set(TYPES)
    for name, kinds in TYPES.items():
        assert type(answer[name]) in kinds, (name, answer[name])
    for name in ("created_at", "updated_at"):
        assert datetime.fromisoformat(answer[name]).utcoffset() is not None
    for extractor in answer["feature_extractors"]:
        assert (
            extractor["feature_extractor_id"]
            == f"{extractor['feature_extractor_name']}_{extractor['version']}"
        )
    for index in answer["payload_indexes"]:
        assert set(index) == {"field_name", "type", "field_schema", "is_protected"}
        assert index["field_schema"]["type"] == index["type"]
    assert all(isinstance(model, str) for model in answer["vector_inference_map"].values())
    infrastructure = answer["infrastructure"]
    assert 3 <= len(infrastructure["qdrant_collection"]) <= 128
    assert type(infrastructure["max_concurrent_jobs"]) is int
    assert type(infrastructure["autoscaling_enabled"]) is bool
    assert "qdrant_api_key" not in infrastructure


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"description": None, "payload_indexes": None, "infrastructure": None},
        {"description": "d", "payload_indexes": [{"field_name": "a.b", "type": "geo"}]},
        {
            "feature_extractors": [
                {**TEXT, "version": "1.0.0", "feature_extractor_id": "text_extractor_1.0.0"}
            ]
        },
        {"feature_extractors": [TEXT, {"feature_extractor_name": "passthrough_extractor", "version": "v1"}]},
        {"feature_extractors": [{"feature_extractor_name": "passthrough_extractor", "version": "1.0.0"}]},
        {
            "infrastructure": {
                "qdrant_collection": "ns_dev",
                "ray_head_node_url": "ray://shared-cluster:10001",
            }
        },
        {"auto_create_indexes": True, "namespace_type": "marketplace"},
    ],
)
def test_every_field_is_there_of_its_type_in_every_answer(
    client: httpx.Client, namespace: Create, changes: dict[str, Any]
) -> None:
    made = namespace(**body(**changes))
    check_shape(made)
    identifier = made["namespace_id"]
    listed = client.post("/v1/namespaces/list", json={"filters": {"namespace_id": identifier}}).json()
    for answer in (
        client.get(f"/v1/namespaces/{identifier}").json(),
        client.get(f"/v1/namespaces/{made['namespace_name']}").json(),
        client.patch(f"/v1/namespaces/{identifier}", json={}).json(),
        client.put(f"/v1/namespaces/{identifier}", json={}).json(),
        *listed["results"],
    ):
        assert answer == made
    assert listed["total_count"] == 1


def test_the_order_of_indexes_is_users_then_extractors_then_systems(namespace: Create) -> None:
    made = namespace(
        payload_indexes=[{"field_name": "z", "type": "float"}, {"field_name": "a", "type": "bool"}],
    )
    shown = [(index["field_name"], index["is_protected"]) for index in made["payload_indexes"]]
    assert shown[:2] == [("z", False), ("a", False)]
    assert all(protected for _, protected in shown[2:])
    assert shown[-4:] == [
        (name, True) for name in ("internal_id", "collection_id", "root_object_id", "source_object_id")
    ]
    assert made["payload_index_count"] == 2


def test_a_high_level_client_says_name(client: httpx.Client) -> None:
    name = fresh()
    answer = client.post("/v1/namespaces", json=body(namespace_name=..., name=name))
    assert answer.status_code == 200, answer.text
    assert answer.json()["namespace_name"] == name
    assert "x-ignored-fields" not in answer.headers
    client.delete(f"/v1/namespaces/{answer.json()['namespace_id']}")


def test_unknown_keys_are_ignored_and_named(client: httpx.Client) -> None:
    answer = client.post("/v1/namespaces", json=body(mode="managed", page_size=3))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ignored-fields"] == "mode, page_size"
    client.delete(f"/v1/namespaces/{answer.json()['namespace_id']}")


# --- what is refused ----------------------------------------------------------------------------------

DEDICATED = {
    "qdrant_collection": "ns_production",
    "qdrant_url": "http://127.0.0.1:9",
    "qdrant_api_key": "canary-qdrant-key",
    "ray_head_node_url": "ray://127.0.0.1:9",
    "compute_tier": "dedicated_cpu",
}


@pytest.mark.parametrize(
    ("changes", "status", "kind", "words"),
    [
        ({"namespace_name": ...}, 422, "ValidationError", ["namespace_name is required"]),
        ({"namespace_name": "a/b"}, 422, "ValidationError", ["'a/b'", "slash"]),
        ({"namespace_name": "a" * 65}, 422, "ValidationError", ["64"]),
        ({"feature_extractors": ...}, 422, "ValidationError", ["feature_extractors is required"]),
        ({"feature_extractors": []}, 422, "ValidationError", ["at least 1"]),
        (
            {"feature_extractors": [{"feature_extractor_name": "txt", "version": "v1"}]},
            422,
            "ValidationError",
            ["'txt'", "text_extractor", "passthrough_extractor"],
        ),
        (
            {"feature_extractors": [{**TEXT, "version": "v7"}]},
            422,
            "ValidationError",
            ["'v7'", "v1", "1.0.0"],
        ),
        ({"feature_extractors": [TEXT, TEXT]}, 422, "ValidationError", ["twice"]),
        ({"feature_extractors": [TEXT, {**TEXT, "version": "1.0.0"}]}, 422, "ValidationError", ["spellings"]),
        (
            {"payload_indexes": [{"field_name": "a", "type": "txt"}]},
            422,
            "ValidationError",
            ["'txt'", "text"],
        ),
        (
            {"payload_indexes": [{"field_name": "a", "type": "text"}, {"field_name": "a", "type": "geo"}]},
            422,
            "ValidationError",
            ["'a'", "payload_indexes[0]"],
        ),
        (
            {"payload_indexes": [{"field_name": "a", "type": "text", "field_schema": {"type": "geo"}}]},
            422,
            "ValidationError",
            ["'geo'", "'text'"],
        ),
        (
            {
                "payload_indexes": [
                    {"field_name": "a", "type": "integer", "field_schema": {"lookup": False, "range": False}}
                ]
            },
            422,
            "ValidationError",
            ["lookup", "range"],
        ),
        ({"payload_indexes": [{"field_name": "a[].b", "type": "text"}]}, 422, "ValidationError", ["[]"]),
        (
            {"payload_indexes": [{"field_name": "internal_id", "type": "keyword"}]},
            400,
            "BadRequestError",
            ["'internal_id'", "protected", "metadata.internal_id"],
        ),
        (
            {"infrastructure": {"compute_tier": "dedicated_cpu"}},
            422,
            "ValidationError",
            ["qdrant_collection"],
        ),
        (
            {"infrastructure": {**DEDICATED, "qdrant_api_key": None}},
            422,
            "ValidationError",
            ["infrastructure.qdrant_api_key is required"],
        ),
        (
            {"infrastructure": {**DEDICATED, "compute_tier": "dedicated_gpu", "gpu_type": "A100"}},
            422,
            "ValidationError",
            ["gpus_per_worker"],
        ),
        (
            {"infrastructure": DEDICATED},
            503,
            "ServiceUnavailableError",
            ["Ray head", "127.0.0.1:9", "cannot be reached"],
        ),
        ({"name": "another"}, 422, "ValidationError", ["namespace_name"]),
        ({"auto_create_indexes": "yes"}, 422, "ValidationError", ["auto_create_indexes"]),
        ({"namespace_type": "private"}, 422, "ValidationError", ["standard", "marketplace"]),
        ({"description": ["d"]}, 422, "ValidationError", ["description"]),
    ],
)
def test_what_create_refuses(
    client: httpx.Client, changes: dict[str, Any], status: int, kind: str, words: list[str]
) -> None:
    sent = body(**changes)
    answer = client.post("/v1/namespaces", json=sent)
    found = error(answer, status, kind)
    for word in words:
        assert word in found["message"]
    assert "canary" not in answer.text
    if isinstance(sent.get("namespace_name"), str) and "/" not in sent["namespace_name"]:
        error(client.get(f"/v1/namespaces/{sent['namespace_name']}"), 404, "NotFoundError")


def test_a_dedicated_place_that_does_not_answer_may_be_tried_again(client: httpx.Client) -> None:
    answer = client.post("/v1/namespaces", json=body(infrastructure=DEDICATED))
    assert error(answer, 503, "ServiceUnavailableError")["details"]["retryable"] is True
    assert int(answer.headers["retry-after"]) > 0


def test_form_and_meaning_are_reported_together(client: httpx.Client) -> None:
    answer = client.post(
        "/v1/namespaces",
        json={
            "namespace_name": 5,
            "feature_extractors": [{**TEXT, "version": "v7"}, {"version": "v1"}],
            "payload_indexes": [
                {"field_name": "created_at", "type": "datetime"},
                {"field_name": "b", "type": "x"},
            ],
            "infrastructure": {"qdrant_collection": "abc", "compute_tier": "dedicated_cpu"},
        },
    )
    found = error(answer, 422, "ValidationError")
    places = [entry["location"] for entry in found["details"]["validation_errors"]]
    assert places == [
        ["body", "namespace_name"],
        ["body", "feature_extractors", 0, "version"],
        ["body", "feature_extractors", 1, "feature_extractor_name"],
        ["body", "payload_indexes", 0, "field_name"],
        ["body", "payload_indexes", 1, "type"],
        ["body", "infrastructure", "qdrant_url"],
        ["body", "infrastructure", "ray_head_node_url"],
        ["body", "infrastructure", "qdrant_api_key"],
    ]
    assert [entry["loc"] for entry in answer.json()["detail"]] == places
    assert "input" not in answer.text


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"null", b'"x"'])
def test_a_body_that_is_no_object_is_refused(client: httpx.Client, content: bytes) -> None:
    for method, path in (("POST", "/v1/namespaces"),):
        answer = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        error(answer, 422, "ValidationError")


def test_a_name_is_taken_only_when_nothing_else_is_wrong(client: httpx.Client, namespace: Create) -> None:
    made = namespace()
    sent = body(namespace_name=made["namespace_name"])
    found = error(client.post("/v1/namespaces", json=sent), 409, "AlreadyExistsError")
    assert repr(made["namespace_name"]) in found["message"]
    error(client.post("/v1/namespaces", json={**sent, "feature_extractors": []}), 422, "ValidationError")
    protected = [{"field_name": "created_at", "type": "datetime"}]
    error(client.post("/v1/namespaces", json={**sent, "payload_indexes": protected}), 400, "BadRequestError")
    error(
        client.post("/v1/namespaces", json={**sent, "infrastructure": DEDICATED}), 409, "AlreadyExistsError"
    )


# --- idempotency --------------------------------------------------------------------------------------


def test_an_idempotency_key_makes_one_namespace_however_often_it_is_sent(client: httpx.Client) -> None:
    sent, headers = body(), {"Idempotency-Key": fresh("k").replace(" ", "-")}

    def send(_: int) -> httpx.Response:
        return client.post("/v1/namespaces", json=sent, headers=headers)

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(send, range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    error(client.post("/v1/namespaces", json=body(), headers=headers), 409, "ConflictError")
    namespace_id = answers[0].json()["namespace_id"]
    assert client.delete(f"/v1/namespaces/{namespace_id}").status_code == 200
    found = error(send(0), 409, "ConflictError")
    assert "deleted since" in found["message"]
    bad = {"Idempotency-Key": "a key with blanks"}
    error(client.post("/v1/namespaces", json=body(), headers=bad), 422, "ValidationError")


# --- who may ------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_parsed(server: Server) -> None:
    for method, path in (
        ("POST", "/v1/namespaces"),
        ("GET", "/v1/namespaces"),
        ("POST", "/v1/namespaces/list"),
        ("GET", "/v1/namespaces/x"),
        ("PATCH", "/v1/namespaces/x"),
        ("PUT", "/v1/namespaces/x"),
        ("DELETE", "/v1/namespaces/x"),
        ("GET", "/v1/namespaces/x/stats"),
    ):
        answer = httpx.request(method, server.url + path, content=b"{not json")
        error(answer, 401, "UnauthorizedError")


@pytest.mark.parametrize(
    ("permission", "allowed"),
    [
        ("read", {"GET", "LIST"}),
        ("write", {"GET", "LIST", "POST", "PATCH", "PUT"}),
        ("delete", {"GET", "LIST", "POST", "PATCH", "PUT", "DELETE"}),
    ],
)
def test_permissions_are_checked_before_the_body(
    key: Callable[..., httpx.Client], namespace: Create, permission: str, allowed: set[str]
) -> None:
    made = namespace()
    path = f"/v1/namespaces/{made['namespace_id']}"
    limited = key(permissions=[permission])
    wrong = {"namespace_name": 5}
    calls = {
        "GET": lambda: limited.get(path),
        "LIST": lambda: limited.post("/v1/namespaces/list", json={}),
        "POST": lambda: limited.post("/v1/namespaces", json=wrong),
        "PATCH": lambda: limited.patch(path, json=wrong),
        "PUT": lambda: limited.put(path, json=wrong),
        "DELETE": lambda: limited.delete(path),
    }
    for name, call in calls.items():
        answer = call()
        if name in allowed:
            assert answer.status_code in (200, 422), (name, answer.text)
        else:
            error(answer, 403, "ForbiddenError")


def test_infrastructure_urls_need_an_admin(key: Callable[..., httpx.Client], namespace: Create) -> None:
    writer = key(permissions=["write"])
    found = error(writer.post("/v1/namespaces", json=body(infrastructure=DEDICATED)), 403, "ForbiddenError")
    assert "admin" in found["message"]
    path = f"/v1/namespaces/{namespace()['namespace_id']}"
    error(
        writer.patch(path, json={"infrastructure": {"ray_head_node_url": "ray://h:1"}}), 403, "ForbiddenError"
    )
    assert writer.patch(path, json={"infrastructure": {"max_concurrent_jobs": 2}}).status_code == 200


def test_what_lies_outside_a_keys_scope_is_as_absent(
    client: httpx.Client, key: Callable[..., httpx.Client], namespace: Create
) -> None:
    mine, hidden = namespace(), namespace(description="canary")
    limited = key(
        permissions=["delete"], scopes=[{"resource_type": "namespace", "resource_id": mine["namespace_id"]}]
    )
    assert limited.get(f"/v1/namespaces/{mine['namespace_name']}").json() == mine
    assert [n["namespace_id"] for n in limited.get("/v1/namespaces").json()["results"]] == [
        mine["namespace_id"]
    ]
    absent = limited.get("/v1/namespaces/ns_ffffffffffffffff").json()
    for identifier in (hidden["namespace_id"], hidden["namespace_name"]):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = limited.request(
                method, f"/v1/namespaces/{identifier}", json={} if method in "PATCHPUT" else None
            )
            found = error(answer, 404, "NotFoundError")
            assert found["details"] == {"resource": "namespace", "id": identifier}
            expected = json.dumps(absent).replace("ns_ffffffffffffffff", identifier)
            assert answer.json() == json.loads(expected)
    error(limited.post("/v1/namespaces", json=body()), 403, "ForbiddenError")
    assert client.get(f"/v1/namespaces/{hidden['namespace_id']}").json() == hidden


def test_a_scope_that_only_reads_is_a_403_for_the_rest(
    key: Callable[..., httpx.Client], namespace: Create
) -> None:
    made = namespace()
    path = f"/v1/namespaces/{made['namespace_id']}"
    scope = {"resource_type": "namespace", "resource_id": made["namespace_id"], "operations": ["read"]}
    limited = key(permissions=["delete"], scopes=[scope])
    assert limited.get(path).json() == made
    error(limited.patch(path, json={"namespace_name": 5}), 403, "ForbiddenError")
    error(limited.delete(path), 403, "ForbiddenError")
    # Inside the namespace as well.
    headers = {"X-Namespace": made["namespace_id"]}
    assert limited.post("/v1/buckets/list", headers=headers).status_code == 200
    bucket = {"bucket_name": "b", "bucket_schema": {"properties": {}}}
    error(limited.post("/v1/buckets", json=bucket, headers=headers), 403, "ForbiddenError")


def test_deleting_a_namespace_ends_the_keys_that_saw_nothing_else(
    client: httpx.Client, key: Callable[..., httpx.Client]
) -> None:
    made = client.post("/v1/namespaces", json=body()).json()
    limited = key(scopes=[{"resource_type": "namespace", "resource_id": made["namespace_id"]}])
    assert limited.get(f"/v1/namespaces/{made['namespace_id']}").status_code == 200
    client.delete(f"/v1/namespaces/{made['namespace_id']}")
    error(limited.get(f"/v1/namespaces/{made['namespace_id']}"), 401, "UnauthorizedError")


# --- lists --------------------------------------------------------------------------------------------


@pytest.fixture
def four(namespace: Create) -> tuple[str, list[str]]:
    """Four namespaces that a search for the first value finds, oldest first."""
    mark = f"mark{time.time_ns()}"
    return mark, [namespace(namespace_name=f"{letter}-{mark}")["namespace_name"] for letter in "bdac"]


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["namespace_name"] for item in answer.json()["results"]]


def test_both_kinds_of_list_and_both_kinds_of_page(client: httpx.Client, four: tuple[str, list[str]]) -> None:
    mark, oldest = four
    newest = oldest[::-1]
    path, wanted = "/v1/namespaces/list", {"search": mark}
    assert names(client.get("/v1/namespaces", params={"limit": 4})) == newest
    assert names(client.get("/v1/namespaces", params=wanted)) == newest
    assert names(client.post(path, json=wanted)) == newest
    assert names(client.post(path, json=wanted, params={"limit": 2, "offset": 1})) == newest[1:3]
    assert names(client.post(path, json={**wanted, "limit": 2, "offset": 1})) == newest[1:3]
    assert names(client.post(path, json={**wanted, "limit": 1}, params={"limit": 3})) == newest[:3]
    assert names(client.post(path, json={**wanted, "page": 2, "page_size": 3})) == newest[3:]
    found: list[str] = []
    cursor = None
    while cursor is not None or not found:
        answer = client.post(path, json=wanted, params={"limit": 3, **({"cursor": cursor} if cursor else {})})
        found += names(answer)
        cursor = answer.json()["pagination"]["next_cursor"]
    assert found == newest
    answer = client.post(path, json=wanted, params={"limit": 3}).json()
    assert answer["total_count"] == 4
    assert {k: v for k, v in answer["pagination"].items() if isinstance(v, int)} == {
        "total": 4,
        "page": 1,
        "page_size": 3,
        "total_pages": 2,
    }
    assert answer["stats"]["total_feature_extractors"] == 3


def test_lists_filter_and_sort(client: httpx.Client, four: tuple[str, list[str]]) -> None:
    mark, oldest = four
    path = "/v1/namespaces/list"
    by_name = {"field": "namespace_name", "direction": "asc"}
    assert names(client.post(path, json={"search": mark, "sort": by_name})) == sorted(oldest)
    regex = {"filters": {"namespace_name": {"$regex": f"^[AB]-{mark}$"}}, "sort": by_name}
    assert names(client.post(path, json=regex)) == [f"a-{mark}", f"b-{mark}"]
    assert names(client.post(path, json={**regex, "case_sensitive": True})) == []
    equal = {"filters": {"namespace_name": f"A-{mark.upper()}"}}
    assert names(client.post(path, json=equal)) == [f"a-{mark}"]
    assert names(client.post(path)) == names(client.get("/v1/namespaces"))


@pytest.mark.parametrize(
    ("query", "sent", "status"),
    [
        ({"limit": 0}, {}, 422),
        ({"limit": 1001}, {}, 422),
        ({"offset": -1}, {}, 422),
        ({"limit": "ten"}, {}, 422),
        ({"cursor": "nonsense"}, {}, 400),
        ({}, {"limit": 0}, 422),
        ({}, {"sort": {"field": "colour"}}, 422),
        ({}, {"sort": {"direction": "up"}}, 422),
        ({}, {"filters": []}, 422),
        ({}, {"filters": {"colour": "red"}}, 422),
    ],
)
def test_lists_that_are_refused(client: httpx.Client, query: Any, sent: Any, status: int) -> None:
    kind = {400: "BadRequestError", 422: "ValidationError"}[status]
    error(client.post("/v1/namespaces/list", params=query, json=sent), status, kind)


# --- changes ------------------------------------------------------------------------------------------


def test_patch_and_put(client: httpx.Client, namespace: Create) -> None:
    made = namespace(description="d", payload_indexes=[{"field_name": "a", "type": "float"}])
    path = f"/v1/namespaces/{made['namespace_name']}"
    renamed = fresh()
    changed = client.patch(path, json={"namespace_name": renamed, "description": None}).json()
    assert (changed["namespace_id"], changed["namespace_name"]) == (made["namespace_id"], renamed)
    assert changed["description"] is None
    assert changed["payload_indexes"] == made["payload_indexes"]
    error(client.get(path), 404, "NotFoundError")
    path = f"/v1/namespaces/{renamed}"
    put = client.put(path, json={"payload_indexes": [{"field_name": "b", "type": "bool"}]}).json()
    assert put["payload_indexes"][0]["field_name"] == "b"
    assert put["payload_index_count"] == 1
    # What was read can be sent back.
    assert client.patch(path, json={"payload_indexes": put["payload_indexes"]}).json() == put
    cleared = client.patch(path, json={"payload_indexes": None}).json()
    assert cleared["payload_index_count"] == 0
    assert all(index["is_protected"] for index in cleared["payload_indexes"])


@pytest.mark.parametrize(
    ("sent", "status", "kind"),
    [
        ({"namespace_name": "a/b"}, 422, "ValidationError"),
        ({"payload_indexes": [{"field_name": "x", "type": "?"}]}, 422, "ValidationError"),
        ({"payload_indexes": [{"field_name": "document_id", "type": "keyword"}]}, 400, "BadRequestError"),
    ],
)
def test_changes_that_are_refused_change_nothing(
    client: httpx.Client, namespace: Create, sent: Any, status: int, kind: str
) -> None:
    made = namespace()
    path = f"/v1/namespaces/{made['namespace_id']}"
    for method in ("PATCH", "PUT"):
        error(client.request(method, path, json={**sent, "description": "new"}), status, kind)
    assert client.get(path).json() == made


def test_a_rename_to_a_taken_name_is_a_conflict(client: httpx.Client, namespace: Create) -> None:
    one, two = namespace(), namespace()
    for method in ("PATCH", "PUT"):
        answer = client.request(
            method, f"/v1/namespaces/{one['namespace_id']}", json={"namespace_name": two["namespace_name"]}
        )
        error(answer, 409, "AlreadyExistsError")


def test_a_patch_to_infrastructure_that_is_not_there_changes_nothing(
    client: httpx.Client, namespace: Create
) -> None:
    made = namespace()
    path = f"/v1/namespaces/{made['namespace_id']}"
    error(client.patch(path, json={"infrastructure": DEDICATED}), 503, "ServiceUnavailableError")
    incomplete = {**DEDICATED, "qdrant_url": None}
    error(client.patch(path, json={"infrastructure": incomplete}), 422, "ValidationError")
    assert client.get(path).json() == made


# --- delete -------------------------------------------------------------------------------------------


def test_delete_answers_a_task_and_frees_the_name_at_once(client: httpx.Client, server: Server) -> None:
    sent = body()
    made = client.post("/v1/namespaces", json=sent).json()
    # Its view is opened, so that there is something to remove.
    assert client.get(f"/v1/namespaces/{made['namespace_id']}/stats").status_code == 200
    view = server.data / "views" / f"{made['namespace_id']}-1"
    assert view.exists()
    answer = client.request("DELETE", f"/v1/namespaces/{made['namespace_name']}", params={"force": True})
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["task_id"]
    for identifier in (made["namespace_id"], made["namespace_name"]):
        error(client.get(f"/v1/namespaces/{identifier}"), 404, "NotFoundError")
        error(client.delete(f"/v1/namespaces/{identifier}"), 404, "NotFoundError")
    again = client.post("/v1/namespaces", json=sent).json()
    assert again["namespace_id"] != made["namespace_id"]
    task = server.wait_for_task(task_id)
    assert (task["task_type"], task["status"]) == ("api_namespaces_delete", "COMPLETED")
    assert not view.exists()
    assert client.get(f"/v1/namespaces/{again['namespace_id']}").json() == again
    client.delete(f"/v1/namespaces/{again['namespace_id']}")


def test_stats_are_the_engines_word(client: httpx.Client, namespace: Create) -> None:
    made = namespace(
        payload_indexes=[
            {"field_name": "metadata.title", "type": "text"},
            {"field_name": "metadata.tenant", "type": "keyword", "field_schema": {"is_tenant": True}},
        ]
    )
    answer = client.get(f"/v1/namespaces/{made['namespace_name']}/stats")
    assert answer.status_code == 200, answer.text
    stats = answer.json()
    assert stats["namespace_id"] == made["namespace_id"]
    assert stats["document_count"] == 0
    reported = {item["field_name"]: item for item in stats["payload_indexes"]}
    assert [*reported][:2] == ["metadata.title", "metadata.tenant"]
    assert set(reported) == {index["field_name"] for index in made["payload_indexes"]}
    title = reported["metadata.title"]
    assert (title["type"], title["points"]) == ("text", 0)
    wanted = {"tokenizer": "word", "min_token_len": 2, "max_token_len": 15, "lowercase": True}
    assert title["params"].items() >= wanted.items()
    assert reported["metadata.tenant"]["params"].items() >= {"is_tenant": True}.items()


def test_namespaces_survive_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = Server.start(tmp_path_factory.mktemp("restart") / "data")
    try:
        with server.client() as client:
            kept = client.post("/v1/namespaces", json=body()).json()
            gone = client.post("/v1/namespaces", json=body()).json()
            task_id = client.delete(f"/v1/namespaces/{gone['namespace_id']}").json()["task_id"]
        server.restart(signal.SIGKILL)
        with server.client() as client:
            assert client.get(f"/v1/namespaces/{kept['namespace_id']}").json() == kept
            error(client.get(f"/v1/namespaces/{gone['namespace_id']}"), 404, "NotFoundError")
        assert server.wait_for_task(task_id)["status"] == "COMPLETED"
    finally:
        server.stop()
