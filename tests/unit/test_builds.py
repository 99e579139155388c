"""The builder and its checks, over the real engine: views made beside those that answer, kills, damage."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tessera import artifact, log, views
from tessera.db.engine import now
from tessera.db.tables import doomed_views, namespaces
from tessera.log import State, fold
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import Document, Mark, Page, Search, View
from tests.unit.rows import insert_namespace
from tests.unit.test_views import NAMESPACE, Place

DIMENSIONS = 32
ROOT = Path(__file__).parents[2]


def document(number: int, *, word: str = "old") -> Document:
    rng = np.random.default_rng(number)
    center = np.random.default_rng(number % 20).standard_normal(DIMENSIONS)
    vector = (center + 0.5 * rng.standard_normal(DIMENSIONS)).astype(np.float32)
    payload = {"document_id": f"doc_{number}", "n": number, "word": f"{word} {number % 7}"}
    return Document(f"doc_{number}", payload, {"v": vector})


def index(field_name: str, type: str) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)]().model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


def make(folder: Path) -> Place:
    """A namespace with vectors of 32 dimensions, and its log's first entry."""
    here = Place(folder)
    with here.db.write() as connection:
        insert_namespace(
            connection, NAMESPACE, vectors=[{"name": "v", "dimensions": DIMENSIONS, "distance": "cosine"}]
        )
        log.append_indexes(connection, NAMESPACE, [index("n", "integer")])
    return here


def fill(place: Place, first: int, count: int) -> int:
    """Append artifacts of `count` documents from number `first` on; return the last entry's number."""
    seq = 0
    for start in range(first, first + count, 1000):
        key = f"{NAMESPACE}/artifacts/{start}"
        documents = [document(n) for n in range(start, min(start + 1000, first + count))]
        artifact.write(place.blobs.new_path(key), documents, {"v": DIMENSIONS})
        with place.db.write() as connection:
            seq = log.append_artifact(connection, NAMESPACE, key)
    return seq


def logged(place: Place) -> State:
    with place.db.read() as connection:
        return fold(log.read(connection, NAMESPACE, after=0, limit=1_000_000, local_path=place.blobs.path))


def assert_equals_log(place: Place) -> None:
    """The view holds the log's documents with their payloads, and finds by exact search what numpy finds."""
    state = logged(place)
    found, after = {}, None
    while True:
        page = place.views.page(NAMESPACE, Page(1000, after=after))
        found |= {hit.document_id: hit.payload for hit in page.hits}
        if (after := page.next_after) is None:
            break
    assert found == {id: document.payload for id, document in state.documents.items()}
    assert place.views.count(NAMESPACE) == len(found)
    names = list(state.documents)
    matrix = np.stack([state.documents[name].vectors["v"] for name in names])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    rng = np.random.default_rng(5)
    for query in rng.standard_normal((5, DIMENSIONS)).astype(np.float32):
        (hits,) = place.views.search(NAMESPACE, [Search("v", query, 10, exact=True)])
        scores = np.sort(matrix @ (query / np.linalg.norm(query)))[::-1][:10]
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-5)
    assert {report.field_name for report in place.views.indexes(NAMESPACE)} == {
        index.field_name for index in state.indexes
    }


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    here = make(tmp_path)
    yield here
    here.stop()
    here.db.close()


def doomed(place: Place) -> dict[str, str]:
    with place.db.read() as connection:
        return {row.view_id: row.due_at for row in connection.execute(sa.select(doomed_views))}


def directories(place: Place) -> set[str]:
    return {path.name for path in (place.folder / "views").iterdir()}


# --- building beside -----------------------------------------------------------------------------------


def test_a_large_view_gets_its_graph_while_everything_goes_on(place: Place) -> None:
    """Documents are written, changed and deleted, an index is added; the view after the switch is the log's fold."""
    place.views._graph_from_bytes = 500_000
    wrong: list[object] = []
    stop = threading.Event()

    def read() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            query = rng.standard_normal(DIMENSIONS).astype(np.float32)
            try:
                (hits,) = place.views.search(NAMESPACE, [Search("v", query, 5)])
                wrong.extend(["few"] * (len(hits) != 5))
            except Exception as error:
                wrong.append(error)

    def write() -> None:
        rng = random.Random(2)
        for number in itertools.count():
            if stop.is_set():
                return
            gone = (f"doc_{rng.randrange(5000)}",)
            some = document(rng.randrange(5000), word="new")
            place.views.apply(NAMESPACE, place.write(some, document(20_000 + number), deletes=gone))
            if number == 20:
                with place.db.write() as connection:
                    log.append_indexes(connection, NAMESPACE, [index("n", "integer"), index("word", "text")])

    place.views.apply(NAMESPACE, fill(place, 0, 5000))
    threads = [threading.Thread(target=read), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    assert place.views.wait_for_build(NAMESPACE, 90)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    place.views.apply(NAMESPACE)
    assert place.views.wait_for_build(NAMESPACE, 90)
    assert_equals_log(place)
    row = place.row()
    assert row.view_id != f"{NAMESPACE}-1"
    # Whoever still reads the view before the switch can: it is dropped later.
    assert doomed(place)[f"{NAMESPACE}-1"] > now()
    assert row.view_id not in doomed(place)
    assert {f"{NAMESPACE}-1", row.view_id} <= directories(place)

    # What is written is searched beside the graph; what it finds is nearly all there is to be found.
    documents = logged(place).documents
    matrix = np.stack([each.vectors["v"] for each in documents.values()])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    found = 0
    for number in range(100):
        query = document(50_000 + number).vectors["v"]
        (hits,) = place.views.search(NAMESPACE, [Search("v", query, 10)])
        best = np.argsort(matrix @ query)[::-1][:10]
        found += len({list(documents)[n] for n in best} & {hit.document_id for hit in hits})
    assert found >= 990
    place.stop()
    place.start()
    assert_equals_log(place)
    assert place.row().view_id == row.view_id


def test_indexes_over_many_documents_are_made_beside(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making them in place held everything in that process up for as long as it took."""
    monkeypatch.setattr(views, "INDEX_IN_PLACE_DOCUMENTS", 500)
    place.views.apply(NAMESPACE, fill(place, 0, 1000))
    with place.db.write() as connection:
        seq = log.append_indexes(connection, NAMESPACE, [index("n", "integer"), index("word", "keyword")])
    assert place.views.apply(NAMESPACE, seq).behind
    assert place.views.wait_for_build(NAMESPACE, 60)
    assert place.row().view_id == f"{NAMESPACE}-2"
    assert_equals_log(place)
    # Taking one away is done at once.
    with place.db.write() as connection:
        seq = log.append_indexes(connection, NAMESPACE, [index("word", "keyword")])
    assert not place.views.apply(NAMESPACE, seq).behind
    assert_equals_log(place)
    assert place.row().view_id == f"{NAMESPACE}-2"


def test_an_index_change_that_was_passed_over_is_not_forgotten(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "INDEX_IN_PLACE_DOCUMENTS", 500)
    place.views.apply(NAMESPACE, fill(place, 0, 1000))
    with place.db.write() as connection:
        seq = log.append_indexes(connection, NAMESPACE, [index("word", "keyword")])

    def begin(view: View, *, graph: bool, apart: bool) -> Mark:
        raise OSError("no space left")

    monkeypatch.setattr(place.vectors, "begin", begin)
    assert place.views.apply(NAMESPACE, seq).behind
    assert place.views.wait_for_build(NAMESPACE, 60)
    assert place.row().view_id == f"{NAMESPACE}-1"
    place.stop()
    place.start()
    assert place.views.count(NAMESPACE) == 1000
    assert place.views.wait_for_build(NAMESPACE, 60)
    assert_equals_log(place)


def test_a_namespace_that_is_purged_while_its_view_is_built_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.views.apply(NAMESPACE, fill(place, 0, 1000))
    optimize, building, go_on = place.vectors.optimize, threading.Event(), threading.Event()

    def slowly(view: View) -> Mark:
        building.set()
        go_on.wait(30)
        return optimize(view)

    monkeypatch.setattr(place.vectors, "optimize", slowly)
    place.views._graph_from_bytes = 1
    place.views.request_build(NAMESPACE)
    assert building.wait(30)
    generation = place.row().generation
    with place.db.write() as connection:
        connection.execute(sa.delete(namespaces))
    place.views.purge(NAMESPACE, [f"{NAMESPACE}-{n + 1}" for n in range(generation)])
    assert directories(place) == set()
    go_on.set()
    assert place.views.wait_for_build(NAMESPACE, 30)
    assert directories(place) == set()
    assert doomed(place) == {}


# --- kills ---------------------------------------------------------------------------------------------

SERVER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.unit.test_builds import *

place, what = make(Path(sys.argv[1])), sys.argv[2]
place.views.apply(NAMESPACE, fill(place, 0, 1500))
for number in range(5):
    place.views.apply(NAMESPACE, place.write(document(2000 + number), deletes=(f"doc_{number}",)))
if what == "closed":
    place.stop()
elif what == "idle":
    sealed = place.folder / "views" / f"{NAMESPACE}-1" / "checksums.json"
    while not sealed.exists():
        time.sleep(0.05)
    print("ready", flush=True)
    time.sleep(60)
elif what == "busy":
    print("ready", flush=True)
    while True:
        place.views.apply(NAMESPACE, place.write(document(random.randrange(3000), word="new")))
elif what == "build":
    place.views._graph_from_bytes = 1
    place.views.request_build(NAMESPACE)
    time.sleep(60)
"""


def serve(folder: Path, what: str, failpoint: str = "") -> None:
    """Let another process make a namespace and write to it, and end it: by itself, or by SIGKILL."""
    folder.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **({"TESSERA_TEST_FAILPOINT": failpoint} if failpoint else {})},
        start_new_session=True,
    )
    assert server.stdout is not None
    if what in ("idle", "busy"):
        assert server.stdout.readline() == "ready\n"
        time.sleep(0.5 if what == "busy" else 0)
        os.killpg(server.pid, signal.SIGKILL)
    status = server.wait(60)
    assert status == (0 if what == "closed" else -signal.SIGKILL)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("build.reserved", marks=pytest.mark.slow),
        "build.filled",
        pytest.param("build.optimized", marks=pytest.mark.slow),
        "build.switched",
    ],
)
def test_a_build_that_is_killed_is_thrown_away(tmp_path: Path, point: str) -> None:
    serve(tmp_path / "data", "build", f"{point}:1:self")
    place = Place(tmp_path / "data")
    try:
        row = place.row()
        assert row.view_id == f"{NAMESPACE}-{2 if point == 'build.switched' else 1}"
        unfinished = {f"{NAMESPACE}-2"} if point != "build.switched" else set()
        due = {view_id for view_id, at in doomed(place).items() if at <= now()}
        assert due == unfinished
        for view_id in due:  # as the server's jobs do
            place.views.drop(place.views.view_at(NAMESPACE, view_id, (), None))
        assert_equals_log(place)
        assert not directories(place) & unfinished
    finally:
        place.stop()
        place.db.close()


def test_a_view_over_which_two_hosts_crash_is_set_aside(place: Place) -> None:
    """No crash loop: after the second host the files are not touched again."""
    place.views.apply(NAMESPACE, fill(place, 0, 500))
    for _ in range(2):
        host = next(host for host in place.vectors._slots if host is not None)
        os.kill(host.process.pid, signal.SIGSTOP)
        asking = threading.Thread(target=lambda: place.views.count(NAMESPACE))
        asking.start()
        while not host.waiting:
            time.sleep(0.01)
        os.kill(host.process.pid, signal.SIGSEGV)
        os.kill(host.process.pid, signal.SIGCONT)
        asking.join()
    assert_equals_log(place)
    assert place.row().view_id == f"{NAMESPACE}-2"


# --- damage --------------------------------------------------------------------------------------------


def copy(source: Path, target: Path) -> None:
    """Copy a directory with the holes in its files."""
    subprocess.run(["cp", "-a", "--sparse=always", str(source), str(target)], check=True)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data directories whose server closed them, was killed while nothing was written, and while something was."""
    folder = tmp_path_factory.mktemp("ended")
    for what in ("closed", "idle", "busy"):
        serve(folder / what, what)
    return {what: folder / what for what in ("closed", "idle", "busy")}


def _files(view: Path) -> list[Path]:
    return sorted(path for path in view.rglob("*") if path.is_file() and path.stat().st_size)


def flip(view: Path, rng: random.Random) -> str:
    path = rng.choice(_files(view))
    with path.open("r+b") as file:
        # Half of the time where there is something.
        used = os.lseek(file.fileno(), 0, os.SEEK_HOLE) if rng.random() < 0.5 else path.stat().st_size
        at = rng.randrange(max(1, used))
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ (1 << rng.randrange(8))]), at)
    return f"flipped a bit of {path.name} at {at}"


def cut(view: Path, rng: random.Random) -> str:
    path = rng.choice(_files(view))
    os.truncate(path, rng.randrange(path.stat().st_size))
    return f"cut {path.name}"


def delete(view: Path, rng: random.Random) -> str:
    path = rng.choice(_files(view))
    path.unlink()
    return f"deleted {path.name}"


def swap(view: Path, rng: random.Random) -> str:
    by_content: dict[bytes, Path] = {
        path.read_bytes()[:100_000]: path for path in rng.sample(_files(view), 8)
    }
    one, other = list(by_content.values())[:2]
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"swapped {one.name} and {other.name}"


def remove(view: Path, rng: random.Random) -> str:
    chosen = rng.choice([path for path in view.rglob("*") if path.is_dir()] + [view])
    shutil.rmtree(chosen)
    return f"removed {chosen.name}"


def add(view: Path, rng: random.Random) -> str:
    """A further generation that nobody made: the next one to be made."""
    copy(view, view.with_name(f"{NAMESPACE}-2"))
    return "a further generation, and " + flip(view, rng)


MUTATIONS = [flip, cut, delete, swap, remove, add]


@pytest.mark.parametrize(
    "seeds",
    [
        range(9),
        pytest.param(range(100, 160), marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
    ids=["9", "60"],
)
def test_damaged_files_are_noticed_and_the_view_is_rebuilt(
    ended: dict[str, Path], tmp_path: Path, seeds: range
) -> None:
    """Whatever becomes of a view's files while no server runs: the next one answers as the log says."""
    for seed in seeds:
        rng = random.Random(seed)
        what = ["closed", "idle", "busy"][seed % 3]
        folder = tmp_path / f"{seed}"
        copy(ended[what], folder)
        mutate = MUTATIONS[seed % 3 * 2 + seed // 3 % 2] if seed < 9 else rng.choice(MUTATIONS)
        done = f"seed {seed}, {what}: {mutate(folder / 'views' / f'{NAMESPACE}-1', rng)}"
        place = Place(folder)
        try:
            assert_equals_log(place)
            rebuilt = place.row()
            assert rebuilt.view_id in {f"{NAMESPACE}-2", f"{NAMESPACE}-3"}, f"not noticed: {done}"
            place.stop()
            place.start()
            assert_equals_log(place)
            assert place.row().generation == rebuilt.generation, f"rebuilt again: {done}"
        except Exception as error:
            error.add_note(done)
            raise
        finally:
            place.stop()
            place.db.close()
        shutil.rmtree(folder)


def test_an_older_copy_of_a_view_is_not_taken_for_the_view(place: Place) -> None:
    place.views.apply(NAMESPACE, fill(place, 0, 500))
    place.stop()
    view, aside = place.folder / "views" / f"{NAMESPACE}-1", place.folder / "aside"
    copy(view, aside)
    place.start()
    place.views.apply(NAMESPACE, place.write(document(1, word="newer"), deletes=("doc_2",)))
    place.stop()
    shutil.rmtree(view)
    aside.rename(view)
    place.start()
    assert_equals_log(place)
    assert place.row().view_id == f"{NAMESPACE}-2"


def test_a_view_that_was_idle_when_its_server_was_killed_is_opened_as_it_is(
    ended: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing was written since its checksums were made, so there is no reason to make it anew."""
    for what, view_id in (
        ("closed", f"{NAMESPACE}-1"),
        ("idle", f"{NAMESPACE}-1"),
        ("busy", f"{NAMESPACE}-2"),
    ):
        copy(ended[what], tmp_path / what)
        place = Place(tmp_path / what)
        try:
            assert_equals_log(place)
            assert place.row().view_id == view_id
        finally:
            place.stop()
            place.db.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_documents_are_rebuilt_in_five_minutes(tmp_path: Path) -> None:
    place = make(tmp_path)
    dimensions = 384
    with place.db.write() as connection:
        vectors = [{"name": "v", "dimensions": dimensions, "distance": "cosine"}]
        connection.execute(sa.update(namespaces).values(vectors=vectors))
    rng = np.random.default_rng(3)
    try:
        for start in range(0, 100_000, 2000):
            key = f"{NAMESPACE}/artifacts/{start}"
            block = rng.standard_normal((2000, dimensions)).astype(np.float32)
            documents = [
                Document(
                    f"doc_{start + n}", {"document_id": f"doc_{start + n}", "n": start + n}, {"v": block[n]}
                )
                for n in range(2000)
            ]
            artifact.write(place.blobs.new_path(key), documents, {"v": dimensions})
            with place.db.write() as connection:
                log.append_artifact(connection, NAMESPACE, key)
        place.views.apply(NAMESPACE)
        place.stop()
        (place.folder / "views" / f"{NAMESPACE}-1" / "mark.json").unlink()
        place.start()
        began = time.monotonic()
        mark = place.views.apply(NAMESPACE)
        taken_s = time.monotonic() - began
        print(f"rebuilt {mark.document_count:,} documents of {dimensions} dimensions in {taken_s:.1f} s")
        assert place.views.count(NAMESPACE) == 100_000
        assert place.row().view_id == f"{NAMESPACE}-2"
        assert taken_s <= 300
    finally:
        place.stop()
        place.db.close()


def test_a_namespace_from_before_there_were_keyword_indexes_gets_its_own(place: Place) -> None:
    """The view of an earlier release answers all that it could; one with the index is built from the log beside."""
    place.write(*(with_text(number, f"lamp number {number}") for number in range(50)))
    place.views.apply(NAMESPACE)
    place.stop()
    with place.db.write() as connection:  # what the migration does
        connection.execute(sa.update(namespaces).values(sparse_vectors=[{"name": "w", "fields": ["text"]}]))
    place.start()
    assert place.views.count(NAMESPACE) == 50
    assert place.views.wait_for_build(NAMESPACE, 60)
    place.views.apply(NAMESPACE, place.write(with_text(7, "a chair")))
    search = Search("w", None, 10, text="7 chair")
    (hits,) = place.views.search(NAMESPACE, [search])
    assert [hit.document_id for hit in hits] == [document(7).document_id]
    assert place.row().view_id == f"{NAMESPACE}-2"
    assert_equals_log(place)
    place.stop()
    place.start()
    assert place.views.search(NAMESPACE, [search])[0][0].score == hits[0].score


def with_text(number: int, text: str) -> Document:
    made = document(number)
    return replace(made, payload={**made.payload, "text": text})
