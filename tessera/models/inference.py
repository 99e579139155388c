"""Direct inference: a model of a namespace, or the language model, without a collection or a retriever."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model


class RawInferenceRequest(Model):
    """What a model is asked.

    `inputs` of a vector are `text`, `texts`, `image` or `image_url`, of the language model `prompts`. The vector is
    named by `feature_uri` or `inference_name`, or by `model` alone.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inference_name": "multilingual_e5_large_instruct_v1",
                    "inputs": {"text": "wireless headphones"},
                }
            ]
        }
    )

    inputs: JsonObject = Field(examples=[{"text": "wireless headphones"}])
    inference_name: str | None = Field(None, max_length=500)
    feature_uri: str | None = Field(None, max_length=500)
    provider: str | None = Field(None, max_length=200)
    model: str | None = Field(None, max_length=200)
    parameters: JsonObject | None = Field(
        None,
        description="Of a language model: `temperature`, `max_tokens` and `schema`, the form of its reply.",
    )


class RawInferenceResponse(Model):
    """What came of it: `embedding`, `embeddings` or `responses`, and what really ran."""

    data: Any
    provider: str
    model: str
    tokens_used: dict[str, int] | None = None
    latency_ms: float
    cached: bool = False
