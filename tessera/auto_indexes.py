"""Payload indexes that a namespace with `auto_create_indexes` gets by itself, and loses again.

One is made when filters used a field so often that no index serves, and kept when it holds every document that has
the field; else it is dropped, and not tried again for a while. One that nobody used for long is dropped. Indexes of
users, extractors and the system are never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from tessera import audit, log
from tessera.context import Principal, Warehouse
from tessera.db.engine import now
from tessera.db.tables import filter_uses, namespaces
from tessera.errors import BadRequestError, NotFoundError
from tessera.filter_uses import COUNTING, MADE, REFUSED
from tessera.filters import Condition
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.plan import PROTECTED_FIELDS, can_be_indexed, effective_indexes, stored_indexes

logger = logging.getLogger("tessera.auto_indexes")

#: Indexes of one namespace that are made by themselves: each costs memory and every write a little.
MOST = 16
#: A build of a large view is waited for so long before its index is looked at.
PATIENCE_S = 3600.0


def decide(wh: Warehouse, grown: set[str]) -> None:
    """Make what the uses of filters in these namespaces call for, and drop everywhere what is unused."""
    for namespace_id in sorted(grown):
        try:
            _make_due(wh, namespace_id)
        except NotFoundError:
            continue  # it was deleted meanwhile
    _drop_unused(wh)


def _make_due(wh: Warehouse, namespace_id: str) -> None:
    with wh.db.read() as connection:
        place = connection.execute(
            sa.select(namespaces).where(namespaces.c.namespace_id == namespace_id)
        ).one_or_none()
        due = connection.execute(
            sa.select(filter_uses.c.field_name, filter_uses.c.index_type)
            .where(
                filter_uses.c.namespace_id == namespace_id,
                # One that was made may be gone since: a user took it over, or turned all off for a while.
                filter_uses.c.state.in_((COUNTING, MADE)),
                filter_uses.c.uses >= wh.settings.auto_index_uses,
            )
            .order_by(filter_uses.c.uses.desc())
        ).all()
    if place is None or not place.auto_create_indexes:
        return
    indexed = (*stored_indexes(place.user_indexes), *stored_indexes(place.added_indexes))
    taken = {index.field_name for index in indexed} | PROTECTED_FIELDS
    due = [use for use in due if use.field_name not in taken and can_be_indexed(use.field_name)]
    if not due or sum(index.is_auto for index in indexed) >= MOST:
        return
    if wh.views.count(namespace_id) < wh.settings.auto_index_documents:
        return
    for field_name, kind in due:
        if field_name in taken:
            continue  # it has one of another type by now
        schema = INDEX_PARAMS[IndexType(kind)].model_validate({"type": kind}).model_dump(mode="json")
        index = PayloadIndex(field_name=field_name, type=IndexType(kind), field_schema=schema, is_auto=True)
        if not _change(wh, namespace_id, index, "added"):
            continue
        points, documents = _held(wh, namespace_id, field_name)
        if 0 < documents <= points:
            taken.add(field_name)
            _decided(wh, index, namespace_id, MADE)
            logger.info("%s has an index on %s by itself: %d documents", namespace_id, field_name, points)
        else:
            # Where it is gone already, the flag was turned off meanwhile: that says nothing of the index.
            if _change(wh, namespace_id, field_name, "dropped", f"{points} of {documents} documents in it"):
                _decided(wh, index, namespace_id, REFUSED)


def _held(wh: Warehouse, namespace_id: str, field_name: str) -> tuple[int, int]:
    """Return how many documents the engine's index on a field holds, and how many have the field."""
    try:
        documents = wh.views.count(namespace_id, Condition(field_name, "exists", True))
    except BadRequestError:
        return 0, 1  # it holds values that the index does not see, and is too large to look into
    reports = {report.field_name: report.points for report in wh.views.indexes(namespace_id)}
    return reports.get(field_name, 0), documents


def _drop_unused(wh: Warehouse) -> None:
    oldest = datetime.now(UTC) - timedelta(days=wh.settings.auto_index_unused_days)
    limit = oldest.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with wh.db.read() as connection:
        unused = connection.execute(
            sa.select(filter_uses.c.namespace_id, filter_uses.c.field_name, filter_uses.c.state).where(
                filter_uses.c.last_used_at < limit
            )
        ).all()
    for namespace_id, field_name, state in unused:
        if state == MADE:
            _change(wh, namespace_id, field_name, "dropped", "unused")
    # What was counted, or refused, long ago begins anew as well.
    with wh.db.write() as connection:
        connection.execute(sa.delete(filter_uses).where(filter_uses.c.last_used_at < limit))


def _change(
    wh: Warehouse, namespace_id: str, what: PayloadIndex | str, action: str, reason: str = "used"
) -> bool:
    """Add an index to a namespace, or drop the one that was made by itself; say whether anything changed."""
    name = what if isinstance(what, str) else what.field_name
    with wh.db.write() as connection:
        row = connection.execute(
            sa.select(namespaces).where(namespaces.c.namespace_id == namespace_id).with_for_update()
        ).one_or_none()
        if row is None:
            return False
        user, before = stored_indexes(row.user_indexes), stored_indexes(row.added_indexes)
        after = _changed(user, before, what)
        if after == before or (action == "added" and not row.auto_create_indexes):
            return False
        connection.execute(
            sa.update(namespaces)
            .where(namespaces.c.namespace_id == namespace_id)
            .values(added_indexes=[index.model_dump(mode="json") for index in after], updated_at=now())
        )
        told = {
            "fields": ["payload_indexes"],
            "auto_index": {"field": name, "action": action, "reason": reason},
        }
        audit.record(
            connection,
            Principal.of_server(row.organization_id),
            "namespace_updated",
            "namespace",
            namespace_id,
            told,
        )
        seq = log.append_indexes(connection, namespace_id, effective_indexes(user, after))
    if wh.views.apply(namespace_id, seq).behind:
        wh.views.wait_for_build(namespace_id, PATIENCE_S)
    return True


def _changed(
    user: Sequence[PayloadIndex], before: Sequence[PayloadIndex], what: PayloadIndex | str
) -> tuple[PayloadIndex, ...]:
    if isinstance(what, str):
        return tuple(index for index in before if not (index.is_auto and index.field_name == what))
    is_taken = any(index.field_name == what.field_name for index in (*user, *before))
    is_full = sum(index.is_auto for index in before) >= MOST
    return tuple(before) if is_taken or is_full else (*before, what)


def _decided(wh: Warehouse, index: PayloadIndex, namespace_id: str, state: str) -> None:
    with wh.db.write() as connection:
        connection.execute(
            sa.update(filter_uses)
            .where(
                filter_uses.c.namespace_id == namespace_id,
                filter_uses.c.field_name == index.field_name,
                filter_uses.c.index_type == str(index.type),
            )
            .values(state=state, decided_at=now(), uses=0)
        )
