"""Explain says of a condition what the translator does with it: an index, a part of the way, or a scan."""

from __future__ import annotations

import random
from typing import Any

import pytest
import qdrant_edge

from tessera.adapters.qdrant.translate import Translator
from tessera.filters import Condition, helpful_type
from tessera.index_choice import served_by
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex

VALUES: list[Any] = [
    "red",
    "",
    "2024-05-01",
    "2024-05-01T10:00:00Z",
    "123e4567-e89b-12d3-a456-426614174000",
    3,
    -2.5,
    2**60,
    True,
    None,
    ["red", "blue"],
    [1, 2],
    [1, "red"],
    [2.5],
    [True],
    [],
    {"center": {"lat": 1.0, "lon": 2.0}, "radius": 10.0},
    {"top_left": {"lat": 2.0, "lon": 1.0}, "bottom_right": {"lat": 1.0, "lon": 2.0}},
    {"exterior": {"points": [{"lat": 0.0, "lon": 0.0}, {"lat": 1.0, "lon": 0.0}, {"lat": 1.0, "lon": 1.0}]}},
]
#: Which values an operator is given; the grammar refuses others.
TEXTS = [value for value in VALUES if isinstance(value, str)]
FITTING: dict[str, list[Any]] = {
    **{key: [v for v in VALUES if not isinstance(v, list | dict)] for key in ("eq", "ne", "contains")},
    **{key: [3, -2.5, 2**60, *TEXTS[2:4]] for key in ("gt", "gte", "lt", "lte")},
    **{key: [v for v in VALUES if isinstance(v, list)] for key in ("in", "nin")},
    **dict.fromkeys(("starts_with", "ends_with", "regex", "text", "phrase", "words"), TEXTS[:1]),
    **{key: [True, False] for key in ("exists", "is_null")},
    "geo_radius": [VALUES[16]],
    "geo_bounding_box": [VALUES[17]],
    "geo_polygon": [VALUES[18]],
}


def index(field_name: str, kind: IndexType, **schema: Any) -> PayloadIndex:
    complete = INDEX_PARAMS[kind].model_validate({"type": kind, **schema}).model_dump(mode="json")
    return PayloadIndex(field_name=field_name, type=kind, field_schema=complete)


def indexes() -> dict[str, PayloadIndex]:
    """One of every type, and a text index with each tokenizer."""
    found = [index(f"f_{kind}", kind) for kind in IndexType]
    found += [
        index(f"t_{name}", IndexType.TEXT, tokenizer=name)
        for name in ("prefix", "multilingual", "whitespace")
    ]
    return {item.field_name: item for item in found}


def test_explain_and_the_translator_agree() -> None:
    """Every operator with every value that it takes, on an index of every type and on none."""
    known, translator = indexes(), Translator(qdrant_edge)
    differs, seen = [], {"index": 0, "partly": 0, "scan": 0}
    for path in [*known, "none"]:
        for operator, values in FITTING.items():
            for value in values:
                for exact_case in (False, True):
                    condition = Condition(path, operator, value, exact_case)
                    engine, residual = translator.split(condition, known)
                    really = "index" if residual is None else "partly" if engine is not None else "scan"
                    told = served_by(condition, known)
                    seen[really] += 1
                    if told != really:
                        differs.append((condition, told, really))
    for item in differs[:12]:
        print(item)
    assert not differs
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize(
    ("operator", "value", "type"),
    [
        ("eq", "red", "keyword"),
        ("in", [1, 2], "integer"),
        ("gt", 2.5, "float"),
        ("eq", True, "bool"),
        ("lt", "2024-05-01", "datetime"),
        ("text", "red", "text"),
        ("geo_radius", {}, "geo"),
        ("regex", "^a", None),
    ],
)
def test_the_index_that_would_help(operator: str, value: Any, type: str | None) -> None:
    assert helpful_type(Condition("x", operator, value)) == type


def test_an_index_of_that_type_does_help() -> None:
    rng = random.Random(1)
    known = indexes()
    for operator, values in FITTING.items():
        condition = Condition("x", operator, rng.choice(values))
        type = helpful_type(condition)
        if type is None or operator in ("ne", "nin", "contains", "ends_with", "phrase", "geo_polygon"):
            continue
        there = {"x": known[f"f_{type}"]}
        assert served_by(condition, there) == "index" or condition.value in ("", 2**60), condition
