"""A full disk, a failing disk, and no file descriptor left, at one call after the other.

Whatever call fails: the answer is the usual one, or a 507 or 503 that says what is the matter; what failed left
nothing, what was acknowledged is there, and the same request works as soon as the fault is gone.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.http.faults import OPENS, READS, WRITES, Faults, why_not
from tests.http.loop import PASSTHROUGH, Loop
from tests.http.oracle import check_agreement
from tests.http.processes import Server

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

#: What fails, and which calls can fail so.
ERRORS = {
    "ENOSPC": (errno.ENOSPC, WRITES),
    "EIO": (errno.EIO, WRITES | READS),
    "EMFILE": (errno.EMFILE, OPENS),
}
_numbers = itertools.count(1)
#: Longer than what is kept in an object's row.
_LONG = "lorem ipsum " * 25_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Faults]]:
    """A server whose files can be made to fail; two views are open at a time, so that others must be opened."""
    folder = tmp_path_factory.mktemp("disk")
    faults = Faults(folder, folder / "data")
    server = Server.start(
        folder / "data",
        environment={**faults.environment, "TESSERA_VECTOR_HOSTS": "1", "TESSERA_MAX_OPEN_VIEWS": "2"},
    )
    try:
        yield server, faults
        check_agreement(server)
        assert server.stop() == 0, server.log[-2000:]
    finally:
        server.kill(group=True)


class Site:
    """A request that is tried while calls fail. One object for each try."""

    good: tuple[int, ...] = (200,)

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.prepare()

    def prepare(self) -> None:
        """Make what the request needs, while nothing fails."""

    def send(self) -> httpx.Response:
        """Send the request."""
        raise NotImplementedError

    def check_failed(self) -> None:
        """Assert that the request that was refused left nothing half made."""

    def check_done(self, answer: httpx.Response) -> None:
        """Assert that the request that was answered had its effect."""

    def request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.loop.client.request(method, f"/v1{path}", json=body, headers=self.loop.headers)


class CreateNamespace(Site):
    def prepare(self) -> None:
        self.name = f"made-{next(_numbers)}"

    def send(self) -> httpx.Response:
        return self.request(
            "POST", "/namespaces", {"namespace_name": self.name, "feature_extractors": [PASSTHROUGH]}
        )

    def check_failed(self) -> None:
        assert self.request("GET", f"/namespaces/{self.name}").status_code == 404

    def check_done(self, answer: httpx.Response) -> None:
        made = self.loop.get(f"/namespaces/{self.name}")
        assert made == answer.json()


class CreateObject(Site):
    """An object with a file: the blob is written, then the row."""

    def prepare(self) -> None:
        self.n = next(_numbers)
        self.count = self.objects()

    def objects(self) -> int:
        return int(
            self.loop.post(f"/buckets/{BUCKET[self.loop.namespace_id]}/objects/list")["pagination"]["total"]
        )

    def send(self) -> httpx.Response:
        blobs = [{"property": "note", "type": "text", "data": f"{self.n} {_LONG}"}]
        return self.request("POST", f"/buckets/{BUCKET[self.loop.namespace_id]}/objects", {"blobs": blobs})

    def check_failed(self) -> None:
        assert self.objects() == self.count

    def check_done(self, answer: httpx.Response) -> None:
        assert self.objects() == self.count + 1
        path = f"/buckets/{BUCKET[self.loop.namespace_id]}/objects/{answer.json()['object_id']}"
        url = self.loop.get(f"{path}?return_presigned_urls=true")["blobs"][0]["presigned_url"]
        assert httpx.get(url).text.startswith(f"{self.n} lorem")


class ReplaceObject(CreateObject):
    def prepare(self) -> None:
        super().prepare()
        self.object_id = self.loop.note(BUCKET[self.loop.namespace_id], "before")

    def send(self) -> httpx.Response:
        blobs = [{"property": "note", "type": "text", "data": f"{self.n} {_LONG}"}]
        path = f"/buckets/{BUCKET[self.loop.namespace_id]}/objects/{self.object_id}"
        return self.request("PUT", path, {"blobs": blobs})

    def check_failed(self) -> None:
        path = f"/buckets/{BUCKET[self.loop.namespace_id]}/objects/{self.object_id}"
        assert self.loop.get(path)["blobs"][0]["data"] == "before"

    def check_done(self, answer: httpx.Response) -> None:
        pass


class DeleteDocument(Site):
    good = (200, 404)

    def prepare(self) -> None:
        bucket, collection = BUCKET[self.loop.namespace_id], COLLECTION[self.loop.namespace_id]
        object_id = self.loop.note(bucket, f"document {next(_numbers)}")
        assert self.loop.run(bucket, [object_id])["status"] == "COMPLETED"
        filters = {"field": "root_object_id", "operator": "eq", "value": object_id}
        (document,) = self.loop.documents(collection, filters=filters)
        self.path = f"/collections/{collection}/documents/{document['document_id']}"

    def send(self) -> httpx.Response:
        return self.request("DELETE", self.path)

    def check_done(self, answer: httpx.Response) -> None:
        assert self.request("GET", self.path).status_code == 404


class ChangeIndexes(Site):
    def prepare(self) -> None:
        self.loop.patch(f"/namespaces/{self.loop.namespace_id}", {"payload_indexes": None})

    def send(self) -> httpx.Response:
        wanted = [{"field_name": "metadata.n", "type": "integer"}]
        return self.request("PATCH", f"/namespaces/{self.loop.namespace_id}", {"payload_indexes": wanted})

    def check_done(self, answer: httpx.Response) -> None:
        assert "metadata.n" in self.reported()

    def reported(self) -> set[str]:
        stats = self.loop.get(f"/namespaces/{self.loop.namespace_id}/stats")
        return {index["field_name"] for index in stats["payload_indexes"]}


class Submit(Site):
    """A batch: submitted while calls fail, it ends well when they work again."""

    def prepare(self) -> None:
        bucket = BUCKET[self.loop.namespace_id]
        self.object_ids = [self.loop.note(bucket, f"{next(_numbers)} {t}") for t in ("short", _LONG)]
        batch = self.loop.post(f"/buckets/{bucket}/batches", {"object_ids": self.object_ids})
        self.path = f"/buckets/{bucket}/batches/{batch['batch_id']}"

    def send(self) -> httpx.Response:
        answer = self.request("POST", f"{self.path}/submit", {})
        # Let it meet the faults, to its end or for a while.
        deadline = time.monotonic() + 1.0
        while answer.status_code == 200 and time.monotonic() < deadline:
            batch = self.request("GET", self.path)
            if batch.status_code == 200 and batch.json()["status"] not in ("PENDING", "IN_PROGRESS"):
                break
            time.sleep(0.05)
        return answer

    def check_failed(self) -> None:
        assert self.loop.get(self.path)["status"] == "DRAFT"

    def check_done(self, answer: httpx.Response) -> None:
        self.loop.wait(answer.json()["task_id"], 90)
        batch = self.loop.get(self.path)
        assert batch["status"] == "COMPLETED", batch
        filters = {"field": "root_object_id", "operator": "in", "value": self.object_ids}
        assert len(self.loop.documents(COLLECTION[self.loop.namespace_id], filters=filters)) == 2


class ReadCold(Site):
    """A list from a view that is closed: others have taken its room."""

    def prepare(self) -> None:
        for other in OTHERS:
            assert self.loop.client.get(f"/v1/namespaces/{other}/stats").status_code == 200

    def send(self) -> httpx.Response:
        return self.request("POST", f"/collections/{COLLECTION[self.loop.namespace_id]}/documents/list", {})


class DeleteNamespace(Site):
    def prepare(self) -> None:
        body = {"namespace_name": f"gone-{next(_numbers)}", "feature_extractors": [PASSTHROUGH]}
        self.doomed = Loop(self.loop.client, self.loop.post("/namespaces", body))
        bucket = self.doomed.bucket()
        self.doomed.collection(bucket)
        assert self.doomed.run(bucket, [self.doomed.note(bucket, _LONG)])["status"] == "COMPLETED"

    def send(self) -> httpx.Response:
        answer = self.request("DELETE", f"/namespaces/{self.doomed.namespace_id}")
        if answer.status_code == 200:
            time.sleep(0.1)  # some of the purge meets the faults
        return answer

    def check_failed(self) -> None:
        assert self.loop.get(f"/namespaces/{self.doomed.namespace_id}")["document_count"] == 1

    def check_done(self, answer: httpx.Response) -> None:
        assert self.request("GET", f"/namespaces/{self.doomed.namespace_id}").status_code == 404
        assert self.loop.wait(answer.json()["task_id"])["status"] == "COMPLETED"


SITES = (
    CreateNamespace,
    CreateObject,
    ReplaceObject,
    Submit,
    DeleteDocument,
    ChangeIndexes,
    ReadCold,
    DeleteNamespace,
)
BUCKET: dict[str, str] = {}
COLLECTION: dict[str, str] = {}
OTHERS: list[str] = []


@pytest.fixture(scope="module")
def loop(place: tuple[Server, Faults]) -> Iterator[Loop]:
    """A namespace with a bucket and a collection, and two more that take the room of its view."""
    server, _ = place
    with server.client() as client:
        for number in range(3):
            body = {"namespace_name": f"disk-{number}", "feature_extractors": [PASSTHROUGH]}
            loop = Loop(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
            BUCKET[loop.namespace_id] = bucket = loop.bucket()
            extractor = {**PASSTHROUGH, "field_passthrough": [{"source_path": "metadata.n"}]}
            COLLECTION[loop.namespace_id] = loop.collection(bucket, extractor)
            assert loop.run(bucket, [loop.note(bucket, "first", metadata={"n": 1})])["status"] == "COMPLETED"
            if number < 2:
                OTHERS.append(loop.namespace_id)
        yield loop


#: A purge that failed rests for ten seconds, so all but one of these are slow.
_SHORT = [(s, e) for s in SITES for e in ERRORS if s is not DeleteNamespace or e == "ENOSPC"]
_CASES = [pytest.param(s, e, 1, id=f"{s.__name__}-{e}") for s, e in _SHORT] + [
    pytest.param(s, e, 40, id=f"{s.__name__}-{e}-long", marks=[pytest.mark.slow, pytest.mark.timeout(900)])
    for s in SITES
    for e in ERRORS
]


@pytest.mark.parametrize(("site", "error", "tries"), _CASES)
def test_every_call_may_fail(
    place: tuple[Server, Faults], loop: Loop, site: type[Site], error: str, tries: int
) -> None:
    _, faults = place
    number, calls = ERRORS[error]
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED={seed} repeats it")
    rng = random.Random(seed)
    # Nothing fails: this counts the calls that could.
    tried = site(loop)
    with faults.armed(number, calls, first=2**31 - 1):
        answer = tried.send()
    assert answer.status_code in site.good, answer.text
    tried.check_done(answer)
    most = max(1, faults.count.calls)
    # One call alone, and from one on every call: a disk that stays full.
    firsts = sorted({rng.randint(1, most) for _ in range(tries)})
    said = [
        _try(site(loop), faults, number, calls, first, every)
        for first, every in [*((first, 0) for first in firsts), (rng.choice([1, *firsts]), 1)]
    ]
    print(f"{site.__name__} {error}: {most} calls; {said}")


def _try(tried: Site, faults: Faults, error: int, calls: int, first: int, every: int) -> str:
    with faults.armed(error, calls, first=first, every=every):
        answer = tried.send()
        failed = faults.count.failed
    said = f"{first}{'+' if every else ''}:{answer.status_code}"
    if answer.status_code not in tried.good:
        allowed = (507, 503) if error == errno.ENOSPC else (503,)
        assert answer.status_code in allowed, f"{said} {answer.text}"
        told = answer.json()["error"]
        assert told["details"]["retryable"] is True, told
        assert told["message"]
        assert int(answer.headers["retry-after"]) >= 1
        assert failed
        tried.check_failed()
        answer = _again(tried.send)
        assert answer.status_code in tried.good, f"{said}, then {answer.status_code} {answer.text}"
    tried.check_done(answer)
    return said


def _again(send: Callable[[], httpx.Response]) -> httpx.Response:
    """Send again, as the answer said; a view that was lost takes a moment to come back."""
    deadline = time.monotonic() + 15
    while (answer := send()).status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.2)
    return answer
