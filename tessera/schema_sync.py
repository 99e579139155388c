"""Schema sync: an output schema grows by the fields that documents have beyond it, when somebody asks.

A collection's output schema is fixed when it is made. Documents may have more: fields that a user added, or that a
source brought along which its schema did not name. A sync adds those, and never changes or removes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, collections, events, namespaces, tiers
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import collections as collection_rows
from tessera.filters import Condition
from tessera.models.base import JsonObject
from tessera.models.buckets import FieldType
from tessera.models.collections import SchemaSyncRequest, SchemaSyncResponse, SchemaSyncSkippedResponse
from tessera.plan import PROTECTED_FIELDS
from tessera.ports import HIDDEN_FIELDS, Page

#: A collection is not sampled again sooner, unless that is asked for.
PAUSE_S = 300
#: Documents read at once.
_PAGE = 500


def sync(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: SchemaSyncRequest
) -> SchemaSyncResponse | SchemaSyncSkippedResponse:
    """Add the fields that a sample of the documents has to the output schema. Durable when it returns.

    With `cascade_to_downstream` collections that read it know the fields too, and those that pass all fields on
    have them in their own output schemas. Can be repeated; within `PAUSE_S` only with `force`.
    """
    with wh.db.read() as connection:
        namespace_id = namespaces.resolve(connection, principal, namespace)["namespace_id"]
        row = collections.find(connection, namespace_id, identifier)
    if not request.force and (waited := _since(row["schema_synced_at"])) < PAUSE_S:
        return SchemaSyncSkippedResponse(
            reason=f"The schema was synced {waited:.0f} s ago; send force to do it again within {PAUSE_S} s.",
            collection_id=row["collection_id"],
            schema_version=row["schema_version"],
            last_sync=row["schema_synced_at"],
        )
    sampled, kinds = _sampled(wh, namespace_id, row["collection_id"], request.sample_size)
    seen: JsonObject = {name: {"type": found.pop()} for name, found in kinds.items() if len(found) == 1}
    mixed = sorted(kinds.keys() - seen.keys())
    with wh.db.write() as connection:
        namespaces.resolve(connection, principal, namespace_id)
        row = collections.find(connection, namespace_id, row["collection_id"])
        added = _grow(connection, row, seen)
        below: list[str] = []
        if added and request.cascade_to_downstream:
            below = _cascade(connection, row, {name: seen[name] for name in added})
        if added:
            fields = {"fields": ["output_schema"]}
            audit.record(
                connection, principal, "collection_updated", "collection", row["collection_id"], fields
            )
            events.collection_changed(connection, "updated", row, **fields)
    return SchemaSyncResponse(
        collection_id=row["collection_id"],
        schema_version=row["schema_version"] + bool(added),
        previous_version=row["schema_version"],
        fields_added=added,
        fields_total=len(row["output_schema"]["properties"]) + len(added),
        documents_sampled=sampled,
        downstream_collections_updated=below,
        message=f"Left out, because their values are of several kinds: {', '.join(mixed)}."
        if mixed
        else None,
    )


def _since(synced_at: str | None) -> float:
    if synced_at is None:
        return float("inf")
    return (datetime.now(UTC) - datetime.fromisoformat(synced_at)).total_seconds()


def _sampled(
    wh: Warehouse, namespace_id: str, collection_id: str, sample_size: int
) -> tuple[int, dict[str, set[str]]]:
    """Return how many documents were read, and of which kinds the values of each of their fields are."""
    mine = Condition("collection_id", "eq", collection_id, True)
    kinds: dict[str, set[str]] = {}
    sampled, after = 0, None
    while sampled < sample_size:
        limit = min(_PAGE, sample_size - sampled)
        found = wh.views.page(namespace_id, Page(limit=limit, filter=mine, after=after))
        for hit in found.hits:
            _note(hit.payload, kinds)
        sampled, after = sampled + len(found.hits), found.next_after
        if after is None:
            break
    for of_field in kinds.values():
        if of_field == {FieldType.INTEGER.value, FieldType.NUMBER.value}:
            of_field.discard(FieldType.INTEGER.value)
    return sampled, kinds


def _note(payload: Mapping[str, Any], kinds: dict[str, set[str]]) -> None:
    for name, value in payload.items():
        if name in HIDDEN_FIELDS or name in PROTECTED_FIELDS or name.startswith("_") or "." in name:
            continue
        if (kind := _kind(value)) is not None:
            kinds.setdefault(name, set()).add(kind)


def _kind(value: object) -> str | None:
    """Return the type of a value as schemas call it; None for null, which says nothing."""
    for kinds, name in (
        (bool, FieldType.BOOLEAN),
        (int, FieldType.INTEGER),
        (float, FieldType.NUMBER),
        (str, FieldType.STRING),
        (list, FieldType.ARRAY),
        (dict, FieldType.OBJECT),
    ):
        if isinstance(value, kinds):
            return name.value
    return None


def _grow(connection: Connection, row: RowMapping, fields: JsonObject) -> list[str]:
    """Add to a collection's output schema what it lacks of `fields`; return their names."""
    properties = row["output_schema"]["properties"]
    added = sorted(fields.keys() - properties.keys())
    values: dict[str, Any] = {"schema_synced_at": now()}
    if added:
        grown = {**properties, **{name: fields[name] for name in added}}
        values |= {
            "output_schema": {**row["output_schema"], "properties": grown},
            "schema_version": row["schema_version"] + 1,
            "updated_at": now(),
        }
    _write(connection, row["collection_id"], values)
    return added


def _cascade(connection: Connection, row: RowMapping, fields: JsonObject) -> list[str]:
    """Let the collections that read this one know its new fields, and pass them on; return those that changed."""
    reads = tiers.fed_by_collections(connection, row["namespace_id"], disabled_too=True)
    passing = {row["collection_id"]}
    changed = []
    for tier in tiers.sort(reads, [row["collection_id"]])[1:]:
        for collection_id in tier:
            if passing.isdisjoint(reads[collection_id]):
                continue
            reader = collections.find(connection, row["namespace_id"], collection_id)
            values = _known(reader, fields)
            if reader["feature_extractor"].get("include_all_source_fields"):
                passing.add(collection_id)
            if values:
                _write(connection, collection_id, values)
                changed.append(collection_id)
    return changed


def _known(reader: RowMapping, fields: JsonObject) -> dict[str, Any]:
    """Return the columns of a reader that change when what it reads has new fields."""
    values: dict[str, Any] = {}
    schemas: Iterable[str] = ("input_schema",)
    if reader["feature_extractor"].get("include_all_source_fields"):
        schemas = ("input_schema", "output_schema")
    for name in schemas:
        properties = reader[name]["properties"]
        if fields.keys() - properties.keys():
            values[name] = {**reader[name], "properties": {**fields, **properties}}
    if "output_schema" in values:
        values["schema_version"] = reader["schema_version"] + 1
    return values


def _write(connection: Connection, collection_id: str, values: Mapping[str, Any]) -> None:
    connection.execute(
        sa.update(collection_rows).where(collection_rows.c.collection_id == collection_id).values(**values)
    )
