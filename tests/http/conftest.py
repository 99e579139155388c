"""Clients and namespaces on the server that a whole run shares (fixture `server`)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.processes import Server, exchanges

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def _operations_are_sent(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that a test sends each operation that its marks name, and gets the status that they name."""
    exchanges.clear()
    yield
    for mark in request.node.iter_markers("operation"):
        method, template, status = mark.args
        path = re.compile(re.sub(r"{\w+}", "[^/]+", template))
        found = {s for m, p, s in exchanges if m == method and path.fullmatch(p)}
        assert status in found, (
            f"{method} {template} is marked with {status}; it was answered with {sorted(found)}."
        )


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client with the admin key."""
    with server.client() as client:
        yield client


@pytest.fixture
def namespace(client: httpx.Client) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that creates a namespace (a text extractor unless told otherwise); removed afterwards."""
    made: list[str] = []

    def create(**fields: Any) -> dict[str, Any]:
        body = {
            "namespace_name": f"test_{next(_numbers)}",
            "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}],
            **fields,
        }
        answer = client.post("/v1/namespaces", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        made.append(found["namespace_id"])
        return found

    yield create
    for namespace_id in made:
        client.delete(f"/v1/namespaces/{namespace_id}")
