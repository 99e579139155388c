"""Idempotency keys: a request that is sent again has one effect and gets what the first one made.

The key is claimed in the transaction that makes the resource, so both are there or neither is: there
is no state "in progress" that a crash could leave behind, and of two requests at once the second waits
for the first and then finds its claim. Kept for 24 hours per organization and route.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from tessera.context import Principal
from tessera.db.engine import now
from tessera.db.tables import idempotency
from tessera.errors import ConflictError, Problem, ValidationError, quote

KEPT_FOR = timedelta(hours=24)
#: One claim in this many also removes what is too old to be asked for.
_SWEEP_EVERY = 256

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Once:
    """A request that shall have one effect: whose it is, its route, its key and a digest of its body."""

    organization_id: str
    route: str
    key: str
    body_hash: bytes


def once(principal: Principal, route: str, key: str | None, body: object) -> Once | None:
    """Return what identifies a request with header ``Idempotency-Key: key``; None when there is no key.

    `route` names the operation with the ids of its path (``POST /v1/buckets/bkt_…/objects``), `body` is what
    the request means as plain JSON values: spelling and order of keys make no difference.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise ValidationError(
            [
                Problem(
                    ("header", "Idempotency-Key"),
                    f"Idempotency-Key is {quote(key)}; 1 to 255 visible ASCII characters without blanks are allowed, "
                    "for example a UUID.",
                    "idempotency_key",
                )
            ]
        )
    digest = hashlib.sha256(
        orjson.dumps(body, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    ).digest()
    return Once(principal.organization_id, route, key, digest)


def claim(connection: Connection, request: Once, resource_id: str) -> str | None:
    """Claim the request's key for `resource_id`, which the same write transaction is about to make.

    Returns None when this is the first such request, else the id that the first one made: answer with
    that resource and make nothing. Raises `ConflictError` when the key was used with another body.
    """
    oldest = (datetime.now(UTC) - KEPT_FOR).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = sa.and_(
        idempotency.c.organization_id == request.organization_id,
        idempotency.c.route == request.route,
        idempotency.c.key == request.key,
    )
    old = idempotency.c.created_at < oldest
    everywhere = request.body_hash[0] % _SWEEP_EVERY == 0
    connection.execute(sa.delete(idempotency).where(old if everywhere else sa.and_(mine, old)))
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    claimed = connection.execute(
        dialect.insert(idempotency)
        .values(
            organization_id=request.organization_id,
            route=request.route,
            key=request.key,
            body_hash=request.body_hash,
            resource_id=resource_id,
            created_at=now(),
        )
        .on_conflict_do_nothing()
        .returning(idempotency.c.resource_id)
    ).scalar()
    if claimed is not None:
        return None
    return _first(connection, request, mine)


def find(connection: Connection, request: Once) -> str | None:
    """Return the id that an earlier such request made, without claiming anything; None when there is none.

    For effects outside the database, which must not begin twice. Raises `ConflictError` as `claim` does.
    """
    oldest = (datetime.now(UTC) - KEPT_FOR).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    mine = sa.and_(
        idempotency.c.organization_id == request.organization_id,
        idempotency.c.route == request.route,
        idempotency.c.key == request.key,
        idempotency.c.created_at >= oldest,
    )
    exists = connection.execute(sa.select(sa.literal(1)).select_from(idempotency).where(mine)).scalar()
    return _first(connection, request, mine) if exists else None


def _first(connection: Connection, request: Once, mine: sa.ColumnElement[bool]) -> str:
    known = connection.execute(
        sa.select(idempotency.c.body_hash, idempotency.c.resource_id).where(mine)
    ).one()
    if bytes(known.body_hash) != request.body_hash:
        raise ConflictError(
            f"Idempotency-Key {quote(request.key)} was used for another request to this route within 24 hours. Send "
            "that request's body again, or use a new key.",
            details={"idempotency_key": request.key, "resource_id": known.resource_id},
        )
    return str(known.resource_id)
