"""Points in time that a request names, as the database holds them."""

from __future__ import annotations

from datetime import UTC, datetime

from tessera.errors import Problem, ValidationError, quote


def moment(text: str | None, name: str) -> str | None:
    """Return a date or time of the query as RFC 3339 in UTC; a date is its midnight, no zone means UTC.

    Raises `ValidationError` that names the parameter.
    """
    if text is None:
        return None
    try:
        # A plus sign that was not quoted in a query arrives as a blank.
        value = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):
        problem = Problem(
            ("query", name),
            f"{name} is {quote(text)}; a date (2026-11-23) or an RFC 3339 time is needed.",
            "datetime_parsing",
        )
        raise ValidationError([problem]) from None
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
