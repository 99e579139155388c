"""Unique keys of objects, and what happened to a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_v0.4.0"
down_revision = "0007_v0.4.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("objects") as table:
        table.add_column(sa.Column("unique_key", sa.String(), nullable=True))
    op.create_index("ix_objects_unique_key", "objects", ["bucket_id", "unique_key"], unique=True)
    op.create_table(
        "batch_logs",
        sa.Column("line_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("batch_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("tier_num", sa.Integer(), nullable=True),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_batch_logs_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("line_id", name=op.f("pk_batch_logs")),
    )
    op.create_index("ix_batch_logs_batch", "batch_logs", ["batch_id", "line_id"], unique=False)
    op.create_index("ix_batch_logs_namespace", "batch_logs", ["namespace_id"], unique=False)
