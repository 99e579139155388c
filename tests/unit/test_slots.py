"""Slots: numbered from 0, each one server's at a time, another's when its heartbeat has run out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tessera.db.engine import Database
from tessera.slots import FILE_NAME, Slot, Slots


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Slots]]:
    """A function that opens what one of several servers on the same database opens."""
    db = Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")
    opened: list[Slots] = []

    def make(lease_s: float = 60, *, is_alone: bool = False) -> Slots:
        opened.append(Slots(db, lease_s, is_alone=is_alone))
        return opened[-1]

    yield make
    for slots in opened:
        slots.close()
    db.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_lowest_free_number_is_claimed(server: Callable[..., Slots]) -> None:
    slots = server()
    first, second, third = (slots.claim() for _ in range(3))
    assert [first.number, second.number, third.number] == [0, 1, 2]
    assert slots.alive() == {first.token, second.token, third.token}
    slots.release(second)
    again = slots.claim()
    assert again.number == 1
    assert again.token != second.token
    assert slots.alive() == {first.token, third.token, again.token}


def test_a_slot_that_is_not_renewed_becomes_anothers(server: Callable[..., Slots]) -> None:
    quick, patient = server(0.2), server(60)
    lost, kept = quick.claim(), patient.claim()
    until(lambda: patient.alive() == {kept.token})
    taken = patient.claim()
    assert (lost.number, taken.number) == (0, 0)
    assert not quick.renew(lost), "who stood still is told"
    assert patient.renew(taken)
    quick.release(lost)
    assert patient.alive() == {kept.token, taken.token}, "nor can it give back what it has not"


def test_a_late_heartbeat_counts_as_long_as_nobody_came(server: Callable[..., Slots]) -> None:
    slots = server(0.2)
    late = slots.claim()
    until(lambda: slots.alive() == set())
    assert slots.renew(late)
    assert slots.alive() == {late.token}


def test_servers_that_start_together_get_slots_of_their_own(server: Callable[..., Slots]) -> None:
    ready = threading.Barrier(8)
    claimed: list[Slot] = []

    def start(slots: Slots) -> None:
        ready.wait(10)
        claimed.append(slots.claim())

    threads = [threading.Thread(target=start, args=(server(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(slot.number for slot in claimed) == list(range(8))


def test_who_is_alone_waits_for_nobody(server: Callable[..., Slots], tmp_path: Path) -> None:
    """A killed server's slot would have held up its batches for the rest of its lease; and a damaged file, all."""
    server().claim()
    assert server(is_alone=True).claim().number == 0
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"{FILE_NAME}{suffix}").write_bytes(b"damaged" * 1000)
    assert server(is_alone=True).claim().number == 0


def test_the_lowest_live_slot_leads(server: Callable[..., Slots]) -> None:
    quick, patient = server(0.2), server(60)
    first, second = quick.claim(), patient.claim()
    assert quick.leads(first) and not patient.leads(second)
    until(lambda: patient.leads(second))
    assert not quick.leads(first), "its heartbeat has run out"
