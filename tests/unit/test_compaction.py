"""Folding a log: the checkpoint says what the log said, whatever reads it, and whenever it was interrupted."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera import artifact, backup, compaction, erasure, log
from tessera.config import Settings
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batches, doomed_views, erasures, log_entries, namespaces, tasks
from tessera.links import SCHEME
from tessera.models import IndexType, PayloadIndex
from tessera.ports import Document, Entry, Page
from tessera.wiring import close_warehouse, open_warehouse
from tests import qdrant_rest
from tests.unit.rows import insert_namespace

NAMESPACE = "ns_0123456789abcdef"
INDEX = PayloadIndex(field_name="n", type=IndexType.INTEGER, field_schema={"type": "integer"})


def make_namespace(warehouse: Warehouse) -> None:
    with warehouse.db.write() as connection:
        insert_namespace(connection, NAMESPACE, vectors=[{"name": "v", "dimensions": 4, "distance": "dot"}])
        log.append_indexes(connection, NAMESPACE, [INDEX])


@pytest.fixture
def wh(tmp_path: Path) -> Iterator[Warehouse]:
    warehouse = open_warehouse(Settings(data=tmp_path / "data", offline=True), run_jobs=False)
    make_namespace(warehouse)
    yield warehouse
    close_warehouse(warehouse)


def document(number: int, value: object = 0) -> Document:
    payload = {"document_id": f"doc_{number}", "n": value}
    return Document(f"doc_{number}", payload, {"v": np.asarray([number, 1, 0, 0], np.float32)})


def edit(wh: Warehouse, *documents: Document, deletes: tuple[str, ...] = (), payloads: bool = False) -> int:
    with wh.db.write() as connection:
        return log.append_edit(
            connection, NAMESPACE, upserts=documents, deletes=deletes, keeps_vectors=payloads
        )


def bring(wh: Warehouse, name: str, documents: list[Document], deletes: tuple[str, ...] = ()) -> int:
    key = f"{NAMESPACE}/artifacts/{name}.arrow"
    artifact.write(wh.blobs.new_path(key), documents, {"v": 4})
    with wh.db.write() as connection:
        return log.append_artifact(connection, NAMESPACE, key, deletes=deletes, documents=len(documents))


def replayed(wh: Warehouse) -> log.State:
    with wh.db.read() as connection:
        entries = log.read(connection, NAMESPACE, after=0, limit=100_000, local_path=wh.blobs.path)
    return log.fold(entries)


def plain(state: log.State) -> dict[str, Any]:
    return {key: (d.payload, d.vectors["v"].tolist()) for key, d in state.documents.items()}


def found(wh: Warehouse) -> dict[str, Any]:
    hits = wh.views.page(NAMESPACE, Page(limit=10_000, with_vectors=True)).hits
    return {hit.document_id: (hit.payload, hit.vectors["v"].tolist()) for hit in hits}


def make_durable(wh: Warehouse) -> None:
    """Apply everything and write the mark, as the flusher does a second later."""
    wh.views.apply(NAMESPACE)
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(mark_seq=namespaces.c.head))


def row(wh: Warehouse) -> Any:
    with wh.db.read() as connection:
        return connection.execute(sa.select(namespaces)).one()


def fill(wh: Warehouse) -> None:
    """A log in which documents are brought, replaced, deleted and brought again."""
    bring(wh, "btch_a-1", [document(n) for n in range(50)])
    for number in range(40):
        edit(wh, document(number % 30, number), deletes=(f"doc_{49 - number % 10}",))
    # Payloads alone: of one that is there, one that comes again later, one that was deleted, one that never was.
    late = [document(n, "by hand") for n in (7, 46, 44, 99)]
    edit(wh, *(replace(d, vectors={}) for d in late), payloads=True)
    bring(wh, "btch_b-1", [document(n, "again") for n in range(45, 60)], deletes=("doc_0", "doc_45"))


def test_a_folded_log_brings_a_new_view_to_the_same_state_and_the_old_one_stays(wh: Warehouse) -> None:
    fill(wh)
    make_durable(wh)
    before, view_id = plain(replayed(wh)), row(wh).view_id
    assert len(before) == 54 and found(wh) == before
    head = row(wh).head
    assert compaction.compact(wh, NAMESPACE, 0, grace_s=0)
    after = row(wh)
    assert (after.head, after.checkpoint_seq, after.checkpoint_first) == (head, head, head - 1)
    with wh.db.read() as connection:
        assert [seq for (seq,) in connection.execute(sa.select(log_entries.c.seq))] == [head - 1, head]
    state = replayed(wh)
    assert plain(state) == before and state.indexes == (INDEX,) and state.seq == head
    assert found(wh) == before and row(wh).view_id == view_id, "the view that was open went on"
    assert edit(wh, document(3, "later")) == head + 1
    wh.views.renew(NAMESPACE)
    assert found(wh)["doc_3"][0]["n"] == "later"
    assert found(wh) == plain(replayed(wh))
    assert len(list(wh.blobs.path(f"{NAMESPACE}/artifacts").iterdir())) == 1, "the old artifacts are gone"


def test_folding_again_folds_the_checkpoint_with_what_came_after(wh: Warehouse) -> None:
    fill(wh)
    make_durable(wh)
    assert compaction.fold(wh, NAMESPACE)
    assert not compaction.fold(wh, NAMESPACE), "there is nothing new"
    edit(wh, document(1, "second"), deletes=("doc_2",))
    edit(wh, document(2, "third"))
    expected = plain(replayed(wh))
    make_durable(wh)
    assert compaction.compact(wh, NAMESPACE, -1000)
    assert plain(replayed(wh)) == expected
    assert expected["doc_2"][0]["n"] == "third"


def test_only_what_the_view_has_made_durable_is_folded(wh: Warehouse) -> None:
    fill(wh)
    assert not compaction.fold(wh, NAMESPACE)
    make_durable(wh)
    head = row(wh).head
    not_durable = edit(wh, document(7, "not durable"))
    assert compaction.fold(wh, NAMESPACE)
    assert row(wh).checkpoint_seq == head
    wh.views.apply(NAMESPACE, not_durable)
    assert found(wh)["doc_7"][0]["n"] == "not durable"


def test_a_view_that_stands_inside_what_was_folded_is_built_anew(wh: Warehouse) -> None:
    """It would miss the deletes between where it stands and the checkpoint."""
    bring(wh, "btch_a-1", [document(n) for n in range(20)])
    make_durable(wh)
    wh.views.close()  # flushed, and the database's mark is what it is
    for number in range(10):
        edit(wh, deletes=(f"doc_{number}",))
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(mark_seq=namespaces.c.head))
    assert compaction.fold(wh, NAMESPACE)
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(mark_seq=0))
    wh.views.forget(NAMESPACE)
    assert sorted(found(wh)) == sorted(f"doc_{n}" for n in range(10, 20))
    assert row(wh).view_id == f"{NAMESPACE}-2"


def test_a_reader_that_is_inside_what_was_folded_is_told(wh: Warehouse) -> None:
    fill(wh)
    make_durable(wh)
    compaction.fold(wh, NAMESPACE)
    last = row(wh).checkpoint_seq
    with wh.db.read() as connection:
        for after in (1, last - 1):
            with pytest.raises(log.Folded):
                log.read(connection, NAMESPACE, after=after, limit=1, local_path=wh.blobs.path)
        assert log.read(connection, NAMESPACE, after=last, limit=1, local_path=wh.blobs.path) == []
        whole = log.read(connection, NAMESPACE, after=0, limit=1, local_path=wh.blobs.path)
    assert [entry.seq for entry in whole] == [last - 1, last], "a checkpoint is read as a whole"


def test_a_checkpoint_of_several_artifacts(wh: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.views.REPLAY_ENTRIES", 2)
    monkeypatch.setattr(artifact, "MAX_DOCUMENTS", 10)
    for number in range(12):
        edit(wh, *[document(n, number) for n in range(number * 3, number * 3 + 20)])
    make_durable(wh)
    expected = plain(replayed(wh))
    assert compaction.fold(wh, NAMESPACE)
    assert row(wh).checkpoint_seq - row(wh).checkpoint_first == 6
    assert plain(replayed(wh)) == expected
    wh.views.renew(NAMESPACE)
    assert found(wh) == expected


def test_what_was_rewritten_meanwhile_is_not_switched_to(
    wh: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(wh)
    make_durable(wh)
    expected = plain(replayed(wh))

    def rewrite(name: str) -> None:
        if name == "fold.switch":
            with wh.db.write() as connection:
                connection.execute(sa.update(namespaces).values(log_edition=7))

    monkeypatch.setattr(compaction.failpoints, "reach", rewrite)
    assert not compaction.fold(wh, NAMESPACE)
    assert row(wh).checkpoint_seq == 0 and plain(replayed(wh)) == expected
    assert not [p for p in wh.blobs.path(f"{NAMESPACE}/artifacts").iterdir() if p.name.startswith("fold-")]


def test_writers_and_readers_go_on_while_a_log_is_folded(wh: Warehouse) -> None:
    fill(wh)
    make_durable(wh)
    stop, written = threading.Event(), [0]

    def write() -> None:
        while not stop.is_set():
            written[0] += 1
            wh.views.apply(NAMESPACE, edit(wh, document(500, written[0])))
            assert found(wh)["doc_500"][0]["n"] == written[0]

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            make_durable(wh)
            compaction.compact(wh, NAMESPACE, -1000, grace_s=0)
        while written[0] < 3:
            pass
    finally:
        stop.set()
        writer.join()
    assert row(wh).checkpoint_seq > 0
    assert plain(replayed(wh))["doc_500"][0]["n"] == written[0] == found(wh)["doc_500"][0]["n"]


FOLD = """
import sys
from pathlib import Path
from tessera import compaction
from tessera.config import Settings
from tessera.wiring import open_warehouse
wh = open_warehouse(Settings(data=Path(sys.argv[1]), offline=True), run_jobs=False)
compaction.compact(wh, sys.argv[2], -10**9, grace_s=0)
"""


@pytest.mark.parametrize(
    ("point", "folded"), [("fold.artifact", False), ("fold.switch", False), ("fold.switched", True)]
)
def test_a_kill_anywhere_in_a_folding_changes_nothing(wh: Warehouse, point: str, folded: bool) -> None:
    fill(wh)
    make_durable(wh)
    expected, view_id = plain(replayed(wh)), row(wh).view_id
    wh.views.close()
    wh.vectors.close()
    environment = {**os.environ, "TESSERA_TEST_FAILPOINT": f"{point}:1:self"}
    killed = subprocess.run(
        [sys.executable, "-c", FOLD, str(wh.settings.data), NAMESPACE],
        env=environment,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -9
    assert (row(wh).checkpoint_seq > 0) == folded
    again = open_warehouse(Settings(data=wh.settings.data, offline=True), run_jobs=False)
    try:
        assert plain(replayed(again)) == expected and found(again) == expected
        assert row(again).view_id == view_id
        compaction.compact(again, NAMESPACE, -(10**9), grace_s=0)
        assert plain(replayed(again)) == expected and row(again).checkpoint_seq > 0
        assert len(list(again.blobs.path(f"{NAMESPACE}/artifacts").iterdir())) == 1
    finally:
        close_warehouse(again)


def test_what_is_due(wh: Warehouse) -> None:
    def due(minimum: int) -> list[str]:
        with wh.db.read() as connection:
            return compaction.due(connection, minimum, 10)

    fill(wh)  # 50 + 80 + 17 + 4 changes, 54 documents left
    make_durable(wh)
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(document_count=54))
    assert row(wh).logged_changes == 151
    assert due(42) == [NAMESPACE] and due(43) == []
    assert compaction.compact(wh, NAMESPACE, 42)
    assert row(wh).logged_changes == 54
    assert due(42) == [], "artifacts lie until their grace is over"
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(folded_at="2026-01-01T00:00:00.000000Z"))
    assert due(42) == [NAMESPACE]
    assert not compaction.compact(wh, NAMESPACE, 42)
    assert due(42) == []
    assert len(list(wh.blobs.path(f"{NAMESPACE}/artifacts").iterdir())) == 1


def test_nothing_is_removed_while_a_backup_runs(wh: Warehouse) -> None:
    fill(wh)
    make_durable(wh)
    with wh.blobs.kept() as kept:
        assert kept
        assert compaction.compact(wh, NAMESPACE, 0, grace_s=0)
        assert len(list(wh.blobs.path(f"{NAMESPACE}/artifacts").iterdir())) == 3
    assert row(wh).folded_at is not None
    compaction.compact(wh, NAMESPACE, 10_000, grace_s=0)
    assert len(list(wh.blobs.path(f"{NAMESPACE}/artifacts").iterdir())) == 1


def test_memory_follows_documents_not_history() -> None:
    """50,000 documents patched a hundred times are five million entries; they are never held together."""
    entries, documents = 60_000, 200

    def newest_first() -> Iterator[Entry]:
        for seq in range(entries, 0, -1):
            yield Entry(seq, "edit", upserts=(document(seq % documents, seq),))

    tracemalloc.start()
    survived = sum(1 for _ in log.survivors(newest_first(), set()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert survived == documents
    assert peak < 2 * 2**20, f"{peak / 2**20:.1f} MiB for {documents} documents"


def test_payloads_that_came_alone_stay_where_they_lie(tmp_path: Path) -> None:
    """Every document of a namespace was changed by hand: all payloads were held in memory until the first entry."""
    number, filler = 2000, "x" * 4000
    whole, alone = tmp_path / "whole.arrow", tmp_path / "alone.arrow"
    artifact.write(whole, [document(n) for n in range(number)], {"v": 4})
    for part in range(5):
        late = [
            Document(f"doc_{n}", {"document_id": f"doc_{n}", "n": part, "filler": filler})
            for n in range(number)
        ]
        artifact.write(alone.with_suffix(f".{part}"), late[::-1], {})
    del late
    entries = [
        Entry(seq, "artifact", artifact_path=str(alone.with_suffix(f".{seq - 2}")), keeps_vectors=True)
        for seq in range(6, 1, -1)
    ]
    entries.append(Entry(1, "artifact", artifact_path=str(whole)))
    tracemalloc.start()
    seen = 0
    for survivor in log.survivors(entries, set()):
        seen += 1
        assert survivor.payload["n"] == 4 and survivor.vectors["v"][0] == int(survivor.document_id[4:])
        if seen == 1:
            held, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert seen == number
    assert held < number * len(filler) / 2, f"{held / 2**20:.1f} MiB"


_ids = st.integers(0, 6).map(lambda n: f"doc_{n}")
_documents = st.lists(
    st.tuples(_ids, st.integers(0, 99)).map(
        lambda d: Document(d[0], {"n": d[1]}, {"v": np.asarray([d[1]], np.float32)})
    ),
    max_size=4,
).map(tuple)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            _documents, st.lists(_ids, max_size=3).map(tuple), _documents, st.booleans(), st.booleans()
        ),
        max_size=8,
    ),
    st.integers(0, 8),
)
def test_fold_says_what_applying_in_order_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], cut: int
) -> None:
    """Against the plainest reading of the rules, entry by entry; and folded in two parts."""
    folder = tmp_path_factory.getbasetemp() / "fold"
    expected: dict[str, tuple[int, int]] = {}
    indexes: tuple[PayloadIndex, ...] = ()
    entries = []
    for seq, (upserts, deletes, brought, sets_indexes, payloads_alone) in enumerate(steps, 1):
        path = None
        if brought:
            path = folder / f"{seq}.arrow"
            artifact.write(path, brought, {"v": 1})
        entries.append(
            Entry(
                seq,
                "artifact" if brought else "edit",
                upserts=upserts,
                deletes=deletes,
                artifact_path=str(path) if path else None,
                indexes=(INDEX,) * seq if sets_indexes else None,
                keeps_vectors=payloads_alone,
            )
        )
        for document_id in deletes:
            expected.pop(document_id, None)
        for item in (*upserts, *brought):
            number = item.payload["n"]
            if not payloads_alone:
                expected[item.document_id] = number, number
            elif item.document_id in expected:
                expected[item.document_id] = number, expected[item.document_id][1]
        indexes = (INDEX,) * seq if sets_indexes else indexes
    for state in (log.fold(entries), log.fold(entries[cut:], log.fold(entries[:cut]))):
        held = {key: (d.payload["n"], int(d.vectors["v"][0])) for key, d in state.documents.items()}
        assert held == expected
        assert state.indexes == indexes and state.seq == len(entries)


def test_what_was_sent_ready_made_is_cleared_away_when_no_request_can_name_it(wh: Warehouse) -> None:
    bring(wh, "ready/col_a/1.0", [document(n) for n in range(20)])
    make_durable(wh)
    folder = wh.blobs.path(f"{NAMESPACE}/artifacts/ready/col_a")
    for name, age_s in (("old", 3600), ("young", 0)):
        artifact.write(folder / f"{name}.0.arrow", [document(1)], {"v": 4})
        os.utime(folder / f"{name}.0.arrow", (time.time() - age_s,) * 2)
    compaction.compact(wh, NAMESPACE, 1000, grace_s=0)
    with wh.db.write() as connection:
        connection.execute(sa.update(namespaces).values(folded_at=now()))
    compaction.compact(wh, NAMESPACE, 1000, grace_s=0)
    assert sorted(path.name for path in folder.iterdir()) == ["1.0.arrow", "young.0.arrow"]
    assert row(wh).folded_at is None
    assert len(found(wh)) == 20


def test_a_second_server_does_not_take_a_log_that_the_first_has_folded_for_damage(tmp_path: Path) -> None:
    """Both write to one view on a Qdrant server; who wrote less knows an older position of it."""
    qdrant = qdrant_rest.start(tmp_path / "qdrant")
    (tmp_path / "blobs").mkdir()
    opened = []
    try:
        for name in ("one", "other"):
            data = tmp_path / name
            data.mkdir()
            (data / "blobs").symlink_to(tmp_path / "blobs")
            asked = Settings(
                data=data,
                offline=True,
                database_url=f"sqlite:///{tmp_path / 'shared.sqlite3'}",
                qdrant_url=qdrant.url,
            )
            opened.append(open_warehouse(asked, run_jobs=False))
        one, other = opened
        make_namespace(one)
        edit(one, document(0))
        one.views.apply(NAMESPACE)
        assert len(found(other)) == 1
        for number in range(10):
            edit(one, document(number, "new"))
        one.views.apply(NAMESPACE)
        one.views._flush_dirty()
        other.views._dirty.add(NAMESPACE)
        other.views._flush_dirty()
        make_durable(one)
        assert compaction.fold(one, NAMESPACE)
        other.views.apply(NAMESPACE, edit(other, document(20)))
        assert found(other) == found(one) and len(found(one)) == 11
        assert row(one).view_id == f"{NAMESPACE}-1", "nothing was made anew"
    finally:
        for warehouse in opened:
            close_warehouse(warehouse)
        qdrant.shutdown()
        qdrant.server_close()


# --- erasing, beside whatever else goes on ---------------------------------------------------------------


def erase_later(wh: Warehouse, document_id: str, *blob_keys: str) -> str:
    """Log a deletion and leave the rest to be done, as a request does."""
    at = now()
    seq = edit(wh, deletes=(document_id,))
    targets = {"document_ids": [document_id], "object_ids": [], "source_ids": [], "blob_keys": [*blob_keys]}
    report = {**dict.fromkeys(erasure._COUNTS, 0), "documents": 1, "keys": []}
    with wh.db.write() as connection:
        connection.execute(
            tasks.insert().values(
                task_id="tsk_1",
                organization_id="org_1",
                namespace_id=NAMESPACE,
                task_type="api_namespaces_migrations_run",
                status="PENDING",
                created_at=at,
                updated_at=at,
            )
        )
        connection.execute(
            erasures.insert().values(
                task_id="tsk_1",
                namespace_id=NAMESPACE,
                targets={**targets, "seq": seq},
                report=report,
                due_at=at,
                created_at=at,
            )
        )
    return "tsk_1"


def erasing_is_done(wh: Warehouse) -> bool:
    with wh.db.read() as connection:
        return connection.execute(sa.select(erasures)).one_or_none() is None


def test_erasing_ends_although_others_write_all_the_time(
    wh: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(wh, "btch_a-1", [document(n) for n in range(20)])
    keys = [wh.blobs.put(NAMESPACE, words) for words in (b"only the erased had it", b"another has it")]
    task_id = erase_later(wh, "doc_1", *keys)
    looked = erasure._unnamed_by_documents

    def look(*arguments: Any) -> Any:
        found = looked(*arguments)
        if arguments[1].get_execution_options().get("tessera_write") is None:
            # Between the look at the log and the removal.
            edit(wh, document(50, f"{SCHEME}{keys[1]}"))
        return found

    monkeypatch.setattr(erasure, "_unnamed_by_documents", look)
    erasure.erase(wh, task_id)
    assert erasing_is_done(wh)
    assert [wh.blobs.path(key).exists() for key in keys] == [False, True]
    assert "doc_1" not in found(wh)


def test_erasing_leaves_views_alone_that_are_newer_than_its_own(
    wh: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(wh, "btch_a-1", [document(n) for n in range(20)])
    task_id = erase_later(wh, "doc_1")
    renew = wh.views.renew

    def renew_twice(namespace_id: str) -> None:
        renew(namespace_id)
        old = wh.views._state(namespace_id).view
        assert old is not None
        reserved, view = wh.views._reserve(namespace_id, old)
        wh.vectors.open(view)
        assert reserved.generation == 3

    monkeypatch.setattr(wh.views, "renew", renew_twice)
    erasure.erase(wh, task_id)
    assert erasing_is_done(wh)
    assert sorted(path.name for path in wh.settings.views_path.iterdir()) == [
        f"{NAMESPACE}-2",
        f"{NAMESPACE}-3",
    ]
    with wh.db.read() as connection:
        assert list(connection.execute(sa.select(doomed_views.c.view_id)).scalars()) == [f"{NAMESPACE}-3"]


def test_a_server_that_ends_waits_for_no_view_of_an_erasure(wh: Warehouse) -> None:
    bring(wh, "btch_a-1", [document(n) for n in range(20)])
    task_id, stop = erase_later(wh, "doc_1"), threading.Event()
    wh.views.end_builds()
    stop.set()
    with pytest.raises(compaction.Interrupted):
        erasure.erase(wh, task_id, stop)
    assert not erasing_is_done(wh), "the next server goes on"
    assert "doc_1" not in found(wh)


# --- backup, beside whatever else goes on ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["confirmed", "given up"])
def test_an_upload_that_ends_while_a_backup_runs_is_no_damage(
    wh: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    digest = hashlib.sha256(b"words").hexdigest()
    staged = wh.blobs.new_path(f"{NAMESPACE}/uploads/upl_1.{digest}")
    staged.write_bytes(b"words")
    taken = backup._take

    def take(source: Path, copy: Path) -> None:
        if source == staged:
            if end == "confirmed":
                wh.blobs.move(staged, f"{NAMESPACE}/blobs/{digest}")
            else:
                staged.unlink()
        taken(source, copy)

    monkeypatch.setattr(backup, "_take", take)
    target = tmp_path / "backup"
    backup.create(wh.settings.data, target)
    restored = tmp_path / "restored"
    backup.restore(target, restored)
    kept = restored / "blobs" / NAMESPACE / "blobs" / digest
    assert kept.exists() == (end == "confirmed")


def test_a_restored_batch_is_held_by_nobody(wh: Warehouse, tmp_path: Path) -> None:
    """Else the first server would count a crash that never was, and give up the batch after three."""
    with wh.db.write() as connection:
        connection.execute(
            batches.insert().values(
                batch_id="btch_1",
                namespace_id=NAMESPACE,
                bucket_id="bkt_1",
                object_ids=[],
                collection_ids=[],
                status="IN_PROGRESS",
                holder="slot_1",
                created_at=now(),
                updated_at=now(),
            )
        )
    backup.create(wh.settings.data, tmp_path / "backup")
    backup.restore(tmp_path / "backup", tmp_path / "restored")
    with sqlite3.connect(tmp_path / "restored" / "tessera.sqlite3") as connection:
        assert connection.execute("SELECT status, holder FROM batches").fetchall() == [("IN_PROGRESS", None)]
