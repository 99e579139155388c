"""Views over the real engine: replay after a kill, rebuild after damage, purge, and what a reader may see."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tessera import artifact, log, views
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.blobs import Blobs
from tessera.db.engine import Database
from tessera.db.tables import metadata, namespaces
from tessera.errors import DeadlineError, NotFoundError, QdrantError, StorageUnavailableError
from tessera.ports import Document, Entry, Fusion, Mark, Page, Part, Search, View, ViewDamaged
from tessera.views import Location, Views
from tests.unit.rows import insert_namespace

NAMESPACE = "ns_0123456789abcdef"


class Place:
    """A namespace with its log, blobs and views in one directory, as a server holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = Database(f"sqlite:///{folder / 'db.sqlite3'}")
        metadata.create_all(self.db.engine)
        self.blobs = Blobs(folder / "blobs")
        self.start()

    def start(self) -> None:
        self.vectors = EdgeVectors(1, 8, self.folder / "run")
        self.views = Views(
            self.db,
            self.vectors,
            self.blobs,
            lambda view, _place: Location(str(self.folder / "views" / view)),
        )

    def stop(self) -> None:
        self.views.close()
        self.vectors.close()

    def write(self, *documents: Document, deletes: tuple[str, ...] = ()) -> int:
        with self.db.write() as connection:
            return log.append_edit(connection, NAMESPACE, upserts=documents, deletes=deletes)

    def write_artifact(self, name: str, *documents: Document) -> int:
        artifact.write(self.blobs.path(f"{NAMESPACE}/artifacts/{name}"), documents, {"v": 4})
        with self.db.write() as connection:
            key = f"{NAMESPACE}/artifacts/{name}"
            return log.append_artifact(connection, NAMESPACE, key, documents=len(documents))

    def found(self) -> dict[str, object]:
        hits = self.views.page(NAMESPACE, Page(limit=1000)).hits
        return {hit.document_id: hit.payload["n"] for hit in hits}

    def row(self) -> sa.Row[tuple[object, ...]]:
        with self.db.read() as connection:
            return connection.execute(sa.select(namespaces)).one()

    def kill_hosts(self) -> None:
        for host in self.vectors._slots:
            if host is not None:
                os.kill(host.process.pid, signal.SIGKILL)
                host.process.wait(10)


def document(number: int, value: object = None) -> Document:
    payload = {"n": number if value is None else value, "document_id": f"doc_{number}"}
    return Document(f"doc_{number}", payload, {"v": np.asarray([1.0, number, 0, 0], dtype=np.float32)})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = Place(tmp_path)
    with here.db.write() as connection:
        insert_namespace(
            connection, NAMESPACE, vectors=[{"name": "v", "dimensions": 4, "distance": "cosine"}]
        )
    yield here
    here.stop()
    here.db.close()


def test_an_entry_that_the_database_could_not_give_is_applied_by_the_next_use(place: Place) -> None:
    """The view was taken for up to date for ever when reading the log failed right after the entry was logged."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    seq = place.write(document(2))
    with place.db.write() as connection:
        connection.execute(sa.text("ALTER TABLE log_entries RENAME TO hidden"))
    with pytest.raises(Exception, match="log_entries"):
        place.views.apply(NAMESPACE, seq)
    with place.db.write() as connection:
        connection.execute(sa.text("ALTER TABLE hidden RENAME TO log_entries"))
    assert place.found() == {"doc_1": 1, "doc_2": 2}


def test_a_view_is_made_on_first_use_and_counts_without_being_opened(place: Place) -> None:
    assert not (place.folder / "views").exists()
    assert place.views.document_count(NAMESPACE, 7) == 7
    mark = place.views.apply(NAMESPACE, place.write(document(1), document(2)))
    assert (mark.seq, mark.document_count) == (1, 2)
    assert place.views.document_count(NAMESPACE, 7) == 2
    nearest = place.views.search(NAMESPACE, [Search("v", np.asarray([1, 2, 0, 0], np.float32), limit=1)])
    assert [hit.document_id for hit in nearest[0]] == ["doc_2"]


def test_a_killed_host_loses_nothing_and_no_reader_notices(place: Place) -> None:
    for number in range(30):
        place.views.apply(NAMESPACE, place.write(document(number)))
    place.kill_hosts()
    assert place.found() == {f"doc_{n}": n for n in range(30)}
    place.kill_hosts()
    seq = place.write(document(3, "new"), deletes=("doc_4",))
    assert place.views.apply(NAMESPACE, seq).document_count == 29
    assert place.found()["doc_3"] == "new"


def test_the_next_artifact_is_handed_on_before_the_one_before_is_answered(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host stood still from one answer to the next request, a tenth of the time."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    one, two = place.write_artifact("a", document(1, "a")), place.write_artifact("b", document(1, "b"))
    apply, apply_next = place.vectors.apply, place.vectors.apply_next
    done, handed_on = threading.Event(), threading.Event()
    applied: list[int] = []

    def slow(view: View, entries: Sequence[Entry]) -> Mark:
        mark = apply(view, entries)
        applied.append(mark.seq)
        done.set()
        assert handed_on.wait(60)
        return mark

    def ahead(view: View, entry: Entry) -> Mark | None:
        assert done.wait(60)
        mark = apply_next(view, entry)
        assert mark is not None
        assert mark.seq == two
        handed_on.set()
        return mark

    monkeypatch.setattr(place.vectors, "apply", slow)
    monkeypatch.setattr(place.vectors, "apply_next", ahead)
    first = threading.Thread(target=place.views.apply, args=(NAMESPACE, one))
    first.start()
    assert done.wait(60)
    assert place.views.apply(NAMESPACE, two).seq == two
    first.join(60)
    assert applied == [one]  # the second was not asked for again
    assert place.found() == {"doc_1": "b"}
    wait_for_mark(place, two)


def test_what_was_handed_on_to_a_view_that_was_replaced_is_applied_to_its_successor(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor was taken to stand where the one before it did: the entry was missing for ever, and no one knew."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    one, two = place.write_artifact("a", document(2)), place.write_artifact("b", document(3))
    apply_next = place.vectors.apply_next

    def ahead(view: View, entry: Entry) -> Mark | None:
        with place.db.read() as connection:
            (before,) = log.read(connection, NAMESPACE, after=1, limit=1, local_path=place.blobs.path)
        place.vectors.apply(view, [before])  # as another thread does
        mark = apply_next(view, entry)
        with monkeypatch.context() as patch:
            # A build ends that read the log before this entry was in it.
            patch.setattr(place.views, "_head", lambda _: one)
            place.views.renew(NAMESPACE)
        return mark

    monkeypatch.setattr(place.vectors, "apply_next", ahead)
    mark = place.views.apply(NAMESPACE, two)
    assert (mark.view_id, mark.seq) == (f"{NAMESPACE}-2", two)
    assert place.found() == {"doc_1": 1, "doc_2": 2, "doc_3": 3}


def test_damage_that_is_found_ahead_is_treated(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that is not the mark's is seen when the view is opened after a clean end, and never again."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    place.write_artifact("a", document(2))
    two = place.write_artifact("b", document(3))

    def damaged(view: View, entry: Entry) -> Mark | None:
        raise ViewDamaged(view.view_id, "it holds 2 documents where its mark says 1")

    monkeypatch.setattr(place.vectors, "apply_next", damaged)
    mark = place.views.apply(NAMESPACE, two)
    assert (mark.view_id, mark.seq) == (f"{NAMESPACE}-2", two)
    assert place.found() == {"doc_1": 1, "doc_2": 2, "doc_3": 3}


def wait_for_mark(place: Place, seq: int) -> None:
    deadline = time.monotonic() + 60
    while place.row().mark_seq != seq:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_writers_of_one_namespace_leave_what_the_log_says(place: Place) -> None:
    """Handed on, refused, or lost with a host that is killed in between: applied once each, in the log's order."""
    written: dict[int, list[Document]] = {}

    def write(writer: int) -> None:
        for turn in range(6):
            documents = [document((writer * 7 + n) % 90, f"{writer} {turn}") for n in range(60)]
            seq = place.write_artifact(f"{writer}-{turn}", *documents)
            written[seq] = documents
            assert place.views.apply(NAMESPACE, seq).seq >= seq
            if (writer, turn) == (0, 3):
                place.kill_hosts()
            if (writer, turn) == (2, 2):
                place.views.renew(NAMESPACE)

    place.views.apply(NAMESPACE, place.write(document(0)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    expected = {one.document_id: one.payload["n"] for _, some in sorted(written.items()) for one in some}
    assert place.found() == {"doc_0": 0} | expected
    assert place.views.document_count(NAMESPACE, 0) == len({"doc_0"} | expected.keys())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_rankings_beside_writers_kills_and_successors(place: Place, seed: int) -> None:
    """Every ranking is whole, and in the end the view holds what the log says, also after a restart."""
    done = threading.Event()
    place.views.apply(NAMESPACE, place.write(*(document(number) for number in range(60))))

    def write(writer: int) -> None:
        dice = random.Random(f"{seed} {writer}")
        for turn in range(120):
            some = [document(n, f"{writer} {turn}") for n in dice.sample(range(120), dice.randrange(1, 60))]
            if dice.random() < 0.75:
                seq = place.write_artifact(f"{writer}-{turn}", *some)
            else:
                gone = {f"doc_{n}" for n in dice.sample(range(60, 120), 3)}
                kept = [one for one in some if one.document_id not in gone]
                seq = place.write(*kept, deletes=tuple(gone))
            place.views.apply(NAMESPACE, seq)

    def disturb() -> None:
        dice = random.Random(seed)
        while not done.wait(dice.random()):
            dice.choice([place.kill_hosts, *(2 * [lambda: place.views.renew(NAMESPACE)])])()

    def rank() -> None:
        dice = random.Random(seed)
        while not done.is_set():
            asked = Search("v", document(dice.randrange(120)).vectors["v"], dice.randrange(10, 50))
            most = dice.randrange(1, 9)
            hits = place.views.ranked(
                NAMESPACE, [asked, asked], Fusion((Part("one"), Part("two")), most=most)
            )
            assert len({hit.document_id for hit in hits}) == most
            assert all(hit.payload["document_id"] == hit.document_id for hit in hits)

    with ThreadPoolExecutor(7) as pool:
        beside = [pool.submit(rank), pool.submit(disturb)]
        try:
            list(pool.map(write, range(5)))
        finally:
            done.set()
        for one in beside:
            one.result(60)
    with place.db.read() as connection:
        entries = log.read(connection, NAMESPACE, after=0, limit=10_000, local_path=place.blobs.path)
    expected = {name: stored.payload["n"] for name, stored in log.fold(entries).documents.items()}
    assert place.found() == expected
    assert place.views.document_count(NAMESPACE, 0) == len(expected)
    place.stop()
    place.start()
    assert place.found() == expected


def test_entries_that_were_logged_but_never_applied_are_found_after_a_restart(place: Place) -> None:
    place.views.apply(NAMESPACE, place.write(document(1)))
    place.stop()
    place.write(document(2))  # the server died between commit and apply
    place.start()
    assert place.found() == {"doc_1": 1, "doc_2": 2}


@pytest.mark.parametrize("damage", ["removed", "emptied", "flipped"])
def test_a_damaged_view_is_rebuilt_from_the_log(place: Place, damage: str) -> None:
    for number in range(300):
        place.write(document(number))
    place.views.apply(NAMESPACE)
    place.stop()
    directory = place.folder / "views" / f"{NAMESPACE}-1"
    if damage == "removed":
        shutil.rmtree(directory)
    elif damage == "emptied":
        for file in directory.rglob("*.json"):
            file.write_bytes(b"")
    else:
        largest = max((f for f in directory.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 0xFF
        largest.write_bytes(content)
    place.start()
    assert place.found() == {f"doc_{n}": n for n in range(300)}
    assert place.row().view_id == f"{NAMESPACE}-2"
    assert not directory.exists()


def test_the_database_learns_the_exact_count_within_seconds(place: Place) -> None:
    place.views.apply(NAMESPACE, place.write(document(1), document(2)))
    deadline = time.monotonic() + 10
    while place.row().document_count != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (place.row().document_count, place.row().mark_seq) == (2, 1)


def test_readers_never_see_the_past_while_a_view_replays(place: Place) -> None:
    """A view that is opened again answers only once it has every entry that was there when it was opened."""
    for number in range(200):
        place.write(document(0, number))
    place.views.apply(NAMESPACE)
    place.kill_hosts()
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(place.found()["doc_0"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [199] * 8


def test_purge_leaves_no_file_and_a_gone_namespace_is_not_found(place: Place) -> None:
    place.views.apply(NAMESPACE, place.write(document(1)))
    with place.db.write() as connection:
        connection.execute(sa.delete(namespaces))
    for _ in range(2):
        place.views.purge(NAMESPACE, [f"{NAMESPACE}-1"])
    assert not list((place.folder / "views").iterdir())
    with pytest.raises(NotFoundError):
        place.views.page(NAMESPACE, Page(limit=1))
    assert place.views.document_count(NAMESPACE, 0) == 0


def test_a_view_that_is_damaged_when_it_is_flushed_ends_nobodys_flushing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that moves the marks of all namespaces died of it."""
    flush, damaged = place.vectors.flush, []

    def once_damaged(view: View) -> Mark:
        if not damaged:
            damaged.append(view.view_id)
            raise ViewDamaged(view.view_id, "its directory was removed")
        return flush(view)

    monkeypatch.setattr(place.vectors, "flush", once_damaged)
    place.views.apply(NAMESPACE, place.write(document(1)))
    _wait_for(lambda: bool(damaged))
    place.views.apply(NAMESPACE, place.write(document(2)))
    _wait_for(lambda: place.row().mark_seq == 2)
    assert place.found() == {"doc_1": 1, "doc_2": 2}


def test_damage_that_is_told_at_a_flush_is_treated_even_when_the_database_could_not_be_written_then(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be told for the only time: a count that is not the mark's was forgotten, and the view answered on."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    _wait_for(lambda: place.row().mark_seq == 1)
    told, write = threading.Event(), place.db.write

    def damaged(view: View) -> Mark:
        told.set()
        raise ViewDamaged(view.view_id, "it holds 2 documents where its mark says 1")

    def full() -> None:
        raise StorageUnavailableError("The disk is full.")

    with monkeypatch.context() as patch:
        seq = place.write(document(2))
        patch.setattr(place.vectors, "flush", damaged)
        patch.setattr(place.db, "write", full)
        place.views.apply(NAMESPACE, seq)
        _wait_for(lambda: "could not be set aside yet" in caplog.text)
        assert told.is_set()
        with pytest.raises(StorageUnavailableError):
            place.found()
    assert place.db.write == write
    assert place.found() == {"doc_1": 1, "doc_2": 2}
    assert place.row().view_id == f"{NAMESPACE}-2"
    assert "it holds 2 documents where its mark says 1" in caplog.text


def test_an_engine_that_lacks_entries_is_given_them_from_the_log(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lay between was passed over in silence, and no one ever looked."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    apply, said = place.vectors.apply, []

    def too_far(view: View, entries: Sequence[Entry]) -> Mark:
        mark = apply(view, entries)
        said.append(mark.seq)
        return replace(mark, seq=mark.seq + 1) if len(said) == 1 else mark

    monkeypatch.setattr(place.vectors, "apply", too_far)
    place.views.apply(NAMESPACE, place.write(document(2)))
    place.write(document(3))
    seq = place.write(document(4))
    assert place.views.apply(NAMESPACE, seq).seq == seq
    assert place.found() == {f"doc_{n}": n for n in range(1, 5)}
    assert place.row().view_id == f"{NAMESPACE}-1", "nothing is damaged"


def test_an_edit_that_others_are_ahead_of_is_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only artifacts are handed on ahead; a contended edit's body was parsed to learn that it is none."""
    place.views.apply(NAMESPACE, place.write(document(1)))
    place.write(document(2))
    seq = place.write(document(3))
    entry_of, parsed = log.entry_of, []

    def noted(row: sa.Row[tuple[object, ...]], local_path: Callable[[str], Path]) -> Entry:
        parsed.append(row.seq)
        return entry_of(row, local_path)

    monkeypatch.setattr(log, "entry_of", noted)
    place.views.apply(NAMESPACE, seq)
    assert parsed == [2, 3]


def test_a_reader_waits_for_a_view_only_so_long(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of one namespace that is rebuilt took every thread of the server, for as long as that took."""
    monkeypatch.setattr(views, "READ_PATIENCE_S", 0.2)
    opens, opening, go_on = place.vectors.open, threading.Event(), threading.Event()

    def open_slowly(view: View) -> Mark:
        opening.set()
        go_on.wait(10)
        return opens(view)

    monkeypatch.setattr(place.vectors, "open", open_slowly)
    place.write(document(1))
    first: list[object] = []
    reader = threading.Thread(target=lambda: first.append(place.found()))
    reader.start()
    assert opening.wait(5)
    started = time.monotonic()
    with pytest.raises(QdrantError, match="brought up to date") as caught:
        place.found()
    assert time.monotonic() - started < 3
    assert caught.value.retryable
    go_on.set()
    reader.join()
    assert first == [{"doc_1": 1}]


def _wait_for(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_what_is_kept_of_namespaces_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "KEPT_STATES", 8)
    others = [f"ns_{number:016x}" for number in range(20)]
    with place.db.write() as connection:
        row = dict(connection.execute(sa.select(namespaces)).mappings().one())
        connection.execute(
            namespaces.insert(),
            [
                {**row, "namespace_id": name, "namespace_name": name, "view_id": f"{name}-1"}
                for name in others
            ],
        )
    place.views.apply(NAMESPACE, place.write(document(1)))
    release, late = place.vectors.release, []

    def late_once(view: View) -> None:
        if not late:
            late.append(view.view_id)
            raise DeadlineError("The vector engine did not answer within 600 s.")
        release(view)

    monkeypatch.setattr(place.vectors, "release", late_once)  # the thread that flushes all views died of it
    for name in others:
        assert place.views.count(name) == 0
    deadline = time.monotonic() + 30
    while len(place.views._open) > 8 or len(place.vectors._placed) > 8 + len(late):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    place.views.apply(NAMESPACE, place.write(document(2)))
    assert place.found() == {"doc_1": 1, "doc_2": 2}
    for name in others:
        assert place.views.count(name) == 0
