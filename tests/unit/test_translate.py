"""What of a filter goes to the engine, and what is left to be evaluated."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import qdrant_client.models
import qdrant_edge

from tessera.adapters.qdrant.translate import (
    Translator,
    can_be_addressed,
    engine_path,
    is_datetime,
    is_geo_point,
    is_uuid,
    path_segments,
    shadow_path,
)
from tessera.filters import And, Condition, Filter, Not, Or
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import DenseVector


def index(field_name: str, type: str, **params: Any) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)](**params).model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


INDEXES = {
    name: index(name, name)
    for name in ("keyword", "integer", "float", "bool", "geo", "datetime", "text", "uuid")
}
INDEXES["a b.c"] = index("a b.c", "keyword")
UUID = "0d9a4d1b-7c55-4b0e-8d5b-5f0d7c4e9f0b"
BERLIN = {"lat": 52.52, "lon": 13.405}


@pytest.fixture(params=[qdrant_edge, qdrant_client.models], ids=["edge", "server"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    made: ModuleType = request.param
    return made


def C(path: str, operator: str, value: Any = None, case_sensitive: bool = False) -> Condition:
    return Condition(path, operator, value, case_sensitive)


EXACT = [
    C("keyword", "eq", "Rock"), C("keyword", "eq", "Rock", True), C("keyword", "ne", "x"),
    C("keyword", "in", ["a", "B"]), C("keyword", "nin", ["a"], True), C("keyword", "starts_with", "A"),
    C("a b.c", "eq", "x"), C("keyword", "exists", True), C("text", "exists", False), C("geo", "is_null", True),
    C("integer", "eq", 5), C("integer", "in", [1, 2**60]), C("integer", "gt", 1.5), C("integer", "eq", 2**60),
    C("integer", "eq", 1.0), C("float", "eq", 1), C("float", "lte", -0.5), C("float", "nin", [1, 2.5]),
    C("bool", "eq", True), C("bool", "in", [True, False]), C("bool", "ne", False),
    C("datetime", "eq", "2024-01-01"), C("datetime", "gt", "2024-01-01T00:00:00+01:00"),
    C("uuid", "eq", UUID), C("uuid", "in", [UUID, UUID.upper()]), C("text", "text", "big words"),
    C("keyword", "eq", None), C("keyword", "ne", None), C("keyword", "in", ["a", None]), C("keyword", "exists"),
    C("keyword", "eq", "2024-01-01", True), C("text", "words", "big words"),
    C("geo", "geo_radius", {"center": BERLIN, "radius": 1000}),
    C("geo", "geo_bounding_box", {"top_left": {"lat": 53, "lon": 13}, "bottom_right": {"lat": 52, "lon": 14}}),
]  # fmt: skip

NARROWED = [
    C("keyword", "contains", "oc"), C("keyword", "ends_with", "CK"), C("uuid", "eq", UUID, True),
    C("text", "phrase", "big words"), C("integer", "contains", 5), C("bool", "contains", True),
    C("geo", "geo_polygon", {"exterior": {"points": [BERLIN, {"lat": 1, "lon": 1}, {"lat": 2, "lon": 1}, BERLIN]}}),
]  # fmt: skip

EVALUATED = [
    C("unindexed", "eq", 1), C("keyword", "regex", "^a"), C("keyword", "eq", 5), C("keyword", "gt", "a"),
    C("keyword", "ne", 5), C("keyword", "in", ["a", 5]), C("keyword", "starts_with", ""),
    C("integer", "gt", 2**53), C("integer", "eq", True), C("integer", "eq", "5"), C("integer", "eq", 2**70),
    C("float", "eq", 2.0**60), C("bool", "eq", 1), C("bool", "eq", "true"), C("datetime", "eq", "yesterday"),
    C("datetime", "gt", 5), C("datetime", "eq", "2024-01-01", True),
    C("datetime", "lt", "2024-01-01T00:00:00.1234567Z"),
    C("uuid", "eq", UUID.replace("-", "")), C("uuid", "ne", UUID, True), C("text", "eq", "x"),
    C("text", "regex", "x"), C("geo", "geo_radius", {"center": BERLIN}),
    C("geo", "geo_radius", {"center": {"lat": 80, "lon": 0}, "radius": 1_500_000}),
    C("geo", "geo_radius", {"center": {"lat": 0, "lon": 179}, "radius": 200_000}),
    C("geo", "geo_bounding_box", {"top_left": {"lat": 1, "lon": 170}, "bottom_right": {"lat": 0, "lon": -170}}),
    C("geo", "geo_bounding_box", {"top_left": {"lat": 90, "lon": 1}, "bottom_right": {"lat": 0, "lon": 2}}),
    C("geo", "geo_bounding_box", {"top_left": {"lat": 9, "lon": 1}, "bottom_right": {"lat": 0, "lon": 180}}),
    C("keyword", "text", "a"),
    C("keyword", "eq", "2024-01-01"), C("keyword", "in", ["a", "2024-01-01"]), C("keyword", "contains", "2024-01-01"),
]  # fmt: skip


@pytest.mark.parametrize("condition", EXACT, ids=str)
def test_what_the_engine_answers_alone(module: ModuleType, condition: Condition) -> None:
    engine_filter, residual = Translator(module).split(condition, INDEXES)
    assert engine_filter is not None
    assert residual is None


@pytest.mark.parametrize("condition", NARROWED, ids=str)
def test_what_the_engine_narrows_down(module: ModuleType, condition: Condition) -> None:
    engine_filter, residual = Translator(module).split(condition, INDEXES)
    assert engine_filter is not None
    assert residual == condition


@pytest.mark.parametrize("condition", EVALUATED, ids=str)
def test_what_is_evaluated(module: ModuleType, condition: Condition) -> None:
    assert Translator(module).split(condition, INDEXES) == (None, condition)


@pytest.mark.parametrize("condition", EXACT, ids=str)
def test_nothing_on_an_irregular_path_goes_to_the_engine(module: ModuleType, condition: Condition) -> None:
    assert Translator(module).split(condition, INDEXES, {condition.path}) == (None, condition)


def test_no_value_of_an_empty_list_is_there(module: ModuleType) -> None:
    for operator in ("in", "nin"):
        engine_filter, residual = Translator(module).split(C("unindexed", operator, []), {})
        assert engine_filter is not None
        assert residual is None


GOOD, WIDE, OTHER = C("integer", "eq", 1), C("keyword", "ends_with", "x"), C("unindexed", "eq", 1)


@pytest.mark.parametrize(
    ("filter", "pushed", "residual"),
    [
        (None, False, None),
        (And(()), False, None),
        (And((GOOD, GOOD)), True, None),
        (And((GOOD, OTHER)), True, OTHER),
        (And((GOOD, WIDE, OTHER)), True, And((WIDE, OTHER))),
        (And((OTHER,)), False, OTHER),
        (Or((GOOD, GOOD)), True, None),
        (Or((GOOD, WIDE)), True, Or((GOOD, WIDE))),
        (Or((GOOD, OTHER)), False, Or((GOOD, OTHER))),
        (Or((And((GOOD, OTHER)), WIDE)), True, Or((And((GOOD, OTHER)), WIDE))),
        (Or((GOOD, And(()))), False, None),
        (Or(()), False, Or(())),
        (Not((GOOD, GOOD)), True, None),
        (Not((GOOD, WIDE)), True, Not((WIDE,))),
        (Not((WIDE, OTHER)), False, Not((WIDE, OTHER))),
        (Not((GOOD, And(()))), False, Not((GOOD, And(())))),
        (Not((Not((GOOD,)),)), True, None),
        (Not((And((GOOD, OTHER)),)), False, Not((And((GOOD, OTHER)),))),
        (And((Or((GOOD, GOOD)), Not((Or((WIDE, OTHER)),)))), True, Not((Or((WIDE, OTHER)),))),
    ],
    ids=str,
)
def test_what_is_left_of_nested_filters(
    module: ModuleType, filter: Filter | None, pushed: bool, residual: Filter | None
) -> None:
    engine_filter, left = Translator(module).split(filter, INDEXES)
    assert (engine_filter is not None) == pushed
    assert left == residual
    assert engine_filter is None or isinstance(engine_filter, module.Filter)


def test_the_engine_is_given_no_filter_inside_another_that_says_nothing() -> None:
    """It lists a lone condition's points from its index, and looks at each once more where one stands in a nest."""
    translator = Translator(qdrant_client.models)

    def told(filter: Filter) -> Any:
        return translator.split(filter, INDEXES)[0].model_dump(exclude_none=True)

    lone = told(GOOD)
    assert lone == {"must": [{"key": "integer", "match": {"value": 1}}]}
    for nested in (And((GOOD,)), And((And((Or((And((GOOD,)),)),)),)), Or((And((GOOD,)),))):
        assert told(nested) == lone
    two = C("keyword", "eq", "x", True)
    both = [*lone["must"], {"key": "keyword", "match": {"value": "x"}}]
    assert told(And((And((GOOD,)), And((two,))))) == {"must": both}
    assert told(Or((GOOD, Or((two,))))) == {"should": both}
    refused = {"must": both[:1], "must_not": both[1:]}
    assert told(And((GOOD, Not((two,))))) == told(And((GOOD, C("keyword", "ne", "x", True)))) == refused


def test_the_folded_copy_is_asked_unless_case_matters() -> None:
    translator = Translator(qdrant_client.models)
    for condition, key, value in (
        (C("a b.c", "eq", "ROCK"), '_s."a b.c"', "rock"),
        (C("a b.c", "eq", "ROCK", True), '"a b".c', "ROCK"),
    ):
        engine_filter, _ = translator.split(condition, INDEXES)
        assert engine_filter.model_dump(exclude_none=True) == {
            "must": [{"key": key, "match": {"value": value}}]
        }


def test_a_time_without_zone_is_sent_as_utc() -> None:
    engine_filter, _ = Translator(qdrant_client.models).split(C("datetime", "gt", "2024-01-01"), INDEXES)
    assert '"gt":"2024-01-01T00:00:00Z"' in engine_filter.model_dump_json()


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        ("a", "a"), ("a.b_c-d9", "a.b_c-d9"), ("a b.c", '"a b".c'), ("ä", '"ä"'), ("a[0]", '"a[0]"'),
        ("_s", '_s." "'), ("_s.x", '_s." ".x'), ("a._s", "a._s"), ("a:b./", '"a:b"."/"'),
    ],
)  # fmt: skip
def test_odd_segments_are_quoted(path: str, spelled: str) -> None:
    assert engine_path(path) == spelled
    qdrant_edge.FieldCondition(spelled, is_empty=True)  # the engine reads it
    assert path_segments(spelled) == tuple(spelled.replace('"', "").split("."))


def test_paths_that_the_engine_cannot_spell_stay_here() -> None:
    for path in ('a"b', "a\\b", "a..b", ""):
        assert not can_be_addressed(path)
        condition = C(path, "eq", "x")
        assert Translator(qdrant_edge).split(condition, {path: index(path or "x", "keyword")}) == (
            None,
            condition,
        )
    assert shadow_path("a.b c") == '_s."a.b c"'
    assert path_segments('_s."a.b c"') == ("_s", "a.b c")


def test_values_that_both_sides_read_alike() -> None:
    for text in (
        "2024-02-29",
        "2024-01-01T00:00:00Z",
        "2024-01-01 10:00:00",
        "2024-01-01T00:00:00.123456+05:30",
    ):
        assert is_datetime(text)
    odd = ["2023-02-29", "0000-01-01", "2024-01-01T24:00:00Z", "2016-12-31T23:59:60Z", "2024-1-1"]
    odd += ["2024-01-01T00:00:00.1234567Z", "20240101", "2024-01-01T00:00Z", "٢٠٢٤-01-01", "2024-01-01\n"]
    for text in odd:
        assert not is_datetime(text)
    assert is_uuid(UUID)
    assert is_uuid(UUID.upper())
    for text in (UUID.replace("-", ""), "{" + UUID + "}", "urn:uuid:" + UUID, UUID + "\n"):
        assert not is_uuid(text)
    assert is_geo_point(BERLIN)
    for value in (
        {"lat": 91, "lon": 0},
        {"lat": True, "lon": 0},
        {"lat": 1},
        [BERLIN],
        None,
        {"lat": "1", "lon": 1},
    ):
        assert not is_geo_point(value)


@pytest.mark.parametrize("type", list(IndexType))
def test_index_parameters_are_made_in_both_vocabularies(module: ModuleType, type: IndexType) -> None:
    declared = index("f", type)
    params = Translator(module).index_params(declared)
    kinds = module.PayloadSchemaType
    kind = kinds.Text if module is qdrant_edge else kinds.TEXT
    if type == IndexType.TEXT:
        assert Translator(module).index_report(kind, params) == ("text", declared.field_schema)
    for name in ("is_tenant", "lookup", "range", "min_token_len", "max_token_len", "lowercase"):
        if name in declared.field_schema:
            assert getattr(params, name) == declared.field_schema[name]


def test_vectors_are_declared_in_both_vocabularies(module: ModuleType) -> None:
    made = Translator(module).vector_params([DenseVector("a", 3), DenseVector("b", 4, "manhattan")])
    assert {name: params.size for name, params in made.items()} == {"a": 3, "b": 4}
    assert "manhattan" in str(made["b"].distance).lower()
