"""Routes of plans: what a batch would take, before it is submitted."""

from __future__ import annotations

from tessera import forecast
from tessera.api.auth import Asking
from tessera.api.buckets import Bucket
from tessera.api.routing import Router, require
from tessera.api.scope import NamespaceId, NamespaceIfNamed, Wh
from tessera.models.plans import PlanBatchRequest, PlanResponse, PlanSourcesRequest

router = Router(tags=["Batches"])


@router.post("/v1/batches/plan", dependencies=[require("read")])
def plan_sources(
    wh: Wh, asking: Asking, namespace: NamespaceIfNamed, body: PlanSourcesRequest
) -> PlanResponse:
    """Predict time, documents and disk of sources that are nowhere yet, by their measures; changes nothing.

    With `X-Namespace` the parameters and models that this namespace fixed hold.
    """
    return forecast.plan_sources(wh, asking, namespace, body)


@router.post("/v1/buckets/{bucket_identifier}/batches/plan", dependencies=[require("read")])
def plan_batch(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    bucket_identifier: Bucket,
    body: PlanBatchRequest | None = None,
) -> PlanResponse:
    """Predict time, documents and disk of a batch of a bucket's objects, whose files are measured; changes nothing."""
    return forecast.plan_batch(wh, asking, namespace, bucket_identifier, body or PlanBatchRequest())
