"""Documents: lists, edits, aggregation and lineage, with the generated classes and the wrapper; for both releases."""

from __future__ import annotations

import functools
from typing import Any

import mixpeek
from mixpeek import Mixpeek, exceptions
from mixpeek import models as m
from scenarios_common import KEY, URL
from scenarios_typed import (
    TEXT_EXTRACTOR,
    api,
    create_bucket,
    create_collection,
    create_namespace,
    finished,
    refused,
)

ROWS = [
    {"shop": "Rome", "price": 10, "kind": "lamp"},
    {"shop": "Rome", "price": 5, "kind": "chair"},
    {"shop": "Oslo", "price": 7, "kind": "lamp"},
]


class Shop:
    """A collection with one document for each of `ROWS`, extracted from an object each."""

    def __init__(self) -> None:
        self.namespace_id = create_namespace().namespace_id
        self.bucket_id = create_bucket(self.namespace_id, {"note": {"type": "text"}})
        passed = [{"source_path": f"metadata.{name}"} for name in ("shop", "price", "kind")]
        extractor = {**TEXT_EXTRACTOR, "field_passthrough": passed}
        self.collection_id = create_collection(self.namespace_id, self.bucket_id, extractor).collection_id
        items = api(mixpeek.BucketObjectsApi, namespace=self.namespace_id)
        self.object_ids = []
        for row in ROWS:
            body = {
                "blobs": [{"property": "note", "type": "text", "data": f"A {row['kind']}."}],
                "metadata": row,
            }
            made = items.create_object_buckets(self.bucket_id, m.CreateObjectRequest.from_dict(body))
            self.object_ids.append(made.object_id)
        self.documents = api(mixpeek.CollectionDocumentsApi, namespace=self.namespace_id)
        self.process()

    def process(self) -> None:
        batches = api(mixpeek.BucketBatchesApi, namespace=self.namespace_id)
        batch = batches.create_batch_buckets_batches(
            self.bucket_id, m.CreateBatchRequest(object_ids=self.object_ids)
        )
        task = batches.submit_batch_buckets_batches(
            self.bucket_id, batch.batch_id, submit_batch_request=m.SubmitBatchRequest()
        )
        assert finished(task.task_id).status == "COMPLETED"

    def list(self, **body: Any) -> Any:
        request = m.ListDocumentsRequest.from_dict(body)
        answer = self.documents.list_documents(self.collection_id, list_documents_request=request)
        assert type(answer) is m.ListDocumentsResponse, answer
        return answer

    def prices(self, **body: Any) -> list[Any]:
        return sorted(document.additional_properties["price"] for document in self.list(**body).results)

    def by_price(self) -> dict[Any, str]:
        return {d.additional_properties["price"]: d.document_id for d in self.list().results}


@functools.cache
def still_shop() -> Shop:
    """A shop in which nothing is changed."""
    return Shop()


def scenario_documents_are_listed() -> None:
    shop = still_shop()
    assert shop.prices(filters={"metadata.shop": "ROME"}) == [5, 10]
    assert shop.prices(filters={"shop": "rome"}) == [5, 10]
    assert shop.prices(search="chair") == [5]
    sort = {"field": "price", "direction": "desc"}
    assert [d.additional_properties["price"] for d in shop.list(sort=sort).results] == [10, 7, 5]
    first = shop.documents.list_documents(shop.collection_id, limit=2)
    rest = shop.documents.list_documents(shop.collection_id, limit=2, cursor=first.pagination.next_cursor)
    assert len({d.document_id for d in [*first.results, *rest.results]}) == 3
    assert rest.pagination.next_cursor is None
    (only,) = shop.list(filters={"price": 7}, select=["price"]).results
    assert "shop" not in only.additional_properties
    grouped = shop.list(group_by="metadata.shop", sort=sort)
    assert grouped.group_by_field == "metadata.shop" and grouped.pagination.total == 2
    assert [(group.group_key, group.count) for group in grouped.groups] == [("Oslo", 1), ("Rome", 2)]
    assert type(grouped.groups[1].documents[0]) is m.DocumentResponse
    assert grouped.stats.total_groups == 2


def scenario_documents_are_changed() -> None:
    shop = Shop()
    ids = shop.by_price()
    patched = shop.documents.patch_document(shop.collection_id, ids[10], {"price": 12, "metadata.note": "n"})
    assert type(patched) is m.DocumentResponse
    assert patched.additional_properties["metadata"] == {
        "shop": "Rome",
        "price": 12,
        "kind": "lamp",
        "note": "n",
    }
    put = shop.documents.update_document(shop.collection_id, ids[5], {"price": 6})
    assert put.additional_properties["price"] == 6 and "shop" not in put.additional_properties
    everywhere = api(mixpeek.DocumentsApi, namespace=shop.namespace_id)
    assert everywhere.patch_document_ns(ids[7], {"price": 8}).additional_properties["price"] == 8
    assert everywhere.update_document_ns(ids[5], {"price": 9}).additional_properties["price"] == 9
    assert everywhere.get_document_ns(ids[5]).additional_properties["price"] == 9
    shop.process()
    assert shop.prices() == [8, 9, 12], "what was set by hand stays"

    bulk = m.BulkUpdateDocumentsRequest.from_dict(
        {
            "filters": {"AND": [{"field": "price", "operator": "gte", "value": 9}]},
            "update_data": {"big": True},
        }
    )
    answer = shop.documents.bulk_update(shop.collection_id, bulk)
    assert type(answer) is m.BulkUpdateDocumentsResponse and answer.updated_count == 2
    assert shop.prices(filters={"big": True}) == [9, 12]
    batch = m.BatchUpdateDocumentsRequest.from_dict(
        {
            "updates": [
                {"document_id": ids[7], "update_data": {"price": 1}},
                {"document_id": "doc_absent", "update_data": {"price": 1}},
            ]
        }
    )
    done = shop.documents.batch_update(shop.collection_id, batch)
    assert type(done) is m.BatchUpdateDocumentsResponse
    assert (done.updated_count, done.failed_count) == (1, 1)
    assert [result.success for result in done.results] == [True, False]
    refused(
        exceptions.UnprocessableEntityException,
        shop.documents.patch_document,
        shop.collection_id,
        ids[7],
        {"collection_id": "other"},
    )
    refused(
        exceptions.NotFoundException,
        shop.documents.patch_document,
        shop.collection_id,
        "doc_absent",
        {"price": 1},
    )


def scenario_documents_are_aggregated() -> None:
    shop = still_shop()
    request = m.DocumentAggregationRequest.from_dict(
        {
            "group_by": [{"field": "metadata.shop", "alias": "shop"}],
            "aggregations": [
                {"function": "count", "alias": "n"},
                {"function": "sum", "field": "price", "alias": "total"},
            ],
            "having": [{"field": "total", "operator": "gt", "value": 1}],
            "sort_by": "total",
            "limit": 1,
        }
    )
    answer = shop.documents.aggregate_documents(shop.collection_id, request)
    assert type(answer) is m.DocumentAggregationResponse and answer.total_groups == 2
    (row,) = answer.results
    assert (row.group, row.metrics) == ({"shop": "Rome"}, {"n": 2, "total": 15})


def scenario_lineage() -> None:
    shop = still_shop()
    lineage = api(mixpeek.DocumentLineageApi, namespace=shop.namespace_id)
    (document,) = [d for d in shop.list().results if d.additional_properties["price"] == 7]
    traced = lineage.get_document_lineage(shop.collection_id, document.document_id)
    answer = traced if isinstance(traced, dict) else traced.to_dict()
    assert answer["document_id"] == document.document_id
    assert answer["lineage"]["root_object_id"] == shop.object_ids[2]
    assert answer["lineage"]["lineage_chain"][0]["collection_id"] == shop.collection_id
    found = lineage.get_documents_by_object(shop.object_ids[2], collection_ids=[shop.collection_id])
    assert [item["document_id"] for item in found["documents"]] == [document.document_id]
    tree = lineage.get_decomposition_tree_objects(shop.object_ids[2], include_document_ids=True)
    assert tree["children"][0]["document_ids"] == [document.document_id]
    refused(exceptions.NotFoundException, lineage.get_documents_by_object, "obj_0000000000000000")


def scenario_the_wrapper_changes_documents() -> None:
    shop = Shop()
    ids = shop.by_price()
    mp = Mixpeek(KEY, namespace=shop.namespace_id, base_url=f"{URL}/v1")
    changed = mp.documents.update(shop.collection_id, ids[10], update_data={"colour": "green"})
    assert changed["colour"] == mp.documents.get(shop.collection_id, ids[10])["colour"] == "green"
    updates = [{"document_id": ids[n], "update_data": {"colour": f"c{n}"}} for n in (5, 7)]
    assert mp.documents.batch_update(shop.collection_id, updates=updates)["updated_count"] == 2
    found = mp.documents.list(shop.collection_id, filters={"colour": "C5"})
    assert [item["document_id"] for item in found["results"]] == [ids[5]]
