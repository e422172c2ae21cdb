"""Defines the tables ``[gateway.retries]`` and ``[gateway.breaker]``, and ``limits``.

``limits`` are those of ``[gateway]``, of a key or of a model; ``embedroute.limits`` applies them.
Retries and breaker of a provider, ``[providers.SLUG.retries]`` and ``[providers.SLUG.breaker]``,
hold only the fields that replace the gateway's; ``embedroute.routing`` applies them.
"""

from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

MOST_USD: Final = 1_000_000
"""Maximum of a budget, so that billionths of it are exact in every store."""

Calls = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=86_400, extra={"unit": "seconds"})]
"""At most a day, so that a cool-down is a valid ``retry-after``."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often one endpoint is tried for one chunk, and the bounds of the backoff in seconds.

    Each endpoint gets ``attempts``. When all have failed, the one that fails least gets up to
    ``repeats`` more, one at a time, while repeated calls are answered often enough.
    """

    attempts: Annotated[int, Meta(ge=1, le=100)] = 2
    repeats: Annotated[int, Meta(ge=0, le=100)] = 4
    first_wait: Seconds = 0.05
    longest_wait: Seconds = 2.0


class BreakerPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a breaker opens, for how many seconds, and how it closes.

    It opens when ``failure_rate`` or more of the last calls have failed (if there were at least
    ``minimum_calls``), when twice ``minimum_calls`` in a row have failed, or when ``failures``
    connections in a row could not be made. After ``failures`` failures in a row that inputs may
    have caused, the endpoint is checked with a harmless text.

    The cool-down doubles from ``initial_cooldown`` to ``longest_cooldown`` while the endpoint does
    not answer, and that of a spent account from ``quota_cooldown`` to ``longest_quota_cooldown``.
    That of a rejected key or model is ``rejection_cooldown``. After a cool-down, 1, 2, 4, … calls
    are admitted at a time; the breaker closes when ``slow_start`` at a time were answered.
    """

    failure_rate: Annotated[float, Meta(gt=0, le=1)] = 0.9
    minimum_calls: Calls = 10
    failures: Calls = 5
    initial_cooldown: Seconds = 0.5
    longest_cooldown: Seconds = 1.5
    slow_start: Calls = 8
    rejection_cooldown: Seconds = 30.0
    quota_cooldown: Seconds = 300.0
    longest_quota_cooldown: Seconds = 3600.0


class RateLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key, a model or the gateway may use at most; None does not limit it.

    Tokens are estimated before a request, and counted as billed by the upstream afterwards.
    """

    requests_per_minute: Calls | None = None
    tokens_per_minute: Calls | None = None
    concurrent_requests: Calls | None = None


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many US dollars a key or the gateway may spend: per month or day in UTC, or in total.

    Raises:
        ValueError: ``usd`` is not a number from 0 to ``MOST_USD``.
    """

    usd: Decimal
    per: Literal["month", "day", "total"]

    def __post_init__(self) -> None:
        """Check the amount: msgspec has no bounds for decimals."""
        if not (self.usd.is_finite() and 0 <= self.usd <= MOST_USD):
            raise ValueError(f"usd must be a number from 0 to {MOST_USD}")


POLICIES: Final[dict[str, type[RetryPolicy] | type[BreakerPolicy]]] = {
    "retries": RetryPolicy,
    "breaker": BreakerPolicy,
}
"""The key of a policy in ``[gateway]`` and in ``[providers.SLUG]``."""

BOUNDS: Final = (
    ("first_wait", "longest_wait"),
    ("initial_cooldown", "longest_cooldown"),
    ("quota_cooldown", "longest_quota_cooldown"),
)
"""A time that doubles, and its maximum, which must not be less."""
