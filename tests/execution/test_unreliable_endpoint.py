"""An endpoint that fails at random blames no input for its failures."""

import random
from collections import Counter

import numpy as np
import pytest

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Accepts, Vectors
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.upstream_errors import classify_response

WIDTH = 8
RETRIES = RetryPolicy(repeats=0, first_wait=0.0, longest_wait=0.0)


def gateway_before(fails, most=None):
    """Make a gateway before an endpoint that fails if ``fails(texts)`` returns a status."""

    class Endpoint(ScriptedBackend):
        accepts = Accepts(max_inputs=most)

    def answer(batch):
        texts = list(batch.texts)
        if status := fails(texts):
            body = b"<!doctype html>" if status == 403 else b'{"error":{"message":"broken"}}'
            raise classify_response(status, {}, body)
        return Vectors(np.stack([expected_vector(text, WIDTH) for text in texts]))

    config = Config(
        gateway={"auth": "open", "deadline": 30.0},
        cache={"bytes": 0},
        providers={"a": Provider(backend=Endpoint(then=answer, width=WIDTH))},
        models={"m": {"dimensions": WIDTH, "endpoints": [{"provider": "a"}]}},
    )
    return Gateway(config, retries=RETRIES, environ={})


async def outcome_of(gateway, texts):
    try:
        embeddings = await gateway.embed(texts, model="m")
    except EmbedrouteError as error:
        return error.status, error.code, error.retryable
    assert embeddings.vectors.tolist() == [expected_vector(each, WIDTH).tolist() for each in texts]
    return 200


@pytest.mark.anyio
@pytest.mark.uncounted
@pytest.mark.parametrize("most", [None, 1], ids=["bisected", "one input per call"])
async def test_random_failures_blame_no_input(most):
    """One call in three fails. Only the first failures, before one is known to be random, may."""
    chance = random.Random(1)
    gateway = gateway_before(lambda _texts: 500 if chance.random() < 1 / 3 else 0, most)

    outcomes = Counter()
    for number in range(600):
        outcomes[await outcome_of(gateway, [f"{number} {index}" for index in range(4)])] += 1

    blamed = outcomes.pop((400, "input_failed", True), 0)
    assert blamed <= 2
    assert set(outcomes) == {200, (502, None, True)}


@pytest.mark.anyio
@pytest.mark.parametrize("status", [500, 403])
async def test_an_input_is_not_blamed_after_a_random_failure(status):
    """The first call and its repetition fail, and both halves are then answered."""
    calls = []

    def fails(texts):
        calls.append(texts)
        return 500 if len(calls) <= 2 else status * ("bad" in texts)

    gateway = gateway_before(fails)

    assert await outcome_of(gateway, ["a", "b"]) == 200
    assert await outcome_of(gateway, ["bad", "c", "d", "e"]) == (502, None, True)


@pytest.mark.anyio
async def test_an_input_is_blamed_if_no_failure_was_random():
    gateway = gateway_before(lambda texts: 500 * ("bad" in texts))

    for _ in range(3):
        assert (await outcome_of(gateway, ["bad", "a", "b", "c"]))[:2] == (400, "input_failed")
        assert await outcome_of(gateway, ["a", "b", "c"]) == 200


@pytest.mark.anyio
async def test_the_input_of_a_chunk_is_tried_again_before_it_is_blamed():
    """It fails three times, and is then embedded."""
    calls = Counter()

    def fails(texts):
        calls[texts[0]] += 1
        return 500 * (texts == ["slow to start"] and calls[texts[0]] <= 3)

    gateway = gateway_before(fails, most=1)

    assert await outcome_of(gateway, ["a", "slow to start", "b"]) == 200
    assert calls == {"a": 1, "slow to start": 4, "b": 1, "hello": 1}


@pytest.mark.anyio
async def test_the_input_of_a_chunk_is_blamed_after_five_failures():
    calls = Counter()

    def fails(texts):
        calls[texts[0]] += 1
        return 500 * (texts == ["bad"])

    gateway = gateway_before(fails, most=1)

    assert (await outcome_of(gateway, ["a", "bad", "b"]))[:2] == (400, "input_failed")
    assert calls == {"a": 1, "bad": 5, "b": 1, "hello": 1}
