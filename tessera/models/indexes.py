"""Payload indexes: what a request states, and the complete form that the log and the engines hold."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model


class IndexType(StrEnum):
    KEYWORD = "keyword"
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    GEO = "geo"
    DATETIME = "datetime"
    TEXT = "text"
    UUID = "uuid"


class KeywordParams(Model):
    type: Literal["keyword"] = "keyword"
    is_tenant: bool = Field(False, description="Store points that share a value together.")


class IntegerParams(Model):
    type: Literal["integer"] = "integer"
    lookup: bool = Field(True, description="Support equality.")
    range: bool = Field(True, description="Support lt, lte, gt, gte.")


class FloatParams(Model):
    type: Literal["float"] = "float"


class BoolParams(Model):
    type: Literal["bool"] = "bool"


class GeoParams(Model):
    type: Literal["geo"] = "geo"


class DatetimeParams(Model):
    type: Literal["datetime"] = "datetime"


class TextParams(Model):
    """How a text is cut into tokens. Tokens outside the length bounds (in characters) are dropped."""

    type: Literal["text"] = "text"
    tokenizer: Literal["word", "whitespace", "prefix", "multilingual"] = "word"
    min_token_len: int = Field(2, ge=0, le=10_000)
    max_token_len: int = Field(15, ge=1, le=10_000)
    lowercase: bool = True


class UuidParams(Model):
    type: Literal["uuid"] = "uuid"
    is_tenant: bool = False


#: The parameter class is chosen by the *outer* type; keys of other classes are ignored.
INDEX_PARAMS: dict[IndexType, type[Model]] = {
    IndexType.KEYWORD: KeywordParams,
    IndexType.INTEGER: IntegerParams,
    IndexType.FLOAT: FloatParams,
    IndexType.BOOL: BoolParams,
    IndexType.GEO: GeoParams,
    IndexType.DATETIME: DatetimeParams,
    IndexType.TEXT: TextParams,
    IndexType.UUID: UuidParams,
}


class PayloadIndex(Model):
    """A payload field that the namespace's collection indexes.

    `field_schema` is complete: every parameter of its type, defaults filled in.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    field_name: str
    type: IndexType
    field_schema: JsonObject
    is_protected: bool = False
    is_auto: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="Made by `auto_create_indexes`; only there when it is true.",
    )


class PayloadIndexConfig(Model):
    """A payload index as a request states it; `plan.py` turns it into a `PayloadIndex`."""

    field_name: str = Field(min_length=1, max_length=255, examples=["metadata.title"])
    type: IndexType = Field(examples=["text"])
    field_schema: JsonObject | None = Field(
        None,
        examples=[
            {"type": "text", "tokenizer": "word", "min_token_len": 2, "max_token_len": 15, "lowercase": True}
        ],
    )
    is_protected: bool = False
