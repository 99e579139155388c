"""A real server for tests: ``tessera up`` in a process group of its own, on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[2]

#: Cold, on a busy machine; the goal for a quiet one is 4 s and has a test of its own.
START_TIMEOUT_S = 60.0

#: What the command lines of the server's children show.
_CHILDREN = {"host": "edge_host", "worker": "multiprocessing.spawn"}


#: What clients of `Server.client` sent and got: (method, path, status), while a test with operations is running.
exchanges: list[tuple[str, str, int]] = []


def _note(answer: httpx.Response) -> None:
    exchanges.append((answer.request.method, answer.request.url.path, answer.status_code))


class Server:
    """A running server, its URL, its admin key and its data directory."""

    def __init__(self, data: Path, environment: Mapping[str, str], arguments: tuple[str, ...]) -> None:
        self.data = data
        self.url = ""
        self.api_key = ""
        self.lines: list[str] = []
        self._environment = dict(environment)
        self._arguments = arguments
        self._launch(port=0)

    @classmethod
    def start(cls, data: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Server:
        """Start a server on `data` and wait until it answers."""
        return cls(data, environment or {}, arguments)

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End the server with a signal and start it again on the same port."""
        os.kill(self.process.pid, number)
        self.process.wait(30)
        self.launch_again()

    def launch_again(self) -> None:
        """Start a server that has ended again, on the same port."""
        self._launch(port=httpx.URL(self.url).port or 0)

    def stop(self) -> int:
        """Ask the server to end, as an operator would, and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)

    def kill(self, *, group: bool = False) -> None:
        """SIGKILL the server alone, or it and all its children at once."""
        try:
            if group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        except ProcessLookupError:
            pass
        self.process.wait(30)

    def wait_until_dead(self, timeout_s: float) -> bool:
        """Wait for the process to end by itself; tell whether it did."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def children(self, kind: str | None = None) -> set[int]:
        """Return the process ids of the server's children: of its ``host`` or ``worker`` processes, or all of them."""
        told = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        found = set()
        for line in told.stdout.splitlines():
            pid, parent, arguments = line.split(None, 2)
            if int(parent) != self.process.pid:
                continue
            if any(kind in (None, name) and word in arguments for name, word in _CHILDREN.items()):
                found.add(int(pid))
        return found

    def kill_children(self, kind: str) -> None:
        """SIGKILL all of the server's ``host`` or ``worker`` processes."""
        for pid in self.children(kind):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until_child_dead(self, timeout_s: float) -> bool:
        """Wait until the server, a host or a worker of it has ended; tell whether one did."""
        deadline = time.monotonic() + timeout_s
        seen: set[int] = set()
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return True
            now = self.children()
            if seen - now:
                return True
            seen |= now
            time.sleep(0.1)
        return False

    def client(self, *, namespace: str | None = None, key: str | None = None) -> httpx.Client:
        """Return a client with a key (the admin's unless one is given), inside a namespace if one is given."""
        headers = {"Authorization": f"Bearer {key or self.api_key}"}
        if namespace is not None:
            headers["X-Namespace"] = namespace
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, event_hooks={"response": [_note]})

    def wait_for_task(self, task_id: str, timeout_s: float = 60) -> dict[str, Any]:
        """Poll a task until it has ended and return it."""
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while True:
                task: dict[str, Any] = client.get(f"/v1/tasks/{task_id}").raise_for_status().json()
                if task["status"] not in ("PENDING", "IN_PROGRESS", "PROCESSING"):
                    return task
                assert time.monotonic() < deadline, f"task {task_id} is {task['status']} after {timeout_s} s"
                time.sleep(0.05)

    @property
    def log(self) -> str:
        """What the server has written to stderr since it was first started."""
        return self._log.read_text()

    def _launch(self, port: int) -> None:
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.data.with_name(f"{self.data.name}.stderr")
        with self._log.open("a") as stderr:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tessera",
                    "up",
                    "--data",
                    str(self.data),
                    "--port",
                    str(port),
                    "--offline",
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self._environment},
                start_new_session=True,
            )
        self._ready = threading.Event()
        reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        reader.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready.wait(0.01):
            if self.process.poll() is not None:
                reader.join(5)
                raise RuntimeError(f"tessera up ended with {self.process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                self.kill(group=True)
                raise RuntimeError(f"tessera up was not ready after {START_TIMEOUT_S} s:\n{self.log}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("API key: "):
                self.api_key = line.split()[-1]
            if line.startswith("Tessera is ready at "):
                self.url = line.split()[-1]
                if not self.api_key:
                    self.api_key = (self.data / "admin.key").read_text().strip()
                self._ready.set()
