"""Turn a hit with an array into one hit for each element."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import AliasChoices, Field

from tessera.errors import BadRequestError
from tessera.ports import Hit
from tessera.stages.base import (
    MAX_CANDIDATES,
    FieldPath,
    Stage,
    StageContext,
    StageParams,
    collected,
    tree_at,
    with_tree_at,
)


class UnwindParams(StageParams):
    """The array, and whether hits stay whose array is empty or not there."""

    field: FieldPath = Field(validation_alias=AliasChoices("field", "path"), examples=["metadata.tags"])
    preserve_empty: bool = Field(
        False, validation_alias=AliasChoices("preserve_empty", "preserve_null_and_empty")
    )


class Unwind(Stage):
    stage_id = "unwind"
    category = "apply"
    description = "Turns a hit with an array into one hit for each element."
    icon = "list-tree"
    Params = UnwindParams
    example: ClassVar = {"field": "metadata.tags"}

    def run(self, hits: list[Hit] | None, params: UnwindParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, the elements in theirs; ids and scores are those of the document.

        Each says under ``_unwind`` which element it holds, by `index` from 0. A value that is no array counts as
        one element. Raises `BadRequestError` when there would be more than `MAX_CANDIDATES` hits.
        """
        out: list[Hit] = []
        for hit in collected(hits, context):
            value = tree_at(hit.payload, params.field)
            elements = value if isinstance(value, list) else [] if value is None else [value]
            for index, element in enumerate(elements):
                payload = with_tree_at(hit.payload, params.field, element)
                out.append(replace(hit, payload={**payload, "_unwind": {"index": index}}))
            if not elements and params.preserve_empty:
                out.append(hit)
            if len(out) > MAX_CANDIDATES:
                raise BadRequestError(
                    f"Unwinding {params.field} gives more than {MAX_CANDIDATES:,} hits. Put a limit or a filter "
                    "before it."
                )
        return out
