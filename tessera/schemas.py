"""Bucket schemas: what one may say, how one may change, and whether a value is what one asks for. Pure."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any

from tessera.errors import BadRequestError, Problem, quote
from tessera.models.buckets import BLOB_TYPES, BucketSchema, FieldType, SchemaField
from tessera.plan import PROTECTED_FIELDS

#: Keys that an object's answer has of its own at the root, so that no user field can stand there.
OBJECT_KEYS = frozenset(
    {
        "object_id",
        "bucket_id",
        "namespace_id",
        "internal_id",
        "key_prefix",
        "blob",
        "blobs",
        "metadata",
        "status",
        "error",
        "version",
        "content_hash",
        "source_details",
        "document_count",
        "consistency",
    }
)
_PROPERTY = re.compile(r"[^.\[\]$\x00-\x1f\x7f][^.\[\]\x00-\x1f\x7f]{0,99}")

Location = tuple[str | int, ...]


def is_reserved(name: str) -> bool:
    """Say whether a user's field cannot have this name at the root of an object or a document."""
    return name in OBJECT_KEYS or name in PROTECTED_FIELDS or name.startswith("_")


def problems(schema: BucketSchema, location: Location) -> list[Problem]:
    """Return what is wrong with a schema, at every depth."""
    found: list[Problem] = []
    for name, declared in schema.properties.items():
        place = (*location, "properties", name)
        if not _PROPERTY.fullmatch(name):
            found.append(
                Problem(
                    place,
                    f"Property {quote(name)} cannot be named so: 1 to 100 characters without dots, brackets and "
                    "control characters, not beginning with a dollar sign, are allowed (dots separate the parts of a "
                    "path).",
                    "property_name",
                )
            )
        elif is_reserved(name):
            found.append(
                Problem(
                    place,
                    f"Property {quote(name)} is a field of the system; choose another name. Reserved are: "
                    f"{', '.join(sorted(OBJECT_KEYS | PROTECTED_FIELDS))}, and names that begin with _.",
                    "property_reserved",
                )
            )
        found += _field_problems(declared, place, name)
    return found


def _field_problems(declared: SchemaField, place: Location, name: str) -> list[Problem]:
    """Return what is wrong with a property: values that its own type and enum do not allow, at every depth."""
    found: list[Problem] = []
    if declared.enum is not None and not declared.enum:
        message = f"The enum of {quote(name)} is empty, so it allows nothing; name a value, or leave it out."
        found.append(Problem((*place, "enum"), message, "enum"))
    for index, value in enumerate(declared.enum or ()):
        if (wrong := _type_problem(declared, value)) is not None:
            found.append(
                Problem((*place, "enum", index), f"A value of the enum of {quote(name)} {wrong}", "enum")
            )
    if declared.default is not None and (wrong := value_problem(declared, declared.default)) is not None:
        found.append(Problem((*place, "default"), f"The default of {quote(name)} {wrong}", "default"))
    for key, kind in (("items", FieldType.ARRAY), ("properties", FieldType.OBJECT)):
        if getattr(declared, key) is not None and declared.type is not kind:
            message = (
                f"{quote(name)} is {declared.type.value}; only an {kind.value} has {key}. Leave {key} out."
            )
            found.append(Problem((*place, key), message, key))
    if declared.items is not None:
        found += _field_problems(declared.items, (*place, "items"), f"{name}[]")
    for inner, field in (declared.properties or {}).items():
        found += _field_problems(field, (*place, "properties", inner), f"{name}.{inner}")
    return found


def growth_problems(present: BucketSchema, wanted: BucketSchema) -> list[Problem]:
    """Refuse changes that objects which exist, or collections that read them, could contradict."""
    location: Location = ("body", "bucket_schema")
    found = problems(wanted, location)
    for name, field in present.properties.items():
        new = wanted.properties.get(name)
        if new is None:
            found.append(
                _fixed(
                    (*location, "properties", name),
                    f"Property {quote(name)} is missing, but a schema keeps its own.",
                )
            )
        elif _lasting(new) != _lasting(field):
            found.append(
                _fixed(
                    (*location, "properties", name),
                    f"Property {quote(name)} is {'required ' if field.required else ''}{field.type.value} and stays so "
                    "(type, required, enum, items and properties are fixed).",
                )
            )
    for name, field in wanted.properties.items():
        if name not in present.properties and field.required:
            found.append(
                _fixed(
                    (*location, "properties", name, "required"),
                    f"Property {quote(name)} is new and cannot be required: objects that exist do not have it.",
                )
            )
    return found


def _lasting(declared: SchemaField) -> tuple[Any, ...]:
    """Return what of a property stays as it is, for objects that were checked by it."""
    return (
        declared.type,
        declared.required,
        declared.enum,
        _lasting(declared.items) if declared.items is not None else None,
        {name: _lasting(inner) for name, inner in (declared.properties or {}).items()},
    )


def _fixed(location: Location, message: str) -> Problem:
    return Problem(
        location,
        f"{message} New properties that are not required may be added; for anything else create another bucket.",
        "schema_fixed",
        BadRequestError.status,
    )


def value_problem(declared: SchemaField, value: object) -> str | None:
    """Return what is wrong with `value` for a property, as the end of a sentence; None when nothing is."""
    wrong = _type_problem(declared, value)
    if wrong is not None:
        return wrong
    if declared.enum is not None and value not in declared.enum:
        return f"must be one of {', '.join(quote(item) for item in declared.enum[:20])}, not {_shown(value)}."
    if isinstance(value, list) and declared.items is not None:
        for index, item in enumerate(value):
            wrong = value_problem(declared.items, item)
            if wrong is not None:
                return f"[{index}] {wrong}"
    if isinstance(value, dict) and declared.properties:
        for name, inner in declared.properties.items():
            if value.get(name) is None:
                if inner.required:
                    return f"needs {quote(name)}."
                continue
            wrong = value_problem(inner, value[name])
            if wrong is not None:
                return f".{name} {wrong}"
    return None


def _type_problem(declared: SchemaField, value: object) -> str | None:
    if _is_of(declared.type, value):
        return None
    return f"must be {_WORDS[declared.type]}, not {_shown(value)}."


_WORDS = {
    FieldType.STRING: "a string",
    FieldType.NUMBER: "a number",
    FieldType.INTEGER: "a whole number",
    FieldType.FLOAT: "a number",
    FieldType.BOOLEAN: "true or false",
    FieldType.OBJECT: "an object",
    FieldType.ARRAY: "a list",
    FieldType.DATE: "a date such as 2026-01-31",
    FieldType.DATETIME: "a date and time such as 2026-01-31T12:00:00Z",
    **dict.fromkeys(BLOB_TYPES, "a string"),
}


def _is_of(wanted: FieldType, value: object) -> bool:
    if wanted in (FieldType.NUMBER, FieldType.FLOAT):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is FieldType.INTEGER:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is FieldType.BOOLEAN:
        return isinstance(value, bool)
    if wanted is FieldType.OBJECT:
        return isinstance(value, dict)
    if wanted is FieldType.ARRAY:
        return isinstance(value, list)
    if not isinstance(value, str):
        return False
    if wanted in (FieldType.DATE, FieldType.DATETIME):
        return _is_time(value, whole_days=wanted is FieldType.DATE)
    return True


def _is_time(value: str, *, whole_days: bool) -> bool:
    try:
        if whole_days:
            date.fromisoformat(value)
        else:
            datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return quote(value)
    return "an object" if isinstance(value, dict) else "a list"
