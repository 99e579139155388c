"""Aggregation: groups by fields, and figures of each."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from tessera.filters import SECRET_FIELDS, is_path
from tessera.models.base import JsonObject, Model


def _path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not is_path(value) or value.partition(".")[0] in SECRET_FIELDS:
        raise ValueError(
            "a path of a field is needed: names with dots between them, without empty parts and without []"
        )
    return value


FieldPath = Annotated[str, BeforeValidator(_path), Field(examples=["metadata.category"])]
Name = Annotated[str, Field(min_length=1, max_length=255)]


class GroupByField(Model):
    """A field to group by. `date_trunc` cuts a moment off to its start, `date_part` takes one number of it (UTC).

    An array is one value as a whole; `unwind` opens it. Weeks are those of ISO 8601 and begin on Monday;
    ``dayOfWeek`` counts from 1 for Sunday.
    """

    field: FieldPath
    alias: Name | None = None
    date_trunc: Literal["year", "month", "week", "day", "hour", "minute", "second"] | None = None
    date_part: (
        Literal["year", "month", "week", "day", "dayOfWeek", "dayOfYear", "hour", "minute", "second"] | None
    ) = None

    @model_validator(mode="after")
    def _one_of_both(self) -> GroupByField:
        if self.date_trunc is not None and self.date_part is not None:
            raise ValueError("date_trunc and date_part exclude each other; leave one out")
        return self

    def label(self) -> str:
        """Return the name under which the value is answered."""
        return self.alias or self.field


class AggregationOperation(Model):
    """A figure of each group under the name `alias`. ``count`` counts documents, and needs no field.

    ``sum`` and ``avg`` reckon with numbers and leave everything else out; ``min`` and ``max`` put numbers before
    texts; ``first``, ``last`` and ``push`` go by `created_at`. An array counts value by value.
    """

    function: Literal[
        "count", "count_distinct", "sum", "avg", "min", "max", "first", "last", "push", "add_to_set"
    ]
    field: FieldPath | None = None
    alias: Name
    distinct_field: FieldPath | None = None

    @model_validator(mode="after")
    def _values_come_from_somewhere(self) -> AggregationOperation:
        if self.function != "count" and self.source() is None:
            raise ValueError(f"function {self.function} needs field, the path of the values")
        return self

    def source(self) -> str | None:
        """Return the path of the values, None where documents are counted."""
        if self.function == "count":
            return None
        return (self.distinct_field or self.field) if self.function == "count_distinct" else self.field


class HavingCondition(Model):
    """A condition on a figure, or on a value that was grouped by, under its name in the answer."""

    field: Name
    operator: Literal["gt", "gte", "lt", "lte", "eq", "ne"]
    value: int | float | str


class RangeBucket(Model):
    """Ranges in whose place numbers of a field are grouped: boundaries 0, 10, 20 make <0, 0-10, 10-20 and >20.

    A number on a boundary belongs to the range below, the lowest boundary to the first range. `default_bucket`, if
    given, takes what lies outside; what is no number is ``other`` without it.
    """

    field: FieldPath
    boundaries: list[int | float] = Field(min_length=1, max_length=1000)
    default_bucket: Name | None = None

    @model_validator(mode="after")
    def _boundaries_ascend(self) -> RangeBucket:
        if any(one >= other for one, other in itertools.pairwise(self.boundaries)):
            raise ValueError("boundaries must ascend, each larger than the one before")
        return self


class AggregationRequest(Model):
    """`filters` choose documents, `unwind` makes one of each element of an array, then they are grouped.

    Without `group_by` all are one group. `having` chooses among the groups; `sort_by` names a figure or a value that
    was grouped by, largest first unless `sort_direction` says otherwise; `limit` keeps the first.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "group_by": [{"field": "metadata.category", "alias": "category"}],
                    "aggregations": [
                        {"function": "count", "alias": "total"},
                        {"function": "avg", "field": "metadata.price", "alias": "price"},
                    ],
                    "sort_by": "total",
                    "limit": 10,
                }
            ]
        }
    )

    group_by: list[GroupByField] = Field(default_factory=list, max_length=16)
    aggregations: list[AggregationOperation] = Field(min_length=1, max_length=64)
    filters: JsonObject | None = None
    having: list[HavingCondition] | None = Field(None, max_length=64)
    unwind: FieldPath | None = None
    range_buckets: list[RangeBucket] | None = Field(None, max_length=16)
    sort_by: Name | None = None
    sort_direction: Literal["asc", "desc"] = "desc"
    limit: int | None = Field(None, ge=1, le=100_000)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values

    @model_validator(mode="after")
    def _names_are_known(self) -> AggregationRequest:
        names = [*self.labels(), *(operation.alias for operation in self.aggregations)]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is the name of two values in the answer; give one another alias"
            )
        asked = [
            *(condition.field for condition in self.having or ()),
            *([self.sort_by] if self.sort_by else []),
        ]
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)} is not in the answer; having and sort_by name one of: {', '.join(names)}"
            )
        return self

    def labels(self) -> list[str]:
        """Return the names of the values that make a group: of `group_by`, then of ranges over other fields."""
        grouped = {each.field for each in self.group_by}
        ranges = [bucket.field for bucket in self.range_buckets or () if bucket.field not in grouped]
        return [*(each.label() for each in self.group_by), *ranges]


class AggregationResult(Model):
    group: JsonObject
    metrics: JsonObject


class AggregationResponse(Model):
    """`total_groups` counts all groups that `having` leaves, also those behind `limit`."""

    results: list[AggregationResult]
    total_groups: int
    query_info: JsonObject | None = None
