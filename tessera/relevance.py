"""How good a ranking is, by what people judged relevant. Pure.

A query has judgements: document id → grade, an integer; above 0 is relevant, a document without a judgement is not.
`grades` are those of the documents found, best hit first; a document that is found twice counts once, at its first
place. ``k`` is the cutoff. Definitions are those of trec_eval (National Institute of Standards and Technology), so
that figures compare with published ones; each function names where its measure comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log2

METRICS = ("precision", "recall", "f1", "f2", "map", "ndcg", "mrr")


def judgements(relevant: Iterable[str], scores: Mapping[str, int] | None) -> dict[str, int]:
    """Return the grade of each judged document: its score where it has one, else 1 for what is listed as relevant."""
    return {**dict.fromkeys(relevant, 1), **(scores or {})}


def grades_of(found: Iterable[str], judged: Mapping[str, int]) -> list[int]:
    """Return the grades of the documents found, in their order, each document once."""
    return [judged.get(document_id, 0) for document_id in dict.fromkeys(found)]


def precision(grades: Sequence[int], k: int) -> float:
    """Return the share of the first `k` places that hold a relevant document; an empty place holds none.

    Set-based precision with a cutoff: Manning, Raghavan, Schütze, Introduction to Information Retrieval (2008), 8.3
    and 8.4; ``P_k`` of trec_eval.
    """
    return _hits(grades, k) / k


def recall(grades: Sequence[int], relevant: int, k: int) -> float:
    """Return the share of the `relevant` documents that are in the first `k` (the same book; ``recall_k``)."""
    return _hits(grades, k) / relevant


def f_measure(grades: Sequence[int], relevant: int, k: int, beta: int) -> float:
    """Return precision and recall in one figure, in which recall weighs `beta` times as much.

    Van Rijsbergen, Information Retrieval (1979), chapter 7; with `beta` 1 it is the harmonic mean.
    """
    exact, complete = precision(grades, k), recall(grades, relevant, k)
    return (1 + beta**2) * exact * complete / (beta**2 * exact + complete) if exact else 0.0


def average_precision(grades: Sequence[int], relevant: int, k: int) -> float:
    """Return the mean of the precision at each of the `relevant` documents, 0 for one beyond `k` (``map_cut_k``).

    Divided by all relevant documents, also where they are more than `k`. Its mean over queries is MAP: Buckley and
    Voorhees, Evaluating Evaluation Measure Stability (SIGIR 2000).
    """
    places = [place for place, grade in enumerate(grades[:k], 1) if grade > 0]
    return sum(number / place for number, place in enumerate(places, 1)) / relevant


def reciprocal_rank(grades: Sequence[int], k: int) -> float:
    """Return 1 / the place of the first relevant document, 0 if none is in the first `k`.

    Its mean over queries is MRR: Voorhees, The TREC-8 Question Answering Track Report (1999).
    """
    return next((1 / place for place, grade in enumerate(grades[:k], 1) if grade > 0), 0.0)


def ndcg(grades: Sequence[int], judged: Iterable[int], k: int) -> float:
    """Return the discounted gain of the first `k`, divided by that of the best order of all `judged` grades.

    The gain is the grade itself, the discount ``log2(place + 1)``: Järvelin and Kekäläinen, Cumulated Gain-Based
    Evaluation of IR Techniques (ACM TOIS 20, 2002), in the form of ``ndcg_cut_k``.
    """
    best = _gain(sorted(judged, reverse=True), k)
    return _gain(grades, k) / best if best else 0.0


def measure(grades: Sequence[int], judged: Sequence[int], k: int, metric: str) -> float:
    """Return one of `METRICS` at `k`; at least one of the `judged` grades is above 0."""
    relevant = sum(grade > 0 for grade in judged)
    if metric == "precision":
        return precision(grades, k)
    if metric == "recall":
        return recall(grades, relevant, k)
    if metric in ("f1", "f2"):
        return f_measure(grades, relevant, k, int(metric[1:]))
    if metric == "map":
        return average_precision(grades, relevant, k)
    return ndcg(grades, judged, k) if metric == "ndcg" else reciprocal_rank(grades, k)


def _hits(grades: Sequence[int], k: int) -> int:
    return sum(grade > 0 for grade in grades[:k])


def _gain(grades: Sequence[int], k: int) -> float:
    return sum(max(0, grade) / log2(place + 1) for place, grade in enumerate(grades[:k], 1))
