"""The tiers of a batch, and how often a collection's schema grew."""

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
