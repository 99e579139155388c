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

_ASK = """
import json, sys, ray
ray.init(sys.argv[1], namespace="tessera", log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=0)
def actors():
    from ray._private import state
    return [{"name": a["Name"], "state": a["State"], "pid": a["Pid"]} for a in state.actors().values()]
calls = [event["name"] for event in ray.timeline() if event["cat"].startswith("task::") or event["name"] == "run"]
print(json.dumps({"actors": ray.get(actors.remote()), "runs": calls.count("run")}))
"""


class RayCluster:
    """``ray start --head`` in a session of its own; ended by the processes that it started, by nobody's name."""

    def __init__(self, cpus: int = 4) -> None:
        self.token = secrets.token_hex(16)
        self.cpus = cpus
        self.port, self._gcs_port = _free_ports(2)
        # Sockets lie below it, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._mark = f"TESSERA_TEST_RAY_CLUSTER={self._folder.name}"
        self._ever: set[int] = set()
        self.start()

    @property
    def url(self) -> str:
        return f"ray://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster has in its environment."""
        return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self) -> None:
        """Start the head and wait until it takes clients."""
        log = self._folder / "start.log"
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ray")),
                    "start",
                    "--head",
                    "--block",
                    "--node-ip-address=127.0.0.1",
                    f"--port={self._gcs_port}",
                    f"--ray-client-server-port={self.port}",
                    f"--num-cpus={self.cpus}",
                    f"--object-store-memory={80 * 2**20}",
                    "--include-dashboard=false",
                    "--disable-usage-stats",
                    f"--temp-dir={self._folder}",
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
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in log.read_text() or not _is_open(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"ray start failed:\n{log.read_text()}")
            time.sleep(0.1)
        self._ever |= set(self.processes())

    def processes(self) -> dict[int, str]:
        """Return the command lines of this cluster's processes by id: its session, and what carries its mark."""
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
            if state[0] != "Z" and (marked or int(state[3]) == self._process.pid):
                found[pid] = command
        return found

    def workers(self) -> list[int]:
        """Return the processes that run Tessera's actors."""
        return [pid for pid, command in self.processes().items() if command.startswith("ray::Worker")]

    def kill(self) -> None:
        """SIGKILL the head and everything on its node, as when the machine goes down."""
        deadline = time.monotonic() + 20
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            assert time.monotonic() < deadline, f"processes of Ray do not end: {found}"
            time.sleep(0.05)
        self._process.wait(10)

    def stop(self) -> None:
        """End the cluster and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self) -> dict[str, Any]:
        """Return what Ray itself lists: its actors, and how many calls of `Worker.run` it has executed."""
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", _ASK, self.url],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            # Ray's client server fails to start a session now and then; the next one works.
            if done.returncode == 0 or "Starting Ray client server failed" not in done.stderr:
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
