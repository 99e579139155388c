"""Rows that tests of services write where no request is to make them."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from tessera.db.engine import now
from tessera.db.tables import namespaces


def insert_namespace(
    connection: Connection, namespace_id: str, namespace_name: str = "n", **columns: Any
) -> None:
    """Insert a namespace of the organization ``org_1`` that has nothing but what `columns` say."""
    at = now()
    row = {
        "namespace_id": namespace_id,
        "organization_id": "org_1",
        "namespace_name": namespace_name,
        "feature_extractors": [],
        "user_indexes": [],
        "added_indexes": [],
        "vectors": [],
        "vector_inference_map": {},
        "infrastructure": {},
        "view_id": f"{namespace_id}-1",
        "created_at": at,
        "updated_at": at,
    }
    connection.execute(namespaces.insert().values(**row | columns))
