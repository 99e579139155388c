"""A backup that is taken while a batch runs restores to everything that had been acknowledged before."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera import data_directory
from tests.http.loop import Loop
from tests.http.processes import ROOT, Server
from tests.http.test_erasing import CANARY, NEIGHBOUR, Notes, holders


def tessera(
    *arguments: object, failpoint: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    if failpoint is not None:
        environment["TESSERA_TEST_FAILPOINT"] = failpoint
    return subprocess.run(
        [sys.executable, "-m", "tessera", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(tmp_path_factory.mktemp("backup") / "data")
    yield server
    server.stop()


def test_backup_during_an_ingest_restores_what_was_acknowledged(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "backup"
    with server.client() as client:
        notes = Notes(client, "backed_up")
        before = notes.documents()
        asked = [notes.loop.note(notes.bucket, f"under way {number}") for number in range(150)]
        batch = notes.loop.post(f"/buckets/{notes.bucket}/batches", {"object_ids": asked})
        submitted = notes.loop.post(f"/buckets/{notes.bucket}/batches/{batch['batch_id']}/submit", {})
        made = tessera("backup", target, "--data", server.data)
        assert made.returncode == 0, made.stderr
        assert "master key is not in the backup" in made.stderr
        assert server.wait_for_task(submitted["task_id"])["status"] == "COMPLETED", "the server went on"
        at_the_end = notes.documents()
    secrets = {"master.key", "signing.key", "admin.key"}
    assert not secrets & {path.name for path in target.rglob("*")}
    assert not (target / "views").exists()

    restored = tessera("restore", target, "--data", tmp_path / "restored")
    assert restored.returncode == 0, restored.stderr
    data_directory.write_admin_key(tmp_path / "restored", server.api_key)  # kept elsewhere
    other = Server.start(tmp_path / "restored")
    try:
        # What was being extracted when the backup was taken goes on and ends.
        assert other.wait_for_task(submitted["task_id"])["status"] == "COMPLETED"
        with other.client(namespace=notes.place) as client:
            loop = Loop(client, {"namespace_id": notes.place})
            found = {item["root_object_id"]: item for item in loop.documents(notes.collection)}
            count = client.get(f"/v1/namespaces/{notes.place}").json()["document_count"]
        assert set(before) <= set(found) and {key: found[key] for key in before} == before
        assert set(found) == set(at_the_end) == {*before, *asked}
        assert count == len(found)
    finally:
        other.kill(group=True)


def test_a_second_backup_adds_what_is_new_and_holds_nothing_that_was_erased(
    server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "backup"
    with server.client() as client:
        notes = Notes(client, "erased_later")
        assert tessera("backup", target, "--data", server.data).returncode == 0
        assert holders(target, CANARY)
        document = notes.documents()[notes.mine]["document_id"]
        mine = [document]
        for other in client.post("/v1/namespaces/list", json={}).json()["results"]:
            if other["namespace_id"] != notes.place:
                client.delete(f"/v1/namespaces/{other['namespace_id']}").raise_for_status()
        task = notes.erase(document_ids=mine, include_objects=True)
        assert server.wait_for_task(task["task_id"])["status"] == "COMPLETED"
        made = tessera("backup", target, "--data", server.data)
        assert made.returncode == 0, made.stderr
        assert holders(target, CANARY) == [] and holders(target, NEIGHBOUR)
        again = tessera("backup", target, "--data", server.data)
        assert ", 0 new." in again.stdout


def test_an_interrupted_backup_is_no_backup_until_it_is_made_again(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        Notes(client, "interrupted")
    target = tmp_path / "backup"
    for point in ("backup.database", "backup.file", "backup.manifest"):
        killed = tessera("backup", target, "--data", server.data, failpoint=f"{point}:1:self")
        assert killed.returncode == -9, killed.stderr
        assert not (target / "manifest.json").exists()
    refused = tessera("restore", target, "--data", tmp_path / "restored")
    assert refused.returncode == 1 and "no whole backup" in refused.stderr
    assert not (tmp_path / "restored").exists()
    assert tessera("backup", target, "--data", server.data).returncode == 0
    assert tessera("restore", target, "--data", tmp_path / "restored").returncode == 0


def test_what_cannot_be_restored_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    target, data = tmp_path / "backup", tmp_path / "data"
    with server.client() as client:
        Notes(client, "refused_restores")
    assert tessera("backup", target, "--data", server.data, "--with-secrets").returncode == 0
    assert (target / "admin.key").stat().st_mode & 0o077 == 0
    full = tessera("restore", target, "--data", server.data)
    assert full.returncode == 1 and "is not empty" in full.stderr
    inside = tessera("backup", server.data / "backup", "--data", server.data)
    assert inside.returncode == 1 and "outside of the data directory" in inside.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("the only copy")
    foreign = tessera("backup", tmp_path / "mine", "--data", server.data)
    assert foreign.returncode == 1 and (tmp_path / "mine/thesis.txt").exists()

    artifact = next(path for path in target.rglob("*.arrow"))
    content = artifact.read_bytes()
    artifact.unlink()  # the file itself is linked to the server's
    missing = tessera("restore", target, "--data", data)
    assert missing.returncode == 1 and "is missing" in missing.stderr and not list(data.iterdir())
    artifact.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = tessera("restore", target, "--data", data)
    assert changed.returncode == 1 and "digest differs" in changed.stderr and not list(data.iterdir())


def test_a_directory_that_a_failed_start_left_is_restored_into(server: Server, tmp_path: Path) -> None:
    target, data = tmp_path / "backup", tmp_path / "data"
    with server.client() as client:
        Notes(client, "after_a_failed_start")
    made = tessera("backup", target, "--data", server.data)
    files = made.stdout.split(": ")[1].split()[0]
    assert made.stdout.endswith(f"bytes, {files} new.\n"), "the database and VERSION are new too"
    port = server.url.rpartition(":")[2]
    assert tessera("up", "--data", data, "--port", port, "--offline").returncode == 1
    assert {path.name for path in data.iterdir()} == {"VERSION", "server.lock"}
    with data_directory.held(data):
        held = tessera("restore", target, "--data", data)
        assert held.returncode == 1 and "holds the data directory" in held.stderr
    restored = tessera("restore", target, "--data", data)
    assert restored.returncode == 0, restored.stderr
    assert (data / "tessera.sqlite3").exists()


def test_what_the_system_refuses_is_said_in_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    refused = tessera("backup", tmp_path / "file/backup", "--data", server.data)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr
    assert str(tmp_path / "file") in refused.stderr and "Not a directory" in refused.stderr
    made = tessera("backup", tmp_path / "backup", "--data", server.data)
    assert made.returncode == 0, made.stderr
    refused = tessera("restore", tmp_path / "backup", "--data", tmp_path / "file/data")
    assert refused.returncode == 1 and "Traceback" not in refused.stderr, refused.stderr


def test_erase_names_a_namespace_whatever_its_name_and_asks_no_proxy(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "50% of a? #b & c")
        environment = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
        done = tessera(
            "erase", "50% of a? #b & c", "--object", notes.mine, "--data", server.data, **environment
        )
        assert done.returncode == 0, done.stderr
        assert set(notes.documents()) == set(notes.others)


def test_erase_from_the_command_line(server: Server) -> None:
    with server.client() as client:
        notes = Notes(client, "by_command")
        done = tessera("erase", notes.place, "--object", notes.mine, "--data", server.data)
        assert done.returncode == 0, done.stderr
        assert "artifacts_rewritten" in done.stdout and CANARY.decode() not in done.stdout
        assert set(notes.documents()) == set(notes.others)
        for what in ("--document", "--object"):
            vain = tessera("erase", notes.place, what, "nope", "--data", server.data)
            assert vain.returncode == 1, vain.stdout
            assert "nothing was erased" in vain.stderr and "knows nothing of 1 id" in vain.stderr
            counted = dict(line.split() for line in vain.stdout.splitlines())
            assert (counted["documents"], counted["objects"]) == ("0", "0")
        absent = tessera("erase", "no_such_place", "--object", "obj_1", "--data", server.data)
        assert absent.returncode == 4 and "no_such_place" in absent.stderr


def test_erase_tells_its_key_to_no_other_program_on_a_dead_servers_port(tmp_path: Path) -> None:
    """A server that was killed leaves its address behind; the port may be anybody's by now."""
    with socket.create_server(("127.0.0.1", 0)) as another:
        another.settimeout(0.1)
        (tmp_path / "admin.key").write_text("sk_live_not_for_strangers\n")
        owner = {
            "pid": 1,
            "host": "here",
            "url": f"http://127.0.0.1:{another.getsockname()[1]}",
            "started_at": "2026",
        }
        (tmp_path / "server.lock").write_text(json.dumps(owner))
        assert data_directory.owner_of(tmp_path) is not None
        done = tessera("erase", "place", "--object", "obj_1", "--data", tmp_path)
        assert done.returncode == 3 and "tessera up" in done.stderr
        with pytest.raises(TimeoutError):
            another.accept()
