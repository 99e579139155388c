"""Blob storage: bytes by key in the data directory (obstore); an object store by URL takes its place at scale.

Keys begin with the namespace's id (never its name). Content-addressed blobs live under
``<namespace_id>/blobs/<sha256>``, artifacts under ``<namespace_id>/artifacts/…``: what one tenant stores is
never shared with, or visible to, another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import StorageError, StorageUnavailableError, TesseraError, storage_error

if TYPE_CHECKING:
    from obstore.store import LocalStore


class Blobs:
    """Blobs below a local directory. What `put` returned survives power loss."""

    def __init__(self, root: Path) -> None:
        from obstore.store import LocalStore

        self.root = root
        self.store: LocalStore = LocalStore(root, mkdir=True)
        self._durable_folders: set[Path] = set()

    def put(self, namespace_id: str, data: bytes) -> str:
        """Store `data` and return its key. Storing the same bytes again is free and gives the same key."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        key = f"{namespace_id}/blobs/{hashlib.sha256(data).hexdigest()}"
        try:
            with contextlib.suppress(AlreadyExistsError):
                obstore.put(self.store, key, data, mode="create")
            # Also what was there: whoever wrote it may not have come so far, or died before.
            sync(self.new_path(key))
        except (BaseError, OSError) as error:
            raise _unwritable(error) from error
        except BaseException as panic:
            # What Rust panics with is no `Exception`: the first call panics when it cannot start its threads.
            if type(panic).__name__ != "PanicException":
                raise
            raise _unwritable(panic) from panic
        return key

    def path(self, key: str) -> Path:
        """Return the local file of `key` (which need not exist)."""
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise StorageError("A blob key has an empty or relative part.")
        return self.root.joinpath(*parts)

    def new_path(self, key: str) -> Path:
        """Return the local file of `key` to write to; its folder exists and survives power loss."""
        path = self.path(key)
        folder = path.parent
        if folder not in self._durable_folders:
            folder.mkdir(parents=True, exist_ok=True)
            for above in folder.parents:
                sync_folder(above)
                if above == self.root:
                    break
            self._durable_folders.add(folder)
        return path

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix`."""
        import obstore

        for chunk in obstore.list(self.store, prefix=prefix):
            yield from (item["path"] for item in chunk)

    def delete_namespace(self, namespace_id: str) -> None:
        """Remove everything of a namespace; nothing there is as good as removed."""
        shutil.rmtree(self.path(namespace_id), ignore_errors=True)


def _unwritable(error: BaseException) -> TesseraError:
    return storage_error(error) or StorageUnavailableError("A blob could not be written now. Try again.")


def sync(path: Path) -> None:
    """Make the file at `path` and its name durable."""
    sync_folder(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in the folder at `path` durable (of a file: what is in it)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
