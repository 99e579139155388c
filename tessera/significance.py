"""Whether differences over the same queries are more than chance. Pure.

`differences` has a row for each query and a column for each figure: candidate minus baseline.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

#: Below so many queries no pattern of signs is rarer than 5 in 100, so nothing can be shown, and no interval is given.
FEWEST = 6
#: Up to so many queries, all patterns of signs are gone through instead of drawn.
_EXACT = 14
_DRAWS = 10_000
#: Draws at a time: of 5,000 queries, 20 MB.
_AT_ONCE = 500
#: Any constant: the same evaluations give the same answer each time.
_SEED = 20_060
#: Sums of the same terms in another order differ in their last digits.
_SAME = 1e-9


def p_values(differences: NDArray[np.float64]) -> list[float]:
    """Return of each column how often chance alone makes a mean as far from 0 as its own, on either side.

    Fisher's randomization test: were the two alike, each query's difference could as well have the other sign. See
    Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information Retrieval Evaluation
    (CIKM 2007). All patterns of signs are gone through where queries are few, else 10,000 are drawn.
    """
    reached = np.abs(differences.sum(axis=0)) - _SAME
    as_far, patterns = np.zeros(differences.shape[1]), 0
    for signs in _signs(len(differences)):
        as_far += np.sum(np.abs(signs @ differences) >= reached, axis=0)
        patterns += len(signs)
    if len(differences) > _EXACT:
        # What was found is a pattern too, so no p is 0.
        as_far, patterns = as_far + 1, patterns + 1
    return [float(p) for p in as_far / patterns]


def _signs(queries: int) -> Iterator[NDArray[np.float64]]:
    """Yield patterns of signs, many rows at a time."""
    if queries <= _EXACT:
        flipped = (np.arange(2**queries)[:, None] >> np.arange(queries)) & 1
        yield (1 - 2 * flipped).astype(np.float64)
        return
    random = np.random.default_rng(_SEED)
    for _ in range(_DRAWS // _AT_ONCE):
        yield (1 - 2 * random.integers(0, 2, (_AT_ONCE, queries))).astype(np.float64)


def intervals(differences: NDArray[np.float64]) -> list[tuple[float, float] | None]:
    """Return of each column between what its mean lies with 95 % confidence; None with fewer than `FEWEST` queries.

    The percentile bootstrap, in which queries are drawn with replacement, 10,000 times: Efron and Tibshirani, An
    Introduction to the Bootstrap (1993), chapter 13.
    """
    queries, columns = differences.shape
    if queries < FEWEST:
        return [None] * columns
    random, means = np.random.default_rng(_SEED), []
    first = np.arange(_AT_ONCE)[:, None] * queries
    for _ in range(_DRAWS // _AT_ONCE):
        drawn = random.integers(0, queries, (_AT_ONCE, queries)) + first
        how_often = np.bincount(drawn.ravel(), minlength=_AT_ONCE * queries).reshape(_AT_ONCE, queries)
        means.append(how_often @ differences / queries)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
