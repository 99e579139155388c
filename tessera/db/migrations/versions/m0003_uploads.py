"""Uploads, and blobs that are fetched by URL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_v0.3.0"
down_revision = "0002_v0.2.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":  # whose integers have 64 bits
        op.alter_column("objects", "size_bytes", type_=sa.BigInteger(), existing_nullable=False)
    op.create_table(
        "uploads",
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("bucket_id", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=False),
        sa.Column("file_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("file_hash", sa.String(), nullable=True),
        sa.Column("presigned_url_expiration", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("create_object_on_confirm", sa.Boolean(), nullable=False),
        sa.Column("object_metadata", sa.JSON(), nullable=True),
        sa.Column("blob_property", sa.String(), nullable=True),
        sa.Column("blob_type", sa.String(), nullable=True),
        sa.Column("skip_duplicates", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("etag", sa.String(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("mime_type", sa.String(), nullable=True),
        sa.Column("blob_key", sa.String(), nullable=True),
        sa.Column("duplicate_of_upload_id", sa.String(), nullable=True),
        sa.Column("object_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.Column("completed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_uploads_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("upload_id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_bucket", "uploads", ["bucket_id", "created_at", "upload_id"], unique=False)
    op.create_index("ix_uploads_content", "uploads", ["bucket_id", "sha256"], unique=False)
    op.create_index("ix_uploads_status", "uploads", ["status", "expires_at"], unique=False)
    op.create_index("ix_uploads_namespace", "uploads", ["namespace_id"], unique=False)
    op.create_table(
        "fetches",
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("property", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("sealed_url", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_fetches_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("object_id", "property", name=op.f("pk_fetches")),
    )
    op.create_index("ix_fetches_namespace", "fetches", ["namespace_id"], unique=False)
