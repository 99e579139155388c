"""``/docs`` (Swagger UI, its files served from this machine) and ``/openapi.json``."""

from __future__ import annotations

import importlib.resources
import warnings
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute

from tessera import __version__
from tessera.api.auth import is_public
from tessera.api.routing import Router
from tessera.api.scope import warehouse
from tessera.errors import NotFoundError

router = Router(tags=["Docs"])

_TAG_ORDER = (
    "Namespaces",
    "Buckets",
    "Objects",
    "Uploads",
    "Collections",
    "Batches",
    "Failures",
    "Tasks",
    "Documents",
    "Retrievers",
    "Taxonomies",
)

_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}

_DESCRIPTION = """\
Put video, pictures, audio, documents and text in; search them by meaning.

Every call but health and the extractor catalogue takes `Authorization: Bearer sk_…`; calls inside a
namespace also take `X-Namespace`. Unknown keys of a request are ignored and named in the answer's header
`X-Ignored-Fields`. An error says what failed, and the next step, in `error.message`.
"""

#: Errors that any operation may answer with.
_ERRORS = {
    "400": "A combination that is not allowed",
    "401": "No key, or one that is not valid",
    "403": "The key lacks the permission",
    "404": "Absent, or not visible to this key",
    "409": "The name is taken, or the state does not allow this",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "422": "The request is not valid; every problem is listed",
    "429": "Too many requests",
    "500": "Something failed inside the server",
    "503": "A part that is needed cannot answer now",
    "507": "The disk is full",
}

_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["success", "status", "error"],
    "properties": {
        "success": {"type": "boolean", "const": False},
        "status": {"type": "integer", "examples": [404]},
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string", "examples": ["namespace 'films' was not found."]},
                "type": {"type": "string", "examples": ["NotFoundError"]},
                "details": {"type": ["object", "null"], "additionalProperties": True},
            },
        },
        "detail": {
            "type": "array",
            "description": "With status 422: each problem.",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """Lead a browser to the documentation."""
    return RedirectResponse("/docs")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show Swagger UI; nothing of it is loaded from elsewhere."""
    prefix = urlsplit(warehouse(request).base_url).path.rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{prefix}/openapi.json",
        title="Tessera API",
        swagger_js_url=f"{prefix}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}/docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{prefix}/docs/assets/favicon.png",
        swagger_ui_parameters={"persistAuthorization": True, "validatorUrl": None},
    )


@router.get("/docs/assets/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """Serve a file of Swagger UI."""
    if name not in _ASSETS:
        raise NotFoundError("file", name)
    # The package is used for its files only and never imported.
    path = importlib.resources.files("fastapi_offline") / "static" / name
    return FileResponse(
        str(path), media_type=_ASSETS[name], headers={"Cache-Control": "public, max-age=86400"}
    )


def openapi(app: FastAPI) -> dict[str, Any]:
    """Return the complete OpenAPI description: security, errors and headers included."""
    with warnings.catch_warnings():
        # About operation ids that appear twice: all are replaced below.
        warnings.simplefilter("ignore", UserWarning)
        description = get_openapi(
            title="Tessera", version=__version__, description=_DESCRIPTION, routes=app.routes, tags=_tags(app)
        )
    components = description.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["ErrorResponse"] = _ERROR_SCHEMA
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: sk_live_…"}
    }
    components["responses"] = {
        f"Error{status}": {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
        }
        for status, text in _ERRORS.items()
    }
    description["security"] = [{"key": []}]
    ids = _operation_ids(app)
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            operation["operationId"] = ids[path, method]
            if is_public(path):
                operation["security"] = []
            responses = operation["responses"]
            for status in _ERRORS:
                stated = responses.get(status)
                if stated is None or "HTTPValidationError" in str(stated):
                    responses[status] = {"$ref": f"#/components/responses/Error{status}"}
    return description


def _operation_ids(app: FastAPI) -> dict[tuple[str, str], str]:
    """Name each operation after its function, for short names in generated clients; twins get their tag."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
    times = Counter(route.name for route in routes)
    ids = {}
    for route in routes:
        tag = "_".join(map(str, route.tags)).lower()
        name = route.name if times[route.name] == 1 else f"{route.name}_{tag}"
        for number, method in enumerate(sorted(route.methods or ())):
            ids[route.path_format, method.lower()] = f"{name}_{method.lower()}" if number else name
    return ids


def _tags(app: FastAPI) -> list[dict[str, str]]:
    found = {str(tag) for route in app.routes if isinstance(route, APIRoute) for tag in route.tags}
    found.discard("Docs")
    first = [tag for tag in _TAG_ORDER if tag in found]
    return [{"name": tag} for tag in [*first, *sorted(found.difference(first))]]
