"""Aggregation over documents or other flat records: groups, and figures of each. Pure.

Order everywhere: numbers by size, then texts by code point, then other values by their JSON, null last in both
directions.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from tessera.filters import instant, values_at
from tessera.models.aggregations import (
    AggregationOperation,
    AggregationRequest,
    AggregationResult,
    GroupByField,
    HavingCondition,
    RangeBucket,
)

Record = Mapping[str, Any]


def aggregate(records: Iterable[Record], request: AggregationRequest) -> tuple[list[AggregationResult], int]:
    """Return the groups that `request` asks for, and how many there are without its limit.

    ``first``, ``last`` and ``push`` go by `created_at` of the records, ties in the order in which they come.
    """
    keys = [*_keys(request)]
    names = request.labels()
    sources = sorted({path for each in request.aggregations if (path := each.source()) is not None})
    groups: dict[bytes, _Group] = {}
    if not keys:
        groups[b""] = _Group([], request.aggregations, sources)
    for record in records:
        for row in _unwound(record, request.unwind):
            values = [value_of(row) for value_of in keys]
            identity = orjson.dumps([_plain(value) for value in values], option=orjson.OPT_SORT_KEYS)
            group = groups.get(identity if keys else b"")
            if group is None:
                group = groups[identity] = _Group(values, request.aggregations, sources)
            group.take(row)
    results = [
        AggregationResult(group=dict(zip(names, group.values, strict=True)), metrics=group.metrics())
        for group in groups.values()
    ]
    results.sort(key=lambda result: [place(value) for value in result.group.values()])
    results = [result for result in results if _passes(result, request.having or ())]
    if request.sort_by is not None:
        _sort(results, request.sort_by, descending=request.sort_direction == "desc")
    return results[: request.limit], len(results)


def fields(request: AggregationRequest) -> list[str]:
    """Return the paths that `request` reads of each record."""
    wanted = [each.field for each in request.group_by]
    wanted += [bucket.field for bucket in request.range_buckets or ()]
    wanted += [path for operation in request.aggregations if (path := operation.source()) is not None]
    return [*wanted, *([request.unwind] if request.unwind else []), "created_at"]


def place(value: Any) -> tuple[int, Any]:
    """Return where `value` stands in the order of all values."""
    if value is None:
        return 3, 0
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 2, orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _plain(value: Any) -> Any:
    """Return `value` so that 2 and 2.0 are one."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


# --- groups --------------------------------------------------------------------------------------------


def _keys(request: AggregationRequest) -> Iterator[Callable[[Record], Any]]:
    ranges = {bucket.field: bucket for bucket in request.range_buckets or ()}
    for each in request.group_by:
        if each.field in ranges:
            yield _range_of(ranges.pop(each.field))
        else:
            yield _value_of(each)
    yield from map(_range_of, ranges.values())


def _value_of(wanted: GroupByField) -> Callable[[Record], Any]:
    def value_of(record: Record) -> Any:
        value = _whole(record, wanted.field)
        if wanted.date_trunc is None and wanted.date_part is None:
            return value
        moment = instant(value) if isinstance(value, str) else None
        if moment is None:
            return None
        moment = moment.astimezone(UTC)
        if wanted.date_part is not None:
            return _part(moment, wanted.date_part)
        return _cut(moment, wanted.date_trunc or "").strftime("%Y-%m-%dT%H:%M:%SZ")

    return value_of


def _whole(record: Record, path: str) -> Any:
    """Return the value at `path` as it stands; where an array lies on the way, the values inside, if any."""
    here: Any = record
    for segment in path.split("."):
        if isinstance(here, list):
            return values_at(record, path) or None
        if not isinstance(here, Mapping):
            return None
        here = here.get(segment)
    return here


def _cut(moment: datetime, unit: str) -> datetime:
    units = ("year", "month", "day", "hour", "minute", "second")
    if unit == "week":
        return _cut(moment, "day") - timedelta(days=moment.weekday())
    lowest = {"month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0}
    finer = units[units.index(unit) + 1 :]
    return moment.replace(**{name: lowest[name] for name in finer}, microsecond=0)  # type: ignore[arg-type]


def _part(moment: datetime, unit: str) -> int:
    match unit:
        case "week":
            return moment.isocalendar().week
        case "dayOfWeek":
            return moment.isoweekday() % 7 + 1
        case "dayOfYear":
            return moment.timetuple().tm_yday
    return int(getattr(moment, unit))


def _range_of(bucket: RangeBucket) -> Callable[[Record], str]:
    bounds = bucket.boundaries
    below = bucket.default_bucket or f"<{_shown(bounds[0])}"
    above = bucket.default_bucket or f">{_shown(bounds[-1])}"
    labels = [f"{_shown(low)}-{_shown(high)}" for low, high in itertools.pairwise(bounds)]

    def range_of(record: Record) -> str:
        value = _whole(record, bucket.field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return bucket.default_bucket or "other"
        if value < bounds[0]:
            return below
        if value > bounds[-1] or not labels:
            return above
        return labels[max(bisect_left(bounds, value) - 1, 0)]

    return range_of


def _shown(number: float) -> str:
    return str(_plain(number))


def _unwound(record: Record, path: str | None) -> Iterator[Record]:
    """Yield a record for each element of the array at `path`; one without an array, or an empty one, stays one."""
    if path is None:
        yield record
        return
    value = _whole(record, path)
    if not isinstance(value, list) or not value:
        yield record
        return
    for element in value:
        yield _replaced(record, path.split("."), element)


def _replaced(record: Record, path: Sequence[str], value: Any) -> Record:
    name, *rest = path
    below = record.get(name)
    if not rest:
        return {**record, name: value}
    return {**record, name: _replaced(below if isinstance(below, Mapping) else {}, rest, value)}


# --- figures -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """A group while its records come: their number, and of each path with figures the values with their times."""

    values: list[Any]
    operations: Sequence[AggregationOperation]
    sources: Sequence[str]
    count: int = 0
    found: dict[str, list[Any]] = field(default_factory=dict)
    moments: dict[str, list[str]] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        self.count += 1
        created_at = str(record.get("created_at") or "")
        for path in self.sources:
            for value in values_at(record, path):
                self.found.setdefault(path, []).append(value)
                self.moments.setdefault(path, []).append(created_at)

    def metrics(self) -> dict[str, Any]:
        return {operation.alias: self._figure(operation) for operation in self.operations}

    def _figure(self, operation: AggregationOperation) -> Any:
        path = operation.source()
        if path is None:
            return self.count
        values = self.found.get(path, [])
        match operation.function:
            case "count_distinct":
                return len(_distinct(values))
            case "sum" | "avg":
                return _reckoned(operation.function, values)
            case "min":
                return min(values, key=place, default=None)
            case "max":
                return max(values, key=place, default=None)
            case "add_to_set":
                return sorted(_distinct(values), key=place)
        moments = self.moments.get(path, [])
        in_time = [values[number] for number in sorted(range(len(values)), key=moments.__getitem__)]
        if operation.function == "push":
            return in_time
        return (in_time[0] if operation.function == "first" else in_time[-1]) if in_time else None


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({orjson.dumps(_plain(v), option=orjson.OPT_SORT_KEYS): v for v in values}.values())


def _reckoned(function: str, values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if function == "avg" and not numbers:
        return None
    try:
        # Whole numbers stay whole, however large.
        total = sum(numbers) if all(isinstance(number, int) for number in numbers) else math.fsum(numbers)
        figure = total / len(numbers) if function == "avg" else total
    except OverflowError:
        return None
    if isinstance(figure, int) and not -(2**63) <= figure < 2**63:
        figure = float(figure)
    return figure if math.isfinite(figure) else None


# --- after grouping ------------------------------------------------------------------------------------


def _passes(result: AggregationResult, conditions: Iterable[HavingCondition]) -> bool:
    shown = {**result.group, **result.metrics}
    return all(_holds(shown[condition.field], condition) for condition in conditions)


def _holds(value: Any, condition: HavingCondition) -> bool:
    """Compare numbers with numbers and texts with texts; whatever is of another kind is merely not equal."""
    (kind, mine), (other, theirs) = place(value), place(condition.value)
    if kind != other:
        return condition.operator == "ne"
    match condition.operator:
        case "gt":
            return bool(mine > theirs)
        case "gte":
            return bool(mine >= theirs)
        case "lt":
            return bool(mine < theirs)
        case "lte":
            return bool(mine <= theirs)
        case "eq":
            return bool(mine == theirs)
    return bool(mine != theirs)


def _sort(results: list[AggregationResult], name: str, *, descending: bool) -> None:
    """Sort by a value of the answer, null last; what is equal stays in the order of the groups."""

    def shown(result: AggregationResult) -> Any:
        return result.group[name] if name in result.group else result.metrics[name]

    missing = [result for result in results if shown(result) is None]
    valued = [result for result in results if shown(result) is not None]
    valued.sort(key=lambda result: place(shown(result)), reverse=descending)
    results[:] = valued + missing
