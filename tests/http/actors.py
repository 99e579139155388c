"""Clients that change namespaces while their server is killed, and remember what they were promised.

An actor's record is the test's own: for each object the contents that it may have now, for each object's
document what it may be now. An acknowledged change leaves one possibility, one without an answer leaves two;
`Ingester.settle` compares with what the server shows and keeps what was found.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.http.loop import PASSTHROUGH, TEXT
from tests.http.oracle import listed
from tests.http.processes import Server

WORDS = ["amber", "basalt", "cedar", "delta", "ember", "fjord", "grove", "harbor", "inlet", "jetty"]
#: Longer than what is kept in an object's row, so that it becomes a file.
_LONG = "lorem ipsum dolor " * 15_000
_INDEXES = (
    {"field_name": "metadata.n", "type": "integer"},
    {"field_name": "metadata.word", "type": "keyword"},
    {"field_name": "metadata.words", "type": "text"},
)
#: Each one that is there costs time when everything is compared.
MOST_NAMESPACES = 3
#: Every content that any actor ever sends has a number of its own.
_numbers = itertools.count(1)


class Unanswered(Exception):
    """The request's effect is unknown: the connection broke, or a part was not available (503)."""


@dataclass
class Item:
    """An object: the contents (numbers) that it may have, None standing for deleted, and its document's."""

    contents: set[int | None]
    document: set[int | None] = field(default_factory=lambda: {None})
    #: What was set of its document by hand, None standing for nothing: another extraction leaves it.
    mark: set[int | None] = field(default_factory=lambda: {None})
    #: Contents that it had at any time since it was last settled.
    recent: set[int | None] = field(default_factory=set)
    changes: int = 0
    #: In a batch that was submitted since it was last settled.
    in_batch: bool = False

    @property
    def exists(self) -> bool:
        return None not in self.contents

    def to(self, content: int | None) -> None:
        """Note that a request to make it `content` is sent."""
        self.contents = {*self.contents, content}
        self.recent |= self.contents
        self.changes += 1


@dataclass
class Submitted:
    """A batch whose submission was sent; for each object its content and number of changes then."""

    batch_id: str
    acknowledged: bool
    objects: dict[str, tuple[frozenset[int | None], int]]


class Actor:
    """A client that sends one request after the other, and its record."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.failure: BaseException | None = None
        self.sent = 0
        self.unanswered = 0
        self._client: httpx.Client | None = None

    def act(self, server: Server, client: httpx.Client) -> None:
        """Send a few requests."""
        raise NotImplementedError

    def settle(self, server: Server) -> None:
        """Compare the record with what the server shows, once all work has ended."""
        raise NotImplementedError

    def step(self, server: Server) -> bool:
        """Act once; return whether the server is still there."""
        with server.client() as client:
            self._client = client
            try:
                self.act(server, client)
            except Unanswered:
                self.unanswered += 1
            return server.process.poll() is None

    def send(self, method: str, path: str, body: Any = None, *, good: tuple[int, ...] = (200,)) -> Any:
        """Send a request and return what it answers. Raises `Unanswered` when its effect is unknown."""
        assert self._client is not None
        self.sent += 1
        try:
            answer = self._client.request(method, f"/v1{path}", json=body, headers=self.headers())
        except httpx.TransportError as error:
            raise Unanswered from error
        if answer.status_code == 503:
            assert answer.json()["error"]["details"]["retryable"] is True, answer.text
            raise Unanswered
        assert answer.status_code in good, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def headers(self) -> dict[str, str]:
        return {}


class Ingester(Actor):
    """Works in one namespace: objects, batches, deletions, index changes, and all of it again."""

    def __init__(self, name: str, seed: int, *, text: bool) -> None:
        super().__init__(name, seed)
        self.text = text
        self.namespace_id = self.bucket_id = self.collection_id = ""
        self.items: dict[str, Item] = {}
        #: Contents of objects whose creation was sent and not acknowledged.
        self.adoptable: set[int] = set()
        self.submitted: list[Submitted] = []
        self.indexes: list[list[dict[str, str]]] = [[]]

    def headers(self) -> dict[str, str]:
        return {"X-Namespace": self.namespace_id} if self.namespace_id else {}

    def prepare(self, server: Server) -> None:
        """Make the namespace, its bucket and its collection."""
        with server.client() as client:
            self._client = client
            made = self.send(
                "POST",
                "/namespaces",
                {"namespace_name": self.name, "feature_extractors": [TEXT if self.text else PASSTHROUGH]},
            )
            self.namespace_id = made["namespace_id"]
            properties = {"body": {"type": "text", "required": True}, "long": {"type": "text"}}
            self.bucket_id = self.send(
                "POST", "/buckets", {"bucket_name": "texts", "bucket_schema": {"properties": properties}}
            )["bucket_id"]
            extractor: dict[str, Any] = {
                **(TEXT if self.text else PASSTHROUGH),
                "field_passthrough": [{"source_path": "metadata.n"}, {"source_path": "metadata.word"}],
            }
            if self.text:
                extractor["input_mappings"] = {"text": "body"}
            self.collection_id = self.send(
                "POST",
                "/collections",
                {
                    "collection_name": "texts",
                    "source": {"type": "bucket", "bucket_ids": [self.bucket_id]},
                    "feature_extractor": extractor,
                },
            )["collection_id"]

    # --- acting ------------------------------------------------------------------------------------

    def act(self, server: Server, client: httpx.Client) -> None:
        acts: list[tuple[Callable[[], None], int]] = [
            (self._add, 5),
            (self._replace, 3),
            (self._ingest_again, 3),
            (self._delete_object, 2),
            (self._delete_document, 2),
            (self._mark_document, 4),
            (self._change_indexes, 1),
        ]
        (act,) = self.rng.choices([act for act, _ in acts], [weight for _, weight in acts])
        act()

    def _content(self) -> tuple[int, dict[str, Any]]:
        number = next(_numbers)
        words = self.rng.choices(WORDS, k=8)
        blobs = [{"property": "body", "type": "text", "data": " ".join(words)}]
        if not self.text and number % 8 == 0:
            blobs.append({"property": "long", "type": "text", "data": f"{number} {_LONG}"})
        return number, {"blobs": blobs, "metadata": {"n": number, "word": words[0]}}

    def _add(self) -> None:
        made = [self._content() for _ in range(self.rng.choice([1, 1, 3, 6, 12]))]
        self.adoptable |= {number for number, _ in made}
        if len(made) == 1:
            self._add_one(*made[0])
            return
        answer = self.send(
            "POST", f"/buckets/{self.bucket_id}/objects/batch", {"objects": [body for _, body in made]}
        )
        assert answer["failed_count"] == 0, answer
        for result in answer["succeeded"]:
            number = made[result["object_index"]][0]
            self.adoptable.discard(number)
            self.items[result["object_id"]] = Item({number}, recent={number})
        self._ingest([result["object_id"] for result in answer["succeeded"]])

    def _add_one(self, number: int, body: dict[str, Any]) -> None:
        object_id = self.send("POST", f"/buckets/{self.bucket_id}/objects", body)["object_id"]
        self.adoptable.discard(number)
        self.items[object_id] = Item({number}, recent={number})
        self._ingest([object_id])

    def _ingest(self, object_ids: list[str]) -> None:
        batch = self.send("POST", f"/buckets/{self.bucket_id}/batches", {"object_ids": object_ids})
        told = Submitted(
            batch["batch_id"],
            False,
            {
                object_id: (frozenset(self.items[object_id].contents), self.items[object_id].changes)
                for object_id in object_ids
            },
        )
        for object_id in object_ids:
            self.items[object_id].in_batch = True
        self.submitted.append(told)
        self.send("POST", f"/buckets/{self.bucket_id}/batches/{told.batch_id}/submit", {})
        told.acknowledged = True

    def _some(self, count: int, condition: Callable[[Item], bool]) -> list[str]:
        fitting = [object_id for object_id, item in self.items.items() if item.exists and condition(item)]
        return self.rng.sample(fitting, min(count, len(fitting)))

    def _replace(self) -> None:
        for object_id in self._some(3, lambda item: len(item.contents) == 1):
            item = self.items[object_id]
            number, body = self._content()
            item.to(number)
            method = self.rng.choice(["PUT", "PATCH"])
            self.send(method, f"/buckets/{self.bucket_id}/objects/{object_id}", body)
            item.contents = {number}

    def _ingest_again(self) -> None:
        chosen = self._some(20, lambda item: True)
        if chosen:
            self._ingest(chosen)

    def _delete_object(self) -> None:
        for object_id in self._some(self.rng.randint(1, 4), lambda item: True):
            item = self.items[object_id]
            item.to(None)
            self.send("DELETE", f"/buckets/{self.bucket_id}/objects/{object_id}", good=(204,))
            item.contents = {None}

    def _sure_documents(self) -> Iterator[tuple[Item, str]]:
        """Yield up to two objects whose document is there, with the path of that."""
        sure = self._some(
            2, lambda item: not item.in_batch and len(item.document) == 1 and None not in item.document
        )
        for object_id in sure:
            filters = {"field": "root_object_id", "operator": "eq", "value": object_id}
            base = f"/collections/{self.collection_id}/documents"
            found = self.send("POST", f"{base}/list", {"filters": filters})["results"]
            assert len(found) == 1, f"{object_id} has {len(found)} documents"
            yield self.items[object_id], f"{base}/{found[0]['document_id']}"

    def _delete_document(self) -> None:
        for item, path in self._sure_documents():
            item.document.add(None)
            item.mark.add(None)
            self.send("DELETE", path)
            item.document, item.mark = {None}, {None}

    def _mark_document(self) -> None:
        for item, path in self._sure_documents():
            mark = next(_numbers)
            item.mark.add(mark)
            self.send("PATCH", path, {"mark": mark})
            item.mark = {mark}

    def _change_indexes(self) -> None:
        wanted = [dict(index) for index in _INDEXES if self.rng.random() < 0.5]
        self.indexes.append(wanted)
        self.send("PATCH", f"/namespaces/{self.namespace_id}", {"payload_indexes": wanted})
        self.indexes = [wanted]

    # --- settling ----------------------------------------------------------------------------------

    def settle(self, server: Server) -> None:
        with server.client() as client:
            self._client = client
            stored = {
                found["object_id"]: found["metadata"]["n"]
                for found in listed(client, self.namespace_id, f"/v1/buckets/{self.bucket_id}/objects/list")
            }
            self._settle_objects(stored)
            for told in self.submitted:
                self._settle_batch(told)
            self.submitted = []
            shown: dict[str, list[int]] = {}
            marks: dict[str, int | None] = {}
            path = f"/v1/collections/{self.collection_id}/documents/list"
            for document in listed(client, self.namespace_id, path):
                shown.setdefault(document["root_object_id"], []).append(document["metadata"]["n"])
                marks[document["root_object_id"]] = document.get("mark")
            self._settle_documents(stored, shown)
            self._settle_marks(marks)
            said = client.get(f"/v1/namespaces/{self.namespace_id}").raise_for_status().json()
        now = sorted(
            index["field_name"] for index in said["payload_indexes"] if "metadata." in index["field_name"]
        )
        possible = [sorted(index["field_name"] for index in wanted) for wanted in self.indexes]
        assert now in possible, f"payload indexes {now}, of {possible}"
        self.indexes = [[dict(i) for i in _INDEXES if i["field_name"] in now]]

    def _settle_objects(self, stored: dict[str, int]) -> None:
        for object_id, number in stored.items():
            if object_id not in self.items:
                assert number in self.adoptable, f"object {object_id} came from nowhere"
                self.items[object_id] = Item({number})
        self.adoptable = set()
        for object_id, item in self.items.items():
            found = stored.get(object_id)
            assert found in item.contents, f"object {object_id} is {found}, of {item.contents}"
            item.contents = {found}
            item.recent.add(found)

    def _settle_batch(self, told: Submitted) -> None:
        batch = self.send("GET", f"/buckets/{self.bucket_id}/batches/{told.batch_id}")
        if batch["status"] == "DRAFT":
            assert not told.acknowledged, f"the submission of {told.batch_id} was forgotten"
            return
        assert batch["status"] == "COMPLETED", batch
        for object_id, (contents, changes) in told.objects.items():
            item = self.items[object_id]
            if item.changes == changes and len(contents) == 1:
                item.document = set(contents)
            else:
                # It was changed since: the batch met it before or after.
                item.document |= contents | item.recent

    def _settle_marks(self, marks: dict[str, int | None]) -> None:
        for object_id, item in self.items.items():
            found = marks.get(object_id)
            assert found in item.mark or object_id not in marks, f"{object_id} has {found}, of {item.mark}"
            item.mark = {found}

    def _settle_documents(self, stored: dict[str, int], shown: dict[str, list[int]]) -> None:
        for object_id, numbers in shown.items():
            assert object_id in self.items, f"a document of {object_id} came from nowhere"
            assert len(numbers) == 1, f"object {object_id} has {len(numbers)} documents"
        for object_id, item in self.items.items():
            found = shown.get(object_id, [None])[0]
            if object_id not in stored:
                assert found is None, f"{object_id} was deleted, its document is there"
            else:
                assert found in item.document, f"the document of {object_id} is {found}, of {item.document}"
            item.document = {found}
            item.recent = set(item.contents)
            item.changes, item.in_batch = 0, False
        for object_id in [object_id for object_id, item in self.items.items() if not item.exists]:
            del self.items[object_id]


class Churner(Actor):
    """Makes namespaces with something in them, and deletes them."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, seed)
        #: By name: the id if known, and whether it may be there and may be gone.
        self.made: dict[str, tuple[str | None, set[bool]]] = {}
        self._inside = ""

    def headers(self) -> dict[str, str]:
        return {"X-Namespace": self._inside} if self._inside else {}

    def act(self, server: Server, client: httpx.Client) -> None:
        if len(self.made) < MOST_NAMESPACES and self.rng.random() < 0.5:
            self._make()
        elif self.made:
            self._delete(self.rng.choice(sorted(self.made)))

    def _body(self, name: str) -> dict[str, Any]:
        return {"namespace_name": name, "feature_extractors": [PASSTHROUGH]}

    def _make(self) -> None:
        self._inside = ""
        name = f"{self.name}-{next(_numbers)}"
        self.made[name] = None, {True, False}
        self._inside = namespace_id = self._create(name)
        self.made[name] = namespace_id, {True}
        bucket = self.send(
            "POST",
            "/buckets",
            {"bucket_name": "inside", "bucket_schema": {"properties": {"body": {"type": "text"}}}},
        )["bucket_id"]
        self.send(
            "POST",
            "/collections",
            {
                "collection_name": "inside",
                "source": {"type": "bucket", "bucket_ids": [bucket]},
                "feature_extractor": PASSTHROUGH,
            },
        )
        texts = [f"{self.rng.random()} {_LONG if n == 0 else ''}" for n in range(3)]
        answer = self.send(
            "POST",
            f"/buckets/{bucket}/objects/batch",
            {"objects": [{"blobs": [{"property": "body", "type": "text", "data": t}]} for t in texts]},
        )
        ids = [result["object_id"] for result in answer["succeeded"]]
        batch = self.send("POST", f"/buckets/{bucket}/batches", {"object_ids": ids})["batch_id"]
        self.send("POST", f"/buckets/{bucket}/batches/{batch}/submit", {})

    def _create(self, name: str) -> str:
        """Create a namespace under an idempotency key that is its name."""
        assert self._client is not None
        self.sent += 1
        try:
            answer = self._client.post(
                "/v1/namespaces", json=self._body(name), headers={"Idempotency-Key": name}
            )
        except httpx.TransportError as error:
            raise Unanswered from error
        assert answer.status_code == 200, answer.text
        return str(answer.json()["namespace_id"])

    def _delete(self, name: str) -> None:
        self._inside = ""
        namespace_id, may_be_there = self.made[name]
        if namespace_id is None or may_be_there != {True}:
            return
        self.made[name] = namespace_id, {True, False}
        self.send("DELETE", f"/namespaces/{namespace_id}")
        del self.made[name]

    def settle(self, server: Server) -> None:
        self._inside = ""
        with server.client() as client:
            self._client = client
            listing = client.post(
                "/v1/namespaces/list",
                params={"limit": 1000},
                json={"filters": {"namespace_name": {"$regex": f"^{self.name}-"}}},
            )
            there: dict[str, list[str]] = {}
            for found in listing.raise_for_status().json()["results"]:
                there.setdefault(found["namespace_name"], []).append(found["namespace_id"])
            for name, (namespace_id, may_be_there) in list(self.made.items()):
                ids = there.get(name, [])
                assert (len(ids) == 1) in may_be_there, f"{name} is there {len(ids)} times, of {may_be_there}"
                if namespace_id is None:
                    # Its creation was not answered: sent again, it has had or has now its one effect.
                    again = self._create(name)
                    assert ids in ([], [again]), f"{name} was made twice"
                    self.made[name] = again, {True}
                elif not ids:
                    del self.made[name]
                else:
                    assert ids == [namespace_id]
                    self.made[name] = namespace_id, {True}
            assert there.keys() <= self.made.keys() | there.keys()
            strangers = there.keys() - self.made.keys()
            assert not strangers, f"namespaces that were deleted, or that nobody asked for: {strangers}"
