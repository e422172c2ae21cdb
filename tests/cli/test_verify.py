"""Tests the comparison of endpoints that are declared to return the same vectors."""

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider
from embedroute.backend import Vectors
from embedroute.cli.verify import PROBES, Thresholds, classify, verify
from embedroute.errors import (
    InvalidVector,
    ModelNotFound,
    NoEligibleProvider,
    UpstreamAuthError,
    UpstreamUnavailable,
)
from embedroute.testing import ScriptedBackend, expected_vector

pytestmark = pytest.mark.anyio

SAME = ScriptedBackend()


def turned(by):
    """A backend whose vectors have a cosine of about ``by`` with the expected ones."""

    def answer(batch):
        right = np.stack([expected_vector(item) for item in batch.inputs]).astype(np.float64)
        other = np.roll(right, 1, axis=1)
        other -= (other * right).sum(axis=1, keepdims=True) * right
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return Vectors((by * right + (1 - by**2) ** 0.5 * other).astype(np.float32), 3)

    return ScriptedBackend(then=answer)


def scaled(by):
    """A backend whose vectors are ``by`` times as long as the expected ones."""
    return ScriptedBackend(
        then=lambda batch: Vectors(
            np.float32(by) * np.stack([expected_vector(item) for item in batch.inputs]), 3
        )
    )


def gateway(*backends, stage="stable", **lists):
    providers = {
        f"p{at}": Provider(backend=backend, stage=stage) for at, backend in enumerate(backends)
    }
    models = {"m": {"endpoints": [{"provider": slug} for slug in providers]}}
    return Gateway(Config(gateway={"auth": "open", **lists}, providers=providers, models=models))


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        (ScriptedBackend(), "verified"),
        (turned(0.99999), "verified"),
        (turned(0.9995), "near"),
        (turned(0.99), "different"),
        (turned(-1.0), "different"),
        (scaled(1.00005), "verified"),
        (scaled(1.0005), "near"),
        (scaled(0.9995), "near"),
        (scaled(2.0), "different"),
        (scaled(0.01), "different"),
        (ScriptedBackend(width=128), "different"),
        (ScriptedBackend(then=UpstreamUnavailable("down")), "unreachable"),
        (ScriptedBackend(then=UpstreamAuthError("no such key")), "unreachable"),
        (ScriptedBackend(then=InvalidVector("NaN")), "different"),
    ],
)
async def test_two_endpoints_are_compared(other, verdict):
    """By the lowest cosine and norm ratio of all probes.

    Another size is "different"; of an endpoint without vectors nothing is known.
    """
    (found,) = await verify(gateway(ScriptedBackend(), other), "m")

    assert ("m", "p0:m", "p1:m", verdict) == (found.model, found.left, found.right, found.verdict)


async def test_cosine_and_difference_are_those_of_the_worst_probe():
    def one_wrong(batch):
        rows = np.stack([expected_vector(item) for item in batch.inputs])
        rows[3] = expected_vector("something else")
        return Vectors(rows, 3)

    (found,) = await verify(gateway(ScriptedBackend(), ScriptedBackend(then=one_wrong)), "m")

    assert found.cosine < 0.5
    assert found.difference > 0.05
    assert (f"{found.cosine:.6f}", f"{found.difference:.2e}") == (
        found.shown_cosine,
        found.shown_difference,
    )


DOWN = ScriptedBackend(then=UpstreamUnavailable("no route"))


@pytest.mark.parametrize(
    ("one", "other", "figures", "why"),
    [
        (SAME, SAME, ("1.000000", "0.00e+00"), ""),
        (SAME, turned(0.5), ("0.500000", None), ""),
        (SAME, scaled(2.0), ("1.000000", None), "ratio of the norms is 1 : 2"),
        (scaled(3.0), scaled(2.0), ("1.000000", None), "ratio of the norms is 1 : 1.5"),
        (SAME, DOWN, ("-", "-"), "p1:m failed: 'Provider p1: no route'"),
        (
            DOWN,
            DOWN,
            ("-", "-"),
            "p0:m failed: 'Provider p0: no route'; p1:m failed: 'Provider p1: no route'",
        ),
    ],
)
async def test_failures_and_different_norms_are_reported_as_the_reason(one, other, figures, why):
    """A verdict "different" may mean a failure, and a cosine does not show a different norm."""
    (found,) = await verify(gateway(one, other), "m")

    assert figures == (found.shown_cosine, found.shown_difference if figures[1] else None)
    assert why == found.reason


async def test_every_pair_is_compared_and_every_endpoint_called_once():
    backends = [ScriptedBackend() for _ in range(3)]

    found = await verify(gateway(*backends), "m")

    assert [("p0:m", "p1:m"), ("p0:m", "p2:m"), ("p1:m", "p2:m")] == [
        (pair.left, pair.right) for pair in found
    ]
    assert [[list(PROBES)]] * 3 == [
        [list(batch.texts) for batch in backend.batches] for backend in backends
    ]


async def test_verify_bypasses_the_cache():
    """A cached vector would compare an endpoint with itself."""
    built = gateway(ScriptedBackend(), turned(0.5))
    await built.embed(list(PROBES), model="m")

    (first,), (second,) = await verify(built, "m"), await verify(built, "m")

    assert ("different", first) == (first.verdict, second)


@pytest.mark.parametrize(
    "kept_out", [{"stage": "alpha"}, {"only": ["p0"]}, {"ignore": ["p1"]}, {"ignore": ["p0", "p1"]}]
)
async def test_endpoints_excluded_by_stage_or_lists_are_compared_too(kept_out):
    """An endpoint is verified before it serves clients.

    Excluding it does not change its vectors.
    """
    (same,) = await verify(gateway(SAME, SAME, **kept_out), "m")
    (other,) = await verify(gateway(SAME, turned(0.5), **kept_out), "m")

    assert [("verified", ""), ("different", "")] == [
        (same.verdict, same.reason),
        (other.verdict, other.reason),
    ]


async def test_verify_does_not_change_which_endpoints_requests_may_use():
    built = gateway(SAME, SAME, ignore=["p0", "p1"])
    await verify(built, "m")

    with pytest.raises(NoEligibleProvider, match="'ignore'"):
        await built.embed("text", model="m", provider={"include_alpha": True})


async def test_verify_of_an_unknown_model_fails():
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
def test_thresholds_are_inclusive_minimums(cosine, verdict):
    assert verdict == classify(cosine, Thresholds())
    assert "verified" == classify(0.5, Thresholds(verified=0.5, near=0.1))
