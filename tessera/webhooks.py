"""Webhooks of an organization: who is told of which events, and what became of each.

Events are written down by `events.py` and sent by `deliveries.py`.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import audit, events, listing, names
from tessera.context import Principal, Warehouse
from tessera.db.engine import notify, now
from tessera.db.tables import webhook_deliveries, webhooks
from tessera.errors import (
    AlreadyExistsError,
    BadRequestError,
    NotFoundError,
    Problem,
    quote,
    raise_problems,
)
from tessera.fetching import FetchError
from tessera.ids import new_id
from tessera.models.webhooks import (
    HIDDEN,
    SECRET_PREFIX,
    CreatedWebhookResponse,
    DeliveryStatus,
    EventType,
    ListDeliveriesResponse,
    ListWebhooksRequest,
    ListWebhooksResponse,
    WebhookConfig,
    WebhookDelivery,
    WebhookRequest,
    WebhookResponse,
)
from tessera.pagination import PageRequest
from tessera.scopes import check_administers

#: Every change looks through an organization's webhooks.
MAX_WEBHOOKS = 100
_HURRIED_ROWS = 1000


def create(wh: Warehouse, principal: Principal, request: WebhookRequest) -> CreatedWebhookResponse:
    """Make a webhook; durable when it returns, and told of every event from then on.

    The answer is the only one with the secret. A taken name is a 409, so a repeated call makes no second one.
    """
    check_administers(principal, "organization")
    at, name = now(), names.clean(request.webhook_name)
    secret = request.secret or SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    channels = _channels(wh, request, [])
    with wh.db.write() as connection:
        _check_name(connection, principal, name)
        count = connection.execute(
            sa.select(sa.func.count()).select_from(webhooks).where(_mine(principal))
        ).scalar_one()
        if count >= MAX_WEBHOOKS:
            raise BadRequestError(
                f"An organization has at most {MAX_WEBHOOKS} webhooks. Delete one, or add event types and channels to "
                "one that there is."
            )
        webhook_id = new_id("wh")
        connection.execute(
            webhooks.insert().values(
                webhook_id=webhook_id,
                organization_id=principal.organization_id,
                webhook_name=name,
                event_types=_types(request),
                channels=channels,
                secret=wh.vault.seal(secret),
                is_active=request.is_active is not False,
                created_at=at,
                updated_at=at,
            )
        )
        audit.record(connection, principal, "webhook_created", "organization", webhook_id, {"name": name})
        row = _find(connection, principal, webhook_id)
    return CreatedWebhookResponse(**_answer(wh, row).model_dump(), secret=secret)


def get(wh: Warehouse, principal: Principal, identifier: str) -> WebhookResponse:
    """Return a webhook by id or name."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        return _answer(wh, _find(connection, principal, identifier))


def list_(
    wh: Warehouse, principal: Principal, page: PageRequest, request: ListWebhooksRequest
) -> ListWebhooksResponse:
    """List webhooks, oldest first."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        found = connection.execute(
            sa.select(webhooks).where(_mine(principal)).order_by(webhooks.c.created_at, webhooks.c.webhook_id)
        ).mappings()
        chosen = [
            row
            for row in found
            if (request.event_type is None or request.event_type in row["event_types"])
            and request.is_active in (None, row["is_active"])
        ]
    rows, pagination = listing.cut(wh, page, chosen)
    return ListWebhooksResponse(
        results=[_answer(wh, row) for row in rows], pagination=pagination, total=len(chosen)
    )


def replace(wh: Warehouse, principal: Principal, identifier: str, request: WebhookRequest) -> WebhookResponse:
    """Put a whole webhook in the place of one; id and, unless a new one is sent, secret stay.

    In force at once, also for events that wait for another attempt: they are sent now. What stands hidden in an
    answer and is sent back stays as it is. Repeatable; ends a rest after failures.
    """
    check_administers(principal, "organization")
    name = names.clean(request.webhook_name)
    with wh.db.write() as connection:
        row = _find(connection, principal, identifier)
        if name != row["webhook_name"]:
            _check_name(connection, principal, name)
        values: dict[str, Any] = {
            "webhook_name": name,
            "event_types": _types(request),
            "channels": _channels(wh, request, row["channels"]),
            "is_active": request.is_active is not False,
        }
        changed = sorted(key for key, value in values.items() if value != row[key])
        if request.secret is not None:
            values["secret"] = wh.vault.seal(request.secret)
            changed.append("secret")
        connection.execute(
            sa.update(webhooks)
            .where(webhooks.c.webhook_id == row["webhook_id"])
            .values(**values, **_HEALTHY, updated_at=now())
        )
        _hurry(connection, row["webhook_id"])
        audit.record(
            connection, principal, "webhook_updated", "organization", row["webhook_id"], {"fields": changed}
        )
        notify(connection, events.TOPIC)
        return _answer(wh, _find(connection, principal, row["webhook_id"]))


def delete(wh: Warehouse, principal: Principal, identifier: str) -> None:
    """Remove a webhook with its deliveries; what was not sent yet is not sent any more."""
    check_administers(principal, "organization")
    with wh.db.write() as connection:
        row = _find(connection, principal, identifier)
        connection.execute(sa.delete(webhooks).where(webhooks.c.webhook_id == row["webhook_id"]))
        audit.record(
            connection,
            principal,
            "webhook_deleted",
            "organization",
            row["webhook_id"],
            {"name": row["webhook_name"]},
        )


# --- the delivery log ------------------------------------------------------------------------------------


def list_deliveries(
    wh: Warehouse,
    principal: Principal,
    identifier: str,
    page: PageRequest,
    status: DeliveryStatus | None,
    event_type: EventType | None,
) -> ListDeliveriesResponse:
    """List what a webhook was told, or is still to be told, the newest first."""
    check_administers(principal, "organization")
    table = webhook_deliveries
    with wh.db.read() as connection:
        which = [table.c.webhook_id == _find(connection, principal, identifier)["webhook_id"]]
        if status is not None:
            which.append(table.c.status == status)
        if event_type is not None:
            which.append(table.c.event_type == event_type)
        total = connection.execute(sa.select(sa.func.count()).select_from(table).where(*which)).scalar_one()
        found = connection.execute(
            sa.select(table)
            .where(*which)
            .order_by(table.c.created_at.desc(), table.c.delivery_id.desc())
            .limit(page.limit)
            .offset(page.offset)
        ).mappings()
        results = [_delivery(row) for row in found]
    return ListDeliveriesResponse(
        results=results, pagination=listing.stand(wh, page, total, len(results)), total=total
    )


def get_delivery(wh: Warehouse, principal: Principal, identifier: str, delivery_id: str) -> WebhookDelivery:
    """Return one delivery. Raises `NotFoundError`."""
    check_administers(principal, "organization")
    with wh.db.read() as connection:
        webhook_id = _find(connection, principal, identifier)["webhook_id"]
        return _delivery(_find_delivery(connection, webhook_id, delivery_id))


def redeliver(wh: Warehouse, principal: Principal, identifier: str, delivery_id: str) -> WebhookDelivery:
    """Send an event again, whatever became of it: a new delivery of the same event and body.

    Accepted and durable when it returns. The receiver tells it from a new event by its event_id.
    """
    check_administers(principal, "organization")
    at = now()
    with wh.db.write() as connection:
        webhook = _find(connection, principal, identifier)
        row = _find_delivery(connection, webhook["webhook_id"], delivery_id)
        if row["channel"] >= len(webhook["channels"]):
            raise BadRequestError(
                f"Delivery {delivery_id} went to channel {row['channel']}, which the webhook does not have any more."
            )
        again = {
            **{key: row[key] for key in ("webhook_id", "channel", "event_id", "event_type", "body")},
            "delivery_id": new_id("dlv"),
            "due_at": at,
            "redelivery_of": delivery_id,
            "created_at": at,
            "updated_at": at,
        }
        connection.execute(webhook_deliveries.insert().values(**again))
        audit.record(
            connection,
            principal,
            "webhook_redelivered",
            "organization",
            webhook["webhook_id"],
            {"delivery_id": delivery_id},
        )
        notify(connection, events.TOPIC)
        return _delivery(_find_delivery(connection, webhook["webhook_id"], again["delivery_id"]))


# --- inside ----------------------------------------------------------------------------------------------

#: What a webhook says of its failures when there are none.
_HEALTHY: Mapping[str, Any] = {
    "consecutive_failures": 0,
    "first_failure_at": None,
    "last_failure_at": None,
    "last_failure_cause": None,
    "rest_until": "",
}


def _mine(principal: Principal) -> sa.ColumnElement[bool]:
    return webhooks.c.organization_id == principal.organization_id


def _find(connection: Connection, principal: Principal, identifier: str) -> RowMapping:
    """Return the row of a webhook by id, else by name. Raises `NotFoundError`."""
    found = (
        connection.execute(
            sa.select(webhooks).where(
                _mine(principal),
                sa.or_(
                    webhooks.c.webhook_id == identifier,
                    webhooks.c.webhook_name == names.clean(identifier),
                ),
            )
        )
        .mappings()
        .one_or_none()
    )
    if found is None:
        raise NotFoundError("webhook", identifier)
    return found


def _find_delivery(connection: Connection, webhook_id: str, delivery_id: str) -> RowMapping:
    found = (
        connection.execute(
            sa.select(webhook_deliveries).where(
                webhook_deliveries.c.delivery_id == delivery_id,
                webhook_deliveries.c.webhook_id == webhook_id,
            )
        )
        .mappings()
        .one_or_none()
    )
    if found is None:
        raise NotFoundError("delivery", delivery_id)
    return found


def _check_name(connection: Connection, principal: Principal, name: str) -> None:
    raise_problems(names.check(name, ("body", "webhook_name"), id_prefix="wh", reserved=("list",)))
    taken = connection.execute(
        sa.select(webhooks.c.webhook_id).where(_mine(principal), webhooks.c.webhook_name == name)
    ).scalar()
    if taken is not None:
        raise AlreadyExistsError(
            f"There is a webhook {quote(name)} already ({taken}). Change it with PUT "
            f"/v1/organizations/webhooks/{taken}, or choose another name.",
            details={"resource": "webhook", "id": taken},
        )


def _hurry(connection: Connection, webhook_id: str) -> None:
    """Make what waits for another attempt due now, as far as that is soon done."""
    table, at = webhook_deliveries, now()
    waits = sa.and_(
        table.c.webhook_id == webhook_id, table.c.status == DeliveryStatus.PENDING, table.c.due_at > at
    )
    soonest = sa.select(table.c.delivery_id).where(waits).order_by(table.c.due_at).limit(_HURRIED_ROWS)
    connection.execute(sa.update(table).where(table.c.delivery_id.in_(soonest)).values(due_at=at))


def _types(request: WebhookRequest) -> list[str]:
    return list(dict.fromkeys(str(item) for item in request.event_types))


def _channels(
    wh: Warehouse, request: WebhookRequest, stored: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return channels as they are kept, URL and headers sealed; what is hidden is taken from `stored`.

    A hidden value is looked for in the stored channel of the same URL, at the same place if there is one there.
    """
    problems: list[Problem] = []
    channels = []
    for number, channel in enumerate(request.channels):
        location = ("body", "channels", number, "configs")
        config = channel.configs
        before = _twin(wh, config, stored, number)
        if HIDDEN in config.url:
            url = before["url"] if before is not None else None
            if url is None:
                problems.append(_nothing_hidden((*location, "url"), "url"))
        else:
            problems += _url_problems(wh, config.url, (*location, "url"))
            same = before is not None and wh.vault.unseal(before["url"]) == config.url
            url = before["url"] if before is not None and same else wh.vault.seal(config.url)
        headers = {}
        for name, value in (config.headers or {}).items():
            kept = (before["headers"] or {}).get(name) if before is not None else None
            if value == HIDDEN and kept is None:
                problems.append(_nothing_hidden((*location, "headers", name), f"header {name}"))
                continue
            same = kept is not None and (value == HIDDEN or wh.vault.unseal(kept) == value)
            headers[name] = kept if same else wh.vault.seal(value)
        channels.append(
            {
                "channel": str(channel.channel),
                "configs": {"url": url, "headers": headers or None, "timeout": config.timeout},
            }
        )
    raise_problems(problems)
    return channels


def _twin(
    wh: Warehouse, config: WebhookConfig, stored: Sequence[Mapping[str, Any]], number: int
) -> Mapping[str, Any] | None:
    """Return the stored configuration with the URL of `config` as answers show it."""
    wanted = _hidden_query(config.url)
    here, others = stored[number : number + 1], [*stored[:number], *stored[number + 1 :]]
    for channel in (*here, *others):
        configs: Mapping[str, Any] = channel["configs"]
        if _hidden_query(wh.vault.unseal(configs["url"])) == wanted:
            return configs
    return None


def _nothing_hidden(location: tuple[str | int, ...], what: str) -> Problem:
    return Problem(
        location,
        f"The {what} is {HIDDEN}, which stands for a value that is kept; there is none for this URL. Send the value "
        "itself.",
        "nothing_hidden",
    )


def _url_problems(wh: Warehouse, url: str, location: tuple[str | int, ...]) -> list[Problem]:
    if not url.strip().lower().startswith(("http://", "https://")):
        return [Problem(location, "url must begin with https:// or http://.", "bad_url")]
    try:
        wh.fetcher.check(url)
    except FetchError as error:
        return [Problem(location, error.message, error.kind, error.status)]
    return []


def _hidden_query(url: str) -> str:
    """Return a URL as answers show it: what stands behind its ``?`` may be a credential."""
    bare, mark, _ = url.strip().partition("?")
    return f"{bare}?{HIDDEN}" if mark else url.strip()


def _answer(wh: Warehouse, row: Mapping[Any, Any]) -> WebhookResponse:
    health = {
        "consecutive_failures": row["consecutive_failures"],
        "first_failure_at": row["first_failure_at"],
        "last_failure_at": row["last_failure_at"],
        "last_failure_cause": row["last_failure_cause"],
        "rests_until": row["rest_until"] or None,
    }
    return WebhookResponse.model_validate(
        {
            "webhook_id": row["webhook_id"],
            "webhook_name": row["webhook_name"],
            "event_types": row["event_types"],
            "channels": [
                {
                    "channel": channel["channel"],
                    "configs": {
                        "url": _hidden_query(wh.vault.unseal(channel["configs"]["url"])) or HIDDEN,
                        "headers": dict.fromkeys(channel["configs"]["headers"], HIDDEN)
                        if channel["configs"]["headers"]
                        else None,
                        "timeout": channel["configs"]["timeout"],
                    },
                }
                for channel in row["channels"]
            ],
            "is_active": row["is_active"],
            "delivery_health": health if row["consecutive_failures"] else None,
            "created_at": row["created_at"],
            "updated_at": row["updated_at"],
        }
    )


def _delivery(row: Mapping[Any, Any]) -> WebhookDelivery:
    return WebhookDelivery.model_validate(
        {
            **{name: row[name] for name in WebhookDelivery.model_fields if name in row},
            "event": orjson.loads(row["body"]),
            "next_attempt_at": row["due_at"] if row["status"] == DeliveryStatus.PENDING else None,
        }
    )
