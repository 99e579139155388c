"""When what is planned comes next: cron expressions and intervals. Pure; who asks says what time it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

#: Fields of a cron expression: minute, hour, day of the month, month, day of the week.
_CRON_FIELDS = 5


def next_cron(expression: str, timezone: str, after: datetime) -> datetime:
    """Return the first moment after `after` that `expression` names in `timezone`, in UTC.

    At the change to summer time a moment that the clock leaves out comes when it goes on, as in Debian's cron. Raises
    `ValueError` that says what is wrong with expression or time zone.
    """
    from cronsim import CronSim, CronSimError

    try:
        # Keys are paths below a folder: what is no key may be refused as a path, a folder or a broken file.
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("no time zone; names are those of the IANA, such as UTC or Europe/Berlin") from None
    if len(expression.split()) != _CRON_FIELDS:
        raise ValueError(
            "no cron expression: it has five fields, minute, hour, day of the month, month, day of the week, such as "
            "0 2 * * *"
        )
    try:
        found: datetime = next(CronSim(expression, after.astimezone(zone)))
    except CronSimError as error:
        raise ValueError(f"no cron expression ({str(error).lower()})") from None
    except StopIteration:
        raise ValueError("a cron expression that names no moment within fifty years") from None
    return found.astimezone(UTC)


def next_interval(seconds: int, due: datetime, after: datetime) -> datetime:
    """Return the first of `due`, `due` + `seconds`, … that lies after `after`: those that were missed are left out.

    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> next_interval(60, noon, noon + timedelta(minutes=10, seconds=1)) - noon
    datetime.timedelta(seconds=660)
    """
    if due > after:
        return due
    missed = (after - due) // timedelta(seconds=seconds)
    return due + (missed + 1) * timedelta(seconds=seconds)


def read(moment: str) -> datetime:
    """Return a moment as the database holds it."""
    return datetime.fromisoformat(moment)


def written(moment: datetime) -> str:
    """Return a moment in the form that the database holds: RFC 3339, UTC, microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
