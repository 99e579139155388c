"""Folding of long logs, erasing of documents, and limits that only an operator may set."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006_v0.3.0"
down_revision = "0004_v0.3.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # For a while revision 0002 made this column, in databases that were new then.
    known = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("organizations")}
    if "operator_rate_limits" not in known:
        with op.batch_alter_table("organizations") as table:
            table.add_column(sa.Column("operator_rate_limits", sa.JSON(), nullable=True))
    with op.batch_alter_table("namespaces") as table:
        for name in ("checkpoint_first", "checkpoint_seq", "logged_changes", "log_edition"):
            table.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("folded_at", sa.String(), nullable=True))
    op.create_table(
        "erasures",
        sa.Column("task_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_erasures_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_erasures")),
    )
    op.create_index("ix_erasures_namespace", "erasures", ["namespace_id"], unique=False)
