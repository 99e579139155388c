"""The spans of time that a video or a recording falls into, and which words fall into which of them. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

from tessera.errors import BadSample

#: Most spans of one source.
MAX_SPANS = 5_000
#: A span shorter than this belongs to the one before.
SHORTEST_S = 0.5
#: A silence of at least this is a span of its own; a shorter one goes to the end of what was heard before it.
LONG_SILENCE_S = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, in seconds, to the millisecond."""

    start_s: float
    end_s: float


class Timed(Protocol):
    """What is said or shown for a time."""

    @property
    def start_s(self) -> float:
        """When it begins, in seconds."""

    @property
    def end_s(self) -> float:
        """When it ends."""


TimedT = TypeVar("TimedT", bound=Timed)


def every(duration_s: float, interval_s: float) -> list[Span]:
    """Return spans of `interval_s`; the last one is what is left. Raises `BadSample` (``limit``)."""
    count = max(1, math.ceil((duration_s - SHORTEST_S) / interval_s))
    _check(count, "raise time_split_interval")
    ends = [round(float(number * interval_s), 3) for number in range(1, count)] + [round(duration_s, 3)]
    return _between([0.0, *ends])


def at(boundaries_s: Sequence[float], duration_s: float, longest_s: float | None) -> list[Span]:
    """Return the spans between boundaries (ascending), those longer than `longest_s` parted evenly.

    Raises `BadSample` (``limit``) beyond `MAX_SPANS`.
    """
    edges = [0.0]
    for boundary_s in (*(min(boundary_s, duration_s) for boundary_s in boundaries_s), duration_s):
        if boundary_s - edges[-1] < SHORTEST_S and boundary_s < duration_s:
            continue
        if boundary_s - edges[-1] < SHORTEST_S and len(edges) > 1:
            edges.pop()
        parts = math.ceil((boundary_s - edges[-1]) / longest_s - 1e-6) if longest_s else 1
        begin = edges[-1]
        edges += [begin + (boundary_s - begin) * part / parts for part in range(1, max(1, parts))]
        edges.append(boundary_s)
        _check(len(edges), "raise max_segment_duration, or split by time")
    return _between([round(edge, 3) for edge in edges])


def by_silence(sounding: Sequence[tuple[float, float]], duration_s: float) -> list[float]:
    """Return the boundaries between stretches of sound: where the next one begins, and where a long silence does."""
    boundaries: list[float] = []
    heard_until_s = 0.0
    for begin_s, end_s in sounding:
        if begin_s - heard_until_s >= LONG_SILENCE_S and heard_until_s > 0:
            boundaries.append(heard_until_s)
        if begin_s > 0:
            boundaries.append(begin_s)
        heard_until_s = end_s
    if sounding and duration_s - heard_until_s >= LONG_SILENCE_S:
        boundaries.append(heard_until_s)
    return boundaries


def placed(items: Sequence[TimedT], spans: Sequence[Span]) -> list[list[TimedT]]:
    """Return, for each span, the items whose middle lies in it; what lies outside all goes to the nearest."""
    starts = [span.start_s for span in spans]
    found: list[list[TimedT]] = [[] for _ in spans]
    for item in items:
        found[max(0, bisect_right(starts, (item.start_s + item.end_s) / 2) - 1)].append(item)
    return found


def during(items: Sequence[TimedT], spans: Sequence[Span]) -> Iterator[list[TimedT]]:
    """Yield, for each span, the items that are there at any time of it."""
    for span in spans:
        yield [item for item in items if item.start_s < span.end_s and item.end_s > span.start_s]


def _between(edges: Sequence[float]) -> list[Span]:
    return [Span(start, end) for start, end in pairwise(edges)]


def _check(count: int, remedy: str) -> None:
    if count > MAX_SPANS:
        raise BadSample("limit", f"The source falls into {count} spans, more than {MAX_SPANS}; {remedy}.")
