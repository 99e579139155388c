"""Objects: what may be in them, how it is told when it may not, and that a repeated request has one effect."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, Loop, encoded
from tests.media import RED, picture

PNG = picture(RED)
PROPERTIES = {
    "note": {"type": "text"},
    "photo": {"type": "image"},
    "year": {"type": "integer"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "taken": {"type": "datetime"},
    "state": {"type": "string", "enum": ["new", "old"], "default": "new"},
}


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., Any]) -> Loop:
    return Loop(client, namespace(feature_extractors=[PASSTHROUGH]))


@pytest.fixture
def bucket(loop: Loop) -> str:
    return loop.bucket(PROPERTIES)


def blob(data: Any, property: str = "note", type: str = "text", **more: Any) -> dict[str, Any]:
    return {"property": property, "type": type, "data": data, **more}


def create(loop: Loop, bucket: str, body: Any, **named: Any) -> Any:
    return loop.post(f"/buckets/{bucket}/objects", body, **named)


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/objects", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/objects/{object_identifier}", 200)
def test_an_object_is_answered_as_it_was_sent(loop: Loop, bucket: str) -> None:
    made = create(
        loop,
        bucket,
        {
            "key_prefix": "/catalog",
            "metadata": {"category": "headphones"},
            "year": 2024,
            "colour": "red",
            "blobs": [blob("Grüße", metadata={"lang": "de"})],
        },
    )
    assert (made["bucket_id"], made["key_prefix"], made["status"]) == (bucket, "/catalog", "DRAFT")
    assert (made["metadata"], made["year"], made["colour"]) == ({"category": "headphones"}, 2024, "red")
    assert made["state"] == "new", "a default of the schema"
    (stored,) = made["blobs"]
    assert (stored["property"], stored["type"], stored["properties"]) == ("note", "text", {"lang": "de"})
    assert stored["details"]["size_bytes"] == 7, "bytes of UTF-8"
    assert stored["details"]["mime_type"] == "text/plain"
    got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}")
    assert got["blobs"][0]["data"] == "Grüße"
    assert got["document_count"] == 0
    assert {**got, "blobs": None, "document_count": None} == {**made, "blobs": None}


@pytest.mark.parametrize(
    "data",
    [
        encoded(PNG),
        "\n".join(base64.encodebytes(PNG).decode().split("\n")),
        f"data:image/png;base64,{encoded(PNG)}",
        f"data:;base64,{encoded(PNG)}",
        f"DATA:image/png;name=x.png;base64,{encoded(PNG)}",
    ],
    ids=["base64", "base64 in lines", "data URI", "without a type", "with a parameter"],
)
def test_a_picture_in_any_form_is_the_same_file(loop: Loop, bucket: str, data: str) -> None:
    made = create(loop, bucket, {"blobs": [blob(data, "photo", "image", filename="/tmp/shots/red.png")]})
    details = made["blobs"][0]["details"]
    assert (details["size_bytes"], details["mime_type"]) == (len(PNG), "image/png")
    assert details["filename"] == "red.png", "a path is cut to its last part"
    got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}?return_presigned_urls=true")
    url = got["blobs"][0]["presigned_url"]
    assert httpx.get(url).content == PNG, "no key is needed"
    plain = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}")
    assert plain["blobs"][0]["presigned_url"] is None


def test_a_text_in_a_data_uri_is_decoded(loop: Loop, bucket: str) -> None:
    for uri in ("data:,Gr%C3%BC%C3%9Fe", "data:text/plain;charset=latin-1;base64,R3L832U="):
        made = create(loop, bucket, {"blobs": [blob(uri)]})
        got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}")
        assert got["blobs"][0]["data"] == "Grüße"


def test_a_long_text_is_kept_as_a_file(loop: Loop, bucket: str) -> None:
    text = "ä" * 200_000
    made = create(loop, bucket, {"blobs": [blob(text)]})
    got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}?return_presigned_urls=true")
    assert got["blobs"][0]["data"] is None
    file = httpx.get(got["blobs"][0]["presigned_url"])
    assert file.text == text
    assert file.headers["content-type"] == "text/plain; charset=utf-8"
    assert file.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize("scheme", ["gs", "file", "ftp"])
@pytest.mark.parametrize("property", ["note", "photo"])
def test_other_schemes_are_refused_with_what_to_do_instead(
    loop: Loop, bucket: str, scheme: str, property: str
) -> None:
    url = f"{scheme}://user:secret@example.com/a.png?token=secret"
    type = str(PROPERTIES[property]["type"])
    said = loop.refused(400, "POST", f"/buckets/{bucket}/objects", {"blobs": [blob(url, property, type)]})
    assert "blobs[0].data" in said
    assert "http://, https:// and s3:// are fetched" in said
    assert "data URI" in said
    assert "secret" not in said


def test_a_url_with_credentials_is_refused_without_telling_them(loop: Loop, bucket: str) -> None:
    body = {"blobs": [{"property": "photo", "url": "https://user:secret@example.com/cat.jpg?secret"}]}
    said = loop.refused(400, "POST", f"/buckets/{bucket}/objects", body)
    assert "blobs[0].url" in said and "credentials are not sent" in said and "secret" not in said


def test_a_text_that_holds_a_url_is_a_text(loop: Loop, bucket: str) -> None:
    made = create(loop, bucket, {"blobs": [blob("See https://example.com for more.")]})
    assert made["blobs"][0]["details"]["mime_type"] == "text/plain"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            {"blobs": [blob("x", "nowhere")]},
            "no property 'nowhere'; its properties are: note (text), photo (image)",
        ),
        ({"blobs": [blob("x", "photo", "text")]}, "is image in the bucket's schema, not text"),
        ({"blobs": [blob("x", type="txt")]}, "blobs[0].type"),
        ({"blobs": [blob("one"), blob("two")]}, "given twice"),
        ({"blobs": [{"property": "note", "type": "text"}]}, "blobs[0].data is required"),
        ({"blobs": [blob("")]}, "is empty"),
        ({"blobs": [blob(12)]}, "blobs[0].data must be a string, not a number"),
        ({"blobs": [blob({"a": 1})]}, "not an object"),
        ({"blobs": [blob("no base64!", "photo", "image")]}, "not valid base64"),
        ({"blobs": [blob("QUJDREVG", "photo", "image")]}, "not recognised as image: PNG, JPEG"),
        ({"blobs": [blob("QUJDREV", "photo", "image")]}, "not valid base64"),
        ({"blobs": [blob("data:image/png", "photo", "image")]}, "no comma"),
        ({"blobs": [blob("data:image png;base64,QUJD", "photo", "image")]}, "media type is not valid"),
        (
            {"blobs": [blob(encoded(b"%PDF-1.7 and more".ljust(40)), "photo", "image")]},
            "holds application/pdf, but image",
        ),
        ({"blobs": [blob("data:text/plain;base64,//8=")]}, "does not decode as utf-8"),
        ({"blobs": [{**blob("x"), "property": "p" * 101}]}, "at most 100 characters"),
        ({"year": "1999"}, "year must be a whole number, not '1999'"),
        ({"year": 19.5}, "year must be a whole number, not 19.5"),
        ({"year": True}, "year must be a whole number, not true"),
        ({"metadata": {"year": "1999"}}, "metadata.year must be a whole number"),
        ({"tags": ["a", 1]}, "tags [1] must be a string, not 1"),
        ({"tags": "a"}, "tags must be a list"),
        ({"taken": "yesterday"}, "date and time such as"),
        ({"state": "used"}, "one of 'new', 'old', not 'used'"),
        ({"metadata": ["a"]}, "metadata must be an object"),
        ({"object_id": "obj_1"}, "send yours inside `metadata`"),
        ({"created_at": "2024-01-01"}, "send yours inside `metadata`"),
        ({"_internal": {}}, "send yours inside `metadata`"),
    ],
)
def test_what_is_wrong_with_an_object_is_named(loop: Loop, bucket: str, body: Any, said: str) -> None:
    assert said in loop.refused(422, "POST", f"/buckets/{bucket}/objects", body)
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 0


def test_all_problems_come_together(loop: Loop, bucket: str) -> None:
    body = {
        "year": "x",
        "blobs": [blob("y", "nowhere"), blob("http://10.0.0.1/"), blob("!", "photo", "image")],
    }
    said = loop.refused(422, "POST", f"/buckets/{bucket}/objects", body)
    for part in ("year", "'nowhere'", "not public", "not valid base64"):
        assert part in said


def test_what_the_schema_requires_may_come_in_any_place(loop: Loop) -> None:
    bucket = loop.bucket(
        {"note": {"type": "text", "required": True}, "year": {"type": "integer", "required": True}}
    )
    path = f"/buckets/{bucket}/objects"
    said = loop.refused(422, "POST", path, {})
    assert "note (text) is required" in said
    assert "year (integer) is required" in said
    for body in (
        {"note": "a", "year": 1},
        {"metadata": {"note": "b", "year": 1}},
        {"blobs": [blob("c")], "metadata": {"year": 1}},
        {"blobs": [blob("d"), blob(1, "year", "integer")]},
    ):
        made = loop.post(path, body)
        assert [item["property"] for item in made["blobs"]] == ["note"]


@pytest.mark.parametrize("form", [{"data": "some words"}, {"data": "data:,some%20words"}])
def test_the_short_form_finds_the_only_property(loop: Loop, form: Any) -> None:
    bucket = loop.bucket({"note": {"type": "text"}, "year": {"type": "integer"}})
    made = create(loop, bucket, {"blob": form, "metadata": {"category": "x"}})
    assert (made["blobs"][0]["property"], made["metadata"]) == ("note", {"category": "x"})
    by_url = create(loop, bucket, {"blob": {"url": "https://example.com/x?y=z"}})
    assert (by_url["blobs"][0]["property"], by_url["blobs"][0]["url"]) == ("note", "https://example.com/x")
    several = loop.bucket(PROPERTIES)
    said = loop.refused(400, "POST", f"/buckets/{several}/objects", {"blob": form})
    assert "note, photo" in said


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/objects/batch", 200)
def test_a_batch_succeeds_and_fails_object_by_object(loop: Loop, bucket: str) -> None:
    answer = loop.post(
        f"/buckets/{bucket}/objects/batch",
        {
            "objects": [
                {"year": 1999},
                {"year": "no"},
                "not an object",
                {"blobs": [blob("x", "nowhere")]},
                {"blobs": [blob("ftp://example.com/x")]},
                {"blobs": [blob("fine")]},
            ]
        },
    )
    assert (answer["total_requested"], answer["succeeded_count"], answer["failed_count"]) == (6, 2, 4)
    assert [item["object_index"] for item in answer["succeeded"]] == [0, 5]
    failed = {item["object_index"]: item for item in answer["failed"]}
    assert failed[1]["error_type"] == "ValidationError"
    assert "whole number" in failed[1]["error"]
    assert "nowhere" in failed[3]["error"]
    assert failed[4]["error_type"] == "BadRequestError"
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 2
    path = f"/buckets/{bucket}/objects/batch"
    assert "at most 100 items" in loop.refused(422, "POST", path, {"objects": [{}] * 101})
    assert "at least 1 item" in loop.refused(422, "POST", path, {"objects": []})


def test_duplicates_are_made_once_when_asked(loop: Loop, bucket: str) -> None:
    body = {"metadata": {"a": 1, "b": 2}, "blobs": [blob("same")], "skip_duplicates": True}
    first = create(loop, bucket, body)
    again = create(loop, bucket, {**body, "metadata": {"b": 2, "a": 1}})
    assert again == first
    assert create(loop, bucket, {**body, "metadata": {"a": 1}})["object_id"] != first["object_id"]
    assert create(loop, bucket, {**body, "skip_duplicates": False})["object_id"] != first["object_id"]
    batch = loop.post(f"/buckets/{bucket}/objects/batch", {"objects": [body]})
    assert batch["succeeded"][0]["replayed_by"] == "skip_duplicates"


def test_a_repeated_request_has_one_effect(loop: Loop, bucket: str) -> None:
    body = {"blobs": [blob("once")]}
    headers = {"Idempotency-Key": "order-17"}
    first = create(loop, bucket, body, headers=headers)
    assert create(loop, bucket, body, headers=headers) == first
    said = loop.refused(
        409, "POST", f"/buckets/{bucket}/objects", {"blobs": [blob("twice")]}, headers=headers
    )
    assert "'order-17' was used for another request" in said
    # The key belongs to the route: another bucket is another route.
    other = loop.bucket(PROPERTIES)
    assert create(loop, other, body, headers=headers)["object_id"] != first["object_id"]
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 1
    loop.delete(f"/buckets/{bucket}/objects/{first['object_id']}", status=204)
    said = loop.refused(409, "POST", f"/buckets/{bucket}/objects", body, headers=headers)
    assert "has been deleted since" in said
    said = loop.refused(422, "POST", f"/buckets/{bucket}/objects", body, headers={"Idempotency-Key": "a b"})
    assert "Idempotency-Key" in said


def test_a_repeated_batch_adds_only_what_is_missing(loop: Loop, bucket: str) -> None:
    headers = {"Idempotency-Key": "import-1"}
    path = f"/buckets/{bucket}/objects/batch"
    bodies = [{"year": 1}, {"year": "no"}, {"year": 3, "idempotency_key": "its own"}]
    first = loop.post(path, {"objects": bodies}, headers=headers)
    again = loop.post(path, {"objects": bodies}, headers=headers)
    assert [item["object_id"] for item in again["succeeded"]] == [
        item["object_id"] for item in first["succeeded"]
    ]
    assert all(item["replayed_by"] == "idempotency_key" for item in again["succeeded"])
    assert again["failed"] == first["failed"]
    assert loop.get(f"/buckets/{bucket}")["object_count"] == 2


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/objects/list", 200)
@pytest.mark.operation("GET", "/v1/buckets/{bucket_identifier}/objects", 200)
def test_lists_filter_by_any_field_wherever_it_stands(loop: Loop, bucket: str) -> None:
    made = [
        create(loop, bucket, {"metadata": {"category": category}, "year": year})["object_id"]
        for category, year in (("Lamps", 2001), ("chairs", 1999), ("lamps", 2005))
    ]

    def listed(body: Any = None) -> list[int]:
        return [
            made.index(item["object_id"])
            for item in loop.post(f"/buckets/{bucket}/objects/list", body)["results"]
        ]

    assert listed() == [0, 1, 2]
    for field in ("category", "metadata.category"):
        assert listed({"filters": {"field": field, "operator": "eq", "value": "LAMPS"}}) == [0, 2]
    for field in ("year", "metadata.year"):
        assert listed({"filters": {"field": field, "operator": "gt", "value": 2000}}) == [0, 2]
    assert listed({"sort": {"field": "year", "direction": "desc"}}) == [2, 0, 1]
    assert listed({"sort": {"field": "nowhere"}}) == sorted(range(3), key=made.__getitem__), "ties by id"
    assert listed({"search": "CHAIR"}) == [1]
    assert listed({"limit": 1, "offset": 1}) == [1]
    page = loop.post(f"/buckets/{bucket}/objects/list", {"page_size": 2})
    assert (page["total_count"], page["stats"]["objects_by_status"]) == (3, {"DRAFT": 2})
    body = {"page_size": 2, "cursor": page["pagination"]["next_cursor"]}
    assert listed(body) == [2]
    found = loop.post(f"/buckets/{bucket}/objects/list", {"select": ["year"]})["results"][0]
    assert "year" in found
    assert "metadata" not in found
    assert len(loop.get(f"/buckets/{bucket}/objects?limit=2")["results"]) == 2
    assert "operator" in loop.refused(
        422,
        "POST",
        f"/buckets/{bucket}/objects/list",
        {"filters": {"field": "a", "operator": "like", "value": 1}},
    )


@pytest.mark.operation("PATCH", "/v1/buckets/{bucket_identifier}/objects/{object_identifier}", 200)
@pytest.mark.operation("PUT", "/v1/buckets/{bucket_identifier}/objects/{object_identifier}", 200)
def test_put_and_patch_change_fields_and_blobs(loop: Loop, bucket: str) -> None:
    made = create(loop, bucket, {"metadata": {"a": 1, "b": 2}, "year": 1999, "blobs": [blob("old")]})
    path = f"/buckets/{bucket}/objects/{made['object_id']}"
    patched = loop.patch(path, {"metadata": {"b": 3}, "year": None, "colour": "red"})
    assert (patched["metadata"], patched["colour"]) == ({"a": 1, "b": 3}, "red")
    assert "year" not in patched
    assert (patched["version"], patched["blobs"][0]["data"]) == (2, "old")
    put = loop.send("PUT", path, {"metadata": {"c": 4}, "blobs": [blob("new")]})
    assert (put["metadata"], put["blobs"][0]["data"], put["colour"]) == ({"c": 4}, "new", "red")
    assert put["content_hash"] != patched["content_hash"]
    assert "whole number" in loop.refused(422, "PATCH", path, {"year": "x"})
    assert {**loop.get(path), "document_count": None} == put


@pytest.mark.operation("DELETE", "/v1/buckets/{bucket_identifier}/objects/{object_identifier}", 204)
def test_delete_answers_204_and_nothing_else(loop: Loop, bucket: str) -> None:
    object_id = create(loop, bucket, {"year": 1})["object_id"]
    assert loop.delete(f"/buckets/{bucket}/objects/{object_id}", status=204) is None
    loop.delete(f"/buckets/{bucket}/objects/{object_id}", status=404)
    loop.get(f"/buckets/{bucket}/objects/{object_id}", status=404)


def test_deleting_an_object_takes_its_documents_along(loop: Loop) -> None:
    bucket = loop.bucket()
    collection = loop.collection(bucket)
    keep, drop = loop.note(bucket, "keep"), loop.note(bucket, "drop")
    assert loop.run(bucket, [keep, drop])["status"] == "COMPLETED"
    assert len(loop.documents(collection)) == 2
    assert loop.get(f"/buckets/{bucket}/objects/{drop}")["document_count"] == 1
    loop.delete(f"/buckets/{bucket}/objects/{drop}", status=204)
    assert [item["root_object_id"] for item in loop.documents(collection)] == [keep]
    assert loop.get(f"/collections/{collection}")["document_count"] == 1


def test_objects_of_another_bucket_or_namespace_are_not_there(
    loop: Loop, bucket: str, namespace: Callable[..., Any], client: httpx.Client
) -> None:
    object_id = create(loop, bucket, {"year": 1})["object_id"]
    elsewhere = loop.bucket()
    other = Loop(client, namespace())
    for method in ("GET", "DELETE"):
        absent = loop.send(method, f"/buckets/{elsewhere}/objects/{object_id}", status=404)
        assert absent["error"]["details"] == {"resource": "object", "id": object_id}
        other.send(method, f"/buckets/{bucket}/objects/{object_id}", status=404)
    other.post(f"/buckets/{bucket}/objects", {"year": 1}, status=404)


def test_signed_links_open_one_file_of_one_namespace(loop: Loop, bucket: str) -> None:
    made = create(loop, bucket, {"blobs": [blob(encoded(PNG), "photo", "image")]})
    got = loop.get(f"/buckets/{bucket}/objects/{made['object_id']}?return_presigned_urls=true")
    url = httpx.URL(got["blobs"][0]["presigned_url"])
    answer = httpx.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("inline")
    part = httpx.get(url, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, PNG[1:4])
    head = httpx.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(PNG)))
    for changed in (
        url.copy_set_param("expires", int(url.params["expires"]) + 1),
        url.copy_set_param("signature", "0" * 64),
        url.copy_with(path=url.path[:-1] + ("0" if url.path[-1] != "0" else "1")),
        url.copy_with(
            path=url.path.replace("/blobs/", "/artifacts/", 2).replace("/artifacts/", "/blobs/", 1)
        ),
    ):
        assert httpx.get(changed).status_code in (403, 404), changed
    assert httpx.get(url.copy_with(query=None)).status_code == 422


@pytest.fixture
def file_url(loop: Loop, bucket: str) -> str:
    """A signed URL of a file of 1000 bytes, ``0123456789`` over and over."""
    upload = loop.post(
        f"/buckets/{bucket}/uploads",
        {"filename": "digits.bin", "content_type": "text/plain", "create_object_on_confirm": False},
    )
    httpx.put(upload["presigned_url"], content=b"0123456789" * 100)
    loop.post(f"/buckets/{bucket}/uploads/{upload['upload_id']}/confirm", {})
    got = loop.get(f"/buckets/{bucket}/uploads/{upload['upload_id']}?return_presigned_urls=true")
    return str(got["presigned_url"])


@pytest.mark.parametrize(
    ("given", "content", "place"),
    [
        ("bytes=0-0", b"0", "0-0"),
        ("bytes=5-7", b"567", "5-7"),
        ("bytes=995-", b"56789", "995-999"),
        ("bytes=-3", b"789", "997-999"),
        ("bytes=990-5000", b"0123456789", "990-999"),
        ("bytes=-5000", b"0123456789" * 100, "0-999"),
        ("Bytes = 1-2", b"12", "1-2"),
    ],
)
def test_ranges(file_url: str, given: str, content: bytes, place: str) -> None:
    answer = httpx.get(file_url, headers={"Range": given})
    assert (answer.status_code, answer.content) == (206, content)
    assert answer.headers["content-range"] == f"bytes {place}/1000"
    assert answer.headers["content-length"] == str(len(content))


def test_several_ranges_come_in_parts(file_url: str) -> None:
    answer = httpx.get(file_url, headers={"Range": "bytes=0-1,8-9"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert b"\r\n\r\n01\r\n" in answer.content and b"\r\n\r\n89\r\n" in answer.content


@pytest.mark.parametrize("given", ["bytes=1000-", "bytes=5000-6000", "bytes=-0", "bytes=1000-,2000-"])
def test_ranges_behind_the_end(file_url: str, given: str) -> None:
    answer = httpx.get(file_url, headers={"Range": given})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */1000"
    assert answer.json()["error"]["type"] == "RangeNotSatisfiableError"


@pytest.mark.parametrize(
    "given", ["bytes", "bytes=", "bytes=a-b", "bytes=5-2", "lines=1-2", "bytes=-", "bytes=1-2-3"]
)
def test_what_is_no_range_is_ignored(file_url: str, given: str) -> None:
    answer = httpx.get(file_url, headers={"Range": given})
    assert (answer.status_code, len(answer.content)) == (200, 1000)


def test_head_and_etags(file_url: str) -> None:
    head = httpx.head(file_url)
    assert (head.status_code, head.content) == (200, b"")
    assert (head.headers["content-length"], head.headers["accept-ranges"]) == ("1000", "bytes")
    etag = head.headers["etag"]
    assert etag == f'"{hashlib.sha256(b"0123456789" * 100).hexdigest()}"'
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        same = httpx.get(file_url, headers={"If-None-Match": given})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert httpx.get(file_url, headers={"If-None-Match": '"other"'}).status_code == 200
    for given, status in ((etag, 206), ('"other"', 200)):
        assert httpx.get(file_url, headers={"Range": "bytes=0-1", "If-Range": given}).status_code == status
    part = httpx.head(file_url, headers={"Range": "bytes=0-1"})
    assert (part.status_code, part.headers["content-length"]) == (206, "2")


# --- aggregate ----------------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/buckets/{bucket_identifier}/objects/aggregate", 200)
def test_objects_in_groups(loop: Loop, bucket: str) -> None:
    for year, tags, size in ((2024, ["a", "b"], 3), (2024, ["b"], 5), (2025, [], 7)):
        body = {"year": year, "tags": tags, "metadata": {"size": size}, "blobs": [blob("x" * size)]}
        create(loop, bucket, body)

    def grouped(by: Any, *figures: Any, **more: Any) -> list[Any]:
        body = {"group_by": [{"field": by, "alias": "key"}], "aggregations": list(figures), **more}
        answer = loop.post(f"/buckets/{bucket}/objects/aggregate", body)
        assert answer["total_groups"] == len(answer["results"])
        return [(item["group"]["key"], *item["metrics"].values()) for item in answer["results"]]

    count = {"function": "count", "alias": "n"}
    total = {"function": "sum", "field": "size", "alias": "total"}
    assert grouped("metadata.year", count, total) == [(2024, 2, 8), (2025, 1, 7)], (
        "at the root or in metadata"
    )
    assert grouped("tags", count, unwind="tags") == [("a", 1), ("b", 2), ([], 1)]
    assert grouped("status", count, filters={"year": 2024}) == [("DRAFT", 2)]
    assert grouped("year", count, having=[{"field": "n", "operator": "gte", "value": 2}]) == [(2024, 2)]
    size = {"function": "max", "field": "blobs.details.size_bytes", "alias": "largest"}
    assert grouped("blobs.type", size, unwind="blobs") == [("text", 7)]
    path = f"/buckets/{bucket}/objects/aggregate"
    assert "aggregations" in loop.refused(422, "POST", path, {"group_by": [{"field": "year"}]})
    assert "needs field" in loop.refused(
        422, "POST", path, {"aggregations": [{"function": "sum", "alias": "s"}]}
    )
    answer = loop.post(path, {"aggregations": [count]})
    assert answer["query_info"] == {"bucket_id": bucket, "objects": 3}
