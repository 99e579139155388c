"""Compaction: folds a long log into a checkpoint, so that building a view takes as long as its documents do.

A checkpoint is made of the log, never of a view, by the same function as everything that replays
(`log.survivors`): the newest entry first, each document once, in artifacts of bounded size. It takes the
last numbers of the prefix that it stands for, in one transaction; entries behind it, and every view, stay as
they are. Only what the view has made durable is folded, so no view of the namespace needs what goes.

One of `compact` and `tessera.erasure.erase` runs in a namespace at a time; the caller sees to it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import artifact, failpoints, log
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import batches, erasures, log_entries, namespaces
from tessera.ports import Document

logger = logging.getLogger("tessera.compaction")

#: Entries read in one transaction; each may hold a quarter of a MiB.
_READ_PAGE = 100
#: Rows removed in one transaction: a few milliseconds.
_PAGE = 500
#: An artifact of a checkpoint is closed at this size, or at the most documents that one may hold.
_ARTIFACT_BYTES = 64 * 2**20
#: Artifacts that no entry names any more are left so long for whoever is reading them.
GRACE_S = 600.0
#: Documents that are sent are written and then named within one request; what is unnamed for longer stays so.
STORING_S = 60.0
#: Folding rests as long as it worked, at most this long, so that it takes no more than half a core.
_LONGEST_REST_S = 0.05


def due(connection: Connection, minimum: int, limit: int) -> list[str]:
    """Return up to `limit` namespaces with something to fold or to clear away.

    A log is folded when it holds `minimum` changes more than twice the documents that are left of them: then
    folding costs less than replaying once, and is paid for by the writes since the last time.
    """
    n = namespaces.c
    worth = sa.and_(n.logged_changes > 2 * n.document_count + minimum, n.mark_seq > n.checkpoint_seq)
    return list(
        connection.execute(
            sa.select(n.namespace_id)
            .where(sa.or_(worth, n.folded_at < _ago(GRACE_S)))
            .order_by(n.logged_changes.desc(), n.namespace_id)
            .limit(limit)
        ).scalars()
    )


class Interrupted(Exception):
    """The server ends; what was begun is done anew, or resumed, by the next one."""


def compact(
    wh: Warehouse,
    namespace_id: str,
    minimum: int,
    *,
    grace_s: float = GRACE_S,
    stop: threading.Event | None = None,
) -> bool:
    """Fold the log of a namespace if that is worth it; clear away what earlier foldings left.

    Returns whether it was folded. Can be repeated, and run again after a kill anywhere: until the one
    transaction that switches, the old entries count, and the files of a half-made checkpoint are removed by the
    next run.
    """
    with wh.db.read() as connection:
        n = namespaces.c
        row = connection.execute(
            sa.select(n.logged_changes, n.document_count).where(n.namespace_id == namespace_id)
        ).one_or_none()
    if row is None:
        return False
    folded = row.logged_changes > 2 * row.document_count + minimum and fold(wh, namespace_id, stop)
    _remove_rows(wh, namespace_id)
    _remove_artifacts(wh, namespace_id, grace_s)
    return folded


def fold(wh: Warehouse, namespace_id: str, stop: threading.Event | None = None) -> bool:
    """Fold what the view of a namespace has made durable into a checkpoint; say whether that was done.

    It is not when there is nothing new, when a document is being erased, or when the log was rewritten meanwhile.
    """
    with wh.db.read() as connection:
        place = _place(connection, namespace_id)
    if place is None or place.erasing:
        return False
    last = min(place.mark_seq, place.head)
    if last <= place.checkpoint_seq:
        return False
    started = time.monotonic()
    for key in unnamed_artifacts(wh, namespace_id):
        if "/fold-" in key and key.rpartition("-")[2].startswith(f"{place.log_edition}."):
            wh.blobs.remove(key)  # of a checkpoint that was not finished: its edition is the present one
    prefix = f"{namespace_id}/artifacts/fold-{last}-{place.log_edition}"
    with wh.db.read() as connection:
        indexes = log.last_indexes(connection, namespace_id, last)
    keys: list[str] = []
    documents = 0
    entries = log.newest_first(
        wh.db,
        namespace_id,
        last=last,
        page=_READ_PAGE,
        local_path=wh.blobs.path,
        pause=_Rest(stop or threading.Event()),
    )
    sizes = {vector["name"]: vector["dimensions"] for vector in place.vectors}
    for part in _parts(log.survivors(entries, set())):
        key = f"{prefix}.{len(keys)}.arrow"
        used = {name for document in part for name in document.vectors}
        artifact.write(wh.blobs.new_path(key), part, {n: size for n, size in sizes.items() if n in used})
        failpoints.reach("fold.artifact")
        keys.append(key)
        documents += len(part)
    if len(keys) >= last:
        # There are no numbers for it: a log so short needs no checkpoint.
        done = False
    else:
        failpoints.reach("fold.switch")
        done = _switch(wh, namespace_id, place, last, log.indexes_body(indexes or ()), keys, documents)
        failpoints.reach("fold.switched")
    if not done:
        for key in keys:
            wh.blobs.remove(key)
        return False
    logger.info(
        "log of %s: entries up to %d folded into %d documents in %d artifacts, %.1f s",
        namespace_id,
        last,
        documents,
        len(keys),
        time.monotonic() - started,
    )
    return True


class _Rest:
    """Called between two pages: rests for as long as was worked since the last call."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._since = time.monotonic()

    def __call__(self) -> None:
        if self._stop.wait(min(time.monotonic() - self._since, _LONGEST_REST_S)):
            raise Interrupted
        self._since = time.monotonic()


def _parts(documents: Iterator[Document]) -> Iterator[list[Document]]:
    part: list[Document] = []
    size = 0
    for document in documents:
        part.append(document)
        size += len(orjson.dumps(document.payload)) + sum(v.nbytes for v in document.vectors.values())
        if len(part) == artifact.MAX_DOCUMENTS or size >= _ARTIFACT_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _place(connection: Connection, namespace_id: str) -> sa.Row[tuple[object, ...]] | None:
    n = namespaces.c
    erasing = sa.exists().where(erasures.c.namespace_id == namespace_id)
    return connection.execute(
        sa.select(
            n.head,
            n.mark_seq,
            n.checkpoint_first,
            n.checkpoint_seq,
            n.log_edition,
            n.logged_changes,
            n.vectors,
            erasing.label("erasing"),
        ).where(n.namespace_id == namespace_id)
    ).one_or_none()


def _switch(
    wh: Warehouse,
    namespace_id: str,
    before: sa.Row[tuple[object, ...]],
    last: int,
    indexes: bytes,
    keys: list[str],
    documents: int,
) -> bool:
    """Put the checkpoint in the place of the prefix, if that is still what it was made of."""
    at = now()
    first = last - len(keys)
    kinds = [("indexes", indexes, None), *(("artifact", b'{"deletes":[]}', key) for key in keys)]
    with wh.db.write() as connection:
        present = _place(connection, namespace_id)
        if (
            present is None
            or present.erasing
            or present.log_edition != before.log_edition
            # Set back when the view is to be built anew; that one is reading what we fold.
            or present.mark_seq < last
        ):
            return False
        mine = log_entries.c.namespace_id == namespace_id
        connection.execute(
            sa.delete(log_entries).where(mine, log_entries.c.seq >= first, log_entries.c.seq <= last)
        )
        connection.execute(
            log_entries.insert(),
            [
                {
                    "namespace_id": namespace_id,
                    "seq": first + number,
                    "kind": kind,
                    "body": body,
                    "artifact_key": key,
                    "created_at": at,
                }
                for number, (kind, body, key) in enumerate(kinds)
            ],
        )
        connection.execute(
            sa.update(namespaces)
            .where(namespaces.c.namespace_id == namespace_id)
            .values(
                checkpoint_first=first,
                checkpoint_seq=last,
                log_edition=namespaces.c.log_edition + 1,
                logged_changes=documents + present.logged_changes - before.logged_changes,
                folded_at=at,
            )
        )
    return True


def _remove_rows(wh: Warehouse, namespace_id: str) -> None:
    """Remove the entries that a checkpoint stands for: nobody can reach them any more."""
    first = (
        sa.select(namespaces.c.checkpoint_first)
        .where(namespaces.c.namespace_id == namespace_id)
        .scalar_subquery()
    )
    mine = log_entries.c.namespace_id == namespace_id
    old = sa.select(log_entries.c.seq).where(mine, log_entries.c.seq < first).limit(_PAGE)
    while True:
        with wh.db.write() as connection:
            removed = connection.execute(
                sa.delete(log_entries).where(mine, log_entries.c.seq.in_(old.scalar_subquery()))
            ).rowcount
        failpoints.reach("fold.rows")
        if removed < _PAGE:
            return
        time.sleep(_LONGEST_REST_S)


def _remove_artifacts(wh: Warehouse, namespace_id: str, grace_s: float) -> None:
    """Remove artifacts that no entry names, `grace_s` after the folding that left them."""
    n = namespaces.c
    with wh.db.read() as connection:
        folded_at = connection.execute(sa.select(n.folded_at).where(n.namespace_id == namespace_id)).scalar()
    if folded_at is None or folded_at > _ago(grace_s):
        return
    removed = [wh.blobs.remove(key) for key in unnamed_artifacts(wh, namespace_id)]
    if all(removed):
        with wh.db.write() as connection:
            connection.execute(
                sa.update(namespaces)
                .where(n.namespace_id == namespace_id, n.folded_at == folded_at)
                .values(folded_at=None)
            )


def unnamed_artifacts(
    wh: Warehouse, namespace_id: str, open_states: Sequence[str] = ("PENDING", "IN_PROGRESS")
) -> list[str]:
    """Return the keys of files among a namespace's artifacts that no entry names and no batch will name.

    Half-written ones count. Those of batches in one of `open_states` stay: an attempt may still be at work; so do
    those of a request that may still be at work (see `being_stored`).
    """
    unnamed = _unnamed(wh, namespace_id, open_states)
    return [key for key in unnamed if written_at(wh, key) is None]


def being_stored(wh: Warehouse, namespace_id: str) -> list[tuple[str, float]]:
    """Return (key, seconds since 1970) of files that requests may be about to name, and when they were written."""
    found = [(key, written_at(wh, key)) for key in _unnamed(wh, namespace_id, ())]
    return [(key, at) for key, at in found if at is not None]


def written_at(wh: Warehouse, key: str) -> float | None:
    """Return when an artifact was written that a request may still be about to name; None when none is."""
    if "/artifacts/ready/" not in key:
        return None
    try:
        at = wh.blobs.path(key).stat().st_mtime
    except FileNotFoundError:
        return None
    return at if time.time() - at < STORING_S else None


def _unnamed(wh: Warehouse, namespace_id: str, open_states: Sequence[str]) -> list[str]:
    folder = wh.blobs.path(f"{namespace_id}/artifacts")
    # The files first: whoever wrote one of them and is not at work any more has named it by now, or never will.
    names = [
        str(Path(parent, name).relative_to(folder)) for parent, _, files in os.walk(folder) for name in files
    ]
    with wh.db.read() as connection:
        named = set(
            connection.execute(
                sa.select(log_entries.c.artifact_key).where(
                    log_entries.c.namespace_id == namespace_id, log_entries.c.artifact_key.is_not(None)
                )
            ).scalars()
        )
        busy = set(
            connection.execute(
                sa.select(batches.c.batch_id).where(
                    batches.c.namespace_id == namespace_id,
                    batches.c.status.in_(open_states),
                )
            ).scalars()
        )
    keys = {f"{namespace_id}/artifacts/{name}": name.partition("-")[0] for name in names}
    return sorted(key for key, batch_id in keys.items() if key not in named and batch_id not in busy)


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
