"""An endpoint that fails at random blames no input for its failures."""

import os
import random
from collections import Counter

import numpy as np
import pytest

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Accepts, Vectors
from embedroute.routing import RetryPolicy
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.upstream_errors import classify_response
from tests.support.slow import slow_unless

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


async def soak(share, most, requests, seed=1):
    """Send requests of four texts to an endpoint that fails a share of its calls at random.

    It fails every call with a "bad" text, and every tenth request has one. The first ten requests
    are not counted: until a random failure is known, a share of 1 % is assumed. Return the outcomes
    of the good requests and of those with a bad text.
    """
    chance = random.Random(seed)

    def fails(texts):
        return 500 * (any("bad" in text for text in texts) or chance.random() < share)

    gateway = gateway_before(fails, most)
    good, poisoned = Counter(), Counter()
    for number in range(requests + 10):
        texts = [f"{number} {index}" for index in range(4)]
        is_poisoned = number >= 10 and number % 10 == 0
        if is_poisoned:
            texts[number // 10 % 4] += " bad"
        outcome = await outcome_of(gateway, texts)
        if number >= 10:
            (poisoned if is_poisoned else good)[outcome] += 1
    return good, poisoned


BUSY = (429, "rate_limit_exceeded", True)
"""The budget for repeated calls is spent."""
NAMED = {0.02: 0.5, 0.05: 0.5, 0.1: 0.5, 0.2: 0.5, 0.35: 0.05, 0.5: 0.0}
"""Share of random failures → the least share of bad inputs that are named."""


@pytest.mark.anyio
@pytest.mark.uncounted
@pytest.mark.parametrize("most", [None, 1], ids=["bisected", "one input per call"])
@pytest.mark.parametrize("share", slow_unless({0.02, 0.35}.__contains__, NAMED))
@pytest.mark.thorough
async def test_random_failures_blame_no_input_and_bad_inputs_are_named(
    share, most, record_property
):
    """EMBEDROUTE_SOAK_REQUESTS is the number of requests."""
    requests = int(os.environ.get("EMBEDROUTE_SOAK_REQUESTS", "500"))

    good, poisoned = await soak(share, most, requests)

    assert set(good) <= {200, (502, None, True), BUSY}
    record_property("named", poisoned[400, "input_failed", False] / poisoned.total())
    assert set(poisoned) <= {(400, "input_failed", False), (502, None, True), BUSY}
    assert poisoned[400, "input_failed", False] >= NAMED[share] * poisoned.total()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [500, 403])
async def test_an_input_is_blamed_after_more_failures_if_one_failure_was_random(status):
    """The first call and its repetition fail, and both halves are then answered."""
    calls = []
    seen = Counter()

    def fails(texts):
        calls.append(texts)
        seen.update(texts)
        is_late = "late" in texts and seen["late"] <= 5
        return 500 if seen["a"] <= 2 else status * ("bad" in texts or is_late)

    gateway = gateway_before(fails)

    assert await outcome_of(gateway, ["a", "b"]) == 200
    for number in range(8):
        assert await outcome_of(gateway, [str(number)]) == 200
    calls.clear()
    assert (await outcome_of(gateway, ["bad", "c", "d", "e"]))[:2] == (400, "input_failed")
    assert 4 <= calls.count(["bad"]) <= 31
    assert await outcome_of(gateway, ["late", "f", "g", "h"]) == 200


def unreliable(fails, calls):
    """Fail the first calls with "a", "b" and "d" too."""

    def fails_too(texts):
        calls[tuple(texts)] += 1
        is_random = texts[0] in {"a", "b", "d"} and calls[tuple(texts)] == 1
        return 500 if is_random else fails(texts)

    return fails_too


@pytest.mark.anyio
@pytest.mark.parametrize(("most", "alone"), [(None, 4), (1, 5)])
async def test_an_endpoint_without_enough_answers_blames_no_input(most, alone):
    """Too many calls would be needed to exclude chance. Only a few are made."""
    calls = Counter()
    gateway = gateway_before(unreliable(lambda texts: 500 * ("bad" in texts), calls), most)

    for text in "abd":
        assert await outcome_of(gateway, [text]) == 200
    assert await outcome_of(gateway, ["bad", "c"]) == (502, None, True)
    assert calls["bad",] == alone


@pytest.mark.anyio
async def test_an_endpoint_without_enough_answers_teaches_no_limit():
    calls = Counter()
    gateway = gateway_before(unreliable(lambda texts: 500 * (len(texts) > 40), calls))
    texts = tuple(f"text {number}" for number in range(64))

    for text in "abd":
        assert await outcome_of(gateway, [text]) == 200
    assert await outcome_of(gateway, texts) == 200
    assert calls[texts] == 5
    calls.clear()
    await outcome_of(gateway, texts)
    assert calls[texts] >= 2


@pytest.mark.anyio
async def test_a_failure_that_a_second_attempt_avoids_was_random():
    """Without any bisection."""
    calls = Counter()

    def fails(texts):
        calls[tuple(texts)] += 1
        is_first = calls[tuple(texts)] == 1
        return 500 * ("bad" in texts or (texts[0].startswith("flaky") and is_first))

    gateway = gateway_before(fails)
    for number in range(20):
        assert await outcome_of(gateway, [f"flaky {number}"]) == 200

    await outcome_of(gateway, ["bad", "c"])

    assert calls["bad",] >= 4


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        # The whole twice, both halves, the harmless text, and the quarters are answered; a half is
        # repeated.
        (20, [64, 64, 32, 32, 1, 16, 16, 16, 16, 32]),
        (40, [64, 64, 32, 32, 64]),
    ],
)
async def test_a_limit_is_learned_if_too_large_calls_fail_without_words(most, sizes):
    """Such an endpoint is not unreliable: it still names a bad text after one repetition."""
    calls = []

    def fails(texts):
        calls.append(len(texts))
        return 500 * (len(texts) > most or "bad" in texts)

    gateway = gateway_before(fails)
    texts = [f"text {number}" for number in range(64)]

    assert await outcome_of(gateway, texts) == 200
    assert calls == sizes
    calls.clear()
    assert await outcome_of(gateway, texts) == 200
    assert max(calls) <= most
    calls.clear()
    assert (await outcome_of(gateway, ["bad", "c"]))[:2] == (400, "input_failed")
    assert calls == [2, 2, 1, 1, 1]


@pytest.mark.anyio
async def test_a_limit_in_bytes_is_learned_if_the_texts_are_long():
    """Many short texts still go in one call."""
    calls = []

    def fails(texts):
        calls.append(len(texts))
        return 500 * (sum(map(len, texts)) > 50_000)

    gateway = gateway_before(fails)
    long = [f"a long text {number}" * 80 for number in range(64)]

    assert await outcome_of(gateway, long) == 200
    assert calls == [64, 64, 32, 32, 64]
    calls.clear()
    assert await outcome_of(gateway, long) == 200
    assert max(calls) <= 32
    calls.clear()
    assert await outcome_of(gateway, [f"text {number}" for number in range(64)]) == 200
    assert calls == [64]


@pytest.mark.anyio
async def test_no_limit_is_learned_if_a_call_that_failed_is_answered_when_repeated():
    calls = []

    def fails(texts):
        calls.append(len(texts))
        return 500 * (len(calls) <= 2)

    gateway = gateway_before(fails)

    assert await outcome_of(gateway, [f"text {number}" for number in range(64)]) == 200
    assert calls == [64, 64, 32, 32, 64]
    assert await outcome_of(gateway, [f"other {number}" for number in range(64)]) == 200
    assert calls[5:] == [64]


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


@pytest.mark.anyio
async def test_a_spent_budget_for_bisections_ends_the_request():
    """Otherwise the endpoint would be called again and again until the deadline."""
    calls = []

    def fails(texts):
        calls.append(texts)
        return 500 * ("hello" not in texts)

    gateway = gateway_before(fails)
    for number in range(100):
        outcome = await outcome_of(gateway, [f"{number} {index}" for index in range(8)])
        if outcome[0] == 429:
            break
    calls.clear()

    assert (await outcome_of(gateway, ["a", "b", "c", "d"]))[0] == 429
    assert len(calls) < 10
