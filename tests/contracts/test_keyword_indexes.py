"""Keyword search over a view's texts: found and scored alike by both engines, as BM25 says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tessera.adapters.qdrant.words import words_asked
from tessera.errors import BadRequestError, QdrantError
from tessera.filters import Condition
from tessera.ports import Document, Entry, Hit, Page, Search, SparseText, ViewDamaged
from tests.contracts.test_vectors import DIMENSIONS, ENGINES, Engine, Log, index, vector

WORDS = SparseText("bm25", ("text", "transcription"))
TEXTS = {
    "pump": "Pump XK-4471-B moves water up the hill",
    "valve": "valve XK-9 lets water out, and only water",
    "poem": "the hill is green",
    "long": "water " + "moves slowly " * 200,
}


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    yield from ENGINES[request.param](tmp_path_factory.mktemp(request.param), 100_000)


@pytest.fixture
def log(engine: Engine) -> Log:
    return Log(engine, engine.new_view(sparse=(WORDS,)))


def text(name: str, words: object, **fields: object) -> Document:
    payload = {"document_id": name, "text": words, **fields}
    return Document(name, payload, {"text": vector(len(name))})


def found(log: Log, words: str, limit: int = 10, **options: object) -> list[Hit]:
    search = Search("bm25", None, limit, text=words, **options)  # type: ignore[arg-type]
    return log.vectors.search(log.view, [search])[0]


def names(hits: list[Hit]) -> list[str]:
    return [hit.document_id for hit in hits]


def bm25(query: str, texts: dict[str, str]) -> dict[str, float]:
    """The formula of Robertson and Zaragoza (2009), k = 1.2, b = 0.75, average length 256; stems left out."""
    tokens = {name: re.findall(r"[a-z0-9]+", words.lower()) for name, words in texts.items()}
    scores: dict[str, float] = {}
    for word in set(re.findall(r"[a-z0-9]+", query.lower())):
        holders = sum(word in words for words in tokens.values())
        idf = math.log(1 + (len(texts) - holders + 0.5) / (holders + 0.5))
        for name, words in tokens.items():
            count = Counter(words)[word]
            if count:
                length = 1 - 0.75 + 0.75 * len(words) / 256
                scores[name] = scores.get(name, 0.0) + idf * count * 2.2 / (count + 1.2 * length)
    return scores


@pytest.mark.parametrize("query", ["XK-4471-B", "water", "the hill", "green water 9", "moves slowly"])
def test_finds_what_has_a_word_and_scores_it_as_bm25_does(log: Log, query: str) -> None:
    """Stems would differ from the oracle's words only in "moves slowly", which it is told in its stems."""
    log.upsert(*(text(name, words) for name, words in TEXTS.items()))
    stems = {"moves": "move", "slowly": "slow"}
    plain = {name: re.sub("moves|slowly", lambda m: stems[m[0]], words) for name, words in TEXTS.items()}
    expected = bm25(re.sub("moves|slowly", lambda m: stems[m[0]], query), plain)
    hits = found(log, query)
    assert {hit.document_id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-4)
    assert names(hits) == sorted(expected, key=lambda name: -expected[name])


def test_follows_every_change_of_a_text_and_every_declared_field(log: Log) -> None:
    log.upsert(text("a", "apples"), text("b", ["pears", "plums"]), text("c", None, transcription="plums"))
    assert set(names(found(log, "plums"))) == {"b", "c"}
    log.upsert(text("b", "cherries"))
    log(deletes=("a",))
    assert names(found(log, "plums")) == ["c"]
    assert names(found(log, "cherry")) == ["b"]
    assert found(log, "apples") == []
    # A change of payloads alone: "b" has new words, "c" none any more, "d" does not exist.
    changed = (text("b", "grapes"), text("c", None, colour="red"), text("d", "grapes"))
    log(upserts=tuple(replace(document, vectors={}) for document in changed), keeps_vectors=True)
    assert names(found(log, "grape")) == ["b"]
    assert found(log, "cherry plum") == []
    log(upserts=(replace(text("c", "plums"), vectors={}),), keeps_vectors=True)
    assert names(found(log, "plum")) == ["c"]


def test_filters_narrow_whether_an_index_answers_them_or_not(log: Log) -> None:
    log.index(index("colour", "keyword"))
    for number in range(30):
        log.upsert(text(f"doc {number:02}", "lamp " * (30 - number), colour="red", odd=number % 2 == 1))
    log.upsert(text("blue", "lamp", colour="blue", odd=True))
    assert len(found(log, "lamp", 100, filter=Condition("colour", "eq", "red"))) == 30
    odd = found(log, "lamp", 100, filter=Condition("odd", "eq", True))
    assert len(odd) == 16
    page = found(log, "lamp", 3, offset=2, filter=Condition("odd", "eq", True))
    assert names(page) == names(odd)[2:5]


def test_the_index_is_no_vector_of_the_document_and_is_asked_by_words_only(log: Log) -> None:
    log.upsert(text("a", "apples"))
    (hit,) = log.vectors.get(log.view, ["a"], True)
    assert set(hit.vectors) == {"text"}
    (listed,) = log.vectors.page(log.view, Page(1, with_vectors=True)).hits
    assert set(listed.vectors) == {"text"}
    with pytest.raises(BadRequestError, match="by words"):
        log.vectors.search(log.view, [Search("bm25", vector(1), 1)])
    with pytest.raises(BadRequestError, match="by a vector"):
        log.vectors.search(log.view, [Search("text", None, 1, text="apples")])
    assert found(log, "!!! …") == []
    assert found(log, "nowhere") == []
    dense, sparse = log.vectors.search(
        log.view, [Search("text", vector(1, DIMENSIONS), 1), Search("bm25", None, 1, text="apple")]
    )
    assert names(dense) == names(sparse) == ["a"]


def test_a_view_from_before_there_were_keyword_indexes_is_told_apart(engine: Engine) -> None:
    """The embedded engine answers from it and says that it is behind; a server's is made anew at once."""
    old = engine.new_view()
    engine.vectors.apply(old, [Entry(1, "edit", upserts=(text("a", "apples"),))])
    engine.vectors.flush(old)
    engine.vectors.release(old)
    now = replace(old, sparse=(WORDS,))
    if not engine.vectors.builds_apart(old):
        with pytest.raises(ViewDamaged, match="keyword index"):
            engine.vectors.open(now)
        return
    mark = engine.vectors.open(now)
    assert (mark.behind, mark.document_count) == (True, 1)
    engine.vectors.apply(now, [Entry(2, "edit", upserts=(text("b", "pears"),))])
    assert set(names(engine.vectors.search(now, [Search("text", vector(1), 10)])[0])) == {"a", "b"}
    with pytest.raises(QdrantError, match="still being made") as caught:
        engine.vectors.search(now, [Search("bm25", None, 10, text="apples")])
    assert caught.value.retryable


# --- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Café", "CAFE"),
        ("connections", "connected"),
        ("ﬁne", "fine"),
        ("XK-4471", "4471/xk"),
        ("Straße", "strasse"),
        ("to be or not to be", "be not or to"),
    ],
)
def test_spellings_of_the_same_words(one: str, other: str) -> None:
    first, second = words_asked(one), words_asked(other)
    assert first is not None
    assert second is not None
    assert set(first.indices) == set(second.indices)


def test_scripts_without_blanks_are_found_by_a_part_of_a_sentence() -> None:
    for sentence, part, absent in [("東京都に住んでいます", "東京", "大阪"), ("ภาษาไทย", "ไทย", "ลาว")]:
        whole, asked, other = (words_asked(words) for words in (sentence, part, absent))
        assert whole is not None
        assert asked is not None
        assert other is not None
        assert set(asked.indices) <= set(whole.indices)
        assert not set(other.indices) <= set(whole.indices)
