"""How often filters name a field, for indexes that are made by themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018_v0.5.0"
down_revision = "0017_v0.5.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "filter_uses",
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("field_name", sa.String(), nullable=False),
        sa.Column("index_type", sa.String(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("last_used_at", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("decided_at", sa.String()),
        sa.PrimaryKeyConstraint("namespace_id", "field_name", "index_type", name=op.f("pk_filter_uses")),
    )


def downgrade() -> None:
    op.drop_table("filter_uses")
