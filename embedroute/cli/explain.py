"""``embedroute explain``: prints how a request would be served, without an upstream call."""

import argparse
from collections.abc import Sequence
from typing import Final

import msgspec

from embedroute.auth import Caller
from embedroute.cache import FULL_USE
from embedroute.cli.parser import Command, make_gateway
from embedroute.errors import InvalidRequest
from embedroute.protocol import make_request, response_bodies
from embedroute.runtime import fairness
from embedroute.server import explain

OPERATOR: Final = Caller(name="explain", debug=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``explain``."""
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="an input of the request")
    parser.add_argument("--model", required=True, help="the model of the request")
    parser.add_argument("--dimensions", type=int, help="the dimensions of the request")
    parser.add_argument(
        "--provider", metavar="JSON", help='preferences, as in {"sort": "price"}, or one name'
    )


def run(options: argparse.Namespace) -> int:
    """Print the endpoints in the order in which they would be tried, and those that are not."""
    gateway = make_gateway(options)
    fields: dict[str, object] = {
        "input": options.texts,
        "model": options.model,
        "dimensions": options.dimensions,
        "provider": _read_provider(options.provider),
    }
    request = make_request(fields, gateway.active.limits)
    print_plan(fairness.finished(explain(gateway, request, OPERATOR, FULL_USE)))
    return 0


def print_plan(plan: response_bodies.Plan) -> None:
    """Print a plan as lines of text."""
    inputs = plan.inputs
    print(f"{plan.model}: {inputs.count} inputs, about {inputs.estimated_tokens} tokens")
    for place, endpoint in enumerate(plan.order, start=1):
        print(f"  {place}. {_describe(endpoint)}")
    for dropped in plan.filtered:
        print(f"  -  {dropped.provider} ({dropped.model}): {dropped.filter}: {dropped.reason}")
    if plan.fallback is not None:
        print(f"  if all fail: the model {plan.fallback}")


def _describe(endpoint: response_bodies.PlanEndpoint) -> str:
    calls = len(endpoint.chunks)
    price = endpoint.price.get("prompt")
    facts: Sequence[str] = (
        f"{calls} call" if calls == 1 else f"{calls} calls",
        "price unknown" if price is None else f"${price} per million tokens",
        "" if endpoint.cost is None else f"costs ${endpoint.cost}",
    )
    return f"{endpoint.provider} ({endpoint.model}): {', '.join(filter(None, facts))}"


def _read_provider(text: str | None) -> object:
    """Return preferences, or the name of a provider.

    Raises:
        InvalidRequest: the text begins like JSON, and is not valid.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"--provider is not valid JSON: {error}.") from None


COMMAND: Final = Command(
    name="explain",
    help="print how a request would be served, without an upstream call",
    run=run,
    add_options=add_options,
)
