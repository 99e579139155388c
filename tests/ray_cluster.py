"""A real Ray cluster of one node for tests, with its token; and a server that only pretends to be one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Ray takes 7 s on a quiet machine.
START_TIMEOUT_S = 120.0

#: Reads what `ray list actors` and `ray list tasks` show, where their web server is not needed: on the cluster.
_ASK = """
import json, sys, ray
ray.init(sys.argv[1], namespace="tessera", log_to_driver=False, logging_level="ERROR")
for word in sys.argv[2:]:
    for name in [name for name in ray.util.list_named_actors() if word in name][:1]:
        ray.kill(ray.get_actor(name))
@ray.remote(num_cpus=0)
def ask():
    import time
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2
    time.sleep(1.2)  # workers report their tasks once a second
    table = state._connect_and_get_accessor().get_actor_table(None, None)
    actors = {a.actor_id: a for a in map(gcs_pb2.ActorTableData.FromString, table)}
    tasks = []
    for event in state._get_all_task_events():
        if event.task_info.actor_id in actors:
            states = event.state_updates.state_ts_ns
            ended = common_pb2.TaskStatus.Name(max(states)) if states else ""
            name = event.task_info.func_or_class_name
            tasks.append({"name": name, "state": ended, "actor": actors[event.task_info.actor_id].name})
    told = []
    for a in actors.values():
        is_alive = a.state == gcs_pb2.ActorTableData.ALIVE
        told.append({"name": a.name, "alive": is_alive, "pid": a.pid, "resources": dict(a.required_resources)})
    return {"actors": told, "tasks": tasks}
print(json.dumps(ray.get(ask.remote())))
"""


class RayCluster:
    """``ray start --head`` in a session of its own; ended by the processes that it started, by nobody's name."""

    def __init__(self, cpus: int = 8) -> None:
        self.token = secrets.token_hex(16)
        self.cpus = cpus
        self.client_port, self._gcs_port = _free_ports(2)
        # Sockets lie below it, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._mark = f"TESSERA_TEST_RAY_CLUSTER={self._folder.name}"
        self._started: list[subprocess.Popen[bytes]] = []
        self.start()

    @property
    def url(self) -> str:
        return f"ray://127.0.0.1:{self.client_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster has in its environment."""
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self) -> None:
        """Start the head and wait until it takes clients."""
        self._process = self._begin(
            "head",
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={self._gcs_port}",
            f"--ray-client-server-port={self.client_port}",
            f"--num-cpus={self.cpus}",
            "--include-dashboard=false",
            f"--temp-dir={self._folder}",
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_open(self.client_port):
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("Ray's client server did not start")
            time.sleep(0.1)

    def add_gpu_nodes(self, count: int, gpu_type: str) -> None:
        """Start nodes of one CPU and one GPU each. Ray takes their word for what they have."""
        resources = json.dumps({f"accelerator_type:{gpu_type}": 1})
        address = f"--address=127.0.0.1:{self._gcs_port}"
        for number in range(count):
            self._begin(f"node{number}", address, "--num-cpus=1", "--num-gpus=1", f"--resources={resources}")

    def _begin(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a node and wait until it runs; once more when it gives up, as Ray does on a busy machine."""
        for _ in range(2):
            process = self._launch(what, *arguments)
            if self._is_up(what, process):
                return process
            self._kill_session(process)
        self.kill()
        raise RuntimeError(f"ray start failed:\n{(self._folder / f'{what}.log').read_text()}")

    def _launch(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Run ``ray start`` in a session of its own, marked as this cluster's."""
        with (self._folder / f"{what}.log").open("w") as out:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ray")),
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    f"--object-store-memory={80 * 2**20}",
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={
                    **self.environment,
                    **dict([self._mark.split("=")]),
                    "RAY_prestart_worker_first_driver": "0",
                    # Else a session that fails to start is noticed after 30 s.
                    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "10",
                },
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _is_up(self, what: str, process: subprocess.Popen[bytes]) -> bool:
        log = self._folder / f"{what}.log"
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _kill_session(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL everything that one ``ray start`` has started."""
        for each in self.processes():
            with suppress(ProcessLookupError):
                if os.getsid(each) == process.pid:
                    os.kill(each, signal.SIGKILL)
        process.wait(10)

    def processes(self) -> dict[int, str]:
        """Return the command lines of this cluster's processes by id: its sessions, and what carries its mark."""
        sessions = {process.pid for process in self._started}
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            pid = int(entry.name)
            try:
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                marked = self._mark.encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if state[0] != "Z" and (marked or int(state[3]) in sessions):
                found[pid] = command
        return found

    def workers(self) -> list[int]:
        """Return the processes that run Tessera's actors."""
        return [pid for pid, command in self.processes().items() if command.startswith("ray::Worker")]

    def kill_node_of(self, pid: int) -> None:
        """SIGKILL everything on the node on which `pid` runs, as when that machine goes down."""
        node = os.getsid(pid)
        assert node != self._process.pid, "that is the head"
        for process in [process for process in self._started if process.pid == node]:
            self._kill_session(process)
            self._started.remove(process)

    def kill(self) -> None:
        """SIGKILL the head and everything on all nodes, as when the power fails."""
        deadline = time.monotonic() + 20
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.poll()
            assert time.monotonic() < deadline, f"processes of Ray do not end: {found}"
            time.sleep(0.05)
        for process in self._started:
            process.wait(10)
        self._started.clear()

    def stop(self) -> None:
        """End the cluster and remove its files; nothing may be left."""
        self.kill()
        shutil.rmtree(self._folder)
        assert not self.processes()
        assert not _is_open(self.client_port)

    def ask(self, *kill: str) -> dict[str, Any]:
        """Return what Ray itself lists, its actors and the calls of their methods.

        For each word in `kill` an actor with that word in its name is ended before.
        """
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", _ASK, self.url, *kill],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            # Ray's client server fails to start a session now and then; the next one works.
            if done.returncode == 0 or not any(
                sign in done.stderr for sign in ("client server failed", "Initialization failure from server")
            ):
                break
        assert done.returncode == 0, done.stderr[-2000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def other_version(ray_version: str, python_version: str) -> Iterator[str]:
    """Yield the URL of a server that speaks enough of Ray's client protocol to say which versions it is."""
    import grpc
    from ray.core.generated import ray_client_pb2 as messages
    from ray.core.generated import ray_client_pb2_grpc as services

    class Driver(services.RayletDriverServicer):  # type: ignore[misc]
        def ClusterInfo(self, request: Any, context: Any) -> Any:
            return messages.ClusterInfoResponse(type=request.type, json="{}")

        def KVExists(self, request: Any, context: Any) -> Any:
            return messages.KVExistsResponse(exists=True)

        def KVPut(self, request: Any, context: Any) -> Any:
            return messages.KVPutResponse(already_exists=True)

        def PinRuntimeEnvURI(self, request: Any, context: Any) -> Any:
            return messages.ClientPinRuntimeEnvURIResponse()

    class Logs(services.RayletLogStreamerServicer):  # type: ignore[misc]
        def Logstream(self, requests: Any, context: Any) -> Iterator[Any]:
            for _ in requests:
                yield from ()

    class Streamer(services.RayletDataStreamerServicer):  # type: ignore[misc]
        def Datapath(self, requests: Any, context: Any) -> Iterator[Any]:
            for request in requests:
                answer = messages.DataResponse(req_id=request.req_id)
                if request.HasField("init"):
                    answer.init.ok = True
                elif request.HasField("connection_info"):
                    answer.connection_info.ray_version = ray_version
                    answer.connection_info.python_version = python_version
                    answer.connection_info.num_clients = 1
                yield answer

    server = grpc.server(ThreadPoolExecutor(8))
    services.add_RayletDriverServicer_to_server(Driver(), server)
    services.add_RayletDataStreamerServicer_to_server(Streamer(), server)
    services.add_RayletLogStreamerServicer_to_server(Logs(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.stop(0)
