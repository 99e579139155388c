"""Interactions, discovery and direct inference with the generated classes; the same file for both releases."""

from __future__ import annotations

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import TEXT_URI
from scenarios_organizations import answered
from scenarios_retrievers import LIMIT, executed, staged, stored
from scenarios_typed import CONFIGURED, TEXT_EXTRACTOR, api, create_namespace, refused


def scenario_interactions() -> None:
    namespace = create_namespace().namespace_id
    retriever = stored(namespace, LIMIT)
    execution = executed(namespace, retriever)["execution_id"]
    interactions = api(mixpeek.RetrieverInteractionsApi, namespace=namespace)
    said = m.SearchInteraction(
        feature_id="doc_1",
        interaction_type=[m.InteractionType.CLICK, m.InteractionType.LONG_VIEW],
        position=3,
        execution_id=execution,
        user_id="una",
        query_snapshot={"text": "tents"},
        document_score=0.25,
        result_set_size=10,
        metadata={"device": "phone"},
    )
    made = answered(m.InteractionResponse, interactions.create_interaction_retrievers, said)
    assert (made.retriever_id, made.position, made.document_score) == (retriever, 3, 0.25)
    assert made.interaction_type == [m.InteractionType.CLICK, m.InteractionType.LONG_VIEW]
    assert made.metadata == {"device": "phone"} and made.timestamp
    read = answered(m.InteractionResponse, interactions.get_interaction_retrievers, made.interaction_id)
    assert read == made
    wanted = m.ListInteractionsRequest(user_id="una", interaction_type="click")
    listed = answered(
        m.ListInteractionsResponse,
        interactions.list_interactions_retrievers,
        list_interactions_request=wanted,
        include_total=True,
    )
    assert listed.results == [made] and listed.pagination.total == 1
    if CONFIGURED:
        assert listed.items == [made]
        many = m.BulkInteractionsRequest(interactions=[said, said])
        done = answered(
            m.BulkInteractionsResponse, interactions.create_interactions_bulk_retrievers_batch, many
        )
        assert done.created == 2 and [each.index for each in done.results] == [0, 1]
    gone = interactions.delete_interaction_retrievers(made.interaction_id)
    assert gone["success"] is True
    refused(exceptions.NotFoundException, interactions.get_interaction_retrievers, made.interaction_id)


def scenario_discovery() -> None:
    discovery = api(mixpeek.DiscoveryApi, key=None)
    whole = answered(m.DiscoveryResponse, discovery.get_all_discovery)
    extractors = discovery.list_extractors_discovery()
    assert all(type(each) is m.ExtractorDiscovery for each in extractors) and extractors == whole.extractors
    stages = discovery.list_stages_with_examples_discovery()
    assert all(type(each) is m.StageDiscovery for each in stages) and stages == whole.stages
    schema = answered(m.ManifestSchemaDiscovery, discovery.get_manifest_schema_discovery)
    assert schema == whole.manifest_schema and "retriever" in schema.resource_types
    (limit,) = (each for each in stages if each.stage_id == "limit")
    namespace = create_namespace().namespace_id
    assert executed(namespace, stored(namespace, limit.example_config))["documents"] == []


def scenario_inference() -> None:
    namespace = create_namespace(feature_extractors=[TEXT_EXTRACTOR]).namespace_id
    inference = api(mixpeek.InferenceApi, namespace=namespace)
    request = m.RawInferenceRequest(
        inference_name="multilingual_e5_large_instruct_v1", inputs={"texts": ["a tent", "rain"]}
    )
    answer = answered(m.RawInferenceResponse, inference.execute_raw_inference, request)
    assert len(answer.data["embeddings"]) == 2 and answer.latency_ms > 0
    chat = m.RawInferenceRequest(provider="openai", model="gpt-4o-mini", inputs={"prompts": ["hello"]})
    told = answered(m.RawInferenceResponse, inference.execute_raw_inference, chat)
    assert told.data == {"responses": ["HELLO"]} and told.tokens_used["total"] > 0
    unknown = m.RawInferenceRequest(inference_name="nothing", inputs={"text": "a"})
    refused(exceptions.BadRequestException, inference.execute_raw_inference, unknown)


def scenario_learned_fusion() -> None:
    namespace = create_namespace().namespace_id
    query = {"input_mode": "text", "value": "{{INPUT.query}}"}
    parameters = {
        "searches": [{"feature_uri": TEXT_URI, "query": query}, {"lexical": True, "query": query}],
        "fusion": m.StageDefsFusionStrategy.LEARNED.value,
        # As the client fills it in, with what it says of bandits.
        "learning_config": m.StageDefsLearnedFusionConfig().to_dict(),
    }
    answer = executed(namespace, stored(namespace, staged("feature_search", parameters)), query="tents")
    (told,) = answer["stage_statistics"]["stages"].values()
    assert told["metadata"]["fusion"]["fallback"].startswith("0 of 5 executions")
    parameters["learning_config"] = {"algorithm": m.StageDefsLearningAlgorithm.UCB.value}
    error = refused(Exception, stored, namespace, staged("feature_search", parameters))
    assert "conditional_logit" in str(error)
