"""What is too large, too slow, too often or too much is refused in the one form, also below the application."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tessera.config import Settings
from tessera.limits import check_quota
from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.http.test_errors import envelope

KEYS = "/v1/organizations/users/admin@localhost/api-keys"
OPERATOR = "operator-secret-of-the-limits-0123456789"
TIMEOUT_S = 3


# --- on the wire --------------------------------------------------------------------------------------


def connect(server: Server) -> socket.socket:
    url = httpx.URL(server.url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=30)
    connection.settimeout(30)
    return connection


def answer_on(connection: socket.socket) -> httpx.Response:
    """Read until the server closes, and return the one answer that it gave."""
    received = b""
    while data := connection.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    return httpx.Response(
        int(lines[0].split()[1]), headers=[tuple(line.split(": ", 1)) for line in lines[1:]], content=body
    )


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", "Invalid method"),
        (b"GET\r\n\r\n", "not a valid HTTP/1.1 request"),
        (b"BREW /v1/me HTTP/1.1\r\n\r\n", "Invalid method"),
        (b"GET /v1/me HTTP/9.9\r\n\r\n", "Invalid HTTP version"),
        (b"CONNECT example.org:443 HTTP/1.1\r\nhost: x\r\n\r\n", "must name a path"),
        (b"GET /v1/me HTTP/1.1\r\nno colon\r\n\r\n", "Invalid header token"),
        (b"GET /v1/me HTTP/1.1\r\nx: a\x00b\r\n\r\n", "Invalid header value"),
        (b"POST /v1/me HTTP/1.1\r\ncontent-length: canary\r\n\r\n", "Content-Length"),
        (b"POST /v1/me HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "Content-Length"),
        (b"POST /v1/me HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "Content-Length"),
        (
            b"POST /v1/me HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "Content-Length",
        ),
    ],
)
def test_what_is_no_http_is_told_so_in_the_envelope(server: Server, sent: bytes, said: str) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        answer = answer_on(connection)
    error = envelope(answer, 400, "BadRequestError")
    assert said in error["message"] and "canary" not in answer.text
    assert answer.headers["connection"] == "close"


def test_a_chunk_that_is_none_ends_the_request(server: Server) -> None:
    with connect(server) as connection:
        head = f"POST {KEYS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {server.api_key}\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"zz\r\n")
        envelope(answer_on(connection), 400, "BadRequestError")
    with server.client() as client:
        assert client.get("/v1/me").status_code == 200


def test_a_head_that_is_too_large_is_refused_whole_or_endless(server: Server, client: httpx.Client) -> None:
    limit = 64 * 2**10
    for large in ({"X-Long": "x" * limit}, {f"X-{n}": "x" * 1000 for n in range(70)}):
        answer = client.get("/v1/me", headers=large)
        error = envelope(answer, 431, "RequestHeaderFieldsTooLargeError")
        assert error["details"] == {"max_header_bytes": limit} and "max_header_bytes" in error["message"]
    with connect(server) as connection:
        connection.sendall(f"GET /v1/me?x={'x' * limit} HTTP/1.1\r\nconnection: close\r\n\r\n".encode())
        envelope(answer_on(connection), 431, "RequestHeaderFieldsTooLargeError")
    # Without an end nothing could be parsed, and without a limit all of it would be kept.
    for endless in (b"GET /v1/me HTTP/1.1\r\nx: ", b"GET /v1/me?"):
        with connect(server) as connection:
            connection.sendall(endless)
            sent = 0
            try:
                while sent < 64 * 2**20:
                    sent += connection.send(b"x" * 2**16)
            except OSError:
                pass
            assert sent < 16 * 2**20
    with connect(server) as connection:
        connection.sendall(b"GET /v1/me HTTP/1.1\r\n" + b"x-many: x\r\n" * 12_000)
        envelope(answer_on(connection), 431, "RequestHeaderFieldsTooLargeError")
    assert client.get("/v1/me").status_code == 200


def test_requests_behind_each_other_on_one_connection_are_all_answered(server: Server) -> None:
    """The counting of heads does not take a large body for one."""
    body = json.dumps({"ignored": "x" * 200_000}).encode()
    head = f"host: x\r\nauthorization: Bearer {server.api_key}\r\n"
    request = f"PATCH /v1/organizations HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body
    last = f"GET /v1/me HTTP/1.1\r\n{head}connection: close\r\n\r\n".encode()
    with connect(server) as connection:
        connection.sendall(request * 3 + last)
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200") == 4


# --- rates and quotas ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with limits of every kind."""
    server = Server.start(
        tmp_path_factory.mktemp("bounded") / "data",
        environment={
            "TESSERA_OPERATOR_SECRET": OPERATOR,
            "TESSERA_RATE_LIMITS": "metadata=100000,data=6",
            "TESSERA_QUOTAS": "namespaces=2,buckets=2,collections=1,retrievers=1,clusters=1,api_keys=6,batch_objects=2",
            "TESSERA_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        },
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]
    assert "Traceback" not in server.log


def test_a_request_that_does_not_come_or_end_is_answered_in_time(bounded: Server) -> None:
    with connect(bounded) as idle, connect(bounded) as head, connect(bounded) as body:
        head.sendall(b"GET /v1/me HTTP/1.1\r\nx: y\r\n")
        body.sendall(
            f"PATCH /v1/organizations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bounded.api_key}\r\n"
            "content-length: 10\r\nconnection: close\r\n\r\n{".encode()
        )
        envelope(answer_on(head), 408, "RequestTimeoutError")
        assert idle.recv(100) == b""
        error = envelope(answer_on(body), 503, "TimeoutError")
    assert error["details"]["retryable"] is False, "a PATCH may have been carried out"


def test_a_key_that_asks_too_often_is_told_when_it_may_again(bounded: Server) -> None:
    with bounded.client() as client:
        made = client.post("/v1/namespaces", json={"namespace_name": "rates", "feature_extractors": [TEXT]})
        assert made.headers["x-ratelimit-limit"] == "100000" and made.headers["x-ratelimit-window"] == "60"
        loop = Loop(client, made.json())
        bucket = loop.bucket()
        path = f"/v1/buckets/{bucket}/objects/list"
        left = []
        for _ in range(6):
            answer = client.post(path, headers=loop.headers)
            assert answer.status_code == 200
            left.append(int(answer.headers["x-ratelimit-remaining"]))
            assert answer.headers["x-ratelimit-limit"] == "6"
            assert abs(int(answer.headers["x-ratelimit-reset"]) - time.time()) < 90
        assert left == [5, 4, 3, 2, 1, 0]
        refused = client.post(path, headers=loop.headers)
        error = envelope(refused, 429, "TooManyRequestsError")
        details = error["details"]
        assert (details["api_name"], details["limit"], details["window"]) == ("data", 6, 60)
        assert 1 <= details["retry_after"] <= 10 and details["retryable"] is True
        assert int(refused.headers["retry-after"]) == details["retry_after"] == details["retry_after_seconds"]
        assert refused.headers["x-ratelimit-remaining"] == "0"
        # Other classes and other keys have their own; a key's own limit holds for each class.
        assert client.get("/v1/me").status_code == 200
        key = client.post(KEYS, json={"name": "slow", "rate_limit_override": 1}).json()["key"]
    with bounded.client(key=key, namespace=loop.namespace_id) as slow:
        assert slow.get("/v1/me").json()["rate_limits"] == {
            "metadata": 1,
            "data": 1,
            "search": 1,
            "upload": 1,
            "compute": 1,
        }
        assert slow.get("/v1/me").status_code == 429
        assert slow.post(path).status_code == 200
        assert slow.post(path).status_code == 429
    # A wait that was announced is enough.
    with bounded.client() as client:
        key = client.post(KEYS, json={"name": "steady", "rate_limit_override": 40}).json()["key"]
    with bounded.client(key=key) as steady:
        for _ in range(200):
            if (refused := steady.get("/v1/me")).status_code == 429:
                break
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) <= 2
        time.sleep(int(refused.headers["retry-after"]))
        assert steady.get("/v1/me").status_code == 200


def test_unlimited_servers_send_no_such_headers(client: httpx.Client) -> None:
    assert not [name for name in client.get("/v1/me").headers if name.startswith("x-ratelimit")]


def test_what_an_organization_may_have_is_bounded(bounded: Server) -> None:
    def over(answer: httpx.Response, resource: str, current: int, limit: int) -> None:
        error = envelope(answer, 403, "QuotaExceededError")
        assert error["details"] == {
            "resource": resource,
            "current": current,
            "limit": limit,
            "tier": "enterprise",
        }
        assert "setting quotas" in error["message"]

    def namespace(name: str) -> httpx.Response:
        return client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]})

    with bounded.client() as admin:
        key = admin.post(KEYS, json={"name": "quotas", "permissions": ["admin"]}).json()["key"]
    with bounded.client(key=key) as client:
        while client.get("/v1/namespaces").json()["total_count"] < 2:
            name = f"quota-{client.get('/v1/namespaces').json()['total_count']}"
            loop = Loop(client, namespace(name).raise_for_status().json())
        over(namespace("third"), "namespaces", 2, 2)
        client.delete("/v1/namespaces/quota-1").raise_for_status()
        loop = Loop(client, namespace("quota-2").raise_for_status().json())
        bucket = loop.bucket(bucket_name="one")
        while (
            answer := client.post(
                "/v1/buckets",
                json={"bucket_name": "more", "bucket_schema": {"properties": {"a": {"type": "text"}}}},
                headers=loop.headers,
            )
        ).status_code == 200:
            pass
        over(answer, "buckets", 2, 2)
        collection = loop.collection(bucket, TEXT)
        body = {
            "collection_name": "two",
            "source": {"type": "bucket", "bucket_ids": [bucket]},
            "feature_extractor": TEXT,
        }
        over(client.post("/v1/collections", json=body, headers=loop.headers), "collections", 1, 1)
        stages = [{"stage_name": "limit", "parameters": {"limit": 1}}]
        body = {"retriever_name": "r", "collection_identifiers": [collection], "stages": stages}
        loop.post("/retrievers", body)
        over(
            client.post("/v1/retrievers", json={**body, "retriever_name": "s"}, headers=loop.headers),
            "retrievers",
            1,
            1,
        )
        body = {"collection_ids": [collection], "attribute_config": {"attributes": ["note"]}}
        loop.post("/clusters", body)
        over(client.post("/v1/clusters", json=body, headers=loop.headers), "clusters", 1, 1)
        numbers = iter(range(10))
        while (answer := client.post(KEYS, json={"name": f"q{next(numbers)}"})).status_code == 200:
            pass
        over(answer, "api_keys", 6, 6)
        ids = {"object_ids": [loop.note(bucket, word) for word in ("a", "b", "c")]}
        over(
            client.post(f"/v1/buckets/{bucket}/batches", json=ids, headers=loop.headers),
            "batch_objects",
            0,
            2,
        )


def test_the_operators_limits_are_not_the_organizations_to_lift(bounded: Server) -> None:
    private = "/v1/private/organizations/default"
    with bounded.client(key=OPERATOR) as operator, bounded.client() as client:
        set_to = operator.patch(private, json={"rate_limits": {"upload": 40}})
        assert set_to.json()["rate_limits"]["upload"] == 40
        for own, in_force in (({"upload": 70}, 40), (None, 40), ({"upload": 20}, 20)):
            changed = client.patch("/v1/organizations", json={"rate_limits": own}).json()
            assert changed["rate_limits"]["upload"] == in_force
            assert client.get("/v1/me").json()["rate_limits"]["upload"] == in_force
        operator.patch(private, json={"rate_limits": None}).raise_for_status()
        assert client.get("/v1/me").json()["rate_limits"]["upload"] == 20
        client.patch("/v1/organizations", json={"rate_limits": None})
        assert "upload" not in client.get("/v1/me").json()["rate_limits"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("RATE_LIMITS", "search=0"), ("RATE_LIMITS", "serch=5"), ("QUOTAS", "namespaces"), ("QUOTAS", "tier")],
)
def test_settings_of_limits_are_checked(tmp_path: Path, setting: str, value: str) -> None:
    from tessera.config import ConfigurationError, load

    with pytest.raises(ConfigurationError, match="is not one of"):
        load({"data": tmp_path}, {f"TESSERA_{setting}": value})


def test_who_counts_for_a_quota_waits_for_whoever_counts_the_same_where_a_database_has_many_writers() -> None:
    """Both counted the last place as free, and both took it."""
    sent: list[str] = []

    class PostgreSQL:
        dialect = postgresql.dialect()

        def execute(self, statement: sa.Executable) -> SimpleNamespace:
            sent.append(str(statement.compile(dialect=self.dialect)))
            return SimpleNamespace(scalar_one=lambda: 4)

    wh: Any = SimpleNamespace(settings=Settings(quotas="buckets=5,documents=5"))
    who: Any = SimpleNamespace(account_type="free", organization_id="org_1")
    connection: Any = PostgreSQL()
    check_quota(wh, connection, who, "buckets")
    assert [text.split("(")[0] for text in sent] == ["SELECT pg_advisory_xact_lock", "SELECT count"]
    del sent[:]
    # The row of a namespace is held by then, and how many documents are findable is known later.
    check_quota(wh, connection, who, "documents")
    assert len(sent) == 1 and "lock" not in sent[0]
