"""What comes into documents from outside: from a language model, or from another server.

It is JSON of strangers. It may be as large and as deep as a document, may not name stored files (their addresses are
signed in answers), and where it does not come a policy says what becomes of the document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from tessera.errors import TesseraError, quote
from tessera.ports import Hit
from tessera.stages.base import FIRST, ORIGIN_FIELDS, StageContext

_Item = TypeVar("_Item")

#: What happens to a document for which nothing usable came.
OnError = Literal["skip", "remove", "raise"]
ON_ERROR = (
    "A document for which nothing usable comes goes on as it is (`skip`), goes (`remove`), or ends the execution "
    "(`raise`)."
)

#: Deepest nesting, and most characters, of what is put into one document.
MAX_DEPTH = 32
MAX_CHARS = 200_000
#: Most names in the path of the field that is written.
MAX_OUTPUT_LEVELS = 16
#: Errors of documents that are named in the statistics.
_MAX_ERRORS_TOLD = 10


def at_once(work: Callable[[_Item], None], items: Sequence[_Item], most: int) -> None:
    """Do `work` on each of `items`, `most` at once; an error of one is raised, and what has not begun is not done."""
    if not items:
        return
    with ThreadPoolExecutor(min(most, len(items))) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()


def output_path(path: str | None) -> str | None:
    """Return the path of a field to write to, if it may be written. Raises `ValueError`."""
    if path is not None and path.split(".")[0] in ORIGIN_FIELDS:
        raise ValueError(f"{quote(path)} is the document's own; choose another field")
    if path is not None and path.count(".") >= MAX_OUTPUT_LEVELS:
        raise ValueError(f"a field to write to lies at most {MAX_OUTPUT_LEVELS} levels deep")
    return path


def unfit(value: Any, max_chars: int = MAX_CHARS) -> str | None:
    """Return why a value may not be put into a document, None when it may."""
    size = 0
    left = [(value, 0)]
    while left:
        here, depth = left.pop()
        size += 1
        if isinstance(here, str):
            size += len(here)
            if here.startswith("blob://"):
                return "it names a stored file"
        elif isinstance(here, Mapping):
            size += sum(map(len, here))
            left += [(item, depth + 1) for item in here.values()]
        elif isinstance(here, list):
            left += [(item, depth + 1) for item in here]
        if depth > MAX_DEPTH:
            return f"it nests deeper than {MAX_DEPTH} levels"
        if size > max_chars:
            return f"it holds more than {max_chars:,} characters"
    return None


def settle(
    hits: Sequence[Hit], errors: Mapping[int, TesseraError], on_error: OnError, context: StageContext
) -> list[int]:
    """Return the numbers of the hits that go on, after noting the errors of the others as `on_error` says.

    Raises the first error for ``raise``; its message names the document.
    """
    if not errors:
        return list(range(len(hits)))
    first = min(errors)
    if on_error == "raise":
        error = errors[first]
        error.message = f"Document {quote(hits[first].document_id)}: {error.message}"
        raise error
    context.work.error = f"{len(errors)} of {len(hits)} documents failed{FIRST}{errors[first].message}"
    context.work.metadata["failed"] = len(errors)
    context.work.metadata["errors"] = [
        {"document_id": hits[number].document_id, "message": errors[number].message}
        for number in sorted(errors)[:_MAX_ERRORS_TOLD]
    ]
    return [number for number in range(len(hits)) if on_error == "skip" or number not in errors]
