"""Keep one hit of those that are the same."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from tessera.filters import values_at
from tessera.ports import HIDDEN_FIELDS, Hit
from tessera.stages.base import (
    ADDED_FIELDS,
    ORIGIN_FIELDS,
    FieldPaths,
    Stage,
    StageContext,
    StageParams,
    collected,
)
from tessera.stages.group_by import group_key

#: Texts are compared by their runs of this many words.
SHINGLE_WORDS = 3

_WORD = re.compile(r"\w+")


class DeduplicateParams(StageParams):
    """What makes two hits the same, and which of them stays.

    ``field``: equal values in all of `fields`. ``content``: texts (of `fields`, or all that a document shows)
    whose runs of three words overlap by at least `similarity_threshold` (Jaccard).
    """

    strategy: Literal["field", "content"] = "field"
    fields: FieldPaths = Field(
        [], max_length=16, validation_alias=AliasChoices("fields", "field"), examples=[["metadata.sku"]]
    )
    similarity_threshold: float = Field(0.95, ge=0.5, le=1, allow_inf_nan=False)
    keep: Literal["first", "last", "highest_score"] = "first"

    @model_validator(mode="after")
    def _fields_are_named(self) -> DeduplicateParams:
        if self.strategy == "field" and not self.fields:
            raise ValueError('strategy "field" needs fields, such as {"fields": ["metadata.sku"]}')
        return self


class Deduplicate(Stage):
    stage_id = "deduplicate"
    category = "reduce"
    description = "Keeps one hit of those with equal fields or nearly the same text."
    icon = "copy-minus"
    Params = DeduplicateParams
    cost_tier = "moderate"
    example: ClassVar = {"strategy": "field", "fields": ["metadata.sku"]}

    def run(self, hits: list[Hit] | None, params: DeduplicateParams, context: StageContext) -> list[Hit]:
        """Return `hits` in their order without repetitions; a hit that has nothing to compare stays."""
        found = collected(hits, context)
        turns = list(range(len(found)))
        if params.keep == "last":
            turns.reverse()
        elif params.keep == "highest_score":
            turns.sort(key=lambda number: -_score(found[number]))
        in_turn = [found[number] for number in turns]
        kept = (
            _kept_by_fields(in_turn, params.fields)
            if params.strategy == "field"
            else _kept_by_content(in_turn, params.fields, params.similarity_threshold)
        )
        return [found[number] for number in sorted(turns[place] for place in kept)]


def _score(hit: Hit) -> float:
    return -math.inf if hit.score is None else hit.score


def _kept_by_fields(hits: Sequence[Hit], fields: Sequence[str]) -> Iterator[int]:
    seen: set[bytes] = set()
    for number, hit in enumerate(hits):
        values = [values_at(hit.payload, path) for path in fields]
        key = group_key(values)
        if not any(values) or key not in seen:
            seen.add(key)
            yield number


def _kept_by_content(hits: Sequence[Hit], fields: Sequence[str], threshold: float) -> Iterator[int]:
    """Yield the positions of hits that are not like one that was yielded before.

    Two sets that overlap by `threshold` share one of their rarest members: of `n`, one of the first
    ``n − ⌈threshold · n⌉ + 1``. Only hits that share such a one are compared (prefix filtering; Chaudhuri,
    Ganti and Kaushik, ICDE 2006).
    """
    shingles = [_shingles(text_of(hit.payload, fields)) for hit in hits]
    often = Counter(shingle for each in shingles for shingle in each)
    kept_with: defaultdict[Any, list[int]] = defaultdict(list)
    for number, mine in enumerate(shingles):
        rarest = sorted(mine, key=lambda shingle: (often[shingle], shingle))
        # Rounding must not make the prefix too short.
        prefix = rarest[: len(mine) - math.ceil(threshold * len(mine) - 1e-9) + 1]
        near = {other for shingle in prefix for other in kept_with[shingle]}
        if any(_overlap(mine, shingles[other]) >= threshold for other in near):
            continue
        for shingle in prefix:
            kept_with[shingle].append(number)
        yield number


def _overlap(one: frozenset[Any], other: frozenset[Any]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE_WORDS + 1) if words else 0
    return frozenset(tuple(words[start : start + SHINGLE_WORDS]) for start in range(last))


def text_of(payload: Mapping[str, Any], fields: Sequence[str]) -> str:
    """Return the texts at `fields`, or without any all texts that a document shows, by the names of their fields.

    What stages before have said of it, also under names that begin with ``_``, is none of them.
    """
    if fields:
        return "\n".join(value for path in fields for value in values_at(payload, path) if type(value) is str)
    return "\n".join(
        text
        for name in sorted(payload.keys() - HIDDEN_FIELDS - ORIGIN_FIELDS - ADDED_FIELDS)
        if not name.startswith("_")
        for text in _texts(payload[name])
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith("blob://"):
            yield value
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _texts(value[name])
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
