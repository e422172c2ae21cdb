"""Learns the largest call that an endpoint accepts from the calls that it rejected as too large.

All functions are pure. ``now`` is in seconds of a monotonic clock.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from embedroute.backend import Accepts
from embedroute.errors import Measure

ENVELOPE: Final = 1024
"""Bytes of a request body besides its inputs: field names, the model, the user."""
GROWS_EVERY: Final = 60.0
"""Seconds after which a learned cap doubles, so that larger calls are tried again step by step."""
LEAST: Final = {Measure.INPUTS: 16, Measure.TOKENS: 8192, Measure.BYTES: 32_768}
"""The smallest caps that can be learned: calls up to this size are always possible."""


class LearnedCap(msgspec.Struct, frozen=True):
    """A learned limit on one measure (inputs, tokens or bytes) of a call.

    ``most`` is the limit at the time ``since``; a call of size ``refused`` was rejected. The limit
    doubles every ``GROWS_EVERY`` seconds and ends when it would reach ``refused``.
    """

    most: int
    since: float
    refused: int

    def at(self, now: float) -> int | None:
        """Return the limit at the time ``now``, or None if it has ended."""
        doublings = min(int((now - self.since) // GROWS_EVERY), self.refused.bit_length())
        grown = self.most << max(0, doublings)
        return grown if grown < self.refused else None


def lowered(
    cap: LearnedCap | None, measure: Measure, refused: int, now: float
) -> LearnedCap | None:
    """Return the cap after a call of size ``refused`` was rejected as too large.

    The new cap is half of ``refused``, or the current cap if that is lower. Calls up to the
    smallest cap (``LEAST``) change nothing.
    """
    if refused <= LEAST[measure]:
        return cap
    half = max(LEAST[measure], refused // 2)
    known = None if cap is None else cap.at(now)
    if cap is None or known is None:
        return LearnedCap(half, now, refused)
    return LearnedCap(min(known, half), now, max(cap.refused, refused))


def raised(cap: LearnedCap, most: int, now: float) -> LearnedCap | None:
    """Raise a cap to ``most``; return None if it has ended or would reach the rejected size."""
    known = cap.at(now)
    if known is None or most >= cap.refused:
        return None
    return LearnedCap(most, now, cap.refused) if most > known else cap


def narrowed(accepts: Accepts, caps: Mapping[Measure, LearnedCap], now: float) -> Accepts:
    """Return ``accepts`` with its limits lowered to the learned ``caps``."""
    changes: dict[str, int] = {}
    for measure, cap in caps.items():
        if (most := cap.at(now)) is not None:
            envelope = ENVELOPE if measure is Measure.BYTES else 0
            learned = most + envelope
            declared = getattr(accepts, f"max_{measure}")
            changes[f"max_{measure}"] = min(learned, declared or learned)
    return msgspec.structs.replace(accepts, **changes)
