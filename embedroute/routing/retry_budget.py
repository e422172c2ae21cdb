"""Limits retries by the calls that are answered, so that an outage gets few of them.

``execution/dispatcher.py`` spends the budget of retries, and ``execution/parts.py`` that of
bisections. Time is an argument, in seconds of one monotonic clock.
"""

from collections.abc import Callable
from typing import Final

REFILLED: Final = 10.0
"""Retries up to which time refills the budget; so many are allowed at first."""
PER_SECOND: Final = 1.0
"""Retries by which time refills it each second."""
PER_ANSWER: Final = 1.0
"""Retries that each answered call allows."""
MOST: Final = 100.0
"""Retries that can be saved up."""
BISECTION_CALLS: Final = 256.0
"""Calls of bisections that are allowed at first."""
MOST_BISECTION_CALLS: Final = 1024.0
"""Calls of bisections that can be saved up."""
BISECTION_CALLS_A_SECOND: Final = 26.0
"""Calls of bisections that become available each second, up to ``BISECTION_CALLS``."""
BISECTION_CALLS_AN_ANSWER: Final = 4.0
"""Calls of bisections that each answered call allows besides."""


class _Tokens:
    """A bucket of tokens: time refills it up to ``refilled``, and answers up to ``most``."""

    __slots__ = ("_at", "_most", "_per_second", "_refilled", "_tokens")

    def __init__(self, refilled: float, per_second: float, most: float) -> None:
        self._refilled = refilled
        self._per_second = per_second
        self._most = most
        self._tokens = refilled
        self._at = 0.0

    def add(self, tokens: float) -> None:
        self._tokens = min(self._most, self._tokens + tokens)

    def take(self, now: float) -> bool:
        if self._tokens < self._refilled:
            tokens = self._tokens + (now - self._at) * self._per_second
            self._tokens = min(self._refilled, tokens)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RetryBudget:
    """A limit on retries: a bucket of tokens that answered calls refill, and time to a lower bound.

    The first attempt of a chunk at an endpoint is a call, also when it is a fallback. Every further
    attempt there is a retry: at once, after a backoff or after a rate limit. While half of all
    calls fail, each failed one can be repeated; while all fail, one is repeated each second.

    Add 1 to ``answered`` for each answered call.
    """

    def __init__(
        self,
        per_answer: float = PER_ANSWER,
        refilled: float = REFILLED,
        per_second: float = PER_SECOND,
    ) -> None:
        """Allow ``per_answer`` retries per answered call, and ``per_second`` up to ``refilled``."""
        self.answered: int = 0
        self._per_answer = per_answer
        self._retries = _Tokens(refilled, per_second, max(refilled, MOST))
        self._bisections = _Tokens(BISECTION_CALLS, BISECTION_CALLS_A_SECOND, MOST_BISECTION_CALLS)

    def allow(self, now: float) -> bool:
        """Take one retry out of the budget; return False if the budget is exhausted."""
        self._add_answers()
        return self._retries.take(now)

    def allow_bisection(self, now: float) -> bool:
        """Take one call of a bisection out of its own allowance; return False if it is spent.

        Most of these calls bring vectors, so more of them are allowed than retries.
        """
        self._add_answers()
        return self._bisections.take(now)

    def reserve_one(self) -> Callable[[float], bool]:
        """Return an admission check whose first call passes, because ``allow`` was called for it.

        Each further call takes a retry out of the budget.
        """
        reserved = iter([True])
        return lambda now: next(reserved, False) or self.allow(now)

    def _add_answers(self) -> None:
        """Refill the budget by the calls that were answered since the last retry."""
        self._retries.add(self.answered * self._per_answer)
        self._bisections.add(self.answered * BISECTION_CALLS_AN_ANSWER)
        self.answered = 0
