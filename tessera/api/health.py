"""Health: answered from memory by the event loop, so that it tells the truth about a busy server."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import Request

from tessera import __version__
from tessera.api.routing import Router
from tessera.api.scope import warehouse
from tessera.models.base import Model

router = Router(tags=["Health"])
_started = time.monotonic()


class HealthServiceStatus(Model):
    cache: bool
    metadata: bool
    vector_store: bool
    object_storage: bool
    task_queue: bool
    inference: bool


class HealthCheckResponse(Model):
    status: Literal["OK", "DEGRADED"]
    data: HealthServiceStatus
    errors: dict[str, str] | None
    meta: dict[str, Any]


@router.get("/v1/health")
async def healthcheck(request: Request) -> HealthCheckResponse:
    """Tell whether the server's parts can work. Needs no key; waits for nothing."""
    wh = warehouse(request)
    errors: dict[str, str] = {}
    if not wh.settings.data.is_dir():
        errors["metadata"] = errors["object_storage"] = "The data directory is gone."
    if not wh.jobs.is_running():
        errors["task_queue"] = "Batches are not taken up."
    parts = {name: name not in errors for name in HealthServiceStatus.model_fields}
    return HealthCheckResponse(
        status="DEGRADED" if errors else "OK",
        data=HealthServiceStatus(**parts),
        errors=errors or None,
        meta={"version": __version__, "uptime_s": round(time.monotonic() - _started, 1)},
    )


@router.get("/v1/health/deep", include_in_schema=False)
async def healthcheck_deep(request: Request) -> HealthCheckResponse:
    """Answer as ``/v1/health`` does."""
    return await healthcheck(request)


@router.get("/v1/health/liveness")
async def liveness() -> dict[str, str]:
    """Answer as long as the process serves requests. Needs no key."""
    return {"status": "OK"}


@router.get("/v1/health/beat")
async def beat(request: Request) -> dict[str, str]:
    """Tell whether the dispatcher of batches is alive. Needs no key."""
    return {"status": "OK" if warehouse(request).jobs.is_running() else "DEGRADED"}
