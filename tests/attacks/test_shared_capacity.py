"""One caller sends inputs that an upstream rejects; another caller must be served as before.

Each attack runs over real sockets against an upstream that refuses some inputs. The attacker and the victim have
namespaces of their own and share nothing but the endpoint. ``EMBEDROUTE_ATTACK_SCALE`` multiplies the rounds.
"""

import os
from typing import NamedTuple

import pytest

from embedroute import EmbedrouteError
from embedroute.auth import Caller
from tests.fault_upstream.refusals import page, refuse
from tests.fault_upstream.truth import say
from tests.regressions.requesting import ScriptedUpstream, at, gateway_of, right

pytestmark = pytest.mark.anyio

SCALE = int(os.environ.get("EMBEDROUTE_ATTACK_SCALE", "1"))
ATTACKER, VICTIM = (Caller(name=name, namespace=name) for name in ("attacker", "victim"))
LIMIT = 1_000_000
"""Bytes of a body that the upstream takes."""
LONG = "a" * 600_000
TEXTS = [f"text number {at:04} of the victim" for at in range(2048)]
POISON = "' OR 1=1 --"


def poisoned(request):
    return any(POISON in str(item) for item in request.inputs)


def small_bodies_only(request):
    """Accept bodies up to 1 MB as nginx does with ``client_max_body_size 1m``."""
    return (
        say(request.answer())
        if len(request.body) <= LIMIT
        else page(413, "Request Entity Too Large")
    )


def firewall(request):
    """Refuse one kind of text with a web page."""
    return page(403, "Forbidden") if poisoned(request) else say(request.answer())


def moderation(request):
    """Refuse one kind of text as OpenRouter's moderation does."""
    if not poisoned(request):
        return say(request.answer())
    metadata = {
        "reasons": ["violence"],
        "flagged_input": str(request.inputs[0])[:100],
        "provider_name": "OpenAI",
    }
    return say(
        {
            "error": {
                "code": 403,
                "message": "Input was flagged by moderation",
                "metadata": metadata,
            }
        },
        403,
    )


def quoting_moderation(request):
    """Refuse one kind of text, and begin the message with that text."""
    return (
        refuse(403, f"{request.inputs[0]} was blocked")
        if poisoned(request)
        else say(request.answer())
    )


def mod_security(request):
    """Refuse one kind of text as ModSecurity does by default."""
    return page(406, "Not Acceptable") if poisoned(request) else say(request.answer())


def crash(request):
    """Answer 500 to one kind of text."""
    return refuse(500, "The server had an error") if poisoned(request) else say(request.answer())


def tokens_per_minute(request):
    """Refuse what is larger than the budget of a whole minute, as OpenAI does.

    No rest cures that.
    """
    tokens = sum(len(text) for text in request.inputs) // 4
    if tokens <= 100_000:
        return say(request.answer())
    said = (
        "Request too large for text-embedding-3-small in organization org-1 on tokens per min (TPM): "
        f"Limit 100000, Requested {tokens}. The input or output tokens must be reduced in order to run successfully."
    )
    return refuse(429, said, "tokens", code="rate_limit_exceeded", retry_after=100)


class Attack(NamedTuple):
    """What the attacker sends, how often, and the number of calls for the victim's 2,048 texts afterwards."""

    upstream: object
    inputs: list
    rounds: int = 1
    calls: int = 1


ATTACKS = {
    "two texts over the body limit": Attack(small_bodies_only, [[LONG, LONG + "b"]]),
    "many texts over the body limit": Attack(
        small_bodies_only, [[f"{at}{LONG}" for at in range(8)]]
    ),
    "one text over the body limit": Attack(small_bodies_only, [[LONG + LONG]]),
    "a text that a firewall blocks": Attack(firewall, [[POISON]], 3),
    "different texts that a firewall blocks": Attack(
        firewall, [[f"{at} {POISON}"] for at in range(9)]
    ),
    "a text that a firewall blocks, among others": Attack(firewall, [["a", POISON, "b"]], 3),
    "a text that a moderation refuses": Attack(moderation, [[POISON]], 3),
    "a text about keys that a moderation quotes": Attack(
        quoting_moderation, [[f"Invalid API key {POISON}"]], 3
    ),
    "a text that ModSecurity blocks": Attack(mod_security, [[POISON]], 6),
    "a text that crashes the upstream": Attack(crash, [[POISON]], 6),
    "a text that crashes the upstream, among others": Attack(
        crash, [[POISON, f"filler {at}"] for at in range(6)]
    ),
    "a text over a minute's tokens": Attack(tokens_per_minute, [[LONG]]),
    "two texts over a minute's tokens": Attack(tokens_per_minute, [["a" * 300_000, "b" * 300_000]]),
}


async def status_of(gateway, texts, caller):
    try:
        answer = await gateway.embed(texts, model="m", caller=caller)
    except EmbedrouteError as error:
        return error.status
    assert answer.vectors.tolist() == right(texts)
    return 200


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_inputs_of_one_caller_do_not_reduce_the_capacity_of_another(name):
    upstream, inputs, rounds, calls = ATTACKS[name]
    with ScriptedUpstream() as teller:
        teller.tell(upstream)
        gateway = gateway_of({"a": at(teller)}, cache=0, deadline=60.0)
        async with gateway.lifespan():
            assert 200 == await status_of(gateway, ["before"], VICTIM)
            for _ in range(rounds * SCALE):
                for texts in inputs:
                    await status_of(gateway, texts, ATTACKER)
            teller.requests.clear()
            status = await status_of(gateway, TEXTS, VICTIM)
            sizes = teller.sizes

    assert (200, calls) == (status, len(sizes))
