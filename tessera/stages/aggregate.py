"""Reckon figures over the hits, for all of them or group by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AliasChoices, Field, StringConstraints, model_validator

from tessera.filters import values_at
from tessera.ports import Hit
from tessera.stages.base import (
    FieldPath,
    FieldPaths,
    Stage,
    StageContext,
    StageParams,
    collected,
    common_collection,
    first_value,
)
from tessera.stages.group_by import group_key


class Aggregation(StageParams):
    """One figure: `function` over the numbers at `field`. ``count`` without a field counts documents."""

    function: Literal["count", "sum", "avg", "min", "max", "percentiles"] = Field(
        validation_alias=AliasChoices("function", "operation", "type")
    )
    field: FieldPath | None = None
    name: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, validation_alias=AliasChoices("name", "alias")
    )
    percentiles: list[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]] = Field(
        [50, 90, 95, 99],
        min_length=1,
        max_length=100,
        validation_alias=AliasChoices("percentiles", "percents"),
    )

    @model_validator(mode="after")
    def _numbers_come_from_somewhere(self) -> Aggregation:
        if self.field is None and self.function != "count":
            raise ValueError(f'function "{self.function}" needs field, the path of the numbers')
        return self

    def label(self) -> str:
        """Return under which name the figure is answered: ``avg_metadata.price``."""
        return self.name or (f"{self.function}_{self.field}" if self.field else self.function)


class AggregateParams(StageParams):
    """The figures, and the fields whose values make the groups (none: all hits are one group)."""

    aggregations: list[Aggregation] = Field(min_length=1, max_length=64)
    group_by: FieldPaths = Field([], max_length=8)

    @model_validator(mode="after")
    def _names_differ(self) -> AggregateParams:
        labels = [each.label() for each in self.aggregations]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two aggregations are named {', '.join(twice)}; give one of them another name")
        return self


class Aggregate(Stage):
    stage_id = "aggregate"
    category = "reduce"
    description = (
        "Reckons count, sum, avg, min, max and percentiles over the hits, or for each group of them."
    )
    icon = "sigma"
    Params = AggregateParams
    example: ClassVar = {
        "aggregations": [{"function": "avg", "field": "metadata.price"}],
        "group_by": ["metadata.brand"],
    }

    def run(self, hits: list[Hit] | None, params: AggregateParams, context: StageContext) -> list[Hit]:
        """Return one result for each group, in the order in which the groups came; one in all without `group_by`.

        A result holds `group` (path → value, null without one), `count` and `aggregations` (name → figure). Its
        `document_id` is ``group_<number>``: it is no stored document. `collection_id` is that of its members,
        empty when they come from several.
        """
        groups: dict[bytes, list[Hit]] = {} if params.group_by else {b"": []}
        for hit in collected(hits, context):
            values = [first_value(hit.payload, path) for path in params.group_by]
            groups.setdefault(group_key(values) if values else b"", []).append(hit)
        return [_result(number, members, params) for number, members in enumerate(groups.values())]


def _result(number: int, members: Sequence[Hit], params: AggregateParams) -> Hit:
    payload = {
        "document_id": f"group_{number}",
        "collection_id": common_collection(members),
        "group": {path: first_value(members[0].payload, path) for path in params.group_by},
        "count": len(members),
        "aggregations": {
            each.label(): figure(each, [hit.payload for hit in members]) for each in params.aggregations
        },
    }
    return Hit(str(payload["document_id"]), payload)


def figure(wanted: Aggregation, payloads: Sequence[Mapping[str, Any]]) -> Any:
    """Return one figure: a number, percentile → number, or None where there is no number to reckon with.

    Arrays count element by element; what is no number is left out (``count`` counts every value).
    """
    if wanted.field is None:
        return len(payloads)
    values = [value for payload in payloads for value in values_at(payload, wanted.field)]
    if wanted.function == "count":
        return len(values)
    numbers = [value for value in values if type(value) in (int, float)]
    if wanted.function == "sum":
        # Whole numbers stay whole, however large.
        return _finite(sum(numbers) if all(type(n) is int for n in numbers) else _float_sum(numbers))
    if not numbers:
        return None
    if wanted.function == "min":
        return min(numbers)
    if wanted.function == "max":
        return max(numbers)
    if wanted.function == "avg":
        return _finite(_float_sum(numbers) / len(numbers))
    found = np.percentile(np.asarray(numbers, dtype=np.float64), wanted.percentiles)
    return {
        f"{percent:g}": _finite(float(value))
        for percent, value in zip(wanted.percentiles, found, strict=True)
    }


def _float_sum(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers)
    except OverflowError:
        return math.inf


def _finite(number: float) -> float | None:
    """Return None for what JSON cannot say; a whole number beyond 64 bits becomes a float."""
    if isinstance(number, int) and not -(2**63) <= number < 2**64:
        number = float(number)
    return number if math.isfinite(number) else None
