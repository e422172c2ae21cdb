"""Answers ``GET /usage``: what the caller has used, in total, by model and by day."""

import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from urllib.parse import parse_qs

import msgspec

from embedroute.auth import Caller
from embedroute.errors import InvalidRequest, NotFound
from embedroute.gateway import Gateway
from embedroute.stores import UsageGroup, UsageSums, merge_sums, parse_day

Sums = Sequence[tuple[UsageGroup, UsageSums]]


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over requests; ``cost`` is in USD, where prices are known.

    ``inputs`` are those that providers embedded, and ``cached`` those that needed no call.
    ``billed_tokens`` are billed by providers, and ``served_tokens`` are in the responses.
    """

    requests: int
    errors: int
    inputs: int
    cached: int
    billed_tokens: int
    served_tokens: int
    cost: float


class UsageReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="usage"):
    """What one caller has used from the day ``since`` on, by model and by day in UTC.

    Without ``since``, it is all that is known: what the store keeps, or without a store what this
    process has served.
    """

    caller: str
    since: str | None
    total: Used
    models: dict[str, Used]
    days: dict[str, Used]


async def report_usage(gateway: Gateway, caller: Caller, query: bytes) -> UsageReport:
    """Return what ``caller`` has used; ``since`` in the ``query`` is the first day.

    Raises:
        NotFound: the usage is not recorded.
        InvalidRequest: ``since`` is not a day.
        Overloaded: the store failed.
    """
    ledger = gateway.active.ledger
    if ledger is None:
        raise NotFound("The usage is not recorded. Set usage = true in [gateway].")
    since = _read_since(query)
    sums = await ledger.sum(since, caller.name)
    return UsageReport(
        caller=caller.name,
        since=since or None,
        total=describe(merge_sums(sums, lambda _: "").get("", UsageSums())),
        models=_describe_by(sums, lambda group: group.model),
        days=_describe_by(sums, lambda group: group.day),
    )


def describe(sums: UsageSums) -> Used:
    """Return sums as the API and the command line show them."""
    return Used(
        requests=sums.requests,
        errors=sums.errors,
        inputs=sums.inputs,
        cached=sums.cached,
        billed_tokens=sums.billed,
        served_tokens=sums.served,
        cost=float(Decimal(sums.cost) / 1_000_000_000),
    )


def _describe_by(sums: Sums, name: Callable[[UsageGroup], str]) -> dict[str, Used]:
    return {key: describe(each) for key, each in merge_sums(sums, name).items()}


def _read_since(query: bytes) -> str:
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("since", [])
    if not values:
        return ""
    try:
        return parse_day(values[-1], time.time())
    except ValueError as error:
        raise InvalidRequest(f"{error}.", param="since") from None
