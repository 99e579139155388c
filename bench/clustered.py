"""Vectors to search: clustered, as embeddings are, with exact neighbours by numpy; and what they are put into.

Clusters have Zipf sizes and a spread that makes neighbours of different clusters mix: `hardness` says by how
much, as the ratio of the mean distance to the nearest one's (1 would be hopeless, uniform noise in 384
dimensions has about 1.2).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

DIMENSIONS = 384
K = 10


@dataclass(frozen=True)
class Clustered:
    """`vectors` float32[n, 384] and `queries` float32[q, 384], of length 1; `truth` int[q, 10], nearest first."""

    vectors: Floats
    queries: Floats
    truth: npt.NDArray[np.int64]
    hardness: float


def clustered(count: int, queries: int, *, seed: int = 7) -> Clustered:
    """Return `count` vectors in Zipf-sized clusters, and `queries` drawn from the same clusters."""
    rng = np.random.default_rng(seed)
    clusters = max(8, count // 250)
    centres = _unit(rng.standard_normal((clusters, DIMENSIONS)).astype(np.float32))
    weights = 1 / np.arange(1, clusters + 1)
    of = rng.choice(clusters, count + queries, p=weights / weights.sum())
    noise = rng.standard_normal((count + queries, DIMENSIONS)).astype(np.float32)
    everything = _unit(centres[of] + noise * (1.0 / np.sqrt(DIMENSIONS)))
    vectors, asked = everything[:count], everything[count:]
    similar = asked @ vectors.T
    truth = np.argsort(-similar, axis=1, kind="stable")[:, :K]
    nearest = 1 - np.take_along_axis(similar, truth[:, :1], axis=1)[:, 0]
    hardness = float(np.mean((1 - similar.mean(axis=1)) / np.maximum(nearest, 1e-6)))
    return Clustered(vectors, asked, truth, hardness)


def _unit(rows: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    result: Floats = (rows / lengths).astype(np.float32)
    return result


def document_id(number: int) -> str:
    """Return the id of vector `number`, in the form that both engines take."""
    return str(uuid.UUID(int=number))


def number_of(document_id: str) -> int:
    """Return the number that `document_id` was made of."""
    return uuid.UUID(document_id).int


def recall(found: list[list[int]], data: Clustered) -> float:
    """Return the share of the true ten nearest that was found."""
    hits = sum(len(set(f) & set(t.tolist())) for f, t in zip(found, data.truth[: len(found)], strict=True))
    return hits / (K * len(found))


def payload(number: int) -> dict[str, object]:
    """Return the fields of document `number`: what a small catalogue would hold."""
    return {
        "title": f"Item {number} of the catalogue",
        "category": f"category-{number % 20}",
        "price": round(number % 997 * 1.1, 2),
    }
