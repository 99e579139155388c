"""Settings, and where each one came from; the only reader of environment and settings files.

Order: command-line flag, then ``TESSERA_<NAME>``, then ``tessera.toml`` in the data directory, then
the default. An unknown key in either place is refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from tessera.errors import TesseraError, quote

PREFIX = "TESSERA_"
#: Variables that share the prefix but are not settings: those of the test suite, and the two in which people
#: keep what their clients need.
_FOREIGN_PREFIXES = ("TESSERA_TEST_", "TESSERA_BENCH_")
_CLIENT_VARIABLES = ("TESSERA_API_KEY", "TESSERA_URL")


#: Classes of routes whose requests are counted against a limit of their own.
RATE_CLASSES = ("metadata", "data", "search", "upload", "compute")
QUOTAS = (
    "namespaces",
    "buckets",
    "collections",
    "retrievers",
    "taxonomies",
    "clusters",
    "documents",
    "api_keys",
    "batch_objects",
    "active_batches",
)

#: Where a page comes from; ``https://*.example.org`` stands for all below it, ``*`` for everywhere.
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]{0,20}://(\*\.)?[^\s/*?#,]{1,255}", re.IGNORECASE)


class ConfigurationError(TesseraError):
    """A setting is unknown or has a value that is not allowed; the message says which and what is."""

    type, status = "ConfigurationError", 500


class Settings(BaseModel):
    """Everything that can be set. Units are in the names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path = Field(Path("tessera-data"), description="Data directory; made with mode 0700.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8700, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    public_url: str | None = Field(None, description="Base URL of links in answers, behind a proxy.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the request log on stderr.")

    database_url: str | None = Field(
        None, description="SQLAlchemy URL of the metadata; default: SQLite in the data directory."
    )

    qdrant_url: str | None = Field(
        None, description="Qdrant server of the shared tier; default: Qdrant Edge inside the data directory."
    )
    qdrant_api_key: SecretStr | None = Field(None, description="Key for `qdrant_url`.")
    ray_head_node_url: str | None = Field(
        None,
        description="Ray cluster of the shared tier (ray://host:port); default: processes of this server.",
    )
    ray_auth_token: SecretStr | None = Field(None, description="Token for `ray_head_node_url`.")
    ray_dashboard_url: str | None = Field(None, description="Dashboard of that cluster; tasks link to it.")
    vector_hosts: int = Field(1, ge=1, le=64, description="Processes that hold open Qdrant Edge shards.")
    max_open_views: int = Field(256, ge=1, description="Qdrant Edge shards kept open in all hosts together.")
    max_view_memory_mib: int = Field(
        1024,
        ge=16,
        description="Memory of all hosts together, in MiB, above which they give pages back that the system has in "
        "its cache, then close views.",
    )
    graph_from_mb: int = Field(
        200,
        ge=1,
        description="Vectors of a view are scanned, exactly, up to this size; above, a graph is built for them.",
    )
    max_scan_documents: int = Field(
        100_000, ge=1, description="Most documents a filter or sort without an index may read."
    )

    result_cache_mib: int = Field(
        64, ge=0, description="Results of retrievers with a cache_config that are kept in memory, in MiB."
    )
    auto_index_uses: int = Field(
        50,
        ge=1,
        description="Uses of a filter that no index serves until a namespace with `auto_create_indexes` gets one.",
    )
    auto_index_documents: int = Field(
        1000, ge=0, description="Documents below which a namespace gets no index by itself."
    )
    auto_index_unused_days: float = Field(
        30, gt=0, description="An index that was made by itself and not used for so long is dropped."
    )
    execution_log_days: float = Field(
        7, gt=0, description="How long the statistics of a retriever's executions can be read."
    )

    workers: int = Field(
        default_factory=lambda: max(1, min(4, (os.cpu_count() or 2) - 1)),
        ge=1,
        le=256,
        description="Processes that run extractors.",
    )
    models_dir: Path | None = Field(None, description="Model files; default: `models` in the data directory.")
    offline: bool = Field(False, description="Never ask a model hub.")

    llm_base_url: str | None = Field(
        None,
        description="OpenAI-compatible endpoint for the stages that need a language model (`https://host/v1`, to which "
        "`/chat/completions` is added); without it these stages do not exist.",
    )
    llm_model: str | None = Field(None, description="Model that is asked for there.")
    llm_models: str | None = Field(
        None,
        description="Further models of the endpoint that a retriever may choose, separated by commas; any other name "
        "gets `llm_model`.",
    )
    llm_api_key: SecretStr | None = Field(None, description="Key for `llm_base_url`.")
    llm_timeout_s: float = Field(20, gt=0, description="Longest time for one call of it.")
    llm_concurrency: int = Field(4, ge=1, le=64, description="Calls of it that are under way at a time.")
    llm_max_prompt_chars: int = Field(
        60_000, ge=2000, description="Most characters of one prompt; texts of documents are cut to fit."
    )
    llm_tokens_per_credit: float = Field(
        1000, gt=0, description="Tokens that count as one credit of a retriever's `budget_limits`."
    )

    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="Largest JSON body.")
    max_concurrent_jobs: int = Field(
        10, ge=1, le=1000, description="Batches in progress per shared namespace."
    )
    job_threads: int = Field(4, ge=1, le=256, description="Batches in progress in this server.")
    job_lease_s: float = Field(
        15,
        ge=1,
        le=3600,
        description="Several servers on one database: one that is not heard for so long loses its batches.",
    )
    extract_timeout_s: float = Field(1800, gt=0, description="Longest time for one chunk of a batch.")
    cluster_timeout_s: float = Field(
        3600, gt=0, description="Longest time for the fit of one execution of a cluster."
    )
    row_attempts: int = Field(2, ge=1, le=10, description="Tries for a row whose worker died under it.")
    row_retries: int = Field(
        3,
        ge=0,
        le=6,
        description="How often a batch itself tries a row again that could not be fetched: after 1 s, 4 s, 16 s, "
        "half as long or half as long again.",
    )
    worker_memory_mib: int = Field(
        3072,
        ge=0,
        description="Most memory of one worker process; a row that needs more fails alone. 0: no limit. On Linux.",
    )

    compact_after_changes: int = Field(
        10_000,
        ge=1,
        description="A namespace's log is folded when it holds so many changes more than twice its documents.",
    )

    request_timeout_s: float = Field(60, gt=0, description="Longest time until a request is answered.")
    execute_timeout_s: float = Field(30, gt=0, description="The same for the execution of a retriever.")
    max_header_bytes: int = Field(64 * 2**10, ge=1024, description="Largest head of a request.")

    max_upload_bytes: int = Field(
        5 * 2**30, ge=1, description="Largest file, uploaded or fetched by URL; it is streamed to disk."
    )
    upload_timeout_s: float = Field(3600, gt=0, description="Longest time for the PUT of one upload.")
    upload_idle_s: float = Field(60, gt=0, description="Longest pause of a client inside that PUT.")

    fetch_allowed_networks: str | None = Field(
        None,
        description="Networks that are fetched from although they are not public, on any port, separated by commas "
        "(`10.1.0.0/16,fd00::/8`); default: none.",
    )
    fetch_ports: str = Field(
        "80,443,8080,8443", description="Ports that are fetched from in public networks; `*` for all."
    )
    fetch_timeout_s: float = Field(
        600, gt=0, description="Longest time to fetch one URL, redirects included."
    )
    fetch_threads: int = Field(4, ge=1, le=64, description="URLs that one batch fetches at a time.")
    webhook_retry_s: float = Field(
        5,
        ge=0.01,
        le=3600,
        description="Wait before an event is sent to a webhook again; each further one is four times as long, up to "
        "6 hours.",
    )
    webhook_give_up_s: float = Field(
        72 * 3600,
        gt=0,
        description="An event that no attempt has brought to a webhook for so long is given up.",
    )
    webhook_log_days: float = Field(
        7, gt=0, description="How long deliveries that have ended can be read and sent again."
    )
    s3_endpoint_url: str | None = Field(
        None, description="Store that `s3://` URLs are read from; default: AWS."
    )
    s3_region: str = Field("us-east-1", description="Region of that store.")
    s3_access_key_id: str | None = Field(
        None,
        description="Key for it, used for every organization without one of its own; default: anonymous.",
    )
    s3_secret_access_key: SecretStr | None = Field(None, description="Secret of `s3_access_key_id`.")

    master_key: SecretStr | None = Field(
        None,
        description="Key that seals stored credentials: 32 bytes in hex or base64; default: made once, in "
        "`master.key` of the data directory.",
    )
    master_key_previous: SecretStr | None = Field(
        None, description="The key before it, while `tessera secrets rotate` has not run."
    )
    operator_secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="Opens `/v1/private/organizations`, where organizations are made; without it there is no "
        "such route.",
    )
    cors_origins: str | None = Field(
        None, description="Origins whose pages may call the server, separated by commas; `*` for all."
    )
    rate_limits: str | None = Field(
        None,
        description="Requests a minute of each key: `metadata=600,data=600,search=300,upload=60,compute=60` (or a "
        "part of it), or `tiers` for those of the organization's account type; default: unlimited.",
    )
    quotas: str | None = Field(
        None,
        description="Most resources of an organization: `namespaces=10,buckets=50,collections=50,retrievers=50,"
        "taxonomies=20,clusters=10,documents=1000000,api_keys=10,batch_objects=10000,active_batches=3` (or a part of "
        "it), or `tiers`; default: unlimited.",
    )

    allow_dedicated: bool = Field(
        True, description="Whether namespaces may ask for dedicated infrastructure."
    )

    @field_validator("fetch_allowed_networks")
    @classmethod
    def _check_networks(cls, value: str | None) -> str | None:
        parse_networks(value)
        return value

    @field_validator("fetch_ports")
    @classmethod
    def _check_ports(cls, value: str) -> str:
        parse_ports(value)
        return value

    @field_validator("rate_limits")
    @classmethod
    def _check_rate_limits(cls, value: str | None) -> str | None:
        parse_numbers(value, RATE_CLASSES)
        return value

    @field_validator("quotas")
    @classmethod
    def _check_quotas(cls, value: str | None) -> str | None:
        parse_numbers(value, QUOTAS)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        for origin in (value or "").split(","):
            if not ORIGIN.fullmatch(origin.strip() or "*"):
                raise ValueError(f"{quote(origin.strip())} is no origin; write it as https://example.org")
        return value

    @field_validator("llm_base_url")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value, re.IGNORECASE):
            raise ValueError("write it as https://host/v1, without user name, query and fragment")
        return value

    @model_validator(mode="after")
    def _an_endpoint_has_a_model(self) -> Settings:
        if (self.llm_base_url is None) != (self.llm_model is None):
            missing = "llm_model" if self.llm_model is None else "llm_base_url"
            raise ValueError(f"llm_base_url and llm_model belong together: set {missing} too")
        return self

    @property
    def master_keys(self) -> list[str]:
        """The stated master keys, the one that seals first."""
        return [
            key.get_secret_value() for key in (self.master_key, self.master_key_previous) if key is not None
        ]

    @property
    def models_path(self) -> Path:
        return self.models_dir or self.data / "models"

    @property
    def extractors_path(self) -> Path:
        return self.data / "extractors"

    @property
    def blobs_path(self) -> Path:
        return self.data / "blobs"

    @property
    def views_path(self) -> Path:
        return self.data / "views"


def parse_numbers(text: str | None, known: Collection[str]) -> dict[str, int] | Literal["tiers"]:
    """Return what ``a=1,b=2`` says, or the word ``tiers``. Raises `ValueError` that names what is known."""
    if text is not None and text.strip() == "tiers":
        return "tiers"
    numbers: dict[str, int] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{quote(part.strip())} is not one of {', '.join(known)} with a number from 1")
        numbers[name] = int(number)
    return numbers


def parse_networks(text: str | None) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks of ``10.0.0.0/8,fd00::/8``. Raises `ValueError` that names the one that is none."""
    return tuple(ipaddress.ip_network(part.strip()) for part in (text or "").split(",") if part.strip())


def parse_ports(text: str) -> frozenset[int] | None:
    """Return the ports of ``80,443``, or None for ``*``. Raises `ValueError`."""
    if text.strip() == "*":
        return None
    ports = frozenset(int(part) for part in text.split(",") if part.strip())
    if not ports or not all(1 <= port <= 65535 for port in ports):
        raise ValueError("ports are numbers from 1 to 65535, separated by commas, or *")
    return ports


@dataclass(frozen=True)
class Configuration:
    """Settings together with the origin of each: ``flag``, ``environment``, ``file`` or ``default``."""

    settings: Settings
    origins: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (name, value, origin) for each setting; secrets are hidden."""
        return [
            (name, "" if value is None else _without_password(str(value)), self.origins.get(name, "default"))
            for name, value in self.settings
        ]


def _without_password(value: str) -> str:
    """Return `value` with what stands for the password of a URL hidden."""
    return re.sub(r"(://[^:/@\s]*:)\S*@", r"\1…@", re.sub(r"(?i)(password=)[^&\s]*", r"\1…", value))


def load(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Configuration:
    """Read settings from `flags` (None values mean absent), the environment and ``tessera.toml``.

    Raises `ConfigurationError` that names the setting, the value and what is allowed.
    """
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _refuse_unknown(given, "flag")
    from_env = {
        key[len(PREFIX) :].lower(): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and not key.startswith(_FOREIGN_PREFIXES) and key not in _CLIENT_VARIABLES
    }
    _refuse_unknown(from_env, "environment variable", prefix=PREFIX)
    data = Path(given.get("data") or from_env.get("data") or Settings.model_fields["data"].default)
    from_file = _read_file(data / "tessera.toml")

    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in (("file", from_file), ("environment", from_env), ("flag", given)):
        merged.update(values)
        origins.update(dict.fromkeys(values, origin))
    try:
        settings = Settings(**{**merged, "data": data})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # about several settings together
            raise ConfigurationError(f"{first['msg'].removeprefix('Value error, ')}.") from None
        name = ".".join(map(str, first["loc"]))
        hidden = "…" if name in _secret_names() else quote(first["input"])
        raise ConfigurationError(
            f"Setting {name} = {hidden} ({origins.get(name)}): {first['msg']}."
        ) from None
    return Configuration(settings, origins)


def client_variables() -> tuple[str | None, str | None]:
    """Return ``TESSERA_URL`` and ``TESSERA_API_KEY``: the server that commands ask, and the key that they send."""
    url, key = (os.environ.get(name, "").strip() or None for name in ("TESSERA_URL", "TESSERA_API_KEY"))
    return url, key


def wants_colour() -> bool:
    """Whether a terminal may be given colours: ``NO_COLOR`` (no-color.org) is not set, and it can show them."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def failpoint() -> tuple[str, int, str] | None:
    """Return the (name, count, whom) of ``TESSERA_TEST_FAILPOINT``, see ``failpoints.py``."""
    name, _, rest = os.environ.get("TESSERA_TEST_FAILPOINT", "").partition(":")
    count, _, whom = rest.partition(":")
    return (name, int(count or 1), whom or "self") if name else None


def forget_secrets() -> None:
    """Take the secrets, which have been read, out of this process's environment: children would inherit them."""
    for name in _secret_variables():
        os.environ.pop(name, None)


def child_environment() -> dict[str, str]:
    """Return the environment for child processes: ours without its secrets, one thread a numeric library."""
    secret = _secret_variables()
    ours = {name: value for name, value in os.environ.items() if name not in secret}
    return {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **ours}


def _secret_variables() -> set[str]:
    # The URL of a database may hold a password.
    names = [*_secret_names(), "database_url", "api_key"]
    return {f"{PREFIX}{name.upper()}" for name in names}


def _secret_names() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from None
    _refuse_unknown(values, f"key in {path}")
    if "data" in values:
        raise ConfigurationError(f"{path} may not set `data`: it lies inside that directory.")
    return values


def _refuse_unknown(values: Mapping[str, Any], what: str, prefix: str = "") -> None:
    for name in values:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1)
            hint = f" Did you mean {prefix}{near[0].upper() if prefix else near[0]}?" if near else ""
            shown = f"{prefix}{name.upper()}" if prefix else name
            raise ConfigurationError(f"Unknown {what} {shown!r}.{hint} `tessera config` lists all settings.")
