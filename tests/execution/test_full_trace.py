"""Tests that a full trace holds values that a summary leaves out, and no secrets."""

import json

import pytest

from embedroute.errors import UpstreamUnavailable
from embedroute.testing import ScriptedBackend
from tests.fault_upstream import Upstream
from tests.regressions.requesting import ONCE, ask, at, gateway_of

pytestmark = pytest.mark.anyio

SECRET = "sk-planted-secret"


def traced(level):
    return {"debug": {"trace": True, "trace_level": level}}


def calls_in(answer):
    return [event for event in answer.json["trace"] if event["stage"] == "call"]


async def test_a_full_trace_names_the_inputs_and_the_price_of_each_attempt():
    """Positions are those of the client: the cache, duplicates and chunks do not shift them."""
    gateway = gateway_of(
        {"a": ScriptedBackend(width=8)},
        endpoints={"a": {"price": {"prompt": "0.0000001"}, "accepts": {"max_inputs": 2}}},
        debug=True,
    )
    await ask(gateway, input=["cached"])

    answer = await ask(gateway, input=["one", "cached", "two", "one", "three"], **traced("full"))

    calls = calls_in(answer)
    assert [[0, 2, 3], [4]] == sorted(call["inputs"] for call in calls)
    assert [{"prompt": "0.0000001"}] * 2 == [call["price"] for call in calls]


async def test_a_full_trace_holds_the_message_of_a_failure():
    failing = ScriptedBackend(width=8, then=UpstreamUnavailable("the disk is full"))
    gateway = gateway_of({"a": failing, "b": ScriptedBackend(width=8)}, retries=ONCE, debug=True)

    answer = await ask(gateway, input="x", provider={"order": ["a", "b"]}, **traced("full"))

    assert ["Provider a: the disk is full", None] == [
        call.get("message") for call in calls_in(answer)
    ]
    assert [[0], [0]] == [call["inputs"] for call in calls_in(answer)]


async def test_a_summary_has_neither_messages_nor_prices_nor_inputs_nor_dropped_values():
    failing = ScriptedBackend(width=8, then=UpstreamUnavailable("the disk is full"))
    gateway = gateway_of(
        {"a": failing},
        endpoints={"a": {"price": 77, "accepts": {"user": False}}},
        retries=ONCE,
        debug=True,
    )
    request = {"input": "x", "user": "somebody", "embedding_options": {"google": {"title": "T-1"}}}

    full, summary = [
        await ask(gateway, **request, **traced(level)) for level in ("full", "summary")
    ]

    for value in ("the disk is full", "77", "somebody", "T-1"):
        assert value in json.dumps(full.json["trace"])
        assert value not in json.dumps(summary.json["trace"])
    plain = [event["action"] for event in summary.json["trace"]]
    assert plain == [event["action"] for event in full.json["trace"]]
    assert not any({"inputs", "price", "message"} & event.keys() for event in summary.json["trace"])


@pytest.mark.parametrize("level", ["full", "summary"])
async def test_a_trace_never_holds_the_key_of_an_upstream(level):
    with Upstream("status_401") as upstream:
        gateway = gateway_of(
            {"a": at(upstream, api_key=SECRET)}, endpoints={"a": {"price": 1}}, debug=True
        )
        async with gateway.lifespan():
            answer = await ask(gateway, input="x", **traced(level))

    assert 1 == len(calls_in(answer))
    assert SECRET not in answer.body.decode()
