"""The data directory: private to its owner, held by one server at a time, of a known version.

``VERSION`` says which release wrote it, ``server.lock`` who holds it. The lock is the operating system's
and goes with the process: nothing is stale after a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from tessera import __version__
from tessera.blobs import sync_folder
from tessera.errors import TesseraError, quote

#: Grows when an older release could not work with what this one writes.
FORMAT = 1

_LOCK = "server.lock"
_ADMIN_KEY = "admin.key"


class DataDirectoryError(TesseraError):
    """The data directory cannot be used; the message says why and what to do."""

    type, status = "DataDirectoryError", 500


@dataclass(frozen=True)
class Owner:
    """The server that holds a data directory."""

    pid: int
    host: str
    url: str
    started_at: str


def prepare(path: Path) -> None:
    """Make the directory (mode 0700) and its ``VERSION``. Repeating it changes nothing.

    Raises `DataDirectoryError` when a newer release wrote it, or when it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_version(path)
        version = path / "VERSION"
        if not version.exists():
            write_private(version, orjson.dumps({"format": FORMAT, "written_by": __version__}) + b"\n")
    except OSError as error:
        raise DataDirectoryError(
            f"The data directory {path} cannot be used: {error.strerror}. Choose another with --data."
        ) from error


def check_version(path: Path) -> None:
    """Raise `DataDirectoryError` when a release newer than this one wrote the directory."""
    try:
        found = orjson.loads((path / "VERSION").read_bytes())
        form, writer = int(found["format"]), str(found["written_by"])
    except FileNotFoundError:
        return
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataDirectoryError(
            f"{path / 'VERSION'} cannot be read; is {path} really a data directory of Tessera?"
        ) from error
    if form > FORMAT:
        raise DataDirectoryError(
            f"The data directory {path} was written by Tessera {writer} (format {form}); this is Tessera "
            f"{__version__} (format {FORMAT}). Install Tessera {writer} or newer; nothing was changed."
        )


@contextlib.contextmanager
def held(path: Path) -> Iterator[Callable[[Owner], None]]:
    """Hold the directory while the block runs; it is given a function that says who holds it.

    Raises `DataDirectoryError` at once when another process holds it; the message names that one.
    """
    # Not inherited by children (Python opens files so): a worker that outlives the server holds nothing.
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirectoryError(_held_message(path)) from None
        os.ftruncate(descriptor, 0)

        def announce(owner: Owner) -> None:
            record = orjson.dumps(asdict(owner))
            os.pwrite(descriptor, record, 0)
            os.ftruncate(descriptor, len(record))

        yield announce
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> Owner | None:
    """Return who holds the directory now; None when nobody does.

    A server that was killed leaves its record behind, and its port may be another program's by now.
    """
    try:
        with (path / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return owner_of(path)
    except OSError:
        pass
    return None


def owner_of(path: Path) -> Owner | None:
    """Return who holds the directory, as far as the lock file tells."""
    try:
        return Owner(**orjson.loads((path / _LOCK).read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError):
        return None


def read_admin_key(path: Path) -> str | None:
    """Return the first key, if this directory still keeps it."""
    try:
        return (path / _ADMIN_KEY).read_text().strip() or None
    except OSError:
        return None


def write_admin_key(path: Path, key: str) -> None:
    """Keep the first key where only the owner of the directory reads it."""
    write_private(path / _ADMIN_KEY, f"{key}\n".encode())


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, durable on return; a crash leaves the old one or the new one."""
    part = path.with_name(f"{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    sync_folder(path.parent)


def _held_message(path: Path) -> str:
    owner = owner_of(path)
    if owner is None:
        return f"Another server holds the data directory {path} and is just starting or ending."
    return (
        f"Another server holds the data directory {path}: pid {owner.pid} on {quote(owner.host)}, {owner.url}, "
        f"since {owner.started_at}. Use that one, stop it (kill {owner.pid}), or choose another --data."
    )
