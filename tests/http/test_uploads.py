"""Uploads over HTTP: the signed PUT, its checks, confirmation with one effect, lists, batches, expiry, kills."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.http.loop import TEXT, Loop
from tests.http.processes import Server
from tests.media import RED, picture

WORDS = b"Lightweight wireless headphones."


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., dict[str, Any]]) -> Loop:
    return Loop(client, namespace())


@pytest.fixture
def bucket(loop: Loop) -> str:
    return loop.bucket({"note": {"type": "text"}})


def request(**changes: Any) -> dict[str, Any]:
    return {"filename": "note.txt", "content_type": "text/plain", **changes}


def create(loop: Loop, bucket: str, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = loop.post(f"/buckets/{bucket}/uploads", request(**changes))
    return made


def put(upload: dict[str, Any], content: bytes = WORDS, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.put(upload["presigned_url"], content=content, headers=named, timeout=60)


def put_refused(status: int, upload: dict[str, Any], content: bytes = WORDS, **headers: str) -> str:
    answer = put(upload, content, **headers)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert (body["success"], body["status"]) == (False, status)
    return str(body["error"]["message"])


def confirm_path(bucket: str, upload: dict[str, Any]) -> str:
    return f"/buckets/{bucket}/uploads/{upload['upload_id']}/confirm"


def files(server: Server, namespace_id: str, kind: str) -> list[str]:
    folder = server.data / "blobs" / namespace_id / kind
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def parts(server: Server) -> list[Path]:
    return list((server.data / "blobs/.incoming").glob("*"))


# --- the whole way ------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/uploads", 200)
@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/uploads/{upload_id}/confirm", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/uploads/{upload_id}", 200)
def test_from_the_url_to_the_document(server: Server, loop: Loop, bucket: str) -> None:
    collection = loop.collection(bucket, TEXT | {"input_mappings": {"text": "note"}})
    made = create(
        loop,
        bucket,
        metadata={"campaign": "summer"},
        object_metadata={"category": "headphones"},
        file_size_bytes=len(WORDS),
        file_hash=hashlib.sha256(WORDS).hexdigest(),
        presigned_url_expiration=600,
    )
    assert re.fullmatch(r"upl_[0-9a-f]{16}", made["upload_id"])
    assert made["presigned_url"].startswith(f"{server.url}/v1/uploads/{made['upload_id']}?")
    assert len(made["presigned_url"]) <= 2083
    assert (made["status"], made["blob_property"], made["blob_type"]) == ("PENDING", "note", "text")
    assert (made["presigned_url_expiration"], made["create_object_on_confirm"]) == (600, True)
    answer = put(made, Content_Type="text/plain; charset=utf-8")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["etag"] == f'"{hashlib.md5(WORDS).hexdigest()}"'
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 0, "nothing counts before it is confirmed"
    body = {"etag": answer.headers["etag"], "file_size_bytes": len(WORDS)}
    confirmed = loop.post(f"{confirm_path(bucket, made)}?async=true", body)
    assert confirmed["status"] == "COMPLETED"
    assert confirmed["file_hash"] == hashlib.sha256(WORDS).hexdigest()
    thing = loop.get(f"/buckets/{bucket}/objects/{confirmed['object_id']}")
    assert thing["metadata"] == {"category": "headphones"}
    (blob,) = thing["blobs"]
    assert (blob["property"], blob["data"]) == ("note", WORDS.decode())
    assert blob["details"] == {
        "filename": "note.txt",
        "size_bytes": len(WORDS),
        "mime_type": "text/plain",
        "hash": hashlib.sha256(WORDS).hexdigest(),
    }
    got = loop.get(f"/buckets/{bucket}/uploads/{made['upload_id']}?return_presigned_urls=true")
    assert (got["status"], got["object_id"], got["metadata"]) == (
        "COMPLETED",
        thing["object_id"],
        {"campaign": "summer"},
    )
    assert httpx.get(got["presigned_url"]).content == WORDS
    assert loop.get(f"/buckets/{bucket}/uploads/{made['upload_id']}")["presigned_url"] is None
    assert loop.run(bucket, [thing["object_id"]])["status"] == "COMPLETED"
    assert [document["text"] for document in loop.documents(collection)] == [WORDS.decode()]


def test_confirming_again_and_at_once_has_one_effect(loop: Loop, bucket: str) -> None:
    made = create(loop, bucket)
    put(made)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: loop.post(confirm_path(bucket, made), {}), range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert loop.post(confirm_path(bucket, made)) == answers[0]
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 1
    assert "what came has" in loop.refused(400, "POST", confirm_path(bucket, made), {"etag": "0" * 32})
    assert put_refused(409, made, b"later")


def test_a_file_that_another_confirmation_moves_while_it_is_checked_is_no_error(loop: Loop) -> None:
    """The check of a file found it moved away by a faster request's, and the answer was 500."""
    bucket = loop.bucket({"note": {"type": "text"}})
    # Long enough that its check (is it UTF-8?) takes a while.
    words = WORDS * 50_000
    made = [create(loop, bucket, skip_duplicates=False) for _ in range(8)]
    for number, upload in enumerate(made):
        assert put(upload, words + bytes([65 + number])).status_code == 200
    with ThreadPoolExecutor(8) as threads:
        for upload in made:
            paths = [confirm_path(bucket, upload)] * 8
            answers = list(threads.map(lambda path: loop.post(path, {}), paths))
            assert all(answer == answers[0] for answer in answers)
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 8


def test_several_uploads_become_one_object_and_one_upload_several(loop: Loop) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "photo": {"type": "image"}, "year": {"type": "integer"}})
    image = picture(RED)
    note = create(loop, bucket, blob_property="note", create_object_on_confirm=False)
    photo = create(loop, bucket, filename="red.png", content_type="image/png", create_object_on_confirm=False)
    path = f"/buckets/{bucket}/objects"

    def body(**changes: Any) -> dict[str, Any]:
        return {
            "blobs": [
                {"property": "note", "type": "text", "upload_id": note["upload_id"]},
                {"property": "photo", "type": "image", "upload_id": photo["upload_id"]},
            ],
            **changes,
        }

    assert "Confirm it first" in loop.refused(400, "POST", path, body())
    for upload, content in ((note, WORDS), (photo, image)):
        assert put(upload, content).status_code == 200
        assert loop.post(confirm_path(bucket, upload), {})["object_id"] is None
    first, second = loop.post(path, body()), loop.post(path, body(metadata={"n": 2}))
    for made in (first, second):
        got = loop.get(f"{path}/{made['object_id']}?return_presigned_urls=true")
        by_property = {blob["property"]: blob for blob in got["blobs"]}
        assert by_property["note"]["data"] == WORDS.decode()
        assert httpx.get(by_property["photo"]["presigned_url"]).content == image
        assert by_property["photo"]["details"]["filename"] == "red.png"
    # The file's own type counts, not what it was uploaded as.
    wrong = {"blobs": [{"property": "note", "upload_id": photo["upload_id"]}]}
    assert "does not decode as utf-8" in loop.refused(422, "POST", path, wrong)
    assert "no upload 'upl_0'" in loop.refused(
        400, "POST", path, {"blobs": [{"property": "note", "upload_id": "upl_0"}]}
    )
    year = {"blobs": [{"property": "year", "upload_id": note["upload_id"]}]}
    assert "a value and no file" in loop.refused(422, "POST", path, year)
    both = {"blobs": [{"property": "note", "upload_id": note["upload_id"], "data": "x"}]}
    assert "exactly one" in loop.refused(422, "POST", path, both)
    other = loop.bucket({"note": {"type": "text"}})
    assert "no upload" in loop.refused(
        400,
        "POST",
        f"/buckets/{other}/objects",
        {"blobs": [{"property": "note", "upload_id": note["upload_id"]}]},
    )
    batch = loop.post(f"{path}/batch", {"objects": [body(metadata={"n": 3}), wrong]})
    assert (batch["succeeded_count"], batch["failed_count"]) == (1, 1)


def test_duplicates(loop: Loop, bucket: str) -> None:
    digest = hashlib.sha256(WORDS).hexdigest()
    first = create(loop, bucket, file_hash=digest)
    assert first["is_duplicate"] is False
    put(first)
    thing = loop.post(confirm_path(bucket, first), {})["object_id"]
    again = create(loop, bucket, file_hash=digest)
    assert (again["upload_id"], again["is_duplicate"]) == (first["upload_id"], True)
    assert (again["presigned_url"], again["duplicate_of_upload_id"]) == (None, first["upload_id"])
    assert (again["object_id"], again["status"]) == (thing, "COMPLETED")
    # Without a hash it is seen when the file has come.
    late = create(loop, bucket)
    put(late)
    confirmed = loop.post(confirm_path(bucket, late), {})
    assert (confirmed["object_id"], confirmed["status"]) == (thing, "COMPLETED")
    assert "same file" in confirmed["message"]
    wanted = create(loop, bucket, file_hash=digest, skip_duplicates=False)
    put(wanted)
    assert loop.post(confirm_path(bucket, wanted), {})["object_id"] != thing
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 2
    # A duplicate of what is gone is none.
    for item in loop.post(f"/buckets/{bucket}/objects/list")["results"]:
        loop.send("DELETE", f"/buckets/{bucket}/objects/{item['object_id']}", status=204)
    assert create(loop, bucket, file_hash=digest)["is_duplicate"] is False


def test_a_key_whose_upload_is_gone_makes_no_other(loop: Loop, bucket: str) -> None:
    path, headers = f"/buckets/{bucket}/uploads", {"Idempotency-Key": "gone"}
    made = loop.post(path, request(), headers=headers)
    loop.delete(f"{path}/{made['upload_id']}", status=204)
    said = loop.refused(409, "POST", path, request(), headers=headers)
    assert made["upload_id"] in said and "new key" in said


def test_idempotency_keys(loop: Loop, bucket: str) -> None:
    headers = {"Idempotency-Key": "a-key"}
    path = f"/buckets/{bucket}/uploads"
    first = loop.post(path, request(), headers=headers)
    assert loop.post(path, request(), headers=headers) == first
    assert loop.refused(409, "POST", path, request(filename="b.txt"), headers=headers)
    several = {"uploads": [request(filename=f"{n}.txt") for n in range(3)]}
    made = loop.post(f"{path}/batch", several, headers=headers)
    assert loop.post(f"{path}/batch", several, headers=headers) == made
    assert loop.post(f"{path}/list")["pagination"]["total"] == 4


# --- what the PUT refuses -----------------------------------------------------------------------------


def test_the_url_is_signed(loop: Loop, bucket: str) -> None:
    made, other = create(loop, bucket), create(loop, bucket)
    url = made["presigned_url"]
    expires = int(re.search(r"expires=(\d+)", url)[1])  # type: ignore[index]
    for changed in (
        url.replace(made["upload_id"], other["upload_id"]),
        url.replace(str(expires), str(expires + 1)),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        assert httpx.put(changed, content=WORDS).status_code == 403
    assert httpx.put(url.partition("?")[0], content=WORDS).status_code == 422
    assert httpx.get(url).status_code == 405
    # A key neither helps nor harms.
    assert httpx.put(url, content=WORDS, headers={"Authorization": "Bearer nonsense"}).status_code == 200


def test_what_comes_must_be_what_was_declared(server: Server, loop: Loop, bucket: str) -> None:
    sized = create(loop, bucket, file_size_bytes=len(WORDS))
    assert "declared a file_size_bytes of 32, and 31 bytes came" in put_refused(400, sized, WORDS[1:])
    assert "more came" in put_refused(400, sized, iter([WORDS, WORDS]))  # type: ignore[arg-type]
    assert "31 bytes came" in put_refused(400, sized, iter([WORDS[1:]]))  # type: ignore[arg-type]
    hashed = create(loop, bucket, file_hash="0" * 64)
    assert "SHA-256" in put_refused(400, hashed)
    plain = create(loop, bucket)
    assert "made for Content-Type: text/plain, not 'image/png'" in put_refused(
        415, plain, Content_Type="image/png"
    )
    assert "is empty" in put_refused(400, plain, b"")
    wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
    assert "Content-MD5" in put_refused(400, plain, Content_MD5=wrong)
    assert "Content-MD5" in put_refused(400, plain, Content_MD5="???")
    for upload in (sized, hashed, plain):
        said = loop.refused(400, "POST", confirm_path(bucket, upload), {})
        assert "Nothing has been uploaded" in said
    assert files(server, loop.namespace_id, "uploads") == []
    assert parts(server) == []
    assert put(plain, Content_MD5=base64.b64encode(hashlib.md5(WORDS).digest()).decode()).status_code == 200


def test_confirming_what_is_not_what_came(loop: Loop, bucket: str) -> None:
    made = create(loop, bucket)
    path = confirm_path(bucket, made)
    put(made)
    assert "32 bytes came" in loop.refused(400, "POST", path, {"file_size_bytes": 31})
    assert "what came has" in loop.refused(400, "POST", path, {"etag": '"0"'})
    assert loop.refused(422, "POST", path, {"file_size_bytes": "32"})
    assert loop.refused(404, "POST", f"/buckets/{bucket}/uploads/upl_0000000000000000/confirm", {})
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 0
    assert loop.post(path, {"etag": f'W/"{hashlib.md5(WORDS).hexdigest().upper()}"'})["status"] == "COMPLETED"


def test_the_last_put_counts(server: Server, loop: Loop, bucket: str) -> None:
    made = create(loop, bucket)
    for content in (b"one", b"two", WORDS, WORDS):
        assert put(made, content).status_code == 200
    assert len(files(server, loop.namespace_id, "uploads")) == 1
    confirmed = loop.post(confirm_path(bucket, made), {})
    assert confirmed["file_size_bytes"] == len(WORDS)
    assert files(server, loop.namespace_id, "uploads") == []


def test_a_file_that_is_not_of_its_type_can_be_put_again(loop: Loop) -> None:
    bucket = loop.bucket({"photo": {"type": "image"}})
    made = create(loop, bucket, filename="photo.png", content_type="image/png")
    put(made, b"%PDF-1.7 not a picture".ljust(100))
    assert "holds application/pdf, but image" in loop.refused(422, "POST", confirm_path(bucket, made), {})
    put(made, picture(RED))
    thing = loop.post(confirm_path(bucket, made), {})["object_id"]
    assert loop.get(f"/buckets/{bucket}/objects/{thing}")["blobs"][0]["details"]["mime_type"] == "image/png"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"filename": ""}, "filename"),
        ({"filename": "a" * 256}, "filename"),
        ({"filename": "../etc/passwd"}, "without slashes"),
        ({"filename": "a\\b.txt"}, "without slashes"),
        ({"filename": ".."}, "without slashes"),
        ({"filename": "a\nb"}, "without slashes"),
        ({"filename": None}, "filename"),
        ({"content_type": "text"}, "no media type"),
        ({"content_type": "video/mp4"}, "property 'note' is text"),
        ({"file_size_bytes": 0}, "file_size_bytes"),
        ({"file_size_bytes": 1.5}, "file_size_bytes"),
        ({"file_size_bytes": 6 * 2**30}, "max_upload_bytes"),
        ({"presigned_url_expiration": 59}, "presigned_url_expiration"),
        ({"presigned_url_expiration": 86401}, "presigned_url_expiration"),
        ({"blob_property": "no-dash"}, "blob_property"),
        ({"blob_property": "nowhere"}, "the bucket's properties for files are: note"),
        ({"blob_type": "VIDEO"}, "is text in the bucket's schema"),
        ({"file_hash": "F" * 64}, "file_hash"),
        ({"file_hash": "f" * 63}, "file_hash"),
        ({"object_metadata": {"year": "no"}}, "year must be a whole number"),
        ({"metadata": []}, "metadata"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(loop: Loop, changes: dict[str, Any], said: str) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "year": {"type": "integer"}})
    assert said in loop.refused(422, "POST", f"/buckets/{bucket}/uploads", request(**changes))
    batch = {"uploads": [request(), request(**changes)]}
    told = loop.refused(422, "POST", f"/buckets/{bucket}/uploads/batch", batch)
    assert "uploads[1]" in told
    assert loop.post(f"/buckets/{bucket}/uploads/list")["results"] == [], "all or none"


def test_the_object_is_checked_before_anything_is_sent(loop: Loop) -> None:
    bucket = loop.bucket(
        {"note": {"type": "text"}, "photo": {"type": "image"}, "year": {"type": "integer", "required": True}}
    )
    path = f"/buckets/{bucket}/uploads"
    assert "year (integer) is required" in loop.refused(422, "POST", path, request(object_metadata={}))
    assert "Name one" in loop.refused(
        422, "POST", path, request(filename="x.txt", object_metadata={"year": 1})
    )
    assert create(loop, bucket, object_metadata={"year": 1})["blob_property"] == "note", "named like the file"
    assert create(loop, bucket, filename="x.bin", content_type="a/b", create_object_on_confirm=False)


# --- lists, batches, delete ---------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/uploads/list", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/uploads", 200)
def test_list(loop: Loop, bucket: str) -> None:
    path = f"/buckets/{bucket}/uploads"
    made = [create(loop, bucket, filename=f"{n}.txt", metadata={"n": n, "word": f"w{n}"}) for n in range(5)]
    put(made[1])
    loop.post(confirm_path(bucket, made[1]), {})

    def names(body: dict[str, Any] | None = None, query: str = "") -> list[str]:
        return [item["filename"] for item in loop.post(f"{path}/list{query}", body)["results"]]

    assert names() == ["4.txt", "3.txt", "2.txt", "1.txt", "0.txt"], "the newest first"
    assert names(query="?limit=2&offset=1") == ["3.txt", "2.txt"]
    assert names({"filters": {"status": "COMPLETED"}}) == ["1.txt"]
    assert names({"filters": {"metadata.n": 3}}) == ["3.txt"]
    either = {"AND": [{"field": "metadata.n", "operator": "gte", "value": 3}]}
    assert names({"filters": either, "sort": {"field": "filename", "direction": "asc"}}) == ["3.txt", "4.txt"]
    assert names({"search": "W2"}) == ["2.txt"]
    assert names({"search": "0.TX"}) == ["0.txt"]
    answer = loop.post(f"{path}/list", {"return_presigned_urls": True})
    assert answer["stats"] == {
        "total_uploads": 5,
        "total_size_bytes": len(WORDS),
        "uploads_by_status": {"PENDING": 4, "COMPLETED": 1},
        "avg_file_size_bytes": len(WORDS) / 5,
        "unique_buckets": 1,
    }
    urls = [item["presigned_url"] for item in answer["results"]]
    assert [bool(url) for url in urls] == [False, False, False, True, False], "the URL to PUT is shown once"
    assert answer["pagination"]["total"] == 5
    assert len(loop.get(path)["results"]) == 5
    assert loop.post(f"/buckets/{loop.bucket()}/uploads/list")["stats"]["avg_file_size_bytes"] == 0
    loop.refused(422, "POST", f"{path}/list?limit=0")


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/uploads/batch", 200)
@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/uploads/confirm/batch", 200)
@pytest.mark.operation("PUT", "/v1/uploads/{upload_id}", 200)
def test_batches(loop: Loop, bucket: str) -> None:
    body = {
        "uploads": [request(filename=f"{n}.txt", object_metadata={"n": n}) for n in range(3)],
        "shared_metadata": {"from": "camera"},
        "shared_object_metadata": {"n": 9, "shared": True},
    }
    answer = loop.post(f"/buckets/{bucket}/uploads/batch", body)
    assert answer["total"] == 3
    assert [item["metadata"] for item in answer["uploads"]] == [{"from": "camera"}] * 3
    assert answer["uploads"][1]["object_metadata"] == {"n": 1, "shared": True}
    for number, upload in enumerate(answer["uploads"][:2]):
        put(upload, b"text %d" % number)
    confirmations: list[Any] = [{"upload_id": item["upload_id"]} for item in answer["uploads"]]
    confirmations[0]["file_size_bytes"] = 6
    path = f"/buckets/{bucket}/uploads/confirm/batch"
    done = loop.post(path, {"confirmations": [*confirmations, {"etag": "x"}, 7]})
    assert (done["status"], done["confirmations_count"]) == ("COMPLETED_WITH_ERRORS", 5)
    assert done["task_id"] == done["task"]["task_id"]
    assert done["task"]["task_type"] == "api_buckets_uploads_batch_confirm"
    assert [item["status"] for item in done["task"]["outputs"]] == ["COMPLETED"] * 2
    failed = done["task"]["additional_data"]["failed_confirmations"]
    assert [item["index"] for item in failed] == [2, 3, 4]
    assert "Nothing has been uploaded" in failed[0]["error"]
    assert loop.get(f"/tasks/{done['task_id']}") == done["task"]
    loop.client.put(answer["uploads"][2]["presigned_url"], content=b"text 2").raise_for_status()
    again = loop.post(path, {"confirmations": confirmations})
    assert again["status"] == "COMPLETED"
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 3
    assert loop.post(path, {"confirmations": [{"upload_id": "upl_0"}]})["status"] == "FAILED"
    loop.refused(422, "POST", path, {"confirmations": []})
    loop.refused(422, "POST", path, {"confirmations": [{}] * 101})


@pytest.mark.operation("DELETE", "/v1/buckets/{bucket_identifier}/uploads/{upload_id}", 204)
def test_delete(server: Server, loop: Loop, bucket: str) -> None:
    made, done = create(loop, bucket), create(loop, bucket, skip_duplicates=False)
    put(made)
    put(done)
    thing = loop.post(confirm_path(bucket, done), {})["object_id"]
    assert len(files(server, loop.namespace_id, "uploads")) == 1
    for upload in (made, done):
        path = f"/buckets/{bucket}/uploads/{upload['upload_id']}"
        loop.delete(f"{path}?delete_s3_object=true", status=204)
        loop.refused(404, "GET", path)
        loop.refused(404, "DELETE", path)
        loop.refused(404, "POST", f"{path}/confirm", {})
        assert put_refused(404, upload)
    assert files(server, loop.namespace_id, "uploads") == []
    assert loop.get(f"/buckets/{bucket}/objects/{thing}")["blobs"][0]["data"] == WORDS.decode()


def test_everything_goes_with_the_namespace(server: Server, client: httpx.Client) -> None:
    made = client.post(
        "/v1/namespaces", json={"namespace_name": "going", "feature_extractors": [TEXT]}
    ).json()
    loop = Loop(client, made)
    bucket = loop.bucket({"note": {"type": "text"}})
    waiting, done = create(loop, bucket), create(loop, bucket)
    put(waiting)
    put(done)
    loop.post(confirm_path(bucket, done), {})
    task = client.delete(f"/v1/namespaces/{made['namespace_id']}").json()["task_id"]
    assert server.wait_for_task(task)["status"] == "COMPLETED"
    assert not (server.data / "blobs" / made["namespace_id"]).exists()
    assert put_refused(404, waiting)
    assert not (server.data / "blobs" / made["namespace_id"]).exists()


# --- large, slow, broken ------------------------------------------------------------------------------


def begin_put(upload: dict[str, Any], length: int) -> socket.socket:
    """Send the head of a PUT of `length` bytes and return the connection."""
    url = urlsplit(upload["presigned_url"])
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    connection.sendall(
        f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


def until(probe: Callable[[], Any], timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)
    return found


def memory_mib(server: Server) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]


def test_a_large_file_is_streamed(server: Server, loop: Loop) -> None:
    """96 MiB pass, and memory does not grow by them."""
    bucket = loop.bucket({"film": {"type": "video"}})
    made = create(loop, bucket, filename="film.mp4", content_type="video/mp4", create_object_on_confirm=False)
    piece = os.urandom(2**20)
    before = memory_mib(server)
    assert put(made, (piece for _ in range(96))).status_code == 200  # type: ignore[arg-type]
    assert memory_mib(server) - before < 64
    assert loop.post(confirm_path(bucket, made), {})["file_size_bytes"] == 96 * 2**20


def test_uploads_that_dawdle_hold_nobody_up(server: Server, loop: Loop, bucket: str) -> None:
    """More of them than the server has threads for requests."""
    made = create(loop, bucket)
    connections = [begin_put(made, 100) for _ in range(60)]
    for connection in connections:
        connection.sendall(b"x" * 50)
    until(lambda: len(parts(server)) == 60)
    assert loop.get(f"/buckets/{bucket}/uploads/{made['upload_id']}")["status"] == "PENDING"
    for connection in connections:
        connection.close()
    until(lambda: not parts(server))


def test_half_an_upload_is_nothing(server: Server, loop: Loop, bucket: str) -> None:
    made = create(loop, bucket)
    connection = begin_put(made, 10_000_000)
    connection.sendall(b"x" * 3_000_000)
    until(lambda: parts(server))
    connection.close()
    until(lambda: not parts(server))
    assert "Nothing has been uploaded" in loop.refused(400, "POST", confirm_path(bucket, made), {})
    assert files(server, loop.namespace_id, "uploads") == []


def test_a_refused_file_is_not_asked_for(loop: Loop, bucket: str) -> None:
    """A client that asks first (Expect: 100-continue) is told before it sends anything."""
    made = create(loop, bucket, file_size_bytes=10)
    url = urlsplit(made["presigned_url"])
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    connection.putrequest("PUT", f"{url.path}?{url.query}")
    connection.putheader("Content-Length", "1000000000")
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with small bounds, which may be killed."""
    server = Server.start(
        tmp_path_factory.mktemp("uploads") / "data",
        environment={"TESSERA_MAX_UPLOAD_BYTES": "100000", "TESSERA_UPLOAD_IDLE_S": "2"},
    )
    yield server
    server.kill(group=True)


def place(server: Server) -> tuple[Loop, str]:
    client = server.client()
    name = f"small_{time.monotonic_ns()}"
    made = client.post("/v1/namespaces", json={"namespace_name": name, "feature_extractors": [TEXT]}).json()
    loop = Loop(client, made)
    return loop, loop.bucket({"note": {"type": "text"}})


def test_bounds_are_settings(small_server: Server) -> None:
    loop, bucket = place(small_server)
    made = create(loop, bucket)
    assert "larger than 100000 bytes" in put_refused(413, made, b"x" * 100_001)
    assert put_refused(413, made, iter([b"x" * 60_000] * 2))  # type: ignore[arg-type]
    assert put(made, b"x" * 100_000).status_code == 200
    connection = begin_put(made, 1000)
    connection.sendall(b"x" * 10)
    answer = connection.recv(1000)
    assert b" 408 " in answer.splitlines()[0]
    connection.close()
    until(lambda: not parts(small_server))


def test_a_refused_client_that_drips_gets_its_answer_all_the_same(small_server: Server) -> None:
    """Whoever has no valid URL holds a connection for one pause, not for the time of an upload."""
    loop, bucket = place(small_server)
    made = create(loop, bucket)
    made["presigned_url"] += "0"
    connection = begin_put(made, 1_000_000)
    connection.settimeout(0.2)
    answer, deadline = b"", time.monotonic() + 20
    while not answer:
        assert time.monotonic() < deadline, "there was no answer"
        connection.sendall(b"x")
        with contextlib.suppress(TimeoutError):
            answer = connection.recv(1000)
    assert b" 403 " in answer.splitlines()[0]
    connection.close()


def test_what_expired(small_server: Server) -> None:
    loop, bucket = place(small_server)
    made = create(loop, bucket)
    put(made)
    database = sqlite3.connect(small_server.data / "tessera.sqlite3")
    with database:
        database.execute(
            "UPDATE uploads SET expires_at = '2020-01-01T00:00:00.000000Z' WHERE upload_id = ?",
            (made["upload_id"],),
        )
    path = f"/buckets/{bucket}/uploads/{made['upload_id']}"
    assert loop.get(path)["status"] == "FAILED"
    assert "expired" in loop.refused(400, "POST", f"{path}/confirm", {})
    assert loop.post(f"/buckets/{bucket}/uploads/list")["stats"]["uploads_by_status"] == {"FAILED": 1}
    small_server.restart()  # the first thing that a server does is to sweep
    until(lambda: not files(small_server, loop.namespace_id, "uploads"))
    # An upload of 2020 is forgotten altogether.
    until(lambda: loop.client.get(f"/v1{path}", headers=loop.headers).status_code == 404)
    database.close()


@pytest.mark.parametrize(
    "point", [pytest.param("upload.received", marks=pytest.mark.slow), "upload.staged", "upload.kept"]
)
def test_a_kill_leaves_nothing_by_halves(tmp_path: Path, point: str) -> None:
    """Killed with the file complete and not named, named and not noted, a blob and not confirmed."""
    server = Server.start(tmp_path / "data", environment={"TESSERA_TEST_FAILPOINT": f"{point}:1:self"})
    try:
        loop, bucket = place(server)
        made = create(loop, bucket)
        path = confirm_path(bucket, made)
        with pytest.raises(httpx.TransportError):
            put(made)
            loop.client.post(f"/v1{path}", json={}, headers=loop.headers)
        assert server.wait_until_dead(30)
        server = Server.start(tmp_path / "data")
        loop.client = server.client()
        assert parts(server) == []
        if point != "upload.kept":
            assert "Nothing has been uploaded" in loop.refused(400, "POST", path, {})
            made["presigned_url"] = re.sub(r"^http://[^/]+", server.url, made["presigned_url"])
            assert put(made).status_code == 200
        assert loop.get(f"/buckets/{bucket}")["object_count"] == 0
        thing = loop.post(path, {})["object_id"]
        assert loop.get(f"/buckets/{bucket}/objects/{thing}")["blobs"][0]["data"] == WORDS.decode()
        assert files(server, loop.namespace_id, "uploads") == []
    finally:
        server.kill(group=True)
