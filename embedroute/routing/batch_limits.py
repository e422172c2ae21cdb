"""A cap on one call that an endpoint's refusals have taught. Pure; the clock is an argument."""

from collections.abc import Mapping
from typing import Final

import msgspec

from embedroute.backend import Accepts
from embedroute.errors import Measure

ENVELOPE: Final = 1024
"""Bytes of a body around its inputs: the names of its fields, the model, the user and the like."""
GROWS_EVERY: Final = 60.0
"""Seconds after which a learned cap doubles, so that it is tried upwards step by step."""
LEAST: Final = {Measure.INPUTS: 16, Measure.TOKENS: 8192, Measure.BYTES: 32_768}
"""The smallest caps that are learned, so that calls of this size stay possible for all callers."""


class LearnedCap(msgspec.Struct, frozen=True):
    """A call may hold ``most`` since the time ``since``; a call of ``refused`` was too large.

    The cap doubles every ``GROWS_EVERY`` seconds and is gone when it would reach what was refused.
    """

    most: int
    since: float
    refused: int

    def at(self, now: float) -> int | None:
        """What a call may hold ``now``; None if nothing is known any more."""
        doublings = min(int((now - self.since) // GROWS_EVERY), self.refused.bit_length())
        grown = self.most << max(0, doublings)
        return grown if grown < self.refused else None


def lowered(
    cap: LearnedCap | None, measure: Measure, refused: int, now: float
) -> LearnedCap | None:
    """Learn from a call of ``refused``, which was too large: half of it is the cap, unless it is lower.

    What is not larger than the smallest cap teaches nothing.
    """
    if refused <= LEAST[measure]:
        return cap
    half = max(LEAST[measure], refused // 2)
    known = None if cap is None else cap.at(now)
    if cap is None or known is None:
        return LearnedCap(half, now, refused)
    return LearnedCap(min(known, half), now, max(cap.refused, refused))


def raised(cap: LearnedCap, most: int, now: float) -> LearnedCap | None:
    """Raise a cap to ``most``; None if nothing is left of it."""
    known = cap.at(now)
    if known is None or most >= cap.refused:
        return None
    return LearnedCap(most, now, cap.refused) if most > known else cap


def narrowed(accepts: Accepts, caps: Mapping[Measure, LearnedCap], now: float) -> Accepts:
    """Lower what one call may hold to the learned ``caps``."""
    changes: dict[str, int] = {}
    for measure, cap in caps.items():
        if (most := cap.at(now)) is not None:
            around = ENVELOPE if measure is Measure.BYTES else 0
            declared = getattr(accepts, f"max_{measure}")
            changes[f"max_{measure}"] = min(most + around, declared or most + around)
    return msgspec.structs.replace(accepts, **changes)
