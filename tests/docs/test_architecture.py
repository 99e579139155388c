"""docs/architecture.md lists the files that one POST /v1/namespaces passes; here such a request is followed."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from starlette.testclient import TestClient

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


def test_the_page_lists_the_files_that_the_request_passes(warehouse: Warehouse) -> None:
    key = organizations.new_key()
    organizations.bootstrap(warehouse.db, key)
    follower = Follower()
    # Set before the client starts its threads, so that they are followed too; those of the warehouse are not.
    threading.setprofile(follower)
    sys.setprofile(follower)
    try:
        with TestClient(make_app(warehouse), headers={"Authorization": f"Bearer {key}"}) as client:
            assert client.post("/v1/namespaces", json=namespace("warm")).status_code == 200
            follower.on = True
            answer = client.post("/v1/namespaces", json=namespace("followed"))
            follower.on = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert answer.status_code == 200
    listed = re.search(r"^```files\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert listed[1].split() == follower.files


def test_every_file_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", PAGE.read_text()))
    assert named
    missing = {
        name for name in named if not ((PACKAGE / name).is_file() or (PACKAGE.parent / name).is_file())
    }
    assert not missing
