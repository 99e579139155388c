"""SIGKILL in the middle of anything: nothing acknowledged is lost, nothing is there twice, every batch ends.

The server, its vector hosts and its workers are killed, each alone and all together, at random moments and at
named points, while clients ingest, replace, delete, index, and make and remove namespaces. The record of what
was acknowledged is the clients' own (`actors`); what the stores say of each other is checked too (`oracle`).
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from tessera.db.engine import Database
from tessera.db.migrate import HEAD, alembic_config, current_revision
from tests.http.actors import Actor, Churner, Ingester
from tests.http.oracle import check_agreement, let_sweeps_be_due, wait_until_swept
from tests.http.processes import Server

#: What dies at a random moment.
TARGETS = ("server", "host", "worker", "host and worker", "everything")
#: Points with whom they may kill; the first is the process that the point lies in.
POINTS = {
    "object.stored": ("self", "group"),
    "object.committed": ("self", "group"),
    "namespace.committed": ("self", "group"),
    "artifact.written": ("self", "parent", "group"),
    "batch.commit": ("self", "group"),
    "log.appended": ("self", "group"),
    "apply.slice": ("self", "parent", "group"),
    "flush.files": ("self", "parent", "group"),
    "flush.mark": ("self", "parent", "group"),
    "purge.views": ("self", "group"),
    "purge.blobs": ("self", "group"),
    "purge.recorded": ("self", "group"),
    "set_aside.decided": ("self", "group"),
}
#: A point that nothing reaches would be waited for in vain.
POINT_PATIENCE_S = 30.0


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(20, marks=pytest.mark.timeout(300)),
        pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_kills(tmp_path: Path, rounds: int) -> None:
    seed = int(os.environ.get("TESSERA_TEST_SEED", time.time_ns() % 2**32))
    print(f"seed {seed}; TESSERA_TEST_SEED={seed} repeats it")
    kills = Kills(tmp_path / "data", random.Random(seed))
    try:
        for number in range(rounds):
            kills.round(number)
        kills.finish()
    except BaseException:
        print("\n".join(kills.story[-30:]), kills.server.log[-6000:], sep="\n")
        raise
    finally:
        kills.server.kill(group=True)
    print("\n".join(kills.story))
    print(
        f"{sum(a.sent for a in kills.actors)} requests, {sum(a.unanswered for a in kills.actors)} unanswered"
    )
    assert kills.at_points >= rounds // 5, f"only {kills.at_points} of {rounds} kills hit a named point"


@pytest.mark.parametrize("point", ["migrate.backed-up", "migrate.upgraded"])
def test_killed_while_it_upgrades(tmp_path: Path, point: str) -> None:
    """The older schema is there, or the newer one, and its rows with it; the next start goes on."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    oldest = alembic_config()
    first = ScriptDirectory.from_config(oldest).get_base()
    assert first is not None
    db = Database(f"sqlite:///{data / 'tessera.sqlite3'}")
    with db.write() as connection:
        oldest.attributes["connection"] = connection
        command.upgrade(oldest, first)
        connection.execute(sa.text("INSERT INTO idempotency VALUES ('o', 'r', 'k', x'00', 'i', 't')"))
    with pytest.raises(RuntimeError, match="ended with -9"):
        Server.start(data, environment={"TESSERA_TEST_FAILPOINT": f"{point}:1:self"})
    assert current_revision(db) == first
    server = Server.start(data)
    try:
        assert current_revision(db) == HEAD
        for file in ("tessera.sqlite3", f"tessera.sqlite3.{first}.backup"):
            with contextlib.closing(sqlite3.connect(data / file)) as database:
                assert database.execute("SELECT key FROM idempotency").fetchall() == [("k",)]
                assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with server.client() as client:
            assert client.get("/v1/namespaces").raise_for_status().json()["results"] == []
    finally:
        server.kill(group=True)
        db.close()


class Kills:
    """A data directory, the server on it, and the clients that work there."""

    def __init__(self, data: Path, rng: random.Random) -> None:
        self.rng = rng
        self.story: list[str] = []
        self.at_points = 0
        self._data = data
        self._points: list[str] = []
        self._targets: list[str] = []
        self._armed: str | None = None
        self.server = Server.start(data)
        ingesters = [
            Ingester("texts", rng.getrandbits(32), text=True),
            Ingester("files", rng.getrandbits(32), text=False),
        ]
        for ingester in ingesters:
            ingester.prepare(self.server)
        self._places = [ingester.namespace_id for ingester in ingesters]
        self.actors: list[Actor] = [*ingesters, Churner("churn", rng.getrandbits(32))]

    def round(self, number: int) -> None:
        """Work until something is killed, start again what is dead, and compare all records."""
        started = time.monotonic()
        if number % 5 in (0, 2, 4):
            target = self._next(self._targets, TARGETS)
            told = target
            with working(self.server, self.actors):
                time.sleep(self.rng.uniform(0.05, 0.8))
                self._kill(target)
        else:
            point = self._next(self._points, tuple(POINTS))
            whom = self.rng.choice(POINTS[point])
            told = f"{point} {whom}"
            # Some points are passed once at every start, others many times a second.
            count = (
                self.rng.randint(1, 2)
                if point.startswith(("purge.", "namespace."))
                else self.rng.randint(1, 4)
            )
            if self._start(f"{point}:{count if point != 'set_aside.decided' else 1}:{whom}"):
                with working(self.server, self.actors):
                    hit = self.server.wait_until_child_dead(POINT_PATIENCE_S)
            else:
                hit = True
            self.at_points += hit
            told += "" if hit else " (not reached)"
            self._kill("everything" if whom == "group" else "server")
        killed = time.monotonic()
        if self.server.process.poll() is not None:
            self._start(None)
        self.settle()
        self.story.append(
            f"{number:3d} {told:32s} {killed - started:5.1f} s + {time.monotonic() - killed:5.1f} s"
        )

    def settle(self) -> None:
        for actor in self.actors:
            if actor.failure is not None:
                raise actor.failure
        check_agreement(self.server)
        for actor in self.actors:
            actor.settle(self.server)

    def finish(self) -> None:
        """End as an operator would, and start once more: nothing depended on the kills."""
        assert self.server.stop() == 0
        let_sweeps_be_due(self._data)
        self.server = Server.start(self._data)
        wait_until_swept(self._data)
        self.settle()

    def _next(self, left: list[str], every: tuple[str, ...]) -> str:
        if not left:
            left += self.rng.sample(every, len(every))
        return left.pop()

    def _start(self, point: str | None) -> bool:
        """Start the server on what is there, armed with `point`; return whether it lived until it was ready."""
        self.server.kill(group=True)
        if point is not None and point.startswith("set_aside.decided"):
            self._damage_a_view()
        environment = {"TESSERA_TEST_FAILPOINT": point} if point is not None else {}
        try:
            self.server = Server.start(self._data, environment=environment)
        except RuntimeError:
            if point is None:
                raise
            return False
        return True

    def _damage_a_view(self) -> None:
        for view in (self._data / "views").glob(f"{self.rng.choice(self._places)}-*"):
            (view / "mark.json").unlink(missing_ok=True)

    def _kill(self, target: str) -> None:
        if target == "everything":
            self.server.kill(group=True)
        elif target == "server":
            self.server.kill()
        else:
            for kind in target.split(" and "):
                self.server.kill_children(kind)


@contextlib.contextmanager
def working(server: Server, actors: Sequence[Actor]) -> Iterator[None]:
    """Let the actors work while the block runs."""
    stop = threading.Event()

    def work(actor: Actor) -> None:
        try:
            while not stop.is_set() and actor.step(server):
                pass
        except BaseException as error:
            actor.failure = error

    threads = [threading.Thread(target=work, args=(actor,), daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
