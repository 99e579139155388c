"""Write the hits as the context of a language model: within a budget, with a mark to cite each by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field

from tessera.ports import Hit
from tessera.stages.base import (
    FieldPaths,
    Stage,
    StageContext,
    StageParams,
    collected,
    common_collection,
)
from tessera.stages.deduplicate import text_of

#: What a token is reckoned as. Tokenizers differ; most need fewer tokens than this for prose in any script.
BYTES_PER_TOKEN = 4

#: Between two documents.
_SEPARATOR = "\n\n"


class RagPrepareParams(StageParams):
    """How much text, of which fields (all that a document shows when none is named), cited how, in which form.

    A token is reckoned as four bytes of UTF-8. `output_mode`: ``single_context`` gives one result with the whole
    text, ``context_list`` the documents that fit, each with its part of it under ``_context``.
    """

    max_tokens: int = Field(8000, ge=1, le=1_000_000)
    citation: Literal["numbered", "document_id", "none"] = "numbered"
    content_fields: FieldPaths = Field(
        [], max_length=100, validation_alias=AliasChoices("content_fields", "content_field")
    )
    output_mode: Literal["single_context", "context_list"] = "single_context"


class RagPrepare(Stage):
    stage_id = "rag_prepare"
    category = "apply"
    description = (
        "Writes the hits as the context of a language model, within a budget of tokens, with citations."
    )
    icon = "scroll-text"
    Params = RagPrepareParams
    example: ClassVar = {"max_tokens": 8000}

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Let a boolean stand for citing or not."""
        parameters = dict(parameters)
        if isinstance(parameters.get("citation"), bool):
            parameters["citation"] = "numbered" if parameters["citation"] else "none"
        return parameters

    def run(self, hits: list[Hit] | None, params: RagPrepareParams, context: StageContext) -> list[Hit]:
        """Return the context, or the hits that fit in it; those without text are left out.

        The one result of ``single_context`` holds `context`, `citations` (`citation`, `document_id`,
        `collection_id`), `token_count` and `truncated` (whether anything did not fit); its `document_id` is
        ``context_0``: it is no stored document.
        """
        found = [
            (hit, text)
            for hit in collected(hits, context)
            if (text := text_of(hit.payload, params.content_fields))
        ]
        parts = list(_fitting(found, params))
        if params.output_mode == "context_list":
            return [
                replace(hit, payload={**hit.payload, "_context": {"citation": mark, "text": text}})
                for hit, mark, text in parts
            ]
        written = _SEPARATOR.join(text for _, _, text in parts)
        members = [hit for hit, _, _ in parts]
        payload = {
            "document_id": "context_0",
            "collection_id": common_collection(members),
            "context": written,
            "citations": [
                {
                    "citation": mark,
                    "document_id": hit.document_id,
                    "collection_id": hit.payload.get("collection_id"),
                }
                for hit, mark, _ in parts
            ],
            "token_count": tokens_in(written),
            "truncated": len(parts) < len(found)
            or any(not part.endswith(text) for (_, _, part), (_, text) in zip(parts, found, strict=False)),
        }
        return [Hit("context_0", payload)]


def tokens_in(text: str) -> int:
    """Return about how many tokens a text has."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _fitting(
    found: Sequence[tuple[Hit, str]], params: RagPrepareParams
) -> Iterator[tuple[Hit, str | None, str]]:
    """Yield (hit, mark, text with its mark) until the budget is spent; the last text is cut at its end."""
    left = params.max_tokens * BYTES_PER_TOKEN
    for number, (hit, text) in enumerate(found, 1):
        mark = {"numbered": f"[{number}]", "document_id": f"[{hit.document_id}]", "none": None}[
            params.citation
        ]
        head = f"{mark} " if mark else ""
        if number > 1:
            left -= len(_SEPARATOR)
        room = left - len(head.encode())
        # A character that would be cut in two is left out.
        part = text.encode()[: max(0, room)].decode(errors="ignore")
        if not part:
            return
        yield hit, mark, head + part
        left = room - len(part.encode())
        if part != text:
            return
