"""The commands that speak to a running server: a folder in, watched, searched; run as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tessera.cli import main
from tests.damage import HEIC
from tests.http.loop import Loop
from tests.http.processes import ROOT, Server
from tests.media import BLUE, GREEN, RED, SPEECH, picture, sound_as


def run(server: Server, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessera", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TESSERA_DATA": str(server.data), **environment},
        check=False,
    )


@pytest.fixture
def name(client: httpx.Client) -> Iterator[str]:
    """A name for a namespace, which is removed afterwards."""
    name = f"folder_{time.monotonic_ns()}"
    yield name
    client.delete(f"/v1/namespaces/{name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "pictures").mkdir(parents=True)
    (folder / "train.txt").write_text("Headphones that keep the noise of the train out.")
    # As Windows' editors save "Unicode"; its first two bytes could be those of a frame of sound.
    (folder / "cat.md").write_text("The cat slept on the warm windowsill.", encoding="utf-16")
    (folder / "pictures/red.png").write_bytes(picture(RED))
    (folder / "pictures/green.bin").write_bytes(picture(GREEN))
    (folder / "pictures/cut.png").write_bytes(picture(BLUE)[:60])
    (folder / "pictures/IMG_0001.HEIC").write_bytes(HEIC.read_bytes())
    (folder / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    (folder / "nothing.txt").touch()
    (folder / ".hidden.txt").write_text("not for others")
    (folder / "round").symlink_to(folder)
    return folder


def ingest(server: Server, folder: Path, name: str, *, code: int) -> dict[str, Any]:
    done = run(server, "ingest", str(folder), "-n", name, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def found(server: Server, name: str, *arguments: str) -> list[dict[str, Any]]:
    done = run(server, "search", *arguments, "-n", name, "--json")
    assert done.returncode == 0, done.stderr
    hits: list[dict[str, Any]] = json.loads(done.stdout)
    return hits


def test_a_folder_goes_in_and_is_found_and_again_only_what_changed(
    server: Server, client: httpx.Client, folder: Path, name: str
) -> None:
    first = run(server, "ingest", str(folder), "-n", name)
    assert first.returncode == 5
    assert (
        f"5 files of {folder} can be found in namespace {name}: 6 sent, 0 unchanged, 1 failed."
        in first.stdout
    )
    assert f"Namespace {name} was made" in first.stderr
    assert f"failed: {folder}/pictures/cut.png: unreadable: " in first.stderr
    assert f"empty ({folder}/nothing.txt)" in first.stderr
    assert f"not recognised ({folder}/archive.zip)" in first.stderr
    assert "hidden" not in first.stderr + first.stdout and "\x1b" not in first.stderr

    said = run(server, "search", "quiet while travelling", "-n", name)
    assert said.returncode == 0
    best = said.stdout.splitlines()[:2]
    assert best[0].endswith(f"{folder}/train.txt") or f"{folder}/train.txt  characters" in best[0]
    assert "keep the noise of the train out" in best[1]
    (cat,) = found(server, name, "a pet asleep", "--limit", "1")
    assert (cat["path"], cat["text"]) == (f"{folder}/cat.md", "The cat slept on the warm windowsill.")
    hits = found(server, name, "--image", str(folder / "pictures/red.png"), "--limit", "1")
    assert [hit["path"] for hit in hits] == [f"{folder}/pictures/red.png"]

    head = client.get(f"/v1/namespaces/{name}").json()
    again = ingest(server, folder, name, code=5)
    assert (again["sent"], again["unchanged"]) == (0, 6)
    assert [item["path"] for item in again["failed"]] == [f"{folder}/pictures/cut.png"]
    assert client.get(f"/v1/namespaces/{name}").json()["document_count"] == head["document_count"]

    (folder / "train.txt").write_text("A lamp of brass with a shade of green glass.")
    (folder / "pictures/cut.png").write_bytes(picture(BLUE))
    (folder / "cat.md").write_bytes(picture(GREEN, size=32))
    changed = ingest(server, folder, name, code=0)
    assert (changed["sent"], changed["unchanged"], changed["failed"]) == (3, 3, [])
    texts = {hit["path"]: hit["text"] for hit in found(server, name, "something to read by")}
    assert texts == {f"{folder}/train.txt": "A lamp of brass with a shade of green glass."}, (
        "what a file was before is gone, also where it was of another kind"
    )
    assert client.get(f"/v1/namespaces/{name}").json()["document_count"] == 6

    client.headers["X-Namespace"] = name
    triggered = client.post("/v1/collections/files-image/trigger", json={}).json()
    assert server.wait_for_task(triggered["task_id"])["status"] == "COMPLETED", (
        "files of other kinds are none of its"
    )


def test_what_cannot_be_read_is_a_failure_and_the_rest_goes_in(
    server: Server, tmp_path: Path, name: str
) -> None:
    if os.geteuid() == 0:
        (tmp_path / "locked.txt").write_bytes(b"half a letter: \xc3")
        cause = "refused"
    else:
        (tmp_path / "locked.txt").write_text("secret")
        (tmp_path / "locked.txt").chmod(0)
        cause = "unreadable"
    # Nothing says that this is UTF-16: it was taken for UTF-8 with a zero behind each letter.
    (tmp_path / "unmarked.txt").write_bytes("Remember the milk.".encode("utf-16-le"))
    # A name that is no Unicode (macOS refuses those), and one with what a terminal would obey.
    odd = b"caf\xe9.txt" if sys.platform == "linux" else b"cafe.txt"
    (tmp_path / os.fsdecode(odd)).write_text("Coffee is ground finer for espresso.")
    (tmp_path / "line\nbreak\x1b[2J.txt").write_text("A ferry crosses the bay at noon.")
    told = ingest(server, tmp_path, name, code=5)
    assert [(item["path"], item["cause"]) for item in told["failed"]] == [
        (f"{tmp_path}/locked.txt", cause),
        (f"{tmp_path}/unmarked.txt", "refused"),
    ]
    assert "UTF-16 without a byte order mark" in told["failed"][1]["message"]
    assert told["sent"] == 2
    hits = found(server, name, "boats")
    assert {hit["filename"] for hit in hits} == {"line_break_[2J.txt", odd.decode(errors="replace")}
    said = run(server, "search", "boats", "-n", name).stdout
    assert "\x1b" not in said and len([line for line in said.splitlines() if line[:1] != " "]) == 2


def test_a_container_with_nothing_but_sound_is_sound(server: Server, tmp_path: Path, name: str) -> None:
    """A voice memo called a film was sent as one, and failed."""
    sound_as(SPEECH, tmp_path / "memo.mp4", "aac", until_s=6.9)
    assert ingest(server, tmp_path, name, code=0)["sent"] == 1
    (hit, *_) = found(server, name, "somebody brings bread")
    assert hit["kind"] == "audio" and hit["path"] == f"{tmp_path}/memo.mp4"


def test_one_file_and_kinds_that_nobody_takes(server: Server, tmp_path: Path, name: str) -> None:
    note = tmp_path / "note.txt"
    note.write_text("One note alone.")
    done = run(server, "ingest", str(note), "-n", name, "--extractor", "text_extractor")
    assert done.returncode == 0, done.stderr
    assert f"Namespace {name} was made, with text_extractor." in done.stderr
    (tmp_path / "red.png").write_bytes(picture(RED))
    told = ingest(server, tmp_path, name, code=0)
    assert (told["sent"], told["unchanged"]) == (0, 1)
    assert told["left_out"] == [
        {"path": f"{tmp_path}/red.png", "reason": "no extractor of the namespace takes image"}
    ]
    none = run(server, "search", "--image", str(tmp_path / "red.png"), "-n", name)
    assert none.returncode == 1 and "can be searched by a picture" in none.stderr


def test_a_bucket_of_others_is_left_alone(
    server: Server, client: httpx.Client, tmp_path: Path, name: str
) -> None:
    (tmp_path / "note.txt").write_text("One note alone.")
    made = client.post(
        "/v1/namespaces",
        json={
            "namespace_name": name,
            "feature_extractors": [{"feature_extractor_name": "text_extractor", "version": "v1"}],
        },
    )
    Loop(client, made.json()).bucket(bucket_name="files")
    refused = run(server, "ingest", str(tmp_path), "-n", name)
    assert refused.returncode == 1 and "--bucket" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (["ingest", "/absent", "-n", "x"], {}, 2, "/absent"),
        (["ingest", "."], {}, 2, "-n"),
        (["search", "-n", "x"], {}, 2, "--image FILE"),
        (["search", "words", "--image", "x.png", "-n", "x"], {}, 2, "--image FILE"),
        (["search", "words", "-n", "x", "--limit", "0"], {}, 2, "1 to 100"),
        (["search", "words", "-n", "absent"], {}, 4, "'absent' was not found"),
        (["search", "--image", "/absent.png", "-n", "x"], {}, 1, "/absent.png"),
        (["watch", "tsk_absent"], {}, 4, "'tsk_absent' was not found"),
        (["watch", "tsk_a"], {"TESSERA_DATA": "/absent"}, 3, "tessera up"),
        (["watch", "tsk_a"], {"TESSERA_URL": "http://127.0.0.1:9"}, 2, "TESSERA_API_KEY"),
        (["watch", "tsk_a"], {"TESSERA_URL": "127.0.0.1", "TESSERA_API_KEY": "sk_live_x"}, 2, "http://"),
        (["search", "words", "-n", "x"], {"TESSERA_API_KEY": "sk_live_nonesuch"}, 4, "key"),
        (
            ["search", "words", "-n", "x"],
            {"TESSERA_URL": "http://127.0.0.1:9", "TESSERA_API_KEY": "sk_live_secret"},
            3,
            "does not answer",
        ),
    ],
)
def test_what_goes_wrong_is_said(
    server: Server,
    arguments: list[str],
    environment: dict[str, str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TESSERA_DATA", str(server.data))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    try:
        ended = main(arguments)
    except SystemExit as end:  # argparse's own
        ended = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (ended, out) == (code, "")
    assert said in err
    assert environment.get("TESSERA_API_KEY", "no key") not in err


def test_a_terminal_gets_a_bar_and_colours_unless_it_wants_none(
    server: Server, tmp_path: Path, name: str
) -> None:
    (tmp_path / "note.txt").write_text("One note alone.")
    coloured = on_a_terminal(server, "ingest", str(tmp_path), "-n", name)
    assert "\r" in coloured and "\x1b[32m" in coloured and "1 of 1" in coloured
    bare = on_a_terminal(server, "ingest", str(tmp_path), "-n", name, NO_COLOR="1")
    assert "\r" in bare and "\x1b[32m" not in bare and "1 unchanged" in bare


def on_a_terminal(server: Server, *arguments: str, **environment: str) -> str:
    """Run a command whose stderr is a terminal, and return what came there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tessera", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={
            **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
            "TERM": "xterm",
            "PYTHONPATH": str(ROOT),
            "TESSERA_DATA": str(server.data),
            **environment,
        },
    )
    os.close(theirs)
    came = b""
    try:
        while piece := os.read(ours, 65536):
            came += piece
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, came
    return came.decode()
