"""``embedroute keys``: makes, lists and revokes the API keys in the store."""

import argparse
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from embedroute.cli.parser import Command, load_config
from embedroute.cli.table import print_table
from embedroute.config import Budget, Config, RateLimits
from embedroute.errors import ConfigError
from embedroute.gateway import Gateway
from embedroute.routing import ModelRegistry, is_known
from embedroute.stores import Store, StoredKey, decode_keys, digest_key, make_key, make_store
from embedroute.text import did_you_mean, echo

NO_STORE: Final = (
    "[store] url is not set. Keys that are made at run time need a store; others are [keys.NAME] "
    "tables of the config."
)
UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_NAME: Final = re.compile(r"[\w.@-]{1,128}")
_PERIOD: Final = re.compile(r"(\d{1,5})([hdw])")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``keys``."""
    add = parser.add_argument
    add("action", choices=("create", "list", "revoke"), help="what to do; the key is shown once")
    add("name", nargs="?", metavar="NAME", help="name of the key, which is that of the caller")
    new = parser.add_argument_group("for create")
    new.add_argument(
        "--models", nargs="+", metavar="MODEL", help="models it may use (default: all)"
    )
    for name, what in (
        ("--only", "the only providers it may use"),
        ("--ignore", "those it may not"),
    ):
        new.add_argument(name, nargs="+", default=[], metavar="PROVIDER", help=what)
    new.add_argument(
        "--debug",
        action=argparse.BooleanOptionalAction,
        help="whether it may see traces and upstream bodies (default: [gateway] debug)",
    )
    new.add_argument(
        "--budget",
        type=_read_budget,
        metavar="USD/PER",
        help="what it may spend per month, day or total, such as 25.00/month",
    )
    new.add_argument("--rpm", type=_read_count, metavar="N", help="requests per minute")
    new.add_argument("--tpm", type=_read_count, metavar="N", help="tokens per minute")
    new.add_argument("--concurrent", type=_read_count, metavar="N", help="requests in progress")
    new.add_argument(
        "--expires",
        type=_read_expiry,
        metavar="WHEN",
        help="a period such as 12h, 30d or 4w, or a UTC time such as 2027-01-31T12:00",
    )
    parser.epilog = "Works on the store of [store] url. Processes notice a change within 1 s."


def run(options: argparse.Namespace) -> int:
    """Open the store, and make, list or revoke keys."""
    config = load_config(options)
    store = make_store(config.store)
    if store is None:
        raise ConfigError([NO_STORE])
    if options.action != "list" and not _NAME.fullmatch(options.name or ""):
        raise ConfigError([f"Write a NAME of letters, digits and . _ @ - to {options.action}."])
    try:
        _open(store)
        if options.action == "create":
            _create(options, config, store)
        elif options.action == "revoke":
            _revoke(options.name, config, store)
        else:
            _print_keys(store)
    finally:
        store.close()
    return 0


def _open(store: Store) -> None:
    try:
        store.open()
    except Exception as error:  # noqa: BLE001 - a store of a third party may raise anything
        raise ConfigError([f"The store cannot be used: {error}"]) from None


def _create(options: argparse.Namespace, config: Config, store: Store) -> None:
    if options.name in config.keys:
        raise ConfigError([f"[keys.{options.name}] is in the config. Choose another name."])
    if config.gateway.auth != "keys":
        raise ConfigError([f'[gateway] auth = "{config.gateway.auth}" uses no keys.'])
    registry = Gateway(config).models
    _check_providers([*options.only, *options.ignore], registry)
    text = make_key()
    key = StoredKey(
        name=options.name,
        digest=digest_key(text.encode()),
        created=time.time(),
        expires=options.expires,
        models=_resolve_models(options.models, registry),
        debug=options.debug,
        only=options.only,
        ignore=options.ignore,
        limits=_make_limits(options),
        budget=options.budget,
    )
    if not store.put_key(key.name, key.encode()):
        raise ConfigError(
            [f"There is a key {key.name} already. Revoke it, or choose another name."]
        )
    print(text)
    print("The key is not shown again; the store has its SHA-256 only.", file=sys.stderr)


def _check_providers(names: list[str], registry: ModelRegistry) -> None:
    """Refuse names of providers that do not exist: a typo in --ignore would ignore nothing.

    Raises:
        ConfigError: a name is unknown.
    """
    unknown = [name for name in names if not is_known(name, registry.known_names)]
    if unknown:
        advice = did_you_mean(unknown[0], list(registry.providers))
        raise ConfigError([f"unknown provider {echo(unknown[0])}{advice}"])


def _resolve_models(names: list[str] | None, registry: ModelRegistry) -> list[str] | None:
    """Return the public names of models, so that aliases of a name are allowed or not with it."""
    if names is None:
        return None
    return sorted({registry.resolve(name).name for name in names})


def _make_limits(options: argparse.Namespace) -> RateLimits | None:
    limits = RateLimits(
        requests_per_minute=options.rpm,
        tokens_per_minute=options.tpm,
        concurrent_requests=options.concurrent,
    )
    return None if limits == RateLimits() else limits


def _revoke(name: str, config: Config, store: Store) -> None:
    if not store.drop_key(name):
        more = " It is a table of the config; remove it there." if name in config.keys else ""
        raise ConfigError([f"The store has no key {name}.{more}"])
    print(f"revoked: {name}")


def _print_keys(store: Store) -> None:
    _, values = store.read_keys("")
    print_table(
        ("NAME", "CREATED", "EXPIRES", "MODELS", "PROVIDERS", "DEBUG", "BUDGET", "LIMITS"),
        [_describe(each, time.time()) for each in decode_keys(values or ())],
    )


def _describe(key: StoredKey, now: float) -> tuple[str, ...]:
    expires = "never" if key.expires is None else _format_time(key.expires)
    limits = msgspec.structs.asdict(key.limits) if key.limits else {}
    return (
        key.name,
        _format_time(key.created),
        f"{expires} (expired)" if key.is_expired(now) else expires,
        ",".join(key.models) if key.models is not None else "all",
        _describe_providers(key),
        "as [gateway]" if key.debug is None else str(key.debug).lower(),
        f"{key.budget.usd}/{key.budget.per}" if key.budget else "none",
        " ".join(f"{name}={value}" for name, value in limits.items() if value) or "none",
    )


def _describe_providers(key: StoredKey) -> str:
    only = f"only {','.join(key.only)}" if key.only else ""
    ignore = f"not {','.join(key.ignore)}" if key.ignore else ""
    return " ".join(filter(None, (only, ignore))) or "all"


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")


def _read_count(text: str) -> int:
    try:
        return msgspec.convert(int(text), RateLimits.__annotations__["requests_per_minute"])
    except (ValueError, msgspec.ValidationError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number") from None


def _read_budget(text: str) -> Budget:
    usd, _, per = text.partition("/")
    try:
        return msgspec.convert({"usd": usd, "per": per}, Budget)
    except msgspec.ValidationError as error:
        message = f"{text!r} is not USD/PER, such as 25.00/month: {error}"
        raise argparse.ArgumentTypeError(message) from None


def _read_expiry(text: str) -> float:
    """Return the seconds since 1970 of a time, or of the end of a period from now."""
    if period := _PERIOD.fullmatch(text):
        later = datetime.now(UTC) + timedelta(**{UNITS[period[2]]: int(period[1])})
        return later.timestamp()
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is neither a period such as 30d nor a time such as 2027-01-31"
        raise argparse.ArgumentTypeError(message) from None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    if when.timestamp() <= time.time():
        raise argparse.ArgumentTypeError(f"{text!r} is in the past")
    return when.timestamp()


COMMAND: Final = Command(
    name="keys",
    help="make, list or revoke API keys in the store",
    run=run,
    add_options=add_options,
)
