"""Named points at which a test can have a process killed: the moments that random kills rarely hit.

Armed by ``TESSERA_TEST_FAILPOINT=<name>:<count>:<whom>``: when `name` is reached for the `count`-th time in a
process, SIGKILL goes to ``self``, to the ``parent`` process or to the whole ``group``. Unarmed, a point
costs one comparison.
"""

from __future__ import annotations

import os
import signal

from tessera.config import failpoint

_armed = failpoint()
_seen = 0


def reach(name: str) -> None:
    """Mark that the point `name` was reached; does not return when the kill that is due hits this process."""
    global _seen  # noqa: PLW0603  a count of this process, by design
    if _armed is None or _armed[0] != name:
        return
    _seen += 1
    if _seen != _armed[1]:
        return
    if _armed[2] == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    else:
        os.kill(os.getppid() if _armed[2] == "parent" else os.getpid(), signal.SIGKILL)
