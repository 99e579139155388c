"""What people did with hits, and what executions with learned fusion showed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020_v0.5.0"
down_revision = "0019_v0.5.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "interactions",
        sa.Column("interaction_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("feature_id", sa.String(), nullable=False),
        sa.Column("interaction_type", sa.JSON(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("execution_id", sa.String(), nullable=True),
        sa.Column("retriever_id", sa.String(), nullable=True),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.Column("document_score", sa.Float(), nullable=True),
        sa.Column("result_set_size", sa.Integer(), nullable=True),
        sa.Column("feature_uri", sa.String(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=True),
        sa.Column("query_snapshot", sa.JSON(), nullable=True),
        sa.Column("occurred_at", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_interactions_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("interaction_id", name=op.f("pk_interactions")),
    )
    op.create_index("ix_interactions_list", "interactions", ["namespace_id", "created_at", "interaction_id"])
    op.create_index("ix_interactions_document", "interactions", ["namespace_id", "feature_id"])
    op.create_index("ix_interactions_execution", "interactions", ["execution_id"])
    op.create_index("ix_interactions_retriever", "interactions", ["retriever_id"])
    op.create_table(
        "impressions",
        sa.Column("execution_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("retriever_id", sa.String(), nullable=False),
        sa.Column("document_id", sa.String(), nullable=False),
        sa.Column("signals", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["retriever_id"],
            ["retrievers.retriever_id"],
            name=op.f("fk_impressions_retriever_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("execution_id", "position", name=op.f("pk_impressions")),
    )
    op.create_index("ix_impressions_retriever", "impressions", ["retriever_id", "created_at"])
    op.create_index("ix_impressions_document", "impressions", ["document_id"])
    op.create_index("ix_impressions_age", "impressions", ["created_at"])


def downgrade() -> None:
    op.drop_table("impressions")
    op.drop_table("interactions")
