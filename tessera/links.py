"""Signed, short-lived URLs of blobs: whoever holds one may fetch that one file until it expires.

They are made when an answer is built, after everything else, and never stored. What is signed is the
key and the expiry; only blobs of the namespace that the answer belongs to are ever signed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from tessera.context import Warehouse
from tessera.errors import ForbiddenError

#: A payload value of this form stands for a blob.
SCHEME = "blob://"
LIFETIME_S = 3600

_KEY = re.compile(r"(ns_[0-9a-f]{16})/blobs/[0-9a-f]{64}")


def sign(wh: Warehouse, namespace_id: str, key: str) -> str | None:
    """Return an absolute URL for blob `key`, good for an hour; None for a key that is not of this namespace."""
    if not _is_of(namespace_id, key):
        return None
    expires = int(time.time()) + LIFETIME_S
    return f"{wh.base_url}/v1/blobs/{key}?expires={expires}&signature={_signature(wh, key, expires)}"


def resolve(wh: Warehouse, namespace_id: str, value: object) -> str | None:
    """Return the signed URL for a payload value ``blob://<key>``; None for every other value."""
    key = key_in(namespace_id, value)
    return sign(wh, namespace_id, key) if key is not None else None


def unsigned(wh: Warehouse, namespace_id: str, text: str) -> str | None:
    """Return ``blob://<key>`` for a URL that this server signed for a blob of the namespace, expired or not.

    The fragment, which leads to a place in the file, is no part of that.
    """
    base, _, query = text.partition("#")[0].partition("?")
    key = base.removeprefix(f"{wh.base_url}/v1/blobs/")
    if base == key or not _is_of(namespace_id, key):
        return None
    expires, _, signature = query.removeprefix("expires=").partition("&signature=")
    if not (expires.isascii() and expires.isdigit() and len(expires) < 20):
        return None
    expected = _signature(wh, key, int(expires))
    return f"{SCHEME}{key}" if hmac.compare_digest(expected.encode(), signature.encode()) else None


def key_in(namespace_id: str, value: object) -> str | None:
    """Return the key of a payload value ``blob://<key>`` that names a blob of the namespace; None for every other."""
    if isinstance(value, str) and value.startswith(SCHEME):
        key = value.removeprefix(SCHEME)
        return key if _is_of(namespace_id, key) else None
    return None


def _is_of(namespace_id: str, key: str) -> bool:
    match = _KEY.fullmatch(key)
    return match is not None and match[1] == namespace_id


def verify(wh: Warehouse, key: str, expires: int, signature: str) -> str:
    """Return the namespace id of a key that was signed by us; raise `ForbiddenError` otherwise or when expired."""
    match = _KEY.fullmatch(key)
    if match is None or not hmac.compare_digest(_signature(wh, key, expires).encode(), signature.encode()):
        raise ForbiddenError(
            "This link was not made by this server, or was changed. Read the resource again for a new one."
        )
    if expires < time.time():
        raise ForbiddenError("This link has expired. Read the resource again for a new one.")
    return match[1]


def _signature(wh: Warehouse, key: str, expires: int) -> str:
    return hmac.new(wh.signing_key, f"blob\n{key}\n{expires}".encode(), hashlib.sha256).hexdigest()
