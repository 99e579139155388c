"""Secrets: written and never read back, nowhere in clear, and sealed anew when the master key is replaced."""

from __future__ import annotations

import base64
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.http.processes import ROOT, Server

SECRETS = "/v1/organizations/secrets"
CANARY = "canary-4b1d9e-value-that-must-not-be-seen"
QDRANT_KEY = "canary-qdrant-key-77aa"
RAY_TOKEN = "canary-ray-token-88bb"
INFRASTRUCTURE = {
    "compute_tier": "dedicated_cpu",
    "qdrant_url": "http://127.0.0.1:6333",
    "qdrant_api_key": QDRANT_KEY,
    "ray_head_node_url": "ray://127.0.0.1:10001",
    "ray_auth_token": RAY_TOKEN,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that this module may stop, with a key and secrets of every kind."""
    server = Server.start(tmp_path_factory.mktemp("secrets") / "data")
    with server.client() as client:
        client.post(SECRETS, json={"secret_name": "kept", "secret_value": CANARY}).raise_for_status()
        client.patch("/v1/organizations", json={"infrastructure": INFRASTRUCTURE}).raise_for_status()
    yield server
    server.stop()


def test_a_secret_is_made_replaced_listed_and_removed(client: httpx.Client) -> None:
    made = client.post(SECRETS, json={"secret_name": "one", "secret_value": CANARY})
    assert made.status_code == 201
    assert made.json() == {"secret_name": "one", "created": True, "updated": None, "deleted": None}
    twice = client.post(SECRETS, json={"secret_name": "one", "secret_value": "x"})
    assert (twice.status_code, twice.json()["error"]["type"]) == (409, "AlreadyExistsError")
    client.post(SECRETS, json={"secret_name": "a b", "secret_value": "x"})
    listed = client.get(SECRETS)
    assert listed.status_code == 200 and listed.json() == {"secrets": ["a b", "one"], "count": 2}
    changed = client.put(f"{SECRETS}/one", json={"secret_value": "other"})
    assert changed.status_code == 200 and changed.json()["updated"] is True
    for name in ("one", "a b"):
        gone = client.delete(f"{SECRETS}/{name}")
        assert gone.status_code == 200 and gone.json()["deleted"] is True
    for method in ("PUT", "DELETE"):
        answer = client.request(method, f"{SECRETS}/one", json={"secret_value": "x"})
        assert (answer.status_code, answer.json()["error"]["details"]) == (
            404,
            {"resource": "secret", "id": "one"},
        )
    assert client.get(f"{SECRETS}/one").status_code == 405
    assert "canary" not in made.text + twice.text + listed.text + changed.text


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"secret_name": "x"},
        {"secret_name": "", "secret_value": CANARY},
        {"secret_name": "x" * 101, "secret_value": CANARY},
        {"secret_name": "a/b", "secret_value": CANARY},
        {"secret_name": "x", "secret_value": [CANARY]},
        {"secret_name": "x", "secret_value": {"inner": CANARY}},
        {"secret_name": ["x"], "secret_value": CANARY * 2000},
    ],
)
def test_what_is_refused_is_not_echoed(client: httpx.Client, body: object) -> None:
    answer = client.post(SECRETS, json=body)
    assert answer.status_code == 422 and "canary" not in answer.text


def test_secrets_need_admin(server: Server, client: httpx.Client) -> None:
    path = "/v1/organizations/users/admin@localhost/api-keys"
    made = client.post(path, json={"name": "not-admin", "permissions": ["delete"]}).json()
    with server.client(key=made["key"]) as other:
        for method, url in (
            ("GET", SECRETS),
            ("POST", SECRETS),
            ("PUT", f"{SECRETS}/x"),
            ("DELETE", f"{SECRETS}/x"),
        ):
            assert other.request(method, url, json={}).status_code == 403, method


def test_nothing_is_anywhere_in_clear(own: Server) -> None:
    path = "/v1/organizations/users/admin@localhost/api-keys"
    with own.client() as client:
        made = client.post(path, json={"name": "canary"}).json()["key"]
        with own.client(key=made) as other:
            other.get("/v1/me").raise_for_status()
            other.post("/v1/namespaces", json={"infrastructure": INFRASTRUCTURE})
            other.request("BREW", "/v1/me")
        answers = [
            client.get(url).text
            for url in (SECRETS, "/v1/organizations", path, "/v1/me", "/v1/organizations/audit/logs")
        ]
        client.patch(
            "/v1/organizations", json={"infrastructure": {**INFRASTRUCTURE, "qdrant_url": "nonsense"}}
        )
    words = [made, CANARY, QDRANT_KEY, RAY_TOKEN]
    forms = {word: [word, base64.b64encode(word.encode()).decode(), word.encode().hex()] for word in words}
    time.sleep(0.2)  # the log is written together
    seen: dict[str, bytes] = {f"answer {number}": text.encode() for number, text in enumerate(answers)}
    seen["log"] = own.log.encode()
    seen |= {str(file): file.read_bytes() for file in own.data.rglob("*") if file.is_file()}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen[f"{process} arguments"] = (process / "cmdline").read_bytes()
        except OSError:
            continue
    for where, content in seen.items():
        for word, spellings in forms.items():
            for spelling in spellings:
                assert spelling.encode() not in content, (where, word)


def test_files_with_secrets_are_their_owners_alone(own: Server) -> None:
    assert own.data.stat().st_mode & 0o077 == 0
    for name in ("master.key", "signing.key", "admin.key", "tessera.sqlite3"):
        assert (own.data / name).stat().st_mode & 0o077 == 0, name


def run(data: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", "secrets", "rotate", "--data", str(data)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    )


def sealed_texts(data: Path) -> list[str]:
    with sqlite3.connect(data / "tessera.sqlite3") as connection:
        texts = [text for (text,) in connection.execute("SELECT sealed FROM secrets")]
        texts += [text for (text,) in connection.execute("SELECT infrastructure FROM organizations")]
    return texts


def test_the_master_key_is_rotated_while_no_server_runs(own: Server) -> None:
    held = run(own.data)
    assert held.returncode == 1 and "Another server holds" in held.stderr
    before_key, before = (own.data / "master.key").read_text(), sealed_texts(own.data)
    own.stop()
    done = run(own.data)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 stored credentials are sealed with the new master key ")
    assert (own.data / "master.key").read_text() != before_key
    assert (own.data / "master.key").read_text().count("\n") == 1
    assert not set(before) & set(sealed_texts(own.data))
    # To a key that the environment states, and back into service with that alone.
    new = os.urandom(32).hex()
    done = run(own.data, TESSERA_MASTER_KEY=new)
    assert done.returncode == 0 and new not in done.stdout + done.stderr, done.stderr
    assert not (own.data / "master.key").exists()
    newer = base64.b64encode(os.urandom(32)).decode()
    assert run(own.data, TESSERA_MASTER_KEY=newer).returncode == 1
    done = run(own.data, TESSERA_MASTER_KEY=newer, TESSERA_MASTER_KEY_PREVIOUS=new)
    assert done.returncode == 0 and "needed no more" in done.stderr, done.stderr
    again = Server.start(own.data, environment={"TESSERA_MASTER_KEY": newer})
    try:
        with again.client() as client:
            assert client.get(SECRETS).json()["secrets"] == ["kept"]
            # The kept key still works where the URL stays.
            kept = {k: v for k, v in INFRASTRUCTURE.items() if "key" not in k and "token" not in k}
            assert client.patch("/v1/organizations", json={"infrastructure": kept}).status_code == 200
    finally:
        again.stop()
    assert newer.encode() not in b"".join(f.read_bytes() for f in own.data.rglob("*") if f.is_file())


def test_a_rotation_that_is_killed_at_random_loses_nothing(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data")
    try:
        with server.client() as client:
            for number in range(40):
                body = {"secret_name": f"s{number}", "secret_value": f"value {number}"}
                client.post(SECRETS, json=body).raise_for_status()
    finally:
        server.stop()
    whole = time.monotonic()
    assert run(server.data).returncode == 0
    whole = time.monotonic() - whole
    for fraction in (0.5, 0.7, 0.85, 0.95):
        process = subprocess.Popen(
            [sys.executable, "-m", "tessera", "secrets", "rotate", "--data", str(server.data)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        time.sleep(whole * fraction)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        check_all_open(server.data)
    assert run(server.data).returncode == 0
    check_all_open(server.data)
    assert (server.data / "master.key").read_text().count("\n") == 1


def check_all_open(data: Path) -> None:
    from tessera.sealing import open_vault

    vault = open_vault(data / "master.key", make=False)
    with sqlite3.connect(data / "tessera.sqlite3") as connection:
        rows = connection.execute("SELECT secret_name, sealed FROM secrets").fetchall()
    assert len(rows) == 40
    assert all(vault.unseal(sealed) == f"value {name[1:]}" for name, sealed in rows)


@pytest.mark.parametrize("value", ["short", "x" * 64, ""])
def test_a_master_key_that_is_none_is_refused_without_showing_it(tmp_path: Path, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tessera", "up", "--data", str(tmp_path / "data"), "--port", "0", "--offline"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESSERA_MASTER_KEY": value},
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "openssl rand -hex 32" in done.stderr, done.stderr
    assert not value or value not in done.stderr
