"""Dedicated infrastructure: where a namespace's view really lives, and views that are to be dropped."""

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
