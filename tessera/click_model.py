"""How much each search's score has to do with what people chose, and how much the mere place in the list.

A conditional logit: somebody who was shown a list chooses one of it with a chance that grows with the exponential of
``weights · scores − bias · log(1 + position)``. Weights and bias are estimated together, so that a document is not
taken for good because it stood on top. What nobody chose, where it was shown, counts against its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: How strongly the estimate is held at what it starts from: as much as about four choices would say.
PRECISION = 1.0
#: The bias that it starts from: the second place is looked at half as often as the first.
BIAS = 1.0
_STEPS = 50
_SMALL = 1e-9


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as somebody saw it: `scores` (documents, searches), `positions` from 0, and the rows that were chosen."""

    scores: Array
    positions: Array
    chosen: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The weight of each search, as the model has it (a negative one speaks against its search), and the bias."""

    weights: Array
    bias: float


def estimate(lists: Sequence[Shown], prior: Array) -> Estimate:
    """Return the most likely weights and bias, held at `prior` and `BIAS` as far as `lists` say little."""
    start = np.append(prior, BIAS)
    features, mask, chosen = _table(lists, prior.size)
    theta = start.copy()
    value, gradient, curve = _posterior(theta, start, features, mask, chosen)
    for _ in range(_STEPS):
        step = np.linalg.solve(curve, gradient)
        scale = 1.0
        while True:
            trial = theta + scale * step
            after = _posterior(trial, start, features, mask, chosen)
            # It is concave: half the way is better at the latest when the step is small enough.
            if after[0] >= value or scale < _SMALL:
                break
            scale /= 2
        moved = float(np.abs(trial - theta).max())
        theta, (value, gradient, curve) = trial, after
        if moved < 1e-6:
            break
    return Estimate(theta[:-1], float(theta[-1]))


def _table(lists: Sequence[Shown], searches: int) -> tuple[Array, npt.NDArray[np.bool_], Array]:
    """Return a row for each choice: features of what there was to choose from, which rows are real, and the chosen."""
    choices = [(shown, row) for shown in lists for row in shown.chosen]
    widest = max((shown.positions.size for shown, _ in choices), default=1)
    features = np.zeros((len(choices), widest, searches + 1))
    mask = np.zeros((len(choices), widest), dtype=bool)
    chosen = np.zeros((len(choices), searches + 1))
    for number, (shown, row) in enumerate(choices):
        size = shown.positions.size
        features[number, :size] = np.column_stack([shown.scores, -np.log1p(shown.positions)])
        mask[number, :size] = True
        # What else was chosen was no worse.
        mask[number, [other for other in shown.chosen if other != row]] = False
        chosen[number] = features[number, row]
    return features, mask, chosen


def _posterior(
    theta: Array, start: Array, features: Array, mask: npt.NDArray[np.bool_], chosen: Array
) -> tuple[float, Array, Array]:
    """Return the logarithm of the posterior, its gradient, and its negative second derivative."""
    utility = np.where(mask, features @ theta, -np.inf)
    top = utility.max(axis=1, keepdims=True)
    odds = np.exp(utility - top)
    total = odds.sum(axis=1, keepdims=True)
    chances = odds / total
    mean = np.einsum("cm,cmd->cd", chances, features)
    away = theta - start
    value = float((chosen @ theta - top[:, 0] - np.log(total[:, 0])).sum() - PRECISION / 2 * (away @ away))
    gradient = (chosen - mean).sum(axis=0) - PRECISION * away
    spread = np.einsum("cm,cmd,cme->de", chances, features, features) - mean.T @ mean
    return value, gradient, spread + PRECISION * np.eye(theta.size)
