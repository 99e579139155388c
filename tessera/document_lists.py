"""Lists of a collection's documents: page by page, or group by group, exactly those that a filter lets through."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pydantic

from tessera import aggregation, documents, listing
from tessera.context import Principal, Warehouse
from tessera.errors import BadRequestError, Problem, quote, raise_problems
from tessera.filters import SEARCH, SECRET_FIELDS, And, Condition, Filter, is_path, values_at
from tessera.models.aggregations import AggregationRequest, AggregationResponse
from tessera.models.base import JsonObject
from tessera.models.documents import ListDocumentsRequest
from tessera.models.objects import ListSort
from tessera.pagination import PageRequest, encode_cursor, paginate
from tessera.plan import PROTECTED_FIELDS
from tessera.ports import HIDDEN_FIELDS, Hit, Page

#: Documents that are read of a view at once.
_SCAN_PAGE = 1000
#: All documents that the groups of one answer hold.
MAX_GROUPED_DOCUMENTS = 10_000
#: Root fields in whose values `search` does not look.
_NOT_SEARCHED = tuple(sorted(PROTECTED_FIELDS | HIDDEN_FIELDS))


def list_(
    wh: Warehouse,
    principal: Principal,
    namespace: str,
    collection: str,
    page: PageRequest,
    request: ListDocumentsRequest,
) -> JsonObject:
    """List the documents of a collection, or with `group_by` the groups of them.

    Without a sort the order is fixed but has no meaning. A cursor goes on where its page ended: each
    document that was there all the time and did not move is shown once.
    """
    raise_problems([*_field_problems(request)])
    with wh.db.read() as connection:
        namespace_id, collection_id = documents.find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    wanted = _wanted(collection_id, request)
    asked = _digest(collection_id, request)
    after = _continue(page, asked)
    if request.group_by:
        return _list_groups(wh, namespace_id, page, request, wanted, asked, after)
    found = wh.views.page(
        namespace_id,
        Page(
            limit=page.limit,
            filter=wanted,
            offset=0 if after is not None else page.offset,
            after=after,
            sort_path=request.sort.field if request.sort else None,
            descending=request.sort is not None and request.sort.direction == "desc",
            with_vectors=_reads_vectors(request),
        ),
    )
    everything = page.offset == 0 and found.next_after is None
    total = len(found.hits) if everything else wh.views.count(namespace_id, wanted)
    results = [_presented(wh, namespace_id, hit, request) for hit in found.hits]
    return {
        "results": results,
        "pagination": _stand(wh, page, total, len(results), found.next_after, asked),
        "total_documents": total,
        "stats": {"total_documents": total},
    }


def stated_in_query(filters: str | None, search: str | None, sort: str | None) -> dict[str, Any]:
    """Return the fields of a `ListDocumentsRequest` that a query string states. Raises `ValidationError`."""
    stated: dict[str, Any] = {"search": search} if search else {}
    problems: list[Problem] = []
    if filters:
        try:
            stated["filters"] = orjson.loads(filters)
        except orjson.JSONDecodeError:
            message = (
                f'filters in the query are JSON, such as {{"metadata.year": 2020}}, not {quote(filters)}.'
            )
            problems.append(Problem(("query", "filters"), message, "json_invalid"))
    if sort:
        path, _, direction = sort.partition(":")
        try:
            given = (
                orjson.loads(sort)
                if sort.startswith("{")
                else {"field": path, "direction": direction or "asc"}
            )
            stated["sort"] = ListSort.model_validate(given)
        except (orjson.JSONDecodeError, pydantic.ValidationError):
            message = f"sort in the query is field:asc, field:desc or JSON of field and direction, not {quote(sort)}."
            problems.append(Problem(("query", "sort"), message, "sort"))
    raise_problems(problems)
    return stated


def aggregate(
    wh: Warehouse, principal: Principal, namespace: str, collection: str, request: AggregationRequest
) -> AggregationResponse:
    """Group the documents of a collection and reckon figures of each group, over all that the filter lets through."""
    with wh.db.read() as connection:
        namespace_id, collection_id = documents.find_place(connection, principal, namespace, collection)
    assert collection_id is not None
    wanted = documents.within_collection(collection_id, request.filters)
    read = 0

    def payloads() -> Iterator[Mapping[str, Any]]:
        nonlocal read
        for hit in scan(wh, namespace_id, wanted, aggregation.fields(request), "This aggregation"):
            read += 1
            yield hit.payload

    results, total = aggregation.aggregate(payloads(), request)
    info = {"collection_id": collection_id, "documents": read}
    return AggregationResponse(results=results, total_groups=total, query_info=info)


def scan(
    wh: Warehouse, namespace_id: str, wanted: Filter, fields: Sequence[str], purpose: str
) -> Iterator[Hit]:
    """Yield every document that `wanted` lets through, with no more than `fields` of its payload.

    Raises `BadRequestError` when there are more than `max_scan_documents`: an answer over some of them would be
    no answer. `purpose` begins that message.
    """
    limit = wh.settings.max_scan_documents
    total = wh.views.count(namespace_id, wanted)
    if total > limit:
        raise BadRequestError(
            f"{purpose} would look at {total:,} documents, more than {limit:,} (setting max_scan_documents). Narrow "
            "it by filters, best on indexed fields.",
            details={"count": total, "max_scan_documents": limit},
        )
    roots = tuple(dict.fromkeys(path.partition(".")[0] for path in fields))
    after = None
    while True:
        found = wh.views.page(namespace_id, Page(limit=_SCAN_PAGE, filter=wanted, after=after, fields=roots))
        yield from found.hits
        after = found.next_after
        if after is None:
            return


def _wanted(collection_id: str, request: ListDocumentsRequest) -> Filter:
    within = documents.within_collection(collection_id, request.filters)
    if not request.search:
        return within
    return And((within, Condition("*", SEARCH, (request.search, _NOT_SEARCHED))))


def _field_problems(request: ListDocumentsRequest) -> Iterator[Problem]:
    # A cursor holds what was sorted or grouped by.
    named = {"sort": request.sort.field if request.sort else None, "group_by": request.group_by}
    for place, path in named.items():
        location = ("body", place, "field") if place == "sort" else ("body", place)
        if path and path.partition(".")[0] in SECRET_FIELDS:
            yield Problem(
                location, f"{quote(path)} is not a field that lists are sorted or grouped by.", "field"
            )
        elif path and not is_path(path):
            yield Problem(
                location, f"{quote(path)} is not a field: a path is names with dots between them.", "field"
            )
    for index, path in enumerate(request.select or ()):
        if not is_path(path):
            why = f"{quote(path)} is not a field: a path is names with dots between them."
            yield Problem(("body", "select", index), why, "field")


def _presented(wh: Warehouse, namespace_id: str, hit: Hit, request: ListDocumentsRequest) -> JsonObject:
    named = request.return_vector_names
    only = set(named) if isinstance(named, list) else None
    with_values = bool(request.return_vectors) or only is not None
    return documents.present(
        wh,
        namespace_id,
        hit.payload,
        return_urls=bool(request.return_url or request.return_presigned_urls),
        vectors={n: v for n, v in hit.vectors.items() if only is None or n in only} if with_values else None,
        vector_names=hit.vectors if named is True else None,
        select=request.select,
    )


def _reads_vectors(request: ListDocumentsRequest) -> bool:
    named = request.return_vector_names
    return bool(request.return_vectors) or named is True or isinstance(named, list)


# --- groups --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """The documents that share a value, each with what it is sorted by."""

    key: Any
    members: list[tuple[tuple[int, Any] | None, str]] = field(default_factory=list)


def _list_groups(
    wh: Warehouse,
    namespace_id: str,
    page: PageRequest,
    request: ListDocumentsRequest,
    wanted: Filter,
    asked: str,
    after: Any,
) -> JsonObject:
    """Answer a page of groups, in the order of their values, null last; a document of several values is in each."""
    assert request.group_by is not None
    groups, total_documents = _groups(wh, namespace_id, request, wanted)
    places = sorted(groups)
    first = page.offset
    if after is not None:
        # Groups that came or went before it move nothing.
        first = next(
            (number for number, place in enumerate(places) if place > (after[0], after[1])), len(places)
        )
    shown = places[first : first + page.limit]
    held = sum(len(groups[place].members) for place in shown)
    if held > MAX_GROUPED_DOCUMENTS:
        raise BadRequestError(
            f"The {len(shown)} groups of this page hold {held:,} documents, more than {MAX_GROUPED_DOCUMENTS:,}. "
            "Ask for fewer groups (limit) or narrow them by filters."
        )
    answer = [_presented_group(wh, namespace_id, groups[place], request) for place in shown]
    more = first + len(shown) < len(places)
    return {
        "results": None,
        "groups": answer,
        "pagination": _stand(
            wh, page, len(places), len(shown), list(shown[-1]) if more and shown else None, asked
        ),
        "total_documents": total_documents,
        "stats": {
            "total_documents": total_documents,
            "total_groups": len(places),
            "avg_documents_per_group": total_documents / len(places) if places else 0,
        },
        "group_by_field": request.group_by,
    }


def _groups(
    wh: Warehouse, namespace_id: str, request: ListDocumentsRequest, wanted: Filter
) -> tuple[dict[tuple[int, Any], _Group], int]:
    """Return the groups by their place in the order, and how many documents there are."""
    assert request.group_by is not None
    by = request.sort.field if request.sort else None
    groups: dict[tuple[int, Any], _Group] = {}
    total = 0
    fields = [request.group_by, *([by] if by else [])]
    for hit in scan(wh, namespace_id, wanted, fields, f"Grouping by {quote(request.group_by)}"):
        total += 1
        keys = values_at(hit.payload, request.group_by) or [None]
        order = listing.sort_key(hit.payload, by) if by else None
        for place, key in {_group_place(key): key for key in keys}.items():
            groups.setdefault(place, _Group(key)).members.append((order, hit.document_id))
    return groups, total


def _group_place(key: Any) -> tuple[int, Any]:
    """Return where a group stands: numbers by size (2 and 2.0 are one), then texts by code point, others, null."""
    if key is None:
        return 3, 0
    if isinstance(key, int | float) and not isinstance(key, bool):
        return 0, key
    if isinstance(key, str):
        return 1, key
    return 2, orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()


def _presented_group(
    wh: Warehouse, namespace_id: str, group: _Group, request: ListDocumentsRequest
) -> JsonObject:
    descending = request.sort is not None and request.sort.direction == "desc"
    members = sorted(group.members, key=lambda member: member[1])
    valued = [(order, document_id) for order, document_id in members if order is not None]
    valued.sort(key=lambda member: member[0], reverse=descending)
    sorted_ids = [document_id for _, document_id in valued]
    sorted_ids += [document_id for order, document_id in members if order is None]
    found: list[Hit] = []
    for start in range(0, len(sorted_ids), _SCAN_PAGE):
        ids = sorted_ids[start : start + _SCAN_PAGE]
        found += wh.views.get(namespace_id, ids, _reads_vectors(request))
    return {
        "group_key": group.key,
        "documents": [_presented(wh, namespace_id, hit, request) for hit in found],
        "count": len(found),
    }


# --- pages ---------------------------------------------------------------------------------------------


def _stand(
    wh: Warehouse, page: PageRequest, total: int, shown: int, next_after: Any, asked: str
) -> Mapping[str, Any]:
    pagination = paginate(wh, page, total, shown)
    pagination["next_cursor"] = (
        encode_cursor(wh, {"o": page.offset + shown, "a": next_after, "f": asked})
        if next_after is not None
        else None
    )
    return pagination


def _continue(page: PageRequest, asked: str) -> Any:
    """Return where the page before ended. Raises `BadRequestError` when it belongs to another list."""
    if page.position is None:
        return None
    if page.position.get("f") != asked:
        raise BadRequestError(
            "The cursor belongs to another collection, filter or sort, or to another search or group_by. Send what it "
            "came with, or start without a cursor."
        )
    return page.position.get("a")


def _digest(collection_id: str, request: ListDocumentsRequest) -> str:
    asked = {
        "collection_id": collection_id,
        "filters": request.filters or None,
        "sort": request.sort.model_dump() if request.sort else None,
        **({"search": request.search} if request.search else {}),
        **({"group_by": request.group_by} if request.group_by else {}),
    }
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
