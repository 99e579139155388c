"""What DBOS's queues do with what Tessera promises of batches: the figures of docs/decisions/0026.

It needs an environment of its own (`pip install dbos==3.4.0 pysqlite3`), so it is not part of `make bench`:
``python bench/dbos_queues.py``. Every experiment runs in a fresh process on a fresh SQLite file.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET_S = 10.0


class Queues:
    """DBOS on a SQLite file of its own, through our kind of engine, with one toy workflow."""

    def __init__(self, folder: str, executor_id: str = "0") -> None:
        import sqlalchemy as sa
        from dbos import DBOS
        from pysqlite3 import dbapi2

        url = f"sqlite:///{folder}/jobs.sqlite3"
        engine = sa.create_engine(url, module=dbapi2, connect_args={"timeout": 30})

        @sa.event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            connection.isolation_level = "IMMEDIATE"
            connection.execute("PRAGMA journal_mode=WAL")

        self.dbos = DBOS
        DBOS(
            config={
                "name": "measured",
                "system_database_url": url,
                "system_database_engine": engine,
                "application_version": "1",
                "executor_id": executor_id,
                "log_level": "ERROR",
            }
        )
        self.started: list[tuple[str, float]] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        lock = threading.Lock()

        @DBOS.workflow(name="batch")
        def batch(namespace: str, seconds: float) -> None:
            with lock:
                self.started.append((namespace, time.monotonic()))
                self.now[namespace] += 1
                self.now["*"] += 1
                for name in (namespace, "*"):
                    self.most[name] = max(self.most[name], self.now[name])
            time.sleep(seconds)
            with lock:
                self.now[namespace] -= 1
                self.now["*"] -= 1

        self.batch = batch
        DBOS.launch()

    def queue(self, limit: int, threads: int | None = None, poll_s: float = 1.0) -> str:
        name = f"jobs-{limit}"
        self.dbos.register_queue(
            name, partition_concurrency=limit, worker_concurrency=threads, polling_interval_sec=poll_s
        )
        return name

    def submit(self, queue: str, namespace: str, seconds: float) -> Any:
        from dbos import SetEnqueueOptions

        with SetEnqueueOptions(queue_partition_key=namespace):
            return self.dbos.enqueue_workflow(queue, self.batch, namespace, seconds)


def start(folder: str) -> str:
    begun = time.monotonic()
    import dbos

    imported = time.monotonic()
    assert dbos
    queues = Queues(folder)
    launched = time.monotonic()
    queues.queue(10)
    return (
        f"import {imported - begun:.2f} s, launch with a new file {launched - imported:.2f} s, "
        f"{idle()} with one queue"
    )


def start_again(folder: str) -> str:
    subprocess.run([sys.executable, __file__, "start", folder], check=True, capture_output=True)
    import dbos

    assert dbos
    begun = time.monotonic()
    Queues(folder)
    return f"launch with its file there {time.monotonic() - begun:.2f} s"


def limits(folder: str) -> str:
    queues = Queues(folder)
    for limit in range(1, 301):
        queues.queue(limit)
    time.sleep(3)
    return f"300 namespaces that each choose another limit (300 queues): {idle()}"


def quick(folder: str) -> str:
    queues = Queues(folder)
    queues.queue(10, poll_s=0.05)
    time.sleep(2)
    return f"one queue that looks every 50 ms: {idle()}"


def latency(folder: str) -> str:
    queues = Queues(folder)
    queue = queues.queue(10)
    time.sleep(3)
    waits = []
    for number in range(20):
        begun = time.monotonic()
        queues.submit(queue, f"ns{number}", 0.0).get_result()
        waits.append(queues.started[-1][1] - begun)
        time.sleep(0.137)
    return f"from submit to start: median {sorted(waits)[10]:.2f} s, longest {max(waits):.2f} s"


def fairness(folder: str) -> str:
    queues = Queues(folder)
    queue = queues.queue(100, threads=3, poll_s=0.2)
    time.sleep(2)
    kept_out = 0
    for number in range(20):
        queues.started.clear()
        handles = [queues.submit(queue, f"many{number}", 0.3) for _ in range(9)]
        handles.append(queues.submit(queue, f"few{number}", 0.3))
        for handle in handles:
            handle.get_result()
        first = [name for name, _ in queues.started]
        kept_out += first.index(f"few{number}") >= 3
    return (
        "3 threads, one namespace with 9 batches and one with 1: the one waited for a whole turn of the other "
        f"in {kept_out} of 20 rounds (promised: never)"
    )


def changed(folder: str) -> str:
    queues = Queues(folder)
    wide, narrow = queues.queue(4, poll_s=0.2), queues.queue(2, poll_s=0.2)
    time.sleep(2)
    handles = [queues.submit(wide, "ns", 4.0) for _ in range(4)]
    time.sleep(1.5)
    handles += [queues.submit(narrow, "ns", 4.0) for _ in range(4)]
    for handle in handles:
        handle.get_result()
    return f"limit lowered from 4 to 2 while 4 run: {queues.most['ns']} at once (promised: no start before 2 are left)"


def threads(folder: str) -> str:
    queues = Queues(folder)
    names = [queues.queue(limit, threads=3, poll_s=0.2) for limit in (5, 6, 7, 8)]
    time.sleep(2)
    handles = [queues.submit(name, f"ns-{name}", 3.0) for name in names for _ in range(5)]
    for handle in handles:
        handle.get_result()
    return f"at most 3 batches in this server, four limit values in use: {queues.most['*']} at once (promised: 3)"


def cancel(folder: str) -> str:
    queues = Queues(folder)
    handle = queues.submit(queues.queue(4, poll_s=0.2), "ns", 6.0)
    while not queues.started:
        time.sleep(0.01)
    begun = time.monotonic()
    queues.dbos.cancel_workflow(handle.workflow_id)
    said = time.monotonic() - begun
    while queues.now["ns"]:
        time.sleep(0.01)
    return (
        f"cancel returned after {said:.2f} s, the work under it ended after {time.monotonic() - begun:.1f} s"
    )


def idle() -> str:
    """Return this process's threads, memory, and the share of a core that it takes while nothing is asked."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime

    before = used()
    time.sleep(QUIET_S)
    share = (used() - before) / QUIET_S
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{threading.active_count()} threads, {peak_mib:.0f} MiB, {100 * share:.1f} % of a core idle"


EXPERIMENTS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (start, start_again, quick, limits, latency, fairness, changed, threads, cancel)
}


def main() -> None:
    if len(sys.argv) == 3:
        print(EXPERIMENTS[sys.argv[1]](sys.argv[2]), flush=True)
        # Threads that poll for ever are of no more interest.
        os._exit(0)
    for name in sys.argv[1:] or EXPERIMENTS:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, str(Path(__file__)), name, folder],
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
        print(f"{name}: {done.stdout.strip() or done.stderr[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
