"""Revisions and tables agree; an older database is copied, then upgraded; a newer one is left alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from packaging.version import Version

from tessera import __version__
from tessera.db.engine import Database
from tessera.db.migrate import HEAD, SchemaError, alembic_config, current_revision, migrate, remove_copies
from tessera.db.tables import metadata


@pytest.fixture
def db(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")


def test_revisions_make_exactly_the_tables(db: Database) -> None:
    migrate(db)
    with db.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_head_is_the_newest_revision() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_a_revision_names_a_release_that_has_it() -> None:
    """An older release says which one to install, by the name of the revision that it meets."""
    revisions = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    named = [Version(revision.partition("_v")[2]) for revision in reversed(revisions)]
    assert named == sorted(named)
    assert named[-1] <= Version(__version__)


def test_migrating_again_changes_nothing(db: Database, tmp_path: Path) -> None:
    migrate(db)
    before = sorted(path.name for path in tmp_path.iterdir())
    migrate(db)
    assert current_revision(db) == HEAD
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_older_database_is_copied_first(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(db)
    with db.write() as connection:
        connection.execute(sa.text("INSERT INTO idempotency VALUES ('o', 'r', 'k', x'00', 'i', 't')"))
    monkeypatch.setattr("tessera.db.migrate.HEAD", "0099_v9.0.0")
    migrate(db)
    copy = tmp_path / f"tessera.sqlite3.{HEAD}.backup"
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT key FROM idempotency").fetchall() == [("k",)]
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(HEAD,)]


def test_copies_are_removed_where_the_database_lies(tmp_path: Path) -> None:
    here = Database(f"sqlite:///{tmp_path / 'meta[1].db'}")
    (tmp_path / "meta[1].db.0001_v0.1.0.backup").touch()
    (tmp_path / "meta1.db.0001_v0.1.0.backup").touch()
    assert remove_copies(here) == 1
    assert [path.name for path in tmp_path.glob("*.backup")] == ["meta1.db.0001_v0.1.0.backup"]


@pytest.mark.parametrize(
    ("found", "needed"),
    [("0097_v1.4.0", "Install Tessera 1.4.0 or newer"), ("abc", "Install a newer Tessera")],
)
def test_a_newer_schema_is_refused(db: Database, tmp_path: Path, found: str, needed: str) -> None:
    migrate(db)
    with db.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :found"), {"found": found})
    with pytest.raises(SchemaError, match=needed):
        migrate(db)
    assert not list(tmp_path.glob("*.backup"))
