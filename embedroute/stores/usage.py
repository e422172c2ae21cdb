"""Defines the rows of the usage ledger, and their sums by day, caller, model and provider.

A request has one row for each provider that was called, and one for the inputs that needed none.
Each of its inputs, tokens and dollars is in exactly one row, so every grouping has the same total.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple, Protocol

import msgspec

from embedroute.text import echo

MOST_GROUPS: Final = 10_000
"""Groups that are kept in memory; what further ones use is added to ``OTHERS``."""
OTHERS: Final = "(others)"
"""The caller of these groups."""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one request used at one ``provider``, or without one ("").

    ``at`` is the time of its end in seconds since 1970, ``seconds`` its duration. ``response`` is
    the status of the response, in the first row of the request, and None in the others. ``status``
    is the same, or that of a provider that failed while another one served. ``inputs`` are those
    that the provider embedded, and ``cached`` those that needed no call. ``billed`` tokens are
    billed by the provider, ``served`` tokens reported to the client. ``cost`` is in billionths of a
    US dollar, or None if a price is unknown.
    """

    at: float
    request: str
    caller: str
    model: str
    provider: str
    response: int | None
    status: int
    inputs: int
    cached: int
    billed: int
    served: int
    cost: int | None
    seconds: float


class UsageGroup(NamedTuple):
    """A day in UTC, a caller, a model and a provider."""

    day: str
    caller: str
    model: str
    provider: str


class UsageSums(NamedTuple):
    """Sums of rows. ``cost`` is in billionths of a US dollar, where prices are known.

    ``requests`` and ``errors`` count requests, ``parts`` and ``failures`` rows.
    """

    requests: int = 0
    errors: int = 0
    parts: int = 0
    failures: int = 0
    inputs: int = 0
    cached: int = 0
    billed: int = 0
    served: int = 0
    cost: int = 0


NO_USAGE: Final = UsageSums()


class UsageStore(Protocol):
    """Stores the usage ledger."""

    def add_usage(self, batch: str, rows: Sequence[UsageRow], days: int) -> None:
        """Add rows and their sums at once, and remove what is older than ``days``.

        ``batch`` identifies the rows: they are added once, although the call may be repeated after
        a failure.
        """
        ...

    def sum_usage(self, since: str, caller: str | None) -> Sequence[tuple[UsageGroup, UsageSums]]:
        """Return the sums of each group from the day ``since`` on, of one caller or of all."""
        ...

    def list_usage(self, since: str) -> Iterable[UsageRow]:
        """Yield the rows from the day ``since`` on, the oldest first."""
        ...


def sum_rows(rows: Iterable[UsageRow]) -> dict[UsageGroup, UsageSums]:
    """Return the sums of rows by group."""
    sums: dict[UsageGroup, UsageSums] = {}
    for row in rows:
        group = UsageGroup(day_of(row.at), row.caller, row.model, row.provider)
        sums[group] = add_sums(sums.get(group, NO_USAGE), _sums_of(row))
    return sums


def _sums_of(row: UsageRow) -> UsageSums:
    return UsageSums(
        row.response is not None,
        row.response is not None and row.response >= 400,
        1,
        row.status >= 400,
        row.inputs,
        row.cached,
        row.billed,
        row.served,
        row.cost or 0,
    )


def add_sums(first: UsageSums, second: UsageSums) -> UsageSums:
    """Return the sums of both."""
    return UsageSums(*(one + other for one, other in zip(first, second, strict=True)))


def merge_sums(
    sums: Iterable[tuple[UsageGroup, UsageSums]], name: Callable[[UsageGroup], str]
) -> dict[str, UsageSums]:
    """Add up the sums of the groups that have the same ``name``, sorted by it."""
    merged: dict[str, UsageSums] = {}
    for group, each in sums:
        merged[name(group)] = add_sums(merged.get(name(group), NO_USAGE), each)
    return dict(sorted(merged.items()))


def day_of(at: float) -> str:
    """Return the day in UTC of a time in seconds since 1970."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def start_of(day: str) -> float:
    """Return the begin of a day in UTC, in seconds since 1970; 0 for ""."""
    if not day:
        return 0.0
    return datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC).timestamp()


def parse_day(text: str, now: float) -> str:
    """Return the day that ``2026-11-30`` or ``7d`` (today and the six days before) names.

    Raises:
        ValueError: the text is neither; the message is for the user.
    """
    number = text.removesuffix("d")
    today = datetime.fromtimestamp(now, UTC).date()
    try:
        if number != text and number.isascii() and number.isdigit():
            return (today - timedelta(days=max(int(number), 1) - 1)).isoformat()
        return date.fromisoformat(text).isoformat()
    except (ValueError, OverflowError):
        raise ValueError(
            f"since must be a day such as 2026-11-30, or a number of days such as 7d, "
            f"not {echo(text)}"
        ) from None


class MemoryUsage:
    """The sums of one process since its start; it keeps no rows."""

    def __init__(self) -> None:
        """Start without usage."""
        self._lock = threading.Lock()  # several event loops may share a gateway
        self._sums: dict[UsageGroup, UsageSums] = {}
        self._latest_day = ""

    def add(self, rows: Sequence[UsageRow], days: int) -> None:
        """Add rows, and remove the sums of days that are older than ``days``."""
        with self._lock:
            for group, sums in sum_rows(rows).items():
                counted = self._choose_group(group, days)
                self._sums[counted] = add_sums(self._sums.get(counted, NO_USAGE), sums)

    def _choose_group(self, group: UsageGroup, days: int) -> UsageGroup:
        """Return ``group``, or that of all others if there are too many."""
        if group in self._sums:
            return group
        if group.day > self._latest_day:
            self._latest_day = group.day
            self._remove_before(day_of(start_of(group.day) - days * 86_400))
        return group if len(self._sums) < MOST_GROUPS else group._replace(caller=OTHERS)

    def sum(self, since: str, caller: str | None) -> Sequence[tuple[UsageGroup, UsageSums]]:
        """Return the sums of each group from the day ``since`` on, of one caller or of all."""
        with self._lock:
            return [
                (group, sums)
                for group, sums in self._sums.items()
                if group.day >= since and caller in {None, group.caller}
            ]

    def _remove_before(self, day: str) -> None:
        self._sums = {group: sums for group, sums in self._sums.items() if group.day >= day}
