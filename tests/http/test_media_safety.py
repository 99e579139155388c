"""Bombs, cut, mislabelled and mutated files cost their own rows: no hang, no crash, no memory of the server."""

from __future__ import annotations

import base64
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tessera.causes import CAUSES
from tests import damage
from tests.damage import File
from tests.http.loop import Loop
from tests.http.processes import Server

EVERYTHING = {"feature_extractor_name": "multimodal_extractor", "version": "v1"}
IMAGE_URI = "mixpeek://multimodal_extractor@v1/vertex_multimodal_embedding"
PAGES = {"feature_extractor_name": "document_graph_extractor", "version": "v1"}
PROPERTIES = {
    "note": {"type": "text"},
    "photo": {"type": "image"},
    "clip": {"type": "video"},
    "sound": {"type": "audio"},
    "pages": {"type": "pdf"},
}
NAMES = {"text": "note", "image": "photo", "video": "clip", "audio": "sound", "pdf": "pages"}
MIME_TYPES = {
    "text": "text/plain",
    "image": "image/png",
    "video": "video/mp4",
    "audio": "audio/wav",
    "pdf": "application/pdf",
}
MOST_GROWTH_MIB = 256

_numbers = itertools.count()

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


class Measured:
    """A server with a warm-up file behind it, and how much its memory and its hosts' have grown since."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = server.client()
        made = self.client.post(
            "/v1/namespaces",
            json={"namespace_name": f"safety_{next(_numbers)}", "feature_extractors": [EVERYTHING, PAGES]},
        )
        self.loop = Loop(self.client, made.json())
        self.bucket = self.loop.bucket(PROPERTIES)
        # Each row is of one collection: the other one's filter refuses it.
        self.collections = [
            self.loop.collection(self.bucket, extractor, source=self._source(operator))
            for extractor, operator in ((EVERYTHING, "ne"), (PAGES, "eq"))
        ]
        self.collection = self.collections[0]
        ids = self.put([damage.whole(kind) for kind in ("text", "png", "mp4", "wav", "pdf")])
        assert self.loop.run(self.bucket, ids)["status"] == "COMPLETED"
        self.before = {pid: _memory(pid, "VmRSS") for pid in self._pids()}

    def _source(self, operator: str) -> dict[str, Any]:
        filters = {"field": "kind", "operator": operator, "value": "pdf"}
        return {"type": "bucket", "bucket_ids": [self.bucket], "source_filters": {"filters": filters}}

    def _pids(self) -> set[int]:
        return {self.server.process.pid, *self.server.children("host")}

    def growth_mib(self) -> float:
        """Return the most memory that server and hosts ever had, above what they had after the warm-up."""
        return sum(_memory(pid, "VmHWM") - self.before.get(pid, 0.0) for pid in self._pids())

    def put(self, files: Sequence[File]) -> list[str]:
        """Make an object of each file; return their ids in order."""
        ids: list[str] = []
        for start in range(0, len(files), 100):
            bodies = [_object(file) for file in files[start : start + 100]]
            answer = self.loop.post(f"/buckets/{self.bucket}/objects/batch", {"objects": bodies})
            assert answer["failed"] == []
            ids += [made["object_id"] for made in answer["succeeded"]]
        return ids

    def run(self, files: Sequence[File], timeout_s: float) -> tuple[Any, dict[str, Any], list[str]]:
        """Process `files` in one batch; return it, its failed rows by object, and the objects in order."""
        ids = self.put(files)
        batch = self.loop.post(f"/buckets/{self.bucket}/batches", {"object_ids": ids})
        path = f"/buckets/{self.bucket}/batches/{batch['batch_id']}"
        self.loop.wait(self.loop.post(f"{path}/submit")["task_id"], timeout_s)
        rows: list[Any] = []
        while (
            len(rows)
            < (page := self.loop.get(f"{path}/failed-documents?limit=1000&offset={len(rows)}"))["total"]
        ):
            rows += page["results"]
        return self.loop.get(path), {row["object_id"]: row for row in rows}, ids

    def found(self) -> set[str]:
        """Return the objects that have documents."""
        objects: set[str] = set()
        for collection in self.collections:
            page: dict[str, Any] | None = {"limit": 1000}
            while page is not None:
                answer = self.loop.post(f"/collections/{collection}/documents/list", page)
                objects |= {item["root_object_id"] for item in answer["results"]}
                cursor = answer["pagination"]["next_cursor"]
                page = {"limit": 1000, "cursor": cursor} if cursor else None
        return objects


def _object(file: File) -> dict[str, Any]:
    # Bytes that say nothing are taken for what they are called.
    data = f"data:{MIME_TYPES[file.type]};base64,{base64.b64encode(file.data).decode()}"
    blob = {"property": NAMES[file.type], "type": file.type, "data": data, "filename": file.name}
    return {"blobs": [blob], "kind": file.type}


def _memory(pid: int, name: str) -> float:
    """Return a figure of a process's memory in MiB (``VmRSS``: now, ``VmHWM``: at its most)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{name} of {pid}")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    # A hang would be a row that runs into this, as `limit`.
    environment = {"TESSERA_EXTRACT_TIMEOUT_S": "60", "TESSERA_WORKERS": "2"}
    server = Server.start(tmp_path_factory.mktemp("safety") / "data", environment=environment)
    measured = Measured(server)
    yield measured
    measured.client.close()
    assert server.stop() == 0, server.log[-2000:]


def damaged() -> list[File]:
    """Return files whose rows fail, for causes that are known."""
    kinds = ("png", "jpeg", "webp", "bmp", "heic", "mp4")
    ruined = [damage.cut(damage.whole(kind), part) for kind in kinds for part in (0.2, 0.4, 0.6)]
    hollow = [
        damage.hollow(damage.whole(kind, n)) for kind in ("png", "jpeg", "webp", "mp4") for n in range(3)
    ]
    return [*damage.bombs(), *ruined, *hollow]


@pytest.mark.parametrize(
    ("count", "bad"), [(40, 8), pytest.param(500, 50, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_a_folder_with_damaged_files(measured: Measured, count: int, bad: int) -> None:
    """Of 500 mixed files 50 are damaged: 450 are found, 50 failed each for its cause."""
    ruined = damaged()
    # Some of each sort in the short form, all in the long one.
    ruined = [ruined[n * len(ruined) // bad] for n in range(bad)]
    kinds = itertools.cycle(damage.PROPERTY)
    files = [damage.whole(next(kinds), number) for number in range(count - bad)]
    for number, file in enumerate(ruined):
        files.insert(number * count // bad, file)
    batch, failed, ids = measured.run(files, timeout_s=1200)
    expected = {object_id: file for object_id, file in zip(ids, files, strict=True) if file.causes}
    assert set(failed) == set(expected), {file.name for key, file in expected.items() if key not in failed}
    for object_id, file in expected.items():
        row = failed[object_id]
        assert row["cause"] in file.causes, (file.name, row)
        assert row["stage"] in ("decode", "extract"), (file.name, row)
        assert len(row["error"]) > 15 and row["next_step"], row
    assert (batch["status"], batch["failed_object_count"]) == ("COMPLETED_WITH_ERRORS", bad)
    assert batch["error_summary"] == dict(Counter(row["cause"] for row in failed.values()))
    found = measured.found()
    assert set(ids) - set(expected) <= found and not found & set(expected)
    grown = measured.growth_mib()
    print(f"{count} files, {bad} damaged: server and hosts grew by {grown:.0f} MiB at most")
    assert grown <= MOST_GROWTH_MIB


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)], ids=["short", "long"])
def test_mutated_files(measured: Measured, count: int) -> None:
    """Whatever was done to a file, its row is done or fails for a cause that is not ours, and the batch ends."""
    kinds = itertools.cycle(kind for kind in damage.PROPERTY if kind != "text")
    files = [*damage.bombs(), *(damage.mutated(next(kinds), seed) for seed in range(count))]
    batch, failed, ids = measured.run(files, timeout_s=1800)
    names = dict(zip(ids, (file.name for file in files), strict=True))
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    assert batch["progress"]["processed"] == 2 * len(files)
    for object_id, row in failed.items():
        assert row["cause"] in set(CAUSES) - {"ours", "unreachable", "model_missing"}, (names[object_id], row)
        assert row["error_kind"] not in ("timeout", "memory"), (names[object_id], row)
    assert len(failed) >= count // 4, "mutations that harm nothing test nothing"
    assert measured.found() >= set(ids) - set(failed)
    whole = damage.whole("png", 1)
    after, none_failed, _ = measured.run([whole], timeout_s=120)
    assert (after["status"], none_failed) == ("COMPLETED", {}), "and it goes on"
    grown = measured.growth_mib()
    print(f"{len(files)} files, {len(failed)} failed: server and hosts grew by {grown:.0f} MiB at most")
    assert grown <= MOST_GROWTH_MIB


@pytest.mark.slow
def test_a_pdf_that_draws_itself_for_ever(measured: Measured) -> None:
    """Ten times over twenty levels: its worker is ended, its neighbours are found."""
    files = [damage.whole("pdf", 1), damage.laughs(), damage.whole("pdf", 2)]
    batch, failed, ids = measured.run(files, timeout_s=900)
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    (row,) = failed.values()
    assert (row["object_id"], row["error_kind"] in ("timeout", "crash", "memory")) == (ids[1], True), row
    assert measured.found() >= {ids[0], ids[2]}
    assert measured.growth_mib() <= MOST_GROWTH_MIB


def test_bombs_in_queries(measured: Measured) -> None:
    """The picture of a query used to be decoded in the server itself."""

    def search(data: bytes) -> Any:
        picture = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        parameters = {"feature_uri": IMAGE_URI, "query": {"image": picture}, "limit": 3}
        body = {
            "collection_identifiers": [measured.collection],
            "stages": [{"stage_type": "filter", "stage_id": "feature_search", "parameters": parameters}],
        }
        return measured.client.post("/v1/retrievers/execute", json=body, headers=measured.loop.headers)

    whole = damage.whole("png").data
    workers = measured.server.children("worker")
    first = search(whole)
    assert first.status_code == 200, first.text
    found = first.json()["documents"]
    assert found
    (decoder,) = measured.server.children("worker") - workers
    for bomb in damage.bombs():
        if bomb.type == "image":
            answer = search(bomb.data)
            assert answer.status_code == 400, (bomb.name, answer.text)
            assert IMAGE_URI in answer.json()["error"]["message"]
    assert decoder in measured.server.children("worker"), "none of them ends it"
    # A picture that does end it costs one answer; here something else does.
    os.kill(decoder, signal.SIGKILL)
    answers = [search(whole) for _ in range(3)]
    assert [item["score"] for item in answers[-1].json()["documents"]] == [item["score"] for item in found]
    assert all(answer.status_code in (200, 400, 503) for answer in answers)
    assert measured.growth_mib() <= MOST_GROWTH_MIB
