"""Runs the scenarios of one official client in a process of its own, against a real server over HTTP.

Both releases of the client are one package name, so each lives below ``.sdk/<version>`` with all that it
needs. A test module names its release (``CLIENT``) and its scenario files (``SCENARIOS``); every function
``scenario_…`` in them becomes a test. Importing a client takes seconds, so one process runs a whole file.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.http.processes import Server
from tests.media import BLUE, GREEN, RED, picture, video

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@dataclass(frozen=True)
class Outcome:
    """How one scenario went; `report` is the client's traceback, empty when it went well."""

    name: str
    ok: bool
    report: str


def scenario_names(file: str) -> list[str]:
    """Return the scenarios of `file` in order, without importing it: the client is not importable here."""
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("scenario_")
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "outcome" in metafunc.fixturenames:
        cases = [(file, name) for file in metafunc.module.SCENARIOS for name in scenario_names(file)]
        ids = [f"{file.removeprefix('scenarios_').removesuffix('.py')}-{name[9:]}" for file, name in cases]
        metafunc.parametrize("outcome", cases, ids=ids, indirect=True)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of three colours, two seconds each (``clip.mp4``), and ``red.png``."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "red.png").write_bytes(picture(RED))
    (folder / "clip.mp4").write_bytes(video([(2, RED), (2, GREEN), (2, BLUE)]))
    return folder


def run_scenarios(client: str, file: str, server: Server, media: Path) -> dict[str, Outcome]:
    """Run every scenario of `file` with the client `client` alone on the path (no site-packages)."""
    package = ROOT / ".sdk" / client
    if not (package / "mixpeek").is_dir():
        pytest.fail(f"The official client {client} is not installed in {package}: run `make test`.")
    done = subprocess.run(
        [sys.executable, "-S", "-s", str(HERE / "run_scenarios.py"), file],
        env={
            "PYTHONPATH": str(package),
            "PATH": os.environ.get("PATH", ""),
            "SCENARIO_URL": server.url,
            "SCENARIO_KEY": server.api_key,
            "SCENARIO_MEDIA": str(media),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    outcomes = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            found = Outcome(**json.loads(line))
            outcomes[found.name] = found
    for name in scenario_names(file):
        report = f"{name} did not run (exit {done.returncode}).\n{done.stdout}{done.stderr}"
        outcomes.setdefault(name, Outcome(name, False, report))
    return outcomes


@pytest.fixture(scope="session")
def _runs() -> dict[tuple[str, str], dict[str, Outcome]]:
    return {}


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest,
    server: Server,
    media: Path,
    _runs: dict[tuple[str, str], dict[str, Outcome]],
) -> Outcome:
    file, name = request.param
    key = (request.module.CLIENT, file)
    if key not in _runs:
        _runs[key] = run_scenarios(*key, server, media)
    return _runs[key][name]
