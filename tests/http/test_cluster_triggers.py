"""Triggers of clusters over HTTP: kept, changed, refused; and executions that begin by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server

NIGHTLY = {"cron_expression": "0 2 * * *", "timezone": "Europe/Berlin"}
TRIGGERS = "/clusters/triggers"


class Kinds(Loop):
    """A namespace with documents of two kinds, and a cluster that brings them together."""

    bucket_id: str
    notes: str
    texts: str
    cluster_id: str

    def trigger(self, kind: str, schedule: dict[str, Any], **fields: Any) -> dict[str, Any]:
        body = {"trigger_type": kind, "schedule_config": schedule, **fields}
        if "execution_config" not in fields:
            body.setdefault("cluster_id", self.cluster_id)
        return dict(self.post(TRIGGERS, body, status=201))

    def until(self, trigger: dict[str, Any], is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not is_there(shown := self.get(f"{TRIGGERS}/{trigger['trigger_id']}")):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return dict(shown)


@pytest.fixture(scope="module")
def place(server: Server) -> Iterator[Kinds]:
    with server.client() as client:
        body = {"namespace_name": "triggers", "feature_extractors": [PASSTHROUGH, TEXT]}
        place = Kinds(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
        place.bucket_id = place.bucket()
        passed = {**PASSTHROUGH, "field_passthrough": [{"source_path": "metadata.kind"}]}
        place.notes = place.collection(place.bucket_id, passed)
        place.texts = place.collection(place.bucket(), {**TEXT, "input_mappings": {"text": "note"}})
        objects = [place.note(place.bucket_id, "a", metadata={"kind": kind}) for kind in ("x", "x", "y")]
        assert place.run(place.bucket_id, objects)["status"] == "COMPLETED"
        body = {"collection_ids": [place.notes], "attribute_config": {"attributes": ["kind"]}}
        place.cluster_id = place.post("/clusters", body)["cluster_id"]
        yield place


@pytest.mark.operation("POST", "/v1/clusters/triggers", 201)
@pytest.mark.operation("GET", "/v1/clusters/triggers/{trigger_id}", 200)
@pytest.mark.operation("PATCH", "/v1/clusters/triggers/{trigger_id}", 200)
@pytest.mark.operation("POST", "/v1/clusters/triggers/{trigger_id}/pause", 200)
@pytest.mark.operation("POST", "/v1/clusters/triggers/{trigger_id}/resume", 200)
@pytest.mark.operation("POST", "/v1/clusters/triggers/list", 200)
@pytest.mark.operation("DELETE", "/v1/clusters/triggers/{trigger_id}", 204)
def test_a_trigger_is_kept_changed_paused_and_deleted(place: Kinds) -> None:
    made = place.trigger("cron", NIGHTLY, description="every night")
    path = f"{TRIGGERS}/{made['trigger_id']}"
    assert (made["status"], made["execution_count"], made["last_triggered_at"]) == ("active", 0, None)
    assert made["schedule_config"] == NIGHTLY
    assert made["execution_config"]["collection_ids"] == [place.notes]
    assert made["next_scheduled_at"][13:] == ":00:00.000000Z"
    assert place.get(path) == made
    second = place.trigger("interval", {"interval_seconds": 3600}, status="paused")
    assert second["next_scheduled_at"] is None

    mine = {"cluster_id": place.cluster_id}
    listed = place.post(f"{TRIGGERS}/list", mine)
    assert [each["trigger_id"] for each in listed["results"]] == [second["trigger_id"], made["trigger_id"]]
    assert (listed["total"], listed["offset"], listed["limit"]) == (2, 0, 50)
    by_name = place.get(f"/clusters/{place.cluster_id}")["cluster_name"]
    assert place.post(f"{TRIGGERS}/list", {"cluster_id": by_name}) == listed
    page = place.post(f"{TRIGGERS}/list", {**mine, "limit": 1, "offset": 1, "sort_by": "next_scheduled_at"})
    assert [each["trigger_id"] for each in page["results"]] == [second["trigger_id"]]
    for chosen in ({"status": "active"}, {"trigger_type": "cron"}):
        assert place.post(f"{TRIGGERS}/list", {**mine, **chosen})["results"] == [made]

    assert place.post(f"{path}/pause")["status"] == "paused"
    assert place.post(f"{path}/pause")["next_scheduled_at"] is None
    resumed = place.post(f"{path}/resume")
    assert (resumed["status"], resumed["next_scheduled_at"]) == ("active", made["next_scheduled_at"])
    hourly = {"cron_expression": "0 * * * *"}
    changed = place.patch(path, {"schedule_config": hourly, "description": None, "status": "disabled"})
    assert changed["schedule_config"] == {**hourly, "timezone": "UTC"}
    assert (changed["description"], changed["status"], changed["next_scheduled_at"]) == (
        None,
        "disabled",
        None,
    )
    place.refused(400, "PATCH", path, {"status": "failed"})
    for each in (made, second):
        place.delete(f"{TRIGGERS}/{each['trigger_id']}", status=204)
        place.refused(404, "GET", f"{TRIGGERS}/{each['trigger_id']}")


@pytest.mark.operation("POST", "/v1/clusters/triggers/{trigger_id}/history", 200)
def test_what_is_due_is_executed(place: Kinds) -> None:
    trigger = place.trigger("interval", {"interval_seconds": 3600, "start_immediately": True})
    shown = place.until(trigger, lambda shown: shown["last_execution_status"] == "completed")
    assert (shown["execution_count"], shown["consecutive_failures"]) == (1, 0)
    assert shown["next_scheduled_at"] > shown["last_triggered_at"]
    path = f"{TRIGGERS}/{trigger['trigger_id']}/history"
    told = place.post(path)
    assert (told["trigger_id"], told["total"]) == (trigger["trigger_id"], 1)
    (one,) = told["executions"]
    assert (one["job_id"], one["status"]) == (shown["last_execution_job_id"], "completed")
    assert (one["num_clusters"], one["num_documents"], one["error"]) == (2, 3, None)
    assert place.get(f"/clusters/{place.cluster_id}/executions")["run_id"] == one["run_id"]
    assert place.get(f"/tasks/{one['job_id']}")["status"] == "COMPLETED"
    assert place.post(path, {"status_filter": "failed"})["total"] == 0
    place.delete(f"{TRIGGERS}/{trigger['trigger_id']}", status=204)


def test_documents_that_come_have_a_cluster_of_the_triggers_own_executed(place: Kinds) -> None:
    schedule = {"event_type": "documents_added", "event_threshold": 2, "collection_id": place.notes}
    own = place.trigger(
        "event",
        {**schedule, "collection_id": place.texts},
        execution_config={
            "collection_ids": [place.texts],
            "config": {"algorithm": "hierarchical", "n_clusters": 3},
        },
    )
    cluster = place.get(f"/clusters/{own['cluster_id']}")
    assert (cluster["algorithm"], cluster["algorithm_params"]["n_clusters"]) == ("agglomerative", 3)
    assert cluster["feature_uris"] == own["execution_config"]["config"]["feature_uris"] != []
    means = {"collection_ids": [place.texts], "config": {"algorithm": "kmeans", "n_clusters": 2}}
    told = place.trigger("cron", NIGHTLY, execution_config=means)["execution_config"]["config"]
    assert (told["algorithm"], told["n_clusters"]) == ("kmeans", 2)
    # With its cluster goes the trigger.
    place.delete(f"/clusters/{own['cluster_id']}")
    place.refused(404, "GET", f"{TRIGGERS}/{own['trigger_id']}")

    trigger = place.trigger("event", schedule)
    first = place.note(place.bucket_id, "a", metadata={"kind": "z"})
    assert place.run(place.bucket_id, [first])["status"] == "COMPLETED"
    shown = place.get(f"{TRIGGERS}/{trigger['trigger_id']}")
    assert (shown["event_counter"], shown["execution_count"]) == (1, 0)
    second = place.note(place.bucket_id, "a", metadata={"kind": "z"})
    assert place.run(place.bucket_id, [second])["status"] == "COMPLETED"
    shown = place.until(trigger, lambda shown: shown["last_execution_status"] == "completed")
    assert (shown["event_counter"], shown["execution_count"]) == (0, 1)
    (one,) = place.post(f"{TRIGGERS}/{trigger['trigger_id']}/history")["executions"]
    assert (one["num_clusters"], one["num_documents"]) == (3, 5)
    place.delete(f"{TRIGGERS}/{trigger['trigger_id']}", status=204)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schedule_config": {"cron_expression": "0 2 * *"}}, "is no cron expression: it has five fields"),
        ({"schedule_config": {"cron_expression": "0 25 * * *"}}, "no cron expression"),
        ({"schedule_config": {"cron_expression": "0 2 * * *", "timezone": "Mars/Base"}}, "time zone"),
        ({"schedule_config": {}}, "cron_expression"),
        ({"trigger_type": "interval", "schedule_config": {"interval_seconds": 5}}, "60"),
        (
            {
                "trigger_type": "event",
                "schedule_config": {"event_type": "documents_added", "collection_id": "nothing"},
            },
            "nothing",
        ),
        (
            {"trigger_type": "event", "schedule_config": {"event_type": "rain", "collection_id": "x"}},
            "event_type",
        ),
        ({"trigger_type": "conditional", "schedule_config": {"condition_type": "drift"}}, "conditional"),
        ({"trigger_type": "sometimes"}, "cron"),
        ({"status": "failed"}, "active"),
        ({"cluster_id": None}, "execution_config"),
        ({"execution_config": {"collection_ids": ["x"], "config": {"algorithm": "kmeans"}}}, "either"),
        (
            {
                "cluster_id": None,
                "execution_config": {"collection_ids": ["texts"], "config": {"algorithm": "k"}},
            },
            "hdbscan",
        ),
        (
            {"cluster_id": None, "execution_config": {"collection_ids": ["texts"], "config": {}}},
            "algorithm is missing; send one of kmeans",
        ),
    ],
)
def test_what_is_wrong_with_a_trigger_is_named(place: Kinds, fields: dict[str, Any], says: str) -> None:
    body = {"cluster_id": place.cluster_id, "trigger_type": "cron", "schedule_config": NIGHTLY, **fields}
    answer = place.client.post(f"/v1{TRIGGERS}", json=body, headers=place.headers)
    assert answer.status_code in (400, 422), answer.text
    assert says in answer.text
    # A cluster without vectors to cluster by is not made either.
    config = {"collection_ids": [place.notes], "config": {"algorithm": "kmeans"}}
    refused = {"execution_config": config, "trigger_type": "cron", "schedule_config": NIGHTLY}
    assert "no vectors" in place.refused(400, "POST", TRIGGERS, refused)


def test_webhooks_are_told_of_triggers(place: Kinds) -> None:
    types = [f"trigger.{what}" for what in ("created", "updated", "paused", "resumed", "fired", "deleted")]
    types.append("trigger.execution.completed")
    hook = place.post(
        "/organizations/webhooks",
        {
            "webhook_name": "triggers",
            "event_types": types,
            "channels": [{"channel": "webhook", "configs": {"url": "http://127.0.0.2:9/none"}}],
        },
        status=201,
    )
    trigger = place.trigger("interval", {"interval_seconds": 60, "start_immediately": True})
    path = f"{TRIGGERS}/{trigger['trigger_id']}"
    shown = place.until(trigger, lambda shown: shown["last_execution_status"] == "completed")
    place.patch(path, {"description": "told"})
    place.post(f"{path}/pause")
    place.post(f"{path}/resume")
    place.delete(path, status=204)
    told = place.get(f"/organizations/webhooks/{hook['webhook_id']}/deliveries")["results"]
    mine = {each["event_type"]: each["event"] for each in told}
    assert sorted(mine) == sorted(types)
    assert all(
        event["subject"] == {"type": "trigger", "id": trigger["trigger_id"]} for event in mine.values()
    )
    assert mine["trigger.fired"]["metadata"]["task_id"] == shown["last_execution_job_id"]
    place.delete(f"/organizations/webhooks/{hook['webhook_id']}", status=204)


def test_another_namespace_sees_no_triggers(place: Kinds) -> None:
    trigger = place.trigger("cron", NIGHTLY)
    body = {"namespace_name": "no triggers", "feature_extractors": [PASSTHROUGH]}
    other = Loop(place.client, place.client.post("/v1/namespaces", json=body).raise_for_status().json())
    path = f"{TRIGGERS}/{trigger['trigger_id']}"
    for method, where, given in (
        ("GET", path, None),
        ("PATCH", path, {"description": "mine"}),
        ("DELETE", path, None),
        ("POST", f"{path}/pause", None),
        ("POST", f"{path}/resume", None),
        ("POST", f"{path}/history", None),
        (
            "POST",
            TRIGGERS,
            {"cluster_id": place.cluster_id, "trigger_type": "cron", "schedule_config": NIGHTLY},
        ),
    ):
        other.refused(404, method, where, given)
    assert other.post(f"{TRIGGERS}/list")["total"] == 0
    assert place.get(path) == trigger
    place.delete(path, status=204)
