"""Data directories as earlier releases left them: they open, with everything in them, or say what they need."""

from __future__ import annotations

import sqlite3
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.fixtures.make_data_directory import TEXT
from tests.http.processes import Server

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCHEMAS = sorted(path.name.removeprefix("data-").removesuffix(".tar.xz") for path in FIXTURES.glob("data-*"))


def unpack(schema: str, folder: Path) -> Path:
    """Unpack a directory; the engine's files are mostly zeros, which stay holes."""
    with tarfile.open(FIXTURES / f"data-{schema}.tar.xz") as archive:
        for member in archive:
            target = folder / member.name
            if member.isdir():
                target.mkdir(mode=0o700)
                continue
            source = archive.extractfile(member)
            assert source is not None
            with target.open("wb") as file:
                target.chmod(0o600)
                while block := source.read(65536):
                    if block.count(0) == len(block):
                        file.seek(len(block), 1)
                    else:
                        file.write(block)
                file.truncate(member.size)
    return folder / "data"


def check(server: Server) -> None:
    """What the release put in is found, with the keys that it made."""
    key = (server.data / "fixture.key").read_text()
    with server.client(key=key, namespace="harbour") as client:
        listed = client.post("/v1/collections/notes/documents/list", json={}).raise_for_status().json()
        assert [item["text"] for item in listed["results"]] == [TEXT]
        done = client.post("/v1/retrievers/first/execute", json={"inputs": {}}).raise_for_status().json()
        assert [item["document_id"] for item in done["documents"]] == [listed["results"][0]["document_id"]]
        assert client.post("/v1/buckets", json={"bucket_name": "more"}).status_code == 403, "it may only read"
        assert [hit["text"] for hit in found_by_words(client)] == [TEXT]
    with server.client() as client:
        assert client.get("/v1/namespaces/harbour").json()["document_count"] == 1


def found_by_words(client: httpx.Client) -> list[Any]:
    """Search the keyword index, which no view of those releases has: until one is made anew it says so."""
    search = {"query": TEXT.split()[-1], "lexical": True}
    stages = [{"stage_id": "feature_search", "parameters": {"searches": [search]}}]
    deadline = time.monotonic() + 60
    while True:
        answer = client.post("/v1/retrievers/execute", json={"stages": stages, "inputs": {}})
        if answer.status_code != 503:
            return list(answer.raise_for_status().json()["documents"])
        assert "keyword index" in answer.text
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_there_is_a_directory_of_every_release() -> None:
    assert SCHEMAS == ["0001_v0.1.0", "0002_v0.2.0"]
    assert all(path.stat().st_size < 100_000 for path in FIXTURES.glob("data-*"))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_an_earlier_data_directory_opens(schema: str, tmp_path: Path) -> None:
    data = unpack(schema, tmp_path)
    server = Server.start(data)
    try:
        check(server)
    finally:
        server.kill(group=True)
    with sqlite3.connect(data / f"tessera.sqlite3.{schema}.backup") as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema,)]
        assert copy.execute("SELECT namespace_name FROM namespaces").fetchall() == [("harbour",)]


@pytest.mark.parametrize("point", ["migrate.backed-up", "migrate.upgraded"])
def test_a_kill_in_the_middle_of_an_upgrade_is_harmless(tmp_path: Path, point: str) -> None:
    data = unpack(SCHEMAS[0], tmp_path)
    with pytest.raises(RuntimeError, match="ended with -9"):
        Server.start(data, environment={"TESSERA_TEST_FAILPOINT": f"{point}:1:self"})
    with sqlite3.connect(data / "tessera.sqlite3") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(SCHEMAS[0],)]
    server = Server.start(data)
    try:
        check(server)
    finally:
        server.kill(group=True)


def test_a_directory_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    data = unpack(SCHEMAS[-1], tmp_path)
    (data / "VERSION").write_bytes(orjson.dumps({"format": 99, "written_by": "7.1.0"}))
    before = (data / "tessera.sqlite3").read_bytes()
    with pytest.raises(RuntimeError, match=r"Install Tessera 7\.1\.0 or newer; nothing was changed"):
        Server.start(data)
    assert (data / "tessera.sqlite3").read_bytes() == before
