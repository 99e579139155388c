"""Extraction of one chunk of a batch: what runs in a worker, given only a plain `ChunkJob`.

The worker reads blobs and writes the artifact itself; what travels back is a few ids a row. It touches
no database, so that its result can be dropped when the batch has moved on.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessera import artifact, failpoints, locators, measures
from tessera.blobs import Blobs
from tessera.causes import Stage, plain
from tessera.db.engine import now
from tessera.errors import InsufficientStorageError, StorageUnavailableError, TesseraError, storage_trouble
from tessera.extractors.base import BadSample, Extractor, Feature, Input, Sample
from tessera.fetching import Fetcher
from tessera.ids import document_id
from tessera.log import check_documents
from tessera.ports import DenseVector, Document
from tessera.registry import Registry

#: What one source may unfold into: a hostile one of a few bytes could fill disk and memory.
MAX_ROW_DOCUMENTS = 20_000
MAX_ROW_BYTES = 2**30

#: How libraries in C++ say that they got no memory.
_NO_MEMORY = re.compile(r"bad[_ ]alloc|[Cc]annot allocate memory|out of memory", re.ASCII)


@dataclass(frozen=True, slots=True)
class InputRef:
    """One input of a row: a text in line, or a blob by key."""

    text: str | None = None
    blob_key: str | None = None
    mime_type: str | None = None
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One source to extract: its inputs, the fields passed through, and the system fields of its documents.

    `object_id` is the source's id: an object's, or ``document:<id>``. `object_version` is the object's version, or
    the log's position at which the document was read. `lineage` says how the source came about, up to itself.
    """

    object_id: str
    object_version: int
    inputs: Mapping[str, InputRef]
    passthrough: Mapping[str, Any]
    system: Mapping[str, Any]
    lineage: Mapping[str, Any] = field(default_factory=dict)
    #: Inputs that the collection maps and the source does not have, as people read them.
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkJob:
    """A chunk of rows of one collection, complete in itself."""

    namespace_id: str
    collection_id: str
    extractor_name: str
    extractor_version: str
    params: Mapping[str, Any]
    vectors: tuple[DenseVector, ...]
    rows: tuple[ChunkRow, ...]
    artifact_key: str
    blobs_root: str
    models_dir: str
    offline: bool = False
    #: Where the files of extractors lie; a worker elsewhere must see them under the same path.
    extractors_dir: str | None = None
    #: Model id by vector name, as the namespace chose when it was made.
    running: Mapping[str, str] = field(default_factory=dict)
    #: With the server's bounds, for extractors that read what is behind a URL.
    fetcher: Fetcher | None = None


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row: the ids of *all* its documents, or why there are none.

    `stage` says where it failed, unless that is where failures of its kind (``causes.py``) always are.
    """

    object_id: str
    document_ids: tuple[str, ...] = ()
    error_kind: str | None = None
    error_message: str | None = None
    stage: Stage | None = None


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """`artifact_keys` name the artifacts written, each with at most `artifact.MAX_DOCUMENTS` documents."""

    rows: tuple[RowResult, ...]
    artifact_keys: tuple[str, ...] = ()
    documents: int = 0
    #: What the system said (``errno``) when the disk or the descriptors gave out; then nothing else counts.
    storage_errno: int | None = None
    #: What it took, for predictions.
    cost: measures.Cost | None = None


@dataclass(slots=True)
class _Process:
    """What a worker keeps between chunks."""

    registries: dict[tuple[str, bool, str | None], Registry] = field(default_factory=dict)


_process = _Process()


def run_chunk(job: ChunkJob) -> ChunkResult:
    """Extract every row of `job`, write the artifacts, and say for each row what became of it.

    A disk that is full or fails is no row's fault: it is told for the chunk as a whole. Raises `MemoryError`
    when the process may have no more memory.
    """
    try:
        return _run_chunk(job)
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise MemoryError from error
        raise
    except (OSError, StorageUnavailableError, InsufficientStorageError) as error:
        number = storage_trouble(error) or storage_trouble(error.__cause__ or error)
        if number is None and isinstance(error, OSError):
            raise
        return ChunkResult((), storage_errno=number or errno.EIO)


def _run_chunk(job: ChunkJob) -> ChunkResult:
    began, registry = time.perf_counter(), _registry(job)
    loaded_s = registry.models.loading_s
    if registry.find(job.extractor_name, job.extractor_version) is None:
        return _without_extractor(job, registry)
    extractor, params = configured(
        registry, job.extractor_name, job.extractor_version, job.params, job.running
    )
    if job.fetcher is not None:
        extractor.fetcher = job.fetcher
    blobs = Blobs(Path(job.blobs_root))
    samples = [_sample(row, blobs) for row in job.rows]
    results: list[RowResult] = []
    documents: list[Document] = []
    declared = {vector.name: vector for vector in job.vectors}
    outcomes = iter(extractor.extract(samples, params))
    seen: list[tuple[Sample, float, int, int]] = []
    for row, sample in zip(job.rows, samples, strict=True):
        started = time.perf_counter()
        try:
            made, files_bytes = _documents(job, row, next(outcomes, None), blobs)
            _check(made, declared)
        except BadSample as error:
            lacks = (
                f" It lacks {' and '.join(row.lacks)}." if error.kind == "missing_input" and row.lacks else ""
            )
            results.append(
                RowResult(row.object_id, error_kind=error.kind, error_message=plain(error.message + lacks))
            )
        except _BadDocuments as error:
            results.append(
                RowResult(row.object_id, error_kind="ours", error_message=plain(str(error)), stage="write")
            )
        else:
            documents.extend(made)
            results.append(RowResult(row.object_id, tuple(document.document_id for document in made)))
            seen.append((sample, time.perf_counter() - started, len(made), files_bytes))
    keys = _write(job, blobs, documents)
    failpoints.reach("artifact.written")
    written = sum(blobs.path(key).stat().st_size for key in keys)
    took_s, load_s = time.perf_counter() - began, registry.models.loading_s - loaded_s
    return ChunkResult(tuple(results), keys, len(documents), cost=_cost(seen, took_s, load_s, written))


def _cost(
    seen: Sequence[tuple[Sample, float, int, int]], took_s: float, load_s: float, written: int
) -> measures.Cost:
    """Return what a chunk took, measured by the sources of which documents came.

    `seen` has for each its sample, its seconds, and how many documents and bytes of files came of it. What the chunk
    took beside loading models is shared out in proportion to these seconds, the artifacts to documents.
    """
    inside = sum(seconds for _, seconds, _, _ in seen) or 1.0
    share = max(0.0, took_s - load_s) / inside
    each = written / max(1, sum(count for _, _, count, _ in seen))
    rows = []
    for sample, seconds, count, files_bytes in seen:
        found = measures.measure_inputs(
            (source.text, source.path, source.mime_type) for source in sample.inputs.values()
        )
        if found is not None:
            rows.append((found, seconds * share, count, files_bytes + round(count * each)))
    return measures.Cost(took_s, load_s, measures.summed(rows))


def _without_extractor(job: ChunkJob, registry: Registry) -> ChunkResult:
    """Say for each row that this worker lacks the extractor, which its server has."""
    message = f"This worker has no {job.extractor_name} {job.extractor_version}." + (
        registry.trouble(job.extractor_name)
        or f" Its server has: a file {job.extractor_name}.py in extractors/ of the data directory, or a package. Show "
        "that directory to the worker under the same path, or install the package there, and retry the batch."
    )
    return ChunkResult(
        tuple(RowResult(row.object_id, error_kind="model_missing", error_message=message) for row in job.rows)
    )


class _BadDocuments(Exception):
    """What an extractor brought cannot be written."""


def _documents(
    job: ChunkJob, row: ChunkRow, outcome: Iterable[Feature] | BadSample | None, blobs: Blobs
) -> tuple[list[Document], int]:
    """Return what a row's documents will be, and the bytes of their files.

    A small file that unfolds into very many ends as `BadSample`.
    """
    if outcome is None:
        raise BadSample("ours", f"{job.extractor_name} brought no result for this row.")
    if isinstance(outcome, BadSample):
        raise outcome
    made: list[Document] = []
    size = files_bytes = 0
    for feature in outcome:
        size += _size(feature)
        if len(made) >= MAX_ROW_DOCUMENTS or size > MAX_ROW_BYTES:
            raise BadSample(
                "limit",
                f"The source unfolds into more than {MAX_ROW_DOCUMENTS} documents or {MAX_ROW_BYTES >> 20} MiB. Cut it "
                "into larger pieces by the extractor's parameters, or split the file.",
            )
        made.append(_document(job, row, feature, blobs))
        files_bytes += sum(len(data) for data, _ in feature.files.values())
    return made, files_bytes


def _size(feature: Feature) -> int:
    """Return about how many bytes a document takes: its vectors, its texts and its files."""
    texts = sum(len(value) for value in feature.fields.values() if isinstance(value, str))
    vectors = sum(4 * np.size(vector) for vector in feature.vectors.values())
    return texts + vectors + sum(len(data) for data, _ in feature.files.values())


def _check(documents: Sequence[Document], declared: Mapping[str, DenseVector]) -> None:
    try:
        check_documents(documents, declared)
    except (StorageUnavailableError, InsufficientStorageError):
        raise
    except TesseraError as error:
        raise _BadDocuments(error.message) from error


def configured(
    registry: Registry, name: str, version: str, params: Mapping[str, Any], running: Mapping[str, str]
) -> tuple[Extractor, Any]:
    """Return an extractor and its parameters, held to the models that its namespace runs (`running`)."""
    extractor = registry.extractor(name, version)
    return extractor, extractor.pinned(extractor.Params.model_validate(params), running)


def write_documents(
    blobs: Blobs, artifact_key: str, vectors: Sequence[DenseVector], documents: Sequence[Document]
) -> tuple[str, ...]:
    """Write `documents` as artifacts ``<artifact_key>.<n>.arrow`` of bounded size and return their keys."""
    dimensions = {vector.name: vector.dimensions for vector in vectors}
    keys = []
    for number, start in enumerate(range(0, len(documents), artifact.MAX_DOCUMENTS)):
        key = f"{artifact_key}.{number}.arrow"
        part = documents[start : start + artifact.MAX_DOCUMENTS]
        used = {name for document in part for name in document.vectors}
        artifact.write(
            blobs.new_path(key), part, {name: size for name, size in dimensions.items() if name in used}
        )
        keys.append(key)
    return tuple(keys)


def _write(job: ChunkJob, blobs: Blobs, documents: Sequence[Document]) -> tuple[str, ...]:
    return write_documents(blobs, job.artifact_key, job.vectors, documents)


def _registry(job: ChunkJob) -> Registry:
    key = (job.models_dir, job.offline, job.extractors_dir)
    registry = _process.registries.get(key)
    if registry is None:
        registry = _process.registries[key] = Registry.load(
            Path(job.models_dir),
            offline=job.offline,
            extractors_dir=Path(job.extractors_dir) if job.extractors_dir else None,
            is_worker=True,
        )
    return registry


def _sample(row: ChunkRow, blobs: Blobs) -> Sample:
    return Sample(
        {
            name: Input(
                text=ref.text,
                path=blobs.path(ref.blob_key) if ref.blob_key else None,
                mime_type=ref.mime_type,
                filename=ref.filename,
            )
            for name, ref in row.inputs.items()
        }
    )


def _document(job: ChunkJob, row: ChunkRow, feature: Feature, blobs: Blobs) -> Document:
    identifier = document_id(job.collection_id, row.object_id, feature.position)
    files = {
        name: f"blob://{blobs.put(job.namespace_id, data)}"
        for name, (data, _mime_type) in feature.files.items()
    }
    place = {locators.FIELD: feature.locator.to_json()} if feature.locator is not None else {}
    sources = {
        locators.source_field(name): f"blob://{ref.blob_key}"
        for name, ref in row.inputs.items()
        if ref.blob_key is not None
    }
    at = now()
    payload = {
        **row.passthrough,
        **sources,
        **feature.fields,
        **files,
        **place,
        **row.system,
        "_internal": {"lineage": _lineage(job, row, identifier, at)},
        "document_id": identifier,
        "collection_id": job.collection_id,
        "created_at": at,
        "updated_at": at,
    }
    vectors = {name: np.asarray(vector, dtype=np.float32) for name, vector in feature.vectors.items()}
    return Document(identifier, payload, vectors)


def _lineage(job: ChunkJob, row: ChunkRow, identifier: str, at: str) -> dict[str, Any]:
    """Return the lineage of a document: its source's, and this step."""
    step = {
        "collection_id": job.collection_id,
        "feature_extractor_id": f"{job.extractor_name}_{job.extractor_version}",
        "document_id": identifier,
        "timestamp": at,
    }
    path = row.lineage.get("path")
    return {
        **row.lineage,
        "path": f"{path}/{job.collection_id}" if path else job.collection_id,
        "chain": [*row.lineage.get("chain", ()), step],
    }
