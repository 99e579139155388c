"""Embedded views of each layout that a release has made: all hold the same documents, and stay as they were made."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera import artifact
from tessera.adapters.qdrant import edge_host
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.filters import Condition
from tessera.log import State, fold
from tessera.ports import DenseVector, Document, Entry, Page, Search, SparseText, View, ViewDamaged
from tests.contracts.test_vectors import DIMENSIONS, index, vector

#: What the mark of a view says under "packed": releases 0.1 and 0.2, up to 0.4, and this one.
LAYOUTS: dict[str, bool | int] = {"fields": False, "string": True, "key": 2}
ONE = (DenseVector("text", DIMENSIONS),)
TWO = (*ONE, DenseVector("picture", 3))
WORDS = (SparseText("bm25", ("words",)),)
#: Names and texts that look like JSON, like keys of ours, or like nothing.
ODD = ['"', '{"', '{"document_id":"x"}', " ", "", "_s", "\\", "\0", "é", "{a", "a.b", "\U0001f642", "true"]


@pytest.fixture
def vectors(tmp_path: Path) -> Iterator[EdgeVectors]:
    made = EdgeVectors(1, 8, tmp_path / "run")
    yield made
    made.close()


def made_as(vectors: EdgeVectors, view: View, packed: bool | int) -> View:
    """Return `view`, made new in the layout that `packed` names."""
    vectors.open(view)
    vectors.release(view)
    # As after a kill between the mark and the shard: the shard is made as the mark says.
    shutil.rmtree(Path(view.location, "shard"))
    Path(view.location, "checksums.json").unlink()
    path = Path(view.location, "mark.json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"packed": packed, "files": []}))
    assert vectors.open(view).seq == 0
    return view


def random_value(rng: random.Random, depth: int = 0) -> Any:
    roll = rng.randrange(10 if depth < 3 else 8)
    if roll < 3:
        return rng.choice([True, False, None, 0, -(2**63), 2**64 - 1, 1.5, -1e-300])
    if roll < 8:
        return rng.choice(ODD) + rng.choice(ODD)
    if roll == 8:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(ODD): random_value(rng, depth + 1) for _ in range(rng.randrange(3))}


def random_document(rng: random.Random, declared: tuple[DenseVector, ...]) -> Document:
    number = rng.randrange(60)
    payload: dict[str, Any] = {rng.choice(ODD): random_value(rng) for _ in range(rng.randrange(5))}
    payload |= {"k": rng.choice(["A", "b", ["C", "d"], 5]), "n": number, "collection_id": "col_1"}
    if rng.random() < 0.5:
        payload["words"] = rng.choice(["green lamp", ["brass", "lamp"], ""])
    payload["document_id"] = f"doc_{number}"
    has = [one for one in declared if rng.random() < 0.8]
    return Document(
        f"doc_{number}", payload, {one.name: vector(rng.randrange(99), one.dimensions) for one in has}
    )


def random_log(rng: random.Random, directory: Path, declared: tuple[DenseVector, ...]) -> list[Entry]:
    """Return entries of every kind; those of payloads alone and deletes meet documents that exist and others."""
    entries: list[Entry] = []
    for seq in range(1, 25):
        some = tuple(random_document(rng, declared) for _ in range(rng.randrange(1, 12)))
        some = tuple({document.document_id: document for document in some}.values())
        gone = tuple(f"doc_{rng.randrange(60)}" for _ in range(rng.randrange(3)))
        gone = tuple(name for name in gone if name not in {document.document_id for document in some})
        keeps = rng.random() < 0.25
        bare = tuple(Document(one.document_id, one.payload) for one in some) if keeps else some
        if seq % 7 == 3:
            wanted = rng.sample([index("k", "keyword"), index("n", "integer"), index("é", "keyword")], 2)
            entries.append(Entry(seq, "indexes", indexes=tuple(wanted)))
        elif seq % 3 == 1:
            path = directory / f"{seq}.arrow"
            artifact.write(path, bare, {} if keeps else {one.name: one.dimensions for one in declared})
            entries.append(Entry(seq, "artifact", deletes=gone, artifact_path=str(path), keeps_vectors=keeps))
        else:
            entries.append(Entry(seq, "edit", upserts=bare, deletes=gone, keeps_vectors=keeps))
    return entries


def assert_holds(vectors: EdgeVectors, view: View, state: State) -> None:
    """The view lists, finds, filters and counts exactly the documents of `state`."""
    hits = {hit.document_id: hit for hit in vectors.page(view, Page(100, with_vectors=True)).hits}
    assert {name: hit.payload for name, hit in hits.items()} == {
        name: stored.payload for name, stored in state.documents.items()
    }
    for name, stored in state.documents.items():
        assert set(hits[name].vectors) == set(stored.vectors)
        for which, numbers in stored.vectors.items():
            expected = numbers / np.linalg.norm(numbers)
            np.testing.assert_allclose(hits[name].vectors[which], expected, atol=1e-5)
    for declared in view.vectors:
        (found,) = vectors.search(
            view, [Search(declared.name, vector(7, declared.dimensions), 100, with_vectors=True)]
        )
        assert {hit.document_id for hit in found} == {
            name for name, stored in state.documents.items() if declared.name in stored.vectors
        }
        assert all(set(hit.vectors) == set(hits[hit.document_id].vectors) for hit in found)
    (lamps,) = vectors.search(view, [Search("bm25", None, 100, text="lamp")])
    assert {hit.document_id for hit in lamps} == {
        name for name, stored in state.documents.items() if "lamp" in str(stored.payload.get("words"))
    }
    folded = {name for name, stored in state.documents.items() if stored.payload["k"] in ("A", "b")}
    assert vectors.count(view, Condition("k", "in", ["a", "B"])) == len(folded)


@pytest.mark.parametrize(
    ("layout", "declared"),
    [("key", ()), *((layout, declared) for layout in LAYOUTS for declared in (ONE, TWO))],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} vectors",
)
def test_every_layout_holds_what_the_log_says(
    vectors: EdgeVectors, tmp_path: Path, layout: str, declared: tuple[DenseVector, ...]
) -> None:
    """Written, closed and opened again, killed and replayed; and it never changes its layout on the way."""
    view = View("ns_1", "ns_1-1", declared, str(tmp_path / "views" / "ns_1-1"), sparse=WORDS)
    made_as(vectors, view, LAYOUTS[layout])
    entries = random_log(random.Random(f"{layout} {len(declared)}"), tmp_path, declared)
    vectors.apply(view, entries[:12])
    assert_holds(vectors, view, fold(entries[:12]))
    vectors.release(view)
    assert vectors.open(view).checked
    vectors.apply(view, entries[12:18])
    vectors.flush(view)
    vectors.apply(view, entries[18:])
    for host in vectors._slots:
        if host is not None:
            os.kill(host.process.pid, signal.SIGKILL)
    mark = vectors.open(view)
    vectors.apply(view, entries[mark.seq :])
    assert_holds(vectors, view, fold(entries))
    vectors.release(view)
    assert json.loads(Path(view.location, "mark.json").read_bytes())["packed"] is LAYOUTS[layout]


@pytest.mark.parametrize("packed", [3, None])
def test_a_layout_that_there_is_not_is_damage(vectors: EdgeVectors, tmp_path: Path, packed: object) -> None:
    """A release that does not know a layout rebuilds the view from the log, as from this one to an earlier one."""
    view = View("ns_1", "ns_1-1", ONE, str(tmp_path / "views" / "ns_1-1"))
    with pytest.raises(ViewDamaged, match="mark cannot be read"):
        made_as(vectors, view, packed)  # type: ignore[arg-type]
    vectors.drop(view)
    assert vectors.open(view).seq == 0


def test_graphs_of_an_unnamed_vector_are_measured_and_searched(tmp_path: Path) -> None:
    """The width of a graph is found by the vector's name, which the engine does not know."""
    view = View("ns_1", "ns_1-1", ONE, str(tmp_path / "view"))
    opened = edge_host.open_view(view, max_scan_documents=1000, graph=True)
    numbers = [vector(number) for number in range(60)]
    documents = tuple(
        Document(f"doc_{n}", {"document_id": f"doc_{n}"}, {"text": one}) for n, one in enumerate(numbers)
    )
    edge_host.finish(opened.live.apply([Entry(1, "edit", upserts=documents)]))
    widths = edge_host.graph_widths(opened.engine, view, 60)
    assert widths["text"] in edge_host.GRAPH_WIDTHS
    opened.live.standing.graphs = widths
    (found,) = edge_host.finish(opened.live.search([Search("text", numbers[5], 1)]))
    assert found[0].document_id == "doc_5"
    opened.close()
