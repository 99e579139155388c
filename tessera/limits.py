"""Limits: requests a minute by key and class of route, and how many resources an organization may have.

Both are off unless the server's settings, an organization or a key states them. The strictest of all
that are stated counts, so nobody raises what the operator set.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.config import QUOTAS, RATE_CLASSES, Settings, parse_numbers
from tessera.context import Principal, Warehouse
from tessera.db.tables import (
    api_keys,
    batches,
    buckets,
    clusters,
    collections,
    namespaces,
    retrievers,
    taxonomies,
)
from tessera.errors import QuotaExceededError, TooManyRequestsError

WINDOW_S = 60
#: What is a row as soon as it is asked for. No transaction that takes a place in one of these holds a namespace's row.
_COUNTED_EXACTLY = frozenset(QUOTAS) - {"documents", "batch_objects"}

#: Requests a minute of each class by account type, as the vendor's quotas guide states them.
_RATE_TIERS: Mapping[str, int] = {"free": 60, "pro": 600, "team": 600}
#: Resources by account type, from the same guide; an enterprise is only bound in batches at a time.
_QUOTA_TIERS: Mapping[str, Mapping[str, int]] = {
    "free": {
        "namespaces": 1,
        "buckets": 5,
        "collections": 5,
        "retrievers": 3,
        "taxonomies": 2,
        "clusters": 1,
        "documents": 10_000,
        "api_keys": 2,
        "batch_objects": 100,
        "active_batches": 1,
    },
    "pro": {
        "namespaces": 10,
        "buckets": 50,
        "collections": 50,
        "retrievers": 50,
        "taxonomies": 20,
        "clusters": 10,
        "documents": 1_000_000,
        "api_keys": 10,
        "batch_objects": 10_000,
        "active_batches": 3,
    },
    "team": {
        "namespaces": 10,
        "buckets": 50,
        "collections": 50,
        "retrievers": 50,
        "taxonomies": 20,
        "clusters": 10,
        "documents": 1_000_000,
        "api_keys": 10,
        "batch_objects": 10_000,
        "active_batches": 5,
    },
    "enterprise": {"active_batches": 10},
}

#: Keys whose buckets are kept; beyond it those that are full, and so say nothing, are dropped.
_KEPT = 10_000


def api_name(method: str, template: str) -> str:
    """Return the class of a route: ``search`` for ``POST /v1/retrievers/{retriever_id}/execute``."""
    parts = template.split("/")
    if parts[-1] == "execute" or template.startswith(("/v1/documents/search", "/v1/taxonomies/execute/")):
        return "search"
    if "uploads" in parts:
        return "upload"
    if (
        "batches" in parts
        or "clusters" in parts
        or parts[2:3] == ["inference"]
        or parts[-1] in ("trigger", "retry")
    ):
        return "compute" if method != "GET" and parts[-1] != "list" else "metadata"
    if "objects" in parts or "documents" in parts or "interactions" in parts:
        return "data"
    return "metadata"


def allowed(settings: Settings, principal: Principal) -> dict[str, int]:
    """Return the requests a minute that the key may make, by class; classes without a limit are absent."""
    stated = _stated(settings.rate_limits, principal.account_type)
    if not stated and not principal.rate_limits and principal.key_limit is None:
        return {}
    of_key = dict.fromkeys(RATE_CLASSES, principal.key_limit) if principal.key_limit is not None else None
    return strictest(stated, principal.rate_limits, of_key)


def strictest(*stated: Mapping[str, int] | None) -> dict[str, int]:
    """Return the lowest of the limits of each class that are stated; classes that none states are absent.

    >>> strictest({"data": 5}, None, {"data": 7, "search": 3})
    {'data': 5, 'search': 3}
    """
    found: dict[str, int] = {}
    for limits in stated:
        for name, number in (limits or {}).items():
            found[name] = min(number, found.get(name, number))
    return found


@lru_cache(maxsize=64)
def _stated(setting: str | None, account_type: str) -> Mapping[str, int]:
    numbers = parse_numbers(setting, RATE_CLASSES)
    if numbers == "tiers":
        rate = _RATE_TIERS.get(account_type)
        return dict.fromkeys(RATE_CLASSES, rate) if rate is not None else {}
    return numbers


@dataclass(frozen=True, slots=True)
class Allowance:
    """Where a key stands after a request of one class: `reset_s` seconds until its bucket is full again."""

    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell a client where it stands."""
        return [
            (b"x-ratelimit-limit", str(self.limit).encode()),
            (b"x-ratelimit-remaining", str(self.remaining).encode()),
            (b"x-ratelimit-reset", str(math.ceil(time.time() + self.reset_s)).encode()),
            (b"x-ratelimit-window", str(WINDOW_S).encode()),
        ]


class RateLimiter:
    """A token bucket for each key and class: it holds a minute's requests and fills up evenly.

    Kept in memory: a restart forgets it, and each of several servers counts its own requests.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        #: (key, class) → (tokens, when they were counted, limit)
        self._buckets: dict[tuple[str, str], tuple[float, float, int]] = {}

    def take(self, principal: Principal, name: str) -> Allowance | None:
        """Take one request of class `name` from the key's bucket; None when it is not limited.

        Raises `TooManyRequestsError` that says when the next one is allowed.
        """
        limit = allowed(self._settings, principal).get(name)
        if limit is None:
            return None
        rate = limit / WINDOW_S
        with self._lock:
            at = self._clock()
            tokens, since, before = self._buckets.get((principal.key_id, name), (float(limit), at, limit))
            # A limit that was lowered takes effect at once.
            tokens = (
                min(float(limit), tokens + (at - since) * rate) if before == limit else min(limit, tokens)
            )
            granted = tokens >= 1
            if granted:
                tokens -= 1
            if len(self._buckets) > _KEPT:
                self._forget(at)
            self._buckets[principal.key_id, name] = (tokens, at, limit)
        allowance = Allowance(limit, int(tokens), (limit - tokens) / rate)
        if not granted:
            wait_s = (1 - tokens) / rate
            error = TooManyRequestsError(
                f"This key has made its {limit} {name} requests of this minute; the next one is allowed in "
                f"{math.ceil(wait_s)} s.",
                details={
                    "api_name": name,
                    "limit": limit,
                    "window": WINDOW_S,
                    "retry_after": math.ceil(wait_s),
                },
                retry_after_s=math.ceil(wait_s),
            )
            error.headers = allowance.headers()
            raise error
        return allowance

    def _forget(self, at: float) -> None:
        self._buckets = {
            key: bucket
            for key, bucket in self._buckets.items()
            if bucket[0] + (at - bucket[1]) * bucket[2] / WINDOW_S < bucket[2]
        }


# --- quotas -------------------------------------------------------------------------------------------


def check_quota(
    wh: Warehouse, connection: Connection, principal: Principal, resource: str, adding: int = 1
) -> None:
    """Refuse `adding` more of `resource` when the organization would have more than it may.

    Called in the transaction that adds them, so that two requests cannot both take the last place. Documents are
    counted when they are findable: there two requests may.
    Costs nothing while no quota is set. Raises `QuotaExceededError`.
    """
    limit = _quota(wh.settings.quotas, principal.account_type).get(resource)
    if limit is None:
        return
    if resource in _COUNTED_EXACTLY and connection.dialect.name != "sqlite":
        # SQLite has one writer at a time; elsewhere those who add to one count come one after the other by this.
        lock = sa.func.hashtextextended(f"quota {principal.organization_id} {resource}", 0)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    current = _count(connection, principal.organization_id, resource)
    if current + adding > limit:
        tier = principal.account_type
        raise QuotaExceededError(
            f"This organization ({tier}) may have {limit} {resource.replace('_', ' ')}"
            + (f"; there are {current}. Delete some, or" if current else "; ")
            + " ask the operator of this server for more (setting quotas).",
            details={"resource": resource, "current": current, "limit": limit, "tier": tier},
        )


@lru_cache(maxsize=64)
def _quota(setting: str | None, account_type: str) -> Mapping[str, int]:
    from tessera.config import QUOTAS

    numbers = parse_numbers(setting, QUOTAS)
    return _QUOTA_TIERS.get(account_type, {}) if numbers == "tiers" else numbers


def _count(connection: Connection, organization_id: str, resource: str) -> int:
    mine = namespaces.c.organization_id == organization_id
    if resource == "batch_objects":
        return 0
    if resource == "api_keys":
        statement = sa.select(sa.func.count()).where(
            api_keys.c.organization_id == organization_id, api_keys.c.status == "active"
        )
    elif resource == "namespaces":
        statement = sa.select(sa.func.count()).select_from(namespaces).where(mine)
    elif resource == "documents":
        statement = sa.select(sa.func.coalesce(sa.func.sum(namespaces.c.document_count), 0)).where(mine)
    else:
        table = {
            "buckets": buckets,
            "collections": collections,
            "retrievers": retrievers,
            "taxonomies": taxonomies,
            "clusters": clusters,
            "active_batches": batches,
        }[resource]
        statement = (
            sa.select(sa.func.count())
            .select_from(table)
            .join(namespaces, namespaces.c.namespace_id == table.c.namespace_id)
            .where(mine)
        )
        if table is batches:
            statement = statement.where(batches.c.status.in_(("PENDING", "IN_PROGRESS", "PROCESSING")))
    return int(connection.execute(statement).scalar_one())
