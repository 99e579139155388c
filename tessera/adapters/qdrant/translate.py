"""Filters, payload indexes and vectors in Qdrant's words: the same for the embedded engine and a server.

`qdrant_edge` and `qdrant_client.models` name their classes alike and differ in small things; a
`Translator` is given the module and hides them.

A condition goes to the engine only when the engine's answer is known to be exact: the field is indexed,
every value that the view holds there is one that the index sees ("regular"), and the operator means the
same on both sides. What is left is the residual, to be evaluated over the documents that the engine part
lets through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from types import ModuleType
from typing import Any

import numpy as np

from tessera.filters import EARTH_RADIUS_M, And, Condition, Filter, Not, Or, flattened, instant
from tessera.models import IndexType, PayloadIndex
from tessera.ports import DenseVector, SparseText

#: Root key of a stored point under which case-folded copies of keyword fields lie; users never see it.
SHADOW_KEY = "_s"
#: Fields of every document that hold ids of ours, lower case as they are: a copy would only cost time. A value
#: that is not lower case counts as one that the index does not see.
FOLDED_FIELDS = frozenset({"internal_id", "collection_id"})
#: Root key under which a packed point holds its whole document as JSON; as below, no field is called that.
PACKED_KEY = " "
#: A document's own field of that name is kept under this key of it: no field name is a single blank.
DISPLACED_KEY = " "
#: Whole numbers beyond this are not exact as float64, in which the engine compares ranges.
MAX_EXACT_INTEGER = 2**53
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

_PLAIN_SEGMENT = re.compile(r"[A-Za-z0-9_-]+\Z")
_ENGINE_SEGMENT = re.compile(r'"([^"]*)"|([^".]+)')
# The spellings that the engine and the reference evaluator read as the same instant.
_DATETIME = re.compile(
    r"(?!0000)\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)?)?\Z", re.ASCII
)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")

_RANGE_BOUNDS = {"gt": "gt", "gte": "gte", "lt": "lt", "lte": "lte"}


class _Inexact(Exception):
    """The engine cannot answer this condition exactly; `superset` is what it can narrow down to."""

    def __init__(self, superset: Any = None) -> None:
        super().__init__()
        self.superset = superset


def is_datetime(value: str) -> bool:
    """Say whether `value` is a date or date-time that both engine and evaluator read alike."""
    if not _DATETIME.match(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def is_uuid(value: str) -> bool:
    """Say whether `value` is a UUID in its hyphenated form, the only one taken as regular."""
    return _UUID.match(value) is not None


def is_geo_point(value: object) -> bool:
    """Say whether `value` is an object with numeric ``lat`` and ``lon`` on the globe."""
    if not isinstance(value, dict):
        return False
    lat, lon = value.get("lat"), value.get("lon")
    return (
        _is_number(lat) and _is_number(lon) and -90 <= float(lat) <= 90 and -180 <= float(lon) <= 180  # type: ignore[arg-type]
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def can_be_addressed(path: str) -> bool:
    """Say whether the engine has a spelling for `path`: its quoted segments know no escapes."""
    return '"' not in path and "\\" not in path and all(path.split("."))


def engine_path(path: str) -> str:
    """Return `path` as the engine spells it, each odd segment quoted.

    A path into a document's own ``_s`` leads to where that field is kept.
    """
    segments = path.split(".")
    if segments[0] == SHADOW_KEY:
        segments[1:1] = [DISPLACED_KEY]
    return ".".join(s if _PLAIN_SEGMENT.match(s) else f'"{s}"' for s in segments)


def shadow_path(field_name: str) -> str:
    """Return the engine's path of the case-folded copy of `field_name`; of ids of ours, their own."""
    return engine_path(field_name) if field_name in FOLDED_FIELDS else f'{SHADOW_KEY}."{field_name}"'


def path_segments(path: str) -> tuple[str, ...]:
    """Cut a path of the engine's into its segments: it reports paths with fewer quotes than it was given."""
    return tuple(quoted or plain for quoted, plain in _ENGINE_SEGMENT.findall(path))


class Translator:
    """Builds the objects of `module` (``qdrant_edge`` or ``qdrant_client.models``).

    `prefixes` and `substrings` say whether the engine matches those of keywords: a server does from
    versions 1.19 and 1.20 on.
    """

    def __init__(self, module: ModuleType, *, prefixes: bool = True, substrings: bool = True) -> None:
        self._m = module
        self._prefixes = prefixes
        self._substrings = substrings
        self._edge = hasattr(module, "EdgeShard")

    # --- filters -----------------------------------------------------------------------------------

    def split(
        self,
        filter: Filter | None,
        indexes: Mapping[str, PayloadIndex],
        irregular: Set[str] = frozenset(),
    ) -> tuple[Any | None, Filter | None]:
        """Split `filter` into the engine's part and the residual.

        Returns ``(engine filter, residual)``. The documents that pass both are exactly those that
        `filter` lets through; None means "everything passes". `indexes` are those in force, by field
        name; `irregular` names the indexed fields that hold a value which their index does not see.
        """
        if filter is None:
            return None, None
        # Of a condition by itself the engine takes the points as its index lists them; of one inside another filter
        # it looks at each once more, which is nearly half of what 10,000 points cost.
        condition, residual = self._push(flattened(filter), indexes, irregular)
        if condition is None:
            return None, residual
        return (condition if isinstance(condition, self._m.Filter) else self._all([condition])), residual

    def both(self, first: Any | None, second: Any | None) -> Any | None:
        """Return the engine filter that lets through what both let through."""
        if first is None or second is None:
            return first if second is None else second
        return self._all([first, second])

    def has_ids(self, point_ids: Sequence[str]) -> Any:
        """Return the engine filter that lets only these points through."""
        if self._edge:
            return self._all([self._m.HasIdCondition(set(point_ids))])
        return self._all([self._m.HasIdCondition(has_id=list(point_ids))])

    def equals(self, path: str, value: str) -> Any:
        """Return the engine filter for an exact keyword value (a tenant's, for example)."""
        return self._all([self._field(engine_path(path), match=self._m.MatchValue(value=value))])

    def _all(self, conditions: list[Any]) -> Any:
        refusing = [one for one in conditions if self._only_refuses(one)]
        if not refusing:
            return self._m.Filter(must=conditions)
        # What is refused beside what is wanted costs a quarter less than as a filter of its own in there.
        wanted = [one for one in conditions if not self._only_refuses(one)]
        refused = [condition for one in refusing for condition in one.must_not]
        return self._m.Filter(must=wanted or None, must_not=refused)

    def _only_refuses(self, condition: Any) -> bool:
        if not isinstance(condition, self._m.Filter) or not condition.must_not:
            return False
        return not (condition.must or condition.should or condition.min_should)

    def _any(self, conditions: list[Any]) -> Any:
        return self._m.Filter(should=conditions)

    def _none(self, conditions: list[Any]) -> Any:
        return self._m.Filter(must_not=conditions)

    def _field(self, key: str, **test: Any) -> Any:
        return self._m.FieldCondition(key=key, **test)

    def _push(
        self, filter: Filter, indexes: Mapping[str, PayloadIndex], irregular: Set[str]
    ) -> tuple[Any | None, Filter | None]:
        """Return (condition or None for everything, residual or None for exact)."""
        if isinstance(filter, Condition):
            try:
                return self._condition(filter, indexes, irregular), None
            except _Inexact as refused:
                return refused.superset, filter
        parts = [self._push(child, indexes, irregular) for child in filter.children]
        exact = [condition for condition, residual in parts if residual is None and condition is not None]
        left = [residual for _, residual in parts if residual is not None]
        if isinstance(filter, And):
            narrowing = [condition for condition, _ in parts if condition is not None]
            residual = left[0] if len(left) == 1 else And(tuple(left)) if left else None
            return (self._all(narrowing) if narrowing else None), residual
        if isinstance(filter, Or):
            if not parts:
                return None, filter
            if not left:
                return (self._any(exact) if len(exact) == len(parts) else None), None
            supersets = [condition for condition, _ in parts if condition is not None]
            return (self._any(supersets) if len(supersets) == len(parts) else None), filter
        inexact = tuple(
            child for child, (_, residual) in zip(filter.children, parts, strict=True) if residual is not None
        )
        if len(exact) + len(inexact) < len(parts):
            return None, filter  # a child that lets everything through: nothing holds
        return (self._none(exact) if exact else None), (Not(inexact) if inexact else None)

    def _condition(
        self, condition: Condition, indexes: Mapping[str, PayloadIndex], irregular: Set[str]
    ) -> Any:
        """Return the engine's condition, or raise `_Inexact`."""
        operator, value = condition.operator, condition.value
        if operator in ("ne", "nin"):
            positive = Condition(
                condition.path, "eq" if operator == "ne" else "in", value, condition.case_sensitive
            )
            try:
                return self._none([self._condition(positive, indexes, irregular)])
            except _Inexact:
                raise _Inexact from None  # the complement of a superset says nothing
        if operator == "in" and value == []:
            return self.has_ids([])
        index = indexes.get(condition.path)
        if index is None or condition.path in irregular or not can_be_addressed(condition.path):
            raise _Inexact
        key = engine_path(condition.path)
        if operator in ("exists", "is_null") or (operator == "eq" and value is None):
            is_missing = (operator == "exists") == (value is False)
            return self._is_empty(key) if is_missing else self._none([self._is_empty(key)])
        if operator == "in":
            return self._in(condition, indexes, irregular)
        match index.type:
            case IndexType.KEYWORD:
                return self._keyword(condition, key)
            case IndexType.INTEGER | IndexType.FLOAT:
                return self._number(condition, key, index.type)
            case IndexType.BOOL:
                if isinstance(value, bool):
                    found = self._field(key, match=self._m.MatchValue(value=self._truth(value)))
                    if operator == "eq":
                        return found
                    if operator == "contains":  # only arrays contain anything but strings
                        raise _Inexact(found)
            case IndexType.DATETIME:
                return self._datetime(condition, key)
            case IndexType.UUID:
                if operator == "eq" and isinstance(value, str) and is_uuid(value):
                    found = self._field(key, match=self._m.MatchValue(value=value))
                    if condition.case_sensitive:
                        raise _Inexact(found)
                    return found
            case IndexType.TEXT:
                return self._text(condition, key, index)
            case IndexType.GEO:
                return self._geo(condition, key)
        raise _Inexact

    def _is_empty(self, key: str) -> Any:
        if self._edge:
            return self._m.IsEmptyCondition(key)
        return self._m.IsEmptyCondition(is_empty=self._m.PayloadField(key=key))

    def _in(self, condition: Condition, indexes: Mapping[str, PayloadIndex], irregular: Set[str]) -> Any:
        if not isinstance(condition.value, list | tuple) or not condition.value:
            raise _Inexact
        values = list(condition.value)
        index = indexes[condition.path]
        if index.type == IndexType.KEYWORD and all(isinstance(value, str) for value in values):
            if not condition.case_sensitive and any(map(instant, values)):
                raise _Inexact
            if condition.case_sensitive:
                return self._among(engine_path(condition.path), values)
            folded = [value.casefold() for value in values]
            return self._among(shadow_path(condition.path), folded)
        if index.type == IndexType.INTEGER and all(_is_int64(value) for value in values):
            return self._among(engine_path(condition.path), values)
        parts: list[Any] = []
        for value in values:
            single = Condition(condition.path, "eq", value, condition.case_sensitive)
            try:
                parts.append(self._condition(single, indexes, irregular))
            except _Inexact:
                raise _Inexact from None
        return self._any(parts)

    def _among(self, path: str, values: list[Any]) -> Any:
        # Any of one is three times as slow as that one: 3 ms over 100,000 documents where it takes 0.8.
        if len(set(values)) == 1:
            return self._field(path, match=self._m.MatchValue(value=values[0]))
        return self._field(path, match=self._m.MatchAny(any=values))

    def _keyword(self, condition: Condition, key: str) -> Any:
        operator, value, exact_case = condition.operator, condition.value, condition.case_sensitive
        if not isinstance(value, str):
            raise _Inexact
        if not exact_case and operator in ("eq", "contains") and instant(value) is not None:
            raise _Inexact  # the same moment may be spelled differently
        path, text = (key, value) if exact_case else (shadow_path(condition.path), value.casefold())
        match operator:
            case "eq":
                return self._field(path, match=self._m.MatchValue(value=text))
            case "starts_with" if text and self._prefixes:
                return self._field(path, match=self._m.MatchPrefix(prefix=text))
            case "contains" | "ends_with" if text and self._substrings:
                # `contains` on an array means membership, and an ending is not only a substring.
                raise _Inexact(self._field(path, match=self._m.MatchSubstring(substring=text)))
        raise _Inexact

    def _truth(self, value: bool) -> Any:
        # Edge 0.9.0 reads Python's True as the integer 1; numpy's is no integer, so it stays a truth value.
        return np.bool_(value) if self._edge else value

    def _text(self, condition: Condition, key: str, index: PayloadIndex) -> Any:
        if not isinstance(condition.value, str):
            raise _Inexact
        match condition.operator:
            case "text":
                return self._field(key, match=self._m.MatchText(text=condition.value))
            case "words" | "phrase":
                found = self._field(key, match=self._m.MatchText(text=condition.value))
                tokenizer = index.field_schema.get("tokenizer")
                if condition.operator == "words" and tokenizer != "prefix":
                    return found
                if tokenizer != "multilingual":  # whose words only the engine knows
                    raise _Inexact(found)
        raise _Inexact

    def _number(self, condition: Condition, key: str, type: IndexType) -> Any:
        operator, value = condition.operator, condition.value
        if operator == "contains":  # only arrays contain anything but strings
            equal = Condition(condition.path, "eq", value)
            raise _Inexact(self._number(equal, key, type))
        if not _is_number(value) or abs(value) >= MAX_EXACT_INTEGER:
            if operator == "eq" and type == IndexType.INTEGER and _is_int64(value):
                return self._field(key, match=self._m.MatchValue(value=value))
            raise _Inexact
        if operator == "eq":
            if type == IndexType.INTEGER and isinstance(value, int):
                return self._field(key, match=self._m.MatchValue(value=value))
            return self._field(key, range=self._range(gte=float(value), lte=float(value)))
        if operator in _RANGE_BOUNDS:
            return self._field(key, range=self._range(**{operator: float(value)}))
        raise _Inexact

    def _datetime(self, condition: Condition, key: str) -> Any:
        operator, value = condition.operator, condition.value
        if not isinstance(value, str) or not is_datetime(value):
            raise _Inexact
        if operator == "eq" and not condition.case_sensitive:
            return self._field(key, range=self._datetime_range(gte=value, lte=value))
        if operator in _RANGE_BOUNDS:
            return self._field(key, range=self._datetime_range(**{operator: value}))
        raise _Inexact

    def _range(self, **bounds: float) -> Any:
        return (self._m.RangeFloat if self._edge else self._m.Range)(**bounds)

    def _datetime_range(self, **bounds: str) -> Any:
        if self._edge:
            return self._m.RangeDateTime(**bounds)
        # pydantic would read a zone-less time in the machine's own zone when it is sent.
        return self._m.DatetimeRange(**{name: _instant(text) for name, text in bounds.items()})

    def _geo(self, condition: Condition, key: str) -> Any:
        value = condition.value
        if not isinstance(value, dict):
            raise _Inexact
        try:
            match condition.operator:
                case "geo_radius":
                    if not _is_plain_circle(value["center"], value["radius"]):
                        raise _Inexact
                    radius = self._m.GeoRadius(
                        center=self._point(value["center"]), radius=float(value["radius"])
                    )
                    return self._field(key, geo_radius=radius)
                case "geo_bounding_box":
                    corner, opposite = value["top_left"], value["bottom_right"]
                    return self._box(key, corner["lat"], corner["lon"], opposite["lat"], opposite["lon"])
                case "geo_polygon":
                    # The engine's own polygon loses points of a ring that touches the map's edge or itself.
                    points = value["exterior"]["points"]
                    lats, lons = ([float(point[name]) for point in points] for name in ("lat", "lon"))
                    # Its box, a little wider: what lies on a box's edge is outside.
                    raise _Inexact(
                        self._box(key, max(lats) + 1e-9, min(lons) - 1e-9, min(lats) - 1e-9, max(lons) + 1e-9)
                    )
        except (KeyError, TypeError, ValueError):
            raise _Inexact from None
        raise _Inexact

    def _box(self, key: str, north: float, west: float, south: float, east: float) -> Any:
        # The engine loses true hits of a box that touches a pole or the 180th meridian, or lies across it.
        if west > east or max(abs(north), abs(south)) >= 90 or max(abs(west), abs(east)) >= 180:
            raise _Inexact
        box = self._m.GeoBoundingBox(
            top_left=self._point({"lat": north, "lon": west}),
            bottom_right=self._point({"lat": south, "lon": east}),
        )
        return self._field(key, geo_bounding_box=box)

    def _point(self, value: Mapping[str, Any]) -> Any:
        return self._m.GeoPoint(lat=float(value["lat"]), lon=float(value["lon"]))

    # --- indexes -----------------------------------------------------------------------------------

    def index_params(self, index: PayloadIndex) -> Any:
        """Return the engine's parameters for `index`."""
        schema = index.field_schema
        m = self._m
        kind = {} if self._edge else {"type": str(index.type)}
        match index.type:
            case IndexType.KEYWORD:
                return m.KeywordIndexParams(
                    is_tenant=schema.get("is_tenant", False), **self._prefix_option(), **kind
                )
            case IndexType.INTEGER:
                return m.IntegerIndexParams(
                    lookup=schema.get("lookup", True), range=schema.get("range", True), **kind
                )
            case IndexType.FLOAT:
                return m.FloatIndexParams(**kind)
            case IndexType.BOOL:
                return m.BoolIndexParams(**kind)
            case IndexType.GEO:
                return m.GeoIndexParams(**kind)
            case IndexType.DATETIME:
                return m.DatetimeIndexParams(**kind)
            case IndexType.UUID:
                return m.UuidIndexParams(is_tenant=schema.get("is_tenant", False), **kind)
            case IndexType.TEXT:
                return m.TextIndexParams(
                    tokenizer=self._tokenizer(schema.get("tokenizer", "word")),
                    min_token_len=schema.get("min_token_len", 2),
                    max_token_len=schema.get("max_token_len", 15),
                    lowercase=schema.get("lowercase", True),
                    **kind,
                )

    def shadow_params(self) -> Any:
        """Return the engine's parameters for the index over case-folded copies."""
        kind = {} if self._edge else {"type": "keyword"}
        return self._m.KeywordIndexParams(**self._prefix_option(), **kind)

    def _prefix_option(self) -> dict[str, bool]:
        return {"prefix": True} if self._prefixes else {}

    def index_report(self, data_type: Any, params: Any) -> tuple[str, dict[str, Any]]:
        """Return type and parameters of an index as the engine states them, in the words of the API."""
        type_name = _enum_word(data_type)
        names = {
            "keyword": ("is_tenant",),
            "integer": ("lookup", "range"),
            "text": ("tokenizer", "min_token_len", "max_token_len", "lowercase"),
            "uuid": ("is_tenant",),
        }.get(type_name, ())
        stated: dict[str, Any] = {"type": type_name}
        for name in names:
            value = getattr(params, name, None)
            if value is not None:
                stated[name] = _enum_word(value) if name == "tokenizer" else value
        return type_name, stated

    def _tokenizer(self, name: str) -> Any:
        return getattr(self._m.TokenizerType, name.capitalize() if self._edge else name.upper())

    # --- vectors -----------------------------------------------------------------------------------

    def vector_params(self, vectors: Sequence[DenseVector]) -> dict[str, Any]:
        """Return the engine's parameters of the named vectors."""
        make = self._m.EdgeVectorParams if self._edge else self._m.VectorParams
        # Edge would read whole files into memory when it loads, 32 MiB for a view of twenty documents. Without that
        # pages come as they are needed, and searches of what was searched before take no longer.
        placed = {"memory": self._m.Memory.Cold} if self._edge else {}
        return {
            vector.name: make(size=vector.dimensions, distance=self._distance(vector.distance), **placed)
            for vector in vectors
        }

    def sparse_params(self, sparse: Sequence[SparseText]) -> dict[str, Any]:
        """Return the engine's parameters of keyword indexes: it weighs words by how rare they are."""
        if self._edge:
            idf, placed = self._m.Modifier.Idf, {"memory": self._m.Memory.Cold}
            return {one.name: self._m.EdgeSparseVectorParams(modifier=idf, **placed) for one in sparse}
        return {one.name: self._m.SparseVectorParams(modifier=self._m.Modifier.IDF) for one in sparse}

    def sparse_vector(self, indices: Sequence[int], values: Sequence[float]) -> Any:
        """Return the engine's sparse vector."""
        return self._m.SparseVector(indices=indices, values=values)

    def _distance(self, name: str) -> Any:
        return getattr(self._m.Distance, name.capitalize() if self._edge else name.upper())


def _is_plain_circle(center: Mapping[str, Any], radius_m: float) -> bool:
    """Say whether a circle touches neither a pole nor the 180th meridian.

    Edge 0.9.0 covers a circle with geohash cells that end there, and misses what lies beyond.
    """
    angle = radius_m / EARTH_RADIUS_M
    lat, lon = math.radians(center["lat"]), math.radians(center["lon"])
    if abs(lat) + angle >= math.radians(89):
        return False
    width = math.asin(math.sin(angle) / math.cos(lat))
    return abs(lon) + width < math.radians(179)


def _is_int64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and INT64_MIN <= value <= INT64_MAX


def _instant(text: str) -> datetime:
    from datetime import UTC

    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _enum_word(value: Any) -> str:
    """Return the lower-case word of an enum member: qdrant-client's has a value, Edge's only a repr."""
    word = value.value if hasattr(value, "value") else repr(value).rpartition(".")[2]
    return str(word).lower()
