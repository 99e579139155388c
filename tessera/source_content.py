"""What a source gives to its documents: the extractor's inputs, the fields that are passed through, its digest.

A source is an object's row or a document in the same form. Everything here is pure: no database, no file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tessera import filters, links
from tessera.errors import quote
from tessera.extraction import ChunkRow, InputRef
from tessera.filters import values_at
from tessera.objects import searchable


def as_filtered(row: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return a source as source filters see it: a document as it is, an object with its blobs."""
    if "payload" in row:
        return {name: value for name, value in row["payload"].items() if name not in filters.SECRET_FIELDS}
    shown = ("blob_id", "property", "type", "details", "metadata")
    return {
        **searchable(row),
        "blobs": [{name: blob.get(name) for name in shown} for blob in row["blobs"]],
    }


def inputs_of(
    namespace_id: str,
    accepted: Mapping[str, Sequence[str]],
    mappings: Any,
    fields: Mapping[str, Any],
    blobs: Sequence[Mapping[str, Any]],
) -> dict[str, InputRef]:
    """Find each of the extractor's inputs: mapped by the collection, else the first blob of a type it accepts."""
    found: dict[str, InputRef] = {}
    by_property = {blob["property"]: blob for blob in reversed(blobs)}
    if isinstance(mappings, Mapping):
        mappings = [{"input_key": key, "path": path} for key, path in mappings.items()]
    for mapping in mappings or []:
        if mapping.get("source_type") == "literal":
            found[mapping["input_key"]] = InputRef(text=str(mapping.get("override")))
            continue
        path = plain_path(str(mapping.get("path") or ""))
        blob = by_property.get(path.removeprefix("blobs."))
        if blob is not None:
            found[mapping["input_key"]] = _ref(blob)
        elif values := values_at(fields, path):
            key = links.key_in(namespace_id, values[0]) if len(values) == 1 else None
            found[mapping["input_key"]] = (
                InputRef(text="\n".join(map(str, values))) if key is None else InputRef(blob_key=key)
            )
    if not mappings:
        for name, types in accepted.items():
            blob = next((blob for blob in blobs if not types or blob["type"] in types), None)
            if blob is not None:
                found[name] = _ref(blob)
    return found


def lacking(mappings: Any, inputs: Mapping[str, InputRef]) -> tuple[str, ...]:
    """Return the inputs that a collection maps and a source does not have, each with its property, to be read."""
    if isinstance(mappings, Mapping):
        mappings = [{"input_key": key, "path": path} for key, path in mappings.items()]
    return tuple(
        f"the property {quote(plain_path(str(mapping.get('path') or '')))} of input `{mapping['input_key']}`"
        for mapping in mappings or []
        if mapping["input_key"] not in inputs
    )


def is_of_another_kind(
    accepted: Mapping[str, Sequence[str]],
    mappings: Any,
    inputs: Mapping[str, InputRef],
    *,
    is_document: bool = False,
) -> bool:
    """Say whether a source has none of the inputs that a collection would take of it, and is left out by it.

    An extractor that takes an input of any type needs none. A document whose collection maps nothing is a
    mistake of the collection, and no document of another kind.
    """
    takes_some = bool(accepted) and all(accepted.values())
    return takes_some and not inputs and (bool(mappings) or not is_document)


def _ref(blob: Mapping[str, Any]) -> InputRef:
    details = blob.get("details") or {}
    return InputRef(
        text=blob.get("text"),
        blob_key=blob.get("blob_key"),
        mime_type=details.get("mime_type"),
        filename=details.get("filename"),
    )


def passthrough_of(
    extractor: Mapping[str, Any], fields: Mapping[str, Any], blobs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the object's fields that documents carry: each under its target *and* its own path.

    The API stores ``metadata.category`` as ``category`` by default, and its guides filter on
    ``metadata.category``: both paths work, and an index on either one indexes.
    """
    known = {**{blob["property"]: _content_of(blob) for blob in blobs}, **fields}
    wanted = extractor.get("field_passthrough") or []
    everything = extractor.get("include_all_source_fields")
    if everything is None:
        everything = extractor["feature_extractor_name"] == "passthrough_extractor" and not wanted
    payload: dict[str, Any] = dict(known) if everything else {}
    for item in wanted:
        path = plain_path(item["source_path"])
        values = values_at(known, path)
        if not values:
            if item.get("default") is None:
                continue
            value = item["default"]
        else:
            value = _value_at(known, path, values if len(values) > 1 else values[0])
        _set(payload, path, value)
        _set(payload, item.get("target_path") or path.rsplit(".", 1)[-1], value)
    return payload


def _content_of(blob: Mapping[str, Any]) -> str:
    """Return a blob as a document carries it: a short text as it is, anything else by its link."""
    text = blob.get("text")
    return str(text) if text is not None else f"{links.SCHEME}{blob['blob_key']}"


def plain_path(path: str) -> str:
    """Return a source path without the prefixes that the API allows (``payload.``, ``$.``)."""
    return path.removeprefix("$.").removeprefix("payload.")


def _value_at(fields: Mapping[str, Any], path: str, fallback: Any) -> Any:
    """Return the value at `path` as it stands; `fallback` where arrays lie on the way to it."""
    here: Any = fields
    for segment in path.split("."):
        if not isinstance(here, Mapping) or segment not in here:
            return fallback
        here = here[segment]
    return here


def _set(payload: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    here = payload
    for segment in parents:
        below = here.get(segment)
        if not isinstance(below, dict):
            below = {}
        else:
            below = dict(below)  # the source's own dictionary stays as it is
        here[segment] = below
        here = below
    here[last] = value


def input_hash(row: ChunkRow) -> str:
    """Return the digest of everything of a source that decides what its documents will be."""
    return digest(
        {
            "inputs": {
                name: [ref.text, ref.blob_key, ref.filename] for name, ref in sorted(row.inputs.items())
            },
            "passthrough": row.passthrough,
        }
    )


def digest(value: object) -> str:
    """Return the SHA-256, in hex, of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
