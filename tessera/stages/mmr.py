"""Maximal marginal relevance: hits that are relevant and unlike each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import AliasChoices, Field

from tessera.ports import Hit, Vector
from tessera.stages.base import Stage, StageContext, StageParams, collected
from tessera.stages.score_normalize import normalized


class MmrParams(StageParams):
    """`lambda` weighs relevance (1) against difference (0); `feature_uri` names the vectors that are compared."""

    lambda_: float = Field(
        0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        validation_alias=AliasChoices("lambda", "lambda_mult"),
        serialization_alias="lambda",
    )
    top_n: int = Field(10, ge=1, le=1000)
    feature_uri: str | None = None


class Mmr(Stage):
    stage_id = "mmr"
    category = "sort"
    description = "Chooses hits that are relevant and unlike each other (maximal marginal relevance)."
    icon = "shuffle"
    names_features = ("feature_uri",)
    Params = MmrParams
    cost_tier = "moderate"
    example: ClassVar = {"lambda": 0.5, "top_n": 10}

    def run(self, hits: list[Hit] | None, params: MmrParams, context: StageContext) -> list[Hit]:
        """Return up to `top_n` hits in the order of their choice; scores stay as they are."""
        found = collected(hits, context)
        if not found:
            return []
        stored = context.vectors([hit.document_id for hit in found], params.feature_uri)
        chosen = choose(found, of_one_kind(stored), params.lambda_, params.top_n)
        return [found[number] for number in chosen]


def choose(hits: Sequence[Hit], vectors: Mapping[str, Vector], weight: float, top_n: int) -> list[int]:
    """Return the positions of up to `top_n` hits, each the best at its turn (Carbonell and Goldstein, SIGIR 1998).

    The best has the greatest ``weight · relevance − (1 − weight) · likeness``: relevance is the score scaled to
    0…1, likeness the greatest cosine to a hit that is chosen already, 0 for a hit without a vector. Ties go to
    the earlier hit.
    """
    size = max((vector.size for vector in vectors.values()), default=1)
    rows = np.zeros((len(hits), size), dtype=np.float32)
    for row, hit in zip(rows, hits, strict=True):
        vector = vectors.get(hit.document_id)
        if vector is not None:
            row[:] = vector
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(lengths > 0, lengths, 1)
    scored = [number for number, hit in enumerate(hits) if hit.score is not None]
    relevance = np.zeros(len(hits))
    relevance[scored] = normalized([hit.score for hit in hits if hit.score is not None], "min_max")
    likeness = np.full(len(hits), -np.inf)
    chosen: list[int] = []
    for _ in range(min(top_n, len(hits))):
        worth = weight * relevance - (1 - weight) * (likeness if chosen else 0)
        worth[chosen] = -np.inf
        best = int(np.argmax(worth))
        chosen.append(best)
        likeness = np.maximum(likeness, rows @ rows[best])
    return chosen


def of_one_kind(stored: Mapping[str, Mapping[str, Vector]]) -> dict[str, Vector]:
    """Return each document's vector of the name that most of them have; vectors of two names cannot be compared."""
    counts = Counter(name for named in stored.values() for name in named)
    if not counts:
        return {}
    name = min(counts, key=lambda name: (-counts[name], name))
    return {
        document_id: np.asarray(named[name], dtype=np.float32)
        for document_id, named in stored.items()
        if name in named
    }
