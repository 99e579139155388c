"""Routes whose plainest requests go past the framework: what it does for a request takes longer than all of ours.

A plain request has no query and no header that the route reads beside ``X-Namespace``, and a body that is right.
Any other goes the ordinary way, where each problem gets its answer, and the answers are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tessera.api.routing import JsonRequest, Route, Router, principal
from tessera.api.scope import LONGEST_NAMESPACE, utf8, warehouse


class DirectRoute(Route):
    """A POST route inside a namespace.

    Its function takes ``request``, ``wh``, ``asking``, ``namespace`` (a `NamespaceName`), ``body`` (a model) and the
    parameters of its path; whatever else it takes has a default and comes by query or by ``If-None-Match``.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a plain request; leave any other to the framework, with its body read already."""
        request = await self.gate.admit(JsonRequest(scope, receive, send))
        call = self._prepared(request)
        if call is None:
            await super().handle(scope, receive, send)
            return
        response = await run_in_threadpool(call)
        self.gate.note_read(request)
        await response(scope, receive, send)

    def _prepared(self, request: JsonRequest) -> Callable[[], Response] | None:
        """Return the call that answers a plain request, None for another."""
        scope = request.scope
        named = [value for name, value in scope["headers"] if name == b"x-namespace"]
        if (
            scope["query_string"]
            or len(named) != 1
            or not 0 < len(named[0]) <= LONGEST_NAMESPACE
            or any(name == b"if-none-match" for name, _ in scope["headers"])
            or not isinstance(request.parsed, dict)
        ):
            return None
        assert self.body_field is not None
        assert self.dependant.call is not None
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]
        try:
            body = model.model_validate(request.parsed)
        except ValidationError:
            return None
        arguments: dict[str, Any] = {
            **scope["path_params"],
            "request": request,
            "wh": warehouse(request),
            "asking": principal(request),
            "namespace": utf8(named[0].decode("latin-1")),
            "body": body,
        }
        return functools.partial(self.dependant.call, **arguments)


def post(router: Router, path: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of `router` as a POST route of this kind, as ``router.post`` registers others."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        router.add_api_route(path, call, methods=["POST"], route_class_override=DirectRoute, **options)
        return call

    return register
