"""Batches: drafts, one submission, what failed and why, and what a cancel or a retry leaves and takes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH, TEXT]))


@pytest.fixture
def bucket(loop: Loop) -> str:
    return loop.bucket()


def draft(loop: Loop, bucket: str, *texts: str) -> tuple[str, list[str]]:
    object_ids = [loop.note(bucket, text) for text in texts]
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": object_ids})
    return f"/buckets/{bucket}/batches/{batch['batch_id']}", object_ids


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}", 200)
def test_a_draft_knows_its_objects_and_collections(loop: Loop, bucket: str) -> None:
    first, second = loop.collection(bucket), loop.collection(bucket)
    loop.patch(f"/collections/{loop.collection(bucket)}", {"enabled": False})
    loop.collection(loop.bucket())
    a, b = loop.note(bucket, "a"), loop.note(bucket, "b")
    made = loop.post(
        f"/buckets/{bucket}/batches", {"object_ids": [b, a, b], "metadata": {"source": "nightly"}}
    )
    assert (made["status"], made["type"], made["bucket_id"]) == ("DRAFT", "BUCKET", bucket)
    assert made["object_ids"] == [b, a], "in their order, each once"
    assert made["collection_ids"] == [first, second], "the enabled ones that read the bucket"
    assert made["dag_tiers"] == [[first, second]]
    assert (made["task_id"], made["tier_tasks"], made["metadata"]) == (None, [], {"source": "nightly"})
    for name in ("max_node_death_resubmits", "max_deploy_resubmits"):
        assert isinstance(made[name], int)
    assert made["lifecycle"] is made["lifecycle_reason"] is None
    assert loop.get(f"/buckets/{bucket}/batches/{made['batch_id']}") == made


def test_only_objects_of_the_bucket_can_be_in_a_batch(loop: Loop, bucket: str) -> None:
    mine, elsewhere = loop.note(bucket, "a"), loop.note(loop.bucket(), "b")
    path = f"/buckets/{bucket}/batches"
    answer = loop.post(path, {"object_ids": [mine, elsewhere]}, status=404)
    assert answer["error"]["details"]["missing"] == [elsewhere]
    assert "2 of the 3" in loop.refused(404, "POST", path, {"object_ids": [mine, elsewhere, "obj_absent"]})
    assert "at least 1 item" in loop.refused(422, "POST", path, {"object_ids": []})


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/submit", 200)
def test_a_batch_runs_to_its_end_and_tells_its_progress(loop: Loop, bucket: str) -> None:
    first, second = loop.collection(bucket), loop.collection(bucket)
    path, object_ids = draft(loop, bucket, "a", "b", "c")
    task = loop.post(f"{path}/submit", {"include_processing_history": True})
    assert (task["task_type"], task["inputs"]) == ("api_buckets_batches_process", [path.rsplit("/", 1)[1]])
    done = loop.wait(task["task_id"])
    assert done["status"] == "COMPLETED"
    progress = done["additional_data"]
    assert (progress["stage"], progress["total"], progress["done"], progress["failed"]) == ("done", 6, 6, 0)
    assert (progress["bucket_id"], progress["object_count"]) == (bucket, 3)
    batch = loop.get(path)
    assert (batch["status"], batch["task_id"], batch["documents_written"]) == (
        "COMPLETED",
        task["task_id"],
        6,
    )
    (tier,) = batch["tier_tasks"]
    assert (tier["tier_num"], tier["source_type"], tier["status"]) == (0, "bucket", "COMPLETED")
    assert batch["progress"] == {"processed": 6, "total": 6, "percent": 100.0, "errors": 0}
    for collection in (first, second):
        assert {item["root_object_id"] for item in loop.documents(collection)} == set(object_ids)


def test_submitting_twice_changes_nothing(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    path, _ = draft(loop, bucket, "a", "b")
    first = loop.post(f"{path}/submit")
    assert loop.post(f"{path}/submit")["task_id"] == first["task_id"]
    loop.wait(first["task_id"])
    before = loop.documents(collection)
    assert loop.post(f"{path}/submit")["task_id"] == first["task_id"]
    assert loop.documents(collection) == before


def test_the_same_objects_again_write_nothing_new(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    object_ids = [loop.note(bucket, "a")]
    loop.run(bucket, object_ids)
    before = loop.documents(collection)
    assert loop.run(bucket, object_ids)["status"] == "COMPLETED"
    assert loop.documents(collection) == before, "the same id, and not even another updated_at"


def test_a_changed_object_replaces_its_document(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "year": {"type": "integer"}})
    collection = loop.collection(bucket)
    object_id = loop.note(bucket, "a", year=1999)
    loop.run(bucket, [object_id])
    (before,) = loop.documents(collection)
    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"year": 2024})
    loop.run(bucket, [object_id])
    (after,) = loop.documents(collection)
    assert (before["year"], after["year"]) == (1999, 2024)
    assert after["document_id"] == before["document_id"]


def test_a_bucket_that_nobody_reads_has_nothing_to_do(loop: Loop, bucket: str) -> None:
    path, _ = draft(loop, bucket, "a")
    said = loop.refused(400, "POST", f"{path}/submit")
    assert "No collection reads bucket" in said
    assert loop.get(path)["status"] == "DRAFT"
    collection = loop.collection(bucket)
    loop.wait(loop.post(f"{path}/submit")["task_id"])
    assert len(loop.documents(collection)) == 1, "the draft was older than the collection"


def test_a_batch_may_be_for_some_collections_only(loop: Loop, bucket: str) -> None:
    wanted, other = loop.collection(bucket), loop.collection(bucket)
    foreign = loop.collection(loop.bucket())
    object_id = loop.note(bucket, "a")
    body = {"object_ids": [object_id], "collection_ids": [wanted]}
    assert loop.post(f"/buckets/{bucket}/batches", body)["collection_ids"] == [wanted]
    body["collection_ids"] = [foreign]
    assert "does not read this bucket" in loop.refused(400, "POST", f"/buckets/{bucket}/batches", body)
    assert loop.documents(other) == []


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/objects", 200)
def test_objects_are_added_to_a_draft_only(loop: Loop, bucket: str) -> None:
    loop.collection(bucket)
    path, object_ids = draft(loop, bucket, "a")
    more = loop.note(bucket, "b")
    grown = loop.post(f"{path}/objects", {"object_ids": [more, *object_ids]})
    assert grown["object_ids"] == [*object_ids, more]
    loop.wait(loop.post(f"{path}/submit")["task_id"])
    said = loop.refused(409, "POST", f"{path}/objects", {"object_ids": [more]})
    assert "is COMPLETED" in said


def test_objects_deleted_before_the_submission_are_skipped(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    path, object_ids = draft(loop, bucket, "a", "b")
    loop.delete(f"/buckets/{bucket}/objects/{object_ids[0]}", status=204)
    loop.wait(loop.post(f"{path}/submit")["task_id"])
    batch = loop.get(path)
    assert (batch["status"], batch["progress"]["processed"]) == ("COMPLETED", 2)
    assert [item["root_object_id"] for item in loop.documents(collection)] == [object_ids[1]]


@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/failed-documents", 200)
def test_rows_fail_one_by_one_and_say_why(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}})
    collection = loop.collection(bucket, {**TEXT, "input_mappings": {"text": "metadata.words"}})
    good = loop.object(bucket, {"metadata": {"words": "some words"}})
    bad = [loop.object(bucket, {"metadata": {"words": ""}}) for _ in range(2)]
    batch = loop.run(bucket, [good, *bad])
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    assert batch["failed_object_count"] == 2
    assert sum(batch["error_summary"].values()) == 2
    assert batch["error"]
    (error,) = batch["tier_tasks"][0]["errors"]
    assert error["affected_count"] == 2
    assert error["message"]
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    failed = loop.get(f"{path}/failed-documents?limit=1")
    assert (failed["total"], len(failed["results"])) == (2, 1)
    (row,) = failed["results"]
    assert row["object_id"] in bad
    assert (row["collection_id"], row["tier_num"]) == (collection, 0)
    assert row["error"]
    assert loop.get(f"{path}/failed-documents?collection_id=col_other")["total"] == 0
    task = loop.get(f"/tasks/{batch['task_id']}")
    assert (task["status"], task["error"]) == ("COMPLETED_WITH_ERRORS", batch["error"])
    assert task["additional_data"]["failed"] == 2
    assert [item["root_object_id"] for item in loop.documents(collection)] == [good]


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/retry", 200)
def test_a_retry_runs_the_failed_rows_alone(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}})
    collection = loop.collection(bucket, {**TEXT, "input_mappings": {"text": "metadata.words"}})
    good = loop.object(bucket, {"metadata": {"words": "some words"}})
    bad = loop.object(bucket, {"metadata": {"words": ""}})
    batch = loop.run(bucket, [good, bad])
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert "retry_mode 'all'" in loop.refused(409, "POST", f"{path}/retry")
    loop.patch(f"/buckets/{bucket}/objects/{bad}", {"metadata": {"words": "other words"}})
    retried = loop.post(f"{path}/retry", {"retry_mode": "all"})
    assert (retried["retried_count"], retried["skipped_count"]) == (1, 0)
    assert retried["task_id"] != batch["task_id"]
    assert loop.wait(retried["task_id"])["status"] == "COMPLETED"
    after = loop.get(path)
    assert (after["status"], after["error"], after["error_summary"]) == ("COMPLETED", None, None)
    assert {item["root_object_id"] for item in loop.documents(collection)} == {good, bad}
    assert "None of its rows failed" in loop.refused(409, "POST", f"{path}/retry", {"retry_mode": "all"})
    assert loop.get(f"/tasks/{batch['task_id']}")["status"] == "COMPLETED_WITH_ERRORS", "as it ended"


def test_cancel_keeps_what_is_done_and_retry_takes_up_the_rest(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    path, object_ids = draft(loop, bucket, *"abcdefgh")
    assert "submit it, or delete it" in loop.refused(409, "POST", f"{path}/cancel")
    task = loop.post(f"{path}/submit")
    answer = loop.client.post(f"/v1{path}/cancel", headers=loop.headers)
    if answer.status_code == 409:
        assert "ended already" in answer.json()["error"]["message"]
        return
    assert answer.json()["status"] == loop.get(path)["status"] == "CANCELED"
    assert loop.post(f"{path}/cancel")["task_id"] == task["task_id"], "again changes nothing"
    if loop.get(path)["progress"]["processed"] < len(object_ids):
        retried = loop.post(f"{path}/retry")
        assert loop.wait(retried["task_id"])["status"] == "COMPLETED"
    assert {item["root_object_id"] for item in loop.documents(collection)} == set(object_ids)


@pytest.mark.operation("PATCH", "/v1/buckets/{bucket_identifier}/batches/{batch_id}", 200)
@pytest.mark.operation("DELETE", "/v1/buckets/{bucket_identifier}/batches/{batch_id}", 200)
def test_a_finished_batch_can_be_deleted_and_its_documents_stay(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    batch = loop.run(bucket, [loop.note(bucket, "a")])
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert loop.patch(path, {"metadata": {"a": 1}})["metadata"] == {"a": 1}
    assert loop.delete(path)["success"] is True
    loop.get(path, status=404)
    assert len(loop.documents(collection)) == 1


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/list", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches", 200)
def test_lists_by_status_and_collection(loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket)
    done = loop.run(bucket, [loop.note(bucket, "a")])["batch_id"]
    path, _ = draft(loop, bucket, "b")

    def listed(body: Any = None) -> list[str]:
        return [item["batch_id"] for item in loop.post(f"/buckets/{bucket}/batches/list", body)["results"]]

    assert listed() == [path.rsplit("/", 1)[1], done], "the newest first"
    assert [
        item["batch_id"] for item in loop.get(f"/buckets/{bucket}/batches?limit=1")["results"]
    ] == listed()[:1]
    assert listed({"status": "COMPLETED"}) == [done]
    assert listed({"collection_id": collection, "limit": 1, "offset": 1}) == [done]
    assert listed({"collection_id": "col_other"}) == []
    assert "status" in loop.refused(422, "POST", f"/buckets/{bucket}/batches/list", {"status": "RUNNING"})
    counts = loop.get(f"/buckets/{bucket}")["batch_stats"]
    assert counts == {"total": 2, "active": 1, "completed": 1, "failed": 0}, "a draft is not finished"


def test_a_repeated_create_makes_one_batch(loop: Loop, bucket: str) -> None:
    body = {"object_ids": [loop.note(bucket, "a")]}
    headers = {"Idempotency-Key": "run-1"}
    first = loop.post(f"/buckets/{bucket}/batches", body, headers=headers)
    assert loop.post(f"/buckets/{bucket}/batches", body, headers=headers) == first
    other = {"object_ids": [loop.note(bucket, "b")]}
    assert "run-1" in loop.refused(409, "POST", f"/buckets/{bucket}/batches", other, headers=headers)


def test_another_namespace_sees_nothing(loop: Loop, bucket: str, namespace: Callable[..., Any]) -> None:
    path, _ = draft(loop, bucket, "a")
    other = Loop(loop.client, namespace())
    for method, suffix in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/submit"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
    ):
        other.send(method, f"{path}{suffix}", status=404)
    elsewhere = path.replace(bucket, loop.bucket())
    loop.get(elsewhere, status=404)


@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/logs", 200)
def test_the_log_of_a_batch_tells_what_happened(loop: Loop) -> None:
    bucket = loop.bucket()
    loop.collection(bucket)
    loop.collection(bucket, {**TEXT, "input_mappings": {"text": "metadata.words"}})
    good, bad = (loop.object(bucket, {"metadata": {"words": words}}) for words in ("some words", ""))
    batch = loop.run(bucket, [good, bad])
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    told = loop.get(f"{path}/logs")
    assert (told["batch_id"], told["status"]) == (batch["batch_id"], batch["status"])
    assert told["total"] == len(told["logs"])
    moments = [line["timestamp"] for line in told["logs"]]
    assert moments == sorted(moments)
    first, *_, last = told["logs"]
    assert "Submitted with 4 row(s)" in first["message"] and batch["task_id"] in first["message"]
    assert any("Attempt 1 begins: 2 collection(s)" in line["message"] for line in told["logs"])
    assert last["message"].startswith(f"{batch['status']}: ")
    failed = [line for line in told["logs"] if line["level"] == "error" and line["object_id"] == bad]
    rows = [row for row in loop.get(f"{path}/failed-documents")["results"] if row["object_id"] == bad]
    assert [line["message"] for line in failed] == [f"{row['error_kind']}: {row['error']}" for row in rows]
    assert len(failed) == 1
    assert loop.get(f"{path}/logs?tier_num=0")["total"] == told["total"]
    for wrong in (-1, 16, 10**20):
        assert "tier_num" in loop.refused(422, "GET", f"{path}/logs?tier_num={wrong}")
        assert "tier_num" in loop.refused(422, "GET", f"{path}/failed-documents?tier_num={wrong}")
    loop.delete(path)
    loop.get(f"{path}/logs", status=404)
