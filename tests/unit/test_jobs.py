"""What runs when: purges beside batches, fair turns, rests instead of waiting threads, several servers.

Real tables, toy work.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tessera import erasure, ingest, ingest_attempt, jobs, namespaces
from tessera.config import Settings
from tessera.context import Warehouse
from tessera.db import tables
from tessera.db.engine import now
from tessera.errors import BadRequestError, QdrantError, StorageError
from tessera.wiring import close_warehouse, open_warehouse
from tests.unit.rows import insert_namespace


class Place:
    """A warehouse whose tables say what there is to do, and jobs that are told to look."""

    def __init__(self, wh: Warehouse) -> None:
        self.wh = wh
        self.jobs = wh.jobs
        assert isinstance(self.jobs, jobs.Jobs)

    def namespace(self, name: str, *batch_ids: str, limit: int = 100, **columns: Any) -> None:
        """Make a namespace and its batches, PENDING unless `columns` say otherwise."""
        at = now()
        with self.wh.db.write() as connection:
            insert_namespace(connection, name, name, infrastructure={"max_concurrent_jobs": limit})
            for batch_id in batch_ids:
                connection.execute(
                    tables.batches.insert().values(
                        batch_id=batch_id,
                        namespace_id=name,
                        bucket_id="bkt_1",
                        object_ids=[],
                        collection_ids=[],
                        submitted_at=now(),
                        created_at=at,
                        updated_at=at,
                        **{"status": "PENDING", **columns},
                    )
                )

    def purges(self, *names: str) -> None:
        with self.wh.db.write() as connection:
            for name in names:
                connection.execute(
                    tables.purges.insert().values(
                        namespace_id=name,
                        organization_id="org_1",
                        task_id="tsk_1",
                        targets={"view_ids": []},
                        created_at=now(),
                    )
                )

    def start(self) -> None:
        self.jobs.start(self.wh)

    def status(self, batch_id: str) -> str:
        return str(self.batch(batch_id).status)

    def batch(self, batch_id: str) -> Any:
        with self.wh.db.read() as connection:
            return connection.execute(
                sa.select(tables.batches).where(tables.batches.c.batch_id == batch_id)
            ).one()


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Set when the test is over: toy work that waits for it ends then."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def place(tmp_path: Path, ended: threading.Event) -> Iterator[Callable[..., Place]]:
    opened: list[Warehouse] = []

    def make(job_threads: int = 1, name: str = "", **settings: Any) -> Place:
        asked = Settings(data=tmp_path / name, job_threads=job_threads, **settings)
        opened.append(open_warehouse(asked, run_jobs=False))
        return Place(opened[-1])

    yield make
    ended.set()
    for wh in opened:
        close_warehouse(wh)


@pytest.fixture
def run_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], None]], list[str]]:
    """Let batches do something else, and note in which order they were started; one that returns is done."""

    def use(work: Callable[[str], None]) -> list[str]:
        started: list[str] = []

        def run(wh: Warehouse, claim: ingest_attempt.Claim, _stop: ingest_attempt.Stop) -> None:
            started.append(claim.batch_id)
            work(claim.batch_id)
            with wh.db.write() as connection:
                connection.execute(
                    sa.update(tables.batches)
                    .where(tables.batches.c.batch_id == claim.batch_id)
                    .values(status="COMPLETED")
                )

        monkeypatch.setattr(ingest, "run_batch", run)
        return started

    return use


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_purges_that_take_long_hold_up_no_batch(
    place: Callable[..., Place],
    run_batch: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    ended: threading.Event,
) -> None:
    monkeypatch.setattr(namespaces, "purge", lambda *_: ended.wait(20))
    started = run_batch(lambda _: None)
    here = place(job_threads=2)
    here.purges(*(f"ns_gone{n}" for n in range(10)))
    here.namespace("ns_a", "bat_1")
    here.start()
    until(lambda: started == ["bat_1"])


def test_batches_hold_up_no_purge(
    place: Callable[..., Place],
    run_batch: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    ended: threading.Event,
) -> None:
    purged = threading.Event()
    monkeypatch.setattr(namespaces, "purge", lambda *_: purged.set())
    started = run_batch(lambda _: ended.wait(20) and None)
    here = place(job_threads=1)
    here.namespace("ns_a", "bat_1")
    here.start()
    until(lambda: started == ["bat_1"])
    here.purges("ns_gone")
    here.jobs.wake()
    assert purged.wait(4)


def test_a_batch_that_waits_for_better_times_takes_nobodys_turn(
    place: Callable[..., Place], run_batch: Callable[..., list[str]]
) -> None:
    """One broken index kept every thread asleep, and all other namespaces with it."""

    def work(batch_id: str) -> None:
        if batch_id == "bat_broken":
            raise QdrantError("The index is not there now.")

    started = run_batch(work)
    here = place(job_threads=1)
    here.namespace("ns_broken", "bat_broken")
    here.namespace("ns_good", "bat_1", "bat_2")
    here.start()
    until(lambda: started[:3] == ["bat_broken", "bat_1", "bat_2"], timeout_s=0.9)
    assert here.status("bat_broken") == "IN_PROGRESS"
    until(lambda: started.count("bat_broken") == 2)  # its turn comes again


@pytest.mark.parametrize(
    ("error", "tries"), [(QdrantError("no"), 3), (StorageError("no"), 3), (BadRequestError("no"), 1)]
)
def test_what_may_pass_is_tried_again_and_ends_after_all(
    place: Callable[..., Place],
    run_batch: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tries: int,
) -> None:
    monkeypatch.setattr(jobs, "RETRY_AFTER_S", (0.05, 0.05))

    def work(_: str) -> None:
        raise error

    started = run_batch(work)
    here = place()
    here.namespace("ns_a", "bat_1")
    here.start()
    until(lambda: here.status("bat_1") == "FAILED")
    assert len(started) == tries


def test_a_job_that_fails_for_a_reason_of_ours_does_not_spin(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def purge(_: Warehouse, namespace_id: str) -> None:
        calls.append(namespace_id)
        raise RuntimeError("a defect")

    monkeypatch.setattr(jobs, "REST_S", 0.3)
    monkeypatch.setattr(namespaces, "purge", purge)
    here = place()
    here.purges("ns_gone")
    here.start()
    time.sleep(1)
    assert 2 <= len(calls) <= 4
    assert here.jobs.is_running()


def test_a_namespace_with_many_batches_leaves_room_for_others(
    place: Callable[..., Place], run_batch: Callable[..., list[str]], ended: threading.Event
) -> None:
    started = run_batch(lambda _: ended.wait(20) and None)
    here = place(job_threads=3)
    here.namespace("ns_many", *(f"bat_{n:02}" for n in range(20)))
    here.namespace("ns_few", "bat_few")
    here.start()
    until(lambda: len(started) == 3)
    assert sorted(started) == ["bat_00", "bat_01", "bat_few"]


# --- several servers -------------------------------------------------------------------------------------


def test_two_servers_keep_one_limit_and_take_up_nothing_twice(
    place: Callable[..., Place], run_batch: Callable[..., list[str]], tmp_path: Path
) -> None:
    lock = threading.Lock()
    now_running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    def work(batch_id: str) -> None:
        namespace = batch_id.partition("-")[0]
        with lock:
            now_running[namespace] += 1
            most[namespace] = max(most[namespace], now_running[namespace])
        time.sleep(0.02)
        with lock:
            now_running[namespace] -= 1

    started = run_batch(work)
    shared = {"database_url": f"sqlite:///{tmp_path / 'shared.sqlite3'}", "job_lease_s": 60}
    servers = [place(4, name, **shared) for name in ("a", "b")]
    asked = [f"{name}-{number:02}" for name in ("one", "three") for number in range(30)]
    for name, limit in (("one", 1), ("three", 3)):
        servers[0].namespace(name, *(batch for batch in asked if batch.startswith(f"{name}-")), limit=limit)
    for server in servers:
        server.start()
    until(lambda: all(servers[0].status(batch) == "COMPLETED" for batch in asked), timeout_s=60)
    assert sorted(started) == sorted(asked)
    assert most == {"one": 1, "three": 3}
    assert [batch for batch in started if batch.startswith("one-")] == [a for a in asked if a[:4] == "one-"]


def test_one_of_two_servers_erases_and_the_other_goes_on_when_it_ends(
    place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[Warehouse] = []

    def erase(wh: Warehouse, _task_id: str, stop: threading.Event) -> None:
        begun.append(wh)
        stop.wait(20)

    monkeypatch.setattr(erasure, "erase", erase)
    shared = {"database_url": f"sqlite:///{tmp_path / 'shared.sqlite3'}", "job_lease_s": 3}
    servers = [place(1, name, **shared) for name in ("a", "b")]
    servers[0].namespace("ns_a")
    with servers[0].wh.db.write() as connection:
        connection.execute(
            tables.erasures.insert().values(
                task_id="tsk_1", namespace_id="ns_a", targets={}, report={}, due_at=now(), created_at=now()
            )
        )
    for server in servers:
        server.start()
    until(lambda: len(begun) > 0, timeout_s=20)
    time.sleep(1.5)  # the other one looks several times
    assert len(begun) == 1
    first = next(server for server in servers if server.wh is begun[0])
    other = next(server for server in servers if server is not first)
    first.jobs.stop()
    until(lambda: begun[1:] == [other.wh], timeout_s=20)


def test_the_batches_of_a_server_that_ended_are_taken_up(
    place: Callable[..., Place], run_batch: Callable[..., list[str]], ended: threading.Event
) -> None:
    started = run_batch(lambda _: ended.wait(20) and None)
    here = place(job_threads=4)
    here.namespace("ns_a", "bat_1", status="IN_PROGRESS", holder="slot_gone", attempt=4)
    here.start()
    until(lambda: started == ["bat_1"])
    batch = here.batch("bat_1")
    assert (batch.attempt, batch.crashes) == (5, 1)
    assert batch.holder not in (None, "slot_gone")


def test_a_batch_that_is_ours_by_name_only_is_taken_up(
    place: Callable[..., Place], run_batch: Callable[..., list[str]]
) -> None:
    """The database failed between taking up and starting, or when the batch was to be let go."""
    started = run_batch(lambda _: None)
    here = place()
    here.namespace("ns_a", "bat_1")
    here.start()
    until(lambda: here.status("bat_1") == "COMPLETED")
    token = here.batch("bat_1").holder
    here.namespace("ns_b", "bat_2", status="IN_PROGRESS", holder=token, attempt=1)
    here.jobs.wake()
    until(lambda: here.status("bat_2") == "COMPLETED")
    assert started == ["bat_1", "bat_2"]
    assert here.batch("bat_2").crashes == 0


def test_a_lowered_limit_lets_nothing_start_before_it_is_kept(
    place: Callable[..., Place], run_batch: Callable[..., list[str]]
) -> None:
    here = place(job_threads=8)
    open_gates = {f"bat_{n}": threading.Event() for n in range(6)}
    started = run_batch(lambda batch_id: open_gates[batch_id].wait(20) and None)
    here.namespace("ns_a", *open_gates, limit=3)
    here.start()
    until(lambda: len(started) == 3)
    with here.wh.db.write() as connection:
        connection.execute(sa.update(tables.namespaces).values(infrastructure={"max_concurrent_jobs": 1}))
    for number in range(3):
        assert len(started) == 3
        open_gates[started[number]].set()
        until(lambda number=number: here.status(started[number]) == "COMPLETED")  # type: ignore[misc]
    until(lambda: len(started) == 4)
    for gate in open_gates.values():
        gate.set()
    until(lambda: here.status("bat_5") == "COMPLETED")


def test_a_batch_that_ended_three_servers_is_given_up_and_no_other(
    place: Callable[..., Place], run_batch: Callable[..., list[str]]
) -> None:
    started = run_batch(lambda _: None)
    here = place(job_threads=4)
    here.namespace("ns_a", "bat_bad", status="IN_PROGRESS", holder="slot_gone", crashes=2)
    here.namespace("ns_b", "bat_good", status="IN_PROGRESS", holder="slot_gone", crashes=0)
    here.start()
    until(lambda: (here.status("bat_bad"), here.status("bat_good")) == ("FAILED", "COMPLETED"))
    assert started == ["bat_good"]
    assert "3 times in a row the server ended" in here.batch("bat_bad").error


def test_batches_under_suspicion_run_one_at_a_time(
    place: Callable[..., Place], run_batch: Callable[..., list[str]], ended: threading.Event
) -> None:
    """When the next server ends, it is known which of them was the cause."""
    gates = {f"bat_{n}": threading.Event() for n in range(3)}
    started = run_batch(lambda batch_id: gates.get(batch_id, ended).wait(20) and None)
    here = place(job_threads=8)
    here.namespace("ns_a", *gates, status="IN_PROGRESS", crashes=2)
    here.namespace("ns_b", "bat_new")
    here.start()
    for number in range(3):
        until(lambda number=number: len(started) == number + 2)  # type: ignore[misc]
        suspects = [batch_id for batch_id in started if batch_id in gates]
        assert len(suspects) == number + 1
        gates[suspects[-1]].set()


# --- what it costs ---------------------------------------------------------------------------------------


def test_three_hundred_namespaces_cost_no_thread_and_rest_costs_next_to_nothing(
    place: Callable[..., Place], run_batch: Callable[..., list[str]]
) -> None:
    names: set[str] = set()

    def work(_: str) -> None:
        names.update(thread.name for thread in threading.enumerate())

    run_batch(work)
    here = place(job_threads=4)
    batch_ids = [f"bat_{number}" for number in range(300)]
    for number, batch_id in enumerate(batch_ids):
        here.namespace(f"ns_{number}", batch_id, limit=number + 1)
    here.start()
    until(lambda: here.status("bat_299") == here.status("bat_150") == "COMPLETED", timeout_s=60)
    until(lambda: all(here.status(batch_id) == "COMPLETED" for batch_id in batch_ids), timeout_s=60)
    ours = {name for name in names if name.startswith(("job", "purge"))}
    assert len(ours) <= 2 + 4 + jobs.PURGE_THREADS, ours
    used, begun = time.process_time(), time.monotonic()
    time.sleep(2)
    share = (time.process_time() - used) / (time.monotonic() - begun)
    print(f"idle: {100 * share:.2f} % of a core")
    assert share < 0.05
