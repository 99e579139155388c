"""Executions of clusters: taken up from the table, fitted in a process of their own, written as one artifact.

Vectors and texts are read in slices into files below ``blobs/.incoming``, which every start empties; the fit
(`clustering.py`) runs in a child process that ends with the server. A kill anywhere leaves the row as it was
begun: the next server does the whole execution again, and the same documents give the same result. What
was found is committed in one transaction, and refused when the row is another server's by then.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera import (
    cluster_enrichment,
    cluster_labels,
    cluster_triggers,
    clustering,
    clusters,
    events,
    failpoints,
)
from tessera.cluster_artifacts import Found, artifact_key, drop_parts, part_of, put, write
from tessera.context import Warehouse
from tessera.db.engine import now
from tessera.db.tables import cluster_runs, erasures
from tessera.db.tables import clusters as cluster_rows
from tessera.db.tables import tasks as task_rows
from tessera.errors import BadRequestError, TesseraError, storage_error
from tessera.filters import values_at
from tessera.models.base import JsonObject
from tessera.models.clusters import LlmLabeling
from tessera.models.tasks import TaskStatus
from tessera.models.webhooks import EventType
from tessera.plan import RESERVED_FIELDS
from tessera.ports import Page

logger = logging.getLogger("tessera.clusters")

#: Documents read at once.
_SLICE = 500
#: Characters of a document's texts that labels are made of.
_TEXT_CHARS = 4_000
#: How often it is asked whether a fit still is to go on.
_POLL_S = 0.5
#: So many servers in a row may end under an execution before it fails.
MAX_CRASHES = 3
#: Executions of a cluster that are kept; of those that have ended, older ones go with what they found.
KEPT_RUNS = 100
#: Most groups of one execution: each stands in its result with label and keywords.
MAX_GROUPS = 10_000
#: Any constant: servers on one PostgreSQL take up executions one after the other.
_ADVISORY_LOCK = 0x7E55E7D


class Stopped(Exception):
    """The execution is not ours any more, or this server ends."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An execution as a server took it up."""

    run_id: str
    holder: str


# --- taking up -----------------------------------------------------------------------------------------


def claim(wh: Warehouse, holder: str, alive: Callable[[], Collection[str]]) -> Claim | None:
    """Take up the execution that is next of those that no live server holds; None when there is none.

    One under which too many servers ended fails instead. None is begun in a namespace in which documents are being
    erased, so that the erasing ends.
    """
    with wh.db.read() as connection:
        if connection.execute(_oldest(holder, alive())).first() is None:
            return None
    with wh.db.write() as connection:
        if not wh.db.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
        # Asked again, when nobody else can take up anything: who did so before has shown itself alive before.
        row = connection.execute(_oldest(holder, alive())).one_or_none()
        if row is None:
            return None
        crashes = row.crashes + (row.status == "processing" and row.holder is not None)
        if crashes >= MAX_CRASHES:
            end(
                connection,
                row.run_id,
                f"{crashes} times in a row the server ended while it ran. Its log may say why.",
            )
            return None
        connection.execute(
            sa.update(cluster_runs)
            .where(cluster_runs.c.run_id == row.run_id)
            .values(status="processing", holder=holder, crashes=crashes)
        )
        run = _row(connection, row.run_id)
        _tell_task(connection, run, TaskStatus.IN_PROGRESS, stage="reading")
        if row.status == "pending":
            _emit(connection, EventType.CLUSTER_EXECUTION_STARTED, run)
    return Claim(row.run_id, holder)


def _oldest(holder: str, alive: Collection[str]) -> sa.Select[Any]:
    """Return the query for the execution that `holder` takes up next.

    Those that were begun go on first. Of namespaces that wait, the one with the fewest under way is next, then the one
    whose last execution ended longest ago: many clusters of one hold up no other's.
    """
    c = cluster_runs.c
    free = sa.or_(
        sa.and_(c.status == "pending", c.namespace_id.not_in(sa.select(erasures.c.namespace_id))),
        sa.and_(
            c.status == "processing",
            sa.or_(c.holder.is_(None), c.holder == holder, c.holder.not_in(list(alive))),
        ),
    )
    of_namespace = cluster_runs.alias()
    mine = of_namespace.c.namespace_id == c.namespace_id
    under_way = (
        sa.select(sa.func.count()).where(mine, of_namespace.c.status == "processing").scalar_subquery()
    )
    ended = sa.select(sa.func.max(of_namespace.c.completed_at)).where(mine).scalar_subquery()
    return (
        sa.select(c.run_id, c.status, c.holder, c.crashes)
        .where(free)
        .order_by(
            c.status == "pending",
            sa.func.coalesce(under_way, 0),
            sa.func.coalesce(ended, ""),
            c.created_at,
            c.run_id,
        )
        .limit(1)
    )


def run(wh: Warehouse, claimed: Claim, park: threading.Event) -> None:
    """Do one execution; what is wrong with it becomes its error. Ends early, and is to be done anew, on `park`."""
    folder = wh.blobs.root / ".incoming" / f"clustering-{claimed.run_id}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        _Run(wh, claimed, park, folder).do()
    except Stopped:
        _release(wh, claimed)
    except Exception as error:
        told = error if isinstance(error, TesseraError) else storage_error(error)
        if told is not None and told.retryable:
            _release(wh, claimed)
            if told is error:
                raise
            raise told from error
        if told is None:
            # A defect of ours: done again it would only happen again.
            logger.exception("execution %s failed", claimed.run_id)
            told = BadRequestError(f"Internal error: {type(error).__name__}. The server's log has more.")
        with wh.db.write() as connection:
            end(connection, claimed.run_id, told.message, holder=claimed.holder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def end(
    connection: Connection,
    run_id: str,
    error: str,
    *,
    holder: str | None = None,
    status: TaskStatus = TaskStatus.FAILED,
) -> bool:
    """Let an execution fail that has not ended (and is `holder`'s, if named); say whether it did."""
    c = cluster_runs.c
    this = sa.and_(c.run_id == run_id, c.status.in_(["pending", "processing"]))
    if holder is not None:
        this &= c.holder == holder
    values = {"status": "failed", "error": error, "holder": None, "completed_at": now()}
    if not connection.execute(sa.update(cluster_runs).where(this).values(**values)).rowcount:
        return False
    row = _row(connection, run_id)
    _tell_task(connection, row, status, stage="done", error=error)
    _emit(connection, EventType.CLUSTER_EXECUTION_FAILED, row)
    how = "cancelled" if status is TaskStatus.CANCELED else "failed"
    cluster_triggers.ended(connection, row, how, error)
    return True


def _release(wh: Warehouse, claimed: Claim) -> None:
    with wh.db.write() as connection:
        connection.execute(
            sa.update(cluster_runs)
            .where(
                cluster_runs.c.run_id == claimed.run_id,
                cluster_runs.c.holder == claimed.holder,
                cluster_runs.c.status == "processing",
            )
            .values(holder=None)
        )


def prune(wh: Warehouse, cluster_id: str) -> None:
    """Remove the oldest executions of a cluster beyond `KEPT_RUNS`, but for those that have not ended."""
    c = cluster_runs.c
    ended = sa.select(c.run_id, c.namespace_id).where(
        c.cluster_id == cluster_id, c.status.in_(["completed", "failed"])
    )
    with wh.db.read() as connection:
        # Of the good ones the newest always stays: what clusters show is its result.
        good = clusters.last_run(connection, cluster_id, "completed")
        old = connection.execute(ended.order_by(c.created_at.desc(), c.run_id).offset(KEPT_RUNS)).all()
    for run_id, namespace_id in old:
        if good is not None and run_id == good["run_id"]:
            continue
        if not wh.blobs.remove(artifact_key(namespace_id, run_id)):
            return  # a backup is being made; the next execution removes them
        with wh.db.write() as connection:
            connection.execute(sa.delete(cluster_runs).where(c.run_id == run_id))


# --- doing ---------------------------------------------------------------------------------------------


class _Run:
    """One execution: reads documents, fits, writes."""

    def __init__(self, wh: Warehouse, claimed: Claim, park: threading.Event, folder: Path) -> None:
        self.wh, self.claimed, self.park, self.folder = wh, claimed, park, folder
        self.began = time.monotonic()
        with wh.db.read() as connection:
            self.row = _row(connection, claimed.run_id)
        self.definition, self.own = self.row["definition"], self.row["request"]
        self.namespace_id = self.row["namespace_id"]

    def do(self) -> None:
        wanted = self._chosen()
        if self.definition["vector_config"]:
            found, result = self._by_vectors(wanted)
        else:
            found, result = self._by_attributes(wanted)
        result |= {"num_points": len(found), "source_documents": len(wanted)}
        path = self.wh.blobs.new_path(artifact_key(self.namespace_id, self.claimed.run_id))
        part = part_of(path, self.claimed.holder)
        self._still_ours()  # so that nothing is written for a namespace that is gone
        try:
            drop_parts(path)
            write(part, found)
            failpoints.reach("cluster.written")
            if self.definition["enrich_source_collection"]:
                cluster_enrichment.enrich_all(self.wh, self.row, result, found, self._still_ours)
            result["seconds"] = round(time.monotonic() - self.began, 3)
            self._commit(part, path, result, len(found))
        finally:
            part.unlink(missing_ok=True)
        prune(self.wh, self.row["cluster_id"])

    def _commit(self, part: Path, path: Path, result: JsonObject, count: int) -> None:
        """Let what was found count, unless the execution was cancelled or is another server's by now."""
        with self.wh.db.write() as connection:
            done = connection.execute(
                sa.update(cluster_runs)
                .where(
                    cluster_runs.c.run_id == self.claimed.run_id,
                    cluster_runs.c.holder == self.claimed.holder,
                    cluster_runs.c.status == "processing",
                )
                .values(status="completed", holder=None, result=result, completed_at=now(), crashes=0)
            ).rowcount
            if not done:
                return
            # Inside, so that the file is always that of the result: who loses the row puts none.
            put(part, path)
            row = _row(connection, self.claimed.run_id)
            _tell_task(connection, row, TaskStatus.COMPLETED, stage="done", total=count, done=count)
            _emit(connection, EventType.CLUSTER_EXECUTION_COMPLETED, row)
            cluster_triggers.ended(connection, row, "completed", None)

    def _still_ours(self) -> None:
        with self.wh.db.read() as connection:
            state = connection.execute(
                sa.select(cluster_runs.c.status, cluster_runs.c.holder).where(
                    cluster_runs.c.run_id == self.claimed.run_id
                )
            ).one_or_none()
        if self.park.is_set() or state is None or tuple(state) != ("processing", self.claimed.holder):
            raise Stopped

    def _chosen(self) -> list[str]:
        """Return the ids of the documents to cluster, in order; of more than the sample a sample by seed."""
        within = clusters.within(self.definition, self.own)
        clusters.check_size(self.definition, self.own, self.wh.views.count(self.namespace_id, within))
        size = clusters.sample_size(self.definition, self.own)
        # Of more than the sample those that come first by a hash: the same ones in whatever order they are read, and no
        # more of them in memory than are wanted.
        found: list[str] = []
        drawn: list[tuple[int, str]] = []
        after = None
        while True:
            page = Page(limit=_SLICE, filter=within, after=after, fields=("document_id",))
            result = self.wh.views.page(self.namespace_id, page)
            for hit in result.hits:
                if size is None:
                    found.append(hit.document_id)
                    continue
                heapq.heappush(drawn, (-_draw(hit.document_id), hit.document_id))
                if len(drawn) > size:
                    heapq.heappop(drawn)
            after = result.next_after
            self._still_ours()
            if after is None:
                break
        return sorted(found or (document_id for _, document_id in drawn))

    def _slices(self, wanted: Sequence[str], *, with_vectors: bool) -> Iterator[list[Any]]:
        for start in range(0, len(wanted), _SLICE):
            self._still_ours()
            hits = self.wh.views.get(self.namespace_id, wanted[start : start + _SLICE], with_vectors)
            yield sorted(hits, key=lambda hit: str(hit.document_id))

    def _by_vectors(self, wanted: Sequence[str]) -> tuple[Found, JsonObject]:
        if not clustering.is_installed():
            raise BadRequestError(clustering.MISSING)
        features = self.definition["features"]
        config = self.definition["vector_config"]
        ids: list[str] = []
        collection_ids: list[str] = []
        with (
            (self.folder / "vectors.f32").open("wb") as vectors,
            (self.folder / "texts.jsonl").open("wb") as texts,
        ):
            for hits in self._slices(wanted, with_vectors=True):
                for hit in hits:
                    parts = [hit.vectors.get(feature["name"]) for feature in features]
                    if any(part is None for part in parts):
                        continue
                    ids.append(hit.document_id)
                    collection_ids.append(str(hit.payload["collection_id"]))
                    vectors.write(
                        np.concatenate([np.asarray(p, np.float32).ravel() for p in parts]).tobytes()
                    )
                    texts.write(orjson.dumps(text_of(hit.payload), option=orjson.OPT_APPEND_NEWLINE))
        if not ids:
            raise BadRequestError(
                "None of the documents has all of the features; each needs "
                + ", ".join(config["feature_uris"])
                + "."
            )
        spec = {
            "method": config["clustering_method"],
            "params": config["algorithm_params"],
            "blocks": features,
            "normalize": config["normalize_features"],
            "center": config["effective_feature_method"],
            "memory_mib": self.wh.settings.worker_memory_mib,
        }
        (self.folder / "spec.json").write_bytes(orjson.dumps(spec))
        self._fit()
        result = json.loads((self.folder / "result.json").read_text())
        check_groups(len(result["centroids"]))
        with np.load(self.folder / "labels.npz") as fitted:
            labels, distances = fitted["labels"], fitted["distances"]
            found = Found(ids, collection_ids, labels.tolist(), distances.tolist(), fitted["points"].tolist())
        asked = LlmLabeling.model_validate(
            self.own.get("llm_labeling") or self.definition.get("llm_labeling") or {}
        )
        if asked.enabled:
            cluster_labels.label(
                self.wh.language, asked, self.folder, result, labels, distances, self._still_ours
            )
        return found, result

    def _fit(self) -> None:
        """Run the fit in a process of its own, and end that when the execution is not to go on."""
        limit_s = self.wh.settings.cluster_timeout_s
        until = time.monotonic() + limit_s
        with (self.folder / "output.txt").open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tessera.clustering", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while True:
                    try:
                        code = child.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        self._still_ours()
                        if time.monotonic() > until:
                            raise BadRequestError(
                                f"The fit took more than {limit_s:g} s (setting cluster_timeout_s). Cluster fewer "
                                "documents (sample_size), choose kmeans, or raise the setting."
                            ) from None
            finally:
                child.kill()
                child.wait()
                _close(child.stdin)
        if code == 0:
            return
        said = self.folder / "error.txt"
        if said.exists():
            raise BadRequestError(said.read_text())
        raise BadRequestError(
            f"The process that fitted the clusters ended with {code}; it may have run out of memory. Cluster fewer "
            "documents (sample_size), or choose kmeans."
        )

    def _by_attributes(self, wanted: Sequence[str]) -> tuple[Found, JsonObject]:
        paths = self.definition["attribute_config"]["attributes"]
        ids: list[str] = []
        collection_ids: list[str] = []
        keys: list[str | None] = []
        for hits in self._slices(wanted, with_vectors=False):
            for hit in hits:
                values = [values_at(hit.payload, path) for path in paths]
                ids.append(hit.document_id)
                collection_ids.append(str(hit.payload["collection_id"]))
                keys.append(", ".join(_shown(each) for each in values) if all(values) else None)
        names = {
            key: number for number, key in enumerate(dict.fromkeys(key for key in keys if key is not None))
        }
        check_groups(len(names))
        labels = clustering.numbered(
            np.array([names.get(key, -1) if key else -1 for key in keys], np.int32)
        ).tolist()
        told = {label: key for label, key in zip(labels, keys, strict=True) if key is not None}
        sizes = Counter(labels)
        centroids = [
            {"cluster_id": f"cl_{n}", "num_members": sizes[n], "label": told[n], "keywords": []}
            for n in sorted(told)
        ]
        nothing = [None] * len(ids)
        found = Found(ids, collection_ids, labels, nothing, [(None, None)] * len(ids))
        return found, {"centroids": centroids, "metrics": None, "noise": sizes[-1]}


def check_groups(count: int) -> None:
    """Raise `BadRequestError` where there are more groups than a result holds."""
    if count > MAX_GROUPS:
        raise BadRequestError(
            f"These are {count:,} groups, nearly one for each document; a result holds {MAX_GROUPS:,}. Choose "
            "attributes with fewer values, or parameters that make larger groups."
        )


def _draw(document_id: str) -> int:
    """Return a document's lot, the same each time."""
    key = f"{clustering.SEED}:{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def _shown(values: Sequence[Any]) -> str:
    return " and ".join(value if isinstance(value, str) else orjson.dumps(value).decode() for value in values)


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        stream.close()


def text_of(payload: Mapping[str, Any]) -> str:
    """Return the texts of a document, its own fields and those one level below, cut to what labels need."""
    texts: list[str] = []
    for name, value in payload.items():
        if name in RESERVED_FIELDS or name in ("cluster_label", "cluster_id"):
            continue
        inside = value.values() if isinstance(value, dict) else (value,)
        texts += [
            each for each in inside if isinstance(each, str) and " " in each.strip() and "://" not in each
        ]
    return "\n".join(texts)[:_TEXT_CHARS]


# --- rows ----------------------------------------------------------------------------------------------


def _row(connection: Connection, run_id: str) -> JsonObject:
    """Return an execution with its cluster's name and definition."""
    joined = sa.select(cluster_runs, cluster_rows.c.cluster_name, cluster_rows.c.definition).join(
        cluster_rows, cluster_rows.c.cluster_id == cluster_runs.c.cluster_id
    )
    found = connection.execute(joined.where(cluster_runs.c.run_id == run_id)).mappings().one_or_none()
    if found is None:
        raise Stopped
    return dict(found)


def _tell_task(connection: Connection, row: Mapping[str, Any], status: TaskStatus, **more: Any) -> None:
    error = more.pop("error", None)
    connection.execute(
        sa.update(task_rows)
        .where(task_rows.c.task_id == row["task_id"])
        .values(
            status=status,
            outputs=[row["run_id"]] if status == TaskStatus.COMPLETED else [],
            additional_data={"cluster_id": row["cluster_id"], "run_id": row["run_id"], **more},
            error=error,
            updated_at=now(),
        )
    )


def _emit(connection: Connection, event_type: EventType, row: Mapping[str, Any]) -> None:
    result = row["result"] or {}
    metadata = {
        "cluster_name": row["cluster_name"],
        "run_id": row["run_id"],
        "task_id": row["task_id"],
        "num_clusters": len(result.get("centroids", ())),
        "num_documents": result.get("num_points", 0),
    }
    events.emit(connection, row["namespace_id"], event_type, row["cluster_id"], metadata)
