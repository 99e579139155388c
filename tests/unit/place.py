"""A warehouse in the process of the test, and in it a namespace with a retriever, called below the HTTP surface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tessera import (
    buckets,
    collections,
    namespaces,
    organizations,
    ready_documents,
    retrieve,
    retrievers,
)
from tessera.config import Settings
from tessera.context import Principal, Warehouse
from tessera.models.buckets import BucketCreateRequest
from tessera.models.collections import CreateCollectionRequest
from tessera.models.documents import CreateDocumentRequest
from tessera.models.retrievers import CreateRetrieverRequest, ExecuteRequest
from tessera.wiring import close_warehouse, open_warehouse

KEY = "sk_live_0123456789abcdefghijklmnopqrstuv"
PASSTHROUGH = {"feature_extractor_name": "passthrough_extractor", "version": "v1"}


@contextmanager
def opened(data: Path) -> Iterator[Warehouse]:
    """Open a warehouse with an organization whose admin key is `KEY`; no jobs run."""
    wh = open_warehouse(Settings(data=data, offline=True), run_jobs=False)
    organizations.bootstrap(wh.db, KEY)
    try:
        yield wh
    finally:
        close_warehouse(wh)


class Place:
    """A namespace with one collection, and a retriever over it whose results may be kept."""

    def __init__(self, wh: Warehouse, name: str) -> None:
        self.wh = wh
        keys = organizations.Keys(wh.db)
        self.me: Principal = keys.check(KEY)
        keys.close()
        made = namespaces.create(
            wh,
            self.me,
            {"namespace_name": name, "feature_extractors": [PASSTHROUGH]},
        )
        self.namespace: str = made["namespace_id"]
        bucket = buckets.create(
            wh,
            self.me,
            self.namespace,
            BucketCreateRequest.model_validate(
                {"bucket_name": "b", "bucket_schema": {"properties": {"note": {"type": "text"}}}}
            ),
        )
        source = {"type": "bucket", "bucket_ids": [bucket.bucket_id]}
        self.collection: str = collections.create(
            wh,
            self.me,
            self.namespace,
            CreateCollectionRequest.model_validate(
                {"collection_name": "col", "source": source, "feature_extractor": PASSTHROUGH}
            ),
        ).collection_id
        stage = {"stage_id": "sort_attribute", "parameters": {"sort_field": "n", "order": "asc"}}
        self.retriever: str = retrievers.create(
            wh,
            self.me,
            self.namespace,
            CreateRetrieverRequest.model_validate(
                {
                    "retriever_name": "r",
                    "collection_identifiers": [self.collection],
                    "stages": [stage],
                    "cache_config": {},
                }
            ),
        )["retriever_id"]

    def put(self, document_id: str, n: int) -> None:
        request = CreateDocumentRequest.model_validate({"document_id": document_id, "n": n})
        ready_documents.create(self.wh, self.me, self.namespace, self.collection, request)

    def ask(self) -> tuple[str, list[int]]:
        done = retrieve.execute(self.wh, self.me, self.namespace, self.retriever, ExecuteRequest())
        return done.cache_status, [item["n"] for item in done.body["documents"]]
