"""Put the hits in the order in which a cross-encoder finds that they answer the query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import BadRequestError, BadSample
from tessera.ports import Hit
from tessera.stages.asking import shown_text
from tessera.stages.base import (
    Equipment,
    FieldPath,
    Stage,
    StageContext,
    StageParams,
    collected,
    with_tree_at,
)
from tessera.stages.outside import output_path

#: Most hits that are read: each costs a run of the model.
MAX_RERANKED = 1000
_QUERY = "{{INPUT.query}}"


class RerankParams(StageParams):
    """The `model` by its id (`tessera models` lists them), the query, and the field whose text is read.

    Without an id the first installed model of its kind runs. For the `document_field` ``content``, where there is no
    such field, the document's `text` is read, else all its texts.
    """

    model: str | None = Field(
        None, max_length=200, validation_alias=AliasChoices("model", "inference_name", "model_name")
    )
    query: str = Field(_QUERY, max_length=20_000)
    top_n: int = Field(10, ge=1, le=MAX_RERANKED, validation_alias=AliasChoices("top_n", "top_k"))
    document_field: FieldPath = "content"
    score_field: FieldPath = "scores.rerank"
    batch_size: int = Field(32, ge=1, le=100)
    max_document_chars: int = Field(2000, ge=100, le=50_000)

    _free = field_validator("score_field")(output_path)


class Rerank(Stage):
    stage_id = "rerank"
    category = "sort"
    description = "Orders the hits by a model that reads the query and each text together (cross-encoder)."
    icon = "arrow-up-down"
    Params = RerankParams
    cost_tier = "moderate"
    example: ClassVar = {"query": "{{INPUT.query}}", "top_n": 10}

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Write the query out, so that what its default asks of inputs is known from the beginning."""
        return {"query": _QUERY, **parameters}

    def lacks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return that the model, or any of its kind, is not installed, and the command that installs it."""
        word = next(
            (parameters[name] for name in ("model", "inference_name", "model_name") if name in parameters),
            None,
        )
        if equipment.models is None or (word is not None and not isinstance(word, str)):
            return None
        try:
            equipment.models.choose_reranker(None if templates.is_template(word) else word)
        except BadSample as error:
            return f"rerank: {error.message}"
        return None

    def asks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return the model that reads every text."""
        return "a cross-encoder"

    def run(self, hits: list[Hit] | None, params: RerankParams, context: StageContext) -> list[Hit]:
        """Return the `top_n` best hits, best first; the score is the model's, that of before in `original_score`.

        A hit without text, or with a score that is no number, comes behind all others.
        """
        found = collected(hits, context)
        if not found:
            return []
        if len(found) > MAX_RERANKED:
            raise BadRequestError(
                f"rerank would read {len(found):,} documents; at most {MAX_RERANKED:,} are read. Let the stage before "
                "it leave less."
            )
        if not params.query.strip():
            raise BadRequestError("rerank has no query: it is blank.")
        models = context.equipment.models
        assert models is not None
        try:
            model = models.choose_reranker(params.model)
        except BadSample as error:
            raise BadRequestError(f"rerank: {error.message}") from None
        context.work.metadata["model"] = model.model_id
        reranker = models.reranker(model.model_id)
        texts = [shown_text(hit.payload, params.document_field, params.max_document_chars) for hit in found]
        readable = [number for number, text in enumerate(texts) if text.strip()]
        scores: dict[int, float] = {}
        for start in range(0, len(readable), params.batch_size):
            context.budget.check()
            batch = readable[start : start + params.batch_size]
            given = reranker.scores(params.query, [texts[number] for number in batch])
            scores |= {
                number: score for number, score in zip(batch, given, strict=True) if math.isfinite(score)
            }
        order = sorted(range(len(found)), key=lambda number: (-scores.get(number, -math.inf), number))
        return [
            _placed(found[number], scores.get(number), position, params.score_field)
            for position, number in enumerate(order[: params.top_n], 1)
        ]


def _placed(hit: Hit, score: float | None, position: int, field: str) -> Hit:
    payload = {**hit.payload, "original_score": hit.score, "rerank_position": position}
    return replace(hit, payload=with_tree_at(payload, field, score), score=score)
