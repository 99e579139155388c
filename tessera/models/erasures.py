"""Erasing documents: removed from search at once, then from everything that the server keeps."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from tessera.models.base import JsonObject, Model


class EraseRequest(Model):
    """What to erase: documents by id or by a filter, or objects with all their documents. Exactly one of the three.

    With `include_objects` the objects that the documents came from are erased too, with their files and with
    all other documents that were made of them; without it an object stays, and brings its documents back when
    it is processed again. Ids of documents that were deleted before count: what is left of them is erased.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"document_ids": ["doc_6f1c2c7ac0e15ed3a9a2d3e0a7b8f1c4"], "include_objects": True}]
        }
    )

    document_ids: list[str] | None = Field(None, min_length=1, max_length=1000)
    object_ids: list[str] | None = Field(None, min_length=1, max_length=1000)
    filters: JsonObject | None = None
    include_objects: bool = False
