"""Stages that need no model, each by its definition, among hits that are given or that it reads itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pydantic
import pytest

from tessera.errors import BadRequestError
from tessera.filters import And
from tessera.ports import Hit, Page, PageResult, Search, Vector
from tessera.stages.aggregate import Aggregate
from tessera.stages.base import MAX_CANDIDATES, QueryInput, QueryVector, Stage, StageContext
from tessera.stages.deduplicate import Deduplicate
from tessera.stages.group_by import GroupBy
from tessera.stages.mmr import Mmr
from tessera.stages.sample import Sample
from tessera.stages.score_normalize import ScoreNormalize
from tessera.stages.sort_attribute import SortAttribute
from tessera.stages.sort_relevance import SortRelevance
from tessera.stages.unwind import Unwind


def hit(name: str, score: float | None = None, /, **fields: Any) -> Hit:
    return Hit(name, {"document_id": name, "collection_id": "col", **fields}, score)


def context(
    hits: Sequence[Hit] = (), *, more: bool = False, inputs: Mapping[str, Any] | None = None
) -> StageContext:
    """Return a context over `hits`: `page` reads them, `more` says that there are others behind."""

    def page(asked: Page) -> PageResult:
        return PageResult(tuple(hits[: asked.limit]), "next" if more else None)

    def search(searches: Sequence[Search]) -> list[list[Hit]]:
        raise AssertionError(searches)

    def embed(uri: str, query: QueryInput) -> QueryVector:
        raise AssertionError((uri, query))

    def vectors(document_ids: Sequence[str], uri: str | None) -> dict[str, Mapping[str, Vector]]:
        assert uri is None
        return {each.document_id: each.vectors for each in hits if each.document_id in document_ids}

    return StageContext(And(()), {}, inputs or {}, search, page, embed, list, vectors)


def run(
    stage: type[Stage], hits: Sequence[Hit], within: StageContext | None = None, /, **parameters: Any
) -> list[Hit]:
    made = stage()
    params = made.Params.model_validate(made.normalise(parameters))
    return made.run(list(hits), params, within or context(hits))


def names(hits: Sequence[Hit]) -> str:
    return "".join(hit.document_id for hit in hits)


def refused(stage: type[Stage], **parameters: Any) -> str:
    """Return the names of the fields that a refusal of parameters tells, and its words."""
    made = stage()
    with pytest.raises(pydantic.ValidationError) as caught:
        made.Params.model_validate(made.normalise(parameters))
    return " ".join(f"{error['loc']} {error['msg']}" for error in caught.value.errors())


# --- sorting -------------------------------------------------------------------------------------------

MIXED = [
    hit("c", n="b"), hit("b", n=2), hit("g"), hit("a", n=2), hit("d", n=10.5), hit("e", n="a"), hit("f", n=True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"order": "asc"}, "abdecfg"),
        ({}, "fcedabg"),
        ({"order": "asc", "null_handling": "first"}, "gabdecf"),
        ({"order": "desc", "null_handling": "first"}, "gfcedab"),
    ],
)
def test_values_of_all_types_have_an_order_and_nulls_a_place(
    parameters: dict[str, Any], expected: str
) -> None:
    assert names(run(SortAttribute, MIXED, sort_field="n", **parameters)) == expected
    assert names(run(SortAttribute, MIXED[::-1], sort_field="n", **parameters)) == expected


def test_sorting_reaches_into_objects_and_keeps_scores() -> None:
    hits = [hit("a", 0.5, m={"n": 1}), hit("b", 0.1, m={"n": 2})]
    found = run(SortAttribute, hits, sort_field="m.n")
    assert [(each.document_id, each.score) for each in found] == [("b", 0.1), ("a", 0.5)]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "sort_field"),
        ({"sort_field": "a..b"}, "a..b"),
        ({"sort_field": "internal_id"}, "internal_id"),
        ({"sort_field": "_s.n"}, "_s.n"),
        ({"sort_field": "n", "order": "up"}, "order"),
        ({"sort_field": "n", "null_handling": "none"}, "null_handling"),
    ],
)
def test_what_cannot_be_sorted_by_is_named(parameters: dict[str, Any], words: str) -> None:
    assert words in refused(SortAttribute, **parameters)


def test_relevance_is_the_score_or_a_number() -> None:
    hits = [hit("b", 0.5, n=3), hit("c", None, n=1), hit("a", 0.5, n="x"), hit("d", 0.9)]
    assert names(run(SortRelevance, hits)) == "dabc"
    assert names(run(SortRelevance, hits, order="asc")) == "abdc"
    found = run(SortRelevance, hits, score_field="n", normalize=True)
    assert [(each.document_id, each.score) for each in found] == [
        ("b", 1),
        ("c", 0),
        ("a", None),
        ("d", None),
    ]


# --- scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("min_max", [1, 0, 0.5]),
        ("z_score", [math.sqrt(1.5), -math.sqrt(1.5), 0]),
        ("softmax", [math.exp(i) / (math.exp(3) + math.exp(1) + math.exp(2)) for i in (3, 1, 2)]),
        ("l2", [i / math.sqrt(14) for i in (3, 1, 2)]),
    ],
)
def test_scores_are_scaled_by_the_formula(method: str, expected: list[float]) -> None:
    found = run(ScoreNormalize, [hit("a", 3.0), hit("b", 1.0), hit("x"), hit("c", 2.0)], method=method)
    assert names(found) == "abxc"
    assert found[2].score is None
    assert [each.score for each in found if each.score is not None] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["min_max", "z_score", "softmax", "l2"])
@pytest.mark.parametrize("scores", [[], [0.0], [2.0, 2.0], [None], [1e308, -1e308, 0.0], [1e-320, 0.0]])
def test_no_score_becomes_nan_or_overflows(method: str, scores: list[float | None]) -> None:
    found = run(ScoreNormalize, [hit(str(i), score) for i, score in enumerate(scores)], method=method)
    assert len(found) == len(scores)
    assert all(each.score is None or math.isfinite(each.score) for each in found)


# --- mmr -----------------------------------------------------------------------------------------------


def _placed(name: str, score: float | None, *values: float) -> Hit:
    return replace(hit(name, score), vectors={"v": np.array(values, dtype=np.float32)})


#: b is nearly a; c is another matter and less relevant.
ALIKE = [_placed("a", 0.9, 1, 0), _placed("b", 0.8, 2, 0.02), _placed("c", 0.5, 0, 3), hit("d", 0.4)]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({"lambda": 1}, "abcd"), ({"lambda": 0.5, "top_n": 2}, "ac"), ({"top_n": 1}, "a"), ({"lambda": 0}, "acdb")],
)  # fmt: skip
def test_difference_is_weighed_against_relevance(parameters: dict[str, Any], expected: str) -> None:
    found = run(Mmr, ALIKE, **parameters)
    assert names(found) == expected
    assert found[0].score == 0.9


def test_vectors_of_two_names_are_not_compared() -> None:
    other = replace(hit("o", 0.7), vectors={"w": np.array([1, 2, 3], dtype=np.float32)})
    assert names(run(Mmr, [*ALIKE, other], top_n=5)[:1]) == "a"
    assert len(run(Mmr, [*ALIKE, other])) == 5
    assert run(Mmr, []) == []


@pytest.mark.parametrize("parameters", [{"lambda": 1.1}, {"lambda": -1}, {"top_n": 0}, {"top_n": 1001}])
def test_bounds_of_mmr_are_told_by_field(parameters: dict[str, Any]) -> None:
    assert next(iter(parameters)) in refused(Mmr, **parameters)


# --- samples -------------------------------------------------------------------------------------------

HUNDRED = [hit(f"{number:03}", kind="a" if number < 70 else "b") for number in range(100)]


@pytest.mark.parametrize("method", ["random", "systematic", "stratified"])
def test_a_sample_is_the_same_for_the_same_seed(method: str) -> None:
    parameters = {"method": method, "size": 20, "stratify_by": "kind"}
    found = run(Sample, HUNDRED, **parameters)
    assert len(found) == len({each.document_id for each in found}) == 20
    assert found == sorted(found, key=lambda each: each.document_id), "the order stays"
    assert run(Sample, HUNDRED, **parameters) == found
    assert any(run(Sample, HUNDRED, **parameters, seed=seed) != found for seed in range(1, 5))
    assert run(Sample, HUNDRED[:5], **parameters) == HUNDRED[:5]


def test_strata_and_distances_are_even() -> None:
    found = run(Sample, HUNDRED, method="stratified", size=11, stratify_by="kind")
    assert [each.payload["kind"] for each in found] == ["a"] * 8 + ["b"] * 3
    numbers = [int(each.document_id) for each in run(Sample, HUNDRED, method="systematic", size=20)]
    assert {after - before for before, after in itertools.pairwise(numbers)} == {5}


def test_every_document_has_its_chance() -> None:
    seen = {each.document_id for seed in range(100) for each in run(Sample, HUNDRED, size=10, seed=seed)}
    assert len(seen) == 100


def test_strata_need_a_field() -> None:
    assert "stratify_by" in refused(Sample, method="stratified")


# --- repetitions ---------------------------------------------------------------------------------------

SAME = [
    hit("a", 0.1, n=1, t="x"),
    hit("b", 0.3, n=1),
    hit("c", 0.2, n="1"),
    hit("d"),
    hit("e"),
    hit("f", n=1),
]


@pytest.mark.parametrize(
    ("keep", "expected"), [("first", "acde"), ("last", "cdef"), ("highest_score", "bcde")]
)
def test_one_of_equal_fields_stays(keep: str, expected: str) -> None:
    assert names(run(Deduplicate, SAME, fields="n", keep=keep)) == expected
    assert names(run(Deduplicate, SAME, fields=["n", "t"])) == "abcde"


LONG = " ".join(f"word{number}" for number in range(100))


def test_nearly_the_same_text_is_told_by_its_overlap() -> None:
    hits = [
        hit("a", text=LONG),
        hit("b", text=LONG.upper() + "!", created_at="another moment"),
        hit("c", text=LONG + " more"),
        hit("d", text=LONG.replace("word50", "else")),
        hit("e", text="quite another thing to say"),
        hit("f"),
        hit("g"),
    ]
    assert names(run(Deduplicate, hits, strategy="content")) == "adefg"
    assert names(run(Deduplicate, hits, strategy="content", similarity_threshold=1)) == "acdefg"
    assert names(run(Deduplicate, hits, strategy="content", similarity_threshold=0.9)) == "aefg"


def test_the_shortcut_finds_what_comparing_all_with_all_finds() -> None:
    random = np.random.default_rng(7)
    texts = [" ".join(random.choice(list("abcd"), size=random.integers(3, 7))) for _ in range(150)]

    def runs(text: str) -> set[str]:
        return {text[start : start + 5] for start in range(0, len(text) - 4, 2)}

    for threshold in (0.5, 2 / 3, 0.8, 1.0):
        kept: list[str] = []
        for text in texts:
            mine = runs(text)
            if not any(len(mine & runs(o)) / len(mine | runs(o)) >= threshold for o in kept):
                kept.append(text)
        hits = [hit(f"{number}", t=text) for number, text in enumerate(texts)]
        found = run(Deduplicate, hits, strategy="content", fields=["t"], similarity_threshold=threshold)
        assert [each.payload["t"] for each in found] == kept


def test_fields_of_equality_are_needed() -> None:
    assert "fields" in refused(Deduplicate)
    assert "similarity_threshold" in refused(Deduplicate, strategy="content", similarity_threshold=0.1)


# --- groups and figures --------------------------------------------------------------------------------

GOODS = [
    hit("a", kind="x", price=1, tags=["s", "t"]),
    hit("b", kind="y", price=10.5),
    hit("c", kind="x", price=3, tags=[]),
    hit("d", price="dear"),
    hit("e", kind="x", price=None, tags="s"),
    hit("f", kind=True, price=2),
    hit("g", kind=1),
]


def test_groups_come_in_the_order_of_their_first() -> None:
    assert names(run(GroupBy, GOODS, field="kind")) == "acebdfg"
    found = run(GroupBy, GOODS, field="kind", max_groups=3, docs_per_group=2)
    assert [(each.document_id, each.payload["_group"]) for each in found] == [
        ("a", {"key": "x", "index": 0, "size": 3}),
        ("c", {"key": "x", "index": 0, "size": 3}),
        ("b", {"key": "y", "index": 1, "size": 1}),
        ("d", {"key": None, "index": 2, "size": 1}),
    ]
    assert "_group" not in GOODS[0].payload
    for parameters in ({}, {"field": "internal_id"}, {"field": "kind", "max_groups": 0}):
        assert refused(GroupBy, **parameters)


def test_figures_are_those_of_each_group() -> None:
    wanted = [
        {"function": "count"},
        {"function": "count", "field": "tags", "name": "tagged"},
        *({"function": function, "field": "price"} for function in ("sum", "avg", "min", "max")),
        {"function": "percentiles", "field": "price", "percentiles": [0, 50, 97.5], "name": "p"},
    ]
    found = run(Aggregate, GOODS, aggregations=wanted, group_by="kind")
    assert [each.payload["group"]["kind"] for each in found] == ["x", "y", None, True, 1]
    assert found[0].payload["aggregations"] == {
        "count": 3, "tagged": 3, "sum_price": 4, "avg_price": 2.0, "min_price": 1, "max_price": 3,
        "p": {"0": 1.0, "50": 2.0, "97.5": pytest.approx(2.95)},
    }  # fmt: skip
    assert found[2].payload["aggregations"]["avg_price"] is None
    assert found[2].payload["aggregations"]["sum_price"] == 0
    (whole,) = run(Aggregate, GOODS, aggregations=wanted)
    assert whole.payload["aggregations"]["sum_price"] == 16.5
    assert (whole.payload["count"], whole.payload["collection_id"]) == (7, "col")
    (nothing,) = run(Aggregate, [], aggregations=wanted)
    assert (nothing.payload["count"], nothing.payload["aggregations"]["max_price"]) == (0, None)
    assert run(Aggregate, [], aggregations=wanted, group_by="kind") == []


def test_a_figure_that_json_cannot_say_is_null() -> None:
    wanted = [{"function": function, "field": "n"} for function in ("sum", "avg")]
    (found,) = run(Aggregate, [hit("a", n=1e308), hit("b", n=1.5e308)], aggregations=wanted)
    assert found.payload["aggregations"]["sum_n"] is None
    (found,) = run(Aggregate, [hit("a", n=2**63), hit("b", n=2**63)], aggregations=wanted)
    assert found.payload["aggregations"]["sum_n"] == 2.0**64


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "aggregations"),
        ({"aggregations": []}, "aggregations"),
        ({"aggregations": [{"function": "median", "field": "n"}]}, "function"),
        ({"aggregations": [{"function": "sum"}]}, "field"),
        ({"aggregations": [{"function": "sum", "field": "internal_id"}]}, "internal_id"),
        ({"aggregations": [{"function": "percentiles", "field": "n", "percentiles": [101]}]}, "percentiles"),
        ({"aggregations": [{"function": "count"}, {"function": "count"}]}, "count"),
    ],
)
def test_figures_that_cannot_be_are_told(parameters: dict[str, Any], words: str) -> None:
    assert words in refused(Aggregate, **parameters)


def test_an_array_becomes_one_hit_for_each_element() -> None:
    found = run(Unwind, GOODS, field="tags")
    assert [(each.document_id, each.payload["tags"]) for each in found] == [
        ("a", "s"),
        ("a", "t"),
        ("e", "s"),
    ]
    assert [each.payload["_unwind"]["index"] for each in found] == [0, 1, 0]
    assert GOODS[0].payload["tags"] == ["s", "t"]
    assert names(run(Unwind, GOODS, field="tags", preserve_empty=True)) == "aabcdefg"
    (deep, _) = run(Unwind, [hit("a", m={"n": [1, 2], "o": 3})], field="m.n")
    assert deep.payload["m"] == {"n": 1, "o": 3}
    many = [hit("a", n=list(range(MAX_CANDIDATES + 1)))]
    with pytest.raises(BadRequestError, match=f"{MAX_CANDIDATES:,}"):
        run(Unwind, many, field="n")


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "parameters"),
    [
        (SortAttribute, {"sort_field": "n"}),
        (SortRelevance, {}),
        (ScoreNormalize, {}),
        (Sample, {"size": 100}),
        (Mmr, {"top_n": 100}),
    ],
)
def test_a_first_stage_reads_all_or_refuses(stage: type[Stage], parameters: dict[str, Any]) -> None:
    made = stage()
    params = made.Params.model_validate(parameters)
    hits = [hit("a", n=2), hit("b", n=1)]
    assert names(made.run(None, params, context(hits))) == "ab"
    with pytest.raises(BadRequestError, match=f"{MAX_CANDIDATES:,}"):
        made.run(None, params, context(hits, more=True))
