"""``embedroute usage``: prints what requests have used, from the store."""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Final

import msgspec

from embedroute.cli.parser import Command, load_config
from embedroute.cli.table import print_table
from embedroute.errors import ConfigError
from embedroute.stores import (
    Store,
    UsageGroup,
    UsageRow,
    UsageSums,
    make_store,
    merge_sums,
    parse_day,
)

NO_STORE: Final = (
    "[store] url is not set, so the usage is in the memory of each process. "
    "GET /usage returns what a caller has used there."
)
UNITS_PER_USD: Final = 1_000_000_000

GROUPINGS: Final[Mapping[str, Callable[[UsageGroup], str]]] = {
    "key": lambda group: group.caller,
    "model": lambda group: group.model,
    "provider": lambda group: group.provider,
    "day": lambda group: group.day,
}

Row = Mapping[str, str | int | float | None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``usage``."""
    parser.add_argument("--by", choices=(*GROUPINGS, "request"), default="key", help="default: key")
    parser.add_argument(
        "--since", metavar="DAY", help="the first day in UTC, as 2026-11-30 or 7d; default: all"
    )
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default: table"
    )
    parser.epilog = (
        "Reads the store of [store] url; usage = true in [gateway] records there. With --by "
        "provider, a request counts for each provider that it called, and inputs from the cache "
        "are in the row without a name. --by request prints one row per request and provider."
    )


def run(options: argparse.Namespace) -> int:
    """Print the usage in the store."""
    try:
        since = parse_day(options.since, time.time()) if options.since else ""
    except ValueError as error:
        raise ConfigError([f"--{error}."]) from None
    store = make_store(load_config(options).store)
    if store is None:
        raise ConfigError([NO_STORE])
    try:
        store.open()
        rows = _list_requests(store, since) if options.by == "request" else None
        if rows is None:
            rows = _list_sums(store, since, options.by)
    except Exception as error:  # noqa: BLE001 - a store of a third party may raise anything
        raise ConfigError([f"The store cannot be used: {error}"]) from None
    finally:
        store.close()
    _print(rows, options.format)
    return 0


def _list_sums(store: Store, since: str, by: str) -> Sequence[Row]:
    merged = merge_sums(store.sum_usage(since, None), GROUPINGS[by])
    return [_describe(by, name, sums) for name, sums in merged.items()]


def _describe(by: str, name: str, sums: UsageSums) -> Row:
    """Return the columns of a group. A provider has parts of requests, and failures of its own."""
    is_provider = by == "provider"
    return {
        by: name,
        "requests": sums.parts if is_provider else sums.requests,
        "errors": sums.failures if is_provider else sums.errors,
        "inputs": sums.inputs,
        "cached": sums.cached,
        "billed_tokens": sums.billed,
        "served_tokens": sums.served,
        "cost": _to_usd(sums.cost),
    }


def _list_requests(store: Store, since: str) -> Sequence[Row]:
    return [_describe_row(row) for row in store.list_usage(since)]


def _describe_row(row: UsageRow) -> Row:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row.at))
    return {
        "time": f"{seconds}.{int(row.at % 1 * 1000):03}Z",
        "request": row.request,
        "key": row.caller,
        "model": row.model,
        "provider": row.provider,
        "status": row.status,
        "inputs": row.inputs,
        "cached": row.cached,
        "billed_tokens": row.billed,
        "served_tokens": row.served,
        "cost": None if row.cost is None else _to_usd(row.cost),
        "seconds": round(row.seconds, 4),
    }


def _to_usd(cost: int) -> str:
    return f"{(Decimal(cost) / UNITS_PER_USD).normalize():f}"


def _print(rows: Sequence[Row], layout: str) -> None:
    if layout == "json":
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    if not rows:
        return
    header = list(rows[0])
    cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
    if layout == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *cells])
    else:
        print_table([name.upper() for name in header], cells)


COMMAND: Final = Command(
    name="usage",
    help="print what requests have used, by key, model, provider or day",
    run=run,
    add_options=add_options,
)
