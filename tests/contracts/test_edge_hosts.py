"""What the embedded engine promises about its processes and files: kills, damage, orphans, many views."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_edge

from tessera import artifact
from tessera.adapters.qdrant import edge, edge_host, pipe
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.adapters.qdrant.view import finish
from tessera.errors import QdrantError
from tessera.filters import Condition
from tessera.log import State, fold
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import (
    DenseVector,
    Document,
    Entry,
    Hit,
    Page,
    Search,
    View,
    ViewDamaged,
    ViewLost,
)

DIMENSIONS = 8
ROOT = Path(__file__).parents[2]


def index(field_name: str, type: str) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)]().model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


def document(number: int, /, **fields: Any) -> Document:
    document_id = f"doc_{number:032x}"
    vector = np.random.default_rng(number).standard_normal(DIMENSIONS).astype(np.float32)
    return Document(document_id, {"document_id": document_id, **fields}, {"text": vector})


def view(directory: Path, name: str = "ns_1-1") -> View:
    return View(name[:-2], name, (DenseVector("text", DIMENSIONS),), str(directory / "views" / name))


def host_pids(vectors: EdgeVectors) -> list[int]:
    return [host.process.pid for host in vectors._slots if host is not None and host.alive]


def kill_hosts(vectors: EdgeVectors) -> None:
    for pid in host_pids(vectors):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., EdgeVectors]]:
    """Starts engines over one data directory, and closes them."""
    started: list[EdgeVectors] = []

    def make(hosts: int = 1, max_open_views: int = 8, **options: Any) -> EdgeVectors:
        started.append(EdgeVectors(hosts, max_open_views, tmp_path / "run", **options))
        return started[-1]

    yield make
    for vectors in started:
        vectors.close()


def assert_equals_fold(vectors: EdgeVectors, where: View, state: State) -> None:
    """The view holds exactly the documents of `state`, with their payloads and vectors."""
    found: dict[str, Hit] = {}
    after = None
    while True:
        result = vectors.page(where, Page(500, after=after, with_vectors=True))
        found |= {hit.document_id: hit for hit in result.hits}
        if (after := result.next_after) is None:
            break
    assert {id: hit.payload for id, hit in found.items()} == {
        id: stored.payload for id, stored in state.documents.items()
    }
    for document_id, stored in state.documents.items():
        expected = stored.vectors["text"] / np.linalg.norm(stored.vectors["text"])
        np.testing.assert_allclose(found[document_id].vectors["text"], expected, atol=1e-5)
    assert vectors.count(where) == len(found)


# --- kills ---------------------------------------------------------------------------------------------


def random_log(rng: random.Random, directory: Path, length: int) -> list[Entry]:
    """Edits, artifacts and index changes over few ids, so that most entries hit documents of others."""
    entries: list[Entry] = []

    def some(count: int) -> tuple[Document, ...]:
        return tuple(
            document(rng.randrange(400), k=rng.choice(["A", "b", ["C", "d"], 5]), n=rng.randrange(9))
            for _ in range(count)
        )

    for seq in range(1, length + 1):
        roll = rng.random()
        gone = tuple(document(rng.randrange(400)).document_id for _ in range(rng.randrange(4)))
        if roll < 0.1:
            wanted = rng.sample([index("k", "keyword"), index("n", "integer"), index("k2", "text")], 2)
            entries.append(Entry(seq, "indexes", indexes=tuple(wanted)))
        elif roll < 0.25:
            path = directory / f"{seq}.arrow"
            artifact.write(path, some(600), {"text": DIMENSIONS})
            entries.append(Entry(seq, "artifact", deletes=gone, artifact_path=str(path)))
        else:
            entries.append(Entry(seq, "edit", upserts=some(rng.randrange(5)), deletes=gone))
    return entries


@pytest.mark.parametrize("seed", [1, 2])
def test_a_host_killed_while_it_applies_loses_nothing(
    start: Callable[..., EdgeVectors], tmp_path: Path, seed: int
) -> None:
    """Kill at random moments, open again, apply again from the mark: the view equals a fold of the log."""
    rng = random.Random(seed)
    entries = random_log(rng, tmp_path, 160)
    vectors, where = start(), view(tmp_path)
    mark, kills, durable = vectors.open(where), 0, 0
    while mark.seq < len(entries):
        assert mark.seq >= durable, "what was durable is lost"
        pid, stop = host_pids(vectors)[0], threading.Event()

        def strike(
            pid: int = pid, delay: float = rng.uniform(0.0, 0.25), stop: threading.Event = stop
        ) -> None:
            if not stop.wait(delay):
                os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=strike)
        if kills < 8:
            killer.start()
        try:
            while mark.seq < len(entries):
                mark = vectors.apply(where, entries[mark.seq : mark.seq + rng.randrange(1, 20)])
                if rng.random() < 0.3:
                    mark = vectors.flush(where)
                    durable = mark.seq
        except ViewLost:
            kills += 1
            mark = vectors.open(where)
        finally:
            stop.set()
            if killer.ident:
                killer.join()
    mark = vectors.apply(where, entries[mark.seq :])
    state = fold(entries)
    assert mark.document_count == len(state.documents)
    assert_equals_fold(vectors, where, state)
    assert {report.field_name for report in vectors.indexes(where)} == {i.field_name for i in state.indexes}
    vectors.close()
    again = start()
    assert again.open(where).seq == len(entries)
    assert_equals_fold(again, where, state)


def test_the_mark_moves_by_itself_and_survives_a_kill(
    start: Callable[..., EdgeVectors], tmp_path: Path
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    mark_file = Path(where.location, "mark.json")
    assert json.loads(mark_file.read_bytes())["seq"] == 0
    wait_until(lambda: json.loads(mark_file.read_bytes())["seq"] == 1, 5)
    reached = 1
    # By number, before the second is over: on a machine where other work goes on, one time of five.
    for _ in range(5):
        many = [Entry(reached + n, "edit", upserts=(document(reached + n),)) for n in range(1, 60)]
        vectors.apply(where, many)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: json.loads(mark_file.read_bytes())["seq"] >= reached + 50, 0.9)  # noqa: B023
            break
        reached += len(many)
    else:
        pytest.fail("the mark moved by time only")
    kill_hosts(vectors)
    with pytest.raises(ViewLost):
        vectors.apply(where, [Entry(reached + 60, "edit")])
    assert vectors.open(where).seq >= reached + 50


def test_a_read_comes_back_when_the_view_does(start: Callable[..., EdgeVectors], tmp_path: Path) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1), document(2)))])
    vectors.flush(where)
    kill_hosts(vectors)
    assert vectors.count(where) == 2
    vectors.apply(where, [Entry(2, "edit", deletes=(document(1).document_id,))])
    kill_hosts(vectors)
    with pytest.raises(ViewLost):  # the second entry was not durable: who keeps the log must apply it again
        vectors.count(where)
    with pytest.raises(ViewLost):
        vectors.get(where, ["doc_a"])
    assert vectors.open(where).seq == 1
    assert vectors.apply(where, [Entry(2, "edit", deletes=(document(1).document_id,))]).document_count == 1


def test_readers_of_many_threads_survive_a_kill(start: Callable[..., EdgeVectors], tmp_path: Path) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=tuple(document(n) for n in range(50)))])
    vectors.flush(where)
    wrong: list[object] = []

    def read() -> None:
        try:
            for n in itertools.islice(itertools.cycle(range(50)), 200):
                ((hit,),) = vectors.search(where, [Search("text", document(n).vectors["text"], 1)])
                if hit.document_id != document(n).document_id:
                    wrong.append(hit)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    kill_hosts(vectors)
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_view_opened_again_knows_its_collections(
    start: Callable[..., EdgeVectors], tmp_path: Path, end: str
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    documents = [document(n, collection_id=f"col_{n % 2}") for n in range(10)]
    vectors.apply(where, [Entry(1, "indexes", indexes=(index("collection_id", "keyword"),))])
    vectors.apply(where, [Entry(2, "edit", upserts=tuple(documents[:5]))])
    vectors.flush(where)
    vectors.apply(where, [Entry(3, "edit", upserts=tuple(documents[5:]))])
    if end == "close":
        vectors.close()
        vectors = start()
    else:
        kill_hosts(vectors)
    vectors.open(where)
    for chosen, count in ((["col_0"], 5), (["col_0", "col_1"], 10), (["col_2"], 0)):
        assert vectors.count(where, Condition("collection_id", "in", chosen, True)) == count


def test_a_view_that_was_never_opened_is_lost(start: Callable[..., EdgeVectors], tmp_path: Path) -> None:
    vectors = start()
    for call in (vectors.count, vectors.flush, vectors.indexes):
        with pytest.raises(ViewLost):
            call(view(tmp_path))


# --- damage --------------------------------------------------------------------------------------------


@pytest.fixture
def closed_view(start: Callable[..., EdgeVectors], tmp_path: Path) -> View:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "indexes", indexes=(index("k", "keyword"),))])
    vectors.apply(where, [Entry(2, "edit", upserts=tuple(document(n, k=f"value {n}") for n in range(300)))])
    vectors.close()
    assert Path(where.location, "checksums.json").exists()
    return where


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x55]))


def _big(where: View, pattern: str) -> Path:
    return max(Path(where.location).rglob(pattern), key=lambda path: path.stat().st_blocks)


DAMAGE: dict[str, Callable[[View], None]] = {
    "a flipped byte in the vectors": lambda v: _flip(_big(v, "chunk_*.mmap"), 100),
    "a byte in what was a hole": lambda v: _flip(_big(v, "chunk_*.mmap"), 20_000_000),
    "a flipped byte in the payloads": lambda v: _flip(_big(v, "payload_storage/page_*"), 200),
    "a file is missing": lambda v: _big(v, "*.mappings").unlink(),
    "a file too many": lambda v: Path(v.location, "shard", "segments", "x").write_text("x"),
    "a file is cut": lambda v: os.truncate(_big(v, "*.mappings"), 100),
    "the shard is missing": lambda v: shutil.rmtree(Path(v.location, "shard")),
    "the mark is missing": lambda v: Path(v.location, "mark.json").unlink(),
    "the mark is garbage": lambda v: Path(v.location, "mark.json").write_text("{"),
    "the mark lies": lambda v: _edit_mark(v, seq=1),
    "the checksums are garbage": lambda v: Path(v.location, "checksums.json").write_bytes(b"\0\0"),
}


def _edit_mark(where: View, **changes: Any) -> None:
    path = Path(where.location, "mark.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_a_closed_view_is_noticed(
    closed_view: View, start: Callable[..., EdgeVectors], name: str
) -> None:
    """Qdrant Edge answered wrongly, in silence, for 4 of 60 flipped bytes."""
    DAMAGE[name](closed_view)
    vectors = start()
    with pytest.raises(ViewDamaged):
        vectors.open(closed_view)
    # Damage stays noticed until someone drops the view, and then it can be made anew.
    with pytest.raises(ViewDamaged):
        vectors.open(closed_view)
    vectors.drop(closed_view)
    assert vectors.open(closed_view).seq == 0


@pytest.mark.parametrize(
    "name", ["the shard is missing", "the mark is missing", "the mark is garbage", "a file is missing"]
)
def test_damage_after_a_kill_is_noticed(tmp_path: Path, start: Callable[..., EdgeVectors], name: str) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    vectors.flush(where)
    kill_hosts(vectors)
    DAMAGE[name](where)
    with pytest.raises(ViewDamaged):
        vectors.count(where)


def test_a_directory_removed_under_an_open_view_is_noticed(
    tmp_path: Path, start: Callable[..., EdgeVectors]
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    shutil.rmtree(where.location)
    with pytest.raises(ViewDamaged):
        vectors.open(where)
    assert vectors.open(where).seq == 0


def test_a_view_is_not_opened_under_another_name_or_with_other_vectors(
    closed_view: View, start: Callable[..., EdgeVectors]
) -> None:
    vectors = start()
    other = View("ns_2", "ns_2-1", closed_view.vectors, closed_view.location)
    with pytest.raises(ViewDamaged, match="mark is that of view"):
        vectors.open(other)
    with pytest.raises(ViewDamaged, match="other vectors"):
        vectors.open(View("ns_1", "ns_1-1", (DenseVector("text", 9),), closed_view.location))
    assert vectors.open(closed_view).document_count == 300


def test_a_view_half_made_is_made_again(closed_view: View, start: Callable[..., EdgeVectors]) -> None:
    """Killed between the mark and the shard's last file: nothing was durable, so it starts over."""
    shutil.rmtree(Path(closed_view.location, "shard", "segments"))
    _edit_mark(closed_view, seq=0, document_count=0, files=[])
    Path(closed_view.location, "checksums.json").unlink()
    assert start().open(closed_view).seq == 0


def test_two_crashed_hosts_blame_the_view(tmp_path: Path, start: Callable[..., EdgeVectors]) -> None:
    vectors, where, neighbour = start(), view(tmp_path), view(tmp_path, "ns_2-1")
    vectors.open(where)
    vectors.open(neighbour)
    for crashes in (1, 2):
        busy = threading.Thread(target=_ignore_lost, args=(vectors, where))
        pid = host_pids(vectors)[0]
        os.kill(pid, signal.SIGSTOP)
        busy.start()
        wait_until(lambda: any(host and host.waiting for host in vectors._slots))
        os.kill(pid, signal.SIGSEGV)
        os.kill(pid, signal.SIGCONT)
        busy.join()
        wait_until(lambda crashes=crashes: len(vectors._crashes.get(where.view_id, ())) == crashes)
        with_blame = None
        try:
            vectors.open(where)
        except ViewDamaged as damaged:
            with_blame = damaged
    assert with_blame is not None
    assert "crashed" in with_blame.reason
    vectors.open(neighbour)


def _ignore_lost(vectors: EdgeVectors, where: View) -> None:
    with contextlib.suppress(ViewLost):
        vectors.apply(where, [Entry(1, "edit")])


def test_an_entry_is_not_applied_ahead_of_the_one_before_it(
    start: Callable[..., EdgeVectors], tmp_path: Path
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    first = Entry(1, "edit", upserts=(document(1, k="first"),))
    second = Entry(2, "edit", upserts=(document(1, k="second"), document(2)))
    assert vectors.apply_next(where, second) is None
    assert vectors.count(where) == 0
    vectors.apply(where, [first])
    for _ in range(2):  # the second time it has it already
        mark = vectors.apply_next(where, second)
        assert mark is not None
        assert (mark.seq, mark.document_count) == (2, 2)
    with pytest.raises(QdrantError):  # what it is queued behind fails
        vectors.apply(where, [Entry(3, "artifact", artifact_path=str(tmp_path / "missing"))])
    vectors.open(where)
    assert vectors.apply_next(where, Entry(4, "edit", deletes=(document(2).document_id,))) is None
    assert [
        hit.payload.get("k") for hit in vectors.get(where, [document(n).document_id for n in (1, 2)])
    ] == [
        "second",
        None,
    ]


def test_an_artifact_is_counted_back_after_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch must not say COMPLETED because the engine said so."""
    opened = edge_host.open_view(view(tmp_path), max_scan_documents=100)
    path = tmp_path / "some.arrow"
    artifact.write(path, [document(n) for n in range(300)], {"text": DIMENSIONS})
    upsert = opened.engine.upsert
    monkeypatch.setattr(opened.engine, "upsert", lambda points: upsert(points[1:]))
    with pytest.raises(
        QdrantError,
        match=f"{300 - -(-300 // edge_host.EdgeEngine.write_slice)} of the 300 documents of entry 1",
    ):
        finish(opened.live.apply([Entry(1, "artifact", artifact_path=str(path))]))
    assert opened.live.mark().seq == 0
    monkeypatch.undo()
    finish(opened.live.apply([Entry(1, "artifact", artifact_path=str(path))]))
    assert opened.live.mark().document_count == 300
    opened.close()


def test_searches_that_differ_in_their_vector_alone_are_neighbours_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It evaluates the filter of neighbours once; the answers still go to who asked."""
    opened = edge_host.open_view(view(tmp_path), max_scan_documents=100)
    some = [document(n, half=n % 2) for n in range(20)]
    finish(opened.live.apply([Entry(1, "edit", indexes=(index("half", "integer"),), upserts=tuple(some))]))
    asked: list[list[str]] = []
    batch = qdrant_edge.QueryBatchRequest

    def noted(requests: list[qdrant_edge.QueryRequest]) -> qdrant_edge.QueryBatchRequest:
        asked.append([f"{request.limit} {request.filter}" for request in requests])
        return batch(requests)

    monkeypatch.setattr(qdrant_edge, "QueryBatchRequest", noted)
    searches = [
        Search("text", some[n].vectors["text"], limit, Condition("half", "eq", n % 2))
        for n, limit in ((0, 1), (1, 1), (2, 1), (2, 3), (3, 1), (4, 3))
    ]
    found = finish(opened.live.search(searches))
    assert [hits[0].document_id for hits in found] == [some[n].document_id for n in (0, 1, 2, 2, 3, 4)]
    (order,) = asked
    kinds = [kind for kind, _ in itertools.groupby(order)]
    assert len(kinds) == len(set(kinds)) == 3
    opened.close()


def test_checksums_are_made_when_nothing_is_written_and_taken_back_before_something_is(
    start: Callable[..., EdgeVectors], tmp_path: Path
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=tuple(document(n) for n in range(100)))])
    sums = Path(where.location, "checksums.json")
    wait_until(sums.exists, 20)
    stated = json.loads(sums.read_bytes())
    assert stated["complete"] is True
    files = {str(p.relative_to(where.location)) for p in Path(where.location).rglob("*") if p.is_file()}
    assert set(stated["files"]) == files - {"checksums.json"}
    vectors.count(where)
    vectors.search(where, [Search("text", document(1).vectors["text"], 1)])
    kill_hosts(vectors)
    assert vectors.open(where).checked
    wait_until(sums.exists, 20)
    vectors.apply(where, [Entry(2, "edit", deletes=(document(1).document_id,))])
    assert not sums.exists()
    kill_hosts(vectors)
    mark = vectors.open(where)
    assert not mark.checked
    assert vectors.apply(where, [Entry(2, "edit", deletes=(document(1).document_id,))]).document_count == 99


def test_what_no_write_changes_is_checked_even_while_something_is_written(
    start: Callable[..., EdgeVectors], tmp_path: Path
) -> None:
    """Vectors and graphs of a view that was built with graphs keep their checksums whatever is written."""
    vectors, where = start(), View("ns_1", "ns_1-1", (DenseVector("text", 64),), str(tmp_path / "ns_1-1"))
    rng = np.random.default_rng(1)

    def some(first: int, count: int) -> tuple[Document, ...]:
        return tuple(
            Document(f"doc_{n}", {"k": n}, {"text": rng.standard_normal(64).astype(np.float32)})
            for n in range(first, first + count)
        )

    assert vectors.begin(where, graph=True, apart=True).seq == 0
    vectors.apply(where, [Entry(1, "edit", upserts=some(0, 6000))])
    assert vectors.optimize(where).tail == 0
    assert vectors.settle(where).durable
    sums = Path(where.location, "checksums.json")
    wait_until(sums.exists, 20)
    assert vectors.apply(where, [Entry(2, "edit", upserts=some(5990, 20))]).tail == 20
    stated = json.loads(sums.read_bytes())
    assert stated["complete"] is False
    assert any("vector_storage" in name for name in stated["files"])
    assert any("vector_index" in name for name in stated["files"])
    vectors.flush(where)
    kill_hosts(vectors)
    assert vectors.open(where).document_count == 6010
    kill_hosts(vectors)
    _flip(_big(where, "matrix.dat"), 5000)
    with pytest.raises(ViewDamaged, match="not what they were"):
        vectors.open(where)


# --- processes -----------------------------------------------------------------------------------------


def test_more_views_than_may_be_open(tmp_path: Path, start: Callable[..., EdgeVectors]) -> None:
    vectors = start(hosts=2, max_open_views=4)
    views = [view(tmp_path, f"ns_{n}-1") for n in range(12)]
    for n, where in enumerate(views):
        vectors.open(where)
        vectors.apply(where, [Entry(1, "edit", upserts=tuple(document(m) for m in range(n)))])
    assert len(host_pids(vectors)) == 2
    for n, where in reversed(list(enumerate(views))):
        assert vectors.count(where) == n
    for n, where in enumerate(views):
        assert vectors.apply(
            where, [Entry(2, "edit", deletes=(document(0).document_id,))]
        ).document_count == max(0, n - 1)
    closed = [where for where in views if Path(where.location, "checksums.json").exists()]
    assert len(closed) == 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told its mappings")
def test_views_with_many_indexes_are_closed_before_the_system_refuses_memory(tmp_path: Path) -> None:
    """256 open views with forty indexes each would take three times the mappings that Linux grants."""
    ours, theirs = socket.socketpair()
    room = 500
    limit = edge_host.count_mappings() + room
    host = edge_host.Host(ours, max_open_views=256, max_scan_documents=100, max_mappings=limit)
    places = [view(tmp_path, f"ns_{number}-1") for number in range(40)]
    try:
        for where in places:
            host._open(where)
            host._live(where).engine.count(None)
            assert edge_host.count_mappings() < limit + room
        assert 1 <= len(host._views) < len(places)
        for where in places:  # what was closed opens again by itself
            assert host._live(where).mark().seq == 0
    finally:
        host._close_all()
        ours.close()
        theirs.close()
    assert edge_host.most_mappings()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is not told its memory")
def test_memory_follows_use_not_the_number_of_open_views(tmp_path: Path) -> None:
    """A view of a few documents with an index took 40 MiB when it was loaded again, 256 of them ten GiB."""
    ours, theirs = socket.socketpair()
    places = [view(tmp_path, f"ns_{number}-1") for number in range(6)]
    host = edge_host.Host(ours, max_open_views=256, max_scan_documents=100)
    indexes = (index("a", "keyword"), index("b", "keyword"))
    for where in places:
        live = host._open(where).live
        finish(live.apply([Entry(1, "indexes", indexes=indexes)]))
        finish(live.apply([Entry(2, "edit", upserts=tuple(document(n, a="x") for n in range(20)))]))
    host._close_all()
    room = 40 * 2**20
    limit = edge_host.resident_bytes() + room
    for bound, open_in_the_end in ((limit, 6), (1, 1)):
        host = edge_host.Host(ours, max_open_views=256, max_scan_documents=100, max_resident_bytes=bound)
        try:
            for where in places:
                host._open(where)
                assert edge_host.resident_bytes() < limit + room
                assert host._live(where).engine.count(None) == 20
            assert len(host._views) == open_in_the_end
            for (
                where
            ) in places:  # what was closed opens again by itself, what let go of its pages reads them again
                assert [
                    hit.payload["a"] for hit in host._live(where).get([document(3).document_id], True)
                ] == ["x"]
        finally:
            host._close_all()
    ours.close()
    theirs.close()


def test_a_released_view_is_closed_and_comes_back(tmp_path: Path, start: Callable[..., EdgeVectors]) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    for _ in range(2):
        vectors.release(where)
    assert Path(where.location, "checksums.json").exists()
    assert not vectors._placed and not vectors._opening
    with pytest.raises(ViewLost):
        vectors.count(where)
    assert vectors.open(where).seq == 1
    assert vectors.count(where) == 1


def test_searches_are_answered_while_a_large_entry_is_applied(
    tmp_path: Path, start: Callable[..., EdgeVectors]
) -> None:
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    path = tmp_path / "big.arrow"
    artifact.write(path, [document(n) for n in range(2000)], {"text": DIMENSIONS})
    entries = [Entry(n, "artifact", artifact_path=str(path)) for n in range(1, 6)]
    applying = threading.Thread(target=vectors.apply, args=(where, entries))
    applying.start()
    during = 0
    while applying.is_alive():
        vectors.search(where, [Search("text", document(1).vectors["text"], 1)])
        during += applying.is_alive()
    assert during >= 10


def test_large_questions_and_large_answers_may_meet_in_the_pipe(
    start: Callable[..., EdgeVectors], tmp_path: Path
) -> None:
    """A sender that kept the reader from reading waited for a host that waited to be read: for ever."""
    vectors = start()
    read, written = view(tmp_path, "ns_1-1"), view(tmp_path, "ns_2-1")

    def large(seq: int) -> Entry:
        # Texts that differ: equal ones travel once.
        return Entry(
            seq, "edit", upserts=tuple(document(n, text=f"{seq} {n} {'x' * 20_000}") for n in range(100))
        )

    for where in (read, written):
        vectors.open(where)
    vectors.apply(read, [large(1)])
    ended = time.monotonic() + 3
    failed: list[BaseException] = []

    def repeat(call: Callable[[int], object]) -> None:
        try:
            for seq in itertools.count(1):
                if time.monotonic() > ended:
                    return
                call(seq)
        except Exception as error:
            failed.append(error)

    calls: list[Callable[[int], object]] = [lambda _: vectors.page(read, Page(100))] * 6
    calls.append(lambda seq: vectors.apply(written, [large(seq)]))
    threads = [threading.Thread(target=repeat, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, ended + 15 - time.monotonic()))
    stuck = [thread for thread in threads if thread.is_alive()]
    if stuck:
        kill_hosts(vectors)
    assert not stuck
    assert not failed


def test_an_answer_that_cannot_be_read_ends_the_host_and_is_asked_for_again(
    start: Callable[..., EdgeVectors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whose answers were lost with it: without the host's end all would wait for theirs in vain."""
    vectors, where = start(), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    vectors.flush(where)
    (pid,) = host_pids(vectors)
    os.kill(pid, signal.SIGSTOP)
    outcomes: list[int] = []
    readers = [threading.Thread(target=lambda: outcomes.append(vectors.count(where))) for _ in range(4)]
    for reader in readers:
        reader.start()
    wait_until(lambda: sum(host.waiting for host in vectors._slots if host) == 4, 60)
    feed = pipe.Incoming.feed
    fails = iter([True])

    def failing(incoming: pipe.Incoming, data: bytes) -> list[tuple[Any, ...]]:
        if next(fails, False):
            raise MemoryError
        return feed(incoming, data)

    monkeypatch.setattr(pipe.Incoming, "feed", failing)
    os.kill(pid, signal.SIGCONT)
    for reader in readers:
        reader.join(60)
    assert outcomes == [1] * 4
    assert host_pids(vectors) != [pid]


def test_a_second_server_cannot_open_what_the_first_holds(
    tmp_path: Path, start: Callable[..., EdgeVectors], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, where = start(), view(tmp_path)
    first.open(where)
    second = EdgeVectors(1, 8, tmp_path / "run-of-another")
    with pytest.raises(QdrantError, match="held by another process"):
        second.open(where)
    second.close()
    first.close()


SERVER = """
    import sys, time, threading
    from pathlib import Path
    from tessera.adapters.qdrant.edge import EdgeVectors
    from tessera.ports import DenseVector, Document, Entry, View

    directory = Path(sys.argv[1])
    vectors = EdgeVectors(1, 8, directory / "run")
    where = View("ns_1", "ns_1-1", (DenseVector("text", 8),), str(directory / "views" / "ns_1-1"))

    def work():
        vectors.open(where)
        vectors.apply(where, [Entry(1, "edit", upserts=(Document("doc_a", {"document_id": "doc_a"}),))])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()  # a host outlives the thread that first needed it
    time.sleep(0.3)
    vectors.count(where)
    print(vectors._slots[0].process.pid, flush=True)
    time.sleep(60)
"""


def _start_server(directory: Path) -> tuple[subprocess.Popen[str], int]:
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert server.stdout is not None
    return server, int(server.stdout.readline())


def _runs(pid: int) -> bool:
    return edge._process_identity(pid) is not None


def test_a_host_dies_with_its_server_and_leaves_the_view(
    tmp_path: Path, start: Callable[..., EdgeVectors]
) -> None:
    server, host = _start_server(tmp_path)
    assert _runs(host)
    os.kill(host, signal.SIGINT)  # Ctrl-C reaches hosts as well: the server decides when they end
    os.kill(host, signal.SIGTERM)
    time.sleep(0.1)
    assert _runs(host)
    server.kill()
    server.wait()
    wait_until(lambda: not _runs(host), 2)
    vectors = start()
    vectors.open(view(tmp_path))
    vectors.apply(view(tmp_path), [Entry(1, "edit", upserts=(Document("doc_a", {"document_id": "doc_a"}),))])
    assert vectors.count(view(tmp_path)) == 1


def test_the_next_server_ends_hosts_that_were_left_behind(
    tmp_path: Path, start: Callable[..., EdgeVectors]
) -> None:
    """Where there is no parent-death signal, a host that is busy outlives a killed server."""
    run = tmp_path / "run"
    run.mkdir()
    left_behind = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", edge.HOST_MODULE], start_new_session=True
    )
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    wait_until(lambda: edge._process_identity(left_behind.pid) is not None)
    edge._record_process(run, left_behind.pid)
    (run / f"edge-host-{innocent.pid}.json").write_text(json.dumps({"pid": innocent.pid, "started": "1"}))
    (run / "edge-host-999.json").write_text("garbage")
    reaper = threading.Thread(target=left_behind.wait)
    reaper.start()
    start()
    reaper.join(5)
    assert left_behind.poll() == -signal.SIGKILL
    assert innocent.poll() is None
    assert list(run.iterdir()) == []
    innocent.kill()
    innocent.wait()


def test_closing_twice_is_fine_and_nothing_is_left_running(
    tmp_path: Path, start: Callable[..., EdgeVectors]
) -> None:
    vectors, where = start(hosts=2), view(tmp_path)
    vectors.open(where)
    (pid,) = host_pids(vectors)
    vectors.close()
    vectors.close()
    assert not _runs(pid)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_late_word_that_a_view_is_lost_leaves_its_new_place_alone(
    start: Callable[..., EdgeVectors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Whoever heard late forgot where the view was opened since; a second host was asked, which cannot have it."""
    vectors, where = start(hosts=2), view(tmp_path)
    vectors.open(where)
    vectors.apply(where, [Entry(1, "edit", upserts=(document(1),))])
    host = vectors._placed[where.view_id].host
    request = host.request

    def late(*arguments: Any) -> Any:
        try:
            return request(*arguments)
        except ViewLost:
            vectors.open(where)  # as another thread does
            raise

    host.request("release", where, None, 60)
    with monkeypatch.context() as patch, pytest.raises(ViewLost):
        patch.setattr(host, "request", late)
        if operation == "read":
            vectors.count(where)
        else:
            vectors.apply_next(where, Entry(2, "edit", upserts=(document(2),)))
    assert vectors.count(where) == 1
    assert vectors.apply(where, [Entry(2, "edit", upserts=(document(2),))]).document_count == 2
