"""Dedicated infrastructure, and what belongs to organizations.

Where a namespace's view really lives, and views that are to be dropped; secrets, the audit log, counts of
requests, limits of organizations, origins of keys.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_v0.2.0"
down_revision = "0001_v0.1.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("namespaces") as table:
        table.add_column(sa.Column("place", sa.JSON(), nullable=True))
    op.create_table(
        "doomed_views",
        sa.Column("view_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("place", sa.JSON(), nullable=True),
        sa.Column("due_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("view_id", name=op.f("pk_doomed_views")),
    )
    with op.batch_alter_table("organizations") as table:
        table.add_column(sa.Column("logo_url", sa.String(), nullable=True))
        table.add_column(sa.Column("billing_email", sa.String(), nullable=True))
        table.add_column(sa.Column("metadata", sa.JSON(), nullable=True))
        table.add_column(sa.Column("rate_limits", sa.JSON(), nullable=True))
        table.add_column(sa.Column("read_auditing", sa.Boolean(), nullable=False, server_default=sa.false()))
    with op.batch_alter_table("users") as table:
        table.add_column(sa.Column("avatar_url", sa.String(), nullable=True))
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("allowed_origins", sa.JSON(), nullable=True))
    op.create_table(
        "secrets",
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("secret_name", sa.String(), nullable=False),
        sa.Column("sealed", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("updated_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "secret_name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "audit_events",
        sa.Column("audit_id", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("timestamp", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("resource_type", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column("actor_id", sa.String(), nullable=False),
        sa.Column("actor_type", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=True),
        sa.Column("changes", sa.JSON(), nullable=True),
        sa.Column("ip_address", sa.String(), nullable=True),
        sa.Column("user_agent", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit_events")),
    )
    op.create_index(
        "ix_audit_events_list", "audit_events", ["organization_id", "timestamp", "audit_id"], unique=False
    )
    op.create_table(
        "usage_counts",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("hour", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("organization_id", sa.String(), nullable=False),
        sa.Column("api_name", sa.String(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "hour", "endpoint", name=op.f("pk_usage_counts")),
    )
    op.create_index("ix_usage_counts_organization", "usage_counts", ["organization_id", "hour"], unique=False)
