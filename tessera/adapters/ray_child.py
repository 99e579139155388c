"""The driver of one Ray cluster, in a process of its own: the only place that imports Ray.

Started by ``tessera/adapters/ray.py`` as ``python -m tessera.adapters.ray_child FD``. Over the socket it gets
a `Hello`, then `Submit` and `Cancel`, at last `Close`; it sends `Refused` or `Unreachable` and ends, or `Ready`, then
`Beat` every few seconds and `Done`, `Crashed` or `Impossible` for what was submitted. When the cluster is lost
(a Ray connection that broke cannot be used again) it says `Lost` and ends. It ends with its server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tessera.adapters.ray_worker import Worker

#: A head that does not take a TCP connection within this time, or then answer a first question, is unreachable.
CONTACT_TIMEOUT_S: Final = 3.0
#: The cluster is asked for its nodes this often; the answer is the sign of life that the server gets.
BEAT_S: Final = 5.0
#: Ray's client goes on trying to mend a broken link for so long before it gives up. Its default is 30.
RECONNECT_GRACE_S: Final = 10
#: Workers above the minimum that had nothing to do for so long are given back.
IDLE_S: Final = 60.0
#: The same, when another pool waits for a first worker and may need their place.
WANTED_IDLE_S: Final = 1.0
#: A pool that had nothing to do for so long keeps not even its minimum: its namespace may be gone.
KEEP_S: Final = 900.0
#: So many workers that died in a row before one of them was ready: the cluster cannot run them.
FRUITLESS_STARTS: Final = 3
#: Giving back workers may take so long, then the process ends anyhow.
CLOSE_S: Final = 5.0
#: What the server has of these, a node must have too.
MODULES: Final = (
    "av", "docx", "faster_whisper", "fastembed", "numpy", "obstore", "onnx", "onnxruntime", "openpyxl", "orjson",
    "PIL", "pocketsphinx", "pptx", "pyarrow", "pydantic", "pypdfium2", "rapidocr", "re2", "selectolax", "sqlalchemy",
    "tokenizers",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hello:
    """Where to connect, and what a worker must see there."""

    url: str
    token: str | None = field(repr=False)
    probes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that share a name, and the bounds of their number."""

    name: str
    min_workers: int
    max_workers: int
    autoscaling: bool
    gpu_type: str | None
    gpus_per_worker: int


@dataclass(frozen=True, slots=True)
class Submit:
    ticket: int
    pool: Pool
    call: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    ticket: int


@dataclass(frozen=True, slots=True)
class Close:
    """Give the workers back and end. A process that just ends leaves them running for half a minute."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Connected. `description` says to what, for the log."""

    description: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The cluster answered just now."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The cluster cannot be used, and trying again does not help."""

    message: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No connection now. `answered` when the head took part: a cold one often fails its first session."""

    message: str
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke; what was under way has to go again."""

    message: str


@dataclass(frozen=True, slots=True)
class Done:
    ticket: int
    answer: bytes


@dataclass(frozen=True, slots=True)
class Crashed:
    """The worker died under this item (`timed_out`: we ended it because the item took too long)."""

    ticket: int
    message: str
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Impossible:
    """No worker of this pool can run on the cluster as it is."""

    ticket: int
    message: str


class RefusedError(Exception):
    """Becomes `Refused`."""


class UnreachableError(Exception):
    """Becomes `Unreachable`."""

    answered = False


class NoSessionError(UnreachableError):
    """The head is there, but made no session."""

    answered = True


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    pool: _Workers
    since: float
    #: The bounds and resources under which it was started.
    asked: Pool
    ready: bool = False
    item: Submit | None = None
    pid: int = 0


@dataclass(slots=True, eq=False)
class _Workers:
    """The actors of one pool and what waits for them."""

    pool: Pool
    actors: list[_Actor] = field(default_factory=list)
    waiting: deque[Submit] = field(default_factory=deque)
    fruitless: int = 0
    started: int = 0
    #: Until then no new worker is started: the one before died at once.
    not_before: float = 0.0
    #: When it last had something to do.
    used: float = 0.0


class _Driver:
    """Everything that happens after the connection; used from the main thread only."""

    def __init__(self, ray: Any, hello: Hello, out: Connection, events: queue.SimpleQueue[Any]) -> None:
        self._ray = ray
        self._hello = hello
        self._out = out
        self._events = events
        self._pools: dict[str, _Workers] = {}
        self._modules = [name for name in MODULES if _is_installed(name)]
        self._next_beat = 0.0
        self._closing = False

    def run(self) -> None:
        """Serve until told to close; the connection to the cluster breaking raises."""
        while not self._closing:
            wait_s = max(0.0, min(1.0, self._next_beat - time.monotonic()))
            with contextlib.suppress(queue.Empty):
                self._handle(self._events.get(timeout=wait_s))
                while True:
                    self._handle(self._events.get_nowait())
            self._tick(time.monotonic())
        for workers in self._pools.values():
            for actor in list(workers.actors):
                self._dismiss(actor)
        self._ray.shutdown()

    def _handle(self, event: Any) -> None:
        if isinstance(event, Submit):
            workers = self._pools.setdefault(event.pool.name, _Workers(event.pool))
            workers.pool = event.pool
            workers.waiting.append(event)
        elif isinstance(event, Close):
            self._closing = True
        elif isinstance(event, Cancel):
            self._cancel(event.ticket)
        else:
            kind, actor, value = event
            if actor in actor.pool.actors:
                (self._started if kind == "check" else self._finished)(actor, value)

    def _cancel(self, ticket: int) -> None:
        for workers in self._pools.values():
            for item in [item for item in workers.waiting if item.ticket == ticket]:
                workers.waiting.remove(item)
            for actor in list(workers.actors):
                if actor.item is not None and actor.item.ticket == ticket:
                    self._dismiss(actor)

    def _started(self, actor: _Actor, value: Any) -> None:
        workers = actor.pool
        if isinstance(value, Exception):
            self._dismiss(actor)
            workers.fruitless += 1
            workers.not_before = time.monotonic() + 2.0 ** (workers.fruitless - 1)
            if workers.fruitless >= FRUITLESS_STARTS:
                self._give_up(workers, f"No worker could be started: {_first_line(value)}")
            return
        pid, problems = value
        if problems:
            self._dismiss(actor)
            self._give_up(workers, " ".join(problems))
            return
        workers.fruitless = 0
        actor.ready, actor.since, actor.pid = True, time.monotonic(), pid

    def _finished(self, actor: _Actor, value: Any) -> None:
        item, actor.item, actor.since = actor.item, None, time.monotonic()
        if item is None:
            return
        if isinstance(value, self._ray.exceptions.RayError):
            self._dismiss(actor)
            self._send(Crashed(item.ticket, _first_line(value)))
        elif isinstance(value, Exception):
            # Not Ray's word on the worker, but the connection's end: no item is to blame.
            raise value
        else:
            self._send(Done(item.ticket, value))

    def _give_up(self, workers: _Workers, message: str) -> None:
        """Nothing that waits can be run; what is submitted later tries again."""
        workers.fruitless = 0
        while workers.waiting:
            self._send(Impossible(workers.waiting.popleft().ticket, message))

    def _dismiss(self, actor: _Actor) -> None:
        actor.pool.actors.remove(actor)
        with contextlib.suppress(ValueError):
            self._ray.kill(actor.handle)

    def _tick(self, at: float) -> None:
        for workers in self._pools.values():
            for actor in list(workers.actors):
                if actor.item is not None and at - actor.since > actor.item.timeout_s:
                    item = actor.item
                    self._dismiss(actor)
                    self._send(Crashed(item.ticket, "", timed_out=True))
            self._dismiss_surplus(workers)
            self._hand_out(workers, at)
            self._resize(workers, at)
        if at >= self._next_beat:
            self._ray.nodes()
            self._send(Beat())
            self._next_beat = time.monotonic() + BEAT_S

    def _dismiss_surplus(self, workers: _Workers) -> None:
        """Part with workers that new bounds or resources leave no place for, each once its item is done."""
        pool = workers.pool
        most = pool.max_workers if pool.autoscaling else max(1, pool.min_workers)
        for actor in list(workers.actors):
            is_other = (actor.asked.gpu_type, actor.asked.gpus_per_worker) != (
                pool.gpu_type,
                pool.gpus_per_worker,
            )
            if actor.item is None and (is_other or len(workers.actors) > most):
                self._dismiss(actor)

    def _hand_out(self, workers: _Workers, at: float) -> None:
        for actor in workers.actors:
            if not workers.waiting:
                return
            if actor.ready and actor.item is None:
                actor.item, actor.since = workers.waiting.popleft(), at
                self._when_done("run", actor, actor.handle.run.remote(actor.item.call))

    def _resize(self, workers: _Workers, at: float) -> None:
        pool = workers.pool
        busy = sum(actor.item is not None for actor in workers.actors)
        if busy or workers.waiting:
            workers.used = at
        if at - workers.used > KEEP_S:
            wanted = 0
        elif pool.autoscaling:
            wanted = max(pool.min_workers, min(pool.max_workers, busy + len(workers.waiting)))
        else:
            wanted = max(1, pool.min_workers)
        is_wanted = any(
            other.waiting and not any(actor.ready for actor in other.actors)
            for other in self._pools.values()
            if other is not workers
        )
        idle_s = WANTED_IDLE_S if is_wanted else IDLE_S
        for actor in list(workers.actors):
            if len(workers.actors) > wanted and actor.item is None and at - actor.since > idle_s:
                self._dismiss(actor)
        if at < workers.not_before or len(workers.actors) >= wanted:
            return
        options = self._options(workers)
        if isinstance(options, str):
            self._give_up(workers, options)
            return
        while len(workers.actors) < wanted:
            workers.started += 1
            name = f"tessera-{pool.name}-{os.getpid()}-{workers.started}"
            handle = self._ray.remote(Worker).options(name=name, **options).remote()
            actor = _Actor(handle, workers, at, pool)
            workers.actors.append(actor)
            self._when_done("check", actor, handle.check.remote(self._hello.probes, self._modules))

    def _options(self, workers: _Workers) -> dict[str, Any] | str:
        """Return the actor's resources, or why no node of the cluster has them."""
        pool = workers.pool
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= 1 for node in nodes):
            return f"The Ray cluster {self._hello.url} has no CPU for workers: no node of its {len(nodes)} offers one."
        if not pool.gpus_per_worker:
            return options
        prefix = "accelerator_type:"
        kinds = {kind.removeprefix(prefix) for node in nodes for kind in node if kind.startswith(prefix)}
        kind = next((kind for kind in kinds if _plain(kind) == _plain(pool.gpu_type or "")), None)
        if pool.gpu_type and kind is not None:
            options["accelerator_type"] = kind
        fitting = [node for node in nodes if not pool.gpu_type or f"{prefix}{kind}" in node]
        if max((node.get("GPU", 0) for node in fitting), default=0) >= pool.gpus_per_worker:
            return {**options, "num_gpus": pool.gpus_per_worker}
        has = sum(node.get("GPU", 0) for node in nodes)
        found = (
            f"has {has:g} ({', '.join(sorted(kinds)) or 'of unknown type'}), and no node with enough of them"
            if has
            else "has none"
        )
        return (
            f"The namespace asks for {pool.gpus_per_worker} GPU(s) of type {pool.gpu_type or 'any'} a worker, but the "
            f"Ray cluster {self._hello.url} {found}. Add a node with such GPUs, or change gpu_type and "
            "gpus_per_worker of the namespace's infrastructure."
        )

    def _when_done(self, kind: str, actor: _Actor, reference: Any) -> None:
        def tell(future: Any) -> None:
            error = future.exception()
            self._events.put((kind, actor, error if error is not None else future.result()))

        reference.future().add_done_callback(tell)

    def _send(self, message: Any) -> None:
        self._out.send_bytes(pickle.dumps(message))


def _plain(gpu_type: str) -> str:
    """Return a GPU's name without the maker's: ``nvidia-tesla-a100`` is Ray's ``A100``."""
    letters = "".join(letter for letter in gpu_type.casefold() if letter.isalnum())
    return letters.removeprefix("nvidia").removeprefix("tesla")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.split("\n", 1)[0].split())[:300]


def _is_installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


# --- connecting --------------------------------------------------------------------------------------


def connect(hello: Hello) -> tuple[Any, str]:
    """Return Ray, connected, and a line that says to what.

    What is wrong is found in seconds, before Ray's own client waits half a minute for it: an open port, then
    one call that tells whether the token is right. Versions are compared by Ray once it is connected.
    """
    _check_reachable(hello)
    _check_token(hello)
    os.environ.update(_environment(hello))  # noqa: TID251  this process's own, for Ray's native part
    import ray

    package = Path(__file__).parents[1]
    try:
        context = ray.init(
            hello.url,
            namespace="tessera",
            # Always sent, also to a cluster that has a Tessera: what runs there is this server's version.
            runtime_env={"py_modules": [str(package)], "excludes": ["**/__pycache__", "**/*.pyc"]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except RuntimeError as error:
        if "version" in str(error).lower():
            raise RefusedError(_version_message(hello, error)) from error
        raise NoSessionError(f"The Ray cluster {hello.url} took no session: {_first_line(error)}") from error
    except Exception as error:
        # ConnectionError, grpc.RpcError, RayError: all say that no session could be made.
        raise NoSessionError(f"The Ray cluster {hello.url} took no session: {_first_line(error)}") from error
    return ray, f"Ray {context.ray_version}, Python {context.python_version}"


def _environment(hello: Hello) -> dict[str, str]:
    """Return what Ray reads from its environment; never that of the server, and never a command line."""
    return {
        **(
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": hello.token}
            if hello.token
            # Else a token file of the user who runs the server would be shown to whatever cluster this is.
            else {"RAY_AUTH_MODE": "disabled"}
        ),
        "RAY_CLIENT_RECONNECT_GRACE_PERIOD": str(RECONNECT_GRACE_S),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Fixes of Python are compatible; without this Ray only warns about them.
        "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    }


def _check_reachable(hello: Hello) -> None:
    parts = urlsplit(hello.url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 10001), CONTACT_TIMEOUT_S).close()
    except OSError as error:
        raise UnreachableError(
            f"The Ray head at {hello.url} cannot be reached: {error.strerror or error}. Check ray_head_node_url, and "
            "that the cluster runs with its client server on that port (`ray start --head` opens 10001)."
        ) from error


def _check_token(hello: Hello) -> None:
    import grpc

    parts = urlsplit(hello.url)
    metadata = [("client_id", "tessera-check")]
    if hello.token:
        metadata.append(("authorization", f"Bearer {hello.token}"))
    with grpc.insecure_channel(f"{parts.hostname}:{parts.port}") as channel:
        # Of any session's calls; the answer for a session that does not exist is NOT_FOUND.
        ask = channel.unary_unary(
            "/ray.rpc.RayletDriver/ClusterInfo", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            ask(b"", timeout=CONTACT_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                raise RefusedError(
                    f"The Ray cluster {hello.url} refused the token."
                    if hello.token
                    else f"The Ray cluster {hello.url} wants a token, and none is set. Since 2.59 Ray demands one: "
                    "set ray_auth_token beside ray_head_node_url."
                ) from error
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise UnreachableError(
                    f"The Ray client server at {hello.url} does not answer: {error.details()}"
                ) from error


def _version_message(hello: Hello, error: Exception) -> str:
    import ray

    return (
        f"The Ray cluster {hello.url} runs other versions than this server (Ray {ray.__version__}, Python "
        f"{sys.version_info.major}.{sys.version_info.minor}); both must be equal. Ray says: "
        f"{' '.join(str(error).split())[:300]}"
    )


# --- the process -------------------------------------------------------------------------------------


def _read(connection: Connection, events: queue.SimpleQueue[Any]) -> None:
    """Pass on what the server sends, and end with it."""
    with contextlib.suppress(EOFError, OSError):
        message = None
        while not isinstance(message, Close):
            message = pickle.loads(connection.recv_bytes())  # noqa: S301  from the server that started us
            events.put(message)
    events.put(Close())
    time.sleep(CLOSE_S)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Connect, serve, and end with a message that says why."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(arguments[0]))
    hello = pickle.loads(connection.recv_bytes())  # noqa: S301  from the server that started us
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, events), daemon=True).start()

    def last(message: Any) -> None:
        connection.send_bytes(pickle.dumps(message))
        # Ray's threads would try for half a minute to mend the connection.
        os._exit(0)

    try:
        ray, description = connect(hello)
    except RefusedError as error:
        last(Refused(str(error)))
    except UnreachableError as error:
        last(Unreachable(str(error), error.answered))
    else:
        connection.send_bytes(pickle.dumps(Ready(description)))
        try:
            _Driver(ray, hello, connection, events).run()
            os._exit(0)
        except Exception as error:  # noqa: BLE001  ConnectionError, grpc.RpcError, RayError: the session is over
            last(Lost(f"{type(error).__name__}: {_first_line(error)}"))


if __name__ == "__main__":
    # Run as a module, its classes would be pickled as those of `__main__`.
    from tessera.adapters.ray_child import main as run

    run(sys.argv[1:])
