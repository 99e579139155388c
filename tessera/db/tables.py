"""The tables of the metadata database, each documented where it is declared.

Times are RFC 3339 strings in UTC (``2026-11-23T10:00:00.000000Z``): equal on SQLite and PostgreSQL,
sortable as text. Columns of type JSON hold what the API speaks.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _in_namespace() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["namespace_id"], ["namespaces.namespace_id"], ondelete="CASCADE")


#: Tenants. `internal_id` (``int_`` + 24 characters) never leaves the server.
organizations = Table(
    "organizations",
    metadata,
    Column("organization_id", String, primary_key=True),
    Column("internal_id", String, nullable=False, unique=True),
    Column("organization_name", String, nullable=False),
    Column("account_type", String, nullable=False, default="enterprise"),
    Column("infrastructure", JSON),
    Column("logo_url", String),
    Column("billing_email", String),
    Column("metadata", JSON),
    #: Requests a minute by class that this organization may make; what is absent is not limited by it.
    Column("rate_limits", JSON),
    #: The same, stated by the operator: the organization cannot change them.
    Column("operator_rate_limits", JSON),
    Column("read_auditing", Boolean, nullable=False, default=False, server_default=false()),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("user_id", String, primary_key=True),
    Column("organization_id", String, nullable=False, index=True),
    Column("email", String, nullable=False),
    Column("user_name", String, nullable=False),
    Column("role", String, nullable=False, default="member"),
    Column("status", String, nullable=False, default="active"),
    Column("avatar_url", String),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("organization_id", "email"),
)

#: API keys. Only the SHA-256 of a key is kept. `name` is unique among a user's keys that are not revoked
#: (checked in the transaction that creates one).
api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("organization_id", String, nullable=False, index=True),
    Column("user_id", String, nullable=False),
    Column("name", String, nullable=False),
    Column("key_hash", LargeBinary(32), nullable=False, unique=True),
    Column("key_prefix", String, nullable=False),
    Column("description", String, nullable=False, default=""),
    Column("permissions", JSON, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("status", String, nullable=False, default="active"),
    Column("rate_limit_override", Integer),
    Column("expires_at", String),
    Column("created_at", String, nullable=False),
    Column("created_by", String),
    Column("revoked_at", String),
    Column("revoked_by", String),
    Column("last_used_at", String),
    #: Origins that a browser may use the key from; null: any.
    Column("allowed_origins", JSON),
)

#: Values that only the server may read again. `sealed` as `sealing.py` makes it.
secrets = Table(
    "secrets",
    metadata,
    Column("organization_id", String, primary_key=True),
    Column("secret_name", String, primary_key=True),
    Column("sealed", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
)

#: Who changed (and, where an organization asks for it, read) what. Never a value of a secret field.
audit_events = Table(
    "audit_events",
    metadata,
    Column("audit_id", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("timestamp", String, nullable=False),
    Column("action", String, nullable=False),
    Column("resource_type", String, nullable=False),
    Column("resource_id", String, nullable=False),
    Column("actor_id", String, nullable=False),
    #: user, or operator
    Column("actor_type", String, nullable=False, default="user"),
    Column("key_id", String),
    Column("changes", JSON),
    Column("ip_address", String),
    Column("user_agent", String),
    Column("request_id", String),
    Index("ix_audit_events_list", "organization_id", "timestamp", "audit_id"),
)

#: Requests by key, route and hour (``2026-11-23T10``).
usage_counts = Table(
    "usage_counts",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("hour", String, primary_key=True),
    #: ``POST /v1/retrievers/{retriever_id}/execute``
    Column("endpoint", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("api_name", String, nullable=False),
    Column("requests", Integer, nullable=False, default=0),
    Column("errors", Integer, nullable=False, default=0),
    Column("duration_ms", Integer, nullable=False, default=0),
    Index("ix_usage_counts_organization", "organization_id", "hour"),
)

#: Namespaces. `head` is the number of the last log entry, taken with ``UPDATE … SET head = head + 1``
#: as the last statement before the insert. `view_id` names the view that answers; `mark_seq` is the
#: durable position that the view last reported, `document_count` the exact count at that position.
#: A deleted namespace leaves this table at once (see `purges`).
namespaces = Table(
    "namespaces",
    metadata,
    Column("namespace_id", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("namespace_name", String, nullable=False),
    Column("description", String),
    Column("namespace_type", String, nullable=False, default="standard"),
    #: As registered: [{feature_extractor_name, version, params}]
    Column("feature_extractors", JSON, nullable=False),
    #: The user's indexes in the order sent: [PayloadIndex]
    Column("user_indexes", JSON, nullable=False),
    #: Indexes that extractors and the system add: [PayloadIndex]
    Column("added_indexes", JSON, nullable=False),
    #: What the plan decided for the view: [{name, dimensions, distance}]
    Column("vectors", JSON, nullable=False),
    #: The keyword indexes of the view: [{name, fields}]; null: none.
    Column("sparse_vectors", JSON),
    #: {vector name: inference name or model id}
    Column("vector_inference_map", JSON, nullable=False),
    Column("infrastructure", JSON, nullable=False),
    #: Where the view really lives, fixed when it was provisioned: {source, compute_tier, qdrant_url,
    #: qdrant_api_key (sealed), alias, ray_head_node_url, ray_dashboard_url}; null: the server's own default.
    Column("place", JSON),
    Column("auto_create_indexes", Boolean, nullable=False, default=False),
    Column("head", Integer, nullable=False, default=0),
    #: The entries that stand for all entries up to `checkpoint_seq`; both 0 while nothing was folded.
    Column("checkpoint_first", Integer, nullable=False, default=0, server_default="0"),
    Column("checkpoint_seq", Integer, nullable=False, default=0, server_default="0"),
    #: Upserts and deletes in the log since it was folded last, with those of the checkpoint; not exact.
    Column("logged_changes", Integer, nullable=False, default=0, server_default="0"),
    #: Grows whenever entries are replaced: what was read under another edition is not written.
    Column("log_edition", Integer, nullable=False, default=0, server_default="0"),
    #: Since when artifacts may lie about that entries do not name any more; null when none do.
    Column("folded_at", String),
    Column("view_id", String, nullable=False, unique=True),
    Column("generation", Integer, nullable=False, default=1),
    Column("mark_seq", Integer, nullable=False, default=0),
    Column("document_count", Integer, nullable=False, default=0),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("organization_id", "namespace_name"),
    Index("ix_namespaces_list", "organization_id", "created_at", "namespace_id"),
)

#: The log. `body` is an inline edit or an index set (orjson), `artifact_key` names an Arrow file.
log_entries = Table(
    "log_entries",
    metadata,
    Column("namespace_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("artifact_key", String),
    Column("created_at", String, nullable=False),
    _in_namespace(),
)

buckets = Table(
    "buckets",
    metadata,
    Column("bucket_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("bucket_name", String, nullable=False),
    Column("description", String),
    Column("bucket_schema", JSON, nullable=False),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("unique_key", JSON),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "bucket_name"),
    _in_namespace(),
)

#: Objects. `fields` are the user's root fields (with `metadata` among them); `blobs` are
#: [{blob_id, property, type, text | blob_key, details, metadata}]. `version` grows with each change.
objects = Table(
    "objects",
    metadata,
    Column("object_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("bucket_id", String, nullable=False),
    Column("key_prefix", String),
    Column("fields", JSON, nullable=False),
    Column("blobs", JSON, nullable=False),
    Column("version", Integer, nullable=False, default=1),
    Column("content_hash", String, nullable=False),
    #: Up to a hundred files of some gigabytes.
    Column("size_bytes", BigInteger().with_variant(Integer, "sqlite"), nullable=False, default=0),
    Column("status", String, nullable=False, default="DRAFT"),
    #: Digest of the values of the bucket's unique key, where it has one.
    Column("unique_key", String),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Index("ix_objects_bucket", "bucket_id", "created_at", "object_id"),
    Index("ix_objects_unique_key", "bucket_id", "unique_key", unique=True),
    Index("ix_objects_content", "bucket_id", "content_hash"),
    #: Without it a namespace's objects can only be counted, or go with it, by reading all objects.
    Index("ix_objects_namespace", "namespace_id"),
    _in_namespace(),
)

#: Uploads. What was PUT lies below ``<namespace_id>/uploads/<upload_id>.<sha256>`` until it is confirmed, then
#: under `blob_key`. `etag` (MD5), `sha256` and `size_bytes` are of what came; the declared ones stand beside.
uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("bucket_id", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("content_type", String, nullable=False),
    Column("file_size_bytes", BigInteger),
    Column("file_hash", String),
    Column("presigned_url_expiration", Integer, nullable=False),
    Column("metadata", JSON),
    Column("create_object_on_confirm", Boolean, nullable=False),
    Column("object_metadata", JSON),
    Column("blob_property", String),
    Column("blob_type", String),
    Column("skip_duplicates", Boolean, nullable=False),
    #: PENDING, COMPLETED or FAILED (not confirmed in time)
    Column("status", String, nullable=False),
    Column("message", String),
    Column("sha256", String),
    Column("etag", String),
    Column("size_bytes", BigInteger),
    Column("mime_type", String),
    Column("blob_key", String),
    Column("duplicate_of_upload_id", String),
    Column("object_id", String),
    Column("created_at", String, nullable=False),
    Column("expires_at", String, nullable=False),
    Column("completed_at", String),
    Index("ix_uploads_bucket", "bucket_id", "created_at", "upload_id"),
    Index("ix_uploads_content", "bucket_id", "sha256"),
    Index("ix_uploads_status", "status", "expires_at"),
    Index("ix_uploads_namespace", "namespace_id"),
    _in_namespace(),
)

#: Blobs of objects that are still to be fetched: the URL, sealed, because its query may be a credential. The row
#: goes when the content is ours.
fetches = Table(
    "fetches",
    metadata,
    Column("object_id", String, primary_key=True),
    Column("property", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("sealed_url", String, nullable=False),
    Index("ix_fetches_namespace", "namespace_id"),
    _in_namespace(),
)

collections = Table(
    "collections",
    metadata,
    Column("collection_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("collection_name", String, nullable=False),
    Column("description", String),
    #: {type, bucket_ids | collection_ids, source_filters}
    Column("source", JSON, nullable=False),
    #: {feature_extractor_name, version, params, parameters, input_mappings, field_passthrough, …}
    Column("feature_extractor", JSON, nullable=False),
    Column("input_schema", JSON, nullable=False),
    Column("output_schema", JSON, nullable=False),
    #: Grows with each sync that found fields which the output schema did not name.
    Column("schema_version", Integer, nullable=False, default=1, server_default="1"),
    Column("schema_synced_at", String),
    Column("enabled", Boolean, nullable=False, default=True),
    Column("metadata", JSON, nullable=False, default=dict),
    #: [{taxonomy_id, execution_mode, scroll_filters, priority, …}]: whose assignments its documents carry
    Column("taxonomy_applications", JSON),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "collection_name"),
    _in_namespace(),
)

#: What each source has in the view: its documents, and from which input and plan they came. An
#: unchanged source (same hashes) writes nothing; ids that a new run does not bring are deleted. `source_id` is an
#: object's id, ``document:<id>`` for a document of another collection, ``ready:<id>`` for one sent ready-made.
sources = Table(
    "sources",
    metadata,
    Column("namespace_id", String, nullable=False),
    Column("collection_id", String, primary_key=True),
    Column("source_id", String, primary_key=True),
    Column("input_hash", String, nullable=False),
    Column("plan_hash", String, nullable=False),
    Column("document_ids", JSON, nullable=False),
    Index("ix_sources_source", "namespace_id", "source_id"),
    _in_namespace(),
)

#: What users changed by hand of documents that an extractor made: value by path (dots between segments). It stays
#: when the source is extracted again. Gone with the source, and with the document.
document_edits = Table(
    "document_edits",
    metadata,
    Column("namespace_id", String, nullable=False),
    Column("collection_id", String, primary_key=True),
    Column("document_id", String, primary_key=True),
    Column("source_id", String, nullable=False),
    Column("fields", JSON, nullable=False),
    ForeignKeyConstraint(
        ["collection_id", "source_id"],
        ["sources.collection_id", "sources.source_id"],
        name="fk_document_edits_source",
        ondelete="CASCADE",
    ),
    Index("ix_document_edits_source", "collection_id", "source_id"),
    _in_namespace(),
)

#: Batches. `attempt` grows each time a server takes the batch up; what an older attempt brings is dropped.
#: `holder` names the server that works on it (the token of its slot, see `job_slots`), null while nobody does.
#: `crashes` counts the servers that ended under it in a row, without a chunk done in between.
batches = Table(
    "batches",
    metadata,
    Column("batch_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("bucket_id", String, nullable=False),
    Column("object_ids", JSON, nullable=False),
    Column("collection_ids", JSON, nullable=False),
    #: The collections in the order in which they run, see `tessera.tiers.Tier`; null in batches of older releases.
    Column("tiers", JSON),
    Column("status", String, nullable=False, default="DRAFT"),
    Column("task_id", String),
    Column("attempt", Integer, nullable=False, default=0),
    Column("holder", String),
    Column("crashes", Integer, nullable=False, default=0, server_default="0"),
    Column("error", String),
    Column("error_summary", JSON),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Column("submitted_at", String),
    Index("ix_batches_status", "status", "submitted_at"),
    Index("ix_batches_bucket", "bucket_id", "created_at"),
    Index("ix_batches_namespace", "namespace_id"),
    _in_namespace(),
)

#: One row for each (collection, source) of a batch: PENDING, COMPLETED, FAILED or SKIPPED. `object_id` is the
#: source's id as in `sources`: an object's, or that of a document of the tier before. A PENDING row with `due_at`
#: failed, and is tried again by itself then. `attempts` counts all tries, `tries` those of this run, `retry_count`
#: the retries that somebody asked for.
batch_rows = Table(
    "batch_rows",
    metadata,
    Column("batch_id", String, primary_key=True),
    Column("collection_id", String, primary_key=True),
    Column("object_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("status", String, nullable=False, default="PENDING"),
    Column("attempts", Integer, nullable=False, default=0),
    Column("documents", Integer, nullable=False, default=0),
    Column("error_kind", String),
    Column("error_message", String),
    Column("tries", Integer, nullable=False, default=0, server_default="0"),
    Column("retry_count", Integer, nullable=False, default=0, server_default="0"),
    Column("due_at", String),
    Column("updated_at", String, nullable=False),
    Index("ix_batch_rows_status", "batch_id", "status"),
    Index("ix_batch_rows_namespace", "namespace_id"),
    Index("ix_batch_rows_source", "object_id", "collection_id"),
    _in_namespace(),
)

#: One row for each row of a batch that ever failed: its last failure, and all of them in `history` ([{attempt,
#: task_id, kind, stage, message, at}], the oldest first). Whether it still fails is told by its batch's row.
failures = Table(
    "failures",
    metadata,
    Column("failure_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("batch_id", String, nullable=False),
    Column("collection_id", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("cause", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("stage", String, nullable=False),
    Column("message", String, nullable=False),
    Column("failed_at", String, nullable=False),
    Column("history", JSON, nullable=False),
    Index("ix_failures_batch", "batch_id", "collection_id", "object_id"),
    Index("ix_failures_namespace", "namespace_id", "failed_at"),
    _in_namespace(),
)

#: Tasks belong to an organization; those inside a namespace carry its id and go with it.
tasks = Table(
    "tasks",
    metadata,
    Column("task_id", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("namespace_id", String),
    Column("task_type", String, nullable=False),
    Column("status", String, nullable=False),
    Column("inputs", JSON, nullable=False, default=list),
    Column("outputs", JSON, nullable=False, default=list),
    Column("additional_data", JSON, nullable=False, default=dict),
    Column("error", String),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Index("ix_tasks_list", "organization_id", "created_at"),
    Index("ix_tasks_namespace", "namespace_id"),
)

#: What happened to a batch, line by line, in the order in which it did; failed rows speak for themselves.
batch_logs = Table(
    "batch_logs",
    metadata,
    Column("line_id", Integer, primary_key=True, autoincrement=True),
    Column("batch_id", String, nullable=False),
    Column("namespace_id", String, nullable=False),
    Column("tier_num", Integer),
    Column("level", String, nullable=False),
    Column("message", String, nullable=False),
    Column("created_at", String, nullable=False),
    Index("ix_batch_logs_batch", "batch_id", "line_id"),
    Index("ix_batch_logs_namespace", "namespace_id"),
    _in_namespace(),
)

retrievers = Table(
    "retrievers",
    metadata,
    Column("retriever_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("retriever_name", String, nullable=False),
    Column("description", String),
    #: {collection_identifiers, collection_ids, input_schema, stages, budget_limits, cache_config, tags, …}
    Column("definition", JSON, nullable=False),
    Column("version", Integer, nullable=False, default=1),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "retriever_name"),
    _in_namespace(),
)

#: A taxonomy; what it does is its newest version's configuration.
taxonomies = Table(
    "taxonomies",
    metadata,
    Column("taxonomy_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("taxonomy_name", String, nullable=False),
    Column("description", String),
    Column("version", Integer, nullable=False),
    Column("metadata", JSON, nullable=False, default=dict),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "taxonomy_name"),
    _in_namespace(),
)

#: Every configuration that a taxonomy had; they are never changed.
taxonomy_versions = Table(
    "taxonomy_versions",
    metadata,
    Column("taxonomy_id", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    #: {taxonomy_type, retriever_id, input_mappings, source_collection | hierarchical_nodes, …}
    Column("config", JSON, nullable=False),
    Column("created_at", String, nullable=False),
    ForeignKeyConstraint(["taxonomy_id"], ["taxonomies.taxonomy_id"], ondelete="CASCADE"),
)

#: Collections whose documents are still to get, or to lose, what taxonomies say of them; a row goes when that is done.
enrichments = Table(
    "enrichments",
    metadata,
    Column("enrichment_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("collection_id", String, nullable=False),
    #: The task that tells of it; null for what a write of documents left.
    Column("task_id", String),
    #: {is_full, filters, after, done, total, …}: ids and counts, never content
    Column("targets", JSON, nullable=False),
    Column("due_at", String, nullable=False),
    Column("created_at", String, nullable=False),
    Index("ix_enrichments_collection", "collection_id"),
    ForeignKeyConstraint(["collection_id"], ["collections.collection_id"], ondelete="CASCADE"),
)

#: Executions of stored retrievers, kept for a while: what each took, never what it found.
#: How long extracting took, and what came of it, as moments (``rates.py``); of no namespace, of one place each.
rates = Table(
    "rates",
    metadata,
    #: Machine and workers, or cluster
    Column("place", String, primary_key=True),
    #: Name of the implementation; "" for what a batch takes beside its chunks
    Column("extractor", String, primary_key=True),
    Column("plan_hash", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("moments", JSON, nullable=False),
    Column("updated_at", String, nullable=False),
)

#: How often filters named a field of a namespace with `auto_create_indexes`, and what became of its index.
filter_uses = Table(
    "filter_uses",
    metadata,
    Column("namespace_id", String, primary_key=True),
    Column("field_name", String, primary_key=True),
    #: The type of the index that would help, or that was made.
    Column("index_type", String, primary_key=True),
    #: Since the index was made, or refused; before, in all.
    Column("uses", Integer, nullable=False, default=0),
    Column("last_used_at", String, nullable=False),
    #: COUNTING, MADE, REFUSED (it did not hold every document's value; tried again much later)
    Column("state", String, nullable=False),
    Column("decided_at", String),
)

executions = Table(
    "executions",
    metadata,
    Column("execution_id", String, primary_key=True),
    Column("retriever_id", String, nullable=False),
    #: completed or failed
    Column("status", String, nullable=False),
    #: {stages: {name: {input_count, output_count, duration_ms, …}}, total_time_ms, credits_used}
    Column("statistics", JSON, nullable=False),
    Column("pagination", JSON),
    Column("error", String),
    Column("total_stages", Integer, nullable=False),
    Column("total_returned", Integer, nullable=False),
    Column("cache_hit", Boolean, nullable=False),
    Column("inputs_hash", String, nullable=False),
    Column("duration_ms", Float, nullable=False),
    Column("created_at", String, nullable=False),
    Column("completed_at", String, nullable=False),
    Index("ix_executions_list", "retriever_id", "created_at"),
    Index("ix_executions_age", "created_at"),
    ForeignKeyConstraint(["retriever_id"], ["retrievers.retriever_id"], ondelete="CASCADE"),
)

#: What people did with hits: who, which document, where in the answer. Said by clients, kept until it is deleted, or
#: its document erased.
interactions = Table(
    "interactions",
    metadata,
    Column("interaction_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    #: The document.
    Column("feature_id", String, nullable=False),
    #: [click, …]
    Column("interaction_type", JSON, nullable=False),
    Column("position", Integer, nullable=False),
    #: As they were said: neither has to exist any more.
    Column("execution_id", String),
    Column("retriever_id", String),
    Column("user_id", String),
    Column("session_id", String),
    Column("document_score", Float),
    Column("result_set_size", Integer),
    Column("feature_uri", String),
    Column("metadata", JSON),
    Column("query_snapshot", JSON),
    Column("occurred_at", String),
    Column("created_at", String, nullable=False),
    Index("ix_interactions_list", "namespace_id", "created_at", "interaction_id"),
    Index("ix_interactions_document", "namespace_id", "feature_id"),
    Index("ix_interactions_execution", "execution_id"),
    Index("ix_interactions_retriever", "retriever_id"),
    _in_namespace(),
)

#: What an execution with learned fusion showed: at each position a document, and what each search said of it. Kept
#: as long as the log of executions, or as there are interactions with it.
impressions = Table(
    "impressions",
    metadata,
    Column("execution_id", String, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("retriever_id", String, nullable=False),
    Column("document_id", String, nullable=False),
    #: {name of the search: its score scaled to 0…1}; absent where it did not find the document
    Column("signals", JSON, nullable=False),
    Column("created_at", String, nullable=False),
    Index("ix_impressions_retriever", "retriever_id", "created_at"),
    Index("ix_impressions_document", "document_id"),
    Index("ix_impressions_age", "created_at"),
    ForeignKeyConstraint(["retriever_id"], ["retrievers.retriever_id"], ondelete="CASCADE"),
)

#: What clusters documents, and how; what came of it is in `cluster_runs`.
clusters = Table(
    "clusters",
    metadata,
    Column("cluster_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("cluster_name", String, nullable=False),
    #: {collection_ids, cluster_type, vector_config, attribute_config, filters, metadata, description, …}
    Column("definition", JSON, nullable=False),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "cluster_name"),
    _in_namespace(),
)

#: Executions of clusters. Which document belongs where is in ``<namespace_id>/clusters/<run_id>.arrow``.
cluster_runs = Table(
    "cluster_runs",
    metadata,
    Column("run_id", String, primary_key=True),
    Column("cluster_id", String, nullable=False),
    Column("namespace_id", String, nullable=False),
    Column("task_id", String, nullable=False),
    #: pending, processing, completed or failed
    Column("status", String, nullable=False),
    #: The token of the server that runs it, and how many servers in a row ended under it.
    Column("holder", String),
    Column("crashes", Integer, nullable=False, default=0),
    #: {filters, sample_size}: what this execution has of its own
    Column("request", JSON, nullable=False),
    #: {centroids, metrics, num_points, noise, source_documents, label_overrides, …}
    Column("result", JSON),
    Column("error", String),
    Column("created_at", String, nullable=False),
    Column("completed_at", String),
    #: What began it, if that was a trigger; it may be gone.
    Column("trigger_id", String),
    Index("ix_cluster_runs_list", "cluster_id", "created_at"),
    Index("ix_cluster_runs_due", "status", "created_at"),
    Index("ix_cluster_runs_namespace", "namespace_id"),
    Index("ix_cluster_runs_trigger", "trigger_id", "created_at"),
    ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], ondelete="CASCADE"),
)

#: What executes clusters by itself. One that is active and whose `due_at` has come begins an execution.
cluster_triggers = Table(
    "cluster_triggers",
    metadata,
    Column("trigger_id", String, primary_key=True),
    Column("cluster_id", String, nullable=False),
    Column("namespace_id", String, nullable=False),
    #: cron, interval or event
    Column("trigger_type", String, nullable=False),
    Column("schedule", JSON, nullable=False),
    Column("description", String),
    #: active, paused, disabled or failed
    Column("status", String, nullable=False),
    #: When it fires next; null while an event waits for more documents, and while it is not active.
    Column("due_at", String),
    #: Of an event: of which collection what is counted, from how many on it fires, and how many there are.
    Column("collection_id", String),
    Column("event_type", String),
    Column("event_threshold", Integer),
    Column("event_counter", Integer, nullable=False, default=0),
    Column("cooldown_until", String),
    Column("last_cooldown_at", String),
    Column("last_triggered_at", String),
    Column("last_task_id", String),
    Column("last_status", String),
    Column("last_error", String),
    #: How often it fired, and how many of its executions failed since the last that did not.
    Column("executions", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("created_by", String),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Index("ix_cluster_triggers_due", "status", "due_at"),
    Index("ix_cluster_triggers_list", "namespace_id", "created_at"),
    Index("ix_cluster_triggers_cluster", "cluster_id"),
    Index("ix_cluster_triggers_collection", "collection_id"),
    ForeignKeyConstraint(["cluster_id"], ["clusters.cluster_id"], ondelete="CASCADE"),
)

#: Queries with the documents that answer them: [{query_id, query_input, relevant_documents, relevance_scores}]
evaluation_datasets = Table(
    "evaluation_datasets",
    metadata,
    Column("dataset_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("dataset_name", String, nullable=False),
    Column("description", String),
    Column("queries", JSON, nullable=False),
    Column("metadata", JSON),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("namespace_id", "dataset_name"),
    _in_namespace(),
)

#: Runs of a retriever over a dataset. `status` is pending, in_progress, completed or failed.
evaluations = Table(
    "evaluations",
    metadata,
    Column("evaluation_id", String, primary_key=True),
    Column("retriever_id", String, nullable=False),
    Column("namespace_id", String, nullable=False),
    Column("organization_id", String, nullable=False),
    Column("dataset_id", String, nullable=False),
    Column("dataset_name", String, nullable=False),
    #: {k_values, metrics}
    Column("config", JSON, nullable=False),
    Column("status", String, nullable=False),
    Column("task_id", String, nullable=False),
    Column("query_count", Integer, nullable=False),
    Column("evaluated", Integer, nullable=False, default=0),
    Column("skipped", Integer, nullable=False, default=0),
    #: What was tried since the last query that came to an end.
    Column("tries", Integer, nullable=False, default=0),
    #: {k: {metric: mean}}
    Column("metrics_by_k", JSON),
    Column("error", String),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Column("completed_at", String),
    Index("ix_evaluations_list", "retriever_id", "created_at"),
    Index("ix_evaluations_due", "status", "updated_at"),
    ForeignKeyConstraint(["retriever_id"], ["retrievers.retriever_id"], ondelete="CASCADE"),
)

#: What came of each query of an evaluation; one with an `error` was skipped.
evaluation_queries = Table(
    "evaluation_queries",
    metadata,
    Column("evaluation_id", String, primary_key=True),
    Column("query_id", String, primary_key=True),
    Column("place", Integer, nullable=False),
    Column("retrieved", JSON),
    Column("metrics_by_k", JSON),
    Column("error", String),
    ForeignKeyConstraint(["evaluation_id"], ["evaluations.evaluation_id"], ondelete="CASCADE"),
)

#: Namespaces that are being removed: what is still to be wiped, so that a kill in the middle is resumed.
purges = Table(
    "purges",
    metadata,
    Column("namespace_id", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("task_id", String, nullable=False),
    #: {view_ids: [...], infrastructure: {...}}
    Column("targets", JSON, nullable=False),
    Column("created_at", String, nullable=False),
)

#: Views that nobody refers to and that are dropped at `due_at`: one that was made for a namespace whose
#: creation did not end (the row is taken off in the transaction that begins to use the view), and one that
#: a namespace has left.
doomed_views = Table(
    "doomed_views",
    metadata,
    Column("view_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("place", JSON),
    Column("due_at", String, nullable=False),
)

#: Documents that are being erased: what is still to be rewritten, so that a kill in the middle is resumed.
erasures = Table(
    "erasures",
    metadata,
    Column("task_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    #: {document_ids: [...], object_ids: [...], blob_keys: [...]}: ids and names only, never content
    Column("targets", JSON, nullable=False),
    #: What was rewritten so far: counts, keys and bytes
    Column("report", JSON, nullable=False),
    Column("due_at", String, nullable=False),
    Column("created_at", String, nullable=False),
    Index("ix_erasures_namespace", "namespace_id"),
    _in_namespace(),
)

#: Who is told of events, and where. `secret` signs what is sent (sealed); in `channels`, [{channel, configs: {url,
#: headers: {name: value}, timeout}}], the URL and the values of headers are sealed.
webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", String, primary_key=True),
    Column("organization_id", String, nullable=False),
    Column("webhook_name", String, nullable=False),
    Column("event_types", JSON, nullable=False),
    Column("channels", JSON, nullable=False),
    Column("secret", String, nullable=False),
    Column("is_active", Boolean, nullable=False, default=True),
    #: Of the present run of failed deliveries; 0 and null when the last one went well.
    Column("consecutive_failures", Integer, nullable=False, default=0),
    Column("first_failure_at", String),
    Column("last_failure_at", String),
    Column("last_failure_cause", String),
    #: Nothing is sent before; "" when there is no such time.
    Column("rest_until", String, nullable=False, default=""),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    UniqueConstraint("organization_id", "webhook_name"),
)

#: What webhooks are told, one row for each event and channel: written in the transaction of the event, and kept for
#: a while when it has ended. `status` is PENDING, DELIVERED or FAILED. `holder` names the server that sends it now
#: (the token of its slot, see `job_slots`). `due_at` is when it is tried next, or when it ended.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("delivery_id", String, primary_key=True),
    Column("webhook_id", String, nullable=False),
    Column("channel", Integer, nullable=False),
    Column("event_id", String, nullable=False),
    Column("event_type", String, nullable=False),
    #: The bytes that are signed and sent: ids and counts, never content.
    Column("body", LargeBinary, nullable=False),
    Column("status", String, nullable=False, default="PENDING"),
    Column("holder", String),
    Column("due_at", String, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    #: The last of them: [{at, duration_ms, status_code, error}]
    Column("history", JSON, nullable=False, default=list),
    #: The delivery that was sent again as this one.
    Column("redelivery_of", String),
    Column("created_at", String, nullable=False),
    Column("updated_at", String, nullable=False),
    Index("ix_webhook_deliveries_due", "webhook_id", "status", "due_at"),
    Index("ix_webhook_deliveries_list", "webhook_id", "created_at", "delivery_id"),
    Index("ix_webhook_deliveries_holder", "holder"),
    ForeignKeyConstraint(["webhook_id"], ["webhooks.webhook_id"], ondelete="CASCADE"),
)

#: Exports: files below ``<namespace_id>/exports/<export_id>/`` until `expires_at`; one that is not done then is given
#: up.
exports = Table(
    "exports",
    metadata,
    Column("export_id", String, primary_key=True),
    Column("namespace_id", String, nullable=False),
    Column("is_done", Boolean, nullable=False),
    Column("expires_at", String, nullable=False),
    Index("ix_exports_namespace", "namespace_id"),
    _in_namespace(),
)

#: Answers kept for requests that carried an Idempotency-Key: 24 h per organization and route.
idempotency = Table(
    "idempotency",
    metadata,
    Column("organization_id", String, primary_key=True),
    Column("route", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("body_hash", LargeBinary(32), nullable=False),
    Column("resource_id", String, nullable=False),
    Column("created_at", String, nullable=False),
)

#: Tables of who is alive: beside the others on PostgreSQL, in a SQLite file of their own otherwise. Nothing in
#: them outlives the servers that wrote it, so they are no part of the schema's revisions nor of a backup.
job_metadata = MetaData(naming_convention=metadata.naming_convention)

#: Servers that take up work, numbered from 0; a number is used again when its server has ended. `token` is
#: of one life of one server, `expires_at` (seconds since 1970, by the database's clock) its last heartbeat's.
job_slots = Table(
    "job_slots",
    job_metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("token", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("expires_at", Float, nullable=False),
)
