"""A good request never fails because of a bad one whose call was merged with its own.

The endpoint takes one call at a time. So the own call of the bad request ends before those of the
good ones begin, and the cool-down or open breaker that it causes is in their way.
"""

import pytest

from embedroute.backends.hashed import hash_batch
from embedroute.errors import EmbedrouteError
from embedroute.routing import RetryPolicy
from embedroute.upstream_errors import classify_response
from tests.execution.test_microbatching import Gate, ask_all, gateway_at, is_right

pytestmark = pytest.mark.anyio

STATUSES = (400, 401, 402, 403, 404, 413, 422, 429, 500, 502, 503)
NO_RETRIES = RetryPolicy(repeats=0, attempts=1)


def failing_with(status, is_bad):
    def answer(batch):
        if any(map(is_bad, batch.texts)):
            raise classify_response(status, {"retry-after": "0.05"}, b'{"error":"no"}')
        return hash_batch(batch, 8)

    return answer


async def ask_one_at_a_time(texts, status, is_bad):
    backend = Gate(answer=failing_with(status, is_bad))
    gateway = gateway_at(backend=backend, retries=NO_RETRIES, max_concurrent=1)
    async with gateway.lifespan():
        asks = {text: ([text], {}) for text in ["first", *texts]}
        outcomes = await ask_all(gateway, asks, backend.open)
    return backend, outcomes


@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("status", STATUSES)
async def test_the_own_call_of_a_bad_companion_is_in_no_ones_way(status, place):
    texts = ["a", "b", "c"]
    texts.insert(place, "bad")
    backend, outcomes = await ask_one_at_a_time(texts, status, lambda text: text == "bad")

    assert isinstance(outcomes.pop("bad"), EmbedrouteError)
    assert all(is_right([text], outcome) for text, outcome in outcomes.items())
    assert len(backend.batches) <= 6


@pytest.mark.parametrize("step", [1, -1])
@pytest.mark.parametrize("status", [401, 429])
async def test_five_bad_companions_are_in_no_ones_way(status, step):
    texts = [*(f"bad {number}" for number in range(5)), *"abc"][::step]
    _, outcomes = await ask_one_at_a_time(texts, status, lambda text: text.startswith("bad"))

    good = {text: outcomes[text] for text in "abc"}
    assert all(is_right([text], outcome) for text, outcome in good.items())


@pytest.mark.parametrize("status", [401, 429])
async def test_an_endpoint_that_refuses_everyone_gets_few_own_calls_of_merged_requests(status):
    texts = [f"text {number}" for number in range(20)]
    backend, outcomes = await ask_one_at_a_time(texts, status, lambda text: text != "first")

    assert all(isinstance(outcomes[text], EmbedrouteError) for text in texts)
    assert [1, 20] == [len(batch) for batch in backend.batches[:2]]
    assert len(backend.batches[2:]) == {401: 7, 429: 6}[status]
