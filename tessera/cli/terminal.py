"""What commands say: exit codes, messages, tables, progress."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

#: Where nobody sees a bar move, a line at most so often.
_LINE_EVERY_S = 5.0
_BAR_WIDTH = 24

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
    rows = [tuple(map(plain, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def counted(count: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class CommandError(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message, self.code = message, code


class Bar:
    """Progress on stderr: one line that moves on a terminal, plain lines where there is none."""

    def __init__(self) -> None:
        from tessera.config import wants_colour

        self._moves = sys.stderr.isatty()
        self._colours = self._moves and wants_colour()
        self._last_line_s = float("-inf")
        self._shown = ""

    def show(self, percent: float, text: str) -> None:
        """Show how far something is."""
        if not self._moves:
            if text != self._shown and time.monotonic() - self._last_line_s >= _LINE_EVERY_S:
                note(f"{percent:3.0f} %  {text}")
                self._last_line_s, self._shown = time.monotonic(), text
            return
        filled = round(_BAR_WIDTH * percent / 100)
        bar = "\u2501" * filled
        rest = "\u2500" * (_BAR_WIDTH - filled)
        columns = shutil.get_terminal_size().columns
        line = f" {percent:3.0f} %  {text}"[: max(0, columns - _BAR_WIDTH - 1)]
        bar = f"\x1b[32m{bar}\x1b[0m" if self._colours else bar
        sys.stderr.write(f"\r\x1b[K{bar}{rest}{line}")
        sys.stderr.flush()
        self._shown = line

    def clear(self) -> None:
        """Take the moving line away, so that what is said next has a line of its own."""
        if self._moves and self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""


def duration(seconds: float) -> str:
    """Return ``0:07``, ``12:30``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plain(text: str) -> str:
    """Return a text that a terminal may be given: all blanks are one kind, what else cannot be printed is replaced."""
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text
    )
