"""Routes of usage counts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from tessera import usage
from tessera.api.auth import Asking, require
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.organizations import EndpointUsage, UsageResponse
from tessera.moments import moment

router = Router(tags=["Organizations"])
_admin = [require("admin")]

Start = Annotated[
    str | None, Query(description="RFC 3339; default: the start of the month. Whole hours count.")
]
End = Annotated[str | None, Query(description="RFC 3339; default: now.")]


@router.get("/v1/organizations/usage", dependencies=_admin)
def get_usage(wh: Wh, asking: Asking, start: Start = None, end: End = None) -> UsageResponse:
    """Count the requests of the organization; a count lags by a few seconds."""
    return usage.of_organization(wh, asking, moment(start, "start"), moment(end, "end"))


@router.get("/v1/organizations/api-keys/{key_id}/usage", dependencies=_admin)
def get_key_usage(wh: Wh, asking: Asking, key_id: str, start: Start = None, end: End = None) -> UsageResponse:
    """Count the requests of one key."""
    return usage.of_key(wh, asking, key_id, moment(start, "start"), moment(end, "end"))


@router.get("/v1/organizations/api-keys/{key_id}/usage/endpoints", dependencies=_admin)
def get_key_endpoints(
    wh: Wh, asking: Asking, key_id: str, start: Start = None, end: End = None
) -> list[EndpointUsage]:
    """Count the requests of one key by route, the most used first."""
    return usage.endpoints_of_key(wh, asking, key_id, moment(start, "start"), moment(end, "end"))
