"""Find documents by meaning: one or several vector searches, fused into one ranking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import AliasChoices, Field, ValidationInfo, field_validator

from tessera import locators
from tessera.errors import BadRequestError, Problem, ValidationError
from tessera.filters import And, Condition, Filter, Or, parse
from tessera.ports import Fusion, Hit, Part, Search
from tessera.stages.base import (
    FieldPath,
    QueryInput,
    QueryVector,
    Stage,
    StageContext,
    StageParams,
    Work,
    filter_problems,
    first_value,
)
from tessera.stages.facets import Facet, count_facets
from tessera.stages.group_by import group_key
from tessera.stages.learning import FusionWord, LearningConfig, weights_for, weights_told

#: How an input of the API is spelled, and what kind of query it is.
_INPUT_KINDS = {
    "text": "text",
    "image": "image",
    "content": "content",
    "vector": "vector",
    "embedding": "vector",
    "document": "document",
    "document_id": "document",
}


#: What the short form of the stage says of its only search.
_SEARCH_KEYS = (
    "feature_uri",
    "feature_address",
    "query",
    "input",
    "lexical",
    "filters",
    "weight",
    "min_score",
    "on_empty",
    "query_input",
)
#: What it says of the stage.
_STAGE_KEYS = (
    "fusion",
    "learning_config",
    "merge_adjacent_ms",
    "facets",
    "group_by",
    "collection_identifiers",
)
#: The name of the keyword index among `signals`.
WORDS = "bm25"
#: Deepest ranking in which groups are looked for.
MAX_DEPTH = 10_000


class SearchParams(StageParams):
    """One search. `query` is a text, or an object such as ``{"text": …}``, ``{"image": …}``.

    With `lexical` the words of the query are looked up as they are written (BM25), whatever `feature_uri` names. Two
    searches for one query, one of them lexical, are a hybrid search.
    """

    feature_uri: str | None = Field(
        None,
        validation_alias=AliasChoices("feature_uri", "feature_address"),
        examples=["mixpeek://text_extractor@v1/multilingual_e5_large_instruct_v1"],
    )
    query: Any = Field(None, validation_alias=AliasChoices("query", "input", "query_input"))
    lexical: bool = Field(False, description="Search the keyword index (BM25) instead of vectors.")
    top_k: int = Field(100, ge=1, le=10_000)
    filters: dict[str, Any] | None = None
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    min_score: float | None = Field(None, allow_inf_nan=False)
    on_empty: Literal["error", "skip"] = Field(
        "error", description="A query that its inputs leave empty is an error, or the search is left out."
    )
    collection_identifiers: list[str] = Field([], max_length=100)

    @field_validator("on_empty", "collection_identifiers", mode="before")
    @classmethod
    def _default(cls, value: Any, info: ValidationInfo) -> Any:
        return cls.model_fields[str(info.field_name)].default if value is None else value


class SearchGroups(StageParams):
    """Groups of hits with the same value of a field: how many, and how many hits of each.

    `output_mode`: ``all`` gives group after group, ``first`` the best hit of each, ``flatten`` the same hits as ``all``
    in the order of their scores.
    """

    field: FieldPath = Field(examples=["source_object_id"])
    max_per_group: int = Field(1, ge=1, le=100, validation_alias=AliasChoices("max_per_group", "group_size"))
    limit: int = Field(25, ge=1, le=500)
    output_mode: Literal["all", "first", "flatten"] = "all"


class FeatureSearchParams(StageParams):
    """Searches and how their rankings become one."""

    searches: list[SearchParams] = Field(min_length=1, max_length=16)
    final_top_k: int = Field(25, ge=1, le=10_000)
    fusion: FusionWord = "rrf"
    learning_config: LearningConfig | None = Field(
        None, description="With fusion `learned`: from which interactions, and from how many."
    )
    merge_adjacent_ms: int | None = Field(
        None,
        ge=0,
        le=3_600_000,
        description="Of the `final_top_k` hits, those of one video or recording that touch, or lie at most so far "
        "apart, become one: the best, with the `locator` of all and with `merged`, their ids, scores and places.",
    )
    collection_identifiers: list[str] = Field([], max_length=100)
    facets: list[Facet] = Field([], max_length=16)
    group_by: SearchGroups | None = None

    @field_validator("facets", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else [] if value is None else value
        if not isinstance(listed, list):
            return listed  # no list: the model says what is allowed
        return [{"key": item} if isinstance(item, str) else item for item in listed]

    @field_validator("collection_identifiers", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return [] if value is None else value


class FeatureSearch(Stage):
    stage_id = "feature_search"
    also_named = ("knn_search",)
    category = "filter"
    description = (
        "Finds documents whose features are nearest to a text, a picture, a vector or another document."
    )
    icon = "search"
    Params = FeatureSearchParams
    cost_tier = "moderate"
    example: ClassVar = {
        "searches": [
            {"query": {"input_mode": "text", "value": "{{INPUT.query}}"}, "top_k": 100},
            {"query": {"input_mode": "text", "value": "{{INPUT.query}}"}, "top_k": 100, "lexical": True},
        ],
        "final_top_k": 25,
        "fusion": "rrf",
    }

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Translate the short form (``feature_uri``, ``input``, ``limit``) and the two older ones."""
        if "searches" in parameters:
            return parameters
        if isinstance(parameters.get("features"), list):
            return {"searches": parameters["features"]} | {
                name: value for name, value in parameters.items() if name != "features"
            }
        search: dict[str, Any] = {key: parameters[key] for key in _SEARCH_KEYS if key in parameters}
        mapping = parameters.get("input_mapping")
        if isinstance(mapping, dict) and not {"query", "input"} & search.keys():
            search["input"] = {kind: "{{INPUT." + str(name) + "}}" for kind, name in mapping.items()}
        limit = parameters.get("limit", parameters.get("top_k", parameters.get("final_top_k")))
        out: dict[str, Any] = {"searches": [search]}
        if limit is not None:
            search["top_k"] = limit
            out["final_top_k"] = limit
        return out | {name: parameters[name] for name in _STAGE_KEYS if name in parameters}

    def searches_in(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
        """Yield the parameters themselves."""
        yield (), parameters

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the searches' filters, and a problem for each that has no query."""
        searches = parameters.get("searches")
        problems: list[Problem] = []
        for number, search in enumerate(searches if isinstance(searches, list) else ()):
            if not isinstance(search, Mapping):
                continue  # an input that holds the whole search
            place = (*location, "searches", number)
            problems += filter_problems(search.get("filters"), (*place, "filters"))
            try:
                _query_input(
                    next((search[key] for key in ("query", "input", "query_input") if key in search), None),
                    number,
                    (*place, "query"),
                    is_filled=False,
                )
            except ValidationError as error:
                problems += error.problems
        return problems

    def run(self, hits: list[Hit] | None, params: FeatureSearchParams, context: StageContext) -> list[Hit]:
        """Search within the retriever's collections, or only among `hits` when an earlier stage chose them.

        Each hit says in its `signals` which score and rank every search gave it. With `group_by` groups take the place
        of `final_top_k` hits; as long as there are fewer of them than asked for, more hits are looked at.
        """
        within: Filter = context.within
        if hits is not None:
            if not hits:
                return []
            within = And((within, Condition("document_id", "in", [hit.document_id for hit in hits], True)))
        searches, asked = _searches(params, within, context)
        names, stated = [each.name for each in asked], [each.weight for each in asked]
        weights = weights_for(params.fusion, params.learning_config, names, stated, context)
        asked = [replace(each, weight=weight) for each, weight in zip(asked, weights, strict=True)]
        if params.facets:
            filters = [search.filter for search in searches if search.filter is not None]
            among = filters[0] if len(set(map(id, filters))) == 1 else Or(tuple(filters))
            context.work.facets = count_facets(params.facets, among, context)
        found = _ranked(searches, asked, params, context)
        if params.group_by is not None:
            found = _grouped(searches, asked, params, params.group_by, found, context)
        return found if params.merge_adjacent_ms is None else merge_adjacent(found, params.merge_adjacent_ms)

    def notes(self, params: FeatureSearchParams, context: StageContext) -> list[str]:
        """Return which weights a fusion with learned ones would use, and where they come from."""
        names: list[str] = []
        stated: list[float] = []
        for number, wanted in enumerate(params.searches):
            if _is_empty(wanted.query) and wanted.on_empty == "skip":
                continue
            for uri in _features(wanted, context):
                names.append(_named(uri, number, names))
                stated.append(wanted.weight)
        if params.fusion != "learned" or len(names) < 2:
            return []
        work = Work()
        weights_for("learned", params.learning_config, names, stated, replace(context, work=work))
        return [weights_told(work.metadata["fusion"])]


def _searches(
    params: FeatureSearchParams, within: Filter, context: StageContext
) -> tuple[list[Search], list[Part]]:
    """Return the searches of the engine; those that are empty and may be are left out, or choose without a query."""
    searches: list[Search] = []
    asked: list[Part] = []
    for number, wanted in enumerate(params.searches):
        if _is_empty(wanted.query) and wanted.on_empty == "skip":
            continue
        query = _query_input(wanted.query, number)
        if query.kind in ("image", "content") and is_url(query.value):
            context.work.is_repeatable = False
        filter = within
        if params.collection_identifiers or wanted.collection_identifiers:
            named = wanted.collection_identifiers or params.collection_identifiers
            filter = And((filter, Or(tuple(context.collection(name) for name in named))))
        if wanted.filters:
            own = parse(wanted.filters, inputs=context.inputs, location=("searches", number, "filters"))
            filter = And((filter, own)) if own is not None else filter
        for uri, vector in _query_vectors(wanted, query, context):
            searches.append(
                Search(vector.vector_name, vector.values, limit=wanted.top_k, filter=filter, text=vector.text)
            )
            name = _named(uri, number, [each.name for each in asked])
            asked.append(Part(name, wanted.weight, wanted.min_score))
    if not searches:
        raise BadRequestError(
            "Every search of feature_search is empty and says on_empty skip: give one of them a query."
        )
    return searches, asked


def _named(uri: str, number: int, before: Sequence[str]) -> str:
    """Return the name in `signals` of a search: its feature, with its number where that has one already."""
    return f"{uri}#{number}" if uri in before else uri


def _ranked(
    searches: Sequence[Search], asked: Sequence[Part], params: FeatureSearchParams, context: StageContext
) -> list[Hit]:
    """Return what the searches find, fused, each hit with its signals; without groups the first `final_top_k`."""
    most = params.final_top_k if params.group_by is None else None
    if params.fusion == "learned":
        return context.ranked(searches, Fusion(tuple(asked), "weighted", most, with_shares=len(asked) > 1))
    return context.ranked(searches, Fusion(tuple(asked), params.fusion, most))


def _grouped(
    searches: Sequence[Search],
    asked: Sequence[Part],
    params: FeatureSearchParams,
    group_by: SearchGroups,
    found: list[Hit],
    context: StageContext,
) -> list[Hit]:
    """Return the best hits of the best groups; a hit without a value is a group of its own."""
    depth = max(search.limit for search in searches)
    while True:
        groups: dict[bytes, list[Hit]] = {}
        for hit in found:
            value = first_value(hit.payload, group_by.field)
            key = group_key([value] if value is not None else [None, hit.document_id])
            groups.setdefault(key, []).append(hit)
        # A ranking that was shorter than its bound is all that there is.
        is_all = len(found) < depth or depth >= MAX_DEPTH
        if len(groups) >= group_by.limit or is_all:
            break
        context.budget.check()
        depth = min(MAX_DEPTH, 4 * depth)
        deeper = [replace(search, limit=depth) for search in searches]
        found = _ranked(deeper, asked, params, context)
    size = 1 if group_by.output_mode == "first" else group_by.max_per_group
    chosen = list(groups.values())[: group_by.limit]
    if group_by.output_mode == "flatten":
        taken = {hit.document_id for members in chosen for hit in members[:size]}
        return [hit for hit in found if hit.document_id in taken]
    return [
        replace(hit, payload={**hit.payload, "_group": _group_told(hit, index, members, group_by.field)})
        for index, members in enumerate(chosen)
        for hit in members[:size]
    ]


def _group_told(hit: Hit, index: int, members: Sequence[Hit], field: str) -> dict[str, Any]:
    return {"key": first_value(hit.payload, field), "index": index, "size": len(members)}


def merge_adjacent(hits: Sequence[Hit], gap_ms: int) -> list[Hit]:
    """Make one hit of those whose spans of one video or recording touch, or lie at most `gap_ms` apart.

    The best of them stands for all, in its place of the ranking. Its `locator` becomes the span that covers them,
    and `merged` lists them in the order of time: ``{document_id, score, locator}``. Others stay as they are.
    """
    places = [locators.locator_of(hit.payload) for hit in hits]
    sources: dict[tuple[Any, Any], list[int]] = {}
    for number, (hit, place) in enumerate(zip(hits, places, strict=True)):
        source = hit.payload.get("source_object_id")
        if place is not None and place.kind == "time" and source is not None:
            sources.setdefault((hit.payload.get("collection_id"), source), []).append(number)
    merged: dict[int, Hit] = {}
    gone: set[int] = set()
    for numbers in sources.values():
        for group in _chains(numbers, places, gap_ms):
            best, *others = sorted(group)
            gone.update(others)
            if others:
                merged[best] = _covering(hits[best], [(hits[number], places[number]) for number in group])
    return [merged.get(number, hit) for number, hit in enumerate(hits) if number not in gone]


def _chains(
    numbers: Sequence[int], places: Sequence[locators.Locator | None], gap_ms: int
) -> list[list[int]]:
    """Cut the hits of one source, in the order of time, where there is a gap."""
    chains: list[list[int]] = []
    reached: locators.Locator | None = None
    for number in sorted(numbers, key=lambda number: (places[number].start_ms, number)):  # type: ignore[union-attr]
        place = places[number]
        assert place is not None
        if reached is not None and locators.adjacent(reached, place, gap_ms):
            chains[-1].append(number)
            reached = locators.joined([reached, place])
        else:
            chains.append([number])
            reached = place
    return chains


def _covering(best: Hit, members: Sequence[tuple[Hit, locators.Locator | None]]) -> Hit:
    covered = locators.joined([place for _, place in members if place is not None])
    listed = [
        {"document_id": hit.document_id, "score": hit.score, "locator": place.to_json()}
        for hit, place in members
        if place is not None
    ]
    return replace(best, payload={**best.payload, locators.FIELD: covered.to_json(), "merged": listed})


def _query_vectors(
    wanted: SearchParams, query: QueryInput, context: StageContext
) -> list[tuple[str, QueryVector]]:
    """Return what one search looks for: by words, by its feature, or by every vector that takes a text."""
    if wanted.lexical:
        return [(WORDS, context.words(query))]
    uris = _features(wanted, context)
    if not uris:
        raise BadRequestError(
            "feature_search names no feature_uri and this namespace has no feature that takes a text query. "
            "List the features with GET /v1/collections/{id}/features and name one."
        )
    return [(uri, context.embed(uri, query)) for uri in uris]


def _features(wanted: SearchParams, context: StageContext) -> list[str]:
    if wanted.lexical:
        return [WORDS]
    return [wanted.feature_uri] if wanted.feature_uri else context.text_features()


def _query_input(
    query: Any, number: int, location: tuple[str | int, ...] | None = None, *, is_filled: bool = True
) -> QueryInput:
    """Read a query in any of its spellings. Raises `ValidationError` for none.

    Before its inputs are there (`is_filled` false) only what can be seen of it is looked at.
    """
    location = location or ("searches", number, "query")
    if isinstance(query, str):
        if not is_filled and not query.strip():
            raise ValidationError([Problem(location, "The query text is blank.", "query")])
        return QueryInput("text", query)
    if isinstance(query, list):
        return QueryInput("vector", _vector(query, number) if is_filled else query)
    if isinstance(query, dict):
        if "input_mode" in query:
            mode = str(query["input_mode"])
            # Under its own name in the older spelling: {"input_mode": "text", "text": …}.
            older = query.get("document_ref") if mode == "document" else None
            query = {
                mode: next((x for x in (query.get("value"), query.get(mode), older) if x is not None), None)
            }
        for spelling, kind in _INPUT_KINDS.items():
            if query.get(spelling) is not None:
                value = query[spelling]
                if kind == "vector" and is_filled:
                    value = _vector(value, number)
                elif kind == "document" and isinstance(value, dict):
                    value = value.get("document_id")
                elif kind in ("content", "image") and isinstance(value, dict):
                    value = value.get("url") or value.get("base64")
                return QueryInput(kind, value)  # type: ignore[arg-type]
    raise ValidationError([_no_query(location)])


def _no_query(location: tuple[str | int, ...]) -> Problem:
    return Problem(
        location,
        'A search needs a query: a text, a list of numbers, or an object such as {"text": "…"}, '
        '{"content": "<URL, base64 or data URI>"}, {"vector": […]} or {"document_id": "doc_…"}.',
        "query",
    )


def text_of_query(query: Any) -> str | None:
    """Return the text of a query that is one, in any of its spellings."""
    try:
        read = _query_input(query, 0)
    except ValidationError:
        return None
    return read.value if read.kind == "text" and isinstance(read.value, str) and read.value.strip() else None


def with_text(params: FeatureSearchParams, old: str, new: str) -> FeatureSearchParams:
    """Return `params` with the text `new` in each search for the text `old`; other searches are left out."""
    searches = [
        search.model_copy(update={"query": new})
        for search in params.searches
        if text_of_query(search.query) == old
    ]
    return params.model_copy(update={"searches": searches})


def is_url(value: Any) -> bool:
    """Return whether a query's content is to be fetched."""
    return isinstance(value, str) and value.lstrip()[:8].lower().startswith(("http://", "https://"))


def _is_empty(query: Any) -> bool:
    """Return whether a query, with its inputs filled in, asks for nothing."""
    if isinstance(query, dict):
        return all(_is_empty(value) for name, value in query.items() if name != "input_mode")
    return query is None or (isinstance(query, str) and not query.strip()) or (query == [])


def _vector(value: Any, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.empty((0, 0), dtype=np.float32)
    # numpy would take "1.5", true and null for numbers as well.
    if isinstance(value, np.ndarray) or (isinstance(value, list) and set(map(type, value)) <= {int, float}):
        with np.errstate(over="ignore"):  # becomes infinity, which is refused below
            vector = np.asarray(value, dtype=np.float64).astype(np.float32)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
        raise ValidationError(
            [
                Problem(
                    ("searches", number, "query", "vector"),
                    "A query vector is a list of finite numbers (no NaN, no infinity).",
                    "vector",
                )
            ]
        )
    return vector
