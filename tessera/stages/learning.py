"""Fusion with weights that were learned from what people chose: what a stage says of it, and is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from tessera.errors import quote
from tessera.models.interactions import InteractionType
from tessera.ports import FusionMethod
from tessera.stages.base import StageContext, StageParams

#: How several rankings become one: as an engine does it, or ``weighted`` with weights that were learned.
FusionWord = Literal[FusionMethod, "learned"]


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
    fusion: FusionWord,
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
