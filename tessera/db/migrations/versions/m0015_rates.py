"""Rates of extracting, from batches that ran."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015_v0.5.0"
down_revision = "0014_v0.4.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "rates",
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("extractor", sa.String(), nullable=False),
        sa.Column("plan_hash", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("moments", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("place", "extractor", "plan_hash", "kind", name=op.f("pk_rates")),
    )


def downgrade() -> None:
    op.drop_table("rates")
