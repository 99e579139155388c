"""Collections that feed each other: tier after tier, again without a trace, and nothing left of what is gone."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pyarrow import parquet

from tests.gated import GATED, Gate, install
from tests.http.loop import PASSTHROUGH, TEXT, Loop, encoded
from tests.http.oracle import check_agreement
from tests.http.processes import Server
from tests.media import BLUE, RED, picture, video

IMAGE = {"feature_extractor_name": "image_extractor", "version": "v1"}
VIDEO = {"feature_extractor_name": "video_extractor", "version": "1.0.0"}
PIECES = {**GATED, "input_mappings": {"text": "piece"}, "include_all_source_fields": True}


@pytest.fixture(scope="module")
def gated_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pipelines")
    environment = {**install(folder / "site"), "TESSERA_WORKERS": "2"}
    server = Server.start(folder / "data", environment=environment)
    yield server
    check_agreement(server)
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def loop(gated_server: Server) -> Iterator[Loop]:
    with gated_server.client() as client:
        loop = new_loop(client)
        yield loop
        client.delete(f"/v1/namespaces/{loop.namespace_id}")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def new_loop(client: Any) -> Loop:
    body = {
        "namespace_name": f"pipelines_{time.monotonic_ns()}",
        "feature_extractors": [GATED, PASSTHROUGH, TEXT, IMAGE, VIDEO],
    }
    made = client.post("/v1/namespaces", json=body)
    assert made.status_code == 200, made.text
    return Loop(client, made.json())


class Pipeline:
    """Words of notes, the same words once more, and copies of these: three tiers over one bucket."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.bucket = loop.bucket()
        self.words = loop.collection(self.bucket, {**GATED, "input_mappings": {"text": "note"}})
        self.again = fed(loop, [self.words], PIECES)
        self.copies = fed(loop, [self.again])
        self.collections = [self.words, self.again, self.copies]

    def pieces(self) -> list[list[str]]:
        return [sorted(d["piece"] for d in self.loop.documents(c)) for c in self.collections]

    def documents(self) -> list[dict[str, Any]]:
        found = [document for c in self.collections for document in self.loop.documents(c)]
        return sorted(found, key=lambda document: str(document["document_id"]))


def fed(loop: Loop, collection_ids: list[str], extractor: Any = PASSTHROUGH, **fields: Any) -> str:
    """Make a collection that others feed."""
    source = {"type": "collection", "collection_ids": collection_ids, **fields.pop("source", {})}
    return loop.collection("", extractor, source=source, **fields)


def head(server: Server, loop: Loop) -> int:
    return int(ask(server, "SELECT head FROM namespaces WHERE namespace_id = ?", loop.namespace_id)[0][0])


def ask(server: Server, query: str, *values: str) -> list[Any]:
    connection = sqlite3.connect(f"file:{server.data / 'tessera.sqlite3'}?mode=ro", uri=True)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def start(loop: Loop, bucket: str, object_ids: list[str]) -> tuple[str, str]:
    """Submit a batch; return its path and its task."""
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": object_ids})
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    return path, loop.post(f"{path}/submit")["task_id"]


# --- three tiers ---------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/submit", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}", 200)
def test_a_batch_runs_every_tier_and_tells_of_each(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    note = loop.note(pipeline.bucket, "a b")
    draft = loop.post(f"/buckets/{pipeline.bucket}/batches", {"object_ids": [note]})
    assert draft["dag_tiers"] == [[c] for c in pipeline.collections]
    assert (draft["total_tiers"], draft["current_tier"], draft["tier_tasks"]) == (3, None, [])
    path = f"/buckets/{pipeline.bucket}/batches/{draft['batch_id']}"
    task = loop.wait(loop.post(f"{path}/submit")["task_id"])
    assert (task["status"], task["additional_data"]["done"]) == ("COMPLETED", 5)
    assert (task["additional_data"]["current_tier"], task["additional_data"]["total_tiers"]) == (2, 3)
    batch = loop.get(path)
    assert (batch["status"], batch["current_tier"], batch["documents_written"]) == ("COMPLETED", 2, 6)
    assert batch["collection_ids"] == pipeline.collections
    tiers = batch["tier_tasks"]
    assert [
        (
            t["tier_num"],
            t["source_type"],
            t["status"],
            t["collection_ids"],
            t["documents_written"],
            t["errors"],
        )
        for t in tiers
    ] == [
        (0, "bucket", "COMPLETED", [pipeline.words], 2, []),
        (1, "collection", "COMPLETED", [pipeline.again], 2, []),
        (2, "collection", "COMPLETED", [pipeline.copies], 2, []),
    ]
    assert [t["source_collection_ids"] for t in tiers] == [None, [pipeline.words], [pipeline.again]]
    assert [t["parent_task_id"] for t in tiers] == [None, tiers[0]["task_id"], tiers[1]["task_id"]]
    assert all(t["started_at"] <= t["completed_at"] for t in tiers)
    own = [loop.get(f"/tasks/{tier['task_id']}") for tier in tiers]
    assert len({batch["task_id"], *(task["task_id"] for task in own)}) == 4
    assert {(task["task_type"], task["status"]) for task in own} == {
        ("engine_feature_extractor_run", "COMPLETED")
    }
    assert [(t["additional_data"]["tier_num"], t["additional_data"]["done"]) for t in own] == [
        (0, 1),
        (1, 2),
        (2, 2),
    ]
    assert all(t["additional_data"]["progress"]["percent"] == 100 for t in own)
    lines = [line["message"] for line in loop.get(f"{path}/logs?tier_num=1")["logs"] if line["tier_num"] == 1]
    assert lines[0] == "Tier 1 begins: 1 collection(s)."
    assert lines[-1] == "Tier 1 COMPLETED: 2 row(s) done, 0 failed, 0 skipped."
    assert pipeline.pieces() == [["a", "b"]] * 3


def test_lineage_is_right_in_every_tier(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    note = loop.note(pipeline.bucket, "a")
    loop.run(pipeline.bucket, [note])
    found = [loop.documents(collection)[0] for collection in pipeline.collections]
    ids = [document["document_id"] for document in found]
    lineages = [document["_internal"]["lineage"] for document in found]
    for document, lineage in zip(found, lineages, strict=True):
        assert (document["root_object_id"], document["root_bucket_id"]) == (note, pipeline.bucket)
        assert (lineage["root_object_id"], lineage["root_bucket_id"]) == (note, pipeline.bucket)
    assert [lineage["source_type"] for lineage in lineages] == ["bucket", "collection", "collection"]
    assert [lineage["source_object_id"] for lineage in lineages] == [note, None, None]
    assert [lineage["source_document_id"] for lineage in lineages] == [None, *ids[:2]]
    assert [lineage["source_collection_id"] for lineage in lineages] == [None, *pipeline.collections[:2]]
    assert lineages[2]["path"] == "/".join([pipeline.bucket, *pipeline.collections])
    chain = lineages[2]["chain"]
    assert [step["document_id"] for step in chain] == ids
    assert [step["collection_id"] for step in chain] == pipeline.collections
    assert [step["feature_extractor_id"] for step in chain] == [
        "gated_extractor_v1",
        "gated_extractor_v1",
        "passthrough_extractor_v1",
    ]
    assert [step["timestamp"] for step in chain] == [document["created_at"] for document in found]
    by_parent = {"field": "_internal.lineage.source_document_id", "operator": "eq", "value": ids[0]}
    assert [d["document_id"] for d in loop.documents(pipeline.again, filters=by_parent)] == [ids[1]]


def test_running_it_again_writes_nothing(gated_server: Server, loop: Loop) -> None:
    pipeline = Pipeline(loop)
    notes = [loop.note(pipeline.bucket, text) for text in ("a b", "c")]
    loop.run(pipeline.bucket, notes)
    before, documents = head(gated_server, loop), pipeline.documents()
    again = loop.run(pipeline.bucket, notes)
    assert [tier["documents_written"] for tier in again["tier_tasks"]] == [3, 3, 3]
    for collection in pipeline.collections:
        started = loop.post(f"/collections/{collection}/trigger", status=202)
        assert loop.wait(started["task_id"])["status"] == "COMPLETED"
    assert head(gated_server, loop) == before
    assert pipeline.documents() == documents


def test_replacing_one_object_removes_exactly_what_is_stale(gated_server: Server, loop: Loop) -> None:
    pipeline = Pipeline(loop)
    changed, other = loop.note(pipeline.bucket, "a b c"), loop.note(pipeline.bucket, "x")
    loop.run(pipeline.bucket, [changed, other])
    before = {document["document_id"]: document for document in pipeline.documents()}
    blob = {"property": "note", "type": "text", "data": "b d"}
    loop.patch(f"/buckets/{pipeline.bucket}/objects/{changed}", {"blobs": [blob]})
    loop.run(pipeline.bucket, [changed, other])
    after = {document["document_id"]: document for document in pipeline.documents()}
    assert pipeline.pieces() == [["b", "d", "x"]] * 3
    assert {before[gone]["piece"] for gone in before.keys() - after.keys()} == {"a", "c"}
    assert len(before.keys() - after.keys()) == 6
    assert {after[new]["piece"] for new in after.keys() - before.keys()} == {"d"}
    untouched = [d for d in before.keys() & after.keys() if before[d]["piece"] == "x"]
    assert [after[d] for d in untouched] == [before[d] for d in untouched]
    left = ask(gated_server, "SELECT document_ids FROM sources WHERE namespace_id = ?", loop.namespace_id)
    assert sum(ids.count("doc_") for (ids,) in left) == len(after)


def test_what_was_derived_goes_with_what_it_came_from(gated_server: Server, loop: Loop) -> None:
    pipeline = Pipeline(loop)
    first, second = loop.note(pipeline.bucket, "a b"), loop.note(pipeline.bucket, "c")
    loop.run(pipeline.bucket, [first, second])
    words = {document["piece"]: document["document_id"] for document in loop.documents(pipeline.words)}
    copies = {document["piece"]: document["document_id"] for document in loop.documents(pipeline.copies)}
    loop.delete(f"/collections/{pipeline.words}/documents/{words['a']}")
    assert pipeline.pieces() == [["b", "c"]] * 3
    loop.get(f"/documents/{copies['a']}", status=404)
    loop.delete(f"/buckets/{pipeline.bucket}/objects/{second}", status=204)
    assert pipeline.pieces() == [["b"]] * 3
    batch_delete = {"filters": {"field": "piece", "operator": "eq", "value": "b"}}
    loop.delete(f"/collections/{pipeline.again}/documents/batch", batch_delete)
    assert pipeline.pieces() == [["b"], [], []]
    loop.run(pipeline.bucket, [first])
    assert pipeline.pieces() == [["a", "b"]] * 3, "processing the object again brings all of it back"
    (copy, _) = (d["document_id"] for d in loop.documents(pipeline.copies))
    erasing = {"document_ids": [copy], "include_objects": True}
    erased = loop.post(f"/namespaces/{loop.namespace_id}/erase", erasing)
    assert loop.wait(erased["task_id"])["additional_data"]["report"]["documents"] == 6
    assert pipeline.pieces() == [[], [], []]
    loop.get(f"/buckets/{pipeline.bucket}/objects/{first}", status=404)
    rows = ask(gated_server, "SELECT source_id FROM sources WHERE namespace_id = ?", loop.namespace_id)
    assert rows == []


def test_what_a_user_patched_stays_and_flows_down(gated_server: Server, loop: Loop) -> None:
    """Patched in one tier, a field survives the next extraction there, and the tiers behind it read it."""
    pipeline = Pipeline(loop)
    note = loop.note(pipeline.bucket, "a b")
    loop.run(pipeline.bucket, [note])

    def only(collection: str) -> Any:
        (found,) = [d for d in loop.documents(collection) if d["piece"] in ("b", "B")]
        return found

    middle = only(pipeline.again)
    loop.patch(f"/documents/{middle['document_id']}", {"label": "mine"})
    last = only(pipeline.copies)
    loop.patch(f"/documents/{last['document_id']}", {"piece": "B", "seen": True})
    loop.run(pipeline.bucket, [note])
    assert only(pipeline.again)["label"] == "mine"
    after = only(pipeline.copies)
    assert (after["label"], after["piece"], after["seen"]) == ("mine", "B", True)
    assert after["document_id"] == last["document_id"]
    before = head(gated_server, loop)
    loop.run(pipeline.bucket, [note])
    assert head(gated_server, loop) == before, "a patched pipeline rests as well"
    blob = {"property": "note", "type": "text", "data": "b c"}
    loop.patch(f"/buckets/{pipeline.bucket}/objects/{note}", {"blobs": [blob]})
    loop.run(pipeline.bucket, [note])
    assert [only(c).get("label") for c in pipeline.collections] == [None, "mine", "mine"]
    assert only(pipeline.copies)["seen"] is True
    assert sorted(d["piece"] for d in loop.documents(pipeline.copies)) == ["B", "c"]


# --- shapes --------------------------------------------------------------------------------------------


def test_a_collection_fed_by_several_waits_for_the_last(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    both = fed(loop, [pipeline.words, pipeline.again])
    unrelated = fed(loop, [loop.collection(loop.bucket(), {**GATED, "input_mappings": {"text": "note"}})])
    batch = loop.run(pipeline.bucket, [loop.note(pipeline.bucket, "a b")])
    assert batch["dag_tiers"] == [[pipeline.words], [pipeline.again], [pipeline.copies, both]]
    sources = [document["_internal"]["lineage"]["source_collection_id"] for document in loop.documents(both)]
    assert sorted(sources) == sorted([pipeline.words, pipeline.again] * 2)
    assert loop.documents(unrelated) == []


def test_a_batch_for_some_collections_brings_what_feeds_them(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    note = loop.note(pipeline.bucket, "a")
    body = {"object_ids": [note], "collection_ids": [pipeline.again]}
    batch = loop.post(f"/buckets/{pipeline.bucket}/batches", body)
    assert batch["dag_tiers"] == [[pipeline.words], [pipeline.again]]
    loop.patch(f"/collections/{pipeline.again}", {"enabled": False})
    whole = loop.post(f"/buckets/{pipeline.bucket}/batches", {"object_ids": [note]})
    assert whole["dag_tiers"] == [[pipeline.words]], "what only a disabled collection feeds is not reached"
    body["collection_ids"] = [pipeline.again]
    assert "is disabled" in loop.refused(400, "POST", f"/buckets/{pipeline.bucket}/batches", body)


def test_files_go_from_tier_to_tier(loop: Loop) -> None:
    """A span's thumbnail is read as a picture, and so is a file that a document only passed through."""
    bucket = loop.bucket({"clip": {"type": "video"}, "photo": {"type": "image"}})
    spans = loop.collection(bucket, {**VIDEO, "input_mappings": {"video": "clip"}})
    looks = fed(loop, [spans], {**IMAGE, "input_mappings": {"image": "thumbnail_url"}})
    carried = loop.collection(bucket)
    photos = fed(loop, [carried], {**IMAGE, "input_mappings": {"image": "photo"}})
    blobs = [
        {"property": "clip", "type": "video", "data": encoded(video([(2, RED), (2, BLUE)]))},
        {"property": "photo", "type": "image", "data": encoded(picture(RED))},
    ]
    note = loop.object(bucket, {"blobs": blobs})
    assert loop.run(bucket, [note])["status"] == "COMPLETED"
    assert len(loop.documents(looks)) == len(loop.documents(spans)) >= 1
    (passed,) = loop.documents(carried)
    assert loop.client.get(passed["photo"]).content == picture(RED)
    (seen,) = loop.documents(photos, return_vectors=True)
    assert seen["vectors"].keys() == {"image_extractor_v1_embedding"}


def test_schemas_follow_from_what_feeds(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "year": {"type": "integer"}})
    passed = {"field_passthrough": [{"source_path": "year"}]}
    words = loop.collection(bucket, {**GATED, "input_mappings": {"text": "note"}, **passed})
    made = loop.get(
        f"/collections/{fed(loop, [words], {**PIECES, 'include_all_source_fields': False, **passed})}"
    )
    assert made["source"]["inherited_bucket_ids"] == [bucket]
    assert (made["source"]["type"], made["source"]["bucket_ids"]) == ("collection", None)
    assert made["input_schema"] == loop.get(f"/collections/{words}")["output_schema"]
    types = {name: p["type"] for name, p in made["output_schema"]["properties"].items()}
    assert (types["year"], types["piece"]) == ("integer", "string")
    body = {
        "collection_name": "wrong",
        "source": {"type": "collection", "collection_id": words},
        "feature_extractor": {**TEXT, "input_mappings": {"text": "nowhere"}},
    }
    said = loop.refused(422, "POST", "/collections", body)
    assert "no property 'nowhere'; its properties are: year (integer), piece (string)" in said
    other = loop.collection(loop.bucket({"note": {"type": "text"}, "piece": {"type": "image"}}))
    body["source"] = {"collection_ids": [words, other]}
    assert "'piece' is string in one source collection and image" in loop.refused(
        422, "POST", "/collections", body
    )


def test_chains_end_somewhere(loop: Loop) -> None:
    last = loop.collection(loop.bucket(), {**GATED, "input_mappings": {"text": "note"}})
    for _ in range(15):
        last = fed(loop, [last])
    body = {
        "collection_name": "too-deep",
        "source": {"collection_id": last},
        "feature_extractor": PASSTHROUGH,
    }
    assert "chains of at most 16 collections" in loop.refused(422, "POST", "/collections", body)
    change = {"source": {"collection_id": last}}
    assert "is fixed" in loop.refused(400, "PATCH", f"/collections/{last}", change), (
        "so no circle can be made"
    )


# --- source filters ------------------------------------------------------------------------------------


def test_source_filters_choose_and_what_they_refuse_has_no_documents(
    gated_server: Server, loop: Loop
) -> None:
    bucket = loop.bucket()
    english = {"AND": [{"field": "metadata.lang", "operator": "eq", "value": "en"}]}
    words = loop.collection(
        bucket,
        {**GATED, "input_mappings": {"text": "note"}, "field_passthrough": ["metadata.lang"]},
        source={"type": "bucket", "bucket_ids": [bucket], "source_filters": {"filters": english}},
    )
    not_b = {"field": "piece", "operator": "ne", "value": "b"}
    others = fed(loop, [words], PIECES, source={"source_filters": not_b})
    assert (
        loop.get(f"/collections/{others}")["source"]["source_filters"]["filters"]["AND"][0]["field"]
        == "piece"
    )
    mine, theirs = (
        loop.note(bucket, text, metadata={"lang": lang}) for text, lang in (("a b", "en"), ("c", "fr"))
    )
    batch = loop.run(bucket, [mine, theirs])
    assert (batch["status"], batch["progress"]["errors"]) == ("COMPLETED", 0)
    assert sorted(d["piece"] for d in loop.documents(words)) == ["a", "b"]
    assert [d["piece"] for d in loop.documents(others)] == ["a"]
    before = head(gated_server, loop)
    loop.run(bucket, [mine, theirs])
    assert head(gated_server, loop) == before
    loop.patch(f"/buckets/{bucket}/objects/{mine}", {"metadata": {"lang": "fr"}})
    loop.run(bucket, [mine, theirs])
    assert loop.documents(words) == loop.documents(others) == []
    by_blob = {"source_filters": {"blobs.type": "image"}}
    body = {
        "collection_name": "pictures",
        "source": {"bucket_id": bucket, **by_blob},
        "feature_extractor": PASSTHROUGH,
    }
    loop.post("/collections", body)
    loop.run(bucket, [mine])
    assert loop.documents("pictures") == []
    body["source"]["source_filters"] = {"AND": [{"field": "a", "operator": "is", "value": 1}]}
    said = loop.refused(422, "POST", "/collections", {**body, "collection_name": "other"})
    assert "'is'" in said


# --- clones, schemas -----------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/clone", 201)
def test_a_clone_is_like_its_original_but_for_what_is_said(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    loop.run(pipeline.bucket, [loop.note(pipeline.bucket, "a")])
    original = loop.get(f"/collections/{pipeline.again}")
    answer = loop.post(f"/collections/{pipeline.again}/clone", {"collection_name": "twin"}, status=201)
    assert answer["source_collection_id"] == pipeline.again
    twin = answer["collection"]
    own = ("collection_id", "collection_name", "created_at", "updated_at", "document_count")
    assert {k: v for k, v in twin.items() if k not in own} == {
        k: v for k, v in original.items() if k not in own
    }
    assert (twin["collection_name"], twin["document_count"]) == ("twin", 0)
    started = loop.post("/collections/twin/trigger", status=202)
    loop.wait(started["task_id"])
    assert [d["piece"] for d in loop.documents("twin")] == ["a"]
    other = {
        "collection_name": "other",
        "feature_extractor": PASSTHROUGH,
        "source": {"type": "bucket", "bucket_ids": [pipeline.bucket]},
        "enabled": False,
    }
    changed = loop.post(f"/collections/{pipeline.again}/clone", other, status=201)["collection"]
    assert (changed["source"]["type"], changed["enabled"]) == ("bucket", False)
    assert set(changed["output_schema"]["properties"]) == {"note"}
    path = f"/collections/{pipeline.again}/clone"
    assert "twin" in loop.refused(409, "POST", path, {"collection_name": "twin"})
    assert "collection_name is required" in loop.refused(422, "POST", path, {})


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/sync-schema", 200)
def test_a_sync_adds_what_documents_have_and_changes_nothing_else(loop: Loop) -> None:
    bucket = loop.bucket()
    notes = loop.collection(bucket)
    copies = fed(loop, [notes])
    words = fed(loop, [copies], {**GATED, "input_mappings": {"text": "note"}})
    for number, extra in enumerate(
        ({"n": 1, "mixed": "a"}, {"n": 2.5, "mixed": 1}, {"metadata": {"x": None}})
    ):
        loop.note(bucket, f"word{number}", **extra)
    started = loop.post(f"/collections/{notes}/trigger", status=202)
    loop.wait(started["task_id"])
    before = loop.get(f"/collections/{notes}")
    assert (set(before["output_schema"]["properties"]), before["schema_version"]) == ({"note"}, 1)
    synced = loop.post(f"/collections/{notes}/sync-schema")
    assert (synced["fields_added"], synced["fields_total"]) == (["metadata", "n"], 3)
    assert (synced["previous_version"], synced["schema_version"], synced["documents_sampled"]) == (1, 2, 3)
    assert synced["downstream_collections_updated"] == [copies, words]
    assert "mixed" in synced["message"]
    after = loop.get(f"/collections/{notes}")
    assert after["output_schema"]["properties"]["n"]["type"] == "number"
    assert after["output_schema"]["properties"]["note"] == before["output_schema"]["properties"]["note"]
    assert (after["schema_version"], after["last_schema_sync"] is None) == (2, False)
    assert "n" in loop.get(f"/collections/{copies}")["output_schema"]["properties"]
    below = loop.get(f"/collections/{words}")
    assert "n" in below["input_schema"]["properties"] and "n" not in below["output_schema"]["properties"]
    skipped = loop.post(f"/collections/{notes}/sync-schema", {"sample_size": 10})
    assert (skipped["skipped"], skipped["schema_version"]) == (True, 2)
    again = loop.post(f"/collections/{notes}/sync-schema", {"force": True})
    assert (again["fields_added"], again["schema_version"]) == ([], 2)
    loop.refused(422, "POST", f"/collections/{notes}/sync-schema", {"sample_size": 0})


# --- exports -------------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/export", 200)
@pytest.mark.operation("GET", "/v1/exports/{namespace_id}/{export_id}/{name}", 200)
def test_an_export_has_every_document_in_each_format(gated_server: Server, loop: Loop) -> None:
    pipeline = Pipeline(loop)
    notes = [loop.note(pipeline.bucket, text, metadata={"n": n}) for n, text in enumerate(("a b", 'c,"d'))]
    loop.run(pipeline.bucket, notes)
    path = f"/collections/{pipeline.words}/export"
    listed = {d["document_id"]: d for d in loop.documents(pipeline.words)}

    def fetched(url: str) -> bytes:
        answer = loop.client.get(url)
        assert answer.status_code == 200, answer.text
        return answer.content

    made = loop.post(path, {"format": "json"})
    content = fetched(made["download_url"])
    assert httpx.get(made["download_url"]).content == content, "the link is enough"
    rows = [json.loads(line) for line in content.splitlines()]
    assert (made["document_count"], made["file_size_bytes"]) == (3, len(content))
    assert {row["document_id"]: row["piece"] for row in rows} == {i: d["piece"] for i, d in listed.items()}
    assert rows[0]["root_object_id"] in notes and "_internal" not in rows[0]
    table = list(
        csv.DictReader(io.StringIO(fetched(loop.post(path, {"format": "csv"})["download_url"]).decode()))
    )
    assert {row["piece"] for row in table} == {"a", "b", 'c,"d'}
    made = loop.post(path, {"include_vectors": True})
    assert made["format"] == "parquet"
    parts = [
        parquet.read_table(io.BytesIO(fetched(made[k]))) for k in ("download_url", "vectors_download_url")
    ]
    assert parts[0].column("piece").to_pylist() == [row["piece"] for row in rows]
    assert all(len(v) == 4 for v in parts[1].column("gated_extractor_v1_embedding").to_pylist())
    chosen = {"format": "json", "filters": {"piece": "b"}, "select_fields": ["piece"], "sample_size": 5}
    (only,) = fetched(loop.post(path, chosen)["download_url"]).splitlines()
    assert json.loads(only)["piece"] == "b" and "created_at" in json.loads(only)
    assert httpx.get(made["download_url"].replace("signature=", "signature=0")).status_code == 403
    assert "format" in loop.refused(422, "POST", path, {"format": "xml"})
    erased = loop.post(f"/namespaces/{loop.namespace_id}/erase", {"object_ids": [notes[0]]})
    assert loop.wait(erased["task_id"])["status"] == "COMPLETED"
    assert httpx.get(made["download_url"]).status_code == 404, "an export may hold what was erased"
    folder = gated_server.data / "blobs" / loop.namespace_id / "exports"
    assert list(folder.rglob("*")) == []


# --- trigger -------------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/collections/{collection_identifier}/trigger", 202)
def test_trigger_of_a_fed_collection_reads_the_documents_that_are_there(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    more = loop.collection(pipeline.bucket, {**GATED, "input_mappings": {"text": "note"}})
    note = loop.note(pipeline.bucket, "a b")
    loop.run(pipeline.bucket, [note])
    both = fed(loop, [pipeline.words, more], collection_name="both")
    behind = fed(loop, [both])
    by_name = loop.get(f"/collections/{pipeline.words}")["collection_name"]
    chosen = {
        "include_collections": [by_name],
        "source_filters": {"field": "piece", "operator": "eq", "value": "b"},
    }
    started = loop.post("/collections/both/trigger", chosen, status=202)
    assert (started["collection_id"], started["total_tiers"], started["document_count"]) == (both, 2, 1)
    assert (started["object_count"], started["source_collection_ids"]) == (None, [pipeline.words])
    assert loop.wait(started["task_id"])["status"] == "COMPLETED"
    assert [d["piece"] for d in loop.documents(both)] == ["b"]
    assert [d["piece"] for d in loop.documents(behind)] == ["b"], "what it feeds runs with it"
    batch = loop.get(f"/buckets/{pipeline.bucket}/batches/{started['batch_id']}")
    assert (batch["type"], batch["object_ids"]) == ("COLLECTION", [])
    assert [tier["source_type"] for tier in batch["tier_tasks"]] == ["collection", "collection"]
    whole = loop.post("/collections/both/trigger", status=202)
    assert whole["document_count"] == 4
    loop.wait(whole["task_id"])
    assert sorted(d["piece"] for d in loop.documents(behind)) == ["a", "a", "b", "b"]
    assert len(loop.documents(pipeline.words)) == 2


def test_trigger_of_a_bucket_collection_runs_what_it_feeds(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    for text, lang in (("a", "en"), ("b", "fr")):
        loop.note(pipeline.bucket, text, metadata={"lang": lang})
    english = {"filters": {"AND": [{"field": "metadata.lang", "operator": "eq", "value": "EN"}]}}
    started = loop.post(f"/collections/{pipeline.words}/trigger", {"source_filters": english}, status=202)
    assert (started["object_count"], started["total_tiers"]) == (1, 3)
    loop.wait(started["task_id"])
    assert pipeline.pieces() == [["a"]] * 3


def test_what_is_wrong_with_a_trigger_is_named(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    path = f"/collections/{pipeline.words}/trigger"
    loop.note(pipeline.bucket, "a")
    elsewhere = loop.bucket()
    assert "is not one of what" in loop.refused(400, "POST", path, {"include_buckets": [elsewhere]})
    loop.post(path, {"include_buckets": ["nowhere"]}, status=404)
    assert "reads buckets" in loop.refused(400, "POST", path, {"include_collections": [pipeline.again]})
    none = {"source_filters": {"field": "metadata.a", "operator": "eq", "value": 1}}
    assert "no objects that source_filters lets through" in loop.refused(400, "POST", path, none)
    assert "'is'" in loop.refused(
        422, "POST", path, {"source_filters": {"field": "a", "operator": "is", "value": 1}}
    )
    path = f"/collections/{pipeline.again}/trigger"
    assert "have no documents. Process them first" in loop.refused(400, "POST", path)
    assert "reads collections" in loop.refused(400, "POST", path, {"include_buckets": [pipeline.bucket]})


# --- failures, retries, changes while it runs ----------------------------------------------------------


def test_a_later_tier_skips_documents_of_another_kind(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "photo": {"type": "image"}})
    everything = loop.collection(bucket, {**PASSTHROUGH, "include_all_source_fields": True})
    words = fed(loop, [everything], {**GATED, "input_mappings": {"text": "note"}})
    pictures = fed(loop, [everything], {**IMAGE, "input_mappings": {"image": "photo"}})
    photo = {"property": "photo", "type": "image", "data": encoded(picture(RED))}
    note, seen = loop.note(bucket, "a b"), loop.object(bucket, {"blobs": [photo]})
    batch = loop.run(bucket, [note, seen])
    assert (batch["status"], batch["progress"]["errors"]) == ("COMPLETED", 0)
    assert [tier["status"] for tier in batch["tier_tasks"]] == ["COMPLETED", "COMPLETED"]
    assert {item["root_object_id"] for item in loop.documents(words)} == {note}
    assert {item["root_object_id"] for item in loop.documents(pictures)} == {seen}
    told = [
        line["message"] for line in loop.get(f"/buckets/{bucket}/batches/{batch['batch_id']}/logs")["logs"]
    ]
    for collection in (words, pictures):
        assert any(f"1 source(s) skipped in collection {collection}" in line for line in told), told


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/retry", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/failed-documents", 200)
def test_rows_of_a_later_tier_fail_and_are_retried_alone(loop: Loop, tmp_path: Path) -> None:
    bucket = loop.bucket()
    notes = loop.collection(bucket, {**PASSTHROUGH, "include_all_source_fields": True})
    words = fed(loop, [notes], {**GATED, "input_mappings": {"text": "note"}})
    copies = fed(loop, [words])
    flag = tmp_path / "flag"
    good, bad, poor = (loop.note(bucket, text) for text in ("a", "bad:x", f"raise-until:{flag} b"))
    batch = loop.run(bucket, [good, bad, poor])
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    assert [t["status"] for t in batch["tier_tasks"]] == ["COMPLETED", "COMPLETED_WITH_ERRORS", "COMPLETED"]
    assert sum(error["affected_count"] for error in batch["tier_tasks"][1]["errors"]) == 2
    task = loop.get(f"/tasks/{batch['tier_tasks'][1]['task_id']}")
    assert (task["status"], task["additional_data"]["failed"]) == ("COMPLETED_WITH_ERRORS", 2)
    by_object = {d["root_object_id"]: d["document_id"] for d in loop.documents(notes)}
    failed = loop.get(f"{path}/failed-documents?tier_num=1")["results"]
    assert {row["document_id"] for row in failed} == {by_object[bad], by_object[poor]}
    assert {(row["tier_num"], row["object_id"] == row["document_id"]) for row in failed} == {(1, True)}
    told = loop.post("/failures/list", {"object_id": by_object[bad]})["results"]
    assert [(row["document_id"], row["collection_id"]) for row in told] == [(by_object[bad], words)]
    assert loop.get(f"{path}/failed-documents?tier_num=0")["total"] == 0
    assert "has no tier 7; its tiers are 0 to 2" in loop.refused(
        400, "POST", f"{path}/retry", {"tier_nums": [7]}
    )
    assert "nothing to retry" in loop.refused(409, "POST", f"{path}/retry", {"tier_nums": [0]})
    flag.touch()
    retried = loop.post(f"{path}/retry", {"tier_nums": [1]})
    assert (retried["retried_count"], retried["skipped_count"]) == (1, 1)
    assert loop.wait(retried["task_id"])["status"] == "COMPLETED_WITH_ERRORS"
    after = loop.get(path)
    assert after["tier_tasks"][0] == batch["tier_tasks"][0], "a tier with nothing to do keeps its task"
    assert after["tier_tasks"][1]["task_id"] != batch["tier_tasks"][1]["task_id"]
    assert sorted(d["piece"] for d in loop.documents(copies)) == ["a", "b"], "the next tier has it too"


def test_a_document_deleted_while_it_is_processed_leaves_nothing(
    gated_server: Server, loop: Loop, gate: Gate
) -> None:
    bucket = loop.bucket()
    notes = loop.collection(bucket)
    words = fed(loop, [notes], {**GATED, "input_mappings": {"text": "note"}})
    slow, other = loop.note(bucket, f"{gate.words} a"), loop.note(bucket, "b")
    _path, task_id = start(loop, bucket, [slow, other])
    gate.wait()
    by_object = {d["root_object_id"]: d["document_id"] for d in loop.documents(notes)}
    loop.delete(f"/collections/{notes}/documents/{by_object[slow]}")
    gate.open()
    assert loop.wait(task_id)["status"] == "COMPLETED"
    assert [d["piece"] for d in loop.documents(words)] == ["b"]
    query = "SELECT error_kind FROM batch_rows WHERE namespace_id = ? AND status = 'SKIPPED'"
    assert ask(gated_server, query, loop.namespace_id) == [("superseded",)]


def test_a_document_changed_while_it_is_processed_is_processed_as_it_is_now(
    loop: Loop, tmp_path: Path
) -> None:
    gates = [Gate(tmp_path, name) for name in ("first", "second")]
    notes = loop.collection(loop.bucket())
    words = fed(loop, [notes], {**GATED, "input_mappings": {"text": "note"}})

    def send(text: str) -> None:
        document = {"document_id": "mine", "payload": {"note": text}}
        body = {"collection_id": notes, "documents": [document]}
        loop.post(f"/namespaces/{loop.namespace_id}/documents/upsert", body)

    send(f"{gates[0].words} old")
    started = loop.post(f"/collections/{words}/trigger", status=202)
    gates[0].wait()
    send(f"{gates[1].words} new")
    gates[0].open()
    gates[1].wait()
    gates[1].open()
    assert loop.wait(started["task_id"])["status"] == "COMPLETED"
    assert [d["piece"] for d in loop.documents(words)] == ["new"]
    lineage = loop.documents(words)[0]["_internal"]["lineage"]
    assert (lineage["source_document_id"], lineage["root_object_id"]) == ("mine", None)


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/batches/{batch_id}/cancel", 200)
def test_a_cancel_between_tiers_is_taken_up_by_a_retry(loop: Loop, gate: Gate) -> None:
    bucket = loop.bucket()
    notes = loop.collection(bucket)
    words = fed(loop, [notes], {**GATED, "input_mappings": {"text": "note"}})
    copies = fed(loop, [words])
    path, _ = start(loop, bucket, [loop.note(bucket, f"{gate.words} a")])
    gate.wait()
    assert loop.post(f"{path}/cancel")["status"] == "CANCELED"
    batch = loop.get(path)
    assert [tier["status"] for tier in batch["tier_tasks"]] == ["COMPLETED", "CANCELED", "CANCELED"]
    assert {loop.get(f"/tasks/{t['task_id']}")["status"] for t in batch["tier_tasks"][1:]} == {"CANCELED"}
    gate.open()
    retried = loop.post(f"{path}/retry")
    assert loop.wait(retried["task_id"])["status"] == "COMPLETED"
    assert [d["piece"] for d in loop.documents(copies)] == ["a"]
    assert [tier["status"] for tier in loop.get(path)["tier_tasks"]] == ["COMPLETED"] * 3


def test_a_collection_that_others_read_stays(loop: Loop) -> None:
    pipeline = Pipeline(loop)
    answer = loop.delete(f"/collections/{pipeline.words}", status=409)
    assert answer["error"]["details"]["read_by"] == [pipeline.again]
    for collection in reversed(pipeline.collections):
        loop.delete(f"/collections/{collection}")
    loop.delete(f"/buckets/{pipeline.bucket}")


# --- kills ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "tier.ended:1",
        pytest.param("tier.planned:1", marks=pytest.mark.slow),
        pytest.param("tier.ended:2", marks=pytest.mark.slow),
        pytest.param("tier.planned:2", marks=pytest.mark.slow),
        pytest.param("log.appended:2", marks=pytest.mark.slow),
        pytest.param("batch.commit:3", marks=pytest.mark.slow),
        pytest.param("tier.ended:3", marks=pytest.mark.slow),
    ],
)
def test_killed_between_tiers_it_loses_nothing_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    environment = {**install(tmp_path / "site"), "TESSERA_WORKERS": "1"}
    server = Server.start(
        tmp_path / "data", environment={**environment, "TESSERA_TEST_FAILPOINT": f"{point}:self"}
    )
    try:
        with server.client() as client:
            loop = new_loop(client)
            pipeline = Pipeline(loop)
            notes = [loop.note(pipeline.bucket, text) for text in ("a b", "c")]
            path, task_id = start(loop, pipeline.bucket, notes)
            assert server.wait_until_dead(60)
        server = Server.start(tmp_path / "data", environment=environment)
        with server.client(namespace=loop.namespace_id) as client:
            loop.client, pipeline.loop = client, loop
            assert loop.wait(task_id)["status"] == "COMPLETED"
            batch = loop.get(path)
            assert [tier["status"] for tier in batch["tier_tasks"]] == ["COMPLETED"] * 3
            assert [tier["documents_written"] for tier in batch["tier_tasks"]] == [3, 3, 3]
            assert pipeline.pieces() == [["a", "b", "c"]] * 3
            entries = "SELECT count(*) FROM log_entries WHERE namespace_id = ? AND kind <> 'indexes'"
            ((count,),) = ask(server, entries, loop.namespace_id)
            before = head(server, loop)
            assert count == 3, "one entry for each tier, and none twice"
            loop.run(pipeline.bucket, notes)
            assert head(server, loop) == before
        check_agreement(server)
    finally:
        server.kill(group=True)
