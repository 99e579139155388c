"""The audit log: who changed what, in the transaction that changed it; who read it, where that is asked for.

An event names fields that changed and never the value of a secret one. It outlives what it speaks of:
a deleted namespace leaves its events, which hold ids and names only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import audit_events, organizations
from tessera.errors import NotFoundError
from tessera.ids import new_id
from tessera.models.organizations import (
    AuditEventListResponse,
    AuditEventResponse,
    AuditSettings,
    AuditSettingsUpdateRequest,
)
from tessera.scopes import check_administers


def record(
    connection: Connection,
    principal: Principal,
    action: str,
    resource_type: str,
    resource_id: str,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write an event in the transaction of `connection`: it is there exactly when the change is.

    `changes` names what changed (``{"fields": [...]}``) or says more (``{"name": ...}``); no secret.
    """
    connection.execute(audit_events.insert(), _event(principal, action, resource_type, resource_id, changes))


def record_read(
    wh: Warehouse, principal: Principal, action: str, resource_type: str, resource_id: str
) -> None:
    """Queue the event of a read; no request waits for it."""
    event = _event(principal, action, resource_type, resource_id, None)

    def write(connection: Connection) -> None:
        connection.execute(audit_events.insert(), event)

    wh.db.later(write)


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """The event of a route that reads: `parameter` of its path names the resource."""

    action: str
    resource_type: str
    parameter: str | None

    def of(self, path_params: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return action, type and id (as the caller named it) of one such read."""
        name = str(path_params.get(self.parameter, "-")) if self.parameter else "-"
        return self.action, self.resource_type, name[:255]


_NOUNS = {
    "namespaces": "namespace",
    "collections": "collection",
    "buckets": "bucket",
    "retrievers": "retriever",
    "clusters": "cluster",
    "taxonomies": "taxonomy",
}


def read_of(permission: str, template: str) -> Read | None:
    """Return what reading through this route is called; None for what is not written down.

    >>> read_of("read", "/v1/buckets/{bucket_identifier}/objects")
    Read(action='bucket_accessed', resource_type='bucket', parameter='bucket_identifier')
    """
    if permission != "read":
        return None
    if template in ("/v1/documents/search", "/v1/retrievers/execute"):
        return Read("retriever_queried", "retriever", None)
    if template == "/v1/taxonomies/execute/{taxonomy_identifier}":
        return Read("taxonomy_accessed", "taxonomy", "taxonomy_identifier")
    parts = template.split("/")
    noun = _NOUNS.get(parts[2]) if len(parts) > 3 and parts[3].startswith("{") else None
    if noun is None:
        return None
    action = "retriever_queried" if noun == "retriever" and parts[-1] == "execute" else f"{noun}_accessed"
    return Read(action, noun, parts[3].strip("{}"))


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """Which events a list asks for; times are compared as text, as the database holds them."""

    resource_type: str | None = None
    resource_id: str | None = None
    actor_id: str | None = None
    action: str | None = None
    start: str | None = None
    end: str | None = None


def list_events(
    wh: Warehouse, principal: Principal, chosen: Chosen, skip: int, limit: int
) -> AuditEventListResponse:
    """Return the organization's events, the newest first."""
    check_administers(principal, "organization")
    conditions = [audit_events.c.organization_id == principal.organization_id]
    for name in ("resource_type", "resource_id", "actor_id", "action"):
        value = getattr(chosen, name)
        if value is not None:
            conditions.append(audit_events.c[name] == value)
    if chosen.start is not None:
        conditions.append(audit_events.c.timestamp >= chosen.start)
    if chosen.end is not None:
        conditions.append(audit_events.c.timestamp <= chosen.end)
    with wh.db.read() as connection:
        total = connection.execute(
            sa.select(sa.func.count()).select_from(audit_events).where(*conditions)
        ).scalar_one()
        rows = connection.execute(
            sa.select(audit_events)
            .where(*conditions)
            .order_by(audit_events.c.timestamp.desc(), audit_events.c.audit_id.desc())
            .offset(skip)
            .limit(limit)
        ).mappings()
        results = [AuditEventResponse(**row) for row in rows]
    return AuditEventListResponse(results=results, total=total, skip=skip, limit=limit)


def get_event(wh: Warehouse, principal: Principal, audit_id: str) -> AuditEventResponse:
    """Return one event of the organization. Raises `NotFoundError`."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        row = (
            connection.execute(
                sa.select(audit_events).where(
                    audit_events.c.audit_id == audit_id,
                    audit_events.c.organization_id == principal.organization_id,
                )
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        raise NotFoundError("audit event", audit_id)
    return AuditEventResponse(**row)


def settings_of(wh: Warehouse, principal: Principal) -> AuditSettings:
    """Return whether reads are written down."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        return AuditSettings(
            read_auditing_enabled=connection.execute(
                sa.select(organizations.c.read_auditing).where(
                    organizations.c.organization_id == principal.organization_id
                )
            ).scalar_one()
        )


def update_settings(
    wh: Warehouse, principal: Principal, request: AuditSettingsUpdateRequest
) -> AuditSettings:
    """Switch the writing down of reads on or off; in force with the next request. Repeatable."""
    check_administers(principal, "organization")
    if request.read_auditing_enabled is not None:
        with wh.db.write() as connection:
            connection.execute(
                organizations.update()
                .where(organizations.c.organization_id == principal.organization_id)
                .values(read_auditing=request.read_auditing_enabled)
            )
            record(
                connection,
                principal,
                "permission_updated",
                "organization",
                principal.organization_id,
                {"read_auditing_enabled": request.read_auditing_enabled},
            )
    return settings_of(wh, principal)


def _event(
    principal: Principal,
    action: str,
    resource_type: str,
    resource_id: str,
    changes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    caller = principal.caller
    return {
        "audit_id": new_id("aud"),
        "organization_id": principal.organization_id,
        "timestamp": now(),
        "action": action,
        "resource_type": resource_type,
        "resource_id": resource_id,
        "actor_id": principal.user_id,
        "actor_type": principal.actor_type,
        "key_id": principal.key_id or None,
        "changes": dict(changes) if changes is not None else sa.null(),
        "ip_address": caller.ip_address if caller else None,
        "user_agent": caller.user_agent if caller else None,
        "request_id": caller.request_id if caller else None,
    }
