"""Slots: which servers are alive and take up work, as their heartbeats tell.

A server claims a numbered slot and moves its end on while it lives. Work names the token of the slot under
which it is done; a token that no live slot has belongs to a server that ended, or stood still for so long
that others must take it for that. When such a server wakes up, its slot may be another's: it claims anew.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.db.engine import Database
from tessera.db.tables import job_metadata, job_slots
from tessera.ids import new_id

#: Name of the SQLite file beside the metadata's; PostgreSQL holds both.
FILE_NAME = "jobs.sqlite3"

#: Any constant: of servers that start together on one PostgreSQL, one after the other makes the table and claims.
_ADVISORY_LOCK = 0x7E55E7B


@dataclass(frozen=True, slots=True)
class Slot:
    """A claimed slot: its number, and the token under which its work is done."""

    number: int
    token: str


class Slots:
    """The slots of all servers that share a metadata database; one expires `lease_s` after its last heartbeat.

    `is_alone` says that the caller is the only server there can be (it holds the data directory in which the
    database lies): whatever is found belongs to servers that have ended, and is thrown away.
    """

    def __init__(self, db: Database, lease_s: float, *, is_alone: bool) -> None:
        self._lease_s = lease_s
        if db.is_sqlite:
            database = db.engine.url.database
            assert database is not None
            path = Path(database).with_name(FILE_NAME)
            if is_alone:
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(FILE_NAME + suffix).unlink(missing_ok=True)
            self._db = Database(f"sqlite:///{path}", durable=False)
            self._own = True
        else:
            self._db, self._own = db, False
        with self._db.write() as connection:
            _one_by_one(connection)
            job_metadata.create_all(connection)

    def claim(self) -> Slot:
        """Claim the lowest slot that is free or has expired."""
        with self._db.write() as connection:
            _one_by_one(connection)
            at = connection.execute(sa.select(_clock(connection))).scalar_one()
            connection.execute(sa.delete(job_slots).where(job_slots.c.expires_at <= at))
            taken = set(connection.execute(sa.select(job_slots.c.slot)).scalars())
            number = next(n for n in range(len(taken) + 1) if n not in taken)
            slot = Slot(number, new_id("slot"))
            connection.execute(
                job_slots.insert().values(
                    slot=slot.number,
                    token=slot.token,
                    owner=f"pid {os.getpid()} on {socket.gethostname()}",
                    expires_at=at + self._lease_s,
                )
            )
        return slot

    def renew(self, slot: Slot) -> bool:
        """Move the slot's end on; False when it has become another's."""
        with self._db.write() as connection:
            renewed = connection.execute(
                sa.update(job_slots)
                .where(job_slots.c.slot == slot.number, job_slots.c.token == slot.token)
                .values(expires_at=_clock(connection) + self._lease_s)
            )
        return renewed.rowcount == 1

    def release(self, slot: Slot) -> None:
        """Give the slot back; what was done under it is free for others at once."""
        with self._db.write() as connection:
            connection.execute(sa.delete(job_slots).where(job_slots.c.token == slot.token))

    def alive(self) -> set[str]:
        """Return the tokens of the slots that have not expired."""
        with self._db.read() as connection:
            live = job_slots.c.expires_at > _clock(connection)
            return set(connection.execute(sa.select(job_slots.c.token).where(live)).scalars())

    def leads(self, slot: Slot) -> bool:
        """Say whether the slot is the lowest of those that have not expired: one server's at most."""
        with self._db.read() as connection:
            first = connection.execute(
                sa.select(job_slots.c.token)
                .where(job_slots.c.expires_at > _clock(connection))
                .order_by(job_slots.c.slot)
                .limit(1)
            ).scalar()
        return first == slot.token

    def close(self) -> None:
        """Close the file, where there is one."""
        if self._own:
            self._db.close()


def _clock(connection: Connection) -> sa.ColumnElement[float]:
    """Return the database's own clock, which is one for all servers: seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Float())
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float())


def _one_by_one(connection: Connection) -> None:
    """Let one server after the other make or claim slots; SQLite's write transactions are so anyway."""
    if connection.dialect.name != "sqlite":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
