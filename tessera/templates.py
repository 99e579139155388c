"""Templates in retriever parameters: ``{{INPUT.query}}`` and ``{{DOC.path}}`` are replaced, nothing else happens.

A path substituter, not a language: no calls, no operators, no filters. A value that is exactly one
expression keeps its type; inside a longer text it becomes text. Some stages know words without a path as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tessera.errors import Problem

#: Root words in either case and number, as the API's guides write them.
ROOTS = {"input": "INPUT", "inputs": "INPUT", "doc": "DOC", "context": "CONTEXT", "stage": "STAGE"}
ROOTS |= {"secret": "SECRET", "secrets": "SECRET"}
MAX_OUTPUT_CHARS = 100_000
# Blanks at the ends are taken off afterwards: matching them here takes cubic time on a long run of blanks.
_EXPRESSION = re.compile(r"\{\{([^{}]*)\}\}")
_PATH = re.compile(r"[A-Za-z]+(?:\.[A-Za-z0-9_\-]+)+")
FORMS = "{{INPUT.name}}, {{DOC.path}}, {{CONTEXT.name}}, {{STAGE.name.field}}"


class Unresolved(LookupError):
    """An expression names something that is not there. `expression` is its text."""

    def __init__(self, expression: str) -> None:
        super().__init__(expression)
        self.expression = expression


class TooLong(ValueError):
    """A text with its expressions filled in is longer than `MAX_OUTPUT_CHARS`."""


def check(value: Any, location: tuple[str | int, ...], words: frozenset[str] = frozenset()) -> list[Problem]:
    """Return a problem for each place in `value` that opens an expression which is none of the known forms.

    `words` may stand alone, without a path.
    """
    problems: list[Problem] = []
    for place, text in _texts(value, location):
        rest = _EXPRESSION.sub("", text)
        bad = [
            found.strip()[:80]
            for found in _EXPRESSION.findall(text)
            if _split(found) is None and found.strip() not in words
        ]
        if "{{" in rest or "}}" in rest:
            bad.append(text[:80])
        problems.extend(
            Problem(
                place,
                f"{expression!r} is no template expression. Write one of {_forms(words)}; a path is letters, "
                "digits, '_', '-' and dots.",
                "template",
            )
            for expression in bad
        )
    return problems


def _forms(words: frozenset[str]) -> str:
    return ", ".join([FORMS, *("{{" + word + "}}" for word in sorted(words))])


def references(value: Any) -> set[tuple[str, tuple[str, ...]]]:
    """Return (root, path) of every expression in `value`: ``{{inputs.a.b}}`` is ``("INPUT", ("a", "b"))``."""
    found: set[tuple[str, tuple[str, ...]]] = set()
    for _, text in _texts(value, ()):
        for expression in _EXPRESSION.findall(text):
            parsed = _split(expression)
            if parsed:
                found.add((parsed[0], tuple(parsed[1])))
    return found


def is_template(value: Any) -> bool:
    """Return whether `value` is a text with an expression in it."""
    return isinstance(value, str) and _EXPRESSION.search(value) is not None


def is_whole(value: Any) -> bool:
    """Return whether `value` is a text that is exactly one expression."""
    return isinstance(value, str) and _EXPRESSION.fullmatch(value.strip()) is not None


def as_text(value: Any) -> str:
    """Return how a value stands inside a longer text: null is nothing, a boolean the word for it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def render(value: Any, scope: Mapping[str, Any], written: Callable[[Any], str] = as_text) -> Any:
    """Return `value` with every expression replaced by what `scope` (root word → tree) holds.

    Inside a longer text a value becomes what `written` makes of it. Raises `Unresolved` when an input, a document
    field or a stage is not there, `TooLong` for a text that grows beyond `MAX_OUTPUT_CHARS`.
    """
    if isinstance(value, str):
        whole = _EXPRESSION.fullmatch(value)
        if whole:
            return _look_up(whole[1], scope)
        return _filled(value, scope, written) if "{{" in value else value
    if isinstance(value, Mapping):
        return {key: render(item, scope, written) for key, item in value.items()}
    if isinstance(value, list):
        return [render(item, scope, written) for item in value]
    return value


def _filled(text: str, scope: Mapping[str, Any], written: Callable[[Any], str]) -> str:
    parts: list[str] = []
    size = end = 0
    for found in _EXPRESSION.finditer(text):
        parts += [text[end : found.start()], written(_look_up(found[1], scope))]
        end = found.end()
        size += len(parts[-1]) + len(parts[-2])
        if size > MAX_OUTPUT_CHARS:
            raise TooLong
    if not parts:
        return text
    parts.append(text[end:])
    if size + len(parts[-1]) > MAX_OUTPUT_CHARS:
        raise TooLong
    return "".join(parts)


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
    if not _PATH.fullmatch(expression := expression.strip()):
        return None
    root, *path = expression.split(".")
    known = ROOTS.get(root.lower())
    return (known, path) if known else None


def _look_up(expression: str, scope: Mapping[str, Any]) -> Any:
    parsed = _split(expression)
    if parsed is None:
        word = expression.strip()
        if word in scope and word not in ROOTS.values():
            return scope[word]
        raise Unresolved(word)
    root, path = parsed
    here: Any = scope.get(root)
    for segment in path:
        if not isinstance(here, Mapping) or segment not in here:
            raise Unresolved(expression.strip())
        here = here[segment]
    return here
