"""A 404 says how to find what there is, for every noun, by a list that the application really serves."""

from __future__ import annotations

import ast
from pathlib import Path

from fastapi.routing import APIRoute
from pydantic import SecretStr

import tessera
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
