"""Keep documents whose fields meet conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pydantic
from pydantic import Field, model_validator

from tessera.errors import Problem
from tessera.filters import And, Filter, parse, predicate
from tessera.ports import Hit
from tessera.stages.base import Stage, StageContext, StageParams, filter_problems, read_collections


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
    example: ClassVar = {"field": "metadata.year", "operator": "gte", "value": 2020}

    def narrow(self, params: AttributeFilterParams, context: StageContext) -> Filter:
        """Return the conditions."""
        return _wanted(params, context) or And(())

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the conditions."""
        try:
            params = AttributeFilterParams.model_validate(parameters)
        except pydantic.ValidationError:
            return []  # told already, or the whole is an input
        place = location if params.field is not None else (*location, "conditions")
        return filter_problems(params.grammar(), place)

    def run(self, hits: list[Hit] | None, params: AttributeFilterParams, context: StageContext) -> list[Hit]:
        """Filter in the index when this is the first stage, else among `hits`; the answer is the same."""
        wanted = _wanted(params, context)
        if hits is None:
            return read_collections(context, wanted)
        if wanted is None:
            return hits
        passes = predicate(wanted, context.indexes)
        return [hit for hit in hits if passes(hit.payload)]


def _wanted(params: AttributeFilterParams, context: StageContext) -> Filter | None:
    return parse(params.grammar(), inputs=context.inputs, location=("parameters",))
