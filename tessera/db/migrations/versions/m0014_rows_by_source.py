"""Rows of batches by their source: whether a later batch has done an object that failed."""

from __future__ import annotations

from alembic import op

revision = "0014_v0.4.0"
down_revision = "0013_v0.4.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_batch_rows_source", "batch_rows", ["object_id", "collection_id"])


def downgrade() -> None:
    op.drop_index("ix_batch_rows_source", "batch_rows")
