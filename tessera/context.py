"""The warehouse: what every service function is given. A frozen bundle, no globals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tessera.plan_cache import PlanCache
from tessera.result_cache import ResultCache

if TYPE_CHECKING:
    from tessera.blobs import Blobs
    from tessera.config import Settings
    from tessera.db.engine import Database
    from tessera.execution_log import ExecutionLog
    from tessera.fetching import Fetcher
    from tessera.filter_uses import FilterUses
    from tessera.language import LanguageModel
    from tessera.ports import Runner, Vectors
    from tessera.registry import Registry
    from tessera.sealing import Vault
    from tessera.views import Views


class JobQueue(Protocol):
    """What services need of ``jobs.py``: to be told that there is work."""

    def wake(self) -> None:
        """Look for pending batches and purges now."""

    def is_running(self) -> bool:
        """Whether work is taken up."""


@dataclass(frozen=True)
class Warehouse:
    """Settings and the parts behind them.

    `runner` extracts; `decoder` opens the pictures of queries, so that no decoder of a stranger's file runs in the
    server itself, and no query waits for a batch. `fetcher` is the only way to content behind a URL; `signing_key`
    signs cursors and URLs (32 bytes), `vault` seals credentials of other systems. `results` keeps what retrievers
    found, `plans` what it takes to run them; `executions` notes that they ran, `filter_uses` by which fields.
    `language` is the language model, where the settings name one.
    """

    settings: Settings
    db: Database
    blobs: Blobs
    vectors: Vectors
    views: Views
    runner: Runner
    decoder: Runner
    registry: Registry
    jobs: JobQueue
    fetcher: Fetcher
    signing_key: bytes = field(repr=False)
    vault: Vault = field(repr=False)
    base_url: str = "http://127.0.0.1:8700"
    results: ResultCache = field(default_factory=ResultCache, repr=False)
    plans: PlanCache = field(default_factory=PlanCache, repr=False)
    executions: ExecutionLog | None = field(default=None, repr=False)
    #: Places where batches ran since the server started, and there, by extractor, whose models are loaded.
    warm: set[str] = field(default_factory=set, repr=False)
    #: Batches under way on this server, each with whether it had the workers for itself all the time.
    under_way: dict[str, bool] = field(default_factory=dict, repr=False)
    #: Weights of searches that were learned, by retriever and what was asked, each with the interactions counted then.
    learned: dict[tuple[Any, ...], tuple[int, Any]] = field(default_factory=dict, repr=False)
    language: LanguageModel | None = field(default=None, repr=False)
    filter_uses: FilterUses | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Principal:
    """Who is asking: a verified key, its organization and what it may do.

    `permissions` are of ``read``, ``write``, ``delete``, ``admin``, expanded: a key with ``write``
    carries ``read`` too. `internal_id` is the organization's secret id and never leaves the server.
    `asks` is the permission that the request at hand needs; a scope may allow less than the key.
    `through` is the kind of the resource for whose sake alone a narrow key was let into a namespace (see
    ``confinement.py``): the rest of that namespace is none of its business.
    `account_type`, `rate_limits` (requests a minute by class, of the organization) and `key_limit` (of the
    key, for each class) bound what may be asked; `reads_audited` says whether reads are written down.
    `actor_type` is ``user``, ``operator`` for who holds the server, or ``system`` for the server itself; `caller` is
    where the request came from. Both are for the audit log.
    """

    key_id: str
    organization_id: str
    internal_id: str = field(repr=False)
    user_id: str
    permissions: frozenset[str]
    scopes: tuple[dict[str, object], ...] = ()
    asks: str = "read"
    through: str | None = None
    account_type: str = "enterprise"
    rate_limits: Mapping[str, int] | None = None
    key_limit: int | None = None
    reads_audited: bool = False
    allowed_origins: tuple[str, ...] = ()
    actor_type: str = "user"
    caller: Caller | None = None

    @classmethod
    def of_server(cls, organization_id: str, *permissions: str) -> Principal:
        """Return the server itself, which does for an organization what nobody asks for at this moment."""
        return cls(
            key_id="",
            organization_id=organization_id,
            internal_id="",
            user_id="tessera",
            permissions=frozenset(permissions),
            actor_type="system",
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request came from, as far as the server can tell."""

    ip_address: str | None
    user_agent: str | None
    request_id: str
