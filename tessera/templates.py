"""Templates in retriever parameters: ``{{INPUT.query}}`` and ``{{DOC.path}}`` are replaced, nothing else happens.

A path substituter, not a language: no calls, no operators, no filters. A value that is exactly one
expression keeps its type; inside a longer text it becomes text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tessera.errors import Problem

#: Root words in either case and number, as the API's guides write them.
ROOTS = {"input": "INPUT", "inputs": "INPUT", "doc": "DOC", "context": "CONTEXT", "stage": "STAGE"}
MAX_OUTPUT_CHARS = 100_000
_EXPRESSION = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_PATH = re.compile(r"[A-Za-z]+(?:\.[A-Za-z0-9_\-]+)+")
FORMS = "{{INPUT.name}}, {{DOC.path}}, {{CONTEXT.name}}, {{STAGE.name.field}}"


class Unresolved(LookupError):
    """An expression names something that is not there. `expression` is its text."""

    def __init__(self, expression: str) -> None:
        super().__init__(expression)
        self.expression = expression


def check(value: Any, location: tuple[str | int, ...]) -> list[Problem]:
    """Return a problem for each place in `value` that opens an expression which is none of the known forms."""
    problems: list[Problem] = []
    for place, text in _texts(value, location):
        rest = _EXPRESSION.sub("", text)
        bad = [found for found in _EXPRESSION.findall(text) if _split(found) is None]
        if "{{" in rest or "}}" in rest:
            bad.append(text[:80])
        problems.extend(
            Problem(
                place,
                f"{expression!r} is no template expression. Write one of {FORMS}; a path is letters, digits, "
                "'_', '-' and dots.",
                "template",
            )
            for expression in bad
        )
    return problems


def input_names(value: Any) -> set[str]:
    """Return the names of the inputs that `value` refers to."""
    names: set[str] = set()
    for _, text in _texts(value, ()):
        for expression in _EXPRESSION.findall(text):
            parsed = _split(expression)
            if parsed and parsed[0] == "INPUT":
                names.add(parsed[1][0])
    return names


def is_template(value: Any) -> bool:
    """Return whether `value` is a text with an expression in it."""
    return isinstance(value, str) and _EXPRESSION.search(value) is not None


def render(value: Any, scope: Mapping[str, Any]) -> Any:
    """Return `value` with every expression replaced by what `scope` (root word → tree) holds.

    Raises `Unresolved` when an input, a document field or a stage is not there.
    """
    if isinstance(value, str):
        whole = _EXPRESSION.fullmatch(value)
        if whole:
            return _look_up(whole[1], scope)
        return _EXPRESSION.sub(lambda found: _as_text(_look_up(found[1], scope)), value)[:MAX_OUTPUT_CHARS]
    if isinstance(value, Mapping):
        return {key: render(item, scope) for key, item in value.items()}
    if isinstance(value, list):
        return [render(item, scope) for item in value]
    return value


def _texts(value: Any, location: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*location, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*location, index))


def _split(expression: str) -> tuple[str, list[str]] | None:
    if not _PATH.fullmatch(expression):
        return None
    root, *path = expression.split(".")
    known = ROOTS.get(root.lower())
    return (known, path) if known else None


def _look_up(expression: str, scope: Mapping[str, Any]) -> Any:
    parsed = _split(expression)
    if parsed is None:
        raise Unresolved(expression)
    root, path = parsed
    here: Any = scope.get(root)
    for segment in path:
        if not isinstance(here, Mapping) or segment not in here:
            raise Unresolved(expression)
        here = here[segment]
    return here


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
