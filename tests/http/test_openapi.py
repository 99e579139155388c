"""The API describes itself completely, and its documentation needs no other machine."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from tessera.errors import LISTED_BY
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


def test_whole_numbers_of_a_query_are_bounded(description: dict[str, Any]) -> None:
    """`skip` and `tier_num` had no upper bound: a number of more than 64 bits was a 500 of the database."""
    checked_by_hand = {"limit", "offset", "page", "page_size", "expires"}
    for path, method, operation in operations(description):
        for parameter in operation.get("parameters", []):
            for kind in (parameter["schema"], *parameter["schema"].get("anyOf", [])):
                if kind.get("type") == "integer" and parameter["name"] not in checked_by_hand:
                    assert kind["maximum"] < 2**63, (method, path, parameter["name"])


def test_every_list_that_a_404_names_is_there(description: dict[str, Any]) -> None:
    served = {f"{method.upper()} {path}" for path, method, _ in operations(description)}
    # Organizations are the operator's, whom this server has not.
    assert {step for noun, step in LISTED_BY.items() if noun != "organization"} <= served


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


def example(description: dict[str, Any], method: str, path: str) -> Any:
    """Return the example of a route's body, or None when the body has none."""
    schema = description["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    for member in [schema, *schema.get("anyOf", ())]:
        name = member.get("$ref", "").rsplit("/", 1)[-1]
        found = description["components"]["schemas"][name] if name else member
        if "examples" in found:
            return found["examples"][0]
    return None


def test_every_body_has_an_example(description: dict[str, Any]) -> None:
    for path, method, operation in operations(description):
        if "requestBody" in operation:
            assert example(description, method, path) is not None, f"{method} {path}"


def test_the_examples_work_one_after_the_other(client: httpx.Client, description: dict[str, Any]) -> None:
    """Who copies example after example from the documentation gets from a namespace to a search."""
    known = {"namespace_identifier": "openapi_examples", "user_email": "ana@example.org"}
    client.headers["X-Namespace"] = "openapi_examples"
    asked = 0

    def send(method: str, path: str, *, status: int = 200, **changes: Any) -> Any:
        nonlocal asked
        body = {**example(description, method, path), **changes}
        answer = client.request(method, path.format(**known), json=body)
        assert answer.status_code == status, f"{method} {path}: {answer.text}"
        assert "x-ignored-fields" not in answer.headers, f"{method} {path}"
        asked += 1
        return answer.json()

    name = {"namespace_name": "openapi_examples"}
    send("post", "/v1/namespaces", **name)
    send("post", "/v1/namespaces/list")
    send("patch", "/v1/namespaces/{namespace_identifier}")
    send("put", "/v1/namespaces/{namespace_identifier}", **name)
    client.delete("/v1/namespaces/openapi_examples")

    send(
        "post",
        "/v1/namespaces",
        feature_extractors=[{"feature_extractor_name": "text_extractor", "version": "v1"}],
        **name,
    )
    bucket = "/v1/buckets/{bucket_identifier}"
    known["bucket_identifier"] = send("post", "/v1/buckets")["bucket_id"]
    send("post", "/v1/buckets/list")
    send("patch", bucket)
    send("put", bucket)
    known["collection_identifier"] = send("post", "/v1/collections")["collection_id"]
    collection = "/v1/collections/{collection_identifier}"
    send("post", "/v1/collections/list")
    send("patch", collection)
    known["object_identifier"] = send("post", f"{bucket}/objects")["object_id"]
    objects = {"object_ids": [known["object_identifier"]]}
    send("post", f"{bucket}/objects/batch")
    send("post", f"{bucket}/objects/list")
    upload = send("post", f"{bucket}/uploads")
    assert httpx.put(upload["presigned_url"], content=b"Headphones that fold.").status_code == 200
    known["upload_id"] = upload["upload_id"]
    send("post", f"{bucket}/uploads/{{upload_id}}/confirm")
    send("post", f"{bucket}/uploads/batch")
    send("post", f"{bucket}/uploads/list")
    known["batch_id"] = send("post", f"{bucket}/batches", **objects)["batch_id"]
    send("post", f"{bucket}/batches/{{batch_id}}/objects", **objects)
    send("patch", f"{bucket}/batches/{{batch_id}}")
    send("post", f"{bucket}/batches/list")
    task = send("post", f"{bucket}/batches/{{batch_id}}/submit")["task_id"]
    while (status := client.get(f"/v1/tasks/{task}").json()["status"]) not in ("COMPLETED", "FAILED"):
        time.sleep(0.05)
    assert status == "COMPLETED"
    send("post", "/v1/tasks/list")
    assert len(send("post", f"{collection}/documents/list")["results"]) == 1

    assert len(send("post", "/v1/documents/search")["documents"]) == 1
    known["retriever_id"] = send("post", "/v1/retrievers")["retriever_id"]
    send("post", "/v1/retrievers/list")
    send("patch", "/v1/retrievers/{retriever_id}")
    assert len(send("post", "/v1/retrievers/{retriever_id}/execute")["documents"]) == 1
    assert len(send("post", "/v1/retrievers/execute")["documents"]) == 1
    retriever = "/v1/retrievers/{retriever_id}"
    assert send("post", f"{retriever}/execute/explain")["total_estimated_stages"] == 1
    send("post", f"{retriever}/explain")
    send("post", f"{retriever}/clone", status=201)
    assert len(send("post", f"{retriever}/executions/list")["results"]) == 1
    send("post", "/v1/retrievers/evaluations/datasets", status=201)
    judged = [
        send("post", f"{retriever}/evaluations", status=202, dataset_name="quickstart-questions")
        for _ in "ab"
    ]
    for each in judged:
        while client.get(f"/v1/tasks/{each['task_id']}").json()["status"] in ("PENDING", "IN_PROGRESS"):
            time.sleep(0.05)
    ids = [each["evaluation_id"] for each in judged]
    both = {"baseline_evaluation_id": ids[0], "candidate_evaluation_id": ids[1]}
    assert send("post", "/v1/retrievers/evaluations/compare", **both)["verdict"] == "too_few_queries"

    send("post", f"{collection}/documents")
    send(
        "post",
        "/v1/namespaces/{namespace_identifier}/documents/upsert",
        collection_id=known["collection_identifier"],
    )
    send("delete", f"{collection}/documents/batch")
    send("patch", f"{bucket}/objects/{{object_identifier}}")
    send("put", f"{bucket}/objects/{{object_identifier}}")
    client.delete("/v1/namespaces/openapi_examples")

    user = "/v1/organizations/users/{user_email}"
    send("post", "/v1/organizations/users")
    send("patch", user)
    known["key_name"] = send("post", f"{user}/api-keys")["name"]
    send("patch", f"{user}/api-keys/{{key_name}}")
    client.delete("/v1/organizations/users/ana@example.org")
    secret = send("post", "/v1/organizations/secrets", status=201)["secret_name"]
    known["secret_name"] = secret
    send("put", "/v1/organizations/secrets/{secret_name}")
    client.delete(f"/v1/organizations/secrets/{secret}")
    hook = "/v1/organizations/webhooks"
    known["webhook_identifier"] = send("post", hook, status=201)["webhook_id"]
    send("put", f"{hook}/{{webhook_identifier}}")
    assert send("post", f"{hook}/list")["total"] == 1
    client.delete(f"{hook}/{known['webhook_identifier']}")
    send("patch", "/v1/organizations/audit/settings")
    client.patch("/v1/organizations/audit/settings", json={"read_auditing_enabled": False})
    assert asked > 33


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
