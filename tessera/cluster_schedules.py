"""Schedules of triggers: as requests send them, as rows hold them, and when they are due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
from sqlalchemy.engine import Connection, RowMapping

from tessera import collections, schedules
from tessera.errors import BadRequestError, NotFoundError, Problem, raise_problems
from tessera.models.base import JsonObject
from tessera.models.cluster_triggers import (
    SCHEDULES,
    CronSchedule,
    EventSchedule,
    IntervalSchedule,
    TriggerType,
)
from tessera.validation import schema_problems

Schedule = CronSchedule | IntervalSchedule | EventSchedule


def checked(
    connection: Connection, place: RowMapping, kind: TriggerType, given: Mapping[str, Any]
) -> Schedule:
    """Return the schedule of a request, with its collection by id. Raises with everything that is wrong with it."""
    if kind is TriggerType.CONDITIONAL:
        raise BadRequestError(
            'trigger_type "conditional" is not available: drift is not measured. Use "event", which counts '
            'documents, "interval" or "cron".'
        )
    try:
        schedule: Any = SCHEDULES[kind].model_validate(given)
    except pydantic.ValidationError as error:
        raise_problems(schema_problems(error, ("body", "schedule_config")))
        raise
    if isinstance(schedule, EventSchedule):
        try:
            found = collections.find(connection, place["namespace_id"], schedule.collection_id)
        except NotFoundError as error:
            where = ("body", "schedule_config", "collection_id")
            raise_problems([Problem(where, error.message, "not_found", BadRequestError.status)])
            raise
        schedule = schedule.model_copy(update={"collection_id": found["collection_id"]})
    return schedule  # type: ignore[no-any-return]


def stored(row: Mapping[Any, Any]) -> Schedule:
    """Return the schedule of a trigger's row."""
    # Not read anew: what was right when it was written (a time zone, say) is not refused later.
    return SCHEDULES[TriggerType(row["trigger_type"])].model_construct(**row["schedule"])  # type: ignore[return-value]


def columns(schedule: Schedule) -> JsonObject:
    """Return a schedule as the row holds it."""
    event = schedule if isinstance(schedule, EventSchedule) else None
    return {
        "schedule": schedule.model_dump(),
        "collection_id": event and event.collection_id,
        "event_type": event and event.event_type,
        "event_threshold": event and event.event_threshold,
    }


def first_due(schedule: Schedule, at: str) -> str | None:
    """Return when a trigger that becomes active at `at` is due first; None for an event, which waits."""
    if isinstance(schedule, IntervalSchedule) and schedule.start_immediately:
        return at
    return next_due(schedule, at, at)


def next_due(schedule: Schedule, due_at: str, at: str) -> str | None:
    """Return when a trigger that was due at `due_at` and fires at `at` is due again."""
    moment = schedules.read(at)
    if isinstance(schedule, EventSchedule):
        return None
    if isinstance(schedule, CronSchedule):
        return schedules.written(schedules.next_cron(schedule.cron_expression, schedule.timezone, moment))
    return schedules.written(
        schedules.next_interval(schedule.interval_seconds, schedules.read(due_at), moment)
    )
