"""Clusters, their executions, and what triggers these."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017_v0.5.0"
down_revision = "0016_v0.5.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clusters",
        sa.Column("cluster_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("cluster_name", sa.String(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("updated_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_clusters_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cluster_id", name=op.f("pk_clusters")),
        sa.UniqueConstraint(
            "namespace_id", "cluster_name", name=op.f("uq_clusters_namespace_id_cluster_name")
        ),
    )
    op.create_table(
        "cluster_runs",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("cluster_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=True),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("completed_at", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["clusters.cluster_id"],
            name=op.f("fk_cluster_runs_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_cluster_runs")),
    )
    op.create_index("ix_cluster_runs_list", "cluster_runs", ["cluster_id", "created_at"], unique=False)
    op.create_index("ix_cluster_runs_due", "cluster_runs", ["status", "created_at"], unique=False)
    op.create_index("ix_cluster_runs_namespace", "cluster_runs", ["namespace_id"], unique=False)


def downgrade() -> None:
    op.drop_table("cluster_runs")
    op.drop_table("clusters")
