"""How the rankings of several searches become one: pure, over ids and scores, whatever is behind them.

What is handed on is decided before it is read: of the hundreds of hits that are fused a few are shown, and only
those need their documents.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tessera.ports import Fusion, Hit

#: Rank constant of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).
RRF_K = 60

#: What a search gave a hit before its weight, among the hit's `signals`.
SHARE = "share"

K = TypeVar("K", bound=Hashable)
#: Best first: what stands for each document, and in a second list its score.
Ranking = tuple[Sequence[K], Sequence[float]]


class Fused(Generic[K]):
    """The rankings of `fusion`'s searches, made into one.

    Keys are any that are the same for one document in all of them, such as point ids where no document was read yet.
    `candidates` are those that must be read, and `hits` makes the answer of those that were found.
    """

    def __init__(self, rankings: Sequence[Ranking[K]], fusion: Fusion) -> None:
        self._parts, self._most = fusion.parts, fusion.most
        self._method = fusion.method if fusion.with_shares else None
        floors = [part.min_score for part in fusion.parts]
        self._kept = [_reaching(*pair) for pair in zip(rankings, floors, strict=True)]
        self._is_one = len(self._kept) == 1
        self._scores: dict[K, float] = (
            dict(zip(*self._kept[0], strict=True))
            if self._is_one
            else fused_scores(self._kept, [part.weight for part in fusion.parts], fusion.method)
        )
        #: The keys that can be among the first `most`: those, and all that tie with the last of them. Ties of several
        #: searches go to the smaller document id, which is not known before the documents are.
        self.candidates = self._first()

    def _first(self) -> list[K]:
        most = self._most
        if self._is_one:
            return list(self._kept[0][0][:most])
        if most is None or most >= len(self._scores):
            return list(self._scores)
        last = sorted(self._scores.values(), reverse=True)[most - 1]
        return [key for key, score in self._scores.items() if score >= last]

    def hits(self, found: Mapping[K, Hit]) -> list[Hit]:
        """Return the answer, each hit with what every search says of it; keys that are not in `found` are left out."""
        keys = [key for key in self.candidates if key in found]
        if not self._is_one:
            keys.sort(key=lambda key: (-self._scores[key], found[key].document_id))
        keys = keys[: self._most]
        wanted = set(keys)
        places: list[dict[K, tuple[Any, ...]]] = [
            {
                key: (rank, score)
                for rank, (key, score) in enumerate(zip(*ranking, strict=True), 1)
                if key in wanted
            }
            for ranking in self._kept
        ]
        told: tuple[str, ...] = ("rank", "score")
        nowhere: tuple[None, ...] = (None, None)
        if self._method is not None:
            told, nowhere = (*told, SHARE), (*nowhere, None)
            for place, (own, scores) in zip(places, self._kept, strict=True):
                for key, share in zip(own, _scaled(scores, self._method, RRF_K), strict=True):
                    if key in place:
                        place[key] = (*place[key], share)
        return [
            replace(
                found[key],
                score=self._scores[key],
                signals={
                    part.name: dict(zip(told, place.get(key, nowhere), strict=True))
                    for part, place in zip(self._parts, places, strict=True)
                },
            )
            for key in keys
        ]


def fused_hits(rankings: Sequence[Sequence[Hit]], fusion: Fusion) -> list[Hit]:
    """Return the hits of rankings whose documents have been read, fused as `Fused` does it."""
    return Fused([_by_id(ranking) for ranking in rankings], fusion).hits(_first_of_each(rankings))


def fuse(
    rankings: Sequence[Sequence[Hit]], weights: Sequence[float], method: str, rrf_k: int = RRF_K
) -> list[Hit]:
    """Merge rankings into one, best first; ties go to the smaller document id."""
    found = _first_of_each(rankings)
    scores = fused_scores([_by_id(ranking) for ranking in rankings], weights, method, rrf_k)
    ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [replace(found[document_id], score=score) for document_id, score in ordered]


def fused_scores(
    rankings: Sequence[Ranking[K]], weights: Sequence[float], method: str, rrf_k: int = RRF_K
) -> dict[K, float]:
    """Return the score of every key of `rankings`.

    ``rrf`` adds ``weight / (60 + rank)``; ``weighted`` adds scores scaled to 0…1 within each ranking;
    ``max`` takes the best of those; ``dbsf`` adds scores scaled by mean ± 3 standard deviations of a sample
    (distribution-based score fusion, as Qdrant computes it: 0.5 where there is one score, or all are equal).
    """
    scores: dict[K, float] = {}
    for (keys, own), weight in zip(rankings, weights, strict=True):
        for key, value in zip(keys, _scaled(own, method, rrf_k), strict=True):
            if method == "max":
                scores[key] = max(scores.get(key, weight * value), weight * value)
            else:
                scores[key] = scores.get(key, 0.0) + weight * value
    return scores


def _reaching(ranking: Ranking[K], min_score: float | None) -> Ranking[K]:
    if min_score is None:
        return ranking
    kept = [(key, score) for key, score in zip(*ranking, strict=True) if score >= min_score]
    return [key for key, _ in kept], [score for _, score in kept]


def _by_id(hits: Sequence[Hit]) -> Ranking[str]:
    return [hit.document_id for hit in hits], [hit.score or 0.0 for hit in hits]


def _first_of_each(rankings: Sequence[Sequence[Hit]]) -> dict[str, Hit]:
    found: dict[str, Hit] = {}
    for ranking in rankings:
        for hit in ranking:
            found.setdefault(hit.document_id, hit)
    return found


def _scaled(raw: Sequence[float], method: str, rrf_k: int) -> list[float]:
    if method == "rrf":
        return [1.0 / (rrf_k + rank) for rank in range(1, len(raw) + 1)]
    if not raw:
        return []
    if method == "dbsf":
        mean, spread = statistics.fmean(raw), statistics.stdev(raw) if len(raw) > 1 else 0.0
        low, high = mean - 3 * spread, mean + 3 * spread
    else:
        low, high = min(raw), max(raw)
    if high <= low:
        # The mean of a distribution is its middle; of a scale from worst to best, one score is the best.
        return [0.5 if method == "dbsf" else 1.0 for _ in raw]
    return [(value - low) / (high - low) for value in raw]
