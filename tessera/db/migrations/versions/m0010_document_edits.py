"""What users change by hand of extracted documents, kept so that another extraction does not undo it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_v0.4.0"
down_revision = "0009_v0.4.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "document_edits",
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("collection_id", sa.String(), nullable=False),
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("source_id", sa.String(), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id", "source_id"],
            ["sources.collection_id", "sources.source_id"],
            name="fk_document_edits_source",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_document_edits_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection_id", "document_id", name=op.f("pk_document_edits")),
    )
    op.create_index(
        "ix_document_edits_source", "document_edits", ["collection_id", "source_id"], unique=False
    )
