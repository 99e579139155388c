"""Every change of what a retriever runs on is seen by the very next execution, however often it ran before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

KEYS = "/v1/organizations/users/admin@localhost/api-keys"


class Runs(Loop):
    """A namespace whose retrievers are executed until their plans are kept, before something is changed."""

    def put(self, collection: str, document_id: str, year: int) -> None:
        self.post(f"/collections/{collection}/documents", {"document_id": document_id, "year": year})

    def retriever(self, name: str, order: str = "asc", **fields: Any) -> str:
        stage = {"stage_id": "sort_attribute", "parameters": {"sort_field": "year", "order": order}}
        return str(
            self.post("/retrievers", {"retriever_name": name, "stages": [stage], **fields})["retriever_id"]
        )

    def found(self, retriever: str, **body: Any) -> list[str]:
        for _ in range(3):
            answer = self.post(f"/retrievers/{retriever}/execute", body)
        return [item["document_id"] for item in answer["documents"]]

    def fails(self, status: int, retriever: str, **body: Any) -> str:
        return self.refused(status, "POST", f"/retrievers/{retriever}/execute", body)


def test_changes_of_retrievers_and_collections(
    client: httpx.Client, namespace: Callable[..., dict[str, Any]]
) -> None:
    here = Runs(client, namespace(feature_extractors=[PASSTHROUGH]))
    bucket = here.bucket()
    one = here.collection(bucket, collection_name="one")
    for number in range(3):
        here.put(one, f"d{number}", number)
    here.retriever("r", collection_identifiers=[one])
    everything = here.retriever("all")
    assert here.found("r") == ["d0", "d1", "d2"]
    # Renamed, and its old name given to another one.
    here.patch("/retrievers/r", {"retriever_name": "old"})
    here.fails(404, "r")
    assert here.found("old") == ["d0", "d1", "d2"]
    here.retriever("r", "desc", collection_identifiers=[one])
    assert here.found("r") == ["d2", "d1", "d0"]
    # Deleted, and made anew under the same name.
    here.delete("/retrievers/r")
    here.fails(404, "r")
    here.retriever("r", collection_identifiers=[one])
    assert here.found("r") == ["d0", "d1", "d2"]
    # A collection more; its name; its end; another one of the same name.
    assert here.found(everything) == ["d0", "d1", "d2"]
    two = here.collection(bucket, collection_name="two")
    here.put(two, "e0", 0)
    assert set(here.found(everything)) == {"e0", "d0", "d1", "d2"}
    assert here.found(everything, collection_identifiers=["two"]) == ["e0"]
    here.delete(f"/collections/{two}")
    assert "was not found" in here.fails(400, everything, collection_identifiers=["two"])
    assert here.found(everything) == ["d0", "d1", "d2"]
    again = here.collection(bucket, collection_name="two")
    here.put(again, "f0", 5)
    assert here.found(everything, collection_identifiers=["two"]) == ["f0"]


def test_changes_of_namespaces_and_keys(
    server: Server,
    client: httpx.Client,
    namespace: Callable[..., dict[str, Any]],
) -> None:
    made = namespace(feature_extractors=[PASSTHROUGH], namespace_name="kept_a")
    here = Runs(client, made)
    one = here.collection(here.bucket())
    here.put(one, "d0", 0)
    retriever = here.retriever("r", collection_identifiers=[one])
    here.headers = {"X-Namespace": "kept_a"}
    assert here.found("r") == ["d0"]
    body = {"name": "kept-plans", "permissions": ["read"]}
    key = client.post(KEYS, json=body).raise_for_status().json()["key"]
    with server.client(key=key) as other:
        there = Runs(other, made)
        assert there.found(retriever) == ["d0"]
        # Confined to another namespace: it cannot tell that there is this one.
        scope = {"resource_type": "namespace", "resource_id": "elsewhere"}
        client.patch(f"{KEYS}/kept-plans", json={"scopes": [scope]}).raise_for_status()
        assert "namespace" in there.fails(404, retriever)
        client.patch(f"{KEYS}/kept-plans", json={"scopes": []}).raise_for_status()
        assert there.found(retriever) == ["d0"]
        client.delete(f"{KEYS}/kept-plans").raise_for_status()
        there.fails(401, retriever)
    # Renamed; its old name given to another one, which has no such retriever.
    client.patch(
        f"/v1/namespaces/{made['namespace_id']}", json={"namespace_name": "kept_b"}
    ).raise_for_status()
    assert "namespace" in here.fails(404, "r")
    namespace(feature_extractors=[PASSTHROUGH], namespace_name="kept_a")
    assert "retriever" in here.fails(404, "r")
    here.headers = {"X-Namespace": "kept_b"}
    assert here.found("r") == ["d0"]
    client.delete(f"/v1/namespaces/{made['namespace_id']}").raise_for_status()
    assert "namespace" in here.fails(404, "r")
