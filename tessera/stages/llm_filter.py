"""Keep the hits that a language model finds to meet a criterion in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import AliasChoices, Field

from tessera.ports import Hit
from tessera.stages.asking import (
    LanguageParams,
    LanguageStage,
    ask_about,
    asked,
    room_for,
    shown_text,
)
from tessera.stages.base import FieldPath, StageContext, collected
from tessera.stages.outside import settle

_TASK = (
    "Decide for each document of `data` whether it is kept. The criterion, which may speak of keeping or of "
    "discarding: "
)
_REASON = {"type": "string", "description": "One short sentence: why."}


class LlmFilterParams(LanguageParams):
    """The criterion, and the field whose text is judged (all that a document shows when none is named).

    An empty criterion lets everything pass. With `include_reasoning` each hit says why it was kept, under
    ``llm_filter``.
    """

    criteria: str = Field("Keep only documents relevant to {{INPUT.query}}", max_length=8000)
    content_field: FieldPath | None = None
    include_reasoning: bool = Field(False, validation_alias=AliasChoices("include_reasoning", "explanation"))
    batch_size: int = Field(10, ge=1, le=50)


class LlmFilter(LanguageStage):
    stage_id = "llm_filter"
    category = "filter"
    description = "Keeps the hits that a language model finds to meet a criterion in words."
    icon = "sparkles"
    Params = LlmFilterParams

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Write the criterion out, so that what its default asks of inputs is known from the beginning."""
        return {"criteria": LlmFilterParams.model_fields["criteria"].default, **parameters}

    def run(self, hits: list[Hit] | None, params: LlmFilterParams, context: StageContext) -> list[Hit]:
        """Return the hits that are kept, in their order; what becomes of those without an answer says `on_error`."""
        found = list(asked(collected(hits, context)))
        if not params.criteria.strip() or not found:
            return found
        reason: dict[str, Any] = {"reason": _REASON} if params.include_reasoning else {}
        item = {
            "type": "object",
            "properties": {"keep": {"type": "boolean"}, **reason},
            "required": ["keep", *reason],
            "additionalProperties": False,
        }
        texts = [shown_text(hit.payload, params.content_field, room_for(context)) for hit in found]
        answers = ask_about(
            [{"text": text} for text in texts],
            _TASK + params.criteria,
            item,
            params,
            context,
            batch_size=params.batch_size,
            is_valid=_is_decision,
            max_tokens=100 * params.batch_size,
        )
        kept = settle(found, answers.errors, params.on_error, context)
        return [
            _told(found[number], answers.values.get(number), params)
            for number in kept
            if number not in answers.values or answers.values[number]["keep"]
        ]


def _is_decision(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("keep"), bool)


def _told(hit: Hit, answer: Mapping[str, Any] | None, params: LlmFilterParams) -> Hit:
    if answer is None or not params.include_reasoning:
        return hit
    reason = answer.get("reason")
    told = {"passed": True, "explanation": reason[:2000] if isinstance(reason, str) else None}
    return replace(hit, payload={**hit.payload, "llm_filter": told})
