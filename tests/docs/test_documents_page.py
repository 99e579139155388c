"""docs/documents.md shows requests; here each of them is sent, in their order."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

PAGE = Path(__file__).parents[2] / "docs/documents.md"


def test_the_requests_of_the_page_are_answered(server: Server) -> None:
    requests = re.findall(r"```http\n([A-Z]+) (\S+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(requests) == 8
    with server.client() as client:
        body = {"namespace_name": "documents page", "feature_extractors": [PASSTHROUGH]}
        loop = Loop(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
        loop.collection(loop.bucket(), collection_name="products")
        answers = []
        for method, path, text in requests:
            place = path.removeprefix("/v1").replace("{namespace}", loop.namespace_id)
            answers.append(loop.send(method, place, json.loads(text) if text.strip() else None))
        client.delete(f"/v1/namespaces/{loop.namespace_id}")
    _, listed, grouped, patched, batch, bulk, figures, lineage = answers
    assert [item["price"] for item in listed["results"]] == [40]
    assert [group["group_key"] for group in grouped["groups"]] == ["brass", "green", "steel"]
    assert patched["metadata"] == {"shop": "Rome", "status": "reviewed"}
    assert (batch["updated_count"], bulk["updated_count"]) == (2, 1)
    assert [row["group"]["tag"] for row in figures["results"]] == ["brass", "green", "steel"]
    assert lineage["lineage"] is None
