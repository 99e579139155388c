"""The log: numbers without gaps, entries that can be applied again, one fold for all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tessera import artifact, log
from tessera.db.engine import Database
from tessera.db.tables import log_entries, metadata, namespaces
from tessera.errors import NotFoundError, ValidationError
from tessera.models import IndexType, PayloadIndex
from tessera.ports import DenseVector, Document
from tests.unit.rows import insert_namespace

NAMESPACE = "ns_0123456789abcdef"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'log.sqlite3'}")
    metadata.create_all(database.engine)
    with database.write() as connection:
        insert_namespace(connection, NAMESPACE)
    yield database
    database.close()


def document(number: int, **payload: object) -> Document:
    return Document(f"doc_{number}", dict(payload), {"v": np.full(4, number, dtype=np.float32)})


def read_all(db: Database, folder: Path) -> list[log.Entry]:
    with db.read() as connection:
        return log.read(connection, NAMESPACE, after=0, limit=1000, local_path=lambda key: folder / key)


def test_numbers_have_no_gaps_when_many_write_at_once(db: Database, tmp_path: Path) -> None:
    def write(worker: int) -> None:
        for number in range(20):
            with db.write() as connection:
                log.append_edit(connection, NAMESPACE, upserts=[document(worker * 100 + number)])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.seq for entry in read_all(db, tmp_path)] == list(range(1, 121))


def test_a_transaction_that_fails_leaves_no_entry_and_no_gap(db: Database, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), db.write() as connection:
        log.append_edit(connection, NAMESPACE, deletes=["doc_1"])
        raise RuntimeError
    with db.write() as connection:
        assert log.append_edit(connection, NAMESPACE, deletes=["doc_1"]) == 1
    assert len(read_all(db, tmp_path)) == 1


def test_a_namespace_that_is_gone_takes_no_entry(db: Database) -> None:
    with pytest.raises(NotFoundError), db.write() as connection:
        log.append_edit(connection, "ns_ffffffffffffffff", deletes=["doc_1"])
    with db.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(log_entries)).scalar() == 0


def test_fold_holds_final_values_and_applying_twice_changes_nothing(db: Database, tmp_path: Path) -> None:
    artifact.write(tmp_path / "a.arrow", [document(1, t="artifact"), document(3)], {"v": 4})
    index = PayloadIndex(field_name="t", type=IndexType.KEYWORD, field_schema={"type": "keyword"})
    with db.write() as connection:
        log.append_indexes(connection, NAMESPACE, [index])
        log.append_edit(connection, NAMESPACE, upserts=[document(1, t="edit"), document(2)])
        log.append_artifact(connection, NAMESPACE, "a.arrow", deletes=["doc_1", "doc_2"])
        log.append_edit(connection, NAMESPACE, deletes=["doc_3", "doc_absent"])
    entries = read_all(db, tmp_path)
    state = log.fold(entries)
    assert sorted(state.documents) == ["doc_1"]
    assert state.documents["doc_1"].payload == {"t": "artifact"}
    assert state.documents["doc_1"].vectors["v"].tolist() == [1.0] * 4
    assert state.indexes == (index,)
    assert state.seq == 4
    again = log.fold(entries, log.fold(entries))
    assert sorted(again.documents) == ["doc_1"]


def test_an_artifact_keeps_which_vectors_a_document_lacks(tmp_path: Path) -> None:
    documents = [
        Document(f"d{n}", {"n": n}, {"v": np.ones(2, np.float32)} if n % 2 else {}) for n in range(450)
    ]
    artifact.write(tmp_path / "a.arrow", documents, {"v": 2})
    slices = list(artifact.read(tmp_path / "a.arrow"))
    assert [len(part) for part in slices] == [200, 200, 50]
    read = [item for part in slices for item in part]
    assert [item.document_id for item in read] == [f"d{n}" for n in range(450)]
    assert [set(item.vectors) for item in read] == [{"v"} if n % 2 else set() for n in range(450)]


def test_an_edit_too_large_for_the_log_is_refused(db: Database) -> None:
    with pytest.raises(ValueError, match="artifact"), db.write() as connection:
        log.append_edit(connection, NAMESPACE, upserts=[document(n) for n in range(101)])


@pytest.mark.parametrize(
    ("name", "vector", "word"),
    [
        ("w", [1.0, 2.0], "not one of this namespace's: v"),
        ("v", [1.0], "2 numbers are needed"),
        ("v", [1.0, float("nan")], "NaN"),
        ("v", [1.0, float("inf")], "NaN or infinity"),
    ],
)
def test_vectors_that_no_view_could_hold_are_refused(name: str, vector: list[float], word: str) -> None:
    bad = Document("doc_x", {}, {name: np.asarray(vector, dtype=np.float32)})
    with pytest.raises(ValidationError, match=word) as caught:
        log.check_documents([bad], {"v": DenseVector("v", 2)})
    assert caught.value.problems[0].location == ("documents", "doc_x", "vectors", name)


def test_a_payload_that_comes_alone_leaves_the_vectors_and_makes_no_document(
    db: Database, tmp_path: Path
) -> None:
    """A patch of a document that a later entry of the log had deleted brought it back, without vectors."""
    artifact.write(tmp_path / "a.arrow", [document(1, t="new"), document(9, t="absent")], {})
    with db.write() as connection:
        log.append_edit(connection, NAMESPACE, upserts=[document(1), document(2), document(3), document(4)])
        log.append_edit(connection, NAMESPACE, upserts=[document(2, t="kept")], keeps_vectors=True)
        log.append_edit(connection, NAMESPACE, deletes=["doc_3"])
        log.append_edit(
            connection, NAMESPACE, upserts=[document(3, t="late"), document(4, t="old")], keeps_vectors=True
        )
        log.append_artifact(connection, NAMESPACE, "a.arrow", keeps_vectors=True)
        log.append_edit(connection, NAMESPACE, upserts=[document(4, t="whole")])
    entries = read_all(db, tmp_path)
    expected = {"doc_1": "new", "doc_2": "kept", "doc_4": "whole"}
    for state in (
        log.fold(entries),
        *(log.fold(entries[cut:], log.fold(entries[:cut])) for cut in range(7)),
        log.fold(entries, log.fold(entries)),
    ):
        assert {name: d.payload["t"] for name, d in state.documents.items()} == expected
        assert {name: d.vectors["v"][0] for name, d in state.documents.items()} == {
            name: float(name[-1]) for name in expected
        }


@pytest.mark.parametrize(
    ("after", "before", "expected"), [(0, 2, False), (1, 3, True), (2, 4, True), (3, 5, True), (4, 6, False)]
)
def test_what_was_decided_in_between_is_seen(
    db: Database, tmp_path: Path, after: int, before: int, expected: bool
) -> None:
    artifact.write(tmp_path / "a.arrow", [document(1)], {"v": 4})
    with db.write() as connection:
        log.append_indexes(connection, NAMESPACE, [])
        log.append_edit(connection, NAMESPACE, upserts=[document(1)])
        log.append_artifact(connection, NAMESPACE, "a.arrow")
        log.append_edit(connection, NAMESPACE, deletes=["doc_1"])
        log.append_edit(connection, NAMESPACE, upserts=[document(2)])
        asked = {"document_ids": {"doc_1"}, "after": after, "before": before}
        seen = log.touched(connection, NAMESPACE, **asked, local_path=lambda key: tmp_path / key)  # type: ignore[arg-type]
    assert seen is expected


def test_what_was_changed_since_a_position_is_told(db: Database, tmp_path: Path) -> None:
    """Written, deleted, or in somebody else's artifact; not in one's own, nor before; or there is no telling."""
    artifact.write(tmp_path / "theirs-1", [document(7)], {"v": 4})
    artifact.write(tmp_path / "mine-1", [document(8)], {"v": 4})
    with db.write() as connection:
        before = log.append_edit(connection, NAMESPACE, upserts=[document(1)])
        log.append_edit(connection, NAMESPACE, upserts=[document(2)], deletes=["doc_3"])
        log.append_artifact(connection, NAMESPACE, "theirs-1", deletes=["doc_4"])
        last = log.append_artifact(connection, NAMESPACE, "mine-1", deletes=["doc_5"])

    def changed(after: int) -> tuple[set[str], int]:
        with db.read() as connection:
            return log.changed_since(
                connection, NAMESPACE, after=after, local_path=lambda key: tmp_path / key, but_for="mine-"
            )

    assert changed(before) == ({"doc_2", "doc_3", "doc_4", "doc_5", "doc_7"}, last)
    assert changed(last) == (set(), last)
    with db.write() as connection:
        connection.execute(sa.update(namespaces).values(checkpoint_first=last + 1, checkpoint_seq=last + 1))
    with pytest.raises(log.Folded):
        changed(before)
