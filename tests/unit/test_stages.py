"""Stages that need no model, each by its definition, among hits that are given or that it reads itself."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pydantic
import pytest

from tessera.errors import BadRequestError
from tessera.filters import And, Condition, Filter, matches
from tessera.ports import Fusion, Hit, Page, PageResult, Search, Vector
from tessera.stages.aggregate import Aggregate
from tessera.stages.base import MAX_CANDIDATES, QueryInput, QueryVector, Stage, StageContext
from tessera.stages.cluster import MAX_CLUSTERED, Cluster
from tessera.stages.deduplicate import Deduplicate
from tessera.stages.document_enrich import DocumentEnrich
from tessera.stages.group_by import GroupBy
from tessera.stages.json_transform import JsonTransform
from tessera.stages.mmr import Mmr
from tessera.stages.rag_prepare import RagPrepare
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
        assert asked.filter is not None
        found = [each for each in hits if matches(asked.filter, each.payload)]
        return PageResult(tuple(found[: asked.limit]), "next" if more else None)

    def search(searches: Sequence[Search]) -> list[list[Hit]]:
        raise AssertionError(searches)

    def ranked(searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        raise AssertionError((searches, fusion))

    def embed(uri: str, query: QueryInput) -> QueryVector:
        raise AssertionError((uri, query))

    def vectors(document_ids: Sequence[str], uri: str | None) -> dict[str, Mapping[str, Vector]]:
        assert uri is None
        return {each.document_id: each.vectors for each in hits if each.document_id in document_ids}

    def collection(identifier: str) -> Filter:
        return Condition("collection_id", "eq", identifier, True)

    def words(query: QueryInput) -> QueryVector:
        raise AssertionError(query)

    given = (search, ranked, page, embed, words, list, collection, vectors)
    return StageContext(And(()), {}, inputs or {}, *given)


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
        ({"sort_field": "a[].b"}, "a[].b"),
        ({"sort_field": "a" * 256}, "sort_field"),
        ({"sort_field": "\ud800"}, "sort_field"),
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


# --- groups of vectors -----------------------------------------------------------------------------------

#: Two groups on two axes, what lies on neither, and a hit without a vector.
APART = [
    *(replace(_placed(f"x{n}", 1 - n / 10, 1, n / 100), payload={"document_id": f"x{n}", "collection_id": "col",
      "text": "rain on a tent", "internal_id": "int"}) for n in range(5)),
    *(replace(_placed(f"y{n}", 0.2, n / 100, 1), payload={"document_id": f"y{n}", "collection_id": "col",
      "text": "soup of lentils"}) for n in range(4)),
    hit("z", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(
    "parameters",
    [
        {"num_clusters": 2},
        {"min_cluster_size": 3},
        {"algorithm": "dbscan", "feature_uri": "null"},
        {"algorithm": "agglomerative", "n_clusters": 2},
        {"algorithm": "spectral", "n_clusters": 2},
        {"algorithm": "gaussian_mixture", "n_clusters": 2},
    ],
)
def test_every_algorithm_sets_groups_apart(parameters: dict[str, Any]) -> None:
    within = context(APART)
    found = run(Cluster, APART, within, **parameters)
    assert [hit.payload["member_count"] for hit in found] == [5, 4]
    assert [hit.payload["cluster_id"] for hit in found] == ["cl_0", "cl_1"]
    assert "tent" in found[0].payload["keywords"] and "soup" in found[1].payload["cluster_label"]
    # The member in the middle comes first; what the system keeps is not shown.
    assert found[0].payload["members"][0]["document_id"] == "x2"
    assert "internal_id" not in found[0].payload["members"][0]
    assert found[0].payload["centroid"] == pytest.approx([1, 0.02], abs=0.01)
    assert (within.work.metadata["clusters"], within.work.metadata["without_vector"]) == (2, 1)
    assert run(Cluster, APART, context(APART), **parameters) == found


def test_groups_are_told_on_hits_or_by_one_hit_of_each() -> None:
    labelled = run(Cluster, APART, n_clusters=2, output_mode="labeled")
    assert names(labelled) == names(APART)
    assert [each.payload["cluster_id"] for each in labelled] == ["cl_0"] * 5 + ["cl_1"] * 4 + [None]
    assert labelled[0].payload["cluster_score"] > labelled[2].payload["cluster_score"] >= 0
    assert labelled[0].score == APART[0].score
    one_each = run(Cluster, APART, n_clusters=2, output_mode="representatives")
    assert [each.document_id[0] for each in one_each] == ["x", "y"]
    (first, _) = run(Cluster, APART, n_clusters=2, include_centroids=False, max_members_per_cluster=1)
    assert "centroid" not in first.payload
    assert len(first.payload["members"]) == 1
    assert first.payload["member_count"] == 5


@pytest.mark.parametrize("algorithm", ["hdbscan", "kmeans", "dbscan", "agglomerative", "spectral"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_hits_are_grouped_or_left_alone(algorithm: str, count: int) -> None:
    hits = APART[:count]
    found = run(Cluster, hits, algorithm=algorithm, output_mode="labeled")
    assert names(found) == names(hits)
    assert run(Cluster, [hit("z")], algorithm=algorithm) == []


def test_too_many_hits_are_refused_and_bounds_are_told() -> None:
    with pytest.raises(BadRequestError, match=r"1,001 documents.*POST /v1/clusters"):
        run(Cluster, [hit(f"{n}") for n in range(MAX_CLUSTERED + 1)])
    for wrong in ({"algorithm": "optics"}, {"n_clusters": 1}, {"output_mode": "x"}, {"min_cluster_size": 1}):
        assert next(iter(wrong)) in refused(Cluster, **wrong)


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
        (Cluster, {"output_mode": "labeled"}),
    ],
)
def test_a_first_stage_reads_all_or_refuses(stage: type[Stage], parameters: dict[str, Any]) -> None:
    made = stage()
    params = made.Params.model_validate(parameters)
    hits = [hit("a", n=2), hit("b", n=1)]
    assert names(made.run(None, params, context(hits))) == "ab"
    with pytest.raises(BadRequestError, match=f"{MAX_CANDIDATES:,}"):
        made.run(None, params, context(hits, more=True))


# --- templates -----------------------------------------------------------------------------------------

BLOB = "blob://ns_0123456789abcdef/blobs/" + "0" * 64
OTHER_BLOB = "blob://ns_0123456789abcdef/blobs/" + "1" * 64


def transformed(template: Any, inputs: Mapping[str, Any] | None = None, **parameters: Any) -> dict[str, Any]:
    document = hit(
        "a", 0.5, title="T", n=1, pic=BLOB, m={"tags": ["x"]}, internal_id="secret", created_at="t"
    )
    (found,) = run(
        JsonTransform, [document], context([document], inputs=inputs), template=template, **parameters
    )
    assert (found.document_id, found.score) == ("a", 0.5)
    assert {found.payload[name] for name in ("document_id", "collection_id", "created_at")} == {
        "a",
        "col",
        "t",
    }
    return {k: v for k, v in found.payload.items() if k not in {"document_id", "collection_id", "created_at"}}


def test_a_template_gives_documents_another_form() -> None:
    template = {"label": "{{DOC.title}} for {{INPUT.q}}", "deep": {"n": "{{DOC.n}}", "l": ["{{DOC.m.tags}}"]}}
    expected = {"label": "T for me", "deep": {"n": 1, "l": [["x"]]}}
    assert transformed(template, {"q": "me"}) == expected
    assert transformed(json.dumps(template), {"q": "me"}) == expected
    assert transformed({"document_id": "b", "pic": "{{DOC.pic}}"}) == {"pic": BLOB}


def test_a_value_is_never_read_as_a_template_or_as_json() -> None:
    hostile = '"}, "x": "{{DOC.n}}"'
    assert transformed('{"a": "{{INPUT.q}}!"}', {"q": hostile}) == {"a": hostile + "!"}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"a": "{{DOC.absent}}"}, "{{DOC.absent}}"),
        ({"a": "{{DOC.internal_id}}"}, "{{DOC.internal_id}}"),
        ({"a": "{{INPUT.blob}}"}, "does not hold"),
        ({"a": "blob://{{INPUT.key}}"}, "does not hold"),
        ({"a": [{"b": "{{INPUT.tree}}"}]}, "does not hold"),
        ({"a": "{{DOC.title}}{{INPUT.long}}"}, "longer"),
    ],
)
def test_a_document_that_a_template_does_not_fit_goes_on_or_is_refused(template: Any, words: str) -> None:
    """What would be signed as the address of a file must be the document's own."""
    inputs = {"blob": OTHER_BLOB, "key": OTHER_BLOB[7:], "tree": {"c": [OTHER_BLOB]}, "long": "x" * 100_000}
    found = transformed(template, inputs)
    assert (found["title"], found["pic"]) == ("T", BLOB)
    assert words in found["_transform_error"]
    with pytest.raises(BadRequestError, match="document 'a'") as caught:
        transformed(template, inputs, fail_on_error=True)
    assert words in str(caught.value)


def test_stages_behind_each_other_do_not_multiply_a_document_without_end() -> None:
    deep: Any = "{{DOC.a}}"
    for _ in range(60):
        deep = [deep]
    for template, words in (({"a": ["{{DOC.a}}"] * 1000}, "characters"), ({"a": deep}, "levels")):
        hits = [hit("a", a="x" * 10)]
        for _ in range(5):
            hits = run(JsonTransform, hits, template=template)
        assert words in hits[0].payload["_transform_error"]
        assert len(orjson.dumps(hits[0].payload)) < 2_000_000
    assert "levels" in refused(DocumentEnrich, **JOIN, output_field=".".join("a" * 17))


def test_a_template_is_an_object() -> None:
    stage = JsonTransform()
    for template in ("[1]", "{{INPUT.t}}", '{"a": ', "5", '{"a":' * 500 + "1" + "}" * 500):
        (problem,) = stage.problems(stage.normalise({"template": template}), ("parameters",))
        assert problem.location == ("parameters", "template")
    assert "template" in refused(JsonTransform)


# --- joins ---------------------------------------------------------------------------------------------


def brand(name: str, **fields: Any) -> Hit:
    return Hit(name, {"document_id": name, "collection_id": "brands", "internal_id": "secret", **fields})


BRANDS = [
    brand("x", code="n", m={"land": "Peru", "year": 1}),
    brand("y", code=[1, 2], m={"land": "Chad"}),
    brand("z", code=True, land="Fiji"),
    hit("w", code="lost", land="Mali"),
]
SOLD = [
    hit("a", 0.5, c="n", m={"land": "here", "n": 1}), hit("b", c=1.0), hit("d", c=True), hit("e", c="lost"),
    hit("f"), hit("g", c={"n": 1}), hit("h", c=2),
]  # fmt: skip
JOIN = {"target_collection_id": "brands", "source_field": "c", "target_field": "code"}


def joined(**parameters: Any) -> list[Hit]:
    return run(DocumentEnrich, SOLD, context(BRANDS), **{**JOIN, **parameters})


def test_documents_are_joined_by_a_field_of_another_collection_only() -> None:
    found = joined(output_field="maker")
    assert names(found) == "abdefgh"
    assert found[0].score == 0.5
    assert [each.payload.get("maker") for each in found] == [
        {"code": "n", "m": {"land": "Peru", "year": 1}},
        {"code": [1, 2], "m": {"land": "Chad"}},
        {"code": True, "land": "Fiji"},
        None, None, None,
        {"code": [1, 2], "m": {"land": "Chad"}},
    ]  # fmt: skip
    assert names(joined(allow_missing=False)) == "abdh"


@pytest.mark.parametrize(
    ("strategy", "land"), [("enrich", "here"), ("replace", "Peru"), ("append", ["here", "Peru"])]
)
def test_a_strategy_decides_between_two_values(strategy: str, land: Any) -> None:
    found = joined(strategy=strategy, fields_to_merge=["m.land", "m.year", "document_id", "absent"])
    assert found[0].payload["m"] == {"land": land, "n": 1, "year": 1}
    assert found[0].payload["document_id"] == "a"
    assert found[0].payload["collection_id"] == "col"
    assert SOLD[0].payload["m"] == {"land": "here", "n": 1}


def test_many_values_are_found_however_many_share_one() -> None:
    many = [brand(f"{number:04}", code=number if number >= 700 else 0) for number in range(1500)]
    sold = [hit(f"{number:04}", c=number) for number in range(1500)]
    reads = 0
    within = context(many)

    def page(asked: Page) -> PageResult:
        nonlocal reads
        reads += 1
        assert asked.filter is not None
        found = [each for each in many if matches(asked.filter, each.payload)]
        return PageResult(tuple(found[: asked.limit]), "next" if len(found) > asked.limit else None)

    found = run(DocumentEnrich, sold, replace(within, page=page), **JOIN, allow_missing=False)
    assert [each.payload["c"] for each in found] == [0, *range(700, 1500)]
    assert reads == 4, "three batches, and once more behind the many that share a value"


def test_a_join_reads_what_it_says() -> None:
    stage = DocumentEnrich()
    parameters = stage.normalise({"collection_id": "{{INPUT.c}}", "source_field": "c"})
    (problem,) = stage.problems(parameters, ("parameters",))
    assert problem.location == ("parameters", "target_collection_id")
    for field in ("document_id", "collection_id.x", "internal_id"):
        assert field in refused(DocumentEnrich, **JOIN, result_field=field)
    assert "internal_id" in refused(DocumentEnrich, **JOIN, select_fields=["internal_id"])
    assert "target_collection_id" in refused(DocumentEnrich, source_field="c")


# --- contexts ------------------------------------------------------------------------------------------

TOLD = [
    hit("a", 0.9, text="Rain fell.", internal_id="secret", pic=BLOB),
    hit("b", n=1),
    hit("c", 0.5, text="Schnee für alle"),
]


def test_hits_become_one_text_with_marks() -> None:
    (found,) = run(RagPrepare, TOLD)
    assert found.payload == {
        "document_id": "context_0", "collection_id": "col", "truncated": False, "token_count": 9,
        "context": "[1] Rain fell.\n\n[2] Schnee für alle",
        "citations": [
            {"citation": "[1]", "document_id": "a", "collection_id": "col"},
            {"citation": "[2]", "document_id": "c", "collection_id": "col"},
        ],
    }  # fmt: skip
    listed = run(RagPrepare, TOLD, citation="document_id", output_mode="context_list", content_field="text")
    assert [each.payload["_context"]["text"] for each in listed] == ["[a] Rain fell.", "[c] Schnee für alle"]
    assert [each.score for each in listed] == [0.9, 0.5]
    (bare,) = run(RagPrepare, TOLD, citation=False)
    assert bare.payload["context"] == "Rain fell.\n\nSchnee für alle"
    (empty,) = run(RagPrepare, [])
    assert (empty.payload["context"], empty.payload["citations"], empty.payload["truncated"]) == (
        "",
        [],
        False,
    )


def test_a_context_keeps_to_its_budget() -> None:
    for budget in range(1, 12):
        (found,) = run(RagPrepare, TOLD, max_tokens=budget)
        text = found.payload["context"]
        assert len(text.encode()) <= budget * 4
        assert "[1] Rain fell.\n\n[2] Schnee für alle".startswith(text)
        assert found.payload["truncated"] is (budget < 9)
    assert "max_tokens" in refused(RagPrepare, max_tokens=0)


def test_what_stages_say_of_a_hit_is_none_of_its_texts() -> None:
    said = hit(
        "a", text="Brass.", locator={"kind": "text"}, query_expand={"matched_variations": ["glass"]},
        llm_filter={"explanation": "glass"}, _group={"key": "glass"}, title="Lamp",
    )  # fmt: skip
    (found,) = run(RagPrepare, [said])
    assert found.payload["context"] == "[1] Brass.\nLamp"
