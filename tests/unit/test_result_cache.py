"""Results are kept under the position that they were read at; pages; and what happens between the two reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tessera import (
    documents,
    erasure,
    log,
    retrieve,
)
from tessera.context import Warehouse
from tessera.errors import BadRequestError
from tessera.models.erasures import EraseRequest
from tessera.models.retrievers import ExecuteRequest
from tessera.ports import Hit
from tessera.result_cache import Kept, ResultCache
from tessera.retriever_pages import After, Ranked, following, position_after, read_cut
from tests.unit.place import Place, opened

# --- the cache itself ------------------------------------------------------------------------------------


def kept(size: int = 10) -> Kept:
    return Kept(b"x" * size, "tag")


def test_a_result_is_good_for_its_position_only() -> None:
    cache = ResultCache()
    cache.put("ns", ("view", 5), b"key", kept(), 60)
    assert cache.get("ns", ("view", 5), b"key") == kept()
    assert cache.get("other", ("view", 5), b"key") is None
    assert cache.get("ns", ("view", 5), b"else") is None
    assert cache.get("ns", ("view", 6), b"key") is None
    assert cache.get("ns", ("view", 5), b"key") is None, "what is past does not come back"


def test_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("tessera.result_cache.time.monotonic", lambda: clock[0])
    cache = ResultCache()
    cache.put("ns", 1, b"key", kept(), 60)
    clock[0] = 159.9
    assert cache.get("ns", 1, b"key") is not None
    clock[0] = 160.0
    assert cache.get("ns", 1, b"key") is None


def test_memory_is_bounded_and_the_least_recent_goes_first() -> None:
    cache = ResultCache(1000)
    for number in range(10):
        cache.put("ns", 1, bytes([number]), kept(100), 60)
    assert cache.get("ns", 1, bytes([0])) is not None
    cache.put("ns", 1, b"new", kept(100), 60)
    assert cache.get("ns", 1, bytes([0])) is not None
    assert cache.get("ns", 1, bytes([1])) is None
    cache.put("ns", 1, b"huge", kept(200), 60)
    assert cache.get("ns", 1, b"huge") is None, "one that would push out many"
    off = ResultCache(0)
    off.put("ns", 1, b"key", kept(), 60)
    assert off.get("ns", 1, b"key") is None


def test_a_namespace_is_forgotten_whole() -> None:
    cache = ResultCache()
    for name in ("ns_1", "ns_2"):
        cache.put(name, 1, b"key", kept(), 60)
    cache.forget("ns_1")
    assert cache.get("ns_1", 1, b"key") is None
    assert cache.get("ns_2", 1, b"key") is not None


# --- between the reads -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with opened(tmp_path_factory.mktemp("results") / "data") as wh:
        yield wh


@pytest.fixture
def place(warehouse: Warehouse, request: pytest.FixtureRequest) -> Place:
    """A namespace of the test's own."""
    return Place(warehouse, str(request.node.name)[:60])


def between(place: Place, monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Have `what` happen once, when the next search is about to begin or has just ended."""
    page = place.wh.views.page
    left = [what]

    def then(*arguments: Any) -> Any:
        if left:
            left.pop()()
        return page(*arguments)

    monkeypatch.setattr(place.wh.views, "page", then)


def test_a_write_between_position_and_search_is_not_kept_under_the_old_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in that answer, and must be in each one after it."""
    place.put("a", 1)
    assert place.ask() == ("MISS", [1])
    assert place.ask() == ("HIT", [1])
    place.put("b", 2)
    between(place, monkeypatch, lambda: place.put("c", 3))
    assert place.ask() == ("MISS", [1, 2, 3])
    assert place.ask() == ("MISS", [1, 2, 3]), "kept under the position before c"
    assert place.ask() == ("HIT", [1, 2, 3])


def test_a_write_between_search_and_keeping_is_not_hidden(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("a", 1)
    place.ask()
    place.put("b", 2)
    put = place.wh.results.put

    def late(*arguments: Any) -> None:
        monkeypatch.undo()
        place.put("c", 3)
        put(*arguments)

    monkeypatch.setattr(place.wh.results, "put", late)
    assert place.ask() == ("MISS", [1, 2])
    assert place.ask() == ("MISS", [1, 2, 3])


def test_while_a_write_is_logged_and_not_applied_nothing_is_kept(place: Place) -> None:
    """Another server's write, or one that waits for its turn: what this view holds is behind the log."""
    place.put("a", 1)
    place.ask()
    assert place.ask() == ("HIT", [1])
    with place.wh.db.write() as connection:
        seq = log.append_edit(connection, place.namespace, deletes=["a"])
    assert [place.ask()[0] for _ in range(2)] == ["BYPASS", "BYPASS"]
    place.wh.views.apply(place.namespace, seq)
    assert place.ask() == ("MISS", [])


def test_erasing_forgets_at_once(place: Place) -> None:
    place.put("a", 1)
    place.ask()
    assert place.ask()[0] == "HIT"
    request = EraseRequest.model_validate({"document_ids": ["a"]})
    erasure.request(place.wh, place.me, place.namespace, request)
    assert not [name for name, _ in place.wh.results._entries if name == place.namespace]


def test_a_document_read_by_a_cached_result_cannot_be_changed_by_its_reader(place: Place) -> None:
    place.put("a", 1)
    place.ask()
    done = retrieve.execute(place.wh, place.me, place.namespace, place.retriever, ExecuteRequest())
    done.body["documents"][0]["n"] = 7
    assert place.ask() == ("HIT", [1])
    assert documents.get(place.wh, place.me, place.namespace, place.collection, "a")["n"] == 1


# --- pages -----------------------------------------------------------------------------------------------


class Signer:
    signing_key = b"k" * 32


def test_a_scroll_id_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("tessera.retriever_pages.time.time", lambda: clock[0])
    first = read_cut(Signer(), {"method": "scroll", "limit": 1, "scroll_ttl": 60}, None, lambda: "d")
    told = following(Signer(), first, Ranked([Hit("a", {})], 2, 0, 1, True, {}), lambda: "d")
    asked = {"method": "scroll", "limit": 1, "scroll_id": told["scroll_id"]}
    clock[0] = 1060.0
    assert read_cut(Signer(), asked, None, lambda: "d").offset == 1
    clock[0] = 1061.0
    with pytest.raises(BadRequestError, match="expired"):
        read_cut(Signer(), asked, None, lambda: "d")


def test_where_a_document_that_is_gone_stood() -> None:
    hits = [Hit(name, {}, score) for name, score in (("a", 0.9), ("b", 0.7), ("c", 0.7), ("d", 0.1))]
    assert position_after(hits, After("b", 0.7)) == 2
    assert position_after(hits, After("gone", 0.8)) == 1
    assert position_after(hits, After("gone", 0.7)) == 1, "rather again than never"
    assert position_after(hits, After("gone", 0.05)) == 4
