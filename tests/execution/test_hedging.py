"""A further call beside one that takes longer than usual: which, when, and what is recorded."""

import logging

import anyio
import pytest

from embedroute import Config, Gateway, Provider
from embedroute.errors import UpstreamUnavailable
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.elapsed import measured

pytestmark = pytest.mark.anyio

WIDTH = 8
LONG = 60.0
WARM = [0.0, 0.0]


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
            word = record.getMessage().removeprefix("upstream call ").partition(" ")[0]
            found.append((record.endpoint[0], word))
    return found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(LONG, 0.0, [("b", "completed"), ("a", "cancelled")], id="the second"),
        pytest.param(0.3, LONG, [("a", "completed"), ("b", "cancelled")], id="the first"),
        pytest.param(failing(0.2), 0.4, [("a", "failed"), ("b", "completed")], id="first fails"),
        pytest.param(0.4, failing(0.0), [("b", "failed"), ("a", "completed")], id="second fails"),
    ],
)
async def test_the_first_answer_of_two_calls_wins(caplog, first, second, expected):
    a, b = scripted(*WARM, first, LONG), scripted(second)
    gateway = await warmed(a, b, endpoint={"attempt_timeout": 30.0})
    caplog.set_level(logging.INFO, logger="embedroute.calls")

    async with measured() as elapsed:
        await embed(gateway, "x")

    assert ends(caplog)[:2] == expected
    assert elapsed.ticks < 2


async def test_a_model_with_one_endpoint_is_hedged_there(caplog):
    a = scripted(*WARM, LONG)
    gateway = await warmed(a)
    caplog.set_level(logging.INFO, logger="embedroute.calls")

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
    a = scripted(*WARM, 0.3)
    gateway = await warmed(a, **fields)

    await embed(gateway, "x")

    assert len(a.batches) == len(WARM) + 1


async def test_a_cancelled_call_frees_its_slot_and_counts_as_no_failure():
    a, b = scripted(*WARM, LONG), scripted()
    gateway = await warmed(a, b, endpoint={"max_concurrent": 1})
    await embed(gateway, "x")

    async with measured() as elapsed:
        await embed(gateway, "y")

    assert elapsed.ticks < 2
    assert [len(WARM) + 2, 1] == [len(a.batches), len(b.batches)]
