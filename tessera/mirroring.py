"""Mirroring: what objects have by URL is fetched once and becomes a blob of the namespace, before extraction.

An object that is a URL is accepted and durable with its row in `fetches`; the first batch that it is in fetches
it here. From then on its content is ours: later batches, other collections and retries read the same bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from tessera import content, drafts, objects
from tessera.causes import of_fetch
from tessera.context import Warehouse
from tessera.db.tables import batch_rows, fetches, namespaces, secrets
from tessera.db.tables import objects as object_rows
from tessera.errors import BadSample
from tessera.fetching import FetchError, shown
from tessera.models.buckets import FieldType
from tessera.s3_urls import S3Access

#: Objects that are looked up and fetched before the next ones are.
_WINDOW = 256

#: Secrets of an organization that say how its s3:// URLs are read; with one of them, no setting is used.
S3_SECRETS = (
    "s3_endpoint_url",
    "s3_region",
    "s3_access_key_id",
    "s3_secret_access_key",
    "s3_session_token",
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An object whose content cannot be had: a kind for programs and a message for people."""

    object_id: str
    kind: str
    message: str


def fetch_sources(
    wh: Warehouse, batch_id: str, is_over: Callable[[], bool]
) -> Generator[Failure | None, None, None]:
    """Fetch what objects with pending rows in the batch have by URL; yield those where it fails.

    Yields None at least every second, so that the caller can look whether its batch still goes on: fetches end
    within a second when it closes the generator, and when `is_over`. Can be repeated: what is ours is not
    fetched again.
    """
    tried: set[str] = set()
    while not is_over():
        with wh.db.read() as connection:
            found = connection.execute(
                sa.select(fetches.c.object_id)
                .distinct()
                .join(batch_rows, batch_rows.c.object_id == fetches.c.object_id)
                .where(
                    batch_rows.c.batch_id == batch_id,
                    batch_rows.c.status == "PENDING",
                    batch_rows.c.due_at.is_(None),
                )
                .order_by(fetches.c.object_id)
                .limit(_WINDOW + len(tried))
            ).scalars()
            waiting = [object_id for object_id in found if object_id not in tried][:_WINDOW]
        if not waiting:
            return
        tried.update(waiting)
        halt = threading.Event()
        threads = ThreadPoolExecutor(wh.settings.fetch_threads, thread_name_prefix="fetch")
        try:
            under_way = {threads.submit(_mirror, wh, object_id, halt) for object_id in waiting}
            while under_way and not is_over():
                done, under_way = wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED)
                yield None
                yield from (item.result() for item in done)
        finally:
            halt.set()
            threads.shutdown(cancel_futures=True)


def _mirror(wh: Warehouse, object_id: str, stop: threading.Event) -> Failure | None:
    """Make every URL of an object a blob; return what went wrong with the first that cannot be one."""
    # Two batches with one object: the second finds that there is nothing left to do.
    with wh.fetcher.turns.of(object_id):
        with wh.db.read() as connection:
            row = (
                connection.execute(sa.select(object_rows).where(object_rows.c.object_id == object_id))
                .mappings()
                .one_or_none()
            )
            waiting = connection.execute(
                sa.select(fetches.c.property, fetches.c.sealed_url).where(fetches.c.object_id == object_id)
            ).all()
        if row is None:
            return None
        access = _access(wh, row["namespace_id"])
        for name, sealed_url in waiting:
            url = wh.vault.unseal(sealed_url)
            blob = next((blob for blob in row["blobs"] if blob["property"] == name), None)
            if stop.is_set() or blob is None:
                continue
            try:
                _mirror_one(wh, row, blob, url, access, stop)
            except FetchError as error:
                kind = of_fetch(error.kind, may_pass=error.may_pass)
                return Failure(object_id, kind, f"{name}: {error.message}")
            except BadSample as error:
                return Failure(object_id, error.kind, f"{name}: {error.message}")
    return None


def _mirror_one(
    wh: Warehouse, row: RowMapping, blob: Mapping[str, Any], url: str, access: S3Access, stop: threading.Event
) -> None:
    namespace_id, kind = row["namespace_id"], FieldType(blob["type"])
    with wh.blobs.incoming() as part:
        came = wh.fetcher.fetch(url, part.write, access=access, stop=stop)
        part.finish()
        try:
            entry = drafts.stored_file(
                part.path,
                f"{namespace_id}/blobs/{part.sha256}",
                kind,
                came.content_type,
                came.filename,
                part.sha256,
            )
        except content.BadContent as error:
            kind_of_failure = "unreadable" if error.kind == "empty" else "unsupported"
            raise BadSample(kind_of_failure, f"{shown(url)} {error.message}") from None
        key = entry.get("blob_key")
        is_new = key is not None and not wh.blobs.path(str(key)).exists()
        if key is not None:
            wh.blobs.adopt(namespace_id, part)
        if not _record(wh, row, blob["blob_id"], entry) and is_new:
            _remove_unnamed(wh, str(key))


def _remove_unnamed(wh: Warehouse, key: str) -> None:
    """Remove what came for an object that is gone: whoever erased the object did not know of this file."""
    with wh.db.write() as connection:
        if not objects.is_named(connection, key):
            wh.blobs.remove(key)


def _record(wh: Warehouse, row: RowMapping, blob_id: str, entry: dict[str, object]) -> bool:
    """Give the blob its content; False when the object was changed or deleted meanwhile."""
    this = sa.and_(object_rows.c.object_id == row["object_id"], object_rows.c.version == row["version"])
    with wh.db.write() as connection:
        blobs: Sequence[Mapping[str, Any]] | None = connection.execute(
            sa.select(object_rows.c.blobs).where(this)
        ).scalar()
        if blobs is None:
            return False
        name = next(blob["property"] for blob in blobs if blob["blob_id"] == blob_id)
        connection.execute(
            sa.update(object_rows).where(this).values(**objects.with_content(blobs, blob_id, entry))
        )
        connection.execute(
            sa.delete(fetches).where(fetches.c.object_id == row["object_id"], fetches.c.property == name)
        )
    return True


def _access(wh: Warehouse, namespace_id: str) -> S3Access:
    """Return how the namespace's organization reads ``s3://``: as its secrets say, else as the settings say.

    Never a mixture: the server's key is not sent to a store that an organization names.
    """
    with wh.db.read() as connection:
        own = {
            name: wh.vault.unseal(sealed)
            for name, sealed in connection.execute(
                sa.select(secrets.c.secret_name, secrets.c.sealed)
                .join(namespaces, namespaces.c.organization_id == secrets.c.organization_id)
                .where(namespaces.c.namespace_id == namespace_id, secrets.c.secret_name.in_(S3_SECRETS))
            )
        }
    settings = wh.settings
    if own:
        return S3Access(
            own.get("s3_endpoint_url"),
            own.get("s3_region", "us-east-1"),
            own.get("s3_access_key_id"),
            own.get("s3_secret_access_key"),
            own.get("s3_session_token"),
        )
    secret = settings.s3_secret_access_key
    return S3Access(
        settings.s3_endpoint_url,
        settings.s3_region,
        settings.s3_access_key_id,
        secret.get_secret_value() if secret is not None else None,
    )
