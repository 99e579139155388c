"""The API describes itself completely, and its documentation needs no other machine."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.http.processes import Server


@pytest.fixture(scope="module")
def description(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").raise_for_status().json()
    return found


def operations(description: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, op) for path, item in description["paths"].items() for method, op in item.items()]


def test_every_operation_is_described(description: dict[str, Any]) -> None:
    ids = []
    for path, method, operation in operations(description):
        assert operation.get("description"), f"{method} {path} has no docstring"
        assert len(operation["tags"]) == 1, f"{method} {path}"
        ids.append(operation["operationId"])
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", one) for one in ids), ids


def test_every_operation_states_its_errors(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        for status in ("400", "401", "403", "404", "422", "500", "503"):
            assert operation["responses"][status] == {"$ref": f"#/components/responses/Error{status}"}, (
                method,
                path,
            )


def test_references_resolve(description: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str):
                target: Any = description
                for part in reference.removeprefix("#/").split("/"):
                    target = target[part]
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(description)


def test_public_operations_say_so(description: dict[str, Any]) -> None:
    assert description["security"] == [{"key": []}]
    public = {path for path, _, operation in operations(description) if operation.get("security") == []}
    assert "/v1/health" in public and "/v1/collections/features/extractors" in public
    assert "/v1/namespaces" not in public and "/v1/me" not in public


def test_scoped_operations_document_their_header(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        names = {parameter["name"] for parameter in operation.get("parameters", [])}
        if path.startswith(("/v1/buckets", "/v1/collections", "/v1/documents", "/v1/retrievers")) and (
            operation.get("security") != []
        ):
            assert "X-Namespace" in names, f"{method} {path}"
        if path.startswith(("/v1/namespaces", "/v1/organizations", "/v1/tasks")):
            assert "X-Namespace" not in names, f"{method} {path}"


def test_the_example_of_create_namespace_works(client: httpx.Client, description: dict[str, Any]) -> None:
    body = description["paths"]["/v1/namespaces"]["post"]["requestBody"]["content"]["application/json"]
    schema = body["schema"]
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    example = schema["examples"][0]
    answer = client.post("/v1/namespaces", json={**example, "namespace_name": "openapi_example"})
    assert answer.status_code == 200, answer.text
    client.delete(f"/v1/namespaces/{answer.json()['namespace_id']}")


def test_docs_load_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.status_code == 200
    assert "http://" not in page.text and "https://" not in page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 3
    for file in files:
        answer = httpx.get(f"{server.url}{file}")
        assert answer.status_code == 200 and len(answer.content) > 1000, file
    assert httpx.get(f"{server.url}/docs/assets/../VERSION").status_code == 404
    assert httpx.get(f"{server.url}/docs/assets/%2e%2e%2fVERSION").status_code == 404
    assert httpx.get(server.url, follow_redirects=True).url.path == "/docs"
