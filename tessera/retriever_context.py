"""What the stages of a retriever are given: their context, their parameters filled in, the inputs that they name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import orjson
import pydantic

from tessera import learned_fusion, secret_store, templates
from tessera.budget import Budget
from tessera.context import Warehouse
from tessera.errors import BadRequestError, Problem, ValidationError, quote, raise_problems
from tessera.filters import And, Condition, Filter, parse
from tessera.models import PayloadIndex
from tessera.models.retrievers import InputField
from tessera.plan import effective_indexes, stored_indexes
from tessera.ports import Fusion, Hit, Page, PageResult, Search
from tessera.query_vectors import embed, vectors_of, word_query
from tessera.retriever_definition import Location, collections_named, equipment_of, input_problem
from tessera.retriever_features import text_features
from tessera.retriever_plan import Plan
from tessera.stages.base import Stage, StageContext
from tessera.validation import schema_problems


def installed(wh: Warehouse, spec: Mapping[str, Any]) -> Stage:
    """Return a stored stage. Raises `BadRequestError` for one that this server has, or can run, no more."""
    stage = wh.registry.stage(spec["config"]["stage_id"])
    if stage is None:
        raise BadRequestError(
            f"Stage {quote(spec['config']['stage_id'])} of this retriever is not installed any more."
        )
    lack = stage.lacks(spec["config"]["parameters"], equipment_of(wh))
    if lack is not None:
        raise BadRequestError(f"Stage {quote(spec['stage_name'])} cannot run: {lack}")
    return stage


def context_of(
    wh: Warehouse, plan: Plan, inputs: Mapping[str, Any], filters: Mapping[str, Any] | None
) -> StageContext:
    """Return what the first stage may use: the plan's collections, of which `filters` leave some documents."""
    namespace_id = plan.place["namespace_id"]
    within: Filter = Condition("collection_id", "in", list(plan.collection_ids), True)
    if filters:
        asked = parse(filters, inputs=inputs, location=("body", "filters"))
        if asked is not None:
            within = And((within, asked))
    place = plan.place
    indexes = _indexes(orjson.dumps(place["user_indexes"]), orjson.dumps(place["added_indexes"]))

    def used(asked: Iterable[Filter | None]) -> None:
        if place["auto_create_indexes"] and wh.filter_uses is not None:
            # Searches of one stage share their filters.
            own = {id(filter): filter for filter in asked if filter is not None}
            wh.filter_uses.note(namespace_id, own.values(), indexes)

    def search(searches: Sequence[Search]) -> list[list[Hit]]:
        used(search.filter for search in searches)
        return wh.views.search(namespace_id, searches)

    def ranked(searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        used(search.filter for search in searches)
        return wh.views.ranked(namespace_id, searches, fusion)

    def page(page: Page) -> PageResult:
        used([page.filter])
        return wh.views.page(namespace_id, page)

    return StageContext(
        within=within,
        indexes=indexes,
        inputs=inputs,
        search=search,
        ranked=ranked,
        page=page,
        embed=lambda uri, query: embed(wh, plan, uri, query),
        words=lambda query: word_query(wh, plan, query),
        text_features=lambda: text_features(wh, plan.place),
        collection=lambda identifier: _other_collection(wh, namespace_id, identifier),
        vectors=lambda document_ids, uri: vectors_of(wh, plan, document_ids, uri),
        budget=Budget(
            plan.limits.max_time_ms,
            plan.limits.max_credits,
            # What waits for others ends while the answer can still be sent.
            wait_s=0.9 * wh.settings.execute_timeout_s,
            tokens_per_credit=wh.settings.llm_tokens_per_credit,
        ),
        equipment=equipment_of(wh),
        secret=lambda name: secret_store.value_of(wh, plan.place["organization_id"], name),
        organization_id=plan.place["organization_id"],
        learned=partial(learned_fusion.weights_of, wh, plan.retriever_id),
    )


def narrowed(context: StageContext, within: Filter) -> StageContext:
    """Return `context` with every read limited to `within` too."""
    return replace(context, within=And((context.within, within)))


@lru_cache(maxsize=1024)
def _indexes(user: bytes, added: bytes) -> Mapping[str, PayloadIndex]:
    """Return the indexes in force by field; both arguments are JSON as a namespace's row holds it."""
    return {
        index.field_name: index
        for index in effective_indexes(
            stored_indexes(orjson.loads(user)), stored_indexes(orjson.loads(added))
        )
    }


def stage_params(stage: Stage, spec: Mapping[str, Any], scope: Mapping[str, Any], index: int) -> Any:
    """Return a stage's parameters with the values of `scope` filled in. Raises `ValidationError`."""
    location: Location = ("stages", index, "parameters")
    parameters = spec["config"]["parameters"]
    later = {
        name: value
        for name, value in parameters.items()
        if name in stage.per_document or name in stage.secret_in
    }
    try:
        # Everything in one go: what an input holds is never read as a template itself. What waits for a document
        # stays, but inputs that it names must be there now.
        filled = later | templates.render({k: v for k, v in parameters.items() if k not in later}, scope)
        for root, path in templates.references(later):
            if root not in ("DOC", "SECRET"):
                templates.render("{{" + ".".join((root, *path)) + "}}", scope)
    except templates.Unresolved as error:
        raise ValidationError(
            [
                Problem(
                    location,
                    f"{{{{{error.expression}}}}} in stage {spec['stage_name']!r} has no value. Give the input in "
                    "`inputs`, or a default for it in `input_schema`.",
                    "template",
                )
            ]
        ) from None
    except templates.TooLong:
        raise ValidationError(
            [
                Problem(
                    location,
                    f"A text of stage {spec['stage_name']!r} is longer than {templates.MAX_OUTPUT_CHARS} characters "
                    "with its inputs filled in.",
                    "too_long",
                )
            ]
        ) from None
    try:
        return stage.Params.model_validate(filled)
    except pydantic.ValidationError as error:
        raise ValidationError(schema_problems(error, location)) from None


def read_inputs(fields: Mapping[str, InputField], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with defaults filled in; raise for each that is missing or not of its type."""
    inputs = dict(given)
    problems = _wrong(fields, given)
    for name, field in fields.items():
        if inputs.get(name) is not None:
            continue
        if field.default is not None:
            inputs[name] = deepcopy(field.default)  # the plan's, and others run by it
        elif field.required:
            problems.append(
                Problem(
                    ("body", "inputs", name),
                    f'Input {name} ({field.type}) is required. Send it as {{"inputs": {{"{name}": …}}}}.',
                    "missing",
                )
            )
        else:
            inputs.setdefault(name, None)
    raise_problems(problems)
    return inputs


def check_inputs(fields: Mapping[str, InputField], given: Mapping[str, Any]) -> None:
    """Raise `ValidationError` for each input that is given and not of its type."""
    raise_problems(_wrong(fields, given))


def _wrong(fields: Mapping[str, InputField], given: Mapping[str, Any]) -> list[Problem]:
    found = []
    for name, field in fields.items():
        if given.get(name) is not None and (wrong := input_problem(field, given[name])) is not None:
            found.append(Problem(("body", "inputs", name), f"Input {name} {wrong}", "input"))
    return found


def _other_collection(wh: Warehouse, namespace_id: str, identifier: str) -> Filter:
    with wh.db.read() as connection:
        found, problems = collections_named(connection, namespace_id, [identifier])
    if problems:
        raise BadRequestError(problems[0].message, details={"collection": identifier[:200]})
    return Condition("collection_id", "in", found, True)
