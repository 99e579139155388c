"""Webhooks with the generated classes; the same file for both releases. What comes is taken by a small server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import unique, until
from scenarios_organizations import answered
from scenarios_typed import CONFIGURED, api, create_bucket, create_namespace, refused


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Yield a URL that takes POSTs, and what came: headers in small letters, and body."""
    came: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.2:{server.server_address[1]}/hook", came
    finally:
        server.shutdown()
        server.server_close()


def wanted(url: str, **fields: Any) -> Any:
    configs = {"url": url, "headers": {"X-Team": "search"}, "timeout": 5}
    return m.WebhookInput.from_dict(
        {
            "webhook_name": unique("hook"),
            "event_types": ["object.created", "collection.documents.written"],
            "channels": [{"channel": "webhook", "configs": configs}],
            "is_active": True,
            **fields,
        }
    )


def make(request: Any) -> tuple[Any, str]:
    """Return the webhook that the client decodes, and the secret, which it does not know of."""
    made = api(mixpeek.WebhooksApi).create_webhook_organizations_with_http_info(request)
    assert made.status_code == 201
    told = json.loads(made.raw_data)
    # The newer client declares 200 here, and decodes no 201.
    typed = m.WebhookOutput.from_dict(told) if CONFIGURED else made.data
    assert type(typed) is m.WebhookOutput, made
    return typed, told["secret"]


def scenario_webhooks() -> None:
    hooks = api(mixpeek.WebhooksApi)
    request = wanted("https://example.org/hook?token=canary")
    made, _ = make(request)
    assert made.webhook_name == request.webhook_name and made.is_active is True
    assert made.event_types == [
        m.WebhookEventType.OBJECT_DOT_CREATED,
        m.WebhookEventType.COLLECTION_DOT_DOCUMENTS_DOT_WRITTEN,
    ]
    config = made.channels[0].configs.actual_instance
    assert type(config) is m.WebhookConfig, config
    assert config.url.startswith("https://example.org/hook?") and "canary" not in config.url
    assert list(config.headers) == ["X-Team"] and config.headers["X-Team"] != "search"
    assert config.timeout == 5 and made.created_at.tzinfo is not None
    refused(exceptions.ConflictException, hooks.create_webhook_organizations, request)

    for identifier in (made.webhook_id, made.webhook_name):
        assert answered(m.WebhookOutput, hooks.get_webhook_organizations, identifier) == made
    chosen = m.ListWebhooksRequest.from_dict({"event_type": "object.created", "is_active": True})
    listed = answered(
        m.ListWebhooksResponse, hooks.list_webhooks_organizations, limit=1000, list_webhooks_request=chosen
    )
    assert made in listed.results and listed.total == listed.pagination.total == len(listed.results)
    changed = wanted("https://example.org/other", webhook_name=made.webhook_name, is_active=False)
    put = answered(m.WebhookOutput, hooks.update_webhook_organizations, made.webhook_id, changed)
    assert put.is_active is False and put.webhook_id == made.webhook_id
    deleted = hooks.delete_webhook_organizations_with_http_info(made.webhook_id)
    assert (deleted.status_code, deleted.data) == (204, None)
    refused(exceptions.NotFoundException, hooks.get_webhook_organizations, made.webhook_id)


def scenario_what_cannot_be_a_webhook() -> None:
    hooks = api(mixpeek.WebhooksApi)
    slack = {"channel": "slack", "configs": {"webhook_url": "https://hooks.example/x"}}
    error = refused(
        exceptions.UnprocessableEntityException,
        hooks.create_webhook_organizations,
        wanted("https://example.org/", channels=[slack]),
    )
    assert "Use webhook" in error.body
    inside = wanted("http://10.0.0.7/hook")
    assert (
        "not public"
        in refused(exceptions.BadRequestException, hooks.create_webhook_organizations, inside).body
    )


def scenario_an_object_is_told() -> None:
    with receiver() as (url, came):
        made, secret = make(wanted(url))
        namespace = create_namespace().namespace_id
        bucket = create_bucket(namespace, {"note": {"type": "text"}})
        note = {"blobs": [{"property": "note", "type": "text", "data": "A lamp."}]}
        created = api(mixpeek.BucketObjectsApi, namespace=namespace).create_object_buckets(
            bucket, m.CreateObjectRequest.from_dict(note)
        )
        ours = until(lambda: [item for item in came if json.loads(item[1])["namespace_id"] == namespace])
        ((headers, body),) = ours
        event = json.loads(body)
        assert event["event_type"] == m.WebhookEventType.OBJECT_DOT_CREATED.value
        assert event["subject"] == {"type": "object", "id": created.object_id}
        assert headers["x-team"] == "search" and headers["webhook-id"] == event["event_id"]
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{digest}"
        api(mixpeek.WebhooksApi).delete_webhook_organizations(made.webhook_id)
