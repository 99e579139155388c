"""docs/configuration.md lists every setting as `Settings` has it; run this file as a program to renew the table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tessera.config import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs/configuration.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
#: Defaults that depend on the machine are told in words.
COMPUTED = {"workers": "processors − 1, from 1 to 4"}


def type_name(field: FieldInfo) -> str:
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    return " \\| ".join(f'"{kind}"' if isinstance(kind, str) else kind.__name__ for kind in kinds)


def default(name: str, field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return COMPUTED[name]
    return "" if field.default is None else f"`{field.default}`"


def table() -> str:
    rows = ["| setting | environment | type | default | |", "|---|---|---|---|---|"]
    rows += [
        f"| `{name}` | `TESSERA_{name.upper()}` | {type_name(field)} | {default(name, field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(rows) + "\n"


def test_the_page_lists_every_setting() -> None:
    page = PAGE.read_text()
    written = page.partition(BEGIN)[2].partition(END)[0]
    assert written == table(), f"run: {os.path.relpath(sys.executable)} -m tests.docs.test_configuration"


def test_every_setting_is_described() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text.partition(BEGIN)[0] + BEGIN + table() + END + text.partition(END)[2])
