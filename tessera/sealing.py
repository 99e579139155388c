"""Secrets at rest: credentials of other systems that the server must be able to use again.

AES-256-GCM under a key that is derived from the server's signing key, which lies in the data directory
and never in the database. A copy of the database alone opens nothing.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import TYPE_CHECKING

from tessera.errors import StorageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MARK = "sealed:1:"
_NONCE_BYTES = 12


def seal(signing_key: bytes, secret: str) -> str:
    """Return `secret` encrypted and authenticated, as text for a column."""
    nonce = os.urandom(_NONCE_BYTES)
    box = _cipher(signing_key).encrypt(nonce, secret.encode(), _MARK.encode())
    return _MARK + base64.b64encode(nonce + box).decode()


def unseal(signing_key: bytes, sealed: str) -> str:
    """Return the secret inside `sealed`. Raises `StorageError` when the signing key is another one."""
    from cryptography.exceptions import InvalidTag

    try:
        raw = base64.b64decode(sealed.removeprefix(_MARK), validate=True)
        return _cipher(signing_key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _MARK.encode()).decode()
    except (InvalidTag, ValueError) as error:
        raise StorageError(
            "A stored credential cannot be opened: signing.key is not the one it was stored with. Restore that "
            "file, or set the credential again."
        ) from error


def _cipher(signing_key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hashlib.sha256(b"tessera sealing\x00" + signing_key).digest())
