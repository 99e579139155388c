"""Alembic's entry: runs the revisions on the connection that `migrate` (or a test) hands over."""

from alembic import context

from tessera.db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
)
context.run_migrations()
