"""Ids: a prefix that names the noun, then 16 random hex digits; documents carry a UUIDv5.

Prefixes are those of the API (`contract`): ``ns_ bkt_ obj_ blob_ btch_ col_ doc_ ret_ exec_ tsk_ org_ usr_ key_``.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence

#: Root of every name-based id of this project; a random constant, fixed for good.
_ROOT = uuid.UUID("5f0d7c4e-9f0b-4b0e-8d5b-0d9a4d1b7c55")


def new_id(prefix: str) -> str:
    """Return a fresh id such as ``ns_0f3a9c5e77d1b2c4``."""
    return f"{prefix}_{secrets.token_hex(8)}"


def document_id(collection_id: str, source_id: str, position: Sequence[str | int]) -> str:
    """Return the id of the document at `position` of a source: the same input gives the same id."""
    key = "\x1f".join([collection_id, source_id, *map(str, position)])
    return f"doc_{uuid.uuid5(_ROOT, key).hex}"


def point_id(namespace_id: str, document_id: str) -> str:
    """Return the point id (a UUID in canonical form) of a document: never the same in two namespaces."""
    return str(uuid.uuid5(_ROOT, f"{namespace_id}\x1f{document_id}"))
