"""Routes of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from tessera import audit
from tessera.api.auth import Asking, require
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.organizations import (
    AuditEventListResponse,
    AuditEventResponse,
    AuditSettings,
    AuditSettingsUpdateRequest,
)
from tessera.moments import moment

router = Router(tags=["Organizations"])
_admin = [require("admin")]


@router.get("/v1/organizations/audit/logs", dependencies=_admin)
def list_audit_logs(
    wh: Wh,
    asking: Asking,
    resource_type: str | None = None,
    resource_id: str | None = None,
    actor_id: str | None = None,
    action: str | None = None,
    start: Annotated[str | None, Query(description="RFC 3339; a date is its midnight.")] = None,
    end: str | None = None,
    skip: Annotated[int, Query(ge=0, le=1_000_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditEventListResponse:
    """List what was changed (and read, if that is written down), the newest first."""
    chosen = audit.Chosen(
        resource_type, resource_id, actor_id, action, moment(start, "start"), moment(end, "end")
    )
    return audit.list_events(wh, asking, chosen, skip, limit)


@router.get("/v1/organizations/audit/logs/{audit_id}", dependencies=_admin)
def get_audit_log(wh: Wh, asking: Asking, audit_id: str) -> AuditEventResponse:
    """Return one event."""
    return audit.get_event(wh, asking, audit_id)


@router.get("/v1/organizations/audit/settings", dependencies=_admin)
def get_audit_settings(wh: Wh, asking: Asking) -> AuditSettings:
    """Tell whether reads are written down too."""
    return audit.settings_of(wh, asking)


@router.patch("/v1/organizations/audit/settings", dependencies=_admin)
def update_audit_settings(wh: Wh, asking: Asking, body: AuditSettingsUpdateRequest) -> AuditSettings:
    """Choose whether reads are written down too; in force with the next request."""
    return audit.update_settings(wh, asking, body)
