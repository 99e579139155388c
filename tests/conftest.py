"""What holds for every test: nothing leaves this machine, and no setting of the developer's leaks in.

``TESSERA_TEST_QDRANT_URL`` (with ``TESSERA_TEST_QDRANT_API_KEY``) names a real Qdrant server to test
against; without it the tests start ``tests/qdrant_rest.py``, Qdrant's REST over the real Edge engine.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests import language_endpoint as language
from tests.http.processes import Server
from tests.language_endpoint import Endpoint
from tests.ray_cluster import RayCluster

QDRANT_URL = os.environ.get("TESSERA_TEST_QDRANT_URL")

for _name in [name for name in os.environ if name.startswith("TESSERA_")]:
    if not _name.startswith("TESSERA_TEST_"):
        del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = "1"
# A run starts hundreds of processes; without compiled files each of them compiles all of Tessera again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def _is_here(host: str) -> bool:
    """Whether `host` is this machine, or the Qdrant server that the tests were told to use."""
    if host in {"localhost", "", urlsplit(QDRANT_URL or "").hostname}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _stay_here(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse connections of the test process to other machines (an audit hook: no library gets past it)."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if not _is_here(host):
            raise PermissionError(f"A test tried to connect to {host!r}; tests are offline.")


sys.addaudithook(_stay_here)


@pytest.fixture(scope="session")
def language_endpoint() -> Iterator[Endpoint]:
    """The language model of the shared server: an endpoint that computes."""
    with language.serving() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, language_endpoint: Endpoint) -> Iterator[Server]:
    """A real server on an empty data directory, shared by the whole run."""
    # URLs are fetched from one loopback address, which stands for the Internet, and from no other.
    server = Server.start(
        tmp_path_factory.mktemp("server") / "data",
        environment={
            "TESSERA_FETCH_ALLOWED_NETWORKS": "127.0.0.2/32",
            "TESSERA_LLM_BASE_URL": language_endpoint.url,
            "TESSERA_LLM_MODEL": "small",
            "TESSERA_LLM_API_KEY": language.KEY,
        },
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture(scope="session")
def server_on_qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Tessera server whose shared tier is a Qdrant server: the real one if there is one, else the stand-in."""
    standin = None
    url, key = QDRANT_URL, os.environ.get("TESSERA_TEST_QDRANT_API_KEY", "")
    if url is None:
        from tests import qdrant_rest

        key = "a key of the tests"
        standin = qdrant_rest.start(tmp_path_factory.mktemp("qdrant"), api_key=key)
        url = standin.url
    server = Server.start(
        tmp_path_factory.mktemp("server-on-qdrant") / "data",
        environment={"TESSERA_QDRANT_URL": url, "TESSERA_QDRANT_API_KEY": key},
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]
    if standin is not None:
        standin.shutdown()
        standin.server_close()


@pytest.fixture(scope="module", params=["edge", "qdrant"])
def either_server(request: pytest.FixtureRequest) -> Server:
    """A server on each engine in turn."""
    name = "server" if request.param == "edge" else "server_on_qdrant"
    found: Server = request.getfixturevalue(name)
    return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray cluster of one node, shared by the whole run."""
    cluster = RayCluster()
    yield cluster
    cluster.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the run stood on, above pytest's own closing line."""
    engine = (
        f"a real server ({urlsplit(QDRANT_URL).hostname})"
        if QDRANT_URL
        else "the stand-in tests/qdrant_rest.py (Qdrant's REST over Qdrant Edge)"
    )
    terminalreporter.write_line(
        f"Qdrant server: {engine}. Offline: connections to other machines were refused."
    )
