"""Every failure is the same body, says what is wrong and what is allowed, and gives nothing away."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from tests.http.processes import Server

KEYS = "/v1/organizations/users/admin@localhost/api-keys"


def envelope(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check what all error bodies have in common and return `error`."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert (body["success"], body["status"]) == (False, status)
    error = body["error"]
    assert error["type"] == kind
    assert isinstance(error["message"], str) and error["message"]
    assert error["details"] is None or isinstance(error["details"], dict)
    assert set(body) == {"success", "status", "error"} | ({"detail"} if status == 422 else set())
    return error


def test_every_problem_of_a_body_is_reported_at_once(client: httpx.Client) -> None:
    answer = client.post(
        KEYS,
        json={
            "permissions": ["read", "wrlte", 5],
            "rate_limit_override": 0,
            "description": "x" * 501,
            "scopes": [{"resource_type": "namespace"}, "all"],
            "expires_at": "tomorrow",
        },
    )
    error = envelope(answer, 422, "ValidationError")
    messages = {
        ".".join(map(str, entry["location"])): entry["message"]
        for entry in error["details"]["validation_errors"]
    }
    assert messages == {
        "body.name": "name is required.",
        "body.permissions.1": (
            "permissions[1] must be one of read, write, delete, admin, not 'wrlte'. Did you mean write?"
        ),
        "body.permissions.2": "permissions[2] must be one of read, write, delete, admin, not 5.",
        "body.rate_limit_override": "rate_limit_override must be at least 1, not 0.",
        "body.description": "description must have at most 500 characters.",
        "body.scopes.0.resource_id": "scopes[0].resource_id is required.",
        "body.scopes.1": "scopes[1] must be an object, not 'all'.",
        "body.expires_at": "expires_at must be a date and time such as 2026-01-31T12:00:00Z, not 'tomorrow'.",
    }
    assert error["message"].endswith("(and 7 more, see details)")
    for entry in answer.json()["detail"]:
        # One official client reads msg and type, the other message and error_code.
        assert entry["msg"] == entry["message"] and entry["type"] == entry["error_code"]
        assert entry["loc"][0] == "body"
        assert "input" not in entry and "ctx" not in entry


def test_query_parameters_are_checked(client: httpx.Client) -> None:
    error = envelope(client.get("/v1/organizations/users?limit=0&skip=-1"), 422, "ValidationError")
    assert [entry["message"] for entry in error["details"]["validation_errors"]] == [
        "Query parameter skip must be at least 0, not '-1'.",
        "Query parameter limit must be at least 1, not '0'.",
    ]


def test_a_secret_is_never_quoted(client: httpx.Client, server: Server) -> None:
    canary = "canary" + "7" * 5000
    answer = client.patch(
        "/v1/organizations",
        json={
            "infrastructure": {
                "qdrant_url": f"ftp://user:{canary}@host/?key={canary}",
                "qdrant_api_key": canary,
                "ray_head_node_url": {"token": canary},
            }
        },
    )
    envelope(answer, 422, "ValidationError")
    assert "canary" not in answer.text
    assert "qdrant_api_key must have at most 4096 characters." in answer.text
    assert "canary" not in server.log


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name": ', "not valid JSON"),
        (b"", "is required"),
        (b'{"name": NaN}', "not valid JSON"),
        (b'{"name": 1e999}', "infinity"),
        (b'{"name": "\xff"}', "not valid JSON"),
        (b'{"x": [9223372036854775808]}', "9223372036854775808 does not fit into 64 bits"),
        (b'{"x": -9223372036854775809}', "does not fit into 64 bits"),
        (b'{"x": ' + b"9" * 300 + b"}", "does not fit into 64 bits"),
        (b'{"name": "\\ud800"}', "not valid JSON"),
        (b"[]", "The body must be an object, not a list."),
        (b'"text"', "The body must be an object, not 'text'."),
        (b"[" * 65 + b"]" * 65, "deeper than 64 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64 levels"),
    ],
)
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes, said: str) -> None:
    answer = client.post(KEYS, content=body, headers={"Content-Type": "application/json"})
    envelope(answer, 422, "ValidationError")
    assert said in answer.text


def test_long_digits_that_are_no_integer_are_fine(client: httpx.Client) -> None:
    body = b'{"a": 0.12345678901234567890123, "b": "12345678901234567890123", "c": -9223372036854775808}'
    answer = client.patch("/v1/organizations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":1234567890123456789,"a":[' + b"1," * 4_000_000 + b"1]}",
        b'{"a":[' + b"[[[[]]]]," * 900_000 + b"[]]}",
        b'{"feature_extractors":[' + b"1," * 4_000_000 + b"1]}",
    ],
    ids=["long number", "brackets", "items"],
)
def test_a_large_body_holds_nobody_up(client: httpx.Client, body: bytes) -> None:
    """What others waited for while millions of values were walked, one by one, was ten seconds and more."""
    answers = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/v1/namespaces", content=body)))
    asking.start()
    longest = 0.0
    with httpx.Client(base_url=client.base_url) as other:
        while asking.is_alive():
            begun = time.monotonic()
            assert other.get("/v1/health").status_code == 200
            longest = max(longest, time.monotonic() - begun)
    assert answers[0].status_code == 422
    # A second on a quiet machine.
    assert longest < 8


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b'{"a": "[[[[\\"[[' + b"[" * 100 + b'"}', True),
        (b'{"\\\\": ' + b"[" * 64 + b"]" * 64 + b"}", False),
        (b'{"a": [' + b"[]," * 100 + b'"}}]]", {"b": ' + b"[" * 61 + b"]" * 61 + b"}]}", True),
        (b'{"a": "' + b"\\u005b" * 100 + b'", "b": ' + b"{}" + b"}", True),
    ],
)
def test_only_what_nests_counts_as_depth(client: httpx.Client, body: bytes, *, good: bool) -> None:
    answer = client.patch("/v1/organizations", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code == 200) is good, answer.text
    assert ("deeper" in answer.text) is not good


def test_a_flat_body_with_many_brackets_is_fine(client: httpx.Client) -> None:
    answer = client.post(KEYS, json={"ignored": [[]] * 1000})
    assert "deeper" not in answer.text
    assert answer.headers["x-ignored-fields"] == "ignored"


def test_other_media_types_are_refused(client: httpx.Client) -> None:
    answer = client.post(
        KEYS, content=b"name=a", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    error = envelope(answer, 415, "UnsupportedMediaTypeError")
    assert error["details"] == {"supported": ["application/json"]}
    missing = client.post(KEYS, content=b"{}")
    envelope(missing, 422, "ValidationError")
    charset = client.post(KEYS, content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"})
    envelope(charset, 422, "ValidationError")


def test_a_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    large = b'{"name": "' + b"x" * (16 * 2**20) + b'"}'
    answer = client.post(KEYS, content=large, headers={"Content-Type": "application/json"})
    error = envelope(answer, 413, "PayloadTooLargeError")
    assert error["details"] == {"max_body_bytes": 16 * 2**20}

    def chunks() -> Any:
        for _ in range(17):
            yield b" " * 2**20

    answer = client.post(KEYS, content=chunks(), headers={"Content-Type": "application/json"})
    envelope(answer, 413, "PayloadTooLargeError")
    assert client.get("/v1/me").status_code == 200


def test_unknown_paths_and_wrong_methods(client: httpx.Client) -> None:
    error = envelope(client.get("/v1/nothing/here"), 404, "NotFoundError")
    assert "/docs" in error["message"]
    answer = client.delete("/v1/me")
    error = envelope(answer, 405, "MethodNotAllowedError")
    assert error["details"] == {"allowed": ["GET"]}
    assert answer.headers["allow"] == "GET"
    envelope(httpx.get(f"{client.base_url}/favicon.ico"), 404, "NotFoundError")


def test_a_404_ends_with_how_to_find_what_there_is(client: httpx.Client, namespace: Any) -> None:
    headers = {"X-Namespace": namespace()["namespace_id"]}
    for noun in ("buckets", "collections", "retrievers", "taxonomies", "clusters", "tasks", "namespaces"):
        error = envelope(client.get(f"/v1/{noun}/nobodys", headers=headers), 404, "NotFoundError")
        said, _, step = error["message"].partition(" was not found. ")
        assert said.endswith("'nobodys'") and step == f"GET /v1/{noun} lists those that there are."
        method, path = step.split()[:2]
        assert client.request(method, path, headers=headers).status_code == 200
    # A namespace that is not there reads the same on the routes inside it.
    error = envelope(client.get("/v1/buckets", headers={"X-Namespace": "nobodys"}), 404, "NotFoundError")
    assert error["message"].endswith("GET /v1/namespaces lists those that there are.")


def test_a_405_names_every_method_of_the_path(client: httpx.Client) -> None:
    answer = client.put("/v1/namespaces", json={})
    error = envelope(answer, 405, "MethodNotAllowedError")
    assert error["details"] == {"allowed": ["GET", "POST"]} and "GET, POST" in error["message"]
    assert answer.headers["allow"] == "GET, POST"
    put = client.put("/v1/retrievers/ret_0f3a9c5e77d1b2c4", json={})
    assert put.headers["allow"] == "DELETE, GET, PATCH"


def test_trailing_slashes_are_served_without_a_redirect(client: httpx.Client) -> None:
    assert client.get("/v1/me/").status_code == 200
    assert client.get("/v1/health/").status_code == 200


def test_request_ids_are_kept_when_they_are_harmless(client: httpx.Client) -> None:
    given = client.get("/v1/me", headers={"X-Request-ID": "order-66_a"})
    assert given.headers["x-request-id"] == "order-66_a"
    for other in ("with blank", "x" * 65, "a;b", ""):
        made = client.get("/v1/me", headers={"X-Request-ID": other}).headers["x-request-id"]
        assert made.startswith("req_") and made != other


def test_ignored_keys_are_named_and_nothing_else(client: httpx.Client) -> None:
    answer = client.patch("/v1/organizations", json={"mode": 1, "a,b\r\nSet-Cookie: x": 2, "größe": 3})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"] == r"mode, a?b??Set-Cookie: x, gr\xf6\xdfe"
    assert "set-cookie" not in answer.headers
    many = client.patch("/v1/organizations", json={f"k{n}": n for n in range(50)})
    assert many.headers["x-ignored-fields"].endswith("k19, ...")
    assert "x-ignored-fields" not in client.patch("/v1/organizations", json={}).headers


def test_ignored_keys_inside_are_named_too(client: httpx.Client) -> None:
    body = {
        "namespace_name": "ignored_inside",
        "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1", "prams": {}}],
        "payload_indexes": [
            {"field_name": "a", "type": "text"},
            {"field_name": "b", "type": "text", "field_shema": {"lowercase": False}},
        ],
        "infrastructure": {"compute_teir": "shared"},
    }
    answer = client.post("/v1/namespaces", json=body)
    assert answer.status_code == 200, answer.text
    client.delete("/v1/namespaces/ignored_inside")
    assert answer.headers["x-ignored-fields"] == (
        "feature_extractors[0].prams, payload_indexes[1].field_shema, infrastructure.compute_teir"
    )


def test_a_request_that_is_no_http_is_survived(client: httpx.Client, server: Server) -> None:
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        assert b"400" in connection.recv(4096)
    assert client.get("/v1/me").status_code == 200


def test_the_log_has_templates_and_prefixes_but_no_secret(client: httpx.Client, server: Server) -> None:
    client.get("/v1/organizations/users/nobody@example.org?skip=0", headers={"X-Request-ID": "find-me"})
    client.get("/v1/me", headers={"X-Request-ID": "find-me-too"})
    lines = [line.split() for line in _wait_for(server, "find-me-too").splitlines() if "find-me" in line]
    assert [line[1:5] for line in lines] == [
        ["find-me", "GET", "/v1/organizations/users/{user_email}", "404"],
        ["find-me-too", "GET", "/v1/me", "200"],
    ]
    assert lines[0][6] == server.api_key[:13]
    assert server.api_key not in server.log
    assert "nobody@example.org" not in server.log


def test_answers_are_strict_json(client: httpx.Client) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    for path in ("/v1/me", "/v1/health", "/openapi.json", "/v1/nothing"):
        json.loads(client.get(path).text, parse_constant=refuse)


def _wait_for(server: Server, text: str) -> str:
    import time

    deadline = time.monotonic() + 5
    while text not in server.log and time.monotonic() < deadline:
        time.sleep(0.01)
    return server.log
