"""Ingest: rows that fail one by one, workers that die, sources that change under it, and what is left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gated import GATED, Gate, install
from tests.http.loop import PASSTHROUGH, TEXT, Loop, encoded
from tests.http.processes import Server
from tests.media import BLUE, GREEN, RED, picture, video

IMAGE = {"feature_extractor_name": "image_extractor", "version": "v1"}
VIDEO = {"feature_extractor_name": "video_extractor", "version": "1.0.0"}


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gated")
    environment = {**install(folder / "site"), "TESSERA_WORKERS": "2"}
    server = Server.start(folder / "data", environment=environment)
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def loop(gated_server: Server) -> Iterator[Loop]:
    yield from looped(gated_server)


def looped(server: Server, **fields: Any) -> Iterator[Loop]:
    with server.client() as client:
        body = {
            "namespace_name": f"ingest_{time.monotonic_ns()}",
            "feature_extractors": [GATED, PASSTHROUGH, TEXT, IMAGE, VIDEO],
            **fields,
        }
        made = client.post("/v1/namespaces", json=body)
        assert made.status_code == 200, made.text
        loop = Loop(client, made.json())
        yield loop
        client.delete(f"/v1/namespaces/{loop.namespace_id}")


def start(loop: Loop, bucket: str, object_ids: list[str]) -> tuple[str, str]:
    """Submit a batch; return its path and its task."""
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": object_ids})
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    return path, loop.post(f"{path}/submit")["task_id"]


def ended(loop: Loop, path: str, task_id: str) -> Any:
    loop.wait(task_id)
    return loop.get(path)


def failed(loop: Loop, path: str) -> dict[str, Any]:
    return {row["object_id"]: row for row in loop.get(f"{path}/failed-documents")["results"]}


def rows(server: Server, path: str) -> dict[str, tuple[str, str | None, str | None]]:
    """Return (status, kind, message) of each row of a batch, as the database holds them."""
    query = "SELECT object_id, status, error_kind, error_message FROM batch_rows WHERE batch_id = ?"
    return {row[0]: row[1:] for row in ask(server, query, path.rsplit("/", 1)[1])}


def head(server: Server, loop: Loop) -> int:
    ((number,),) = ask(server, "SELECT head FROM namespaces WHERE namespace_id = ?", loop.namespace_id)
    return int(number)


def ask(server: Server, query: str, *values: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{server.data / 'tessera.sqlite3'}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def artifacts(server: Server, loop: Loop) -> set[str]:
    return {path.name for path in (server.data / "blobs" / loop.namespace_id / "artifacts").glob("*")}


def logged(server: Server, loop: Loop) -> set[str]:
    query = "SELECT artifact_key FROM log_entries WHERE namespace_id = ? AND artifact_key IS NOT NULL"
    return {key.rsplit("/", 1)[1] for (key,) in ask(server, query, loop.namespace_id)}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# --- rows fail one by one ------------------------------------------------------------------------------


def test_damaged_pictures_fail_alone(loop: Loop) -> None:
    bucket = loop.bucket({"photo": {"type": "image"}})
    collection = loop.collection(bucket, {**IMAGE, "input_mappings": {"image": "photo"}})
    good = picture(RED)
    cut = picture(GREEN, size=512)[:300]

    def put(data: bytes) -> str:
        blob = {"property": "photo", "type": "image", "data": encoded(data)}
        return loop.object(bucket, {"blobs": [blob]})

    fine = [put(good), put(picture(BLUE))]
    bad = put(cut)
    batch = loop.run(bucket, [fine[0], bad, fine[1]])
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    assert bad in batch["error"]
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    (row,) = failed(loop, path).values()
    assert (row["object_id"], row["collection_id"]) == (bad, collection)
    assert row["error"]
    assert batch["error_summary"] == {"unreadable": 1}
    assert {item["root_object_id"] for item in loop.documents(collection)} == set(fine)


def test_a_damaged_video_fails_alone(loop: Loop) -> None:
    bucket = loop.bucket({"clip": {"type": "video"}})
    collection = loop.collection(bucket, {**VIDEO, "input_mappings": {"video": "clip"}})
    whole = video([(2, RED), (2, BLUE)])
    ids = []
    # The second keeps its first bytes, so that it still is a video by its looks, and nothing of its index.
    for data in (whole, whole[:200] + bytes(len(whole) - 200)):
        blob = {"property": "clip", "type": "video", "data": encoded(data)}
        ids.append(loop.object(bucket, {"blobs": [blob]}))
    batch = loop.run(bucket, ids)
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert list(failed(loop, path)) == [ids[1]]
    assert {item["root_object_id"] for item in loop.documents(collection)} == {ids[0]}


def test_when_every_row_fails_the_batch_fails(gated_server: Server, loop: Loop) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    ids = [loop.note(bucket, f"bad:{number}") for number in range(3)]
    before = head(gated_server, loop)
    batch = loop.run(bucket, ids)
    assert (batch["status"], batch["error_summary"]) == ("FAILED", {"unreadable": 3})
    task = loop.get(f"/tasks/{batch['task_id']}")
    assert (task["status"], task["additional_data"]["failed"]) == ("FAILED", 3)
    assert task["error"] == batch["error"]
    assert loop.documents(collection) == []
    assert head(gated_server, loop) == before, "nothing was made, nothing is in the log"


def test_each_kind_of_failure_costs_its_own_row(gated_server: Server, loop: Loop) -> None:
    """An error raised, a worker that died, a vector of the wrong size: neighbours of the chunk are done."""
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    words = ["one two", "raise", "die", "wrong-size", "bad:so", "three"]
    ids = dict(zip(words, [loop.note(bucket, text) for text in words], strict=True))
    batch = loop.run(bucket, list(ids.values()))
    assert (batch["status"], batch["documents_written"]) == ("COMPLETED_WITH_ERRORS", 3)
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    why = {word: rows(gated_server, path)[object_id] for word, object_id in ids.items()}
    assert why["one two"] == why["three"] == ("COMPLETED", None, None)
    assert why["bad:so"] == ("FAILED", "unreadable", "The text says so.")
    for word, expected, message in (
        ("raise", "ours", "RuntimeError: a defect of the extractor"),
        ("die", "crash", "The worker process ended"),
        ("wrong-size", "ours", "has shape [3]; 4 numbers are needed"),
    ):
        status, kind, said = why[word]
        assert (status, kind) == ("FAILED", expected), word
        assert message in (said or "")
    assert {item["piece"] for item in loop.documents(collection)} == {"one", "two", "three"}
    # What lost workers left behind is swept once the batch has ended.
    deadline = time.monotonic() + 30
    while artifacts(gated_server, loop) != logged(gated_server, loop):
        assert time.monotonic() < deadline, "a file that nothing names stays"
        time.sleep(0.05)


def test_a_row_that_is_alone_gets_its_second_try_too(loop: Loop, tmp_path: Path) -> None:
    """It shared its chunk with nobody, so the first death was taken for its last word."""
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    batch = loop.run(bucket, [loop.note(bucket, f"die-once:{tmp_path / 'died'} word")])
    assert batch["status"] == "COMPLETED"
    assert [item["piece"] for item in loop.documents(collection)] == ["word"]


def test_a_worker_killed_from_outside_costs_nothing(loop: Loop, gate: Gate) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    ids = [loop.note(bucket, text) for text in (f"{gate.words} a", "b", "c")]
    path, task_id = start(loop, bucket, ids)
    gate.wait()
    os.kill(int(gate.reached.read_text()), signal.SIGKILL)
    gate.open()
    assert ended(loop, path, task_id)["status"] == "COMPLETED"
    assert {item["piece"] for item in loop.documents(collection)} == {"a", "b", "c"}


# --- again ---------------------------------------------------------------------------------------------


def test_the_same_again_writes_no_entry(gated_server: Server, loop: Loop) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    ids = [loop.note(bucket, "a b"), loop.note(bucket, "c")]
    loop.run(bucket, ids)
    before, documents = head(gated_server, loop), loop.documents(collection)
    again = loop.run(bucket, ids)
    assert again["status"] == "COMPLETED"
    assert again["documents_written"] == 3, "that exist, although nothing was written"
    assert head(gated_server, loop) == before
    assert loop.documents(collection) == documents


def test_what_a_changed_object_does_not_bring_again_goes(gated_server: Server, loop: Loop) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "metadata.words"}})
    object_id = loop.object(bucket, {"metadata": {"words": "a b c"}})
    other = loop.object(bucket, {"metadata": {"words": "z"}})
    loop.run(bucket, [object_id, other])
    before = {item["piece"]: item["document_id"] for item in loop.documents(collection)}
    assert set(before) == {"a", "b", "c", "z"}

    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"words": "c d"}})
    at = head(gated_server, loop)
    assert loop.run(bucket, [object_id, other])["status"] == "COMPLETED"
    after = {item["piece"]: item["document_id"] for item in loop.documents(collection)}
    assert set(after) == {"c", "d", "z"}
    assert after["c"] == before["c"], "the same piece keeps its id"
    assert head(gated_server, loop) == at + 1, "one entry, for the changed object alone"
    stats = loop.client.get(f"/v1/namespaces/{loop.namespace_id}").json()
    assert stats["document_count"] == 3


def test_an_object_that_brings_nothing_any_more_leaves_nothing(loop: Loop) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "metadata.words"}})
    object_id = loop.object(bucket, {"metadata": {"words": "a b"}})
    loop.run(bucket, [object_id])
    assert len(loop.documents(collection)) == 2
    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"words": "sleep:0"}})
    assert loop.run(bucket, [object_id])["status"] == "COMPLETED"
    assert loop.documents(collection) == []


def test_each_collection_skips_objects_of_another_kind(gated_server: Server, loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "photo": {"type": "image"}})
    texts = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    pictures = loop.collection(bucket, {**IMAGE, "input_mappings": {"image": "photo"}})
    photo = {"property": "photo", "type": "image", "data": encoded(picture(RED))}
    words = {"property": "note", "type": "text", "data": "a b"}
    note, seen = loop.object(bucket, {"blobs": [words]}), loop.object(bucket, {"blobs": [photo]})
    plan = loop.post(f"/buckets/{bucket}/batches/plan", {"object_ids": [note, seen]})
    assert [sum(a["files"] for a in item["amounts"].values()) for item in plan["extractors"]] == [1, 1]
    batch = loop.run(bucket, [note, seen])
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert (batch["status"], batch["progress"]["errors"], failed(loop, path)) == ("COMPLETED", 0, {})
    told = [line["message"] for line in loop.get(f"{path}/logs")["logs"]]
    assert any("2 row(s) done, 0 failed, 2 skipped" in line for line in told)
    assert any(f"1 source(s) skipped in collection {pictures}" in line and "'photo'" in line for line in told)
    assert {item["root_object_id"] for item in loop.documents(texts)} == {note}
    assert {item["root_object_id"] for item in loop.documents(pictures)} == {seen}

    loop.patch(f"/buckets/{bucket}/objects/{note}", {"blobs": [photo]})
    assert loop.run(bucket, [note, seen])["status"] == "COMPLETED"
    assert loop.documents(texts) == [], "what has lost its text has none of its documents"
    assert {item["root_object_id"] for item in loop.documents(pictures)} == {note, seen}


def test_an_object_that_lacks_one_of_its_inputs_fails_with_what_it_lacks(loop: Loop) -> None:
    bucket = loop.bucket({"clip": {"type": "video"}, "words": {"type": "text"}})
    mapped = {"video": "clip", "subtitles": "words"}
    collection = loop.collection(bucket, {**VIDEO, "input_mappings": mapped})
    words = {"property": "words", "type": "text", "data": "1\n00:00:00,000 --> 00:00:01,000\nHello\n"}
    batch = loop.run(bucket, [loop.object(bucket, {"blobs": [words]})])
    assert batch["error_summary"] == {"missing_input": 1}
    (row,) = failed(loop, f"/buckets/{bucket}/batches/{batch['batch_id']}").values()
    assert "It lacks the property 'clip' of input `video`." in row["error"]
    assert "Give the object the property" in row["next_step"]
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert "retry_mode 'all'" in loop.refused(409, "POST", f"{path}/retry"), "nothing was changed"
    again = loop.post(f"{path}/retry", {"retry_mode": "all"})
    assert loop.wait(again["task_id"])["status"] == "FAILED"
    (row,) = failed(loop, path).values()
    assert (row["cause"], row["error_kind"]) == ("missing_input", "missing_input")

    film = {"property": "clip", "type": "video", "data": encoded(video([(1.0, RED)]))}
    loop.patch(f"/buckets/{bucket}/objects/{row['object_id']}", {"blobs": [film, words]})
    again = loop.post(f"{path}/retry", {"retry_mode": "all"})
    assert loop.wait(again["task_id"])["status"] == "COMPLETED"
    assert failed(loop, path) == {}
    assert {item["root_object_id"] for item in loop.documents(collection)} == {row["object_id"]}


def test_a_changed_field_alone_is_a_change(loop: Loop) -> None:
    bucket = loop.bucket()
    passed = {"field_passthrough": [{"source_path": "metadata.tags"}]}
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}, **passed})
    object_id = loop.note(bucket, "a", metadata={"tags": ["x", None, ["y"]]})
    loop.run(bucket, [object_id])
    (document,) = loop.documents(collection)
    assert document["tags"] == document["metadata"]["tags"] == ["x", None, ["y"]], "as it stands"
    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"tags": ["z"]}})
    loop.run(bucket, [object_id])
    (document,) = loop.documents(collection)
    assert document["tags"] == ["z"]


def test_a_retry_closes_rows_whose_object_is_gone(gated_server: Server, loop: Loop) -> None:
    """Such a row stayed PENDING for ever, in a batch that called itself COMPLETED."""
    bucket = loop.bucket()
    loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    bad, good = loop.note(bucket, "bad:x"), loop.note(bucket, "a")
    batch = loop.run(bucket, [bad, good])
    loop.delete(f"/buckets/{bucket}/objects/{bad}", status=204)
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    retried = loop.post(f"{path}/retry", {"retry_mode": "all"})
    assert loop.wait(retried["task_id"])["status"] == "COMPLETED"
    assert rows(gated_server, path)[bad][:2] == ("SKIPPED", "superseded")
    assert loop.get(path)["progress"] == {"processed": 2, "total": 2, "percent": 100.0, "errors": 0}


# --- what changes under a batch ------------------------------------------------------------------------


def test_a_document_changed_by_hand_while_its_source_is_extracted_keeps_the_change(
    gated_server: Server, loop: Loop, gate: Gate
) -> None:
    """The worker knew nothing of the change; the commit must, and leave no file of the first attempt behind."""
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "metadata.words"}})
    object_id = loop.object(bucket, {"metadata": {"words": "a b c"}})
    loop.run(bucket, [object_id])
    before = {item["piece"]: item["document_id"] for item in loop.documents(collection)}
    documents = f"/collections/{collection}/documents"
    loop.patch(f"{documents}/{before['b']}", {"mark": "early"})
    loop.patch(f"{documents}/{before['c']}", {"mark": "undone"})
    loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"words": f"{gate.words} a b c d"}})
    path, task_id = start(loop, bucket, [object_id])
    gate.wait()
    loop.patch(f"{documents}/{before['a']}", {"mark": "late"})
    loop.delete(f"{documents}/{before['c']}")
    gate.open()
    assert ended(loop, path, task_id)["status"] == "COMPLETED"
    after = {item["piece"]: item.get("mark") for item in loop.documents(collection)}
    assert after == {"a": "late", "b": "early", "c": None, "d": None}
    assert artifacts(gated_server, loop) == logged(gated_server, loop)


@pytest.mark.parametrize("change", ["delete", "patch"])
def test_an_object_that_changes_while_it_is_extracted_is_skipped(
    gated_server: Server, loop: Loop, gate: Gate, change: str
) -> None:
    bucket = loop.bucket()
    passed = {"field_passthrough": [{"source_path": "metadata.n"}]}
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}, **passed})
    slow = loop.note(bucket, f"{gate.words} a")
    neighbour = loop.note(bucket, "b")
    path, task_id = start(loop, bucket, [slow, neighbour])
    gate.wait()
    where = f"/buckets/{bucket}/objects/{slow}"
    if change == "delete":
        loop.delete(where, status=204)
    else:
        loop.patch(where, {"metadata": {"n": 2}})
    gate.open()
    assert ended(loop, path, task_id)["status"] == "COMPLETED"
    assert rows(gated_server, path)[slow][:2] == ("SKIPPED", "superseded")
    assert [item["root_object_id"] for item in loop.documents(collection)] == [neighbour]
    assert artifacts(gated_server, loop) == logged(gated_server, loop)
    if change == "patch":
        loop.run(bucket, [slow])
        found = {item["root_object_id"]: item.get("n") for item in loop.documents(collection)}
        assert found == {slow: 2, neighbour: None}


def test_a_collection_deleted_during_its_batch_gets_nothing(
    gated_server: Server, loop: Loop, gate: Gate
) -> None:
    bucket = loop.bucket()
    gone = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    stays = loop.collection(bucket)
    path, task_id = start(loop, bucket, [loop.note(bucket, f"{gate.words} a"), loop.note(bucket, "b")])
    gate.wait()
    loop.delete(f"/collections/{gone}")
    gate.open()
    batch = ended(loop, path, task_id)
    assert batch["status"] == "COMPLETED"
    assert batch["progress"]["processed"] == 4
    assert len(loop.documents(stays)) == 2
    count = loop.client.get(f"/v1/namespaces/{loop.namespace_id}").json()["document_count"]
    assert count == 2
    assert artifacts(gated_server, loop) == logged(gated_server, loop)


def test_nothing_comes_after_a_cancel_and_a_retry_brings_it(
    gated_server: Server, loop: Loop, gate: Gate
) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    path, task_id = start(loop, bucket, [loop.note(bucket, f"{gate.words} a"), loop.note(bucket, "b")])
    gate.wait()
    assert loop.post(f"{path}/cancel")["status"] == "CANCELED"
    gate.open()
    # The next batch of the namespace ends after the cancelled one was dropped.
    last = loop.note(bucket, "c")
    loop.run(bucket, [last])
    assert [item["root_object_id"] for item in loop.documents(collection)] == [last]
    assert loop.get(f"/tasks/{task_id}")["status"] == "CANCELED"
    assert (loop.get(path)["status"], loop.get(path)["progress"]["processed"]) == ("CANCELED", 0)
    retried = loop.post(f"{path}/retry")
    assert retried["retried_count"] == 2
    assert ended(loop, path, retried["task_id"])["status"] == "COMPLETED"
    assert {item["piece"] for item in loop.documents(collection)} == {"a", "b", "c"}
    deadline = time.monotonic() + 10
    while artifacts(gated_server, loop) != logged(gated_server, loop):
        assert time.monotonic() < deadline, "the cancelled attempt left a file behind"
        time.sleep(0.05)


def test_a_namespace_deleted_during_a_batch_is_no_failure(
    gated_server: Server, loop: Loop, gate: Gate
) -> None:
    bucket = loop.bucket()
    loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    start(loop, bucket, [loop.note(bucket, f"{gate.words} a")])
    gate.wait()
    task = loop.client.delete(f"/v1/namespaces/{loop.namespace_id}").json()
    gate.open()
    assert gated_server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
    assert "Traceback" not in gated_server.log


# --- the queue -----------------------------------------------------------------------------------------


def test_a_namespace_has_no_more_batches_in_progress_than_it_may(
    gated_server: Server, tmp_path: Path
) -> None:
    gates = [Gate(tmp_path, str(number)) for number in range(3)]
    for loop in looped(gated_server, infrastructure={"compute_tier": "shared", "max_concurrent_jobs": 1}):
        bucket = loop.bucket()
        loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
        started = [start(loop, bucket, [loop.note(bucket, f"{gate.words} a")]) for gate in gates]
        for number, gate in enumerate(gates):
            gate.wait()
            states = [loop.get(path)["status"] for path, _ in started]
            assert states == ["COMPLETED"] * number + ["IN_PROGRESS"] + ["PENDING"] * (2 - number)
            assert loop.get(f"/tasks/{started[number][1]}")["status"] == "IN_PROGRESS"
            gate.open()
            assert ended(loop, *started[number])["status"] == "COMPLETED"


def test_progress_is_told_while_it_goes_on(loop: Loop, gate: Gate) -> None:
    bucket = loop.bucket()
    loop.collection(bucket)
    loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}})
    _path, task_id = start(loop, bucket, [loop.note(bucket, f"{gate.words} a"), loop.note(bucket, "bad:x")])
    gate.wait()
    told = loop.get(f"/tasks/{task_id}")["additional_data"]
    assert (told["stage"], told["total"], told["done"], told["failed"]) == ("extract", 4, 2, 0)
    gate.open()
    loop.wait(task_id)
    told = loop.get(f"/tasks/{task_id}")["additional_data"]
    assert (told["stage"], told["total"], told["done"], told["failed"]) == ("done", 4, 4, 1)
