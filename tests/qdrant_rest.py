"""A stand-in for a Qdrant server: the part of its REST API that Tessera uses, over real Edge shards.

So the official client's own wire code is exercised in every run, and the engine behind it is the real
one. ``python -m tests.qdrant_rest --port 0 --dir D [--api-key K]`` prints its URL and serves on loopback.
"""

from __future__ import annotations

import argparse
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
from qdrant_client import models


class Refused(Exception):
    """A request that the server does not carry out."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Collection:
    """A shard with what Qdrant keeps beside it."""

    def __init__(self, directory: Path, request: models.CreateCollection) -> None:
        vectors = request.vectors or {}
        assert isinstance(vectors, dict), "only named vectors are served"
        self.request = request
        self.metadata: dict[str, Any] = dict(request.metadata or {})
        self.lock = threading.Lock()
        self.shard = edge.EdgeShard.create(
            str(directory),
            edge.EdgeConfig(
                vectors={
                    name: edge.EdgeVectorParams(
                        size=params.size, distance=getattr(edge.Distance, params.distance.value)
                    )
                    for name, params in vectors.items()
                }
                or None,
                sparse_vectors={
                    name: edge.EdgeSparseVectorParams(
                        modifier=edge.Modifier.Idf if params.modifier == models.Modifier.IDF else None
                    )
                    for name, params in (request.sparse_vectors or {}).items()
                }
                or (None if vectors else {"none": edge.EdgeSparseVectorParams()}),
                max_search_threads=1,
            ),
        )

    def info(self) -> dict[str, Any]:
        """The answer of GET /collections/{name}."""
        info = self.shard.info()
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": info.indexed_vectors_count,
            "points_count": self.shard.count(edge.CountRequest(exact=True)),
            "segments_count": info.segments_count,
            "config": {
                "params": {
                    "vectors": {
                        name: params.model_dump(mode="json", exclude_none=True)
                        for name, params in (self.request.vectors or {}).items()  # type: ignore[union-attr]
                    }
                },
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                },
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
                "metadata": self.metadata,
            },
            "payload_schema": {
                path: {
                    "data_type": word(stated.data_type),
                    "params": stated_params(stated.data_type, stated.params),
                    "points": stated.points,
                }
                for path, stated in info.payload_schema.items()
            },
        }


class Store:
    """All collections and aliases of one server."""

    def __init__(self, directory: Path, api_key: str | None = None) -> None:
        self.directory = directory
        self.api_key = api_key
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}
        #: Of the server whose engine Edge 0.9.0 is.
        self.version = "1.20.0"
        self.made = 0
        self.lock = threading.Lock()
        #: What was asked (method, path with query, body) from when on a test sets it to a list.
        self.requests: list[tuple[str, str, Any]] | None = None

    def __getitem__(self, name: str) -> Collection:
        found = self.collections.get(self.aliases.get(name, name))
        if found is None:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: dict[str, Any]) -> bool:
        with self.lock:
            if name in self.collections or name in self.aliases:
                raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
            self.made += 1
            directory = self.directory / f"{self.made}"
            directory.mkdir(parents=True)
            self.collections[name] = Collection(directory, models.CreateCollection.model_validate(body))
        return True

    def delete(self, name: str) -> bool:
        with self.lock:
            gone = self.collections.pop(name, None)
            self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}
        if gone is not None:
            gone.shard.close()
        return gone is not None

    def change_aliases(self, body: dict[str, Any]) -> bool:
        with self.lock:
            for action in body["actions"]:
                if "create_alias" in action:
                    wanted = action["create_alias"]
                    if wanted["alias_name"] in self.collections:
                        raise Refused(409, f"Collection with the name {wanted['alias_name']} exists")
                    if wanted["collection_name"] not in self.collections:
                        raise Refused(404, f"Collection `{wanted['collection_name']}` doesn't exist!")
                    self.aliases[wanted["alias_name"]] = wanted["collection_name"]
                elif "delete_alias" in action:
                    self.aliases.pop(action["delete_alias"]["alias_name"], None)
        return True


# --- from the wire to Edge -----------------------------------------------------------------------------


def word(value: Any) -> str:
    """``PayloadSchemaType.Keyword`` → ``keyword``."""
    return str(value).rsplit(".", 1)[-1].lower()


PARAMETERS = {
    "keyword": ("is_tenant", "prefix"),
    "integer": ("lookup", "range"),
    "uuid": ("is_tenant",),
    "text": ("tokenizer", "min_token_len", "max_token_len", "lowercase"),
}


def stated_params(data_type: Any, params: Any) -> dict[str, Any]:
    stated: dict[str, Any] = {"type": word(data_type)}
    for name in PARAMETERS.get(word(data_type), ()):
        value = getattr(params, name, None)
        if value is not None:
            stated[name] = word(value) if name == "tokenizer" else value
    return stated


def index_params(schema: Any) -> Any:
    if isinstance(schema, str):
        schema = {"type": schema}
    kind = schema["type"]
    known = {name: schema[name] for name in PARAMETERS.get(kind, ()) if schema.get(name) is not None}
    if "tokenizer" in known:
        known["tokenizer"] = getattr(edge.TokenizerType, known["tokenizer"].capitalize())
    return getattr(edge, f"{kind.capitalize()}IndexParams")(**known)


def edge_filter(given: models.Filter | None) -> edge.Filter | None:
    if given is None:
        return None

    def several(conditions: Any) -> list[Any] | None:
        if conditions is None:
            return None
        return [edge_condition(one) for one in (conditions if isinstance(conditions, list) else [conditions])]

    return edge.Filter(
        must=several(given.must), should=several(given.should), must_not=several(given.must_not)
    )


def edge_condition(given: Any) -> Any:
    match given:
        case models.Filter():
            return edge_filter(given)
        case models.FieldCondition():
            return edge_field(given)
        case models.IsEmptyCondition():
            return edge.IsEmptyCondition(given.is_empty.key)
        case models.IsNullCondition():
            return edge.IsNullCondition(given.is_null.key)
        case models.HasIdCondition():
            return edge.HasIdCondition({str(point_id) for point_id in given.has_id})
    raise Refused(400, f"condition {type(given).__name__} is not served")


def edge_field(given: models.FieldCondition) -> edge.FieldCondition:
    tests: dict[str, Any] = {}
    if given.match is not None:
        name = type(given.match).__name__
        (value,) = given.match.model_dump(exclude_none=True).values()
        # Edge 0.9.0 reads Python's True as the integer 1; numpy's stays a truth value.
        tests["match"] = getattr(edge, name)(np.bool_(value) if isinstance(value, bool) else value)
    if isinstance(given.range, models.Range):
        tests["range"] = edge.RangeFloat(**given.range.model_dump())
    elif given.range is not None:
        bounds = given.range.model_dump(exclude_none=True)
        tests["range"] = edge.RangeDateTime(**{name: value.isoformat() for name, value in bounds.items()})
    if given.geo_radius is not None:
        tests["geo_radius"] = edge.GeoRadius(point(given.geo_radius.center), given.geo_radius.radius)
    if given.geo_bounding_box is not None:
        box = given.geo_bounding_box
        tests["geo_bounding_box"] = edge.GeoBoundingBox(point(box.top_left), point(box.bottom_right))
    if given.geo_polygon is not None:
        tests["geo_polygon"] = edge.GeoPolygon([point(p) for p in given.geo_polygon.exterior.points])
    return edge.FieldCondition(given.key, **tests)


def point(given: models.GeoPoint) -> edge.GeoPoint:
    return edge.GeoPoint(lon=given.lon, lat=given.lat)


def shown(record: Any) -> dict[str, Any]:
    return {"id": str(record.id), "payload": record.payload, "vector": plain(record.vector)}


def plain(vector: Any) -> Any:
    if isinstance(vector, dict):
        return {name: plain(values) for name, values in vector.items()}
    if isinstance(vector, edge.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    return vector if vector is None else list(vector)


def vectors_of(given: Any) -> Any:
    """Named vectors from the wire; a sparse one is an object."""
    return {name: edge_vector(values) for name, values in (given or {}).items()}


def edge_vector(given: Any) -> Any:
    if isinstance(given, models.SparseVector):
        return edge.SparseVector(given.indices, given.values)
    return edge.SparseVector(**given) if isinstance(given, dict) else given


# --- operations ----------------------------------------------------------------------------------------


def upsert(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    points = [
        edge.Point(str(p["id"]), vectors_of(p.get("vector")), p.get("payload") or {}) for p in body["points"]
    ]
    return updated(collection, edge.UpdateOperation.upsert_points(points))


def delete_points(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    return updated(collection, edge.UpdateOperation.delete_points(list(map(str, body["points"]))))


def set_payload(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    operation = edge.UpdateOperation.set_payload(
        list(map(str, body["points"])), body["payload"], body.get("key")
    )
    return updated(collection, operation)


def update_batch(collection: Collection, body: dict[str, Any]) -> list[dict[str, Any]]:
    answers = []
    for item in body["operations"]:
        wanted = models.OverwritePayloadOperation.model_validate(item).overwrite_payload
        operation = edge.UpdateOperation.overwrite_payload(list(map(str, wanted.points)), wanted.payload)
        answers.append(updated(collection, operation))
    return answers


def update_vectors(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    points = [edge.PointVectors(str(p["id"]), vectors_of(p["vector"])) for p in body["points"]]
    return updated(collection, edge.UpdateOperation.update_vectors(points))


def delete_vectors(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    operation = edge.UpdateOperation.delete_vectors(list(map(str, body["points"])), body["vector"])
    return updated(collection, operation)


def updated(collection: Collection, operation: Any) -> dict[str, Any]:
    try:
        collection.shard.update(operation)
    except Exception as error:
        raise Refused(400, str(error)) from error
    return {"operation_id": 0, "status": "completed"}


def scroll(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    request = models.ScrollRequest.model_validate(body)
    found, following = collection.shard.scroll(
        edge.ScrollRequest(
            offset=None if request.offset is None else str(request.offset),
            limit=request.limit,
            filter=edge_filter(request.filter),
            with_payload=request.with_payload,
            with_vector=request.with_vector,
        )
    )
    return {
        "points": list(map(shown, found)),
        "next_page_offset": None if following is None else str(following),
    }


def query_batch(collection: Collection, body: dict[str, Any]) -> list[dict[str, Any]]:
    requests = [models.QueryRequest.model_validate(item) for item in body["searches"]]
    answers = collection.shard.query_batch(
        edge.QueryBatchRequest(
            [
                edge.QueryRequest(
                    query=edge.Query.Nearest(vector_of(request.query), using=request.using),
                    limit=request.limit or 10,
                    offset=request.offset,
                    filter=edge_filter(request.filter),
                    with_payload=request.with_payload,
                    with_vector=request.with_vector,
                    params=edge.SearchParams(
                        hnsw_ef=request.params.hnsw_ef if request.params else None,
                        exact=bool(request.params and request.params.exact),
                    ),
                )
                for request in requests
            ]
        )
    )
    return [
        {"points": [{**shown(hit), "version": 0, "score": hit.score} for hit in answer]} for answer in answers
    ]


def vector_of(query: Any) -> Any:
    return edge_vector(query.nearest if isinstance(query, models.NearestQuery) else query)


def count(collection: Collection, body: dict[str, Any]) -> dict[str, Any]:
    request = models.CountRequest.model_validate(body)
    return {
        "count": collection.shard.count(edge.CountRequest(exact=True, filter=edge_filter(request.filter)))
    }


def retrieve(collection: Collection, body: dict[str, Any]) -> list[dict[str, Any]]:
    found = collection.shard.retrieve(
        list(map(str, body["ids"])), bool(body.get("with_payload")), bool(body.get("with_vector"))
    )
    return list(map(shown, found))


#: (method, path below the collection) → operation.
OPERATIONS = {
    ("PUT", "points"): upsert,
    ("POST", "points"): retrieve,
    ("POST", "points/delete"): delete_points,
    ("POST", "points/payload"): set_payload,
    ("POST", "points/batch"): update_batch,
    ("PUT", "points/vectors"): update_vectors,
    ("POST", "points/vectors/delete"): delete_vectors,
    ("POST", "points/scroll"): scroll,
    ("POST", "points/query/batch"): query_batch,
    ("POST", "points/count"): count,
}


def serve(store: Store, method: str, path: str, body: dict[str, Any]) -> Any:
    """Carry out one request and return its `result`."""
    parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
    match (method, *parts):
        case ("GET", ""):
            return {"title": "stand-in", "version": store.version}
        case ("GET", "aliases"):
            found = [{"alias_name": a, "collection_name": c} for a, c in store.aliases.items()]
            return {"aliases": found}
        case ("GET", "collections"):
            return {"collections": [{"name": name} for name in store.collections]}
        case ("POST", "collections", "aliases"):
            return store.change_aliases(body)
        case ("GET", "collections", name, "exists"):
            return {"exists": name in store.collections or name in store.aliases}
        case ("GET", "collections", name):
            return store[name].info()
        case ("PUT", "collections", name):
            return store.create(name, body)
        case ("PATCH", "collections", name):
            store[name].metadata.update(body.get("metadata") or {})
            return True
        case ("DELETE", "collections", name):
            return store.delete(name)
        case ("PUT", "collections", name, "index"):
            operation = edge.UpdateOperation.create_field_index(
                body["field_name"], index_params(body["field_schema"])
            )
            with store[name].lock:
                return updated(store[name], operation)
        case ("DELETE", "collections", name, "index", field):
            with store[name].lock:
                return updated(store[name], edge.UpdateOperation.delete_field_index(field))
        case (_, "collections", name, *rest) if (method, "/".join(rest)) in OPERATIONS:
            collection = store[name]
            with collection.lock:
                return OPERATIONS[method, "/".join(rest)](collection, body)  # type: ignore[operator]
    raise Refused(404, f"{method} {path} is not served")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # An answer leaves as one packet at once: otherwise each costs 40 ms of waiting for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    store: Store

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        status, answer = 200, {}
        try:
            if self.store.api_key and self.headers.get("api-key") != self.store.api_key:
                raise Refused(401, "Must provide an API key or an Authorization bearer token")
            body = json.loads(raw) if raw else {}
            if self.store.requests is not None:
                self.store.requests.append((self.command, self.path, body))
            result = serve(self.store, self.command, urllib.parse.urlsplit(self.path).path, body)
            # What the server is stands alone; every other answer has a frame.
            answer = result if self.path == "/" else {"result": result, "status": "ok", "time": 0.0}
        except Refused as refused:
            status, answer = refused.status, {"status": {"error": str(refused)}, "time": 0.0}
        except Exception as error:
            status, answer = 500, {"status": {"error": f"{type(error).__name__}: {error}"}, "time": 0.0}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """The listening server; `url` is where it is, `store` what it holds."""

    daemon_threads = True

    def __init__(self, port: int, store: Store) -> None:
        self.store = store
        super().__init__(("127.0.0.1", port), type("BoundHandler", (Handler,), {"store": store}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def start(directory: Path, port: int = 0, api_key: str | None = None) -> Server:
    """Serve in the background on loopback until ``shutdown()``."""
    server = Server(port, Store(directory, api_key))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--api-key")
    given = parser.parse_args()
    server = start(given.dir, given.port, given.api_key)
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
