"""Executions of retrievers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013_v0.4.0"
down_revision = "0012_v0.4.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "executions",
        sa.Column("execution_id", sa.String(), nullable=False),
        sa.Column("retriever_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("statistics", sa.JSON(), nullable=False),
        sa.Column("pagination", sa.JSON(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("total_stages", sa.Integer(), nullable=False),
        sa.Column("total_returned", sa.Integer(), nullable=False),
        sa.Column("cache_hit", sa.Boolean(), nullable=False),
        sa.Column("inputs_hash", sa.String(), nullable=False),
        sa.Column("duration_ms", sa.Float(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("completed_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["retriever_id"],
            ["retrievers.retriever_id"],
            name=op.f("fk_executions_retriever_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("execution_id", name=op.f("pk_executions")),
    )
    op.create_index("ix_executions_list", "executions", ["retriever_id", "created_at"])
    op.create_index("ix_executions_age", "executions", ["created_at"])
