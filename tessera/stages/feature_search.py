"""Find documents by meaning: one or several vector searches, fused into one ranking."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import AliasChoices, Field

from tessera import locators
from tessera.errors import BadRequestError, Problem, ValidationError
from tessera.filters import And, Condition, Filter, parse
from tessera.ports import Hit, Search
from tessera.stages.base import QueryInput, QueryVector, Stage, StageContext, StageParams, filter_problems

#: Rank constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
RRF_K = 60

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
)


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
    query: Any = Field(None, validation_alias=AliasChoices("query", "input"))
    lexical: bool = Field(False, description="Search the keyword index (BM25) instead of vectors.")
    top_k: int = Field(100, ge=1, le=10_000)
    filters: dict[str, Any] | None = None
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    min_score: float | None = Field(None, allow_inf_nan=False)


class FeatureSearchParams(StageParams):
    """Searches and how their rankings become one."""

    searches: list[SearchParams] = Field(min_length=1, max_length=16)
    final_top_k: int = Field(25, ge=1, le=10_000)
    fusion: Literal["rrf", "dbsf", "weighted", "max"] = "rrf"
    merge_adjacent_ms: int | None = Field(
        None,
        ge=0,
        le=3_600_000,
        description="Of the `final_top_k` hits, those of one video or recording that touch, or lie at most so far "
        "apart, become one: the best, with the `locator` of all and with `merged`, their ids, scores and places.",
    )


class FeatureSearch(Stage):
    stage_id = "feature_search"
    also_named = ("knn_search",)
    category = "filter"
    description = (
        "Finds documents whose features are nearest to a text, a picture, a vector or another document."
    )
    icon = "search"
    Params = FeatureSearchParams

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Translate the short form (``feature_uri``, ``input``, ``limit``) and the two older ones."""
        if "searches" in parameters:
            return parameters
        search: dict[str, Any] = {key: parameters[key] for key in _SEARCH_KEYS if key in parameters}
        mapping = parameters.get("input_mapping")
        if isinstance(mapping, dict) and not {"query", "input"} & search.keys():
            search["input"] = {kind: "{{INPUT." + str(name) + "}}" for kind, name in mapping.items()}
        limit = parameters.get("limit", parameters.get("top_k", parameters.get("final_top_k")))
        out: dict[str, Any] = {"searches": [search]}
        if limit is not None:
            search["top_k"] = limit
            out["final_top_k"] = limit
        return out | {
            name: parameters[name] for name in ("fusion", "merge_adjacent_ms") if name in parameters
        }

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the searches' filters."""
        searches = parameters.get("searches")
        return [
            problem
            for number, search in enumerate(searches if isinstance(searches, list) else ())
            if isinstance(search, Mapping)
            for problem in filter_problems(search.get("filters"), (*location, "searches", number, "filters"))
        ]

    def run(self, hits: list[Hit] | None, params: FeatureSearchParams, context: StageContext) -> list[Hit]:
        """Search within the retriever's collections, or only among `hits` when an earlier stage chose them."""
        within: Filter = context.within
        if hits is not None:
            if not hits:
                return []
            within = And((within, Condition("document_id", "in", [hit.document_id for hit in hits], True)))
        searches: list[Search] = []
        weights: list[float] = []
        floors: list[float | None] = []
        for number, wanted in enumerate(params.searches):
            query = _query_input(wanted.query, number)
            filter = within
            if wanted.filters:
                own = parse(wanted.filters, inputs=context.inputs, location=("searches", number, "filters"))
                filter = And((within, own)) if own is not None else within
            for vector in _query_vectors(wanted, query, context):
                searches.append(
                    Search(
                        vector.vector_name,
                        vector.values,
                        limit=wanted.top_k,
                        filter=filter,
                        text=vector.text,
                    )
                )
                weights.append(wanted.weight)
                floors.append(wanted.min_score)
        rankings = context.search(searches)
        kept = [
            ranking if floor is None else [hit for hit in ranking if (hit.score or 0.0) >= floor]
            for ranking, floor in zip(rankings, floors, strict=True)
        ]
        found = (kept[0] if len(kept) == 1 else fuse(kept, weights, params.fusion))[: params.final_top_k]
        return found if params.merge_adjacent_ms is None else merge_adjacent(found, params.merge_adjacent_ms)


def fuse(rankings: Sequence[Sequence[Hit]], weights: Sequence[float], method: str) -> list[Hit]:
    """Merge rankings into one, best first; ties go to the smaller document id.

    ``rrf`` adds ``weight / (60 + rank)``; ``weighted`` adds scores scaled to 0…1 within each ranking;
    ``max`` takes the best of those; ``dbsf`` adds scores scaled by mean ± 3 standard deviations
    (distribution-based score fusion).
    """
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for value, hit in zip(_scaled(ranking, method), ranking, strict=True):
            hits.setdefault(hit.document_id, hit)
            before = scores.get(hit.document_id)
            if method == "max":
                scores[hit.document_id] = weight * value if before is None else max(before, weight * value)
            else:
                scores[hit.document_id] = (before or 0.0) + weight * value
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [replace(hits[document_id], score=score) for document_id, score in ordered]


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


def _scaled(ranking: Sequence[Hit], method: str) -> list[float]:
    if method == "rrf":
        return [1.0 / (RRF_K + rank) for rank in range(1, len(ranking) + 1)]
    raw = [hit.score or 0.0 for hit in ranking]
    if not raw:
        return []
    if method == "dbsf":
        mean, spread = statistics.fmean(raw), statistics.pstdev(raw)
        low, high = mean - 3 * spread, mean + 3 * spread
    else:
        low, high = min(raw), max(raw)
    if high <= low:
        return [1.0 for _ in raw]
    return [min(1.0, max(0.0, (value - low) / (high - low))) for value in raw]


def _query_vectors(wanted: SearchParams, query: QueryInput, context: StageContext) -> list[QueryVector]:
    """Return what one search looks for: by words, by its feature, or by every vector that takes a text."""
    if wanted.lexical:
        return [context.words(query)]
    uris = [wanted.feature_uri] if wanted.feature_uri else context.text_features()
    if not uris:
        raise BadRequestError(
            "feature_search names no feature_uri and this namespace has no feature that takes a text query. "
            "List the features with GET /v1/collections/{id}/features and name one."
        )
    return [context.embed(uri, query) for uri in uris]


def _query_input(query: Any, number: int) -> QueryInput:
    if isinstance(query, str):
        return QueryInput("text", query)
    if isinstance(query, list):
        return QueryInput("vector", _vector(query, number))
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
                if kind == "vector":
                    value = _vector(value, number)
                elif kind == "document" and isinstance(value, dict):
                    value = value.get("document_id")
                elif kind == "content" and isinstance(value, dict):
                    value = value.get("url")
                return QueryInput(kind, value)  # type: ignore[arg-type]
    raise ValidationError(
        [
            Problem(
                ("searches", number, "query"),
                'A search needs a query: a text, a list of numbers, or an object such as {"text": "…"}, '
                '{"image": "<base64 or data URI>"}, {"vector": […]} or {"document_id": "doc_…"}.',
                "query",
            )
        ]
    )


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
