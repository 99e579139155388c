"""Direct inference: vectors of texts and pictures in a namespace's vector spaces, and replies of the language model.

A vector is the very one that a search for the same input would use.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
from pydantic import Field

from tessera import namespaces
from tessera.budget import Budget
from tessera.context import Principal, Warehouse
from tessera.errors import InferenceServiceUnavailableError, Problem, ValidationError, quote
from tessera.extractors.base import SparseOutput, VectorOutput
from tessera.language import NOT_SET, Prompt
from tessera.models.base import Model
from tessera.models.inference import RawInferenceRequest, RawInferenceResponse
from tessera.query_vectors import embed
from tessera.retriever_features import features_of, vector_of
from tessera.retriever_plan import Plan
from tessera.stages.base import QueryInput
from tessera.validation import schema_problems

#: Most texts or prompts of one request, and the longest of them.
MOST_INPUTS = 100
LONGEST_TEXT = 100_000
#: Who runs the vectors, and who the language model, as an answer tells it.
OURS, ENDPOINT = "tessera", "openai_compatible"
#: The form of a reply where `parameters.schema` states none.
_TEXT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


class _ChatParameters(Model):
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int = Field(1024, ge=1, le=32_000)
    schema_: dict[str, Any] | None = Field(None, alias="schema")


def infer(
    wh: Warehouse, principal: Principal, namespace: str, request: RawInferenceRequest
) -> RawInferenceResponse:
    """Ask a model of the namespace, or the language model, and return what it says.

    Raises `ValidationError` for inputs that name no task, `BadRequestError` for a feature that the namespace has not,
    `InferenceServiceUnavailableError` where there is no language model.
    """
    begun = time.perf_counter()
    with wh.db.read() as connection:
        place = namespaces.resolve(connection, principal, namespace)
    if "prompts" in request.inputs:
        answer = _reply(wh, request)
    else:
        answer = _vectors(wh, Plan(place, "", [], [], {}), request)
    return RawInferenceResponse(**answer, latency_ms=round((time.perf_counter() - begun) * 1000, 3))


def _vectors(wh: Warehouse, plan: Plan, request: RawInferenceRequest) -> dict[str, Any]:
    queries, is_many = _queries(request.inputs)
    uri, vector = _feature(wh, plan, request)
    found = [embed(wh, plan, uri, query).values for query in queries]
    lists = [values.tolist() for values in found if values is not None]
    return {
        "data": {"embeddings": lists} if is_many else {"embedding": lists[0]},
        "provider": OURS,
        "model": vector.model_id,
    }


def _queries(inputs: Mapping[str, Any]) -> tuple[list[QueryInput], bool]:
    """Return what is to be embedded, and whether it came as a list. Raises `ValidationError` for anything else."""
    if "texts" in inputs:
        return [QueryInput("text", text) for text in _texts(inputs["texts"], "texts")], True
    if "text" in inputs:
        return [QueryInput("text", _texts([inputs["text"]], "text")[0])], False
    for name in ("image", "image_url", "image_base64"):
        if isinstance(inputs.get(name), str) and inputs[name].strip():
            return [QueryInput("image", inputs[name])], False
    raise _refused(
        ("body", "inputs"),
        "inputs names nothing that can be done here: send text, texts, image or image_url for vectors, or prompts for "
        "the language model. Sound is transcribed by the extractors of a collection.",
        "inputs",
    )


def _texts(value: Any, name: str) -> list[str]:
    texts = value if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not 1 <= len(texts) <= MOST_INPUTS:
        raise _refused(
            ("body", "inputs", name),
            f"{name} is a list of 1 to {MOST_INPUTS} texts.",
            "too_long" if texts else "list",
        )
    for text in texts:
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT:
            raise _refused(
                ("body", "inputs", name),
                f"{name} holds {quote(text)}; each text has 1 to {LONGEST_TEXT} characters and is not blank.",
                "text",
            )
    return list(texts)


def _feature(wh: Warehouse, plan: Plan, request: RawInferenceRequest) -> tuple[str, VectorOutput]:
    """Return the URI and the vector that the request names."""
    given = {field: getattr(request, field) for field in ("feature_uri", "inference_name", "model")}
    named_by, name = next(((field, value) for field, value in given.items() if value), ("", None))
    features = [
        (uri, vector) for uri, vector, _ in features_of(wh, plan.place) if isinstance(vector, VectorOutput)
    ]
    if name is None:
        names = ", ".join(dict.fromkeys(vector.inference_name for _, vector in features)) or "none"
        raise _refused(
            ("body", "inference_name"),
            f"Name the vector by inference_name or feature_uri. This namespace has: {names}.",
            "missing",
        )
    for uri, vector in features:
        if name in (vector.inference_name, vector.model_id):
            return uri, vector
    found, _ = vector_of(wh, plan.place, name, named_by)
    if isinstance(found, SparseOutput):
        raise _refused(
            ("body", named_by),
            f"{quote(name)} is a keyword index: words have no vector. Name a vector of the namespace.",
            "feature_uri",
        )
    return name, found


def _reply(wh: Warehouse, request: RawInferenceRequest) -> dict[str, Any]:
    prompts = _texts(request.inputs["prompts"], "prompts")
    beside = sorted(name for name in request.inputs if name != "prompts")
    if beside:
        raise _refused(
            ("body", "inputs", beside[0]),
            f"The language model is asked in words alone; leave {', '.join(beside)[:200]} out.",
            "inputs",
        )
    try:
        parameters = _ChatParameters.model_validate(request.parameters or {})
    except pydantic.ValidationError as error:
        raise ValidationError(schema_problems(error, ("body", "parameters"))) from None
    if wh.language is None:
        raise InferenceServiceUnavailableError(f"Prompts need a language model, and {NOT_SET}.")
    budget = Budget(
        wait_s=0.9 * wh.settings.execute_timeout_s, tokens_per_credit=wh.settings.llm_tokens_per_credit
    )
    schema = parameters.schema_ or _TEXT
    replies = [
        wh.language.ask(
            Prompt(
                task=prompt,
                data={},
                schema=schema,
                model=request.model,
                max_tokens=parameters.max_tokens,
                temperature=parameters.temperature,
            ),
            budget,
        )
        for prompt in prompts
    ]
    values = [reply.value for reply in replies]
    if parameters.schema_ is None:
        values = [value.get("text") if isinstance(value, dict) else value for value in values]
    return {
        "data": {"responses": values},
        "provider": ENDPOINT,
        "model": replies[-1].model,
        "tokens_used": {"total": sum(reply.tokens for reply in replies)},
    }


def _refused(location: tuple[str | int, ...], message: str, kind: str) -> ValidationError:
    return ValidationError([Problem(location, message, kind)])
