"""Take a sample of the hits, the same for the same question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from tessera.ports import Hit
from tessera.stages.base import FieldPath, Stage, StageContext, StageParams, collected, first_value
from tessera.stages.group_by import group_key


class SampleParams(StageParams):
    """How many hits are taken and how; ``stratified`` needs the field whose values make the strata."""

    method: Literal["random", "stratified", "systematic"] = "random"
    size: int = Field(10, ge=1, le=10_000)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    stratify_by: FieldPath | None = Field(
        None, validation_alias=AliasChoices("stratify_by", "stratify_field", "field")
    )

    @model_validator(mode="after")
    def _strata_have_a_field(self) -> SampleParams:
        if self.method == "stratified" and self.stratify_by is None:
            raise ValueError('method "stratified" needs stratify_by, the field whose values make the strata')
        return self


class Sample(Stage):
    stage_id = "sample"
    category = "reduce"
    description = "Takes a sample: at random, in proportion to the values of a field, or at even distances."
    icon = "dices"
    Params = SampleParams
    example: ClassVar = {"size": 10, "seed": 42}

    def run(self, hits: list[Hit] | None, params: SampleParams, context: StageContext) -> list[Hit]:
        """Return up to `size` of `hits` in their order. The same seed and hits give the same sample on every page."""
        found = collected(hits, context)
        if len(found) <= params.size:
            return found
        if params.method == "systematic":
            # A step of len / size from a start within the first step.
            start = int.from_bytes(_lot(params.seed, "")) % len(found)
            taken = {(start + number * len(found)) // params.size for number in range(params.size)}
        elif params.method == "random":
            taken = set(_drawn(found, range(len(found)), params.size, params.seed))
        else:
            taken = _stratified(found, params)
        return [hit for number, hit in enumerate(found) if number in taken]


def _stratified(hits: Sequence[Hit], params: SampleParams) -> set[int]:
    strata: dict[Any, list[int]] = {}
    for number, hit in enumerate(hits):
        value = first_value(hit.payload, str(params.stratify_by))
        strata.setdefault(group_key([value]), []).append(number)
    shares = _shares({key: len(members) for key, members in strata.items()}, params.size)
    return {
        number
        for key, members in strata.items()
        for number in _drawn(hits, members, shares[key], params.seed)
    }


def _shares(sizes: Mapping[Any, int], wanted: int) -> dict[Any, int]:
    """Divide `wanted` in proportion to `sizes`; what is left after rounding down goes to the largest remainders."""
    total = sum(sizes.values())
    shares = {key: size * wanted // total for key, size in sizes.items()}
    left = wanted - sum(shares.values())
    for key in sorted(sizes, key=lambda key: (-(sizes[key] * wanted % total), key))[:left]:
        shares[key] += 1
    return shares


def _drawn(hits: Sequence[Hit], among: Sequence[int], size: int, seed: int) -> list[int]:
    """Return `size` positions of `among`: those whose documents draw the lowest lots."""
    return sorted(among, key=lambda number: (_lot(seed, hits[number].document_id), number))[:size]


def _lot(seed: int, document_id: str) -> bytes:
    # A hash instead of a generator: a document's lot does not change when others come or go.
    return hashlib.blake2b(f"{seed}\n{document_id}".encode(), digest_size=8).digest()
