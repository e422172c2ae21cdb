"""``embedroute cache``: shows and removes the vectors in the store."""

import argparse
from typing import Final

from embedroute.cli.parser import Command, load_config
from embedroute.cli.table import print_table
from embedroute.errors import ConfigError
from embedroute.stores import Store, make_store

NO_STORE: Final = (
    "[store] url is not set, so the vectors are in the memory of each process. "
    "They are gone when it ends."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cache``."""
    parser.add_argument(
        "action",
        choices=("stats", "purge"),
        help="stats: count the vectors of each model; purge: remove them",
    )
    parser.add_argument("--model", metavar="NAME", help="only the vectors of this model")
    parser.epilog = (
        "Works on the store of [store] url. Running processes keep what they have in memory."
    )


def run(options: argparse.Namespace) -> int:
    """Open the store, and print its statistics or remove vectors."""
    store = make_store(load_config(options).store)
    if store is None:
        raise ConfigError([NO_STORE])
    try:
        store.open()
        if options.action == "purge":
            print(f"removed: {store.purge_vectors(options.model)}")
        else:
            _print_counts(store, options.model)
    except Exception as error:  # noqa: BLE001 - a store of a third party may raise anything
        raise ConfigError([f"The store cannot be used: {error}"]) from None
    finally:
        store.close()
    return 0


def _print_counts(store: Store, model: str | None) -> None:
    rows = [each for each in store.count_vectors() if model in {None, each.model}]
    print_table(
        ("MODEL", "VECTORS", "BYTES"),
        [(each.model, str(each.entries), str(each.bytes)) for each in rows],
    )


COMMAND: Final = Command(
    name="cache",
    help="show or remove the vectors in the store",
    run=run,
    add_options=add_options,
)
