"""What every route has in common: permission before body, one JSON parser with limits, ignored keys named.

A module with routes makes its router here, ``router = Router(tags=["Buckets"])``, and states paths in
full (``/v1/buckets``). Permissions follow from the method unless a route says otherwise with
``dependencies=[require("read")]``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import AliasChoices, AliasPath, BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from tessera import audit, confinement, limits
from tessera.api import parsing
from tessera.context import Principal
from tessera.errors import (
    ForbiddenError,
    PayloadTooLargeError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    quote,
)
from tessera.limits import RateLimiter

#: Of ignored keys the response header names the first few.
_IGNORED_SHOWN = 20

#: Keys that an object may have, each with the keys of the objects inside; None: any.
Keys = Mapping[str, "Keys | None"]

_BY_METHOD = {
    "GET": "read",
    "HEAD": "read",
    "POST": "write",
    "PUT": "write",
    "PATCH": "write",
    "DELETE": "delete",
}


@dataclass(slots=True)
class Exchange:
    """What belongs to one request on its way through the server (``scope["tessera"]``)."""

    request_id: str
    max_body_bytes: int
    limiter: RateLimiter | None = None
    principal: Principal | None = None
    #: Whether the operator's own secret came with it; only below ``/v1/private``.
    is_operator: bool = False
    key_prefix: str = "-"
    #: The class of the route, whose requests are counted together.
    api_name: str = "metadata"
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    #: The request once it was let in, its body read.
    admitted: JsonRequest | None = None
    #: Set while a large body is computed on.
    turn: Turn | None = None


class Turn:
    """The turn of one large body: one of them at a time is computed on, and the first to come is the first done.

    Of several that come together the interpreter would go from one to the other, and the index, which works beside,
    would wait until nearly all of them are checked. From `begin` to `end`, which may be called in any thread, and
    again.
    """

    def __init__(self) -> None:
        self._release: Callable[[], object] | None = None

    async def begin(self, state: Any) -> None:
        """Wait for the turn, on the loop of the application that has `state`."""
        turns: asyncio.Semaphore | None = getattr(state, "turns", None)
        if turns is None:
            turns = state.turns = asyncio.Semaphore(1)
        await turns.acquire()
        loop = asyncio.get_running_loop()
        self._release = functools.partial(loop.call_soon_threadsafe, turns.release)

    def end(self) -> None:
        """Let the next one begin."""
        release, self._release = self._release, None
        if release is not None:
            release()


class JsonRequest(Request):
    """A request whose body is read once, within limits, and parsed by one strict parser."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._loaded = False

    async def load(self, vectors: parsing.Place | None = None) -> None:
        """Read and parse the body; later calls of `body` and `json` answer from memory.

        `vectors` says where lists of numbers may become arrays (`parsing.parse`).

        Raises `UnsupportedMediaTypeError`, `PayloadTooLargeError`, or `ValidationError` for what is not
        JSON, is nested deeper than `parsing.MAX_DEPTH`, or holds NaN or an infinite number.
        """
        if self._loaded:
            return
        self._body = await self._read_body()
        if self._body:
            self._refuse_other_types()
            if len(self._body) < parsing.LARGE_BODY:
                self._json = parsing.parse(self._body)
            else:
                self._json = await self._parse_in_turn(vectors)
        self._loaded = True

    async def _parse_in_turn(self, vectors: parsing.Place | None) -> Any:
        """Parse a large body. With `vectors` the turn goes on: there is more to compute, and who does ends it."""
        turn = exchange(self).turn = Turn()
        await turn.begin(self.app.state)
        goes_on = False
        try:
            # What takes longer than a thread's start does not hold up the loop that serves everybody.
            value = await run_in_threadpool(parsing.parse, self._body, vectors)
            goes_on = vectors is not None
        finally:
            if not goes_on:
                turn.end()
        return value

    async def json(self) -> Any:
        """Return the parsed body; an absent one is an empty object."""
        await self.load()
        return self._json if self._body else {}

    @property
    def parsed(self) -> Any:
        """The body that was loaded; None for an absent one."""
        return self._json if self._loaded and self._body else None

    async def _read_body(self) -> bytes:
        limit = exchange(self).max_body_bytes
        declared = self.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            await self._discard(4 * limit)
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        async for chunk in self.stream():
            size += len(chunk)
            if size > limit:
                await self._discard(4 * limit)
                raise _too_large(limit)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _discard(self, limit: int) -> None:
        """Read on without keeping anything: a client that is still sending would not see the answer."""
        seen = 0
        while seen < limit:
            message = await self._receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    def _refuse_other_types(self) -> None:
        given = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if given != "application/json" and not given.endswith("+json"):
            raise UnsupportedMediaTypeError(
                f"The body must be JSON with Content-Type: application/json, not {quote(given)}.",
                details={"supported": ["application/json"]},
            )


class Route(APIRoute):
    """A route that checks the key's permission, then reads the body, then validates."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        call = self.dependant.call
        if call is not None and not inspect.iscoroutinefunction(call):
            self.dependant.call = _answering(call, self.response_model, self.status_code or 200)
        handle = super().get_route_handler()
        self.gate = gate = Gate(self)

        async def checked(request: Request) -> Response:
            found = exchange(request)
            try:
                admitted = found.admitted or await gate.admit(request)
                response = await handle(admitted)
            finally:
                if found.turn is not None:
                    found.turn.end()
            gate.note_read(admitted)
            return response

        return checked


class Gate:
    """What a request to a route passes before anything else: its permission, the key's limits and scopes, its body."""

    def __init__(self, route: Route) -> None:
        self._permission = _permission(route)
        self._takes_json = route.body_field is not None
        self._known = _known_keys(route)
        self._vectors = _vectors_at(route)
        method = next(iter(sorted((route.methods or {"GET"}) - {"HEAD"})), "GET")
        self._api_name = limits.api_name(method, route.path_format)
        self._read = audit.read_of(self._permission, route.path_format)

    async def admit(self, request: Request) -> JsonRequest:
        """Return the request with its body read. Raises what is wrong with the key or the body."""
        found = exchange(request)
        found.api_name = self._api_name
        principal = found.principal
        if principal is not None:
            if found.limiter is not None:
                allowance = found.limiter.take(principal, self._api_name)
                if allowance is not None:
                    found.headers += allowance.headers()
            if self._permission not in principal.permissions:
                raise _forbidden(self._permission, principal, request)
            if principal.scopes:
                found.principal = await _scoped(request, principal, self._permission)
        admitted = JsonRequest(request.scope, request.receive, request._send)  # noqa: SLF001
        if self._takes_json:
            await admitted.load(self._vectors)
            if self._known is not None and isinstance(body := await admitted.json(), dict):
                note_ignored(admitted, body, self._known)
        found.admitted = admitted
        return admitted

    def note_read(self, request: Request) -> None:
        """Write the read into the audit log where the organization wants that."""
        principal = exchange(request).principal
        if self._read is not None and principal is not None and principal.reads_audited:
            wh = request.app.state.warehouse
            audit.record_read(wh, principal, *self._read.of(request.path_params))


async def _scoped(request: Request, principal: Principal, permission: str) -> Principal:
    """Return the principal as this route may use it: what it asks for, and where its scopes let it in."""
    principal = replace(principal, asks=permission)
    if not confinement.is_narrow(principal):
        return principal
    return await run_in_threadpool(
        confinement.admit,
        request.app.state.warehouse,
        principal,
        request.scope["route"].path_format,
        dict(request.path_params),
        request.headers.get("x-namespace"),
    )


class Router(APIRouter):
    """A router whose routes are `Route`; a body without a content type is taken for JSON."""

    def __init__(self, *, tags: list[str]) -> None:
        super().__init__(
            tags=list(tags), route_class=Route, strict_content_type=False, redirect_slashes=False
        )


def require(permission: str) -> Any:
    """Return a dependency that states which permission a route needs (read, write, delete, admin)."""

    async def required() -> None:
        """Checked by `Route` before the body is read; this function only carries the word."""

    required.permission = permission  # type: ignore[attr-defined]
    return Depends(required)


def exchange(request: Request) -> Exchange:
    """Return what the server knows about this request."""
    return cast(Exchange, request.scope["tessera"])


def principal(request: Request) -> Principal:
    """Return who is asking. Raises `UnauthorizedError` on a public route without a key."""
    found = exchange(request).principal
    if found is None:
        raise UnauthorizedError("This route needs an API key: send the header Authorization: Bearer sk_….")
    return found


async def _principal(request: Request) -> Principal:
    return principal(request)


async def _json_body(request: Request) -> Any:
    return await request.json()


#: Parameter of a route: who is asking.
Asking = Annotated[Principal, Depends(_principal)]

#: Parameter of a route that validates its body by hand: the parsed JSON ({} when there is none).
RawBody = Annotated[Any, Depends(_json_body)]


def _answering(call: Callable[..., Any], model: Any, status: int) -> Callable[..., Any]:
    """Wrap a plain function so that what it returns is turned into JSON in the thread that it runs in.

    The framework would check the result against the model once more, in a second thread.
    """

    @functools.wraps(call)
    def answer(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        content = _as_json(result, model)
        return result if content is None else Response(content, status, media_type="application/json")

    return answer


def _as_json(result: object, model: Any) -> bytes | None:
    """Return the body that a route's result is, None for what the framework has to turn into one."""
    if isinstance(result, BaseModel) and type(result) is model:
        content: bytes = result.__pydantic_serializer__.to_json(result, by_alias=True)
        return content
    if isinstance(result, dict | list) and not (isinstance(model, type) and issubclass(model, BaseModel)):
        return orjson.dumps(result, default=_plain)
    return None


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__name__} is no JSON")


def note_ignored(request: Request, body: Mapping[str, Any], known: Keys) -> None:
    """Remember keys of `body` that the route does not know, also inside; the answer names them in a header."""
    exchange(request).ignored.extend(_unknown(body, known, ""))


def _unknown(value: object, known: Keys, path: str) -> Iterable[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key not in known:
                yield f"{path}{key}"
            elif (inside := known[key]) is not None and isinstance(child, dict | list):
                yield from _unknown(child, inside, f"{path}{key}.")
    elif isinstance(value, list):
        names = known.keys()
        flat = all(inside is None for inside in known.values())
        for number, child in enumerate(value):
            if flat and isinstance(child, dict) and child.keys() <= names:
                continue  # nothing to name, as in nearly all of a thousand documents
            yield from _unknown(child, known, f"{path[:-1]}[{number}].")


def model_keys(model: type[BaseModel], seen: frozenset[type] = frozenset()) -> Keys | None:
    """Return the keys that `model` reads, aliases included; None when it keeps every key."""
    if model.model_config.get("extra") == "allow" or model in seen:
        return None
    keys: dict[str, Keys | None] = {}
    for name, info in model.model_fields.items():
        inside = _inner_keys(info.annotation, seen | {model})
        keys[name] = inside
        aliases = info.validation_alias
        for alias in aliases.choices if isinstance(aliases, AliasChoices) else [aliases, info.alias]:
            if isinstance(alias, AliasPath):
                keys[str(alias.path[0])] = None
            elif alias is not None:
                keys[alias] = inside
    return keys


def _inner_keys(annotation: Any, seen: frozenset[type]) -> Keys | None:
    """Return the keys of the model that a field of this type holds, alone or in a list; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return model_keys(annotation, seen)
    origin = typing.get_origin(annotation)
    if origin not in (typing.Union, types.UnionType, Annotated, list):
        return None
    parts = typing.get_args(annotation)
    members = [part for part in (parts[:1] if origin is Annotated else parts) if part is not type(None)]
    return _inner_keys(members[0], seen) if len(members) == 1 else None


def ignored_header(ignored: list[str]) -> bytes | None:
    """Return the value of ``X-Ignored-Fields`` (ASCII, comma separated), or None when there is none."""
    if not ignored:
        return None
    shown = [key.encode("ascii", "backslashreplace").decode()[:64] for key in ignored[:_IGNORED_SHOWN]]
    clean = ["".join(c if c.isprintable() and c != "," else "?" for c in key) for key in shown]
    more = ["..."] if len(ignored) > _IGNORED_SHOWN else []
    return ", ".join(clean + more).encode()


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body is larger than {limit} bytes, the limit of this server (setting max_body_bytes). Send large "
        "files as an upload or by URL.",
        details={"max_body_bytes": limit},
    )


def _forbidden(permission: str, principal: Principal, request: Request) -> ForbiddenError:
    granted = sorted(principal.permissions, key=["read", "write", "delete", "admin"].index)
    return ForbiddenError(
        f"{request.method} {request.scope['route'].path_format} needs the permission {permission}; this key has "
        f"{', '.join(granted) or 'none'}. An admin can make a key with it.",
        details={"required": permission, "granted": granted},
    )


def _permission(route: APIRoute) -> str:
    calls = (dependency.call for dependency in _flat(route.dependant))
    stated = [call.permission for call in calls if call is not None and hasattr(call, "permission")]
    if stated:
        return str(stated[-1])
    methods = route.methods or {"GET"}
    if methods == {"POST"} and route.path.rsplit("/", 1)[-1] in {"list", "execute", "explain", "aggregate"}:
        return "read"
    return _BY_METHOD[next(iter(sorted(methods - {"HEAD"} or methods)))]


def _flat(dependant: Dependant) -> Iterable[Dependant]:
    for child in dependant.dependencies:
        yield child
        yield from _flat(child)


def _vectors_at(route: APIRoute) -> parsing.Place | None:
    """Return where the model of the route's body says that vectors lie."""
    for parameter in route.dependant.body_params:
        place: parsing.Place | None = getattr(parameter.field_info.annotation, "vectors_at", None)
        if place is not None:
            return place
    return None


def _known_keys(route: APIRoute) -> Keys | None:
    parameters = route.dependant.body_params
    if len(parameters) != 1:
        return None
    annotation = parameters[0].field_info.annotation
    members = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    keys: dict[str, Keys | None] = {}
    for member in members:
        if member is type(None):
            continue
        if not (isinstance(member, type) and issubclass(member, BaseModel)):
            return None
        found = model_keys(member)
        if found is None:
            return None
        keys |= found
    # A dependency may read keys of the body too.
    for dependency in _flat(route.dependant):
        keys |= dict.fromkeys(getattr(dependency.call, "reads", ()))
    return keys
