"""Progress in figures: a rate over the last half minute, a time from it, a share that never goes back."""

from __future__ import annotations

from tessera.progress import WINDOW_S, Meter, shown


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    meter = Meter()
    assert meter.read(100.0, done=0, total=1000) == {"percent": 0.0, "rate_per_s": None, "remaining_s": None}
    assert meter.read(100.1, done=5, total=1000)["rate_per_s"] is None, "too soon to tell"
    told = meter.read(110.0, done=100, total=1000)
    assert (told["rate_per_s"], told["remaining_s"], told["percent"]) == (10.0, 90.0, 10.0)
    # Twice as fast from now on: once the slow part is out of the window, only that counts.
    for second in range(111, 111 + 2 * int(WINDOW_S)):
        told = meter.read(second, done=100 + 2 * 10 * (second - 110) // 2, total=10_000)
    assert told["rate_per_s"] == 10.0
    standing = meter.read(second + 3 * WINDOW_S, done=700, total=10_000)
    assert standing["rate_per_s"] is not None and standing["rate_per_s"] < 1


def test_nothing_moves_is_no_rate_and_no_time() -> None:
    meter = Meter()
    meter.read(0.0, done=3, total=9)
    told = meter.read(60.0, done=3, total=9)
    assert (told["rate_per_s"], told["remaining_s"]) == (0.0, None)


def test_the_share_never_goes_back_and_is_never_whole_before_the_end() -> None:
    meter = Meter(percent=12.5)
    assert meter.read(0.0, done=1, total=100)["percent"] == 12.5, "what an earlier server had shown"
    assert meter.read(1.0, done=50, total=100)["percent"] == 50.0
    assert meter.read(2.0, done=50, total=200)["percent"] == 50.0, "more rows came"
    assert meter.read(3.0, done=200, total=200)["percent"] == 99.0
    assert shown("IN_PROGRESS", {"done": 200, "total": 200, "percent": 99.0}).percent == 99.0
    assert shown("COMPLETED", {"done": 200, "total": 200}).percent == 100.0
    assert shown("CANCELED", {"done": 20, "total": 200}).percent == 10.0


def test_what_has_ended_has_nothing_left() -> None:
    told = {"stage": "extract", "done": 1, "total": 2, "rate_per_s": 2.0, "remaining_s": 0.5}
    assert shown("IN_PROGRESS", told).remaining_s == 0.5
    assert (shown("COMPLETED", told).stage, shown("COMPLETED", told).remaining_s) == ("done", 0.0)
    assert (shown("FAILED", told).stage, shown("FAILED", told).remaining_s) == ("done", None)
    assert shown("PENDING", {}).model_dump() == {
        "stage": "queued",
        "done": 0,
        "total": 0,
        "failed": 0,
        "percent": 0.0,
        "rate_per_s": None,
        "remaining_s": None,
    }
