"""The budget of one execute in microseconds, by part: where a request's time goes beside the engine.

The application is called directly in this process, without a socket, and its parts are timed where they
begin and end. `engine` is the same query to the same documents in a shard of this process; `hop` is what the
host's answer takes beyond that. What stands beside the parts (routing, framework, threads) is `rest`.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson

from bench import raw_edge
from bench.clustered import K, clustered
from bench.place import BATCH, Place
from tessera import retrieve
from tessera.api import routing
from tessera.api.app import make_app
from tessera.config import Settings
from tessera.organizations import Keys, bootstrap
from tessera.wiring import close_warehouse, open_warehouse

ROUNDS = 5
DOCUMENTS = 2_000
REQUESTS = 300
KEY = "sk_live_" + "0" * 32


class Clock:
    """Adds up the time that functions take, by name; each of them is wrapped where it is looked up."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def on(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of ``owner.attribute`` under `name`."""
        plain = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return plain(*args, **kwargs)
            finally:
                self.spent[name] += time.perf_counter() - began

        async def timed_async(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return await plain(*args, **kwargs)
            finally:
                self.spent[name] += time.perf_counter() - began

        setattr(owner, attribute, timed_async if asyncio.iscoroutinefunction(plain) else timed)


def main() -> None:
    """Print the median microseconds of each part, over rounds of requests."""
    data = clustered(DOCUMENTS, 50)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data=Path(folder) / "tessera", offline=True)
        wh = open_warehouse(settings, run_jobs=False)
        bootstrap(wh.db, KEY)
        clock = Clock()
        clock.on(Keys, "check", "auth")
        clock.on(routing.JsonRequest, "load", "parse")
        clock.on(retrieve, "execute", "execute")
        clock.on(wh.views, "ranked", "search")
        clock.on(routing, "_as_json", "json")
        app = make_app(wh)
        shard = raw_edge.create(Path(folder) / "raw")
        raw_edge.put(shard, data.vectors)
        try:
            rounds = asyncio.run(_measure(app, data, clock))
        finally:
            close_warehouse(wh)
        engine = _engine(shard, data)
    _print(rounds, engine)


async def _measure(app: Any, data: Any, clock: Clock) -> list[dict[str, float]]:
    transport = httpx.ASGITransport(app)
    headers = {"Authorization": f"Bearer {KEY}"}
    loop = asyncio.get_running_loop()

    class Client(httpx.Client):
        """Speaks to the application in this process, for what is made before anything is timed."""

        def send(self, request: httpx.Request, **_: Any) -> httpx.Response:
            content = httpx.ByteStream(request.read())
            asked = httpx.Request(request.method, request.url, headers=request.headers, stream=content)
            answer = asyncio.run_coroutine_threadsafe(self._ask(asked), loop).result()
            answer.request = request
            return answer

        async def _ask(self, request: httpx.Request) -> httpx.Response:
            answer = await transport.handle_async_request(request)
            await answer.aread()
            return answer

    client = Client(base_url="http://tessera", headers=headers)

    def prepare() -> tuple[str, str]:
        place = Place(client, "hot")
        for start in range(0, DOCUMENTS, BATCH):
            for body in place.upserts(data.vectors[: start + BATCH]):
                client.post(
                    f"/v1/namespaces/{place.namespace_id}/documents/upsert",
                    content=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
                ).raise_for_status()
        return place.namespace_id, place.retriever(K)

    namespace_id, path = await asyncio.to_thread(prepare)
    bodies = [
        orjson.dumps({"inputs": {"v": query}, "limit": K}, option=orjson.OPT_SERIALIZE_NUMPY)
        for query in data.queries
    ]
    call = _caller(app, path, namespace_id)
    rounds = []
    for number in range(ROUNDS + 1):
        clock.spent.clear()
        began = time.perf_counter()
        for n in range(REQUESTS):
            await call(bodies[n % len(bodies)])
        clock.spent["total"] = time.perf_counter() - began
        if number:  # the first warms up
            rounds.append({name: 1e6 * spent / REQUESTS for name, spent in clock.spent.items()})
    return rounds


def _caller(app: Any, path: str, namespace_id: str) -> Callable[[bytes], Any]:
    """Return a function that sends a body to `path` as the HTTP server would, and waits for the answer."""
    headers = [
        (b"host", b"tessera"),
        (b"authorization", f"Bearer {KEY}".encode()),
        (b"x-namespace", namespace_id.encode()),
        (b"content-type", b"application/json"),
    ]

    async def call(body: bytes) -> None:
        asked = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [*headers, (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        await app(asked, receive, send)
        assert status == 200, status

    return call


def _engine(shard: Any, data: Any) -> float:
    taken = []
    for n in range(REQUESTS):
        began = time.perf_counter()
        raw_edge.query(shard, data.queries[n % len(data.queries)], K)
        taken.append(time.perf_counter() - began)
    return 1e6 * statistics.median(taken)


def _print(rounds: list[dict[str, float]], engine: float) -> None:
    def part(of: Callable[[dict[str, float]], float]) -> str:
        values = [of(one) for one in rounds]
        return f"{statistics.median(values):7.0f} us ({min(values):.0f} to {max(values):.0f})"

    print(f"Hot path: one execute over {DOCUMENTS:,} x 384, {K} hits, without a socket")
    print(f"   total      {part(lambda r: r['total'])}")
    print(f"   auth       {part(lambda r: r['auth'])}  the key is looked up")
    print(f"   parse      {part(lambda r: r['parse'])}  the body, with a vector in it")
    print(
        f"   plan       {part(lambda r: r['execute'] - r['search'])}  retriever, inputs, stage; documents as answered"
    )
    print(f"   hop        {part(lambda r: r['search'] - engine)}  to the vector host and back")
    print(f"   engine     {engine:7.0f} us")
    print(f"   json       {part(lambda r: r['json'])}  the answer's bytes")
    print(
        "   rest       "
        + part(lambda r: r["total"] - sum(r[name] for name in ("auth", "parse", "execute", "json")))
        + "  routing, framework, threads"
    )


if __name__ == "__main__":
    main()
