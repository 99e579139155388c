"""The command ``tessera``. Heavy modules are imported inside the command that needs them.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 no server reached, 4 the server refused, 5 done
in part, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from tessera import __version__

if TYPE_CHECKING:
    from tessera.config import Configuration, Settings
    from tessera.context import Warehouse
    from tessera.db.engine import Database

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_SERVER = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130

#: Requests in flight get this long when the server is told to end; all of the ending twice that and more.
_GRACE_S = 10
_END_AT_MOST_S = 45


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    from tessera.config import ConfigurationError
    from tessera.errors import TesseraError

    try:
        code: int = options.run(options)
    except ConfigurationError as error:
        return _fail(error.message, EXIT_USAGE)
    except TesseraError as error:
        return _fail(error.message, EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left; what is still buffered has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        # A directory that is not ours, a disk that is full: nothing that a traceback would explain better.
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", EXIT_FAILED)
    return code


def _fail(message: str, code: int) -> int:
    print(f"tessera: {message}", file=sys.stderr, flush=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tessera", description="A self-hosted multimodal warehouse: files in, search by meaning out."
    )
    parser.add_argument("--version", action="version", version=f"tessera {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    up = commands.add_parser(
        "up", help="start the server", description="Start the server and keep it running."
    )
    _add_settings(up)
    up.set_defaults(run=_up)

    config = commands.add_parser(
        "config",
        help="show all settings",
        description="Show each setting, its value, and where it came from. Secrets are hidden.",
    )
    _add_settings(config)
    config.set_defaults(run=_config)

    key = commands.add_parser(
        "key",
        help="make, list and revoke API keys",
        description="Work on the keys in a data directory. Whether a server runs there does not matter.",
    )
    _add_key_commands(key)

    models = commands.add_parser(
        "models",
        help="list and install models",
        description="Show which models there are and which are installed; install one.",
    )
    _add_model_commands(models)

    secrets = commands.add_parser(
        "secrets",
        help="replace or give up the key that seals stored credentials",
        description="Work on the master key of a data directory that no server uses.",
    )
    actions = secrets.add_subparsers(metavar="ACTION", required=True)
    rotate = actions.add_parser(
        "rotate",
        help="seal every stored credential with a new master key",
        description="Seal every stored credential anew: with a new key in DATA/master.key, or with TESSERA_MASTER_KEY "
        "(then TESSERA_MASTER_KEY_PREVIOUS names the one before it). Killed at any moment, it can be run again.",
    )
    _add_data(rotate)
    rotate.set_defaults(run=_secrets_rotate)
    discard = actions.add_parser(
        "discard",
        help="remove stored credentials whose master key is lost",
        description="Remove every stored credential that the present master key cannot open, so that the server starts "
        "again. Secrets of organizations go; keys of Qdrant and tokens of Ray become empty, to be set again.",
    )
    _add_data(discard)
    discard.set_defaults(run=_secrets_discard)

    backup = commands.add_parser(
        "backup",
        help="copy a data directory, also while a server runs there",
        description="Copy a data directory to DEST: new, empty, or with an earlier backup, to which only what is new "
        "is added. A server may run meanwhile; what it had acknowledged before is in the copy.",
    )
    backup.add_argument("target", metavar="DEST", type=Path, help="directory of the backup")
    backup.add_argument(
        "--with-secrets",
        action="store_true",
        help="copy master.key, signing.key, admin.key and tessera.toml too: whoever reads the backup can then open "
        "stored credentials",
    )
    _add_data(backup)
    backup.set_defaults(run=_backup)

    restore = commands.add_parser(
        "restore",
        help="make a data directory from a backup",
        description="Verify a backup and copy it to a new data directory. Indexes are built on first use.",
    )
    restore.add_argument("source", metavar="SRC", type=Path, help="directory of the backup")
    _add_data(restore)
    restore.set_defaults(run=_restore)

    erase = commands.add_parser(
        "erase",
        help="erase documents from everything that a running server keeps",
        description="Erase documents, or objects with all their documents, and wait until nothing is left of them.",
    )
    erase.add_argument("namespace", metavar="NAMESPACE", help="id or name")
    erase.add_argument("--document", action="append", default=[], metavar="ID", help="a document; repeatable")
    erase.add_argument(
        "--object", action="append", default=[], metavar="ID", help="an object with its documents; repeatable"
    )
    erase.add_argument(
        "--with-objects", action="store_true", help="erase the objects that the documents came from too"
    )
    _add_data(erase)
    erase.set_defaults(run=_erase)

    version = commands.add_parser("version", help="show the version")
    version.set_defaults(run=_version)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    _add_data(parser)
    parser.add_argument("--host", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", metavar="N", help="port to listen on (8700); 0 picks a free one")
    parser.add_argument("--public-url", metavar="URL", help="base URL of links in answers, behind a proxy")
    parser.add_argument("--log-format", choices=["text", "json"], help="form of the log on stderr")
    parser.add_argument("--workers", metavar="N", help="processes that run extractors")
    parser.add_argument("--models-dir", metavar="DIR", help="model files (DATA/models)")
    parser.add_argument("--offline", action="store_const", const=True, help="never ask a model hub")


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="data directory (tessera-data)")


def _add_key_commands(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    create = actions.add_parser("create", help="make a key and print its secret, once")
    _add_data(create)
    create.add_argument("--name", help="name of the key (made up when absent)")
    create.add_argument(
        "--permission",
        choices=["read", "write", "delete", "admin"],
        default="write",
        help="what it may do; each includes those before it (write)",
    )
    create.add_argument(
        "--admin", action="store_const", const="admin", dest="permission", help="short for --permission admin"
    )
    create.add_argument("--email", help="whose key it is (the user that the first start made)")
    create.set_defaults(run=_key_create)

    listing = actions.add_parser("list", help="list keys, without secrets")
    _add_data(listing)
    listing.set_defaults(run=_key_list)

    revoke = actions.add_parser("revoke", help="end a key for good")
    revoke.add_argument("name", metavar="NAME", help="name, id or prefix of the key")
    _add_data(revoke)
    revoke.set_defaults(run=_key_revoke)


def _add_model_commands(parser: argparse.ArgumentParser) -> None:
    _add_models_place(parser)
    parser.set_defaults(run=_models_list)
    actions = parser.add_subparsers(metavar="ACTION")

    listing = actions.add_parser("list", help="list models; the same as no action")
    _add_models_place(listing, argparse.SUPPRESS)
    listing.set_defaults(run=_models_list)

    pull = actions.add_parser("pull", help="fetch a model into the models directory and verify it")
    pull.add_argument("model_id", metavar="ID", help="id of the model, as `tessera models` shows it")
    _add_models_place(pull, argparse.SUPPRESS)
    pull.set_defaults(run=_models_pull)


def _add_models_place(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    parser.add_argument("--data", metavar="DIR", default=default, help="data directory (tessera-data)")
    parser.add_argument("--models-dir", metavar="DIR", default=default, help="model files (DATA/models)")


def _load(options: argparse.Namespace) -> Configuration:
    from tessera import config

    flags = {name: value for name, value in vars(options).items() if name in config.Settings.model_fields}
    return config.load(flags)


# --- tessera up ---------------------------------------------------------------------------------------


def _up(options: argparse.Namespace) -> int:
    from tessera import config, data_directory
    from tessera.db.engine import now

    settings = _load(options).settings
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
            _note(
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
    _note(f"This admin key is kept in {data / 'admin.key'}, readable by you only.")


def _serve(wh: Warehouse, listener: socket.socket, url: str) -> int:
    import uvicorn

    from tessera import collector
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
    server.run(sockets=[listener])
    log.close()
    return EXIT_INTERRUPTED if server.received == signal.SIGINT else EXIT_OK


def _end_while_starting(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_OK)


def _end_at_the_latest() -> None:
    """End the process even when something does not let go; what was acknowledged is durable anyway."""

    def end() -> None:
        _note(f"Ending took longer than {_END_AT_MOST_S} s; the process is stopped now.")
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


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- tessera config, version --------------------------------------------------------------------------


def _config(options: argparse.Namespace) -> int:
    _print_table(_load(options).rows())
    return EXIT_OK


def _version(_options: argparse.Namespace) -> int:
    print(f"tessera {__version__}")
    return EXIT_OK


# --- tessera models -----------------------------------------------------------------------------------


def _models_list(options: argparse.Namespace) -> int:
    from tessera.inference import open_models

    settings = _load(options).settings
    rows = [("ID", "KIND", "DIMENSIONS", "LICENCE", "SIZE", "INSTALLED", "DESCRIPTION")]
    rows += [
        (
            status.model.model_id,
            status.model.role,
            str(status.model.dimensions),
            status.model.licence,
            f"{status.model.size_bytes / 1e6:.0f} MB" if status.model.size_bytes else "-",
            status.where or "no",
            status.model.description,
        )
        for status in open_models(settings.models_path, settings.offline).table()
    ]
    _print_table(rows)
    return EXIT_OK


def _models_pull(options: argparse.Namespace) -> int:
    from tessera.inference import find, open_models

    settings = _load(options).settings
    models = open_models(settings.models_path)
    model = find(options.model_id)
    if model is None:
        known = ", ".join(status.model.model_id for status in models.table())
        return _fail(f"There is no model {options.model_id!r}; there are {known}.", EXIT_USAGE)
    os.umask(0o077)
    folder = models.pull(model.model_id, report=_note)
    if models.where(model.model_id) == "built in":
        print(f"{model.model_id} is built in; there is nothing to fetch.")
    else:
        print(f"{model.model_id} is installed in {folder}.")
    return EXIT_OK


# --- tessera key --------------------------------------------------------------------------------------


def _key_create(options: argparse.Namespace) -> int:
    from tessera import data_directory, organizations

    settings = _load(options).settings
    db = _open_database(settings)
    try:
        email = options.email or organizations.FIRST_USER_EMAIL
        key, row = organizations.create_key_offline(db, email, options.name, [options.permission])
        kept = data_directory.read_admin_key(settings.data)
        keep = options.permission == "admin" and (kept is None or not organizations.is_active(db, kept))
    finally:
        db.close()
    if keep:
        data_directory.write_admin_key(settings.data, key)
    print(f"API key: {key}", flush=True)
    kept_in = f"It is kept in {settings.data / 'admin.key'}." if keep else "It is not shown again."
    _note(f"Key {row['name']} ({row['key_id']}) has the permission {options.permission}. {kept_in}")
    return EXIT_OK


def _key_list(options: argparse.Namespace) -> int:
    from tessera import organizations

    db = _open_database(_load(options).settings)
    try:
        rows = organizations.list_keys_offline(db)
    finally:
        db.close()
    lines = [("NAME", "ID", "PREFIX", "PERMISSIONS", "STATUS", "LAST USED", "USER")]
    lines += [
        (
            row["name"],
            row["key_id"],
            row["key_prefix"],
            ",".join(row["permissions"]),
            row["status"],
            row["last_used_at"] or "never",
            row["email"],
        )
        for row in rows
    ]
    _print_table(lines)
    return EXIT_OK


def _key_revoke(options: argparse.Namespace) -> int:
    from tessera import organizations

    db = _open_database(_load(options).settings)
    try:
        row = organizations.revoke_key_offline(db, options.name)
    finally:
        db.close()
    print(f"Key {row['name']} ({row['key_id']}) is revoked.")
    return EXIT_OK


def _secrets_rotate(options: argparse.Namespace) -> int:
    from tessera import data_directory
    from tessera.wiring import rotate_master_key

    settings = _load(options).settings
    # Its schema is checked, and that it is a data directory at all.
    _open_database(settings).close()
    with data_directory.held(settings.data):
        count, key_id = rotate_master_key(settings)
    print(f"{count} stored credentials are sealed with the new master key {key_id}.")
    if settings.master_key is not None:
        _note("TESSERA_MASTER_KEY_PREVIOUS is needed no more.")
    return EXIT_OK


def _secrets_discard(options: argparse.Namespace) -> int:
    from tessera import data_directory
    from tessera.wiring import discard_lost_secrets

    settings = _load(options).settings
    _open_database(settings).close()
    with data_directory.held(settings.data):
        count = discard_lost_secrets(settings)
    print(f"{count} stored credentials are discarded. Set them again.")
    return EXIT_OK


# --- tessera backup, restore, erase -------------------------------------------------------------------


def _backup(options: argparse.Namespace) -> int:
    from tessera import backup

    settings = _load(options).settings
    os.umask(0o077)
    if settings.database_url is not None:
        return _fail("database_url is set: back that database up with its own tools.", EXIT_USAGE)
    made = backup.create(settings.data, options.target, with_secrets=options.with_secrets)
    print(
        f"Backed up {_counted(made.namespaces, 'namespace')}: {_counted(made.files, 'file')}, {made.size_bytes} bytes, "
        f"{made.added} new."
    )
    if not made.has_master_key:
        _note(
            "The master key is not in the backup: keep it elsewhere (DATA/master.key or the setting master_key). "
            "Without it stored credentials cannot be opened; --with-secrets puts it in."
        )
    return EXIT_OK


def _restore(options: argparse.Namespace) -> int:
    from tessera import backup

    settings = _load(options).settings
    os.umask(0o077)
    made = backup.restore(options.source, settings.data)
    print(
        f"Restored {_counted(made.namespaces, 'namespace')} to {settings.data}: {_counted(made.files, 'file')}, "
        "all verified."
    )
    if not made.has_master_key:
        _note(
            f"The backup has no master key: put yours into {settings.data / 'master.key'} (mode 0600) before the "
            "server starts, or credentials that were stored cannot be opened."
        )
    return EXIT_OK


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _erase(options: argparse.Namespace) -> int:
    import time
    from urllib.parse import quote

    import httpx

    from tessera import data_directory

    if bool(options.document) == bool(options.object):
        return _fail("name either --document or --object, each as often as needed.", EXIT_USAGE)
    data = _load(options).settings.data
    owner, key = data_directory.holder_of(data), data_directory.read_admin_key(data)
    if owner is None:
        return _fail(f"no server runs on {data}; start it first: tessera up.", EXIT_NO_SERVER)
    if key is None:
        return _fail(f"there is no {data / 'admin.key'}; make one: tessera key create --admin.", EXIT_FAILED)
    body = (
        {"document_ids": options.document, "include_objects": options.with_objects}
        if options.document
        else {"object_ids": options.object}
    )
    headers = {"Authorization": f"Bearer {key}"}
    try:
        # Not through the environment's proxies: the server is on this machine, and the key is for nobody else.
        with httpx.Client(base_url=owner.url, headers=headers, timeout=60, trust_env=False) as client:
            answer = client.post(f"/v1/namespaces/{quote(options.namespace, safe='')}/erase", json=body)
            while answer.is_success and answer.json()["status"] in ("PENDING", "IN_PROGRESS"):
                time.sleep(0.2)
                answer = client.get(f"/v1/tasks/{answer.json()['task_id']}")
    except httpx.TransportError:
        return _fail(f"the server at {owner.url} does not answer.", EXIT_NO_SERVER)
    if not answer.is_success:
        return _fail(str(answer.json()["error"]["message"]), EXIT_REFUSED)
    report = answer.json()["additional_data"]["report"]
    _print_table([(name, str(value)) for name, value in report.items() if name != "keys"])
    return EXIT_OK if answer.json()["status"] == "COMPLETED" else EXIT_FAILED


def _open_database(settings: Settings) -> Database:
    """Open the metadata of a data directory that a server has used before; its schema is left alone."""
    from tessera import data_directory
    from tessera.db.engine import Database
    from tessera.db.migrate import HEAD, current_revision
    from tessera.errors import TesseraError

    path = settings.data / "tessera.sqlite3"
    if settings.database_url is None and not path.exists():
        raise TesseraError(
            f"{settings.data} is no data directory yet. Start a server there first: tessera up."
        )
    data_directory.check_version(settings.data)
    os.umask(0o077)
    db = Database(settings.database_url or f"sqlite:///{path}")
    found = current_revision(db)
    if found != HEAD:
        db.close()
        raise TesseraError(
            f"The database has schema {found or 'none'}, this Tessera works with {HEAD}. Start the server once: "
            "tessera up brings an older database up to date."
        )
    return db


if __name__ == "__main__":
    sys.exit(main())
