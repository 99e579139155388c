"""What failed, with its history; rows that are tried again by themselves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tessera.causes import known
from tessera.ids import failure_id

revision = "0009_v0.4.0"
down_revision = "0008_v0.4.0"
branch_labels = None
depends_on = None

#: Rows that are read and written at a time.
_SLICE = 1000


def upgrade() -> None:
    with op.batch_alter_table("batch_rows") as table:
        table.add_column(sa.Column("tries", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("retry_count", sa.Integer(), nullable=False, server_default="0"))
        table.add_column(sa.Column("due_at", sa.String(), nullable=True))
    op.create_table(
        "failures",
        sa.Column("failure_id", sa.String(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in (
                "namespace_id",
                "batch_id",
                "collection_id",
                "object_id",
                "cause",
                "kind",
                "stage",
                "message",
                "failed_at",
            )
        ),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_failures_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("failure_id", name=op.f("pk_failures")),
    )
    op.create_index("ix_failures_batch", "failures", ["batch_id", "collection_id", "object_id"], unique=False)
    op.create_index("ix_failures_namespace", "failures", ["namespace_id", "failed_at"], unique=False)
    _take_over()


def _take_over() -> None:
    """Give rows that failed before an entry, with their last failure as the whole history."""
    connection = op.get_bind()
    rows = sa.table(
        "batch_rows",
        *map(
            sa.column,
            (
                "batch_id",
                "collection_id",
                "object_id",
                "namespace_id",
                "status",
                "attempts",
                "error_kind",
                "error_message",
                "updated_at",
            ),
        ),
    )
    failures = sa.table(
        "failures",
        *map(
            sa.column,
            (
                "failure_id",
                "namespace_id",
                "batch_id",
                "collection_id",
                "object_id",
                "cause",
                "kind",
                "stage",
                "message",
                "failed_at",
            ),
        ),
        sa.column("history", sa.JSON()),
    )
    failed = sa.select(rows).where(rows.c.status == "FAILED")
    key = sa.tuple_(rows.c.batch_id, rows.c.collection_id, rows.c.object_id)
    last: tuple[str, str, str] | None = None
    while True:
        query = failed if last is None else failed.where(key > sa.tuple_(*map(sa.literal, last)))
        found = (
            connection.execute(
                query.order_by(rows.c.batch_id, rows.c.collection_id, rows.c.object_id).limit(_SLICE)
            )
            .mappings()
            .all()
        )
        if not found:
            return
        connection.execute(failures.insert(), [_entry(row) for row in found])
        last = (found[-1]["batch_id"], found[-1]["collection_id"], found[-1]["object_id"])


def _entry(row: sa.RowMapping) -> dict[str, object]:
    kind, message = row["error_kind"] or "ours", row["error_message"] or ""
    place = known(kind)
    return {
        "failure_id": failure_id(row["batch_id"], row["collection_id"], row["object_id"]),
        "namespace_id": row["namespace_id"],
        "batch_id": row["batch_id"],
        "collection_id": row["collection_id"],
        "object_id": row["object_id"],
        "cause": place.cause,
        "kind": kind,
        "stage": place.stage,
        "message": message,
        "failed_at": row["updated_at"],
        "history": [
            {
                "attempt": row["attempts"],
                "task_id": None,
                "kind": kind,
                "stage": place.stage,
                "message": message,
                "at": row["updated_at"],
            }
        ],
    }
