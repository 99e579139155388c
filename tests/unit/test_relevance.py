"""Measures of relevance against figures that were worked out elsewhere or by hand."""

from __future__ import annotations

import pytest

from tessera import relevance

#: Found: nothing, a 3, nothing, a 1, nothing; a document of grade 2 was missed.
FOUND, JUDGED = [0, 3, 0, 1, 0], [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("metric", "k", "expected"),
    [
        ("precision", 1, 0.0),
        ("precision", 2, 1 / 2),
        ("precision", 5, 2 / 5),
        ("precision", 10, 2 / 10),  # empty places count
        ("recall", 2, 1 / 3),
        ("recall", 5, 2 / 3),
        ("f1", 1, 0.0),
        ("f1", 5, 1 / 2),
        ("f2", 5, 5 * (2 / 5) * (2 / 3) / (4 * (2 / 5) + 2 / 3)),
        ("f2", 1, 0.0),
        ("map", 5, (1 / 2 + 2 / 4) / 3),
        ("map", 2, (1 / 2) / 3),  # divided by all that is relevant, not by k
        ("mrr", 1, 0.0),
        ("mrr", 5, 1 / 2),
        ("ndcg", 1, 0.0),
        # 3/log2(3) + 1/log2(5) = 1.892789 + 0.430677; best 3 + 2/log2(3) + 1/log2(4) = 4.761860
        ("ndcg", 5, 0.487932),
        ("ndcg", 2, 1.892789 / 4.261860),
    ],
)
def test_by_hand(metric: str, k: int, expected: float) -> None:
    assert relevance.measure(FOUND, JUDGED, k, metric) == pytest.approx(expected, abs=1e-6)


def test_ndcg_is_that_of_the_usual_worked_example() -> None:
    """Six documents of grades 3 2 3 0 1 2, of eight that were judged: 6.861 / 8.740."""
    assert relevance.ndcg([3, 2, 3, 0, 1, 2], [3, 3, 3, 2, 2, 2, 1, 0], 6) == pytest.approx(0.785, abs=5e-4)


def test_average_precision_of_places_one_three_and_five() -> None:
    assert relevance.average_precision([1, 0, 1, 0, 1], 3, 5) == pytest.approx(0.7555556)


@pytest.mark.parametrize("metric", relevance.METRICS)
def test_a_perfect_ranking_has_one_and_an_empty_one_nothing(metric: str) -> None:
    assert relevance.measure([3, 2, 1], [1, 2, 3], 3, metric) == pytest.approx(1.0)
    assert relevance.measure([], [1], 3, metric) == 0.0


def test_a_document_counts_once_and_a_score_wins_over_the_list() -> None:
    judged = relevance.judgements(["a", "b"], {"b": 0, "c": 2})
    assert judged == {"a": 1, "b": 0, "c": 2}
    assert relevance.grades_of(["c", "c", "a", "x"], judged) == [2, 1, 0]
