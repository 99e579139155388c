"""Brings the metadata database to this release's schema.

The usual start costs one SELECT: Alembic is imported only when there is something to do. A revision's
name ends in the release that introduced it (``0001_v0.1.0``), so that an older release that meets a
newer schema can say which release is needed.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from tessera import failpoints
from tessera.errors import TesseraError

if TYPE_CHECKING:
    from alembic.config import Config

    from tessera.db.engine import Database

#: The newest revision in ``migrations/versions``.
HEAD = "0021_v0.5.0"

#: Any constant: replicas that start together on one PostgreSQL migrate one after the other.
_ADVISORY_LOCK = 0x7E55E7A


class SchemaError(TesseraError):
    """The database was written by a newer release; the message names the one to install."""

    type, status = "SchemaError", 500


def migrate(db: Database) -> None:
    """Bring the schema of `db` to `HEAD`. Repeating it changes nothing.

    A SQLite database that holds an older schema is copied beside itself first
    (``tessera.sqlite3.0001_v0.1.0.backup``). Each upgrade is one transaction: a kill in the middle leaves
    the old schema. Raises `SchemaError` when the schema is newer than this release knows.
    """
    current = current_revision(db)
    if current == HEAD:
        return
    if current is not None:
        _refuse_newer(current)
        if db.is_sqlite:
            _back_up(db, current)
            failpoints.reach("migrate.backed-up")
    from alembic import command

    with db.write() as connection:
        if not db.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        failpoints.reach("migrate.upgraded")


def current_revision(db: Database) -> str | None:
    """Return the revision that `db` is at; None for an empty database."""
    with db.engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def alembic_config() -> Config:
    """Return Alembic's configuration; the caller puts a connection into its attributes."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _refuse_newer(current: str) -> None:
    number, _, version = current.partition("_v")
    # Revisions are made side by side: their numbers say who made them, not in which order they came.
    if not number.isdigit() or not any(
        (Path(__file__).parent / "migrations/versions").glob(f"m{number}_*.py")
    ):
        from tessera import __version__

        needed = f"Tessera {version} or newer" if version else "a newer Tessera"
        raise SchemaError(
            f"The database has schema {current}, which Tessera {__version__} does not know. "
            f"Install {needed}; nothing was changed."
        )


def remove_copies(db: Database) -> int:
    """Remove the copies that upgrades made of `db`, which hold what was deleted since; return how many there were.

    They lie beside it, wherever that is.
    """
    database = db.engine.url.database
    if not db.is_sqlite or not database:
        return 0
    path = Path(database)
    copies = list(path.parent.glob(f"{glob.escape(path.name)}.*.backup"))
    for copy in copies:
        copy.unlink(missing_ok=True)
    return len(copies)


def _back_up(db: Database, current: str) -> None:
    database = db.engine.url.database
    assert database is not None
    target = Path(f"{database}.{current}.backup")
    target.unlink(missing_ok=True)
    with db.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        # Outside any transaction, as VACUUM demands; includes what is still in the write-ahead log.
        raw.cursor().execute("VACUUM INTO ?", (str(target),))
