"""What the API promises is served and has a test that is known to send it: ``scripts/operations`` says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_promised_is_there_and_what_is_not_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(
        "GET /v1/me 200\nGET /v1/nothing 200\nPOST /v1/organizations/secrets 200\nGET /v1/health 200\n"
    )
    files = [*sorted((ROOT / "tests/operations").glob("*.txt")), wrong]
    done = subprocess.run(
        [sys.executable, "scripts/operations", *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    promised = sum(line[0] != "#" for file in files for line in file.read_text().splitlines())
    lines = [line.split(maxsplit=3) for line in done.stdout.splitlines()[:-1]]
    # Of a noun that several files share, a part may be promised nowhere yet.
    lines = [line for line in lines if "NOT PROMISED" not in line[3] or "wrong.txt" in line[3]]
    good, bad = lines[: promised - 4], lines[promised - 4 :]
    assert len(good) >= 30
    for line in good:
        assert line[3].startswith("tests/http/test_"), line
    said = {f"{method} {path} {status}": rest for method, path, status, rest in bad}
    assert said.pop("GET /v1/me 200").startswith("tests/http/test_")
    assert said.pop("GET /v1/nothing 200") == "NOT SERVED NO TEST"
    # Served with another status, and so a test for this one cannot be.
    assert said.pop("POST /v1/organizations/secrets 200") == "NOT SERVED NO TEST"
    assert "NO TEST" in said.pop("GET /v1/health 200")
    assert said and set(said.values()) == {"NOT PROMISED in wrong.txt"}
