"""Decides how many units of a limit a process may hold: the arithmetic of leases.

A rate is a bucket of ``capacity`` units that is full at first and refills evenly (the generic cell
rate algorithm of ITU-T I.371). It is kept as the units ``used`` at a time ``at``. A process leases
units and uses them later without asking. Until it reports their use, they count as in the bucket's
place: the bucket never refills beyond ``capacity`` less what is leased. So no more than
``capacity`` and what refills is used in any period.

A number of concurrent requests is such a bucket too. It does not refill: units are given back.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

SURPLUS: Final = 4
"""A process gets at most 1/4 of what is left besides what it needs, so that others get some too."""
ROUNDING: Final = 1e-6
"""Units that come from adding and subtracting fractions."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What a process needs of one limit.

    ``counter`` names the limit. It has ``capacity`` units, and gets back ``refill`` units a second;
    0 for a number of concurrent requests. ``spent`` are the units of the lease that were used since
    the last demand; a negative number are units that were not used after all. The process needs to
    hold ``least`` units, and can use ``most``.
    """

    counter: str
    capacity: int
    refill: float
    spent: int
    least: int
    most: int


class Grant(NamedTuple):
    """The units that a process holds now, and those that no process holds (negative: overdrawn)."""

    units: int
    available: float


class Lease(NamedTuple):
    """The units of one holder, and the time at which they expire."""

    units: int
    expires: float


class Pool(msgspec.Struct, frozen=True):
    """The state of one limit: ``used`` units, leased ones included, at the time ``at``."""

    used: float = 0.0
    at: float = 0.0
    leases: Mapping[str, Lease] = {}


def lease(
    pool: Pool, demand: Demand, holder: str, now: float, seconds: float
) -> tuple[Pool, Grant]:
    """Replace the lease of ``holder`` by a new one of ``seconds``; return it and the new state.

    A holder keeps what it holds if it needs it. An expired lease counts as used, because its holder
    may have used it.
    """
    leased = sum(each.units for each in pool.leases.values())
    others = {
        name: each for name, each in pool.leases.items() if name != holder and each.expires > now
    }
    own = pool.leases.get(holder)
    owned = own.units if own is not None and own.expires > now else 0
    leased_to_others = sum(each.units for each in others.values())
    used: float = leased_to_others
    if demand.refill:
        used = max(pool.used - max(now - pool.at, 0.0) * demand.refill, leased)
        used = max(used + demand.spent - owned, leased_to_others)
    units = _choose_units(demand, demand.capacity - used, max(owned - demand.spent, 0))
    if units:
        others[holder] = Lease(units, now + seconds)
    return Pool(used + units, now, others), Grant(units, demand.capacity - used - units)


def _choose_units(demand: Demand, left: float, owned: int) -> int:
    kept = min(owned, demand.most)
    if demand.least > left + ROUNDING:
        return kept
    surplus = math.floor((left - demand.least) / SURPLUS + ROUNDING)
    return max(kept, demand.least + min(demand.most - demand.least, max(surplus, 0)))


def expires_at(pool: Pool, demand: Demand, seconds: float) -> float:
    """Return when the state is that of a new limit, so that it need not be kept any longer."""
    refilled = max(pool.used, 0.0) / demand.refill if demand.refill else 0.0
    return pool.at + max(refilled, seconds)
