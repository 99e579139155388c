"""Plans are kept while nothing is committed: the version that they are kept under, and changes seen at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tessera import retriever_plan, retrievers
from tessera.context import Warehouse
from tessera.db.engine import Database
from tessera.db.version import DataVersion
from tessera.errors import NotFoundError
from tessera.models.retrievers import PatchRetrieverRequest
from tessera.plan_cache import PlanCache
from tests.unit.place import Place, opened

# --- the version -----------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with db.write() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
    yield db
    db.close()


def elsewhere(path: str, statement: str) -> None:
    """Run a statement in another process."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=30); c.execute(sys.argv[2]); c.commit()"
    subprocess.run([sys.executable, "-c", code, path, statement], check=True)


def test_the_version_moves_with_every_commit_and_with_nothing_else(db: Database, tmp_path: Path) -> None:
    at = db.version()
    assert at is not None and db.version() == at
    with db.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM t").scalar()
    with pytest.raises(ZeroDivisionError), db.write() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        assert db.version() == at, "not before it is committed"
        raise ZeroDivisionError
    assert db.version() == at
    seen = {at}
    for number in range(3):
        with db.write() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        assert db.version() not in seen
        seen.add(db.version())
        elsewhere(str(tmp_path / "x.sqlite3"), "INSERT INTO t VALUES (7)")
        assert db.version() not in seen
        seen.add(db.version())


def test_the_version_holds_no_snapshot(db: Database) -> None:
    """Else the log could never be emptied, and nothing would ever seem to change."""
    for _ in range(3):
        assert db.version() is not None
        assert db.forget_deleted()
        before = db.version()
        with db.write() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        assert db.version() != before


def test_a_connection_that_broke_makes_other_versions(db: Database) -> None:
    seen = {db.version()}
    assert db._version is not None
    db._version._kept.dbapi_connection.close()
    assert db.version() is None, "nothing is known: rows are read"
    assert (found := db.version()) is not None and found not in seen
    db.close()
    assert db.version() is None


def test_a_read_is_shared_only_with_calls_before_it(monkeypatch: pytest.MonkeyPatch, db: Database) -> None:
    version = DataVersion(db.engine)
    begun, go_on = threading.Event(), threading.Event()
    numbers = iter(range(1, 10))

    def read() -> tuple[int, int]:
        number = next(numbers)
        if number == 1:
            begun.set()
            assert go_on.wait(60)
        return 0, number

    monkeypatch.setattr(version, "_read", read)
    got: list[Any] = []
    first = threading.Thread(target=lambda: got.append(version.read()))
    first.start()
    assert begun.wait(60)
    later: list[Any] = []
    others = [threading.Thread(target=lambda: later.append(version.read())) for _ in range(4)]
    for thread in others:
        thread.start()
    go_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert got == [(0, 1)]
    assert len(later) == 4 and min(later) > (0, 1), "what began before them may be too old for them"


def test_many_threads_see_what_was_committed_before_they_asked(db: Database) -> None:
    committed = [db.version()]
    stop = threading.Event()
    wrong: list[Any] = []

    def look() -> None:
        while not stop.is_set():
            past = len(committed) - 1
            if (found := db.version()) in committed[:past]:
                wrong.append((found, past))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(60):
        with db.write() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        committed.append(db.version())
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(set(committed)) == len(committed)


# --- the cache itself ------------------------------------------------------------------------------------


def test_a_plan_is_good_for_its_version_only() -> None:
    cache = PlanCache()
    cache.put((1, 5), "key", 10, "plan")
    assert cache.get((1, 5), "key") == "plan"
    assert cache.get((1, 5), "other") is None
    assert cache.get((1, 6), "key") is None and cache.get((2, 5), "key") is None
    cache.put(None, "unknown", 10, "plan")
    assert cache.get(None, "unknown") is None
    cache.put((1, 6), "key", 10, "later")
    assert cache.get((1, 5), "key") is None and cache.get((1, 6), "key") == "later"


def test_memory_is_bounded_and_the_least_recent_goes_first() -> None:
    cache = PlanCache(100_000)
    for number in range(19):
        cache.put(1, number, 1000, number)
    assert cache.get(1, 0) == 0
    cache.put(1, "new", 1000, "new")
    assert cache.get(1, 0) == 0 and cache.get(1, 1) is None
    cache.put(1, "huge", 20_000, "huge")
    assert cache.get(1, "huge") is None, "one that would push out many"


# --- what is executed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with opened(tmp_path_factory.mktemp("plans") / "data") as wh:
        yield wh


@pytest.fixture
def place(warehouse: Warehouse, request: pytest.FixtureRequest) -> Place:
    """A namespace of the test's own."""
    place = Place(warehouse, request.node.name[:60])
    place.put("d1", 1)
    return place


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The identifiers of retrievers whose rows were read."""
    reads: list[str] = []
    plain = retriever_plan.find

    def find(connection: sa.Connection, namespace_id: str, identifier: str) -> Any:
        reads.append(identifier)
        return plain(connection, namespace_id, identifier)

    monkeypatch.setattr(retriever_plan, "find", find)
    return reads


def until_kept(reads: list[str], ask: Callable[[], object]) -> None:
    """Ask until it is answered without reading a row; what is written behind may come in between."""
    deadline = time.monotonic() + 60
    while True:
        ask()
        count = len(reads)
        ask()
        if len(reads) == count:
            return
        assert time.monotonic() < deadline, "no plan is ever kept"


def renamed(place: Place, old: str, new: str) -> None:
    request = PatchRetrieverRequest.model_validate({"retriever_name": new})
    retrievers.patch(place.wh, place.me, place.namespace, old, request)


def test_a_kept_plan_is_not_read_again_and_a_change_is_seen(place: Place, reads: list[str]) -> None:
    place.retriever = "r"
    until_kept(reads, place.ask)
    place.put("d2", 2)
    assert place.ask()[1] == [1, 2]
    until_kept(reads, place.ask)
    renamed(place, "r", "s")
    with pytest.raises(NotFoundError):
        place.ask()
    place.retriever = "s"
    assert place.ask()[1] == [1, 2]


def test_a_write_of_another_process_is_seen(place: Place, reads: list[str]) -> None:
    place.retriever = "r"
    until_kept(reads, place.ask)
    path = str(place.wh.settings.data / "tessera.sqlite3")
    elsewhere(path, f"UPDATE retrievers SET retriever_name = 't' WHERE namespace_id = '{place.namespace}'")
    with pytest.raises(NotFoundError):
        place.ask()


def test_what_is_committed_while_a_plan_is_made_is_seen_by_the_next(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, done = retriever_plan.find, []

    def find(connection: sa.Connection, namespace_id: str, identifier: str) -> Any:
        row = plain(connection, namespace_id, identifier)
        if not done:
            done.append(row)
            renamed(place, "r", "s")
        return row

    monkeypatch.setattr(retriever_plan, "find", find)
    place.retriever = "r"
    assert place.ask()[1] == [1], "it had begun before"
    with pytest.raises(NotFoundError):
        place.ask()


def test_an_unknown_version_reads_the_rows_each_time(
    place: Place, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on PostgreSQL."""
    monkeypatch.setattr(place.wh.db, "version", lambda: None)
    for _ in range(3):
        assert place.ask()[1] == [1]
    assert len(reads) == 3
