"""The extractor that extracts nothing: a document carries its source's fields, and no vector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tessera.extractors.base import BadSample, Extractor, Feature, Outputs, Sample


class PassthroughExtractor(Extractor):
    """One document for each source, with the fields that the collection passes through."""

    name = "passthrough_extractor"
    description = "Copies the source's fields into one document, without features."
    icon = "arrow-right"
    category = "utility"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"content": ()}

    def outputs(self, params: Any) -> Outputs:
        """Return no outputs: all fields are the source's own."""
        return Outputs()

    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield one bare feature a sample."""
        for _ in samples:
            yield (Feature(),)
