"""What pydantic found wrong becomes problems that a person can act on.

A message names the field, quotes a short harmless value and says what is allowed. Values of secret fields
and of containers are never quoted; nor are user-info and query of URLs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from tessera.errors import Problem, quote

#: A request with more problems than this gets the first ones.
MAX_PROBLEMS = 100

#: Names of fields whose values never stand in a message, wherever they are in the request.
_SECRET = re.compile(
    r"secret|passw|credential|authorization|(^|_|-)(api_?key|access_?key|private_?key|token|auth|headers|bearer)$",
    re.IGNORECASE,
)
_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s]*")

#: Parts of a request beside the body.
_ELSEWHERE = frozenset({"path", "query", "header", "cookie"})

#: What a pydantic error type says was expected.
_EXPECTED = {
    "string": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "an object",
    "model": "an object",
    "mapping": "an object",
    "datetime": "a date and time such as 2026-01-31T12:00:00Z",
    "date": "a date such as 2026-01-31",
    "url": "a URL",
    "bytes": "bytes",
}


def schema_problems(
    error: pydantic.ValidationError | Sequence[Mapping[str, Any]], prefix: tuple[str | int, ...] = ()
) -> list[Problem]:
    """Return what `error`, or the entries of one, found: at most `MAX_PROBLEMS`, none twice.

    `prefix` goes in front of each location: ``("body",)`` for a model that was validated by hand.
    """
    entries: Sequence[Mapping[str, Any]] = (
        error.errors(include_url=False) if isinstance(error, pydantic.ValidationError) else error
    )
    problems = [_problem(entry, prefix) for entry in entries[:MAX_PROBLEMS]]
    return list(dict.fromkeys(problems))


def label(location: Sequence[str | int]) -> str:
    """Return a location as people write it: ``payload_indexes[0].type``, ``query parameter limit``."""
    place, *rest = location or ("body",)
    if place not in _ELSEWHERE and place != "body":
        place, rest = "body", list(location)
    path = ""
    for part in rest:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if place == "body":
        return path or "The body"
    if place == "path":
        return f"path parameter {path}"
    return f"{place} parameter {path}" if place == "query" else f"{place} {path}"


def quotable(location: Sequence[str | int], value: object) -> str | None:
    """Return `value` as a message may quote it; None when it is secret or not a scalar."""
    if any(isinstance(part, str) and _SECRET.search(part) for part in location):
        return None
    if isinstance(value, str):
        value = _URL_SECRETS.sub("", value) if "://" in value else value
    elif value is not None and not isinstance(value, int | float | bool):
        return None
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quote(value)


def _problem(entry: Mapping[str, Any], prefix: tuple[str | int, ...]) -> Problem:
    location = (*prefix, *entry["loc"])
    kind = str(entry["type"])
    return Problem(location, _message(kind, location, entry), kind)


def _message(kind: str, location: tuple[str | int, ...], entry: Mapping[str, Any]) -> str:
    where = label(location)
    where = where[0].upper() + where[1:] if location and location[0] in _ELSEWHERE else where
    context: Mapping[str, Any] = entry.get("ctx") or {}
    shown = quotable(location, entry.get("input"))
    but = f", not {shown}" if shown is not None else ""
    if kind == "missing":
        return f"{where} is required."
    if kind in {"enum", "literal_error"}:
        return _choices(where, str(context.get("expected", "")), entry.get("input"), but)
    if kind in {"too_short", "string_too_short"}:
        unit = "character" if kind == "string_too_short" else "item"
        return f"{where} must have at least {_count(context['min_length'], unit)}."
    if kind in {"too_long", "string_too_long"}:
        unit = "character" if kind == "string_too_long" else "item"
        return f"{where} must have at most {_count(context['max_length'], unit)}."
    for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if bound in context:
            return f"{where} must be {words} {context[bound]}{but}."
    if kind == "string_pattern_mismatch":
        return f"{where} must match {context.get('pattern')}{but}."
    if kind in {"value_error", "assertion_error"}:
        text = str(entry.get("msg", "")).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return text if text.endswith(".") else f"{where}: {text}."
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected is None:
        return f"{where}: {entry.get('msg', 'is not valid')}{but}."
    if shown is None and not any(isinstance(part, str) and _SECRET.search(part) for part in location):
        but = f", not {_kind_of(entry.get('input'))}"
    return f"{where} must be {expected}{but}."


def _choices(where: str, expected: str, given: object, but: str) -> str:
    known = re.findall(r"'([^']*)'", expected)
    near = difflib.get_close_matches(str(given), known, n=1) if isinstance(given, str) else []
    hint = f" Did you mean {near[0]}?" if near and but else ""
    return f"{where} must be one of {', '.join(known) or expected}{but}.{hint}"


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _kind_of(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"
