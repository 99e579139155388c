"""Who works on a batch, and how many servers ended under it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_v0.3.0"
down_revision = "0003_v0.3.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("batches") as table:
        table.add_column(sa.Column("holder", sa.String(), nullable=True))
        table.add_column(sa.Column("crashes", sa.Integer(), nullable=False, server_default="0"))
