"""Several rankings become one: by ranks, by scores, or by scores with weights learned from what people chose."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from tessera.errors import quote
from tessera.models.interactions import InteractionType
from tessera.ports import Hit
from tessera.stages.base import StageContext, StageParams

#: Rank constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
RRF_K = 60
#: What each search gave a hit of a fusion with learned weights, among its `signals`.
SCALED = "scaled"

Fusion = Literal["rrf", "dbsf", "weighted", "max", "learned"]


class LearningConfig(StageParams):
    """From which interactions weights are learned, and from how many.

    `reward_signal` names the types that speak for a document, with commas between them. Below `min_interactions`
    executions with one the weights of the searches are used.
    """

    algorithm: Literal["conditional_logit"] = "conditional_logit"
    reward_signal: str = Field("click", max_length=500)
    min_interactions: int = Field(50, ge=1, le=100_000)
    context_features: list[str] = Field([], max_length=100)
    demographic_features: list[str] = Field([], max_length=100)

    @field_validator("*", mode="before")
    @classmethod
    def _default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("reward_signal")
    @classmethod
    def _known(cls, value: str) -> str:
        unknown = [name for name in _names(value) if name not in set(InteractionType)]
        if unknown or not _names(value):
            raise ValueError(
                f"{quote(unknown[0] if unknown else value)} is no type of interaction; there are "
                f"{', '.join(InteractionType)}"
            )
        return value

    @field_validator("context_features", "demographic_features")
    @classmethod
    def _one_for_all(cls, value: list[str]) -> list[str]:
        if value:
            raise ValueError("weights are learned for all users of a retriever together; leave it out")
        return value

    @property
    def rewards(self) -> frozenset[str]:
        """The types that speak for a document."""
        return frozenset(_names(self.reward_signal))


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def weights_for(
    fusion: Fusion,
    learning: LearningConfig | None,
    names: Sequence[str],
    stated: Sequence[float],
    context: StageContext,
) -> list[float]:
    """Return the weights to fuse with: those stated, or with ``learned`` those learned, noted in the statistics."""
    if fusion != "learned" or len(names) < 2:
        return list(stated)
    config = learning or LearningConfig()
    learned = context.learned(names, stated, config.rewards, config.min_interactions)
    # Interactions are no write to the namespace: what was kept would not show them.
    context.work.is_repeatable = False
    context.work.metadata["fusion"] = {
        "method": "learned",
        "weights": dict(zip(names, learned.weights, strict=True)),
        "executions": learned.executions,
        "fallback": learned.fallback,
    }
    return list(learned.weights)


def weights_told(noted: Mapping[str, Any]) -> str:
    """Return in words what `weights_for` noted in the statistics."""
    shown = ", ".join(f"{name} {weight:g}" for name, weight in noted["weights"].items())
    if noted["fallback"] is not None:
        return f"The weights are those stated ({shown}): {noted['fallback']}."
    return f"The weights were learned from what people chose in {noted['executions']} executions: {shown}."


def fuse(
    rankings: Sequence[Sequence[Hit]],
    weights: Sequence[float],
    method: str,
    rrf_k: int = RRF_K,
    *,
    most: int | None = None,
) -> list[Hit]:
    """Merge rankings into one, best first; ties go to the smaller document id. With `most` the first so many.

    ``rrf`` adds ``weight / (60 + rank)``; ``weighted`` adds scores scaled to 0…1 within each ranking;
    ``max`` takes the best of those; ``dbsf`` adds scores scaled by mean ± 3 standard deviations
    (distribution-based score fusion).
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for value, hit in zip(scaled(ranking, method, rrf_k), ranking, strict=True):
            hits.setdefault(hit.document_id, hit)
            before = scores.get(hit.document_id)
            if method == "max":
                scores[hit.document_id] = weight * value if before is None else max(before, weight * value)
            else:
                scores[hit.document_id] = (before or 0.0) + weight * value
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [replace(hits[document_id], score=score) for document_id, score in ordered[:most]]


def scaled(ranking: Sequence[Hit], method: str, rrf_k: int = RRF_K) -> list[float]:
    """Return what a ranking adds to each of its hits by `method`, before weights."""
    if method == "rrf":
        return [1.0 / (rrf_k + rank) for rank in range(1, len(ranking) + 1)]
    raw = [hit.score or 0.0 for hit in ranking]
    if not raw:
        return []
    if method == "dbsf":
        mean, spread = statistics.fmean(raw), statistics.pstdev(raw)
        low, high = mean - 3 * spread, mean + 3 * spread
    else:
        low, high = min(raw), max(raw)
    if high <= low:
        return [1.0 for _ in raw]
    return [(value - low) / (high - low) for value in raw]
