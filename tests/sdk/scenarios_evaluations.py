"""Datasets and evaluations with the generated classes; the same file for both releases."""

from __future__ import annotations

import json
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import unique
from scenarios_organizations import answered
from scenarios_taxonomies import TOPICS, Shop
from scenarios_typed import CONFIGURED, api, finished, refused


def judged(shop: Shop) -> Any:
    """Return a request for a dataset that asks with the text of each topic, which that document answers best."""
    documents = api(mixpeek.CollectionDocumentsApi, namespace=shop.namespace_id)
    found = documents.list_documents(shop.topics, list_documents_request=m.ListDocumentsRequest()).results
    ids = {document.additional_properties["topic"]: document.document_id for document in found}
    queries = [
        {
            "query_id": name,
            "query_input": {"q": text},
            "relevant_documents": [ids[name]],
            "relevance_scores": {ids[name]: 3},
        }
        for name, text in TOPICS.items()
    ]
    return m.CreateDatasetRequest.from_dict({"dataset_name": unique("judged"), "queries": queries})


def scenario_evaluations() -> None:
    shop = Shop()
    evaluations = api(mixpeek.RetrieverEvaluationsApi, namespace=shop.namespace_id)
    request = judged(shop)
    answer = evaluations.create_dataset_retrievers_evaluations_with_http_info(request)
    assert answer.status_code == 201
    # The newer client declares 200 here, and decodes no 201.
    made = m.EvaluationDataset.from_dict(json.loads(answer.raw_data)) if CONFIGURED else answer.data
    assert type(made) is m.EvaluationDataset, answer
    assert (made.dataset_name, made.query_count) == (request.dataset_name, len(TOPICS))
    read = answered(m.EvaluationDataset, evaluations.get_dataset_retrievers_evaluations, made.dataset_name)
    assert read == made
    assert type(read.queries[0]) is m.GroundTruthQuery
    listed = answered(m.DatasetListResponse, evaluations.list_datasets_retrievers_evaluations)
    assert (listed.total, listed.page, [each.dataset_id for each in listed.datasets]) == (
        1,
        1,
        [made.dataset_id],
    )
    refused(exceptions.ConflictException, evaluations.create_dataset_retrievers_evaluations, request)

    started = answered(
        m.StartEvaluationResponse,
        evaluations.start_evaluation_retrievers,
        shop.retriever,
        m.StartEvaluationRequest(
            dataset_name=made.dataset_name,
            evaluation_config=m.EvaluationConfig(k_values=[1, 2], metrics=["recall", "ndcg", "mrr"]),
        ),
    )
    assert finished(started.task_id).status == "COMPLETED"
    record = answered(
        m.EvaluationRecord, evaluations.get_evaluation_retrievers, shop.retriever, started.evaluation_id
    )
    assert (record.status, record.query_count, record.dataset_id) == (
        "completed",
        len(TOPICS),
        made.dataset_id,
    )
    assert record.metrics_by_k == {k: {"recall": 1, "ndcg": 1, "mrr": 1} for k in ("1", "2")}
    assert record.overall_metrics == record.metrics_by_k["2"]
    page = answered(m.EvaluationListResponse, evaluations.list_evaluations_retrievers, shop.retriever)
    assert (page.total, [each.evaluation_id for each in page.evaluations]) == (1, [started.evaluation_id])
    refused(exceptions.NotFoundException, evaluations.get_dataset_retrievers_evaluations, "nowhere")
