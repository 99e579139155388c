"""Several searches as one ranking: what both engines answer is what their single searches say, fused by hand."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tessera.errors import BadRequestError
from tessera.filters import And, Condition, Filter
from tessera.ports import Document, Fusion, FusionMethod, Hit, Part, Search, SparseText
from tests.contracts.test_vectors import ENGINES, Engine, Log, index, vector

DOCUMENTS = 150
COLOURS = ("red", "green", "blue")
METHODS: tuple[FusionMethod, ...] = ("rrf", "dbsf", "weighted", "max")
FILTERS: dict[str, Filter | None] = {
    "none": None,
    "an index": Condition("colour", "eq", "red"),
    "no index": Condition("number", "gte", 40),
    "both": And((Condition("colour", "in", ["red", "blue"]), Condition("number", "lt", 120))),
    "few": Condition("number", "in", [3, 77, 149]),
    "nothing": Condition("colour", "eq", "yellow"),
}


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from ENGINES[request.param](tmp_path_factory.mktemp(request.param), 100_000)


@pytest.fixture(scope="module")
def log(engine: Engine) -> Log:
    """Documents of which many have the very words of others, so that rankings are full of ties."""
    log = Log(engine, engine.new_view(sparse=(SparseText("words", ("text",)),)))
    log.index(index("colour", "keyword"))
    dice = random.Random(5)
    documents = []
    for number in range(DOCUMENTS):
        # Ids in no order of their numbers: ties go by id.
        document_id = f"doc_{dice.getrandbits(64):016x}"
        fields = {
            "text": " ".join(dice.choices("abcdefgh", k=4)),
            "colour": dice.choice(COLOURS),
            "number": number,
        }
        vectors = {"text": vector(number)} if number % 5 else {}
        documents.append(Document(document_id, {"document_id": document_id, **fields}, vectors))
    log.upsert(*documents)
    log(deletes=tuple(document.document_id for document in documents[:7]))
    return log


def searches(filter: Filter | None, *limits: int) -> list[Search]:
    words = ["a c h", "b", "g e d a"]
    made = [Search("text", vector(1000), limits[0], filter)]
    return made + [
        Search("words", None, limit, filter, text=text)
        for limit, text in zip(limits[1:], words, strict=False)
    ]


def by_hand(rankings: Sequence[Sequence[Hit]], fusion: Fusion) -> list[Hit]:
    """Fuse whole hits, all of them, as the documents say it is done; sort; cut."""
    kept = [
        [hit for hit in ranking if part.min_score is None or (hit.score or 0.0) >= part.min_score]
        for ranking, part in zip(rankings, fusion.parts, strict=True)
    ]
    hits = {hit.document_id: hit for ranking in reversed(kept) for hit in reversed(ranking)}
    scores: dict[str, float] = {}
    for ranking, part in zip(kept, fusion.parts, strict=True):
        raw = [hit.score or 0.0 for hit in ranking]
        for rank, (hit, score) in enumerate(zip(ranking, raw, strict=True), 1):
            if fusion.method == "rrf":
                value = 1 / (60 + rank)
            else:
                low, high = min(raw), max(raw)
                if fusion.method == "dbsf":
                    middle, spread = statistics.fmean(raw), statistics.stdev(raw) if len(raw) > 1 else 0.0
                    low, high = middle - 3 * spread, middle + 3 * spread
                alike = 0.5 if fusion.method == "dbsf" else 1.0
                value = (score - low) / (high - low) if high > low else alike
            so_far = scores.get(hit.document_id)
            if fusion.method == "max":
                value = part.weight * value
                scores[hit.document_id] = value if so_far is None else max(so_far, value)
            else:
                scores[hit.document_id] = (so_far or 0.0) + part.weight * value
    if len(kept) == 1:
        order, scores = [hit.document_id for hit in kept[0]], {h.document_id: h.score or 0.0 for h in kept[0]}
    else:
        order = sorted(scores, key=lambda each: (-scores[each], each))
    return [
        replace(hits[each], score=scores[each], signals=_signals(each, kept, fusion))
        for each in order[: fusion.most]
    ]


def _signals(document_id: str, kept: Sequence[Sequence[Hit]], fusion: Fusion) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for ranking, part in zip(kept, fusion.parts, strict=True):
        told[part.name] = {"rank": None, "score": None}
        for rank, hit in enumerate(ranking, 1):
            if hit.document_id == document_id:
                told[part.name] = {"rank": rank, "score": hit.score}
    return told


def assert_as_by_hand(log: Log, asked: Sequence[Search], fusion: Fusion) -> list[Hit]:
    found = log.vectors.ranked(log.view, asked, fusion)
    expected = by_hand(log.vectors.search(log.view, asked), fusion)
    assert [(hit.document_id, hit.score) for hit in found] == [
        (hit.document_id, hit.score) for hit in expected
    ]
    assert [hit.payload for hit in found] == [hit.payload for hit in expected]
    assert [hit.signals for hit in found] == [hit.signals for hit in expected]
    return found


@pytest.mark.parametrize("filter", FILTERS.values(), ids=list(FILTERS))
def test_one_ranking_is_the_single_ones_fused(log: Log, filter: Filter | None) -> None:
    parts = (Part("v"), Part("w", 0.7), Part("w#2", 1.3))
    for method in METHODS:
        for most in (1, 4, 10, 500, None):
            assert_as_by_hand(log, searches(filter, 60, 60), Fusion(parts[:2], method, most))
        assert_as_by_hand(log, searches(filter, 30, 50, 80), Fusion(parts, method, 8))


def test_one_search_alone_keeps_its_order_and_scores(log: Log) -> None:
    for asked in (searches(None, 60), searches(None, 60, 60)[1:]):
        for most in (3, 60, None):
            found = assert_as_by_hand(log, asked, Fusion((Part("one"),), "max", most))
            assert [hit.signals["one"]["rank"] for hit in found if hit.signals] == list(
                range(1, len(found) + 1)
            )


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_nothing_and_least_scores(log: Log, method: FusionMethod) -> None:
    """With a weight of 0 a whole ranking ties: the smallest ids of it are looked for among all."""
    asked = searches(None, 40, 40)
    middle = log.vectors.search(log.view, asked)[1][20].score
    for parts in (
        (Part("v", 0.0), Part("w", 0.0)),
        (Part("v", 0.0), Part("w")),
        (Part("v"), Part("w", min_score=middle)),
        (Part("v", min_score=99.0), Part("w")),
        (Part("v", min_score=99.0), Part("w", min_score=99.0)),
    ):
        assert_as_by_hand(log, asked, Fusion(parts, method, 5))


def test_vectors_come_with_the_hits_when_they_are_asked_for(log: Log) -> None:
    asked = [replace(search, with_vectors=True) for search in searches(None, 40, 40)]
    found = log.vectors.ranked(log.view, asked, Fusion((Part("v"), Part("w")), most=10))
    stored = log.vectors.get(log.view, [hit.document_id for hit in found], True)
    assert [{**hit.vectors}.keys() for hit in found] == [{**hit.vectors}.keys() for hit in stored]
    assert any(hit.vectors for hit in found)


def test_searches_with_filters_of_their_own_and_one_that_finds_nothing(log: Log) -> None:
    dense, words, _ = searches(None, 50, 50, 50)
    fusion = Fusion((Part("v"), Part("w")), "rrf", 6)
    for first, second in (
        ("an index", "no index"),
        ("few", "none"),
        ("nothing", "few"),
        ("no index", "nothing"),
    ):
        asked = [replace(dense, filter=FILTERS[first]), replace(words, filter=FILTERS[second])]
        assert_as_by_hand(log, asked, fusion)
    assert_as_by_hand(log, [dense, replace(words, text="!!!")], fusion)
    assert_as_by_hand(log, [replace(dense, limit=0), words], fusion)
    assert log.vectors.ranked(log.view, [replace(words, text="zzz")], Fusion((Part("w"),), most=5)) == []


def test_what_is_asked_together_is_answered_to_whom_asked(log: Log) -> None:
    """Requests that wait for one view go to the engine together: rankings, single searches, and one that is refused."""
    fusion = Fusion((Part("v"), Part("w")), "rrf", 5)
    expected = {
        name: assert_as_by_hand(log, searches(each, 40, 40), fusion) for name, each in FILTERS.items()
    }
    singly = log.vectors.search(log.view, searches(None, 9, 9))

    def ask(number: int) -> bool:
        name = list(FILTERS)[number % len(FILTERS)]
        if number % 7 == 3:
            return log.vectors.search(log.view, searches(None, 9, 9)) == singly
        if number % 7 == 5:
            with pytest.raises(BadRequestError, match="dimensions"):
                log.vectors.ranked(log.view, [Search("text", vector(1, 3), 9)], Fusion((Part("v"),), most=2))
            return True
        return log.vectors.ranked(log.view, searches(FILTERS[name], 40, 40), fusion) == expected[name]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(56)))
