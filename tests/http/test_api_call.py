"""api_call: what is sent where, with which credentials, and what of the answers reaches a document."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server
from tests.website import PUBLIC, Site, serving

SECRET = "s3cr3t of-the-tests/+="
ITEMS = {"i1": ("A 1/2?x", 3), "i2": ("B", 5), "i3": ("C", 7)}
SORTED = {"stage_id": "sort_attribute", "parameters": {"sort_field": "name", "order": "asc"}}


class Shop(Loop):
    items: str
    site: Site

    def execute(self, *stages: dict[str, Any], **fields: Any) -> Any:
        body = {"stages": [SORTED, *stages], "collection_identifiers": [self.items], **fields}
        return self.post("/retrievers/execute", body)

    def call(self, path: str = "/echo", **parameters: Any) -> dict[str, Any]:
        made = {"url": self.site.url(path), "allowed_domains": [PUBLIC], "output_field": "said", **parameters}
        return {"stage_id": "api_call", "parameters": made}


@pytest.fixture(scope="module")
def shop(server: Server) -> Iterator[Shop]:
    with server.client() as client, serving() as site:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "shop", "feature_extractors": [PASSTHROUGH]}
        )
        here = Shop(client, made.raise_for_status().json())
        here.site = site
        site.pages["/echo"] = _echo
        site.pages["/sizes"] = _sizes
        here.items = here.collection(here.bucket())
        for name, (sku, stock) in ITEMS.items():
            body = {"document_id": name, "name": name, "sku": sku, "stock": stock}
            here.post(f"/collections/{here.items}/documents", body)
        secret = {"secret_name": "shop-key", "secret_value": SECRET}
        client.post("/v1/organizations/secrets", json=secret).raise_for_status()
        yield here
        client.delete("/v1/organizations/secrets/shop-key")
        client.delete("/v1/namespaces/shop")


def _answer(request: Any, told: Any, status: int = 200) -> None:
    content = json.dumps(told).encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def _echo(request: Any) -> None:
    """Answer with everything that came, credentials included."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(request.path).query).items()}
    body = json.loads(request.body) if request.body else None
    headers = {name.lower(): value for name, value in request.headers.items()}
    told = {"method": request.command, "path": request.path, "query": query, "body": body, "headers": headers}
    _answer(request, told)


def _sizes(request: Any) -> None:
    documents = json.loads(request.body)["documents"]
    _answer(
        request, {"data": [{"is": document["name"], "fields": sorted(document)} for document in documents]}
    )


def said(answer: Any) -> dict[str, Any]:
    return {document["document_id"]: document.get("said") for document in answer["documents"]}


def told(answer: Any) -> Any:
    return list(answer["stage_statistics"]["stages"].values())[-1]


def test_every_hit_is_asked_about_with_its_fields(shop: Shop) -> None:
    asked = shop.call(
        "/echo?sku={{DOC.sku}}&for={{INPUT.who}}",
        method="POST",
        headers={"X-Who": "{{INPUT.who}}"},
        body={"stock": "{{DOC.stock}}", "text": "{{DOC.sku}} for {{INPUT.who}}"},
        when={"field": "stock", "operator": "gt", "value": 3},
        response_path="$",
    )
    answer = shop.execute(asked, inputs={"who": "Ann&Bob"})
    found = said(answer)
    assert list(found) == ["i1", "i2", "i3"]
    assert found["i1"] is None
    assert found["i2"]["query"] == {"sku": "B", "for": "Ann&Bob"}
    assert found["i2"]["body"] == {"stock": 5, "text": "B for Ann&Bob"}
    assert (found["i2"]["method"], found["i2"]["headers"]["x-who"]) == ("POST", "Ann&Bob")
    assert (told(answer)["metadata"], told(answer)["error"]) == ({"calls": 2}, None)


def test_a_value_cannot_leave_its_place_in_a_url(shop: Shop) -> None:
    shop.site.pages["/items/A%201%2F2%3Fx"] = lambda request: _answer(request, request.path)
    one = {"field": "name", "operator": "eq", "value": "i1"}
    answer = shop.execute(shop.call("/items/{{DOC.sku}}"), filters=one)
    assert said(answer) == {"i1": "/items/A%201%2F2%3Fx"}


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        ({"type": "bearer"}, ("authorization", f"Bearer {SECRET}")),
        ({"type": "basic"}, ("authorization", f"Basic {base64.b64encode(SECRET.encode()).decode()}")),
        ({"type": "api_key", "key": "X-Key"}, ("x-key", SECRET)),
        ({"type": "custom_header", "key": "X-Token"}, ("x-token", SECRET)),
        ({"type": "api_key", "key": "k", "location": "query"}, None),
        (None, ("x-template", f"key={SECRET}")),
    ],
)
def test_a_secret_is_sent_and_never_comes_back(shop: Shop, auth: Any, header: Any) -> None:
    shop.site.requests.clear()
    more = (
        {"auth": {**auth, "secret_ref": "shop-key"}}
        if auth
        else {"headers": {"X-Template": "key={{secrets.shop-key}}"}}
    )
    answer = shop.execute(shop.call(**more))
    for path, headers in shop.site.requests:
        if header is None:
            assert parse_qs(urlsplit(path).query) == {"k": [SECRET]}
        else:
            assert headers[header[0]] == header[1]
    assert len(shop.site.requests) == 3
    text = json.dumps(answer)
    for form in (SECRET, base64.b64encode(SECRET.encode()).decode(), "s3cr3t"):
        assert form not in text
    assert "[secret]" in text


def test_no_error_names_a_secret(shop: Shop) -> None:
    shop.site.serve("/bad", b"{}", 500)
    one = {"field": "name", "operator": "eq", "value": "i1"}
    for path in ("/bad?k={{secrets.shop-key}}", "/gone/{{secrets.shop-key}}"):
        shop.site.pages["/gone/" + quote(SECRET, safe="")] = lambda request: request.connection.close()
        asked = shop.call(path)
        answer = shop.execute(asked, filters=one)
        assert told(answer)["error"]
        assert "s3cr3t" not in json.dumps(answer)
        raised = {**asked, "parameters": {**asked["parameters"], "on_error": "raise"}}
        body = {"stages": [SORTED, raised], "collection_identifiers": [shop.items], "filters": one}
        refused = shop.client.post("/v1/retrievers/execute", json=body, headers=shop.headers)
        assert refused.status_code >= 400
        assert "s3cr3t" not in refused.text
        stored = shop.post("/retrievers", {"retriever_name": "leaks", **body, "cache_config": {}})
        there = f"/retrievers/{stored['retriever_id']}"
        shop.client.post(f"/v1{there}/execute", json={}, headers=shop.headers)
        for text in (
            stored,
            shop.get(there),
            shop.post(f"{there}/explain", {}),
            shop.post(f"{there}/executions/list", {}),
        ):
            assert "s3cr3t" not in json.dumps(text)
        shop.delete(there)


def test_whoever_runs_a_retriever_does_not_decide_where_it_sends(shop: Shop) -> None:
    asked = shop.call(url="{{INPUT.url}}", auth={"type": "bearer", "secret_ref": "shop-key"})
    elsewhere = {"url": f"http://127.0.0.3:{shop.site.port}/echo"}
    answer = shop.execute(asked, inputs=elsewhere)
    assert "allowed_domains" in told(answer)["error"]
    for url in (
        f"http://{PUBLIC}@127.0.0.3/echo",
        f"http://127.0.0.3#@{PUBLIC}/",
        f"http://127.0.0.3\\@{PUBLIC}/",
        "file:///etc/passwd",
    ):
        answer = shop.execute(asked, inputs={"url": url})
        assert said(answer) == dict.fromkeys(ITEMS)
        assert told(answer)["metadata"]["failed"] == 3
    # A name that is allowed and leads inside is not asked either.
    inside = shop.call(url="http://127.0.0.1:1/x", allowed_domains=["127.0.0.1"])
    assert "not public" in told(shop.execute(inside))["error"]


@pytest.mark.parametrize(("on_error", "left"), [("skip", 3), ("remove", 2)])
def test_an_answer_that_does_not_come_is_one_documents_error(shop: Shop, on_error: str, left: int) -> None:
    shop.site.pages["/some"] = lambda request: _answer(
        request, {"ok": True}, 404 if "=5" in request.path else 200
    )
    answer = shop.execute(shop.call("/some?stock={{DOC.stock}}", on_error=on_error))
    assert len(answer["documents"]) == left
    assert told(answer)["metadata"]["errors"] == [
        {"document_id": "i2", "message": f"{shop.site.url('/some')} answers with status 404."}
    ]


@pytest.mark.parametrize(
    ("content", "parameters", "says"),
    [
        (b"<html>", {}, "no JSON"),
        (b'"' + b"x" * 5000 + b'"', {"max_response_size": 1024}, "more than 1024 bytes"),
        (b'["blob://ns_0/blobs/x"]', {}, "stored file"),
        (b"[" * 40 + b"]" * 40, {}, "deeper"),
        (b'{"a": 1}', {"response_path": "$.b[0]"}, "$.b[0]"),
        (b"{}", {"url_more": "/{{DOC.nowhere}}"}, "DOC.nowhere"),
    ],
)
def test_what_is_no_answer_stays_outside(shop: Shop, content: bytes, parameters: Any, says: str) -> None:
    more = parameters.pop("url_more", "")
    shop.site.serve("/strange", content)
    answer = shop.execute(shop.call(f"/strange{more}", **parameters))
    assert says in told(answer)["error"]
    assert said(answer) == dict.fromkeys(ITEMS)


def test_all_hits_are_asked_about_at_once(shop: Shop) -> None:
    shop.site.requests.clear()
    asked = shop.call(
        "/sizes", mode="batch", method="POST", response_path="$.data", document_fields=["name", "stock"]
    )
    answer = shop.execute(asked)
    assert said(answer) == {name: {"is": name, "fields": ["document_id", "name", "stock"]} for name in ITEMS}
    assert len(shop.site.requests) == 1
    wrong = shop.execute(shop.call("/sizes", mode="batch", method="POST"))
    assert "response_path" in told(wrong)["error"]


def test_a_rate_is_kept_across_executions(shop: Shop) -> None:
    shop.site.requests.clear()
    asked = shop.call(rate_limit={"requests_per_hour": 2}, allowed_domains=[PUBLIC], max_concurrency=1)
    before = 0
    for _ in range(2):
        answer = shop.execute(asked)
        before += 3 - told(answer)["metadata"].get("failed", 0)
    assert len(shop.site.requests) == before <= 2
    assert "rate_limit" in told(answer)["error"]


def test_who_may_only_write_names_no_secret(shop: Shop, server: Server) -> None:
    body = {"name": "shop writer", "permissions": ["read", "write"]}
    key = shop.client.post("/v1/organizations/users/admin@localhost/api-keys", json=body).json()["key"]
    with server.client(key=key) as client:
        there = Loop(client, {"namespace_id": shop.namespace_id})
        for more in (
            {"auth": {"type": "bearer", "secret_ref": "shop-key"}},
            {"headers": {"X": "{{secrets.shop-key}}"}},
        ):
            body = {"retriever_name": "theft", "stages": [SORTED, shop.call(**more)]}
            assert "admin" in there.refused(403, "POST", "/retrievers", body)


@pytest.mark.parametrize(
    ("parameters", "status", "says"),
    [
        ({"allowed_domains": []}, 422, "allowed_domains"),
        ({"allowed_domains": ["*"]}, 422, "no domain"),
        ({"allowed_domains": ["{{INPUT.d}}"]}, 422, "allowed_domains"),
        ({"allowed_domains": ["example.org"]}, 422, "allowed_domains"),
        ({"method": "TRACE"}, 422, "method"),
        ({"headers": {"Host": "x"}}, 422, "Host"),
        ({"headers": {"a b": "x"}}, 422, "a b"),
        ({"output_field": "{{secrets.shop-key}}"}, 422, "secrets"),
        ({"output_field": "document_id"}, 422, "document_id"),
        ({"auth": {"type": "bearer"}}, 422, "secret_ref"),
        ({"auth": {"type": "api_key", "secret_ref": "shop-key"}}, 422, "key"),
        ({"auth": {"type": "bearer", "secret_ref": "{{INPUT.s}}"}}, 422, "auth"),
        ({"auth": {"type": "bearer", "secret_ref": "nowhere"}}, 400, "nowhere"),
        ({"response_path": "$..price"}, 422, "path"),
        ({"timeout": 61}, 422, "timeout"),
        ({"mode": "batch", "body": {"x": "{{DOC.sku}}"}}, 422, "DOC.sku"),
        ({"url": "ftp://127.0.0.2/x"}, 422, "scheme ftp"),
        ({"url": "https://{{secrets.shop-key}}.org/x"}, 422, "behind the host"),
        ({"url": "{{secrets.shop-key}}"}, 422, "behind the host"),
    ],
)
def test_what_cannot_be_called_is_told_at_creation(
    shop: Shop, parameters: Any, status: int, says: str
) -> None:
    body = {"retriever_name": "wrong", "stages": [shop.call(**parameters)]}
    assert says in shop.refused(status, "POST", "/retrievers", body)
