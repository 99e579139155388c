"""A Qdrant server or cluster behind the `Vectors` port, through the official client over HTTP.

One collection for each view, named by `View.view_id`; the user's `qdrant_collection` is an alias of it. The
durable mark lies in the collection's own metadata, so that it moves, is copied and is lost together with
what it speaks of. Writes wait until the server has applied them (``wait=true``).
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpx
import numpy as np

from tessera.adapters.qdrant.translate import Translator
from tessera.adapters.qdrant.view import (
    EngineIndex,
    LiveView,
    Point,
    Query,
    Record,
    Standing,
    finish,
)
from tessera.errors import AlreadyExistsError, QdrantError, QdrantRefusedError
from tessera.filters import Filter
from tessera.ports import Entry, Hit, IndexReport, Mark, Page, PageResult, Payload, Search, View, ViewDamaged

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

logger = logging.getLogger("tessera.qdrant")

CONNECT_TIMEOUT_S: Final = 3.0
CALL_TIMEOUT_S: Final = 10
#: Key of the collection's metadata under which a view says whose it is and how far it has come.
METADATA_KEY: Final = "tessera"


class ServerVectors:
    """`Vectors` over Qdrant servers. `View.location` is the server's base URL, `View.secret` its key.

    Clients are kept per server. `max_scan_documents` bounds what a filter or a sort may look at without an
    index.
    """

    def __init__(self, *, max_scan_documents: int = 100_000) -> None:
        self._max_scan = max_scan_documents
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str | None], QdrantClient] = {}
        self._views: dict[str, _Open] = {}

    def open(self, view: View) -> Mark:
        """Find the view's collection, or make it with its alias, and tell how far it has come.

        Raises `AlreadyExistsError` when a collection or alias of that name is not ours (it is left as it is),
        `ViewDamaged` when ours cannot be trusted, `QdrantError` when the server cannot be reached.
        """
        with self._lock:
            known = self._views.get(view.view_id)
        if known is not None:
            return known.live.mark()
        client = self._client(view)
        engine = ServerEngine(client, view)
        standing = engine.open()
        live = LiveView(view, engine, engine.translator, standing, max_scan_documents=self._max_scan)
        with self._lock:
            opened = self._views.setdefault(view.view_id, _Open(live, engine))
        return opened.live.mark()

    def apply(self, view: View, entries: Sequence[Entry]) -> Mark:
        """Apply `entries` in order; each write waits for the server."""
        opened = self._opened(view)
        with opened.writing:
            return finish(opened.live.apply(entries))

    def flush(self, view: View) -> Mark:
        """Move the durable mark: what the server acknowledged is in its own log already."""
        opened = self._opened(view)
        with opened.writing:
            opened.live.flush()
            opened.engine.write_standing(opened.live.standing)
            return opened.live.mark(durable=True)

    def search(self, view: View, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer several searches in one request."""
        return finish(self._opened(view).live.search(searches))

    def page(self, view: View, page: Page) -> PageResult:
        """List documents, exactly."""
        return finish(self._opened(view).live.page(page))

    def count(self, view: View, filter: Filter | None = None) -> int:
        """Count documents, exactly."""
        return finish(self._opened(view).live.count(filter))

    def get(self, view: View, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """Fetch by id."""
        return self._opened(view).live.get(document_ids, with_vectors)

    def indexes(self, view: View) -> list[IndexReport]:
        """Ask the server for its payload indexes."""
        return self._opened(view).live.indexes()

    def drop(self, view: View) -> None:
        """Remove the view's own collection, and with it its aliases; never a foreign one."""
        with self._lock:
            self._views.pop(view.view_id, None)
        ServerEngine(self._client(view), view).drop()

    def close(self) -> None:
        """Move every mark, then close the connections."""
        with self._lock:
            views, self._views = list(self._views.values()), {}
            clients, self._clients = list(self._clients.values()), {}
        for opened in views:
            with contextlib.suppress(QdrantError), opened.writing:
                opened.engine.write_standing(opened.live.standing)
        for client in clients:
            client.close()

    def _opened(self, view: View) -> _Open:
        with self._lock:
            opened = self._views.get(view.view_id)
        if opened is None:
            self.open(view)
            opened = self._views[view.view_id]
        return opened

    def _client(self, view: View) -> QdrantClient:
        key = (view.location, view.secret)
        with self._lock:
            client = self._clients.get(key)
        if client is None:
            _check_reachable(view.location)
            from qdrant_client import QdrantClient

            client = QdrantClient(
                url=view.location,
                # Without a port in the URL the client would take 6333 even for https.
                port=urlsplit(view.location).port or (443 if view.location.startswith("https") else 6333),
                api_key=view.secret,
                timeout=CALL_TIMEOUT_S,
                check_compatibility=False,
                follow_redirects=False,
            )
            with self._lock:
                client = self._clients.setdefault(key, client)
        return client


class _Open:
    """A view in use. Writes go one at a time; reads need no lock."""

    __slots__ = ("engine", "live", "writing")

    def __init__(self, live: LiveView, engine: ServerEngine) -> None:
        self.live = live
        self.engine = engine
        self.writing = threading.Lock()


class ServerEngine:
    """One collection on a server, as `tessera.adapters.qdrant.view` wants an engine."""

    def __init__(self, client: QdrantClient, view: View) -> None:
        from qdrant_client import models

        self._client = client
        self._view = view
        self._name = view.view_id
        self._m = models
        self.translator = Translator(models)

    # --- the collection ----------------------------------------------------------------------------

    def open(self) -> Standing:
        """Return where the collection stands; make it when it does not exist."""
        with self._calling():
            exists = self._client.collection_exists(self._name)
        if not exists:
            self._refuse_foreign_alias()
            standing = Standing()
            with self._calling():
                self._client.create_collection(
                    self._name,
                    vectors_config=self.translator.vector_params(self._view.vectors),
                    metadata={METADATA_KEY: self._stated(standing)},
                )
            self._set_alias()
            return standing
        with self._calling():
            metadata = self._client.get_collection(self._name).config.metadata or {}
        stored = metadata.get(METADATA_KEY)
        if not isinstance(stored, dict) or stored.get("view_id") != self._name:
            raise AlreadyExistsError(
                f"The Qdrant server at {_shown(self._view.location)} has a collection {self._name!r} that Tessera "
                "did not make. It is left as it is; rename or remove it there.",
                details={"resource": "collection", "id": self._name},
            )
        if stored.get("vectors") != self._stated_vectors():
            raise ViewDamaged(self._name, "it was made for other vectors")
        try:
            standing = Standing.from_json(stored)
        except (ValueError, TypeError, KeyError) as error:
            raise ViewDamaged(self._name, f"its mark cannot be read ({error})") from error
        # Writes after the mark may be there already; from here every change keeps this number exact.
        standing.document_count = self.count(None)
        self._set_alias()
        return standing

    def write_standing(self, standing: Standing) -> None:
        """Store how far the view has come."""
        with self._calling():
            self._client.update_collection(self._name, metadata={METADATA_KEY: self._stated(standing)})

    def drop(self) -> None:
        """Remove the collection if it is there and ours."""
        with self._calling():
            if not self._client.collection_exists(self._name):
                return
            metadata = self._client.get_collection(self._name).config.metadata or {}
            if (metadata.get(METADATA_KEY) or {}).get("view_id") == self._name:
                self._client.delete_collection(self._name)

    def _stated(self, standing: Standing) -> dict[str, Any]:
        return {"view_id": self._name, "vectors": self._stated_vectors(), **standing.to_json()}

    def _stated_vectors(self) -> list[list[Any]]:
        return [[vector.name, vector.dimensions, vector.distance] for vector in self._view.vectors]

    def _refuse_foreign_alias(self) -> None:
        alias = self._view.alias
        if alias is None:
            return
        with self._calling():
            taken = self._client.collection_exists(alias)
        if taken and self._alias_target(alias) is None:
            raise self._foreign(alias)

    def _set_alias(self) -> None:
        alias = self._view.alias
        if alias is None:
            return
        target = self._alias_target(alias)
        if target == self._name:
            return
        # An alias of an earlier generation of this namespace is ours to move; any other is foreign.
        if target is not None and not target.startswith(f"{self._view.namespace_id}-"):
            raise self._foreign(alias)
        m = self._m
        operations: list[Any] = []
        if target is not None:
            operations.append(m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=alias)))
        operations.append(
            m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=self._name, alias_name=alias))
        )
        with self._calling():
            self._client.update_collection_aliases(operations)

    def _alias_target(self, alias: str) -> str | None:
        with self._calling():
            found = self._client.get_aliases().aliases
        return next((item.collection_name for item in found if item.alias_name == alias), None)

    def _foreign(self, alias: str) -> AlreadyExistsError:
        return AlreadyExistsError(
            f"The Qdrant server at {_shown(self._view.location)} has a collection or alias {alias!r} that does not "
            "belong to this namespace. It is left as it is; choose another qdrant_collection.",
            details={"resource": "collection", "id": alias},
        )

    # --- points ------------------------------------------------------------------------------------

    def upsert(self, points: Sequence[Point]) -> None:
        with self._calling():
            self._client.upsert(
                self._name,
                [
                    self._m.PointStruct(id=p.point_id, vector=dict(p.vectors), payload=p.payload)
                    for p in points
                ],
                wait=True,
            )

    def delete(self, point_ids: Sequence[str]) -> None:
        with self._calling():
            self._client.delete(self._name, self._m.PointIdsList(points=list(point_ids)), wait=True)

    def set_payload(self, point_ids: Sequence[str], key: str, payload: Payload) -> None:
        with self._calling():
            self._client.set_payload(self._name, payload, list(point_ids), key=key, wait=True)

    def scroll(
        self, filter: Any | None, start: str | None, limit: int, with_payload: bool, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        with self._calling():
            found, following = self._client.scroll(
                self._name,
                scroll_filter=filter,
                limit=limit,
                offset=start,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
        return list(map(_record, found)), None if following is None else str(following)

    def query_batch(self, queries: Sequence[Query]) -> list[list[Record]]:
        m = self._m
        requests = [
            m.QueryRequest(
                query=np.asarray(query.vector, dtype=np.float32).tolist(),
                using=query.vector_name,
                limit=query.limit,
                offset=query.offset,
                filter=query.filter,
                with_payload=True,
                with_vector=query.with_vectors,
                params=m.SearchParams(hnsw_ef=query.ef, exact=query.exact),
            )
            for query in queries
        ]
        with self._calling():
            answers = self._client.query_batch_points(self._name, requests)
        return [
            [Record(str(hit.id), hit.payload or {}, hit.score, _vectors(hit.vector)) for hit in answer.points]
            for answer in answers
        ]

    def count(self, filter: Any | None) -> int:
        with self._calling():
            return int(self._client.count(self._name, count_filter=filter, exact=True).count)

    def retrieve(self, point_ids: Sequence[str], with_payload: bool, with_vectors: bool) -> list[Record]:
        with self._calling():
            found = self._client.retrieve(
                self._name, list(point_ids), with_payload=with_payload, with_vectors=with_vectors
            )
        return list(map(_record, found))

    # --- payload indexes ---------------------------------------------------------------------------

    def create_index(self, path: str, params: Any) -> None:
        with self._calling():
            self._client.create_payload_index(self._name, path, field_schema=params, wait=True)

    def drop_index(self, path: str) -> None:
        with self._calling():
            self._client.delete_payload_index(self._name, path, wait=True)

    def index_info(self) -> dict[str, EngineIndex]:
        with self._calling():
            schema = self._client.get_collection(self._name).payload_schema
        indexes = {}
        for path, stated in schema.items():
            type_name, params = self.translator.index_report(stated.data_type, stated.params)
            indexes[path] = EngineIndex(type_name, params, stated.points)
        return indexes

    def flush(self) -> None:
        """Do nothing: the server logs every write before it acknowledges it."""

    # --- errors ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        """Turn what the client raises into `QdrantError`; never with the key in it."""
        from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

        where = _shown(self._view.location)
        try:
            yield
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise QdrantRefusedError(
                    f"The Qdrant server at {where} refused the key. Set the right qdrant_api_key.",
                    details={"qdrant_url": where},
                ) from None
            if error.status_code is not None and 400 <= error.status_code < 500:
                raise QdrantRefusedError(
                    f"The Qdrant server at {where} refused a request ({error.status_code} {error.reason_phrase}).",
                    details={"qdrant_url": where, "answer": error.content[:300].decode(errors="replace")},
                ) from None
            raise QdrantError(
                f"The Qdrant server at {where} failed ({error.status_code}).",
                details={"qdrant_url": where},
                retry_after_s=2,
            ) from None
        except (ApiException, ResponseHandlingException, httpx.HTTPError, OSError) as error:
            raise QdrantError(
                f"The Qdrant server at {where} did not answer ({type(error).__name__}).",
                details={"qdrant_url": where},
                retry_after_s=2,
            ) from None


def _check_reachable(url: str) -> None:
    """Try to connect for at most 3 s: the client's own time limit covers a whole call."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 6333)
    try:
        with socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S):
            return
    except OSError as error:
        raise QdrantError(
            f"The Qdrant server at {_shown(url)} cannot be reached: {error.strerror or error}.",
            details={"qdrant_url": _shown(url)},
            retry_after_s=5,
        ) from None


def _shown(url: str) -> str:
    """Return `url` without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _record(record: Any) -> Record:
    return Record(str(record.id), record.payload, None, _vectors(record.vector))


def _vectors(vector: Any) -> dict[str, Any]:
    return vector if isinstance(vector, dict) else {}
