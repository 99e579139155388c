"""What is acknowledged survives power loss: files are synced before their names, names before the answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tessera import artifact, data_directory
from tessera.blobs import Blobs
from tessera.config import Settings
from tessera.db.engine import Database
from tessera.db.tables import metadata, organizations
from tessera.extraction import write_documents
from tessera.ports import DenseVector, Document
from tessera.wiring import close_warehouse, open_warehouse


class Disk:
    """Remembers, in order, which files and folders were synced, and what they were called just then."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: list[str] = []

    def note(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        for path in (self.root, *self.root.rglob("*")):
            if os.path.samestat(path.stat(), found):
                self.synced.append(str(path.relative_to(self.root)))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    monkeypatch.setattr(os, "fsync", disk.note)
    return disk


def test_a_blob_is_durable_with_every_folder_above_it(disk: Disk, tmp_path: Path) -> None:
    key = Blobs(tmp_path / "blobs").put("ns_1", b"abc")
    assert {"blobs", "blobs/ns_1", "blobs/ns_1/blobs", f"blobs/{key}"} <= set(disk.synced)


def test_a_blob_that_is_there_already_is_made_durable_too(disk: Disk, tmp_path: Path) -> None:
    """The process that wrote it may have died before it was synced, or not have come so far."""
    key = Blobs(tmp_path / "blobs").put("ns_1", b"abc")
    disk.synced.clear()
    Blobs(tmp_path / "blobs").put("ns_1", b"abc")
    assert {"blobs", "blobs/ns_1", "blobs/ns_1/blobs", f"blobs/{key}"} <= set(disk.synced)


def test_an_artifact_is_complete_before_it_has_its_name(disk: Disk, tmp_path: Path) -> None:
    document = Document("doc_1", {"n": 1}, {"v": np.ones(2, np.float32)})
    (key,) = write_documents(Blobs(tmp_path), "ns_1/artifacts/a", [DenseVector("v", 2)], [document])
    assert disk.synced.index(f"{key}.part") < disk.synced.index("ns_1/artifacts", 1)
    assert {".", "ns_1", "ns_1/artifacts"} <= set(disk.synced)
    assert [read.document_id for part in artifact.read(tmp_path / key) for read in part] == ["doc_1"]


def test_a_secret_file_is_durable_and_private(disk: Disk, tmp_path: Path) -> None:
    data_directory.write_private(tmp_path / "admin.key", b"key")
    assert disk.synced == ["admin.key.part", "."]
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600


def test_the_signing_key_is_durable_before_anything_is_signed_with_it(disk: Disk, tmp_path: Path) -> None:
    """Without it a sealed credential can never be opened again."""
    wh = open_warehouse(Settings(data=tmp_path), run_jobs=False)
    close_warehouse(wh)
    assert disk.synced.index("signing.key.part") < disk.synced.index(
        ".", disk.synced.index("signing.key.part")
    )
    assert (tmp_path / "signing.key").read_bytes() == wh.signing_key


# --- the writers of the database ------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    metadata.create_all(database.engine)
    yield database
    database.close()


def test_emptying_the_write_ahead_log_does_not_hold_up_writers(db: Database) -> None:
    """A purge that waited for one slow reader kept every writer waiting for up to 30 s."""
    reading, read = threading.Event(), threading.Event()

    def look() -> None:
        with db.read() as connection:
            connection.execute(sa.select(organizations)).all()
            reading.set()
            read.wait(20)

    reader = threading.Thread(target=look)
    reader.start()
    reading.wait(5)
    with db.write() as connection:
        connection.execute(sa.delete(organizations))
    started = time.monotonic()
    db.forget_deleted()
    waited_s = time.monotonic() - started
    read.set()
    reader.join()
    assert waited_s < 2


def test_the_writer_of_what_may_lag_survives_a_defect(db: Database) -> None:
    written = threading.Event()
    db.later(lambda _connection: int("no number"))
    time.sleep(0.2)
    db.later(lambda _connection: written.set())
    assert written.wait(5)
