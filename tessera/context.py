"""The warehouse: what every service function is given. A frozen bundle, no globals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tessera.blobs import Blobs
    from tessera.config import Settings
    from tessera.db.engine import Database
    from tessera.ports import Runner, Vectors
    from tessera.registry import Registry
    from tessera.views import Views


class JobQueue(Protocol):
    """What services need of ``jobs.py``: to be told that there is work."""

    def wake(self) -> None:
        """Look for pending batches and purges now."""

    def is_running(self) -> bool:
        """Whether work is taken up."""


@dataclass(frozen=True)
class Warehouse:
    """Settings and the parts behind them. `signing_key` signs cursors and URLs (32 bytes)."""

    settings: Settings
    db: Database
    blobs: Blobs
    vectors: Vectors
    views: Views
    runner: Runner
    registry: Registry
    jobs: JobQueue
    signing_key: bytes = field(repr=False)
    base_url: str = "http://127.0.0.1:8700"


@dataclass(frozen=True)
class Principal:
    """Who is asking: a verified key, its organization and what it may do.

    `permissions` are of ``read``, ``write``, ``delete``, ``admin``, expanded: a key with ``write``
    carries ``read`` too. `internal_id` is the organization's secret id and never leaves the server.
    `asks` is the permission that the request at hand needs; a scope may allow less than the key.
    """

    key_id: str
    organization_id: str
    internal_id: str = field(repr=False)
    user_id: str
    permissions: frozenset[str]
    scopes: tuple[dict[str, object], ...] = ()
    asks: str = "read"
