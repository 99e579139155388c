"""A disk that fills up, breaks, or has no file descriptor left, for the server alone and at the call that we choose.

``disk_faults.c`` stands between the server's processes and the C library: SQLite, obstore, Arrow, Qdrant Edge
and Python itself all go through it. Needs Linux and a C compiler; `why_not` says what is missing.
"""

from __future__ import annotations

import contextlib
import mmap
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("disk_faults.c")
_NUMBERS = struct.Struct("6i")

OPENS, WRITES, READS = 1, 2, 4


def why_not() -> str | None:
    """Return why faults cannot be made here; None when they can."""
    if not sys.platform.startswith("linux"):
        return "faults are put between a program and its C library in the way of Linux"
    return None if shutil.which("cc") else "no C compiler (cc) here"


class Count(NamedTuple):
    """Calls that could have failed since faults were armed, and those that did."""

    calls: int
    failed: int


class Faults:
    """Faults of the servers that are started with `environment`; `root` is the folder that they strike."""

    def __init__(self, folder: Path, root: Path) -> None:
        library = folder / "disk_faults.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"], check=True
        )
        control = folder / "disk_faults"
        control.write_bytes(bytes(mmap.PAGESIZE))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(library),
            "TESSERA_TEST_FAULTS": str(control),
            "TESSERA_TEST_FAULTS_ROOT": str(root.resolve()),
        }

    @contextlib.contextmanager
    def armed(
        self, error: int, calls: int, *, first: int = 1, every: int = 1, only: str = ""
    ) -> Iterator[None]:
        """Let calls fail with `error` in the block: the `first` one, and each `every`-th after it (0: none).

        Only `calls` (`OPENS` | `WRITES` | `READS`) on files below the root count, and of these those with `only`
        in their path.
        """
        self._control[_NUMBERS.size : _NUMBERS.size + 256] = only.encode().ljust(256, b"\0")
        self._control[: _NUMBERS.size] = _NUMBERS.pack(0, calls, first, every, 0, 0)
        self._control[:4] = error.to_bytes(4, sys.byteorder)
        try:
            yield
        finally:
            self._control[:4] = bytes(4)

    @property
    def count(self) -> Count:
        """What has been counted since faults were last armed."""
        numbers = _NUMBERS.unpack(self._control[: _NUMBERS.size])
        return Count(numbers[4], numbers[5])
