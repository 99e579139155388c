"""docs/architecture.md lists the files that one POST /v1/namespaces passes; here such a request is followed."""

from __future__ import annotations

import inspect
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import tessera
from tessera import organizations
from tessera.api.app import make_app
from tessera.config import Settings
from tessera.context import Warehouse
from tessera.wiring import close_warehouse, open_warehouse

PACKAGE = Path(tessera.__file__).parent
PAGE = PACKAGE.parent / "docs/architecture.md"


class Follower:
    """Notes, in order, the files of Tessera whose functions begin to run while it is `on`."""

    def __init__(self) -> None:
        self.on = False
        self.files: list[str] = []
        self._known: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self.on and event == "call":
            code = frame.f_code
            if code not in self._known:
                self._known[code] = self._file(code)
            file = self._known[code]
            if file is not None and file not in self.files:
                self.files.append(file)

    def _file(self, code: CodeType) -> str | None:
        # The bodies of modules and classes run when something is imported, not for the request.
        if not code.co_flags & inspect.CO_OPTIMIZED or not code.co_filename.startswith(f"{PACKAGE}/"):
            return None
        return Path(code.co_filename).relative_to(PACKAGE.parent).as_posix()


def namespace(name: str) -> dict[str, Any]:
    return {
        "namespace_name": name,
        "description": "This namespace contains playlists from Spotify",
        "feature_extractors": [{"feature_extractor_name": "video_extractor", "version": "1.0.0"}],
        "payload_indexes": [{"field_name": "metadata.title", "type": "text"}],
    }


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    wh = open_warehouse(Settings(data=tmp_path / "data", offline=True), run_jobs=False)
    yield wh
    close_warehouse(wh)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port, in a thread of this process, and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_page_lists_the_files_that_the_request_passes(warehouse: Warehouse) -> None:
    key = organizations.new_key()
    organizations.bootstrap(warehouse.db, key)
    follower = Follower()
    # The writer behind, which notes when a key was used, is the warehouse's: it is made to start before.
    wrote = threading.Event()
    warehouse.db.later(lambda _connection: wrote.set())
    assert wrote.wait(10)
    # For threads that start from here on: the server's are followed, those of the warehouse are not.
    threading.setprofile(follower)
    try:
        with (
            served(make_app(warehouse)) as url,
            httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as client,
        ):
            assert client.post("/v1/namespaces", json=namespace("warm")).status_code == 200
            follower.on = True
            answer = client.post("/v1/namespaces", json=namespace("followed"))
            follower.on = False
    finally:
        threading.setprofile(None)
    assert answer.status_code == 200
    listed = re.search(r"^```files\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    files = [line.split()[0] for line in listed[1].splitlines()]
    assert files == follower.files, "the request passed:\n" + "\n".join(follower.files)


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"(?:[a-z_]+/)*[a-z_]+\.py\b", PAGE.read_text()))
    missing = {
        name for name in named if not ((PACKAGE / name).is_file() or (PACKAGE.parent / name).is_file())
    }
    assert named and not missing
