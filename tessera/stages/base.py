"""What a stage of a retriever is: parameters, a category, and a function from hits to hits.

A new stage is one file: subclass `Stage`, fill the class attributes, implement `run`. ``registry.py``
finds it. A stage reaches the namespace only through the `StageContext` it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tessera.errors import Problem, ValidationError
from tessera.filters import And, Filter, parse
from tessera.models import PayloadIndex
from tessera.ports import Hit, Page, PageResult, Search, Vector

Category = Literal["filter", "sort", "reduce", "apply", "enrich"]

#: Most documents that a stage which reads collections itself hands to the next one.
MAX_CANDIDATES = 10_000


class StageParams(BaseModel):
    """Parameters of a stage; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class QueryInput:
    """What a vector search starts from: a text, a picture (bytes), a ready vector, or a stored document."""

    kind: Literal["text", "image", "vector", "document"]
    value: Any


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A query, ready to search: the named vector it belongs to, and its values `float32[dimensions]`."""

    vector_name: str
    values: Vector


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may use.

    `within` limits every read to the retriever's collections (and the request's filters). `embed` turns
    a feature URI and an input into a vector; `text_features` lists the URIs that take a text query.
    """

    within: Filter
    indexes: Mapping[str, PayloadIndex]
    inputs: Mapping[str, Any]
    search: Callable[[Sequence[Search]], list[list[Hit]]]
    page: Callable[[Page], PageResult]
    embed: Callable[[str, QueryInput], QueryVector]
    text_features: Callable[[], list[str]]


class Stage(ABC):
    """Base of every stage. `hits` is None for the first stage of a retriever."""

    stage_id: ClassVar[str]
    #: Further ids under which the API's guides write this stage.
    also_named: ClassVar[tuple[str, ...]] = ()
    category: ClassVar[Category]
    description: ClassVar[str]
    icon: ClassVar[str] = "box"
    Params: ClassVar[type[StageParams]] = StageParams

    @abstractmethod
    def run(self, hits: list[Hit] | None, params: Any, context: StageContext) -> list[Hit]:
        """Return what goes on to the next stage."""

    def narrow(self, params: Any, context: StageContext) -> Filter | None:
        """Return what this stage asks of documents when all it does is choose them by their fields, else None.

        At the beginning of a retriever such a stage is not run: what follows searches within its filter, however
        many documents pass it.
        """
        return None

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with `parameters` beyond what `Params` says, as far as it shows without inputs."""
        return []

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return `parameters` in this stage's own form; older and shorter spellings are translated here."""
        return parameters


def read_collections(context: StageContext, filter: Filter | None, limit: int = MAX_CANDIDATES) -> list[Hit]:
    """Return up to `limit` documents of the retriever's collections, exactly those that `filter` lets through."""
    within = context.within if filter is None else And((context.within, filter))
    return list(context.page(Page(limit=limit, filter=within)).hits)


def filter_problems(raw: Any, location: tuple[str | int, ...]) -> list[Problem]:
    """Return what is wrong with a filter; nothing for one that waits for inputs, it is read when they come."""
    if _waits(raw):
        return []
    try:
        parse(raw, location=location)
    except ValidationError as error:
        return list(error.problems)
    return []


def _waits(raw: Any) -> bool:
    if isinstance(raw, str):
        return "{{" in raw
    if isinstance(raw, Mapping):
        return raw.get("type") == "dynamic" or any(_waits(value) for value in raw.values())
    return isinstance(raw, list) and any(_waits(value) for value in raw)
