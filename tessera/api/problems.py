"""Errors become bodies here, and nowhere else.

One body serves both forms that clients know: the envelope ``{success, status, error}`` and, for a 422,
the list ``detail`` beside it. The caller's input is never echoed as a whole: a message quotes short
scalars of fields that are not secret.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tessera.errors import (
    NotFoundError,
    RangeNotSatisfiableError,
    TesseraError,
    TooManyRequestsError,
    ValidationError,
    quote,
    storage_error,
)
from tessera.validation import schema_problems

_RETRY_STATUSES = frozenset({429, 503, 507})
_DEFAULT_RETRY_S = 1.0

_HTTP_TYPES = {
    400: "BadRequestError",
    401: "UnauthorizedError",
    403: "ForbiddenError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    406: "NotAcceptableError",
    413: "PayloadTooLargeError",
    415: "UnsupportedMediaTypeError",
}


def answer(error: Exception, request_id: str) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Return status, JSON body and extra headers for whatever was raised while a request was served."""
    if isinstance(error, RequestValidationError):
        error = ValidationError(schema_problems(error.errors()))
    if isinstance(error, TesseraError):
        return _known(error, request_id)
    if isinstance(error, HTTPException):
        return _http(error)
    trouble = storage_error(error) if isinstance(error, OSError) else None
    if trouble is not None:
        return _known(trouble, request_id)
    # Nothing about an unexpected failure is the caller's business, except how to find it in the log.
    return _body(
        500,
        "InternalServerError",
        f"Something went wrong inside the server. Its log has the details under request id {request_id}.",
        {"request_id": request_id, "retryable": False},
    )


def _known(error: TesseraError, request_id: str) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    details = dict(error.details)
    headers: list[tuple[bytes, bytes]] = []
    detail = None
    if isinstance(error, ValidationError):
        details["validation_errors"] = [
            {"type": p.kind, "location": list(p.location), "message": p.message} for p in error.problems
        ]
        # Both official clients decode this list; they disagree about the names of its keys.
        detail = [
            {
                "loc": list(p.location),
                "msg": p.message,
                "type": p.kind,
                "error_code": p.kind,
                "message": p.message,
            }
            for p in error.problems
        ]
    if error.status in _RETRY_STATUSES:
        details["retryable"] = error.retryable
        if error.retryable:
            seconds = error.retry_after_s if error.retry_after_s is not None else _DEFAULT_RETRY_S
            details["retry_after_seconds"] = seconds
            headers.append((b"retry-after", str(math.ceil(seconds)).encode()))
    if isinstance(error, TooManyRequestsError):
        headers += error.headers
    if isinstance(error, RangeNotSatisfiableError):
        headers.append((b"content-range", f"bytes */{error.size_bytes}".encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status >= 500:
        details.setdefault("request_id", request_id)
    status, body, more = _body(error.status, error.type, error.message, details or None, detail)
    return status, body, headers + more


def _http(error: HTTPException) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Answer what the framework raised: an unknown path, a wrong method."""
    headers = [(k.lower().encode(), v.encode()) for k, v in (error.headers or {}).items()]
    kind = _HTTP_TYPES.get(
        error.status_code, "BadRequestError" if error.status_code < 500 else "InternalServerError"
    )
    message, details = str(error.detail), None
    if error.status_code == 405:
        allowed = dict(headers).get(b"allow", b"").decode()
        message = f"This path does not take this method; it takes: {allowed}." if allowed else message
        details = {"allowed": allowed.split(", ")} if allowed else None
    status, body, more = _body(error.status_code, kind, message, details)
    return status, body, headers + more


def no_such_route(method: str, path: str) -> TesseraError:
    """Return the error for a path that no route answers."""
    error = NotFoundError("route", path)
    error.message = (
        f"There is no {method} {quote(path)}. GET /openapi.json lists all routes, /docs shows them."
    )
    return error


def _body(
    status: int,
    kind: str,
    message: str,
    details: Mapping[str, Any] | None,
    detail: list[dict[str, Any]] | None = None,
) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    content: dict[str, Any] = {
        "success": False,
        "status": status,
        "error": {"message": message, "type": kind, "details": details},
    }
    if detail is not None:
        content["detail"] = detail
    # A message may quote what the client sent: a lone surrogate must not turn an error into another one.
    try:
        body = orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS, default=str)
    except TypeError:
        body = orjson.dumps(
            {**content, "error": {"message": ascii(message), "type": kind, "details": None}}, default=str
        )
    return status, body, []
