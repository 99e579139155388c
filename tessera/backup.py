"""Backup and restore of a data directory.

`create` works beside a running server or without one: SQLite's own backup copies the database as of one
moment, then the files that *that copy* names are linked (or copied) into the backup; a lock keeps everybody
from removing any of them meanwhile. A backup directory may be used again: files are content-addressed or
never change, so only what is new is added, and what the newest copy does not name any more is removed.

A backup is whole when it has a ``manifest.json``, which is written last and removed first; it holds the SHA-256
of every file. Views are not in it: they are built again from the log. Neither are keys in clear, unless they are
asked for: without the master key nobody can open the sealed credentials of other systems.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import __version__, data_directory, failpoints
from tessera.blobs import Blobs, sync_folder
from tessera.db.engine import Database, now
from tessera.db.migrate import HEAD, current_revision
from tessera.db.tables import batches, log_entries, namespaces
from tessera.errors import TesseraError

MANIFEST = "manifest.json"
FORMAT = 1
_DATABASE = "tessera.sqlite3"
_MASTER_KEY = "master.key"
_KEPT = ("VERSION",)
#: The operator's own extractors and their tests: small, and changed in place, so copied.
_EXTRACTORS = "extractors"
#: Only when they are asked for. Without its signing key a restored server makes a new one: cursors and links that
#: were handed out before end.
_SECRETS = (_MASTER_KEY, "signing.key", "admin.key", "tessera.toml")
#: A remover holds the lock for moments, another backup for as long as it takes.
_LOCK_PATIENCE_S = 5.0
_BLOCK = 1 << 20


class BackupError(TesseraError):
    """A backup cannot be made, or what is there is not a whole one; the message says why and what to do."""

    type, status = "BackupError", 500


@dataclass(frozen=True, slots=True)
class Summary:
    """What a backup holds: `files` of `size_bytes` in all, `added` of them new in this one."""

    files: int
    size_bytes: int
    added: int
    has_master_key: bool
    namespaces: int


# --- backup --------------------------------------------------------------------------------------------


def create(data: Path, target: Path, *, with_secrets: bool = False) -> Summary:
    """Back up the data directory `data` into `target`, which is empty, absent or holds an earlier backup.

    Everything that was acknowledged before this was called is in it. Killed anywhere it can be run again;
    until then `target` is no backup. Raises `BackupError`.
    """
    _check_places(data, target)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_nothing_removed(data))
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        earlier = _begin(target)
        _copy_database(data / _DATABASE, target / _DATABASE)
        failpoints.reach("backup.database")
        names = [name for name in (*_KEPT, *(_SECRETS if with_secrets else ())) if (data / name).exists()]
        names += [str(path.relative_to(data)) for path in sorted((data / _EXTRACTORS).glob("*.py"))]
        for name in names:
            (target / name).parent.mkdir(exist_ok=True, mode=0o700)
            data_directory.write_private(target / name, (data / name).read_bytes())
        named, count = _named_files(target / _DATABASE, data / "blobs")
        added = 0
        digests: dict[str, dict[str, Any]] = {}
        waiting = sorted(named)
        for name in waiting:
            source, copy = data / name, target / name
            fresh = not copy.exists()
            if fresh:
                try:
                    _take(source, copy)
                except FileNotFoundError as error:
                    blob = _upload_as_blob(name)
                    if blob is None:
                        raise BackupError(
                            f"{source} is missing although the database names it. The data directory is damaged; the "
                            "backup was not finished."
                        ) from error
                    # Confirmed since the files were listed, or given up by its owner.
                    if blob not in named and (data / blob).exists():
                        named.add(blob)
                        waiting.append(blob)
                    continue
                added += 1
                failpoints.reach("backup.file")
            known = earlier.get(name)
            size = copy.stat().st_size
            digests[name] = (
                known if known is not None and not fresh and known["size_bytes"] == size else _digest(copy)
            )
        for name in (_DATABASE, *names):
            digests[name] = _digest(target / name)
            added += name not in earlier
        _prune(target, digests)
        failpoints.reach("backup.manifest")
        manifest = {
            "format": FORMAT,
            "made_at": now(),
            "written_by": __version__,
            "schema": HEAD,
            "has_master_key": _MASTER_KEY in digests,
            "namespaces": count,
            "files": digests,
        }
        data_directory.write_private(
            target / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
        )
    return _summary(manifest, added)


def _check_places(data: Path, target: Path) -> None:
    if not (data / _DATABASE).exists():
        raise BackupError(
            f"{data} is no data directory with a database of its own; a database elsewhere is backed up with its "
            "own tools."
        )
    data_directory.check_version(data)
    ours, theirs = data.resolve(), target.resolve()
    if ours == theirs or ours in theirs.parents or theirs in ours.parents:
        raise BackupError(f"The backup must lie outside of the data directory; {target} does not.")
    if target.exists() and not target.is_dir():
        raise BackupError(f"{target} is a file; name a directory for the backup.")
    if target.exists() and any(target.iterdir()) and not (target / "VERSION.backup").exists():
        raise BackupError(
            f"{target} is not empty and holds no backup of Tessera. Name a new directory, or one that holds an "
            "earlier backup."
        )


def _begin(target: Path) -> dict[str, dict[str, Any]]:
    """Mark `target` as a backup under way; return the digests of the earlier one that it held."""
    earlier: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        earlier = orjson.loads((target / MANIFEST).read_bytes())["files"]
    data_directory.write_private(target / "VERSION.backup", orjson.dumps({"format": FORMAT}) + b"\n")
    (target / MANIFEST).unlink(missing_ok=True)
    sync_folder(target)
    return earlier


@contextlib.contextmanager
def _nothing_removed(data: Path) -> Iterator[None]:
    blobs = Blobs(data / "blobs")
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        with blobs.kept() as got:
            if got:
                yield
                return
        if time.monotonic() > deadline:
            raise BackupError("Another backup of this data directory is under way; wait until it has ended.")
        time.sleep(0.02)


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database that others write to, as of one moment; what they had deleted is not in the copy."""
    db = Database(f"sqlite:///{source}")
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        found = current_revision(db)
        if found != HEAD:
            raise BackupError(
                f"The database has schema {found or 'none'}, this Tessera works with {HEAD}. Use the release that "
                "the server runs."
            )
        copy = Database(f"sqlite:///{part}")
        try:
            with (
                contextlib.closing(db.engine.raw_connection()) as ours,
                contextlib.closing(copy.engine.raw_connection()) as theirs,
            ):
                assert ours.driver_connection is not None and theirs.driver_connection is not None
                # In one step, which sees one moment; a server in WAL mode goes on writing beside it.
                ours.driver_connection.backup(theirs.driver_connection)
            with contextlib.closing(copy.engine.raw_connection()) as theirs:
                cursor = theirs.cursor()
                for statement in ("PRAGMA journal_mode=DELETE", "VACUUM"):
                    cursor.execute(statement)
                    cursor.fetchall()
                cursor.close()
        finally:
            copy.close()
    finally:
        db.close()
    for suffix in ("-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    part.chmod(0o600)
    part.rename(target)
    sync_folder(target)
    sync_folder(target.parent)


def _named_files(database: Path, blobs: Path) -> tuple[set[str], int]:
    """Return the names of the files that a copy of the database needs, and how many namespaces it has.

    Of artifacts exactly those that entries name; of uploaded content all that its namespaces have, because
    documents name files too.
    """
    db = Database(f"sqlite:///{database}")
    try:
        with db.read() as connection:
            keys = set(_artifact_keys(connection))
            ids = list(connection.execute(sa.select(namespaces.c.namespace_id)).scalars())
    finally:
        db.close()
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    for namespace_id in ids:
        folder = blobs / namespace_id
        for parent, folders, files in os.walk(folder):
            if Path(parent) == folder and "artifacts" in folders:
                folders.remove("artifacts")
            # Names with # are being written; whoever writes them has not been answered yet.
            keys |= {
                str(Path(parent, name).relative_to(blobs))
                for name in files
                if "#" not in name and not name.endswith(".part")
            }
    return {f"blobs/{key}" for key in keys}, len(ids)


def _upload_as_blob(name: str) -> str | None:
    """Return the name that the file of an upload gets when it is confirmed; None for every other file."""
    parts = name.split("/")
    if len(parts) != 4 or parts[2] != "uploads":
        return None
    return f"blobs/{parts[1]}/blobs/{parts[3].rpartition('.')[2]}"


def _artifact_keys(connection: Connection) -> Iterator[str]:
    # Entries that a checkpoint stands for already need no files.
    yield from connection.execute(
        sa.select(log_entries.c.artifact_key)
        .join(namespaces, namespaces.c.namespace_id == log_entries.c.namespace_id)
        .where(log_entries.c.artifact_key.is_not(None), log_entries.c.seq >= namespaces.c.checkpoint_first)
    ).scalars()


def _take(source: Path, copy: Path) -> None:
    """Link `source` to `copy`, or copy it where that cannot be; durable, whole before it has its name.

    Raises `FileNotFoundError` when `source` is gone.
    """
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Files of ours are never changed, only removed: both names may be one file.
        os.link(source, copy)
    except FileNotFoundError:
        raise
    except OSError:
        part = copy.with_name(f"{copy.name}.part")
        shutil.copyfile(source, part)
        sync_folder(part)
        part.rename(copy)
    sync_folder(copy.parent)


def _prune(target: Path, named: Mapping[str, Any]) -> None:
    """Remove what this backup does not name: what was deleted or erased since the one before."""
    kept = {*named, "VERSION.backup"}
    for parent, _, files in os.walk(target):
        for name in files:
            path = Path(parent, name)
            if str(path.relative_to(target)) not in kept:
                path.unlink()


# --- restore -------------------------------------------------------------------------------------------


def restore(source: Path, data: Path) -> Summary:
    """Make the data directory `data` from a backup; its views are built on first use.

    `data` is absent, empty, or holds only what a start that failed leaves: ``VERSION`` and ``server.lock``.

    Every file's digest is verified while it is copied. `data` gets its ``VERSION`` last, and nothing is left
    in it when this fails. Raises `BackupError`.
    """
    manifest = _manifest(source)
    data_directory.check_version(source)
    _check_unused(data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = sorted(manifest["files"], key=lambda name: (name == "VERSION", name))
    with data_directory.held(data):
        # Once more: a server may have begun here until now.
        _check_unused(data)
        (data / "VERSION").unlink(missing_ok=True)
        try:
            for name in names:
                _copy_verified(source, data, name, manifest["files"][name])
            _without_views(data / _DATABASE)
        except BaseException:
            for path in list(data.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        sync_folder(data)
    return _summary(manifest, len(names))


def _check_unused(data: Path) -> None:
    if not data.exists():
        return
    if not data.is_dir() or {path.name for path in data.iterdir()} - {"VERSION", "server.lock"}:
        raise BackupError(f"{data} is not empty. Restore into a new directory: nothing is ever overwritten.")


def _manifest(source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = orjson.loads((source / MANIFEST).read_bytes())
        form, writer = int(manifest["format"]), str(manifest["written_by"])
        manifest["files"].items()
    except FileNotFoundError:
        raise BackupError(
            f"{source} holds no whole backup: there is no {MANIFEST}, which is written last. Run tessera backup again."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(f"{source / MANIFEST} cannot be read; this backup cannot be trusted.") from error
    if form > FORMAT:
        raise BackupError(
            f"The backup was written by Tessera {writer}; this is {__version__}. Install {writer} or newer."
        )
    return manifest


def _copy_verified(source: Path, data: Path, name: str, expected: Mapping[str, Any]) -> None:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise BackupError("The manifest names a file outside of the backup; this backup cannot be trusted.")
    copy = data / path
    copy.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with (source / path).open("rb") as file, copy.open("xb") as target:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    except FileNotFoundError as error:
        raise BackupError(f"{source / path} is missing; nothing was restored.") from error
    if (size, digest.hexdigest()) != (expected["size_bytes"], expected["sha256"]):
        raise BackupError(
            f"{source / path} is not what was backed up (its digest differs); nothing was restored."
        )
    copy.chmod(0o600)


def _without_views(database: Path) -> None:
    """Let every namespace build its view from the log, under a name that no view had before."""
    db = Database(f"sqlite:///{database}")
    try:
        with db.write() as connection:
            connection.execute(
                sa.update(namespaces).values(
                    generation=namespaces.c.generation + 1,
                    view_id=namespaces.c.namespace_id + "-" + sa.cast(namespaces.c.generation + 1, sa.String),
                    mark_seq=0,
                )
            )
            # Whoever held them did not end under them; it may even go on with them elsewhere.
            connection.execute(sa.update(batches).values(holder=None))
        db.forget_deleted()
    finally:
        db.close()


def _digest(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return {"size_bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _summary(manifest: Mapping[str, Any], added: int) -> Summary:
    files = manifest["files"]
    return Summary(
        len(files),
        sum(file["size_bytes"] for file in files.values()),
        added,
        bool(manifest["has_master_key"]),
        int(manifest["namespaces"]),
    )
