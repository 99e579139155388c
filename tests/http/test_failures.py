"""The failure inbox: causes, stages, histories, rows that come back by themselves or are parked, and retries."""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gated import GATED, install
from tests.http.loop import TEXT, Loop, encoded
from tests.http.processes import ROOT, Server
from tests.media import RED, picture
from tests.website import Site, serving

IMAGE = {"feature_extractor_name": "image_extractor", "version": "v1"}
WORDS = {**GATED, "input_mappings": {"text": "note"}}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("failures")
    environment = {
        **install(folder / "site"),
        "TESSERA_WORKERS": "2",
        "TESSERA_ROW_RETRIES": "1",
        "TESSERA_FETCH_ALLOWED_NETWORKS": "127.0.0.2/32",
    }
    server = Server.start(folder / "data", environment=environment)
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def loop(gated_server: Server) -> Iterator[Loop]:
    with gated_server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={
                "namespace_name": f"failures_{next(_numbers)}",
                "feature_extractors": [GATED, TEXT, IMAGE],
            },
        )
        assert made.status_code == 200, made.text
        yield Loop(client, made.json())


@pytest.fixture
def bucket(loop: Loop) -> str:
    return loop.bucket()


def path_of(bucket: str, batch: Any) -> str:
    return f"/buckets/{bucket}/batches/{batch['batch_id']}"


def failed(loop: Loop, bucket: str, batch: Any) -> dict[str, Any]:
    rows = loop.get(f"{path_of(bucket, batch)}/failed-documents")["results"]
    return {row["object_id"]: row for row in rows}


def listed(loop: Loop, **body: Any) -> dict[str, Any]:
    return {row["object_id"]: row for row in loop.post("/failures/list", body)["results"]}


def ended(loop: Loop, answer: Any) -> Any:
    return loop.wait(answer["task_id"])


# --- what is said of a failure -------------------------------------------------------------------------


@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/failed-documents", 200)
def test_a_row_says_its_cause_its_stage_and_the_next_step(loop: Loop) -> None:
    bucket = loop.bucket({"photo": {"type": "image"}})
    collection = loop.collection(bucket, {**IMAGE, "input_mappings": {"image": "photo"}})

    def put(data: bytes) -> str:
        return loop.object(bucket, {"blobs": [{"property": "photo", "type": "image", "data": encoded(data)}]})

    whole = picture(RED, size=512)
    good, cut = put(whole), put(whole[: len(whole) // 2])
    batch = loop.run(bucket, [good, cut])
    assert (batch["status"], batch["error_summary"]) == ("COMPLETED_WITH_ERRORS", {"unreadable": 1})
    (row,) = failed(loop, bucket, batch).values()
    assert (row["object_id"], row["collection_id"], row["tier_num"]) == (cut, collection, 0)
    assert (row["cause"], row["stage"], row["error_type"]) == ("unreadable", "decode", "permanent")
    assert (row["can_retry"], row["is_parked"], row["attempts"], row["retry_count"]) == (False, False, 1, 0)
    assert "cannot be decoded" in row["error"]
    assert "one that can be read" in row["next_step"]
    (short,) = batch["failed_objects"]
    assert short == {key: row[key] for key in ("object_id", "error", "error_type", "timestamp")}
    (tier,) = batch["tier_tasks"][0]["errors"]
    assert (tier["error_type"], tier["stage"], tier["affected_count"]) == ("validation", "decode", 1)
    assert tier["recovery_suggestion"] == row["next_step"]


@pytest.mark.operation("GET", "/v1/failures", 200)
@pytest.mark.operation("POST", "/v1/failures/list", 200)
@pytest.mark.operation("GET", "/v1/failures/{failure_id}", 200)
def test_the_inbox_spans_batches_and_is_filtered(loop: Loop, bucket: str) -> None:
    first, second = loop.collection(bucket, WORDS), loop.collection(bucket, WORDS)
    bad, broken = loop.note(bucket, "bad:one"), loop.note(bucket, "raise")
    early = loop.run(bucket, [bad])
    late = loop.run(bucket, [broken, loop.note(bucket, "fine")])
    everything = loop.get("/failures")
    assert everything["total_count"] == 4
    assert everything["by_cause"] == {"unreadable": 2, "ours": 2}
    assert [row["batch_id"] for row in everything["results"][:2]] == [late["batch_id"]] * 2, (
        "the latest first"
    )
    assert loop.post("/failures/list") == everything
    assert set(listed(loop, cause=["unreadable"])) == {bad}
    assert set(listed(loop, batch_id=late["batch_id"])) == {broken}
    assert loop.get(f"/failures?collection_id={second}&object_id={bad}")["total_count"] == 1
    assert loop.get("/failures?cause=unreadable&cause=limit")["total_count"] == 2
    assert listed(loop, state="waiting") == listed(loop, state="resolved") == {}
    page = loop.get("/failures?limit=1&offset=3")
    assert (len(page["results"]), page["pagination"]["total"]) == (1, 4)
    row = next(row for row in everything["results"] if row["object_id"] == bad)
    assert (row["bucket_id"], row["batch_id"]) == (bucket, early["batch_id"])
    assert row["collection_id"] in (first, second)
    detail = loop.get(f"/failures/{row['failure_id']}")
    history = detail.pop("history")
    assert detail == row
    (told,) = history
    assert (told["attempt"], told["task_id"], told["kind"]) == (1, early["task_id"], "unreadable")
    assert (told["stage"], told["message"]) == ("decode", row["message"])
    rows = loop.get(f"{path_of(bucket, early)}/failed-documents")["results"]
    assert row["failure_id"] in {item["failure_id"] for item in rows}


def test_a_failure_of_a_later_tier_names_its_document(loop: Loop, bucket: str) -> None:
    first = loop.collection(bucket, {**WORDS, "field_passthrough": [{"source_path": "metadata.next"}]})
    second = loop.collection(
        bucket,
        {**GATED, "input_mappings": {"text": "metadata.next"}},
        source={"type": "collection", "collection_id": first},
    )
    object_id = loop.note(bucket, "word", metadata={"next": "bad:two"})
    batch = loop.run(bucket, [object_id])
    (document,) = loop.documents(first)
    (row,) = loop.get(f"/failures?collection_id={second}")["results"]
    assert (row["tier_num"], row["object_id"]) == (1, document["document_id"])
    assert row["document_id"] == document["document_id"]
    assert loop.get(f"/failures?object_id={document['document_id']}")["total_count"] == 1
    path = path_of(bucket, batch)
    for tier, count in ((0, 0), (1, 1), (2, 0)):
        assert loop.get(f"{path}/failed-documents?tier_num={tier}")["total"] == count
    loop.refused(409, "POST", f"{path}/retry", {"retry_mode": "all", "tier_nums": [0]})
    retried = loop.post("/failures/retry", {"failure_ids": [row["failure_id"]]})
    ended(loop, retried["batches"][0])
    row = loop.get(f"/failures/{row['failure_id']}")
    assert (row["state"], row["attempts"], row["tier_num"]) == ("failed", 2, 1)


def test_what_the_inbox_is_asked_wrongly(loop: Loop, bucket: str) -> None:
    assert "model_missing" in loop.refused(422, "GET", "/failures?cause=bored")
    assert "resolved" in loop.refused(422, "POST", "/failures/list", {"state": "open"})
    assert "fail_nobody" in loop.refused(404, "GET", "/failures/fail_nobody")
    assert "Nothing fails" in loop.refused(409, "POST", "/failures/retry")
    answer = loop.post("/failures/retry", {"failure_ids": ["fail_a", "fail_b"]}, status=404)
    assert answer["error"]["details"]["missing"] == ["fail_a", "fail_b"]
    loop.refused(422, "POST", "/failures/retry", {"failure_ids": []})


def test_another_namespace_sees_no_failure(loop: Loop, bucket: str, gated_server: Server) -> None:
    loop.collection(bucket, WORDS)
    loop.run(bucket, [loop.note(bucket, "bad:one")])
    (row,) = loop.get("/failures")["results"]
    with gated_server.client() as client:
        made = client.post(
            "/v1/namespaces",
            json={"namespace_name": f"beside_{next(_numbers)}", "feature_extractors": [GATED]},
        )
        other = Loop(client, made.json())
        assert other.get("/failures")["total_count"] == 0
        other.get(f"/failures/{row['failure_id']}", status=404)
        other.post("/failures/retry", {"failure_ids": [row["failure_id"]]}, status=404)


def test_failures_go_with_their_batch(loop: Loop, bucket: str) -> None:
    loop.collection(bucket, WORDS)
    batch = loop.run(bucket, [loop.note(bucket, "bad:one")])
    (row,) = loop.get("/failures")["results"]
    loop.delete(path_of(bucket, batch))
    loop.get(f"/failures/{row['failure_id']}", status=404)
    assert loop.get("/failures")["total_count"] == 0


def test_a_later_batch_with_the_same_object_resolves_what_failed_before(loop: Loop) -> None:
    """A folder that was sent again and again listed each of its bad files once for every time."""
    bucket = loop.bucket({"photo": {"type": "image"}})
    loop.collection(bucket, {**IMAGE, "input_mappings": {"image": "photo"}})
    whole = picture(RED)
    blobs = [{"property": "photo", "type": "image", "data": encoded(whole[: len(whole) // 2])}]
    object_id = loop.post(f"/buckets/{bucket}/objects", {"blobs": blobs})["object_id"]
    batches = [loop.run(bucket, [object_id])["batch_id"] for _ in range(2)]
    (row,) = loop.get("/failures")["results"]
    assert (row["batch_id"], row["state"]) == (batches[1], "failed")
    (earlier,) = loop.post("/failures/list", {"state": "resolved"})["results"]
    assert (earlier["batch_id"], earlier["state"]) == (batches[0], "resolved")
    assert loop.get(f"/failures/{earlier['failure_id']}")["state"] == "resolved"
    # A retry of everything takes up what fails now.
    answer = loop.post("/failures/retry", {"retry_mode": "all"})
    assert [item["batch_id"] for item in answer["batches"]] == [batches[1]]
    assert answer["retried_count"] == 1
    loop.wait(answer["batches"][0]["task_id"])
    blobs[0]["data"] = encoded(whole)
    loop.send("PUT", f"/buckets/{bucket}/objects/{object_id}", {"blobs": blobs})
    assert loop.run(bucket, [object_id])["status"] == "COMPLETED"
    assert loop.get("/failures")["total_count"] == 0
    assert loop.post("/failures/list", {"state": "resolved"})["total_count"] == 2


# --- by themselves -------------------------------------------------------------------------------------


def test_what_cannot_be_reached_comes_back_by_itself_and_keeps_its_history(loop: Loop, site: Site) -> None:
    """The neighbours are not held up: they are findable while the batch waits."""
    bucket = loop.bucket()
    collection = loop.collection(bucket, WORDS)
    path = f"/flaky/{next(_numbers)}"
    site.serve(path, b"", status=503)
    bad, good = site.pages[path], b"back"

    def once(request: Any) -> None:
        bad(request)
        site.serve(path, good)

    site.pages[path] = once
    flaky, fine = loop.note(bucket, site.url(path)), loop.note(bucket, "fine")
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [flaky, fine]})
    task = loop.post(f"{path_of(bucket, batch)}/submit")
    assert ended(loop, task)["status"] == "COMPLETED"
    assert {item["piece"] for item in loop.documents(collection)} == {"back", "fine"}
    (row,) = loop.post("/failures/list", {"state": "resolved"})["results"]
    assert (row["object_id"], row["state"], row["cause"]) == (flaky, "resolved", "unreachable")
    assert (row["attempts"], row["retry_count"], row["retry_at"]) == (2, 0, None)
    (told,) = loop.get(f"/failures/{row['failure_id']}")["history"]
    assert (told["kind"], told["stage"], told["attempt"]) == ("fetch_unavailable", "fetch", 1)
    assert loop.get("/failures")["total_count"] == 0


def test_what_stays_unreachable_fails_after_as_many_tries_as_are_set(loop: Loop, site: Site) -> None:
    bucket = loop.bucket()
    loop.collection(bucket, WORDS)
    path = f"/down/{next(_numbers)}"
    site.serve(path, b"", status=503)
    batch = loop.run(bucket, [loop.note(bucket, site.url(path))])
    assert (batch["status"], batch["error_summary"]) == ("FAILED", {"unreachable": 1})
    (row,) = loop.get("/failures")["results"]
    assert (row["attempts"], row["can_retry"], row["state"]) == (2, True, "failed")
    history = loop.get(f"/failures/{row['failure_id']}")["history"]
    assert [item["attempt"] for item in history] == [1, 2]
    assert history[0]["at"] < history[1]["at"]
    # A retry that was asked for has all its tries again, and the history goes on.
    site.serve(path, b"at last")
    retried = loop.post(f"{path_of(bucket, batch)}/retry")
    assert ended(loop, retried)["status"] == "COMPLETED"
    (row,) = loop.post("/failures/list", {"state": "resolved"})["results"]
    assert (row["attempts"], row["retry_count"]) == (3, 1)


def test_a_batch_that_waits_can_be_cancelled_at_once(loop: Loop, site: Site) -> None:
    bucket = loop.bucket()
    loop.collection(bucket, WORDS)
    path = f"/down/{next(_numbers)}"
    site.serve(path, b"", status=503)
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [loop.note(bucket, site.url(path))]})
    loop.post(f"{path_of(bucket, batch)}/submit")
    deadline = time.monotonic() + 60
    while not (waiting := loop.post("/failures/list", {"state": "waiting"})["results"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert waiting[0]["state"] == "waiting"
    loop.post(f"{path_of(bucket, batch)}/cancel")
    said = loop.refused(409, "POST", "/failures/retry", {"failure_ids": [waiting[0]["failure_id"]]})
    assert "was cancelled" in said
    site.serve(path, b"here")
    assert ended(loop, loop.post(f"{path_of(bucket, batch)}/retry"))["status"] == "COMPLETED"


# --- poison --------------------------------------------------------------------------------------------


def test_a_row_that_ends_its_workers_is_parked(loop: Loop, bucket: str, tmp_path: Path) -> None:
    collection = loop.collection(bucket, WORDS)
    poison, fine = loop.note(bucket, "die"), loop.note(bucket, "fine")
    batch = loop.run(bucket, [poison, fine])
    assert (batch["status"], batch["error_summary"]) == ("COMPLETED_WITH_ERRORS", {"ours": 1})
    (row,) = loop.get("/failures")["results"]
    assert (row["object_id"], row["kind"], row["cause"], row["is_parked"]) == (poison, "crash", "ours", True)
    assert (row["attempts"], row["can_retry"]) == (2, False)
    history = loop.get(f"/failures/{row['failure_id']}")["history"]
    assert [item["kind"] for item in history] == ["crash", "crash"], "each death is written down"
    assert "parked" in row["next_step"]
    for path in (f"{path_of(bucket, batch)}/retry", "/failures/retry"):
        assert "retry_mode 'all'" in loop.refused(409, "POST", path)
    # Named, it is tried; its neighbour is left alone.
    again = loop.post("/failures/retry", {"failure_ids": [row["failure_id"]]})
    assert (again["retried_count"], again["skipped_count"]) == (1, 0)
    (started,) = again["batches"]
    assert ended(loop, started)["status"] == "COMPLETED_WITH_ERRORS"
    assert loop.get(f"/failures/{row['failure_id']}")["attempts"] == 4
    assert [item["root_object_id"] for item in loop.documents(collection)] == [fine]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what a process asks for")
def test_a_row_that_wants_too_much_memory_fails_alone(loop: Loop, bucket: str) -> None:
    loop.collection(bucket, WORDS)
    batch = loop.run(bucket, [loop.note(bucket, "hog:4096"), loop.note(bucket, "fine")])
    assert (batch["status"], batch["error_summary"]) == ("COMPLETED_WITH_ERRORS", {"limit": 1})
    (row,) = loop.get("/failures")["results"]
    assert (row["kind"], row["stage"], row["can_retry"], row["is_parked"]) == (
        "memory",
        "extract",
        False,
        False,
    )
    assert "worker_memory_mib" in row["message"]
    assert "worker_memory_mib" in row["next_step"]


# --- retry ---------------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/failures/retry", 200)
def test_the_inbox_retries_what_is_named_and_nothing_else(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}})
    collection = loop.collection(bucket, {**GATED, "input_mappings": {"text": "metadata.words"}})
    ids = [loop.object(bucket, {"metadata": {"words": f"bad:{n}"}}) for n in range(3)]
    batch = loop.run(bucket, ids)
    assert batch["status"] == "FAILED"
    rows = listed(loop)
    for object_id in ids[:2]:
        loop.patch(f"/buckets/{bucket}/objects/{object_id}", {"metadata": {"words": object_id[-4:]}})
    answer = loop.post("/failures/retry", {"failure_ids": [rows[ids[0]]["failure_id"]]})
    (started,) = answer["batches"]
    assert (started["batch_id"], started["bucket_id"], started["retried_count"]) == (
        batch["batch_id"],
        bucket,
        1,
    )
    assert ended(loop, started)["status"] == "COMPLETED_WITH_ERRORS"
    assert [item["root_object_id"] for item in loop.documents(collection)] == [ids[0]]
    assert set(listed(loop)) == set(ids[1:])
    said = loop.refused(409, "POST", "/failures/retry", {"failure_ids": [rows[ids[0]]["failure_id"]]})
    assert "does not fail any more" in said
    # The rest by filter; what is permanent only when all is asked for.
    assert "retry_mode 'all'" in loop.refused(409, "POST", "/failures/retry", {"cause": ["unreadable"]})
    answer = loop.post("/failures/retry", {"cause": ["unreadable"], "retry_mode": "all"})
    assert answer["retried_count"] == 2
    ended(loop, answer["batches"][0])
    assert set(listed(loop)) == {ids[2]}
    row = listed(loop)[ids[2]]
    assert (row["attempts"], row["retry_count"]) == (2, 1)
    assert len(loop.get(f"/failures/{row['failure_id']}")["history"]) == 2


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/retry", 200)
def test_a_retry_of_a_batch_counts_and_keeps_the_history(loop: Loop, bucket: str) -> None:
    loop.collection(bucket, WORDS)
    batch = loop.run(bucket, [loop.note(bucket, "raise"), loop.note(bucket, "fine")])
    path = path_of(bucket, batch)
    for count in (1, 2):
        retried = loop.post(f"{path}/retry", {"max_retry_count": 2})
        assert (retried["retried_count"], retried["skipped_count"]) == (1, 0)
        assert ended(loop, retried)["status"] == "COMPLETED_WITH_ERRORS"
        (row,) = failed(loop, bucket, batch).values()
        assert row["retry_count"] == count
    assert "max_retry_count" in loop.refused(409, "POST", f"{path}/retry", {"max_retry_count": 2})
    history = loop.get(f"/failures/{row['failure_id']}")["history"]
    assert len(history) == 3
    assert len({item["task_id"] for item in history}) == 3


def test_rows_of_a_batch_under_way_are_passed_over(loop: Loop, bucket: str, tmp_path: Path) -> None:
    loop.collection(bucket, WORDS)
    gate = tmp_path / "gate"
    early = loop.run(bucket, [loop.note(bucket, "bad:one")])
    held = loop.note(bucket, f"wait:{gate} word")
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [loop.note(bucket, "bad:two"), held]})
    task = loop.post(f"{path_of(bucket, batch)}/submit")
    (row,) = loop.get("/failures")["results"]
    try:
        retried = loop.post(f"{path_of(bucket, early)}/retry", {"retry_mode": "all"})
        ended(loop, retried)
        assert loop.get("/failures")["total_count"] == 1
    finally:
        gate.touch()
    ended(loop, task)
    assert loop.get("/failures")["total_count"] == 2
    answer = loop.post("/failures/retry", {"retry_mode": "all"})
    assert len(answer["batches"]) == 2
    for started in answer["batches"]:
        ended(loop, started)
    assert row["failure_id"] in {item["failure_id"] for item in loop.get("/failures")["results"]}


def test_erasing_an_object_erases_what_its_failures_say(
    loop: Loop, bucket: str, gated_server: Server
) -> None:
    loop.collection(bucket, WORDS)
    object_id = loop.note(bucket, "bad:canary-word")
    loop.run(bucket, [object_id])
    (row,) = loop.get("/failures")["results"]
    assert "canary-word" in row["message"]
    task = loop.post(f"/namespaces/{loop.namespace_id}/erase", {"object_ids": [object_id]})
    assert ended(loop, task)["status"] == "COMPLETED"
    database = sqlite3.connect(f"file:{gated_server.data / 'tessera.sqlite3'}?mode=ro", uri=True)
    try:
        told = database.execute("SELECT message, history FROM failures").fetchall()
    finally:
        database.close()
    assert told and "canary-word" not in str(told)


# --- the command ---------------------------------------------------------------------------------------


def tessera(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", "failures", *arguments, "--data", str(server.data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_the_command_lists_shows_and_retries(loop: Loop, gated_server: Server) -> None:
    bucket = loop.bucket({"note": {"type": "text"}})
    loop.collection(bucket, {**GATED, "input_mappings": {"text": "metadata.words"}})
    ids = [loop.object(bucket, {"metadata": {"words": words}}) for words in ("bad:one", "raise")]
    loop.run(bucket, ids)
    name = loop.get(f"/namespaces/{loop.namespace_id}")["namespace_name"]
    done = tessera(gated_server, "list", "-n", name)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["FAILURE", "CAUSE", "STAGE", "TRIES", "RETRY"]
    assert lines[-1] == "2 failed: 1 ours, 1 unreadable."
    rows = listed(loop)
    assert all(any(line.startswith(row["failure_id"]) for line in lines) for row in rows.values())
    assert tessera(gated_server, "list", "-n", name, "--cause", "limit").stdout == "0 failed.\n"
    told = json.loads(tessera(gated_server, "list", "-n", name, "--json", "--limit", "1").stdout)
    assert (len(told["results"]), told["total_count"]) == (1, 2)

    failure_id = rows[ids[0]]["failure_id"]
    shown = tessera(gated_server, "show", failure_id, "-n", name).stdout
    assert "The text says one." in shown and "next_step" in shown and "TRY" in shown

    # What a plain retry can help is tried again, and fails again.
    done = tessera(gated_server, "retry", "-n", name)
    assert done.returncode == 5, done
    assert done.stdout.startswith("1 row(s) of 1 batch(es) run again")
    loop.patch(f"/buckets/{bucket}/objects/{ids[0]}", {"metadata": {"words": "fine"}})
    loop.patch(f"/buckets/{bucket}/objects/{ids[1]}", {"metadata": {"words": "fine"}})
    done = tessera(gated_server, "retry", failure_id, rows[ids[1]]["failure_id"], "-n", name)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "Nothing of these batches fails."
    assert loop.get("/failures")["total_count"] == 0


def test_the_command_says_what_is_wrong(loop: Loop, gated_server: Server, tmp_path: Path) -> None:
    refused = tessera(gated_server, "retry", "-n", loop.namespace_id)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "There is nothing to retry." in refused.stderr
    absent = tessera(gated_server, "show", "fail/../x", "-n", loop.namespace_id)
    assert absent.returncode == 4 and "fail/../x" in absent.stderr
    assert tessera(gated_server, "list", "-n", "nobody's").returncode == 4
    nowhere = subprocess.run(
        [sys.executable, "-m", "tessera", "failures", "list", "-n", "x", "--data", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert nowhere.returncode == 3 and "tessera up" in nowhere.stderr
    assert tessera(gated_server, "list").returncode == 2
