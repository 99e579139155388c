"""An extractor that is only a place for ready-made vectors of 768 dimensions; it comes by entry point."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tessera.extractors.base import BadSample, Extractor, Feature, Outputs, Sample, VectorOutput

DIMENSIONS = 768
VECTOR = "plain_extractor_v1_embedding"
URI = "mixpeek://plain_extractor@v1/plain_v1"


class Plain(Extractor):
    """Declares a vector of 768 dimensions, and extracts nothing: what is measured brings its own."""

    name = "plain_extractor"
    description = "A place for vectors of 768 dimensions."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text", "string")}

    def outputs(self, params: Any) -> Outputs:
        return Outputs((VectorOutput(VECTOR, DIMENSIONS, "plain_v1", "plain", "Whatever is put in."),))

    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Iterable[Feature] | BadSample]:
        for _ in samples:
            yield BadSample("This extractor extracts nothing.")
