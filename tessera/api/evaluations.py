"""Routes of datasets of judged queries and of evaluations on them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from tessera import evaluation_comparison, evaluations
from tessera.api.auth import Asking, require
from tessera.api.paging import Paging
from tessera.api.routing import Router
from tessera.api.scope import NamespaceId, Wh
from tessera.models.base import JsonObject
from tessera.models.evaluations import (
    CompareEvaluationsRequest,
    ComparisonResponse,
    CreateDatasetRequest,
    DatasetListResponse,
    EvaluationDataset,
    EvaluationListResponse,
    EvaluationRecord,
    EvaluationStatus,
    StartEvaluationRequest,
    StartEvaluationResponse,
)

router = Router(tags=["Evaluations"])

DatasetIdentifier = Annotated[
    str, Path(description="Id or name of the dataset.", examples=["quickstart-questions"])
]
EvaluationId = Annotated[str, Path(examples=["eval_0f3a9c5e77d1b2c4"])]


@router.post("/v1/retrievers/evaluations/datasets", status_code=201, response_model=EvaluationDataset)
def create_dataset(wh: Wh, asking: Asking, namespace: NamespaceId, body: CreateDatasetRequest) -> JsonObject:
    """Store queries with the documents that answer them. Durable when answered."""
    return evaluations.create_dataset(wh, asking, namespace, body)


@router.get("/v1/retrievers/evaluations/datasets", response_model=DatasetListResponse)
def list_datasets(wh: Wh, asking: Asking, namespace: NamespaceId, page: Paging) -> JsonObject:
    """List datasets, the newest first, without their queries."""
    return evaluations.list_datasets(wh, asking, namespace, page)


@router.get("/v1/retrievers/evaluations/datasets/{dataset_identifier}", response_model=EvaluationDataset)
def get_dataset(
    wh: Wh, asking: Asking, namespace: NamespaceId, dataset_identifier: DatasetIdentifier
) -> JsonObject:
    """Return a dataset by id or name."""
    return evaluations.get_dataset(wh, asking, namespace, dataset_identifier)


@router.delete("/v1/retrievers/evaluations/datasets/{dataset_identifier}")
def delete_dataset(
    wh: Wh, asking: Asking, namespace: NamespaceId, dataset_identifier: DatasetIdentifier
) -> JsonObject:
    """Delete a dataset; durable. Evaluations that have ended keep their figures; 409 while one is under way."""
    return evaluations.delete_dataset(wh, asking, namespace, dataset_identifier)


@router.post(
    "/v1/retrievers/evaluations/compare",
    response_model=ComparisonResponse,
    dependencies=[require("read")],
)
def compare_evaluations(
    wh: Wh, asking: Asking, namespace: NamespaceId, body: CompareEvaluationsRequest
) -> JsonObject:
    """Compare two completed evaluations on one dataset, query by query, with a paired test. Nothing is written."""
    return evaluation_comparison.compare(wh, asking, namespace, body)


@router.post(
    "/v1/retrievers/{retriever_id}/evaluations", status_code=202, response_model=StartEvaluationResponse
)
def start_evaluation(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, body: StartEvaluationRequest
) -> JsonObject:
    """Run a retriever over a dataset in the background. Accepted and durable; its task tells how far it is."""
    return evaluations.start(wh, asking, namespace, retriever_id, body)


@router.get("/v1/retrievers/{retriever_id}/evaluations", response_model=EvaluationListResponse)
def list_evaluations(
    wh: Wh,
    asking: Asking,
    namespace: NamespaceId,
    retriever_id: str,
    page: Paging,
    status: Annotated[EvaluationStatus | None, Query(description="Only those in this state.")] = None,
    dataset_name: Annotated[
        str | None, Query(description="Only those on this dataset, by name or id.")
    ] = None,
) -> JsonObject:
    """List a retriever's evaluations, the newest first, without the results of single queries."""
    return evaluations.list_(wh, asking, namespace, retriever_id, page, status, dataset_name)


@router.get("/v1/retrievers/{retriever_id}/evaluations/{evaluation_id}", response_model=EvaluationRecord)
def get_evaluation(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, evaluation_id: EvaluationId
) -> JsonObject:
    """Return an evaluation with its figures and what came of each query."""
    return evaluations.get(wh, asking, namespace, retriever_id, evaluation_id)


@router.post(
    "/v1/retrievers/{retriever_id}/evaluations/{evaluation_id}/cancel", response_model=EvaluationRecord
)
def cancel_evaluation(
    wh: Wh, asking: Asking, namespace: NamespaceId, retriever_id: str, evaluation_id: EvaluationId
) -> JsonObject:
    """End an evaluation before its next query; durable. What was evaluated stays; 409 when it has ended."""
    return evaluations.cancel(wh, asking, namespace, retriever_id, evaluation_id)
