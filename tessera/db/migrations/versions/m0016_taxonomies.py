"""Taxonomies with their versions, the collections that they are applied to, and the work that this leaves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016_v0.5.0"
down_revision = "0015_v0.5.0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "taxonomies",
        sa.Column("taxonomy_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("taxonomy_name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("updated_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace_id"],
            ["namespaces.namespace_id"],
            name=op.f("fk_taxonomies_namespace_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("taxonomy_id", name=op.f("pk_taxonomies")),
        sa.UniqueConstraint(
            "namespace_id", "taxonomy_name", name=op.f("uq_taxonomies_namespace_id_taxonomy_name")
        ),
    )
    op.create_table(
        "taxonomy_versions",
        sa.Column("taxonomy_id", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["taxonomy_id"],
            ["taxonomies.taxonomy_id"],
            name=op.f("fk_taxonomy_versions_taxonomy_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("taxonomy_id", "version", name=op.f("pk_taxonomy_versions")),
    )
    op.create_table(
        "enrichments",
        sa.Column("enrichment_id", sa.String(), nullable=False),
        sa.Column("namespace_id", sa.String(), nullable=False),
        sa.Column("collection_id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("due_at", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.collection_id"],
            name=op.f("fk_enrichments_collection_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("enrichment_id", name=op.f("pk_enrichments")),
    )
    op.create_index("ix_enrichments_collection", "enrichments", ["collection_id"])
    op.add_column("collections", sa.Column("taxonomy_applications", sa.JSON(), nullable=True))
