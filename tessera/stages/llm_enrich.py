"""Add to every hit what a language model makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import Problem
from tessera.ports import HIDDEN_FIELDS, Hit, Payload
from tessera.stages.asking import (
    LanguageParams,
    LanguageStage,
    ask_about,
    asked,
    field_value,
    key_problems,
    room_for,
    shown_text,
)
from tessera.stages.base import (
    FieldPath,
    StageContext,
    collected,
    filter_problems,
    let_through,
    with_tree_at,
)
from tessera.stages.outside import output_path, settle

#: Names of fields that one prompt may show of a document.
_MAX_FIELDS = 50


class LlmEnrichParams(LanguageParams):
    """What is asked (`prompt`), where the answer goes (`output_field`), and its JSON `schema` if it is no plain text.

    ``{{DOC.path}}`` in the prompt names a field; its value travels as data beside the prompt, not inside it. A prompt
    that names none is about all texts that a document shows. Only documents that `when` lets through are asked about.
    """

    prompt: str = Field(
        "Summarize the following content in 2-3 sentences: {{DOC.content}}", max_length=20_000
    )
    output_field: FieldPath = "metadata.summary"
    batch_size: int = Field(5, ge=1, le=25)
    output_schema: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("schema", "output_schema"), serialization_alias="schema"
    )
    max_tokens: int | None = Field(None, ge=100, le=16_000)
    temperature: float = Field(0.2, ge=0, le=1)
    when: dict[str, Any] | None = None

    _free = field_validator("output_field")(output_path)


class LlmEnrich(LanguageStage):
    stage_id = "llm_enrich"
    category = "enrich"
    description = (
        "Adds to every hit what a language model makes of it: a summary, a translation, facts as JSON."
    )
    icon = "wand-sparkles"
    Params = LlmEnrichParams
    per_document = frozenset({"prompt"})

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the key and with `when`."""
        return key_problems(parameters, location) + filter_problems(
            parameters.get("when"), (*location, "when")
        )

    def run(self, hits: list[Hit] | None, params: LlmEnrichParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, each with its answer at `output_field`; ids and scores stay."""
        found = collected(hits, context)
        chosen = let_through(params.when, found, context)
        asked([found[number] for number in chosen])
        if not chosen:
            return found
        paths = sorted(
            {".".join(path) for root, path in templates.references(params.prompt) if root == "DOC"}
        )[:_MAX_FIELDS]
        # In the prompt a field is named; its text stands in the data, where it cannot pass for an instruction.
        task = str(
            templates.render(f"{params.prompt} ", {"DOC": _Names(), "INPUT": context.inputs, "STAGE": {}})
        ).strip()
        room = room_for(context) // max(1, len(paths))
        answers = ask_about(
            [_shown(found[number].payload, paths, room) for number in chosen],
            f"{task}\n\nDo this for each document of `data`, each by itself.",
            params.output_schema or {"type": "string"},
            params,
            context,
            batch_size=params.batch_size,
            is_valid=lambda value: _fits(value, params.output_schema),
            max_tokens=params.max_tokens or min(16_000, 1000 * params.batch_size),
            temperature=params.temperature,
        )
        about = [found[number] for number in chosen]
        goes_on = {chosen[n] for n in settle(about, answers.errors, params.on_error, context)}
        said = {chosen[n]: value for n, value in answers.values.items()}
        out = []
        for number, hit in enumerate(found):
            if number in said:
                payload = with_tree_at(hit.payload, params.output_field, said[number])
                out.append(replace(hit, payload=payload))
            elif number in goes_on or number not in chosen:
                out.append(hit)
        return out


class _Names(Mapping[str, Any]):
    """Stands for a document in a prompt: every path in it is rendered as its own name."""

    def __init__(self, path: tuple[str, ...] = ()) -> None:
        self._path = path

    def __getitem__(self, name: str) -> _Names:
        return _Names((*self._path, name))

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"[field `{'.'.join(self._path)}` of the document]"


def _shown(payload: Payload, paths: list[str], room: int) -> dict[str, Any]:
    if not paths:
        return {"text": shown_text(payload, None, room)}
    return {path: _cut(field_value(payload, path), room) for path in paths}


def _cut(value: Any, room: int) -> Any:
    """Return a value as it may travel: a text cut, a structure only where it is small."""
    if isinstance(value, str):
        return value[:room]
    if isinstance(value, Mapping):
        value = {name: item for name, item in value.items() if name not in HIDDEN_FIELDS}
    return value if len(str(value)) <= room else str(value)[:room]


def _fits(value: Any, schema: Mapping[str, Any] | None) -> bool:
    """Return whether an answer is a text, or what the top of `schema` asks for."""
    if schema is None:
        return isinstance(value, str)
    wanted = schema.get("type")
    kinds = {"object": Mapping, "array": list, "string": str, "boolean": bool}
    if isinstance(wanted, str) and wanted in kinds and not isinstance(value, kinds[wanted]):
        return False
    required = schema.get("required")
    if isinstance(value, Mapping) and isinstance(required, list):
        return all(name in value for name in required)
    return True
