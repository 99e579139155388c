"""Interactions: what people did with the hits of a retriever."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, AliasChoices, ConfigDict, Field, StrictInt, model_validator

from tessera.models.base import JsonObject, Model, PaginationResponse

#: Most interactions of one request.
MOST_AT_ONCE = 1000
#: Largest `metadata`, and `query_snapshot`, as JSON.
OBJECT_BYTES = 16_384


class InteractionType(StrEnum):
    """What was done."""

    VIEW = "view"
    CLICK = "click"
    POSITIVE_FEEDBACK = "positive_feedback"
    NEGATIVE_FEEDBACK = "negative_feedback"
    PURCHASE = "purchase"
    ADD_TO_CART = "add_to_cart"
    WISHLIST = "wishlist"
    LONG_VIEW = "long_view"
    SHARE = "share"
    BOOKMARK = "bookmark"
    QUERY_REFINEMENT = "query_refinement"
    ZERO_RESULTS = "zero_results"
    FILTER_TOGGLE = "filter_toggle"
    SKIP = "skip"
    RETURN_TO_RESULTS = "return_to_results"


def _small(value: JsonObject) -> JsonObject:
    size = len(orjson.dumps(value))
    if size > OBJECT_BYTES:
        raise ValueError(f"has {size} bytes as JSON; at most {OBJECT_BYTES} are kept with an interaction")
    return value


_Id = Annotated[str, Field(min_length=1, max_length=255)]
_Object = Annotated[JsonObject, AfterValidator(_small)]


_EXAMPLE: JsonObject = {
    "feature_id": "doc_0f3a9c5e77d1b2c40f3a9c5e77d1b2c4",
    "interaction_type": ["click"],
    "position": 0,
    "execution_id": "exec_0f3a9c5e77d1b2c4",
}


class InteractionRequest(Model):
    """What somebody did with a hit.

    `position` is its place in the answer, from 0; `document_id` is another spelling of `feature_id`. With the
    `execution_id` of the answer the retriever need not be named.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    feature_id: _Id = Field(validation_alias=AliasChoices("feature_id", "document_id"))
    interaction_type: list[InteractionType] = Field(min_length=1, max_length=len(InteractionType))
    position: StrictInt = Field(ge=0, le=1_000_000)
    execution_id: _Id | None = None
    retriever_id: _Id | None = None
    user_id: _Id | None = Field(None, description="Who it was, as the application calls them.")
    session_id: _Id | None = None
    query_snapshot: _Object | None = None
    document_score: float | None = Field(None, allow_inf_nan=False)
    result_set_size: StrictInt | None = Field(None, ge=0, le=1_000_000)
    feature_uri: str | None = Field(None, max_length=500)
    occurred_at: datetime | None = Field(
        None, description="When it happened, if not now; a time to come counts as now."
    )
    metadata: _Object | None = None

    @model_validator(mode="after")
    def _something_was_shown(self) -> InteractionRequest:
        if self.result_set_size == 0 and InteractionType.ZERO_RESULTS not in self.interaction_type:
            raise ValueError(
                "result_set_size 0 goes with interaction_type zero_results alone: whoever did something else saw a hit"
            )
        return self


class InteractionResponse(Model):
    """An interaction as it is stored. `result_set_size` is null for an answer without hits."""

    interaction_id: str
    feature_id: str
    interaction_type: list[InteractionType]
    position: int
    execution_id: str | None
    retriever_id: str | None
    user_id: str | None
    session_id: str | None
    query_snapshot: JsonObject | None
    document_score: float | None
    result_set_size: int | None
    feature_uri: str | None
    occurred_at: str | None
    metadata: JsonObject | None
    timestamp: str
    deduplicated: bool = False
    warning: str | None = None


class InteractionsBatchRequest(Model):
    """Up to 1000 interactions, all stored or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"interactions": [_EXAMPLE]}]})

    interactions: list[InteractionRequest] = Field(min_length=1, max_length=MOST_AT_ONCE)


class CreatedInteraction(Model):
    """One of them: its place in the request, and its id."""

    index: int
    interaction_id: str
    status: Literal["created"] = "created"


class InteractionsBatchResponse(Model):
    """What was stored."""

    created: int
    failed: int = 0
    errors: list[str] | None = None
    results: list[CreatedInteraction]


class InteractionSort(Model):
    """By which field, and which way."""

    field: str = Field(max_length=255)
    direction: Literal["asc", "desc"] = "asc"


class ListInteractionsRequest(Model):
    """Which interactions to list, the newest first unless sorted otherwise; `search` looks into `metadata`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"interaction_type": "click"}]})

    execution_id: str | None = Field(None, max_length=255)
    retriever_id: str | None = Field(None, max_length=255)
    session_id: str | None = Field(None, max_length=255)
    user_id: str | None = Field(None, max_length=255)
    feature_id: str | None = Field(
        None, max_length=255, validation_alias=AliasChoices("feature_id", "document_id")
    )
    interaction_type: InteractionType | None = None
    filters: JsonObject | None = None
    sort: InteractionSort | None = None
    search: str | None = Field(None, max_length=1000)


class ListInteractionsResponse(Model):
    """A page of interactions; `items` are the same as `results`."""

    results: list[InteractionResponse]
    items: list[InteractionResponse]
    pagination: PaginationResponse
    total_count: int


class DeletedInteraction(Model):
    """What was deleted."""

    message: str
    success: bool = True
    interaction_id: str


def stored(request: InteractionRequest) -> dict[str, Any]:
    """Return what a request says, as columns."""
    told = request.model_dump(mode="json", exclude={"occurred_at"})
    told["interaction_type"] = list(dict.fromkeys(told["interaction_type"]))
    told["result_set_size"] = told["result_set_size"] or None
    return told
