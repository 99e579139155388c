"""What commands say: exit codes, messages, tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_SERVER = 3
EXIT_REFUSED = 4
EXIT_IN_PART = 5
EXIT_INTERRUPTED = 130


def fail(message: str, code: int) -> int:
    """Say what went wrong and return the exit code."""
    print(f"tessera: {message}", file=sys.stderr, flush=True)
    return code


def note(text: str) -> None:
    """Say something that is no result: on stderr, so that output can be piped."""
    print(text, file=sys.stderr, flush=True)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows of cells in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def counted(count: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
