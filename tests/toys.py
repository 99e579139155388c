"""Small parts that compute: extractors that need no model, and a registry of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from tessera.errors import BadSample
from tessera.extractors.base import Extractor, Outputs, Params, VectorOutput
from tessera.models import IndexType, PayloadIndex


def index(name: str, kind: IndexType) -> PayloadIndex:
    schema: dict[str, Any] = {"type": kind.value}
    if kind == IndexType.KEYWORD:
        schema["is_tenant"] = False
    return PayloadIndex(field_name=name, type=kind, field_schema=schema)


class WordParams(Params):
    size: int = Field(4, ge=1, le=64)
    model: str | None = None


class Words(Extractor):
    """A vector whose size is a parameter, and an index on the field that it writes."""

    name = "word_extractor"
    also_named = ("multiword_extractor",)
    description = "Counts words."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"text": ("text",)}
    Params = WordParams

    def outputs(self, params: WordParams) -> Outputs:
        if params.model == "huge":
            raise BadSample("model_missing", "Model 'huge' is not installed; run `tessera models pull huge`.")
        return Outputs(
            vectors=(
                VectorOutput(
                    "word_extractor_v1_embedding", params.size, "words_v1", "counter", "Counts of words."
                ),
            ),
            indexes=(index("language", IndexType.KEYWORD), index("start_time", IndexType.FLOAT)),
        )

    def extract(self, samples: Sequence[Any], params: Any) -> Iterator[Any]:
        yield from ()


class Nothing(Extractor):
    """No vectors, no indexes."""

    name = "pass_extractor"
    description = "Copies fields."
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {"content": ("text", "image")}

    def outputs(self, params: Params) -> Outputs:
        return Outputs()

    def extract(self, samples: Sequence[Any], params: Any) -> Iterator[Any]:
        yield from ()


class Toys:
    """The part of `tessera.registry.Registry` that planning uses."""

    def __init__(self) -> None:
        self._by_name: dict[str, Extractor] = {}
        models: Any = None  # none of them runs one
        for extractor in (Words(models), Nothing(models)):
            for name in (extractor.name, *extractor.also_named):
                self._by_name[name] = extractor

    def extractor_names(self) -> list[str]:
        return sorted(self._by_name)

    def versions(self, name: str) -> tuple[str, ...]:
        return ("v1", "1.0.0") if name in self._by_name else ()

    def extractor(self, name: str, version: str) -> Extractor:
        assert version in self.versions(name)
        return self._by_name[name]

    def trouble(self, name: str) -> str:
        return ""
