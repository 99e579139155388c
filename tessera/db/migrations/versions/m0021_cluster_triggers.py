"""What executes clusters by itself."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021_v0.5.0"
down_revision = "0020_v0.5.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cluster_triggers",
        sa.Column("trigger_id", sa.String(), nullable=False),
        sa.Column("cluster_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("trigger_type", sa.String(), nullable=False),
        sa.Column("schedule", sa.JSON(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("due_at", sa.String(), nullable=True),
        sa.Column("collection_id", sa.String(), nullable=True),
        sa.Column("event_type", sa.String(), nullable=True),
        sa.Column("event_threshold", sa.Integer(), nullable=True),
        sa.Column("event_counter", sa.Integer(), nullable=False),
        sa.Column("cooldown_until", sa.String(), nullable=True),
        sa.Column("last_cooldown_at", sa.String(), nullable=True),
        sa.Column("last_triggered_at", sa.String(), nullable=True),
        sa.Column("last_task_id", sa.String(), nullable=True),
        sa.Column("last_status", sa.String(), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("executions", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("updated_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["clusters.cluster_id"],
            name=op.f("fk_cluster_triggers_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("trigger_id", name=op.f("pk_cluster_triggers")),
    )
    op.create_index("ix_cluster_triggers_due", "cluster_triggers", ["status", "due_at"], unique=False)
    op.create_index(
        "ix_cluster_triggers_list", "cluster_triggers", ["namespace_id", "created_at"], unique=False
    )
    op.create_index("ix_cluster_triggers_cluster", "cluster_triggers", ["cluster_id"], unique=False)
    op.create_index("ix_cluster_triggers_collection", "cluster_triggers", ["collection_id"], unique=False)
    op.add_column("cluster_runs", sa.Column("trigger_id", sa.String(), nullable=True))
    op.create_index("ix_cluster_runs_trigger", "cluster_runs", ["trigger_id", "created_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_cluster_runs_trigger", "cluster_runs")
    op.drop_column("cluster_runs", "trigger_id")
    op.drop_table("cluster_triggers")
