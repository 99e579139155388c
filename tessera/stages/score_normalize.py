"""Bring scores to a common scale."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from tessera.ports import Hit
from tessera.stages.base import Stage, StageContext, StageParams, collected

Method = Literal["min_max", "z_score", "softmax", "l2"]


class ScoreNormalizeParams(StageParams):
    """How scores are scaled."""

    method: Method = "min_max"


class ScoreNormalize(Stage):
    stage_id = "score_normalize"
    category = "sort"
    description = "Scales scores: to 0…1, to deviations from their mean, to shares of 1, or to length 1."
    icon = "scale"
    Params = ScoreNormalizeParams
    example: ClassVar = {"method": "min_max"}

    def run(self, hits: list[Hit] | None, params: ScoreNormalizeParams, context: StageContext) -> list[Hit]:
        """Return `hits` in their order with new scores; a hit without a score keeps none."""
        return rescored(collected(hits, context), params.method)


def rescored(hits: Sequence[Hit], method: Method) -> list[Hit]:
    """Return `hits` with their scores scaled; those without a score are left out of the reckoning."""
    scores = iter(normalized([hit.score for hit in hits if hit.score is not None], method))
    return [hit if hit.score is None else replace(hit, score=next(scores)) for hit in hits]


def normalized(scores: Sequence[float], method: Method) -> list[float]:
    """Return `scores` on another scale, none of them NaN: equal ones are 1 by ``min_max`` and 0 by ``z_score``."""
    if not scores:
        return []
    if method == "min_max":
        if not math.isfinite(max(scores) - min(scores)):
            # Numbers of documents may lie as far apart as floats can.
            scores = [score / 2 for score in scores]
        low, high = min(scores), max(scores)
        return [(score - low) / (high - low) if high > low else 1.0 for score in scores]
    if method == "z_score":
        mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
        return [(score - mean) / spread if spread > 0 else 0.0 for score in scores]
    if method == "softmax":
        top = max(scores)  # taken off, so that no power overflows
        powers = [math.exp(score - top) for score in scores]
        total = math.fsum(powers)
        return [power / total for power in powers]
    length = math.hypot(*scores)
    return [score / length if length > 0 else 0.0 for score in scores]
