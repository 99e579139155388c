"""Ids: a prefix that names the noun, then 16 random hex digits; documents carry a UUIDv5.

Prefixes are those of the API (`contract`): ``ns_ bkt_ obj_ blob_ btch_ col_ doc_ ret_ exec_ tsk_ org_ usr_ key_``;
``fail_`` is ours.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Sequence

#: Root of every name-based id of this project; a random constant, fixed for good.
_ROOT = uuid.UUID("5f0d7c4e-9f0b-4b0e-8d5b-0d9a4d1b7c55")
_ROOT_BYTES = _ROOT.bytes


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``ns_0f3a9c5e77d1b2c4``."""
    return f"{prefix}_{secrets.token_hex(8)}"


def document_id(collection_id: str, source_id: str, position: Sequence[str | int]) -> str:
    """Return the id of the document at `position` of a source: the same input gives the same id."""
    key = "\x1f".join([collection_id, source_id, *map(str, position)])
    return f"doc_{uuid.uuid5(_ROOT, key).hex}"


def failure_id(batch_id: str, collection_id: str, object_id: str) -> str:
    """Return the id of what fails a row of a batch: the same however often the row is tried."""
    key = "\x1f".join([batch_id, collection_id, object_id])
    return f"fail_{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def point_id(namespace_id: str, document_id: str) -> str:
    """Return the point id (a UUID in canonical form) of a document: never the same in two namespaces."""
    # The UUIDv5 of RFC 9562, as `uuid.uuid5` makes it in four times the time; every write needs one a document.
    name = f"{namespace_id}\x1f{document_id}".encode()
    digest = bytearray(hashlib.sha1(_ROOT_BYTES + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
