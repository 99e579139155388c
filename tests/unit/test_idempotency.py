"""A key is claimed once, by one request, for a day."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from tessera import idempotency
from tessera.context import Principal
from tessera.db.engine import Database
from tessera.db.migrate import migrate
from tessera.db.tables import idempotency as rows
from tessera.errors import ConflictError, ValidationError

ME = Principal("key_1", "org_1", "int_1", "usr_1", frozenset({"write"}))
YOU = Principal("key_2", "org_2", "int_2", "usr_2", frozenset({"write"}))


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'tessera.sqlite3'}")
    migrate(db)
    yield db
    db.close()


def request(
    body: object = None, *, who: Principal = ME, route: str = "POST /x", key: str = "k"
) -> idempotency.Once:
    made = idempotency.once(who, route, key, body)
    assert made is not None
    return made


def test_the_second_request_finds_what_the_first_one_made(db: Database) -> None:
    with db.write() as connection:
        assert idempotency.claim(connection, request({"a": 1, "b": 2}), "obj_1") is None
    with db.write() as connection:
        assert idempotency.claim(connection, request({"b": 2, "a": 1}), "obj_2") == "obj_1"
        for other in (request(who=YOU), request(route="POST /y"), request(key="l")):
            assert idempotency.claim(connection, other, "obj_3") is None


def test_another_body_is_refused(db: Database) -> None:
    with db.write() as connection:
        idempotency.claim(connection, request({"a": 1}), "obj_1")
        with pytest.raises(ConflictError, match="'k' was used for another request"):
            idempotency.claim(connection, request({"a": 2}), "obj_2")


def test_a_claim_goes_with_its_transaction(db: Database) -> None:
    with pytest.raises(RuntimeError), db.write() as connection:
        idempotency.claim(connection, request(), "obj_1")
        raise RuntimeError
    with db.write() as connection:
        assert idempotency.claim(connection, request(), "obj_2") is None


def test_a_key_is_free_again_after_a_day(db: Database) -> None:
    with db.write() as connection:
        idempotency.claim(connection, request({"a": 1}), "obj_1")
        connection.execute(sa.update(rows).values(created_at="2020-01-01T00:00:00.000000Z"))
    with db.write() as connection:
        assert idempotency.claim(connection, request({"a": 2}), "obj_2") is None


def test_of_many_at_once_one_wins(db: Database) -> None:
    def claim(number: int) -> str | None:
        with db.write() as connection:
            return idempotency.claim(connection, request({"a": 1}), f"obj_{number}")

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(claim, range(40)))
    assert found.count(None) == 1
    winner = f"obj_{found.index(None)}"
    assert {name for name in found if name is not None} == {winner}


@pytest.mark.parametrize("key", ["", "a b", "ä", "k" * 256, "a\nb"])
def test_a_key_is_visible_ascii(key: str) -> None:
    with pytest.raises(ValidationError, match="Idempotency-Key"):
        request(key=key)


def test_without_a_key_nothing_is_remembered() -> None:
    assert idempotency.once(ME, "POST /x", None, {}) is None
