"""Keep documents whose fields meet conditions."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from tessera.filters import Filter, matches, parse
from tessera.ports import Hit
from tessera.stages.base import Stage, StageContext, StageParams, read_collections


class AttributeFilterParams(StageParams):
    """One condition (``field``, ``operator``, ``value``), or ``conditions`` in the filter grammar."""

    field: str | None = None
    operator: str = "eq"
    value: Any = None
    case_sensitive: bool = False
    conditions: dict[str, Any] | list[dict[str, Any]] | None = None
    batch_size: int = Field(100, ge=1, le=10_000)

    @model_validator(mode="after")
    def _something_to_check(self) -> AttributeFilterParams:
        if self.field is None and self.conditions is None:
            raise ValueError(
                'give either field, operator and value, or conditions such as {"AND": [{"field": "metadata.year", '
                '"operator": "gte", "value": 2020}]}'
            )
        return self

    def grammar(self) -> dict[str, Any]:
        """Return the conditions as one node of the filter grammar."""
        if self.field is not None:
            return {
                "field": self.field,
                "operator": self.operator,
                "value": self.value,
                "case_sensitive": self.case_sensitive,
            }
        return {"AND": self.conditions} if isinstance(self.conditions, list) else dict(self.conditions or {})


class AttributeFilter(Stage):
    stage_id = "attribute_filter"
    category = "filter"
    description = "Keeps documents whose fields meet conditions; as the first stage it reads the collections."
    icon = "filter"
    Params = AttributeFilterParams

    def run(self, hits: list[Hit] | None, params: AttributeFilterParams, context: StageContext) -> list[Hit]:
        """Filter in the index when this is the first stage, else among `hits`; the answer is the same."""
        wanted: Filter | None = parse(params.grammar(), inputs=context.inputs, location=("parameters",))
        if hits is None:
            return read_collections(context, wanted)
        if wanted is None:
            return hits
        return [hit for hit in hits if matches(wanted, hit.payload, context.indexes)]
