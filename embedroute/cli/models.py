"""``embedroute models``: lists the models that a config serves."""

import argparse
from typing import Final

from embedroute.cli.parser import Command, make_gateway
from embedroute.cli.table import print_table
from embedroute.server import models


def run(options: argparse.Namespace) -> int:
    """Print each model with its dimensions, providers and lowest price."""
    routes = make_gateway(options).directory.routes.values()
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


COMMAND: Final = Command(name="models", help="list the models that a config serves", run=run)
