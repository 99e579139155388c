"""The key check, in front of everything: no body is read for a request without a valid key."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from tessera.api.routing import Asking, Exchange, principal, require
from tessera.errors import UnauthorizedError
from tessera.organizations import Keys

__all__ = ["Asking", "Authenticate", "is_public", "principal", "require"]

#: Paths that answer without a key. Below ``/v1/blobs/`` the URL itself is signed.
_PUBLIC_PATHS = frozenset({"/v1/health", "/v1/retrievers/stages", "/v1/collections/features/extractors"})
_PUBLIC_PREFIXES = (
    "/v1/health/",
    "/v1/collections/features/extractors/",
    "/v1/discovery",
    "/v1/public/",
    "/v1/blobs/",
)


def is_public(path: str) -> bool:
    """Whether `path` answers without a key: health, the catalogue, signed URLs, and all outside ``/v1``."""
    return not path.startswith("/v1/") or path in _PUBLIC_PATHS or path.startswith(_PUBLIC_PREFIXES)


class Authenticate:
    """ASGI middleware that puts the principal into the exchange, or raises `UnauthorizedError`."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the key of `scope` and pass on."""
        if scope["type"] == "http" and not is_public(scope["path"]):
            exchange: Exchange = scope["tessera"]
            key = bearer(scope)
            if key.startswith("sk_"):
                exchange.key_prefix = key[:13]
            # On SQLite the look-up takes microseconds, a change of thread takes a hundred.
            exchange.principal = (
                await run_in_threadpool(self.keys.check, key) if self.keys.blocking else self.keys.check(key)
            )
        await self.app(scope, receive, send)


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
