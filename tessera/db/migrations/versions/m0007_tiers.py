"""The tiers of a batch, how often a collection's schema grew, and exports."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_v0.4.0"
down_revision = "0006_v0.3.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("batches") as table:
        table.add_column(sa.Column("tiers", sa.JSON(), nullable=True))
    with op.batch_alter_table("collections") as table:
        table.add_column(sa.Column("schema_version", sa.Integer(), nullable=False, server_default="1"))
        table.add_column(sa.Column("schema_synced_at", sa.String(), nullable=True))
    op.create_table(
        "exports",
        sa.Column("export_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_exports_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("export_id", name=op.f("pk_exports")),
    )
    op.create_index("ix_exports_namespace", "exports", ["namespace_id"], unique=False)
