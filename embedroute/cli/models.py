"""``embedroute models``: lists the models that a config serves, or the whole catalogue."""

import argparse
from typing import Final

from embedroute.cli.parser import Command, make_gateway
from embedroute.cli.table import print_table
from embedroute.config import PRICED_ON, Listing, list_catalogue
from embedroute.server import models


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``models``."""
    parser.add_argument(
        "--all",
        action="store_true",
        help="list the shipped catalogue instead: every model at every provider, with its price, "
        "the date of the price, and the day on which the provider stops serving it",
    )
    parser.epilog = (
        "MODEL: the name for clients. DIMENSIONS: of its vectors. PROVIDERS: those that may serve "
        "it. USD/M: the lowest price of a million tokens, in US dollars. With --all: MODALITIES "
        "are the kinds of content, PRICED is the date of the price, and DEPRECATED the day on "
        "which the provider stops serving it. '?' is unknown, '-' is none."
    )


def run(options: argparse.Namespace) -> int:
    """Print each model with its dimensions, providers and lowest price."""
    if options.all:
        header = ("MODEL", "PROVIDER", "DIMENSIONS", "MODALITIES", "USD/M", "PRICED", "DEPRECATED")
        print_table(header, [_describe(listing) for listing in list_catalogue()])
        return 0
    routes = make_gateway(options).models.routes.values()
    cards = [models.describe_model(route) for route in routes]
    rows = [
        (
            card.id,
            str(card.dimensions or "?"),
            ",".join(card.providers),
            str(card.pricing.get("prompt", "?")),
        )
        for card in cards
    ]
    print_table(("MODEL", "DIMENSIONS", "PROVIDERS", "USD/M"), rows)
    return 0


def _describe(listing: Listing) -> tuple[str, ...]:
    price = listing.price
    return (
        listing.model,
        listing.provider,
        str(listing.dimensions),
        ",".join(listing.modalities),
        "?" if price is None else models.format_price(price),
        "-" if price is None else PRICED_ON.isoformat(),
        "-" if listing.deprecated is None else listing.deprecated.isoformat(),
    )


COMMAND: Final = Command(
    name="models",
    help="list the models that a config serves",
    run=run,
    add_options=add_options,
)
