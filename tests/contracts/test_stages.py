"""What every stage promises, whichever it is: a new file in tessera/stages is tested on arrival."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tessera import templates
from tessera.filters import And, Condition
from tessera.ports import Hit, PageResult
from tessera.registry import Registry
from tessera.retriever_definition import STAGE_TYPES
from tessera.stages.base import Equipment, Stage, StageContext

STAGES = Registry.load(Path("no-models-here"), offline=True).stages
#: What a stage cannot be without; one that is not here needs nothing.
NEEDED: dict[str, dict[str, Any]] = {
    "feature_search": {"query": "x"},
    "query_expand": {"query": "x", "synonyms": {"x": ["y"]}},
    "attribute_filter": {"field": "a", "value": 1},
    "sort_attribute": {"sort_field": "a"},
    "aggregate": {"aggregations": [{"function": "count"}]},
    "group_by": {"field": "a"},
    "unwind": {"field": "a"},
    "deduplicate": {"fields": ["a"]},
    "document_enrich": {"target_collection_id": "c", "source_field": "a"},
    "cross_compare": {"reference_collection_id": "c"},
    "json_transform": {"template": {"a": "{{DOC.a}}"}},
    "rerank": {"query": "x"},
    "llm_filter": {"criteria": "x"},
    "taxonomy_enrich": {"taxonomy_id": "t"},
    "api_call": {"url": "https://example.org/", "allowed_domains": ["example.org"]},
}
each = pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))


def nothing(*_: Any) -> Any:
    raise AssertionError("without hits nothing is asked of anybody")


def context() -> StageContext:
    given: dict[str, Any] = {
        "within": And(()),
        "indexes": {},
        "inputs": {},
        "search": nothing,
        "ranked": nothing,
        "page": lambda _: PageResult(()),
        "embed": nothing,
        "words": nothing,
        "text_features": list,
        "collection": lambda identifier: Condition("collection_id", "eq", identifier, True),
        "vectors": lambda *_: {},
    }
    # What only some stages ask has nothing to say of no hits.
    more = {each.name: lambda *_: [] for each in fields(StageContext) if "Callable" in str(each.type)}
    return StageContext(**{**more, **given})


def parameters(stage: Stage) -> dict[str, Any]:
    return stage.normalise(copy.deepcopy(NEEDED.get(stage.stage_id, {})))


@each
def test_a_stage_describes_itself(stage: Stage) -> None:
    assert stage.category in STAGE_TYPES
    assert stage.description.endswith(".")
    assert len(stage.description) > 20
    schema = stage.Params.model_json_schema()
    assert json.loads(json.dumps(schema))["properties"]
    named = set(schema["properties"])
    assert (stage.per_document | stage.secret_in) <= named
    assert all(word.isidentifier() for word in stage.words)
    # What names something of the namespace is looked up when a retriever is made.
    assert {name for name in named if name.endswith("collection_id")} == set(stage.names_collections)
    assert {name for name in named if name.endswith("taxonomy_id")} == set(stage.names_taxonomies)
    holders = [searching for _, searching in stage.searches_in(parameters(stage))]
    assert all("searches" in searching for searching in holders)
    assert bool(holders) == bool({"searches", "feature_search_config"} & named)


@each
def test_parameters_are_read_the_same_way_twice(stage: Stage) -> None:
    given = copy.deepcopy(NEEDED.get(stage.stage_id, {}))
    before = copy.deepcopy(given)
    once = stage.normalise(given)
    assert given == before, "what was sent is not changed"
    assert stage.normalise(copy.deepcopy(once)) == once
    stage.Params.model_validate({**once, "a_key_of_the_future": 1})
    assert stage.problems(once, ("here",)) == []
    assert stage.secrets_in(once) == set()


@each
def test_without_hits_nothing_is_found_and_nobody_asked(stage: Stage) -> None:
    params = stage.Params.model_validate(parameters(stage))
    found = stage.run([], params, context())
    assert all(isinstance(hit, Hit) for hit in found)
    # What stands for all hits together may be there without any.
    assert len(found) <= 1


@each
@pytest.mark.parametrize("hostile", [None, 0, "", "{{INPUT.x}}", [], [None], {"a": {"b": []}}])
def test_no_parameter_breaks_the_checks(stage: Stage, hostile: Any) -> None:
    for name in stage.Params.model_json_schema()["properties"]:
        given = {**NEEDED.get(stage.stage_id, {}), name: hostile}
        made = stage.normalise(copy.deepcopy(given))
        assert isinstance(stage.problems(made, ("here",)), list)
        assert isinstance(stage.secrets_in(made), set)
        stage.lacks(made, Equipment())
        templates.check(made, ("here",), stage.words)
