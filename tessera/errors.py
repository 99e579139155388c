"""One tree of errors: the type on the wire, the HTTP status and whether a retry can help.

A service raises one of these; ``api/problems.py`` is the only place that turns one into a body.
Messages are read by people: say what failed, quote the harmless value, name what is allowed and the
next step. Secrets never go into ``message`` or ``details``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

#: A scalar quoted in a message is cut to this many characters.
QUOTE_LENGTH = 80


def quote(value: object) -> str:
    """Return `value` as it may stand in a message: short, on one line, never a container's contents."""
    if isinstance(value, str | int | float | bool) or value is None:
        text = repr(value) if isinstance(value, str) else str(value)
        return text if len(text) <= QUOTE_LENGTH else text[: QUOTE_LENGTH - 1] + "…"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a value of type {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request, at one place.

    `location` is the path in the request (``("body", "payload_indexes", 0, "type")``), `kind` a stable
    word for programs (``unknown_extractor``), `status` the HTTP status this problem alone would give.
    """

    location: tuple[str | int, ...]
    message: str
    kind: str = "value_error"
    status: int = 422


class TesseraError(Exception):
    """Base of everything that Tessera raises on purpose."""

    type: ClassVar[str] = "InternalServerError"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        details: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = dict(details or {})
        self.retry_after_s = retry_after_s


class BadRequestError(TesseraError):
    type, status = "BadRequestError", 400


class UnauthorizedError(TesseraError):
    type, status = "UnauthorizedError", 401


class ForbiddenError(TesseraError):
    type, status = "ForbiddenError", 403


class NotEnabledError(ForbiddenError):
    type = "NotEnabledError"


class QuotaExceededError(ForbiddenError):
    """The organization may not have more of this; the details say what, how much and how much is allowed."""

    type = "QuotaExceededError"


#: What tells someone who asks for a thing that is not there which ones are: the same for everybody, whatever there is.
LISTED_BY: Mapping[str, str] = MappingProxyType(
    {
        "audit event": "GET /v1/organizations/audit/logs",
        "batch": "GET /v1/buckets/{bucket_identifier}/batches",
        "bucket": "GET /v1/buckets",
        "cluster": "GET /v1/clusters",
        "cluster execution": "GET /v1/clusters/{cluster_id}/executions",
        "cluster trigger": "POST /v1/clusters/triggers/list",
        "collection": "GET /v1/collections",
        "dataset": "GET /v1/retrievers/evaluations/datasets",
        "delivery": "GET /v1/organizations/webhooks/{webhook_identifier}/deliveries",
        "document": "POST /v1/collections/{collection_identifier}/documents/list",
        "evaluation": "GET /v1/retrievers/{retriever_id}/evaluations",
        "execution": "GET /v1/retrievers/{retriever_id}/executions",
        "failure": "GET /v1/failures",
        "feature extractor": "GET /v1/collections/features/extractors",
        "interaction": "POST /v1/retrievers/interactions/list",
        "key": "GET /v1/organizations/users/{user_email}/api-keys",
        "namespace": "GET /v1/namespaces",
        "object": "POST /v1/buckets/{bucket_identifier}/objects/list",
        "organization": "GET /v1/private/organizations",
        "result of the cluster execution": "GET /v1/clusters/{cluster_id}/executions",
        "retriever": "GET /v1/retrievers",
        "secret": "GET /v1/organizations/secrets",
        "task": "GET /v1/tasks",
        "taxonomy": "GET /v1/taxonomies",
        "taxonomy version": "GET /v1/taxonomies/{taxonomy_identifier}/versions",
        "upload": "GET /v1/buckets/{bucket_identifier}/uploads",
        "user": "GET /v1/organizations/users",
        "webhook": "GET /v1/organizations/webhooks",
    }
)
#: What no list has, and what to do instead.
_NOT_LISTED = MappingProxyType(
    {
        "blob": "Read its object, or its document, again: their links are made anew.",
        "export": "Exports are removed after a while: ask for another one.",
        "file": "GET /docs names those of the page.",
        "route": "GET /openapi.json lists all routes.",
    }
)


class NotFoundError(TesseraError):
    """Also what belongs to another organization or lies outside a key's scope: same body.

    The message ends with how to find what there is, by the noun alone.
    """

    type, status = "NotFoundError", 404

    def __init__(self, resource: str, identifier: str) -> None:
        listed = LISTED_BY.get(resource)
        step = f"{listed} lists those that there are." if listed else _NOT_LISTED.get(resource, "")
        super().__init__(
            f"{resource} {quote(identifier)} was not found. {step}".rstrip(),
            details={"resource": resource, "id": identifier[:128]},
        )


class AlreadyExistsError(TesseraError):
    type, status = "AlreadyExistsError", 409


class ConflictError(TesseraError):
    """The resource is in a state that does not allow this."""

    type, status = "ConflictError", 409


class PayloadTooLargeError(TesseraError):
    type, status = "PayloadTooLargeError", 413


class HeadersTooLargeError(TesseraError):
    type, status = "RequestHeaderFieldsTooLargeError", 431


class RangeNotSatisfiableError(TesseraError):
    """The file is shorter than the range that was asked for."""

    type, status = "RangeNotSatisfiableError", 416
    size_bytes: int = 0


class RequestTimeoutError(TesseraError):
    """The client took too long to send its request."""

    type, status, retryable = "RequestTimeoutError", 408, True


class UnsupportedMediaTypeError(TesseraError):
    type, status = "UnsupportedMediaTypeError", 415


class ValidationError(TesseraError):
    """Everything that is wrong with one request, reported together."""

    type, status = "ValidationError", 422

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0].message if self.problems else "The request is not valid."
        more = len(self.problems) - 1
        super().__init__(first if more <= 0 else f"{first} (and {more} more, see details)")


class TooManyRequestsError(TesseraError):
    """A key asked too often; `headers` tell it where it stands."""

    type, status, retryable = "TooManyRequestsError", 429, True
    headers: Sequence[tuple[bytes, bytes]] = ()


class ProcessingError(TesseraError):
    type, status = "ProcessingError", 500


class FeatureExtractionError(TesseraError):
    type, status = "FeatureExtractionError", 500


class StorageError(TesseraError):
    type, status = "StorageError", 500


class StorageUnavailableError(StorageError):
    """The disk, or what a program needs to reach it, fails now; the same request may succeed later."""

    status, retryable = 503, True


class UnavailableError(TesseraError):
    """A part that is needed cannot answer now."""

    type, status, retryable = "ServiceUnavailableError", 503, True


class InferenceServiceUnavailableError(UnavailableError):
    """A model that is needed is not installed or cannot be loaded; the message names the remedy."""

    type, retryable = "InferenceServiceUnavailableError", False


class QdrantError(UnavailableError):
    """The vector store refused, failed or cannot be reached."""

    type = "QdrantError"


class QdrantRefusedError(QdrantError):
    """The server refuses our key or our request: sending it again does not help."""

    retryable = False


class ClusterError(UnavailableError):
    """The Ray cluster cannot be used: unreachable, of another version, without the resources asked for."""

    type, retryable = "ClusterError", False


class DeadlineError(UnavailableError):
    type = "TimeoutError"


class OutcomeUnknownError(DeadlineError):
    """It took too long and cannot be taken back: sending it again could do it twice."""

    retryable = False


class InsufficientStorageError(TesseraError):
    type, status, retryable = "InsufficientStorageError", 507, True


class EngineFullError(QdrantError):
    """The disk that holds a view is full."""

    type, status = "InsufficientStorageError", 507


class BadSample(TesseraError):
    """This sample cannot be extracted, or this query not embedded; the others of its batch can.

    `kind` is one of ``unreadable``, ``unsupported``, ``too_large``, ``model_missing``, ``limit``; of what is behind a
    URL also ``fetch_…`` (``causes.py``).
    """

    type, status = "BadRequestError", 400

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Callable[..., BadSample], tuple[str, str]]:
        # It travels between processes as a value.
        return BadSample, (self.kind, self.message)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAILING = frozenset({errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE})
#: How Rust's and SQLite's messages carry what the system said.
_IN_WORDS = (
    (re.compile(r"os error (\d+)"), None),
    (re.compile(r"no space left|disk is full", re.IGNORECASE), errno.ENOSPC),
    (re.compile(r"too many open files", re.IGNORECASE), errno.EMFILE),
    (re.compile(r"disk i/o|input/output error|readonly database", re.IGNORECASE), errno.EIO),
)


def storage_trouble(error: BaseException) -> int | None:
    """Return the ``errno`` of a full or failing disk, or of exhausted descriptors, that `error` speaks of.

    None when it speaks of something else. Libraries that wrap what the system said are read by their message.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        text = str(error)
        for pattern, meant in _IN_WORDS:
            found = pattern.search(text)
            if found:
                number = meant if meant is not None else int(found[1])
                break
    return number if number in _FULL | _FAILING else None


def storage_error(error: BaseException) -> TesseraError | None:
    """Return what a client is told when `error` speaks of a full or failing disk; None when it does not."""
    number = storage_trouble(error)
    if number is None:
        return None
    if number in _FULL:
        return InsufficientStorageError(
            "The disk that holds the data directory is full. Free space and send the request again; what was "
            "acknowledged before is safe.",
            retry_after_s=5,
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return StorageUnavailableError(
            "The server has as many files open as the system allows. Try again in a moment; if this goes on, let the "
            "operator raise the limit (ulimit -n).",
            retry_after_s=2,
        )
    return StorageUnavailableError(
        "The disk that holds the data directory cannot be read or written now. Try again; the server's log has more.",
        retry_after_s=5,
    )


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise what `problems` call for, or return when there is none.

    One problem of status 422 makes the whole answer a 422 that lists all of them; otherwise a 400
    before a 409 (a taken name is reported only when nothing else is wrong).
    """
    if not problems:
        return
    statuses = {problem.status for problem in problems}
    if 422 in statuses:
        raise ValidationError(problems)
    worst = BadRequestError if 400 in statuses else AlreadyExistsError
    kept = [p for p in problems if p.status == worst.status]
    raise worst(
        " ".join(p.message for p in kept),
        details={
            "validation_errors": [
                {"type": p.kind, "location": list(p.location), "message": p.message} for p in kept
            ]
        },
    )
