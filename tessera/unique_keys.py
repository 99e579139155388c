"""Unique keys of buckets: fields whose values together name one object, and what a second one with them means. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from tessera.errors import BadRequestError, Problem, quote
from tessera.models.buckets import BucketSchema, FieldType, Policy, UniqueKey
from tessera.validation import label

MAX_STRING_CHARS = 255
#: Types whose values can be told apart by a glance at them.
_SCALARS = frozenset(
    {
        FieldType.STRING,
        FieldType.NUMBER,
        FieldType.INTEGER,
        FieldType.FLOAT,
        FieldType.BOOLEAN,
        FieldType.DATE,
        FieldType.DATETIME,
    }
)


def problems(key: UniqueKey, schema: BucketSchema) -> list[Problem]:
    """Return what is wrong with a new bucket's unique key."""
    found: list[Problem] = []
    fitting = [name for name, declared in schema.properties.items() if declared.type in _SCALARS]
    for index, name in enumerate(key.fields):
        place = ("body", "unique_key", "fields", index)
        if name in key.fields[:index]:
            found.append(Problem(place, f"{label(place)}: {quote(name)} is named twice.", "duplicate_field"))
            continue
        if name in fitting:
            continue
        declared = schema.properties.get(name)
        why = (
            "is no property of the schema"
            if declared is None
            else f"is {declared.type.value}, no single value"
        )
        found.append(
            Problem(
                place,
                f"{label(place)}: {quote(name)} {why}. Properties that can be in the key: "
                f"{', '.join(fitting) or 'none'}.",
                "unique_key_field",
            )
        )
    return found


def change_problems(present: UniqueKey | None, wanted: UniqueKey) -> list[Problem]:
    """Return why a bucket's unique key cannot become `wanted`: only its default policy changes."""
    if present is not None and sorted(present.fields) == sorted(wanted.fields):
        return []
    message = (
        "The bucket was created without a unique key, and its objects are not registered under one; create another "
        "bucket with it."
        if present is None
        else f"unique_key.fields are {', '.join(present.fields)} and stay so; only default_policy can change."
    )
    return [Problem(("body", "unique_key"), message, "unique_key_fixed")]


def policy(key: UniqueKey, asked: Policy | None) -> Policy:
    """Return what an object whose key is taken, or is not, means. Raises `BadRequestError` when nothing says it."""
    found = asked or key.default_policy
    if found is None:
        raise BadRequestError(
            f"The bucket has a unique key ({', '.join(key.fields)}) and no default policy. Send ?policy= with one of "
            "insert, update, upsert, or give it one (unique_key.default_policy in a PATCH of the bucket).",
            details={"unique_key": key.fields},
        )
    return found


def digest(
    key: UniqueKey, schema: BucketSchema, fields: Mapping[str, Any], found: list[Problem]
) -> str | None:
    """Return the digest of an object's values of the key, in any order of its fields; what is wrong goes to `found`.

    Values stand at the root of `fields` or in ``metadata``. Numbers are equal when their values are, texts when
    every character is.
    """
    nested = fields.get("metadata")
    values: dict[str, Any] = {}
    value: Any
    for name in sorted(key.fields):
        value = fields.get(name)
        if value is None and isinstance(nested, Mapping):
            value = nested.get(name)
        wrong = _value_problem(value)
        if wrong is not None:
            message = f"{name} is part of the bucket's unique key ({', '.join(key.fields)}) and {wrong}"
            found.append(Problem(("body", name), message, "unique_key_value"))
        numeric = schema.properties[name].type in (FieldType.NUMBER, FieldType.FLOAT)
        values[name] = float(value) if numeric and type(value) in (int, float) else value
    return hashlib.sha256(orjson.dumps(values)).hexdigest() if not found else None


def _value_problem(value: object) -> str | None:
    if value is None or value == "":
        return "needs a value; send one at the root or in `metadata`."
    if isinstance(value, str) and len(value) > MAX_STRING_CHARS:
        return f"has {len(value)} characters; at most {MAX_STRING_CHARS} are allowed."
    return None
