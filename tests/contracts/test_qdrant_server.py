"""What only a Qdrant server brings: names that others may have taken, keys, connections that break."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tessera.adapters.qdrant import server as server_module
from tessera.adapters.qdrant import view as view_module
from tessera.adapters.qdrant.server import METADATA_KEY, ServerEngine, ServerVectors
from tessera.errors import AlreadyExistsError, QdrantError
from tessera.filters import Condition, Not
from tessera.models import INDEX_PARAMS, IndexType, PayloadIndex
from tessera.ports import DenseVector, Document, Entry, Page, Search, View, ViewDamaged, ViewLost
from tests import qdrant_rest

URL, KEY = os.environ.get("TESSERA_TEST_QDRANT_URL"), os.environ.get("TESSERA_TEST_QDRANT_API_KEY")
CANARY = "a-very-secret-key"
on_the_stand_in = pytest.mark.skipif(URL is not None, reason="looks into the stand-in, or breaks it")


@dataclasses.dataclass
class Place:
    """A server, a port to it, and the official client to look at it with another pair of eyes."""

    url: str
    key: str | None
    vectors: ServerVectors
    client: QdrantClient
    store: qdrant_rest.Store | None

    def view(self, namespace_id: str | None = None, generation: int = 1, alias: str | None = None) -> View:
        namespace_id = namespace_id or f"ns_{uuid.uuid4().hex[:16]}"
        declared = (DenseVector("text", 4),)
        return View(namespace_id, f"{namespace_id}-{generation}", declared, self.url, alias, self.key)

    def aliases(self) -> dict[str, str]:
        return {item.alias_name: item.collection_name for item in self.client.get_aliases().aliases}

    def collections(self) -> set[str]:
        return {item.name for item in self.client.get_collections().collections}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    standin = None if URL else qdrant_rest.start(tmp_path, api_key=CANARY)
    url, key = (URL, KEY) if URL else (standin.url, CANARY)
    vectors = ServerVectors()
    with warnings.catch_warnings(action="ignore"):  # of a key over plain HTTP
        client = QdrantClient(url=url, api_key=key, check_compatibility=False)
    before = {item.name for item in client.get_collections().collections}
    yield Place(url, key, vectors, client, standin.store if standin else None)
    vectors.close()
    if standin is not None:
        standin.shutdown()
        standin.server_close()
    else:
        for name in {item.name for item in client.get_collections().collections} - before:
            client.delete_collection(name)
    client.close()


def document(number: int, **fields: Any) -> Document:
    document_id = f"doc_{number:032x}"
    vector = np.random.default_rng(number).standard_normal(4).astype(np.float32)
    return Document(document_id, {"document_id": document_id, **fields}, {"text": vector})


def entry(seq: int, *documents: Document, **rest: Any) -> Entry:
    return Entry(seq, rest.pop("kind", "edit"), upserts=documents, **rest)


def index(field_name: str, type: str) -> PayloadIndex:
    schema = INDEX_PARAMS[IndexType(type)]().model_dump()
    return PayloadIndex(field_name=field_name, type=IndexType(type), field_schema=schema)


# --- the mark ------------------------------------------------------------------------------------------


def test_the_mark_outlives_the_process(place: Place) -> None:
    view = place.view()
    place.vectors.open(view)
    place.vectors.apply(
        view, [entry(1, kind="indexes", indexes=(index("k", "keyword"),)), entry(2, document(1, k=5))]
    )
    mark = place.vectors.flush(view)
    assert (mark.seq, mark.document_count, mark.durable) == (2, 1, True)
    place.vectors.apply(view, [entry(3, document(2, k="a"))])  # findable, not yet marked
    again = ServerVectors()
    mark = again.open(view)
    assert (mark.seq, mark.document_count) == (2, 2)  # as far as marked, and what is counted there
    mark = again.apply(view, [entry(3, document(2, k="a"))])
    assert (mark.seq, mark.document_count) == (3, 2)
    # what made the path irregular is known still: the index does not see the 5
    assert again.count(view, Condition("k", "exists", True)) == 2
    assert again.count(view, Condition("k", "eq", 5)) == 1
    again.close()
    assert ServerVectors().open(view).seq == 3  # closing moved it


def test_a_view_that_is_not_open_here_is_lost(place: Place) -> None:
    view = place.view()
    for ask in (
        lambda: place.vectors.count(view),
        lambda: place.vectors.apply(view, []),
        lambda: place.vectors.flush(view),
    ):
        with pytest.raises(ViewLost):
            ask()
    assert view.view_id not in place.collections()


def test_a_collection_that_went_away_means_rebuilding(place: Place) -> None:
    view = place.view()
    place.vectors.open(view)
    place.vectors.apply(view, [entry(1, document(1))])
    place.client.delete_collection(view.view_id)
    with pytest.raises(ViewDamaged, match="gone from the server"):
        place.vectors.search(view, [Search("text", np.zeros(4, np.float32), 1)])
    with pytest.raises(ViewLost):
        place.vectors.page(view, Page(1))
    assert place.vectors.open(view).seq == 0


def test_a_collection_made_for_other_vectors_is_damaged(place: Place) -> None:
    view = place.view()
    place.vectors.open(view)
    with pytest.raises(ViewDamaged, match="other vectors"):
        ServerVectors().open(dataclasses.replace(view, vectors=(DenseVector("text", 8),)))


# --- names ---------------------------------------------------------------------------------------------


def test_the_users_name_is_an_alias_that_moves_with_the_generation(place: Place) -> None:
    name = f"products_{uuid.uuid4().hex[:8]}"
    first = place.view(alias=name)
    place.vectors.open(first)
    assert place.aliases()[name] == first.view_id
    second = place.view(first.namespace_id, 2, alias=name)
    place.vectors.open(second)
    assert place.aliases()[name] == second.view_id
    place.vectors.drop(first)
    assert place.aliases()[name] == second.view_id
    place.vectors.drop(second)
    assert name not in place.aliases()


def test_a_foreign_collection_or_alias_of_that_name_is_left_as_it_is(place: Place) -> None:
    theirs, pointer = f"theirs_{uuid.uuid4().hex[:8]}", f"pointer_{uuid.uuid4().hex[:8]}"
    config = {"v": models.VectorParams(size=4, distance=models.Distance.COSINE)}
    place.client.create_collection(theirs, vectors_config=config)
    place.client.update_collection_aliases(
        [
            models.CreateAliasOperation(
                create_alias=models.CreateAlias(collection_name=theirs, alias_name=pointer)
            )
        ]
    )
    for name in (theirs, pointer):
        view = place.view(alias=name)
        with pytest.raises(AlreadyExistsError, match=name) as refused:
            place.vectors.open(view)
        assert refused.value.status == 409
        assert view.view_id not in place.collections()  # nothing left behind
    assert place.aliases()[pointer] == theirs
    # a physical name that is taken
    mine = dataclasses.replace(place.view(), view_id=theirs)
    with pytest.raises(AlreadyExistsError, match="did not make"):
        place.vectors.open(mine)
    place.vectors.drop(mine)
    assert theirs in place.collections()


@on_the_stand_in
def test_a_failure_between_collection_and_alias_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.store is not None
    monkeypatch.setattr(place.store, "change_aliases", lambda body: 1 / 0)
    view = place.view(alias="products")
    with pytest.raises(QdrantError):
        place.vectors.open(view)
    assert place.collections() == set()


@on_the_stand_in
def test_an_old_server_is_refused(place: Place) -> None:
    assert place.store is not None
    place.store.version = "1.15.4"
    with pytest.raises(QdrantError, match=r"1\.15\.4, too old.*Use Qdrant 1\.16 or newer") as refused:
        place.vectors.open(place.view())
    assert not refused.value.retryable
    assert place.collections() == set()


@on_the_stand_in
@pytest.mark.parametrize("version", ["1.16.0", "1.19.3", "1.20.0-dev", "custom"])
def test_what_a_version_cannot_do_is_not_asked_of_it(place: Place, version: str) -> None:
    assert place.store is not None
    place.store.version = version
    requests = place.store.requests = []
    view = place.view()
    place.vectors.open(view)
    documents = [document(n, k=text) for n, text in enumerate(["Rock", "Rocket", "baroque"])]
    place.vectors.apply(
        view, [entry(1, kind="indexes", indexes=(index("k", "keyword"),)), entry(2, *documents)]
    )
    counts = [
        place.vectors.count(view, Condition("k", operator, text))
        for operator, text in (("starts_with", "ROCK"), ("contains", "ro"), ("ends_with", "K"))
    ]
    assert counts == [2, 3, 1]
    sent = str([body for _, _, body in requests])
    assert ("prefix" in sent) == (version != "1.16.0")
    assert ("substring" in sent) == (version in {"1.20.0-dev", "custom"})


# --- the wire ------------------------------------------------------------------------------------------


@on_the_stand_in
def test_every_write_waits_and_nothing_leaves_its_collection(place: Place) -> None:
    assert place.store is not None
    view = place.view()
    place.vectors.open(view)
    requests = place.store.requests = []
    odd = index("a/b?c#d.e%20 f", "keyword")
    place.vectors.apply(view, [entry(1, *(document(n, **{"a/b?c#d": {"e%20 f": "X"}}) for n in range(3)))])
    place.vectors.apply(view, [entry(2, kind="indexes", indexes=(odd,))])
    assert place.vectors.count(view, Condition(odd.field_name, "eq", "x")) == 3
    assert [report.points for report in place.vectors.indexes(view)] == [3]
    place.vectors.apply(view, [entry(3, kind="indexes", indexes=()), entry(4, deletes=("doc_" + "0" * 32,))])
    assert place.vectors.indexes(view) == []
    writes = [
        path for method, path, _ in requests
        if method in ("PUT", "DELETE") or "/points/delete" in path or "/points/payload" in path
    ]  # fmt: skip
    assert len(writes) >= 7
    assert all("wait=true" in path for path in writes)
    assert all(path.startswith(f"/collections/{view.view_id}") for _, path, _ in requests)


def unreachable(place: Place, url: str, key: str | None = CANARY) -> QdrantError:
    view = dataclasses.replace(place.view(), location=url, secret=key)
    with pytest.raises(QdrantError) as failed:
        place.vectors.open(view)
    shown = f"{failed.value.message} {failed.value.details}"
    assert CANARY not in shown + repr(view)
    assert "someone" not in shown
    return failed.value


def test_a_refused_key_is_said_and_not_repeated(place: Place) -> None:
    if URL and not KEY:
        pytest.skip("this server takes any key")
    error = unreachable(place, place.url.replace("http://", "http://someone:else@"), CANARY + "x")
    assert "refused the key" in error.message
    assert (error.type, error.status, error.retryable) == ("QdrantError", 503, False)


def test_a_server_that_is_not_there(place: Place) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    error = unreachable(place, f"http://someone:else@127.0.0.1:{port}")
    assert time.monotonic() - started < 3
    assert "cannot be reached" in error.message
    assert error.retryable
    assert error.retry_after_s


def test_a_server_that_does_not_answer_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "QUESTION_TIMEOUT_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        error = unreachable(place, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < 3
    assert "did not answer in time" in error.message


def test_something_else_on_that_port_is_no_reason_to_fall(place: Place) -> None:
    def serve(listening: socket.socket) -> None:
        for body in (b"<html>hello</html>", b'{"result": {"exists": "maybe?"}}', b'{"result": null}', b"[1]"):
            connection, _ = listening.accept()
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
            )
            connection.close()

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        for _ in range(4):
            error = unreachable(place, f"http://127.0.0.1:{listening.getsockname()[1]}")
            assert "not Qdrant's" in error.message


@on_the_stand_in
def test_counts_stay_exact_when_the_server_fails_in_the_middle(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = place.view()
    place.vectors.open(view)
    down, calls = threading.Event(), 0
    upsert = qdrant_rest.OPERATIONS["PUT", "points"]
    count = qdrant_rest.OPERATIONS["POST", "points/count"]

    def second_time_only_half(collection: Any, body: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            upsert(collection, {"points": body["points"][:70]})
            down.set()
        if down.is_set():
            raise qdrant_rest.Refused(500, "out of order")
        return upsert(collection, body)

    def unless_down(collection: Any, body: dict[str, Any]) -> Any:
        if down.is_set():
            raise qdrant_rest.Refused(500, "out of order")
        return count(collection, body)

    monkeypatch.setitem(qdrant_rest.OPERATIONS, ("PUT", "points"), second_time_only_half)
    monkeypatch.setitem(qdrant_rest.OPERATIONS, ("POST", "points/count"), unless_down)
    one = entry(1, *(document(n) for n in range(500)))
    for _ in range(2):
        with pytest.raises(QdrantError, match=r"failed \(500\)"):
            place.vectors.apply(view, [one])
    with pytest.raises(QdrantError):
        place.vectors.count(view)
    down.clear()
    assert place.vectors.count(view) == ServerEngine.write_slice + 70
    mark = place.vectors.apply(view, [one])
    assert (mark.seq, mark.document_count) == (1, 500)
    assert place.vectors.count(view) == 500


def test_a_read_sees_one_state_although_another_writes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that the index does not see came between the splitting of a filter and the engine's answer."""
    view = place.view()
    place.vectors.open(view)
    documents = [document(n, n=n) for n in range(50)]
    place.vectors.apply(
        view, [entry(1, kind="indexes", indexes=(index("n", "integer"),)), entry(2, *documents)]
    )
    scroll, arrives = ServerEngine.scroll, [entry(3, document(1000, n=5.5))]

    def interrupted(self: ServerEngine, *arguments: Any) -> Any:
        if arrives:
            place.vectors.apply(view, [arrives.pop()])
        return scroll(self, *arguments)

    monkeypatch.setattr(ServerEngine, "scroll", interrupted)
    assert place.vectors.page(view, Page(200, Not((Condition("n", "gte", 0),)))).hits == ()
    assert arrives == []
    assert place.vectors.count(view, Condition("n", "gte", 0)) == 51


def test_a_read_that_begins_while_indexes_are_exchanged_is_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could split its filter by the old indexes and take that for what goes with the new."""
    view = place.view()
    place.vectors.open(view)
    live = place.vectors._views[view.view_id].live
    roots, begun = view_module._roots, []

    def in_the_middle(fields: Any) -> Any:
        begun.append(live._basis())
        return roots(fields)

    monkeypatch.setattr(view_module, "_roots", in_the_middle)
    place.vectors.apply(view, [entry(1, kind="indexes", indexes=(index("n", "integer"),))])
    assert begun
    assert live._basis() not in begun


def test_metadata_says_whose_a_collection_is(place: Place) -> None:
    view = place.view()
    place.vectors.open(view)
    stored = (place.client.get_collection(view.view_id).config.metadata or {})[METADATA_KEY]
    assert stored["view_id"] == view.view_id
    assert CANARY not in str(stored)
