"""Tiers: collections that feed each other, in an order in which they can run, or the circle that forbids one."""

from __future__ import annotations

import pytest

from tessera import tiers
from tessera.models.tasks import TaskStatus


@pytest.mark.parametrize(
    ("reads", "first", "expected"),
    [
        ({}, ["a"], [["a"]]),
        ({"b": ["a"], "c": ["b"]}, ["a"], [["a"], ["b"], ["c"]]),
        ({"c": ["b"], "b": ["a"]}, ["a"], [["a"], ["b"], ["c"]]),
        ({"c": ["a", "b"], "b": ["a"]}, ["a"], [["a"], ["b"], ["c"]]),
        ({"x": ["a"], "y": ["a"], "z": ["y", "x"]}, ["a"], [["a"], ["x", "y"], ["z"]]),
        # What feeds from elsewhere is waited for by nobody here.
        ({"b": ["a", "elsewhere"], "other": ["elsewhere"]}, ["a"], [["a"], ["b"]]),
        ({"b": ["a"]}, ["a", "a", "k"], [["a", "k"], ["b"]]),
        # Tier 0 stays together, even where one of it feeds another.
        ({"b": ["a"], "c": ["b"]}, ["a", "b"], [["a", "b"], ["c"]]),
    ],
)
def test_each_collection_runs_behind_all_that_feed_it(
    reads: dict[str, list[str]], first: list[str], expected: list[list[str]]
) -> None:
    assert tiers.sort(reads, first) == expected


def test_a_circle_is_named() -> None:
    reads = {"b": ["a", "d"], "c": ["b"], "d": ["c"], "e": ["d"]}
    with pytest.raises(tiers.CycleError) as raised:
        tiers.sort(reads, ["a"])
    members = raised.value.members
    assert set(members) == {"b", "c", "d"}
    assert members[0] == members[-1]


def test_a_tier_knows_what_feeds_it() -> None:
    reads = {"b": ["a", "elsewhere"], "c": ["b", "a"]}
    made = tiers.build(tiers.sort(reads, ["a"]), reads, "bucket")
    assert [(t.tier_num, t.source_type, t.source_collection_ids) for t in made] == [
        (0, "bucket", None),
        (1, "collection", ["a"]),
        (2, "collection", ["a", "b"]),
    ]
    alone = tiers.build([["b"], ["c"]], reads, "collection")
    assert alone[0].source_type == "collection"
    assert alone[0].source_collection_ids == ["a", "elsewhere"]


def test_a_batch_of_an_older_release_has_one_tier() -> None:
    row = {"tiers": None, "collection_ids": ["a", "b"], "status": "IN_PROGRESS", "task_id": "tsk_1"}
    (tier,) = tiers.of(row)
    assert (tier.collection_ids, tier.task_id, tier.is_planned) == (["a", "b"], "tsk_1", True)
    assert tier.status == TaskStatus.IN_PROGRESS
    assert tiers.of({**row, "collection_ids": []}) == []
