"""Keyword indexes of namespaces: which fields of documents they read.

Views from before are without the index; each is replaced by one with it, made from the log, when its namespace
is used next.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_v0.4.0"
down_revision = "0010_v0.4.0"
branch_labels = None
depends_on = None

#: The texts that the extractors of earlier releases wrote, and those that the same ones may write now.
_FIELDS = {
    "text_extractor": ("text",),
    "video_extractor": ("text", "transcription", "ocr_text", "description"),
    "multimodal_extractor": ("text", "transcription", "ocr_text", "description"),
}


def upgrade() -> None:
    with op.batch_alter_table("namespaces") as table:
        table.add_column(sa.Column("sparse_vectors", sa.JSON(), nullable=True))
    namespaces = sa.table(
        "namespaces",
        sa.column("namespace_id", sa.String()),
        sa.column("feature_extractors", sa.JSON()),
        sa.column("sparse_vectors", sa.JSON()),
    )
    connection = op.get_bind()
    rows = connection.execute(sa.select(namespaces.c.namespace_id, namespaces.c.feature_extractors)).all()
    for namespace_id, extractors in rows:
        names = [entry["feature_extractor_name"] for entry in extractors]
        fields = list(dict.fromkeys(field for name in names for field in _FIELDS.get(name, ())))
        if fields:
            connection.execute(
                sa.update(namespaces)
                .where(namespaces.c.namespace_id == namespace_id)
                .values(sparse_vectors=[{"name": "bm25", "fields": fields}])
            )
