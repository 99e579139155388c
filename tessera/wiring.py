"""Wiring: builds the warehouse from settings. The only file that names adapters."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tessera import auto_indexes, data_directory, sealing, secret_store
from tessera.blobs import Blobs
from tessera.config import Settings, parse_networks, parse_ports
from tessera.context import Warehouse
from tessera.db.engine import Database
from tessera.db.migrate import migrate
from tessera.execution_log import ExecutionLog
from tessera.fetching import Fetcher
from tessera.filter_uses import FilterUses
from tessera.jobs import Jobs
from tessera.language import LanguageModel
from tessera.ports import Runner, Vectors
from tessera.registry import Registry
from tessera.result_cache import ResultCache
from tessera.sealing import Vault
from tessera.views import Locate, Location, Views

#: File of the master key in the data directory, unless the setting `master_key` states one.
MASTER_KEY = "master.key"


def open_warehouse(settings: Settings, *, base_url: str | None = None, run_jobs: bool = True) -> Warehouse:
    """Open the data directory of `settings` and everything behind it; the caller holds the directory's lock.

    With `run_jobs` unfinished batches and purges go on at once.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(settings.database_url or f"sqlite:///{settings.data / 'tessera.sqlite3'}")
    migrate(db)
    blobs = Blobs(settings.blobs_path)
    if run_jobs:
        # Whoever wrote them is gone: the directory is ours alone.
        blobs.sweep_parts()
    signing_key = _signing_key(settings.data / "signing.key")
    vault = open_vault(settings, db, signing_key)
    vectors, locate = _vectors(settings, vault)
    jobs = Jobs()
    wh = Warehouse(
        settings=settings,
        db=db,
        blobs=blobs,
        vectors=vectors,
        views=Views(db, vectors, blobs, locate, graph_from_bytes=settings.graph_from_mb * 2**20),
        runner=_runner(settings),
        decoder=open_decoder(settings),
        registry=Registry.load(
            settings.models_path, offline=settings.offline, extractors_dir=settings.extractors_path
        ),
        jobs=jobs,
        fetcher=_fetcher(settings),
        signing_key=signing_key,
        vault=vault,
        base_url=(settings.public_url or base_url or f"http://{settings.host}:{settings.port}").rstrip("/"),
        results=ResultCache(settings.result_cache_mib * 2**20),
        executions=ExecutionLog(db, settings.execution_log_days),
        language=_language(settings),
        filter_uses=FilterUses(db),
    )
    if run_jobs:
        jobs.start(wh)
        assert wh.filter_uses is not None
        wh.filter_uses.start(partial(auto_indexes.decide, wh))
    return wh


def close_warehouse(wh: Warehouse) -> None:
    """Park jobs at their next chunk, make everything durable, and let go of the data directory."""
    assert isinstance(wh.jobs, Jobs)
    if wh.filter_uses is not None:
        wh.filter_uses.end()
    wh.views.end_builds()  # an erasure under way may be waiting for one
    wh.jobs.stop()
    wh.runner.close()
    wh.decoder.close()
    wh.views.close()
    wh.vectors.close()
    if wh.filter_uses is not None:
        wh.filter_uses.close()
    if wh.executions is not None:
        wh.executions.close()
    if wh.language is not None:
        wh.language.close()
    wh.db.close()


def _vectors(settings: Settings, vault: Vault) -> tuple[Vectors, Locate]:
    """Return the engines behind one port, and where each namespace's view lives."""
    from tessera.adapters.qdrant.routed import RoutedVectors

    default_url = settings.qdrant_url
    default_secret = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None

    def locate(view_id: str, place: Mapping[str, Any] | None) -> Location:
        if place is not None:
            secret = vault.unseal(place["qdrant_api_key"])
            return Location(place["qdrant_url"], secret, place.get("alias"))
        if default_url is not None:
            return Location(default_url, default_secret)
        return Location(str(settings.views_path / view_id))

    def edge() -> Vectors:
        from tessera.adapters.qdrant.edge import EdgeVectors

        settings.views_path.mkdir(parents=True, exist_ok=True)
        return EdgeVectors(
            settings.vector_hosts,
            settings.max_open_views,
            settings.data / "run",
            max_scan_documents=settings.max_scan_documents,
            max_resident_mib=settings.max_view_memory_mib,
        )

    def server() -> Vectors:
        from tessera.adapters.qdrant.server import ServerVectors

        return ServerVectors(max_scan_documents=settings.max_scan_documents)

    return RoutedVectors(edge, server, start_edge=default_url is None), locate


def _runner(settings: Settings) -> Runner:
    from tessera.adapters.local import LocalRunner
    from tessera.adapters.runners import RoutedRunner

    def clusters() -> Runner:
        from tessera.adapters.ray import RayRunner

        return RayRunner([settings.blobs_path, settings.models_path, settings.extractors_path])

    return RoutedRunner(lambda: LocalRunner(settings.workers, settings.worker_memory_mib), clusters)


def open_decoder(settings: Settings) -> Runner:
    """Return what opens files of strangers one by one, in a process with bounds; the caller closes it."""
    from tessera.adapters.local import LocalRunner

    return LocalRunner(1, settings.worker_memory_mib)


def _fetcher(settings: Settings) -> Fetcher:
    return Fetcher(
        max_bytes=settings.max_upload_bytes,
        allowed_networks=parse_networks(settings.fetch_allowed_networks),
        ports=parse_ports(settings.fetch_ports),
        total_s=settings.fetch_timeout_s,
    )


def _language(settings: Settings) -> LanguageModel | None:
    if settings.llm_base_url is None or settings.llm_model is None:
        return None
    further = (name.strip() for name in (settings.llm_models or "").split(","))
    return LanguageModel(
        settings.llm_base_url,
        settings.llm_model,
        settings.llm_api_key.get_secret_value() if settings.llm_api_key else None,
        models=tuple(name for name in further if name),
        timeout_s=settings.llm_timeout_s,
        concurrency=settings.llm_concurrency,
        max_prompt_chars=settings.llm_max_prompt_chars,
    )


def open_vault(settings: Settings, db: Database, signing_key: bytes | None = None) -> Vault:
    """Return what seals credentials, under the master key that settings state or the data directory keeps.

    A key is made only where nothing is sealed yet. Raises `MasterKeyError` when the one in use is not there.
    """
    path = settings.data / MASTER_KEY
    texts = secret_store.sealed_texts(db)
    vault = sealing.open_vault(path, settings.master_keys, signing_key, make=not texts)
    sealing.check_opens(vault, texts, path)
    return vault


def rotate_master_key(settings: Settings) -> tuple[int, str]:
    """Seal every stored credential anew; return how many, and the id of the key that is in force now.

    The caller holds the data directory: a running server would go on sealing with the old key. Can be
    repeated, and run again after a kill. The database must be at this release's schema.
    """
    db = Database(settings.database_url or f"sqlite:///{settings.data / 'tessera.sqlite3'}")
    migrate(db)
    try:
        signing_key = _signing_key(settings.data / "signing.key")
        # Before anything is written: without the key in use there is nothing that a new one could replace.
        open_vault(settings, db, signing_key)
        return sealing.rotate(
            settings.data / MASTER_KEY,
            settings.master_keys,
            signing_key,
            lambda vault: secret_store.reseal_all(db, vault),
        )
    finally:
        db.close()


def discard_lost_secrets(settings: Settings) -> int:
    """Remove every credential that the present master key cannot open; return how many. The caller holds the directory.

    Where there is no key at all, one is made.
    """
    db = Database(settings.database_url or f"sqlite:///{settings.data / 'tessera.sqlite3'}")
    migrate(db)
    try:
        vault = sealing.open_vault(
            settings.data / MASTER_KEY, settings.master_keys, _signing_key(settings.data / "signing.key")
        )
        return secret_store.discard_lost(db, vault)
    finally:
        db.close()


def _signing_key(path: Path) -> bytes:
    """Return the key that signs cursors and URLs: 32 random bytes, made once, readable by the owner only."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    key = secrets.token_bytes(32)
    data_directory.write_private(path, key)
    return key
