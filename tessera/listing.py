"""Lists over rows of the metadata database: filter, search and sort by what a request asks for.

For nouns of which a namespace holds few enough to look at each one; documents are listed by the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from tessera.context import Warehouse
from tessera.errors import BadRequestError
from tessera.filters import Filter, matches, parse, values_at
from tessera.models.base import JsonObject, PaginationResponse
from tessera.pagination import PageRequest, paginate

Row = TypeVar("Row", bound=Mapping[Any, Any])


def choose(
    rows: Iterable[Row],
    *,
    filters: JsonObject | None,
    search: str | None,
    search_in: Sequence[str],
    sort: tuple[str, str] | None,
    id_field: str,
    case_sensitive: bool = False,
) -> list[Row]:
    """Return the rows that `filters` and `search` let through, in the order asked for or as they came.

    `search` is a substring of any field in `search_in`. Sorting puts rows without the field last both ways,
    numbers before strings before anything else, strings by code point, and breaks ties by `id_field`.
    """
    wanted = parse_filters(filters, case_sensitive=case_sensitive)
    found = [
        row
        for row in rows
        if (wanted is None or matches(wanted, row))
        and (not search or contains(row, search, search_in, case_sensitive=case_sensitive))
    ]
    return found if sort is None else ordered(found, *sort, id_field=id_field)


def refuse_long_scan(wh: Warehouse, total: int, noun: str, place: str = "bucket") -> None:
    """Raise `BadRequestError` when filters, search or sort would read more rows than the setting allows."""
    limit = wh.settings.max_scan_documents
    if total > limit:
        raise BadRequestError(
            f"The {place} has {total} {noun}; filters, search and sort read at most {limit} (setting "
            f"max_scan_documents). List without them, or use a {place} of its own for them.",
            details={"count": total, "max_scan_documents": limit},
        )


def cut(wh: Warehouse, page: PageRequest, chosen: Sequence[Row]) -> tuple[list[Row], PaginationResponse]:
    """Return the page of `chosen` that `page` asks for, and where it stands."""
    shown = list(chosen[page.offset : page.offset + page.limit])
    return shown, stand(wh, page, len(chosen), len(shown))


def stand(wh: Warehouse, page: PageRequest, total: int, shown: int) -> PaginationResponse:
    """Return where a page of `shown` out of `total` rows stands."""
    return PaginationResponse.model_validate(paginate(wh, page, total, shown))


def parse_filters(filters: JsonObject | None, *, case_sensitive: bool = False) -> Filter | None:
    """Parse filters in the filter grammar, or in the form ``{"field": {"$regex": "^a"}}``."""
    if not filters:
        return None
    return parse(_translated(filters, case_sensitive), location=("body", "filters"))


def contains(row: Mapping[Any, Any], search: str, fields: Sequence[str], *, case_sensitive: bool) -> bool:
    """Say whether `search` is a substring of any of the row's `fields`."""
    wanted = search if case_sensitive else search.casefold()
    texts = (value for name in fields if isinstance(value := row[name], str))
    return any(wanted in (text if case_sensitive else text.casefold()) for text in texts)


def ordered(rows: Iterable[Row], field: str, direction: str, *, id_field: str) -> list[Row]:
    """Return `rows` sorted by the first value at path `field`."""
    keyed = [(sort_key(row, field), row) for row in sorted(rows, key=lambda row: str(row[id_field]))]
    present = sorted(
        ((key, row) for key, row in keyed if key is not None),
        key=lambda pair: pair[0],
        reverse=direction == "desc",
    )
    return [row for _, row in present] + [row for key, row in keyed if key is None]


def sort_key(row: Mapping[Any, Any], field: str) -> tuple[int, Any] | None:
    """Return what `row` is sorted by: None without a value, else a pair that orders across types."""
    values = values_at(row, field)
    if not values:
        return None
    value = values[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, value
    if isinstance(value, str):
        return 1, value
    return 2, orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _translated(node: Any, case_sensitive: bool) -> Any:
    """Turn ``{"field": {"$op": value}}`` into conditions of the filter grammar; leave everything else."""
    if isinstance(node, list):
        return [_translated(item, case_sensitive) for item in node]
    if not isinstance(node, dict):
        return node
    if "field" in node:
        return {"case_sensitive": case_sensitive, **node}
    plain: dict[str, Any] = {}
    conditions: list[Any] = []
    for key, value in node.items():
        if key in ("AND", "OR", "NOT"):
            plain[key] = _translated(value, case_sensitive)
        elif key == "case_sensitive":
            plain[key] = value
        elif isinstance(value, dict) and value and all(str(name).startswith("$") for name in value):
            conditions += [
                {
                    "field": key,
                    "operator": operator[1:],
                    "value": operand,
                    "case_sensitive": case_sensitive,
                }
                for operator, operand in value.items()
            ]
        else:
            conditions.append(
                {"field": key, "operator": "eq", "value": value, "case_sensitive": case_sensitive}
            )
    if not conditions:
        return plain
    return {"AND": [plain, *conditions] if plain else conditions}
