"""An input that breaks its server, or confuses its response, fails no other input.

The upstream is a real server. For every call with a bad text it resets the connection, answers with
a status that usually is the endpoint's own, or leaves out a row.
"""

import time

import numpy as np
import pytest

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.routing import State
from tests.fault_upstream import Upstream, vectors_of

FAILURES = (
    "status_424",
    "status_502",
    "status_520",
    "status_529",
    "reset_before_headers",
    "missing_row",
)
OVERLOAD = {"status_502"}
"""Beside other calls in flight, such an answer may mean overload. Then it blames no input."""


def gateway_before(upstream, **retries):
    return Gateway(
        Config(
            gateway={"auth": "open", "deadline": 30.0, "retries": retries},
            providers={
                "a": Provider(
                    backend="openai", options={"base_url": upstream.url, "api_key": "sk-1"}
                )
            },
            models={"m": {"endpoints": [{"provider": "a"}]}},
        ),
        environ={},
    )


async def outcome_of(gateway, texts):
    try:
        return await gateway.embed(texts, model="m")
    except EmbedrouteError as error:
        return error


def state(gateway):
    [candidate] = gateway.models.routes["m"].candidates
    return gateway.healths.get(candidate).state(time.monotonic())


@pytest.mark.anyio
@pytest.mark.parametrize("failure", FAILURES)
async def test_an_input_that_breaks_its_server_fails_no_other_input(failure):
    with Upstream(lambda ask: failure if "bad" in ask.inputs else "honest") as upstream:
        gateway = gateway_before(upstream)
        texts = ["a", "b", "bad", "c", "d"]
        good = ["a", "b", "c", "d"]
        async with gateway.lifespan():
            error = await outcome_of(gateway, texts)
            calls = len(upstream.requests)
            embeddings = await outcome_of(gateway, good)

    is_unexplained = failure in OVERLOAD and (error.status, error.code) == (502, None)
    if not is_unexplained:
        assert (error.status, error.code, error.param) == (400, "input_failed", "input[2]")
    assert np.array_equal(embeddings.vectors, vectors_of(good))
    # An unexplained failure may also leave one input without its vector in the cache.
    assert calls <= len(upstream.requests) <= calls + is_unexplained
    assert calls <= 6 + 2 * 3 + 2
    assert state(gateway) is State.CLOSED


@pytest.mark.anyio
async def test_no_call_is_made_during_the_retry_after_of_a_failure():
    """No half, and no harmless text either."""
    with Upstream(lambda ask: "busy_503" if "bad" in ask.inputs else "honest") as upstream:
        gateway = gateway_before(upstream, longest_wait=0.1)
        async with gateway.lifespan():
            error = await outcome_of(gateway, ["a", "b", "bad", "c"])

    assert error.status == 502
    assert [["a", "b", "bad", "c"]] == [list(ask.inputs) for ask in upstream.requests]


@pytest.mark.anyio
@pytest.mark.parametrize("failure", ["status_503", "reset_before_headers"])
async def test_an_outage_is_not_bisected(failure):
    """At most one harmless text a second is sent in addition, until the breaker opens."""
    with Upstream(failure) as upstream:
        gateway = gateway_before(upstream)
        async with gateway.lifespan():
            for number in range(10):
                error = await outcome_of(gateway, [f"{number} {index}" for index in range(4)])
                assert error.status in {502, 503}

    texts = [text for ask in upstream.requests for text in ask.inputs]
    assert all(len(ask.inputs) in {1, 4} for ask in upstream.requests)
    assert {text for text in texts if " " not in text} <= {"hello"}
    assert len(upstream.requests) <= 20
