"""Deliveries: brings recorded events to the receivers of webhooks.

All truth is in ``webhook_deliveries``: a row is sent because it says PENDING, is due, and no live server holds it.
A server takes rows up under the token of its slot and records what became of them; what a server held that has
ended is another's. So an event arrives at least once, under one id, and with several servers each is sent by one.

Headers and signature are those of Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks).
"""

from __future__ import annotations

import base64
import hmac
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import events, failpoints
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import webhook_deliveries as rows
from tessera.db.tables import webhooks
from tessera.errors import TesseraError
from tessera.fetching import FetchError
from tessera.models.webhooks import DeliveryStatus, secret_bytes
from tessera.slots import Slot

logger = logging.getLogger("tessera.deliveries")

#: Each wait is so many times the one before, and none is longer than that.
BACKOFF = 4.0
MAX_WAIT_S = 6 * 3600.0
#: Waits differ by up to this part, so that what failed together does not come back together.
JITTER = 0.2
#: After so many failures in a row a webhook rests; then one event at a time finds out whether it is back.
REST_AFTER = 5
MAX_REST_S = 300.0
#: Webhooks with an attempt under way. Each has one whatever the others do, so that nobody waits for a slow receiver;
#: only beyond this number there is a queue, in which those that fail stand last.
MAX_UNDER_WAY = 256
#: Attempts under way of one webhook whose last attempt went well, and of all such beyond the first of each.
LANES = 4
MORE_LANES = 64
#: Attempts whose course is kept.
KEPT_ATTEMPTS = 20
#: How often deliveries that ended long ago, and those that were never brought, are looked for.
SWEEP_S = 600.0
_SWEPT_ROWS = 1000
#: How long an ending server waits for attempts under way.
PARK_S = 2.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery that this server holds, with all that sending it needs; `channel` is null when it is gone."""

    delivery_id: str
    webhook_id: str
    event_id: str
    body: bytes
    attempts: int
    history: Sequence[Mapping[str, Any]]
    created_at: str
    channel: Mapping[str, Any] | None
    secret: str
    holder: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt: `error` is null when it went well; a `final` failure is not repeated.

    One that was given `back` was no attempt at all: the server ends.
    """

    taken: Taken
    at: str
    duration_ms: float
    status_code: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    final: bool = False
    back: bool = False


# --- one attempt ---------------------------------------------------------------------------------------


def signature(secret: bytes, event_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of ``webhook-signature`` for a body sent at `timestamp` (seconds since 1970)."""
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return f"v1,{base64.b64encode(hmac.digest(secret, signed, 'sha256')).decode()}"


def attempt(wh: Warehouse, taken: Taken, stop: threading.Event) -> Outcome:
    """Send an event once and tell what came of it; raises nothing."""
    at, begun = now(), time.monotonic()

    def outcome(**fields: Any) -> Outcome:
        return Outcome(taken, at, round((time.monotonic() - begun) * 1000, 1), **fields)

    if taken.channel is None:
        return outcome(error="The webhook has no such channel any more.", final=True)
    config = taken.channel["configs"]
    try:
        secret = secret_bytes(wh.vault.unseal(taken.secret))
        url = wh.vault.unseal(config["url"])
        headers = {name: wh.vault.unseal(value) for name, value in (config["headers"] or {}).items()}
        if secret is None or not url:
            return outcome(error="Its secret or URL was lost with the master key: PUT the webhook anew.")
        timestamp = int(time.time())
        headers |= {
            "Content-Type": "application/json",
            "webhook-id": taken.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secret, taken.event_id, timestamp, taken.body),
        }
        posted = wh.fetcher.post(url, taken.body, headers, timeout_s=config["timeout"], stop=stop)
    except FetchError as error:
        return outcome(back=True) if stop.is_set() else outcome(error=error.message)
    except TesseraError as error:
        return outcome(error=error.message)
    except Exception as error:
        logger.exception("delivery %s failed", taken.delivery_id)
        return outcome(error=f"Internal error: {type(error).__name__}. The server's log has more.")
    failpoints.reach("webhook.sent")
    if 200 <= posted.status < 300:
        return outcome(status_code=posted.status)
    told = f"Answered with status {posted.status}, not 2xx."
    if 300 <= posted.status < 400:
        told += " Redirects are not followed: set the URL that it leads to."
    if posted.status == 410:
        told += " 410 says that it wants none: this event is not sent again."
    return outcome(
        status_code=posted.status,
        error=told,
        retry_after_s=_seconds(posted.retry_after),
        final=posted.status == 410,
    )


def wait_s(attempts: int, first_s: float, chance: float, retry_after_s: float | None = None) -> float:
    """Return how long to wait after the `attempts`-th attempt; `chance` is a random number from 0 to 1.

    >>> [wait_s(n, 5, 0.5) for n in (1, 2, 3, 9)]
    [5.0, 20.0, 80.0, 21600.0]
    """
    backoff = min(MAX_WAIT_S, first_s * BACKOFF ** min(attempts - 1, 30))
    backoff *= 1 + JITTER * (2 * chance - 1)
    return max(backoff, min(retry_after_s or 0.0, MAX_WAIT_S))


def _seconds(retry_after: str | None) -> float | None:
    """Return ``Retry-After`` in seconds; the form with a date is not worth a clock that may differ."""
    return float(retry_after) if retry_after and retry_after.isdecimal() and len(retry_after) < 8 else None


# --- taking up and recording -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """A webhook with something to send, from `ready_at` on; `failures` of its attempts in a row went wrong."""

    webhook_id: str
    failures: int
    ready_at: str


def waiting(connection: Connection) -> list[Waiting]:
    """Return the active webhooks that have something to send, now or later, the one that waits longest first."""
    first_due = (
        sa.select(sa.func.min(rows.c.due_at))
        .where(
            rows.c.webhook_id == webhooks.c.webhook_id,
            rows.c.status == DeliveryStatus.PENDING,
            rows.c.holder.is_(None),
        )
        .scalar_subquery()
    )
    found = connection.execute(
        sa.select(
            webhooks.c.webhook_id, webhooks.c.consecutive_failures, webhooks.c.rest_until, first_due
        ).where(webhooks.c.is_active)
    ).all()
    ready = [
        Waiting(webhook_id, failures, max(due_at, rest_until))
        for webhook_id, failures, rest_until, due_at in found
        if due_at is not None
    ]
    return sorted(ready, key=lambda item: item.ready_at)


def take(connection: Connection, webhook_id: str, limit: int, holder: str) -> list[Taken]:
    """Take up to `limit` of a webhook's deliveries that are due; nobody else takes them while `holder` lives."""
    webhook = (
        connection.execute(
            sa.select(webhooks.c.secret, webhooks.c.channels).where(
                webhooks.c.webhook_id == webhook_id, webhooks.c.is_active
            )
        )
        .mappings()
        .one_or_none()
    )
    if webhook is None:
        return []
    free = sa.and_(rows.c.status == DeliveryStatus.PENDING, rows.c.holder.is_(None), rows.c.due_at <= now())
    due = (
        sa.select(rows.c.delivery_id)
        .where(rows.c.webhook_id == webhook_id, free)
        .order_by(rows.c.due_at)
        .limit(limit)
    )
    taken = connection.execute(
        sa.update(rows)
        .where(rows.c.delivery_id.in_(list(connection.execute(due).scalars())), free)
        .values(holder=holder)
        .returning(rows)
    ).mappings()
    channels = webhook["channels"]
    return [
        Taken(
            delivery_id=row["delivery_id"],
            webhook_id=webhook_id,
            event_id=row["event_id"],
            body=row["body"],
            attempts=row["attempts"],
            history=row["history"],
            created_at=row["created_at"],
            channel=channels[row["channel"]] if row["channel"] < len(channels) else None,
            secret=webhook["secret"],
            holder=holder,
        )
        for row in sorted(taken, key=lambda row: row["due_at"])
    ]


def record(connection: Connection, outcomes: Sequence[Outcome], first_s: float, give_up_s: float) -> None:
    """Write down what became of attempts, and what it says of their webhooks.

    What was taken for dead and given to another server meanwhile is that one's to record.
    """
    for outcome in outcomes:
        taken = outcome.taken
        ours = sa.and_(rows.c.delivery_id == taken.delivery_id, rows.c.holder == taken.holder)
        if outcome.back:
            connection.execute(sa.update(rows).where(ours).values(holder=None))
            continue
        at, attempts = now(), taken.attempts + 1
        status, due_at = DeliveryStatus.DELIVERED, at
        if outcome.error is not None:
            pause_s = wait_s(attempts, first_s, random.random(), outcome.retry_after_s)
            status, due_at = DeliveryStatus.PENDING, _later(pause_s)
            if outcome.final or due_at > _later(give_up_s, taken.created_at):
                status, due_at = DeliveryStatus.FAILED, at
        told = {
            "at": outcome.at,
            "duration_ms": outcome.duration_ms,
            "status_code": outcome.status_code,
            "error": outcome.error,
        }
        connection.execute(
            sa.update(rows)
            .where(ours)
            .values(
                status=status,
                holder=None,
                due_at=due_at,
                attempts=attempts,
                history=[*taken.history, told][-KEPT_ATTEMPTS:],
                updated_at=at,
            )
        )
        _record_health(connection, outcome, first_s)


def _record_health(connection: Connection, outcome: Outcome, first_s: float) -> None:
    """Count a webhook's failures in a row; after some it rests, longer each time."""
    this = webhooks.c.webhook_id == outcome.taken.webhook_id
    if outcome.error is None:
        connection.execute(
            sa.update(webhooks)
            .where(this, webhooks.c.consecutive_failures > 0)
            .values(
                consecutive_failures=0,
                first_failure_at=None,
                last_failure_at=None,
                last_failure_cause=None,
                rest_until="",
            )
        )
        return
    failures = connection.execute(
        sa.update(webhooks)
        .where(this)
        .values(
            consecutive_failures=webhooks.c.consecutive_failures + 1,
            first_failure_at=sa.func.coalesce(webhooks.c.first_failure_at, outcome.at),
            last_failure_at=outcome.at,
            last_failure_cause=outcome.error,
        )
        .returning(webhooks.c.consecutive_failures)
    ).scalar()
    if failures is not None and failures >= REST_AFTER:
        rest_s = min(MAX_REST_S, first_s * 2.0 ** min(failures - REST_AFTER, 30))
        connection.execute(sa.update(webhooks).where(this).values(rest_until=_later(rest_s)))


def sweep(wh: Warehouse) -> bool:
    """Give up what was not brought in time and forget what ended long ago; return whether there may be more."""
    settings = wh.settings
    mine = rows.c.webhook_id == webhooks.c.webhook_id
    late = sa.and_(
        rows.c.status == DeliveryStatus.PENDING,
        rows.c.holder.is_(None),
        rows.c.created_at < _later(-settings.webhook_give_up_s),
    )
    old = sa.and_(
        rows.c.status.in_([DeliveryStatus.DELIVERED, DeliveryStatus.FAILED]),
        rows.c.due_at < _later(-settings.webhook_log_days * 86_400),
    )
    with wh.db.read() as connection:
        # By webhook, so that their index serves.
        given_up, ended = (
            list(
                connection.execute(
                    sa.select(rows.c.delivery_id)
                    .select_from(webhooks)
                    .join(rows, mine)
                    .where(which)
                    .limit(_SWEPT_ROWS)
                ).scalars()
            )
            for which in (late, old)
        )
    if given_up or ended:
        at = now()
        with wh.db.write() as connection:
            connection.execute(
                sa.update(rows)
                .where(rows.c.delivery_id.in_(given_up), late)
                .values(status=DeliveryStatus.FAILED, due_at=at, updated_at=at)
            )
            connection.execute(sa.delete(rows).where(rows.c.delivery_id.in_(ended)))
    return max(len(given_up), len(ended)) == _SWEPT_ROWS


def _later(seconds: float, since: str | None = None) -> str:
    """Return the moment `seconds` after `since`, or after now, as the database holds it."""
    begin = datetime.now(UTC) if since is None else datetime.fromisoformat(since)
    return (begin + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# --- the deliverer ---------------------------------------------------------------------------------------


class Deliverer:
    """Sends what is due, one for each server: a thread that sleeps until there is something, and one for each attempt.

    `slot` returns the slot under which this server works, None while it has none; `alive` the tokens of all live
    slots.
    """

    def __init__(self, wh: Warehouse, slot: Callable[[], Slot | None], alive: Callable[[], set[str]]) -> None:
        self._wh, self._slot, self._alive = wh, slot, alive
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        #: What is being sent, by delivery; what came of it and is not recorded yet.
        self._under_way: dict[str, Taken] = {}
        self._outcomes: list[Outcome] = []
        #: Webhooks whose last attempt here went well.
        self._proven: set[str] = set()
        self._next_look = self._next_sweep = 0.0
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier server left."""
        self._wh.db.listen(events.TOPIC, self._wake.set)
        self._thread.start()

    def wake(self) -> None:
        """Look now whether something is due."""
        self._wake.set()

    def stop(self) -> None:
        """Send no more; attempts under way are given up after a moment, and are the next server's."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.is_set():
            self._wake.wait(wait_s)
            self._wake.clear()
            try:
                wait_s = self._turn()
            except TesseraError as error:
                logger.warning("webhooks rest: %s", error.message)
                wait_s = 1.0
            except Exception:
                # Whatever the database does, this thread lives: nothing else would deliver again.
                logger.exception("webhooks rest")
                wait_s = 1.0
        with self._idle:
            self._idle.wait_for(lambda: not self._under_way, PARK_S)
        try:
            self._record()
        except (TesseraError, sa.exc.SQLAlchemyError) as error:
            logger.warning("deliveries are repeated by the next server: %s", error)

    def _turn(self) -> float:
        """Record what came back, send what is due, and return for how long there is nothing to do."""
        self._record()
        slot = self._slot()
        if slot is None:
            return 1.0
        settings = self._wh.settings
        if time.monotonic() >= self._next_look:
            self._free_orphans(slot)
            self._next_look = time.monotonic() + settings.job_lease_s
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + (1.0 if sweep(self._wh) else SWEEP_S)
        with self._wh.db.read() as connection:
            found = waiting(connection)
        at = now()
        shares = self._shares([item for item in found if item.ready_at <= at])
        if shares:
            with self._wh.db.write() as connection:
                taken = [
                    item
                    for webhook_id, limit in shares
                    for item in take(connection, webhook_id, limit, slot.token)
                ]
            failpoints.reach("webhook.taken")
            for item in taken:
                self._send(item)
        # What is ready and found no room goes when an attempt ends, which wakes this thread.
        waits = [_seconds_until(item.ready_at) for item in found if item.ready_at > at]
        return min([self._next_look - time.monotonic(), *waits])

    def _shares(self, ready: Sequence[Waiting]) -> list[tuple[str, int]]:
        """Return how many deliveries of each webhook to take up now."""
        with self._lock:
            mine = Counter(item.webhook_id for item in self._under_way.values())
        free, more = MAX_UNDER_WAY - len(mine), MORE_LANES - (mine.total() - len(mine))
        shares: list[tuple[str, int]] = []
        for item in sorted(ready, key=lambda item: item.failures > 0):
            first = 1 if not mine[item.webhook_id] and free > 0 else 0
            share = first
            if item.webhook_id in self._proven and not item.failures and (first or mine[item.webhook_id]):
                share += max(0, min(more, LANES - first - mine[item.webhook_id]))
            if share:
                shares.append((item.webhook_id, share))
                free -= first
                more -= share - first
        return shares

    def _send(self, item: Taken) -> None:
        with self._lock:
            self._under_way[item.delivery_id] = item
        try:
            threading.Thread(target=self._attempt, args=(item,), name="webhook", daemon=True).start()
        except RuntimeError:
            # The system has no more threads; it is freed with the next look.
            with self._lock:
                del self._under_way[item.delivery_id]
            raise

    def _attempt(self, item: Taken) -> None:
        outcome = attempt(self._wh, item, self._stop)
        with self._idle:
            self._outcomes.append(outcome)
            (self._proven.add if outcome.error is None else self._proven.discard)(item.webhook_id)
            del self._under_way[item.delivery_id]
            self._idle.notify_all()
        self._wake.set()

    def _record(self) -> None:
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        if not outcomes:
            return
        settings = self._wh.settings
        try:
            with self._wh.db.write() as connection:
                record(connection, outcomes, settings.webhook_retry_s, settings.webhook_give_up_s)
        except BaseException:
            with self._lock:
                self._outcomes = outcomes + self._outcomes
            raise

    def _free_orphans(self, slot: Slot) -> None:
        """Free what a server held that has ended, and what this one holds by name only."""
        with self._lock:
            known = {*self._under_way, *(outcome.taken.delivery_id for outcome in self._outcomes)}
        with self._wh.db.read() as connection:
            held = connection.execute(
                sa.select(rows.c.delivery_id, rows.c.holder).where(rows.c.holder.is_not(None))
            ).all()
        if not held:
            return
        alive = self._alive() | {slot.token}
        orphans = [
            delivery_id
            for delivery_id, holder in held
            if delivery_id not in known and (holder not in alive or holder == slot.token)
        ]
        if orphans:
            with self._wh.db.write() as connection:
                connection.execute(sa.update(rows).where(rows.c.delivery_id.in_(orphans)).values(holder=None))


def _seconds_until(moment: str) -> float:
    return max(0.0, (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds())
