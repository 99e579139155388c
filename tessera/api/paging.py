"""The page of a list as a parameter of its route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from tessera.api.scope import warehouse
from tessera.pagination import DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET, PAGE_KEYS, PageRequest, read_page


def page_parameter(default_limit: int) -> Callable[..., Awaitable[PageRequest]]:
    """Return a dependency that reads a page; lists differ in how many rows they give unasked."""

    # Declared for the API's description; `read_page` reads them, because a body may hold them as well.
    async def read(
        request: Request,
        limit: Annotated[
            Any,
            Query(
                description=f"Rows to return, 1 to {MAX_LIMIT}.", json_schema_extra=_integer(default_limit)
            ),
        ] = None,
        offset: Annotated[
            Any, Query(description=f"Rows to skip, 0 to {MAX_OFFSET}.", json_schema_extra=_integer(0))
        ] = None,
        page: Annotated[
            Any, Query(description="Page number from 1, instead of offset.", json_schema_extra=_integer(1))
        ] = None,
        page_size: Annotated[
            Any, Query(description="The same as limit.", json_schema_extra=_integer(default_limit))
        ] = None,
        cursor: Annotated[
            str | None, Query(description="`next_cursor` of the answer before; all else as in that request.")
        ] = None,
        include_total: Annotated[
            Any, Query(description="Totals are always given.", json_schema_extra={"type": "boolean"})
        ] = None,
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


def _integer(example: int) -> dict[str, Any]:
    return {"type": "integer", "examples": [example]}


#: Parameter of a route: the page, also read from the body; 10 rows unless asked for more.
Paging = Annotated[PageRequest, Depends(page_parameter(DEFAULT_LIMIT))]
