"""Say of each document where it belongs in a taxonomy, and add what its nodes carry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BeforeValidator, Field, field_validator

from tessera import templates
from tessera.enrichment import SHOWN, Tier, Verdict, enriched
from tessera.errors import Problem, TesseraError, quote
from tessera.filters import is_path
from tessera.models.taxonomies import EnrichmentField, EnrichmentStyle
from tessera.ports import HIDDEN_FIELDS, Hit
from tessera.stages.base import (
    ORIGIN_FIELDS,
    Stage,
    StageContext,
    StageParams,
    Wanted,
    collected,
    filter_problems,
    let_through,
)
from tessera.stages.outside import settle

#: Documents that are compared between two looks at the budget.
_BATCH = 200


def _as_fields(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [{"field_path": item} if isinstance(item, str) else item for item in value]


class TaxonomyEnrichParams(StageParams):
    """By which taxonomy (`taxonomy_id`: id or name), how many nodes at most, and how near they have to be.

    What is said stands in `_taxonomies`; the taxonomy's enrichment fields, or `fields` instead of them, are copied
    into the document. Documents that `when` does not let through, or that no node is near to, go on as they are.
    """

    taxonomy_id: str = Field(min_length=1, max_length=255)
    top_k: int = Field(3, ge=1, le=50)
    min_confidence: float = Field(
        0.5, ge=0, le=1, validation_alias=AliasChoices("min_confidence", "min_score")
    )
    version: int | None = Field(None, ge=1, description="The taxonomy's newest when absent.")
    fields: Annotated[list[EnrichmentField], BeforeValidator(_as_fields)] | None = Field(None, max_length=100)
    hierarchical_enrichment_style: EnrichmentStyle = EnrichmentStyle.COMBINED
    when: dict[str, Any] | None = None

    @field_validator("fields")
    @classmethod
    def _free(cls, fields: list[EnrichmentField] | None) -> list[EnrichmentField] | None:
        for item in fields or ():
            for path in (item.field_path, item.target_field or item.field_path):
                if not is_path(path) or path.split(".")[0] in HIDDEN_FIELDS | {SHOWN}:
                    raise ValueError(
                        f"{quote(path)} is no path of a field; write names with dots between them"
                    )
            target = item.target_field or item.field_path
            if target.split(".")[0] in ORIGIN_FIELDS:
                raise ValueError(f"{quote(target)} is the document's own; name another target_field")
        return fields


class TaxonomyEnrich(Stage):
    stage_id = "taxonomy_enrich"
    also_named = ("taxonomy_join",)
    category = "enrich"
    description = "Assigns documents to the nodes of a taxonomy and adds the nodes' fields."
    icon = "tags"
    Params = TaxonomyEnrichParams
    cost_tier = "moderate"
    example: ClassVar = {"taxonomy_id": "topics", "top_k": 3}
    names_taxonomies = ("taxonomy_id",)
    # Another version of the taxonomy is no write to the namespace: what was kept would not show it.
    is_repeatable = False

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return a problem for a taxonomy that an input would choose, and for a condition that is none."""
        problems = filter_problems(parameters.get("when"), (*location, "when"))
        if templates.is_template(parameters.get("taxonomy_id")):
            problems.append(
                Problem(
                    (*location, "taxonomy_id"),
                    "taxonomy_id is written out, not taken from an input: a retriever reads what it says it reads.",
                    "template",
                )
            )
        return problems

    def run(self, hits: list[Hit] | None, params: TaxonomyEnrichParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, each with what the taxonomy says of it; ids and scores stay."""
        found = collected(hits, context)
        numbers = let_through(params.when, found, context)
        asked = Wanted(
            params.top_k, params.min_confidence, params.version, params.hierarchical_enrichment_style
        )
        verdicts: list[Verdict | TesseraError] = []
        for start in range(0, len(numbers), _BATCH):
            context.budget.check()
            some = [found[number] for number in numbers[start : start + _BATCH]]
            verdicts += context.taxonomy(params.taxonomy_id, some, asked)
        out = list(found)
        failed: dict[int, TesseraError] = {}
        count = 0
        for place, (number, verdict) in enumerate(zip(numbers, verdicts, strict=True)):
            if isinstance(verdict, TesseraError):
                failed[place] = verdict
            elif verdict.assignments:
                count += 1
                out[number] = replace(
                    found[number], payload=_with(found[number].payload, _limited(verdict, params.fields))
                )
        settle([found[number] for number in numbers], failed, "skip", context)
        context.work.metadata |= {"assigned": count, "compared": len(numbers)}
        return out


def _limited(verdict: Verdict, fields: list[EnrichmentField] | None) -> Verdict:
    """Return the verdict with `fields` in place of those that the taxonomy copies."""
    if fields is None:
        return verdict

    def chosen(tier: Tier) -> Tier:
        return replace(tier, fields=tuple(fields))

    assignments = [
        replace(assignment, tiers=tuple(map(chosen, assignment.tiers))) for assignment in verdict.assignments
    ]
    return replace(verdict, assignments=tuple(assignments))


def _with(payload: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Return a payload with what one more taxonomy says, beside what was said of it before."""
    before = [
        said
        for said in payload.get(SHOWN) or ()
        if isinstance(said, Mapping) and said.get("taxonomy_id") != verdict.taxonomy_id
    ]
    written = enriched(payload, [verdict])
    return {**written, SHOWN: [*before, *written[SHOWN]]}
