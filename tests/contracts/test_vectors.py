"""What every vector engine must do, whichever stands behind the port: one set of tests, each engine."""

from __future__ import annotations

import itertools
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera import artifact
from tessera.adapters.qdrant.edge import EdgeVectors
from tessera.adapters.qdrant.server import ServerVectors
from tessera.errors import BadRequestError, ValidationError
from tessera.filters import And, Condition, Filter, Not, Or, matches, parse
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import DenseVector, Document, Entry, Page, Search, SparseText, Vectors, View, ViewLost
from tests import qdrant_rest

Payload = dict[str, Any]
DIMENSIONS = 16


@dataclass
class Engine:
    """An engine under test. `new_view` gives a view of its own that is opened already."""

    vectors: Vectors
    new_view: Callable[..., View]


def _edge(directory: Path, max_scan_documents: int) -> Iterator[Engine]:
    vectors = EdgeVectors(1, 8, directory / "run", max_scan_documents=max_scan_documents)
    numbers = itertools.count(1)

    def new_view(*declared: DenseVector, sparse: tuple[SparseText, ...] = ()) -> View:
        view_id = f"ns_{next(numbers):016x}-1"
        wanted = declared or (DenseVector("text", DIMENSIONS),)
        view = View(view_id[:-2], view_id, wanted, str(directory / "views" / view_id), sparse=sparse)
        vectors.open(view)
        return view

    yield Engine(vectors, new_view)
    vectors.close()


def _server(directory: Path, max_scan_documents: int) -> Iterator[Engine]:
    """The real server of ``TESSERA_TEST_QDRANT_URL``, or the stand-in; the run's last lines say which."""
    url, key = os.environ.get("TESSERA_TEST_QDRANT_URL"), os.environ.get("TESSERA_TEST_QDRANT_API_KEY")
    standin = None if url else qdrant_rest.start(directory, api_key="a key of the test's")
    url, key = (url, key) if url else (standin.url, "a key of the test's")
    vectors = ServerVectors(max_scan_documents=max_scan_documents)
    made: list[View] = []

    def new_view(*declared: DenseVector, sparse: tuple[SparseText, ...] = ()) -> View:
        namespace_id = f"ns_{uuid.uuid4().hex[:16]}"
        wanted = declared or (DenseVector("text", DIMENSIONS),)
        view = View(namespace_id, f"{namespace_id}-1", wanted, url, secret=key, sparse=sparse)
        vectors.open(view)
        made.append(view)
        return view

    yield Engine(vectors, new_view)
    for view in made:
        vectors.drop(view)
    vectors.close()
    if standin is not None:
        standin.shutdown()


ENGINES: dict[str, Callable[[Path, int], Iterator[Engine]]] = {"edge": _edge, "server": _server}


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from ENGINES[request.param](tmp_path_factory.mktemp(request.param), 100_000)


@pytest.fixture(scope="module", params=sorted(ENGINES))
def small_scans(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that looks at 20 documents at most."""
    yield from ENGINES[request.param](tmp_path_factory.mktemp(request.param), 20)


# --- making things -------------------------------------------------------------------------------------


def index(field_name: str, type: str, **params: Any) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)](**params).model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


def vector(seed: int, dimensions: int = DIMENSIONS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)


def document(number: int, /, **fields: Any) -> Document:
    document_id = f"doc_{number:032x}"
    return Document(document_id, {"document_id": document_id, **fields}, {"text": vector(number)})


class Log:
    """Numbers entries and applies them, as the log would."""

    def __init__(self, engine: Engine, view: View | None = None) -> None:
        self.vectors = engine.vectors
        self.view = view or engine.new_view()
        self.seq = 0

    def __call__(self, **entry: Any) -> Entry:
        self.seq += 1
        made = Entry(self.seq, entry.pop("kind", "edit"), **entry)
        self.mark = self.vectors.apply(self.view, [made])
        assert self.mark.seq == self.seq
        return made

    def upsert(self, *documents: Document) -> None:
        self(upserts=documents)

    def index(self, *indexes: PayloadIndex) -> None:
        self(kind="indexes", indexes=indexes)

    def found(self, filter: Filter | None) -> set[str]:
        """Return the ids that `filter` lets through, by every way to ask."""
        listed, after = [], None
        while True:
            result = self.vectors.page(self.view, Page(7, filter, after=after))
            listed += [hit.document_id for hit in result.hits]
            if (after := result.next_after) is None:
                break
        assert len(set(listed)) == len(listed)
        assert self.vectors.count(self.view, filter) == len(listed)
        search = Search("text", vector(0), 10_000, filter)
        with_vector = {hit.document_id for hit in self.vectors.search(self.view, [search])[0]}
        assert with_vector == set(listed)
        return with_vector

    def numbers(self, filter: Filter | None) -> set[int]:
        return {int(document_id[4:], 16) for document_id in self.found(filter)}


@pytest.fixture
def log(engine: Engine) -> Log:
    return Log(engine)


# --- applying ------------------------------------------------------------------------------------------


def test_a_new_view_is_empty_and_stands_at_zero(engine: Engine) -> None:
    view = engine.new_view()
    mark = engine.vectors.open(view)
    assert (mark.view_id, mark.seq, mark.document_count) == (view.view_id, 0, 0)
    assert engine.vectors.page(view, Page(10)).hits == ()
    assert engine.vectors.search(view, [Search("text", vector(1), 5)]) == [[]]


@pytest.mark.parametrize("large", [False, True])
def test_a_payload_alone_keeps_vectors_and_moves_every_shadow(log: Log, tmp_path: Path, large: bool) -> None:
    """The engine raises when a payload comes for a point that is not there, and keeps half of such a write."""
    log.index(index("name", "keyword"), index("year", "integer"))
    log.upsert(*(document(number, name="Old", year=number) for number in range(3)))
    late = [document(1, name="New", size=1), document(7, name="New")]
    if large:
        artifact.write(tmp_path / "a.arrow", late, {})
        entry = log(kind="artifact", artifact_path=str(tmp_path / "a.arrow"), keeps_vectors=True)
    else:
        entry = log(upserts=tuple(late), keeps_vectors=True)
    assert log.mark.document_count == 3
    assert log.numbers(Condition("name", "eq", "new")) == {1}
    assert log.numbers(Condition("name", "eq", "old")) == {0, 2}
    assert log.numbers(Condition("year", "exists", True)) == {0, 2}
    (hit,) = log.vectors.get(log.view, [document(1).document_id], with_vectors=True)
    assert hit.payload == {"document_id": hit.document_id, "name": "New", "size": 1}
    assert np.allclose(hit.vectors["text"], vector(1) / np.linalg.norm(vector(1)), atol=1e-6)
    assert log.vectors.apply(log.view, [entry]).document_count == 3


def test_counts_are_exact_whatever_is_repeated_or_missing(log: Log) -> None:
    log.upsert(*(document(n) for n in range(450)))
    assert log.mark.document_count == 450
    log.upsert(document(1), document(1, again=True), document(1000))
    assert log.mark.document_count == 451
    log(deletes=(document(1).document_id, document(1).document_id, "doc_unknown"))
    assert log.mark.document_count == 450
    log(deletes=("doc_unknown",))
    assert log.mark.document_count == log.vectors.count(log.view) == 450


def test_an_artifact_over_documents_that_exist_is_counted_exactly(log: Log, tmp_path: Path) -> None:
    log.upsert(*(document(n) for n in range(90)))
    some = [document(n, again=True) for n in (*range(50, 150), 149, 60)]
    artifact.write(tmp_path / "a.arrow", some, {"text": DIMENSIONS})
    log(kind="artifact", artifact_path=str(tmp_path / "a.arrow"))
    assert log.mark.document_count == log.vectors.count(log.view) == 150
    log(deletes=tuple(document(n).document_id for n in range(100)))
    log(kind="artifact", artifact_path=str(tmp_path / "a.arrow"))
    assert log.mark.document_count == log.vectors.count(log.view) == 100


def test_an_entry_that_was_applied_is_passed_over(log: Log) -> None:
    log.upsert(document(1, version=1))
    log.upsert(document(1, version=2))
    old = Entry(1, "edit", upserts=(document(1, version=1),))
    mark = log.vectors.apply(log.view, [old])
    assert mark.seq == 2
    assert log.vectors.get(log.view, [document(1).document_id])[0].payload["version"] == 2


def test_deletes_come_before_upserts(log: Log) -> None:
    log.upsert(document(1, version=1))
    log(deletes=(document(1).document_id,), upserts=(document(1, version=2),))
    assert log.mark.document_count == 1
    assert log.vectors.get(log.view, [document(1).document_id])[0].payload["version"] == 2


def test_an_upsert_replaces_payload_and_vectors(engine: Engine) -> None:
    log = Log(engine, engine.new_view(DenseVector("text", 4), DenseVector("picture", 3, "dot")))
    both = {"text": vector(1, 4), "picture": vector(2, 3)}
    log.upsert(Document("doc_a", {"document_id": "doc_a", "old": {"deep": 1}}, both))
    log.upsert(Document("doc_a", {"document_id": "doc_a", "new": 1}, {"picture": vector(3, 3)}))
    (hit,) = log.vectors.get(log.view, ["doc_a"], with_vectors=True)
    assert hit.payload == {"document_id": "doc_a", "new": 1}
    assert set(hit.vectors) == {"picture"}
    np.testing.assert_allclose(hit.vectors["picture"], vector(3, 3), rtol=1e-6)


def test_an_artifact_brings_documents_with_the_vectors_that_they_have(engine: Engine, tmp_path: Path) -> None:
    log = Log(engine, engine.new_view(DenseVector("text", DIMENSIONS), DenseVector("picture", 3)))
    documents = [document(n, number=n) for n in range(700)]
    documents[5] = Document(documents[5].document_id, documents[5].payload, {"picture": vector(5, 3)})
    documents[6] = Document(documents[6].document_id, documents[6].payload, {})
    path = tmp_path / "documents.arrow"
    artifact.write(path, documents, {"text": DIMENSIONS, "picture": 3})
    log.upsert(document(10_000))
    log(kind="artifact", artifact_path=str(path), deletes=(document(10_000).document_id,))
    assert log.mark.document_count == 700
    hits = log.vectors.get(log.view, [d.document_id for d in documents[4:7]], with_vectors=True)
    assert [set(hit.vectors) for hit in hits] == [{"text"}, {"picture"}, set()]
    assert [hit.payload["number"] for hit in hits] == [4, 5, 6]
    (found,) = log.vectors.search(log.view, [Search("picture", vector(5, 3), 10)])
    assert [hit.document_id for hit in found] == [documents[5].document_id]


def test_a_view_without_vectors_lists_and_filters(engine: Engine) -> None:
    view = engine.new_view(DenseVector("text", DIMENSIONS))
    on_server = view.location.startswith("http")
    location = view.location if on_server else view.location + "b"
    bare = View(view.namespace_id, view.view_id + "b", (), location, secret=view.secret)
    engine.vectors.open(bare)
    entry = Entry(1, "edit", upserts=(Document("doc_a", {"document_id": "doc_a", "k": 1}),))
    assert engine.vectors.apply(bare, [entry]).document_count == 1
    assert [hit.payload["k"] for hit in engine.vectors.page(bare, Page(5)).hits] == [1]
    engine.vectors.drop(bare)


@pytest.mark.parametrize("when", ["before", "after"])
def test_payloads_come_back_as_they_went_in(log: Log, when: str) -> None:
    """An index made later is made of what documents hold already, and changes nothing of them."""
    odd = {
        "a b": 1, "dotted.key": {"x/y": [1, 2.5, None, True, "ä", {"z": []}]}, "empty": {}, "list": [],
        "null": None, "big": 2**53 + 1, "negative": -(2**63), "float": 1.0, "text": "\u0000\U0001f600",
        "_s": {"a b": "the user's own", " ": 2}, " ": '{"document_id": "another"}',
    }  # fmt: skip
    indexes = index("a b", "integer"), index("text", "keyword"), index("_s.a b", "keyword")
    if when == "before":
        log.index(*indexes)
    log.upsert(document(1, **odd), document(2))
    if when == "after":
        log.index(*indexes)
    (hit,) = log.vectors.get(log.view, [document(1).document_id])
    assert hit.payload == {"document_id": document(1).document_id, **odd}
    assert isinstance(hit.payload["float"], float)
    assert log.numbers(Condition("_s.a b", "eq", "THE USER'S OWN")) == {1}
    assert log.numbers(And((Condition("a b", "gte", 1), Condition("text", "eq", odd["text"])))) == {1}
    assert [(report.field_name, report.points) for report in log.vectors.indexes(log.view)] == [
        ("a b", 1), ("text", 1), ("_s.a b", 1),
    ]  # fmt: skip
    for listed in log.vectors.page(log.view, Page(5)).hits:
        assert ("_s" in listed.payload) == (listed.document_id == document(1).document_id)


def test_get_keeps_the_order_and_leaves_out_what_is_absent(log: Log) -> None:
    log.upsert(*(document(n) for n in range(20)))
    wanted = [document(n).document_id for n in (7, 99, 3, 7)]
    assert [hit.document_id for hit in log.vectors.get(log.view, wanted)] == [wanted[0], wanted[2], wanted[0]]
    assert log.vectors.get(log.view, []) == []


def test_a_dropped_view_is_gone_and_dropping_again_is_fine(engine: Engine) -> None:
    log = Log(engine)
    log.upsert(document(1))
    engine.vectors.drop(log.view)
    engine.vectors.drop(log.view)
    assert engine.vectors.open(log.view).seq == 0
    assert engine.vectors.count(log.view) == 0


def test_flush_says_durable(log: Log) -> None:
    log.upsert(document(1))
    assert not log.mark.durable
    mark = log.vectors.flush(log.view)
    assert (mark.durable, mark.seq, mark.document_count) == (True, 1, 1)


# --- searching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid", "manhattan"])
def test_search_equals_brute_force(engine: Engine, distance: Any) -> None:
    log = Log(engine, engine.new_view(DenseVector("text", DIMENSIONS, distance)))
    log.index(index("third", "integer"))
    stored = np.stack([vector(n) for n in range(600)])
    log.upsert(*(document(n, third=n % 3) for n in range(600)))
    searches, expected = [], []
    for seed in range(1000, 1020):
        query = vector(seed)
        scores = {
            "cosine": (stored @ query) / np.linalg.norm(stored, axis=1),
            "dot": stored @ query,
            "euclid": -np.linalg.norm(stored - query, axis=1),
            "manhattan": -np.abs(stored - query).sum(axis=1),
        }[distance]
        order = [n for n in np.argsort(-scores) if n % 3 == 1]
        searches.append(Search("text", query, 10, Condition("third", "eq", 1), offset=2))
        expected.append([document(int(n)).document_id for n in order[2:12]])
    answers = log.vectors.search(log.view, searches)
    assert [[hit.document_id for hit in hits] for hits in answers] == expected


def test_the_choice_of_all_collections_lets_no_other_in(log: Log) -> None:
    """A search of every collection that a view knows goes unfiltered, until there is one more in it."""
    log.index(index("collection_id", "keyword"))
    log.upsert(*(document(n, collection_id=f"col_{n % 2}") for n in range(10)))

    def of(*collections: str, operator: str = "in") -> set[int]:
        value: Any = list(collections) if operator == "in" else collections[0]
        mine = Condition("collection_id", operator, value, True)
        narrow = And((mine, Condition("document_id", "exists", True)))
        found = log.numbers(mine)
        assert log.numbers(narrow) == found
        return found

    assert of("col_0", "col_1") == set(range(10))
    assert of("col_1") == of("col_1", operator="eq") == {1, 3, 5, 7, 9}
    log.upsert(document(10, collection_id="col_2"))
    assert of("col_0", "col_1") == set(range(10))
    assert of("col_0", "col_1", "col_2") == set(range(11))
    log.upsert(document(11, collection_id=["col_0"]), document(12))
    assert of("col_0", "col_1", "col_2") == set(range(12))
    assert log.numbers(Condition("collection_id", "in", ["col_0", 1, {}], True)) == {0, 2, 4, 6, 8, 11}
    log(deletes=[document(n).document_id for n in (10, 11, 12)])
    assert of("col_0") == {0, 2, 4, 6, 8}


@pytest.mark.parametrize("spelling", ["col_a", "COL_A"])
def test_ids_of_ours_are_compared_without_case_too(log: Log, spelling: str) -> None:
    """They have no case-folded copy; one that is not lower case must be found all the same."""
    log.index(index("collection_id", "keyword"))
    log.upsert(document(1, collection_id="col_a"), document(2, collection_id="col_b"))
    assert log.numbers(Condition("collection_id", "eq", spelling)) == {1}
    assert log.numbers(Condition("collection_id", "in", [spelling])) == {1}
    log.upsert(document(3, collection_id="Col_A"))
    assert log.numbers(Condition("collection_id", "eq", spelling)) == {1, 3}
    assert log.numbers(Condition("collection_id", "starts_with", spelling[:4])) == {1, 2, 3}


def test_searches_name_what_is_wrong(log: Log) -> None:
    log.upsert(document(1))
    with pytest.raises(BadRequestError, match=r"no vector 'pictures'.*text"):
        log.vectors.search(log.view, [Search("pictures", vector(1), 1)])
    with pytest.raises(BadRequestError, match=r"5 dimensions.*16"):
        log.vectors.search(log.view, [Search("text", vector(1, 5), 1)])


def test_searches_of_many_threads_are_answered_each_with_its_own(log: Log) -> None:
    """Hosts answer waiting searches as one batch: answers must not be mixed up, nor one's error be all's."""
    log.upsert(*(document(n) for n in range(300)))
    wrong: list[object] = []

    def ask(number: int) -> None:
        for turn in range(30):
            n = (number * 37 + turn) % 300
            if number == 3:
                try:
                    log.vectors.search(log.view, [Search("text", vector(1, 5), 1)])
                    wrong.append("no error")
                except BadRequestError:
                    continue
            ((hit, *_),) = log.vectors.search(log.view, [Search("text", vector(n), 2)])
            if hit.document_id != document(n).document_id:
                wrong.append((n, hit))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_filters_that_wait_together_are_answered_each_by_itself(engine: Engine) -> None:
    """Equal ones are searched in one pass: two views, equal and other filters, limits and queries in any order."""
    rng = random.Random(7)
    logs = [Log(engine), Log(engine)]
    for log in logs:
        log.index(index("fifth", "integer"), index("name", "keyword"))
    stored = [
        [document(1000 * v + n, fifth=n % (5 - v), name=f"N{n % 3}") for n in range(200)] for v in (0, 1)
    ]
    for log, documents in zip(logs, stored, strict=True):
        log.upsert(*documents)
    filters: list[Filter | None] = [None, *(Condition("fifth", "eq", n) for n in range(5))]
    filters += [And((Condition("fifth", "eq", n), Condition("name", "ne", "n1"))) for n in range(2)]
    filters += [
        Condition("name", "in", ["n0", "N2"]),
        Condition("plain", "is_null", True),
        And((And(filters[1:2]),)),
    ]

    def drawn(v: int) -> tuple[Search, list[str]]:
        query, limit, filter = rng.randrange(200), rng.choice([1, 5, 5, 300]), rng.choice(filters)
        search = Search("text", vector(1000 * v + query), limit, filter)
        passing = [d for d in stored[v] if filter is None or matches(filter, d.payload)]
        near = {d.document_id: float(_cosine(d.vectors["text"], search.vector)) for d in passing}
        return search, sorted(near, key=lambda document_id: -near[document_id])[:limit]

    asked = [
        [[drawn(v) for _ in range(rng.randrange(1, 9))] for _ in range(12)] for v in (0, 1) for _ in (0, 1)
    ]
    wrong: list[object] = []

    def ask(number: int) -> None:
        log = logs[number // 2]
        for batch in asked[number]:
            answers = log.vectors.search(log.view, [search for search, _ in batch])
            wrong.extend(
                (search.filter, search.limit)
                for (search, expected), hits in zip(batch, answers, strict=True)
                if [hit.document_id for hit in hits] != expected
            )

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _cosine(one: Any, other: Any) -> Any:
    return np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)


def test_vectors_come_back_on_request(log: Log) -> None:
    log.upsert(document(1))
    ((plain,),) = log.vectors.search(log.view, [Search("text", vector(1), 1)])
    ((full,),) = log.vectors.search(log.view, [Search("text", vector(1), 1, with_vectors=True)])
    assert plain.vectors == {}
    expected = vector(1) / np.linalg.norm(vector(1))
    np.testing.assert_allclose(full.vectors["text"], expected, rtol=1e-5)
    assert full.vectors["text"].dtype == np.float32
    assert full.score == pytest.approx(1.0, abs=1e-5)


# --- listing -------------------------------------------------------------------------------------------


def test_a_cursor_shows_each_document_once_under_inserts_and_deletes(log: Log) -> None:
    log.upsert(*(document(n) for n in range(200)))
    seen: list[str] = []
    after, extra = None, itertools.count(1000)
    while True:
        result = log.vectors.page(log.view, Page(9, after=after))
        seen += [hit.document_id for hit in result.hits]
        after = result.next_after
        if after is None:
            break
        log(upserts=(document(next(extra)),), deletes=(seen[-1],))  # the cursor's own document goes
    assert len(seen) == len(set(seen))
    assert {document(n).document_id for n in range(200)} <= set(seen)


@pytest.mark.parametrize("filter", [None, Condition("half", "eq", 1), Condition("plain", "eq", 1)])
def test_offset_and_cursor_agree(log: Log, filter: Filter | None) -> None:
    log.index(index("half", "integer"))
    log.upsert(*(document(n, half=n % 2, plain=n % 2) for n in range(60)))
    everything = [hit.document_id for hit in log.vectors.page(log.view, Page(100, filter)).hits]
    assert len(everything) == (30 if filter else 60)
    for offset in (0, 1, 10, 29, 59, 60, 500):
        hits = log.vectors.page(log.view, Page(10, filter, offset=offset)).hits
        assert [hit.document_id for hit in hits] == everything[offset : offset + 10]
    first = log.vectors.page(log.view, Page(10, filter))
    second = log.vectors.page(log.view, Page(5, filter, offset=3, after=first.next_after))
    assert [hit.document_id for hit in second.hits] == everything[13:18]
    exactly = log.vectors.page(log.view, Page(len(everything), filter))
    assert exactly.next_after is None


#: In ascending order: numbers, strings by code point, the rest, and what has nothing there last.
SORTED: list[Any] = [-3, 0.5, 1, 2**60, "", "B", "a", "ä", False, [{"x": 1}], {"a": 1}, {"b": 0}]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("indexed", [None, "keyword", "integer"])
def test_sorting_is_exact(log: Log, descending: bool, indexed: str | None) -> None:
    values = [*SORTED, None, [], ["B", "zz"], "B"]
    documents = [document(n, at={"deep": value}) for n, value in enumerate(values)]
    documents.append(document(len(values)))
    if indexed:
        log.index(index("at.deep", indexed))
    log.upsert(*documents)

    def key(item: Document) -> tuple[bool, Any, str]:
        value = item.payload.get("at", {}).get("deep")
        if value == ["B", "zz"]:
            value = "B"  # of several values the first counts
        if value is None or value == []:
            return True, 0, item.document_id
        if value == [{"x": 1}]:
            value = {"x": 1}
        rank = 0 if type(value) in (int, float) else 1 if isinstance(value, str) else 2
        order = str(value).lower().replace("'", '"').replace(": ", ":") if rank == 2 else value
        others = ("false", '{"a":1}', '{"b":0}', '{"x":1}')
        ranks = [(0, n) for n in (-3, 0.5, 1, 2**60)] + [(1, t) for t in ("", "B", "a", "ä")]
        place = [*ranks, *((2, text) for text in others)].index((rank, order))
        return False, -place if descending else place, item.document_id

    expected = [item.document_id for item in sorted(documents, key=key)]
    whole = log.vectors.page(log.view, Page(100, sort_path="at.deep", descending=descending))
    assert [hit.document_id for hit in whole.hits] == expected
    assert whole.next_after is None
    for size in (1, 4, 7):
        listed, after = [], None
        while True:
            page = Page(size, sort_path="at.deep", descending=descending, after=after)
            result = log.vectors.page(log.view, page)
            listed += [hit.document_id for hit in result.hits]
            if (after := result.next_after) is None:
                break
        assert listed == expected
    for offset in (1, 5, 16, 17, 40):
        page = Page(4, sort_path="at.deep", descending=descending, offset=offset)
        hits = log.vectors.page(log.view, page).hits
        assert [hit.document_id for hit in hits] == expected[offset : offset + 4]


def test_a_cursor_of_another_order_is_refused(log: Log) -> None:
    log.upsert(*(document(n, n=n) for n in range(5)))
    by_id = log.vectors.page(log.view, Page(2)).next_after
    by_value = log.vectors.page(log.view, Page(2, sort_path="n")).next_after
    with pytest.raises(BadRequestError, match="another order"):
        log.vectors.page(log.view, Page(2, sort_path="n", after=by_id))
    with pytest.raises(BadRequestError, match="another order"):
        log.vectors.page(log.view, Page(2, after=by_value))


# --- payload indexes -----------------------------------------------------------------------------------

UUID = str(uuid.UUID(int=7))
BERLIN = {"lat": 52.52, "lon": 13.405}
#: type: (values that the index sees, values of other types that it does not)
SEEN: dict[str, tuple[list[Any], list[Any]]] = {
    "keyword": (["a", ["b", "c"]], [5, True, {"x": "y"}, 1.5]),
    "integer": ([1, [2, 3]], ["1", 1.5, True, {"x": 1}]),
    "float": ([1.5, 2, [0.5]], ["1.5", True]),
    "bool": ([True, [False]], ["true", 1]),
    "geo": ([BERLIN, [BERLIN, BERLIN]], ["52.5,13.4", {"lat": 52.5}, 3]),
    "datetime": (["2024-01-01", "2024-01-01T10:00:00Z"], ["yesterday", 1704067200]),
    "text": (["some words", ["more words"]], [5, True]),
    "uuid": ([UUID, [UUID]], ["not-a-uuid", 5]),
}


@pytest.mark.parametrize("when", ["before", "after"])
def test_all_eight_types_are_reported_and_count_only_their_own(log: Log, when: str) -> None:
    indexes = [index(f"fields.{name}", name) for name in SEEN]
    documents = []
    for name, (good, bad) in SEEN.items():
        documents += [document(len(documents) + n, fields={name: v}) for n, v in enumerate(good + bad)]
    if when == "before":
        log.index(*indexes)
    log.upsert(*documents)
    if when == "after":
        log.index(*indexes)
    reports = {report.field_name: report for report in log.vectors.indexes(log.view)}
    assert list(reports) == [f"fields.{name}" for name in SEEN]
    for declared in indexes:
        report = reports[declared.field_name]
        assert report.type == declared.type
        assert report.points == len(SEEN[declared.type][0])
        assert report.params == {**declared.field_schema, "type": str(declared.type)}


@pytest.mark.parametrize(
    ("type", "params"),
    [
        ("keyword", {"is_tenant": True}),
        ("uuid", {"is_tenant": True}),
        ("integer", {"lookup": False}),
        ("integer", {"range": False}),
        ("text", {"tokenizer": "prefix", "min_token_len": 3, "max_token_len": 9, "lowercase": False}),
    ],
)
def test_parameters_are_those_of_the_engine(log: Log, type: str, params: Payload) -> None:
    log.index(index("field", type, **params))
    (report,) = log.vectors.indexes(log.view)
    assert params.items() <= report.params.items()


def test_an_index_that_is_taken_away_is_gone_and_searches_go_on(log: Log) -> None:
    log.index(index("a", "keyword"), index("b", "text"), index("c.d e", "keyword"))
    log.upsert(*(document(n, a="Rock", b="big words", c={"d e": "X"}) for n in range(5)))
    log.index(index("b", "text"))
    assert [report.field_name for report in log.vectors.indexes(log.view)] == ["b"]
    assert log.numbers(Condition("b", "text", "WORDS")) == set(range(5))
    log.index()
    assert log.vectors.indexes(log.view) == []
    assert log.vectors.count(log.view) == 5


def test_an_index_can_change_its_type(log: Log) -> None:
    log.index(index("a", "keyword"))
    log.upsert(document(1, a="Big Words"), document(2, a=7))
    log.index(index("a", "text"))
    (report,) = log.vectors.indexes(log.view)
    assert (report.type, report.points) == ("text", 1)
    log.index(index("a", "integer"))
    (report,) = log.vectors.indexes(log.view)
    assert (report.type, report.points) == ("integer", 1)


TEXTS = [
    "I met an old elephant", "Elephants remember", "a semidetached house", "straight-forward words",
    "ein großes Haus", "日本語のテキスト",
]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "word", "found"),
    [
        ({}, "i", set()),  # one letter: below the least length of 2
        ({"min_token_len": 1}, "i", {0}),
        ({}, "met", {0}),
        ({"min_token_len": 4}, "met", set()),
        ({}, "semidetached", {2}),
        ({"max_token_len": 11}, "semidetached", set()),
        ({}, "ELEPHANT", {0}),
        ({"lowercase": False}, "ELEPHANT", set()),
        ({"lowercase": False}, "Elephants", {1}),
        ({}, "forward", {3}),
        ({"tokenizer": "whitespace"}, "forward", set()),
        ({"tokenizer": "whitespace"}, "straight-forward", set()),  # 16 letters as one token
        ({"tokenizer": "whitespace", "max_token_len": 16}, "straight-forward", {3}),
        ({}, "eleph", set()),
        ({"tokenizer": "prefix"}, "eleph", {0, 1}),
        ({}, "日本語", set()),
        ({"tokenizer": "multilingual"}, "日本語", {5}),
    ],
)
def test_each_text_parameter_decides_what_is_found(
    log: Log, params: Payload, word: str, found: set[int]
) -> None:
    log.index(index("t", "text", **params))
    log.upsert(*(document(n, t=text) for n, text in enumerate(TEXTS)))
    assert log.numbers(Condition("t", "text", word)) == found


# --- filters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_strings_are_compared_without_case_unless_asked(log: Log, when: str) -> None:
    """Keyword indexes know only exact values; a hidden folded copy answers the common question."""
    values = ["Rock", "rock", "ROCKET", "STRASSE", "straße", ["Jazz", "Rock"], None]
    documents = [document(n, g={"my genre": value}) for n, value in enumerate(values)]
    if when == "before":
        log.index(index("g.my genre", "keyword"))
    log.upsert(*documents)
    if when == "after":
        log.index(index("g.my genre", "keyword"))
    path = "g.my genre"
    assert log.numbers(Condition(path, "eq", "rOCK")) == {0, 1, 5}
    assert log.numbers(Condition(path, "eq", "rock", True)) == {1}
    assert log.numbers(Condition(path, "eq", "strasse")) == {3, 4}
    assert log.numbers(Condition(path, "ne", "rock")) == {2, 3, 4, 6}
    assert log.numbers(Condition(path, "ne", "rock", True)) == {0, 2, 3, 4, 5, 6}
    assert log.numbers(Condition(path, "in", ["JAZZ", "rocket"])) == {2, 5}
    assert log.numbers(Condition(path, "nin", ["JAZZ", "rocket"])) == {0, 1, 3, 4, 6}
    assert log.numbers(Condition(path, "starts_with", "ROCK")) == {0, 1, 2, 5}
    assert log.numbers(Condition(path, "starts_with", "ROCK", True)) == {2}
    assert log.numbers(Condition(path, "exists", False)) == {6}
    for hit in log.vectors.page(log.view, Page(10)).hits:
        assert set(hit.payload) == {"document_id", "g"}


def test_a_path_with_values_that_its_index_does_not_see_is_still_answered_exactly(log: Log) -> None:
    log.index(index("a.b", "keyword"), index("n", "integer"), index("d", "datetime"))
    log.upsert(document(0, a={"b": "x"}, n=1, d="2024-01-01"), document(1, a={"b": "y"}, n=2))
    assert log.numbers(Condition("a.b", "exists", True)) == {0, 1}
    log.upsert(
        document(2, a=[{"b": "x"}, {"b": "z"}], n=2.0, d="2024-01-01T00:00:00.0000001Z"),
        document(3, a={"b": [None]}, n="1", d="soon"),
        document(4, a={"b": [["x"]]}, n=[[1]]),
        document(5, a={"b": 5}, n=True),
    )
    assert log.numbers(Condition("a.b", "eq", "X")) == {0, 2, 4}
    assert log.numbers(Not((Condition("a.b", "eq", "X"),))) == {1, 3, 5}
    assert log.numbers(Condition("a.b", "exists", True)) == {0, 1, 2, 4, 5}
    assert log.numbers(Condition("n", "gte", 2)) == {1, 2}
    assert log.numbers(Condition("n", "eq", 1)) == {0, 4}
    assert log.numbers(Condition("d", "exists", True)) == {0, 2, 3}
    log.index(index("a.b", "keyword"))  # kept, so still known to be irregular
    assert log.numbers(Condition("a.b", "eq", "X")) == {0, 2, 4}


def test_a_filter_that_must_look_at_too_much_names_the_index_to_add(small_scans: Engine) -> None:
    log = Log(small_scans)
    log.index(index("half", "integer"))
    log.upsert(*(document(n, half=n % 2, tenth=n % 10, name=f"Name {n}") for n in range(60)))
    for ask in (
        lambda f: log.vectors.count(log.view, f),
        lambda f: log.vectors.page(log.view, Page(5, f)),
        lambda f: log.vectors.search(log.view, [Search("text", vector(1), 5, f)]),
    ):
        with pytest.raises(
            BadRequestError, match="60 documents, more than 20; add a keyword index on 'name'"
        ):
            ask(Condition("name", "eq", "name 3"))
        with pytest.raises(BadRequestError, match="integer index on 'tenth'"):
            ask(And((Condition("half", "eq", 1), Condition("tenth", "eq", 1))))
        # The advice was an index that would not have helped.
        with pytest.raises(BadRequestError, match="no index on 'name' can answer 'regex'"):
            ask(Condition("name", "regex", "3$"))
    with pytest.raises(BadRequestError, match="Sorting by 'name' would look at 60 documents"):
        log.vectors.page(log.view, Page(5, sort_path="name"))
    log.upsert(*(document(n, half=n % 2, tenth=n % 10, third=3) for n in range(100, 110)))
    log.index(index("half", "integer"), index("third", "integer"))
    few = And((Condition("third", "eq", 3), Condition("tenth", "eq", 4)))
    assert log.numbers(few) == {104}
    assert log.numbers(Or((few, And((Condition("third", "eq", 3), Condition("tenth", "eq", 5)))))) == {
        104,
        105,
    }


# --- every filter, against the reference evaluator -----------------------------------------------------

FIELD_TYPES = ("keyword", "integer", "float", "bool", "geo", "datetime", "text", "uuid")
WORDS = [
    "Rock",
    "rock",
    "ROCKET",
    "straße",
    "STRASSE",
    "a",
    "",
    "Łódź",
    "İstanbul",
    "old elephant",
    "an Elephant x",
]
WORDS += ["2024-01-01", "2024-01-01T00:00:00Z", "snake_case-word", "ﬁre", "don't"]
NUMBERS = [0, 1, 2, -3, 0.5, 1.0, 2.5, -0.0, 2**53, 2**53 + 1, -(2**63), 2**63 - 1, 1e300]
TIMES = ["2024-01-01", "2024-01-01T00:00:00Z", "2024-01-01T01:00:00+01:00", "2023-12-31 23:59:59.999999"]
TIMES += ["2024-06-01T10:00:00", "1970-01-01T00:00:00Z", "0001-01-01", "9999-12-31T23:59:59Z"]
UUIDS = [str(uuid.UUID(int=n)) for n in (1, 2, 2**127)] + [str(uuid.UUID(int=10**30)).upper()]
PLACES = [
    BERLIN,
    {"lat": 48.86, "lon": 2.35},
    {"lat": -33.9, "lon": 151.2},
    {"lat": 0, "lon": 179.9},
    {"lat": 90, "lon": 0},
]

VALUES: dict[str, list[Any]] = {
    "keyword": WORDS,
    "integer": [n for n in NUMBERS if isinstance(n, int)],
    "float": NUMBERS,
    "bool": [True, False],
    "geo": PLACES,
    "datetime": TIMES,
    "text": WORDS,
    "uuid": UUIDS,
}
ODD: list[Any] = [
    None, [], [None], {}, [[]], "x", 5, True, 2.0, [["Rock"]], {"lat": 1}, "2024-01-01T00:00:00.0000001Z",
    "20240101T000000", UUIDS[0].replace("-", ""), [{"deep": "Rock"}], 2**70, [None, "rock"],
]  # fmt: skip


def random_value(rng: random.Random, type: str, oddness: float) -> Any:
    if rng.random() < oddness:
        return rng.choice(ODD)
    if rng.random() < 0.25:
        return [rng.choice(VALUES[type]) for _ in range(rng.randrange(4))]
    return rng.choice(VALUES[type])


def random_document(rng: random.Random, number: int, oddness: float) -> Document:
    fields: dict[str, Any] = {}
    for type in FIELD_TYPES:
        for place in ("indexed", "plain"):
            if rng.random() < 0.7:
                inner = {type: random_value(rng, type, oddness)}
                several = oddness and rng.random() < 0.1
                fields[f"{place} {type}"] = [inner, {type: random_value(rng, type, 0)}] if several else inner
    return document(number, **fields)


def random_condition(rng: random.Random) -> Condition:
    type = rng.choice(FIELD_TYPES)
    path = f"{rng.choice(['indexed', 'indexed', 'indexed', 'plain'])} {type}.{type}"
    other = VALUES[rng.choice(FIELD_TYPES[:4] + FIELD_TYPES[5:])]
    value: Any = rng.choice(VALUES[type] if rng.random() < 0.8 and type != "geo" else other)
    sensitive = rng.random() < 0.3
    roll = rng.random()
    if roll < 0.1:
        return Condition(path, rng.choice(["exists", "is_null"]), rng.choice([True, False, None]))
    if roll < 0.2:
        values = [rng.choice(VALUES[type] if type != "geo" else other) for _ in range(rng.randrange(4))]
        values = [item for item in values if not isinstance(item, dict)]
        return Condition(
            path, rng.choice(["in", "nin"]), [*values, *([None] if roll < 0.11 else [])], sensitive
        )
    if type == "geo" and roll < 0.7:
        center, corner, opposite = (rng.choice(PLACES) for _ in range(3))
        shape: dict[str, Any] = {"center": center, "radius": rng.choice([0, 10, 1e5, 2e6, 1.5e7, 3e7])}
        if roll < 0.4:
            north, south = (
                max(corner["lat"], opposite["lat"]) + 0.1,
                min(corner["lat"], opposite["lat"]) - 0.1,
            )
            box = {"top_left": {"lat": min(north, 90), "lon": corner["lon"] - 0.1},
                   "bottom_right": {"lat": max(south, -90), "lon": min(opposite["lon"] + 0.1, 180)}}  # fmt: skip
            return Condition(path, "geo_bounding_box", box)
        if roll < 0.5:
            corners = [(rng.uniform(-90, 90), rng.uniform(-180, 180)) for _ in range(4)]
            points = [{"lat": lat, "lon": lon} for lat, lon in [*corners, corners[0]]]
            return Condition(path, "geo_polygon", {"exterior": {"points": points}})
        return Condition(path, "geo_radius", shape)
    operator = rng.choice(["eq", "eq", "ne", "contains"])
    if isinstance(value, str):
        operator = rng.choice(
            [
                "eq",
                "ne",
                "contains",
                "starts_with",
                "ends_with",
                "regex",
                "text",
                "phrase",
                "words",
                "gt",
                "lte",
            ]
        )
        if operator in ("starts_with", "ends_with", "contains", "text", "words") and rng.random() < 0.5:
            start = rng.randrange(len(value) + 1)
            value = value[start : start + rng.randrange(6)]
        if operator == "regex":
            value = rng.choice(["^r", "o.k", "[0-9]+", "case", "x$"])
    elif not isinstance(value, bool) and rng.random() < 0.6:
        operator = rng.choice(["gt", "gte", "lt", "lte"])
    return Condition(
        path, operator, None if rng.random() < 0.03 and operator in ("eq", "ne") else value, sensitive
    )


def random_filter(rng: random.Random, depth: int = 0) -> Filter:
    if depth == 3 or rng.random() < 0.4:
        return random_condition(rng)
    children = tuple(random_filter(rng, depth + 1) for _ in range(rng.randrange(1, 4)))
    return rng.choice([And, Or, Not])(children)


@pytest.mark.parametrize("oddness", [0.0, 0.15], ids=["regular", "with odd values"])
@pytest.mark.parametrize("seed", range(3))
def test_filters_mean_what_the_reference_evaluator_says(log: Log, seed: int, oddness: float) -> None:
    """Seeded: 6 collections of documents, 60 filters each, three ways to ask each."""
    rng = random.Random(f"{seed} {oddness}")
    tokenizer = ["word", "whitespace", "prefix"][seed % 3]
    indexes = [index(f"indexed {type}.{type}", type) for type in FIELD_TYPES if type != "text"]
    indexes.append(
        index(
            "indexed text.text", "text", tokenizer=tokenizer, min_token_len=seed % 3, lowercase=seed % 2 == 0
        )
    )
    documents = [random_document(rng, number, oddness) for number in range(80)]
    for start in range(0, 80, 20):
        if start == 20 * (seed % 3):
            log.index(*indexes)
        log.upsert(*documents[start : start + 20])
    by_field = {declared.field_name: declared for declared in indexes}
    for _ in range(60):
        filter = random_filter(rng)
        expected = {d.document_id for d in documents if matches(filter, d.payload, by_field)}
        assert log.found(filter) == expected, filter


def spelled(rng: random.Random, condition: Condition, inputs: dict[str, Any]) -> dict[str, Any]:
    """Write a condition in one of the forms that the grammar has for it."""
    plain = not isinstance(condition.value, list | dict)
    if condition.operator == "eq" and plain and not condition.case_sensitive and rng.random() < 0.5:
        return {condition.path: condition.value}
    raw: dict[str, Any] = {"field": condition.path, "operator": condition.operator, "value": condition.value}
    if rng.random() < 0.1 and plain:
        name = f"x{len(inputs)}"
        inputs[name] = condition.value
        raw["value"] = {"type": "dynamic", "field": rng.choice([name, f"inputs.{name}"])}
    if condition.operator == "eq" and rng.random() < 0.3:
        del raw["operator"]
    if condition.case_sensitive or rng.random() < 0.2:
        raw["case_sensitive"] = condition.case_sensitive
    return raw


def random_request(rng: random.Random, inputs: dict[str, Any], depth: int = 0) -> Any:
    """Draw a filter as a request writes it: every form of a node that the grammar has."""
    if depth == 3 or rng.random() < 0.35:
        return spelled(rng, random_condition(rng), inputs)

    def several() -> list[Any]:
        return [random_request(rng, inputs, depth + 1) for _ in range(rng.randrange(1, 4))]

    roll = rng.random()
    if roll < 0.1:
        return several()
    if roll < 0.2:
        return {"NOT": random_request(rng, inputs, depth + 1)}
    raw: dict[str, Any] = {}
    if roll > 0.8:  # conditions beside a logical key
        raw |= spelled(rng, random_condition(rng), inputs)
    for key in rng.sample(["AND", "OR", "NOT"], rng.choice([1, 1, 1, 2, 3])):
        raw[key] = several()
    if rng.random() < 0.15 and "case_sensitive" not in raw:
        raw["case_sensitive"] = rng.random() < 0.5
    return raw


@pytest.mark.parametrize(
    "number", [100, pytest.param(10_000, marks=pytest.mark.slow)], ids=["a few", "ten thousand"]
)
def test_filters_drawn_from_the_grammar_are_answered_exactly(log: Log, number: int) -> None:
    """Seeded. Each is parsed as a request's, over documents of which one is rewritten every 20 filters."""
    rng = random.Random(f"grammar {number}")
    indexes = [index(f"indexed {type}.{type}", type) for type in FIELD_TYPES]
    by_field = {declared.field_name: declared for declared in indexes}
    documents = {d.document_id: d for d in (random_document(rng, n, 0.05 * (n % 2)) for n in range(60))}
    log.index(*indexes)
    log.upsert(*documents.values())
    answered = refused = found_some = 0
    while answered < number:
        inputs: dict[str, Any] = {}
        raw = random_request(rng, inputs)
        try:
            filter = parse(raw, inputs=inputs)
        except ValidationError:
            refused += 1
            continue
        assert filter is not None
        expected = {d.document_id for d in documents.values() if matches(filter, d.payload, by_field)}
        hits = log.vectors.page(log.view, Page(100, filter)).hits
        assert {hit.document_id for hit in hits} == expected, raw
        assert log.vectors.count(log.view, filter) == len(expected), raw
        answered += 1
        found_some += 0 < len(expected) < len(documents)
        if answered % 20 == 0:
            fresh = random_document(rng, rng.randrange(60), 0.05 * (answered % 40 == 0))
            documents[fresh.document_id] = fresh
            log(upserts=(fresh,), keeps_vectors=True)
    assert found_some > answered / 3, "most filters say something"
    assert refused < answered / 2
    print(
        f"{answered} filters answered alike, {found_some} of them by some documents; {refused} were refused"
    )


LETTERS = "aAbBßéÉµſKİıΣσς日本語のाि्ี़क़हन0１²½Ⅷ_-'. \t\x1f\u00a0\u200b\u0301\u0345ﬁⓐ🦊"


@pytest.mark.parametrize("tokenizer", ["word", "whitespace", "prefix"])
def test_texts_are_cut_into_words_as_the_engine_cuts_them(log: Log, tokenizer: str) -> None:
    """A text condition beside one that only the evaluator answers must not mean something else."""
    rng = random.Random(tokenizer)

    def text() -> str:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(9)))

    bounds = [(0, 3), (1, 15), (2, 4), (3, 2)]
    indexes = {
        f"t{n}": index(
            f"t{n}", "text", tokenizer=tokenizer, min_token_len=low, max_token_len=high, lowercase=n < 3
        )
        for n, (low, high) in enumerate(bounds)
    }
    texts = [text() for _ in range(250)]
    values = [
        [first, second] if n % 5 == 0 else first
        for n, (first, second) in enumerate(itertools.pairwise(texts))
    ]
    documents = [document(n, **dict.fromkeys(indexes, value)) for n, value in enumerate(values)]
    log.index(*indexes.values())
    log.upsert(*documents)
    for _ in range(100):
        asked, field_name = rng.choice([text(), text()[:3], rng.choice(texts)]), rng.choice(list(indexes))
        for operator in ("text", "words", "phrase"):
            condition = Condition(field_name, operator, asked)
            expected = {d.document_id for d in documents if matches(condition, d.payload, indexes)}
            found = log.vectors.page(log.view, Page(1000, condition)).hits
            assert {hit.document_id for hit in found} == expected, condition


def test_places_at_the_edges_of_the_map_are_found(log: Log) -> None:
    """Qdrant's index loses places near the poles and the 180th meridian; we may not."""
    rng = random.Random(7)

    def place() -> Payload:
        lat = rng.choice([rng.uniform(-90, 90), rng.choice([-90, 90, 0, 89.9999, -89.9999, 45.0])])
        return {
            "lat": lat,
            "lon": rng.choice([rng.uniform(-180, 180), rng.choice([-180, 180, 0, 179.9999, -90.0])]),
        }

    documents = [document(n, at=place()) for n in range(400)]
    log.index(index("at", "geo"))
    log.upsert(*documents)
    for _ in range(120):
        ring = [place() for _ in range(rng.randrange(3, 6))]
        one, other = place(), place()
        radius = rng.choice([0, 100, 1e5, 1e6, 5e6, 1e7, 2e7, 3e7])
        for operator, value in (
            ("geo_radius", {"center": one, "radius": radius}),
            ("geo_bounding_box", {"top_left": one, "bottom_right": other}),
            ("geo_polygon", {"exterior": {"points": [*ring, ring[0]]}}),
        ):
            condition = Condition("at", operator, value)
            expected = {d.document_id for d in documents if matches(condition, d.payload)}
            found = log.vectors.page(log.view, Page(1000, condition)).hits
            assert {hit.document_id for hit in found} == expected, condition


def test_a_read_of_many_slices_sees_one_state(log: Log, engine: Engine) -> None:
    """Between the slices of a scan a document came whose value the index does not see."""
    log.index(index("n", "integer"))
    log.upsert(*(document(n, n=n, plain="x") for n in range(2500)))
    wrong, stop = [], threading.Event()
    filter = And((Not((Condition("n", "gte", 0),)), Condition("plain", "eq", "x")))

    def read() -> None:
        while not stop.is_set():
            wrong.extend(hit.payload["n"] for hit in log.vectors.page(log.view, Page(5, filter)).hits)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    # Over HTTP an index takes five times as long to come and go, and readers meet it as often in fewer turns.
    for turn in range(8 if isinstance(engine.vectors, EdgeVectors) else 3):
        log.upsert(document(5000 + turn, n=5.5, plain="x"))
        log.index()
        log.index(index("n", "integer"))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_entry_behind_a_gap_is_refused_and_the_view_goes_on_where_it_stands(engine: Engine) -> None:
    """What lay between was passed over in silence, and counted as applied."""
    log = Log(engine)
    log.upsert(document(1))
    third = Entry(3, "edit", upserts=(document(3),))
    with pytest.raises(ViewLost, match="stands at entry 1, and was given entry 3"):
        engine.vectors.apply(log.view, [third])
    # Opened again it tells where it stands; what it had in memory alone it may have lost.
    assert engine.vectors.open(log.view).seq <= 1
    assert engine.vectors.get(log.view, [document(3).document_id]) == []
    first, second = (Entry(n, "edit", upserts=(document(n),)) for n in (1, 2))
    mark = engine.vectors.apply(log.view, [first, second, third])
    assert (mark.seq, mark.document_count) == (3, 3)
