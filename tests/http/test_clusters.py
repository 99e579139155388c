"""Clusters: defined, executed in a process of their own, read as groups and a map, written into documents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.language_endpoint import Endpoint

TEXT_URI = "mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"
TENTS = [
    f"A tent number {n} that keeps heavy rain and strong wind outside the camp."
    for n in ("one", "two", "three")
] + ["The camp has a tent against rain.", "Pitch the tent before the rain and the wind come."]
SOUPS = [
    f"Simmer red lentils with ginger to a thick soup, recipe {n}." for n in ("one", "two", "three", "four")
]


class Topics(Loop):
    """A namespace with texts of two topics, five and four."""

    bucket_id: str
    texts: str
    objects: list[str]

    def cluster(self, **fields: Any) -> dict[str, Any]:
        config = {
            "feature_uris": [TEXT_URI],
            "clustering_method": "kmeans",
            "algorithm_params": {"n_clusters": 2},
            **fields.pop("vector_config", {}),
        }
        body = {"collection_ids": [self.texts], "vector_config": config, **fields}
        return dict(self.post("/clusters", body))

    def executed(self, cluster_id: str, body: Any = None) -> dict[str, Any]:
        task = self.post(f"/clusters/{cluster_id}/execute", body)
        ended = self.wait(task["task_id"], 120)
        assert ended["status"] == "COMPLETED", ended["error"]
        return dict(self.get(f"/clusters/{cluster_id}/executions"))


def topics(client: Any, name: str) -> Topics:
    made = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]})
    here = Topics(client, made.raise_for_status().json())
    here.bucket_id = here.bucket()
    here.texts = here.collection(
        here.bucket_id,
        {**TEXT, "input_mappings": {"text": "note"}, "field_passthrough": [{"source_path": "metadata.kind"}]},
    )
    here.objects = [here.note(here.bucket_id, text, metadata={"kind": "tent"}) for text in TENTS]
    here.objects += [here.note(here.bucket_id, text, metadata={"kind": "soup"}) for text in SOUPS]
    assert here.run(here.bucket_id, here.objects)["status"] == "COMPLETED"
    return here


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Topics]:
    with server.client() as client:
        yield topics(client, "topics")


@pytest.fixture(scope="module")
def fitted(place: Topics) -> dict[str, Any]:
    """A cluster of the two topics that has been executed."""
    cluster = place.cluster(cluster_name="two topics")
    return {**cluster, "run": place.executed(cluster["cluster_id"])}


@pytest.mark.operation("POST", "/v1/clusters", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}", 200)
@pytest.mark.operation("GET", "/v1/clusters", 200)
@pytest.mark.operation("POST", "/v1/clusters/list", 200)
@pytest.mark.operation("PATCH", "/v1/clusters/{cluster_id}", 200)
@pytest.mark.operation("DELETE", "/v1/clusters/{cluster_id}", 200)
def test_a_cluster_is_kept_listed_renamed_and_deleted(place: Topics) -> None:
    made = place.cluster(cluster_name="kept", metadata={"why": "test"})
    path = f"/clusters/{made['cluster_id']}"
    assert made["input_collections"] == [place.texts]
    assert made["status"] == "PENDING"
    assert place.get(path) == made
    assert place.get("/clusters/kept")["cluster_id"] == made["cluster_id"]
    assert made["cluster_id"] in [each["cluster_id"] for each in place.get("/clusters")["results"]]
    found = place.post("/clusters/list", {"search": "kept"})
    assert [each["cluster_name"] for each in found["results"]] == ["kept"]
    assert found["stats"]["total_clusters"] == 1
    place.refused(409, "POST", "/clusters", {**made, "cluster_name": "kept"})
    for name in ("a/b", " ", "triggers", "clust_0123456789abcdef", "nul\x00"):  # no path would lead there
        assert "cluster_name" in place.refused(422, "POST", "/clusters", {**made, "cluster_name": name})
        assert "cluster_name" in place.refused(422, "PATCH", path, {"cluster_name": name})
    renamed = place.patch(path, {"cluster_name": "renamed", "description": "new"})
    assert (renamed["cluster_name"], renamed["description"], renamed["metadata"]) == (
        "renamed",
        "new",
        {"why": "test"},
    )
    assert place.delete(path)["success"] is True
    place.refused(404, "GET", path)


@pytest.mark.operation("POST", "/v1/clusters/{cluster_id}/execute", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}/executions", 200)
@pytest.mark.operation("POST", "/v1/clusters/{cluster_id}/executions/list", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}/executions/{run_id}", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}/executions/{run_id}/data", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}/groups", 200)
@pytest.mark.operation("GET", "/v1/clusters/{cluster_id}/visualization", 200)
def test_two_topics_are_found_labelled_and_put_on_a_map(place: Topics) -> None:
    cluster = place.cluster()
    path = f"/clusters/{cluster['cluster_id']}"
    place.refused(409, "GET", f"{path}/groups")
    run = place.executed(cluster["cluster_id"])
    assert (run["status"], run["num_clusters"], run["num_points"], run["index_gap"]) == ("completed", 2, 9, 0)
    assert [each["num_members"] for each in run["centroids"]] == [5, 4]
    assert "tent" in run["centroids"][0]["keywords"]
    assert "soup" in run["centroids"][1]["label"] or "lentils" in run["centroids"][1]["label"]
    assert run["metrics"]["silhouette_score"] > 0
    assert place.get(f"{path}/executions/{run['run_id']}") == run
    assert place.post(f"{path}/executions/list", {})["results"] == [run]

    members = place.get(f"{path}/executions/{run['run_id']}/data")["results"]
    kinds = {each["document_id"]: each["kind"] for each in place.documents(place.texts)}
    assert {(each["cluster_id"], kinds[each["document_id"]]) for each in members} == {
        ("cl_0", "tent"),
        ("cl_1", "soup"),
    }
    one = place.get(f"{path}/executions/{run['run_id']}/data?group=cl_1&limit=2")
    assert (one["total_count"], [each["cluster_id"] for each in one["results"]]) == (4, ["cl_1", "cl_1"])
    place.refused(400, "GET", f"{path}/executions/{run['run_id']}/data?group=cl_7")

    groups = place.get(f"{path}/groups")
    assert [each["member_count"] for each in groups["groups"]] == [5, 4]
    assert (groups["total_groups"], groups["total_documents"]) == (2, 9)
    seen = place.get(f"{path}/visualization?max_points=5")
    assert (seen["total_points"], len(seen["centroids"])) == (9, 2)
    assert 0 < len(seen["members"]) <= 5
    compact = place.get(f"{path}/visualization?compact=true&run_id={run['run_id']}")["members"]
    assert len(compact["x"]) == len(compact["y"]) == len(compact["document_ids"]) == 9

    # The same documents give the same result, to the last coordinate.
    again = place.executed(cluster["cluster_id"])
    assert again["run_id"] != run["run_id"]
    assert place.get(f"{path}/visualization?compact=true")["members"] == compact
    stood = place.get(path)
    assert stood["cluster_stats"]["num_clusters"] == 2
    assert (stood["status"], stood["num_clusters"], stood["last_run_id"]) == ("COMPLETED", 2, again["run_id"])


@pytest.mark.parametrize(
    ("method", "params"),
    [
        pytest.param("dbscan", {"eps": 0.9, "min_samples": 2}, marks=pytest.mark.slow),
        ("hdbscan", {"min_cluster_size": 3}),
        pytest.param(
            "agglomerative",
            {"n_clusters": 2, "linkage": "average", "affinity": "cosine"},
            marks=pytest.mark.slow,
        ),
        pytest.param("spectral", {"n_clusters": 2}, marks=pytest.mark.slow),
        pytest.param(
            "gaussian_mixture", {"n_components": 2, "covariance_type": "diag"}, marks=pytest.mark.slow
        ),
        pytest.param("mean_shift", {"bandwidth": 0.9}, marks=pytest.mark.slow),
        pytest.param("optics", {"min_samples": 2}, marks=pytest.mark.slow),
    ],
)
def test_every_method_sets_the_topics_apart(place: Topics, method: str, params: dict[str, Any]) -> None:
    config = {"clustering_method": method, "algorithm_params": params}
    cluster = place.cluster(vector_config=config)
    run = place.executed(cluster["cluster_id"])
    path = f"/clusters/{cluster['cluster_id']}/executions/{run['run_id']}/data"
    kinds = {each["document_id"]: each["kind"] for each in place.documents(place.texts)}
    of_cluster: dict[str, set[str]] = {}
    for each in place.get(path)["results"]:
        if each["cluster_id"] is not None:
            of_cluster.setdefault(each["cluster_id"], set()).add(kinds[each["document_id"]])
    assert len(of_cluster) >= 2, run
    assert all(len(found) == 1 for found in of_cluster.values()), of_cluster
    assert run["num_clusters"] == len(of_cluster)


def test_documents_with_the_same_values_come_together(place: Topics) -> None:
    body = {
        "collection_ids": [place.texts],
        "cluster_type": "attribute",
        "attribute_config": {"attributes": ["metadata.kind"]},
    }
    cluster = place.post("/clusters", body)
    run = place.executed(cluster["cluster_id"])
    assert [(each["label"], each["num_members"]) for each in run["centroids"]] == [("tent", 5), ("soup", 4)]
    place.refused(400, "GET", f"/clusters/{cluster['cluster_id']}/visualization")
    path = f"/clusters/{cluster['cluster_id']}/executions"
    samples = []
    for _ in range(2):
        sampled = place.executed(cluster["cluster_id"], {"sample_size": 3})
        assert sampled["num_points"] == 3
        samples.append(place.get(f"{path}/{sampled['run_id']}/data")["results"])
    assert samples[0] == samples[1]
    listed = place.post("/clusters/list", {"search": cluster["cluster_id"]})["results"]
    assert listed == [place.get(f"/clusters/{cluster['cluster_id']}")]


@pytest.mark.operation("POST", "/v1/clusters/enrich", 200)
def test_enriching_writes_the_result_and_leaves_what_a_user_has_set(
    place: Topics, fitted: dict[str, Any]
) -> None:
    first, *_ = place.documents(place.texts)
    path = f"/collections/{place.texts}/documents/{first['document_id']}"
    place.patch(path, {"cluster_label": "mine"})
    asked = {"clustering_ids": [fitted["cluster_id"]], "source_collection_id": place.texts}
    told = place.post("/clusters/enrich", asked)
    assert told == {"processed": 9, "enriched": 9, "failed": 0, "batches": 1}
    labels = {each["cluster_id"]: each["label"] for each in fitted["run"]["centroids"]}
    for each in place.documents(place.texts):
        assert each["cluster_id"] in labels
        assert each["distance_to_centroid"] >= 0
        mine = each["document_id"] == first["document_id"]
        assert each["cluster_label"] == ("mine" if mine else labels[each["cluster_id"]])
    found = place.documents(place.texts, filters={"field": "cluster_id", "operator": "eq", "value": "cl_1"})
    assert {each["kind"] for each in found} == {"soup"}
    # Again it writes nothing: not even the time of change is another.
    before = place.documents(place.texts)
    assert place.post("/clusters/enrich", asked) == told
    assert place.documents(place.texts) == before


def test_an_execution_may_enrich_by_itself_into_fields_of_ones_own(place: Topics) -> None:
    fields = [
        {"source_field": "cluster_id", "target_field": "topic.id"},
        {"source_field": "member_count", "target_field": "topic.size"},
    ]
    cluster = place.cluster(
        enrich_source_collection=True, source_enrichment_config={"field_mappings": fields}
    )
    place.executed(cluster["cluster_id"])
    assert {each["topic"]["size"] for each in place.documents(place.texts)} == {5, 4}


@pytest.mark.operation("PATCH", "/v1/clusters/{cluster_id}/executions/{run_id}/labels", 200)
@pytest.mark.operation("PATCH", "/v1/clusters/{cluster_id}/executions/{run_id}/name", 200)
def test_groups_and_executions_are_named_by_hand(place: Topics, fitted: dict[str, Any]) -> None:
    path = f"/clusters/{fitted['cluster_id']}/executions/{fitted['run']['run_id']}"
    assert place.patch(f"{path}/labels", {"labels": {"cl_0": " Camping "}})["label_overrides"] == {
        "cl_0": "Camping"
    }
    assert place.get(path)["centroids"][0]["label"] == "Camping"
    place.refused(400, "PATCH", f"{path}/labels", {"labels": {"cl_9": "x"}})
    assert place.patch(f"{path}/labels", {"labels": {"cl_0": ""}})["label_overrides"] == {}
    assert place.patch(f"{path}/name", {"run_name": "first"})["run_name"] == "first"
    assert place.get(path)["run_name"] == "first"


@pytest.mark.operation("POST", "/v1/clusters/{cluster_id}/executions/{run_id}/cancel", 200)
def test_an_execution_is_cancelled_or_had_ended(place: Topics) -> None:
    cluster = place.cluster(vector_config={"algorithm_params": {"n_clusters": 2, "n_init": 100}})
    path = f"/clusters/{cluster['cluster_id']}"
    task = place.post(f"{path}/execute")
    run_id = task["additional_data"]["run_id"]
    place.refused(409, "POST", f"{path}/execute")
    place.refused(409, "DELETE", path)
    assert place.post(f"{path}/executions/{run_id}/cancel")["run_id"] == run_id
    assert place.wait(task["task_id"])["status"] == "CANCELED"
    stood = place.get(f"{path}/executions/{run_id}")
    assert (stood["status"], stood["error_message"]) == ("failed", "Cancelled.")
    place.refused(409, "POST", f"{path}/executions/{run_id}/cancel")
    place.refused(409, "GET", f"{path}/executions/{run_id}/data")
    assert place.executed(cluster["cluster_id"])["num_clusters"] == 2


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"collection_ids": ["nothing"]}, "nothing"),
        ({"vector_config": {"feature_uris": ["mixpeek://text_extractor@v1/nothing"]}}, "feature"),
        ({"vector_config": {"feature_uris": None}}, "feature_uris"),
        ({"vector_config": {"clustering_method": "attribute_based"}}, "kmeans"),
        ({"vector_config": {"algorithm_params": {"n_clusters": 1}}}, "n_clusters"),
        ({"vector_config": {"multi_feature_strategy": "independent"}}, "create a cluster for each"),
        ({"vector_config": {"multi_feature_strategy": "weighted"}}, "feature_weights"),
        ({"cluster_type": "attribute"}, "attribute_config"),
        ({"llm_labeling": {"enabled": True, "response_shape": {"topic": "x"}}}, "response_shape"),
        ({"llm_labeling": {"enabled": True, "max_samples_per_cluster": 21}}, "max_samples_per_cluster"),
        (
            {
                "cluster_type": "attribute",
                "attribute_config": {"attributes": ["kind"]},
                "llm_labeling": {"enabled": True},
            },
            "values",
        ),
        (
            {
                "source_enrichment_config": {
                    "field_mappings": [{"source_field": "x", "target_field": "document_id"}]
                }
            },
            "system",
        ),
        ({"filters": {"field": "a", "operator": "nothing", "value": 1}}, "operator"),
    ],
)
def test_what_is_wrong_is_said_at_creation(place: Topics, fields: dict[str, Any], says: str) -> None:
    config = {"feature_uris": [TEXT_URI], "clustering_method": "kmeans", **fields.get("vector_config", {})}
    body = {"collection_ids": [place.texts], **fields, "vector_config": config}
    answer = place.client.post("/v1/clusters", json=body, headers=place.headers)
    assert answer.status_code in (400, 422), answer.text
    assert says in answer.text


def test_more_documents_than_a_method_takes_and_none_at_all_are_refused(place: Topics) -> None:
    cluster = place.cluster()
    nothing = {"filters": {"field": "metadata.kind", "operator": "eq", "value": "boat"}}
    said = place.refused(400, "POST", f"/clusters/{cluster['cluster_id']}/execute", nothing)
    assert "no document" in said
    said = place.refused(400, "POST", f"/clusters/{cluster['cluster_id']}/execute", {"mode": "assign"})
    assert "mode" in said


def test_another_namespace_sees_none_of_it(place: Topics, fitted: dict[str, Any]) -> None:
    made = place.client.post(
        "/v1/namespaces", json={"namespace_name": "others", "feature_extractors": [TEXT]}
    )
    other = Loop(place.client, made.raise_for_status().json())
    for method, path in (
        ("GET", f"/clusters/{fitted['cluster_id']}"),
        ("DELETE", f"/clusters/{fitted['cluster_id']}"),
        ("POST", f"/clusters/{fitted['cluster_id']}/execute"),
        ("GET", f"/clusters/{fitted['cluster_id']}/executions/{fitted['run']['run_id']}/data"),
    ):
        other.refused(404, method, path)
    assert other.get("/clusters")["results"] == []


def test_a_language_model_names_groups(place: Topics, language_endpoint: Endpoint) -> None:
    language_endpoint.reset()
    asked = {"enabled": True, "labeling_context": "Notes of a camp.", "max_samples_per_cluster": None}
    cluster = place.cluster(llm_labeling=asked)
    assert cluster["llm_labeling"]["max_samples_per_cluster"] == 10
    run = place.executed(cluster["cluster_id"])
    tents, soups = run["centroids"]
    assert tents["label"].startswith("About ") and "tent" in tents["summary"].lower()
    assert len(soups["keywords"]) == 3
    told = run["llm_labeling"]
    assert (told["model"], told["labelled"], told["llm_calls"], told["error"]) == ("small", 2, 1, None)
    assert told["tokens_used"] > 0
    (prompt,) = language_endpoint.prompts
    assert "Notes of a camp." in prompt["task"]
    assert [len(each["documents"]) for each in prompt["data"]] == [5, 4]
    groups = place.get(f"/clusters/{cluster['cluster_id']}/groups")["groups"]
    assert [each["summary"] for each in groups] == [tents["summary"], soups["summary"]]
    assert place.get(f"/clusters/{cluster['cluster_id']}")["llm_labeling_errors"] == []


def themes(place: Topics, **parameters: Any) -> list[dict[str, Any]]:
    """Execute a search for everything and group what it finds."""
    search = {"feature_uri": TEXT_URI, "query": "rain at the camp", "limit": 20}
    stages = [
        {"stage_id": "feature_search", "parameters": search},
        {"stage_id": "cluster", "parameters": parameters},
    ]
    asked = {"stages": stages, "collection_identifiers": [place.texts]}
    return list(place.post("/retrievers/execute", asked)["documents"])


def test_hits_are_grouped_while_a_query_waits(place: Topics) -> None:
    first, second = themes(place, n_clusters=2)
    assert [each["kind"] for each in first["members"]] == ["tent"] * 5
    assert [each["kind"] for each in second["members"]] == ["soup"] * 4
    assert len(first["centroid"]) > 100
    labelled = themes(place, n_clusters=2, output_mode="labeled", feature_uri=TEXT_URI)
    assert {(each["cluster_id"], each["kind"]) for each in labelled} == {("cl_0", "tent"), ("cl_1", "soup")}
    assert all(each["score"] is not None for each in labelled)
    one_each = themes(place, n_clusters=2, output_mode="representatives")
    assert [each["kind"] for each in one_each] == ["tent", "soup"]


@pytest.mark.parametrize(
    ("stage_id", "name", "more"),
    [
        ("cluster", "feature_uri", {}),
        ("mmr", "feature_uri", {}),
        ("cross_compare", "visual_feature_uri", {"match_tiers": ["visual"]}),
    ],
)
def test_a_feature_that_is_not_there_is_refused_at_creation(
    place: Topics, stage_id: str, name: str, more: dict[str, Any]
) -> None:
    parameters = {name: "mixpeek://no@v1/thing", **more}
    if stage_id == "cross_compare":
        parameters["reference_collection_id"] = place.texts
    stages = [{"stage_id": stage_id, "parameters": parameters}]
    asked = {"retriever_name": f"no_{stage_id}", "collection_identifiers": [place.texts], "stages": stages}
    for path in ("/retrievers", "/retrievers/execute"):
        said = place.refused(400, "POST", path, asked)
        assert name in said and "mixpeek://no@v1/thing" in said and TEXT_URI in said


def test_the_same_on_a_qdrant_server(server_on_qdrant: Server) -> None:
    with server_on_qdrant.client() as client:
        place = topics(client, "topics on a server")
        # This server has no language model.
        config = {"feature_uris": [TEXT_URI], "clustering_method": "kmeans"}
        asked = {"collection_ids": [place.texts], "vector_config": config}
        refused = place.refused(400, "POST", "/clusters", {**asked, "llm_labeling": {"enabled": True}})
        assert "TESSERA_LLM_BASE_URL" in refused
        cluster = place.cluster(enrich_source_collection=True)
        run = place.executed(cluster["cluster_id"])
        assert (run["status"], run["num_clusters"], run["num_points"]) == ("completed", 2, 9)
        of_cluster = {(each["cluster_id"], each["kind"]) for each in place.documents(place.texts)}
        assert of_cluster == {("cl_0", "tent"), ("cl_1", "soup")}
        body = {"collection_ids": [place.texts], "attribute_config": {"attributes": ["kind"]}}
        by_kind = place.post("/clusters", body)["cluster_id"]
        assert [each["num_members"] for each in place.executed(by_kind)["centroids"]] == [5, 4]
        chosen = {"field": "cluster_id", "operator": "eq", "value": "cl_1"}
        again = place.executed(by_kind, {"filters": chosen, "sample_size": 3})
        assert (again["num_points"], again["num_clusters"]) == (3, 1)
        assert [len(each["members"]) for each in themes(place, n_clusters=2)] == [5, 4]
        client.delete(f"/v1/namespaces/{place.namespace_id}").raise_for_status()


def test_webhooks_and_the_audit_log_are_told(place: Topics) -> None:
    types = ["cluster.created", "cluster.updated", "cluster.deleted"]
    types += [f"cluster.execution.{what}" for what in ("started", "completed", "failed")]
    hook = place.post(
        "/organizations/webhooks",
        {
            "webhook_name": "clusters",
            "event_types": types,
            "channels": [{"channel": "webhook", "configs": {"url": "http://127.0.0.2:9/none"}}],
        },
        status=201,
    )
    body = {"collection_ids": [place.texts], "attribute_config": {"attributes": ["metadata.kind"]}}
    cluster_id = place.post("/clusters", body)["cluster_id"]
    place.patch(f"/clusters/{cluster_id}", {"description": "told"})
    run = place.executed(cluster_id)
    place.delete(f"/clusters/{cluster_id}")
    told = place.get(f"/organizations/webhooks/{hook['webhook_id']}/deliveries")["results"]
    mine = {
        each["event_type"]: each["event"] for each in told if each["event"]["subject"]["id"] == cluster_id
    }
    assert sorted(mine) == sorted(set(types) - {"cluster.execution.failed"})
    done = mine["cluster.execution.completed"]["metadata"]
    assert (done["run_id"], done["num_clusters"], done["num_documents"]) == (
        run["run_id"],
        2,
        run["num_points"],
    )
    place.delete(f"/organizations/webhooks/{hook['webhook_id']}", status=204)
    events = place.get(f"/organizations/audit/logs?resource_type=cluster&resource_id={cluster_id}")["results"]
    actions = {each["action"] for each in events}
    assert {"cluster_created", "cluster_updated", "cluster_executed", "cluster_deleted"} <= actions


def test_an_erased_document_is_in_no_result(place: Topics) -> None:
    cluster = place.cluster()
    extra = place.note(
        place.bucket_id, "The zephyrus tent stands in rain and wind at the camp.", metadata={"kind": "tent"}
    )
    assert place.run(place.bucket_id, [extra])["status"] == "COMPLETED"
    run = place.executed(cluster["cluster_id"])
    path = f"/clusters/{cluster['cluster_id']}/executions/{run['run_id']}"
    gone = next(each for each in place.documents(place.texts) if "zephyrus" in each["text"])
    task = place.post(f"/namespaces/{place.namespace_id}/erase", {"document_ids": [gone["document_id"]]})
    assert place.wait(task["task_id"], 120)["status"] == "COMPLETED"
    data = place.get(f"{path}/data")
    assert data["total_count"] == 9
    assert gone["document_id"] not in [each["document_id"] for each in data["results"]]
    after = place.get(path)
    assert after["member_counts_stale"] is True
    assert [each["keywords"] for each in after["centroids"] if each["num_members"] == 6] == [[]]
    place.delete(f"/buckets/{place.bucket_id}/objects/{extra}", status=204)


@pytest.mark.slow
def test_an_execution_whose_server_was_killed_is_done_by_the_next_one(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": "cluster.written:1:self"})
    try:
        with server.client() as client:
            place = topics(client, "killed")
            cluster_id = place.cluster(enrich_source_collection=True)["cluster_id"]
            task_id = place.post(f"/clusters/{cluster_id}/execute")["task_id"]
        assert server.wait_until_dead(120)
        server = Server.start(tmp_path / "data")
        with server.client() as client:
            place.client = client
            assert place.wait(task_id, 120)["status"] == "COMPLETED"
            runs = place.post(f"/clusters/{cluster_id}/executions/list", {})["results"]
            assert [(each["status"], each["num_clusters"]) for each in runs] == [("completed", 2)]
            assert {each["cluster_id"] for each in place.documents(place.texts)} == {"cl_0", "cl_1"}
            (file,) = server.data.glob("blobs/*/clusters/*")
            assert file.name == f"{runs[0]['run_id']}.arrow"
            # With its namespace everything of it goes.
            client.delete(f"/v1/namespaces/{place.namespace_id}")
            deadline = time.monotonic() + 60
            while list(server.data.rglob("*.arrow")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        server.kill(group=True)


@pytest.mark.slow
def test_a_fit_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data", environment={"TESSERA_CLUSTER_TIMEOUT_S": "0.01"})
    try:
        with server.client() as client:
            place = topics(client, "slow")
            cluster_id = place.cluster()["cluster_id"]
            ended = place.wait(place.post(f"/clusters/{cluster_id}/execute")["task_id"], 120)
            assert ended["status"] == "FAILED"
            assert "cluster_timeout_s" in str(ended["error"])
    finally:
        server.kill(group=True)
