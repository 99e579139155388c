"""Secrets: written and never read back, nowhere in clear, and sealed anew when the master key is replaced."""

from __future__ import annotations

import base64
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import qdrant_rest
from tests.http.loop import TEXT, Loop
from tests.http.processes import ROOT, Server

SECRETS = "/v1/organizations/secrets"
CANARY = "canary-4b1d9e-value-that-must-not-be-seen"
SEALED = 20
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
        {"secret_name": "..", "secret_value": CANARY},
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


def test_nothing_is_anywhere_in_clear(tmp_path: Path) -> None:
    """Every kind of secret, made at random, is looked for in files, logs, answers, and in all processes of a server."""
    made = {
        kind: f"canary{os.urandom(12).hex()}" for kind in ("secret", "qdrant", "ray", "server ray", "own")
    }
    operator, master = f"canary{os.urandom(20).hex()}", os.urandom(32).hex()
    qdrant = qdrant_rest.start(tmp_path / "qdrant", api_key=made["own"])
    server = Server.start(
        tmp_path / "data",
        environment={
            "TESSERA_OPERATOR_SECRET": operator,
            "TESSERA_MASTER_KEY": master,
            "TESSERA_RAY_AUTH_TOKEN": made["server ray"],
        },
    )
    path = "/v1/organizations/users/admin@localhost/api-keys"
    answers = []
    try:
        with server.client() as client, socket.create_server(("127.0.0.1", 0)) as ray:
            head = f"ray://127.0.0.1:{ray.getsockname()[1]}"
            infrastructure = {
                **INFRASTRUCTURE,
                "qdrant_api_key": made["qdrant"],
                "ray_auth_token": made["ray"],
                "ray_head_node_url": head,
            }
            key = client.post(path, json={"name": "canary"}).json()["key"]
            old, key = key, client.post(f"{path}/canary/rotate").json()["key"]
            own = {
                **infrastructure,
                "qdrant_url": qdrant.url,
                "qdrant_api_key": made["own"],
                "qdrant_collection": "own_one",
            }

            def send(method: str, url: str, body: object = None, key: str | None = None) -> int:
                headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
                answer = client.request(method, url, json=body, headers=headers)
                answers.append(f"{answer.headers} {answer.text}")
                return answer.status_code

            # A document's work starts the processes that extract.
            made_in = client.post(
                "/v1/namespaces", json={"namespace_name": "work", "feature_extractors": [TEXT]}
            )
            loop = Loop(client, made_in.json())
            bucket = loop.bucket()
            loop.collection(bucket, TEXT)
            loop.run(bucket, [loop.note(bucket, "a word")])
            body = {"secret_name": "kept", "secret_value": made["secret"]}
            assert send("POST", SECRETS, body) == 201
            assert send("POST", SECRETS, body) == 409
            assert send("PUT", f"{SECRETS}/kept", {"secret_value": [made["secret"]]}) == 422
            assert send("PUT", f"{SECRETS}/absent", {"secret_value": made["secret"]}) == 404
            assert send("PATCH", "/v1/organizations", {"infrastructure": infrastructure}) == 200
            for wrong in ({"qdrant_url": "nonsense"}, {"compute_tier": "huge"}):
                assert (
                    send("PATCH", "/v1/organizations", {"infrastructure": {**infrastructure, **wrong}}) == 422
                )
            # One namespace that really uses its key, and one whose Qdrant cannot be reached.
            create = {"namespace_name": "own", "feature_extractors": [TEXT]}
            assert send("POST", "/v1/namespaces", {**create, "infrastructure": own}) == 200
            # Its answers speak of it too.
            assert send("GET", "/v1/namespaces/own") == 200
            nowhere = {**own, "qdrant_url": "http://127.0.0.1:9", "qdrant_collection": "nowhere"}
            assert (
                send("POST", "/v1/namespaces", {**create, "namespace_name": "x", "infrastructure": nowhere})
                == 503
            )
            refused = {**own, "qdrant_api_key": made["secret"], "qdrant_collection": "refused"}
            assert (
                send("POST", "/v1/namespaces", {**create, "namespace_name": "y", "infrastructure": refused})
                == 503
            )
            for url in (SECRETS, "/v1/organizations", path, "/v1/me", "/v1/organizations/audit/logs"):
                assert send("GET", url) == 200
            assert send("GET", "/v1/me", key=key) == 200
            assert send("GET", "/v1/me", key=old) == 401
            assert send("GET", "/v1/me", key=made["secret"]) == 401
            assert send("POST", "/v1/namespaces", {}, key=key) == 422
            assert send("GET", "/v1/private/organizations", key=operator) == 200
            assert send("GET", "/v1/private/organizations", key=operator[:-1]) == 401
            # The log is written together, a little later.
            client.get("/v1/me", headers={"X-Request-ID": "the-last-one"})
            deadline = time.monotonic() + 10
            while "the-last-one" not in server.log:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        words = [*made.values(), operator, master, key, old]
        forms = {spelling for word in words for spelling in spellings(word)}
        children = family(server.process.pid)
        assert len(children) > 1, "the hosts of vectors and the workers are processes of their own"
        seen: dict[str, bytes] = {f"answer {number}": text.encode() for number, text in enumerate(answers)}
        seen["what it printed"] = "\n".join(server.lines).encode()
        seen["log"] = server.log.encode()
        for pid in children:
            seen[f"arguments of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()
            if pid != server.process.pid:
                seen[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
        look(seen | files(server.data), forms)
    finally:
        server.stop()
        qdrant.shutdown()
    # Nor in what is left behind, and in what a backup would hold.
    assert any(name.endswith("tessera.sqlite3") for name in files(server.data))
    look(files(server.data) | {"log": server.log.encode()}, forms)


def spellings(word: str) -> list[bytes]:
    """Return a secret as it could stand somewhere: plain, in base64 at each offset, in hex."""
    encoded = [base64.b64encode(b"x" * shift + word.encode())[4:-4] for shift in range(3)]
    return [word.encode(), *encoded, word.encode().hex().encode()]


def look(seen: dict[str, bytes], forms: set[bytes]) -> None:
    for where, content in seen.items():
        assert not any(form in content for form in forms), where


def files(data: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in data.rglob("*") if file.is_file()}


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def test_files_with_secrets_are_their_owners_alone(own: Server) -> None:
    assert own.data.stat().st_mode & 0o077 == 0
    for name in ("master.key", "signing.key", "admin.key", "tessera.sqlite3"):
        assert (own.data / name).stat().st_mode & 0o077 == 0, name


def run(data: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", *(command or ("secrets", "rotate")), "--data", str(data)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=60,
        check=False,
    )


def sealed_texts(data: Path) -> list[str]:
    with sqlite3.connect(data / "tessera.sqlite3") as connection:
        texts = [text for (text,) in connection.execute("SELECT sealed FROM secrets")]
        texts += [text for (text,) in connection.execute("SELECT infrastructure FROM organizations") if text]
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


@pytest.mark.parametrize("point", ["rotate.key_written", "rotate.resealed"])
def test_a_rotation_that_is_killed_loses_nothing_and_is_finished_by_the_next(
    tmp_path: Path, point: str
) -> None:
    """Before and after the one transaction that seals all anew; in between the database itself is all or nothing."""
    server = Server.start(tmp_path / "data")
    data = server.data
    try:
        with server.client() as client:
            for number in range(SEALED):
                body = {"secret_name": f"s{number}", "secret_value": f"value {number}"}
                client.post(SECRETS, json=body).raise_for_status()
    finally:
        server.stop()
    first = (data / "master.key").read_text()
    before = sealed_texts(data)
    killed = run(data, TESSERA_TEST_FAILPOINT=f"{point}:1:self")
    assert killed.returncode == -signal.SIGKILL
    assert (sealed_texts(data) == before) is (point == "rotate.key_written")
    assert (data / "master.key").read_text().count("\n") == 2
    check_all_open(data)
    done = run(data)
    assert done.returncode == 0, done.stderr
    check_all_open(data)
    last = (data / "master.key").read_text()
    assert last.count("\n") == 1 and last != first
    assert not set(before) & set(sealed_texts(data))


def check_all_open(data: Path) -> None:
    from tessera.sealing import open_vault

    vault = open_vault(data / "master.key", make=False)
    with sqlite3.connect(data / "tessera.sqlite3") as connection:
        rows = connection.execute("SELECT secret_name, sealed FROM secrets").fetchall()
    assert len(rows) == SEALED
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


def test_without_its_master_key_a_server_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    server = Server.start(tmp_path / "data")
    data = server.data
    with server.client() as client:
        client.post(SECRETS, json={"secret_name": "kept", "secret_value": "v"}).raise_for_status()
        client.patch("/v1/organizations", json={"infrastructure": INFRASTRUCTURE}).raise_for_status()
    server.stop()
    key = (data / "master.key").read_text()
    up = ("up", "--port", "0", "--offline")

    def refused(*command: str, **environment: str) -> str:
        done = run(data, *command, **environment)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        for said in ("master.key", "TESSERA_MASTER_KEY", "tessera secrets discard"):
            assert said in done.stderr
        assert not any(value in done.stderr for value in environment.values())
        return done.stderr

    (data / "master.key").unlink()
    assert "There is no master key" in refused(*up)
    assert "There is no master key" in refused("secrets", "rotate")
    wrong = os.urandom(32).hex()
    assert "not the master key that sealed 3 of" in refused(*up, TESSERA_MASTER_KEY=wrong)
    # None of it has made a key, or changed anything.
    assert not (data / "master.key").exists()
    (data / "master.key").write_text(key)
    (data / "master.key").chmod(0o644)
    assert "chmod 600" in run(data, *up).stderr
    (data / "master.key").chmod(0o600)
    again = Server.start(data)
    with again.client() as client:
        assert client.get(SECRETS).json()["secrets"] == ["kept"]
    again.stop()
    # Lost for good.
    (data / "master.key").unlink()
    done = run(data, "secrets", "discard")
    assert done.returncode == 0 and done.stdout.startswith("3 stored credentials are discarded"), done.stderr
    again = Server.start(data)
    try:
        with again.client() as client:
            assert client.get(SECRETS).json()["secrets"] == []
            client.patch("/v1/organizations", json={"infrastructure": INFRASTRUCTURE}).raise_for_status()
    finally:
        again.stop()
    assert run(data, "secrets", "discard").stdout.startswith("0 stored")
