"""Give every document another form, by a template."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import orjson
from pydantic import AliasChoices, Field

from tessera import templates
from tessera.errors import BadRequestError, Problem, quote
from tessera.ports import HIDDEN_FIELDS, Hit, Payload
from tessera.stages.base import ORIGIN_FIELDS, Stage, StageContext, StageParams, collected

#: Deepest nesting of a document in its new form, and most that it holds: characters of its texts and names, and one
#: for every value. Stages behind each other could multiply both without end.
MAX_DEPTH = 100
MAX_SIZE = 1_000_000

#: Deepest nesting of a template that is written as a text; one that is not came through the limit on bodies.
MAX_TEMPLATE_DEPTH = 32


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
    example: ClassVar = {
        "template": {"title": "{{DOC.metadata.name}}", "label": "{{DOC.brand}} for {{INPUT.query}}"}
    }
    per_document = frozenset({"template"})

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Read a template that is written as a text: before it is filled in, so that no value can add to its form."""
        parameters = dict(parameters)
        if "json_template" in parameters:
            parameters.setdefault("template", parameters.pop("json_template"))
        if isinstance(parameters.get("template"), str):
            with contextlib.suppress(orjson.JSONDecodeError, _Unfit):  # told by `problems`
                read = orjson.loads(parameters["template"])
                _addresses(read, MAX_TEMPLATE_DEPTH)
                parameters["template"] = read
        return parameters

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a template that is no object, not even one that an input holds."""
        if isinstance(parameters.get("template"), dict):
            return []
        return [
            Problem(
                (*location, "template"),
                f"template is an object, or its JSON as a text (of at most {MAX_TEMPLATE_DEPTH} levels), such as "
                '{"title": "{{DOC.metadata.name}}"}.',
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
    asked = _addresses(made)
    if asked and not asked <= _addresses(document, max_size=None):
        raise _Unfit("a value would be the address of a file that the document does not hold")
    kept = {name: value for name, value in document.items() if name in ORIGIN_FIELDS}
    own = {name: value for name, value in made.items() if name not in HIDDEN_FIELDS}
    return {**own, **kept}


def _addresses(value: Any, max_depth: int = MAX_DEPTH, max_size: int | None = MAX_SIZE) -> set[str]:
    """Return the addresses of stored files in `value`. Raises `_Unfit` when it nests too deep or holds too much."""
    found: set[str] = set()
    size = 0
    left = [(value, 0)]
    while left:
        here, depth = left.pop()
        size += 1
        if isinstance(here, str):
            size += len(here)
            if here.startswith("blob://"):
                found.add(here)
        elif isinstance(here, Mapping):
            size += sum(map(len, here))
            left += [(item, depth + 1) for item in here.values()]
        elif isinstance(here, list):
            left += [(item, depth + 1) for item in here]
        if depth > max_depth:
            raise _Unfit(f"it would nest deeper than {max_depth} levels")
        if max_size is not None and size > max_size:
            raise _Unfit(f"it would hold more than {max_size:,} characters")
    return found
