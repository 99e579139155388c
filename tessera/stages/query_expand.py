"""Search with several forms of a query and fuse what they find: more is found of what is named otherwise.

The forms come from a language model, from the first hits themselves (pseudo-relevance feedback), or from synonyms.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import BadRequestError, Problem
from tessera.fusion import fuse
from tessera.language import NOT_SET, LanguageError
from tessera.ports import Hit, Page
from tessera.stages.asking import LanguageParams, ask_once, document_problems, key_problems
from tessera.stages.base import Equipment, Stage, StageContext, Work
from tessera.stages.deduplicate import text_of
from tessera.stages.feature_search import FeatureSearch, FeatureSearchParams, text_of_query, with_text

#: Documents that stand for the collections when terms are weighed, and words of one text that are counted.
BACKGROUND_DOCUMENTS = 500
_MAX_WORDS = 5000
#: Terms that one form of the query gets more than the query.
TERMS_PER_QUERY = 5
_MAX_QUERY_CHARS = 1000
_WORD = re.compile(r"[^\W\d_]{2,}[\w-]*|\d+[\w-]+")
_PROMPT = (
    "Write {{NUM_EXPANSIONS}} other search queries for what {{QUERY}} looks for: other words, other phrasings, in its "
    "language."
)
_IN_DATA = "`query` in `data`"


class QueryExpandParams(LanguageParams):
    """The search (`feature_search_config`, as that stage takes it) and how its text gets further forms.

    `method`: ``model`` asks the language model for `num_expansions` forms; ``feedback`` adds the terms that tell the
    first hits of the query from the collection; ``synonyms`` replaces words by those in `synonyms`. Without one it is
    synonyms where some are given, a model where there is one, else feedback. A form weighs `expansion_weight` against
    the query itself (1, but 0.5 for feedback).
    """

    model_name: str | None = Field(
        None, max_length=200, validation_alias=AliasChoices("model_name", "expansion_model", "model")
    )
    method: Literal["model", "feedback", "synonyms"] | None = None
    feature_search_config: FeatureSearchParams
    num_expansions: int = Field(
        3, ge=1, le=10, validation_alias=AliasChoices("num_expansions", "num_variations")
    )
    expansion_prompt: str = Field(_PROMPT, max_length=8000)
    synonyms: dict[str, list[str]] = Field({}, max_length=1000)
    feedback_documents: int = Field(10, ge=1, le=100)
    feedback_terms: int = Field(10, ge=1, le=50)
    expansion_weight: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    include_original: bool = True
    rrf_k: int = Field(60, ge=1, le=1000)
    fusion_strategy: Literal["rrf", "linear", "max"] = Field(
        "rrf", validation_alias=AliasChoices("fusion_strategy", "fusion_method")
    )

    @field_validator("expansion_prompt", mode="before")
    @classmethod
    def _own(cls, value: Any) -> Any:
        # The official client states its default, the text "null".
        return _PROMPT if value in (None, "null", "") else value


class QueryExpand(Stage):
    stage_id = "query_expand"
    category = "filter"
    description = (
        "Searches with several forms of a query (by a model, by the first hits, by synonyms) and fuses."
    )
    icon = "split"
    Params = QueryExpandParams
    cost_tier = "moderate"
    example: ClassVar = {
        "method": "feedback",
        "feature_search_config": {"searches": [{"query": "{{INPUT.query}}"}]},
    }
    secret_in = frozenset({"api_key"})
    per_document = frozenset({"expansion_prompt"})
    words = frozenset({"QUERY", "NUM_EXPANSIONS", "query", "num_variations"})

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Write the search under its name, in the form that feature_search has; the short form has it flat."""
        parameters = dict(parameters)
        config = parameters.get("feature_search_config")
        if config is None:
            config = {
                "feature_uri": parameters.pop("feature_uri", parameters.pop("vector_index", None)),
                "query": parameters.pop("query", "{{INPUT.query}}"),
                "limit": parameters.pop("top_k", 20),
            }
            config = {name: value for name, value in config.items() if value is not None}
        if isinstance(config, Mapping):
            parameters["feature_search_config"] = FeatureSearch().normalise(dict(config))
        return parameters

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with the key and with the search."""
        config = parameters.get("feature_search_config")
        found = key_problems(parameters, location)
        found += document_problems(parameters, "expansion_prompt", location)
        if isinstance(config, Mapping):
            found += FeatureSearch().problems(config, (*location, "feature_search_config"))
        return found

    def searches_in(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
        """Yield the search that gets further forms."""
        config = parameters.get("feature_search_config")
        if isinstance(config, Mapping):
            yield ("feature_search_config",), config

    def lacks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return that there is no language model, where the method asks for one."""
        if parameters.get("method") == "model" and equipment.language is None:
            return f"query_expand with method model needs a language model, and {NOT_SET}."
        return None

    def asks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return the language model, where the method asks it."""
        method = parameters.get("method") or _method(bool(parameters.get("synonyms")), equipment)
        return None if method in ("feedback", "synonyms") else "a language model"

    def run(self, hits: list[Hit] | None, params: QueryExpandParams, context: StageContext) -> list[Hit]:
        """Return what all forms of the query find, fused; `query_expand` of a hit says which found it, and where.

        The statistics have the forms under `metadata.queries`. When the model gives none the query itself is searched,
        unless `on_error` is ``raise``.
        """
        config = params.feature_search_config
        query = next((text for search in config.searches if (text := text_of_query(search.query))), None)
        if query is None:
            raise BadRequestError(
                "query_expand has no search with a text: there is nothing to write in other words."
            )
        search = FeatureSearch()
        first = search.run(hits, config, context)
        method = params.method or _method(bool(params.synonyms), context.equipment)
        forms = _forms(method, query, first, params, context)
        context.work.metadata |= {"method": method, "queries": [query, *forms]}
        asked = [query, *forms] if params.include_original or not forms else forms
        narrow = config.model_copy(update={"facets": []})
        rankings = [
            first
            if form == query
            else search.run(hits, with_text(narrow, query, form), replace(context, work=Work()))
            for form in asked
        ]
        weight = params.expansion_weight
        if weight is None:
            weight = 0.5 if method == "feedback" else 1.0
        weights = [1.0 if form == query else weight for form in asked]
        how = {"linear": "weighted"}.get(params.fusion_strategy, params.fusion_strategy)
        ranks = [{hit.document_id: rank for rank, hit in enumerate(ranking, 1)} for ranking in rankings]
        return [
            replace(hit, payload={**hit.payload, "query_expand": _told(hit, asked, ranks)})
            for hit in fuse(rankings, weights, how, params.rrf_k)[: config.final_top_k]
        ]


def _told(hit: Hit, asked: Sequence[str], ranks: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    own = [each.get(hit.document_id) for each in ranks]
    return {
        "matched_variations": [form for form, rank in zip(asked, own, strict=True) if rank is not None],
        "individual_ranks": own,
        "fusion_score": hit.score,
    }


def _method(has_synonyms: bool, equipment: Equipment) -> str:
    if has_synonyms:
        return "synonyms"
    return "feedback" if equipment.language is None else "model"


def _forms(
    method: str, query: str, first: Sequence[Hit], params: QueryExpandParams, context: StageContext
) -> list[str]:
    """Return further forms of the query, none twice."""
    if method == "synonyms":
        found = with_synonyms(query, params.synonyms)
    elif method == "feedback":
        found = _with_feedback(query, first, params, context)
    else:
        found = _by_model(query, params, context)
    own = [form.strip()[:_MAX_QUERY_CHARS] for form in found]
    return [form for form in dict.fromkeys(own) if form and form != query][: params.num_expansions]


def _by_model(query: str, params: QueryExpandParams, context: StageContext) -> list[str]:
    context.work.is_repeatable = False
    number = params.num_expansions
    scope: dict[str, Any] = {"INPUT": context.inputs, "QUERY": _IN_DATA, "query": _IN_DATA}
    scope |= {"NUM_EXPANSIONS": number, "num_variations": number}
    schema = {
        "type": "object",
        "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
        "required": ["queries"],
    }
    task = str(templates.render(params.expansion_prompt + " ", scope)).strip()
    try:
        reply = ask_once(
            task, {"query": query}, schema, params, context, max_tokens=100 * params.num_expansions + 50
        )
        forms = reply.get("queries") if isinstance(reply, Mapping) else None
        if not isinstance(forms, list):
            raise LanguageError("unreadable", "The language model's reply holds no list of queries.")
    except LanguageError as error:
        if params.on_error == "raise":
            raise
        context.work.error = f"The query was searched as it is: {error.message}"
        return []
    return [form for form in forms if isinstance(form, str)]


def with_synonyms(query: str, synonyms: Mapping[str, Sequence[str]]) -> list[str]:
    """Return `query` with one of its words, or phrases, replaced: for each in turn, each of its synonyms."""
    forms = []
    for phrase in sorted(synonyms, key=lambda phrase: (-len(phrase), phrase)):
        pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
        if not phrase.strip() or not re.search(pattern, query, re.IGNORECASE):
            continue
        forms += [
            re.sub(pattern, lambda _, word=word: str(word), query, flags=re.IGNORECASE)  # type: ignore[misc]
            for word in synonyms[phrase]
        ]
    return forms


def _with_feedback(
    query: str, first: Sequence[Hit], params: QueryExpandParams, context: StageContext
) -> list[str]:
    relevant = [text_of(hit.payload, []) for hit in first[: params.feedback_documents]]
    background = context.page(Page(limit=BACKGROUND_DOCUMENTS, filter=context.within)).hits
    terms = telling_terms(
        relevant, [text_of(hit.payload, []) for hit in background], query, params.feedback_terms
    )
    context.work.metadata["terms"] = terms
    return [
        f"{query} {' '.join(terms[start : start + TERMS_PER_QUERY])}"
        for start in range(0, len(terms), TERMS_PER_QUERY)
    ]


def telling_terms(relevant: Sequence[str], background: Sequence[str], query: str, wanted: int) -> list[str]:
    """Return the terms that tell `relevant` texts from `background`, best first, without those of the query.

    A term is worth ``p · log(p / q)``, its part of the Kullback-Leibler divergence between the words of the relevant
    texts (`p`, nearer ones weigh more: the n-th 1 / n) and of the collection (`q`); Carpineto, de Mori, Romano and
    Bigi, ACM TOIS 19(1), 2001. A term stands in at least two of the texts, if there are so many.
    """
    weighed: Counter[str] = Counter()
    texts_with: Counter[str] = Counter()
    for number, text in enumerate(relevant, 1):
        words = Counter(_WORD.findall(text.casefold())[:_MAX_WORDS])
        total = sum(words.values())
        texts_with.update(words.keys())
        for word, count in words.items():
            weighed[word] += count / total / number  # type: ignore[assignment]
    everywhere = Counter(
        word for text in (*background, *relevant) for word in _WORD.findall(text.casefold())[:_MAX_WORDS]
    )
    near, far = sum(weighed.values()), sum(everywhere.values())
    own = set(_WORD.findall(query.casefold()))
    least = 2 if len(relevant) > 1 else 1
    worth = {
        word: weight / near * math.log(weight / near / (everywhere[word] / far))
        for word, weight in weighed.items()
        if word not in own and texts_with[word] >= least
    }
    return [word for word in sorted(worth, key=lambda word: (-worth[word], word)) if worth[word] > 0][:wanted]
