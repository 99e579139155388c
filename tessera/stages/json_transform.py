"""Give every document another form, by a template."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import orjson
from pydantic import AliasChoices, Field

from tessera import templates
from tessera.errors import BadRequestError, Problem, quote
from tessera.ports import HIDDEN_FIELDS, Hit, Payload
from tessera.stages.base import ORIGIN_FIELDS, Stage, StageContext, StageParams, collected


class JsonTransformParams(StageParams):
    """`template` is an object (or its JSON as a text) with ``{{DOC.path}}`` and ``{{INPUT.name}}`` in its values.

    A document that it does not fit (a field is not there) goes on as it is, with the reason under
    ``_transform_error``; with `fail_on_error` the call is refused instead.
    """

    template: dict[str, Any] = Field(
        validation_alias=AliasChoices("template", "json_template"),
        examples=[{"title": "{{DOC.metadata.name}}", "label": "{{DOC.brand}} for {{INPUT.query}}"}],
    )
    fail_on_error: bool = False


class JsonTransform(Stage):
    stage_id = "json_transform"
    category = "apply"
    description = "Gives every document another form, by a template of its fields and the inputs."
    icon = "braces"
    Params = JsonTransformParams
    per_document = frozenset({"template"})

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Read a template that is written as a text: before it is filled in, so that no value can add to its form."""
        parameters = dict(parameters)
        if "json_template" in parameters:
            parameters.setdefault("template", parameters.pop("json_template"))
        if isinstance(parameters.get("template"), str):
            with contextlib.suppress(orjson.JSONDecodeError):  # told by `problems`
                parameters["template"] = orjson.loads(parameters["template"])
        return parameters

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a template that is no object, not even one that an input holds."""
        if isinstance(parameters.get("template"), dict):
            return []
        return [
            Problem(
                (*location, "template"),
                'template is an object, or its JSON as a text, such as {"title": "{{DOC.metadata.name}}"}.',
                "type",
            )
        ]

    def run(self, hits: list[Hit] | None, params: JsonTransformParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order with the template's fields in place of their own; ids and scores stay.

        Raises `BadRequestError` for a document that the template does not fit, with `fail_on_error`.
        """
        out: list[Hit] = []
        for hit in collected(hits, context):
            shown = {name: value for name, value in hit.payload.items() if name not in HIDDEN_FIELDS}
            try:
                made = _made(params.template, shown, context.inputs)
            except _Unfit as error:
                if params.fail_on_error:
                    raise BadRequestError(
                        f"json_transform: document {quote(hit.document_id)}: {error}. Without fail_on_error such a "
                        "document goes on as it is.",
                        details={"document_id": hit.document_id},
                    ) from None
                made = {**hit.payload, "_transform_error": str(error)}
            out.append(replace(hit, payload=made))
        return out


class _Unfit(ValueError):
    """The template cannot be filled in for a document."""


def _made(template: Mapping[str, Any], document: Payload, inputs: Mapping[str, Any]) -> Payload:
    try:
        made = templates.render(template, {"DOC": document, "INPUT": inputs})
    except templates.Unresolved as error:
        raise _Unfit(f"{{{{{error.expression}}}}} has no value") from None
    except templates.TooLong:
        raise _Unfit(f"a text is longer than {templates.MAX_OUTPUT_CHARS} characters") from None
    # What looks like the address of a stored file is signed in the answer: it must be the document's own.
    if not set(_addresses(made)) <= set(_addresses(document)):
        raise _Unfit("a value would be the address of a file that the document does not hold")
    kept = {name: value for name, value in document.items() if name in ORIGIN_FIELDS}
    own = {name: value for name, value in made.items() if name not in HIDDEN_FIELDS}
    return {**own, **kept}


def _addresses(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value.startswith("blob://"):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _addresses(item)
    elif isinstance(value, list):
        for item in value:
            yield from _addresses(item)
