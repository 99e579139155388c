"""Names of resources: what they may look like, so that a name is never taken for an id or a route."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from tessera.errors import Problem, quote


def clean(name: str) -> str:
    """Return `name` in Unicode's composed form (NFC), the one that is stored and compared."""
    return unicodedata.normalize("NFC", name)


def check(
    name: str, location: tuple[str | int, ...], *, id_prefix: str, reserved: Collection[str] = ()
) -> list[Problem]:
    """Return what is wrong with `name`: printable, no ``/``, no blank at its ends, no id, no route word."""
    shown, field = quote(name), location[-1]
    if not name.isprintable():  # nor is half of a surrogate pair
        why = "holds a character that cannot be printed"
    elif "/" in name:
        why = "holds a slash, which separates parts of a path"
    elif name != name.strip():
        why = "begins or ends with a blank"
    elif re.fullmatch(rf"{id_prefix}_[0-9a-f]{{16}}", name):
        why = "looks like an id"
    elif name.lower() in reserved or name in (".", ".."):
        why = "is a word of the API's own paths"
    else:
        return []
    return [
        Problem(
            location,
            f"{field} {shown} {why}. Letters, digits, blanks inside and punctuation but / are allowed; choose another.",
            "name",
        )
    ]
