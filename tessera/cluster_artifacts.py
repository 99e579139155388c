"""What executions of clusters found, document by document: one Arrow file for each, and what erasing does to it."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.blobs import sync_folder
from tessera.context import Warehouse
from tessera.db.tables import cluster_runs


@dataclass(frozen=True, slots=True)
class Found:
    """Which cluster each document belongs to (-1: none), how far from its centre, and where on the map."""

    document_ids: Sequence[str]
    collection_ids: Sequence[str]
    labels: Sequence[int]
    distances: Sequence[float | None]
    points: Sequence[Sequence[float | None]]

    def __len__(self) -> int:
        return len(self.document_ids)


def artifact_key(namespace_id: str, run_id: str) -> str:
    """Return where it is written which document belongs to which cluster."""
    return f"{namespace_id}/clusters/{run_id}.arrow"


def write(path: Path, found: Found) -> None:
    """Write an artifact, durable when it returns."""
    import pyarrow as pa

    table = pa.table(
        {
            "document_id": pa.array(found.document_ids, pa.string()),
            "collection_id": pa.array(found.collection_ids, pa.string()),
            "label": pa.array(found.labels, pa.int32()),
            "distance": pa.array(found.distances, pa.float32(), from_pandas=True),
            "x": pa.array([point[0] for point in found.points], pa.float32()),
            "y": pa.array([point[1] for point in found.points], pa.float32()),
        }
    )
    with path.open("wb") as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=10_000)
        file.flush()
        os.fsync(file.fileno())


def part_of(path: Path, holder: str) -> Path:
    """Return where `holder` writes an artifact until it is known whose result counts."""
    return path.with_name(f"{path.name}.{holder}.part")


def put(part: Path, path: Path) -> None:
    """Let a part be the artifact from now on, also after a loss of power."""
    part.replace(path)
    sync_folder(path.parent)


def drop_parts(path: Path) -> None:
    """Remove what executions left behind that did not end."""
    for part in path.parent.glob(f"{path.name}.*part"):
        part.unlink(missing_ok=True)


def read(path: Path) -> Found:
    """Read an artifact. Raises `FileNotFoundError` where there is none."""
    import pyarrow as pa

    with path.open("rb") as file, pa.ipc.open_file(file) as reader:
        columns = reader.read_all().to_pydict()
    return Found(
        columns["document_id"],
        columns["collection_id"],
        columns["label"],
        columns["distance"],
        list(zip(columns["x"], columns["y"], strict=True)),
    )


# --- erasing -------------------------------------------------------------------------------------------


def erase(wh: Warehouse, namespace_id: str, document_ids: Collection[str]) -> str | None:
    """Take documents out of every result, and what was said of their clusters' words; say what has to be waited for."""
    mine = cluster_runs.c.namespace_id == namespace_id
    with wh.db.read() as connection:
        rows = connection.execute(sa.select(cluster_runs.c.run_id, cluster_runs.c.status).where(mine)).all()
    if any(row.status == "processing" for row in rows):
        return "an execution of a cluster"
    for row in rows:
        path = wh.blobs.path(artifact_key(namespace_id, row.run_id))
        drop_parts(path)
        if not path.exists():
            continue
        found = read(path)
        kept = [index for index, each in enumerate(found.document_ids) if each not in document_ids]
        if len(kept) == len(found):
            continue
        gone = {found.labels[index] for index in set(range(len(found))).difference(kept)}
        with wh.db.write() as connection:
            _forget_words(connection, row.run_id, gone)
        left = Found(*([column[index] for index in kept] for column in _columns(found)))
        part = part_of(path, "erasing")
        write(part, left)
        put(part, path)
    return None


def _columns(found: Found) -> tuple[Sequence[Any], ...]:
    return found.document_ids, found.collection_ids, found.labels, found.distances, found.points


def _forget_words(connection: Connection, run_id: str, labels: Collection[int]) -> None:
    """Replace label and keywords of clusters that lost a member: they may be made of its words."""
    this = cluster_runs.c.run_id == run_id
    # Held, so that a label given at the same moment is not lost, nor brings words back.
    result = connection.execute(sa.select(cluster_runs.c.result).where(this).with_for_update()).scalar()
    if not result:
        return
    ids = {f"cl_{label}" for label in labels}
    centroids = [
        {**each, "label": f"Cluster {each['cluster_id'][3:]}", "keywords": [], "summary": None}
        if each["cluster_id"] in ids
        else each
        for each in result["centroids"]
    ]
    connection.execute(
        sa.update(cluster_runs)
        .where(this)
        .values(result={**result, "centroids": centroids, "has_erased": True})
    )
