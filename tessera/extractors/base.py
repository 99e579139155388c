"""What an extractor is: a pure description of its outputs, and a function from samples to features.

A new extractor is one file: subclass `Extractor`, fill the class attributes, implement `outputs` and
`extract`. ``registry.py`` finds it; the contract tests run on arrival. Heavy libraries are imported
inside the method that uses them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationInfo

from tessera.errors import BadSample
from tessera.fetching import Fetcher
from tessera.inference import Model, Models
from tessera.locators import Locator
from tessera.models import PayloadIndex

__all__ = [
    "VERSIONS",
    "BadSample",
    "Extractor",
    "Feature",
    "FieldOutput",
    "Input",
    "Locator",
    "Outputs",
    "Params",
    "Sample",
    "SparseOutput",
    "VectorOutput",
    "is_new",
    "words_of",
]

#: Under which versions a built-in is registered: two spellings of one implementation and vector space.
VERSIONS = ("v1", "1.0.0")


class Params(BaseModel):
    """Parameters of an extractor; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @classmethod
    def sent(cls, given: Mapping[str, Any]) -> Self:
        """Check what somebody sends now, more strictly than what was stored; raises pydantic's `ValidationError`."""
        return cls.model_validate(given, context=_NEW)


_NEW = {"is_new": True}


def is_new(info: ValidationInfo) -> bool:
    """Tell a validator whether the parameters were sent just now: a rule of today refuses no stored ones."""
    return bool(info.context and info.context.get("is_new"))


@dataclass(frozen=True, slots=True)
class VectorOutput:
    """A dense vector that an extractor writes.

    `name` is the vector's name in the collection (``text_extractor_v1_embedding``), `inference_name`
    the vendor's name in feature URIs, `model_id` what really runs (``all-MiniLM-L6-v2``).
    `query_inputs` are the kinds of query that this vector space can embed: ``text``, ``image``.
    `aliases` are further spellings of the output in a feature URI, `purpose` is what it is searched for:
    ``text``, ``image``, ``multimodal`` ….
    """

    name: str
    dimensions: int
    inference_name: str
    model_id: str
    description: str
    query_inputs: tuple[str, ...] = ("text",)
    aliases: tuple[str, ...] = ()
    distance: str = "cosine"
    purpose: str = "text"


@dataclass(frozen=True, slots=True)
class SparseOutput:
    """A keyword index over the texts that an extractor writes into `fields`.

    The engine makes it from the documents themselves, so `extract` brings nothing for it. Extractors that declare
    the same `name` share one index. `fields` are all that any parameters may write: what a namespace indexes is
    fixed when it is made.
    """

    name: str
    fields: tuple[str, ...]
    inference_name: str
    description: str


def words_of(*fields: str) -> SparseOutput:
    """Return the keyword index that every built-in extractor of texts has, over these fields of its own."""
    return SparseOutput(
        name="bm25",
        fields=fields,
        inference_name="bm25",
        description=f"Words of {', '.join(fields)}, by BM25: finds names, numbers and codes as they are written.",
    )


def text_vector(
    name: str, model: Model, meaning: str, aliases: tuple[str, ...] = ("embedding", "text_embedding", "text")
) -> VectorOutput:
    """Return the vector that every built-in extractor of texts has, under its own `name`: the `meaning` of what."""
    return VectorOutput(
        name=name,
        dimensions=model.dimensions,
        inference_name="multilingual_e5_large_instruct_v1",
        model_id=model.model_id,
        description=f"{meaning}, by {model.model_id}. {model.description}",
        query_inputs=model.query_inputs,
        aliases=aliases,
    )


@dataclass(frozen=True, slots=True)
class FieldOutput:
    """A payload field that an extractor writes; `type` is a bucket schema type."""

    type: str
    description: str


@dataclass(frozen=True, slots=True)
class Outputs:
    vectors: tuple[VectorOutput, ...] = ()
    fields: Mapping[str, FieldOutput] = field(default_factory=dict)
    indexes: tuple[PayloadIndex, ...] = ()
    sparse: tuple[SparseOutput, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a sample: a text, or a local file with its media type."""

    text: str | None = None
    path: Path | None = None
    mime_type: str | None = None
    filename: str | None = None
    #: Files that belong to this one: a subtitle file beside a video, by role (``subtitles``).
    sidecars: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One source to extract from: inputs by the extractor's input name (``text``, ``image``, ``video``)."""

    inputs: Mapping[str, Input]


@dataclass(frozen=True, slots=True)
class Feature:
    """One document to be: where it lies in its source, its fields, its vectors and its files.

    `position` is a natural key inside the source (start in ms; page and block), so that the document
    keeps its id when the source is extracted again. `files` become blobs; the field of that name
    then holds the blob's URL. `locator` tells people the place; it becomes the field of that name.
    """

    position: tuple[str | int, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    vectors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    files: Mapping[str, tuple[bytes, str]] = field(default_factory=dict)
    locator: Locator | None = None


class Extractor(ABC):
    """Base of every extractor. Instances hold no state but the models of this process.

    `inputs` maps each input name to the bucket property types it accepts. `positions` names the
    payload fields that make a document's position.
    """

    name: ClassVar[str]
    versions: ClassVar[tuple[str, ...]] = VERSIONS
    #: Further names under which the same implementation and the same vector space are registered.
    also_named: ClassVar[tuple[str, ...]] = ()
    description: ClassVar[str]
    icon: ClassVar[str] = "box"
    #: Where a catalogue shows it: ``text``, ``image``, ``multimodal``, ``utility`` …
    category: ClassVar[str] = "general"
    inputs: ClassVar[Mapping[str, tuple[str, ...]]]
    positions: ClassVar[tuple[str, ...]] = ()
    max_inputs: ClassVar[Mapping[str, int]] = {}
    cost_tier: ClassVar[int] = 1
    #: The vector whose model the parameter `model` chooses, where there is one.
    vector_name: ClassVar[str | None] = None
    #: Whether a source stays the same while what it names elsewhere changes: it is extracted anew by every batch.
    reads_elsewhere: ClassVar[bool] = False
    Params: ClassVar[type[Params]] = Params
    #: The only way to what is behind a URL; a worker puts the server's own here, with its bounds.
    fetcher: Fetcher = Fetcher(max_bytes=64 * 2**20)

    def __init__(self, models: Models) -> None:
        self.models = models

    @abstractmethod
    def outputs(self, params: Any) -> Outputs:
        """Return what `extract` will write with these parameters. No model is loaded.

        Which models are chosen may depend on what is installed; `pinned` takes that choice out.
        Raises `BadSample` with kind ``model_missing`` when `params` insist on one that is not there.
        """

    def pinned(self, params: Any, running: Mapping[str, str]) -> Any:
        """Return `params` that run the models of `running` (model id by vector name), whatever is installed now.

        A namespace chooses its models when it is made; what is installed later must not mix a second
        vector space into it.
        """
        if self.vector_name is None or "model" not in type(params).model_fields:
            return params
        return params.model_copy(update={"model": running.get(self.vector_name, params.model)})

    @abstractmethod
    def extract(self, samples: Sequence[Sample], params: Any) -> Iterator[Iterable[Feature] | BadSample]:
        """Yield, for each sample in order, its features or why there are none."""

    def embed_query(self, vector: VectorOutput, kind: str, value: str | Path) -> npt.NDArray[np.float32]:
        """Return the query vector `float32[dimensions]` for a text or an image file.

        Raises `BadSample` with kind ``unsupported`` when this vector space cannot embed `kind`.
        """
        raise BadSample("unsupported", f"{vector.name} cannot embed a query of kind {kind!r}.")
