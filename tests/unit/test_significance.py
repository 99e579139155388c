"""The paired test and the interval, against what can be counted by hand and what theory says."""

from __future__ import annotations

import numpy as np
import pytest

from tessera import significance


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.1] * 6, 2 / 2**6),
        ([0.1] * 5, 2 / 2**5),
        ([0.0] * 8, 1.0),
        # The sum is 4; of the eight patterns of signs of 1, 2, 3, those with 6, 4, -4 and -6 reach as far.
        ([-1.0, 2.0, 3.0], 4 / 8),
        ([0.5, -0.5], 1.0),
    ],
)
def test_few_queries_are_counted_out(differences: list[float], expected: float) -> None:
    assert significance.p_values(np.array([differences]).T) == [expected]


def test_many_queries_are_drawn_and_come_near_what_is_counted_out() -> None:
    """Fourteen differences are counted out; a fifteenth that is 0 changes nothing but that they are drawn."""
    differences = np.random.default_rng(5).normal(0.3, 1.0, (14, 3))
    exact = significance.p_values(differences)
    drawn = significance.p_values(np.vstack([differences, np.zeros((1, 3))]))
    # Four standard deviations of 10,000 draws.
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / 100)
    assert drawn == significance.p_values(np.vstack([differences, np.zeros((1, 3))]))


def test_under_chance_alone_one_in_twenty_is_below_five_in_a_hundred() -> None:
    """400 comparisons of retrievers that are alike: 20 expected, and hardly ever more than 38."""
    p_values = significance.p_values(np.random.default_rng(7).normal(0.0, 1.0, (30, 400)))
    assert 6 <= sum(p < 0.05 for p in p_values) <= 38


def test_an_interval_is_that_of_the_normal_distribution_where_there_are_many_queries() -> None:
    column = np.random.default_rng(11).normal(0.2, 1.0, (400, 1))
    ((low, high),) = significance.intervals(column)
    error = float(column.std(ddof=1)) / 20
    assert (low, high) == pytest.approx(
        (column.mean() - 1.96 * error, column.mean() + 1.96 * error), abs=0.1 * error
    )
    assert significance.intervals(column[:5]) == [None]
