"""A list that is read page by page while others write: what was there all the time is shown once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop
from tests.http.processes import Server


@pytest.fixture(scope="module")
def client(either_server: Server) -> Iterator[httpx.Client]:
    with either_server.client() as client:
        yield client


class Writer:
    """Inserts, deletes and changes documents as fast as it can, all of its own but for changes; counts the rounds."""

    def __init__(self, loop: Loop, collection: str, steady: int) -> None:
        self.rounds = 0
        self.failure: BaseException | None = None
        self._loop, self._collection, self._steady = loop, collection, steady
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_forever)

    def _write_forever(self) -> None:
        path = f"/collections/{self._collection}/documents"
        try:
            with httpx.Client(
                base_url=self._loop.client.base_url, headers=self._loop.client.headers
            ) as client:
                mine = Loop(client, {"namespace_id": self._loop.namespace_id})
                for number in count():
                    if self._stop.is_set():
                        return
                    made = [
                        {"document_id": f"moving-{number}-{n}", "payload": {"size": (number + n) % 97}}
                        for n in range(5)
                    ]
                    body = {"collection_id": self._collection, "documents": made}
                    mine.post(f"/namespaces/{mine.namespace_id}/documents/upsert", body)
                    mine.patch(f"{path}/steady-{number % self._steady}", {"touched": number})
                    if number >= 3:
                        gone = [f"moving-{number - 3}-{n}" for n in range(5)]
                        mine.delete(f"{path}/batch", {"document_ids": gone})
                    self.rounds += 1
        except BaseException as failure:  # shown by the test
            self.failure = failure

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(60)
        assert self.failure is None, self.failure

    def wait_for_a_round(self) -> None:
        before, deadline = self.rounds, time.monotonic() + 60
        while self.rounds == before:
            assert self.failure is None, self.failure
            assert time.monotonic() < deadline, "the writer stands still"
            time.sleep(0.005)


def listed(loop: Loop, collection: str, writer: Writer, body: dict[str, Any]) -> list[str]:
    """Return the ids of a list that is read to its end, with writes between any two of its pages."""
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = loop.post(
            f"/collections/{collection}/documents/list", {**body, **({"cursor": cursor} if cursor else {})}
        )
        seen += [item["document_id"] for item in page["results"]]
        assert page["pagination"]["total"] >= 0
        cursor = page["pagination"]["next_cursor"]
        if cursor is None:
            return seen
        writer.wait_for_a_round()


@pytest.mark.parametrize(
    ("number", "limit"),
    [(300, 60), pytest.param(20_000, 500, marks=pytest.mark.slow)],
    ids=["300 documents", "20,000 documents"],
)
def test_every_document_that_stayed_is_shown_once_while_others_come_and_go(
    client: httpx.Client, namespace: Callable[..., Any], number: int, limit: int
) -> None:
    indexes = [{"field_name": "kind", "type": "keyword"}]
    loop = Loop(client, namespace(feature_extractors=[PASSTHROUGH], payload_indexes=indexes))
    collection = loop.collection(loop.bucket(), PASSTHROUGH)
    for start in range(0, number, 500):
        documents = [
            {"document_id": f"steady-{n}", "payload": {"kind": "steady", "size": n % 97, "n": n}}
            for n in range(start, min(start + 500, number))
        ]
        body = {"collection_id": collection, "documents": documents}
        loop.post(f"/namespaces/{loop.namespace_id}/documents/upsert", body)
    steady = {f"steady-{n}" for n in range(number)}
    asked: list[dict[str, Any]] = [
        {},
        {"filters": {"field": "size", "operator": "exists"}},
        {"filters": {"kind": "steady"}},
        {"sort": {"field": "size", "direction": "desc"}},
    ]
    if number < 1000:
        asked = [asked[0], {**asked[2], **asked[3]}]
    with Writer(loop, collection, number).writing() as writer:
        for body in asked:
            seen = listed(loop, collection, writer, {"limit": limit, **body})
            assert len(seen) == len(set(seen)), (body, "a document was shown twice")
            assert steady <= set(seen), (body, sorted(steady - set(seen))[:5])
            if "filters" in body and "kind" in body["filters"]:
                assert set(seen) == steady
    assert writer.rounds > 3
