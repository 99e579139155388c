"""What a user does with the client's generated classes; the same file for both releases."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from typing import Any

import mixpeek
from mixpeek import exceptions
from mixpeek import models as m
from scenarios_common import (
    HEADPHONES,
    KEY,
    LAMP,
    PAGE_REQUEST,
    QUESTION,
    TEXT_URI,
    URL,
    WORDS_URI,
    data_uri,
    media_base64,
    unique,
    until,
)

#: 1.3.783 takes the key and the namespace from its configuration; 0.81.1 has no such setting.
CONFIGURED = mixpeek.__version__ != "0.81.1"
TEXT_EXTRACTOR = {"feature_extractor_name": "text_extractor", "version": "v1"}


def api(kind: Any, key: str | None = KEY, namespace: str | None = None, url: str = URL) -> Any:
    """Return the generated API class `kind`, bound to the server, a key and a namespace."""
    configuration = mixpeek.Configuration(host=url)
    if CONFIGURED:
        configuration.access_token = key
        if namespace is not None:
            configuration.api_key["NamespaceHeader"] = namespace
        return kind(mixpeek.ApiClient(configuration))
    client = mixpeek.ApiClient(configuration)
    if key is not None:
        client.set_default_header("Authorization", f"Bearer {key}")
    if namespace is not None:
        client.set_default_header("X-Namespace", namespace)
    return kind(client)


def refused(kind: type[Exception], call: Any, *arguments: Any, **named: Any) -> Any:
    """Return the exception of `kind` that the call raises."""
    try:
        answer = call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"The call was answered instead of refused: {answer!r}")


def create_namespace(**fields: Any) -> Any:
    request = {"namespace_name": unique("sdk"), "feature_extractors": [TEXT_EXTRACTOR], **fields}
    created = api(mixpeek.NamespacesApi).create_namespace(m.CreateNamespaceRequest.from_dict(request))
    assert type(created) is m.NamespaceModel, created
    return created


def finished(task_id: str) -> Any:
    tasks = api(mixpeek.TasksApi)

    def look() -> Any:
        task = tasks.get_task(task_id)
        assert type(task) is m.TaskResponse, task
        return task if task.status not in ("PENDING", "IN_PROGRESS", "PROCESSING") else None

    return until(look)


def schema_of(index: Any) -> dict[str, Any]:
    return index.field_schema.actual_instance.to_dict()


# --- open to everybody -------------------------------------------------------------------------------


def scenario_health() -> None:
    answer = api(mixpeek.HealthApi, key=None).healthcheck_health()
    if CONFIGURED:
        assert answer["status"] == "OK", answer
        answer = m.HealthCheckResponse.from_dict(answer)
    assert answer.status == "OK"
    assert all(
        value is True
        for name, value in answer.data.to_dict().items()
        if name in {"cache", "metadata", "vector_store", "object_storage", "task_queue", "inference"}
    ), answer
    assert api(mixpeek.HealthApi, key=None).liveness_health() is not None


def scenario_catalogue() -> None:
    extractors = api(mixpeek.FeatureExtractorsApi, key=None)
    listed = extractors.list_feature_extractors()
    assert isinstance(listed, list)
    assert all(type(extractor) is m.FeatureExtractorResponseModel for extractor in listed)
    ids = {extractor.feature_extractor_id for extractor in listed}
    names = ("passthrough_extractor", "text_extractor", "image_extractor", "video_extractor")
    for name in (*names, "multimodal_extractor"):
        assert {f"{name}_v1", f"{name}_1.0.0"} & ids, (name, ids)
    for name in names:
        for version in ("v1", "1.0.0"):
            one = extractors.get_feature_extractor_by(f"{name}_{version}")
            assert type(one) is m.FeatureExtractorResponseModel
            assert (one.feature_extractor_name, one.version) == (name, version)
            assert one.feature_extractor_id == f"{name}_{version}"
            assert one.input_schema
            assert one.parameter_schema is not None
    text = extractors.get_feature_extractor_by("text_extractor_v1")
    vector, words = text.required_vector_indexes
    assert vector.feature_uri == TEXT_URI, vector.feature_uri
    assert words.index.actual_instance.type == "sparse"
    index = vector.index.actual_instance
    assert (index.type, index.name) == ("dense", "text_extractor_v1_embedding")
    assert index.dimensions >= 1
    assert text.default_parameters["split_by"] == "none"
    assert "text" in text.supported_input_types
    assert not extractors.get_feature_extractor_by("passthrough_extractor_v1").required_vector_indexes
    refused(exceptions.NotFoundException, extractors.get_feature_extractor_by, "no_such_extractor_v1")


def scenario_stages_of_retrievers() -> None:
    stages = api(mixpeek.RetrieverStagesApi, key=None).list_stages_retrievers()
    assert {"feature_search", "attribute_filter", "limit"} <= {stage.stage_id for stage in stages}


# --- namespaces --------------------------------------------------------------------------------------


def scenario_the_pages_request() -> None:
    namespaces = api(mixpeek.NamespacesApi)
    name = unique("spotify_playlists_dev")
    request = m.CreateNamespaceRequest.from_dict({**PAGE_REQUEST, "namespace_name": name})
    created = namespaces.create_namespace(request)
    assert type(created) is m.NamespaceModel
    assert created.namespace_id.startswith("ns_")
    assert len(created.namespace_id) == 19
    assert created.namespace_name == name
    assert created.description == PAGE_REQUEST["description"]
    (extractor,) = created.feature_extractors
    sent = PAGE_REQUEST["feature_extractors"][0]
    assert all(getattr(extractor, key) == value for key, value in sent.items()), extractor
    title, description = created.payload_indexes[:2]
    assert (title.field_name, title.type, title.is_protected) == ("metadata.title", "text", False)
    assert schema_of(title) == PAGE_REQUEST["payload_indexes"][0]["field_schema"]
    assert (description.field_name, description.type) == ("metadata.description", "keyword")
    assert schema_of(description)["type"] == "keyword"
    assert created.document_count == 0
    assert created.created_at.tzinfo is not None
    assert created.updated_at >= created.created_at
    assert created.vector_inference_map
    assert (created.bucket_count, created.collection_count, created.object_count) == (0, 0, 0)
    if not CONFIGURED:
        infrastructure = created.infrastructure
        assert infrastructure.compute_tier == "shared"
        assert len(infrastructure.qdrant_collection) >= 3
        assert infrastructure.qdrant_api_key is None

    by_id, by_name = (namespaces.get_namespace(key) for key in (created.namespace_id, name))
    assert by_id == by_name == created, (by_id, created)

    listed = namespaces.list_namespaces(
        list_namespaces_request=m.ListNamespacesRequest.from_dict({"filters": {"namespace_name": name}})
    )
    assert type(listed) is m.ListNamespacesResponse
    assert [item.namespace_id for item in listed.results] == [created.namespace_id]
    assert listed.total_count == listed.pagination.total == 1

    deleted = namespaces.delete_namespace(name)
    refused(exceptions.NotFoundException, namespaces.get_namespace, created.namespace_id)
    refused(exceptions.NotFoundException, namespaces.get_namespace, name)
    again = namespaces.create_namespace(request)
    assert again.namespace_id != created.namespace_id
    assert again.document_count == 0
    task = finished(deleted["task_id"])
    assert (task.task_type, task.status) == ("api_namespaces_delete", "COMPLETED"), task
    assert namespaces.get_namespace(name).namespace_id == again.namespace_id


def scenario_key_as_an_argument() -> None:
    """0.81.1 also takes the key and the namespace as arguments of each call."""
    if CONFIGURED:
        return
    name, bearer = unique("sdk"), f"Bearer {KEY}"
    bare = mixpeek.ApiClient(mixpeek.Configuration(host=URL))
    created = mixpeek.NamespacesApi(bare).create_namespace(
        m.CreateNamespaceRequest.from_dict({"namespace_name": name, "feature_extractors": [TEXT_EXTRACTOR]}),
        authorization=bearer,
    )
    for namespace in (created.namespace_id, name):
        found = mixpeek.BucketsApi(bare).list_buckets(authorization=bearer, x_namespace=namespace)
        assert found.results == []
    found = mixpeek.BucketsApi(bare).list_buckets(authorization2=bearer, x_namespace=name)
    assert found.total_count == 0


def scenario_all_index_types() -> None:
    params = {
        "keyword": m.KeywordIndexParams(is_tenant=True),
        "integer": m.IntegerIndexParams(lookup=True, range=False),
        "float": m.FloatIndexParams(),
        "bool": m.BoolIndexParams(),
        "geo": m.GeoIndexParams(),
        "datetime": m.DatetimeIndexParams(),
        "text": m.TextIndexParams(tokenizer="prefix", min_token_len=1, max_token_len=20, lowercase=False),
        "uuid": m.UuidIndexParams(is_tenant=False),
    }
    request = m.CreateNamespaceRequest(
        namespace_name=unique("sdk"),
        feature_extractors=[m.BaseFeatureExtractorModelInput(**TEXT_EXTRACTOR)],
        payload_indexes=[
            m.PayloadIndexConfigInput(
                field_name=f"metadata.{kind}", type=kind, field_schema=m.FieldSchema(schema)
            )
            for kind, schema in params.items()
        ],
    )
    # The answer as it came: the typed one reads every schema as a text index's.
    raw = api(mixpeek.NamespacesApi).create_namespace_with_http_info(request)
    body = json.loads(raw.raw_data)
    sent = {f"metadata.{kind}": schema.to_dict() for kind, schema in params.items()}
    answered = {index["field_name"]: index["field_schema"] for index in body["payload_indexes"][: len(sent)]}
    assert answered == sent, answered
    assert [index.type for index in raw.data.payload_indexes[: len(sent)]] == list(params)

    defaults = create_namespace(
        payload_indexes=[{"field_name": f"f_{kind}", "type": kind} for kind in params]
    )
    assert [index.type for index in defaults.payload_indexes[: len(params)]] == list(params)
    assert all(schema_of(index)["type"] == index.type for index in defaults.payload_indexes)


def scenario_infrastructure() -> None:
    created = create_namespace(
        infrastructure={"qdrant_collection": "ns_sdk_dev", "compute_tier": "shared", "max_concurrent_jobs": 7}
    )
    body = api(mixpeek.NamespacesApi).get_namespace_with_http_info(created.namespace_id)
    infrastructure = json.loads(body.raw_data)["infrastructure"]
    assert infrastructure["compute_tier"] == "shared"
    assert infrastructure["max_concurrent_jobs"] == 7
    assert len(infrastructure["qdrant_collection"]) >= 3
    if not CONFIGURED:
        assert created.infrastructure.qdrant_collection == "ns_sdk_dev"


def scenario_list_namespaces() -> None:
    namespaces = api(mixpeek.NamespacesApi)
    mark = unique("list")
    made = [
        create_namespace(namespace_name=f"{mark}_{letter}", description=f"{letter} of {mark}")
        for letter in "cab"
    ]

    def page(**query: Any) -> Any:
        body = {"search": mark.upper(), "sort": {"field": "namespace_name", "direction": "asc"}}
        request = m.ListNamespacesRequest.from_dict(body)
        answer = namespaces.list_namespaces(list_namespaces_request=request, **query)
        assert type(answer) is m.ListNamespacesResponse
        assert answer.total_count == answer.pagination.total == 3
        return answer

    assert [item.namespace_name[-1] for item in page().results] == ["a", "b", "c"]
    first = page(limit=2, offset=0)
    assert [item.namespace_name[-1] for item in first.results] == ["a", "b"]
    assert (first.pagination.page, first.pagination.page_size, first.pagination.total_pages) == (1, 2, 2)
    assert [item.namespace_name[-1] for item in page(limit=2, offset=2).results] == ["c"]
    rest = page(limit=2, cursor=first.pagination.next_cursor)
    assert [item.namespace_name[-1] for item in rest.results] == ["c"]
    assert rest.pagination.next_cursor is None
    regex = m.ListNamespacesRequest.from_dict({"filters": {"namespace_name": {"$regex": f"^{mark}_[ab]$"}}})
    assert namespaces.list_namespaces(list_namespaces_request=regex).total_count == 2
    everything = namespaces.list_namespaces(limit=1000)
    assert {item.namespace_id for item in made} <= {item.namespace_id for item in everything.results}
    assert everything.stats.total_feature_extractors >= 3
    if CONFIGURED:
        got = namespaces.list_namespaces_get(page_size=1, page=2)
        assert len(got.results) == 1
        assert got.pagination.page == 2


def scenario_patch_namespace() -> None:
    namespaces = api(mixpeek.NamespacesApi)
    created = create_namespace(
        description="before",
        payload_indexes=[
            {"field_name": "metadata.title", "type": "text"},
            {"field_name": "year", "type": "integer"},
        ],
    )
    same = namespaces.patch_namespace(created.namespace_id, m.PatchNamespaceRequest())
    assert same == created, "an empty patch changes nothing, not even updated_at"
    patched = namespaces.patch_namespace(
        created.namespace_name, m.PatchNamespaceRequest.from_dict({"description": "after"})
    )
    assert type(patched) is m.NamespaceModel
    assert patched.description == "after"
    assert patched.payload_indexes == created.payload_indexes
    assert patched.updated_at > created.updated_at
    indexes = [
        {"field_name": "metadata.title", "type": "text"},
        {"field_name": "metadata.genre", "type": "keyword"},
    ]
    name = unique("renamed")
    patched = namespaces.patch_namespace(
        created.namespace_id,
        m.PatchNamespaceRequest.from_dict({"namespace_name": name, "payload_indexes": indexes}),
    )
    assert patched.namespace_id == created.namespace_id
    user = [index.field_name for index in patched.payload_indexes if index.field_name != "year"][:2]
    assert user == ["metadata.title", "metadata.genre"]
    assert "year" not in {index.field_name for index in patched.payload_indexes}
    assert namespaces.get_namespace(name).namespace_id == created.namespace_id
    refused(exceptions.NotFoundException, namespaces.get_namespace, created.namespace_name)
    create_namespace(namespace_name=created.namespace_name)

    # What was read can be sent back: the system's own entries in it are not taken for the user's.
    everything = [index.to_dict() for index in patched.payload_indexes]
    echoed = namespaces.patch_namespace(
        created.namespace_id, m.PatchNamespaceRequest.from_dict({"payload_indexes": everything})
    )
    assert echoed.payload_indexes == patched.payload_indexes


def scenario_put_namespace() -> None:
    namespaces = api(mixpeek.NamespacesApi)
    created = create_namespace(payload_indexes=[{"field_name": "metadata.title", "type": "text"}])
    name = unique("put")
    put = namespaces.update_namespace(
        created.namespace_id, m.UpdateNamespaceRequest.from_dict({"namespace_name": name})
    )
    assert type(put) is m.NamespaceModel
    assert (put.namespace_id, put.namespace_name) == (created.namespace_id, name)
    assert put.payload_indexes == created.payload_indexes
    put = namespaces.update_namespace(
        name,
        m.UpdateNamespaceRequest.from_dict(
            {"namespace_name": name, "payload_indexes": [{"field_name": "price", "type": "float"}]}
        ),
    )
    assert put.payload_indexes[0].field_name == "price"
    assert "metadata.title" not in {index.field_name for index in put.payload_indexes}


def scenario_extractors_of_a_namespace() -> None:
    created = create_namespace()
    extractors = api(mixpeek.NamespaceExtractorsApi, namespace=created.namespace_id)
    listed = extractors.list_extractors_namespaces(created.namespace_id)
    assert type(listed) is m.UnifiedExtractorListResponse
    assert listed.namespace_id == created.namespace_id
    assert listed.total == len(listed.extractors) == listed.builtin_count + listed.custom_count
    assert "text_extractor_v1" in {extractor.feature_extractor_id for extractor in listed.extractors}
    one = extractors.get_extractor_namespaces(created.namespace_id, "text_extractor_v1")
    assert type(one) is m.UnifiedExtractorResponse
    assert one.source == "builtin"


def scenario_errors_are_typed() -> None:
    namespaces = api(mixpeek.NamespacesApi)
    page = m.CreateNamespaceRequest.from_dict({**PAGE_REQUEST, "namespace_name": unique("sdk")})

    for key in (None, "sk_live_nobody_knows_this_key_0000000000"):
        error = refused(
            exceptions.UnauthorizedException, api(mixpeek.NamespacesApi, key=key).create_namespace, page
        )
        assert type(error.data) is m.ErrorResponse
        assert (error.data.success, error.data.status) == (False, 401)
        assert error.data.error.type == "UnauthorizedError"

    error = refused(exceptions.NotFoundException, namespaces.get_namespace, "ns_0123456789abcdef")
    assert error.data.error.type == "NotFoundError"
    assert error.data.error.details["id"] == "ns_0123456789abcdef"

    namespaces.create_namespace(page)
    error = refused(exceptions.ConflictException, namespaces.create_namespace, page)
    assert json.loads(error.body)["error"]["type"] == "AlreadyExistsError"

    unknown = m.CreateNamespaceRequest.from_dict(
        {
            "namespace_name": unique("sdk"),
            "feature_extractors": [{"feature_extractor_name": "no_such_extractor", "version": "v1"}],
        }
    )
    error = refused(exceptions.UnprocessableEntityException, namespaces.create_namespace, unknown)
    assert json.loads(error.body)["error"]["type"] == "ValidationError"
    if CONFIGURED:
        assert error.data.error.details["validation_errors"]
    else:
        assert error.data.detail[0].type == "unknown_extractor"

    protected = m.CreateNamespaceRequest.from_dict(
        {
            "namespace_name": unique("sdk"),
            "feature_extractors": [TEXT_EXTRACTOR],
            "payload_indexes": [{"field_name": "document_id", "type": "keyword"}],
        }
    )
    error = refused(exceptions.BadRequestException, namespaces.create_namespace, protected)
    assert error.data.error.type == "BadRequestError"
    assert "document_id" in error.data.error.message

    error = refused(exceptions.BadRequestException, api(mixpeek.BucketsApi).list_buckets)
    assert "X-Namespace" in error.data.error.message


# --- keys --------------------------------------------------------------------------------------------


def scenario_keys() -> None:
    organization = api(mixpeek.OrganizationsApi).get_organization()
    assert type(organization) is m.OrganizationModelResponse
    email = api(mixpeek.OrganizationUsersApi).list_users_organizations()["results"][0]["email"]
    keys = api(mixpeek.OrganizationAPIKeysApi)
    created = create_namespace()
    name = unique("reader")
    made = keys.create_key_organizations_users_email(
        email, m.APIKeyCreateRequest.from_dict({"name": name, "permissions": ["read"]})
    )
    assert type(made) is m.APIKeyCreateResponse
    assert made.key.startswith("sk_")
    assert (made.name, made.status, made.permissions) == (name, "active", ["read"])
    assert 10 <= len(made.key_prefix) <= 13
    assert made.key.startswith(made.key_prefix)
    listed = json.dumps(keys.list_keys_organizations_users_email(email))
    assert name in listed
    assert made.key not in listed

    reader = api(mixpeek.NamespacesApi, key=made.key)
    assert reader.get_namespace(created.namespace_id).namespace_id == created.namespace_id
    page = m.CreateNamespaceRequest.from_dict({**PAGE_REQUEST, "namespace_name": unique("sdk")})
    error = refused(exceptions.ForbiddenException, reader.create_namespace, page)
    assert error.data.error.type == "ForbiddenError"

    other = create_namespace()
    scoped = keys.create_key_organizations_users_email(
        email,
        m.APIKeyCreateRequest.from_dict(
            {
                "name": unique("scoped"),
                "permissions": ["admin"],
                "scopes": [{"resource_type": "namespace", "resource_id": created.namespace_id}],
            }
        ),
    )
    narrow = api(mixpeek.NamespacesApi, key=scoped.key)
    assert narrow.get_namespace(created.namespace_id).namespace_id == created.namespace_id
    refused(exceptions.NotFoundException, narrow.get_namespace, other.namespace_id)

    revoked = keys.delete_key_organizations_users_email_name(email, name)
    assert type(revoked) is m.GenericSuccessResponse
    assert revoked.success is True
    refused(exceptions.UnauthorizedException, reader.get_namespace, created.namespace_id)
    assert name not in json.dumps(keys.list_keys_organizations_users_email(email))
    assert name in json.dumps(keys.list_keys_organizations_users_email(email, include_revoked=True))


# --- the quickstart ----------------------------------------------------------------------------------


def ingest(namespace: str, bucket_id: str, objects: list[dict[str, Any]]) -> list[str]:
    """Create `objects`, process them in one batch, and return their ids."""
    items = api(mixpeek.BucketObjectsApi, namespace=namespace)
    batches = api(mixpeek.BucketBatchesApi, namespace=namespace)
    object_ids = []
    for body in objects:
        item = items.create_object_buckets(bucket_id, m.CreateObjectRequest.from_dict(body))
        assert type(item) is m.ObjectResponse
        assert item.object_id.startswith("obj_")
        assert item.bucket_id == bucket_id
        assert [blob.var_property for blob in item.blobs] == [blob["property"] for blob in body["blobs"]]
        object_ids.append(item.object_id)
    batch = batches.create_batch_buckets_batches(bucket_id, m.CreateBatchRequest(object_ids=object_ids))
    assert type(batch) is m.BatchModel
    assert (batch.status, batch.object_ids) == ("DRAFT", object_ids)
    task = batches.submit_batch_buckets_batches(
        bucket_id, batch.batch_id, submit_batch_request=m.SubmitBatchRequest(include_processing_history=True)
    )
    assert type(task) is m.TaskResponse
    assert task.task_type == "api_buckets_batches_process"
    assert finished(task.task_id).status == "COMPLETED", finished(task.task_id)
    batch = batches.get_batch_buckets_batches(bucket_id, batch.batch_id)
    assert batch.status == "COMPLETED"
    assert batch.task_id == task.task_id
    listed = batches.list_batches_buckets(bucket_id)
    assert batch.batch_id in {item.batch_id for item in listed.results}
    return object_ids


def create_bucket(namespace: str, properties: dict[str, Any]) -> str:
    buckets = api(mixpeek.BucketsApi, namespace=namespace)
    name = unique("bucket")
    bucket = buckets.create_bucket(
        m.BucketCreateRequest.from_dict(
            {
                "bucket_name": name,
                "description": "made by a test",
                "bucket_schema": {"properties": properties},
            }
        )
    )
    assert type(bucket) is m.BucketResponse
    assert (bucket.bucket_name, bucket.object_count, bucket.status) == (name, 0, "ACTIVE")
    assert set(bucket.bucket_schema.properties) == set(properties)
    assert buckets.get_bucket(name).bucket_id == bucket.bucket_id
    listed = buckets.list_buckets(list_buckets_request=m.ListBucketsRequest())
    assert [item.bucket_id for item in listed.results] == [bucket.bucket_id]
    return bucket.bucket_id


def create_collection(namespace: str, bucket_id: str, extractor: dict[str, Any]) -> Any:
    collections = api(mixpeek.CollectionsApi, namespace=namespace)
    name = unique("collection")
    collection = collections.create_collection(
        m.CreateCollectionRequest.from_dict(
            {
                "collection_name": name,
                "source": {"type": "bucket", "bucket_ids": [bucket_id]},
                "feature_extractor": extractor,
            }
        )
    )
    assert type(collection) is m.CollectionResponse
    assert collection.collection_id.startswith("col_")
    found = collections.get_collection(name)
    assert found.collection_id == collection.collection_id
    listed = collections.list_collections()
    assert [item.collection_id for item in listed.results] == [collection.collection_id]
    return collection


def retrieve(namespace: str, collection_id: str, stages: list[dict[str, Any]], inputs: dict[str, Any]) -> Any:
    """Create a retriever of `stages`, execute it once, and return the answer as a dict."""
    retrievers = api(mixpeek.RetrieversApi, namespace=namespace)
    name = unique("retriever")
    body = {
        "retriever_name": name,
        "collection_identifiers": [collection_id],
        "input_schema": {key: {"type": "text", "required": True} for key in inputs},
        "stages": stages,
    }
    created = retrievers.create_retriever(m.CreateRetrieverRequest.from_dict(body))
    if not CONFIGURED:
        assert type(created) is m.CreateRetrieverResponse
        created = created.retriever
    assert type(created) is m.RetrieverConfig
    assert created.retriever_name == name
    found = retrievers.get_retriever(created.retriever_id)
    assert type(found) is m.RetrieverModelOutput
    assert [stage.stage_name for stage in found.stages] == [stage["stage_name"] for stage in stages]
    listed = retrievers.list_retrievers()
    assert created.retriever_id in {item.retriever_id for item in listed.results}
    answer = retrievers.execute_retriever(
        created.retriever_id,
        m.ExecuteRetrieverRequest.from_dict(
            {"inputs": inputs, "pagination": {"method": "offset", "page_size": 5, "page_number": 1}}
        ),
    )
    if CONFIGURED:
        assert type(answer) is m.ExecuteRetrieverResponse
        answer = answer.to_dict()
    assert answer["execution_id"].startswith("exec_")
    assert answer["status"] == "completed", answer
    assert set(answer["stage_statistics"]["stages"]) == {stage["stage_name"] for stage in stages}
    assert len(answer["documents"]) <= 5
    retrievers.delete_retriever(created.retriever_id)
    refused(exceptions.NotFoundException, retrievers.get_retriever, created.retriever_id)
    return answer


def scenario_quickstart() -> None:
    namespace = create_namespace(namespace_name=unique("quickstart"), description="…")
    ns = namespace.namespace_id
    bucket_id = create_bucket(ns, {"product_text": {"type": "text", "required": True}})
    collection = create_collection(
        ns,
        bucket_id,
        {
            **TEXT_EXTRACTOR,
            "input_mappings": {"text": "product_text"},
            "field_passthrough": [{"source_path": "metadata.category"}],
            "parameters": {"model": "multilingual-e5-large-instruct"},
        },
    )
    assert {"text", "category"} <= set(collection.output_schema.properties)
    headphones, lamp = ingest(
        ns,
        bucket_id,
        [
            {
                "key_prefix": "/catalog",
                "metadata": {"category": category},
                "blobs": [{"property": "product_text", "type": "text", "data": text}],
            }
            for category, text in (("headphones", HEADPHONES), ("lamps", LAMP))
        ],
    )
    documents = api(mixpeek.CollectionDocumentsApi, namespace=ns)

    def page(filters: dict[str, Any] | None = None, **body: Any) -> Any:
        request = m.ListDocumentsRequest.from_dict({"limit": 10, "filters": filters, **body})
        answer = documents.list_documents(collection.collection_id, list_documents_request=request)
        assert type(answer) is m.ListDocumentsResponse
        return answer

    (document,) = page({"field": "metadata.category", "operator": "eq", "value": "headphones"}).results
    assert type(document) is m.DocumentResponse
    fields = document.additional_properties
    assert fields["root_object_id"] == headphones
    assert fields["text"] == HEADPHONES
    assert document.collection_id == collection.collection_id
    internal = document.internal
    assert internal.lineage.root_object_id == headphones
    assert internal.namespace_id == ns
    got = documents.get_document(collection.collection_id, document.document_id)
    assert got.document_id == document.document_id
    assert got.additional_properties["text"] == HEADPHONES

    either = {
        "OR": [{"category": "HEADPHONES"}, {"field": "category", "operator": "starts_with", "value": "lam"}]
    }
    assert len(page(either).results) == 2, "a string compares without regard to case"
    both = {"AND": [either, {"NOT": [{"field": "category", "operator": "eq", "value": "lamps"}]}]}
    assert [found.document_id for found in page(both).results] == [document.document_id]
    first = page(limit=1)
    assert first.pagination.total == 2
    second = documents.list_documents(collection.collection_id, limit=1, cursor=first.pagination.next_cursor)
    assert {first.results[0].document_id, second.results[0].document_id} == {
        found.document_id for found in page().results
    }

    search = {
        "stage_name": "search",
        "stage_type": "filter",
        "config": {
            "stage_id": "feature_search",
            "parameters": {"feature_uri": TEXT_URI, "input": {"text": "{{INPUT.query_text}}"}, "limit": 20},
        },
    }
    answer = retrieve(ns, collection.collection_id, [search], {"query_text": QUESTION})
    ids = [found["document_id"] for found in answer["documents"]]
    assert ids[0] == document.document_id
    assert len(ids) == 2
    scores = [found["score"] for found in answer["documents"]]
    assert scores == sorted(scores, reverse=True)
    assert answer["budget"] is not None
    lamps = {
        "stage_name": "only lamps",
        "stage_type": "filter",
        "config": {
            "stage_id": "attribute_filter",
            "parameters": {"field": "metadata.category", "operator": "eq", "value": "lamps"},
        },
    }
    one = {
        "stage_name": "one",
        "stage_type": "reduce",
        "config": {"stage_id": "limit", "parameters": {"limit": 1}},
    }
    answer = retrieve(ns, collection.collection_id, [search, lamps, one], {"query_text": QUESTION})
    assert [found["root_object_id"] for found in answer["documents"]] == [lamp]
    answer = retrieve(ns, collection.collection_id, [search, one], {"query_text": QUESTION})
    assert [found["root_object_id"] for found in answer["documents"]] == [headphones]

    assert api(mixpeek.NamespacesApi).get_namespace(ns).document_count == 2
    gone = documents.delete_document(collection.collection_id, document.document_id)
    assert type(gone) is m.GenericDeleteResponse
    refused(
        exceptions.NotFoundException, documents.get_document, collection.collection_id, document.document_id
    )
    assert [found.document_id for found in page().results] != [document.document_id]
    assert api(mixpeek.NamespacesApi).get_namespace(ns).document_count == 1


def scenario_video_of_the_pages_namespace() -> None:
    request = m.CreateNamespaceRequest.from_dict({**PAGE_REQUEST, "namespace_name": unique("video")})
    ns = api(mixpeek.NamespacesApi).create_namespace(request).namespace_id
    bucket_id = create_bucket(ns, {"clip": {"type": "video", "required": True}})
    collection = create_collection(
        ns,
        bucket_id,
        {
            "feature_extractor_name": "video_extractor",
            "version": "1.0.0",
            "input_mappings": {"video": "clip"},
            "params": {"split_method": "time", "time_split_interval": 2},
        },
    )
    (object_id,) = ingest(
        ns, bucket_id, [{"blobs": [{"property": "clip", "type": "video", "data": media_base64("clip.mp4")}]}]
    )
    found = api(mixpeek.CollectionDocumentsApi, namespace=ns).list_documents(collection.collection_id)
    documents = sorted(found.results, key=lambda document: document.additional_properties["start_time"])
    starts = [document.additional_properties["start_time"] for document in documents]
    assert starts == [0, 2, 4], starts
    for document in documents:
        fields = document.additional_properties
        assert fields["end_time"] > fields["start_time"]
        assert fields["root_object_id"] == object_id
        assert fields["thumbnail_url"]
    vector = (
        api(mixpeek.FeatureExtractorsApi)
        .get_feature_extractor_by("video_extractor_1.0.0")
        .required_vector_indexes[0]
    )
    red = {"input_mode": "content", "value": data_uri("red.png")}
    stage = {
        "stage_name": "by picture",
        "stage_type": "filter",
        "config": {
            "stage_id": "feature_search",
            "parameters": {"searches": [{"feature_uri": vector.feature_uri, "query": red, "top_k": 3}]},
        },
    }
    answer = retrieve(ns, collection.collection_id, [stage], {})
    assert answer["documents"][0]["start_time"] == 0, "the first two seconds are red"


def scenario_objects() -> None:
    ns = create_namespace().namespace_id
    bucket_id = create_bucket(ns, {"note": {"type": "text"}, "year": {"type": "integer"}})
    objects = api(mixpeek.BucketObjectsApi, namespace=ns)
    made = objects.create_objects_batch_buckets(
        bucket_id,
        m.CreateObjectsBatchRequest.from_dict(
            {
                "objects": [
                    {"year": 1999, "blobs": [{"property": "note", "type": "text", "data": "one"}]},
                    {"blobs": [{"property": "nowhere", "type": "text", "data": "two"}]},
                ]
            }
        ),
    )
    assert type(made) is m.CreateObjectsBatchResponse
    assert (made.total_requested, made.succeeded_count, made.failed_count) == (2, 1, 1)
    assert made.failed[0].object_index == 1
    object_id = made.succeeded[0].object_id
    got = objects.get_object_buckets(bucket_id, object_id)
    assert got.additional_properties["year"] == 1999
    assert got.status == "DRAFT"
    listed = objects.list_objects_buckets(bucket_id)
    assert [item.object_id for item in listed.results] == [object_id]
    answer = objects.delete_object_buckets_with_http_info(bucket_id, object_id)
    assert (answer.status_code, answer.data) == (204, None)
    refused(exceptions.NotFoundException, objects.get_object_buckets, bucket_id, object_id)
    assert api(mixpeek.BucketsApi, namespace=ns).get_bucket(bucket_id).object_count == 0
    api(mixpeek.BucketsApi, namespace=ns).delete_bucket(bucket_id)
    refused(exceptions.NotFoundException, api(mixpeek.BucketsApi, namespace=ns).get_bucket, bucket_id)


def put(upload: Any, content: bytes) -> str:
    """PUT a file as anybody would, without a key, and return its ETag."""
    request = urllib.request.Request(upload.presigned_url, content, method="PUT")
    request.add_header("Content-Type", upload.content_type)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
        return str(answer.headers["ETag"])


def scenario_uploads() -> None:
    """Every operation of the contract: create, get, list, confirm, delete, and both batch forms."""
    ns = create_namespace().namespace_id
    bucket_id = create_bucket(ns, {"note": {"type": "text"}})
    uploads = api(mixpeek.BucketUploadsApi, namespace=ns)
    words = HEADPHONES.encode()

    def request(**fields: Any) -> dict[str, Any]:
        return {"filename": "note.txt", "content_type": "text/plain", "blob_property": "note", **fields}

    def create(**fields: Any) -> Any:
        made = uploads.create_upload_buckets(bucket_id, m.CreateUploadRequest.from_dict(request(**fields)))
        assert type(made) is m.UploadResponse
        return made

    made = create(
        file_size_bytes=len(words),
        file_hash=hashlib.sha256(words).hexdigest(),
        metadata={"campaign": "summer"},
        object_metadata={"category": "headphones"},
        presigned_url_expiration=600,
    )
    assert made.upload_id.startswith("upl_")
    assert (made.status, made.bucket_id, made.blob_type.lower()) == ("PENDING", bucket_id, "text")
    assert made.presigned_url.startswith(f"{URL}/v1/uploads/{made.upload_id}?")
    assert 0 < (made.expires_at - made.created_at).total_seconds() <= 600
    early = refused(
        exceptions.BadRequestException,
        uploads.confirm_upload_buckets,
        bucket_id,
        made.upload_id,
        confirm_upload_request=m.ConfirmUploadRequest(),
    )
    assert "Nothing has been uploaded" in early.body
    etag = put(made, words)
    confirmed = uploads.confirm_upload_buckets(
        bucket_id,
        made.upload_id,
        var_async=False,
        confirm_upload_request=m.ConfirmUploadRequest(etag=etag, file_size_bytes=len(words)),
    )
    assert type(confirmed) is m.ConfirmUploadResponse
    assert (confirmed.status, confirmed.file_size_bytes) == ("COMPLETED", len(words))
    assert confirmed.verified_at is not None and confirmed.completed_at is not None
    objects = api(mixpeek.BucketObjectsApi, namespace=ns)
    thing = objects.get_object_buckets(bucket_id, confirmed.object_id)
    assert thing.additional_properties["metadata"] == {"category": "headphones"}
    assert thing.blobs[0].details.hash == hashlib.sha256(words).hexdigest()
    again = create(file_hash=hashlib.sha256(words).hexdigest())
    assert (again.is_duplicate, again.upload_id, again.presigned_url) == (True, made.upload_id, None)

    got = m.UploadResponse.from_dict(
        uploads.get_upload_buckets(bucket_id, made.upload_id, return_presigned_urls=True)
    )
    assert (got.status, got.object_id, got.etag) == ("COMPLETED", confirmed.object_id, etag.strip('"'))
    with urllib.request.urlopen(got.presigned_url, timeout=30) as answer:
        assert answer.read() == words

    several = uploads.create_uploads_batch_buckets(
        bucket_id,
        m.BatchUploadRequest.from_dict(
            {
                "uploads": [request(filename=f"{n}.txt", create_object_on_confirm=False) for n in range(2)],
                "shared_metadata": {"campaign": "winter"},
            }
        ),
    )
    assert type(several) is m.BatchUploadResponse
    assert (several.total, len(several.uploads)) == (2, 2)
    for number, upload in enumerate(several.uploads):
        put(upload, f"text {number}".encode())
    done = uploads.confirm_uploads_batch_buckets(
        bucket_id,
        m.BatchConfirmRequest(confirmations=[{"upload_id": upload.upload_id} for upload in several.uploads]),
    )
    assert type(done) is m.BatchConfirmResponse
    assert (done.status, done.confirmations_count, done.task.task_type) == (
        "COMPLETED",
        2,
        "api_buckets_uploads_batch_confirm",
    )
    assert finished(done.task_id).status == "COMPLETED"
    made_of_upload = objects.create_object_buckets(
        bucket_id,
        m.CreateObjectRequest.from_dict(
            {"blobs": [{"property": "note", "type": "text", "upload_id": several.uploads[0].upload_id}]}
        ),
    )
    got = objects.get_object_buckets_with_http_info(bucket_id, made_of_upload.object_id)
    assert json.loads(got.raw_data)["blobs"][0]["data"] == "text 0"

    listed = uploads.list_uploads_buckets(bucket_id)
    assert type(listed) is m.ListUploadsResponse
    assert (listed.pagination.total, listed.stats.total_uploads) == (3, 3)
    assert listed.stats.uploads_by_status == {"COMPLETED": 3}
    body = m.ListUploadsRequest.from_dict(
        {
            "filters": {"AND": [{"field": "metadata.campaign", "operator": "eq", "value": "winter"}]},
            "sort": {"field": "filename", "direction": "asc"},
        }
    )
    listed = uploads.list_uploads_buckets(bucket_id, limit=1, list_uploads_request=body)
    assert [item.filename for item in listed.results] == ["0.txt"]
    assert listed.pagination.total == 2

    answer = uploads.delete_upload_buckets_with_http_info(bucket_id, made.upload_id)
    assert (answer.status_code, answer.data) == (204, None)
    refused(exceptions.NotFoundException, uploads.get_upload_buckets, bucket_id, made.upload_id)
    assert objects.get_object_buckets(bucket_id, confirmed.object_id).object_id == confirmed.object_id
    wrong = m.CreateUploadRequest.from_dict(request(blob_property="nowhere"))
    refused(exceptions.UnprocessableEntityException, uploads.create_upload_buckets, bucket_id, wrong)


def scenario_passthrough() -> None:
    """The typed clients always send ``include_all_source_fields: false``; a pass-through of nothing is not meant."""
    passthrough = {"feature_extractor_name": "passthrough_extractor", "version": "v1"}
    ns = create_namespace(feature_extractors=[passthrough]).namespace_id
    bucket_id = create_bucket(ns, {"title": {"type": "string"}, "year": {"type": "integer"}})
    collection = create_collection(ns, bucket_id, passthrough)
    ingest(ns, bucket_id, [{"title": "Low", "year": 1977, "blobs": []}])
    found = api(mixpeek.CollectionDocumentsApi, namespace=ns).list_documents(collection.collection_id)
    (document,) = found.results
    fields = document.additional_properties
    assert (fields["title"], fields["year"]) == ("Low", 1977)


def scenario_ready_documents() -> None:
    """Vectors of the user's own, by both ways in, read back as they were sent."""
    ns = create_namespace().namespace_id
    bucket_id = create_bucket(ns, {"note": {"type": "text"}})
    collection_id = create_collection(ns, bucket_id, TEXT_EXTRACTOR).collection_id
    index = "text_extractor_v1_embedding"
    vectors = {index: [1.0] + [0.0] * 383}
    request = {
        "collection_id": collection_id,
        "metadata": {"kind": "lamp"},
        "features": [{"feature_extractor_id": "text_extractor_v1", "vectors": vectors}],
    }
    documents = api(mixpeek.CollectionDocumentsApi, namespace=ns)
    made = documents.create_document(collection_id, m.DocumentCreateRequest.from_dict(request))
    assert type(made) is m.DocumentResponse and made.collection_id == collection_id
    read = documents.get_document(collection_id, made.document_id, return_vectors=True)
    assert read.additional_properties["metadata"] == {"kind": "lamp"}
    assert read.additional_properties["vectors"] == vectors
    if CONFIGURED:
        upsert = {
            "collection_id": collection_id,
            "documents": [
                {"document_id": f"lamp-{n}", "vectors": vectors, "payload": {"n": n}} for n in (1, 2)
            ],
        }
        answer = api(mixpeek.BYODocumentsApi, namespace=ns).upsert_documents_byo_namespaces(
            ns, m.BYOUpsertRequest.from_dict(upsert)
        )
        assert type(answer) is m.BYOUpsertResponse
        assert (answer.inserted, answer.document_ids) == (2, ["lamp-1", "lamp-2"])
        refused(
            exceptions.UnprocessableEntityException,
            documents.create_document,
            collection_id,
            m.DocumentCreateRequest.from_dict({"vectors": {index: [1.0]}}),
        )


def scenario_batch_without_a_collection() -> None:
    ns = create_namespace().namespace_id
    bucket_id = create_bucket(ns, {"note": {"type": "text"}})
    note = {"blobs": [{"property": "note", "type": "text", "data": "alone"}]}
    items = api(mixpeek.BucketObjectsApi, namespace=ns)
    item = items.create_object_buckets(bucket_id, m.CreateObjectRequest.from_dict(note))
    batches = api(mixpeek.BucketBatchesApi, namespace=ns)
    batch = batches.create_batch_buckets_batches(bucket_id, m.CreateBatchRequest(object_ids=[item.object_id]))
    assert type(batch) is m.BatchModel
    assert not batch.collection_ids
    gone = batches.delete_batch_buckets_batches(bucket_id, batch.batch_id)
    assert gone.success is True
    refused(exceptions.NotFoundException, batches.get_batch_buckets_batches, bucket_id, batch.batch_id)


def scenario_every_other_operation() -> None:
    """Each remaining operation answers with the status and the model that its caller expects."""
    ns = create_namespace().namespace_id
    bucket_id = create_bucket(ns, {"note": {"type": "text"}})
    extractor = {
        **TEXT_EXTRACTOR,
        "input_mappings": {"text": "note"},
        "field_passthrough": [{"source_path": "kind"}],
    }
    collection_id = create_collection(ns, bucket_id, extractor).collection_id
    first, second = ingest(
        ns,
        bucket_id,
        [
            {"kind": kind, "blobs": [{"property": "note", "type": "text", "data": text}]}
            for kind, text in (("a", HEADPHONES), ("b", LAMP))
        ],
    )

    def answered(model: Any, call: Any, *arguments: Any, **named: Any) -> Any:
        answer = call(*arguments, **named)
        assert type(answer) is model, (call, answer)
        return answer

    tasks = api(mixpeek.TasksApi)
    wanted = {"status": "COMPLETED", "task_type": "api_buckets_batches_process"}
    answered(m.ListTasksResponse, tasks.list_tasks)
    found = answered(
        m.ListTasksResponse, tasks.list_tasks, list_tasks_request=m.ListTasksRequest.from_dict(wanted)
    )
    assert {(task.status, task.task_type) for task in found.results} == {tuple(wanted.values())}

    buckets = api(mixpeek.BucketsApi, namespace=ns)
    patch = m.BucketPatchRequest.from_dict({"description": "patched"})
    assert answered(m.BucketResponse, buckets.patch_bucket, bucket_id, patch).description == "patched"
    put = m.BucketUpdateRequest.from_dict({"bucket_name": "renamed"})
    assert answered(m.BucketResponse, buckets.update_bucket, bucket_id, put).bucket_name == "renamed"

    objects = api(mixpeek.BucketObjectsApi, namespace=ns)
    only_b = {"filters": {"field": "kind", "operator": "eq", "value": "B"}}
    found = answered(
        m.ListObjectsResponse,
        objects.list_objects_buckets,
        bucket_id,
        limit=1,
        list_objects_request=m.ListObjectsRequest.from_dict(only_b),
    )
    assert [item.object_id for item in found.results] == [second]
    patch = m.PatchObjectRequest.from_dict({"kind": "c", "key_prefix": "/k"})
    item = answered(m.ObjectResponse, objects.patch_object_buckets, bucket_id, first, patch)
    assert (item.additional_properties["kind"], item.key_prefix) == ("c", "/k")
    put = m.UpdateObjectRequest.from_dict({"metadata": {"mood": "calm"}})
    item = answered(m.ObjectResponse, objects.update_object_buckets, bucket_id, first, put)
    assert item.additional_properties["metadata"] == {"mood": "calm"}

    batches = api(mixpeek.BucketBatchesApi, namespace=ns)
    create = m.CreateBatchRequest(object_ids=[first])
    batch_id = answered(m.BatchModel, batches.create_batch_buckets_batches, bucket_id, create).batch_id
    more = m.AddObjectsToBatchRequest(object_ids=[second])
    batch = answered(m.BatchModel, batches.add_objects_to_batch_buckets_batches, bucket_id, batch_id, more)
    assert batch.object_ids == [first, second]
    patch = m.PatchBatchRequest.from_dict({"metadata": {"source": "nightly"}})
    answered(m.BatchModel, batches.patch_batch_buckets_batches, bucket_id, batch_id, patch)
    # Without a body, and twice: submitting again changes nothing.
    task = answered(m.TaskResponse, batches.submit_batch_buckets_batches, bucket_id, batch_id)
    again = answered(m.TaskResponse, batches.submit_batch_buckets_batches, bucket_id, batch_id)
    assert again.task_id == task.task_id
    answered(m.TaskResponse, batches.cancel_batch_buckets_batches, bucket_id, batch_id)
    assert finished(task.task_id).status in ("CANCELED", "COMPLETED")
    done = m.ListBatchesRequest.from_dict({"status": "COMPLETED", "limit": 1})
    found = answered(
        m.ListBatchesResponse, batches.list_batches_buckets, bucket_id, list_batches_request=done
    )
    assert [batch.status for batch in found.results] == ["COMPLETED"]

    collections = api(mixpeek.CollectionsApi, namespace=ns)
    collection = answered(
        m.CollectionResponse, collections.update_collection, collection_id, {"description": "new"}
    )
    assert collection.description == "new"
    features = answered(
        m.DescribeCollectionFeaturesResponse, collections.describe_collection_features, collection_id
    ).features
    assert [feature.feature_address for feature in features] == [TEXT_URI, WORDS_URI]
    triggered = answered(m.TriggerCollectionResponse, collections.trigger_collection, collection_id)
    assert finished(triggered.task_id).status == "COMPLETED"

    documents = api(mixpeek.CollectionDocumentsApi, namespace=ns)
    newest = m.ListDocumentsRequest.from_dict({"sort": {"field": "kind", "direction": "desc"}})
    found = answered(
        m.ListDocumentsResponse, documents.list_documents, collection_id, list_documents_request=newest
    )
    assert [item.additional_properties["root_object_id"] for item in found.results] == [first, second]
    document_id = found.results[0].document_id
    for flags in ({}, {"return_vectors": True, "return_presigned_urls": True}):
        answered(m.DocumentResponse, documents.get_document, collection_id, document_id, **flags)
    anywhere = api(mixpeek.DocumentsApi, namespace=ns)
    answered(m.DocumentResponse, anywhere.get_document_ns, document_id)
    absent = "doc_" + "0" * 32
    delete = m.BatchDeleteDocumentsRequest.from_dict({"document_ids": [document_id, absent]})
    deleted = answered(m.BatchDeleteDocumentsResponse, documents.batch_delete, collection_id, delete)
    assert (deleted.deleted_count, deleted.failed_count) == (1, 1)

    stages = [
        {
            "stage_name": "search",
            "stage_type": "filter",
            "config": {
                "stage_id": "feature_search",
                "parameters": {"feature_uri": TEXT_URI, "input": {"text": "{{INPUT.query}}"}},
            },
        }
    ]
    input_schema = {"query": {"type": "text", "required": True}}
    body = {
        "collection_identifiers": [collection_id],
        "input_schema": input_schema,
        "stages": stages,
        "inputs": {"query": LAMP},
    }
    ad_hoc = api(mixpeek.AdhocRetrieversApi, namespace=ns)
    found = ad_hoc.execute_adhoc_retriever(m.AdhocExecuteRequest.from_dict(body))
    assert [item["root_object_id"] for item in found["documents"]] == [second]
    retrievers = api(mixpeek.RetrieversApi, namespace=ns)
    create = {**body, "retriever_name": unique("retriever")}
    made = retrievers.create_retriever(m.CreateRetrieverRequest.from_dict(create))
    retriever_id = (made if CONFIGURED else made.retriever).retriever_id
    patch = m.PatchRetrieverRequest.from_dict({"description": "patched", "tags": ["lamps"]})
    patched = answered(m.PatchRetrieverResponse, retrievers.patch_retriever, retriever_id, patch)
    assert (patched.retriever.description, patched.retriever.tags) == ("patched", ["lamps"])
    answered(m.ListRetrieversResponse, retrievers.list_retrievers_get)
    nothing = m.ExecuteRetrieverRequest.from_dict({"inputs": {}})
    error = refused(exceptions.ApiException, retrievers.execute_retriever, retriever_id, nothing)
    assert error.status in (400, 422)
    assert "query" in error.body

    email = api(mixpeek.OrganizationUsersApi).list_users_organizations()["results"][0]["email"]
    keys, name = api(mixpeek.OrganizationAPIKeysApi), unique("key")
    create = m.APIKeyCreateRequest.from_dict({"name": name, "permissions": ["read"]})
    made = answered(m.APIKeyCreateResponse, keys.create_key_organizations_users_email, email, create)
    patch = m.APIKeyUpdateRequest.from_dict({"description": "patched"})
    answered(m.APIKeyModel, keys.update_key_organizations_users_email_name, email, name, patch)
    rotated = answered(m.APIKeyCreateResponse, keys.rotate_key_organizations_users_email_name, email, name)
    assert rotated.key != made.key
    refused(exceptions.UnauthorizedException, api(mixpeek.NamespacesApi, key=made.key).get_namespace, ns)
    assert api(mixpeek.NamespacesApi, key=rotated.key).get_namespace(ns).namespace_id == ns

    if CONFIGURED:
        stats = answered(m.NamespaceStatsResponse, api(mixpeek.NamespacesApi).get_namespace_stats, ns)
        assert (stats.document_count, stats.bucket_count, stats.object_count) == (1, 1, 2)
        answered(m.MeResponse, api(mixpeek.AccountApi).whoami_me)
        answered(m.ListBucketsResponse, buckets.list_buckets_get)
        answered(m.ListCollectionsResponse, collections.list_collections_get, page_size=1)
        limited = m.ExecuteRetrieverRequest.from_dict({"inputs": {"query": LAMP}, "limit": 1})
        found = answered(m.ExecuteRetrieverResponse, retrievers.execute_retriever, retriever_id, limited)
        assert len(found.documents) == 1

    retrievers.delete_retriever(retriever_id)
    collections.delete_collection(collection_id)
    buckets.delete_bucket(bucket_id)
    refused(exceptions.NotFoundException, collections.get_collection, collection_id)
    assert api(mixpeek.NamespacesApi).get_namespace(ns).document_count == 0
