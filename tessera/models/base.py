"""Base of the nouns, and the shapes that all lists share."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

JsonObject = dict[str, Any]


class Model(BaseModel):
    """Unknown keys of a request are ignored, never an error; the API names them in a response header."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, protected_namespaces=())


class PaginationResponse(Model):
    """Where a page of a list stands; all four integers are always given."""

    total: int
    page: int
    page_size: int
    total_pages: int
    next_page: str | None = None
    previous_page: str | None = None
    next_cursor: str | None = None
