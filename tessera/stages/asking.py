"""What stages that ask the language model share: their parameters, batches of documents, replies one by one.

A prompt carries documents as data beside the task, each under a number. A reply is taken document by document: what
does not fit the form that was asked for is that document's error, and no other's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import BadRequestError, Problem, TesseraError
from tessera.language import LanguageError, LanguageModel, Prompt
from tessera.ports import HIDDEN_FIELDS, Hit, Payload
from tessera.stages.base import Stage, StageContext, StageParams, tree_at
from tessera.stages.deduplicate import text_of
from tessera.stages.outside import ON_ERROR, OnError, at_once, unfit

#: Most hits that one stage asks about: each costs a part of a call.
MAX_ASKED = 1000
#: Of a document's text so many characters are sent at most.
MAX_DOCUMENT_CHARS = 12_000


class LanguageParams(StageParams):
    """How the language model is asked. `provider` is accepted and has no effect: the server has one endpoint.

    A `model_name` that the operator does not offer stands for the model of the server; the statistics say which one
    ran. `api_key` is a reference to a secret, ``{{secrets.name}}``, sent instead of the server's own key.
    """

    model_name: str | None = Field(None, max_length=200, validation_alias=AliasChoices("model_name", "model"))
    provider: str | None = Field(None, max_length=100)
    api_key: str | None = Field(None, max_length=300)
    max_concurrency: int = Field(4, ge=1, le=16)
    on_error: OnError = Field("skip", description=ON_ERROR)

    @field_validator("model_name", "provider", "api_key", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        # The official client states its default, the text "null".
        return None if value in ("null", "") else value


class LanguageStage(Stage):
    """A stage that asks the language model; there only where the server has one."""

    needs_language = True
    cost_tier = "expensive"
    is_repeatable = False
    secret_in = frozenset({"api_key"})

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a key that is written out instead of being named."""
        return key_problems(parameters, location)


def key_problems(parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
    """Return a problem for an ``api_key`` that is no reference to a secret."""
    key = parameters.get("api_key")
    if key in (None, "", "null"):
        return []
    found = templates.references(key)
    if templates.is_whole(key) and {root for root, _ in found} == {"SECRET"}:
        return []
    return [
        Problem(
            (*location, "api_key"),
            "api_key is a reference to a secret, {{secrets.name}}; store the key with POST "
            "/v1/organizations/secrets.",
            "not_a_secret",
        )
    ]


def document_problems(
    parameters: Mapping[str, Any], name: str, location: tuple[str | int, ...]
) -> list[Problem]:
    """Return a problem for a parameter that names fields of a document where there is not one document."""
    found = sorted(
        ".".join(path) for root, path in templates.references(parameters.get(name)) if root == "DOC"
    )
    return [
        Problem(
            (*location, name),
            f"{{{{DOC.{path}}}}} has no value in {name}, which is not about one document.",
            "unknown_input",
        )
        for path in found
    ]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said of documents: values and errors by the numbers of the documents; each has one of both."""

    values: dict[int, Any]
    errors: dict[int, TesseraError]


def language_of(context: StageContext) -> LanguageModel:
    """Return the language model; stages without one are refused before they run."""
    assert context.equipment.language is not None
    return context.equipment.language


def ask_once(
    task: str,
    data: Any,
    schema: Mapping[str, Any],
    params: LanguageParams,
    context: StageContext,
    **named: Any,
) -> Any:
    """Return what the model replies, noting calls and tokens. Raises `LanguageError` and `BudgetSpent`."""
    model, work = _begin(params, context), context.work
    try:
        reply = model.ask(
            Prompt(task, data, schema, model=params.model_name, api_key=_key(params, context), **named),
            context.budget,
        )
    except LanguageError as error:
        work.count(error.calls, error.tokens)
        raise
    work.count(reply.calls, reply.tokens)
    return reply.value


def asked(hits: Sequence[Hit]) -> Sequence[Hit]:
    """Return `hits` if they are not too many to ask about. Raises `BadRequestError`."""
    if len(hits) > MAX_ASKED:
        raise BadRequestError(
            f"The language model would be asked about {len(hits):,} documents; at most {MAX_ASKED:,} are allowed. Put "
            "a limit or a filter before this stage."
        )
    return hits


def _key(params: LanguageParams, context: StageContext) -> str | None:
    if params.api_key is None:
        return None
    return str(templates.render(params.api_key.strip(), {"SECRET": Secrets(context)}))


class Secrets(Mapping[str, str]):
    """The organization's secrets by name, as templates read them: looked up when they are named."""

    def __init__(self, context: StageContext) -> None:
        self._context = context

    def __getitem__(self, name: str) -> str:
        return self._context.secret(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)


def ask_about(
    documents: Sequence[Payload],
    task: str,
    item: Mapping[str, Any],
    params: LanguageParams,
    context: StageContext,
    *,
    batch_size: int,
    is_valid: Callable[[Any], bool],
    **named: Any,
) -> Answers:
    """Ask about each of `documents` (JSON objects).

    `item` is the JSON schema of one answer, which stands under ``answer``. A batch whose reply cannot be read at all
    is asked again document by document. Raises `BudgetSpent`; calls and tokens are noted in the context's `work`.
    """
    model = _begin(params, context)
    schema = results_of(item)
    task = f"{task}\n\nReply with one result for each document of `data`, under its `id`."
    answers = Answers({}, {})
    work, lock = context.work, threading.Lock()
    key = _key(params, context)

    def ask(numbers: Sequence[int]) -> None:
        data = [{"id": number + 1, **documents[number]} for number in numbers]
        try:
            prompt = Prompt(task, data, schema, model=params.model_name, api_key=key, **named)
            reply = model.ask(prompt, context.budget)
        except LanguageError as error:
            with lock:
                work.count(error.calls, error.tokens)
            if error.kind == "unreadable" and len(numbers) > 1:
                for number in numbers:
                    ask([number])
                return
            for number in numbers:
                answers.errors[number] = error
            return
        with lock:
            work.count(reply.calls, reply.tokens)
        found = by_id(reply.value)
        for number in numbers:
            value = found.get(number + 1)
            why = "has no answer of the form that was asked for"
            if number + 1 in found and is_valid(value):
                reason = unfit(value)
                if reason is None:
                    answers.values[number] = value
                    continue
                why = f"is not taken: {reason}"
            answers.errors[number] = LanguageError("unreadable", f"The language model's reply {why}.")

    batches = list(_batches(documents, batch_size, model.max_prompt_chars - len(task) - 2000))
    at_once(ask, batches, min(params.max_concurrency, model.concurrency))
    return answers


def room_for(context: StageContext) -> int:
    """Return how many characters of one document may be sent."""
    return min(MAX_DOCUMENT_CHARS, language_of(context).max_prompt_chars // 4)


def shown_text(payload: Payload, field: str | None, limit: int = MAX_DOCUMENT_CHARS) -> str:
    """Return the text at `field`, at most `limit` characters of it.

    All texts that the document shows without one. For ``content``, the API's default, where there is no such field: the
    text at ``text``, which extractors write, else all texts.
    """
    text = text_of(payload, [field]) if field else text_of(payload, [])
    if not text and field == "content":
        text = text_of(payload, ["text"]) or text_of(payload, [])
    return text[:limit]


def field_value(payload: Payload, path: str) -> Any:
    """Return what a document shows at `path`; its text for ``content`` where there is no such field."""
    if path.partition(".")[0] in HIDDEN_FIELDS:
        return None
    value = tree_at(payload, path)
    return shown_text(payload, "content") if value is None and path == "content" else value


def by_id(value: Any) -> dict[int, Any]:
    """Return the answers in a reply of the form of `results_of`, by the id that each has."""
    results = value.get("results") if isinstance(value, Mapping) else None
    if not isinstance(results, list):
        return {}
    return {
        item["id"]: item["answer"]
        for item in results
        if isinstance(item, Mapping) and type(item.get("id")) is int and "answer" in item
    }


def _begin(params: LanguageParams, context: StageContext) -> LanguageModel:
    """Return the model, with the stage's statistics saying which one it is and that no call was made yet."""
    model = language_of(context)
    context.work.count(0, 0)
    context.work.metadata["model"] = model.which(params.model_name)
    return model


def results_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON schema of a reply that holds an answer, of schema `item`, for each document."""
    result = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "answer": dict(item)},
        "required": ["id", "answer"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"results": {"type": "array", "items": result}},
        "required": ["results"],
        "additionalProperties": False,
    }


def _batches(documents: Sequence[Payload], batch_size: int, max_chars: int) -> Iterator[list[int]]:
    """Cut documents into batches of at most `batch_size` that fit in one prompt together."""
    batch: list[int] = []
    size = 0
    for number, document in enumerate(documents):
        own = len(orjson.dumps(document, default=str)) + 40
        if batch and (len(batch) >= batch_size or size + own > max_chars):
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += own
    if batch:
        yield batch
