"""Locators: one form for every place, read back as it was written, and the fragment of its URL."""

from __future__ import annotations

import orjson
import pytest

from tessera.locators import Locator, adjacent, fragment, joined, locator_of

PLACES = {
    "t=12.5,20": Locator.at_time(12_500, 20_000),
    "t=0,0.04&xywh=10,20,30,40": Locator.at_time(0, 40, (10, 20, 40, 60), (1280, 720)),
    "page=1": Locator.on_page(0),
    "page=3&viewrect=72,100,300,20": Locator.on_page(2, (72, 100, 372, 120), (612, 792)),
    "char=0,0": Locator.in_text(0, 0),
    "char=10,42": Locator.in_text(10, 42),
    "xywh=0,0,640,480": Locator.in_picture((0, 0, 640, 480), (640, 480)),
}


@pytest.mark.parametrize(("expected", "locator"), PLACES.items(), ids=PLACES)
def test_is_read_back_from_json_and_spelled_as_a_fragment(expected: str, locator: Locator) -> None:
    stored = orjson.loads(orjson.dumps(locator.to_json()))
    assert None not in stored.values()
    assert locator_of({"locator": stored}) == locator
    assert fragment(locator) == expected


def test_documents_from_before_tell_by_their_fields() -> None:
    assert locator_of({"start_time": 1.5, "end_time": 20}) == Locator.at_time(1500, 20_000)
    assert locator_of({"start_char": 3, "end_char": 9}) == Locator.in_text(3, 9)
    assert locator_of({"text": "nothing of that"}) is None


@pytest.mark.parametrize(
    "stored",
    [
        "shelf 3",
        {"kind": "shelf"},
        {"kind": "time", "start_ms": 5, "end_ms": 1},
        {"kind": "time", "start_ms": True, "end_ms": 1},
        {"kind": "page", "page": -1},
        {"kind": "page", "page": "1"},
        {"kind": ["page"], "page": 1},
        {"kind": "region", "bbox": [1, 2, 3], "width": 1, "height": 1},
        {"kind": "region", "bbox": [0, 0, 1, float("nan")], "width": 1, "height": 1},
    ],
)
def test_what_a_user_keeps_under_that_name_is_no_place(stored: object) -> None:
    assert locator_of({"locator": stored}) is None


def test_spans_that_touch_or_nearly_do_are_one() -> None:
    first, second, far = (
        Locator.at_time(*span) for span in ((0, 10_000), (10_000, 20_000), (25_000, 30_000))
    )
    assert adjacent(first, second, 0)
    assert adjacent(second, first, 0)
    assert not adjacent(second, far, 1000)
    assert adjacent(second, far, 5000)
    assert not adjacent(first, Locator.on_page(0), 10**9)
    assert joined([second, far, first]) == Locator.at_time(0, 30_000)
