"""A result whose rows were not all read must not disturb whoever gets its connection next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tessera.db.engine import Database

QUERY = sa.text("SELECT n FROM numbers WHERE n >= :least ORDER BY n")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")
    with db.write() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (n INTEGER)"))
        connection.execute(sa.text("INSERT INTO numbers VALUES (:n)"), [{"n": n} for n in range(5)])
    yield db
    db.close()


def test_rows_come_once_although_an_earlier_result_is_collected_meanwhile(db: Database) -> None:
    """pysqlite3 0.6.1 gave 0 1 2 0 1 2 3 4 here, and then refused the statement's next use."""
    left_open: list[Any] = []
    with pytest.raises(RuntimeError), db.read() as connection:
        result = connection.execute(QUERY, {"least": 0})
        result.fetchone()
        left_open.append(result)
        raise RuntimeError
    with db.read() as connection:
        result = connection.execute(QUERY, {"least": 0})
        rows = [result.fetchone(), result.fetchone()]
        left_open.clear()
        rows += result.fetchall()
    assert [row[0] for row in rows if row is not None] == [0, 1, 2, 3, 4]
    with db.read() as connection:
        assert len(connection.execute(QUERY, {"least": 0}).fetchall()) == 5
