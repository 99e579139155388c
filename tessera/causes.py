"""Why a row of a batch fails: eight causes, and for each kind of failure where it lies and what helps.

Whoever fails a row gives it a *kind*, a stable word such as ``unreadable`` or ``fetch_timeout``, and a message. The
rest follows from the kind, here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Cause = Literal[
    "unreadable", "unreachable", "too_large", "unsupported", "missing_input", "model_missing", "limit", "ours"
]
Stage = Literal["fetch", "decode", "extract", "write"]

CAUSES: tuple[Cause, ...] = get_args(Cause)

#: What a message may be long.
MAX_MESSAGE_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a kind of failure.

    `may_pass` says whether the same row can succeed later although nothing of it was changed; one that
    `comes_back` is tried again by the batch itself. A row that is `parked` does harm when it is tried: only who
    asks for it gets it tried.
    """

    cause: Cause
    stage: Stage
    next_step: str
    may_pass: bool = False
    comes_back: bool = False
    parked: bool = False


_REPLACE = "then retry with retry_mode 'all'."

KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "unreadable", "decode", f"Replace the file by one that can be read (PATCH the object), {_REPLACE}"
    ),
    "missing_input": Kind(
        "missing_input",
        "extract",
        "Give the object the property that the message names (PATCH the object), or map another one in the "
        f"collection's input_mappings, {_REPLACE}",
    ),
    "unsupported": Kind(
        "unsupported",
        "decode",
        f"Convert the file to a format that the message names, replace it, {_REPLACE}",
    ),
    "too_large": Kind("too_large", "decode", f"Replace it by a smaller one (PATCH the object), {_REPLACE}"),
    "model_missing": Kind(
        "model_missing", "extract", "Install what the message names, then retry.", may_pass=True
    ),
    "limit": Kind(
        "limit", "extract", f"Change the collection's parameters or the file as the message says, {_REPLACE}"
    ),
    "timeout": Kind(
        "limit",
        "extract",
        "Retry when the machine is less busy; if it stays so, raise extract_timeout_s or split the file.",
        may_pass=True,
    ),
    "memory": Kind(
        "limit",
        "extract",
        f"Raise worker_memory_mib and restart, or replace the file by a smaller one, {_REPLACE}",
    ),
    "crash": Kind(
        "ours",
        "extract",
        "The row is parked: it is tried again with retry_mode 'all' or by its failure_id only. Replace the file, "
        "raise worker_memory_mib (some decoders end so when they get no memory), or report it.",
        parked=True,
    ),
    "ours": Kind(
        "ours", "extract", "Look for the error in the server's log and report it; then retry.", may_pass=True
    ),
    **{
        f"fetch_{name}": Kind(
            "unreachable", "fetch", f"Correct the URL (PATCH the object) or what is behind it, {_REPLACE}"
        )
        for name in ("bad_url", "refused_address", "redirect", "bad_status")
    },
    **{
        f"fetch_{name}": Kind(
            "unreachable",
            "fetch",
            "Retry when what is behind the URL can be reached.",
            may_pass=True,
            comes_back=True,
        )
        for name in ("unreachable", "timeout", "unavailable", "superseded")
    },
    "fetch_too_large": Kind("too_large", "fetch", f"Let the URL lead to a smaller file, {_REPLACE}"),
    "fetch_bad_content": Kind("unreadable", "fetch", f"Let the URL lead to a whole file, {_REPLACE}"),
}

#: Kinds that the same row meets again as long as nothing is changed.
PERMANENT = frozenset(name for name, kind in KINDS.items() if not kind.may_pass)


def of_fetch(kind: str, *, may_pass: bool) -> str:
    """Return the kind of failure for a `FetchError` of `kind`, of which the answer may say that it will pass."""
    name = f"fetch_{kind}"
    return "fetch_unavailable" if may_pass and name in PERMANENT else name


def known(kind: str | None) -> Kind:
    """Return what is known of a kind; of one that nobody here knows, what is known of ``ours``."""
    return KINDS.get(kind or "ours", KINDS["ours"])


def error_type(kind: str | None) -> Literal["transient", "permanent", "resource"]:
    """Return what the API calls a kind: would a plain retry help, never, or with more of something?"""
    found = known(kind)
    if found.may_pass:
        return "transient"
    return "resource" if found.cause in ("too_large", "limit") else "permanent"


def plain(message: str) -> str:
    """Return a message of a decoder as it can be stored and shown: one line, no control characters, bounded."""
    shown = message[: 4 * MAX_MESSAGE_CHARS].encode(errors="replace").decode()
    line = " ".join("".join(c if c.isprintable() else " " for c in shown).split())
    return line if len(line) <= MAX_MESSAGE_CHARS else f"{line[: MAX_MESSAGE_CHARS - 1]}…"
