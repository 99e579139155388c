"""What one does with a retriever beside running it, with the generated classes; the same file for both releases."""

from __future__ import annotations

import json
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from mixpeek.models.query import Query
from scenarios_common import TEXT_URI, unique
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


def staged(stage_id: str, parameters: Any) -> dict[str, Any]:
    """Return a stage with the parameters that the client's own model of them sends, its defaults included."""
    sent = parameters if isinstance(parameters, dict) else parameters.to_dict()
    return {"stage_name": stage_id, "config": {"stage_id": stage_id, "parameters": sent}}


def stored(namespace: str, *stages: dict[str, Any], **fields: Any) -> str:
    request = {
        "retriever_name": unique("ret"),
        "collection_identifiers": [],
        "stages": list(stages),
        "input_schema": {"query": {"type": "text"}},
        **fields,
    }
    made = api(mixpeek.RetrieversApi, namespace=namespace).create_retriever_with_http_info(
        m.CreateRetrieverRequest.from_dict(request)
    )
    assert made.status_code == 200
    return str(json.loads(made.raw_data)["retriever_id"])


def executed(namespace: str, retriever_id: str, **inputs: Any) -> dict[str, Any]:
    done = api(mixpeek.RetrieversApi, namespace=namespace).execute_retriever_with_http_info(
        retriever_id, m.ExecuteRetrieverRequest.from_dict({"inputs": inputs})
    )
    answer: dict[str, Any] = json.loads(done.raw_data)
    m.RetrieverExecutionStatistics.from_dict(answer["stage_statistics"])
    if CONFIGURED:
        assert type(done.data) is m.ExecuteRetrieverResponse
    return answer


def scenario_stages_as_the_clients_models_write_them() -> None:
    namespace = create_namespace().namespace_id
    text = m.StageDefsTextQueryInput(value="{{INPUT.query}}")
    search = m.StageParamsFeatureSearch(
        searches=[m.StageDefsFeatureSearchConfig(feature_uri=TEXT_URI, query=Query(text))],
        facets=[m.StageDefsFacetFieldConfig(key="brand")],
        group_by=m.StageDefsFeatureSearchGroupBy(field="source_object_id", max_per_group=2),
    )
    expanded = m.StageParamsQueryExpand(
        feature_search_config={"query": {"text": "{{INPUT.query}}"}, "top_k": 10}
    )
    called = m.StageParamsApiCall(url="https://httpbin.org/get", allowed_domains=["httpbin.org"])
    for stages in (
        (staged("feature_search", search), staged("llm_filter", m.StageParamsLlmFilter())),
        (staged("query_expand", expanded), staged("llm_enrich", m.StageParamsLlmEnrich())),
        (staged("feature_search", search), staged("summarize", m.StageParamsSummarize())),
        (staged("feature_search", search), staged("api_call", called)),
    ):
        answer = executed(namespace, stored(namespace, *stages), query="lamps")
        assert (answer["status"], answer["documents"]) == ("completed", [])
        if stages[0]["stage_name"] == "feature_search":
            (facet,) = answer["facets"]
            assert (facet["key"], facet["values"], facet["exact"]) == ("brand", [], True)
        else:
            (told, *_) = answer["stage_statistics"]["stages"].values()
            assert told["metadata"]["queries"][0] == "lamps"
            assert told["llm_calls"] == 1
    # The client's default is a real model, which is not installed here.
    reranked = staged("rerank", m.StageParamsRerank())
    error = refused(exceptions.BadRequestException, stored, namespace, reranked)
    assert "tessera models pull bge-reranker-v2-m3" in str(error)


def scenario_a_budget_that_is_spent() -> None:
    namespace = create_namespace().namespace_id
    limits = m.BudgetLimits.from_dict({"max_time_ms": 0})
    retriever_id = stored(namespace, LIMIT, LIMIT, budget_limits=limits.to_dict())
    answer = executed(namespace, retriever_id)
    assert (answer["status"], answer["documents"]) == ("failed", [])
    assert "max_time_ms" in answer["error"]
    assert len(answer["stage_statistics"]["stages"]) == 1
    one = api(mixpeek.RetrieversApi, namespace=namespace).get_execution_retrievers(
        retriever_id, answer["execution_id"]
    )
    assert (one.status, one.error) == ("failed", answer["error"])
