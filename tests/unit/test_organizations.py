"""Checking keys on the connection that is kept for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera import organizations
from tessera.db.engine import Database
from tessera.db.migrate import migrate
from tessera.errors import UnauthorizedError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")
    migrate(db)
    yield db
    db.close()


def test_a_connection_that_broke_locks_nobody_out(db: Database) -> None:
    key = organizations.new_key()
    organizations.bootstrap(db, key)
    keys = organizations.Keys(db)
    key_id = keys.check(key).key_id
    keys._kept.dbapi_connection.close()
    for _ in range(2):
        assert keys.check(key).key_id == key_id
    with pytest.raises(UnauthorizedError):
        keys.check(organizations.new_key())
    keys.close()
