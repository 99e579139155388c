"""Fusion of rankings: each method by its formula, ties by id, weights, and rankings that are empty."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from tessera.fusion import RRF_K, fuse
from tessera.locators import Locator
from tessera.ports import Hit
from tessera.stages.feature_search import merge_adjacent

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
    mean, spread = statistics.fmean(scores.values()), statistics.stdev(scores.values())
    expected = [(name, (score - mean + 3 * spread) / (6 * spread)) for name, score in scores.items()]
    assert fused("dbsf", ranking(**scores)) == [(name, pytest.approx(score)) for name, score in expected]


def test_dbsf_takes_what_does_not_differ_for_the_middle() -> None:
    assert fused("dbsf", ranking(only=7.0)) == [("only", 0.5)]
    assert fused("dbsf", ranking(a=7.0, b=7.0)) == [("a", 0.5), ("b", 0.5)]


def test_dbsf_lets_a_score_stand_out() -> None:
    """A name that one text alone has was worth no more than the best of a search that found nothing in particular."""
    found = dict(fused("dbsf", ranking(rare=30.0, **{f"d{n}": 1.0 + n / 1000 for n in range(40)})))
    assert found["rare"] > 1.0


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


# --- hits next to each other ---------------------------------------------------------------------------


def span(name: str, score: float, start_s: float, end_s: float, source: str = "film", **fields: Any) -> Hit:
    place = Locator.at_time(round(start_s * 1000), round(end_s * 1000)).to_json()
    payload = {"collection_id": "col", "source_object_id": source, "locator": place, **fields}
    return Hit(name, payload, score)


def test_neighbours_in_one_video_become_one_hit_in_the_place_of_the_best() -> None:
    hits = [
        span("b", 0.9, 10, 20),
        span("other", 0.8, 20, 30, source="another film"),
        span("c", 0.7, 20, 30),
        span("far", 0.6, 31, 40),
        span("a", 0.5, 0, 10),
    ]
    merged = merge_adjacent(hits, 0)
    assert [hit.document_id for hit in merged] == ["b", "other", "far"]
    best = merged[0]
    assert best.score == 0.9
    assert best.payload["locator"] == {"kind": "time", "start_ms": 0, "end_ms": 30_000}
    assert [(part["document_id"], part["score"]) for part in best.payload["merged"]] == [
        ("a", 0.5),
        ("b", 0.9),
        ("c", 0.7),
    ]
    assert merged[1:] == [hits[1], hits[3]]
    assert hits[0].payload["locator"]["start_ms"] == 10_000, "what was found stays as it was"
    assert [hit.document_id for hit in merge_adjacent(hits, 1000)] == ["b", "other"]


def test_a_long_span_bridges_what_lies_in_it() -> None:
    hits = [span("late", 0.9, 50, 60), span("long", 0.5, 0, 55), span("early", 0.4, 5, 6)]
    (merged,) = merge_adjacent(hits, 0)
    assert merged.payload["locator"] == {"kind": "time", "start_ms": 0, "end_ms": 60_000}
    assert [part["document_id"] for part in merged.payload["merged"]] == ["long", "early", "late"]


def test_only_spans_of_time_of_a_known_source_are_merged() -> None:
    hits = [
        Hit(
            "page",
            {"source_object_id": "x", "collection_id": "col", "locator": Locator.on_page(0).to_json()},
            0.9,
        ),
        span("ready", 0.8, 0, 10, source_object_id=None),
        span("made", 0.7, 0, 10, source_object_id=None),
        span("one", 0.6, 0, 10),
        span("two", 0.5, 10, 20, collection_id="col 2"),
        Hit(
            "old",
            {"source_object_id": "film", "collection_id": "col", "start_time": 10.0, "end_time": 12.0},
            0.4,
        ),
    ]
    merged = merge_adjacent(hits, 0)
    assert [hit.document_id for hit in merged] == ["page", "ready", "made", "one", "two"]
    assert merged[3].payload["locator"]["end_ms"] == 12_000
