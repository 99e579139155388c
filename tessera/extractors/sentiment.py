"""Texts: how they sound, as the labels of a classification model and how likely each is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tessera.errors import InferenceServiceUnavailableError
from tessera.extractors.base import (
    BadSample,
    Extractor,
    Feature,
    FieldOutput,
    Locator,
    Outputs,
    Params,
    Sample,
    VectorOutput,
    text_vector,
)
from tessera.extractors.text import read_text
from tessera.inference import SENTIMENT
from tessera.models import IndexType, PayloadIndex

Vector = npt.NDArray[np.float32]


class SentimentParams(Params):
    """Which model says the labels, and what else is kept."""

    model_name: str | None = Field(
        "distilbert-base-uncased-finetuned-sst-2-english",
        description="Model of classification; a name that is not ours stands for the default.",
    )
    max_length: int = Field(
        512, ge=32, le=1024, description="Word pieces of a text that are read, as far as the model can."
    )
    return_all_scores: bool = Field(True, description="Say how likely each label is, not only the first.")
    embed: bool = Field(False, description="Embed the text too, to be found by meaning.")
    model: str | None = Field(None, description="With embed: text model. `tessera models` lists ours.")


class SentimentClassifier(Extractor):
    """Texts with a label to filter and count by."""

    name = "sentiment_classifier"
    description = (
        "Says of a text which label fits best (positive, negative) and how likely each is. The model is fetched apart; "
        "`tessera models` names it."
    )
    icon = "smile"
    category = "classification"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text", "string")}
    max_inputs: ClassVar[Mapping[str, int]] = {"text": 1}
    Params = SentimentParams
    vector_name = "sentiment_classifier_v1_embedding"

    def outputs(self, params: SentimentParams) -> Outputs:
        """Return the label, its score, the scores of all labels if they are wanted, and the vector if it is."""
        fields = {
            "text": FieldOutput("text", "The text."),
            "label": FieldOutput("string", "The label that fits best, as the model calls it."),
            "score": FieldOutput("number", "How likely that label is, 0 to 1."),
        }
        if params.return_all_scores:
            fields["scores"] = FieldOutput("object", "How likely each label is, by its name.")
        index = PayloadIndex(
            field_name="label",
            type=IndexType.KEYWORD,
            field_schema={"type": "keyword", "is_tenant": False},
            is_protected=True,
        )
        return Outputs(self._vectors(params), fields, (index,))

    def _vectors(self, params: SentimentParams) -> tuple[VectorOutput, ...]:
        if not params.embed:
            return ()
        model = self.models.choose("text", params.model)
        return (text_vector(self.vector_name, model, "Meaning of the text"),)

    def extract(
        self, samples: Sequence[Sample], params: SentimentParams
    ) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield one document a text. All texts go through the models together."""
        found = [_text_or_bad(sample) for sample in samples]
        texts = [text for text in found if isinstance(text, str)]
        try:
            made = iter(self._features(texts, params) if texts else [])
        except InferenceServiceUnavailableError as error:
            missing = BadSample("model_missing", error.message)
            found = [text if isinstance(text, BadSample) else missing for text in found]
            made = iter(())
        for text in found:
            yield text if isinstance(text, BadSample) else [next(made)]

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> Vector:
        """Return the vector of a query text."""
        if kind != "text":
            raise BadSample("unsupported", f"{vector.name} is queried by text, not by {kind}.")
        return self.models.text(vector.model_id).embed_query(str(value))

    def _features(self, texts: Sequence[str], params: SentimentParams) -> list[Feature]:
        classifier = self.models.classifier(SENTIMENT)
        scores = classifier.scores(texts, params.max_length)
        vectors: list[dict[str, Vector]] = [{} for _ in texts]
        if params.embed:
            model = self.models.text(self.models.choose("text", params.model).model_id)
            vectors = [{self.vector_name: vector} for vector in model.embed(texts)]
        return [
            Feature(
                (),
                _said(text, classifier.labels, of_text, params),
                of_vectors,
                {},
                Locator.in_text(0, len(text)),
            )
            for text, of_text, of_vectors in zip(texts, scores, vectors, strict=True)
        ]


def _text_or_bad(sample: Sample) -> str | BadSample:
    source = sample.inputs.get("text")
    if source is None:
        return BadSample("missing_input", "The source has no input `text`; map one in `input_mappings`.")
    try:
        return read_text(source)
    except BadSample as error:
        return error


def _said(
    text: str, labels: Sequence[str], scores: npt.NDArray[np.float32], params: SentimentParams
) -> dict[str, Any]:
    best = int(np.argmax(scores))
    said: dict[str, Any] = {"text": text, "label": labels[best], "score": round(float(scores[best]), 4)}
    if params.return_all_scores:
        said["scores"] = {label: round(float(score), 4) for label, score in zip(labels, scores, strict=True)}
    return said
