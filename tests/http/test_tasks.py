"""Tasks: found by whoever may see them, listed, deleted once they have ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop

PROCESS = "api_buckets_batches_process"


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH]))


def processed(loop: Loop) -> str:
    bucket = loop.bucket()
    loop.collection(bucket)
    return str(loop.run(bucket, [loop.note(bucket, "a")])["task_id"])


def test_tasks_need_no_namespace(loop: Loop) -> None:
    task_id = processed(loop)
    answer = loop.client.get(f"/v1/tasks/{task_id}")
    assert answer.status_code == 200
    task = answer.json()
    assert set(task) >= {"task_id", "task_type", "status", "inputs", "outputs", "additional_data", "error"}
    assert (task["status"], task["error"], task["error_message"]) == ("COMPLETED", None, None)
    absent = loop.client.get("/v1/tasks/tsk_absent").json()
    assert absent["error"]["details"] == {"resource": "task", "id": "tsk_absent"}


@pytest.mark.operation("POST", "/v1/tasks/list", 200)
@pytest.mark.operation("GET", "/v1/tasks", 200)
def test_lists_filter_and_page(loop: Loop) -> None:
    first, second = processed(loop), processed(loop)

    def listed(body: Any) -> list[str]:
        found = [item["task_id"] for item in loop.post("/tasks/list", {"limit": 1000, **body})["results"]]
        return [task_id for task_id in found if task_id in (first, second)]

    assert listed({}) == [second, first], "the newest first"
    assert listed({"status": "COMPLETED", "task_type": PROCESS}) == [second, first]
    assert listed({"status": "PENDING"}) == []
    assert listed({"search": first[4:]}) == [first]
    assert listed({"filters": {"task_id": second}}) == [second]
    assert listed({"sort": {"field": "created_at", "direction": "asc"}}) == [first, second]
    page = loop.post("/tasks/list", {"limit": 1, "task_type": PROCESS})
    assert [item["task_id"] for item in page["results"]] == [second]
    body = {"limit": 1, "task_type": PROCESS, "cursor": page["pagination"]["next_cursor"]}
    assert [item["task_id"] for item in loop.post("/tasks/list", body)["results"]] == [first]
    assert loop.get("/tasks?limit=1")["results"][0]["task_id"] == second
    assert "status" in loop.refused(422, "POST", "/tasks/list", {"status": "DONE"})


@pytest.mark.operation("DELETE", "/v1/tasks/{task_id}", 200)
def test_a_finished_task_can_be_deleted(loop: Loop) -> None:
    task_id = processed(loop)
    assert loop.delete(f"/tasks/{task_id}")["success"] is True
    loop.get(f"/tasks/{task_id}", status=404)
    loop.delete(f"/tasks/{task_id}", status=404)


def test_a_key_sees_the_tasks_of_its_namespaces_only(
    loop: Loop, client: httpx.Client, namespace: Callable[..., Any]
) -> None:
    mine = processed(loop)
    theirs = processed(Loop(client, namespace(feature_extractors=[PASSTHROUGH])))
    email = client.get("/v1/organizations/users").json()["results"][0]["email"]
    scope = {"resource_type": "namespace", "resource_id": loop.namespace_id}
    key = client.post(
        f"/v1/organizations/users/{email}/api-keys",
        json={
            "name": f"only {loop.namespace_id}",
            "permissions": ["read", "write", "delete"],
            "scopes": [scope],
        },
    ).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert loop.get(f"/tasks/{mine}", headers=headers)["task_id"] == mine
    loop.get(f"/tasks/{theirs}", headers=headers, status=404)
    loop.delete(f"/tasks/{theirs}", headers=headers, status=404)
    listed = loop.post("/tasks/list", {"limit": 1000}, headers=headers)
    assert [item["task_id"] for item in listed["results"]] == [mine]
    assert listed["total_count"] == 1


def test_the_tasks_of_a_namespace_go_with_it(client: httpx.Client, namespace: Callable[..., Any]) -> None:
    loop = Loop(client, namespace(feature_extractors=[PASSTHROUGH]))
    task_id = processed(loop)
    deleted = client.delete(f"/v1/namespaces/{loop.namespace_id}").json()
    assert client.get(f"/v1/tasks/{task_id}").status_code == 404
    assert loop.wait(deleted["task_id"])["task_type"] == "api_namespaces_delete"
