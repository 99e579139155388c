"""A disk that really is full, and a server that really has no descriptor left; both are freed again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.oracle import check_agreement
from tests.http.processes import Server

DISK_MIB = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(folder)]
    for before in ([], ["sudo", "-n"]):
        try:
            made = subprocess.run([*before, *command], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            continue
        if made:
            break
    else:
        pytest.skip("no disk can be mounted here: that needs root on Linux")
    subprocess.run([*before, "chown", str(os.getuid()), str(folder)], check=True)
    yield folder
    subprocess.run([*before, "umount", "-l", str(folder)], check=True)


def _home(server: Server, client: httpx.Client) -> tuple[Loop, str, str]:
    body = {"namespace_name": "home", "feature_extractors": [PASSTHROUGH]}
    loop = Loop(client, client.post("/v1/namespaces", json=body).raise_for_status().json())
    bucket = loop.bucket()
    collection = loop.collection(bucket)
    assert loop.run(bucket, [loop.note(bucket, "first")])["status"] == "COMPLETED"
    return loop, bucket, collection


def _refused(answer: httpx.Response, statuses: tuple[int, ...]) -> None:
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["details"]["retryable"] is True
    assert error["message"]


def test_a_disk_that_is_full(small_disk: Path) -> None:
    server = Server.start(small_disk / "data", environment={"TESSERA_VECTOR_HOSTS": "1"})
    try:
        with server.client() as client:
            loop, bucket, collection = _home(server, client)
            waiting = loop.note(bucket, "waiting")
            batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [waiting]})["batch_id"]
            (document,) = loop.documents(collection)
            hosts = server.children("host")

            # Nearly full: everything can be written but what the vector engine would map into memory.
            ballast = _fill(small_disk, leave_mib=16)
            task = loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})["task_id"]
            path = f"/collections/{collection}/documents/{document['document_id']}"
            answer = client.delete(f"/v1{path}", headers=loop.headers)
            _refused(answer, (507,))
            # What is there can be read, and nobody died.
            assert loop.documents(collection)
            assert server.children("host") == hosts

            # Full to the last byte: requests that would make something are refused, reads are answered.
            more = _fill(small_disk, leave_mib=0)
            body = {"namespace_name": "another", "feature_extractors": [PASSTHROUGH]}
            _refused(client.post("/v1/namespaces", json=body), (507, 503))
            blobs = [{"property": "note", "type": "text", "data": "x" * 300_000}]
            answer = client.post(f"/v1/buckets/{bucket}/objects", json={"blobs": blobs}, headers=loop.headers)
            _refused(answer, (507,))
            assert client.get("/v1/namespaces/another").status_code == 404
            assert loop.documents(collection)

            for file in (*more, *ballast):
                file.unlink()
            assert loop.wait(task, 90)["status"] == "COMPLETED"
            # The deletion was logged before the engine was asked, so it holds.
            assert [found["source_object_id"] for found in loop.documents(collection)] == [waiting]
            assert client.post("/v1/namespaces", json=body).status_code == 200
            assert server.children("host") == hosts
        check_agreement(server)
        assert server.stop() == 0
    finally:
        server.kill(group=True)


def _fill(folder: Path, *, leave_mib: int) -> list[Path]:
    """Write a file that leaves so much room; return the files that were made."""
    file = folder / f"ballast-{leave_mib}"
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    with file.open("wb", buffering=0) as sink:
        try:
            left = max(0, free - leave_mib * 2**20) if leave_mib else free + 2**20
            while left > 0:
                left -= sink.write(bytes(min(left, 2**16)))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return [file]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
def test_no_descriptor_left(tmp_path: Path) -> None:
    import resource

    server = Server.start(tmp_path / "data", environment={"TESSERA_VECTOR_HOSTS": "1"})
    try:
        with server.client() as client:
            loop, bucket, collection = _home(server, client)
            before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
            # A few are left: those below the highest may all be in use, and one connection is accepted.
            used = max(int(file.name) for file in Path(f"/proc/{server.process.pid}/fd").iterdir()) + 4
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used, before[1]))
            try:
                # Free descriptors below the limit are taken by connections that wait: nothing is accepted any more.
                statuses = set()
                others = [httpx.Client(base_url=server.url, timeout=0.5) for _ in range(40)]
                for number, other in enumerate(others):
                    try:
                        other.get("/v1/health/liveness")
                    except httpx.TransportError:
                        assert number > 0
                        break
                for number in range(5):
                    blobs = [{"property": "note", "type": "text", "data": f"{number}" + "x" * 300_000}]
                    path = f"/v1/buckets/{bucket}/objects"
                    answer = client.post(path, json={"blobs": blobs}, headers=loop.headers)
                    statuses.add(answer.status_code)
                    if answer.status_code != 200:
                        _refused(answer, (503,))
                    # What needs no new file is answered.
                    assert loop.documents(collection)
                assert 503 in statuses
            finally:
                resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
            for other in others:
                other.close()
            deadline = time.monotonic() + 30
            while True:
                try:
                    httpx.get(f"{server.url}/v1/health/liveness", timeout=5).raise_for_status()
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline
            assert loop.run(bucket, [loop.note(bucket, "after")])["status"] == "COMPLETED"
            assert len(loop.documents(collection)) == 2
        check_agreement(server)
        assert server.stop() == 0
    finally:
        server.kill(group=True)
