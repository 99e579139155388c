"""What runs on a Ray cluster: an actor that keeps what it loaded between items.

It is shipped with the rest of the package, and imports nothing but Python itself until it has work, so that
it can say what the place where it runs lacks.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path


class Worker:
    """One process on the cluster, running one item at a time."""

    def __init__(self) -> None:
        # As the server does: what is written is its owner's alone.
        os.umask(0o077)

    def check(self, probes: Mapping[str, str], modules: Sequence[str]) -> tuple[int, list[str]]:
        """Return this process's id and what is missing where it runs.

        `probes` maps files that the server has just written to their contents; `modules` are those that
        the server itself would extract with.
        """
        where = os.uname().nodename
        problems = []
        for path, content in probes.items():
            try:
                seen = Path(path).read_text() == content
            except OSError:
                seen = False
            if not seen:
                problems.append(
                    f"The node {where} does not see the server's directory {Path(path).parent}. Mount that directory "
                    "there under the same path (NFS or the like), run the workers as a user who may read and write "
                    "it, or use a cluster on the server's own machine."
                )
            elif not os.access(Path(path).parent, os.W_OK):
                problems.append(
                    f"The node {where} may not write to {Path(path).parent}; workers write what they extract there. "
                    "Run them as the server's user, or allow theirs to write."
                )
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            problems.append(
                f"The node {where} lacks the Python package{'s' if len(missing) > 1 else ''} "
                f"{', '.join(missing)}. Tessera's own code is sent to the cluster, what it depends on is not: "
                "install the same tessera and extras there as on the server."
            )
        return os.getpid(), problems

    def run(self, call: bytes) -> bytes:
        """Call the function of `call`, a pickled (function, item), and return what became of it, pickled.

        That is ``(True, value)``, or ``(False, text)`` for an error that the function raised.
        """
        try:
            function, item = pickle.loads(call)  # noqa: S301  it comes from our own server
            answer = (True, function(item))
        except Exception as error:  # noqa: BLE001  by the port's contract whatever the function raised is a value
            answer = (False, f"{type(error).__name__}: {error}")
        return pickle.dumps(answer)
