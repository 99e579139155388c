"""A 404 says how to find what there is, for every noun, by a list that the application really serves."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.types import ASGIApp

import tessera
from tessera import discovery
from tessera.api.app import make_app
from tessera.config import Settings
from tessera.errors import LISTED_BY, NotFoundError
from tessera.wiring import close_warehouse, open_warehouse

PACKAGE = Path(tessera.__file__).parent
#: Nouns that `buckets.find_in` is given.
GIVEN = {"object", "upload", "batch"}


def nouns() -> set[str]:
    """Return every noun for which Tessera raises `NotFoundError`."""
    calls = (
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NotFoundError"
    )
    return GIVEN | {
        str(call.args[0].value) for call in calls if call.args and isinstance(call.args[0], ast.Constant)
    }


def test_every_noun_has_a_next_step() -> None:
    found = nouns()
    assert len(found) >= 25
    for noun in sorted(found):
        said, _, step = NotFoundError(noun, "x").message.partition(" was not found. ")
        assert said == f"{noun} 'x'" and step.endswith("."), noun


def test_every_list_that_is_named_is_served(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data", offline=True, operator_secret=SecretStr("x" * 32))
    wh = open_warehouse(settings, run_jobs=False)
    try:
        served = {
            f"{method} {route.path_format}"
            for route in make_app(wh).router.routes
            if isinstance(route, APIRoute)
            for method in route.methods
        }
    finally:
        close_warehouse(wh)
    named = {LISTED_BY[noun] for noun in nouns() if noun in LISTED_BY}
    assert len(named) >= 20 and named <= served


class Refused(Exception):
    """What a PostgreSQL driver raises."""

    def __init__(self, said: str, sqlstate: str | None = None) -> None:
        super().__init__(said)
        self.sqlstate = sqlstate


async def ask(app: ASGIApp) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tessera") as client:
        return await client.get("/v1/discovery")


@pytest.mark.parametrize(
    ("kind", "cause", "status", "named"),
    [
        (sa.exc.IntegrityError, Refused("Key (name)=(private) already exists.", "23505"), 409, "another name"),
        (sa.exc.IntegrityError, Refused("Key (id)=(private) is not present.", "23503"), 409, "was deleted"),
        (sa.exc.DataError, Refused("text fields cannot contain NUL (0x00) bytes"), 400, "U+0000"),
        (sa.exc.IntegrityError, Refused("null value in column", "23502"), 500, "request id"),
    ],
)
def test_what_postgresql_refuses_is_a_conflict_or_a_bad_request(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[sa.exc.DBAPIError],
    cause: Refused,
    status: int,
    named: str,
) -> None:
    """Two may find a name free there, and one of them is refused by the index; no value of a row is told or logged."""

    values = {"name": "private"}

    def refuse(*_: object) -> None:
        raise kind("INSERT INTO clusters VALUES (?)", values, cause, hide_parameters=wh.db.engine.hide_parameters)

    settings = Settings(data=tmp_path / "data", offline=True, operator_secret=SecretStr("x" * 32))
    wh = open_warehouse(settings, run_jobs=False)
    try:
        monkeypatch.setattr(discovery, "everything", refuse)
        answer = asyncio.run(ask(make_app(wh)))
    finally:
        close_warehouse(wh)
    assert (answer.status_code, named in answer.json()["error"]["message"]) == (status, True)
    assert "private" not in answer.text + caplog.text
