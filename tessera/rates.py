"""Rates: how long extracting takes on this machine, how many documents and bytes come of it, from batches that ran.

Of every chunk the amounts (``measures.py``) and what they took are added up as moments, so that whatever was seen fits
into one row for each extractor, set of parameters and kind of source; a fit of non-negative weights turns them into
rates. What is older counts less. Rates of one place (machine and workers, or cluster) say nothing of another.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import rates
from tessera.measures import AMOUNTS, Cost

#: What is predicted.
TARGETS = ("seconds", "documents", "size_bytes")
#: A chunk counts half after so many later ones.
HALF_LIFE_CHUNKS = 200
#: A further weight is worth its while when it explains this share of the squares: an error of two hundredths.
_WORTH = 4e-4
#: Under which name the time of a batch beside its chunks is kept, and that of the first one of a server.
BATCH, FIRST_BATCH = "batch", "first batch"
_BATCH_AMOUNTS = ("batches", "kilodocuments")


@dataclass(slots=True)
class Moments:
    """Sums over chunks from which weights are fitted. `names` are the amounts, all other keys are of `TARGETS`."""

    names: tuple[str, ...]
    chunks: float = 0.0
    amounts: Any = None
    products: Any = None
    with_target: dict[str, Any] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    #: Seconds that loading models took, in chunks where it did, and how many those were.
    load_s: float = 0.0
    loads: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.names)
        self.amounts = np.zeros(count) if self.amounts is None else np.asarray(self.amounts, dtype=float)
        self.products = (
            np.zeros((count, count)) if self.products is None else np.asarray(self.products, dtype=float)
        )
        for target in TARGETS:
            self.with_target[target] = np.asarray(self.with_target.get(target, np.zeros(count)), dtype=float)
            self.squares.setdefault(target, 0.0)
            self.totals.setdefault(target, 0.0)

    def add(self, amounts: Sequence[float], values: Mapping[str, float]) -> None:
        """Add what a chunk had and what it took."""
        keep = 0.5 ** (1 / HALF_LIFE_CHUNKS)
        row = np.asarray(amounts, dtype=float)
        self.chunks = keep * self.chunks + 1
        self.amounts = keep * self.amounts + row
        self.products = keep * self.products + np.outer(row, row)
        for target in TARGETS:
            value = float(values.get(target, 0.0))
            self.with_target[target] = keep * self.with_target[target] + row * value
            self.squares[target] = keep * self.squares[target] + value * value
            self.totals[target] = keep * self.totals[target] + value

    def weights(self, target: str) -> tuple[float, ...]:
        """Return what one of each amount takes: the fewest weights, none negative, that explain what was seen.

        With one chunk, or chunks that are all alike, the main amount has it all: the second one for sources.
        """
        count = len(self.names)
        best: tuple[float, ...] = (0.0,) * count
        left = self.squares[target]
        order = [*range(1, count), 0] if self.names[0] == "files" else [*range(count)]
        for size in range(1, count + 1):
            for chosen in itertools.combinations(order, size):
                found = self._fit(target, list(chosen))
                if found is not None and found[1] < left - _WORTH * self.squares[target]:
                    best, left = found
        return best

    def _fit(self, target: str, chosen: list[int]) -> tuple[tuple[float, ...], float] | None:
        matrix = self.products[np.ix_(chosen, chosen)]
        wanted = self.with_target[target][chosen]
        scale = np.sqrt(np.diag(matrix))
        if not scale.all() or np.linalg.cond(matrix / np.outer(scale, scale)) > 1e6:
            return None
        solved = np.linalg.solve(matrix, wanted)
        if (solved < 0).any():
            return None
        left = float(self.squares[target] - 2 * solved @ wanted + solved @ matrix @ solved)
        weights = np.zeros(len(self.names))
        weights[chosen] = solved
        return tuple(map(float, weights)), max(0.0, left)

    def predict(self, target: str, amounts: Sequence[float]) -> float:
        """Return what a source, or several together, with these amounts takes."""
        return float(np.dot(self.weights(target), amounts))

    def per_file(self, target: str) -> float:
        """Return what a file took on average, whatever was in it."""
        return self.totals[target] / self.amounts[0] if self.amounts[0] else 0.0

    def loading_s(self) -> float:
        """Return how long loading the models took, where it was seen."""
        return self.load_s / self.loads if self.loads else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "chunks": self.chunks,
            "amounts": self.amounts.tolist(),
            "products": self.products.tolist(),
            "with_target": {name: value.tolist() for name, value in self.with_target.items()},
            "squares": self.squares,
            "totals": self.totals,
            "load_s": self.load_s,
            "loads": self.loads,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Moments:
        return cls(**{**value, "names": tuple(value["names"])})


Key = tuple[str, str, str]


@dataclass(slots=True)
class Seen:
    """What an attempt has seen of its chunks: moments by (extractor, plan hash, kind), and their times in order."""

    moments: dict[Key, list[tuple[tuple[float, ...], dict[str, float], float]]] = field(default_factory=dict)
    #: Seconds of each chunk, by collection: they are run one collection after the other.
    chunks: dict[str, list[float]] = field(default_factory=dict)
    documents: int = 0

    def add(self, collection_id: str, extractor: str, plan_hash: str, cost: Cost) -> None:
        """Add what a chunk took."""
        self.chunks.setdefault(collection_id, []).append(cost.seconds)
        for number, used in enumerate(cost.used):
            values = {
                "seconds": used.seconds,
                "documents": float(used.documents),
                "size_bytes": float(used.size_bytes),
            }
            load_s = cost.load_s if number == 0 else 0.0
            self.moments.setdefault((extractor, plan_hash, used.kind), []).append(
                (used.amounts, values, load_s)
            )
            self.documents += used.documents


def place_of(cluster: str | None, workers: int) -> str:
    """Return the name of a place where chunks run: this machine with so many workers, or a cluster."""
    return f"{cluster} {workers}" if cluster else f"{socket.gethostname()} {os.cpu_count()} {workers}"


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return how long items of `seconds` take that `workers` do in order, each the next one that is left."""
    ends = [0.0] * max(1, workers)
    for item in seconds:
        first = min(range(len(ends)), key=ends.__getitem__)
        ends[first] += item
    return max(ends)


def record(
    connection: Connection, place: str, seen: Seen, *, wall_s: float | None, workers: int, is_first: bool
) -> None:
    """Add what an attempt has seen; `wall_s` is how long all of it took, None when it was not all of it."""
    added = dict(seen.moments)
    if wall_s is not None and seen.chunks:
        inside = sum(makespan(times, workers) for times in seen.chunks.values())
        values = {"seconds": max(0.0, wall_s - inside)}
        key = ("", "", FIRST_BATCH if is_first else BATCH)
        added[key] = [((1.0, seen.documents / 1000), values, 0.0)]
    known = _read(connection, place, {extractor for extractor, _, _ in added})
    for key, rows in added.items():
        names = AMOUNTS.get(key[2], _BATCH_AMOUNTS)
        moments = known.get(key)
        if moments is None or moments.names != names:
            moments = known[key] = Moments(names)
        for amounts, values, load_s in rows:
            moments.add(amounts, values)
            if load_s > 0.01:
                moments.load_s, moments.loads = moments.load_s + load_s, moments.loads + 1
    insert_or_replace(
        connection,
        rates,
        [
            {
                "place": place,
                "extractor": extractor,
                "plan_hash": plan_hash,
                "kind": kind,
                "moments": known[extractor, plan_hash, kind].to_json(),
                "updated_at": now(),
            }
            for extractor, plan_hash, kind in added
        ],
    )


def _read(connection: Connection, place: str, extractors: Iterable[str]) -> dict[Key, Moments]:
    """Return what is known of extractors at a place, what was seen last at the end."""
    rows = connection.execute(
        sa.select(rates)
        .where(rates.c.place == place, rates.c.extractor.in_(list(extractors)))
        .order_by(rates.c.updated_at)
    ).mappings()
    return {
        (row["extractor"], row["plan_hash"], row["kind"]): Moments.from_json(row["moments"]) for row in rows
    }


@dataclass(frozen=True, slots=True)
class Known:
    """What is known at a place."""

    by_key: Mapping[Key, Moments]

    def of(self, extractor: str, plan_hash: str, kind: str) -> tuple[Moments | None, str]:
        """Return the moments for sources of a kind, and whose they are.

        ``measured``, with these very parameters; ``other_parameters``, the same extractor's latest; ``none``.
        """
        exact = self.by_key.get((extractor, plan_hash, kind))
        if exact is not None:
            return exact, "measured"
        others = [value for (name, _, of), value in self.by_key.items() if (name, of) == (extractor, kind)]
        return (others[-1], "other_parameters") if others else (None, "none")

    def any_of(self, extractor: str, plan_hash: str) -> Moments | None:
        """Return what is known of an extractor with these parameters, whatever the kind of its sources."""
        found = [
            value for (name, of, _), value in self.by_key.items() if (name, of) == (extractor, plan_hash)
        ]
        found = found or [value for (name, _, _), value in self.by_key.items() if name == extractor]
        return found[-1] if found else None

    def around(self, *, is_first: bool) -> Moments | None:
        """Return what a batch takes beside its chunks; the first one of a server starts workers too."""
        kinds = (FIRST_BATCH, BATCH) if is_first else (BATCH, FIRST_BATCH)
        return next((self.by_key["", "", kind] for kind in kinds if ("", "", kind) in self.by_key), None)


def known_at(connection: Connection, place: str, extractors: Iterable[str]) -> Known:
    """Return what is known of `extractors` at a place."""
    return Known(_read(connection, place, {*extractors, ""}))
