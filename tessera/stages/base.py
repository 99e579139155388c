"""What a stage of a retriever is: parameters, a category, and a function from hits to hits.

A new stage is one file: subclass `Stage`, fill the class attributes, implement `run`. ``registry.py``
finds it. A stage reaches the namespace only through the `StageContext` it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

from tessera import templates
from tessera.budget import Budget
from tessera.enrichment import Verdict
from tessera.errors import BadRequestError, Problem, TesseraError, ValidationError, quote
from tessera.filters import And, Filter, is_path, parse, predicate, values_at
from tessera.language import NOT_SET
from tessera.models import PayloadIndex
from tessera.models.taxonomies import EnrichmentStyle
from tessera.ports import HIDDEN_FIELDS, Fusion, Hit, Page, PageResult, Payload, Search, Vector

if TYPE_CHECKING:
    from tessera.fetching import Fetcher
    from tessera.inference import Models
    from tessera.language import LanguageModel

Category = Literal["filter", "sort", "reduce", "apply", "enrich"]
CostTier = Literal["cheap", "moderate", "expensive"]

#: Most documents that a stage which reads collections itself hands to the next one.
MAX_CANDIDATES = 10_000


#: Fields that say who a document is and where it comes from: every form of it keeps them.
ORIGIN_FIELDS = frozenset(
    {"document_id", "collection_id", "root_object_id", "root_bucket_id", "source_object_id"}
    | {"created_at", "updated_at"}
)


#: What a place says of itself, and what stages say of hits: no text of the document.
ADDED_FIELDS = frozenset(
    {"locator", "merged", "llm_filter", "query_expand", "cluster_id", "cluster_label", "cluster_score"}
)


def _readable(path: str) -> str:
    if not is_path(path):
        raise ValueError(
            f"{quote(path)} is no path of a field; write names with dots between them and no [], such as metadata.year"
        )
    if path.split(".", maxsplit=1)[0] in HIDDEN_FIELDS:
        raise ValueError(f"{quote(path)} is the system's own; name a field that documents show")
    return path


#: A path into a document whose values a stage may show: dots between names, no field that is hidden.
FieldPath = Annotated[str, AfterValidator(_readable)]
#: Several of them; one text stands for a list of it.
FieldPaths = Annotated[
    list[FieldPath], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]


class StageParams(BaseModel):
    """Parameters of a stage; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # To Python true is 1; who sends it for a number meant something else.
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            kinds = get_args(annotation) or (annotation,)
            if (int in kinds or float in kinds) and bool not in kinds:
                raise ValueError(f"a number is needed, not {str(value).lower()}")
        return value


@dataclass(frozen=True, slots=True)
class QueryInput:
    """What a search starts from: a text, a picture, either as ``content``, a ready vector, or a stored document."""

    kind: Literal["text", "image", "content", "vector", "document"]
    value: Any


@dataclass(frozen=True, slots=True)
class QueryVector:
    """A query, ready to search: the named vector it belongs to, and its values `float32[dimensions]`.

    A search of a keyword index has a `text` instead of values.
    """

    vector_name: str
    values: Vector | None
    text: str | None = None


#: In an error of several documents, what follows tells of one of them; the execution log keeps what stands before.
FIRST = "; the first: "


@dataclass(slots=True)
class Work:
    """What a stage notes of its work beside the hits; it stands in the stage's statistics.

    `error` tells what went wrong with some documents while the others went on. `facets` are answered at the root too.
    """

    llm_calls: int | None = None
    tokens_used: int | None = None
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    facets: list[dict[str, Any]] | None = None
    #: Whether the same documents and inputs will give the same hits again.
    is_repeatable: bool = True

    def count(self, calls: int, tokens: int) -> None:
        """Add calls of the language model and their tokens; 0 says that the stage has one."""
        self.llm_calls = (self.llm_calls or 0) + calls
        self.tokens_used = (self.tokens_used or 0) + tokens


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a server has, or has not: its language model, its other models, its way to other servers."""

    language: LanguageModel | None = None
    models: Models | None = None
    fetcher: Fetcher | None = None


def _no_secret(name: str) -> str:
    raise BadRequestError(f"There is no secret {quote(name)}.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which assignments of a taxonomy are wanted: the best `top_k` of those that reach `min_confidence`."""

    top_k: int
    min_confidence: float
    version: int | None = None
    style: EnrichmentStyle = EnrichmentStyle.COMBINED


def _no_taxonomy(identifier: str, hits: Sequence[Hit], wanted: Wanted) -> list[Verdict | TesseraError]:
    raise BadRequestError(f"Taxonomy {quote(identifier)} cannot be run by the retriever of a taxonomy.")


@dataclass(frozen=True, slots=True)
class Learned:
    """Weights of searches: how many `executions` of which something was chosen say so, or why they are those stated."""

    weights: tuple[float, ...]
    executions: int
    fallback: str | None


def _nothing_learned(
    _names: Sequence[str], stated: Sequence[float], _rewards: Collection[str], _least: int
) -> Learned:
    return Learned(tuple(stated), 0, "nothing is learned here")


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may use.

    `within` limits every read to the retriever's collections (and the request's filters). `search` answers
    searches each by itself, `ranked` as one ranking, whose hits have `signals`. `embed` turns
    a feature URI and an input into a vector, `words` an input into a search of the keyword index;
    `text_features` lists the URIs of the vectors that take a text query.
    `collection` gives the filter that limits a read to another collection of the namespace, by its id or name.
    `vectors` gives the vectors of documents by document id and vector name, only that of the feature URI
    when one is named.
    `work` takes what a stage notes, `budget` bounds time and credits, `secret` gives the value of a secret of the
    organization by its name. `taxonomy` says what a taxonomy, by id or name, says of documents. `learned` gives the
    weights of searches, by their names and stated weights, that interactions of some types in at least so many
    executions speak for.
    """

    within: Filter
    indexes: Mapping[str, PayloadIndex]
    inputs: Mapping[str, Any]
    search: Callable[[Sequence[Search]], list[list[Hit]]]
    ranked: Callable[[Sequence[Search], Fusion], list[Hit]]
    page: Callable[[Page], PageResult]
    embed: Callable[[str, QueryInput], QueryVector]
    words: Callable[[QueryInput], QueryVector]
    text_features: Callable[[], list[str]]
    collection: Callable[[str], Filter]
    vectors: Callable[[Sequence[str], str | None], Mapping[str, Mapping[str, Vector]]]
    work: Work = field(default_factory=Work)
    budget: Budget = field(default_factory=Budget)
    equipment: Equipment = field(default_factory=Equipment)
    secret: Callable[[str], str] = _no_secret
    organization_id: str = ""
    taxonomy: Callable[[str, Sequence[Hit], Wanted], list[Verdict | TesseraError]] = _no_taxonomy
    learned: Callable[[Sequence[str], Sequence[float], Collection[str], int], Learned] = _nothing_learned


class Stage(ABC):
    """Base of every stage. `hits` is None for the first stage of a retriever."""

    stage_id: ClassVar[str]
    #: Further ids under which the API's guides write this stage.
    also_named: ClassVar[tuple[str, ...]] = ()
    category: ClassVar[Category]
    description: ClassVar[str]
    icon: ClassVar[str] = "box"
    Params: ClassVar[type[StageParams]] = StageParams
    #: Parameters as one might write them, for the catalogue. Empty: every parameter has a default.
    example: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: What the stage takes: moderate where it searches or compares, expensive where it asks a model or another server.
    cost_tier: ClassVar[CostTier] = "cheap"
    #: Parameters that `run` fills in for each document, with ``{{DOC.…}}`` and ``{{INPUT.…}}``.
    per_document: ClassVar[frozenset[str]] = frozenset()
    #: Parameters in which ``{{secrets.name}}`` may stand; `run` fills it in.
    secret_in: ClassVar[frozenset[str]] = frozenset()
    #: Expressions without a path that `run` fills in, such as ``{{DOCUMENTS}}``.
    words: ClassVar[frozenset[str]] = frozenset()
    #: Whether the same documents and parameters give the same hits: what another server says may differ.
    is_repeatable: ClassVar[bool] = True
    #: Whether the stage is there only where a language model is.
    needs_language: ClassVar[bool] = False
    #: Parameters that name a collection of the namespace, beside those that the retriever reads.
    names_collections: ClassVar[tuple[str, ...]] = ()
    #: Parameters that name a feature of the namespace whose vectors are compared.
    names_features: ClassVar[tuple[str, ...]] = ()
    #: Parameters that name a taxonomy of the namespace.
    names_taxonomies: ClassVar[tuple[str, ...]] = ()

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

    def notes(self, params: Any, context: StageContext) -> list[str]:
        """Return what explain tells of this stage beside its rows and filters."""
        return []

    def secrets_in(self, parameters: Mapping[str, Any]) -> set[str]:
        """Return the names of the secrets that `parameters` refer to."""
        return {path[0] for root, path in templates.references(parameters) if root == "SECRET"}

    def is_installed(self) -> bool:
        """Say whether the library is there that the stage stands on; without it, it is not listed."""
        return True

    def searches_in(
        self, parameters: Mapping[str, Any]
    ) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
        """Yield where `parameters` hold those of a feature_search, and these."""
        yield from ()

    def lacks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return why this server cannot run the stage with `parameters`, and what would help; None when it can."""
        if self.needs_language and equipment.language is None:
            return f"{self.stage_id} needs a language model, and {NOT_SET}."
        return None

    def asks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return whom a run asks, so that its time is no matter of documents alone; None when it asks nobody."""
        return "a language model" if self.needs_language else None

    def normalise(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return `parameters` in this stage's own form; older and shorter spellings are translated here."""
        return parameters

    def described(self) -> dict[str, Any]:
        """Return what catalogues tell of this stage."""
        return {
            "stage_id": self.stage_id,
            "description": self.description,
            "category": self.category,
            "icon": self.icon,
            "parameter_schema": _schema_of(self.Params),
        }


@cache
def _schema_of(params: type[StageParams]) -> dict[str, Any]:
    """Return the JSON schema of parameters; made once, and changed by nobody."""
    return params.model_json_schema()


def read_collections(context: StageContext, filter: Filter | None, limit: int = MAX_CANDIDATES) -> list[Hit]:
    """Return up to `limit` documents of the retriever's collections, exactly those that `filter` lets through."""
    within = context.within if filter is None else And((context.within, filter))
    return list(context.page(Page(limit=limit, filter=within)).hits)


def collected(hits: list[Hit] | None, context: StageContext) -> list[Hit]:
    """Return `hits`, or all documents of the collections for a first stage.

    Raises `BadRequestError` when those are more than `MAX_CANDIDATES`: what sorts, counts or samples only a part
    of them would be wrong without anybody noticing.
    """
    if hits is not None:
        return hits
    page = context.page(Page(limit=MAX_CANDIDATES, filter=context.within))
    if page.next_after is not None:
        raise BadRequestError(
            f"The first stage would read more than {MAX_CANDIDATES:,} documents. Put a feature_search, a limit or a "
            "narrower attribute_filter before it, or send `filters`."
        )
    return list(page.hits)


def common_collection(hits: Sequence[Hit]) -> str:
    """Return the collection that all of `hits` come from, "" when they come from several or there are none."""
    found = {str(hit.payload.get("collection_id")) for hit in hits}
    return found.pop() if len(found) == 1 else ""


def first_value(payload: Payload, path: str) -> Any:
    """Return the first value at `path`, None without one."""
    values = values_at(payload, path)
    return values[0] if values else None


def tree_at(here: Any, path: str) -> Any:
    """Return what stands at `path`, an array as a whole; None where there is nothing."""
    for segment in path.split("."):
        here = here.get(segment) if isinstance(here, Mapping) else None
    return here


def with_tree_at(tree: Any, path: str, value: Any) -> dict[str, Any]:
    """Return a copy of `tree` with `value` at `path`; what lies beside the path is shared."""
    beside = dict(tree) if isinstance(tree, Mapping) else {}
    segment, _, rest = path.partition(".")
    return {**beside, segment: with_tree_at(beside.get(segment), rest, value) if rest else value}


def number_at(payload: Payload, path: str) -> float | None:
    """Return the first value at `path` if it is a number (a boolean is none), else None."""
    value = first_value(payload, path)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def let_through(when: Mapping[str, Any] | None, hits: Sequence[Hit], context: StageContext) -> list[int]:
    """Return the numbers of the hits that a stage's `when` lets through, all without one.

    Its conditions mean what they mean in a search: one on words goes by the namespace's text index.
    """
    wanted = parse(when, inputs=context.inputs, location=("when",)) if when else None
    if wanted is None:
        return list(range(len(hits)))
    passes = predicate(wanted, context.indexes)
    return [number for number, hit in enumerate(hits) if passes(hit.payload)]


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
