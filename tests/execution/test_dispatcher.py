"""Dispatching: which endpoints are tried, when, how often, and which error the client gets."""

# One table serves both tests.
# ruff: noqa: ARG001

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import anyio
import numpy as np
import pytest
from msgspec.structs import force_setattr

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Accepts, Vectors
from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    ContextTooLong,
    InvalidUpstreamResponse,
    Measure,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.routing import ENVELOPE, BreakerPolicy, RetryPolicy, State
from embedroute.testing import ScriptedBackend, expected_vector
from tests.support.elapsed import measured

pytestmark = pytest.mark.anyio

WIDTH = 8
TEXTS = [f"text {at}" for at in range(7)]
QUICK = RetryPolicy(repeats=0, first_wait=0.001, longest_wait=0.002)


def scripted(*script, **fields):
    return ScriptedBackend(script=script, width=WIDTH, **fields)


def capped(most, said="too many inputs", **fields):
    """A backend that accepts ``most`` inputs and reports the limit only when there are more."""

    def respond(batch):
        if len(batch) > most:
            raise BatchTooLarge(said)
        return right(batch.texts)

    return scripted(then=respond, **fields)


class NarrowBackend(ScriptedBackend):
    accepts = Accepts(max_inputs=2)


def right(texts):
    return Vectors(np.array([expected_vector(text, WIDTH) for text in texts]))


def gateway_of(
    *backends, deadline=5.0, dimensions=WIDTH, cache=0, accepts=None, retries=QUICK, breaker=None
):
    names = "abcdef"[: len(backends)]
    endpoints = [{"provider": name, "accepts": accepts or {}} for name in names]
    config = Config(
        gateway={"auth": "open", "deadline": deadline},
        cache={"bytes": cache},
        providers={
            name: Provider(backend=backend) for name, backend in zip(names, backends, strict=True)
        },
        models={"m": {"dimensions": dimensions, "endpoints": endpoints}},
    )
    return Gateway(config, retries=retries, breaker=breaker)


async def embed(gateway, texts=TEXTS, **fields):
    """Embed in the order of the endpoints, and check that the vectors are right."""
    preferences = {"order": ["a"], **fields.pop("provider", {})}
    answer = await gateway.embed(
        texts, model=fields.pop("model", "m"), provider=preferences, **fields
    )
    assert answer.vectors.tolist() == [expected_vector(text, WIDTH).tolist() for text in texts]
    return answer


async def failure_of(gateway, texts=TEXTS, **fields):
    with pytest.raises(EmbedrouteError) as caught:
        await embed(gateway, texts, **fields)
    return caught.value


async def code_of(gateway, texts):
    """The code of the failure, "answered" if there is none.

    For a task group, which would wrap a failed expectation.
    """
    try:
        await embed(gateway, texts)
    except EmbedrouteError as error:
        return error.code
    return "answered"


def calls(*backends):
    return [len(backend.batches) for backend in backends]


class FallbackCase(NamedTuple):
    """``reported``: the error that the client gets for ``failure`` alone.

    ``tried``: how often the first endpoint is called.
    """

    failure: Exception | Vectors
    tried: int
    reported: tuple[int, str | None]


WRONG_WIDTH = Vectors(np.ones((len(TEXTS), WIDTH + 1), "<f4"))
TOO_FEW = Vectors(np.ones((len(TEXTS) - 1, WIDTH), "<f4"))
FALLBACKS = [
    FallbackCase(UpstreamUnavailable("reset"), 2, (502, None)),
    FallbackCase(ConnectError("refused"), 2, (502, None)),
    FallbackCase(InvalidUpstreamResponse("nonsense"), 2, (502, "upstream_invalid_response")),
    FallbackCase(WRONG_WIDTH, 2, (502, "upstream_invalid_response")),
    FallbackCase(TOO_FEW, 2, (502, "upstream_invalid_response")),
    FallbackCase(RuntimeError("a bug of the plugin's"), 2, (502, None)),
    FallbackCase(UpstreamTimeout("slow"), 1, (504, None)),
    FallbackCase(UpstreamAuthError("your key sk-1 is bad"), 1, (502, "upstream_credentials")),
    FallbackCase(UpstreamModelNotFound("no such model"), 1, (502, "upstream_model_not_found")),
    # The endpoint is asked for a harmless text too, or for two halves before that.
    FallbackCase(Rejected("flagged"), 2, (400, "upstream_refused")),
    FallbackCase(RejectedByPage("blocked"), 4, (502, None)),
    FallbackCase(RateLimited("slow down", retry_after=100), 1, (429, "rate_limit_exceeded")),
]
fallbacks = pytest.mark.parametrize(FallbackCase._fields, FALLBACKS)


@fallbacks
async def test_an_upstream_failure_is_retried_or_falls_back(failure, tried, reported):
    first, second = (
        scripted(then=lambda _: failure)
        if isinstance(failure, Vectors)
        else scripted(then=failure),
        scripted(),
    )

    answer = await embed(gateway_of(first, second))

    assert [tried, 1] == calls(first, second)
    assert ("b",) == answer.providers
    probes = sum(batch.texts == ["hello"] for batch in first.batches)
    assert answer.trace.attempts == tried - probes + 1


@fallbacks
async def test_without_fallbacks_the_first_failure_keeps_its_status(failure, tried, reported):
    first, second = scripted(then=failure), scripted()

    error = await failure_of(gateway_of(first, second), provider={"allow_fallbacks": False})

    assert reported == (error.status, error.code)
    assert [tried, 0] == calls(first, second)


@pytest.mark.parametrize(
    "failure", [UpstreamRejectedInput("bad input"), ContextTooLong("too long")]
)
async def test_an_input_error_stops_at_once_and_changes_no_health(failure):
    first, second = scripted(*[failure] * 9), scripted()
    gateway = gateway_of(
        first,
        second,
        breaker=BreakerPolicy(failures=1, minimum_calls=1, slow_start=1),
    )

    for _ in range(9):
        error = await failure_of(gateway)
        assert (error.status, error.code) == (400, failure.code)

    await embed(gateway)
    assert [10, 0] == calls(first, second)


@pytest.mark.parametrize("result", [None, "vectors", Vectors("nothing"), 7])
async def test_an_invalid_return_value_of_a_plugin_is_its_failure(result):
    async def give(_):
        return result

    assert (await failure_of(gateway_of(scripted(then=give)))).code == "upstream_invalid_response"
    await embed(gateway_of(scripted(then=give), scripted()))


async def test_a_rejected_gateway_key_is_not_reported_to_the_client():
    error = await failure_of(
        gateway_of(scripted(then=UpstreamAuthError("Incorrect API key sk-secret-1")))
    )

    assert "sk-secret" not in error.message
    assert (error.status, error.retryable) == (502, False)


async def test_a_rejected_gateway_key_opens_the_breaker():
    first, second = scripted(then=UpstreamAuthError("no")), scripted()
    gateway = gateway_of(first, second)

    for _ in range(3):
        await embed(gateway)

    assert [1, 3] == calls(first, second)


async def test_a_rate_limited_endpoint_is_not_called_before_its_cooldown_ends():
    first, second = scripted(RateLimited("slow down", retry_after=0.3)), scripted()
    gateway = gateway_of(first, second)

    await embed(gateway)
    await embed(gateway)
    assert [1, 2] == calls(first, second)
    await anyio.sleep(0.32)
    await embed(gateway)
    assert [2, 2] == calls(first, second)


async def test_if_all_are_rate_limited_the_shortest_retry_after_is_waited_out():
    first, second = (
        scripted(RateLimited("slow", retry_after=60)),
        scripted(RateLimited("slow", retry_after=0.2)),
    )
    async with measured() as elapsed:
        answer = await embed(gateway_of(first, second))

    assert 0.2 <= elapsed.seconds
    assert elapsed.ticks < 2
    assert ("b",) == answer.providers
    assert [1, 2] == calls(first, second)


async def test_a_retry_after_past_the_deadline_is_returned_at_once():
    first, second = (
        scripted(then=RateLimited("slow", retry_after=60)),
        scripted(then=RateLimited("slow", retry_after=30)),
    )
    gateway = gateway_of(first, second)

    for _ in range(2):
        error = await failure_of(gateway)
        assert error.status == 429
        assert 29 < error.retry_after <= 30
    assert [1, 1] == calls(first, second)


@pytest.mark.parametrize("endpoints", [1, 2, 3])
async def test_calls_after_a_cooldown_use_the_retry_budget(endpoints):
    """Each endpoint is tried once without budget, and its rate limit is waited for once.

    After each wait every endpoint is tried again, within the ten retries that are always allowed.
    """
    limited = [scripted(then=RateLimited("slow", retry_after=0.001)) for _ in range(endpoints)]

    assert (await failure_of(gateway_of(*limited, deadline=60))).status == 429
    assert sum(calls(*limited)) == endpoints + min(10, endpoints**2)


@pytest.mark.parametrize("cause", ["by a refusal", "by another request"])
async def test_chunks_split_after_a_cooldown_count_as_first_attempts(cause):
    """As many as without a cool-down: the retry budget must not fail the request."""

    def respond(batch):
        if len(only.batches) == 1:
            if cause == "by another request":
                gateway.healths.get(
                    gateway.models.resolve("m").candidates[0]
                ).record_batch_too_large(time.monotonic(), Measure.INPUTS, 32)
            raise RateLimited("slow", retry_after=0.001)
        if len(batch) > 16:
            raise BatchTooLarge("too many inputs")
        return right(batch.texts)

    only = scripted(then=respond)
    gateway = gateway_of(only, deadline=60)

    await embed(gateway, [f"text {at}" for at in range(64)])

    assert len(only.batches) <= 1 + 4 * 2


async def test_waiting_out_a_cooldown_before_the_first_call_uses_no_retry_budget():
    only = scripted(RateLimited("slow", retry_after=0.2))
    gateway = gateway_of(only)

    async with anyio.create_task_group() as group:
        for at in range(100):
            group.start_soon(embed, gateway, [f"text {at}"])

    assert len(only.batches) == 101


async def test_if_an_endpoint_fails_after_its_cooldown_the_next_is_tried():
    async def fail(_):
        await anyio.sleep(0.3)
        raise UpstreamUnavailable("down")

    first = scripted(RateLimited("slow", retry_after=0.05), then=fail)
    second = scripted(RateLimited("slow", retry_after=0.06))

    answer = await embed(gateway_of(first, second, retries=RetryPolicy(repeats=0, attempts=1)))

    assert ("b",) == answer.providers
    assert [2, 2] == calls(first, second)


async def test_an_open_breaker_admits_one_probe_at_a_time():
    release = anyio.Event()

    async def probed(batch):
        await release.wait()
        return right(batch.texts)

    only = scripted(*[UpstreamUnavailable("down")] * 3, then=probed)
    gateway = gateway_of(
        only,
        retries=RetryPolicy(repeats=0, attempts=1),
        breaker=BreakerPolicy(
            failures=3,
            minimum_calls=3,
            slow_start=1,
            initial_cooldown=0.4,
        ),
    )
    for _ in range(3):
        assert (await failure_of(gateway)).status == 502
    error = await failure_of(gateway)
    assert (error.status, error.code) == (503, "no_healthy_endpoint")
    assert error.retry_after
    assert calls(only) == [3]
    await anyio.sleep(0.41)

    async with anyio.create_task_group() as group:
        group.start_soon(embed, gateway, ["the probe"])
        await anyio.wait_all_tasks_blocked()
        assert (await failure_of(gateway, ["not now"])).code == "no_healthy_endpoint"
        assert calls(only) == [4]
        release.set()
    await embed(gateway)
    assert calls(only) == [5]


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_a_split_request_probes_with_one_chunk(endpoints):
    """Chunks sent beside the probe would be rejected and end it, so such a request could never close the breaker."""
    answers = [scripted(UpstreamUnavailable("down")) for _ in range(endpoints)]
    policy = BreakerPolicy(
        failures=1,
        minimum_calls=1,
        slow_start=1,
        initial_cooldown=0.3,
    )
    gateway = gateway_of(
        *answers,
        accepts={"max_inputs": 2},
        retries=RetryPolicy(repeats=0, attempts=1),
        breaker=policy,
    )
    await failure_of(gateway, ["one"])
    assert (await failure_of(gateway)).code == "no_healthy_endpoint"
    await anyio.sleep(0.31)

    await embed(gateway)

    assert [2, 2, 2, 1] == sorted(
        (len(batch) for item in answers for batch in item.batches[1:]), reverse=True
    )


@pytest.mark.parametrize("late", ["answered", "failed", "cancelled"])
async def test_a_call_from_before_the_outage_does_not_end_the_probe(late):
    """With any outcome.

    No other call is admitted during the probe, and only the probe closes the breaker.
    """
    come, over, probed, given_up = anyio.Event(), anyio.Event(), anyio.Event(), anyio.CancelScope()

    async def respond(batch):
        if "down" in batch.texts:
            raise UpstreamUnavailable("down")
        if "early" in batch.texts:
            await come.wait()
            if late == "failed":
                raise UpstreamUnavailable("down as well")
        if "probe" in batch.texts:
            await probed.wait()
        return right(batch.texts)

    async def early():
        with given_up:
            await code_of(gateway, ["early"])
        over.set()

    breaker = BreakerPolicy(
        failures=1,
        minimum_calls=1,
        slow_start=1,
        initial_cooldown=0.01,
    )
    gateway = gateway_of(
        scripted(then=respond),
        deadline=60,
        retries=RetryPolicy(repeats=0, attempts=1),
        breaker=breaker,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(early)
        await anyio.wait_all_tasks_blocked()
        assert await code_of(gateway, ["down"]) is None
        await anyio.sleep(0.02)
        group.start_soon(embed, gateway, ["probe"])
        await anyio.wait_all_tasks_blocked()
        (given_up.cancel if late == "cancelled" else come.set)()
        await over.wait()
        assert await code_of(gateway, ["not now"]) == "no_healthy_endpoint"
        probed.set()
    await embed(gateway)


async def test_a_cancelled_probe_releases_its_permit():
    only = scripted(UpstreamUnavailable("down"), 60.0)
    gateway = gateway_of(
        only,
        retries=RetryPolicy(repeats=0, attempts=1),
        breaker=BreakerPolicy(
            failures=1,
            minimum_calls=1,
            slow_start=1,
            initial_cooldown=0.01,
        ),
    )
    assert (await failure_of(gateway)).status == 502
    await anyio.sleep(0.02)

    with anyio.move_on_after(0.05):
        await embed(gateway)
    await embed(gateway)


async def test_the_failure_that_opens_the_breaker_is_reported():
    only = scripted(then=UpstreamUnavailable("down"))
    gateway = gateway_of(
        only,
        breaker=BreakerPolicy(failures=1, minimum_calls=1, slow_start=1),
    )

    error = await failure_of(gateway)

    assert (error.status, str(error)) == (502, "Provider a: down")
    assert calls(only) == [1]


async def test_retries_stay_within_their_budget():
    """10 at first, and one each second, while no call is answered."""
    only = scripted(then=UpstreamUnavailable("down"))
    gateway = gateway_of(
        only,
        breaker=BreakerPolicy(failures=10_000, minimum_calls=10_000, slow_start=1),
    )

    for _ in range(100):
        await failure_of(gateway)

    assert 110 <= len(only.batches) <= 115


async def test_an_upstream_that_always_hangs_until_the_deadline_opens_the_breaker():
    """The deadline of the request ends the call, not the timeout of the call."""
    only = scripted(0.0, then=60.0)
    gateway = gateway_of(
        only,
        deadline=0.1,
        breaker=BreakerPolicy(failures=3, minimum_calls=3, slow_start=1),
    )
    async with gateway.lifespan():
        await embed(gateway)
        statuses = [(await failure_of(gateway)).status for _ in range(9)]

    assert [504] * 6 + [503] * 3 == statuses
    assert 7 == len(only.batches)


async def test_the_short_deadline_of_a_request_says_nothing_about_the_endpoint():
    """An endpoint that was never seen to answer within the deadline may just be slow."""
    only = scripted(then=60.0)
    gateway = gateway_of(
        only,
        deadline=0.05,
        breaker=BreakerPolicy(failures=1, minimum_calls=1, slow_start=1),
    )
    async with gateway.lifespan():
        assert [504] * 3 == [(await failure_of(gateway)).status for _ in range(3)]

    assert 3 == len(only.batches)


async def test_a_shared_call_that_hangs_is_followed_by_six_calls():
    """Not by one for each request."""
    only, reported = scripted(then=60.0), []
    gateway = gateway_of(
        only,
        deadline=0.3,
        breaker=BreakerPolicy(failures=3, minimum_calls=3, slow_start=1),
    )
    candidate = gateway.models.routes["m"].candidates[0]
    force_setattr(candidate, "micro_batch_ms", 20.0)

    async def one(text):
        with pytest.raises(EmbedrouteError) as failure:
            await gateway.embed(text, model="m")
        reported.append(failure.value.status)

    async with gateway.lifespan(), anyio.create_task_group() as group:
        for at in range(16):
            group.start_soon(one, f"t{at}")

    assert [504] * 16 == reported
    assert len(only.batches) <= 8
    assert gateway.healths.get(candidate).state(time.monotonic()) is State.CLOSED


async def test_a_shared_call_is_measured_without_the_wait_for_others():
    """By its own duration, without the wait for other calls, and by all of its tokens."""
    only = scripted(then=0.6)
    gateway = gateway_of(only)
    candidate = gateway.models.routes["m"].candidates[0]
    force_setattr(candidate, "micro_batch_ms", 200.0)

    async with gateway.lifespan(), anyio.create_task_group() as group:
        for at in range(9):
            group.start_soon(partial(gateway.embed, f"text {at}", model="m"))

    health, now = gateway.healths.get(candidate), time.monotonic()
    shorter, longer = health.latency(50, now), health.latency(99, now)
    higher, lower = health.throughput(50, now), health.throughput(99, now)
    assert [1, 8] == [len(batch) for batch in only.batches]
    assert 0.6 <= shorter <= longer < shorter + 0.3
    assert 4 < higher / lower <= 8 * 1.5


async def test_a_call_cancelled_by_its_client_does_not_change_the_health():
    """Its client, or the clients that share it, disconnected."""
    only = scripted(then=60.0)
    gateway = gateway_of(
        only,
        breaker=BreakerPolicy(failures=1, minimum_calls=1, slow_start=1),
    )
    for _ in range(3):
        with anyio.move_on_after(0.05):
            await embed(gateway)

    assert 3 == len(only.batches)


async def test_endpoints_share_one_deadline():
    slow, slower, last = scripted(then=60.0), scripted(then=60.0), scripted()
    async with measured() as elapsed:
        answer = await embed(gateway_of(slow, slower, last, deadline=3.0))

    assert 1.9 < elapsed.seconds
    assert elapsed.ticks < 2.1
    assert ("c",) == answer.providers
    assert [1, 1, 1] == calls(slow, slower, last)


async def test_a_timeout_is_reported_within_the_deadline():
    async with measured() as elapsed:
        error = await failure_of(gateway_of(scripted(then=60.0), scripted(then=60.0), deadline=0.3))

    assert (error.status, error.type) == (504, "timeout_error")
    assert 0.25 < elapsed.seconds
    assert elapsed.ticks < 0.4


# Splitting.


class SplitCase(NamedTuple):
    """Batch sizes that an endpoint sees for a request of ``count`` inputs, if they are always the same, and for the next."""

    backend: Callable[[], ScriptedBackend]
    accepts: dict[str, int]
    first: list[int] | None
    then: list[int]
    count: int = 7


@pytest.mark.parametrize(
    SplitCase._fields,
    [
        SplitCase(scripted, {"max_inputs": 3}, [3, 3, 1], [3, 3, 1]),
        SplitCase(scripted, {"max_inputs": 7}, [7], [7]),
        SplitCase(scripted, {"max_tokens": 2}, [2, 2, 2, 1], [2, 2, 2, 1]),
        SplitCase(scripted, {"max_bytes": ENVELOPE + 20}, [2, 2, 2, 1], [2, 2, 2, 1]),
        SplitCase(scripted, {"max_bytes": 1}, [1] * 7, [1] * 7),
        SplitCase(lambda: capped(32), {}, [64, 32, 32], [32, 32], 64),
        SplitCase(lambda: capped(16), {}, None, [16, 16, 16, 16], 64),
        SplitCase(lambda: capped(8), {}, None, [16, 16, 8, 8, 8, 8], 32),
        SplitCase(lambda: capped(3), {}, [7, 4, 3, 2, 2], [7, 4, 3, 2, 2]),
        SplitCase(
            lambda: capped(32, said="the batch is too large"), {}, [64, 32, 32], [64, 32, 32], 64
        ),
        SplitCase(
            lambda: capped(32, said="too many tokens in request"),
            {},
            [64, 32, 32],
            [64, 32, 32],
            64,
        ),
    ],
)
async def test_chunks_stay_within_limits_and_a_limit_is_learned_once(
    backend, accepts, first, then, count
):
    """A cap is learned for the measure of the rejection, never below 16 inputs or 8,192 tokens."""
    made = backend()
    gateway = gateway_of(made, accepts=accepts)

    for sizes in (first, then):
        made.batches.clear()
        answer = await embed(gateway, [f"text {at}" for at in range(count)])
        assert answer.trace.attempts == len(made.batches)
        if sizes is not None:
            assert sorted(sizes) == sorted(map(len, made.batches))


@pytest.mark.parametrize("said", ["payload too large", "too many tokens in request"])
async def test_a_learned_cap_on_bytes_or_tokens_does_not_limit_inputs(said):
    """Short texts go in one call, and no call of long texts is rejected again."""

    def respond(batch):
        if sum(map(len, batch.texts)) > 250_000:
            raise BatchTooLarge(said)
        return right(batch.texts)

    only = scripted(then=respond)
    gateway = gateway_of(only)
    sizes = []
    for count, length in ((40, 10_000), (80, 5000), (2048, 20)):
        only.batches.clear()
        await embed(gateway, [f"{at:0{length}}" for at in range(count)])
        sizes.append([len(batch) for batch in only.batches])

    assert [[40, 20, 20], [2048]] == [sizes[0], sizes[2]]
    assert len(sizes[1]) <= 3


async def test_an_answered_single_input_raises_a_smaller_cap():
    only = scripted(BatchTooLarge("payload too large"))
    gateway = gateway_of(only)
    await embed(gateway, ["a" * 30_000, "b" * 30_000])
    await embed(gateway, ["c" * 55_000])
    await embed(gateway, ["d" * 27_000, "e" * 27_000])

    assert [2, 1, 1, 1, 2] == [len(batch) for batch in only.batches]


async def test_an_endpoint_that_rejects_every_input_opens_its_breaker():
    """A rejected key may look like this.

    Two different inputs and a harmless one show it; one input sent repeatedly does not. The reason
    is stored.
    """
    only = scripted(then=RejectedByPage("blocked"))
    gateway = gateway_of(only)
    for text in ["a", "a", "b", "c"]:
        assert 502 == (await failure_of(gateway, [text])).status
    assert ["a", "a", "b", "hello"] == [batch.texts[0] for batch in only.batches]


async def test_rejected_inputs_do_not_open_the_breaker_of_a_working_endpoint():
    def respond(batch):
        if "bad" in batch.texts[0]:
            raise RejectedByPage("blocked")
        return right(batch.texts)

    gateway = gateway_of(scripted(then=respond))
    await embed(gateway, ["good"])
    for at in range(5):
        assert 502 == (await failure_of(gateway, [f"bad {at}"])).status

    await embed(gateway, ["good as well"])


async def test_no_cap_is_learned_from_a_single_input():
    only = scripted(BatchTooLarge("said of one"))
    gateway = gateway_of(only)

    assert (await failure_of(gateway, ["one"])).status == 400
    await embed(gateway)

    assert [1, 7] == list(map(len, only.batches))


async def test_a_late_rejection_of_a_larger_batch_does_not_raise_the_cap():
    """Chunks of one request fail in any order; the smallest cap is kept."""
    texts = [f"text {at}" for at in range(112)]

    async def respond(batch):
        await anyio.sleep(0.02 if "text 111" in batch.texts else 0)
        if len(batch) > 16:
            raise BatchTooLarge("too many inputs")
        return right(batch.texts)

    only = scripted(then=respond)
    gateway = gateway_of(only)
    await embed(gateway, texts)
    only.batches.clear()

    await embed(gateway, texts)

    assert [16] * 7 == list(map(len, only.batches))


async def test_chunks_run_concurrently_within_a_limit():
    running = most = 0

    async def count(batch):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.01)
        running -= 1
        return right(batch.texts)

    texts = [f"t{at}" for at in range(40)]

    await embed(gateway_of(scripted(then=count), accepts={"max_inputs": 1}), texts)

    assert most == 8


async def test_repeatedly_halved_chunks_run_within_the_same_limit():
    """A chunk that waits while a cap is learned is split before it is sent."""
    running = most = 0

    async def count(batch):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.001)
        running -= 1
        if len(batch) > 24:
            raise BatchTooLarge("too many inputs")
        return right(batch.texts)

    only = scripted(then=count)

    await embed(gateway_of(only, deadline=30), [f"t{at}" for at in range(2000)])

    assert most == 8
    assert sum(len(batch) > 24 for batch in only.batches) < 64


async def test_no_cap_is_kept_if_an_input_is_rejected_alone_too():
    """Some servers return 413 for any excess.

    One client's input must not shrink the calls of others.
    """
    long, short = "x" * 40_000, "y" * 40_000

    def respond(batch):
        if long in batch.texts:
            raise (
                BatchTooLarge("payload too large")
                if len(batch) > 1
                else UpstreamRejectedInput("413")
            )
        return right(batch.texts)

    only = scripted(then=respond)
    gateway = gateway_of(only)
    assert (await failure_of(gateway, [long, short])).status == 400
    only.batches.clear()

    await embed(gateway, ["a" * 30_000, "b" * 30_000])

    assert [2] == list(map(len, only.batches))


@pytest.mark.parametrize("inputs", [1, 7])
async def test_failures_before_a_split_are_reported(inputs):
    """The first error is retryable, so the client may retry, however the second endpoint splits its inputs."""
    first, second = (
        scripted(then=UpstreamUnavailable("reset")),
        NarrowBackend(then=UpstreamAuthError("bad key"), width=WIDTH),
    )

    error = await failure_of(gateway_of(first, second), TEXTS[:inputs])

    assert (error.status, error.code, error.retryable) == (502, None, True)


async def test_a_failed_chunk_falls_back_by_itself():
    """The vectors of the other chunks are kept and not computed again."""

    def respond(batch):
        if "text 3" in batch.texts:
            raise UpstreamUnavailable("down")
        return right(batch.texts)

    first, second = scripted(then=respond), scripted()

    answer = await embed(gateway_of(first, second, accepts={"max_inputs": 2}))

    assert [["text 2", "text 3"]] == [list(batch.texts) for batch in second.batches]
    assert {"a", "b"} == set(answer.providers)


async def test_finished_chunks_are_cached_if_the_request_fails():
    async def respond(batch):
        if "text 3" in batch.texts:
            await anyio.sleep(0.05)
            raise UpstreamUnavailable("down")
        return right(batch.texts)

    only = scripted(then=respond)
    gateway = gateway_of(
        only,
        cache=1 << 20,
        accepts={"max_inputs": 2},
        retries=RetryPolicy(repeats=0, attempts=1),
    )
    assert (await failure_of(gateway)).status == 502
    only.batches.clear()

    answer = await embed(gateway, [text for text in TEXTS if text not in ("text 2", "text 3")])

    assert [] == only.batches
    assert answer.trace.hits == 5


async def test_a_fallback_with_smaller_limits_receives_smaller_chunks():
    class NarrowBackend(ScriptedBackend, frozen=True, kw_only=True):
        accepts = Accepts(max_inputs=2, dimensions=True)

    wide, narrow = scripted(then=UpstreamUnavailable("down")), NarrowBackend(width=WIDTH)

    await embed(gateway_of(wide, narrow))

    assert [1, 2, 2, 2] == sorted(map(len, narrow.batches))
    assert [7, 7] == list(map(len, wide.batches))


async def test_different_widths_in_one_answer_are_rejected():
    def respond(batch):
        return Vectors(np.ones((len(batch), 4 if "text 3" in batch.texts else 8), "<f4"))

    error = await failure_of(
        gateway_of(scripted(then=respond), dimensions=None, accepts={"max_inputs": 2})
    )

    assert (error.status, error.code) == (502, "upstream_invalid_response")


@pytest.mark.parametrize("most", [None, 2], ids=["whole", "cut by the other"])
@pytest.mark.parametrize("other", [UpstreamUnavailable("down"), UpstreamAuthError("no")], ids=repr)
async def test_a_rate_limited_endpoint_is_waited_for_if_the_others_fail(other, most):
    """Also when another endpoint has cut the work before it failed."""

    class NarrowBackend(ScriptedBackend):
        accepts = Accepts(max_inputs=most)

    resting = scripted(RateLimited("slow down", retry_after=0.1))
    gateway = gateway_of(
        resting,
        NarrowBackend(then=other, width=WIDTH),
        retries=RetryPolicy(repeats=0, attempts=1),
    )

    answer = await embed(gateway)

    assert ("a",) == answer.providers


async def test_the_first_answer_sets_the_width_of_an_undeclared_vector_space():
    """An endpoint with another width is skipped, within one request and later."""
    honest = scripted(0.0, UpstreamUnavailable("down"), UpstreamUnavailable("down"))
    odd = ScriptedBackend(width=WIDTH + 2)
    gateway = gateway_of(
        honest,
        odd,
        dimensions=None,
        cache=1 << 20,
        retries=RetryPolicy(repeats=0, attempts=1),
    )

    await embed(gateway, ["known"])
    for texts in (["known", "new"], ["other"]):
        assert 502 == (await failure_of(gateway, texts)).status
    await embed(gateway, ["known", "new"])

    assert [4, 2] == calls(honest, odd)
