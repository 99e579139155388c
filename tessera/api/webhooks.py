"""Routes of webhooks and of what they were told."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import webhooks
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import Wh
from tessera.models.webhooks import (
    CreatedWebhookResponse,
    DeliveryStatus,
    EventType,
    ListDeliveriesResponse,
    ListWebhooksRequest,
    ListWebhooksResponse,
    WebhookDelivery,
    WebhookRequest,
    WebhookResponse,
)

router = Router(tags=["Webhooks"])
_admin = [require("admin")]

Identifier = Annotated[str, Path(description="Id or name of the webhook.", examples=["search-cache"])]
DeliveryId = Annotated[str, Path(examples=["dlv_0f3a9c5e77d1b2c4"])]


@router.post("/v1/organizations/webhooks", status_code=201, dependencies=_admin)
def create_webhook(wh: Wh, asking: Asking, body: WebhookRequest) -> CreatedWebhookResponse:
    """Make a webhook; durable. `secret`, with which receivers check signatures, is shown this once."""
    return webhooks.create(wh, asking, body)


@router.post("/v1/organizations/webhooks/list", dependencies=_admin)
def list_webhooks(
    wh: Wh, asking: Asking, page: Paging, body: ListWebhooksRequest | None = None
) -> ListWebhooksResponse:
    """List webhooks, oldest first; of one event type, or only those that are active."""
    return webhooks.list_(wh, asking, page, body or ListWebhooksRequest())


@router.get("/v1/organizations/webhooks", dependencies=_admin)
def list_webhooks_get(wh: Wh, asking: Asking, page: Paging) -> ListWebhooksResponse:
    """List webhooks, oldest first."""
    return webhooks.list_(wh, asking, page, ListWebhooksRequest())


@router.get("/v1/organizations/webhooks/{webhook_identifier}", dependencies=_admin)
def get_webhook(wh: Wh, asking: Asking, webhook_identifier: Identifier) -> WebhookResponse:
    """Return a webhook by id or name; secrets are hidden."""
    return webhooks.get(wh, asking, webhook_identifier)


@router.put("/v1/organizations/webhooks/{webhook_identifier}", dependencies=_admin)
def update_webhook(
    wh: Wh, asking: Asking, webhook_identifier: Identifier, body: WebhookRequest
) -> WebhookResponse:
    """Replace a webhook; durable, and in force with the next attempt. What is sent back hidden stays as it is."""
    return webhooks.replace(wh, asking, webhook_identifier, body)


@router.delete("/v1/organizations/webhooks/{webhook_identifier}", status_code=204, dependencies=_admin)
def delete_webhook(wh: Wh, asking: Asking, webhook_identifier: Identifier) -> None:
    """Remove a webhook and its delivery log; durable."""
    webhooks.delete(wh, asking, webhook_identifier)


@router.get("/v1/organizations/webhooks/{webhook_identifier}/deliveries", dependencies=_admin)
def list_webhook_deliveries(
    wh: Wh,
    asking: Asking,
    webhook_identifier: Identifier,
    page: Paging,
    status: Annotated[DeliveryStatus | None, Query()] = None,
    event_type: Annotated[EventType | None, Query()] = None,
) -> ListDeliveriesResponse:
    """List what a webhook was told, the newest first, with every attempt's status and error."""
    return webhooks.list_deliveries(wh, asking, webhook_identifier, page, status, event_type)


@router.get("/v1/organizations/webhooks/{webhook_identifier}/deliveries/{delivery_id}", dependencies=_admin)
def get_webhook_delivery(
    wh: Wh, asking: Asking, webhook_identifier: Identifier, delivery_id: DeliveryId
) -> WebhookDelivery:
    """Return one delivery."""
    return webhooks.get_delivery(wh, asking, webhook_identifier, delivery_id)


@router.post(
    "/v1/organizations/webhooks/{webhook_identifier}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    dependencies=_admin,
)
def redeliver_webhook(
    wh: Wh, asking: Asking, webhook_identifier: Identifier, delivery_id: DeliveryId
) -> WebhookDelivery:
    """Send an event again, as a new delivery of the same event_id; accepted and durable."""
    return webhooks.redeliver(wh, asking, webhook_identifier, delivery_id)
