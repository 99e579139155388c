"""What users write is never evaluated: each string is taken as it is, or refused with a 4xx that says why."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.injections import PROOF, strings
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server

STRINGS = strings()
OPERATORS = ("eq", "ne", "contains", "starts_with", "ends_with", "regex", "text", "in", "gt", "search")


class Target(Loop):
    """Two documents, and retrievers whose parameters are inputs."""

    collection_id: str
    by_filter: str
    by_stage: str

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        answer = self.client.post(f"/v1{path}", json=body, headers=self.headers)
        assert answer.status_code < 500, (path, body, answer.text)
        told = answer.json()
        assert PROOF not in answer.text, (body, answer.text)
        if answer.status_code >= 400:
            assert told["error"]["message"]
        return answer.status_code, told


@pytest.fixture(scope="module")
def target(server: Server) -> Iterator[Target]:
    with server.client() as client:
        made = client.post(
            "/v1/namespaces", json={"namespace_name": "target", "feature_extractors": [PASSTHROUGH]}
        )
        here = Target(client, made.raise_for_status().json())
        here.collection_id = here.collection(here.bucket())
        for name in ("one", "two"):
            here.post(
                f"/collections/{here.collection_id}/documents", {"document_id": name, "note": f"note {name}"}
            )
        fields = {"input_schema": {"q": {"type": "text"}}, "collection_identifiers": [here.collection_id]}
        equal = {"field": "note", "operator": "eq", "value": "{{INPUT.q}}"}
        here.by_filter = here.post(
            "/retrievers",
            {
                "retriever_name": "by-filter",
                "stages": [{"stage_id": "attribute_filter", "parameters": equal}],
                **fields,
            },
        )["retriever_id"]
        shown = {"stage_id": "json_transform", "parameters": {"template": {"said": "{{INPUT.q}}"}}}
        here.by_stage = here.post("/retrievers", {"retriever_name": "by-stage", "stages": [shown], **fields})[
            "retriever_id"
        ]
        yield here
        client.delete("/v1/namespaces/target")


def test_there_are_enough() -> None:
    assert len(STRINGS) >= 500
    assert not [text for text in STRINGS if PROOF in text]


def check(target: Target, number: int, text: str) -> None:
    """One string through an input, a condition's value, its path, and a stage that shows it."""
    status, told = target.ask(f"/retrievers/{target.by_filter}/execute", {"inputs": {"q": text}})
    assert status >= 400 or told["documents"] == []
    operator = OPERATORS[number % len(OPERATORS)]
    value = [text] if operator == "in" else text
    for condition in (
        {"field": "note", "operator": operator, "value": value},
        {"field": text, "operator": "eq", "value": "note one"},
    ):
        body = {"inputs": {"q": "note one"}, "filters": {"AND": [condition]}}
        status, told = target.ask(f"/retrievers/{target.by_filter}/execute", body)
        if operator in ("eq", "in", "starts_with") and condition["field"] == "note":
            assert status >= 400 or told["documents"] == [], condition
    status, told = target.ask(f"/retrievers/{target.by_stage}/execute", {"inputs": {"q": text}})
    if status == 200:
        said = [document.get("said") for document in told["documents"]]
        assert said == [text, text]


@pytest.mark.parametrize("part", range(4))
def test_a_tenth_of_them_is_taken_as_it_is_or_refused(target: Target, part: int) -> None:
    for number, text in itertools.islice(enumerate(STRINGS), part, None, 40):
        check(target, number, text)


@pytest.mark.slow
def test_all_of_them_are_taken_as_they_are_or_refused(target: Target) -> None:
    for number, text in enumerate(STRINGS):
        check(target, number, text)


@pytest.mark.slow
def test_stages_made_of_them_are_taken_as_they_are_or_refused(target: Target) -> None:
    """As parameters of stages that are sent along: names of fields, templates, stages themselves."""
    for text in STRINGS:
        for stage in (
            {"stage_id": text},
            {"stage_id": "sort_attribute", "parameters": {"sort_field": text}},
            {"stage_id": "json_transform", "parameters": {"template": {"said": text}}},
            {"stage_id": "attribute_filter", "parameters": {"field": text, "operator": text, "value": text}},
            {"stage_id": "feature_search", "parameters": {"feature_uri": text, "input": {"text": text}}},
        ):
            target.ask(
                "/retrievers/execute", {"stages": [stage], "collection_identifiers": [target.collection_id]}
            )
