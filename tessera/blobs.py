"""Blob storage: bytes by key in a directory, S3, GCS or Azure, through obstore.

Keys begin with the namespace's id (never its name). Content-addressed blobs live under
``<namespace_id>/blobs/<sha256>``, artifacts under ``<namespace_id>/artifacts/…``: what one tenant stores is
never shared with, or visible to, another.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from tessera.errors import InsufficientStorageError, StorageError


class Blobs:
    """Blobs below a local directory. Writes are synced before their name exists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, namespace_id: str, data: bytes) -> str:
        """Store `data` and return its key. Storing the same bytes again is free and gives the same key."""
        key = f"{namespace_id}/blobs/{hashlib.sha256(data).hexdigest()}"
        path = self.path(key)
        if path.exists():
            return key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())
            part.rename(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno == 28:
                raise InsufficientStorageError("The disk that holds the blobs is full; nothing was kept.") from error
            raise StorageError("A blob could not be written.") from error
        return key

    def path(self, key: str) -> Path:
        """Return the local file of `key` (which need not exist)."""
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise StorageError("A blob key has an empty or relative part.")
        return self.root.joinpath(*parts)

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys below `prefix` (a directory)."""
        base = self.path(prefix)
        for path in sorted(base.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.root))

    def delete_namespace(self, namespace_id: str) -> None:
        """Remove everything of a namespace; nothing there is as good as removed."""
        shutil.rmtree(self.path(namespace_id), ignore_errors=True)
