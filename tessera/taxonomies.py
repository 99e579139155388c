"""Taxonomies: created, read, listed, changed, copied and deleted; each configuration is a version that stays.

What one does is in `taxonomy_matching.py`; here everything that can be wrong with it is found when it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, enrichment_requests, events, limits, listing, names, namespaces
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import collections, taxonomies, taxonomy_versions
from tessera.errors import AlreadyExistsError, BadRequestError, ConflictError, Problem, quote, raise_problems
from tessera.ids import new_id
from tessera.models.base import JsonObject
from tessera.models.tasks import GenericDeleteResponse
from tessera.models.taxonomies import (
    CloneTaxonomyRequest,
    CloneTaxonomyResponse,
    CreateTaxonomyRequest,
    ListTaxonomiesRequest,
    ListTaxonomiesResponse,
    NewVersionRequest,
    PatchTaxonomyRequest,
    TaxonomyInput,
    TaxonomyListStats,
    TaxonomyResponse,
)
from tessera.pagination import PageRequest
from tessera.taxonomy_definition import find, name_problems, read_config


def create(
    wh: Warehouse, principal: Principal, namespace: str, request: CreateTaxonomyRequest
) -> TaxonomyResponse:
    """Store a taxonomy as its version 1. Raises with everything that is wrong at once; a taken name is a 409."""
    at = now()
    name = names.clean(request.taxonomy_name)
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        config, problems = read_config(wh, connection, place, request.config)
        problems += name_problems(name)
        if not problems:
            _refuse_taken(connection, place["namespace_id"], name)
        raise_problems(problems)
        row = {
            "taxonomy_id": new_id("tax"),
            "namespace_id": place["namespace_id"],
            "taxonomy_name": name,
            "description": request.description,
            "version": 1,
            "metadata": request.metadata or {},
            "created_at": at,
            "updated_at": at,
        }
        limits.check_quota(wh, connection, principal, "taxonomies")
        connection.execute(taxonomies.insert().values(**row))
        _add_version(connection, row["taxonomy_id"], 1, config, at)
        _note(connection, principal, "created", row, {"name": name})
    return _answer({**row, "config": config, "config_version": 1})


def get(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, version: int | None = None
) -> TaxonomyResponse:
    """Return a taxonomy by id or name, as `version` has it."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        return _answer(find(connection, place["namespace_id"], identifier, version))


def list_(
    wh: Warehouse, principal: Principal, namespace: str, page: PageRequest, request: ListTaxonomiesRequest
) -> ListTaxonomiesResponse:
    """List taxonomies, the newest first unless sorted otherwise."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        rows = _rows(connection, taxonomies.c.namespace_id == place["namespace_id"])
    chosen = listing.choose(
        rows,
        filters=request.filters,
        search=request.search,
        search_in=("taxonomy_id", "taxonomy_name", "description"),
        sort=(request.sort.field, request.sort.direction) if request.sort else None,
        case_sensitive=bool(request.case_sensitive),
        id_field="taxonomy_id",
    )
    return _listed(wh, page, chosen)


def versions(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, page: PageRequest
) -> ListTaxonomiesResponse:
    """List every configuration that a taxonomy had, the newest first."""
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        rows = _rows(connection, taxonomies.c.taxonomy_id == row["taxonomy_id"], every=True)
    return _listed(wh, page, rows)


def add_version(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: NewVersionRequest
) -> TaxonomyResponse:
    """Give a taxonomy another configuration, and what it is applied to another comparison.

    Durable when it returns. The configuration that it has already makes no new version.
    """
    given = PatchTaxonomyRequest(config=request.config)
    return patch(wh, principal, namespace, identifier, given)


def patch(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: PatchTaxonomyRequest
) -> TaxonomyResponse:
    """Change name, description or metadata; another configuration becomes the next version. Durable.

    Collections that it is applied to are enriched anew in the background when the configuration changes.
    """
    given = request.model_fields_set
    if not given:
        raise BadRequestError(
            "The body changes nothing. Send taxonomy_name, description, metadata or config, the next version's."
        )
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = dict(_held(connection, place["namespace_id"], identifier))
        values, problems = _changes(connection, row, request)
        config: JsonObject | None = None
        if request.config is not None:
            config, wrong = read_config(wh, connection, place, request.config)
            problems += wrong
        raise_problems(problems)
        if config is not None and config != row["config"]:
            values["version"] = row["version"] + 1
        if not values:
            return _answer(row)
        values["updated_at"] = now()
        connection.execute(
            sa.update(taxonomies).where(taxonomies.c.taxonomy_id == row["taxonomy_id"]).values(**values)
        )
        row |= values
        if config is not None and "version" in values:
            _add_version(connection, row["taxonomy_id"], row["version"], config, values["updated_at"])
            row |= {"config": config, "config_version": row["version"]}
            for collection in _applied_to(connection, place["namespace_id"], row["taxonomy_id"]):
                enrichment_requests.request(connection, place, collection, [row["taxonomy_id"]])
        fields = sorted(values.keys() - {"updated_at"})
        _note(connection, principal, "updated", row, {"fields": fields})
    wh.jobs.wake()
    return _answer(row)


def _changes(
    connection: Connection, row: Mapping[str, Any], request: PatchTaxonomyRequest
) -> tuple[dict[str, Any], list[Problem]]:
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    if request.taxonomy_name is not None:
        name = names.clean(request.taxonomy_name)
        if name != row["taxonomy_name"]:
            values["taxonomy_name"] = name
            problems += name_problems(name)
            if not problems:
                _refuse_taken(connection, row["namespace_id"], name)
    given = request.model_fields_set
    if "description" in given and request.description != row["description"]:
        values["description"] = request.description
    if "metadata" in given and (request.metadata or {}) != row["metadata"]:
        values["metadata"] = request.metadata or {}
    return values, problems


def clone(
    wh: Warehouse, principal: Principal, namespace: str, identifier: str, request: CloneTaxonomyRequest
) -> CloneTaxonomyResponse:
    """Store another taxonomy like this one, as its version 1; what the request states replaces what it has."""
    source = get(wh, principal, namespace, identifier)
    made = create(
        wh,
        principal,
        namespace,
        CreateTaxonomyRequest(
            taxonomy_name=request.taxonomy_name,
            description=request.description if request.description is not None else source.description,
            config=request.config if request.config is not None else source.config,
            metadata=source.metadata,
        ),
    )
    return CloneTaxonomyResponse(taxonomy=made, source_taxonomy_id=source.taxonomy_id)


def delete(wh: Warehouse, principal: Principal, namespace: str, identifier: str) -> GenericDeleteResponse:
    """Delete a taxonomy with its versions. Refused while it is applied to a collection: its fields stay there else."""
    with wh.db.write() as connection:
        place = namespaces.resolve(connection, principal, namespace)
        row = find(connection, place["namespace_id"], identifier)
        applied = _applied_to(connection, place["namespace_id"], row["taxonomy_id"])
        if applied:
            shown = ", ".join(sorted(collection["collection_name"] for collection in applied)[:5])
            raise ConflictError(
                f"Taxonomy {quote(row['taxonomy_name'])} is applied to {len(applied)} collection(s): {shown}. Take it "
                "out of their taxonomy_applications first (PATCH /v1/collections/<id>); that takes back what it wrote.",
                details={
                    "resource": "taxonomy",
                    "id": row["taxonomy_id"],
                    "applied_to": [collection["collection_id"] for collection in applied][:100],
                },
            )
        connection.execute(sa.delete(taxonomies).where(taxonomies.c.taxonomy_id == row["taxonomy_id"]))
        _note(connection, principal, "deleted", row, {"name": row["taxonomy_name"]})
    return GenericDeleteResponse(message=f"Taxonomy {row['taxonomy_id']} was deleted.")


# --- inside --------------------------------------------------------------------------------------------


def _held(connection: Connection, namespace_id: str, identifier: str) -> RowMapping:
    """Return a taxonomy as `find` does, to be changed: whoever else would change it waits until this one is stored.

    On SQLite writers stand in line anyway.
    """
    taxonomy_id = find(connection, namespace_id, identifier)["taxonomy_id"]
    this = sa.select(taxonomies.c.taxonomy_id).where(taxonomies.c.taxonomy_id == taxonomy_id)
    connection.execute(this.with_for_update())
    return find(connection, namespace_id, str(taxonomy_id))


def _applied_to(connection: Connection, namespace_id: str, taxonomy_id: str) -> list[RowMapping]:
    """Return the collections that a taxonomy is applied to."""
    rows = connection.execute(sa.select(collections).where(collections.c.namespace_id == namespace_id))
    return [
        row
        for row in rows.mappings().all()
        if any(known["taxonomy_id"] == taxonomy_id for known in row["taxonomy_applications"] or ())
    ]


def _rows(
    connection: Connection, within: sa.ColumnElement[bool], *, every: bool = False
) -> Sequence[RowMapping]:
    """Return taxonomies with their newest configuration, or `every` one, the newest first."""
    version = taxonomy_versions.c.version
    mine = taxonomy_versions.c.taxonomy_id == taxonomies.c.taxonomy_id
    return (
        connection.execute(
            sa.select(taxonomies, taxonomy_versions.c.config, version.label("config_version"))
            .join(taxonomy_versions, mine if every else sa.and_(mine, version == taxonomies.c.version))
            .where(within)
            .order_by(taxonomies.c.created_at.desc(), taxonomies.c.taxonomy_id, version.desc())
        )
        .mappings()
        .all()
    )


def _listed(wh: Warehouse, page: PageRequest, rows: Sequence[RowMapping]) -> ListTaxonomiesResponse:
    shown, pagination = listing.cut(wh, page, rows)
    configs = [row["config"] for row in rows]
    flat = sum(config["taxonomy_type"] == "flat" for config in configs)
    return ListTaxonomiesResponse(
        results=[_answer(row) for row in shown],
        pagination=pagination,
        total_count=len(rows),
        stats=TaxonomyListStats(
            total_taxonomies=len(rows),
            flat_taxonomies=flat,
            hierarchical_taxonomies=len(rows) - flat,
            taxonomies_with_retrievers=sum(config.get("retriever_id") is not None for config in configs),
        ),
    )


def _add_version(connection: Connection, taxonomy_id: Any, version: int, config: JsonObject, at: str) -> None:
    connection.execute(
        taxonomy_versions.insert().values(
            taxonomy_id=taxonomy_id, version=version, config=config, created_at=at
        )
    )


def _refuse_taken(connection: Connection, namespace_id: str, name: str) -> None:
    taken = connection.execute(
        sa.select(taxonomies.c.taxonomy_id).where(
            taxonomies.c.namespace_id == namespace_id, taxonomies.c.taxonomy_name == name
        )
    ).scalar()
    if taken:
        raise AlreadyExistsError(
            f"A taxonomy named {quote(name)} exists in this namespace ({taken}). Choose another name, or change that "
            "one.",
            details={"resource": "taxonomy", "id": taken},
        )


def _note(
    connection: Connection, principal: Principal, what: str, row: Mapping[Any, Any], told: JsonObject
) -> None:
    audit.record(connection, principal, f"taxonomy_{what}", "taxonomy", row["taxonomy_id"], told)
    events.taxonomy_changed(connection, what, row)


def _answer(row: Mapping[Any, Any]) -> TaxonomyResponse:
    config = row["config"]
    mappings = config.get("input_mappings")
    return TaxonomyResponse(
        taxonomy_id=row["taxonomy_id"],
        version=row["config_version"],
        taxonomy_name=row["taxonomy_name"],
        namespace_id=row["namespace_id"],
        description=row["description"],
        retriever_id=config.get("retriever_id"),
        input_mappings=None if mappings is None else [TaxonomyInput.model_validate(m) for m in mappings],
        config=config,
        metadata=row["metadata"] or {},
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
