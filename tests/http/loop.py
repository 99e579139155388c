"""One namespace and the few calls with which the tests of buckets … documents speak to it."""

from __future__ import annotations

import base64
import itertools
import time
from typing import Any

import httpx

PASSTHROUGH = {"feature_extractor_name": "passthrough_extractor", "version": "v1"}
TEXT = {"feature_extractor_name": "text_extractor", "version": "v1"}

_numbers = itertools.count(1)


class Loop:
    """A client inside `namespace`; every call checks its status."""

    def __init__(self, client: httpx.Client, namespace: dict[str, Any]) -> None:
        self.client = client
        self.namespace_id: str = namespace["namespace_id"]
        self.headers = {"X-Namespace": self.namespace_id}

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Any:
        answer = self.client.request(
            method, f"/v1{path}", json=body, headers={**self.headers, **(headers or {})}
        )
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def get(self, path: str, **named: Any) -> Any:
        return self.send("GET", path, **named)

    def post(self, path: str, body: Any = None, **named: Any) -> Any:
        return self.send("POST", path, body, **named)

    def patch(self, path: str, body: Any, **named: Any) -> Any:
        return self.send("PATCH", path, body, **named)

    def delete(self, path: str, body: Any = None, **named: Any) -> Any:
        return self.send("DELETE", path, body, **named)

    def refused(self, status: int, method: str, path: str, body: Any = None, **named: Any) -> str:
        """Return everything that the refusal of a call says, after checking its form."""
        answer = self.send(method, path, body, status=status, **named)
        assert answer["success"] is False
        assert answer["status"] == status
        error = answer["error"]
        assert error["message"]
        if status == 422:
            assert [item["msg"] for item in answer["detail"]]
            return " ".join(item["msg"] for item in answer["detail"])
        return str(error["message"])

    # --- short ways -----------------------------------------------------------------------------------

    def bucket(self, properties: dict[str, Any] | None = None, **fields: Any) -> str:
        properties = {"note": {"type": "text"}} if properties is None else properties
        body = {
            "bucket_name": f"bucket-{next(_numbers)}",
            "bucket_schema": {"properties": properties},
            **fields,
        }
        return str(self.post("/buckets", body)["bucket_id"])

    def object(self, bucket_id: str, body: dict[str, Any]) -> str:
        return str(self.post(f"/buckets/{bucket_id}/objects", body)["object_id"])

    def note(self, bucket_id: str, text: str, **fields: Any) -> str:
        return self.object(
            bucket_id, {"blobs": [{"property": "note", "type": "text", "data": text}], **fields}
        )

    def collection(self, bucket_id: str, extractor: dict[str, Any] | None = None, **fields: Any) -> str:
        body = {
            "collection_name": f"collection-{next(_numbers)}",
            "source": {"type": "bucket", "bucket_ids": [bucket_id]},
            "feature_extractor": PASSTHROUGH if extractor is None else extractor,
            **fields,
        }
        return str(self.post("/collections", body)["collection_id"])

    def run(self, bucket_id: str, object_ids: list[str]) -> Any:
        """Process objects in one batch and return the batch when it has ended."""
        batch = self.post(f"/buckets/{bucket_id}/batches", {"object_ids": object_ids})
        path = f"/buckets/{bucket_id}/batches/{batch['batch_id']}"
        task = self.post(f"{path}/submit", {"include_processing_history": True})
        self.wait(task["task_id"])
        return self.get(path)

    def wait(self, task_id: str, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while (task := self.get(f"/tasks/{task_id}"))["status"] in {"PENDING", "IN_PROGRESS", "PROCESSING"}:
            assert time.monotonic() < deadline, task
            time.sleep(0.05)
        return task

    def documents(self, collection_id: str, **body: Any) -> list[Any]:
        body = {"limit": 1000, **body}
        return list(self.post(f"/collections/{collection_id}/documents/list", body)["results"])


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
