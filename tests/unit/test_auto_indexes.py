"""What happens between the making of an index by itself and the look at what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tessera import auto_indexes, namespaces, organizations, ready_documents
from tessera.config import Settings
from tessera.filters import Condition
from tessera.models.documents import CreateDocumentRequest
from tessera.wiring import close_warehouse, open_warehouse
from tests.unit.place import KEY, Place


def test_a_flag_turned_off_in_the_middle_refuses_no_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is gone when it is looked at: that says nothing of the field, which gets it the next time."""
    asked = Settings(data=tmp_path / "data", offline=True, auto_index_uses=1, auto_index_documents=1)
    wh = open_warehouse(asked, run_jobs=False)
    try:
        organizations.bootstrap(wh.db, KEY)
        place = Place(wh, "flag")
        place.put("a", 1)
        assert wh.filter_uses is not None
        wh.filter_uses.note(place.namespace, [Condition("rare", "eq", 1)], {})
        wh.filter_uses.close()

        def turn(is_on: bool) -> None:
            namespaces.patch(wh, place.me, place.namespace, {"auto_create_indexes": is_on})

        def indexed() -> bool:
            shown = namespaces.get(wh, place.me, place.namespace)["payload_indexes"]
            return any(index["field_name"] == "rare" for index in shown)

        held = auto_indexes._held

        def late(*arguments: Any) -> tuple[int, int]:
            monkeypatch.undo()
            turn(is_on=False)
            return held(*arguments)

        monkeypatch.setattr(auto_indexes, "_held", late)
        turn(is_on=True)
        auto_indexes.decide(wh, {place.namespace})
        assert not indexed()
        turn(is_on=True)
        request = CreateDocumentRequest.model_validate({"document_id": "b", "rare": 1})
        ready_documents.create(wh, place.me, place.namespace, place.collection, request)
        auto_indexes.decide(wh, {place.namespace})
        assert indexed()
    finally:
        close_warehouse(wh)
