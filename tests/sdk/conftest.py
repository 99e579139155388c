"""Runs the scenarios of one official client in a process of its own, against a real server over HTTP.

Both releases of the client are one package name, so each lives below ``.sdk/<version>`` with all that it
needs. A test module names its release (``CLIENT``) and its scenario files (``SCENARIOS``); every function
``scenario_…`` in them becomes a test. Importing a client takes seconds, so one process runs them all.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tessera import sample_pages
from tests import office
from tests.http.processes import Server
from tests.media import BLUE, GREEN, RED, picture, video

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

#: These scenarios need a server that has an operator; the one that all others share has none.
OPERATED = frozenset({"scenarios_operator.py"})
OPERATOR = "operator-secret-of-the-scenarios-0123456789"


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
    """A folder: a video of three colours, two seconds each (``clip.mp4``), a picture, a PDF and a workbook."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "red.png").write_bytes(picture(RED))
    (folder / "clip.mp4").write_bytes(video([(2, RED), (2, GREEN), (2, BLUE)]))
    note = sample_pages.Sheet(300, 200)
    note.text(30, 40, "The spare valve is number XK-4471-B.", 10)
    note.text(30, 90, "The pump is oiled on the first of every month.", 10)
    (folder / "note.pdf").write_bytes(sample_pages.pdf([note]))
    (folder / "parts.xlsx").write_bytes(office.xlsx_file())
    return folder


def run_scenarios(
    client: str, files: Sequence[str], environment: Mapping[str, str]
) -> dict[tuple[str, str], Outcome]:
    """Run every scenario of `files` with the client `client` alone on the path (no site-packages)."""
    package = ROOT / ".sdk" / client
    if not (package / "mixpeek").is_dir():
        pytest.fail(f"The official client {client} is not installed in {package}: run `make test`.")
    done = subprocess.run(
        [sys.executable, "-S", "-s", str(HERE / "run_scenarios.py"), *files],
        env={"PYTHONPATH": str(package), "PATH": os.environ.get("PATH", ""), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    outcomes = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            told = json.loads(line)
            file = told.pop("file")
            outcomes[file, told["name"]] = Outcome(**told)
    for file in files:
        for name in scenario_names(file):
            report = f"{name} did not run (exit {done.returncode}).\n{done.stdout}{done.stderr}"
            outcomes.setdefault((file, name), Outcome(name, False, report))
    return outcomes


@pytest.fixture(scope="session")
def _runs() -> dict[str, dict[tuple[str, str], Outcome]]:
    return {}


@pytest.fixture(scope="session")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an operator."""
    server = Server.start(
        tmp_path_factory.mktemp("operated") / "data", environment={"TESSERA_OPERATOR_SECRET": OPERATOR}
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def outcome(
    request: pytest.FixtureRequest,
    server: Server,
    media: Path,
    _runs: dict[str, dict[tuple[str, str], Outcome]],
) -> Outcome:
    client: str = request.module.CLIENT
    if client not in _runs:
        # All files that were asked for in one process: what takes long is to import the client.
        asked = {
            item.callspec.params["outcome"][0]
            for item in request.session.items
            if isinstance(item, pytest.Function) and item.module is request.module
        }
        environment = {
            "SCENARIO_URL": server.url,
            "SCENARIO_KEY": server.api_key,
            "SCENARIO_MEDIA": str(media),
        }
        if asked & OPERATED:
            operated: Server = request.getfixturevalue("operated")
            environment |= {"SCENARIO_OPERATED_URL": operated.url, "SCENARIO_OPERATOR": OPERATOR}
        files = [file for file in request.module.SCENARIOS if file in asked]
        _runs[client] = run_scenarios(client, files, environment)
    return _runs[client][request.param]
