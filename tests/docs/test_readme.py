"""The README's commands are run as they stand, against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.http.processes import Server

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    """Return the README's first code block of `language` that has `containing` in it."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if containing in text)


def test_the_first_namespace_by_curl(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tessera-data").symlink_to(server.data)
    script = block("sh", "curl").replace("http://127.0.0.1:8700", server.url)
    done = subprocess.run(
        ["sh", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    answer = json.loads(done.stdout)
    assert answer["namespace_name"] == "spotify_playlists_dev", done.stdout
    fields = [index["field_name"] for index in answer["payload_indexes"]]
    assert fields[:2] == ["metadata.title", "metadata.description"]
    with server.client() as client:
        client.delete(f"/v1/namespaces/{answer['namespace_id']}")


def test_the_same_with_the_official_client(server: Server) -> None:
    program = block("python", "mixpeek").replace("http://127.0.0.1:8700", server.url)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".sdk/0.81.1"), "KEY": server.api_key},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"ns_[0-9a-f]{16} \['metadata.year', ", done.stdout)


def test_the_first_search(server: Server) -> None:
    with server.client() as client:
        # The example before this one makes it.
        if client.get("/v1/namespaces/articles").status_code == 404:
            text = {"feature_extractor_name": "text_extractor", "version": "v1"}
            body = {"namespace_name": "articles", "feature_extractors": [text]}
            client.post("/v1/namespaces", json=body).raise_for_status()
    script = block("python", "import httpx").replace("http://127.0.0.1:8700", server.url)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "KEY": server.api_key},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.endswith("Headphones that keep the noise of the train out.") and second.endswith(
        "windowsill."
    )
    assert float(first.split()[0]) > float(second.split()[0])


def test_a_folder_of_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tessera-data").symlink_to(server.data)
    script = block("sh", "tessera ingest").replace(".venv/bin/tessera", f"{sys.executable} -m tessera")
    done = subprocess.run(
        ["sh", "-euc", f"exec 2>&1\n{script}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    with server.client() as client:
        client.delete("/v1/namespaces/notes")
    shown = block("text", "Namespace notes was made").replace("/srv", str(tmp_path))
    # Without the lines of progress, which come when they come, and the score, which is another processor's.
    printed = [re.sub(r"^0\.\d+", "0.…", line) for line in done.stdout.splitlines() if "%" not in line]
    assert printed == [re.sub(r"^0\.\d+", "0.…", line) for line in shown.splitlines()]


def test_a_first_start_prints_what_the_readme_shows(server: Server) -> None:
    def general(line: str) -> str:
        """Return `line` without what differs from one start to the next."""
        return re.sub(r"sk_live_\S+|\S+admin\.key|http://\S+", "…", line.strip())

    shown = {general(line) for line in block("console", "tessera up").splitlines()[1:]}
    printed = {general(line) for line in [*server.lines, *server.log.splitlines()]}
    assert shown <= printed
