"""Sort by a field of the documents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import orjson
from pydantic import AliasChoices, Field

from tessera.ports import Hit
from tessera.stages.base import FieldPath, Stage, StageContext, StageParams, collected, first_value


class SortAttributeParams(StageParams):
    """The field, the direction, and where documents go that lack the field."""

    sort_field: FieldPath = Field(
        validation_alias=AliasChoices("sort_field", "field"), examples=["metadata.year"]
    )
    order: Literal["asc", "desc"] = "desc"
    null_handling: Literal["first", "last"] = "last"


class SortAttribute(Stage):
    stage_id = "sort_attribute"
    category = "sort"
    description = "Sorts by a field: numbers before texts before everything else, ties by id."
    icon = "arrow-down-wide-narrow"
    Params = SortAttributeParams
    example: ClassVar = {"sort_field": "metadata.year", "order": "desc"}

    def run(self, hits: list[Hit] | None, params: SortAttributeParams, context: StageContext) -> list[Hit]:
        """Return all of `hits` in their new order; scores stay as they are."""
        # By id first: sorting is stable, also in reverse, so that equal values stay in the order of their ids.
        by_id = sorted(collected(hits, context), key=lambda hit: hit.document_id)
        keyed = [(_key(first_value(hit.payload, params.sort_field)), hit) for hit in by_id]
        without = [hit for key, hit in keyed if key is None]
        ordered = sorted(
            ((key, hit) for key, hit in keyed if key is not None),
            key=lambda item: item[0],
            reverse=params.order == "desc",
        )
        having = [hit for _, hit in ordered]
        return without + having if params.null_handling == "first" else having + without


def _key(value: Any) -> tuple[int, Any] | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 2, orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
