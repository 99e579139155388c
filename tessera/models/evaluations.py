"""Datasets of judged queries, and evaluations of retrievers on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model

Metric = Literal["precision", "recall", "f1", "f2", "map", "ndcg", "mrr"]
_DOCUMENT = "doc_0f3a9c5e77d1b2c40f3a9c5e77d1b2c4"


class EvaluationStatus(StrEnum):
    """A closed set: clients refuse a state that they do not know. What was cancelled has failed."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


#: Most queries of one dataset.
MAX_QUERIES = 5000
#: States of an evaluation that has not ended.
OPEN = (EvaluationStatus.PENDING, EvaluationStatus.IN_PROGRESS)


class GroundTruthQuery(Model):
    """A query, and which documents answer it; a score above 0 is relevant, 1 unless `relevance_scores` says more."""

    query_id: str = Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")
    query_input: JsonObject
    relevant_documents: list[str] = Field(max_length=10_000)
    relevance_scores: dict[str, Annotated[int, Field(ge=0, le=1000, strict=True)]] | None = Field(
        None, max_length=10_000
    )


class CreateDatasetRequest(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset_name": "quickstart-questions",
                    "queries": [
                        {
                            "query_id": "q1",
                            "query_input": {"query_text": "wireless headphones"},
                            "relevant_documents": [_DOCUMENT],
                            "relevance_scores": {_DOCUMENT: 3},
                        }
                    ],
                }
            ]
        }
    )

    dataset_name: str = Field(min_length=1, max_length=200)
    description: str | None = Field(None, max_length=2000)
    queries: list[GroundTruthQuery] = Field(min_length=1, max_length=MAX_QUERIES)
    metadata: JsonObject | None = None


class EvaluationDataset(Model):
    """A dataset; `internal_id` is what clients require, and holds the organization's public id."""

    dataset_id: str
    dataset_name: str
    description: str | None
    queries: list[GroundTruthQuery] = Field(description="Empty in lists; `query_count` is not.")
    query_count: int
    metadata: JsonObject | None
    namespace_id: str
    internal_id: str
    created_at: str
    updated_at: str


class DatasetListResponse(Model):
    datasets: list[EvaluationDataset]
    total: int
    page: int
    page_size: int


class EvaluationConfig(Model):
    k_values: list[Annotated[int, Field(ge=1, le=1000, strict=True)]] = Field(
        default=[1, 5, 10, 20], min_length=1, max_length=20
    )
    metrics: list[Metric] = Field(
        default=["precision", "recall", "f1", "map", "ndcg", "mrr"], min_length=1, max_length=7
    )


class StartEvaluationRequest(Model):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "dataset_name": "quickstart-questions",
                    "evaluation_config": {"k_values": [1, 10], "metrics": ["recall", "ndcg"]},
                }
            ]
        }
    )

    dataset_name: str = Field(min_length=1, max_length=200, description="Name or id of a dataset.")
    evaluation_config: EvaluationConfig | None = None


class StartEvaluationResponse(Model):
    task_id: str
    evaluation_id: str
    task_type: str = "retriever.evaluation"
    status: str = "pending"
    created_at: str


class QueryOutcome(Model):
    """What came of one query: what was found and how good it is by k; a skipped one says why in `error`."""

    query_id: str
    status: Literal["evaluated", "skipped"]
    error: str | None = None
    retrieved_count: int | None = None
    retrieved_documents: list[str] | None = None
    metrics_by_k: dict[str, dict[str, float]] | None = None


class EvaluationRecord(Model):
    """An evaluation. Means are over the queries that were evaluated; `overall_metrics` are those at the largest k."""

    evaluation_id: str
    retriever_id: str
    dataset_id: str
    dataset_name: str
    config: EvaluationConfig
    status: EvaluationStatus
    task_id: str
    namespace_id: str
    internal_id: str
    query_count: int
    total_queries: int
    evaluated_queries: int
    skipped_queries: int
    overall_metrics: dict[str, float] | None
    metrics_by_k: dict[str, dict[str, float]] | None
    error_message: str | None
    query_results: list[QueryOutcome] | None = Field(None, description="Left out of lists.")
    created_at: str
    updated_at: str
    completed_at: str | None


class EvaluationListResponse(Model):
    evaluations: list[EvaluationRecord]
    total: int
    page: int
    page_size: int


class CompareEvaluationsRequest(Model):
    """Two completed evaluations on one dataset, and which figure decides: nDCG at 10 unless another is named."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "baseline_evaluation_id": "eval_0f3a9c5e77d1b2c4",
                    "candidate_evaluation_id": "eval_1c8e4f6a2b3d5e70",
                    "metric": "ndcg",
                    "k": 10,
                }
            ]
        }
    )

    baseline_evaluation_id: str = Field(min_length=1, max_length=200)
    candidate_evaluation_id: str = Field(min_length=1, max_length=200)
    metric: Metric | None = None
    k: int | None = Field(None, ge=1, le=1000, strict=True)
    query_limit: int = Field(
        50, ge=0, le=5000, strict=True, description="Queries to list, those that differ most."
    )


class ComparedEvaluation(Model):
    evaluation_id: str
    retriever_id: str
    retriever_name: str
    evaluated_queries: int
    skipped_queries: int
    completed_at: str


class ComparedFigure(Model):
    """A figure of both, over the same queries; `difference` is candidate minus baseline.

    `p_value` is that of Fisher's paired randomization test, `interval_95` that of a bootstrap over queries, null with
    fewer than six. Neither is corrected for how many figures there are: one was named to decide.
    """

    metric: Metric
    k: int
    baseline: float
    candidate: float
    difference: float
    interval_95: list[float] | None
    p_value: float
    wins: int = Field(description="Queries at which the candidate is better.")
    losses: int
    ties: int


class ComparedQuery(Model):
    query_id: str
    baseline: float
    candidate: float
    difference: float


class ComparisonResponse(Model):
    """What differs between two evaluations, over the queries that both evaluated.

    `queries` has the figure that decides, where it differs most first; `left_out_queries` those that one of them or
    both skipped.
    """

    dataset_id: str
    dataset_name: str
    baseline: ComparedEvaluation
    candidate: ComparedEvaluation
    compared_queries: int
    left_out_queries: list[str]
    decided_by: ComparedFigure
    verdict: Literal["candidate_better", "baseline_better", "no_difference_shown", "too_few_queries"]
    message: str
    figures: list[ComparedFigure]
    queries: list[ComparedQuery]
