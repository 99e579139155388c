"""Routes of the failure inbox: what failed in a namespace's batches. Ours, beside the API's contract."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import failures
from tessera.api.auth import Asking
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.causes import Cause
from tessera.models.failures import (
    FailureDetail,
    FailureState,
    ListFailuresRequest,
    ListFailuresResponse,
    RetryFailuresRequest,
    RetryFailuresResponse,
)

router = Router(tags=["Failures"])

FailureId = Annotated[str, Path(examples=["fail_0f3a9c5e77d1b2c4"])]
Causes = Annotated[list[Cause] | None, Query(description="Only this cause; repeatable.")]
Id = Annotated[str | None, Query(max_length=128)]


@router.get("/v1/failures")
def list_failures(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    page: Paging,
    cause: Causes = None,
    collection_id: Id = None,
    batch_id: Id = None,
    object_id: Id = None,
    state: FailureState = FailureState.FAILED,
) -> ListFailuresResponse:
    """List rows that failed in any batch, the latest first, with cause, message and next step."""
    request = ListFailuresRequest(
        cause=cause or None,
        collection_id=collection_id,
        batch_id=batch_id,
        object_id=object_id,
        state=state,
    )
    return failures.list_(wh, asking, namespace, page, request)


@router.post("/v1/failures/list")
def list_failures_by_body(
    wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging, body: ListFailuresRequest | None = None
) -> ListFailuresResponse:
    """List rows that failed in any batch, the latest first, with cause, message and next step."""
    return failures.list_(wh, asking, namespace, page, body or ListFailuresRequest())


@router.post("/v1/failures/retry")
def retry_failures(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: RetryFailuresRequest | None = None
) -> RetryFailuresResponse:
    """Run rows that failed again, each in its batch; durable when answered, findable when the tasks are COMPLETED."""
    return failures.retry(wh, asking, namespace, body or RetryFailuresRequest())


@router.get("/v1/failures/{failure_id}")
def get_failure(wh: Wh, asking: Asking, namespace: NamespaceId, failure_id: FailureId) -> FailureDetail:
    """Return a row that failed, with its history."""
    return failures.get(wh, asking, namespace, failure_id)
