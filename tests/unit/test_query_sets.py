"""The query sets of the benchmarks: their measure, and that each query has an answer."""

from __future__ import annotations

import pytest

from bench import query_sets


@pytest.mark.parametrize(
    ("found", "relevant", "expected"),
    [
        (["a", "b"], {"a"}, 1.0),
        (["b", "a"], {"a"}, 0.6309),  # 1 / log2(3)
        (["x", "y", "z"], {"a"}, 0.0),
        (["a", "x", "b"], {"a", "b"}, 0.9197),  # (1 + 1/2) / (1 + 0.6309)
        ([*"0123456789", "a"], {"a"}, 0.0),
    ],
)
def test_ndcg(found: list[str], relevant: set[str], expected: float) -> None:
    assert query_sets.ndcg(found, relevant) == pytest.approx(expected, abs=5e-5)


def test_every_query_has_a_text_that_answers_it() -> None:
    texts = query_sets.documented()
    assert len(texts) >= 500
    sets = query_sets.query_sets(texts)
    assert set(sets) == {"identifier", "paraphrase", "mixed"}
    for queries in sets.values():
        assert len({asked for asked, _ in queries}) == len(queries) >= 40
        assert all(wanted and set(wanted) <= set(texts) for _, wanted in queries)
