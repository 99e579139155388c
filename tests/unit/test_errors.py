"""A 404 says how to find what there is, for every noun; ``tests/http/test_openapi.py``: the lists are there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

import tessera
from tessera import discovery
from tessera.api.app import make_app
from tessera.config import Settings
from tessera.errors import NotFoundError
from tessera.wiring import close_warehouse, open_warehouse

PACKAGE = Path(tessera.__file__).parent
#: Nouns that `buckets.find_in` is given.
GIVEN = {"object", "upload", "batch"}


def test_every_noun_has_a_next_step() -> None:
    texts = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    found = GIVEN.union(*(re.findall(r'\bNotFoundError\(\s*"([^"]+)"', text) for text in texts))
    assert len(found) >= 25
    for noun in sorted(found):
        said, _, step = NotFoundError(noun, "x").message.partition(" was not found. ")
        assert said == f"{noun} 'x'" and step.endswith("."), noun


class Refusal(Exception):
    """What a driver of PostgreSQL raises."""

    def __init__(self, said: str, sqlstate: str | None = None) -> None:
        super().__init__(said)
        self.sqlstate = sqlstate


#: What comes of what PostgreSQL says, for none of which a server of it is needed.
REFUSALS = (
    (sa.exc.IntegrityError, Refusal("Key (name)=(private) already exists.", "23505"), 409, "another name"),
    (sa.exc.IntegrityError, Refusal("Key (id)=(private) is not present.", "23503"), 409, "was deleted"),
    (sa.exc.DataError, Refusal("text fields cannot contain NUL (0x00) bytes"), 400, "U+0000"),
    (sa.exc.IntegrityError, Refusal("null value in column", "23502"), 500, "request id"),
)


def test_what_postgresql_refuses_is_told_and_no_value_of_a_row_is_told_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions may find a name free there; the index refuses one of them."""
    settings = Settings(data=tmp_path / "data", offline=True, operator_secret=SecretStr("x" * 32))
    wh = open_warehouse(settings, run_jobs=False)
    values, waiting = {"name": "private"}, list(REFUSALS)

    def refuse(*_: object) -> None:
        kind, cause, *_ = waiting.pop(0)
        raise kind("INSERT", values, cause, hide_parameters=wh.db.engine.hide_parameters)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(make_app(wh), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://tessera") as client:
            return [await client.get("/v1/discovery") for _ in REFUSALS]

    monkeypatch.setattr(discovery, "everything", refuse)
    try:
        answers = asyncio.run(ask())
    finally:
        close_warehouse(wh)
    for answer, (_, _, status, named) in zip(answers, REFUSALS, strict=True):
        assert answer.status_code == status
        assert named in answer.json()["error"]["message"]
        assert "private" not in answer.text
    assert "null value in column" in caplog.text and "private" not in caplog.text
