"""``tessera up``: the server, from the lock on its data directory to its last answer."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from tessera import collector
from tessera.cli.options import add_settings, load
from tessera.cli.terminal import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, note

if TYPE_CHECKING:
    from tessera.config import Settings
    from tessera.context import Warehouse

#: Requests in flight get this long when the server is told to end; all of the ending twice that and more.
_GRACE_S = 10
_END_AT_MOST_S = 45
#: A thread that works lets another go on after this long. A small request changes threads five times, and with Python's
#: own 5 ms it waits as often for one that reads a body of many documents.
_SWITCH_INTERVAL_S = 0.001


def add(commands: Any) -> None:
    """Add the command ``up``."""
    up = commands.add_parser(
        "up", help="start the server", description="Start the server and keep it running."
    )
    add_settings(up)
    up.set_defaults(run=_up)


def _up(options: argparse.Namespace) -> int:
    collector.rest()
    from tessera import config, data_directory
    from tessera.db.engine import now

    settings = load(options).settings
    config.forget_secrets()
    os.umask(0o077)
    signal.signal(signal.SIGTERM, _end_while_starting)
    data_directory.prepare(settings.data)
    with data_directory.held(settings.data) as announce:
        listener = _listen(settings)
        port = listener.getsockname()[1]
        url = f"http://{_reachable(settings.host)}:{port}"
        announce(data_directory.Owner(os.getpid(), socket.gethostname(), url, now()))
        if not _is_loopback(settings.host):
            note(
                f"Warning: listening on {settings.host}: other machines can connect, and what they send is not "
                "encrypted. Put a proxy with TLS in front, or leave --host away."
            )
        from tessera.wiring import close_warehouse, open_warehouse

        wh = open_warehouse(settings, base_url=settings.public_url or url)
        try:
            _first_key(settings.data, wh)
            return _serve(wh, listener, url)
        finally:
            close_warehouse(wh)


def _first_key(data: Path, wh: Warehouse) -> None:
    """On the first start make the admin key, keep it, and show it: the one secret ever printed."""
    from tessera import data_directory, organizations

    if not organizations.is_new(wh.db):
        return
    key = organizations.new_key()
    # The file first: a crash in between leaves a file that the next start replaces, never a lost key.
    data_directory.write_admin_key(data, key)
    organizations.bootstrap(wh.db, key)
    print(f"API key: {key}", flush=True)
    note(f"This admin key is kept in {data / 'admin.key'}, readable by you only.")


def _serve(wh: Warehouse, listener: socket.socket, url: str) -> int:
    import uvicorn

    from tessera.api.app import make_app
    from tessera.api.request_log import RequestLog
    from tessera.api.wire import protocol

    _configure_logging(wh.settings)
    log = RequestLog(sys.stderr, wh.settings.log_format)

    class Server(uvicorn.Server):
        """Ends with exit code 0 after SIGTERM; at once on a second signal."""

        received: int | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"Tessera is ready at {url}", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # They would go on for as long as their tasks, and the ending wait for them.
            app.state.streams.end()
            await super().shutdown(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.received is not None:
                # Child processes end with this one.
                os._exit(128 + sig)
            self.received = sig
            self.should_exit = True
            _end_at_the_latest()

        def capture_signals(self) -> Any:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
            from contextlib import nullcontext

            return nullcontext()

    app = make_app(wh, log=log)
    server = Server(
        uvicorn.Config(
            app,
            http=protocol(wh.settings, log),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    collector.calm()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    server.run(sockets=[listener])
    log.close()
    return EXIT_INTERRUPTED if server.received == signal.SIGINT else EXIT_OK


def _end_while_starting(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_OK)


def _end_at_the_latest() -> None:
    """End the process even when something does not let go; what was acknowledged is durable anyway."""

    def end() -> None:
        note(f"Ending took longer than {_END_AT_MOST_S} s; the process is stopped now.")
        os._exit(EXIT_FAILED)

    timer = threading.Timer(_END_AT_MOST_S, end)
    timer.daemon = True
    timer.start()


def _listen(settings: Settings) -> socket.socket:
    """Bind the port early, so that the URL is known; connections are accepted only once all is ready."""
    from tessera.errors import TesseraError

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise TesseraError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. {_remedy(error)}"
        ) from None
    return listener


def _remedy(error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return "Choose an address of this machine with --host; without it only this machine can connect."
    return "Choose another port with --port, or --port 0 for a free one."


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _configure_logging(settings: Settings) -> None:
    import logging

    class JsonLines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            import orjson

            entry = {
                "time": self.formatTime(record),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
            }
            if record.exc_info:
                entry["traceback"] = self.formatException(record.exc_info)
            return orjson.dumps(entry).decode()

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines()
        if settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tessera").setLevel(logging.INFO)
