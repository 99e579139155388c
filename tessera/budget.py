"""What one execution of a retriever may take, in time and in credits, and what it has taken so far."""

from __future__ import annotations

import math
import threading
import time

#: What a credit is unless a setting says otherwise: so many tokens of a language model. Nothing else costs any.
TOKENS_PER_CREDIT = 1000.0


class BudgetSpent(Exception):
    """The execution has taken what it may; `message` says which limit that was."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Budget:
    """Time and credits of one execution. May be asked from several threads.

    `max_time_ms` and `max_credits` are the retriever's own limits: reaching one ends the execution between two
    stages, and between two calls of a stage that makes some. `wait_s` is how long anybody waits for the answer at all:
    calls to other servers end before.
    """

    def __init__(
        self,
        max_time_ms: int | None = None,
        max_credits: float | None = None,
        *,
        wait_s: float = math.inf,
        tokens_per_credit: float = TOKENS_PER_CREDIT,
    ) -> None:
        self.max_time_ms = max_time_ms
        self.max_credits = max_credits
        self._begun = time.monotonic()
        self._wait_s = wait_s
        self._tokens_per_credit = tokens_per_credit
        self._tokens = 0
        self._lock = threading.Lock()

    @property
    def credits_used(self) -> float:
        """Credits taken so far."""
        return round(self._tokens / self._tokens_per_credit, 6)

    def elapsed_ms(self) -> float:
        """Return the time since the execution began."""
        return (time.monotonic() - self._begun) * 1000

    def left_s(self) -> float:
        """Return how long a call may still take; 0 when there is no time left."""
        limit_s = min(self._wait_s, math.inf if self.max_time_ms is None else self.max_time_ms / 1000)
        return max(0.0, limit_s - self.elapsed_ms() / 1000)

    def take_tokens(self, tokens: int) -> None:
        """Count tokens that a language model has read and written."""
        with self._lock:
            self._tokens += tokens

    def spent(self) -> str | None:
        """Return which limit is passed, None while there is something left."""
        if self.max_time_ms is not None and self.elapsed_ms() >= self.max_time_ms:
            return f"max_time_ms ({self.max_time_ms}) was reached after {self.elapsed_ms():.0f} ms"
        if self.max_credits is not None and self.credits_used > self.max_credits:
            return f"max_credits ({self.max_credits:g}) was passed: {self.credits_used:g} credits are used"
        return None

    def check(self) -> None:
        """Raise `BudgetSpent` when a limit is passed."""
        message = self.spent()
        if message is not None:
            raise BudgetSpent(message)

    def check_call(self) -> None:
        """Raise `BudgetSpent` when nothing is left for a call that costs credits."""
        self.check()
        if self.max_credits is not None and self.credits_used >= self.max_credits:
            raise BudgetSpent(
                f"max_credits ({self.max_credits:g}) leaves nothing for another call of the language model"
            )
