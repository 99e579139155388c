"""Keep the first hits."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tessera.ports import Hit
from tessera.stages.base import Stage, StageContext, StageParams, read_collections


class LimitParams(StageParams):
    """`limit` hits from `offset` on."""

    limit: int = Field(10, ge=1, le=10_000)
    offset: int = Field(0, ge=0, le=10_000)


class Limit(Stage):
    stage_id = "limit"
    category = "reduce"
    description = "Keeps the first hits."
    icon = "scissors"
    Params = LimitParams
    example: ClassVar = {"limit": 10}

    def run(self, hits: list[Hit] | None, params: LimitParams, context: StageContext) -> list[Hit]:
        """Cut `hits`; as the first stage, read that many documents of the collections."""
        if hits is None:
            hits = read_collections(context, None, params.limit + params.offset)
        return hits[params.offset : params.offset + params.limit]
