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
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeGuard

import re2

from tessera import words
from tessera.errors import Problem, ValidationError, quote
from tessera.models import IndexType, PayloadIndex

Location = tuple[str | int, ...]
#: Says whether a document passes.
Test = Callable[[Mapping[str, Any]], bool]

#: Logical nodes inside each other.
MAX_DEPTH = 16
MAX_CONDITIONS = 512
MAX_PATH_CHARS = 255
MAX_PATTERN_CHARS = 1000
#: More problems than this say nothing new.
MAX_PROBLEMS = 50

OPERATORS = (
    "eq", "ne", "gt", "lt", "gte", "lte", "in", "nin", "contains", "starts_with", "ends_with", "regex", "exists",
    "is_null", "text", "phrase", "words", "geo_radius", "geo_bounding_box", "geo_polygon",
)  # fmt: skip

#: Of conditions that no request can write: a text anywhere in a document's fields. The value is (text, root fields
#: that are not looked into), the path ``*``.
SEARCH = "search"
#: What stands for a file is no text to be found.
_FILE = "blob://"

#: A circle of this radius holds every place many times over.
MAX_RADIUS_M = 1e12
#: Mean radius of the Earth in metres (IUGG), as Qdrant's geo library takes it.
EARTH_RADIUS_M = 6_371_008.8

_LOGICAL = ("AND", "OR", "NOT")
_CONDITION_KEYS = ("field", "operator", "value", "case_sensitive")


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


def flattened(filter: Filter) -> Filter:
    """Return what means the same with no `And` or `Or` of one child, and none directly inside its like."""
    if isinstance(filter, Condition):
        return filter
    children = tuple(map(flattened, filter.children))
    if isinstance(filter, Not):
        return Not(children)
    kind = type(filter)
    within = (child.children if isinstance(child, kind) else (child,) for child in children)
    joined = tuple(itertools.chain.from_iterable(within))
    return joined[0] if len(joined) == 1 else kind(joined)


# --- reading -------------------------------------------------------------------------------------------


#: Root fields of documents that nobody may learn, also not by asking what they begin with or by sorting.
SECRET_FIELDS = frozenset({"internal_id"})


def parse(
    raw: object,
    *,
    inputs: Mapping[str, Any] | None = None,
    location: Location = ("body", "filters"),
) -> Filter | None:
    """Parse one node of the filter grammar; None when it holds no condition at all.

    An empty list under ``AND``, ``OR`` or ``NOT`` is as if the key had not been sent, and a list of filters
    is as good as ``{"AND": […]}``. `inputs` gives ``{"type": "dynamic", "field": "inputs.x"}`` its values.
    Raises `ValidationError` with everything that is wrong, each problem with its place and what is allowed.
    """
    reader = _Reader(inputs)
    found = reader.node(raw, location, 1, case_sensitive=False)
    if reader.problems:
        raise ValidationError(reader.problems[:MAX_PROBLEMS])
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
        """Read one node; None when it holds no condition or cannot be read."""
        if raw is None or len(self.problems) >= MAX_PROBLEMS:
            return None
        if depth > MAX_DEPTH:
            self.wrong(location, f"Filters nest deeper than {MAX_DEPTH} levels.", "filter_too_deep")
            return None
        if isinstance(raw, list):
            return self._logical("AND", raw, location, depth, case_sensitive=case_sensitive)
        if not isinstance(raw, Mapping):
            self.wrong(
                location,
                f"A filter is an object, not {quote(raw)}: "
                '{"field": "metadata.year", "operator": "gte", "value": 2020}, {"metadata.year": 2020}, '
                'or {"AND": […]}, {"OR": […]}, {"NOT": […]}.',
            )
            return None
        sensitive = self._flag(raw, location, case_sensitive)
        parts: list[Filter | None] = []
        if "field" in raw:
            parts.append(self._condition(raw, location, case_sensitive=sensitive))
        elif "value" in raw and raw.get("operator") in OPERATORS:
            # Taken for two fields of these names it would quietly find nothing.
            self.wrong(
                (*location, "field"),
                'A condition needs its field: {"field": "metadata.year", "operator": "gte", "value": 2020}. Fields '
                "that are themselves named operator and value are compared in this form too.",
                "missing",
            )
            return None
        for key, value in raw.items():
            place = (*location, str(key))
            if key in _LOGICAL:
                parts.append(self._logical(key, value, place, depth, case_sensitive=sensitive))
            elif "field" not in raw and key != "case_sensitive":
                parts.append(self._checked(key, "eq", value, place, place, case_sensitive=sensitive))
        found = tuple(part for part in parts if part is not None)
        return found[0] if len(found) == 1 else And(found) if found else None

    def _flag(self, raw: Mapping[Any, Any], location: Location, inherited: bool) -> bool:
        """Return whether case matters from here on down; generated clients always send the default false."""
        value = raw.get("case_sensitive")
        if value is None or isinstance(value, bool):
            return value or inherited
        self.wrong(
            (*location, "case_sensitive"), f"case_sensitive is {quote(value)}; true or false is needed."
        )
        return inherited

    def _logical(
        self, key: str, value: object, location: Location, depth: int, *, case_sensitive: bool
    ) -> Filter | None:
        if value is None:
            return None
        if key == "NOT" and isinstance(value, Mapping):
            child = self.node(value, location, depth + 1, case_sensitive=case_sensitive)
            return None if child is None else Not((child,))
        if not isinstance(value, list):
            self.wrong(location, f"{key} takes a list of filters, not {quote(value)}.")
            return None
        children = []
        for number, item in enumerate(value):
            before = len(self.problems)
            child = self.node(item, (*location, number), depth + 1, case_sensitive=case_sensitive)
            if child is not None:
                children.append(child)
            elif key != "AND" and len(self.problems) == before and self.conditions <= MAX_CONDITIONS:
                self.wrong(
                    (*location, number),
                    f"This filter under {key} holds no condition: it would let everything through.",
                    "empty_filter",
                )
        if not children:
            return None
        together = tuple(children)
        return And(together) if key == "AND" else Or(together) if key == "OR" else Not(together)

    def _condition(
        self, raw: Mapping[Any, Any], location: Location, *, case_sensitive: bool
    ) -> Condition | None:
        path, operator = raw["field"], raw.get("operator")
        others = [key for key in raw if key not in _CONDITION_KEYS and key not in _LOGICAL]
        if others:
            self.wrong(
                location,
                f"A condition has field, operator, value and case_sensitive, not {quote(others[0])}. Further "
                'conditions go into a list: {"AND": […]}.',
                "unknown_key",
            )
        if operator is None:
            operator = "eq"
        if operator not in OPERATORS:
            self.wrong(
                (*location, "operator"),
                f"Operator {quote(operator)} is not known. Known operators: {', '.join(OPERATORS)}.",
                "unknown_operator",
            )
            return None
        value = raw.get("value")
        if operator in ("exists", "is_null"):
            value = True if value is None else value
        elif "value" not in raw:
            self.wrong(
                (*location, "value"), f"Operator {operator} on {quote(path)} needs a value.", "missing"
            )
            return None
        return self._checked(
            path, operator, value, (*location, "field"), (*location, "value"), case_sensitive=case_sensitive
        )

    def _checked(
        self,
        path: object,
        operator: str,
        value: object,
        path_location: Location,
        value_location: Location,
        *,
        case_sensitive: bool,
    ) -> Condition | None:
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            if self.conditions == MAX_CONDITIONS + 1:
                message = f"A filter has at most {MAX_CONDITIONS} conditions; `in` takes many values at once."
                self.wrong(path_location[:-1], message, "filter_too_long")
            return None
        if not is_path(path):
            self.wrong(
                path_location,
                f"{quote(path)} is not a field: a path is names with dots between them, at most {MAX_PATH_CHARS} "
                "characters, without empty parts and without [] (arrays match by themselves).",
                "field",
            )
            return None
        if path.split(".", 1)[0] in SECRET_FIELDS:
            self.wrong(path_location, f"{quote(path)} is not a field that filters may name.", "field")
            return None
        before = len(self.problems)
        value = self._resolved(value, value_location)
        if len(self.problems) > before:
            return None
        problem = _value_problem(operator, value)
        if problem is not None:
            self.wrong(value_location, f"{quote(path)} {operator}: {problem}", "filter_value")
            return None
        return Condition(path, operator, value, case_sensitive)

    def _resolved(self, value: Any, location: Location) -> Any:
        """Put the inputs in place of dynamic values."""
        if isinstance(value, list | tuple):
            return [self._resolved(item, (*location, number)) for number, item in enumerate(value)]
        if not isinstance(value, Mapping) or value.get("type") != "dynamic":
            return value
        name = value.get("field")
        segments = name.split(".") if isinstance(name, str) else []
        if len(segments) > 1 and segments[0].lower() in ("inputs", "input"):
            del segments[0]
        here: Any = self.inputs
        for segment in segments or [""]:
            if not isinstance(here, Mapping) or segment not in here:
                known = ", ".join(map(str, self.inputs or ())) or "there are none here"
                self.wrong(location, f"Input {quote(name)} is not given. Inputs: {known}.", "unknown_input")
                return None
            here = here[segment]
        return here


def is_path(path: object) -> TypeGuard[str]:
    """Say whether `path` names a field as a condition may: names with dots between them, no brackets ``[]``."""
    return (
        isinstance(path, str)
        and len(path) <= MAX_PATH_CHARS
        and all(path.split("."))
        and "[]" not in path
        and _is_unicode(path)
    )


def _is_unicode(text: str) -> bool:
    """Say whether `text` can be written in UTF-8 (JSON can spell halves of a surrogate pair)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _value_problem(operator: str, value: Any) -> str | None:
    """Return why `value` does not go with `operator`, or None."""
    if not _is_sound(value):
        return "NaN, infinity and halves of surrogate pairs are not allowed."
    match operator:
        case "in" | "nin":
            if not isinstance(value, list) or any(isinstance(item, list | Mapping) for item in value):
                return f'a list of plain values is needed, such as ["rock", "jazz"], not {quote(value)}.'
        case "gt" | "gte" | "lt" | "lte":
            if not _is_number(value) and not isinstance(value, str):
                return f"a number, a date or a string is needed, not {quote(value)}."
        case "exists" | "is_null":
            if not isinstance(value, bool):
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
                why = error.args[0] if error.args else ""
                why = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
                return f"{quote(value)} is no pattern of RE2 ({why[:80]}); it has no back-references, no look-around."
        case "geo_radius" | "geo_bounding_box" | "geo_polygon":
            return _geo_problem(operator, value)
        case "contains" if value is None:
            return "a value is needed, not null."
        case _:
            if isinstance(value, list):
                return f"one value is needed, not a list; the operator `in` takes {'a list' if value else 'one'}."
            if isinstance(value, Mapping):
                return (
                    "one value is needed, not an object. Fields inside are reached by a path with dots, other "
                    'comparisons are written {"field": …, "operator": …, "value": …}.'
                )
    return None


def _is_sound(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return _is_unicode(value)
    if isinstance(value, list):
        return all(map(_is_sound, value))
    if isinstance(value, Mapping):
        return all(map(_is_sound, value.values()))
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
            right = _is_point(value.get("center")) and _is_number(radius) and 0 <= radius <= MAX_RADIUS_M
        case "geo_bounding_box":
            right = _is_point(value.get("top_left")) and _is_point(value.get("bottom_right"))
        case _:
            holes = value.get("interiors")
            rings = [value.get("exterior"), *(holes if isinstance(holes, list) else [holes] if holes else [])]
            right = all(map(_is_ring, rings))
    return None if right else needed


def _is_ring(ring: Any) -> bool:
    points = ring.get("points") if isinstance(ring, Mapping) else None
    return (
        isinstance(points, list)
        and len(points) >= 4
        and all(map(_is_point, points))
        and (points[0]["lat"], points[0]["lon"]) == (points[-1]["lat"], points[-1]["lon"])
    )


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


def _ends(here: Any, segments: Sequence[str], at: int = 0) -> Iterator[Any]:
    """Yield what stands at the end of a path: as `values_at`, but an array there stays one."""
    if at == len(segments):
        yield here
    elif isinstance(here, list):
        for item in here:
            yield from _ends(item, segments, at)
    elif isinstance(here, Mapping) and here.get(segments[at]) is not None:
        yield from _ends(here[segments[at]], segments, at + 1)


def paths(filter: Filter) -> Iterator[str]:
    """Yield the path of each condition."""
    if isinstance(filter, Condition):
        yield filter.path
    else:
        for child in filter.children:
            yield from paths(child)


def conditions(filter: Filter) -> Iterator[Condition]:
    """Yield every condition of `filter`, in its order."""
    if isinstance(filter, Condition):
        yield filter
        return
    for child in filter.children:
        yield from conditions(child)


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
    words. Without one: in lower case, of any length.
    """
    return predicate(filter, indexes)(document)


def predicate(filter: Filter, indexes: Mapping[str, PayloadIndex] | None = None) -> Test:
    """Return what `matches` says as a function of the document: prepared once, for many documents."""
    if isinstance(filter, Condition):
        return _test(filter, indexes or {})
    tests = tuple(predicate(child, indexes) for child in filter.children)
    if isinstance(filter, And):
        return lambda document: all(test(document) for test in tests)
    if isinstance(filter, Or):
        return lambda document: any(test(document) for test in tests)
    return lambda document: not any(test(document) for test in tests)


def _test(condition: Condition, indexes: Mapping[str, PayloadIndex]) -> Test:
    operator, wanted, sensitive = condition.operator, condition.value, condition.case_sensitive
    segments = condition.path.split(".")

    def values(document: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = []
        _collect(document, segments, 0, found)
        return found

    match operator:
        case "exists" | "is_null":
            present = (operator == "exists") == (wanted is not False)
            return lambda document: bool(values(document)) == present
        case "eq" | "in":
            equal = _equality(wanted if operator == "in" else [wanted], sensitive)
            return lambda document: equal(values(document))
        case "ne" | "nin":
            equal = _equality(wanted if operator == "nin" else [wanted], sensitive)
            return lambda document: not equal(values(document))
        case "search":
            return _search_of(*wanted)
        case "contains":
            holds = _containment(wanted, sensitive)
            return lambda document: any(map(holds, _ends(document, segments)))
        case "text" | "phrase" | "words":
            found_in = {"text": words.has_text, "phrase": words.has_phrase, "words": words.has_words}[
                operator
            ]
            params = _text_params(indexes.get(condition.path), sensitive)
            return lambda document: found_in(
                wanted, (value for value in values(document) if isinstance(value, str)), params
            )
    one = _single(operator, wanted, sensitive)
    return lambda document: any(map(one, values(document)))


def _search_of(text: str, but: Sequence[str]) -> Test:
    """Return the test for `SEARCH`: any text of a document contains `text`, whatever its case."""
    part = text.casefold()

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return part in value.casefold() and not value.startswith(_FILE)
        if isinstance(value, list):
            return any(map(holds, value))
        return isinstance(value, Mapping) and any(map(holds, value.values()))

    skipped = frozenset(but)
    return lambda document: any(holds(value) for name, value in document.items() if name not in skipped)


def _single(operator: str, wanted: Any, sensitive: bool) -> Callable[[Any], bool]:
    """Return the test of one value for an operator that any value may meet."""
    match operator:
        case "gt":
            return _comparison(lambda value, limit: bool(value > limit), wanted, sensitive)
        case "gte":
            return _comparison(lambda value, limit: bool(value >= limit), wanted, sensitive)
        case "lt":
            return _comparison(lambda value, limit: bool(value < limit), wanted, sensitive)
        case "lte":
            return _comparison(lambda value, limit: bool(value <= limit), wanted, sensitive)
        case "starts_with":
            start = _folded(wanted, sensitive)
            return lambda value: isinstance(value, str) and _folded(value, sensitive).startswith(start)
        case "ends_with":
            end = _folded(wanted, sensitive)
            return lambda value: isinstance(value, str) and _folded(value, sensitive).endswith(end)
        case "regex":
            pattern = _pattern(wanted, sensitive)
            return lambda value: isinstance(value, str) and _search(pattern, value)
        case "geo_radius":
            return lambda value: _is_point(value) and _in_radius(value, wanted)
        case "geo_bounding_box":
            return lambda value: _is_point(value) and _in_box(value, wanted)
        case "geo_polygon":
            return lambda value: _is_point(value) and _in_polygon(value, wanted)
    raise ValueError(f"unknown operator {operator!r}")


def _folded(text: str, sensitive: bool) -> str:
    return text if sensitive else text.casefold()


def _key(value: Any, sensitive: bool) -> Any:
    """Return what two values share that are equal (2 and 2.0, not True and 1); None for what equals nothing."""
    if isinstance(value, str):
        return _folded(value, sensitive)
    if isinstance(value, bool):
        return bool, value
    return value if isinstance(value, int | float) else None


def _equality(wanted: Sequence[Any], sensitive: bool) -> Callable[[Sequence[Any]], bool]:
    """Return whether any of some values equals any of `wanted`; null there stands for having no value.

    Strings that name the same moment are equal too, unless case matters, which means: as written.
    """
    keys = {_key(item, sensitive) for item in wanted} - {None}
    moments = {instant(item) for item in wanted if isinstance(item, str) and not sensitive} - {None}
    missing = None in wanted

    def equal(values: Sequence[Any]) -> bool:
        if not values:
            return missing
        for value in values:
            if _key(value, sensitive) in keys:
                return True
            if moments and isinstance(value, str) and instant(value) in moments:
                return True
        return False

    return equal


def _containment(wanted: Any, sensitive: bool) -> Callable[[Any], bool]:
    """Return the test for `contains`: a substring of a string, an element of an array."""
    member = _equality([wanted], sensitive)
    part = _folded(wanted, sensitive) if isinstance(wanted, str) else None

    def holds(end: Any) -> bool:
        if isinstance(end, str):
            return part is not None and part in _folded(end, sensitive)
        elements: list[Any] = []
        _collect(end, (), 0, elements)
        return isinstance(end, list) and member(elements)

    return holds


def _comparison(test: Callable[[Any, Any], bool], wanted: Any, sensitive: bool) -> Callable[[Any], bool]:
    """Return a comparison with `wanted`: numbers with numbers, moments with moments, strings with strings."""
    if not isinstance(wanted, str):
        return lambda value: _is_number(value) and test(value, wanted)
    limit = instant(wanted)
    if limit is not None:

        def later(value: Any) -> bool:
            moment = instant(value) if isinstance(value, str) else None
            return moment is not None and test(moment, limit)

        return later
    text = _folded(wanted, sensitive)
    return lambda value: isinstance(value, str) and test(_folded(value, sensitive), text)


@lru_cache(maxsize=256)
def _pattern(pattern: str, sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = sensitive
    options.log_errors = False
    return re2.compile(pattern, options)


def _search(pattern: Any, text: str) -> bool:
    return pattern.search(text.encode(errors="replace")) is not None


_MOMENT = re.compile(
    r"(?!0000)\d{4}-\d\d-\d\d"
    r"(?:[Tt ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)?)?",
    re.ASCII,
)


#: The index type that answers an operator, whatever the value.
_BY_OPERATOR = {
    "text": "text", "phrase": "text", "words": "text",
    "geo_radius": "geo", "geo_bounding_box": "geo", "geo_polygon": "geo",
}  # fmt: skip


def helpful_type(condition: Condition) -> str | None:
    """Return the type of the index that would serve a condition; None when none does."""
    if condition.operator in _BY_OPERATOR:
        return _BY_OPERATOR[condition.operator]
    if condition.operator == "regex":
        return None
    value = condition.value
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, bool) and condition.operator not in ("exists", "is_null"):
        return "bool"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "integer" if isinstance(value, int) else "float"
    if isinstance(value, str) and instant(value) is not None:
        return "datetime"
    return "keyword"


def instant(text: str) -> datetime | None:
    """Return the moment that `text` names (RFC 3339; without a zone UTC; a date is its midnight), or None.

    Seconds may be left out; what is finer than a microsecond is cut off.
    """
    # Looked at before the cache, which would keep whole texts otherwise.
    return _instant(text) if 10 <= len(text) <= 35 and text[4] == "-" else None


@lru_cache(maxsize=4096)
def _instant(text: str) -> datetime | None:
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None  # no such day
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text_params(index: PayloadIndex | None, sensitive: bool) -> Mapping[str, Any]:
    if index is not None and index.type == IndexType.TEXT:
        return index.field_schema
    return {"tokenizer": "word", "lowercase": not sensitive}


# --- places --------------------------------------------------------------------------------------------


def _is_point(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(value, Mapping)
        and _is_number(lat := value.get("lat"))
        and _is_number(lon := value.get("lon"))
        and -90 <= lat <= 90
        and -180 <= lon <= 180
    )


def _in_radius(point: Mapping[str, Any], circle: Mapping[str, Any]) -> bool:
    center = circle["center"]
    lat1, lat2 = math.radians(center["lat"]), math.radians(point["lat"])
    dlat, dlon = lat2 - lat1, math.radians(point["lon"] - center["lon"])
    chord = math.sin(dlat / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin(dlon / 2) ** 2
    return bool(2 * EARTH_RADIUS_M * math.asin(min(1.0, math.sqrt(chord))) < circle["radius"])


def _in_box(point: Mapping[str, Any], box: Mapping[str, Any]) -> bool:
    corner, opposite = box["top_left"], box["bottom_right"]
    if not opposite["lat"] < point["lat"] < corner["lat"]:
        return False
    west, east, lon = corner["lon"], opposite["lon"], point["lon"]
    # A box may cross the 180th meridian.
    return bool(west < lon < east) if west <= east else bool(lon > west or lon < east)


def _in_polygon(point: Mapping[str, Any], polygon: Mapping[str, Any]) -> bool:
    if not _in_ring(point, polygon["exterior"]["points"]):
        return False
    return not any(_in_ring(point, ring["points"]) for ring in polygon.get("interiors") or [])


def _in_ring(point: Mapping[str, Any], ring: Sequence[Mapping[str, Any]]) -> bool:
    """Ray casting: a point is inside when a ray from it crosses the ring an odd number of times."""
    x, y, inside = point["lon"], point["lat"], False
    for one, other in itertools.pairwise(ring):
        if (one["lat"] > y) != (other["lat"] > y):
            cross = (other["lon"] - one["lon"]) * (y - one["lat"]) / (other["lat"] - one["lat"]) + one["lon"]
            if x < cross:
                inside = not inside
    return inside
