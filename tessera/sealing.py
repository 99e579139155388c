"""Secrets at rest: credentials of other systems that the server must be able to use again.

AES-256-GCM under a key derived from the **master key**, which is a setting (``TESSERA_MASTER_KEY``) or a
file of mode 0600, and never in the database: a copy of the database alone opens nothing. A sealed text
names the key that it was sealed with, so that two keys can be in use while one replaces the other.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import failpoints
from tessera.data_directory import write_private
from tessera.errors import StorageError, TesseraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32

#: Every sealed text begins so: ``sealed:2:<key id>:<base64 of nonce and box>``.
MARK = "sealed:"
#: The form of the first release: one key, derived from ``signing.key``. Still opened, never made.
_FIRST_FORM = "sealed:1:"
_FORM = "sealed:2:"
_NONCE_BYTES = 12
_WHAT_TO_DO = (
    "Restore the master key that was in use (setting master_key, or the file master.key), or set the "
    "credential again."
)


_RESTORE = (
    "Restore {path} from a backup, or set TESSERA_MASTER_KEY to the key that was in use. Is it lost for good: "
    "tessera secrets discard --data {path.parent} removes what it sealed, to be set again."
)


class MasterKeyError(TesseraError):
    """The master key is missing, malformed, or readable by others; the message says what to do."""

    type, status = "MasterKeyError", 500


class Vault:
    """Seals with the first of `keys` and opens what any of them sealed.

    `signing_key` opens what the first release sealed. `current` is the public id of the key that seals now;
    nothing else of a key is ever shown.
    """

    def __init__(self, keys: Sequence[bytes], signing_key: bytes | None = None) -> None:
        if not keys:
            raise ValueError("a vault needs a key")
        self.current = key_id(keys[0])
        self._keys = {key_id(key): key for key in keys}
        self._signing_key = signing_key

    def seal(self, secret: str) -> str:
        """Return `secret` encrypted and authenticated, as text for a column."""
        mark = f"{_FORM}{self.current}:"
        nonce = os.urandom(_NONCE_BYTES)
        box = _cipher(self._keys[self.current]).encrypt(nonce, secret.encode(), mark.encode())
        return mark + base64.b64encode(nonce + box).decode()

    def unseal(self, sealed: str) -> str:
        """Return the secret inside `sealed`. Raises `StorageError` when its key is not here or it was altered."""
        from cryptography.exceptions import InvalidTag

        if sealed.startswith(_FIRST_FORM) and self._signing_key is not None:
            mark, key = _FIRST_FORM, self._signing_key
        else:
            mark = sealed[: len(_FORM) + _KEY_ID_LENGTH + 1]
            found = self._keys.get(mark[len(_FORM) : -1])
            if not mark.startswith(_FORM) or found is None:
                raise StorageError(
                    f"A stored credential cannot be opened: the key that sealed it is not here. {_WHAT_TO_DO}"
                )
            key = found
        try:
            raw = base64.b64decode(sealed.removeprefix(mark), validate=True)
            return _cipher(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], mark.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise StorageError(
                f"A stored credential cannot be opened: it was altered. {_WHAT_TO_DO}"
            ) from error

    def is_current(self, sealed: str) -> bool:
        """Whether `sealed` was made with the key that seals now."""
        return sealed.startswith(f"{_FORM}{self.current}:")

    def lacks(self, sealed: str) -> str | None:
        """Return the id of the key that sealed `sealed` if it is not here; None when it is."""
        if sealed.startswith(_FIRST_FORM):
            return None if self._signing_key is not None else "signing.key"
        name = sealed.removeprefix(_FORM)[:_KEY_ID_LENGTH]
        return None if name in self._keys else name

    def reseal(self, value: Any) -> Any:
        """Return `value` (any JSON) with every sealed text in it sealed by the present key.

        What is sealed by it already stays, so this can be repeated. Raises `StorageError` as `unseal`.
        """
        if isinstance(value, str):
            if not value.startswith(MARK) or self.is_current(value):
                return value
            return self.seal(self.unseal(value))
        if isinstance(value, dict):
            return {name: self.reseal(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self.reseal(item) for item in value]
        return value


_KEY_ID_LENGTH = 8


def sealed_in(value: Any) -> Iterator[str]:
    """Yield every sealed text inside `value` (any JSON)."""
    if isinstance(value, str):
        if value.startswith(MARK):
            yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from sealed_in(item)


def key_id(key: bytes) -> str:
    """Return the public name of a key: eight hex digits that say nothing about it."""
    return hashlib.sha256(b"tessera master key id\x00" + key).hexdigest()[:_KEY_ID_LENGTH]


def parse_key(text: str, where: str) -> bytes:
    """Return the 32 bytes that `text` states in hex or base64. Raises `MasterKeyError` that never quotes it."""
    text = text.strip()
    with contextlib.suppress(ValueError):
        if len(key := bytes.fromhex(text)) == KEY_BYTES:
            return key
    with contextlib.suppress(binascii.Error, ValueError):
        if len(key := base64.b64decode(text, validate=True)) == KEY_BYTES:
            return key
    raise MasterKeyError(
        f"{where} must hold {KEY_BYTES} random bytes in hex or base64. Make some with: openssl rand -hex {KEY_BYTES}"
    )


def read_keys(path: Path) -> list[bytes]:
    """Return the keys in a file, one a line, the one that seals first; none when there is no such file.

    Raises `MasterKeyError` when others than its owner may read it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MasterKeyError(f"The master key {path} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise MasterKeyError(f"The master key {path} can be read by others. Run: chmod 600 {path}")
    return [parse_key(line, str(path)) for line in text.splitlines() if line.strip()]


def open_vault(
    path: Path, stated: Sequence[str] = (), signing_key: bytes | None = None, *, make: bool = True
) -> Vault:
    """Return the vault of the keys that settings state (the one that seals first) and of the file at `path`.

    Where there is none at all, and with `make`, a key is made and kept in that file.
    """
    keys = [parse_key(text, "The setting master_key") for text in stated] + read_keys(path)
    if not keys and make:
        keys = [secrets.token_bytes(KEY_BYTES)]
        write_keys(path, keys)
    if not keys:
        raise MasterKeyError(
            f"There is no master key: {path} is missing, and the setting master_key is not set, but credentials are "
            f"stored that one sealed. {_RESTORE.format(path=path)}"
        )
    return Vault(keys, signing_key)


def check_opens(vault: Vault, texts: Iterable[str], path: Path) -> None:
    """Raise `MasterKeyError` when `vault` lacks a key that sealed one of `texts`; `path` names the file of keys."""
    lost = [name for text in texts if (name := vault.lacks(text)) is not None]
    if lost:
        raise MasterKeyError(
            f"This is not the master key that sealed {len(lost)} of the stored credentials: they need "
            f"{', '.join(sorted(set(lost)))}, here is {vault.current}. {_RESTORE.format(path=path)}"
        )


def write_keys(path: Path, keys: Sequence[bytes]) -> None:
    """Keep `keys` in a file of mode 0600, so that a crash leaves the old file or the new one."""
    write_private(path, "".join(f"{key.hex()}\n" for key in keys).encode())


def rotate(
    path: Path, stated: Sequence[str], signing_key: bytes | None, reseal_all: Callable[[Vault], int]
) -> tuple[int, str]:
    """Replace the master key; return how many values were sealed anew, and the id of the key in force.

    Without `stated` keys a new one is made and written to `path` **before** anything is sealed with it,
    beside the old one; the old one leaves that file after `reseal_all` has committed. Killed anywhere,
    the file holds every key that a value may be sealed with, and running it again finishes. With stated
    keys the first of them seals, and the file, which nothing needs any more, goes.
    """
    kept = read_keys(path)
    if stated:
        vault = Vault([*(parse_key(text, "The setting master_key") for text in stated), *kept], signing_key)
        count = reseal_all(vault)
        path.unlink(missing_ok=True)
        return count, key_id(parse_key(stated[0], "The setting master_key"))
    new = secrets.token_bytes(KEY_BYTES)
    write_keys(path, [new, *kept])
    failpoints.reach("rotate.key_written")
    count = reseal_all(Vault([new, *kept], signing_key))
    failpoints.reach("rotate.resealed")
    write_keys(path, [new])
    return count, key_id(new)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hashlib.sha256(b"tessera sealing\x00" + key).digest())
