"""Whether endpoints that are said to give the same vectors really do."""

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider
from embedroute.backend import Vectors
from embedroute.errors import ModelNotFound, Unavailable
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.verify import PROBES, Thresholds, judge, verify

pytestmark = pytest.mark.anyio

SAME = ScriptedBackend()


def turned(by):
    """A backend whose vectors lean away from the right ones by a cosine of about ``by``."""

    def answer(batch):
        right = np.stack([expected_vector(item) for item in batch.inputs]).astype(np.float64)
        other = np.roll(right, 1, axis=1)
        other -= (other * right).sum(axis=1, keepdims=True) * right
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return Vectors((by * right + (1 - by**2) ** 0.5 * other).astype(np.float32), 3)

    return ScriptedBackend(then=answer)


def gateway(*backends):
    providers = {f"p{at}": Provider(backend=backend) for at, backend in enumerate(backends)}
    models = {"m": {"endpoints": [{"provider": slug} for slug in providers]}}
    return Gateway(Config(gateway={"auth": "open"}, providers=providers, models=models))


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (ScriptedBackend(), "verified"),
        (turned(0.99999), "verified"),
        (turned(0.9995), "near"),
        (turned(0.99), "different"),
        (turned(-1.0), "different"),
        (ScriptedBackend(width=128), "different"),
        (ScriptedBackend(then=Unavailable("down")), "different"),
    ],
)
async def test_two_endpoints_are_compared(other, verdict):
    """By the lowest cosine of all probes; what cannot be asked, or has another width, cannot be vouched for."""
    (found,) = await verify(gateway(ScriptedBackend(), other), "m")

    assert ("m", "p0:m", "p1:m", verdict) == (found.model, found.left, found.right, found.verdict)


async def test_the_figures_are_of_the_worst_probe():
    def one_wrong(batch):
        rows = np.stack([expected_vector(item) for item in batch.inputs])
        rows[3] = expected_vector("something else")
        return Vectors(rows, 3)

    (found,) = await verify(gateway(ScriptedBackend(), ScriptedBackend(then=one_wrong)), "m")

    assert found.cosine < 0.5
    assert found.difference > 0.05
    assert (f"{found.cosine:.6f}", f"{found.difference:.2e}") == (found.shown_cosine, found.shown_difference)


async def test_what_cannot_be_compared_has_no_figures():
    (found,) = await verify(gateway(ScriptedBackend(), ScriptedBackend(then=Unavailable("down"))), "m")

    assert ("-", "-") == (found.shown_cosine, found.shown_difference)


async def test_every_pair_is_compared_and_every_endpoint_asked_once():
    backends = [ScriptedBackend() for _ in range(3)]

    found = await verify(gateway(*backends), "m")

    assert [("p0:m", "p1:m"), ("p0:m", "p2:m"), ("p1:m", "p2:m")] == [(it.left, it.right) for it in found]
    assert [[list(PROBES)]] * 3 == [[list(batch.texts) for batch in it.batches] for it in backends]


async def test_neither_the_cache_nor_health_comes_between():
    """An answer from the cache would compare an endpoint with itself."""
    built = gateway(ScriptedBackend(), turned(0.5))
    await built.embed(list(PROBES), model="m")

    (first,), (second,) = await verify(built, "m"), await verify(built, "m")

    assert ("different", first) == (first.verdict, second)


async def test_a_model_that_nobody_knows_is_refused():
    with pytest.raises(ModelNotFound):
        await verify(gateway(SAME), "other")


@pytest.mark.parametrize(
    ("cosine", "verdict"),
    [
        (1.0, "verified"),
        (0.9999, "verified"),
        (0.99989, "near"),
        (0.999, "near"),
        (0.99899, "different"),
        (-1.0, "different"),
        (float("nan"), "different"),
    ],
)
def test_thresholds_are_the_least_that_counts(cosine, verdict):
    assert verdict == judge(cosine, Thresholds())
    assert "verified" == judge(0.5, Thresholds(verified=0.5, near=0.1))
