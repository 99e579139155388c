"""``tessera watch``: a task until its end, and what `ingest` does the same with several."""

from __future__ import annotations

import argparse
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from tessera.cli.connection import Api, Refused, connected
from tessera.cli.options import add_data
from tessera.cli.terminal import (
    EXIT_FAILED,
    EXIT_IN_PART,
    EXIT_NO_SERVER,
    EXIT_OK,
    Bar,
    CommandError,
    duration,
    note,
    plain,
)

#: A server that ended is expected back for so long.
_GONE_AT_MOST_S = 60.0

_EXITS = {"COMPLETED": EXIT_OK, "COMPLETED_WITH_ERRORS": EXIT_IN_PART}


def add(commands: Any) -> None:
    """Add the command ``watch``."""
    watch = commands.add_parser(
        "watch",
        help="show a task until it ends",
        description="Show the progress of a task until it ends. Ctrl-C stops watching, not the task.",
    )
    watch.add_argument("task_id", metavar="TASK", help="id of the task (tsk_…)")
    add_data(watch)
    watch.set_defaults(run=_watch)


def _watch(options: argparse.Namespace) -> int:
    with connected(options) as api:
        (task,) = follow(api, [options.task_id])
    print(f"{task['task_id']} {task['status']}{_summary(task)}")
    if task["error"]:
        note(plain(task["error"]))
    return exit_code(task["status"])


def exit_code(status: str) -> int:
    """Return the exit code for a task that ended with `status`."""
    return _EXITS.get(status, EXIT_FAILED)


def _summary(task: Mapping[str, Any]) -> str:
    told = task["additional_data"]["progress"]
    return f": {told['done']} of {told['total']} done, {told['failed']} failed" if told["total"] else ""


def follow(api: Api, task_ids: list[str]) -> list[dict[str, Any]]:
    """Show the progress of tasks, as one, until all have ended, and return them.

    Ctrl-C ends the command; it says how to go on watching, because the tasks go on.
    """
    bar = Bar()
    told: dict[str, Mapping[str, Any]] = {}
    ended: dict[str, dict[str, Any]] = {}
    try:
        for task_id, name, data in _events(api, task_ids):
            if name == "task":
                ended[task_id] = data
            told[task_id] = data["additional_data"]["progress"] if name == "task" else data
            bar.show(*_line(list(told.values())))
    except KeyboardInterrupt:
        bar.clear()
        left = [task_id for task_id in task_ids if task_id not in ended]
        note("Still running. To go on watching: " + ", ".join(f"tessera watch {task_id}" for task_id in left))
        raise
    finally:
        bar.clear()
    return [ended[task_id] for task_id in task_ids]


def _line(told: list[Mapping[str, Any]]) -> tuple[float, str]:
    """Return percent and words for the progress of several tasks together."""
    total, done, failed = (sum(one[key] for one in told) for key in ("total", "done", "failed"))
    running = [one for one in told if one["stage"] != "done"]
    rate = sum(one["rate_per_s"] or 0 for one in running)
    left_s = max((one["remaining_s"] or 0 for one in running), default=0)
    parts = [", ".join(sorted({one["stage"] for one in running})) or "done"]
    if total:
        parts.append(f"{done} of {total}")
    if failed:
        parts.append(f"{failed} failed")
    if rate:
        parts.append(f"{rate:.1f}/s")
    if left_s:
        parts.append(f"{duration(left_s)} left")
    weights = [max(1, one["total"]) for one in told]
    percent = sum(one["percent"] * weight for one, weight in zip(told, weights, strict=True)) / sum(weights)
    return percent, "  ".join(parts)


def _events(api: Api, task_ids: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield (task, event, data) of all streams as they come, until each task has ended."""
    came: queue.Queue[tuple[str, str, Any]] = queue.Queue()
    for task_id in task_ids:
        # Daemons: a stream that stands still must not hold up a command that ends.
        threading.Thread(target=_listen, args=(api, task_id, came), daemon=True).start()
    open_tasks = set(task_ids)
    while open_tasks:
        task_id, name, data = came.get()
        if name == "error":
            raise data
        yield task_id, name, data
        if name == "task":
            open_tasks.discard(task_id)


def _listen(api: Api, task_id: str, came: queue.Queue[tuple[str, str, Any]]) -> None:
    """Put the events of a task's stream into `came`; a server that went away is looked for until it is back."""
    import httpx

    gone_since: float | None = None
    while True:
        try:
            with api.events(f"/tasks/{quote(task_id, safe='')}") as events:
                for name, data in events:
                    gone_since = None
                    came.put((task_id, name, data))
                    if name == "task":
                        return
        except Refused as error:
            if error.status != 503:
                came.put((task_id, "error", error))
                return
        except httpx.HTTPError:
            pass
        except Exception as error:  # noqa: BLE001  a thread of a command: whatever it is, the command tells it
            came.put((task_id, "error", error))
            return
        gone_since = time.monotonic() if gone_since is None else gone_since
        if time.monotonic() - gone_since > _GONE_AT_MOST_S:
            message = f"the server does not answer any more; later: tessera watch {task_id}"
            came.put((task_id, "error", CommandError(message, EXIT_NO_SERVER)))
            return
        time.sleep(0.5)
