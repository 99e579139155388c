"""Several clients at once, in one thread: as many connections, each with one request under way at any moment."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.wire import Wire


@dataclass(frozen=True)
class Load:
    """What clients met in a time: answers a second, the times that they took, and how many were no 2xx."""

    per_second: float
    times_ms: tuple[float, ...]
    errors: int

    def ms(self, share: float) -> float:
        """Return the time that `share` of the answers took no longer than."""
        return self.times_ms[min(len(self.times_ms) - 1, int(share * len(self.times_ms)))]


def load(connect: Callable[[], Wire], clients: int, seconds: float, requests: Sequence[bytes]) -> Load:
    """Send `requests` in turn over `clients` connections for `seconds`; each waits for its answer, then sends the next.

    No client costs a thread, so that what is measured beside is not held up by what measures it.
    """
    wires = {wire.fileno(): wire for wire in (connect() for _ in range(clients))}
    poll = select.epoll()
    began: dict[int, float] = {}
    sent, errors, times = 0, 0, []

    def send(descriptor: int) -> None:
        nonlocal sent
        request = requests[sent % len(requests)]
        sent += 1
        began[descriptor] = time.perf_counter()
        wires[descriptor].send(request)

    start = time.perf_counter()
    try:
        for descriptor in wires:
            poll.register(descriptor, select.EPOLLIN)
            send(descriptor)
        while began:
            for descriptor, _ in poll.poll():
                try:
                    wires[descriptor].receive()
                except RuntimeError:
                    errors += 1
                now = time.perf_counter()
                times.append((now - began.pop(descriptor)) * 1000)
                if now - start < seconds:
                    send(descriptor)
        took = time.perf_counter() - start
    finally:
        poll.close()
        for wire in wires.values():
            wire.close()
    return Load(len(times) / took, tuple(sorted(times)), errors)
