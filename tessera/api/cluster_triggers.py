"""Routes of triggers: what has clusters executed by itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from tessera import cluster_triggers
from tessera.api.auth import Asking, require
from tessera.api.routing import Router
from tessera.api.scope import NamespaceName, Wh
from tessera.models.cluster_triggers import (
    CreateTriggerRequest,
    ListTriggersRequest,
    ListTriggersResponse,
    TriggerHistoryRequest,
    TriggerHistoryResponse,
    TriggerModel,
    TriggerStatus,
    UpdateTriggerRequest,
)

router = Router(tags=["Cluster triggers"])
_read = [require("read")]

TriggerId = Annotated[str, Path(examples=["trg_0f3a9c5e77d1b2c4"])]


@router.post("/v1/clusters/triggers", status_code=201)
def create_trigger(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: CreateTriggerRequest
) -> TriggerModel:
    """Have a cluster executed by cron expression, at intervals, or as documents come; durable when answered."""
    return cluster_triggers.create(wh, asking, namespace, body)


@router.post("/v1/clusters/triggers/list", dependencies=_read)
def list_triggers(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: ListTriggersRequest | None = None
) -> ListTriggersResponse:
    """List triggers, the newest first."""
    return cluster_triggers.list_(wh, asking, namespace, body or ListTriggersRequest())


@router.get("/v1/clusters/triggers/{trigger_id}")
def get_trigger(wh: Wh, asking: Asking, namespace: NamespaceName, trigger_id: TriggerId) -> TriggerModel:
    """Return a trigger: when it fires next, and how its last execution went."""
    return cluster_triggers.get(wh, asking, namespace, trigger_id)


@router.patch("/v1/clusters/triggers/{trigger_id}")
def update_trigger(
    wh: Wh, asking: Asking, namespace: NamespaceName, trigger_id: TriggerId, body: UpdateTriggerRequest
) -> TriggerModel:
    """Change schedule, description or status; durable when answered."""
    return cluster_triggers.update(wh, asking, namespace, trigger_id, body)


@router.delete("/v1/clusters/triggers/{trigger_id}", status_code=204)
def delete_trigger(wh: Wh, asking: Asking, namespace: NamespaceName, trigger_id: TriggerId) -> None:
    """Delete a trigger; durable when answered. Its cluster and what was executed stay."""
    cluster_triggers.delete(wh, asking, namespace, trigger_id)


@router.post("/v1/clusters/triggers/{trigger_id}/pause")
def pause_trigger(wh: Wh, asking: Asking, namespace: NamespaceName, trigger_id: TriggerId) -> TriggerModel:
    """Let a trigger rest; durable when answered. An execution that it began goes on."""
    return cluster_triggers.set_status(wh, asking, namespace, trigger_id, TriggerStatus.PAUSED)


@router.post("/v1/clusters/triggers/{trigger_id}/resume")
def resume_trigger(wh: Wh, asking: Asking, namespace: NamespaceName, trigger_id: TriggerId) -> TriggerModel:
    """Let a trigger go on, with its failures forgiven; durable when answered. What it missed stays undone."""
    return cluster_triggers.set_status(wh, asking, namespace, trigger_id, TriggerStatus.ACTIVE)


@router.post("/v1/clusters/triggers/{trigger_id}/history", dependencies=_read)
def trigger_history(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    trigger_id: TriggerId,
    body: TriggerHistoryRequest | None = None,
) -> TriggerHistoryResponse:
    """List the executions that a trigger began, the newest first."""
    return cluster_triggers.history(wh, asking, namespace, trigger_id, body or TriggerHistoryRequest())
