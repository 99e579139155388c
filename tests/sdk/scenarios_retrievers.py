"""What one does with a retriever beside running it, with the generated classes; the same file for both releases."""

from __future__ import annotations

import json
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import unique
from scenarios_organizations import answered
from scenarios_typed import CONFIGURED, api, create_namespace, refused

LIMIT = {
    "stage_name": "few",
    "stage_type": "reduce",
    "config": {"stage_id": "limit", "parameters": {"limit": 3}},
}


def new_retriever(namespace: str) -> Any:
    request = {
        "retriever_name": unique("ret"),
        "collection_identifiers": [],
        "stages": [LIMIT],
        "input_schema": {},
    }
    made = api(mixpeek.RetrieversApi, namespace=namespace).create_retriever_with_http_info(
        m.CreateRetrieverRequest.from_dict(request)
    )
    assert made.status_code == 200
    return json.loads(made.raw_data)


def scenario_explain_and_executions() -> None:
    namespace = create_namespace().namespace_id
    retriever = new_retriever(namespace)
    retrievers = api(mixpeek.RetrieversApi, namespace=namespace)
    plan = answered(
        m.ExplainRetrieverResponse,
        retrievers.explain_retriever_execution_id_execute,
        retriever["retriever_id"],
        m.ExplainRetrieverRequest.from_dict({"inputs": {}}),
    )
    assert (plan.retriever_id, plan.total_estimated_stages) == (retriever["retriever_id"], 1)
    assert type(plan.execution_plan[0]) is m.ExplainStagePlan
    assert (plan.execution_plan[0].stage_name, plan.execution_plan[0].estimated_output) == ("few", 0)
    done = retrievers.execute_retriever_with_http_info(
        retriever["retriever_id"], m.ExecuteRetrieverRequest.from_dict({"inputs": {}})
    )
    execution_id = json.loads(done.raw_data)["execution_id"]
    listed = answered(
        m.ListExecutionsResponse, retrievers.list_executions_retrievers, retriever["retriever_id"]
    )
    assert [item.execution_id for item in listed.results] == [execution_id]
    assert (listed.pagination.total, listed.pagination.has_next) == (1, False)
    one = answered(
        m.ExecutionDetail, retrievers.get_execution_retrievers, retriever["retriever_id"], execution_id
    )
    assert (one.status, one.total_stages) == ("completed", 1)
    assert one.created_at.tzinfo is not None
    refused(
        exceptions.NotFoundException,
        retrievers.get_execution_retrievers,
        retriever["retriever_id"],
        "exec_0123456789abcdef",
    )


def scenario_clone() -> None:
    namespace = create_namespace().namespace_id
    retriever = new_retriever(namespace)
    retrievers = api(mixpeek.RetrieversApi, namespace=namespace)
    name = unique("clone")
    request = m.CloneRetrieverRequest.from_dict({"retriever_name": name})
    made = retrievers.clone_retriever_with_http_info(retriever["retriever_id"], request)
    assert made.status_code == 201
    # The newer client declares 200 here, and decodes no 201.
    cloned = m.CloneRetrieverResponse.from_dict(json.loads(made.raw_data)) if CONFIGURED else made.data
    assert type(cloned) is m.CloneRetrieverResponse, made
    assert (cloned.source_retriever_id, cloned.retriever.retriever_name) == (retriever["retriever_id"], name)
    refused(exceptions.ConflictException, retrievers.clone_retriever, retriever["retriever_id"], request)
