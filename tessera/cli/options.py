"""Flags that commands share, the settings behind them, and the data directory that they work on."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tessera.config import Configuration, Settings
    from tessera.db.engine import Database


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the data directory."""
    parser.add_argument("--data", metavar="DIR", help="data directory (tessera-data)")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the settings that a server is started with."""
    add_data(parser)
    parser.add_argument("--host", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", metavar="N", help="port to listen on (8700); 0 picks a free one")
    parser.add_argument("--public-url", metavar="URL", help="base URL of links in answers, behind a proxy")
    parser.add_argument("--log-format", choices=["text", "json"], help="form of the log on stderr")
    parser.add_argument("--workers", metavar="N", help="processes that run extractors")
    parser.add_argument("--models-dir", metavar="DIR", help="model files (DATA/models)")
    parser.add_argument("--offline", action="store_const", const=True, help="never ask a model hub")


def load(options: argparse.Namespace) -> Configuration:
    """Return all settings, with the flags that were given."""
    from tessera import config

    flags = {name: value for name, value in vars(options).items() if name in config.Settings.model_fields}
    return config.load(flags)


def open_database(settings: Settings) -> Database:
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
