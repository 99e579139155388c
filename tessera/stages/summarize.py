"""Make one text of many hits, by a language model: of all of them, or of each group."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from tessera import templates
from tessera.errors import BadRequestError, Problem, TesseraError
from tessera.language import LanguageError
from tessera.ports import HIDDEN_FIELDS, Hit
from tessera.stages.asking import (
    LanguageParams,
    LanguageStage,
    ask_once,
    asked,
    document_problems,
    key_problems,
    language_of,
    shown_text,
)
from tessera.stages.base import (
    FieldPath,
    StageContext,
    Work,
    collected,
    common_collection,
    first_value,
    with_tree_at,
)
from tessera.stages.group_by import group_key
from tessera.stages.outside import OnError, at_once, output_path, settle, unfit
from tessera.stages.rag_prepare import BYTES_PER_TOKEN, tokens_in

#: Most groups, each of which costs a call.
MAX_GROUPS = 50
_IN_DATA = "[the documents in `data`]"


class SummarizeParams(LanguageParams):
    """What is asked (`prompt`), of which texts, and how they are cut to `max_input_tokens` (of four bytes each).

    ``{{DOCUMENTS}}`` stands for the documents, which travel as data beside the prompt; ``{{DOC_COUNT}}`` and
    ``{{GROUP_VALUE}}`` for a number and the value of `group_by`. `document_template` writes a document, with
    ``{{INDEX}}`` and ``{{DOC.path}}``. `truncation_strategy`: ``drop_last`` takes documents in order until the budget
    is spent, ``truncate_each`` cuts all to the same length, ``smart`` takes them by score.
    """

    prompt: str = Field(
        "Summarize the following {{DOC_COUNT}} documents concisely:\n\n{{DOCUMENTS}}", max_length=20_000
    )
    document_template: str = Field("[{{INDEX}}] {{DOC.content}}\n", max_length=20_000)
    content_field: FieldPath = "content"
    group_by: FieldPath | None = None
    mode: Literal["aggregate", "per_document"] = "aggregate"
    output_field: FieldPath = "summary"
    include_sources: bool = True
    include_metadata: bool = True
    max_input_tokens: int = Field(8000, ge=100, le=128_000)
    truncation_strategy: Literal["drop_last", "truncate_each", "smart"] = "drop_last"
    temperature: float = Field(0.3, ge=0, le=2)
    max_output_tokens: int = Field(1024, ge=10, le=16_000)
    output_schema: dict[str, Any] | None = None
    on_error: OnError = Field(
        "raise",
        description="A group for which no summary comes is left out (`skip`, `remove`), or ends the execution.",
    )

    _free = field_validator("output_field")(output_path)

    @field_validator("group_by", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        # The official client states its default, the text "null".
        return None if value in ("null", "") else value


class Summarize(LanguageStage):
    stage_id = "summarize"
    category = "reduce"
    description = "Makes one text of all hits, or of each group of them, by a language model."
    icon = "text-quote"
    Params = SummarizeParams
    per_document = frozenset({"prompt", "document_template"})
    words = frozenset({"DOCUMENTS", "DOC_COUNT", "GROUP_VALUE", "INDEX"})

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the key, and a problem for a prompt that speaks of one document."""
        return key_problems(parameters, location) + document_problems(parameters, "prompt", location)

    def run(self, hits: list[Hit] | None, params: SummarizeParams, context: StageContext) -> list[Hit]:
        """Return one result for each group, in the order in which the groups came; one in all without `group_by`.

        Its `document_id` is ``summary_<number>``: it is no stored document. In the mode ``per_document`` every hit
        stays and gets a summary of its own. Without hits nothing is asked and nothing returned. A group for which no
        answer comes is left out, or ends the execution with `on_error` ``raise``.
        """
        found = asked(collected(hits, context))
        if not found:
            return []
        groups: dict[bytes, list[Hit]] = {}
        for number, hit in enumerate(found):
            value = first_value(hit.payload, params.group_by) if params.group_by else None
            key = group_key([number if params.mode == "per_document" else value])
            groups.setdefault(key, []).append(hit)
        if len(groups) > MAX_GROUPS:
            raise BadRequestError(
                f"summarize would ask for {len(groups)} summaries; at most {MAX_GROUPS} are made. Put a limit or a "
                "filter before it."
            )
        made: dict[int, Hit] = {}
        errors: dict[int, TesseraError] = {}
        members = list(groups.values())
        lock = threading.Lock()

        def ask(number: int) -> None:
            own = replace(context, work=Work())
            try:
                made[number] = _summary(number, members[number], params, own)
            except LanguageError as error:
                if params.on_error == "raise":
                    raise
                errors[number] = error
            finally:
                with lock:
                    context.work.count(own.work.llm_calls or 0, own.work.tokens_used or 0)
                    context.work.metadata |= own.work.metadata

        most = min(params.max_concurrency, language_of(context).concurrency)
        at_once(ask, range(len(members)), most)
        kept = settle([group[0] for group in members], errors, params.on_error, context)
        if params.mode == "per_document":
            return [made.get(number, members[number][0]) for number in kept]
        return [made[number] for number in kept if number in made]


def _summary(number: int, group: Sequence[Hit], params: SummarizeParams, context: StageContext) -> Hit:
    """Ask for one summary; the context's `work` is its own. Raises `LanguageError`."""
    value = first_value(group[0].payload, params.group_by) if params.group_by else None
    texts = _fitting(group, params, context)
    scope = {
        "INPUT": context.inputs,
        "DOCUMENTS": _IN_DATA,
        "DOC_COUNT": len(texts),
        # The value of a field is data as well.
        "GROUP_VALUE": "[`group` in `data`]",
    }
    task = str(templates.render(params.prompt + " ", scope)).strip()
    data = {
        **({"group": value} if params.group_by else {}),
        "documents": [{"index": index + 1, "text": text} for index, text in texts],
    }
    schema = params.output_schema or {"type": "string"}
    reply = ask_once(
        task,
        data,
        {"type": "object", "properties": {"summary": schema}, "required": ["summary"]},
        params,
        context,
        max_tokens=params.max_output_tokens + 50,
        temperature=params.temperature,
    )
    text = reply.get("summary") if isinstance(reply, Mapping) else None
    if text is None or (params.output_schema is None and not isinstance(text, str)) or unfit(text):
        raise LanguageError("unreadable", "The language model's reply holds no summary that can be used.")
    if params.mode == "per_document":
        return replace(group[0], payload=with_tree_at(group[0].payload, params.output_field, text))
    payload: dict[str, Any] = {
        "document_id": f"summary_{number}",
        "collection_id": common_collection(group),
    }
    if params.group_by:
        payload["group"] = {params.group_by: value}
    if params.include_sources:
        payload["source_document_ids"] = [group[index].document_id for index, _ in texts]
        payload["citations"] = [
            {"index": index + 1, "document_id": group[index].document_id} for index, _ in texts
        ]
    if params.include_metadata:
        payload |= {
            "document_count": len(group),
            "documents_used": len(texts),
            "tokens_used": context.work.tokens_used or 0,
            "model": context.work.metadata["model"],
        }
    return Hit(f"summary_{number}", with_tree_at(payload, params.output_field, text))


def _fitting(group: Sequence[Hit], params: SummarizeParams, context: StageContext) -> list[tuple[int, str]]:
    """Return (number, text) of the documents that fit in the budget, in their order."""
    written = [_written(number, hit, params, context) for number, hit in enumerate(group)]
    tokens = params.max_input_tokens
    # JSON doubles quotes and line ends at most.
    room = min(tokens * BYTES_PER_TOKEN, language_of(context).max_prompt_chars * 2 // 5)
    if params.truncation_strategy == "truncate_each":
        each = room // max(1, len(written))
        return [(number, _cut(text, each)) for number, text in enumerate(written) if _cut(text, each)]
    order = list(range(len(group)))
    if params.truncation_strategy == "smart":
        order.sort(key=lambda number: (-(group[number].score or 0.0), number))
    taken: dict[int, str] = {}
    for number in order:
        text = _cut(written[number], room)
        if not text:
            break
        taken[number] = text
        room -= tokens_in(text) * BYTES_PER_TOKEN
    return sorted(taken.items())


def _written(number: int, hit: Hit, params: SummarizeParams, context: StageContext) -> str:
    shown = {name: value for name, value in hit.payload.items() if name not in HIDDEN_FIELDS}
    shown.setdefault("content", shown_text(hit.payload, params.content_field))
    scope = {"INPUT": context.inputs, "INDEX": number + 1, "DOC": shown}
    try:
        return str(templates.render(params.document_template + " ", scope)).strip()
    except (templates.Unresolved, templates.TooLong):
        return str(shown["content"])[: templates.MAX_OUTPUT_CHARS]


def _cut(text: str, size_bytes: int) -> str:
    return text.encode()[: max(0, size_bytes)].decode(errors="ignore")
