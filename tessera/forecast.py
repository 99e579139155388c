"""Plan before you pay: what a batch would take, from the measures of its sources and the rates of earlier batches.

Nothing is written. Files are measured in the process with bounds that opens strangers' pictures for queries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from tessera import batches, buckets, filters, ingest, ingest_rows, namespaces, rates, source_content, tiers
from tessera.context import Principal, Warehouse
from tessera.db.tables import collections as collection_rows
from tessera.db.tables import namespaces as namespace_rows
from tessera.db.tables import objects, sources
from tessera.errors import BadRequestError, Problem, TesseraError, ValidationError, quote
from tessera.extraction import ChunkRow, InputRef
from tessera.measures import AMOUNTS, Measure, measure_sources, summed
from tessera.models.plans import (
    MAX_SOURCES,
    Basis,
    PlanBatchRequest,
    PlannedExtractor,
    PlannedSource,
    PlanResponse,
    PlanSourcesRequest,
)
from tessera.objects import is_missing
from tessera.ports import HERE, Failed
from tessera.rates import Known, Took
from tessera.validation import schema_problems

#: Files that are opened for one plan, and how long that may take; the others are taken to be like them.
MOST_MEASURED = 2000
MEASURING_S = 20.0
#: Sources of one call to the measuring process: a query's picture waits behind one call at most.
_AT_ONCE = 8
_CALL_S = 20.0
#: An index holds what artifacts hold once more: vectors, payload, and what finds them.
INDEX_SHARE = 1.0
#: Objects looked up in one statement.
_SLICE = 5000


@dataclass(slots=True)
class Load:
    """Sources for one extractor: `measures` of those that were measured, `unmeasured` others like them."""

    label: dict[str, Any]
    extractor: str
    plan_hash: str
    measures: list[Measure] = field(default_factory=list)
    unmeasured: int = 0
    unchanged: int = 0
    #: The collection that feeds it, when documents are its sources: their number is that one's prediction.
    fed_by: tuple[str, ...] = ()
    #: Whether the extractor reads elsewhere: each source is a chunk of its own then.
    reads_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What one load takes."""

    load: Load
    chunks: tuple[float, ...]
    documents: float | None
    size_bytes: float
    basis: Basis


# --- predicting: pure -----------------------------------------------------------------------------------


def predict(load: Load, known: Known) -> Part:
    """Return what a load takes. Sources that were not measured take what the others of the load do on average.

    Where no source was, the extractor's own average; where it has none, nothing can be said.
    """
    by_kind = {row.kind: known.of(load.extractor, load.plan_hash, row.kind) for row in load.measures}
    usable = {kind: found.weights() for kind, (found, _) in by_kind.items() if found is not None}
    bases = {basis for _, basis in by_kind.values()}
    rows = [usable[row.kind].of(row.amounts()) for row in load.measures if row.kind in usable]
    basis: Basis = "measured"
    if "none" in bases:
        basis = "none"
    elif "other_parameters" in bases:
        basis = "other_parameters"
    if load.unmeasured:
        if rows:
            average = Took(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))
        else:
            found = known.any_of(load.extractor, load.plan_hash)
            if found is None:
                return Part(load, (), None, 0.0, "none")
            average = found.per_file()
        rows += [average] * load.unmeasured
    if not rows and (load.measures or load.unmeasured):
        return Part(load, (), None, 0.0, "none")
    sizes = [row.size_bytes for row in load.measures]
    chunks = tuple(_chunks([row.seconds for row in rows], sizes, reads_elsewhere=load.reads_elsewhere))
    size_bytes = sum(row.size_bytes for row in rows)
    return Part(load, chunks, sum(row.documents for row in rows), size_bytes * (1 + INDEX_SHARE), basis)


def _chunks(seconds: Sequence[float], sizes: Sequence[int], *, reads_elsewhere: bool) -> Iterator[float]:
    """Yield the time of each chunk that rows are cut into, as ingest cuts them."""
    total, count, size = 0.0, 0, 0
    for number, row_s in enumerate(seconds):
        total, count = total + row_s, count + 1
        size += sizes[number] if number < len(sizes) else 0
        if ingest_rows.is_full(count, size, reads_elsewhere=reads_elsewhere):
            yield total
            total, count, size = 0.0, 0, 0
    if count:
        yield total


def duration(
    parts: Sequence[Part], known: Known, workers: int, *, side_by_side: bool, warm: frozenset[str] | None
) -> float:
    """Return how long all of it takes: chunks on workers, models that are loaded, and what a batch takes beside.

    `warm` are extractors whose models are loaded; None when no batch ran since the server started.
    """
    if side_by_side:
        inside = rates.makespan([chunk for part in parts for chunk in part.chunks], workers)
    else:
        inside = sum(rates.makespan(part.chunks, workers) for part in parts)
    cold = {part.load.extractor: part.load for part in parts if part.load.extractor not in (warm or ())}
    loading = 0.0
    for name, load in cold.items():
        found = known.any_of(name, load.plan_hash)
        loading += found.loading_s() if found is not None else 0.0
    around = known.around(is_first=warm is None)
    documents = sum(part.documents or 0.0 for part in parts)
    beside = around.weights().of((1.0, documents / 1000)).seconds if around is not None else 0.0
    return inside + loading + beside


# --- plans ----------------------------------------------------------------------------------------------


def plan_sources(
    wh: Warehouse, principal: Principal, namespace: str | None, request: PlanSourcesRequest
) -> PlanResponse:
    """Predict what sources that are nowhere yet would take, in a namespace or in one with default parameters.

    Raises `ValidationError` for extractors and parameters that do not exist, `NotFoundError` for the namespace.
    """
    place: Mapping[Any, Any] = {"feature_extractors": [], "vector_inference_map": {}}
    if namespace is not None:
        with wh.db.read() as connection:
            place = namespaces.resolve(connection, principal, namespace)
    count = sum(source.count for group in request.groups for source in group.sources)
    if count > MAX_SOURCES:
        raise BadRequestError(
            f"The groups have {count} sources; a plan has at most {MAX_SOURCES}. Plan a part of them, or one source "
            "with a `count` for many that are alike.",
            details={"sources": count, "limit": MAX_SOURCES},
        )
    loads = []
    problems: list[Problem] = []
    for number, group in enumerate(request.groups):
        config = {
            "feature_extractor_name": group.feature_extractor_name,
            "version": group.version,
            "parameters": group.parameters or {},
        }
        load = _load(wh, place, config, ("body", "groups", number), problems)
        if load is not None:
            for source in group.sources:
                if source.is_measured:
                    load.measures += [_measure_of(source)] * source.count
                else:
                    load.unmeasured += source.count
            loads.append(load)
    if problems:
        raise ValidationError(problems)
    size = sum(source.size_bytes * source.count for group in request.groups for source in group.sources)
    workers, where = _workers(wh, place)
    return _answer(wh, loads, workers, where, source_bytes=size, side_by_side=True)


def plan_batch(
    wh: Warehouse, principal: Principal, namespace: str, bucket: str, request: PlanBatchRequest
) -> PlanResponse:
    """Predict what a batch of a bucket's objects would take: their files are measured, nothing is written.

    Objects that did not change since they were extracted cost nothing, and are counted so. What collections make of
    other collections' documents is predicted from how many those would be.
    """
    with wh.db.read() as connection:
        row = buckets.resolve(connection, principal, namespace, bucket)
        wanted = batches.existing_objects(connection, row, request.object_ids) if request.object_ids else None
        place = (
            connection.execute(
                sa.select(namespace_rows).where(namespace_rows.c.namespace_id == row["namespace_id"])
            )
            .mappings()
            .one()
        )
        stages = batches.tiers_of(connection, row, request.collection_ids)
        reads = tiers.fed_by_collections(connection, row["namespace_id"])
        ids = [collection_id for tier in stages for collection_id in tier.collection_ids]
        by_id = {
            found["collection_id"]: found
            for found in connection.execute(
                sa.select(collection_rows).where(collection_rows.c.collection_id.in_(ids))
            ).mappings()
        }
        if wanted is None:
            _refuse_many(connection, row["bucket_id"])
        found = _objects(connection, row["bucket_id"], wanted)
        done = {
            collection_id: _done(connection, collection_id)
            for collection_id in (stages[0].collection_ids if stages else ())
        }
    loads = []
    problems: list[Problem] = []
    measuring = _Measuring(wh)
    for tier in stages:
        for collection_id in tier.collection_ids:
            collection = by_id[collection_id]
            config = collection["feature_extractor"]
            load = _load(wh, place, config, ("body", "collection_ids", collection_id), problems)
            if load is None:
                continue
            load.label["collection_id"] = collection_id
            if tier.tier_num == 0 and collection["source"]["type"] == "bucket":
                _fill(wh, load, collection, found, done[collection_id], measuring)
            else:
                load.fed_by = tuple(reads.get(collection_id, ()))
            loads.append(load)
    if problems:
        raise ValidationError(problems)
    workers, where = _workers(wh, place)
    size = sum(item["size_bytes"] for item in found)
    return _answer(wh, loads, workers, where, source_bytes=size, side_by_side=False)


def _load(
    wh: Warehouse,
    place: Mapping[Any, Any],
    config: Mapping[str, Any],
    location: tuple[str | int, ...],
    problems: list[Problem],
) -> Load | None:
    """Return an empty load for an extractor as a collection has it; None, with a problem, where there is none."""
    name, version = config["feature_extractor_name"], config["version"]
    implementation = wh.registry.find(name, version)
    if implementation is None:
        known = ", ".join(wh.registry.versions(name) or wh.registry.extractor_names())
        problems.append(
            Problem(
                (*location, "feature_extractor_name"),
                f"feature extractor {quote(f'{name} {version}')} is not known; known are {known}."
                + wh.registry.trouble(name),
                "unknown_extractor",
            )
        )
        return None
    locked = {
        entry["feature_extractor_name"]: entry.get("params") or {} for entry in place["feature_extractors"]
    }
    running = place["vector_inference_map"] or {}
    try:
        if "namespace_id" not in place:
            # As a namespace that is made now would choose.
            asked = implementation.Params.model_validate(ingest_rows.params_of(config, locked))
            vectors = implementation.outputs(asked).vectors
            running = {vector.name: vector.model_id for vector in vectors}
        digest = ingest_rows.plan_digest(wh.registry, config, locked, running)
    except pydantic.ValidationError as error:
        problems += schema_problems(error, (*location, "parameters"))
        return None
    except TesseraError as error:
        problems.append(Problem((*location, "parameters"), error.message, "model_not_installed"))
        return None
    return Load(
        {"feature_extractor_name": name, "version": version},
        implementation.name,
        digest,
        reads_elsewhere=implementation.reads_elsewhere,
    )


def _measure_of(source: PlannedSource) -> Measure:
    return Measure(
        source.kind,
        source.size_bytes,
        source.duration_s,
        source.width,
        source.height,
        source.frames_per_s,
        source.pages,
        source.characters,
    )


def _workers(wh: Warehouse, place: Mapping[Any, Any]) -> tuple[int, str]:
    """Return how many workers there are where a namespace's rows are extracted, and the name of that place."""
    compute = HERE
    if "namespace_id" in place:
        compute = ingest.compute_of(wh, place["namespace_id"], place["infrastructure"], place["place"])
    return ingest.workers_of(wh, compute)


def _answer(
    wh: Warehouse, loads: Sequence[Load], workers: int, where: str, *, source_bytes: int, side_by_side: bool
) -> PlanResponse:
    with wh.db.read() as connection:
        known = rates.known_at(connection, where, {load.extractor for load in loads})
    parts: list[Part] = []
    made: dict[str, float | None] = {}
    for load in loads:
        feeding = [made[collection] for collection in load.fed_by if collection in made]
        load.unmeasured += round(sum(count or 0.0 for count in feeding))
        # Nothing is known of documents of which nobody knows how many there will be.
        part = predict(load, known) if None not in feeding else Part(load, (), None, 0.0, "none")
        made[load.label.get("collection_id", "")] = None if part.basis == "none" else part.documents
        parts.append(part)
    warm = (
        frozenset(name.removeprefix(f"{where} ") for name in wh.warm if name.startswith(f"{where} "))
        if where in wh.warm
        else None
    )
    usable = [part for part in parts if part.basis != "none"]
    lacking = sorted({part.load.extractor for part in parts if part.basis == "none"})
    seconds = duration(usable, known, workers, side_by_side=side_by_side, warm=warm) if usable else None
    return PlanResponse(
        seconds=None if seconds is None else round(seconds, 2),
        documents=round(sum(part.documents or 0.0 for part in usable)) if usable else None,
        disk_bytes=round(sum(part.size_bytes for part in usable)) if usable else None,
        source_bytes=source_bytes,
        workers=workers,
        is_complete=not lacking,
        extractors=[_shown(part) for part in parts],
        advice=_advice(lacking, parts),
    )


def _shown(part: Part) -> PlannedExtractor:
    load = part.load
    has_rates = part.basis != "none"
    amounts = {
        used.kind: {
            name: round(value, 3) for name, value in zip(AMOUNTS[used.kind], used.amounts(), strict=True)
        }
        for used in summed((row, 0.0, 0, 0) for row in load.measures)
    }
    return PlannedExtractor(
        **load.label,
        sources=len(load.measures) + load.unmeasured,
        unchanged=load.unchanged,
        unmeasured=load.unmeasured,
        amounts=amounts,
        worker_seconds=round(sum(part.chunks), 3) if has_rates else None,
        documents=round(part.documents or 0.0) if has_rates else None,
        disk_bytes=round(part.size_bytes) if has_rates else None,
        basis=part.basis,
    )


def _advice(lacking: Sequence[str], parts: Sequence[Part]) -> str | None:
    if lacking:
        return (
            f"Of {', '.join(lacking)} no rate is known here yet: run a small batch, or `tessera plan PATH -n NS "
            "--calibrate`, and plan again."
        )
    if any(part.basis == "other_parameters" for part in parts):
        return "Some rates are those of other parameters: a small batch with these ones makes the prediction better."
    return None


# --- the objects of a bucket ----------------------------------------------------------------------------


def _refuse_many(connection: Connection, bucket_id: str) -> None:
    """Refuse more objects than a plan has: one that left some out would show too small a number."""
    mine = sa.select(sa.func.count()).select_from(objects).where(objects.c.bucket_id == bucket_id)
    count = connection.execute(mine).scalar_one()
    if count > MAX_SOURCES:
        raise BadRequestError(
            f"object_ids is left out, and the bucket has {count} objects; a plan has at most {MAX_SOURCES}. Send some "
            "of them in object_ids, a part at a time.",
            details={"sources": count, "limit": MAX_SOURCES},
        )


def _objects(connection: Connection, bucket_id: str, wanted: Sequence[str] | None) -> list[RowMapping]:
    query = sa.select(objects).where(objects.c.bucket_id == bucket_id)
    if wanted is None:
        return list(connection.execute(query.order_by(objects.c.object_id)).mappings())
    found: list[RowMapping] = []
    for start in range(0, len(wanted), _SLICE):
        part = objects.c.object_id.in_(wanted[start : start + _SLICE])
        found += connection.execute(query.where(part)).mappings()
    return found


def _done(connection: Connection, collection_id: str) -> dict[str, tuple[str, str]]:
    """Return input hash and plan hash of what a collection has extracted, by source."""
    rows = connection.execute(
        sa.select(sources.c.source_id, sources.c.input_hash, sources.c.plan_hash).where(
            sources.c.collection_id == collection_id
        )
    )
    return {row.source_id: (row.input_hash, row.plan_hash) for row in rows}


def _fill(
    wh: Warehouse,
    load: Load,
    collection: Mapping[Any, Any],
    rows: Sequence[RowMapping],
    done: Mapping[str, tuple[str, str]],
    measuring: _Measuring,
) -> None:
    """Put the objects that a collection would extract into a load, measured."""
    config = collection["feature_extractor"]
    implementation = wh.registry.extractor(config["feature_extractor_name"], config["version"])
    wanted = filters.parse((collection["source"].get("source_filters") or {}).get("filters"))
    passes = filters.predicate(wanted) if wanted is not None else None
    to_measure: list[Mapping[str, InputRef]] = []
    for row in rows:
        if passes is not None and not passes(source_content.as_filtered(row)):
            continue
        if any(is_missing(blob) for blob in row["blobs"]):
            load.unmeasured += 1  # to be fetched yet
            continue
        fields, blobs = row["fields"], row["blobs"]
        inputs = source_content.inputs_of(
            collection["namespace_id"],
            implementation.inputs,
            config.get("input_mappings"),
            fields,
            [blob for blob in blobs if not is_missing(blob)],
        )
        if source_content.is_of_another_kind(implementation.inputs, config.get("input_mappings"), inputs):
            continue
        source = ChunkRow(
            row["object_id"],
            row["version"],
            inputs,
            source_content.passthrough_of(config, fields, blobs),
            {},
        )
        same = done.get(row["object_id"]) == (source_content.input_hash(source), load.plan_hash)
        if same and not implementation.reads_elsewhere:
            load.unchanged += 1
        else:
            to_measure.append(inputs)
    for found in measuring.measure(to_measure):
        if found is None:
            load.unmeasured += 1
        else:
            load.measures.append(found)


class _Measuring:
    """Measures sources in the process with bounds, as long as there is time for it."""

    def __init__(self, wh: Warehouse) -> None:
        self._wh = wh
        self._until = time.monotonic() + MEASURING_S
        self._left = MOST_MEASURED

    def measure(self, rows: Sequence[Mapping[str, InputRef]]) -> Iterator[Measure | None]:
        """Yield the measure of each source; None for what cannot be read, or was too much to open."""
        files: list[list[tuple[str | None, str | None, str | None]]] = []
        for inputs in rows:
            paths = [ref for ref in inputs.values() if ref.blob_key is not None]
            if not inputs:
                yield Measure("other")
                continue
            if not paths:
                length = max((len(ref.text or "") for ref in inputs.values()), default=0)
                yield Measure("text", length, characters=length)
                continue
            files.append(
                [(None, str(self._wh.blobs.path(str(ref.blob_key))), ref.mime_type) for ref in paths]
            )
        # Of more than are opened, every nth, so that they stand for all.
        step = max(1, -(-len(files) // max(1, self._left)))
        chosen = files[::step]
        parts = [chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE)]
        self._left -= len(chosen)
        opened = 0
        for part in parts:
            if time.monotonic() > self._until:
                break
            ((_, outcome),) = self._wh.decoder.map(measure_sources, [part], timeout_s=_CALL_S)
            opened += len(part)
            yield from [None] * len(part) if isinstance(outcome, Failed) else outcome
        yield from [None] * (len(files) - opened)
