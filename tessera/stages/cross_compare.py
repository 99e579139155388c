"""Compare what hits hold with the documents of another collection: equal, alike in letters, in meaning, in looks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator

from tessera import templates
from tessera.errors import BadRequestError, Problem
from tessera.filters import And, Condition, Filter, values_at
from tessera.ports import Hit, Page, Payload, Search
from tessera.stages.asking import shown_text
from tessera.stages.base import (
    FieldPath,
    QueryInput,
    Stage,
    StageContext,
    StageParams,
    collected,
    first_value,
    with_tree_at,
)
from tessera.stages.outside import output_path

#: Most hits that are compared; those behind them go on as they are, as the API says.
MAX_SOURCES = 50
#: Most elements of one document, and characters of one element, that are compared.
MAX_ELEMENTS = 50
MAX_ELEMENT_CHARS = 2000
#: So many reference elements, those that share the most trigrams, are compared letter by letter.
_NEAREST = 8

Tier = Literal["exact", "fuzzy", "semantic", "visual"]

#: What stands on buttons everywhere.
_GENERIC = frozenset({
    "add", "apply", "back", "cancel", "close", "continue", "copy", "delete", "done", "edit", "help",
    "home", "menu", "more", "new", "next", "no", "ok", "open", "previous", "remove", "reset", "save",
    "search", "select", "send", "settings", "submit", "update", "view", "yes",
})  # fmt: skip
# Blanks are bounded, and no line end is one: a text of blanks alone takes no longer than another.
_BOLD = re.compile(r"\*\*([^*\n]{2,80})\*\*")
_DASHED = re.compile(
    r"^[ \t]{0,20}[-*•]?[ \t]{0,20}([^—–\n]{2,80}?)[ \t]{1,9}[—–-][ \t]{1,9}\S", re.MULTILINE
)
_ACTION = re.compile(
    r"\b(?:[Cc]lick|[Pp]ress|[Cc]hoose|[Ss]elect|[Oo]pen|[Cc]onfigure|[Ee]nable|[Dd]isable)[ \t]{1,9}"
    r"(?:(?:the|on)[ \t]{1,9})?([A-Z][\w-]{0,40}(?:[ \t]{1,9}[A-Z][\w-]{0,40}){0,5})"
)


class Rule(StageParams):
    """A label for scores from `min_score` on."""

    min_score: float = Field(ge=0, le=1)
    label: str = Field(min_length=1, max_length=100)


_RULES = [
    Rule(min_score=0.95, label="exact_match"),
    Rule(min_score=0.85, label="close_match"),
    Rule(min_score=0.65, label="partial_match"),
    Rule(min_score=0.0, label="no_match"),
]


class CrossCompareParams(StageParams):
    """Which collection is compared with, by which fields, how, and what the scores are called.

    `extraction_mode` makes elements of a field: ``raw`` is the whole text, ``lines`` each line, ``list`` each item, and
    ``labels`` names of buttons and features. Tiers are tried in their order; the first that reaches its threshold
    decides. ``semantic`` compares in the vectors of `feature_uri` (the first that takes a text), ``visual`` the hit's
    own vector of `visual_feature_uri`.
    """

    reference_collection_id: str = Field(min_length=1, max_length=255)
    source_field: FieldPath = "content"
    reference_field: FieldPath = "content"
    extraction_mode: Literal["raw", "lines", "labels", "list"] = "raw"
    match_tiers: list[Tier] = Field(["exact", "fuzzy"], min_length=1, max_length=4)
    fuzzy_threshold: float = Field(0.75, ge=0, le=1)
    semantic_threshold: float = Field(0.85, ge=0, le=1)
    visual_threshold: float = Field(0.55, ge=0, le=1)
    classifications: list[Rule] = Field(_RULES, min_length=1, max_length=50)
    no_match_label: str = Field("no_match", min_length=1, max_length=100)
    output_mode: Literal["findings", "enrich"] = "findings"
    output_field: FieldPath = "comparison_results"
    feature_uri: str | None = Field(None, max_length=500)
    visual_feature_uri: str | None = Field(None, max_length=500)
    include_visual_comparison: bool = False
    reference_limit: int = Field(200, ge=1, le=1000)
    reference_doc_type: str | None = Field(None, max_length=200)
    source_doc_type_filter: str | None = Field(None, max_length=200)
    source_location_field: FieldPath = "start_time"
    filter_generic_labels: bool = Field(
        True, validation_alias=AliasChoices("filter_generic_labels", "filter_generic")
    )

    _free = field_validator("output_field")(output_path)

    @property
    def tiers(self) -> list[Tier]:
        """The tiers, with looks last where they were asked for by the older switch."""
        asked: list[Tier] = list(dict.fromkeys(self.match_tiers))
        return [*asked, "visual"] if self.include_visual_comparison and "visual" not in asked else asked


@dataclass(frozen=True, slots=True)
class _Match:
    """What was found for an element: by which tier, how alike, what, and in which document."""

    tier: str = "none"
    score: float = 0.0
    text: str | None = None
    document: Payload | None = None


class CrossCompare(Stage):
    stage_id = "cross_compare"
    category = "apply"
    description = (
        "Compares what hits hold with another collection: equal, alike in letters, meaning or looks."
    )
    icon = "git-compare"
    Params = CrossCompareParams
    cost_tier = "moderate"
    example: ClassVar = {
        "reference_collection_id": "guidelines",
        "source_field": "text",
        "reference_field": "text",
    }
    names_collections = ("reference_collection_id",)
    names_features = ("feature_uri", "visual_feature_uri")

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a collection that an input would choose, and for looks without a feature."""
        problems = []
        if templates.is_template(parameters.get("reference_collection_id")):
            problems.append(
                Problem(
                    (*location, "reference_collection_id"),
                    "reference_collection_id is written out, not taken from an input: a retriever reads what it "
                    "says it reads.",
                    "template",
                )
            )
        tiers = parameters.get("match_tiers")
        by_looks = (isinstance(tiers, list) and "visual" in tiers) or parameters.get(
            "include_visual_comparison"
        )
        if by_looks and not parameters.get("visual_feature_uri"):
            problems.append(
                Problem(
                    (*location, "visual_feature_uri"),
                    "To compare looks, visual_feature_uri names the feature of both collections that holds them.",
                    "missing",
                )
            )
        return problems

    def run(self, hits: list[Hit] | None, params: CrossCompareParams, context: StageContext) -> list[Hit]:
        """Return the findings, one result for each element, or the hits with their findings.

        A finding's `document_id` is that of its source and a number: it is no stored document. At most `MAX_SOURCES`
        hits are compared and `MAX_ELEMENTS` elements of each; the statistics tell how many were not.
        """
        found = collected(hits, context)
        chosen = [
            hit
            for hit in found
            if params.source_doc_type_filter is None
            or params.source_doc_type_filter in values_at(hit.payload, "doc_type")
        ][:MAX_SOURCES]
        references = _References(params, context)
        findings: dict[int, list[dict[str, Any]]] = {}
        for hit in chosen:
            context.budget.check()
            findings[id(hit)] = [
                _finding(hit, element, match, params) for element, match in references.matches(hit)
            ]
        context.work.metadata |= {
            "documents_compared": len(chosen),
            "documents_left_out": len(found) - len(chosen),
            "references": references.count,
        }
        if params.output_mode == "enrich":
            return [
                replace(hit, payload=with_tree_at(hit.payload, params.output_field, findings[id(hit)]))
                if id(hit) in findings
                else hit
                for hit in found
            ]
        return [
            Hit(f"{hit.document_id}#{number}", _result(hit, number, finding), finding["match_score"])
            for hit in chosen
            for number, finding in enumerate(findings[id(hit)])
        ]


def _result(hit: Hit, number: int, finding: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "document_id": f"{hit.document_id}#{number}",
        "collection_id": hit.payload.get("collection_id"),
        "source_document_id": hit.document_id,
        **finding,
    }


def _finding(hit: Hit, element: str, match: _Match, params: CrossCompareParams) -> dict[str, Any]:
    label = params.no_match_label
    if match.tier != "none":
        ordered = sorted(params.classifications, key=lambda rule: -rule.min_score)
        label = next((rule.label for rule in ordered if match.score >= rule.min_score), params.no_match_label)
    document = match.document or {}
    return {
        "element_type": "visual" if match.tier == "visual" else "text",
        "source_content": element,
        "source_location": first_value(hit.payload, params.source_location_field),
        "reference_match": match.text,
        "reference_document_id": document.get("document_id"),
        "reference_url": first_value(document, "source_url") or first_value(document, "url"),
        "match_tier": match.tier,
        "match_score": round(match.score, 6),
        "classification": label,
        # Nothing else is known that would speak for or against it.
        "confidence": round(match.score, 6),
    }


class _References:
    """The documents that are compared with, read once: their elements as they are written, and as they are compared."""

    def __init__(self, params: CrossCompareParams, context: StageContext) -> None:
        self._params, self._context = params, context
        self._within: Filter = context.collection(params.reference_collection_id)
        if params.reference_doc_type is not None:
            named = Condition("doc_type", "eq", params.reference_doc_type, True)
            self._within = And((self._within, named))
        page = context.page(Page(limit=params.reference_limit, filter=self._within))
        self.count = len(page.hits)
        self._elements = [
            (element, hit.payload)
            for hit in page.hits
            for element in elements(hit.payload, params.reference_field, params)
        ]
        self._equal = {
            _plain(element): number for number, (element, _) in reversed([*enumerate(self._elements)])
        }
        self._trigrams = [_trigrams(_plain(element)) for element, _ in self._elements]
        self._looks: dict[str, _Match] = {}

    def matches(self, hit: Hit) -> Iterator[tuple[str, _Match]]:
        """Yield each element of a hit with what was found for it."""
        for element in elements(hit.payload, self._params.source_field, self._params):
            found = _Match()
            for tier in self._params.tiers:
                found = self._by(tier, element, hit)
                if found.tier != "none":
                    break
            yield element, found

    def _by(self, tier: Tier, element: str, hit: Hit) -> _Match:
        if tier == "exact":
            number = self._equal.get(_plain(element))
            return _Match() if number is None else _Match("exact", 1.0, *self._elements[number])
        if tier == "fuzzy":
            return self._fuzzy(_plain(element))
        if tier == "semantic":
            return self._semantic(element)
        # What a document looks like is the same for each of its elements.
        if hit.document_id not in self._looks:
            self._looks[hit.document_id] = self._visual(hit)
        return self._looks[hit.document_id]

    def _fuzzy(self, element: str) -> _Match:
        mine = _trigrams(element)
        shared = [
            (2 * len(mine & theirs) / (len(mine) + len(theirs) or 1), -number)
            for number, theirs in enumerate(self._trigrams)
        ]
        best = _Match()
        matcher = difflib.SequenceMatcher(autojunk=False)
        matcher.set_seq2(element)
        for overlap, negative in sorted(shared, reverse=True)[:_NEAREST]:
            text, document = self._elements[-negative]
            if overlap <= 0:
                break
            matcher.set_seq1(_plain(text))
            if matcher.quick_ratio() <= best.score:
                continue
            ratio = matcher.ratio()
            if ratio >= self._params.fuzzy_threshold and ratio > best.score:
                best = _Match("fuzzy", ratio, text, document)
        return best

    def _semantic(self, element: str) -> _Match:
        uri = self._params.feature_uri or next(iter(self._context.text_features()), None)
        if uri is None:
            raise BadRequestError(
                "cross_compare: this namespace has no feature that takes a text; leave `semantic` out of match_tiers."
            )
        if not element.strip():
            return _Match()
        vector = self._context.embed(uri, QueryInput("text", element))
        return self._nearest("semantic", vector.vector_name, vector.values, self._params.semantic_threshold)

    def _visual(self, hit: Hit) -> _Match:
        stored = self._context.vectors([hit.document_id], self._params.visual_feature_uri)
        for name, vector in stored.get(hit.document_id, {}).items():
            return self._nearest("visual", name, vector, self._params.visual_threshold)
        return _Match()

    def _nearest(self, tier: str, name: str, vector: Any, threshold: float) -> _Match:
        ((*found,),) = self._context.search([Search(name, vector, limit=1, filter=self._within)])
        if not found or found[0].score is None or found[0].score < threshold:
            return _Match()
        text = shown_text(found[0].payload, self._params.reference_field, MAX_ELEMENT_CHARS)
        return _Match(tier, min(1.0, found[0].score), text or None, found[0].payload)


# --- pure ------------------------------------------------------------------------------------------------


def elements(payload: Payload, field: str, params: CrossCompareParams) -> list[str]:
    """Return what of a document is compared, at most `MAX_ELEMENTS` texts of at most `MAX_ELEMENT_CHARS`."""
    if params.extraction_mode == "list":
        found: Sequence[str] = [value for value in values_at(payload, field) if isinstance(value, str)]
    else:
        text = shown_text(payload, field, MAX_ELEMENTS * MAX_ELEMENT_CHARS)
        if params.extraction_mode == "lines":
            found = text.splitlines()
        elif params.extraction_mode == "labels":
            found = labels(text, params.filter_generic_labels)
        else:
            found = [text]
    cleaned = (item.strip()[:MAX_ELEMENT_CHARS] for item in found)
    return list(dict.fromkeys(item for item in cleaned if item))[:MAX_ELEMENTS]


def labels(text: str, without_generic: bool) -> list[str]:
    """Return names of buttons and features: bold ones, those before a dash, and those behind a word like "click"."""
    found = [match[1].strip() for pattern in (_BOLD, _DASHED, _ACTION) for match in pattern.finditer(text)]
    return [label for label in found if not (without_generic and label.casefold() in _GENERIC)]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _trigrams(text: str) -> frozenset[str]:
    padded = f"  {text} "
    return frozenset(padded[start : start + 3] for start in range(len(padded) - 2))
