"""What must hold between the tables, the logs, the views and the files of a data directory at rest.

Reads the database beside the running server, asks the server over HTTP, and looks into the folders. Nothing
here knows what a test did: it finds what contradicts itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from tessera import log
from tessera.blobs import INCOMING, Blobs
from tessera.db.engine import Database, now
from tessera.db.tables import (
    batches,
    collections,
    doomed_views,
    log_entries,
    namespaces,
    objects,
    purges,
    sources,
)
from tests.http.processes import Server

#: For what the server does behind its answers; it is long, so that a busy machine is no failure.
PATIENCE_S = 60.0


def check_agreement(server: Server) -> None:
    """Assert that tables, logs, views and files agree, once every batch and every purge has ended."""
    db = Database(f"sqlite:///{server.data / 'tessera.sqlite3'}")
    try:
        wait_until_idle(db)
        with db.read() as connection:
            living = connection.execute(sa.select(namespaces)).mappings().all()
            purged = set(connection.execute(sa.select(purges.c.namespace_id)).scalars())
            doomed = set(connection.execute(sa.select(doomed_views.c.view_id)).scalars())
        _check_folders(server.data, living, purged, doomed)
        with server.client() as client:
            for namespace in living:
                _check_namespace(client, db, server.data, namespace)
    finally:
        db.close()


def wait_until_idle(db: Database) -> None:
    """Wait until no batch is open and every deleted namespace has been swept once."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with db.read() as connection:
            open_batches = connection.execute(
                sa.select(batches.c.batch_id, batches.c.status).where(
                    batches.c.status.in_(["PENDING", "IN_PROGRESS"])
                )
            ).all()
            targets = connection.execute(sa.select(purges.c.targets)).scalars().all()
            # A view that a namespace has left may still be read by requests that began before.
            doomed = (
                connection.execute(sa.select(doomed_views.c.view_id).where(doomed_views.c.due_at <= now()))
                .scalars()
                .all()
            )
        if not open_batches and not doomed and all(target.get("swept") for target in targets):
            return
        assert time.monotonic() < deadline, (
            f"not idle after {PATIENCE_S} s: {open_batches} {targets} {doomed}"
        )
        time.sleep(0.02)


def let_sweeps_be_due(data: Path) -> None:
    """Let the time pass after which deleted namespaces are swept for the last time. No server may run."""
    db = Database(f"sqlite:///{data / 'tessera.sqlite3'}")
    with db.write() as connection:
        for row in connection.execute(sa.select(purges)).all():
            targets = {**row.targets, "due_at": "2020-01-01T00:00:00.000000Z"}
            connection.execute(
                sa.update(purges).where(purges.c.namespace_id == row.namespace_id).values(targets=targets)
            )
        connection.execute(sa.update(doomed_views).values(due_at=now()))
    db.close()


def wait_until_swept(data: Path) -> None:
    """Wait until nothing is left to be swept."""
    db = Database(f"sqlite:///{data / 'tessera.sqlite3'}")
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with db.read() as connection:
            left = sum(
                connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (purges, doomed_views)
            )
        if not left:
            break
        assert time.monotonic() < deadline, f"{left} namespaces and views are left after {PATIENCE_S} s"
        time.sleep(0.05)
    db.close()


def listed(
    client: httpx.Client, namespace_id: str, path: str, body: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield every result of a list, page by page."""
    cursor = None
    while True:
        answer = client.post(
            path,
            params={"limit": 500, **({"cursor": cursor} if cursor else {})},
            json=body or {},
            headers={"X-Namespace": namespace_id},
        )
        page = answer.raise_for_status().json()
        yield from page["results"]
        cursor = page["pagination"]["next_cursor"]
        if not cursor:
            return


def _check_folders(data: Path, living: Any, purged: set[str], doomed: set[str]) -> None:
    """Every folder belongs to a namespace that exists, or that will be swept once more."""
    known = {row["namespace_id"] for row in living} | purged
    folders = {path.name for path in (data / "blobs").iterdir() if path.is_dir()}
    parts = list((data / "blobs" / INCOMING).glob("*"))
    assert not parts, f"content that was on its way in when a server died: {parts}"
    folders -= {INCOMING}
    assert folders <= known, f"blobs of namespaces that are gone: {folders - known}"
    views = {path.name for path in (data / "views").iterdir()} if (data / "views").exists() else set()
    in_use = {row["view_id"] for row in living} | doomed
    assert views <= in_use, f"views that no namespace uses: {views - in_use}"


def _check_namespace(client: httpx.Client, db: Database, data: Path, row: Any) -> None:
    namespace_id = row["namespace_id"]
    blobs = Blobs(data / "blobs")
    with db.read() as connection:
        entries = log.read(connection, namespace_id, after=0, limit=10**9, local_path=blobs.path)
        head = connection.execute(
            sa.select(namespaces.c.head).where(namespaces.c.namespace_id == namespace_id)
        ).scalar_one()
        keys = {
            key
            for key in connection.execute(
                sa.select(log_entries.c.artifact_key).where(log_entries.c.namespace_id == namespace_id)
            ).scalars()
            if key is not None
        }
        by_source = connection.execute(
            sa.select(sources.c.collection_id, sources.c.source_id, sources.c.document_ids).where(
                sources.c.namespace_id == namespace_id
            )
        ).all()
        collection_ids = (
            connection.execute(
                sa.select(collections.c.collection_id).where(collections.c.namespace_id == namespace_id)
            )
            .scalars()
            .all()
        )
        blob_lists = (
            connection.execute(sa.select(objects.c.blobs).where(objects.c.namespace_id == namespace_id))
            .scalars()
            .all()
        )
    numbers = [entry.seq for entry in entries]
    assert numbers == list(range(head - len(numbers) + 1, head + 1)), f"the log of {namespace_id} has a gap"

    # Files and what names them.
    folder = data / "blobs" / namespace_id / "artifacts"
    files = (
        {f"{namespace_id}/artifacts/{path.name}" for path in folder.iterdir()} if folder.exists() else set()
    )
    assert keys <= files, f"entries whose artifact is missing: {keys - files}"
    assert files <= keys, f"artifacts that no entry names: {files - keys}"
    named = {blob["blob_key"] for of_object in blob_lists for blob in of_object if blob.get("blob_key")}
    dangling = {key for key in named if not blobs.path(key).exists()}
    assert not dangling, f"objects whose file is missing: {dangling}"

    # The log folded, what the sources are said to have, and what the view answers.
    folded = log.fold(entries).documents
    shown: dict[str, Any] = {}
    times: Counter[str] = Counter()
    for collection_id in collection_ids:
        for document in listed(client, namespace_id, f"/v1/collections/{collection_id}/documents/list"):
            times[document["document_id"]] += 1
            shown[document["document_id"]] = document
    twice = {document_id for document_id, count in times.items() if count > 1}
    assert not twice, f"documents that are there twice: {twice}"
    assert shown.keys() == folded.keys(), (
        f"{namespace_id}: {len(folded.keys() - shown.keys())} documents of the log are not in the view, "
        f"{len(shown.keys() - folded.keys())} of the view are not in the log"
    )
    for document_id, document in shown.items():
        stored = folded[document_id].payload
        assert document.get("metadata") == stored.get("metadata"), f"{document_id} differs from the log"
    of_sources = Counter(document_id for _, _, ids in by_source for document_id in ids)
    assert not [d for d, count in of_sources.items() if count > 1], "two sources have one document"
    assert of_sources.keys() == shown.keys(), (
        f"{namespace_id}: sources name {len(of_sources.keys() - shown.keys())} documents that are not there, "
        f"{len(shown.keys() - of_sources.keys())} documents are of no source"
    )
    counted = client.get(f"/v1/namespaces/{namespace_id}").raise_for_status().json()["document_count"]
    assert counted == len(shown), f"{namespace_id} counts {counted} documents and shows {len(shown)}"
    _check_indexes(client, row, db)


def _check_indexes(client: httpx.Client, row: Any, db: Database) -> None:
    """The engine has the payload indexes that the namespace says it has."""
    namespace_id = row["namespace_id"]
    said = client.get(f"/v1/namespaces/{namespace_id}").raise_for_status().json()["payload_indexes"]
    stats = client.get(f"/v1/namespaces/{namespace_id}/stats").raise_for_status().json()["payload_indexes"]
    assert {(i["field_name"], i["type"]) for i in said} == {(i["field_name"], i["type"]) for i in stats}
