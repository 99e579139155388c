"""Objects by URL over HTTP: accepted without a look, fetched once by the batch, failed row by row."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.media import RED, picture
from tests.website import Site, serving

READER = TEXT | {"input_mappings": {"text": "note"}}
PROPERTIES = {"note": {"type": "text"}, "photo": {"type": "image"}}

_numbers = itertools.count()


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., dict[str, Any]]) -> Loop:
    return Loop(client, namespace())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with serving() as found:
        yield found


def page(site: Site, body: bytes, status: int = 200, **headers: str) -> str:
    """Serve `body` under a path of its own and return its URL."""
    return site.serve(f"/page/{next(_numbers)}.txt", body, status, **headers)


def fetches(site: Site, url: str) -> int:
    return sum(url.endswith(path.partition("?")[0]) for path, _ in site.requests)


def note(url: str, **fields: Any) -> dict[str, Any]:
    return {"blobs": [{"property": "note", "type": "text", "data": url}], **fields}


def failures(loop: Loop, bucket: str, batch: dict[str, Any]) -> list[dict[str, Any]]:
    path = f"/buckets/{bucket}/batches/{batch['batch_id']}/failed-documents"
    return list(loop.get(path)["results"])


def test_a_url_is_fetched_once_by_the_batch(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    first, second = loop.collection(bucket, READER), loop.collection(bucket, READER)
    url = page(site, b"A brass desk lamp.", Content_Disposition='attachment; filename="lamp.txt"')
    made = loop.post(f"/buckets/{bucket}/objects", note(f"{url}?signature=s3cr3t", metadata={"n": 1}))
    (blob,) = made["blobs"]
    assert blob["url"] == url
    assert blob["details"] == {"filename": None, "size_bytes": None, "mime_type": None, "hash": None}
    assert fetches(site, url) == 0, "accepted is not fetched"
    assert loop.run(bucket, [made["object_id"]])["status"] == "COMPLETED"
    for collection in (first, second):
        (document,) = loop.documents(collection)
        assert (document["text"], document["root_object_id"]) == ("A brass desk lamp.", made["object_id"])
    got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}")
    (blob,) = got["blobs"]
    assert (blob["url"], blob["data"]) == (url, "A brass desk lamp.")
    assert (blob["details"]["filename"], blob["details"]["size_bytes"]) == ("lamp.txt", 18)
    assert (got["version"], got["content_hash"]) == (made["version"], made["content_hash"])
    # Neither a later collection nor another batch asks again.
    third = loop.collection(bucket, READER)
    loop.run(bucket, [made["object_id"]])
    assert len(loop.documents(third)) == 1
    assert fetches(site, url) == 1
    assert site.requests[-1][0].endswith("?signature=s3cr3t")


def test_every_place_of_a_url(loop: Loop, site: Site) -> None:
    bucket = loop.bucket({"note": {"type": "text", "required": True}})
    collection = loop.collection(bucket, READER)
    path = f"/buckets/{bucket}/objects"
    url = page(site, b"words")
    bodies: list[dict[str, Any]] = [
        {"blobs": [{"property": "note", "url": url}]},
        {"blobs": [{"property": "note", "data": f"  {url} "}]},
        {"blob": {"url": url}, "metadata": {"n": 1}},
        {"blob": {"data": url}},
        {"note": url},
        {"metadata": {"note": url}},
    ]
    made = [loop.post(path, body)["object_id"] for body in bodies]
    assert loop.run(bucket, made)["status"] == "COMPLETED"
    assert [document["text"] for document in loop.documents(collection)] == ["words"] * len(bodies)


def test_batches_of_objects_mix_urls_uploads_and_words(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    upload = loop.post(
        f"/buckets/{bucket}/uploads",
        {"filename": "note.txt", "content_type": "text/plain", "create_object_on_confirm": False},
    )
    httpx.put(upload["presigned_url"], content=b"uploaded")
    loop.post(f"/buckets/{bucket}/uploads/{upload['upload_id']}/confirm", {})
    photo = page(site, picture(RED))
    objects = [
        note(page(site, b"fetched")),
        note("typed"),
        {
            "blobs": [
                {"property": "note", "upload_id": upload["upload_id"]},
                {"property": "photo", "url": photo},
            ]
        },
        note("http://10.0.0.1/"),
    ]
    headers = {"Idempotency-Key": "mixed"}
    answer = loop.post(f"/buckets/{bucket}/objects/batch", {"objects": objects}, headers=headers)
    assert (answer["succeeded_count"], answer["failed_count"]) == (3, 1)
    assert "not public" in answer["failed"][0]["error"]
    again = loop.post(f"/buckets/{bucket}/objects/batch", {"objects": objects}, headers=headers)
    ids = [item["object_id"] for item in answer["succeeded"]]
    assert [(item["object_id"], item["replayed"]) for item in again["succeeded"]] == [(i, True) for i in ids]
    assert loop.run(bucket, ids)["status"] == "COMPLETED"
    assert sorted(document["text"] for document in loop.documents(collection)) == [
        "fetched",
        "typed",
        "uploaded",
    ]
    got = loop.get(f"/buckets/{bucket}/objects/{ids[2]}?return_presigned_urls=true")
    assert httpx.get(got["blobs"][1]["presigned_url"]).content == picture(RED)
    assert got["blobs"][1]["details"]["mime_type"] == "image/png"


def test_what_cannot_be_fetched_fails_its_row_alone(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    wanted = {
        page(site, b"fine"): None,
        page(site, b"", 404): "fetch_bad_status",
        f"http://localhost:{site.port}/": "fetch_refused_address",
        site.redirect(f"/away/{next(_numbers)}", "http://169.254.169.254/latest"): "fetch_refused_address",
        site.redirect(f"/away/{next(_numbers)}", "file:///etc/passwd"): "fetch_redirect",
        page(site, b"\x00\xffwords"): "unsupported",
        page(site, b"x", Content_Encoding="br"): "fetch_bad_content",
    }
    ids = {loop.object(bucket, note(f"{url}?secret=s3cr3t")): kind for url, kind in wanted.items()}
    batch = loop.run(bucket, list(ids))
    assert batch["status"] == "COMPLETED_WITH_ERRORS"
    failed = failures(loop, bucket, batch)
    assert {item["object_id"]: item["error_kind"] for item in failed} == {i: k for i, k in ids.items() if k}
    assert all(item["error"].startswith("note: http") and "s3cr3t" not in item["error"] for item in failed)
    assert {item["error_type"] for item in failed} == {"permanent"}
    assert [document["text"] for document in loop.documents(collection)] == ["fine"]


def test_what_may_pass_is_tried_again(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    url = page(site, b"", 503)
    path = url.removeprefix(site.url(""))
    bad = site.pages[path]
    made = loop.object(bucket, note(url))
    site.serve(f"{path}.ok", b"at last")

    def second_time(request: Any) -> None:
        site.pages[path] = site.pages[f"{path}.ok"]
        bad(request)

    site.pages[path] = second_time
    assert loop.run(bucket, [made])["status"] == "COMPLETED", "one 503 is nothing"
    assert fetches(site, url) == 2
    missing = page(site, b"", 404)
    other = loop.object(bucket, note(missing))
    batch = loop.run(bucket, [other])
    assert (batch["status"], batch["error_summary"]) == ("FAILED", {"unreachable": 1})
    site.serve(missing.removeprefix(site.url("")), b"found later")
    retry = f"/buckets/{bucket}/batches/{batch['batch_id']}/retry"
    loop.refused(409, "POST", retry, {"retry_mode": "transient_only"})
    loop.wait(loop.post(retry, {"retry_mode": "all"})["task_id"])
    assert sorted(document["text"] for document in loop.documents(collection)) == ["at last", "found later"]


def test_a_url_that_cannot_be_right_is_refused_at_once(loop: Loop) -> None:
    bucket = loop.bucket(PROPERTIES)
    path = f"/buckets/{bucket}/objects"
    for url, said in (
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://0x7f.1/", "four decimal numbers"),
        ("https://93.184.215.14:22/", "port 22"),
        ("s3://bucket", "s3://bucket/key"),
    ):
        message = loop.refused(400, "POST", path, note(url))
        assert said in message and message.startswith("blobs[0].data cannot be fetched"), message
    assert "The URL is none" in loop.refused(
        400, "POST", path, {"blobs": [{"property": "note", "url": "words"}]}
    )
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 0


def test_a_change_fetches_only_what_is_new(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    url = page(site, b"first")
    path = f"/buckets/{bucket}/objects/{loop.object(bucket, note(url))}"
    object_id = path.rsplit("/", 1)[1]

    def text() -> str:
        loop.run(bucket, [object_id])
        (document,) = loop.documents(collection)
        return str(document["text"])

    # A change before the fetch keeps what is to be fetched.
    loop.patch(path, {"metadata": {"n": 1}})
    assert text() == "first"
    site.serve(url.removeprefix(site.url("")), b"second")
    assert loop.patch(path, note(url))["blobs"][0]["data"] == "first"
    assert text() == "first"
    assert fetches(site, url) == 1
    assert loop.patch(path, note(url, force_remirror=True))["blobs"][0]["details"]["hash"] is None
    assert text() == "second"
    site.serve(url.removeprefix(site.url("")), b"and again")
    again = {"blobs": [{"property": "note", "url": url, "force_remirror": True}]}
    loop.patch(path, again)
    assert text() == "and again"
    other = page(site, b"third")
    loop.patch(path, note(other))
    assert text() == "third"
    loop.patch(path, note(page(site, b"never read")))
    loop.patch(path, note("typed"))
    assert text() == "typed"
    loop.patch(path, note(page(site, b"nor this")))
    loop.send("DELETE", path, status=204)
    assert loop.run(bucket, [loop.note(bucket, "x")])["status"] == "COMPLETED"


def test_two_batches_at_once_fetch_once(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    loop.collection(bucket, READER)
    url = page(site, b"")
    path, released = url.removeprefix(site.url("")), threading.Event()

    def slow(request: Any) -> None:
        released.wait(20)
        request.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nonce")

    site.pages[path] = slow
    made = loop.object(bucket, note(url))
    tasks = []
    for _ in range(2):
        batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [made]})["batch_id"]
        tasks.append(loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})["task_id"])
    deadline = time.monotonic() + 20
    while {loop.get(f"/tasks/{task}")["status"] for task in tasks} != {"IN_PROGRESS"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    released.set()
    assert {loop.wait(task)["status"] for task in tasks} == {"COMPLETED"}
    assert fetches(site, url) == 1


def test_a_change_while_it_is_fetched(loop: Loop, site: Site) -> None:
    """What comes for the URL before is dropped; the batch goes on with the new one."""
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    url, other = page(site, b""), page(site, b"new")
    begun, released = threading.Event(), threading.Event()

    def slow(request: Any) -> None:
        begun.set()
        released.wait(20)
        request.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")

    site.pages[url.removeprefix(site.url(""))] = slow
    made = loop.object(bucket, note(url))
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [made]})["batch_id"]
    task = loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})["task_id"]
    assert begun.wait(20)
    loop.patch(f"/buckets/{bucket}/objects/{made}", note(other))
    released.set()
    assert loop.wait(task)["status"] == "COMPLETED"
    assert [document["text"] for document in loop.documents(collection)] == ["new"]
    assert loop.get(f"/buckets/{bucket}/objects/{made}")["blobs"][0]["url"] == other


def test_a_cancelled_batch_stops_fetching(loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    loop.collection(bucket, READER)
    url = page(site, b"")
    path, begun, ended = url.removeprefix(site.url("")), threading.Event(), threading.Event()

    def drip(request: Any) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        begun.set()
        try:
            while not ended.wait(0.05):
                request.wfile.write(b"x")
        except OSError:
            ended.set()

    site.pages[path] = drip
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [loop.object(bucket, note(url))]})
    base = f"/buckets/{bucket}/batches/{batch['batch_id']}"
    loop.post(f"{base}/submit", {})
    assert begun.wait(20)
    loop.post(f"{base}/cancel", {})
    assert ended.wait(20), "the connection was given up"
    assert loop.get(base)["status"] == "CANCELED"


def test_what_comes_for_an_object_that_was_erased_meanwhile_leaves_nothing(
    server: Server, loop: Loop, site: Site
) -> None:
    bucket = loop.bucket(PROPERTIES)
    loop.collection(bucket, READER)
    url, body = page(site, b""), picture(RED) + b"only in this test"
    begun, released = threading.Event(), threading.Event()

    def slow(request: Any) -> None:
        begun.set()
        released.wait(20)
        request.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    site.pages[url.removeprefix(site.url(""))] = slow
    thing = loop.object(bucket, {"blobs": [{"property": "photo", "url": url}]})
    batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [thing]})["batch_id"]
    loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})
    assert begun.wait(20)
    erased = loop.post(f"/namespaces/{loop.namespace_id}/erase", {"object_ids": [thing]})
    released.set()
    assert loop.wait(erased["task_id"])["status"] == "COMPLETED"
    assert found_in(server.data / "blobs", b"only in this test") == []


def test_a_server_that_ends_while_it_fetches_lets_go_of_the_batch(tmp_path: Path) -> None:
    """Else whoever goes on takes it for a batch under which a server died, and gives it up after three."""
    with serving() as site:
        begun, ended = threading.Event(), threading.Event()

        def hang(_request: Any) -> None:
            begun.set()
            ended.wait(60)

        site.pages["/slow"] = hang
        environment = {"TESSERA_FETCH_ALLOWED_NETWORKS": "127.0.0.2/32"}
        server = Server.start(tmp_path / "data", environment=environment)
        try:
            made = server.client().post(
                "/v1/namespaces", json={"namespace_name": "parked", "feature_extractors": [TEXT]}
            )
            loop = Loop(server.client(), made.json())
            bucket = loop.bucket(PROPERTIES)
            loop.collection(bucket, READER)
            thing = loop.object(bucket, note(site.url("/slow")))
            batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [thing]})["batch_id"]
            loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})
            assert begun.wait(20)
            assert server.stop() == 0, server.log[-2000:]
        finally:
            ended.set()
            server.kill(group=True)
        with sqlite3.connect(server.data / "tessera.sqlite3") as connection:
            rows = connection.execute("SELECT status, holder, crashes FROM batches").fetchall()
        assert rows == [("IN_PROGRESS", None, 0)]


def test_s3_urls_use_the_organization_s_secrets(server: Server, loop: Loop, site: Site) -> None:
    bucket = loop.bucket(PROPERTIES)
    collection = loop.collection(bucket, READER)
    site.serve("/store/a/words.txt", b"stored words")
    secrets = {
        "s3_endpoint_url": site.url("").rstrip("/"),
        "s3_access_key_id": "AKIDTEST",
        "s3_secret_access_key": "a-secret-key",
    }
    for name, value in secrets.items():
        loop.send("POST", "/organizations/secrets", {"secret_name": name, "secret_value": value}, status=201)
    try:
        made = loop.object(bucket, note("s3://store/a/words.txt"))
        assert loop.run(bucket, [made])["status"] == "COMPLETED"
    finally:
        for name in secrets:
            loop.delete(f"/organizations/secrets/{name}")
    assert [document["text"] for document in loop.documents(collection)] == ["stored words"]
    (asked,) = [path for path, _ in site.requests if path.startswith("/store/")]
    assert "X-Amz-Credential=AKIDTEST%2F" in asked and "a-secret-key" not in asked
    assert "a-secret-key" not in server.log


def test_a_url_with_its_query_is_kept_sealed_and_forgotten(tmp_path: Path) -> None:
    """A killed server goes on with the fetch; no file of the data directory ever has the query in clear."""
    canary = b"canary-in-the-query"
    with serving() as site:
        url, begun = site.url("/slow"), threading.Event()

        def hang(_request: Any) -> None:
            begun.set()
            time.sleep(3)

        site.pages["/slow"] = hang
        environment = {"TESSERA_FETCH_ALLOWED_NETWORKS": "127.0.0.2/32"}
        server = Server.start(tmp_path / "data", environment=environment)
        try:
            client = server.client()
            made = client.post(
                "/v1/namespaces", json={"namespace_name": "kept", "feature_extractors": [TEXT]}
            )
            loop = Loop(client, made.json())
            bucket = loop.bucket(PROPERTIES)
            collection = loop.collection(bucket, READER)
            thing = loop.object(bucket, note(f"{url}?token={canary.decode()}"))
            batch = loop.post(f"/buckets/{bucket}/batches", {"object_ids": [thing]})["batch_id"]
            task = loop.post(f"/buckets/{bucket}/batches/{batch}/submit", {})["task_id"]
            assert begun.wait(20)
            server.kill()
            assert found_in(tmp_path, canary) == []
            site.serve("/slow", b"came after all")
            server = Server.start(tmp_path / "data", environment=environment)
            loop.client = server.client()
            assert loop.wait(task)["status"] == "COMPLETED"
            assert [document["text"] for document in loop.documents(collection)] == ["came after all"]
            assert found_in(tmp_path, canary) == []
            assert not list((server.data / "blobs/.incoming").glob("*"))
        finally:
            server.kill(group=True)


def found_in(folder: Path, words: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and words in path.read_bytes()]
