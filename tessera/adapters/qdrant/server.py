"""A Qdrant server or cluster behind the `Vectors` port, through the official client over HTTP.

One collection for each view, named by `View.view_id`; the user's `qdrant_collection` is an alias of it. The
durable mark lies in the collection's own metadata, so that it moves, is copied and is lost together with
what it speaks of. Writes wait until the server has applied them (``wait=true``).
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np

from tessera.adapters.qdrant.translate import Translator
from tessera.adapters.qdrant.view import (
    Bare,
    EngineIndex,
    LiveView,
    Point,
    Query,
    Record,
    Standing,
    Steps,
    Unsteady,
    finish,
    sparse_recipe,
)
from tessera.errors import AlreadyExistsError, QdrantError, QdrantRefusedError
from tessera.filters import Filter
from tessera.ports import (
    Entry,
    Fusion,
    Hit,
    IndexReport,
    Mark,
    Page,
    PageResult,
    Payload,
    Search,
    View,
    ViewDamaged,
    ViewLost,
)

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 3.0
CALL_TIMEOUT_S: Final = 10
#: Questions about collections are small: a server that does not answer one by then is as good as down.
QUESTION_TIMEOUT_S: Final = 5.0
#: Building a payload index over many documents is waited for this long.
INDEX_TIMEOUT_S: Final = 600
#: The first version that keeps metadata of collections, and those that match prefixes and substrings.
OLDEST_SERVER, PREFIXES_SINCE, SUBSTRINGS_SINCE = (1, 16), (1, 19), (1, 20)
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
            if known is not None and known.live.view != view:  # its key or its alias is another now
                del self._views[view.view_id]
                known = None
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
        with self._using(view) as opened, opened.writing:
            return finish(opened.live.apply(entries))

    def apply_next(self, view: View, entry: Entry) -> Mark | None:
        """Refuse: requests to a server are not queued."""
        return None

    def flush(self, view: View) -> Mark:
        """Move the durable mark: what the server acknowledged is in its own log already."""
        with self._using(view) as opened, opened.writing:
            opened.live.flush()
            opened.engine.write_standing(opened.live.standing)
            return opened.live.mark(durable=True)

    def search(self, view: View, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer several searches in one request."""
        return self._read(view, lambda live: live.search(searches))

    def ranked(self, view: View, searches: Sequence[Search], fusion: Fusion) -> list[Hit]:
        """Answer several searches as one ranking, in one request."""
        return self._read(view, lambda live: live.ranked(searches, fusion))

    def page(self, view: View, page: Page) -> PageResult:
        """List documents, exactly."""
        return self._read(view, lambda live: live.page(page))

    def count(self, view: View, filter: Filter | None = None) -> int:
        """Count documents, exactly."""
        return self._read(view, lambda live: live.count(filter))

    def get(self, view: View, document_ids: Sequence[str], with_vectors: bool = False) -> list[Hit]:
        """Fetch by id, in the order of `document_ids`; absent ones are left out."""
        with self._using(view) as opened:
            return opened.live.get(document_ids, with_vectors)

    def indexes(self, view: View) -> list[IndexReport]:
        """Ask the server for its payload indexes, shadows left out."""
        with self._using(view) as opened:
            return opened.live.indexes()

    def release(self, view: View) -> None:
        """Move the mark and forget the view; its documents are the server's to keep."""
        with self._lock:
            opened = self._views.pop(view.view_id, None)
        if opened is not None:
            # A collection that another server has dropped meanwhile takes no mark; the others still get theirs.
            with contextlib.suppress(QdrantError, ViewDamaged), opened.writing:
                opened.engine.write_standing(opened.live.standing)

    def drop(self, view: View) -> None:
        """Remove the view's own collection, and with it its aliases; never a foreign one."""
        with self._lock:
            self._views.pop(view.view_id, None)
        ServerEngine(self._client(view), view).drop()

    def builds_apart(self, view: View) -> bool:
        """Say no: the server builds graphs by itself, and its indexes beside its other work."""
        return False

    def begin(self, view: View, *, graph: bool, apart: bool) -> Mark:
        """Make the view's collection, without its alias until `settle`."""
        self.drop(view)
        return self.open(replace(view, alias=None))

    def optimize(self, view: View) -> Mark:
        """Do nothing: the server builds graphs by itself."""
        with self._using(view) as opened:
            return opened.live.mark()

    def settle(self, view: View) -> Mark:
        """Move the durable mark, then let the alias lead here."""
        mark = self.flush(view)
        self.open(view)
        return mark

    def close(self) -> None:
        """Move every mark, then close the connections."""
        with self._lock:
            views, self._views = list(self._views.values()), {}
            clients, self._clients = list(self._clients.values()), {}
        for opened in views:
            # A collection that another server has dropped meanwhile takes no mark; the others still get theirs.
            with contextlib.suppress(QdrantError, ViewDamaged), opened.writing:
                opened.engine.write_standing(opened.live.standing)
        for client in clients:
            client.close()

    def _read(self, view: View, read: Callable[[LiveView], Steps[T]]) -> T:
        """Read beside writers; when changes of indexes keep overtaking the read, hold writers up for it."""
        with self._using(view) as opened:
            try:
                return finish(read(opened.live))
            except Unsteady:
                with opened.writing:
                    return finish(read(opened.live))

    @contextlib.contextmanager
    def _using(self, view: View) -> Iterator[_Open]:
        """Give the open view, and forget it when it turns out to be damaged."""
        with self._lock:
            opened = self._views.get(view.view_id)
        if opened is None:
            raise ViewLost(f"view {view.view_id} is not open")
        try:
            yield opened
        except ViewDamaged:
            with self._lock:
                self._views.pop(view.view_id, None)
            raise

    def _client(self, view: View) -> QdrantClient:
        key = (view.location, view.secret)
        with self._lock:
            client = self._clients.get(key)
            if client is None:
                client = self._clients[key] = _connect(view)
        return client


def _connect(view: View) -> QdrantClient:
    """Return a client; nothing is sent yet."""
    from qdrant_client import QdrantClient

    def limit(request: httpx.Request) -> None:
        # The client's own limit is one for all calls and all their parts.
        request.extensions["timeout"]["connect"] = CONNECT_TIMEOUT_S
        if request.method == "GET":
            request.extensions["timeout"]["read"] = QUESTION_TIMEOUT_S

    with warnings.catch_warnings():
        # A key over plain HTTP is the operator's choice, and a warning would name no remedy.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=view.location,
            # Without a port in the URL the client would take 6333 even for https.
            port=_port(view.location),
            api_key=view.secret,
            timeout=CALL_TIMEOUT_S,
            check_compatibility=False,
            follow_redirects=False,
            trust_env=False,
            event_hooks={"request": [limit]},
        )


class _Open:
    """A view in use. Writes go one at a time; reads need no lock."""

    __slots__ = ("engine", "live", "writing")

    def __init__(self, live: LiveView, engine: ServerEngine) -> None:
        self.live = live
        self.engine = engine
        self.writing = threading.Lock()


class ServerEngine:
    """One collection on a server, as `tessera.adapters.qdrant.view` wants an engine."""

    write_slice = 100
    # Others write between two requests: a document that was found is read in the same one.
    is_still = False

    def __init__(self, client: QdrantClient, view: View) -> None:
        from qdrant_client import models

        self._client = client
        self._view = view
        self._name = view.view_id
        self._m = models
        self.translator = Translator(models)  # of a current server, until `open` knows better

    # --- the collection ----------------------------------------------------------------------------

    def open(self) -> Standing:
        """Return where the collection stands; make it when it does not exist."""
        self._learn_version()
        with self._calling():
            exists = self._client.collection_exists(self._name)
        if not exists:
            return self._create()
        stored = self._stored()
        if stored is None:
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
        if standing.sparse != sparse_recipe(self._view.sparse):
            raise ViewDamaged(self._name, "it was made without its keyword index, by an earlier release")
        # Writes after the mark may be there already; from here every change keeps this number exact.
        standing.document_count = self.count(None)
        self._set_alias(self._alias_target())
        return standing

    def _learn_version(self) -> None:
        """Refuse a server that is too old, and do without what this one cannot do."""
        with self._calling():
            stated = self._client.info().version
        numbers = re.match(r"(\d+)\.(\d+)", stated)
        if numbers is None:
            return  # a build of its own; what it cannot do, it will say
        version = (int(numbers[1]), int(numbers[2]))
        if version < OLDEST_SERVER:
            where = _shown(self._view.location)
            raise QdrantRefusedError(
                f"The Qdrant server at {where} is version {stated}, too old: it keeps no metadata of collections. "
                "Use Qdrant 1.16 or newer.",
                details={"qdrant_url": where},
            )
        self.translator = Translator(
            self._m, prefixes=version >= PREFIXES_SINCE, substrings=version >= SUBSTRINGS_SINCE
        )

    def _create(self) -> Standing:
        target = self._alias_target()  # refused before anything is made
        standing = Standing(sparse=sparse_recipe(self._view.sparse))
        with self._calling():
            self._client.create_collection(
                self._name,
                vectors_config=self.translator.vector_params(self._view.vectors),
                sparse_vectors_config=self.translator.sparse_params(self._view.sparse) or None,
                metadata={METADATA_KEY: self._stated(standing)},
            )
        try:
            self._set_alias(target)
        except (QdrantError, AlreadyExistsError):
            # Nothing of ours is left behind; when even that fails, the next opening finds it empty and goes on.
            with contextlib.suppress(QdrantError), self._calling():
                self._client.delete_collection(self._name)
            raise
        return standing

    def _stored(self, *, ours: bool = False) -> dict[str, Any] | None:
        """Return what the collection's metadata says of this view, None when it is not ours."""
        with self._calling(ours=ours):
            metadata = self._client.get_collection(self._name).config.metadata or {}
        stored = metadata.get(METADATA_KEY)
        return stored if isinstance(stored, dict) and stored.get("view_id") == self._name else None

    def write_standing(self, standing: Standing) -> None:
        """Store how far the view has come, unless another server has brought it further."""
        stored = self._stored(ours=True)
        if stored is not None and stored.get("seq", 0) > standing.seq:
            return
        with self._calling(ours=True):
            self._client.update_collection(self._name, metadata={METADATA_KEY: self._stated(standing)})

    def drop(self) -> None:
        """Remove the collection if it is there and ours."""
        with self._calling():
            exists = self._client.collection_exists(self._name)
        if exists and self._stored() is not None:
            with self._calling():
                self._client.delete_collection(self._name)

    def _stated(self, standing: Standing) -> dict[str, Any]:
        return {"view_id": self._name, "vectors": self._stated_vectors(), **standing.to_json()}

    def _stated_vectors(self) -> list[list[Any]]:
        return [[vector.name, vector.dimensions, vector.distance] for vector in self._view.vectors]

    def _alias_target(self) -> str | None:
        """Return where the alias leads now, None when it is free; refuse one that is not this namespace's."""
        alias = self._view.alias
        if alias is None:
            return None
        with self._calling():
            found = self._client.get_aliases().aliases
            target = next((item.collection_name for item in found if item.alias_name == alias), None)
            taken = target is None and self._client.collection_exists(alias)
        # An alias of an earlier generation of this namespace is ours to move.
        if taken or (target is not None and not target.startswith(f"{self._view.namespace_id}-")):
            raise AlreadyExistsError(
                f"The Qdrant server at {_shown(self._view.location)} has a collection or alias {alias!r} that does "
                "not belong to this namespace. It is left as it is; choose another qdrant_collection.",
                details={"resource": "collection", "id": alias},
            )
        return target

    def _set_alias(self, target: str | None) -> None:
        """Let the alias, which leads to `target`, lead here; both steps are one for the server."""
        alias = self._view.alias
        if alias is None or target == self._name:
            return
        m = self._m
        operations: list[Any] = []
        if target is not None:
            operations.append(m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name=alias)))
        operations.append(
            m.CreateAliasOperation(create_alias=m.CreateAlias(collection_name=self._name, alias_name=alias))
        )
        with self._calling():
            self._client.update_collection_aliases(operations)

    # --- points ------------------------------------------------------------------------------------

    def upsert(self, points: Sequence[Point]) -> None:
        with self._calling(ours=True):
            self._client.upsert(
                self._name,
                [
                    self._m.PointStruct(id=p.point_id, vector=_listed(p.vectors), payload=p.payload)
                    for p in points
                ],
                wait=True,
            )

    def delete(self, point_ids: Sequence[str]) -> None:
        with self._calling(ours=True):
            self._client.delete(self._name, self._m.PointIdsList(points=list(point_ids)), wait=True)

    def set_payload(self, point_ids: Sequence[str], key: str | None, payload: Payload) -> None:
        with self._calling(ours=True):
            self._client.set_payload(self._name, payload, list(point_ids), key=key, wait=True)

    def overwrite_payloads(self, payloads: Mapping[str, Payload]) -> None:
        m = self._m
        operations = [
            m.OverwritePayloadOperation(overwrite_payload=m.SetPayload(payload=payload, points=[point_id]))
            for point_id, payload in payloads.items()
        ]
        with self._calling(ours=True):
            self._client.batch_update_points(self._name, operations, wait=True)

    def set_vectors(self, vectors: Mapping[str, Mapping[str, Any]]) -> None:
        points = [
            self._m.PointVectors(id=point_id, vector=dict(named)) for point_id, named in vectors.items()
        ]
        if points:
            with self._calling(ours=True):
                self._client.update_vectors(self._name, points, wait=True)

    def drop_vectors(self, point_ids: Sequence[str], name: str) -> None:
        if point_ids:
            with self._calling(ours=True):
                self._client.delete_vectors(self._name, [name], list(point_ids), wait=True)

    def scroll(
        self, filter: Any | None, start: str | None, limit: int, with_payload: bool, with_vectors: bool
    ) -> tuple[list[Record], str | None]:
        with self._calling(ours=True):
            found, following = self._client.scroll(
                self._name,
                scroll_filter=filter,
                limit=limit,
                offset=start,
                with_payload=with_payload,
                with_vectors=with_vectors,
            )
        return list(map(_record, found)), None if following is None else str(following)

    def query_batch(self, queries: Sequence[Query]) -> list[list[Record] | Bare]:
        m = self._m
        requests = [
            m.QueryRequest(
                query=query.vector
                if isinstance(query.vector, m.SparseVector)
                else np.asarray(query.vector, dtype=np.float32).tolist(),
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
        with self._calling(ours=True):
            answers = self._client.query_batch_points(self._name, requests)
        return [
            [Record(str(hit.id), hit.payload or {}, hit.score, _vectors(hit.vector)) for hit in answer.points]
            for answer in answers
        ]

    def count(self, filter: Any | None) -> int:
        with self._calling(ours=True):
            return int(self._client.count(self._name, count_filter=filter, exact=True).count)

    def retrieve(self, point_ids: Sequence[str], with_payload: bool, with_vectors: bool) -> list[Record]:
        with self._calling(ours=True):
            found = self._client.retrieve(
                self._name, list(point_ids), with_payload=with_payload, with_vectors=with_vectors
            )
        return list(map(_record, found))

    def existing(self, point_ids: Sequence[str]) -> int:
        return len(self.retrieve(point_ids, with_payload=False, with_vectors=False))

    def points(self) -> None:
        """Say nothing: what a server states of a collection is an estimate."""

    # --- payload indexes ---------------------------------------------------------------------------

    def create_index(self, path: str, params: Any) -> None:
        with self._calling(ours=True):
            self._client.create_payload_index(
                self._name, path, field_schema=params, wait=True, timeout=INDEX_TIMEOUT_S
            )

    def drop_index(self, path: str) -> None:
        with self._calling(ours=True):
            self._client.delete_payload_index(self._name, path, wait=True, timeout=INDEX_TIMEOUT_S)

    def index_info(self) -> dict[str, EngineIndex]:
        with self._calling(ours=True):
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
    def _calling(self, *, ours: bool = False) -> Iterator[None]:
        """Turn what the client raises into `QdrantError`, never with the key in it.

        With `ours` the collection must exist: that the server does not know it means `ViewDamaged`.
        """
        from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

        where = _shown(self._view.location)
        details = {"qdrant_url": where}
        try:
            yield
        except UnexpectedResponse as error:
            if ours and error.status_code == 404 and b"Collection" in error.content:
                raise ViewDamaged(self._name, f"its collection is gone from the server at {where}") from None
            if error.status_code in (401, 403):
                raise QdrantRefusedError(
                    f"The Qdrant server at {where} refused the key. Set the right qdrant_api_key.",
                    details=details,
                ) from None
            if error.status_code is not None and error.status_code < 500 and error.status_code != 429:
                answer = error.content[:300].decode(errors="replace")
                raise QdrantRefusedError(
                    f"The Qdrant server at {where} refused a request ({error.status_code} {error.reason_phrase}).",
                    details={**details, "answer": self._without_key(answer)},
                ) from None
            raise QdrantError(
                f"The Qdrant server at {where} failed ({error.status_code}).",
                details=details,
                retry_after_s=2,
            ) from None
        except ResourceExhaustedResponse as error:
            raise QdrantError(
                f"The Qdrant server at {where} has too much to do.",
                details=details,
                retry_after_s=error.retry_after_s,
            ) from None
        except ResponseHandlingException as error:
            raise QdrantError(
                f"The Qdrant server at {where} {_why(error.source)}.", details=details, retry_after_s=2
            ) from None
        except (ApiException, QdrantException, OSError, ValueError, AssertionError) as error:
            # The last two are the client's own when the answer is no JSON, or JSON without a result.
            raise QdrantError(
                f"The Qdrant server at {where} {_why(error)}.", details=details, retry_after_s=2
            ) from None

    def _without_key(self, text: str) -> str:
        return text.replace(self._view.secret, "…") if self._view.secret else text


def _why(error: BaseException) -> str:
    """Say in words why a call brought no answer."""
    match error:
        case httpx.ConnectTimeout():
            return f"did not take the connection within {CONNECT_TIMEOUT_S:g} s"
        case httpx.TimeoutException():
            return "did not answer in time"
        case httpx.ConnectError():
            return f"cannot be reached ({error})"
        case httpx.TransportError():
            return f"broke the connection ({type(error).__name__})"
    return f"answered with something that is not Qdrant's ({type(error).__name__})"


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 6333)


def _shown(url: str) -> str:
    """Return `url` without user, password and query, which may be secret."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"


def _record(record: Any) -> Record:
    return Record(str(record.id), record.payload, None, _vectors(record.vector))


def _vectors(vector: Any) -> dict[str, Any]:
    return vector if isinstance(vector, dict) else {}


def _listed(vectors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: v.tolist() if isinstance(v, memoryview) else v for name, v in vectors.items()}
