"""Add fields of documents of another collection: a join."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import Problem
from tessera.filters import And, Condition, values_at
from tessera.ports import HIDDEN_FIELDS, Hit, Page, Payload
from tessera.stages.base import (
    ORIGIN_FIELDS,
    FieldPath,
    FieldPaths,
    Stage,
    StageContext,
    StageParams,
    collected,
    first_value,
    tree_at,
    with_tree_at,
)
from tessera.stages.outside import output_path

#: Values that are looked up in one read, and most documents that one read brings.
LOOKUP_BATCH = 500

#: A value as it is compared: 1 and 1.0 are one, 1 and true are two.
_Key = tuple[bool, Any]


class DocumentEnrichParams(StageParams):
    """Where to look (`target_collection_id`: id or name), by which fields, and what becomes of what is found.

    A document's `source_field` is compared with `target_field` there. `fields_to_merge` (all when empty) go under
    `output_field`, or to the root. Where the document has a field already, ``enrich`` keeps it, ``replace`` takes
    the other's, ``append`` makes a list of both. With `allow_missing` false a document without match goes.
    """

    target_collection_id: str = Field(
        min_length=1, max_length=255, validation_alias=AliasChoices("target_collection_id", "collection_id")
    )
    source_field: FieldPath = Field(examples=["metadata.sku"])
    target_field: FieldPath = Field(
        "document_id", validation_alias=AliasChoices("target_field", "lookup_field")
    )
    fields_to_merge: FieldPaths = Field(
        [], max_length=100, validation_alias=AliasChoices("fields_to_merge", "select_fields")
    )
    output_field: FieldPath | None = Field(
        None, validation_alias=AliasChoices("output_field", "result_field")
    )
    strategy: Literal["enrich", "replace", "append"] = "enrich"
    allow_missing: bool = True

    _free = field_validator("output_field")(output_path)


class DocumentEnrich(Stage):
    stage_id = "document_enrich"
    category = "enrich"
    description = "Adds fields of the document of another collection that has the same value in a field."
    icon = "combine"
    Params = DocumentEnrichParams
    cost_tier = "moderate"
    example: ClassVar = {
        "target_collection_id": "products",
        "source_field": "metadata.sku",
        "target_field": "sku",
    }
    names_collections = ("target_collection_id",)

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Write the collection under its first name."""
        parameters = dict(parameters)
        if "collection_id" in parameters:
            parameters.setdefault("target_collection_id", parameters.pop("collection_id"))
        return parameters

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a collection that an input would choose.

        Who may run a retriever but see nothing else of the namespace could read every collection with it.
        """
        if not templates.is_template(parameters.get("target_collection_id")):
            return []
        return [
            Problem(
                (*location, "target_collection_id"),
                "target_collection_id is written out, not taken from an input: a retriever reads what it says "
                "it reads.",
                "template",
            )
        ]

    def run(self, hits: list[Hit] | None, params: DocumentEnrichParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, each with what was found for it; ids and scores stay."""
        found = collected(hits, context)
        values = [first_value(hit.payload, params.source_field) for hit in found]
        matches = _looked_up((value for value in values if _is_scalar(value)), params, context)
        out: list[Hit] = []
        for hit, value in zip(found, values, strict=True):
            match = matches.get(_key(value)) if _is_scalar(value) else None
            if match is not None:
                out.append(
                    replace(hit, payload=_merged(hit.payload, _brought(match, params), params.strategy))
                )
            elif params.allow_missing:
                out.append(hit)
        return out


def _looked_up(
    values: Iterable[Any], params: DocumentEnrichParams, context: StageContext
) -> dict[_Key, Payload]:
    """Return a document of the other collection for each value that has one: the first in the engine's order."""
    within = context.collection(params.target_collection_id)
    wanted = {_key(value): value for value in values}
    matches: dict[_Key, Payload] = {}
    keys = list(wanted)
    for start in range(0, len(keys), LOOKUP_BATCH):
        missing = dict.fromkeys(keys[start : start + LOOKUP_BATCH])
        while missing:
            # What is found is asked for no more: each read brings at least one value's document, or ends this.
            among = Condition(params.target_field, "in", [wanted[key] for key in missing], True)
            page = context.page(Page(limit=LOOKUP_BATCH, filter=And((within, among))))
            before = len(missing)
            for hit in page.hits:
                for value in values_at(hit.payload, params.target_field):
                    if _is_scalar(value) and _key(value) in missing:
                        del missing[_key(value)]
                        matches[_key(value)] = hit.payload
            if page.next_after is None or len(missing) == before:
                break
    return matches


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _key(value: Any) -> _Key:
    return isinstance(value, bool), value


def _brought(match: Payload, params: DocumentEnrichParams) -> dict[str, Any]:
    """Return what a match adds to a document, from the document's root on."""
    brought: dict[str, Any] = {}
    if params.fields_to_merge:
        for path in params.fields_to_merge:
            value = tree_at(match, path)
            if value is not None:
                brought = with_tree_at(brought, path, value)
    else:
        brought = {name: value for name, value in match.items() if name not in HIDDEN_FIELDS | ORIGIN_FIELDS}
    if params.output_field is not None:
        return with_tree_at({}, params.output_field, brought)
    return {name: value for name, value in brought.items() if name not in ORIGIN_FIELDS}


def _merged(own: Mapping[str, Any], brought: Mapping[str, Any], strategy: str) -> dict[str, Any]:
    merged = dict(own)
    for name, value in brought.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(before, value, strategy)
        elif before is None or strategy == "replace":
            merged[name] = value
        elif strategy == "append":
            merged[name] = _as_list(before) + _as_list(value)
    return merged


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
