"""Counts of a field's values over every document that a search could have found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import AliasChoices, Field

from tessera.filters import Filter, values_at
from tessera.ports import Page
from tessera.stages.base import FieldPath, StageContext, StageParams

#: So many documents are counted; of more, those that were seen are, and the counts say that they are not all.
MAX_COUNTED = 100_000
_PAGE = 10_000


class Facet(StageParams):
    """A field whose values are counted, and how many of them are told: the most frequent."""

    key: FieldPath = Field(validation_alias=AliasChoices("key", "field"), examples=["metadata.brand"])
    limit: int = Field(10, ge=1, le=1000)


def count_facets(facets: Sequence[Facet], among: Filter, context: StageContext) -> list[dict[str, Any]]:
    """Return for each facet its `values` (``{value, count}``, most frequent first) among the documents of `among`.

    A document counts once for each value that it has. `exact` is false when there were more than `MAX_COUNTED`
    documents; `documents_counted` says how many were looked at.
    """
    fields = tuple(sorted({facet.key.partition(".")[0] for facet in facets}))
    counts: list[Counter[tuple[str, Any]]] = [Counter() for _ in facets]
    seen, after = 0, None
    while True:
        page = context.page(Page(limit=_PAGE, filter=among, after=after, fields=fields))
        seen += len(page.hits)
        for hit in page.hits:
            for facet, counted in zip(facets, counts, strict=True):
                values = values_at(hit.payload, facet.key)
                # 1 and true are one key of a dictionary, and two values of JSON.
                counted.update({(type(value).__name__, value) for value in values if _is_scalar(value)})
        after = page.next_after
        if after is None or seen >= MAX_COUNTED:
            break
        context.budget.check()
    return [
        {
            "key": facet.key,
            "values": [
                {"value": value, "count": number}
                for (_, value), number in sorted(
                    counted.items(), key=lambda item: (-item[1], item[0][0], item[0][1])
                )[: facet.limit]
            ],
            "total_values": len(counted),
            "exact": after is None,
            "documents_counted": seen,
        }
        for facet, counted in zip(facets, counts, strict=True)
    ]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)
