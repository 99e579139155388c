"""The filter grammar: parsed once into a small tree, and a reference evaluator that says what it means.

Whatever an engine answers for a filter must be what `matches` answers. A missing field, null and an
empty array are the same thing: no value. An array, anywhere on a path, matches when any element does.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, TypeGuard

import re2

from tessera.errors import Problem, ValidationError, quote
from tessera.models import IndexType, PayloadIndex

Location = tuple[str | int, ...]

MAX_DEPTH = 16
MAX_CONDITIONS = 512
MAX_PATH_CHARS = 255
MAX_PATTERN_CHARS = 1000

OPERATORS = (
    "eq", "ne", "gt", "lt", "gte", "lte", "in", "nin", "contains", "starts_with", "ends_with", "regex", "exists",
    "is_null", "text", "phrase", "words", "geo_radius", "geo_bounding_box", "geo_polygon",
)  # fmt: skip

#: Mean radius of the Earth in metres (IUGG), as Qdrant's geo library takes it.
EARTH_RADIUS_M = 6_371_008.8


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of the values at `path` (dots between segments)."""

    path: str
    operator: str
    value: Any = None
    case_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class And:
    """All of them hold; an empty one holds."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one holds; an empty one does not."""

    children: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """None of them holds."""

    children: tuple[Filter, ...]


Filter = Condition | And | Or | Not


# --- reading -------------------------------------------------------------------------------------------


def parse(
    raw: object,
    *,
    inputs: Mapping[str, Any] | None = None,
    location: Location = ("body", "filters"),
) -> Filter | None:
    """Parse one node of the filter grammar; None, ``{}`` and ``[]`` filter nothing.

    `inputs` gives ``{"type": "dynamic", "field": "inputs.x"}`` its values. Raises `ValidationError` with
    everything that is wrong, each problem with its place and what is allowed there.
    """
    if raw is None or raw in ({}, []):
        return None
    reader = _Reader(inputs)
    found = reader.node(raw, location, 1, case_sensitive=False)
    if reader.problems:
        raise ValidationError(reader.problems)
    return found


class _Reader:
    """Reads a filter and collects what is wrong with it."""

    def __init__(self, inputs: Mapping[str, Any] | None) -> None:
        self.inputs = inputs
        self.problems: list[Problem] = []
        self.conditions = 0

    def wrong(self, location: Location, message: str, kind: str = "filter") -> None:
        self.problems.append(Problem(location, message, kind))

    def node(self, raw: object, location: Location, depth: int, *, case_sensitive: bool) -> Filter | None:
        if depth > MAX_DEPTH:
            self.wrong(location, f"Filters nest deeper than {MAX_DEPTH} levels.", "filter_too_deep")
            return None
        if isinstance(raw, list):
            return self._all(raw, location, depth, case_sensitive=case_sensitive)
        if not isinstance(raw, Mapping):
            self.wrong(
                location,
                f"A filter is an object, not {quote(raw)}: "
                '{"field": "metadata.year", "operator": "gte", "value": 2020}, {"metadata.year": 2020}, '
                'or {"AND": […]}, {"OR": […]}, {"NOT": […]}.',
            )
            return None
        sensitive = self._flag(raw, location, case_sensitive)
        parts: list[Filter] = []
        if "field" in raw:
            self._condition(raw, location, parts, case_sensitive=sensitive)
            rest = {k: v for k, v in raw.items() if k in ("AND", "OR", "NOT")}
        else:
            rest = {k: v for k, v in raw.items() if k != "case_sensitive"}
        for key, value in rest.items():
            place = (*location, str(key))
            if key in ("AND", "OR", "NOT"):
                self._logical(key, value, place, depth, parts, case_sensitive=sensitive)
            else:
                self._checked(str(key), "eq", value, place, parts, case_sensitive=sensitive)
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _all(self, raw: Sequence[object], location: Location, depth: int, *, case_sensitive: bool) -> Filter:
        return And(self._children(raw, location, depth, case_sensitive=case_sensitive))

    def _children(
        self, raw: Sequence[object], location: Location, depth: int, *, case_sensitive: bool
    ) -> tuple[Filter, ...]:
        found = (
            self.node(item, (*location, index), depth + 1, case_sensitive=case_sensitive)
            for index, item in enumerate(raw)
        )
        return tuple(item for item in found if item is not None)

    def _flag(self, raw: Mapping[Any, Any], location: Location, inherited: bool) -> bool:
        value = raw.get("case_sensitive")
        if value is None:
            return inherited
        if not isinstance(value, bool):
            self.wrong(
                (*location, "case_sensitive"), f"case_sensitive is {quote(value)}; true or false is needed."
            )
            return inherited
        return value or inherited

    def _logical(
        self, key: str, value: Any, place: Location, depth: int, parts: list[Filter], *, case_sensitive: bool
    ) -> None:
        if key == "NOT" and isinstance(value, Mapping):
            value = [value]
        if value is None:
            return
        if not isinstance(value, list):
            self.wrong(place, f"{key} takes a list of filters, not {quote(value)}.")
            return
        children = self._children(value, place, depth, case_sensitive=case_sensitive)
        if not value:
            return  # as if the key had not been sent
        parts.append(And(children) if key == "AND" else Or(children) if key == "OR" else Not(children))

    def _condition(
        self, raw: Mapping[Any, Any], location: Location, parts: list[Filter], *, case_sensitive: bool
    ) -> None:
        path, operator = raw["field"], raw.get("operator", "eq")
        if operator is None:
            operator = "eq"
        if operator not in OPERATORS:
            self.wrong(
                (*location, "operator"),
                f"Operator {quote(operator)} is not known. Known operators: {', '.join(OPERATORS)}.",
                "unknown_operator",
            )
            return
        if "value" not in raw and operator not in ("exists", "is_null"):
            self.wrong(
                (*location, "value"), f"Operator {operator} on {quote(path)} needs a value.", "missing"
            )
            return
        value = raw.get("value", True)
        self._checked(path, operator, value, location, parts, case_sensitive=case_sensitive)

    def _checked(
        self,
        path: Any,
        operator: str,
        value: Any,
        location: Location,
        parts: list[Filter],
        *,
        case_sensitive: bool,
    ) -> None:
        self.conditions += 1
        if self.conditions == MAX_CONDITIONS + 1:
            self.wrong(location, f"A filter has at most {MAX_CONDITIONS} conditions.", "filter_too_long")
        if self.conditions > MAX_CONDITIONS:
            return
        if (
            not isinstance(path, str)
            or len(path) > MAX_PATH_CHARS
            or not all(path.split("."))
            or "[]" in path
        ):
            self.wrong(
                (*location, "field"),
                f"{quote(path)} is not a field: a path is names with dots between them, at most {MAX_PATH_CHARS} "
                "characters, without empty parts and without [] (arrays match by themselves).",
                "field",
            )
            return
        if isinstance(value, Mapping) and value.get("type") == "dynamic":
            value = self._dynamic(value, location)
        problem = _value_problem(operator, value)
        if problem is not None:
            self.wrong((*location, "value"), f"{path} {operator}: {problem}", "filter_value")
            return
        parts.append(Condition(path, operator, _frozen(operator, value), case_sensitive))

    def _dynamic(self, value: Mapping[Any, Any], location: Location) -> Any:
        name = str(value.get("field", "")).removeprefix("inputs.").removeprefix("INPUT.")
        if self.inputs is None or name not in self.inputs:
            known = ", ".join(self.inputs or ()) or "none here"
            self.wrong(
                (*location, "value"), f"Input {quote(name)} is not given; inputs: {known}.", "unknown_input"
            )
            return None
        return self.inputs[name]


def _frozen(operator: str, value: Any) -> Any:
    return list(value) if operator in ("in", "nin") else value


def _value_problem(operator: str, value: Any) -> str | None:
    """Return why `value` does not go with `operator`, or None."""
    if not _is_finite(value):
        return "NaN and infinity are not allowed."
    match operator:
        case "in" | "nin":
            if not isinstance(value, list | tuple) or any(isinstance(item, list | Mapping) for item in value):
                return f'a list of plain values is needed, such as ["rock", "jazz"], not {quote(value)}.'
        case "gt" | "gte" | "lt" | "lte":
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                return f"a number, a date or a string is needed, not {quote(value)}."
        case "exists" | "is_null":
            if value is not None and not isinstance(value, bool):
                return f"true or false is needed, not {quote(value)}."
        case "starts_with" | "ends_with" | "text" | "phrase" | "words":
            if not isinstance(value, str):
                return f"a string is needed, not {quote(value)}."
        case "regex":
            if not isinstance(value, str) or len(value) > MAX_PATTERN_CHARS:
                return f"a pattern of at most {MAX_PATTERN_CHARS} characters is needed, not {quote(value)}."
            try:
                _pattern(value, True)
            except re2.error as error:
                why = str(error)[:80]
                return f"{quote(value)} is not a pattern of RE2 ({why}); it has no back-references, no look-around."
        case "geo_radius" | "geo_bounding_box" | "geo_polygon":
            return _geo_problem(operator, value)
        case _:
            if isinstance(value, Mapping):
                return f"a plain value is needed, not {quote(value)}."
    return None


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    return True


def _geo_problem(operator: str, value: Any) -> str | None:
    shapes = {
        "geo_radius": '{"center": {"lat": 52.5, "lon": 13.4}, "radius": 1000} (metres)',
        "geo_bounding_box": '{"top_left": {"lat": 53, "lon": 13}, "bottom_right": {"lat": 52, "lon": 14}}',
        "geo_polygon": '{"exterior": {"points": [{"lat": 52, "lon": 13}, …]}}, the last point equal to the first',
    }
    needed = f"{shapes[operator]} is needed."
    if not isinstance(value, Mapping):
        return needed
    match operator:
        case "geo_radius":
            radius = value.get("radius")
            right = _is_point(value.get("center")) and _is_number(radius) and radius >= 0
        case "geo_bounding_box":
            right = _is_point(value.get("top_left")) and _is_point(value.get("bottom_right"))
        case _:
            rings = [value.get("exterior"), *(value.get("interiors") or [])]
            right = all(
                isinstance(ring, Mapping)
                and isinstance(points := ring.get("points"), list)
                and len(points) >= 4
                and all(map(_is_point, points))
                and points[0] == points[-1]
                for ring in rings
            )
    return None if right else needed


# --- looking -------------------------------------------------------------------------------------------


def values_at(document: Mapping[str, Any], path: str) -> list[Any]:
    """Return the values at `path`, arrays opened wherever they are; null is no value."""
    found: list[Any] = []
    _collect(document, path.split("."), 0, found)
    return found


def _collect(here: Any, segments: Sequence[str], at: int, found: list[Any]) -> None:
    if isinstance(here, list):
        for item in here:
            _collect(item, segments, at, found)
    elif at == len(segments):
        if here is not None:
            found.append(here)
    elif isinstance(here, Mapping):
        below = here.get(segments[at])
        if below is not None:
            _collect(below, segments, at + 1, found)


def paths(filter: Filter) -> Iterator[str]:
    """Yield the path of each condition."""
    if isinstance(filter, Condition):
        yield filter.path
    else:
        for child in filter.children:
            yield from paths(child)


def to_json(filter: Filter) -> dict[str, Any]:
    """Return `filter` in the grammar that `parse` reads."""
    if isinstance(filter, Condition):
        return {
            "field": filter.path,
            "operator": filter.operator,
            "value": filter.value,
            "case_sensitive": filter.case_sensitive,
        }
    key = {And: "AND", Or: "OR", Not: "NOT"}[type(filter)]
    return {key: [to_json(child) for child in filter.children]}


# --- the reference evaluator ---------------------------------------------------------------------------


def matches(
    filter: Filter, document: Mapping[str, Any], indexes: Mapping[str, PayloadIndex] | None = None
) -> bool:
    """Say whether `filter` lets `document` through.

    `indexes` matter for `text`, `phrase` and `words` only: a text index says how its field is cut into
    tokens. Without one: words, lower case, of any length.
    """
    if isinstance(filter, Condition):
        return _holds(filter, document, indexes or {})
    if isinstance(filter, And):
        return all(matches(child, document, indexes) for child in filter.children)
    if isinstance(filter, Or):
        return any(matches(child, document, indexes) for child in filter.children)
    return not any(matches(child, document, indexes) for child in filter.children)


def _holds(condition: Condition, document: Mapping[str, Any], indexes: Mapping[str, PayloadIndex]) -> bool:
    operator, wanted, sensitive = condition.operator, condition.value, condition.case_sensitive
    values = values_at(document, condition.path)
    match operator:
        case "exists":
            return bool(values) == (wanted is not False)
        case "is_null":
            return (not values) == (wanted is not False)
        case "eq":
            return _equals_any(values, wanted, sensitive)
        case "ne":
            return not _equals_any(values, wanted, sensitive)
        case "in":
            return any(_equals_any(values, item, sensitive) for item in wanted)
        case "nin":
            return not any(_equals_any(values, item, sensitive) for item in wanted)
        case "contains":
            return _contains(document, condition.path, values, wanted, sensitive)
        case "text" | "phrase" | "words":
            return _text_matches(operator, values, wanted, indexes.get(condition.path), sensitive)
    test = _TESTS[operator]
    return any(test(value, wanted, sensitive) for value in values)


def _equals_any(values: Sequence[Any], wanted: Any, sensitive: bool) -> bool:
    if wanted is None:
        return not values
    if isinstance(wanted, list):
        return all(_equals_any(values, item, sensitive) for item in wanted) and len(values) == len(wanted)
    return any(_equal(value, wanted, sensitive) for value in values)


def _equal(value: Any, wanted: Any, sensitive: bool) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, str) and isinstance(wanted, str):
        if value == wanted:
            return True
        if sensitive:
            return False
        if value.casefold() == wanted.casefold():
            return True
        one, other = instant(value), instant(wanted)
        return one is not None and one == other
    if _is_number(value) and _is_number(wanted):
        return bool(value == wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def _contains(
    document: Mapping[str, Any], path: str, values: Sequence[Any], wanted: Any, sensitive: bool
) -> bool:
    """Membership where the field is an array, substring where it is a string."""
    if _is_array(document, path):
        return _equals_any(values, wanted, sensitive)
    return any(
        isinstance(value, str)
        and isinstance(wanted, str)
        and (wanted in value if sensitive else wanted.casefold() in value.casefold())
        for value in values
    )


def _is_array(here: Any, path: str) -> bool:
    """Say whether an array lies on `path` or at its end."""
    for segment in path.split("."):
        if isinstance(here, list):
            return True
        here = here.get(segment) if isinstance(here, Mapping) else None
    return isinstance(here, list)


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any, bool], bool]:
    def compared(value: Any, wanted: Any, sensitive: bool) -> bool:
        if _is_number(value) and _is_number(wanted):
            return test(value, wanted)
        if not isinstance(value, str) or not isinstance(wanted, str):
            return False
        limit = instant(wanted)
        if limit is not None:
            moment = instant(value)
            return moment is not None and test(moment, limit)
        return test(value, wanted) if sensitive else test(value.casefold(), wanted.casefold())

    return compared


def _affix(test: Callable[[str, str], bool]) -> Callable[[Any, Any, bool], bool]:
    def tested(value: Any, wanted: Any, sensitive: bool) -> bool:
        if not isinstance(value, str):
            return False
        return test(value, wanted) if sensitive else test(value.casefold(), wanted.casefold())

    return tested


@lru_cache(maxsize=256)
def _pattern(pattern: str, sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = sensitive
    options.log_errors = False
    options.max_mem = 8 << 20
    return re2.compile(pattern, options)


def _regex(value: Any, wanted: str, sensitive: bool) -> bool:
    return isinstance(value, str) and _pattern(wanted, sensitive).search(value) is not None


@lru_cache(maxsize=4096)
def instant(text: str) -> datetime | None:
    """Return the moment that `text` names (RFC 3339; without a zone UTC; a date is its midnight), or None."""
    if len(text) < 10 or not text[:4].isdigit():
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            return None
        moment = datetime(day.year, day.month, day.day)  # noqa: DTZ001  the zone comes next
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- text ----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def tokens(text: str, params: Mapping[str, Any]) -> list[str]:
    """Cut `text` into tokens as a text index with `params` does, without the prefixes of ``prefix``."""
    if params.get("lowercase", True):
        text = text.lower()
    found = text.split() if params.get("tokenizer") == "whitespace" else _WORD.findall(text)
    low, high = params.get("min_token_len") or 0, params.get("max_token_len")
    if params.get("tokenizer") == "prefix":
        return [token for token in found if len(token) >= low]
    return [token for token in found if len(token) >= low and (high is None or len(token) <= high)]


def _text_matches(
    operator: str, values: Sequence[Any], wanted: str, index: PayloadIndex | None, sensitive: bool
) -> bool:
    """``text``: all tokens; ``words``: any token; ``phrase``: all tokens, side by side and in order."""
    params: Mapping[str, Any] = {"tokenizer": "word", "lowercase": not sensitive}
    if index is not None and index.type == IndexType.TEXT:
        params = index.field_schema
    asked = tokens(wanted, params)
    if not asked:
        return False
    each = [tokens(value, params) for value in values if isinstance(value, str)]
    if operator == "phrase":
        return any(
            have[start : start + len(asked)] == asked
            for have in each
            for start in range(len(have) - len(asked) + 1)
        )
    present = {token for have in each for token in have}
    if params.get("tokenizer") == "prefix":
        high = params.get("max_token_len")
        found = [any(token.startswith(word[:high]) for token in present) for word in asked]
    else:
        found = [word in present for word in asked]
    return any(found) if operator == "words" else all(found)


# --- places --------------------------------------------------------------------------------------------


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and _is_number(lat := value.get("lat"))
        and _is_number(lon := value.get("lon"))
        and -90 <= lat <= 90
        and -180 <= lon <= 180
    )


def _in_radius(value: Any, wanted: Mapping[str, Any], _sensitive: bool) -> bool:
    if not _is_point(value):
        return False
    one, other = wanted["center"], value
    lat1, lat2 = math.radians(one["lat"]), math.radians(other["lat"])
    dlat, dlon = lat2 - lat1, math.radians(other["lon"] - one["lon"])
    chord = math.sin(dlat / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin(dlon / 2) ** 2
    return bool(2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(chord))) < wanted["radius"])


def _in_box(value: Any, wanted: Mapping[str, Any], _sensitive: bool) -> bool:
    if not _is_point(value):
        return False
    corner, opposite = wanted["top_left"], wanted["bottom_right"]
    if not opposite["lat"] < value["lat"] < corner["lat"]:
        return False
    west, east, lon = corner["lon"], opposite["lon"], value["lon"]
    # A box may cross the 180th meridian.
    return bool(west < lon < east) if west <= east else bool(lon > west or lon < east)


def _in_polygon(value: Any, wanted: Mapping[str, Any], _sensitive: bool) -> bool:
    if not _is_point(value):
        return False
    inside = _in_ring(value, wanted["exterior"]["points"])
    return inside and not any(_in_ring(value, ring["points"]) for ring in wanted.get("interiors") or [])


def _in_ring(point: Mapping[str, Any], ring: Sequence[Mapping[str, Any]]) -> bool:
    """Ray casting: a point is inside when a ray from it crosses the ring an odd number of times."""
    x, y, inside = point["lon"], point["lat"], False
    for one, other in itertools.pairwise(ring):
        if (one["lat"] > y) != (other["lat"] > y):
            cross = (other["lon"] - one["lon"]) * (y - one["lat"]) / (other["lat"] - one["lat"]) + one["lon"]
            if x < cross:
                inside = not inside
    return inside


_TESTS: dict[str, Callable[[Any, Any, bool], bool]] = {
    "gt": _compare(lambda a, b: bool(a > b)),
    "gte": _compare(lambda a, b: bool(a >= b)),
    "lt": _compare(lambda a, b: bool(a < b)),
    "lte": _compare(lambda a, b: bool(a <= b)),
    "starts_with": _affix(str.startswith),
    "ends_with": _affix(str.endswith),
    "regex": _regex,
    "geo_radius": _in_radius,
    "geo_bounding_box": _in_box,
    "geo_polygon": _in_polygon,
}
