"""The page of a list as a parameter of its route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from tessera.api.scope import warehouse
from tessera.pagination import DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET, PAGE_KEYS, PageRequest, read_page


def _integer(description: str) -> Any:
    return Query(description=description, json_schema_extra={"type": "integer"})


# Declared for the API's description only: `read_page` reads them, because a body may hold them as well.
_Limit = Annotated[Any, _integer(f"Rows to return, 1 to {MAX_LIMIT}.")]
_Offset = Annotated[Any, _integer(f"Rows to skip, 0 to {MAX_OFFSET}.")]
_Page = Annotated[Any, _integer("Page number from 1, instead of offset.")]
_PageSize = Annotated[Any, _integer("The same as limit.")]
_Cursor = Annotated[
    Any, Query(description="`next_cursor` of the answer before.", json_schema_extra={"type": "string"})
]
_Total = Annotated[Any, Query(description="Totals are always given.", json_schema_extra={"type": "boolean"})]


def page_parameter(default_limit: int) -> Callable[..., Awaitable[PageRequest]]:
    """Return a dependency that reads a page; lists differ in how many rows they give unasked."""

    async def read(
        request: Request,
        limit: _Limit = None,
        offset: _Offset = None,
        page: _Page = None,
        page_size: _PageSize = None,
        cursor: _Cursor = None,
        include_total: _Total = None,
    ) -> PageRequest:
        body = await request.json()
        return read_page(
            warehouse(request),
            request.scope["path"],
            dict(request.query_params),
            body if isinstance(body, dict) else {},
            namespace=request.headers.get("x-namespace", ""),
            default_limit=default_limit,
        )

    read.reads = PAGE_KEYS  # type: ignore[attr-defined]
    return read


#: Parameter of a route: the page, also read from the body; 10 rows unless asked for more.
Paging = Annotated[PageRequest, Depends(page_parameter(DEFAULT_LIMIT))]
