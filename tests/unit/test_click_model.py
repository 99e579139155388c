"""What is learned from clicks is what people want, not what stood on top: clicks of a simulation whose truth is known.

Two searches: the scores of one go with relevance, those of the other are noise. People look at a place with a chance
that falls with the place, by an exponent that the model is not told, and click what they look at if they like it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tessera.click_model import BIAS, Array, Shown, estimate

GOOD, NOISE = 0, 1
EVEN = np.array([0.5, 0.5])
DOCUMENTS = 10


def simulated(
    seed: int, lists: int, eta: float, weights: Array, click: tuple[float, float] = (0.9, 0.1)
) -> tuple[list[Shown], list[tuple[Array, Array]]]:
    """Return the lists with a click, and for all lists scores and relevance."""
    rng = np.random.default_rng(seed)
    shown, truth = [], []
    for _ in range(lists):
        relevant = rng.random(DOCUMENTS) < 0.3
        good = np.clip(0.5 * relevant + rng.normal(0.25, 0.2, DOCUMENTS), 0, 1)
        scores = np.column_stack([good, rng.random(DOCUMENTS)])
        order = np.argsort(-(scores @ weights), kind="stable")
        scores, relevant = scores[order], relevant[order]
        positions = np.arange(DOCUMENTS, dtype=float)
        looked = rng.random(DOCUMENTS) < (positions + 1) ** -eta
        liked = rng.random(DOCUMENTS) < np.where(relevant, *click)
        chosen = tuple(int(n) for n in np.flatnonzero(looked & liked))
        truth.append((scores, relevant))
        if chosen:
            shown.append(Shown(scores, positions, chosen))
    return shown, truth


def share(weights: Array) -> float:
    kept = np.maximum(weights, 0)
    return float(kept[GOOD] / kept.sum())


def ndcg(weights: Array, truth: list[tuple[Array, Array]]) -> float:
    discount = 1 / np.log2(np.arange(DOCUMENTS) + 2)
    found = []
    for scores, relevant in truth:
        if relevant.any():
            ranked = relevant[np.argsort(-(scores @ weights), kind="stable")]
            found.append(float(ranked @ discount / discount[: int(relevant.sum())].sum()))
    return math.fsum(found) / len(found)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("stated", [EVEN, np.array([0.1, 0.9])], ids=["even", "wrong"])
def test_the_better_search_is_found_whatever_the_bias_of_places(eta: float, stated: Array) -> None:
    lists, truth = simulated(7, 600, eta, stated)
    learned = estimate(lists, stated)
    assert share(learned.weights) > 0.85, learned
    assert ndcg(learned.weights, truth) > ndcg(stated, truth) + 0.03


@pytest.mark.parametrize("stated", [EVEN, np.array([0.1, 0.9])], ids=["even", "wrong"])
def test_the_bias_grows_with_how_soon_people_stop_looking(stated: Array) -> None:
    """It is not exact: where the stated weights are right, more is put down to the place than is due."""
    found = [estimate(simulated(7, 600, eta, stated)[0], stated).bias for eta in (0.0, 0.5, 1.0, 1.5)]
    assert found == sorted(found) and found[-1] - found[0] > 1.0


def test_counting_clicks_alone_would_believe_the_place() -> None:
    """The noise decides the order; people mostly click on top: without places it looks as good as the other."""
    stated = np.array([0.1, 0.9])
    lists, _ = simulated(11, 600, 1.5, stated)
    clicked = np.array([each.scores[n] for each in lists for n in each.chosen]).mean(axis=0)
    all_shown = np.concatenate([each.scores for each in lists]).mean(axis=0)
    by_count = clicked - all_shown
    assert share(by_count) < 0.6
    assert share(estimate(lists, stated).weights) > 0.85


def test_people_who_do_not_care_teach_nothing() -> None:
    """Clicks by place alone leave the weights about equal, and near what is stated."""
    lists, _ = simulated(3, 2000, 1.0, EVEN, click=(0.4, 0.4))
    learned = estimate(lists, EVEN)
    assert np.abs(learned.weights).max() < 0.6, learned
    assert learned.bias == pytest.approx(1.0, abs=0.3)


def test_a_few_clicks_move_little_and_none_nothing() -> None:
    nothing = estimate([], np.array([0.3, 0.7]))
    assert nothing.weights.tolist() == [0.3, 0.7] and nothing.bias == BIAS
    lists, _ = simulated(5, 3, 1.0, EVEN)
    assert np.abs(estimate(lists, EVEN).weights - EVEN).max() < 1.0


def test_what_is_extreme_is_survived() -> None:
    """A score that tells the chosen from all others without fail has no largest weight; it is held all the same."""
    one = Shown(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.5]]), np.array([2.0, 0.0, 1.0]), (0,))
    learned = estimate([one] * 2000, EVEN)
    assert np.isfinite(learned.weights).all() and share(learned.weights) == 1.0
