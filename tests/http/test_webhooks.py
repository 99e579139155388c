"""Webhooks: made, shown without their secrets, told of what happens, at least once, whatever is killed."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.loop import PASSTHROUGH, TEXT, Loop
from tests.http.processes import Server
from tests.receiver import Receiver, hanging, receiving
from tests.website import PUBLIC

HOOKS = "/v1/organizations/webhooks"
EVERY = [
    "object.created",
    "objects.created.batch",
    "object.updated",
    "object.deleted",
    "collection.created",
    "collection.updated",
    "collection.deleted",
    "collection.documents.written",
]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tries again soon, and gives up after some seconds."""
    server = Server.start(
        tmp_path_factory.mktemp("quick") / "data",
        environment={
            "TESSERA_FETCH_ALLOWED_NETWORKS": f"{PUBLIC}/32",
            "TESSERA_WEBHOOK_RETRY_S": "0.05",
            "TESSERA_WEBHOOK_GIVE_UP_S": "10",
        },
    )
    yield server
    assert server.stop() == 0, server.log[-2000:]


@pytest.fixture
def hook(client: httpx.Client) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that makes a webhook on the shared server; removed afterwards."""
    made: list[str] = []

    def create(url: str, **fields: Any) -> dict[str, Any]:
        answer = make(client, url, **fields)
        made.append(answer["webhook_id"])
        return answer

    yield create
    for webhook_id in made:
        client.delete(f"{HOOKS}/{webhook_id}")


@pytest.fixture
def loop(client: httpx.Client, namespace: Callable[..., dict[str, Any]]) -> Loop:
    return Loop(client, namespace(feature_extractors=[TEXT, PASSTHROUGH]))


def body(url: str, **fields: Any) -> dict[str, Any]:
    return {
        "webhook_name": f"hook {next(_numbers)}",
        "event_types": ["object.created"],
        "channels": [channel(url)],
        **fields,
    }


def channel(url: str, **configs: Any) -> dict[str, Any]:
    return {"channel": "webhook", "configs": {"url": url, **configs}}


def make(client: httpx.Client, url: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(HOOKS, json=body(url, **fields))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def deliveries(client: httpx.Client, webhook_id: str, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"{HOOKS}/{webhook_id}/deliveries", params=query).json()[
        "results"
    ]
    return found


def until(probe: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
    return found


def of_the_page() -> Any:
    """Return the function with which docs/webhooks.md checks a signature."""
    page = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
    found: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], found)
    return found["is_genuine"]


def a_namespace(client: httpx.Client) -> Loop:
    made = {"namespace_name": f"hooked_{next(_numbers)}", "feature_extractors": [TEXT]}
    return Loop(client, client.post("/v1/namespaces", json=made).raise_for_status().json())


# --- webhooks themselves ---------------------------------------------------------------------------------


@pytest.mark.operation("POST", "/v1/organizations/webhooks", 201)
@pytest.mark.operation("POST", "/v1/organizations/webhooks/list", 200)
@pytest.mark.operation("GET", "/v1/organizations/webhooks", 200)
@pytest.mark.operation("GET", "/v1/organizations/webhooks/{webhook_identifier}", 200)
@pytest.mark.operation("PUT", "/v1/organizations/webhooks/{webhook_identifier}", 200)
@pytest.mark.operation("DELETE", "/v1/organizations/webhooks/{webhook_identifier}", 204)
def test_a_webhook_from_create_to_delete(client: httpx.Client) -> None:
    wanted = body("https://example.org/hook", webhook_name="from create to delete", event_types=EVERY)
    # The official client asks with a slash at the end, and follows no redirect.
    slashed = client.post(f"{HOOKS}/", json=wanted, follow_redirects=False)
    assert slashed.status_code == 201, slashed.text
    assert client.delete(f"{HOOKS}/{slashed.json()['webhook_id']}/").status_code == 204
    made = client.post(HOOKS, json=wanted)
    assert made.status_code == 201, made.text
    first = made.json()
    webhook_id, secret = first["webhook_id"], first.pop("secret")
    assert secret.startswith("whsec_")
    assert (first["webhook_name"], first["is_active"]) == ("from create to delete", True)
    assert first["channels"] == [
        {
            "channel": "webhook",
            "configs": {"url": "https://example.org/hook", "headers": None, "timeout": 10.0},
        }
    ]
    for identifier in (webhook_id, "from create to delete", f"{webhook_id}/"):
        assert client.get(f"{HOOKS}/{identifier}").json() == first
    again = client.post(HOOKS, json=wanted)
    assert again.status_code == 409 and webhook_id in again.text

    paused = {**wanted, "event_types": ["object.deleted", "object.deleted"], "is_active": False}
    changed = client.put(f"{HOOKS}/{webhook_id}", json=paused)
    assert changed.status_code == 200, changed.text
    assert changed.json()["event_types"] == ["object.deleted"]
    assert (changed.json()["is_active"], changed.json()["created_at"]) == (False, first["created_at"])
    listed = client.post(f"{HOOKS}/list", params={"limit": 1000}).json()
    assert listed["total"] == listed["pagination"]["total"] == len(listed["results"])
    assert changed.json() in listed["results"]
    assert client.get(HOOKS, params={"limit": 1000}).json() == listed
    for chosen, is_there in (
        ({"event_type": "object.deleted", "is_active": False}, True),
        ({"event_type": "object.created"}, False),
        ({"is_active": True}, False),
    ):
        found = client.post(f"{HOOKS}/list", params={"limit": 1000}, json=chosen).json()["results"]
        assert (changed.json() in found) is is_there, chosen
    gone = client.delete(f"{HOOKS}/{webhook_id}")
    assert (gone.status_code, gone.content) == (204, b"")
    for method in ("GET", "DELETE"):
        assert client.request(method, f"{HOOKS}/{webhook_id}").status_code == 404
    events = client.get("/v1/organizations/audit/logs", params={"resource_id": webhook_id}).json()["results"]
    assert [event["action"] for event in events] == ["webhook_deleted", "webhook_updated", "webhook_created"]
    assert events[1]["changes"] == {"fields": ["event_types", "is_active"]}


def test_secrets_are_never_shown_and_stay_when_sent_back(client: httpx.Client, hook: Any) -> None:
    canary = "canary5ecret"
    headers = {"Authorization": f"Bearer {canary}", "X-Tenant": canary}
    url = f"https://example.org/hook?token={canary}"
    made = hook(url, channels=[channel(url, headers=headers)])
    shown = client.get(f"{HOOKS}/{made['webhook_id']}")
    configs = shown.json()["channels"][0]["configs"]
    assert configs["url"] == "https://example.org/hook?********"
    assert configs["headers"] == {"Authorization": "********", "X-Tenant": "********"}
    path = f"{HOOKS}/{made['webhook_id']}"
    back = client.put(path, json=shown.json())
    assert back.status_code == 200, back.text
    answers = [made | {"secret": ""}, shown.json(), back.json(), client.get(HOOKS).json()]
    assert canary not in str(answers) and made["secret"] not in str(answers[1:])
    audit = client.get("/v1/organizations/audit/logs", params={"resource_id": made["webhook_id"]}).json()
    assert audit["results"][0]["changes"] == {"fields": []}, "nothing had changed"
    # Whoever may change a webhook could otherwise have the value sent to a place of their own.
    moved = {
        **shown.json(),
        "channels": [channel("https://evil.example/?********", headers=configs["headers"])],
    }
    refused = client.put(path, json=moved)
    assert refused.status_code == 422 and canary not in refused.text
    assert len(refused.json()["detail"]) == 3


def test_nothing_of_a_webhook_s_secrets_is_in_the_database_in_clear(
    server: Server, client: httpx.Client, hook: Any
) -> None:
    canary = "canary0fTheDisk"
    url = f"https://example.org/hook?token={canary}"
    made = hook(url, channels=[channel(url, headers={"X-Key": canary})])
    client.put(f"{HOOKS}/{made['webhook_id']}", json=body(f"{url}2")).raise_for_status()
    for file in server.data.glob("tessera.sqlite3*"):
        content = file.read_bytes()
        assert canary.encode() not in content, file
        assert made["secret"].removeprefix("whsec_").encode() not in content, file


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"event_types": ["object.creatd"]}, 422, "Did you mean object.created?"),
        ({"event_types": []}, 422, "at least 1 item"),
        ({"event_types": ["*"]}, 422, "must be one of object.created"),
        ({"webhook_name": ""}, 422, "webhook_name must have at least 1 character"),
        ({"webhook_name": "x" * 201}, 422, "webhook_name must have at most 200 characters"),
        ({"webhook_name": "a/b"}, 422, "slash"),
        ({"webhook_name": "wh_0123456789abcdef"}, 422, "looks like an id"),
        ({"channels": []}, 422, "channels must have at least 1 item"),
        (
            {"channels": [{"channel": "slack", "configs": {"webhook_url": "https://x.example/s"}}]},
            422,
            "Use webhook",
        ),
        ({"channels": [{"channel": "pigeon", "configs": {"url": "https://x.example"}}]}, 422, "pigeon"),
        ({"channels": [channel("ftp://example.org/")]}, 422, "http"),
        ({"channels": [channel("s3://bucket/key")]}, 422, "http"),
        ({"channels": [channel("http://10.1.2.3/hook")]}, 400, "not public"),
        ({"channels": [channel("http://[::1]/hook")]}, 400, "not public"),
        ({"channels": [channel("http://user:pass@example.org/")]}, 400, "credentials are not sent"),
        ({"channels": [channel("https://example.org:22/")]}, 422, ""),
        ({"channels": [channel("https://example.org/", timeout=0)]}, 422, "more than 0"),
        ({"channels": [channel("https://example.org/", timeout=31)]}, 422, "at most 30"),
        ({"channels": [channel("https://example.org/", headers={"Host": "x"})]}, 422, "server itself"),
        ({"channels": [channel("https://example.org/", headers={"Webhook-Id": "x"})]}, 422, "server itself"),
        ({"channels": [channel("https://example.org/", headers={"X-A": "1\r\nX-B: 2"})]}, 422, "printable"),
        ({"channels": [channel("https://example.org/", headers={"X A": "1"})]}, 422, "no name of a header"),
        ({"channels": [channel("https://example.org/", payload_template={"a": 1})]}, 422, "payload_template"),
        ({"secret": "whsec_short"}, 422, "openssl rand"),
    ],
)
def test_what_cannot_be_a_webhook(client: httpx.Client, fields: Any, status: int, says: str) -> None:
    answer = client.post(HOOKS, json=body("https://example.org/hook", **fields))
    if not says:
        # Which port a name leads to is only told when its address is known.
        assert answer.status_code == 201
        client.delete(f"{HOOKS}/{answer.json()['webhook_id']}")
        return
    assert answer.status_code == status, answer.text
    assert says in answer.text
    assert "whsec_short" not in answer.text and "pass@" not in answer.text


def test_only_an_admin_key_without_scopes_manages_webhooks(
    server: Server, client: httpx.Client, hook: Any
) -> None:
    made = hook("https://example.org/hook")
    keys = "/v1/organizations/users/admin@localhost/api-keys"
    scope = {"resource_type": "namespace", "resource_id": "*"}
    for fields in ({"permissions": ["delete"]}, {"permissions": ["admin"], "scopes": [scope]}):
        key = client.post(keys, json={"name": f"hooks {next(_numbers)}", **fields}).json()["key"]
        with server.client(key=key) as other:
            for method, path in (
                ("GET", HOOKS),
                ("POST", HOOKS),
                ("GET", f"{HOOKS}/{made['webhook_id']}"),
                ("PUT", f"{HOOKS}/{made['webhook_id']}"),
                ("DELETE", f"{HOOKS}/{made['webhook_id']}"),
                ("GET", f"{HOOKS}/{made['webhook_id']}/deliveries"),
            ):
                sent = body("https://example.org/") if method in ("POST", "PUT") else None
                assert other.request(method, path, json=sent).status_code == 403, (method, path)


# --- events ----------------------------------------------------------------------------------------------


def test_everything_that_happens_is_told(loop: Loop, hook: Any, receiver: Receiver) -> None:
    made = hook(receiver.url("/all"), event_types=EVERY)
    other = hook(receiver.url("/deleted"), event_types=["object.deleted"])
    paused = hook(receiver.url("/paused"), event_types=EVERY, is_active=False)
    bucket = loop.bucket()
    first = loop.note(bucket, "Headphones that fold.")
    note = {"blobs": [{"property": "note", "type": "text", "data": "A lamp."}]}
    wrong = {"blobs": [{"property": "no such", "type": "text", "data": "A lamp."}]}
    objects = loop.post(f"/buckets/{bucket}/objects/batch", {"objects": [note, wrong, note]})
    pair = [item["object_id"] for item in objects["succeeded"]]
    loop.patch(f"/buckets/{bucket}/objects/{first}", {"metadata": {"price": 3}})
    collection = loop.collection(bucket)
    loop.patch(f"/collections/{collection}", {"description": "Lamps"})
    batch = loop.run(bucket, [first, *pair])
    loop.post(f"/collections/{collection}/documents", {"document_id": "mine", "text": "A shade."})
    loop.patch(f"/collections/{collection}/documents/mine", {"text": "A shade by hand."})
    loop.delete(f"/collections/{collection}/documents/mine")
    loop.delete(f"/buckets/{bucket}/objects/{first}", status=204)
    loop.delete(f"/collections/{collection}")
    written = {"documents_written": 0, "documents_deleted": 0}
    expected: list[tuple[str, str, str, dict[str, Any]]] = [
        ("object.created", "object", first, {"bucket_id": bucket}),
        ("objects.created.batch", "bucket", bucket, {"object_ids": pair, "object_count": len(pair)}),
        ("object.updated", "object", first, {"bucket_id": bucket}),
        ("collection.created", "collection", collection, {}),
        ("collection.updated", "collection", collection, {"fields": ["description"]}),
        (
            "collection.documents.written",
            "collection",
            collection,
            {**written, "documents_written": 3, "batch_id": batch["batch_id"]},
        ),
        # Made, then changed by hand.
        *[("collection.documents.written", "collection", collection, {**written, "documents_written": 1})]
        * 2,
        ("collection.documents.written", "collection", collection, {**written, "documents_deleted": 1}),
        ("collection.documents.written", "collection", collection, {**written, "documents_deleted": 1}),
        ("object.deleted", "object", first, {"bucket_id": bucket}),
        ("collection.deleted", "collection", collection, {"documents_deleted": 2}),
    ]
    calls = receiver.wait("/all", len(expected))
    assert len(calls) == len(expected)
    told = sorted((call.event for call in calls), key=lambda event: event["occurred_at"])
    for event, (kind, noun, subject, metadata) in zip(told, expected, strict=True):
        assert event["event_type"] == kind, [item["event_type"] for item in told]
        assert event["subject"] == {"type": noun, "id": subject}
        assert metadata.items() <= event["metadata"].items(), event
        assert event["namespace_id"] == loop.namespace_id
        assert event["cache_scope"] in ("key", "collection", "namespace")
        assert event["event_id"].startswith("evt_")
    is_genuine = of_the_page()
    for call in calls:
        assert call.is_signed_with(made["secret"]) and not call.is_signed_with(other["secret"])
        assert is_genuine(call.headers, call.body, made["secret"])
        assert not is_genuine(call.headers, call.body + b" ", made["secret"])
        assert call.headers["webhook-id"] == call.event["event_id"]
        assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 300
        assert call.headers["content-type"] == "application/json"
    (deleted,) = receiver.wait("/deleted")
    assert deleted.event == told[10], "one event, one id, whoever is told of it"
    assert deliveries(loop.client, paused["webhook_id"]) == [] and not receiver.at("/paused")


def test_each_collection_that_loses_documents_with_their_object_is_told(
    loop: Loop, hook: Any, receiver: Receiver
) -> None:
    """Deleted, then erased: what was made of the object, and what was derived of that."""
    bucket = loop.bucket()
    first = loop.collection(bucket)
    second = loop.collection(bucket, source={"type": "collection", "collection_ids": [first]})
    objects = [loop.note(bucket, f"Lamp {n}.") for n in range(2)]
    loop.run(bucket, objects)
    hook(receiver.url("/cascade"), event_types=["collection.documents.written"])
    loop.delete(f"/buckets/{bucket}/objects/{objects[0]}", status=204)
    loop.post(f"/namespaces/{loop.namespace_id}/erase", {"object_ids": objects[1:]})
    calls = receiver.wait("/cascade", 4)
    told = sorted((call.event for call in calls), key=lambda event: event["occurred_at"])
    assert [event["subject"]["id"] for event in told] == [first, second] * 2
    counts = [(e["metadata"]["documents_written"], e["metadata"]["documents_deleted"]) for e in told]
    assert counts == [(0, 1)] * 4


def test_an_upload_that_becomes_an_object_is_told(loop: Loop, hook: Any, receiver: Receiver) -> None:
    hook(receiver.url("/uploads"))
    bucket = loop.bucket()
    upload = loop.post(f"/buckets/{bucket}/uploads", {"filename": "a.txt", "content_type": "text/plain"})
    httpx.put(upload["presigned_url"], content=b"Words.").raise_for_status()
    for _ in range(2):
        done = loop.post(f"/buckets/{bucket}/uploads/{upload['upload_id']}/confirm", {})
    (call,) = receiver.wait("/uploads")
    assert call.event["subject"] == {"type": "object", "id": done["object_id"]}


def test_what_comes_of_no_change_is_not_told(loop: Loop, hook: Any, receiver: Receiver) -> None:
    """The same request again, a refused one and a change of nothing happened once, not at all, and not at all."""
    hook(receiver.url("/once"), event_types=EVERY)
    bucket = loop.bucket()
    note = {"blobs": [{"property": "note", "type": "text", "data": "Once."}]}
    for _ in range(2):
        loop.post(f"/buckets/{bucket}/objects", note, headers={"Idempotency-Key": f"k{bucket}"})
    loop.refused(404, "DELETE", f"/buckets/{bucket}/objects/obj_0123456789abcdef")
    collection = loop.collection(bucket, description="the same")
    loop.patch(f"/collections/{collection}", {"description": "the same"})
    loop.delete(f"/collections/{collection}")
    calls = receiver.wait("/once", 3)
    kinds = sorted(call.event["event_type"] for call in calls)
    assert kinds == ["collection.created", "collection.deleted", "object.created"]


def test_headers_and_channels_of_one_webhook(
    client: httpx.Client, loop: Loop, hook: Any, receiver: Receiver
) -> None:
    made = hook(
        "",
        channels=[
            channel(receiver.url("/one?token=t0k"), headers={"Authorization": "Bearer of-mine"}),
            channel(receiver.url("/two")),
        ],
    )
    loop.note(loop.bucket(), "Twice.")
    (one,), (two,) = receiver.wait("/one"), receiver.wait("/two")
    assert one.body == two.body
    assert one.path == "/one?token=t0k" and one.headers["authorization"] == "Bearer of-mine"
    assert "authorization" not in two.headers
    log = until(lambda: deliveries(client, made["webhook_id"], status="DELIVERED")[1:] and True)
    assert log
    assert {item["channel"] for item in deliveries(client, made["webhook_id"])} == {0, 1}


# --- delivering ------------------------------------------------------------------------------------------


@pytest.mark.operation("GET", "/v1/organizations/webhooks/{webhook_identifier}/deliveries", 200)
@pytest.mark.operation("GET", "/v1/organizations/webhooks/{webhook_identifier}/deliveries/{delivery_id}", 200)
@pytest.mark.operation(
    "POST", "/v1/organizations/webhooks/{webhook_identifier}/deliveries/{delivery_id}/redeliver", 202
)
def test_an_event_is_sent_until_a_2xx_and_again_when_asked(quick: Server, receiver: Receiver) -> None:
    receiver.answer("/elsewhere", 200)
    url = receiver.answer("/flaky", 500, 302, 204, Location=receiver.url("/elsewhere"))
    with quick.client() as client:
        made = make(client, url)
        loop = a_namespace(client)
        loop.note(loop.bucket(), "Again and again.")
        calls = receiver.wait("/flaky", 3)
        assert len({call.headers["webhook-id"] for call in calls}) == 1
        assert len({call.body for call in calls}) == 1
        assert all(call.is_signed_with(made["secret"]) for call in calls)
        path = f"{HOOKS}/{made['webhook_id']}/deliveries"
        (done,) = until(lambda: deliveries(client, made["webhook_id"], status="DELIVERED"))
        assert (done["attempts"], done["next_attempt_at"]) == (3, None)
        assert [item["status_code"] for item in done["history"]] == [500, 302, 204]
        assert "Redirects are not followed" in done["history"][1]["error"]
        assert not receiver.at("/elsewhere")
        assert client.get(f"{path}/{done['delivery_id']}").json() == done
        assert done["event"] == calls[0].event
        assert deliveries(client, made["webhook_id"], event_type="object.deleted") == []
        again = client.post(f"{path}/{done['delivery_id']}/redeliver")
        assert again.status_code == 202, again.text
        assert again.json()["redelivery_of"] == done["delivery_id"]
        assert again.json()["event_id"] == done["event_id"]
        assert receiver.wait("/flaky", 4)[3].headers["webhook-id"] == done["event_id"]
        assert client.post(f"{path}/dlv_0000000000000000/redeliver").status_code == 404
        assert client.get(path, params={"status": "LOST"}).status_code == 422


def test_what_is_never_taken_is_given_up_and_said(quick: Server, receiver: Receiver) -> None:
    url = receiver.answer("/broken", 503)
    with quick.client() as client:
        made = make(client, url)
        loop = a_namespace(client)
        loop.note(loop.bucket(), "In vain.")
        (failed,) = until(lambda: deliveries(client, made["webhook_id"], status="FAILED"))
        assert failed["attempts"] > 1 and failed["history"][-1]["status_code"] == 503
        health = client.get(f"{HOOKS}/{made['webhook_id']}").json()["delivery_health"]
        assert health["consecutive_failures"] == failed["attempts"]
        assert (
            "503" in health["last_failure_cause"] and health["first_failure_at"] < health["last_failure_at"]
        )
        # The receiver is mended: what had failed is asked for again.
        receiver.answer("/broken", 200)
        path = f"{HOOKS}/{made['webhook_id']}/deliveries/{failed['delivery_id']}/redeliver"
        assert client.post(path).status_code == 202
        (done,) = until(lambda: deliveries(client, made["webhook_id"], status="DELIVERED"))
        assert done["event_id"] == failed["event_id"]
        assert client.get(f"{HOOKS}/{made['webhook_id']}").json()["delivery_health"] is None


def test_a_receiver_that_is_gone_is_not_asked_again(quick: Server, receiver: Receiver) -> None:
    with quick.client() as client:
        made = make(client, receiver.answer("/gone", 410))
        loop = a_namespace(client)
        loop.note(loop.bucket(), "Gone.")
        (failed,) = until(lambda: deliveries(client, made["webhook_id"], status="FAILED"))
        assert failed["attempts"] == 1 and len(receiver.at("/gone")) == 1


def test_receivers_that_never_answer_hold_up_nobody(quick: Server, receiver: Receiver) -> None:
    released = threading.Event()
    with quick.client() as client:
        for number in range(4):
            receiver.answers[f"/silent{number}"] = hanging(released)
            url = receiver.url(f"/silent{number}")
            make(client, url, channels=[channel(url, timeout=30)])
        good = make(client, receiver.url("/good"))
        loop = a_namespace(client)
        bucket = loop.bucket()
        objects = {loop.note(bucket, f"Note {number}.") for number in range(12)}
        calls = receiver.wait("/good", len(objects))
        assert {call.event["subject"]["id"] for call in calls} == objects
        # All the while the others hang.
        for number in range(4):
            assert receiver.wait(f"/silent{number}")
        until(lambda: len(deliveries(client, good["webhook_id"], status="DELIVERED", limit="100")) == 12)
        released.set()


def test_a_private_address_behind_a_name_is_not_reached(quick: Server) -> None:
    with receiving("127.0.0.1") as inside, quick.client() as client:
        made = make(client, f"http://localhost:{inside.port}/hook")
        loop = a_namespace(client)
        loop.note(loop.bucket(), "Inside.")
        item = until(lambda: next((d for d in deliveries(client, made["webhook_id"]) if d["attempts"]), None))
        assert "not public" in item["history"][0]["error"]
        assert item["history"][0]["status_code"] is None
        assert inside.calls == []


def test_a_changed_url_rescues_what_waits(server: Server, hook: Any, receiver: Receiver, loop: Loop) -> None:
    made = hook(receiver.answer("/wrong", 404))
    loop.note(loop.bucket(), "To the wrong place.")
    receiver.wait("/wrong")
    path = f"{HOOKS}/{made['webhook_id']}"
    until(lambda: deliveries(loop.client, made["webhook_id"])[0]["attempts"])
    (waits,) = deliveries(loop.client, made["webhook_id"], status="PENDING")
    assert waits["next_attempt_at"] > waits["history"][0]["at"]
    changed = body(receiver.url("/right"), webhook_name=made["webhook_name"])
    loop.client.put(path, json=changed).raise_for_status()
    (call,) = receiver.wait("/right")
    assert call.headers["webhook-id"] == waits["event_id"]
    assert call.is_signed_with(made["secret"]), "the secret stays"


# --- killed ----------------------------------------------------------------------------------------------


def start(data: Path, point: str | None = None) -> Server:
    environment = {
        "TESSERA_FETCH_ALLOWED_NETWORKS": f"{PUBLIC}/32",
        "TESSERA_WEBHOOK_RETRY_S": "0.05",
        **({"TESSERA_TEST_FAILPOINT": point} if point else {}),
    }
    return Server.start(data, environment=environment)


def test_events_survive_kills(tmp_path: Path, receiver: Receiver) -> None:
    """Whatever was committed is told, by the next server if need be; at worst twice, under the same id.

    Killed after an object was committed, after its event was taken up, and after it was sent and before that was
    written down.
    """
    path = "/killed"
    server = start(tmp_path / "data", "object.committed:3:group")
    known: set[str] = set()
    try:
        with server.client() as client:
            made = make(client, receiver.url(path))
            loop = a_namespace(client)
            bucket = loop.bucket()
        for point in ("webhook.taken:2:group", "webhook.sent:2:group", None):
            with server.client() as client, pytest.raises(httpx.TransportError):
                here = Loop(client, {"namespace_id": loop.namespace_id})
                for number in range(1000):
                    known.add(here.note(bucket, f"Note {number}."))
            assert server.wait_until_dead(30)
            try:
                server = start(tmp_path / "data", point)
            except RuntimeError as error:
                # What was left to send brought it to the point before it was ready.
                assert point is not None and "ended with -9" in str(error), error

        def told() -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for call in receiver.at(path):
                found.setdefault(call.event["subject"]["id"], set()).add(call.headers["webhook-id"])
            return found

        with server.client() as client:
            listed = client.post(
                f"/v1/buckets/{bucket}/objects/list", params={"limit": 1000}, headers=loop.headers
            )
            committed = {item["object_id"] for item in listed.raise_for_status().json()["results"]}
            assert known <= committed
            until(lambda: told().keys() >= committed)
            assert told().keys() == committed
            assert all(len(ids) == 1 for ids in told().values()), "an event keeps its id"
            until(lambda: not deliveries(client, made["webhook_id"], status="PENDING"))
    finally:
        server.kill(group=True)
