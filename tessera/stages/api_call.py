"""Ask another server about each hit, or about all of them at once, and put its answer into the hits.

Every request goes through the guarded fetcher, to a host that the stage names; credentials are secrets of the
organization that are filled in when a request is made, and are taken out of whatever comes back.
"""

from __future__ import annotations

import base64
import re
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import orjson
from pydantic import Field, field_validator, model_validator

from tessera import fetching, templates
from tessera.errors import BadRequestError, Problem, ProcessingError, TesseraError, quote
from tessera.fetching import FetchError, Windows
from tessera.ports import HIDDEN_FIELDS, Hit
from tessera.stages.asking import Secrets, document_problems
from tessera.stages.base import (
    Equipment,
    FieldPath,
    FieldPaths,
    Stage,
    StageContext,
    StageParams,
    collected,
    filter_problems,
    let_through,
    tree_at,
    with_tree_at,
)
from tessera.stages.outside import ON_ERROR, OnError, at_once, output_path, settle, unfit

#: Most requests of one stage in one execution, and most bytes of all their answers together.
MAX_CALLS = 500
MAX_ANSWER_BYTES = 10 * 2**20
#: What a secret is replaced by in an answer.
_HIDDEN = "[secret]"
_NOTHING = object()

_DOMAIN = re.compile(r"(\*\.)?(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d{1,6})\]|\['([^'\]]{1,200})'\]|\[\"([^\"\]]{1,200})\"\]")
#: Headers that frame the request, or belong to the connection.
_RESERVED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"}
)


class Auth(StageParams):
    """How a request is authorised: with the secret named `secret_ref`, as `type` says.

    ``bearer``, ``basic`` (the secret is "user:password"), ``api_key`` (under `key`, in a header or in the query) and
    ``custom_header`` (`key` is the header's name).
    """

    type: Literal["none", "api_key", "bearer", "basic", "custom_header"] = "none"
    secret_ref: str | None = Field(None, max_length=200)
    location: Literal["header", "query"] = "header"
    key: str | None = Field(None, max_length=100)

    @field_validator("type", "location", mode="before")
    @classmethod
    def _default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value in (None, "null") else value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Auth:
        if self.type != "none" and not self.secret_ref:
            raise ValueError(f"auth of type {self.type} needs secret_ref, the name of a secret")
        if self.type in ("api_key", "custom_header") and not self.key:
            raise ValueError(f"auth of type {self.type} needs key, the name that the secret is sent under")
        if self.key and not _TOKEN.fullmatch(self.key):
            raise ValueError("key of auth is no name of a header or a query parameter")
        return self


class RateLimit(StageParams):
    """Most requests of this server to one host. What goes beyond is an error of its document."""

    requests_per_minute: int | None = Field(None, ge=1, le=10_000)
    requests_per_hour: int | None = Field(None, ge=1, le=100_000)


class ApiCallParams(StageParams):
    """Where a request goes, what it carries, and where the answer goes.

    ``{{DOC.path}}`` and ``{{INPUT.name}}`` stand in `url`, `headers` and `body`, ``{{secrets.name}}`` too; inside a URL
    values are percent-encoded. With `mode` ``batch`` one request is made for all hits, with their `document_fields`
    (`document_id` and all that they show) under ``documents`` of the body, and the answer is a list with one item for
    each.
    """

    url: str = Field(min_length=1, max_length=4000, examples=["https://api.example.com/items/{{DOC.sku}}"])
    allowed_domains: list[str] = Field(min_length=1, max_length=100)
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    mode: Literal["per_document", "batch"] = "per_document"
    auth: Auth | None = None
    headers: dict[str, str] = Field({}, max_length=50)
    body: dict[str, Any] | None = None
    document_fields: FieldPaths = Field([], max_length=100)
    output_field: FieldPath = "metadata.api_response"
    timeout: float = Field(10, ge=1, le=60, description="Seconds for one request.")
    max_response_size: int = Field(2**20, ge=1024, description="Bytes; at most 10 MiB are taken.")
    max_concurrency: int = Field(4, ge=1, le=16)
    rate_limit: RateLimit | None = None
    response_path: str | None = Field(None, max_length=500)
    when: dict[str, Any] | None = None
    on_error: OnError = Field("skip", description=ON_ERROR)

    _free = field_validator("output_field")(output_path)

    @field_validator("allowed_domains")
    @classmethod
    def _names(cls, value: list[str]) -> list[str]:
        for domain in value:
            if not _DOMAIN.fullmatch(domain):
                raise ValueError(
                    f"{quote(domain)} is no domain; write api.example.com, or *.example.com for all below it"
                )
        return [domain.lower() for domain in value]

    @field_validator("headers", mode="before")
    @classmethod
    def _no_headers(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("headers")
    @classmethod
    def _headers(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _TOKEN.fullmatch(name) or name.lower() in _RESERVED:
                raise ValueError(f"{quote(name)} is no header that a stage sends")
        return value

    @field_validator("response_path", "on_error", "method", mode="before")
    @classmethod
    def _nothing(cls, value: Any, info: Any) -> Any:
        # The official client states a default of its own, the text "null".
        return cls.model_fields[info.field_name].default if value in (None, "null", "") else value

    @field_validator("response_path")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        if value is not None:
            steps_of(value)
        return value


class ApiCall(Stage):
    stage_id = "api_call"
    category = "apply"
    description = "Asks another server about each hit and adds its answer."
    icon = "plug"
    Params = ApiCallParams
    cost_tier = "expensive"
    example: ClassVar = {
        "url": "https://api.example.com/items/{{DOC.sku}}",
        "allowed_domains": ["api.example.com"],
    }
    is_repeatable = False
    per_document = frozenset({"url", "headers", "body"})
    secret_in = frozenset({"url", "headers", "body"})

    def secrets_in(self, parameters: Mapping[str, Any]) -> set[str]:
        """Return the names of the secrets in templates, and that of `auth`."""
        auth = parameters.get("auth")
        named = auth.get("secret_ref") if isinstance(auth, Mapping) else None
        return super().secrets_in(parameters) | ({named} if isinstance(named, str) and named else set())

    def problems(self, parameters: Mapping[str, Any], location: tuple[str | int, ...]) -> list[Problem]:
        """Return what is wrong with `when`, and a problem for hosts or a secret that an input would choose."""
        problems = filter_problems(parameters.get("when"), (*location, "when"))
        for name in ("allowed_domains", "auth", "method"):
            if templates.references(parameters.get(name)):
                problems.append(
                    Problem(
                        (*location, name),
                        f"{name} is written out, not taken from inputs: who runs a retriever does not decide where "
                        "it sends what.",
                        "template",
                    )
                )
        if parameters.get("mode") == "batch":
            for name in ("url", "headers", "body"):
                problems += document_problems(parameters, name, location)
        url = parameters.get("url")
        scheme, _, rest = url.partition("://") if isinstance(url, str) else ("{{}}", "", "")
        if any(root == "SECRET" for root, _ in templates.references(scheme + rest.partition("/")[0])):
            # Messages name the host that is asked.
            problems.append(
                Problem((*location, "url"), "A secret stands behind the host of a URL, not before.", "secret")
            )
        if "{{" not in scheme and "{{" not in rest.partition("/")[0] and isinstance(url, str):
            domains = parameters.get("allowed_domains")
            try:
                host = fetching.parse(re.sub(r"\{\{[^{}]*\}\}", "x", url)).host
            except FetchError as error:
                return [*problems, Problem((*location, "url"), error.message, "bad_url")]
            if isinstance(domains, list) and not is_allowed(host, [str(domain) for domain in domains]):
                problems.append(Problem((*location, "url"), _not_allowed(host), "not_allowed"))
        return problems

    def asks(self, parameters: Mapping[str, Any], equipment: Equipment) -> str | None:
        """Return the server at the URL."""
        return "another server"

    def run(self, hits: list[Hit] | None, params: ApiCallParams, context: StageContext) -> list[Hit]:
        """Return the hits in their order, each with what was answered at `output_field`; ids and scores stay."""
        found = collected(hits, context)
        chosen = let_through(params.when, found, context)
        calls = 1 if params.mode == "batch" else len(chosen)
        if calls > MAX_CALLS:
            raise BadRequestError(
                f"api_call would send {calls:,} requests; at most {MAX_CALLS} are sent. Put a limit or a filter before "
                "it, or use mode batch."
            )
        if not chosen:
            return found
        about = [found[number] for number in chosen]
        answers, errors = _Caller(params, context).answers(about)
        context.work.metadata |= {"calls": calls}
        goes_on = {chosen[number] for number in settle(about, errors, params.on_error, context)}
        said = {chosen[number]: value for number, value in answers.items()}
        asked = set(chosen)
        return [
            replace(hit, payload=with_tree_at(hit.payload, params.output_field, said[number]))
            if number in said
            else hit
            for number, hit in enumerate(found)
            if number not in asked or number in goes_on
        ]


class _Caller:
    """Makes the requests of one run of the stage."""

    def __init__(self, params: ApiCallParams, context: StageContext) -> None:
        self._params, self._context = params, context
        self._left_bytes = MAX_ANSWER_BYTES
        self._lock = threading.Lock()
        wanted = {params.auth.secret_ref} if params.auth and params.auth.secret_ref else set()
        for value in (params.url, params.headers, params.body):
            wanted |= {path[0] for root, path in templates.references(value) if root == "SECRET"}
        known = Secrets(context)
        self._secrets = {name: known[name] for name in wanted}

    def answers(self, hits: Sequence[Hit]) -> tuple[dict[int, Any], dict[int, TesseraError]]:
        """Return what was answered about the hits, and the errors of the others, by their numbers."""
        values: dict[int, Any] = {}
        errors: dict[int, TesseraError] = {}
        if self._params.mode == "batch":
            try:
                values = dict(enumerate(self._batch(hits)))
            except (FetchError, ProcessingError) as error:
                errors = dict.fromkeys(range(len(hits)), error)
            return values, errors

        def ask(number: int) -> None:
            try:
                values[number] = self._one(hits[number])
            except (FetchError, ProcessingError) as error:
                errors[number] = error

        at_once(ask, range(len(hits)), self._params.max_concurrency)
        return values, errors

    def _one(self, hit: Hit) -> Any:
        shown = _shown(hit)
        return self._checked(self._ask({"DOC": shown}, self._params.body))

    def _batch(self, hits: Sequence[Hit]) -> list[Any]:
        listed = [_listed(hit, self._params.document_fields) for hit in hits]
        answer = self._ask({"DOC": {}}, self._params.body or {}, listed)
        if not isinstance(answer, list) or len(answer) != len(hits):
            raise ProcessingError(
                f"The answer to a batch is no list of {len(hits)} items, one for each document"
                f"{'' if self._params.response_path else '; response_path says where in it the list is'}."
            )
        return [self._checked(item) for item in answer]

    def _checked(self, value: Any) -> Any:
        reason = unfit(value)
        if reason is not None:
            raise ProcessingError(f"What {self._where()} answers is not put into a document: {reason}.")
        return value

    def _ask(self, scope: Mapping[str, Any], body: Any, listed: list[Any] | None = None) -> Any:
        """Make one request and return what of its answer is asked for. Raises `FetchError`, `ProcessingError`."""
        scope = {**scope, "INPUT": self._context.inputs, "SECRET": self._secrets}
        try:
            url = templates.render(self._params.url, scope, _encoded)
            headers = templates.render(self._params.headers, scope)
            content = templates.render(body, scope)
        except templates.Unresolved as error:
            raise ProcessingError(f"{{{{{error.expression}}}}} has no value in this document.") from None
        except templates.TooLong:
            raise ProcessingError("A text of the request is too long with its values filled in.") from None
        if listed is not None:
            content = {**content, "documents": listed}
        url, headers = self._authorised(str(url), {name: str(value) for name, value in headers.items()})
        self._check(url, headers)
        sent = None
        if content is not None and self._params.method != "GET":
            sent = orjson.dumps(content, default=str)
            headers.setdefault("Content-Type", "application/json")
        return self._taken(url, headers, sent)

    def _authorised(self, url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
        auth = self._params.auth
        if auth is None or auth.type == "none" or auth.secret_ref is None:
            return url, headers
        secret, key = self._secrets[auth.secret_ref], auth.key or ""
        if auth.type == "api_key" and auth.location == "query":
            bare, mark, fragment = url.partition("#")
            joint = "&" if "?" in bare else "?"
            return (
                f"{bare}{joint}{urllib.parse.urlencode({key: secret}, quote_via=urllib.parse.quote)}{mark}{fragment}",
                headers,
            )
        if auth.type == "bearer":
            return url, {**headers, "Authorization": f"Bearer {secret}"}
        if auth.type == "basic":
            encoded = base64.b64encode(secret.encode()).decode()
            return url, {**headers, "Authorization": f"Basic {encoded}"}
        return url, {**headers, key: secret}

    def _check(self, url: str, headers: Mapping[str, str]) -> None:
        host = fetching.parse(url).host
        if not is_allowed(host, self._params.allowed_domains):
            raise ProcessingError(_not_allowed(host))
        for name, value in headers.items():
            if not value.isascii() or not value.isprintable():
                raise ProcessingError(f"Header {quote(name)} would hold what is no printable ASCII.")
        limit = self._params.rate_limit
        limits = [
            (number, seconds)
            for number, seconds in (
                (limit.requests_per_minute if limit else None, 60.0),
                (limit.requests_per_hour if limit else None, 3600.0),
            )
            if number is not None
        ]
        fetcher = self._context.equipment.fetcher
        if limits and fetcher is not None:
            self._take(fetcher.windows, host, limits)

    def _take(self, windows: Windows, host: str, limits: Sequence[tuple[int, float]]) -> None:
        if not windows.take(f"{self._context.organization_id} {host}", limits):
            raise ProcessingError(f"rate_limit of requests to {quote(host)} is reached; try again later.")

    def _taken(self, url: str, headers: Mapping[str, str], sent: bytes | None) -> Any:
        fetcher = self._context.equipment.fetcher
        assert fetcher is not None
        self._context.budget.check()
        timeout_s = min(self._params.timeout, self._context.budget.left_s())
        if timeout_s <= 0:
            raise ProcessingError(f"There was no time left to ask {self._where()}.")
        with self._lock:
            room = min(self._params.max_response_size, self._left_bytes)
        if room <= 0:
            raise ProcessingError(
                f"The answers of one stage hold more than {MAX_ANSWER_BYTES} bytes; ask about fewer hits, or for less."
            )
        try:
            called = fetcher.call(
                self._params.method, url, sent, headers, timeout_s=timeout_s, max_bytes=room
            )
        except FetchError as error:
            # It shows the path of the URL, and a secret may be part of that.
            raise FetchError(error.kind, str(self._without_secrets(error.message))) from None
        with self._lock:
            self._left_bytes -= len(called.content)
        if not 200 <= called.status < 300:
            raise ProcessingError(f"{self._where()} answers with status {called.status}.")
        if not called.content.strip():
            return None
        try:
            answer = orjson.loads(called.content)
        except orjson.JSONDecodeError:
            raise ProcessingError(f"{self._where()} answers with what is no JSON.") from None
        return self._without_secrets(_at(answer, self._params.response_path))

    def _without_secrets(self, value: Any, depth: int = 0) -> Any:
        """Return an answer in which no secret that was sent stands, also not in the form in which it was sent."""
        if isinstance(value, str):
            for secret in self._secrets.values():
                for form in (secret, base64.b64encode(secret.encode()).decode(), _encoded(secret)):
                    if len(form) >= 4:
                        value = value.replace(form, _HIDDEN)
            return value
        if depth > 64:
            raise ProcessingError(f"What {self._where()} answers nests too deep.")
        if isinstance(value, Mapping):
            return {
                self._without_secrets(name, depth + 1): self._without_secrets(item, depth + 1)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [self._without_secrets(item, depth + 1) for item in value]
        return value

    def _where(self) -> str:
        """Return the place that is asked as a message may show it: as the stage states it, nothing filled in."""
        return fetching.shown(self._params.url)


# --- pure ------------------------------------------------------------------------------------------------


def is_allowed(host: str, domains: Sequence[str]) -> bool:
    """Return whether `host` is one of `domains`, or below one that begins with ``*.``."""
    host = host.lower()
    return any(
        host.endswith(domain[1:].lower()) if domain.startswith("*.") else host == domain.lower()
        for domain in domains
    )


def steps_of(path: str) -> list[str | int]:
    """Return the steps of a JSONPath of names and numbers: ``$.results[0].name``. Raises `ValueError`."""
    rest = path.removeprefix("$")
    if path and not path.startswith("$"):
        rest = f".{path}"
    steps: list[str | int] = []
    end = 0
    for found in _STEP.finditer(rest):
        if found.start() != end:
            break
        end = found.end()
        steps.append(int(found[2]) if found[2] else found[1] or found[3] or found[4])
    if end != len(rest):
        raise ValueError(f"{quote(path)} is no path of names and numbers, such as $.results[0].name")
    return steps


def _at(value: Any, path: str | None) -> Any:
    for step in steps_of(path) if path is not None else ():
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else _NOTHING
        else:
            value = value.get(step, _NOTHING) if isinstance(value, dict) else _NOTHING
        if value is _NOTHING:
            raise ProcessingError(f"The answer has nothing at {quote(path)}.")
    return value


def _encoded(value: Any) -> str:
    return urllib.parse.quote(templates.as_text(value), safe="")


def _not_allowed(host: str) -> str:
    return f"{quote(host)} is not one of allowed_domains of this stage; add it there, or change url."


def _shown(hit: Hit) -> dict[str, Any]:
    return {name: value for name, value in hit.payload.items() if name not in HIDDEN_FIELDS}


def _listed(hit: Hit, fields: Sequence[str]) -> dict[str, Any]:
    if not fields:
        return _shown(hit)
    listed: dict[str, Any] = {"document_id": hit.document_id}
    for path in fields:
        listed = with_tree_at(listed, path, tree_at(hit.payload, path))
    return listed
