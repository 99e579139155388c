"""How a point holds the document that it stands for, and how that is read back."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Set

import orjson

from tessera.adapters.qdrant.translate import DISPLACED_KEY, PACKED_KEY, SHADOW_KEY
from tessera.ports import Payload

#: Case-folded strings of one field of one document.
Shadow = str | list[str]


class Layout(enum.IntEnum):
    """How the points of a view hold their documents; all of a view do it alike, from its making on.

    With `KEY`, the vector of a view that has one (beside keyword indexes) is the engine's unnamed one too.
    """

    #: As the engine's own values: on a server, and in views of releases 0.1 and 0.2.
    FIELDS = 0
    #: As one string of JSON under `PACKED_KEY`, and beside it the root fields in which an index lies.
    STRING = 1
    #: As before, but the JSON is itself the key.
    KEY = 2


def to_mark(layout: Layout) -> bool | int:
    """Return how a view's mark says it. Releases that know no `KEY` take its mark for damage, and rebuild."""
    return int(layout) if layout > Layout.STRING else bool(layout)


def from_mark(value: object) -> Layout:
    """Undo `to_mark`; `ValueError` for what it never says."""
    if not isinstance(value, int) or value != to_mark(Layout(value)):
        raise ValueError("packed must be true, false or 2")
    return Layout(value)


def unnamed_vector(layout: Layout, vectors: Mapping[str, object]) -> str | None:
    """Return which of a view's dense `vectors` the engine holds without a name, None where all have theirs."""
    return next(iter(vectors)) if layout == Layout.KEY and len(vectors) == 1 else None


def stored(
    layout: Layout,
    payload: Payload,
    shadows: Mapping[str, Shadow],
    roots: Set[str],
    text: bytes | None = None,
) -> Payload:
    """Return `payload` as a point holds it, with `shadows`; `text` is its JSON where that is known already.

    `roots` are the root fields in which an index lies, all that the engine is asked about. A string that crosses into
    the engine as a value costs 2 µs there, whatever its length, because it is tried as everything else before;
    a key is a string, and true is what is tried first.
    """
    if layout == Layout.FIELDS:
        return hide(payload, shadows)
    held = {root: payload[root] for root in roots if root in payload}
    if shadows or SHADOW_KEY in held:
        held = hide(held, shadows)
    packed = _text(payload) if text is None else text.decode()
    if layout == Layout.STRING:
        held[PACKED_KEY] = packed
    else:
        held[packed] = True
    return held


def document_of(layout: Layout, held: Payload) -> Payload:
    """Undo `stored`. May change `held`."""
    if layout == Layout.FIELDS:
        return reveal(held)
    payload: Payload = orjson.loads(held[PACKED_KEY] if layout == Layout.STRING else _packed_key(held))
    return payload


def _packed_key(held: Payload) -> str:
    """Return the key that is a document: JSON has a quotation mark, which no indexed field has in its name."""
    for key in held:
        if '"' in key:
            return key
    raise KeyError("the point holds no document")


def _text(payload: Payload) -> str:
    try:
        return orjson.dumps(payload).decode()
    except TypeError:
        # A whole number beyond 64 bits: it comes back as a float, as from the engine.
        return json.dumps(payload)


def hide(payload: Payload, shadows: Mapping[str, Shadow]) -> Payload:
    """Return the payload as it is stored: with `shadows`, and a field of the user's of that name moved."""
    if not shadows and SHADOW_KEY not in payload:
        return payload
    held = dict(payload)
    extra: dict[str, object] = dict(shadows)
    if SHADOW_KEY in payload:
        extra[DISPLACED_KEY] = payload[SHADOW_KEY]
    held[SHADOW_KEY] = extra
    return held


def reveal(held: Payload) -> Payload:
    """Undo `hide`. Changes `held`."""
    extra = held.pop(SHADOW_KEY, None)
    if isinstance(extra, dict) and DISPLACED_KEY in extra:
        held[SHADOW_KEY] = extra[DISPLACED_KEY]
    return held
