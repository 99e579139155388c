"""Routes of interactions with the hits of retrievers."""

from __future__ import annotations

from tessera import interactions
from tessera.api.auth import Asking
from tessera.api.paging import Paging
from tessera.api.routing import Router, require
from tessera.api.scope import NamespaceName, Wh
from tessera.models.interactions import (
    DeletedInteraction,
    InteractionRequest,
    InteractionResponse,
    InteractionsBatchRequest,
    InteractionsBatchResponse,
    ListInteractionsRequest,
    ListInteractionsResponse,
)

router = Router(tags=["Interactions"])


@router.post("/v1/retrievers/interactions")
def create_interaction(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: InteractionRequest
) -> InteractionResponse:
    """Store what somebody did with a hit. Durable when answered."""
    return interactions.create(wh, asking, namespace, body)


@router.post("/v1/retrievers/interactions/batch")
def create_interactions(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: InteractionsBatchRequest
) -> InteractionsBatchResponse:
    """Store up to 1000 interactions, all or, when one is wrong, none. Durable when answered."""
    return interactions.create_many(wh, asking, namespace, body.interactions)


@router.post("/v1/retrievers/interactions/list", dependencies=[require("read")])
def list_interactions(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceName,
    page: Paging,
    body: ListInteractionsRequest | None = None,
) -> ListInteractionsResponse:
    """List interactions, the newest first."""
    return interactions.list_(wh, asking, namespace, page, body or ListInteractionsRequest())


@router.get("/v1/retrievers/interactions/{interaction_id}")
def get_interaction(
    wh: Wh, asking: Asking, namespace: NamespaceName, interaction_id: str
) -> InteractionResponse:
    """Return one interaction."""
    return interactions.get(wh, asking, namespace, interaction_id)


@router.delete("/v1/retrievers/interactions/{interaction_id}")
def delete_interaction(
    wh: Wh, asking: Asking, namespace: NamespaceName, interaction_id: str
) -> DeletedInteraction:
    """Delete one interaction for good; durable when answered."""
    interactions.delete(wh, asking, namespace, interaction_id)
    return DeletedInteraction(
        message=f"Interaction {interaction_id[:255]} was deleted.", interaction_id=interaction_id
    )
