"""The HTTP application: what every request passes on its way to a route, and the routes.

Order: request id → key (`auth.Authenticate`) → route → permission → body → validation → service. An
error on any of these steps becomes a body in one place, `Front`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera.api import docs, problems
from tessera.api.auth import Authenticate
from tessera.api.request_log import RequestLog
from tessera.api.routing import Exchange, Route, Router, ignored_header
from tessera.api.streams import Streams
from tessera.api.wire import head_too_large
from tessera.context import Warehouse
from tessera.db.engine import refused
from tessera.errors import DeadlineError, OutcomeUnknownError, TesseraError
from tessera.limits import RateLimiter
from tessera.organizations import Keys
from tessera.usage import Usage

logger = logging.getLogger("tessera.api")

#: Modules with a `router`, hot routes first: a request is matched against them in this order.
NOUNS = (
    "namespaces",
    "retrievers",
    "interactions",
    "taxonomies",
    "documents",
    "objects",
    "batches",
    "plans",
    "failures",
    "buckets",
    "collections",
    "cluster_triggers",
    "clusters",
    "inference",
    "tasks",
    "uploads",
    "blobs",
    "exports",
    "evaluations",
    "catalogue",
    "organizations",
    "organization_secrets",
    "webhooks",
    "audit",
    "usage",
    "health",
    "docs",
)

#: In the log only: no answer was sent.
_CLIENT_LEFT = 499

_EXPOSED = [
    "ETag",
    "Retry-After",
    "X-Cache-Status",
    "X-Ignored-Fields",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
    "X-RateLimit-Window",
    "X-Request-ID",
]

_REQUEST_ID = re.compile(rb"[\w-]{1,64}")
_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def make_app(wh: Warehouse, *, log: RequestLog | None = None) -> FastAPI:
    """Return the application that serves `wh`; requests are logged to `log`."""
    keys = Keys(wh.db)
    usage = Usage(wh.db)
    operator_secret = wh.settings.operator_secret

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.streams.end()
        keys.close()
        usage.close()

    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_TELEMETRY,
        middleware=[
            *_cross_origin(wh.settings.cors_origins),
            Middleware(Front, wh=wh, log=log, usage=usage),
            Middleware(
                Authenticate,
                keys=keys,
                operator_secret=operator_secret.get_secret_value() if operator_secret else None,
            ),
        ],
        lifespan=lifespan,
    )
    app.state.warehouse = wh
    app.state.keys = keys
    app.state.streams = Streams(wh)
    # Without an operator's secret its routes are not merely closed: there are none.
    for noun in (*NOUNS, "tenants") if operator_secret else NOUNS:
        router: Router = import_module(f"tessera.api.{noun}").router
        for route in router.routes:
            if not isinstance(route, Route):
                raise TypeError(
                    f"tessera/api/{noun}.py must make its router with tessera.api.routing.Router."
                )
            # Flat, in one list: an included router would be searched through several more layers.
            app.router.routes.append(route)
    app.router.routes.append(_openapi_route(app))
    app.router.middleware_stack = Dispatch(app.router)
    # Everything is raised up to `Front`, which makes the bodies.
    app.exception_handlers = dict.fromkeys((RequestValidationError, HTTPException), _raise_again)
    return app


def _cross_origin(origins: str | None) -> list[Middleware]:
    """Return what lets pages of these origins call the server: nothing, unless the setting names some."""
    named = [origin.strip() for origin in (origins or "").split(",") if origin.strip()]
    if not named:
        return []
    wild = [re.escape(origin).replace(r"\*", r"[^/]+") for origin in named if "*" in origin and origin != "*"]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=[origin for origin in named if origin == "*" or "*" not in origin],
            allow_origin_regex="|".join(wild) or None,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization",
                "Content-MD5",
                "Content-Type",
                "Idempotency-Key",
                "If-Match",
                "If-None-Match",
                "X-Namespace",
                "X-Request-ID",
            ],
            expose_headers=_EXPOSED,
            max_age=3600,
        )
    ]


def _openapi_route(app: FastAPI) -> Route:
    async def openapi() -> dict[str, Any]:
        """Describe all routes."""
        if app.openapi_schema is None:
            app.openapi_schema = docs.openapi(app)
        return app.openapi_schema

    return Route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)


async def _raise_again(_request: Request, error: Exception) -> Any:
    raise error


class Dispatch:
    """Finds the route: among those with its first two segments and as many in all, where the framework tries every one.

    With some ninety routes that was half of what a small request took.
    """

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._routes: dict[tuple[str, int], list[BaseRoute]] = {}
        for route in router.routes:
            if isinstance(route, Route):
                head, segments = _shape(route.path_format)
                assert "{" not in head, f"{route.path_format} has a parameter in its first two segments"
                assert ":path}" not in route.path, f"{route.path} has a parameter of several segments"
                self._routes.setdefault((head, segments), []).append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to its route; a 404 or 405 is raised as the framework does."""
        if scope["type"] != "http":
            await self._router.app(scope, receive, send)
            return
        scope["router"] = self._router
        other_methods: set[str] = set()
        for route in self._routes.get(_shape(scope["path"]), ()):
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                await route.handle(scope, receive, send)
                return
            if match is Match.PARTIAL and isinstance(route, Route):
                scope.update(found)
                other_methods |= route.methods or set()
        if not other_methods:
            await self._router.default(scope, receive, send)
            return
        raise HTTPException(405, headers={"Allow": ", ".join(sorted(other_methods))})


class Front:
    """Outermost ASGI layer: request id, trailing slashes, error bodies, common headers, request log."""

    def __init__(self, app: ASGIApp, wh: Warehouse, log: RequestLog | None, usage: Usage) -> None:
        self.app = app
        self.settings = wh.settings
        self.limiter = RateLimiter(wh.settings)
        self.log = log
        self.usage = usage
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; whatever is raised inside becomes an answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        exchange = Exchange(_request_id(scope), self.settings.max_body_bytes, self.limiter)
        scope["tessera"] = exchange
        path: str = scope["path"]
        if path.endswith("/") and len(path) > 1:
            scope["path"] = path.rstrip("/") or "/"
        status = 0
        is_late = False

        async def answer(message: Message) -> None:
            # When it is late, the client was told so already.
            if not is_late:
                await tell(message)

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # From here on it is the connection that sets the pace.
                timer.cancel()
                if exchange.principal is not None:
                    self.usage.note(
                        exchange.principal,
                        f"{scope['method']} {_template(scope)}",
                        exchange.api_name,
                        status,
                        (time.perf_counter() - begun) * 1000,
                    )
                headers = message["headers"] = list(message.get("headers", ()))
                headers.append((b"x-request-id", exchange.request_id.encode()))
                headers += exchange.headers
                ignored = ignored_header(exchange.ignored)
                if ignored is not None:
                    headers.append((b"x-ignored-fields", ignored))
            await send(message)

        def expire() -> None:
            # What runs in a thread cannot be stopped; the client need not wait for it.
            nonlocal is_late
            if not status:
                is_late = True
                error = _too_late(scope, limit_s)
                self._late.add(task := loop.create_task(self._answer_error(error, scope, tell, exchange)))
                task.add_done_callback(self._late.discard)

        loop = asyncio.get_running_loop()
        limit_s = self._limit_s(path)
        timer = loop.call_later(limit_s, expire)
        try:
            self._check_head(scope)
            await self.app(scope, receive, answer)
        except ClientDisconnect:
            # The client left while it sent the body; nobody reads an answer.
            status = status or _CLIENT_LEFT
        except Exception as error:  # the edge: whatever it is, it becomes an answer
            if is_late:
                logger.warning(
                    "Request %s failed after its time: %s", exchange.request_id, type(error).__name__
                )
            elif status:
                # Half of the answer is out; all that is left is to end the connection.
                logger.exception("Request %s failed while it was answered.", exchange.request_id)
                raise
            else:
                await self._answer_error(error, scope, answer, exchange)
        finally:
            timer.cancel()
            ms = (time.perf_counter() - begun) * 1000
            template = _template(scope)
            if self.log is not None:
                self.log.write(
                    exchange.request_id, scope["method"], template, status, ms, exchange.key_prefix
                )

    def _limit_s(self, path: str) -> float:
        if path.startswith("/v1/uploads/"):
            # A file takes as long as its client's line needs; the route keeps its own time, this is the net below it.
            return self.settings.upload_timeout_s + self.settings.request_timeout_s
        if path.endswith("/execute") or path == "/v1/documents/search":
            return self.settings.execute_timeout_s
        return self.settings.request_timeout_s

    def _check_head(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"])
        if size > self.settings.max_header_bytes:
            raise head_too_large(size, self.settings.max_header_bytes)

    async def _answer_error(self, error: Exception, scope: Scope, answer: Send, exchange: Exchange) -> None:
        if isinstance(error, HTTPException) and error.status_code == 404 and "route" not in scope:
            error = problems.no_such_route(scope["method"], scope["path"])
        error = refused(error) or error
        status, body, headers = problems.answer(error, exchange.request_id)
        if status == 500 or not isinstance(error, TesseraError | RequestValidationError | HTTPException):
            logger.error("Request %s failed.", exchange.request_id, exc_info=error)
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await answer({"type": "http.response.start", "status": status, "headers": headers})
        await answer({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _too_late(scope: Scope, limit_s: float) -> DeadlineError:
    """Return the error for a request that was not answered in time; only what may be repeated is retryable."""
    repeatable = scope["method"] in ("GET", "HEAD") or any(
        name == b"idempotency-key" for name, _ in scope["headers"]
    )
    if repeatable or scope["path"].endswith(("/execute", "/list", "/search")):
        return DeadlineError(f"The request was not answered within {limit_s:g} s.")
    return OutcomeUnknownError(
        f"The request was not answered within {limit_s:g} s, and may still be carried out. Look before you send it "
        "again; with an Idempotency-Key it could be sent again safely."
    )


def _shape(path: str) -> tuple[str, int]:
    """Return the first two segments of a path, ``/v1/namespaces``, and how many it has."""
    return "/".join(path.split("/", 3)[:3]), path.count("/")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return f"req_{secrets.token_hex(8)}"


def _template(scope: Scope) -> str:
    route = scope.get("route")
    return str(route.path_format) if isinstance(route, Route) else "-"
