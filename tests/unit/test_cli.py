"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.processes import Server

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, timeout_s: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Server]:
    server = Server.start(tmp_path / "data")
    yield server
    server.kill(group=True)


# --- start and end ------------------------------------------------------------------------------------


def test_first_start_shows_the_key_once_and_keeps_it(running: Server) -> None:
    # First the key, on one plain line, then that the server answers.
    assert [line.split(":")[0] for line in running.lines] == ["API key", "Tessera is ready at http"]
    assert running.lines[0] == f"API key: {running.api_key}"
    assert (running.data / "admin.key").read_text() == f"{running.api_key}\n"
    assert running.api_key not in running.log
    running.restart()
    assert [line for line in running.lines if "API key" in line] == [f"API key: {running.api_key}"]
    with running.client() as client:
        assert client.get("/v1/me").status_code == 200


def test_the_data_directory_is_private(running: Server) -> None:
    assert stat.S_IMODE(running.data.stat().st_mode) == 0o700
    for path in running.data.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_answers_soon_after_a_cold_start(tmp_path: Path) -> None:
    # The goal is 4 s on a quiet machine; twice that where other work goes on, the best of five.
    for number in range(5):
        begun = time.monotonic()
        server = Server.start(tmp_path / f"data-{number}")
        try:
            assert httpx.get(f"{server.url}/v1/health").status_code == 200
            took = time.monotonic() - begun
        finally:
            assert server.stop() == 0
        if took < 8:
            return
    pytest.fail(f"the last of five starts took {took:.1f} s")


def test_a_second_server_is_refused_at_once_and_told_who_is_there(running: Server) -> None:
    took: list[float] = []
    # The goal is 1 s; twice that where other work goes on, the best of five.
    while len(took) < 5 and (not took or took[-1] >= 2):
        begun = time.monotonic()
        refused = run("up", "--data", str(running.data), "--port", "0")
        took.append(time.monotonic() - begun)
        assert refused.returncode == 1 and refused.stdout == ""
        for part in (f"pid {running.process.pid}", socket.gethostname(), running.url, "since 20"):
            assert part in refused.stderr
    assert min(took) < 2
    with running.client() as client:
        assert client.get("/v1/me").status_code == 200


def test_the_lock_goes_with_the_process(running: Server) -> None:
    running.restart(signal.SIGKILL)
    assert httpx.get(f"{running.url}/v1/health").status_code == 200


def test_sigterm_finishes_what_is_in_flight(running: Server) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port or 0)) as connection:
        head = f"POST /v1/namespaces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.api_key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 12\r\n\r\n".encode())
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.process.poll() is None
        connection.sendall(b'{"a": "bcd"}')
        assert connection.recv(4096).startswith(b"HTTP/1.1 422")
    assert running.process.wait(10) == 0


def test_a_second_signal_ends_at_once(running: Server) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port or 0)) as connection:
        head = f"POST /v1/namespaces HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.api_key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 12\r\n\r\n".encode())
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(2) == 128 + signal.SIGTERM


def test_ctrl_c_is_130(running: Server) -> None:
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(15) == 130


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = run("up", "--data", str(tmp_path / "data"), "--port", str(port))
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr and "--port 0" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_address_of_another_machine_is_said(tmp_path: Path) -> None:
    refused = run("up", "--data", str(tmp_path / "data"), "--host", "192.0.2.1", "--port", "0")
    assert refused.returncode == 1
    assert "192.0.2.1" in refused.stderr and "--host" in refused.stderr and "--port" not in refused.stderr


def test_listening_for_others_is_warned_about(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data", "--host", "0.0.0.0")
    try:
        assert "Warning: listening on 0.0.0.0" in server.log
        assert server.url.startswith("http://127.0.0.1:")
    finally:
        server.stop()


def test_json_logs(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data", "--log-format", "json")
    httpx.get(f"{server.url}/v1/health", headers={"X-Request-ID": "mine"})
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    request = next(line for line in lines if line.get("request_id") == "mine")
    assert (request["method"], request["route"], request["status"], request["key"]) == (
        "GET",
        "/v1/health",
        200,
        "-",
    )


def test_a_directory_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text('{"format": 99, "written_by": "7.1.0"}')
    for command in (["up", "--port", "0"], ["key", "list"]):
        (tmp_path / "tessera.sqlite3").touch()
        refused = run(*command, "--data", str(tmp_path))
        assert refused.returncode == 1
        assert "Install Tessera 7.1.0 or newer" in refused.stderr
    assert (tmp_path / "tessera.sqlite3").stat().st_size == 0


def test_a_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = run("up", "--data", str(tmp_path / "file"))
    assert refused.returncode == 1 and "--data" in refused.stderr and "Traceback" not in refused.stderr


# --- keys on the data directory -----------------------------------------------------------------------


def test_keys_beside_a_running_server_and_without_one(running: Server) -> None:
    data = ["--data", str(running.data)]
    made = run("key", "create", "--name", "reader", "--permission", "read", *data)
    assert made.returncode == 0
    key = made.stdout.removeprefix("API key: ").strip()
    assert made.stdout == f"API key: {key}\n"
    with running.client(key=key) as client:
        assert client.get("/v1/me").json()["key"]["permissions"] == ["read"]
        listed = run("key", "list", *data)
        assert listed.returncode == 0
        rows = [line.split() for line in listed.stdout.splitlines()]
        assert rows[0][:5] == ["NAME", "ID", "PREFIX", "PERMISSIONS", "STATUS"]
        assert {row[0]: row[4] for row in rows[1:]} == {"admin": "active", "reader": "active"}
        assert key not in listed.stdout and running.api_key not in listed.stdout
        assert run("key", "create", "--name", "reader", *data).returncode == 1
        revoked = run("key", "revoke", "reader", *data)
        assert revoked.returncode == 0 and "is revoked" in revoked.stdout
        assert client.get("/v1/me").status_code == 401
    assert run("key", "revoke", "reader", *data).returncode == 1
    running.stop()
    (running.data / "admin.key").unlink()
    admin = run("key", "create", "--admin", *data)
    assert admin.returncode == 0
    assert (running.data / "admin.key").read_text() == admin.stdout.removeprefix("API key: ")
    assert stat.S_IMODE((running.data / "admin.key").stat().st_mode) == 0o600
    # A kept key that works stays; one that no longer does gives way.
    assert run("key", "create", "--admin", "--name", "other", *data).returncode == 0
    assert (running.data / "admin.key").read_text() == admin.stdout.removeprefix("API key: ")
    prefix = admin.stdout.removeprefix("API key: ")[:13]
    assert run("key", "revoke", prefix, *data).returncode == 0
    fresh = run("key", "create", "--admin", *data)
    assert "admin.key" in fresh.stderr
    assert (running.data / "admin.key").read_text() == fresh.stdout.removeprefix("API key: ")


def test_keys_need_a_data_directory(tmp_path: Path) -> None:
    refused = run("key", "list", "--data", str(tmp_path / "none"))
    assert refused.returncode == 1 and "tessera up" in refused.stderr
    assert not (tmp_path / "none").exists()


# --- models -------------------------------------------------------------------------------------------


def test_models_are_listed_with_what_is_installed(tmp_path: Path) -> None:
    shown = run("models", "--data", str(tmp_path))
    assert shown.returncode == 0
    assert run("models", "list", "--data", str(tmp_path)).stdout == shown.stdout
    assert shown.stdout.split()[:3] == ["ID", "KIND", "DIMENSIONS"]
    line = next(line for line in shown.stdout.splitlines() if line.startswith("all-MiniLM-L6-v2"))
    assert line.split()[1:3] == ["text", "384"]


def test_an_unknown_model_is_not_pulled(tmp_path: Path) -> None:
    refused = run("models", "pull", "nonesuch", "--data", str(tmp_path))
    assert refused.returncode == 2
    assert "'nonesuch'" in refused.stderr and "all-MiniLM-L6-v2" in refused.stderr


# --- settings and usage -------------------------------------------------------------------------------


def test_config_shows_values_and_origins(tmp_path: Path) -> None:
    (tmp_path / "tessera.toml").write_text('workers = 3\nqdrant_url = "http://127.0.0.1:6333"\n')
    shown = run(
        "config",
        "--data",
        str(tmp_path),
        "--port",
        "9000",
        TESSERA_LOG_FORMAT="json",
        TESSERA_QDRANT_API_KEY="hush",
        TESSERA_DATABASE_URL="postgresql+psycopg://tessera:hush@db/tessera",
    )
    assert shown.returncode == 0 and "hush" not in shown.stdout
    assert "postgresql+psycopg://tessera:…@db/tessera" in shown.stdout
    rows = {line.split()[0]: line.split()[1:3] for line in shown.stdout.splitlines()}
    assert rows["port"] == ["9000", "flag"]
    assert rows["log_format"] == ["json", "environment"]
    assert rows["workers"] == ["3", "file"]
    assert rows["host"] == ["127.0.0.1", "default"]


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["up", "--port", "many"], {}, "port"),
        (["up", "--nonsense"], {}, "--nonsense"),
        (["nonsense"], {}, "nonsense"),
        ([], {}, "COMMAND"),
        (["config"], {"TESSERA_PROT": "1"}, "TESSERA_PORT"),
        (["up"], {"TESSERA_WORKERS": "none"}, "workers"),
    ],
)
def test_wrong_usage_is_2(
    arguments: list[str], environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    refused = run(*arguments, TESSERA_DATA=str(tmp_path / "data"), **environment)
    assert refused.returncode == 2
    assert said in refused.stderr and "Traceback" not in refused.stderr


def test_help_and_version_are_quick() -> None:
    begun = time.monotonic()
    assert run("--help").returncode == 0
    assert run("--version").stdout == run("version").stdout
    assert time.monotonic() - begun < 3
