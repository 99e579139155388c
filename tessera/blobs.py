"""Blob storage: bytes by key in the data directory (obstore); an object store by URL takes its place at scale.

Keys begin with the namespace's id (never its name). Content-addressed blobs live under
``<namespace_id>/blobs/<sha256>``, artifacts under ``<namespace_id>/artifacts/…``: what one tenant stores is
never shared with, or visible to, another. What is still coming in is a file below ``.incoming`` that no key
names; a server that starts removes what an earlier one left there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.errors import StorageError, StorageUnavailableError, TesseraError, storage_error

if TYPE_CHECKING:
    from obstore.store import LocalStore


#: Held by a backup, so that what it is about to copy stays; shared by all who remove.
_BACKUP_LOCK = "backup.lock"
#: Not an id of a namespace, and in the same file system as all of them.
INCOMING = ".incoming"


class Part:
    """Content on its way in, written piece by piece to a file that nothing names yet.

    `size_bytes` is what has come; the digests are of that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = path.open("xb")
        self._sha256 = hashlib.sha256()
        # S3 gives it as the ETag of an upload, and clients compare it; nothing is trusted for it.
        self._md5 = hashlib.md5(usedforsecurity=False)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def md5(self) -> str:
        return self._md5.hexdigest()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `InsufficientStorageError`, `StorageError`."""
        with _writing():
            self._file.write(data)
        self.size_bytes += len(data)
        self._sha256.update(data)
        self._md5.update(data)

    def finish(self) -> None:
        """Make the content durable; nothing can be appended any more."""
        with _writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        """Remove the file, if it was not moved to a key."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


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
            raise _storage_error(error) from error
        except BaseException as panic:
            # What Rust panics with is no `Exception`: the first call panics when it cannot start its threads.
            if type(panic).__name__ != "PanicException":
                raise
            raise _storage_error(panic) from panic
        return key

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Part]:
        """Open a part to write to; what was not moved to a key when the block ends is gone."""
        part = self.new_part()
        try:
            yield part
        finally:
            part.discard()

    def new_part(self) -> Part:
        """Open a part; whoever asks for it discards it in the end."""
        folder = self.root / INCOMING
        with _writing():
            folder.mkdir(exist_ok=True)
            return Part(folder / f"{secrets.token_hex(16)}.part")

    def sweep_parts(self) -> None:
        """Remove what was coming in when an earlier server ended. Nobody else may be writing."""
        shutil.rmtree(self.root / INCOMING, ignore_errors=True)

    def adopt(self, namespace_id: str, part: Part) -> str:
        """Make a finished part the blob of its content and return its key. Repeatable: same bytes, same key."""
        key = f"{namespace_id}/blobs/{part.sha256}"
        self.move(part.path, key)
        return key

    def move(self, source: Path, key: str) -> None:
        """Move a durable file to `key`, replacing what is there; durable on return."""
        with _writing():
            target = self.new_path(key)
            source.rename(target)
            sync_folder(target.parent)

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

    def remove(self, key: str) -> bool:
        """Remove a file that nothing refers to; say whether it is gone.

        False while a backup runs: it may be copying that very file. Come again later.
        """
        with self._removing() as may_remove:
            if may_remove:
                self.path(key).unlink(missing_ok=True)
        return may_remove

    def delete_namespace(self, namespace_id: str) -> None:
        """Remove everything of a namespace; nothing there is as good as removed. While a backup runs it stays."""
        with self._removing() as may_remove:
            if may_remove:
                shutil.rmtree(self.path(namespace_id), ignore_errors=True)

    @contextlib.contextmanager
    def kept(self) -> Iterator[bool]:
        """Let no process remove anything while the block runs; yields whether that could be had.

        The lock is the operating system's and goes with the process. One backup at a time has it.
        """
        with self._locked(fcntl.LOCK_EX) as got:
            yield got

    @contextlib.contextmanager
    def _removing(self) -> Iterator[bool]:
        with self._locked(fcntl.LOCK_SH) as got:
            yield got

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        descriptor = os.open(self.root / _BACKUP_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _storage_error(error) from error


def _storage_error(error: BaseException) -> TesseraError:
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
