"""What every runner promises: results as they come, failures as values, a crash costs one item."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera import alarms
from tessera.adapters import local
from tessera.adapters.local import LocalRunner
from tessera.ports import Failed


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    runner = LocalRunner(2)
    yield runner
    runner.close()


def double(item: int) -> int:
    return 2 * item


def die_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def raise_at_three(item: int) -> int:
    if item == 3:
        raise ValueError("three is too many")
    return item


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def touch_and_sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


def decode(limit_s: float) -> tuple[float, float]:
    """Stay in code that nothing interrupts when `limit_s` is short; return what is left of the alarm else."""
    with alarms.within(60), alarms.within(limit_s):
        if limit_s < 1:
            re.fullmatch(r"(a|a)*b", "a" * 60)
    return signal.getitimer(signal.ITIMER_REAL)


def use_memory(size_mib: int) -> int:
    return len(bytearray(size_mib * 2**20))


def bring_what_cannot_travel(_item: int) -> object:
    return lambda: None


def test_every_item_comes_back_under_its_number(runner: LocalRunner) -> None:
    assert dict(runner.map(double, range(20), timeout_s=30)) == {n: 2 * n for n in range(20)}
    assert list(runner.map(double, [], timeout_s=30)) == []


def test_a_crash_costs_one_item(runner: LocalRunner) -> None:
    found = dict(runner.map(die_at_three, range(8), timeout_s=30))
    dead = found.pop(3)
    assert isinstance(dead, Failed)
    assert (dead.kind, dead.crashed, dead.retryable) == ("crash", True, True)
    assert found == {n: n for n in range(8) if n != 3}


def test_a_worker_that_dies_idle_costs_nothing(runner: LocalRunner) -> None:
    """Its pool gave up with every item that was waiting, and each of them failed."""
    pids = dict(runner.map(own_pid, range(8), timeout_s=30)).values()
    for pid in {pid for pid in pids if isinstance(pid, int)}:
        with contextlib.suppress(ProcessLookupError):  # it went with its pool
            os.kill(pid, signal.SIGKILL)
        assert dict(runner.map(double, range(8), timeout_s=30)) == {n: 2 * n for n in range(8)}


def own_pid(_item: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_workers_that_stand_still_with_the_pools_lock_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing had begun, so no time limit ran, and no worker was left that could begin."""
    monkeypatch.setattr(local, "_SILENCE_S", 3.0)
    runner = LocalRunner(2)
    try:
        pids = {pid for _, pid in runner.map(own_pid, range(8), timeout_s=30) if isinstance(pid, int)}
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert dict(runner.map(double, range(8), timeout_s=1)) == {n: 2 * n for n in range(8)}
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        runner.close()


def test_what_is_wanted_no_more_is_stopped_at_once(runner: LocalRunner, tmp_path: Path) -> None:
    stop = threading.Event()
    found: list[object] = []

    def run() -> None:
        items = [str(tmp_path / name) for name in ("first", "second", "third")]
        found.extend(runner.map(touch_and_sleep, items, timeout_s=120, stop=stop))

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "first").exists():
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert found == []
    begun = time.monotonic()
    assert dict(runner.map(double, [1], timeout_s=30)) == {0: 2}
    assert time.monotonic() - begun < 20


def test_what_the_function_raises_is_a_value(runner: LocalRunner) -> None:
    failed = dict(runner.map(raise_at_three, range(5), timeout_s=30))[3]
    assert failed == Failed("ours", "ValueError: three is too many")
    (only,) = dict(runner.map(bring_what_cannot_travel, [1], timeout_s=30)).values()
    assert isinstance(only, Failed)


def test_time_runs_out_for_one_item_alone(runner: LocalRunner) -> None:
    found = dict(runner.map(sleep, [0.0, 60.0, 0.1], timeout_s=2))
    late = found.pop(1)
    assert isinstance(late, Failed)
    assert (late.kind, late.crashed, late.retryable) == ("timeout", True, False)
    assert found == {0: 0.0, 2: 0.1}


def test_several_threads_share_the_workers(runner: LocalRunner) -> None:
    results: list[dict[int, object]] = []

    def run(start: int) -> None:
        results.append(dict(runner.map(double, range(start, start + 10), timeout_s=30)))

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found[0] for found in results) == [0, 200, 400]  # type: ignore[type-var]


def test_an_early_end_leaves_the_workers_to_others(runner: LocalRunner) -> None:
    begun = time.monotonic()
    for _index, _value in runner.map(sleep, [0.0, 60.0, 60.0, 60.0, 60.0], timeout_s=120):
        break
    assert dict(runner.map(double, [1], timeout_s=30)) == {0: 2}
    assert time.monotonic() - begun < 20


def test_closing_ends_what_is_under_way(tmp_path: Path) -> None:
    """A server that ends must not wait for a chunk that takes minutes."""
    runner = LocalRunner(1)
    found: list[object] = []

    def run() -> None:
        items = [str(tmp_path / "first"), str(tmp_path / "second"), str(tmp_path / "third")]
        found.extend(value for _, value in runner.map(touch_and_sleep, items, timeout_s=120))

    thread = threading.Thread(target=run)
    thread.start()
    while not (tmp_path / "first").exists():
        time.sleep(0.01)
    runner.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(found) == 3
    assert all(isinstance(value, Failed) and value.retryable for value in found), found
    (after,) = dict(runner.map(double, [1], timeout_s=30)).values()
    assert isinstance(after, Failed)
    runner.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what a process asks for")
def test_an_item_that_wants_too_much_memory_costs_itself_alone() -> None:
    """A picture that unfolds into gigabytes took the machine's memory, and the server with it."""
    runner = LocalRunner(1, memory_mib=512)
    try:
        found = dict(runner.map(use_memory, [1, 4096, 2], timeout_s=60))
    finally:
        runner.close()
    late = found.pop(1)
    assert found == {0: 2**20, 2: 2 * 2**20}
    assert (late.kind, late.crashed, late.retryable) == ("memory", True, True)
    assert "worker_memory_mib" in late.message


def test_a_decoder_that_does_not_come_back_ends_its_worker() -> None:
    """A PDF of three kilobytes, whose forms draw each other ten times, kept a worker for as long as a film may take."""
    runner = LocalRunner(1)
    try:
        found = dict(runner.map(decode, [30.0, 0.5, 90.0], timeout_s=120))
    finally:
        runner.close()
    late = found.pop(1)
    assert found == {0: (0.0, 0.0), 2: (0.0, 0.0)}, "what was in time is not ended later"
    assert (late.kind, late.crashed, late.retryable) == ("timeout", True, False)
