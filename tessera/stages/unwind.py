"""Turn a hit with an array into one hit for each element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import AliasChoices, Field

from tessera.errors import BadRequestError
from tessera.ports import Hit
from tessera.stages.base import MAX_CANDIDATES, FieldPath, Stage, StageContext, StageParams, collected


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

    def run(self, hits: list[Hit] | None, params: UnwindParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, the elements in theirs; ids and scores are those of the document.

        Each says under ``_unwind`` which element it holds, by `index` from 0. A value that is no array counts as
        one element. Raises `BadRequestError` when there would be more than `MAX_CANDIDATES` hits.
        """
        path = params.field.split(".")
        out: list[Hit] = []
        for hit in collected(hits, context):
            value = _at(hit.payload, path)
            elements = value if isinstance(value, list) else [] if value is None else [value]
            for index, element in enumerate(elements):
                payload = _with(hit.payload, path, element)
                out.append(replace(hit, payload={**payload, "_unwind": {"index": index}}))
            if not elements and params.preserve_empty:
                out.append(hit)
            if len(out) > MAX_CANDIDATES:
                raise BadRequestError(
                    f"Unwinding {params.field} gives more than {MAX_CANDIDATES:,} hits. Put a limit or a filter "
                    "before it."
                )
        return out


def _at(here: Any, path: Sequence[str]) -> Any:
    for segment in path:
        here = here.get(segment) if isinstance(here, Mapping) else None
    return here


def _with(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a copy of `tree` with `value` at `path`; what lies beside the path is shared."""
    below = value if len(path) == 1 else _with(tree[path[0]], path[1:], value)
    return {**tree, path[0]: below}
