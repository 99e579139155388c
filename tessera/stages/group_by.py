"""Bring hits with the same value of a field together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import orjson
from pydantic import Field

from tessera.ports import Hit
from tessera.stages.base import FieldPath, Stage, StageContext, StageParams, collected, first_value


class GroupByParams(StageParams):
    """The field, how many groups stay, and how many hits of each (all of them when not given)."""

    field: FieldPath = Field(examples=["metadata.brand"])
    max_groups: int = Field(100, ge=1, le=10_000)
    docs_per_group: int | None = Field(None, ge=1, le=10_000)


class GroupBy(Stage):
    stage_id = "group_by"
    category = "reduce"
    description = "Brings hits with the same value of a field together and keeps the first of each group."
    icon = "group"
    Params = GroupByParams
    example: ClassVar = {"field": "metadata.brand"}

    def run(self, hits: list[Hit] | None, params: GroupByParams, context: StageContext) -> list[Hit]:
        """Return the hits group after group, in the order in which the groups and their hits came.

        Each says under ``_group`` which `key` it has (null without a value), its group's `index` from 0, and
        the group's `size` before it was cut.
        """
        groups: dict[bytes, list[Hit]] = {}
        for hit in collected(hits, context):
            groups.setdefault(group_key([first_value(hit.payload, params.field)]), []).append(hit)
        return [
            replace(
                hit,
                payload={
                    **hit.payload,
                    "_group": {
                        "key": first_value(hit.payload, params.field),
                        "index": index,
                        "size": len(members),
                    },
                },
            )
            for index, members in enumerate(list(groups.values())[: params.max_groups])
            for hit in members[: params.docs_per_group]
        ]


def group_key(values: list[Any]) -> bytes:
    """Return what is equal for equal JSON values and for no others: 1 and "1" and true are three."""
    return orjson.dumps(values, option=orjson.OPT_SORT_KEYS)
