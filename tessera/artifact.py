"""Artifacts: immutable Arrow IPC files that carry the documents of one extraction.

Columns: ``document_id: string``, ``payload: binary`` (JSON), and for each named vector a column
``v:<name>: fixed_size_list<float32>[dimensions]`` that is null where a document lacks it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from tessera.blobs import sync_folder
from tessera.ports import Document

VECTOR_PREFIX = "v:"
#: Most documents in one artifact; larger results are split.
MAX_DOCUMENTS = 2000
#: Documents in each part of a file but the last.
SLICE = 200


def write(path: Path, documents: Sequence[Document], dimensions: Mapping[str, int]) -> None:
    """Write `documents` to `path`, complete and synced before the name exists.

    `dimensions` gives the length of each named vector, `float32[dimensions]`.
    """
    import pyarrow as pa

    arrays: list[pa.Array] = [
        pa.array([document.document_id for document in documents], pa.string()),
        pa.array([orjson.dumps(document.payload) for document in documents], pa.binary()),
    ]
    names = ["document_id", "payload"]
    for name, size in dimensions.items():
        rows = [document.vectors.get(name) for document in documents]
        flat = np.zeros((len(rows), size), dtype=np.float32)
        missing = np.ones(len(rows), dtype=bool)
        for index, row in enumerate(rows):
            if row is not None:
                flat[index] = row
                missing[index] = False
        arrays.append(
            pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), size, mask=pa.array(missing))
            if missing.any()
            else pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), size)
        )
        names.append(VECTOR_PREFIX + name)
    table = pa.table(dict(zip(names, arrays, strict=True)))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=SLICE)
        sink.flush()
        os.fsync(sink.fileno())
    part.rename(path)
    sync_folder(path.parent)


def document_ids(path: Path | str) -> set[str]:
    """Return the ids in the artifact at `path`; nothing else of it is read."""
    return {document_id for column in _column(path, "document_id") for document_id in column.to_pylist()}


def payloads(path: Path | str) -> Iterator[bytes]:
    """Yield the payloads (JSON) in the artifact at `path`."""
    for column in _column(path, "payload"):
        yield from column.to_pylist()


def _column(path: Path | str, name: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number).column(name)


class Payloads:
    """Reads single payloads out of artifacts, in any order; keeps the artifacts that it used last mapped."""

    #: Each is an open file.
    KEPT = 64

    def __init__(self) -> None:
        self._columns = lru_cache(maxsize=self.KEPT)(lambda path: list(_column(path, "payload")))

    def at(self, path: str, number: int) -> dict[str, Any]:
        """Return the payload of the document `number`, from 0 on, of the artifact at `path`."""
        column, row = divmod(number, SLICE)
        payload: dict[str, Any] = orjson.loads(self._columns(path)[column][row].as_py())
        return payload


class VectorColumn(NamedTuple):
    """One named vector of some documents."""

    #: ``float32[n, dimensions]``, mapped from the file: good while the file is.
    numbers: npt.NDArray[np.float32]
    #: ``bool[n]``, which of the documents have it; None: all of them.
    present: npt.NDArray[np.bool_] | None


class Part(NamedTuple):
    """Documents of an artifact, in columns."""

    document_ids: list[str]
    #: JSON, as it stands in the file.
    payloads: list[bytes]
    vectors: dict[str, VectorColumn]

    def document(self, row: int) -> Document:
        """Return one of them, which outlives the file."""
        vectors = {
            name: column.numbers[row].copy()
            for name, column in self.vectors.items()
            if column.present is None or column.present[row]
        }
        return Document(self.document_ids[row], orjson.loads(self.payloads[row]), vectors)


def parts(path: Path | str) -> Iterator[Part]:
    """Yield the documents of the artifact at `path` in parts of at most 200, memory-mapped: use one before the next."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            vectors = {
                name[len(VECTOR_PREFIX) :]: _vector_column(batch.column(name))
                for name in batch.schema.names
                if name.startswith(VECTOR_PREFIX)
            }
            yield Part(batch.column("document_id").to_pylist(), batch.column("payload").to_pylist(), vectors)


def _vector_column(column: Any) -> VectorColumn:
    flat = column.values.to_numpy(zero_copy_only=False)
    numbers = flat.reshape(-1, column.type.list_size)[column.offset : column.offset + len(column)]
    present = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    return VectorColumn(numbers, present)


def read(path: Path | str) -> Iterator[list[Document]]:
    """Yield the documents of the artifact at `path` in slices of at most 200."""
    for part in parts(path):
        yield [part.document(row) for row in range(len(part.document_ids))]
