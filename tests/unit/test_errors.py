"""A 404 says how to find what there is, for every noun; ``tests/http/test_openapi.py``: the lists are there."""

from __future__ import annotations

import re
from pathlib import Path

import tessera
from tessera.errors import NotFoundError

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
