"""The search for cycles of garbage in a process that serves: rarer, and past what was loaded at the start."""

from __future__ import annotations

import gc

#: Lists, objects and the like that may be new before the young ones are searched. Python's own number, 700, comes
#: four times while one body of a thousand vectors is read, and each time all of its numbers are looked at: reading
#: took five times as long.
NEW_OBJECTS = 20_000


def rest() -> None:
    """Search for no garbage until `calm` is called: what is loaded at the start stays.

    Python searches the youngest after each 700 objects, and all of them again and again while they grow: a fifth of
    the processor time of a start.
    """
    gc.disable()


def calm() -> None:
    """Call once, when everything is loaded: that stays, and is never searched again.

    Nothing here makes cycles in quantity; what is not in one goes at once, as always.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 10, 20)
    gc.enable()
