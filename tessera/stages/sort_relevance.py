"""Sort by relevance: the score of the search, or a number that documents carry."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from tessera.ports import Hit
from tessera.stages.base import FieldPath, Stage, StageContext, StageParams, collected, number_at
from tessera.stages.score_normalize import rescored


class SortRelevanceParams(StageParams):
    """What to sort by, the direction, and whether scores are scaled to 0…1."""

    score_field: FieldPath = "score"
    order: Literal["asc", "desc"] = "desc"
    normalize: bool = False


class SortRelevance(Stage):
    stage_id = "sort_relevance"
    category = "sort"
    description = "Sorts by the score of the search, or by a number that documents carry; ties by id."
    icon = "arrow-down-narrow-wide"
    Params = SortRelevanceParams
    example: ClassVar = {"order": "desc"}

    def run(self, hits: list[Hit] | None, params: SortRelevanceParams, context: StageContext) -> list[Hit]:
        """Return `hits` sorted, those without a score last; a number of `score_field` becomes the score."""
        found = collected(hits, context)
        if params.score_field != "score":
            found = [replace(hit, score=number_at(hit.payload, params.score_field)) for hit in found]
        if params.normalize:
            found = rescored(found, "min_max")
        sign = -1 if params.order == "desc" else 1
        return sorted(
            found,
            key=lambda hit: (
                hit.score is None,
                0.0 if hit.score is None else sign * hit.score,
                hit.document_id,
            ),
        )
