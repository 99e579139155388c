"""Folding of long logs, and erasing of documents."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_v0.3.0"
down_revision = "0004_v0.2.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("namespaces") as table:
        for name in ("checkpoint_first", "checkpoint_seq", "logged_changes", "log_edition"):
            table.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("folded_at", sa.String(), nullable=True))
    op.create_table(
        "erasures",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_erasures_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_erasures")),
    )
    op.create_index("ix_erasures_namespace", "erasures", ["namespace_id"], unique=False)
