"""Fusion of rankings: each method by its formula, ties by id, weights, and rankings that are empty."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from tessera.ports import Hit
from tessera.stages.feature_search import RRF_K, fuse

METHODS = ("rrf", "dbsf", "weighted", "max")


def ranking(**scores: float) -> list[Hit]:
    return [Hit(name, {"name": name}, score) for name, score in scores.items()]


def fused(method: str, *rankings: list[Hit], weights: list[float] | None = None) -> list[tuple[str, Any]]:
    hits = fuse(rankings, weights or [1.0] * len(rankings), method)
    return [(hit.document_id, hit.score or 0.0) for hit in hits]


def test_reciprocal_ranks_are_added() -> None:
    found = fused("rrf", ranking(a=0.9, b=0.8), ranking(b=0.2, c=0.1), weights=[1, 2])
    assert found == [
        ("b", pytest.approx(1 / (RRF_K + 2) + 2 / (RRF_K + 1))),
        ("c", pytest.approx(2 / (RRF_K + 2))),
        ("a", pytest.approx(1 / (RRF_K + 1))),
    ]


def test_weighted_adds_scores_scaled_within_their_ranking() -> None:
    found = fused("weighted", ranking(a=1.0, b=0.75, c=0.5), ranking(c=30.0, b=10.0), weights=[1, 0.5])
    assert found == [("a", pytest.approx(1)), ("b", pytest.approx(0.5)), ("c", pytest.approx(0.5))]


def test_max_takes_the_best() -> None:
    found = fused("max", ranking(a=1.0, b=0.75, c=0.5), ranking(c=30.0, b=10.0))
    assert found == [("a", 1.0), ("c", 1.0), ("b", pytest.approx(0.5))]


def test_dbsf_scales_by_three_deviations() -> None:
    scores = {"a": 0.9, "b": 0.6, "c": 0.3}
    mean, spread = statistics.fmean(scores.values()), statistics.pstdev(scores.values())
    expected = [(name, (score - mean + 3 * spread) / (6 * spread)) for name, score in scores.items()]
    assert fused("dbsf", ranking(**scores)) == [(name, pytest.approx(score)) for name, score in expected]


@pytest.mark.parametrize("method", METHODS)
def test_order_payload_and_ties(method: str) -> None:
    hits = fuse([ranking(b=0.5, a=0.5), [], ranking(a=0.5, b=0.5)], [1, 1, 1], method)
    assert [hit.document_id for hit in hits] == ["a", "b"], "ties go to the smaller id"
    assert hits[0].score == hits[1].score
    assert hits[0].payload == {"name": "a"}
    assert fuse([[], []], [1, 1], method) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_nothing_adds_nothing(method: str) -> None:
    found = dict(fused(method, ranking(a=0.9, b=0.1), ranking(b=0.9, a=0.1), weights=[1, 0]))
    assert found["a"] > found["b"]
