"""Ids: what is derived stays what it was, or every stored document would be another."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from tessera import ids


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_a_point_id_is_the_uuid5_of_its_name(document_id: str) -> None:
    root = uuid.UUID("5f0d7c4e-9f0b-4b0e-8d5b-0d9a4d1b7c55")
    expected = str(uuid.uuid5(root, f"ns_0\x1f{document_id}"))
    assert ids.point_id("ns_0", document_id) == expected
