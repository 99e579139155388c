"""Streams of a task's progress, as server-sent events (HTML standard, 9.2): any number of them for one query.

While somebody watches, one look at the database in `INTERVAL_S` serves all streams of all tasks; while nobody
does there is none. A stream holds only the newest state: a client that reads slowly misses steps, never memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from tessera import tasks
from tessera.context import Warehouse
from tessera.models.tasks import FINISHED, TaskResponse

logger = logging.getLogger("tessera.api")

MEDIA_TYPE = "text/event-stream"
#: How often what is watched is looked at.
INTERVAL_S = 0.5
#: A line is sent at least so often, so that proxies keep the connection and one that is dead is noticed.
KEEP_ALIVE_S = 15.0
#: The id of the last event: who comes back with it has seen everything.
LAST_ID = "end"

#: Tells whether the key that opened a stream may still see what it shows.
MayGoOn = Callable[[], Awaitable[bool]]

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@dataclass(slots=True, eq=False)
class _Stream:
    """What one client is to be told next; the newest state wins."""

    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: TaskResponse | None = None


class Streams:
    """The streams of one server."""

    def __init__(self, wh: Warehouse) -> None:
        self._wh = wh
        self._streams: dict[str, set[_Stream]] = {}
        self._seen: dict[str, str | None] = {}
        self._poller: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._streams.values()))

    def end(self) -> None:
        """End every stream now: the server is about to stop. Clients come back to the next one."""
        self._ended.set()
        if self._poller is not None:
            self._poller.cancel()
        for streams in self._streams.values():
            for stream in streams:
                stream.news.set()

    def respond(self, task: TaskResponse, may_go_on: MayGoOn, last_id: str | None) -> Response:
        """Return the stream of a task that its client may see, beginning with how it stands now.

        `may_go_on` is asked before each event. A browser connects again when a stream has ended: if it has seen
        the last event (`last_id`), it is told not to.
        """
        if last_id == LAST_ID and task.status in FINISHED:
            return Response(status_code=204)
        return StreamingResponse(self._events(task, may_go_on), media_type=MEDIA_TYPE, headers=_HEADERS)

    async def _events(self, task: TaskResponse, may_go_on: MayGoOn) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        if task.status in FINISHED:
            yield _event("task", task, LAST_ID)
            return
        yield _event("progress", tasks.event(task))
        with self._watched(task.task_id) as stream:
            while not self._ended.is_set():
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await stream.news.wait()
                except TimeoutError:
                    if not await may_go_on():
                        return
                    yield b": still here\n\n"
                    continue
                stream.news.clear()
                if self._ended.is_set() or stream.task is None or not await may_go_on():
                    return
                if stream.task.status in FINISHED:
                    yield _event("task", stream.task, LAST_ID)
                    return
                yield _event("progress", tasks.event(stream.task))

    @contextlib.contextmanager
    def _watched(self, task_id: str) -> Iterator[_Stream]:
        stream = _Stream()
        self._streams.setdefault(task_id, set()).add(stream)
        # The next look tells all streams of the task how it stands, so that none misses what came in between.
        self._seen[task_id] = None
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            yield stream
        finally:
            self._streams[task_id].discard(stream)
            if not self._streams[task_id]:
                del self._streams[task_id], self._seen[task_id]

    async def _poll(self) -> None:
        """Look at what is watched until nobody watches any more."""
        try:
            while self._streams:
                try:
                    changed = await run_in_threadpool(tasks.changed, self._wh, dict(self._seen))
                except Exception:
                    # Whatever the database does, the next look may go well; nothing else would feed the streams.
                    logger.exception("watched tasks cannot be read now")
                    changed = {}
                for task_id, (state, task) in changed.items():
                    if task_id in self._seen:
                        self._seen[task_id] = state
                        for stream in self._streams[task_id]:
                            stream.task = task
                            stream.news.set()
                await asyncio.sleep(INTERVAL_S)
        finally:
            self._poller = None


def _event(name: str, data: BaseModel, event_id: str | None = None) -> bytes:
    """Return one event; JSON has no bare line break, so its data is one line."""
    identified = f"id: {event_id}\n" if event_id is not None else ""
    return f"event: {name}\n{identified}data: {data.model_dump_json()}\n\n".encode()
