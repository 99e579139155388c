"""Named points at which a test can have a process killed: the moments that random kills rarely hit.

Armed by ``TESSERA_TEST_FAILPOINT=<name>:<count>:<whom>``: when `name` is reached for the `count`-th time in a
process, SIGKILL goes to ``self``, to the ``parent`` process or to the whole ``group``; with ``abort`` the
process itself crashes, as it does when a library's native code fails. Unarmed, a point costs one comparison.

Each point lies between two effects that must not depend on both of them happening.
"""

from __future__ import annotations

import os
import signal

from tessera.config import failpoint

_armed = failpoint()
_seen = 0


def reach(*names: str) -> None:
    """Mark that a point was reached; does not return when the kill that is due hits this process.

    A point may go by several `names`: one in general, one for a single namespace or view.
    """
    global _seen  # noqa: PLW0603  a count of this process, by design
    if _armed is None or _armed[0] not in names:
        return
    _seen += 1
    if _seen != _armed[1]:
        return
    if _armed[2] == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif _armed[2] == "abort":
        os.abort()
    else:
        os.kill(os.getppid() if _armed[2] == "parent" else os.getpid(), signal.SIGKILL)
