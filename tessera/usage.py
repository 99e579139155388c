"""Usage: how many requests each key made, by route and hour. Counted in memory, written a little later."""

from __future__ import annotations

import threading
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tessera.context import Principal, Warehouse
from tessera.db.engine import insert_or_add, now
from tessera.db.tables import api_keys, usage_counts
from tessera.errors import NotFoundError
from tessera.models.organizations import EndpointUsage, UsageCount, UsageResponse
from tessera.scopes import check_administers

if TYPE_CHECKING:
    from tessera.db.engine import Database

#: Counts are written this often; a crash loses no more than these seconds.
FLUSH_INTERVAL_S = 2.0

_HOUR = len("2026-11-23T10")
_DAY = len("2026-11-23")


class Usage:
    """Counts requests. `note` takes a microsecond; a thread of its own hands the sums to the database's writer."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, principal: Principal, endpoint: str, api_name: str, status: int, ms: float) -> None:
        """Count one request that was answered with `status` after `ms` milliseconds."""
        hour = datetime.now(UTC).strftime("%Y-%m-%dT%H")
        with self._lock:
            count = self._counts[principal.key_id, hour, endpoint, principal.organization_id, api_name]
            count[0] += 1
            count[1] += status >= 400
            count[2] += ms
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Hand what was counted to the database's writer."""
        with self._lock:
            counts, self._counts = self._counts, defaultdict(lambda: [0, 0, 0.0])
        if not counts:
            return
        rows = [
            {
                "key_id": key_id,
                "hour": hour,
                "endpoint": endpoint,
                "organization_id": organization_id,
                "api_name": name,
                "requests": int(requests),
                "errors": int(errors),
                "duration_ms": round(ms),
            }
            for (key_id, hour, endpoint, organization_id, name), (requests, errors, ms) in counts.items()
        ]
        self._db.later(
            lambda connection: insert_or_add(
                connection, usage_counts, rows, sums=("requests", "errors", "duration_ms")
            )
        )

    def close(self) -> None:
        """Write what is left."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.flush()

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_INTERVAL_S):
            self.flush()


def of_organization(wh: Warehouse, principal: Principal, start: str | None, end: str | None) -> UsageResponse:
    """Return the requests of the organization, by key, class and day; from the month's start unless told."""
    check_administers(principal, "organization")
    return _usage(wh, principal, None, start, end)


def of_key(
    wh: Warehouse, principal: Principal, key_id: str, start: str | None, end: str | None
) -> UsageResponse:
    """Return the requests of one key, by class and day. Raises `NotFoundError`."""
    _check_key(wh, principal, key_id)
    return _usage(wh, principal, key_id, start, end)


def endpoints_of_key(
    wh: Warehouse, principal: Principal, key_id: str, start: str | None, end: str | None
) -> list[EndpointUsage]:
    """Return the requests of one key by route, the most used first. Raises `NotFoundError`."""
    _check_key(wh, principal, key_id)
    start, end = _between(start, end)
    with wh.db.read() as connection:
        rows = connection.execute(
            sa.select(usage_counts.c.endpoint, usage_counts.c.api_name, *_SUMS)
            .where(*_chosen(principal, key_id, start, end))
            .group_by(usage_counts.c.endpoint, usage_counts.c.api_name)
            .order_by(sa.func.sum(usage_counts.c.requests).desc(), usage_counts.c.endpoint)
        )
        return [
            EndpointUsage(endpoint=endpoint, api_name=name, **_counted(*sums))
            for endpoint, name, *sums in rows
        ]


_SUMS = tuple(
    sa.func.coalesce(sa.func.sum(usage_counts.c[name]), 0) for name in ("requests", "errors", "duration_ms")
)


def _usage(
    wh: Warehouse, principal: Principal, key_id: str | None, start: str | None, end: str | None
) -> UsageResponse:
    start, end = _between(start, end)
    chosen = _chosen(principal, key_id, start, end)
    day = sa.func.substr(usage_counts.c.hour, 1, _DAY)
    with wh.db.read() as connection:

        def grouped(column: Any) -> dict[str, UsageCount]:
            rows = connection.execute(
                sa.select(column, *_SUMS).where(*chosen).group_by(column).order_by(column)
            )
            return {str(name): UsageCount(**_counted(*sums)) for name, *sums in rows}

        total = connection.execute(sa.select(*_SUMS).where(*chosen)).one()
        return UsageResponse(
            organization_id=principal.organization_id,
            key_id=key_id,
            start=start,
            end=end,
            total=UsageCount(**_counted(*total)),
            by_api=grouped(usage_counts.c.api_name),
            by_day=grouped(day),
            by_key=grouped(usage_counts.c.key_id) if key_id is None else None,
        )


def _between(start: str | None, end: str | None) -> tuple[str, str]:
    at = now()
    return start or f"{at[:7]}-01T00:00:00.000000Z", end or at


def _chosen(principal: Principal, key_id: str | None, start: str, end: str) -> list[sa.ColumnElement[bool]]:
    conditions = [
        usage_counts.c.organization_id == principal.organization_id,
        usage_counts.c.hour >= start[:_HOUR],
        usage_counts.c.hour <= end[:_HOUR],
    ]
    return conditions if key_id is None else [*conditions, usage_counts.c.key_id == key_id]


def _counted(requests: int, errors: int, duration_ms: int) -> dict[str, Any]:
    return {
        "requests": int(requests),
        "errors": int(errors),
        "average_ms": round(float(duration_ms) / requests, 2) if requests else 0.0,
    }


def _check_key(wh: Warehouse, principal: Principal, key_id: str) -> None:
    """Refuse a key of another organization as one that does not exist."""
    check_administers(principal, "api_key")
    with wh.db.read() as connection:
        found = connection.execute(
            sa.select(api_keys.c.key_id).where(
                api_keys.c.key_id == key_id, api_keys.c.organization_id == principal.organization_id
            )
        ).first()
    if found is None:
        raise NotFoundError("key", key_id)
