"""The key check, in front of everything: no body is read for a request without a valid key."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from tessera.api.routing import Asking, Exchange, principal, require
from tessera.context import Caller
from tessera.errors import ForbiddenError, UnauthorizedError
from tessera.organizations import Keys

__all__ = ["Asking", "Authenticate", "is_public", "principal", "require"]

#: Paths that answer without a key. Below ``/v1/blobs/``, ``/v1/uploads/`` and ``/v1/exports/`` the URL itself is
#: signed.
_PUBLIC_PATHS = frozenset({"/v1/health", "/v1/retrievers/stages", "/v1/collections/features/extractors"})
_PUBLIC_PREFIXES = (
    "/v1/health/",
    "/v1/collections/features/extractors/",
    "/v1/discovery",
    "/v1/public/",
    "/v1/blobs/",
    "/v1/exports/",
    "/v1/uploads/",
)
#: Paths that take the operator's secret instead of a key, when the server has one.
_PRIVATE = "/v1/private/"
_SHORTEST_KEY = 24


def is_public(path: str) -> bool:
    """Whether `path` answers without a key: health, the catalogue, signed URLs, and all outside ``/v1``."""
    return not path.startswith("/v1/") or path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIXES)


class Authenticate:
    """ASGI middleware that puts the principal into the exchange, or raises `UnauthorizedError`."""

    def __init__(self, app: ASGIApp, keys: Keys, operator_secret: str | None = None) -> None:
        self.app = app
        self.keys = keys
        self.operator_secret = operator_secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key of `scope` and pass on."""
        if scope["type"] == "http" and not is_public(scope["path"]):
            exchange: Exchange = scope["tessera"]
            key = bearer(scope)
            if self.operator_secret is not None and scope["path"].startswith(_PRIVATE):
                _check_operator(key, self.operator_secret)
                exchange.is_operator = True
                exchange.key_prefix = "operator"
            else:
                # Only of what is long enough for a key: of anything else the beginning may be all of it.
                if key.startswith("sk_") and len(key) >= _SHORTEST_KEY:
                    exchange.key_prefix = key[:13]
                caller = caller_of(scope)
                # On SQLite the look-up takes microseconds, a change of thread takes a hundred.
                exchange.principal = principal = (
                    await run_in_threadpool(self.keys.check, key, caller)
                    if self.keys.blocking
                    else self.keys.check(key, caller)
                )
                if principal.allowed_origins:
                    _check_origin(principal.allowed_origins, scope)
        await self.app(scope, receive, send)


def caller_of(scope: Scope) -> Caller:
    """Return where a request came from: the peer's address (a proxy's, behind one), what it calls itself."""
    client = scope.get("client")
    return Caller(client[0] if client else None, _header(scope, b"user-agent"), scope["tessera"].request_id)


def _check_operator(key: str, secret: str) -> None:
    if not hmac.compare_digest(key.encode(), secret.encode()):
        raise UnauthorizedError(
            "These routes take the operator's secret (setting operator_secret) as the key."
        )


def _check_origin(allowed: tuple[str, ...], scope: Scope) -> None:
    """Refuse a key that is made for certain pages anywhere else, also where no page is named."""
    origin = _header(scope, b"origin")
    if origin is None:
        # A page that asks its own server sends no Origin.
        parts = urlsplit(_header(scope, b"referer") or "")
        origin = f"{parts.scheme}://{parts.netloc}"
    origin = origin.lower()
    for pattern in allowed:
        scheme, wild, parent = pattern.partition("://*.")
        if pattern in ("*", origin) or (
            wild and origin.startswith(f"{scheme}://") and origin.endswith(f".{parent}")
        ):
            return
    raise ForbiddenError(
        "This key may only be used from the origins that it was made for (allowed_origins of the key).",
        details={"header": "Origin"},
    )


def _header(scope: Scope, name: bytes) -> str | None:
    for given, value in scope["headers"]:
        if given == name:
            return str(value.decode("latin-1"))[:500]
    return None


def bearer(scope: Scope) -> str:
    """Return the key of the Authorization header. Raises `UnauthorizedError` that says what is missing."""
    given: set[bytes] = {value for name, value in scope["headers"] if name == b"authorization"}
    if not given:
        raise UnauthorizedError("An API key is needed: send the header Authorization: Bearer sk_….")
    if len(given) > 1:
        raise UnauthorizedError("There are two different Authorization headers; send one.")
    scheme, _, key = given.pop().decode("latin-1").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthorizedError("The Authorization header must read: Bearer sk_….")
    return key.strip()
