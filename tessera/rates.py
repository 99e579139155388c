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
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tessera.db.engine import insert_or_replace, now
from tessera.db.tables import rates
from tessera.measures import AMOUNTS, Cost, Used

#: Something that was seen counts half after so many later ones: chunks, or sources.
_HALF_LIFE = {"chunks": 200.0, "sources": 5000.0}
#: Amounts that grow together cannot be told apart.
_MOST_ALIKE = 1e6
#: Loading that took less was none: the models were there.
_LOADED_S = 0.01
#: A further weight is worth its while when it explains this share of the squares: an error of two hundredths.
_WORTH = 4e-4
#: Under which name the time of a batch beside its chunks is kept, and that of the first one of a server.
BATCH, FIRST_BATCH = "batch", "first batch"
_BATCH_AMOUNTS = ("batches", "kilodocuments")


class Moments:
    """Sums from which the weights of amounts (`names`) are fitted, for one target or several."""

    def __init__(self, names: Sequence[str], half_life: float) -> None:
        count = len(names)
        self.names = tuple(names)
        self._half_life = half_life
        #: How many were added here: what is joined to has aged by so many.
        self._count = 0
        self._products = np.zeros((count, count))
        self._amounts = np.zeros(count)
        self._with: dict[str, Any] = {}
        self._squares: dict[str, float] = {}
        self._totals: dict[str, float] = {}

    def add(self, amounts: Sequence[float], values: Mapping[str, float]) -> None:
        """Add what something with these amounts took, by target."""
        one = Moments(self.names, self._half_life)
        row = np.asarray(amounts, dtype=float)
        one._count, one._products, one._amounts = 1, np.outer(row, row), row
        one._with = {target: row * value for target, value in values.items()}
        one._squares = {target: value * value for target, value in values.items()}
        one._totals = dict(values)
        self.join(one)

    def join(self, later: Moments) -> None:
        """Add what was added to `later` since it was empty; the same as adding each of it here."""
        keep = 0.5 ** (later._count / self._half_life)
        self._count += later._count
        self._products = keep * self._products + later._products
        self._amounts = keep * self._amounts + later._amounts
        for target, row in later._with.items():
            self._with[target] = keep * self._with.get(target, np.zeros(len(row))) + row
            self._squares[target] = keep * self._squares.get(target, 0.0) + later._squares[target]
            self._totals[target] = keep * self._totals.get(target, 0.0) + later._totals[target]

    def weights(self, target: str) -> tuple[float, ...]:
        """Return what one of each amount takes: the fewest weights, none negative, that explain what was seen.

        Where what was seen is all alike, the main amount has it all: the second one for sources.
        """
        count = len(self.names)
        best: tuple[float, ...] = (0.0,) * count
        squares = left = self._squares.get(target, 0.0)
        order = [*range(1, count), 0] if self.names[0] == "files" else [*range(count)]
        for size in range(1, count + 1) if squares else ():
            for chosen in itertools.combinations(order, size):
                found = self._fit(target, list(chosen))
                if found is not None and found[1] < left - _WORTH * squares:
                    best, left = found
        return best

    def _fit(self, target: str, chosen: list[int]) -> tuple[tuple[float, ...], float] | None:
        """Return the weights of the amounts `chosen` by least squares, and what they leave; None without a solution."""
        matrix = self._products[np.ix_(chosen, chosen)]
        wanted = self._with[target][chosen]
        scale = np.sqrt(np.diag(matrix))
        if not scale.all() or np.linalg.cond(matrix / np.outer(scale, scale)) > _MOST_ALIKE:
            return None
        solved = np.linalg.solve(matrix, wanted)
        if (solved < 0).any():
            return None
        left = float(self._squares[target] - 2 * solved @ wanted + solved @ matrix @ solved)
        weights = np.zeros(len(self.names))
        weights[chosen] = solved
        return tuple(map(float, weights)), max(0.0, left)

    def per_file(self, target: str) -> float:
        """Return what a file took on average, whatever was in it."""
        return self._totals.get(target, 0.0) / self._amounts[0] if self._amounts[0] else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "products": self._products.tolist(),
            "amounts": self._amounts.tolist(),
            "with": {name: value.tolist() for name, value in self._with.items()},
            "squares": self._squares,
            "totals": self._totals,
        }

    def take(self, stored: Mapping[str, Any]) -> None:
        """Go on from what `to_json` returned."""
        self._products = np.asarray(stored["products"], dtype=float)
        self._amounts = np.asarray(stored["amounts"], dtype=float)
        self._with = {name: np.asarray(value, dtype=float) for name, value in stored["with"].items()}
        self._squares, self._totals = dict(stored["squares"]), dict(stored["totals"])


class Rates:
    """What is known of an extractor and a kind of source: time by chunk, documents and bytes by source."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._time = Moments(names, _HALF_LIFE["chunks"])
        self._made = Moments(names, _HALF_LIFE["sources"])
        #: Seconds that loading models took, in chunks where it did, and how many those were.
        self._loading = (0.0, 0)

    def add_chunk(self, used: Used, load_s: float) -> None:
        """Add what the sources of one kind in a chunk took."""
        self._time.add(used.amounts(), {"seconds": used.seconds})
        for amounts, documents, size_bytes in used.rows:
            self._made.add(amounts, {"documents": documents, "size_bytes": size_bytes})
        if load_s > _LOADED_S:
            self._loading = (self._loading[0] + load_s, self._loading[1] + 1)

    def join(self, later: Rates) -> None:
        """Add what was added to `later` since it was empty."""
        self._time.join(later._time)
        self._made.join(later._made)
        self._loading = (self._loading[0] + later._loading[0], self._loading[1] + later._loading[1])

    def add_time(self, amounts: Sequence[float], seconds: float) -> None:
        """Add time alone."""
        self._time.add(amounts, {"seconds": seconds})

    def weights(self) -> Weights:
        """Return what one of each amount takes."""
        return Weights(
            self._time.weights("seconds"), self._made.weights("documents"), self._made.weights("size_bytes")
        )

    def per_file(self) -> Took:
        """Return what a source took on average."""
        return Took(
            self._time.per_file("seconds"),
            self._made.per_file("documents"),
            self._made.per_file("size_bytes"),
        )

    def loading_s(self) -> float:
        """Return how long loading the models took, where it was seen."""
        total, count = self._loading
        return total / count if count else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "time": self._time.to_json(),
            "made": self._made.to_json(),
            "loading": list(self._loading),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Rates:
        rates_ = cls(stored["names"])
        rates_._time.take(stored["time"])
        rates_._made.take(stored["made"])
        rates_._loading = (float(stored["loading"][0]), int(stored["loading"][1]))
        return rates_


class Took(NamedTuple):
    """What a source takes, or several together."""

    seconds: float
    documents: float
    size_bytes: float


class Weights(NamedTuple):
    """What one of each amount takes."""

    seconds: tuple[float, ...]
    documents: tuple[float, ...]
    size_bytes: tuple[float, ...]

    def of(self, amounts: Sequence[float]) -> Took:
        """Return what something with these amounts takes."""
        return Took(*(float(np.dot(weights, amounts)) for weights in self))


Key = tuple[str, str, str]


@dataclass(slots=True)
class Seen:
    """What an attempt has seen of its chunks, by (extractor, plan hash, kind), and their times in order.

    Added up as they come: when the batch ends no more is to be done about it than about one chunk.
    """

    used: dict[Key, Rates] = field(default_factory=dict)
    #: Seconds of each chunk, by collection: they are run one collection after the other.
    chunks: dict[str, list[float]] = field(default_factory=dict)
    documents: int = 0

    def add(self, collection_id: str, extractor: str, plan_hash: str, cost: Cost) -> None:
        """Add what a chunk took."""
        self.chunks.setdefault(collection_id, []).append(cost.seconds)
        for number, used in enumerate(cost.used):
            load_s = cost.load_s if number == 0 else 0.0
            key = (extractor, plan_hash, used.kind)
            _of_names(self.used, key, AMOUNTS[used.kind]).add_chunk(used, load_s)
            self.documents += sum(documents for _, documents, _ in used.rows)


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
    known = _read(connection, place, {"", *(extractor for extractor, _, _ in seen.used)})
    changed: set[Key] = set()
    for key, found in seen.used.items():
        changed.add(key)
        _of_names(known, key, found.names).join(found)
    if wall_s is not None and seen.chunks:
        inside = sum(makespan(times, workers) for times in seen.chunks.values())
        key = ("", "", FIRST_BATCH if is_first else BATCH)
        changed.add(key)
        beside = _of_names(known, key, _BATCH_AMOUNTS)
        beside.add_time((1.0, seen.documents / 1000), max(0.0, wall_s - inside))
    insert_or_replace(
        connection,
        rates,
        [
            {
                "place": place,
                "extractor": key[0],
                "plan_hash": key[1],
                "kind": key[2],
                "moments": known[key].to_json(),
                "updated_at": now(),
            }
            for key in sorted(changed)
        ],
    )


def _of_names(known: dict[Key, Rates], key: Key, names: Sequence[str]) -> Rates:
    """Return what is known under `key`, nothing yet if that was of other amounts, as an older release had them."""
    found = known.get(key)
    if found is None or found.names != tuple(names):
        found = known[key] = Rates(names)
    return found


def _read(connection: Connection, place: str, extractors: Iterable[str]) -> dict[Key, Rates]:
    """Return what is known of extractors at a place, what was seen last at the end."""
    rows = connection.execute(
        sa.select(rates)
        .where(rates.c.place == place, rates.c.extractor.in_(list(extractors)))
        .order_by(rates.c.updated_at)
    ).mappings()
    return {
        (row["extractor"], row["plan_hash"], row["kind"]): Rates.from_json(row["moments"]) for row in rows
    }


@dataclass(frozen=True, slots=True)
class Known:
    """What is known at a place."""

    by_key: Mapping[Key, Rates]

    def of(self, extractor: str, plan_hash: str, kind: str) -> tuple[Rates | None, str]:
        """Return the rates for sources of a kind, and whose they are.

        ``measured``, with these very parameters; ``other_parameters``, the same extractor's latest; ``none``.
        """
        exact = self.by_key.get((extractor, plan_hash, kind))
        if exact is not None:
            return exact, "measured"
        others = [value for (name, _, of), value in self.by_key.items() if (name, of) == (extractor, kind)]
        return (others[-1], "other_parameters") if others else (None, "none")

    def any_of(self, extractor: str, plan_hash: str) -> Rates | None:
        """Return what is known of an extractor with these parameters, whatever the kind of its sources."""
        found = [
            value for (name, of, _), value in self.by_key.items() if (name, of) == (extractor, plan_hash)
        ]
        found = found or [value for (name, _, _), value in self.by_key.items() if name == extractor]
        return found[-1] if found else None

    def around(self, *, is_first: bool) -> Rates | None:
        """Return what a batch takes beside its chunks; the first one of a server starts workers too."""
        kinds = (FIRST_BATCH, BATCH) if is_first else (BATCH, FIRST_BATCH)
        return next((self.by_key["", "", kind] for kind in kinds if ("", "", kind) in self.by_key), None)


def known_at(connection: Connection, place: str, extractors: Iterable[str]) -> Known:
    """Return what is known of `extractors` at a place."""
    return Known(_read(connection, place, {*extractors, ""}))
