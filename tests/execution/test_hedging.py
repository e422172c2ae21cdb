"""A further call beside one that takes longer than usual: which, when, and what is recorded."""

import logging

import anyio
import pytest

from embedroute import Config, Gateway, Provider
from embedroute.errors import ConnectError, UpstreamUnavailable
from embedroute.routing import BreakerPolicy, RetryPolicy, State
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.virtual_time import virtual_loop

pytestmark = pytest.mark.anyio

WIDTH = 8
LONG = 60.0
WARM = [0.1, 0.1]
"""Seconds of the first calls. A call that takes six times as long is hedged."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_loop(request.param)


async def fail_after(seconds):
    await anyio.sleep(seconds)
    raise UpstreamUnavailable("502", upstream_status=502)


def failing(seconds):
    return lambda _: fail_after(seconds)


def gateway_of(*backends, hedge=True, endpoint=None, **model):
    names = "abc"[: len(backends)]
    return Gateway(
        Config(
            gateway={"auth": "open", "deadline": 5.0},
            cache={"bytes": 0},
            providers={
                name: Provider(backend=backend)
                for name, backend in zip(names, backends, strict=True)
            },
            models={
                "m": {
                    "dimensions": WIDTH,
                    "hedge": hedge,
                    "endpoints": [
                        {"provider": name, "price": 1.0, **(endpoint or {})} for name in names
                    ],
                    **model,
                }
            },
        ),
        retries=RetryPolicy(attempts=1, repeats=0),
        breaker=BreakerPolicy(failures=1),
        clock=anyio.current_time,
    )


def scripted(*script):
    return ScriptedBackend(script=script, width=WIDTH)


async def embed(gateway, text):
    answer = await gateway.embed([text], model="m", provider={"order": ["a"]})
    assert answer.vectors.tolist() == [expected_vector(text, WIDTH).tolist()]
    return answer


async def warmed(*backends, **fields):
    """Return a gateway that knows the usual time of a call to its first endpoint."""
    gateway = gateway_of(*backends, **fields)
    for number in range(len(WARM)):
        await embed(gateway, f"warm {number}")
    return gateway


def ends(caplog):
    """Return how the calls ended: pairs of their provider and what the log says."""
    found = []
    for record in caplog.records:
        if record.name == "embedroute.calls":
            word = record.event.removeprefix("upstream call ").partition(" ")[0]
            found.append((record.endpoint[0], word))
    return found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(LONG, 0.0, [("b", "completed"), ("a", "cancelled")], id="the second"),
        pytest.param(0.9, LONG, [("a", "completed"), ("b", "cancelled")], id="the first"),
        pytest.param(failing(0.9), 0.5, [("a", "failed"), ("b", "completed")], id="first fails"),
        pytest.param(0.9, failing(0.0), [("b", "failed"), ("a", "completed")], id="second fails"),
    ],
)
async def test_the_first_answer_of_two_calls_wins(caplog, first, second, expected):
    a, b = scripted(*WARM, first, LONG), scripted(second)
    gateway = await warmed(a, b, endpoint={"attempt_timeout": 30.0})
    caplog.set_level(logging.DEBUG, logger="embedroute.calls")

    began = anyio.current_time()
    await embed(gateway, "x")

    assert ends(caplog) == expected
    assert anyio.current_time() - began < 1.5


async def test_a_model_with_one_endpoint_is_hedged_there(caplog):
    a = scripted(*WARM, LONG)
    gateway = await warmed(a)
    caplog.set_level(logging.DEBUG, logger="embedroute.calls")

    await embed(gateway, "x")

    assert ends(caplog) == [("a", "completed"), ("a", "cancelled")]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"hedge": False}, id="without hedge"),
        pytest.param({"endpoint": {"micro_batch_ms": 1.0}}, id="merged calls"),
        pytest.param({"endpoint": {"max_concurrent": 1}}, id="one endpoint without room"),
    ],
)
async def test_some_calls_are_never_hedged(fields):
    a = scripted(*WARM, 0.9)
    gateway = await warmed(a, **fields)

    await embed(gateway, "x")

    assert len(a.batches) == len(WARM) + 1


async def test_a_cancelled_call_frees_its_slot_and_counts_as_no_failure():
    a, b = scripted(*WARM, LONG), scripted()
    gateway = await warmed(a, b, endpoint={"max_concurrent": 1})
    await embed(gateway, "x")

    began = anyio.current_time()
    await embed(gateway, "y")

    assert anyio.current_time() - began < 1.5
    assert [len(WARM) + 2, 1] == [len(a.batches), len(b.batches)]


async def test_a_half_open_endpoint_is_not_hedged():
    """Its calls are probes: the breaker has not admitted a further one."""
    a = scripted(*WARM, ConnectError("refused"), 0.9)
    gateway = await warmed(a)
    with pytest.raises(UpstreamUnavailable):
        await embed(gateway, "x")
    health = gateway.healths.get(gateway.models.routes["m"].candidates[0])
    assert health.state(anyio.current_time()) is State.OPEN
    await anyio.sleep(60)

    await embed(gateway, "y")

    assert len(a.batches) == len(WARM) + 2


async def test_only_calls_that_were_answered_are_billed():
    a, b = scripted(*WARM, LONG), scripted()
    gateway = await warmed(a, b)

    alone = await embed(await warmed(scripted()), "x")
    hedged = await embed(gateway, "x")

    assert [len(a.batches), len(b.batches)] == [len(WARM) + 1, 1]
    assert alone.trace.cost == hedged.trace.cost > 0
