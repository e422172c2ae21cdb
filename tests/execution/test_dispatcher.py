"""Over endpoints and attempts: what is tried where, when, how often, and what the client is told in the end."""

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

pytestmark = pytest.mark.anyio

WIDTH = 8
TEXTS = [f"text {at}" for at in range(7)]
QUICK = RetryPolicy(first_wait=0.001, longest_wait=0.002)


def scripted(*script, **fields):
    return ScriptedBackend(script=script, width=WIDTH, **fields)


def capped(most, said="too many inputs", **fields):
    """A backend that takes ``most`` inputs and only says so when there are more."""

    def judge(batch):
        if len(batch) > most:
            raise BatchTooLarge(said)
        return right(batch.texts)

    return scripted(then=judge, **fields)


class Narrow(ScriptedBackend):
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
    """Embed in the order of the endpoints, and check that whatever comes back is right."""
    wishes = {"order": ["a"], **fields.pop("provider", {})}
    answer = await gateway.embed(texts, model=fields.pop("model", "m"), provider=wishes, **fields)
    assert answer.vectors.tolist() == [expected_vector(text, WIDTH).tolist() for text in texts]
    return answer


async def failure_of(gateway, texts=TEXTS, **fields):
    with pytest.raises(EmbedrouteError) as caught:
        await embed(gateway, texts, **fields)
    return caught.value


async def code_of(gateway, texts):
    """The code of the failure, "answered" if there is none: for a task group, which would wrap a failed expectation."""
    try:
        await embed(gateway, texts)
    except EmbedrouteError as error:
        return error.code
    return "answered"


def calls(*backends):
    return [len(backend.batches) for backend in backends]


class Fallback(NamedTuple):
    """``told`` is what the client sees of ``failure`` alone, ``tried`` how often the first endpoint is called."""

    failure: Exception | Vectors
    tried: int
    told: tuple[int, str | None]


WRONG_WIDTH = Vectors(np.ones((len(TEXTS), WIDTH + 1), "<f4"))
TOO_FEW = Vectors(np.ones((len(TEXTS) - 1, WIDTH), "<f4"))
FALLBACKS = [
    Fallback(UpstreamUnavailable("reset"), 2, (502, None)),
    Fallback(ConnectError("refused"), 2, (502, None)),
    Fallback(InvalidUpstreamResponse("nonsense"), 2, (502, "upstream_invalid_response")),
    Fallback(WRONG_WIDTH, 2, (502, "upstream_invalid_response")),
    Fallback(TOO_FEW, 2, (502, "upstream_invalid_response")),
    Fallback(RuntimeError("a bug of the plugin's"), 2, (502, None)),
    Fallback(UpstreamTimeout("slow"), 1, (504, None)),
    Fallback(UpstreamAuthError("your key sk-1 is bad"), 1, (502, "upstream_credentials")),
    Fallback(UpstreamModelNotFound("no such model"), 1, (502, "upstream_model_not_found")),
    Fallback(Rejected("flagged"), 1, (400, "upstream_refused")),
    Fallback(RejectedByPage("blocked"), 1, (502, None)),
    Fallback(RateLimited("slow down", retry_after=100), 1, (429, "rate_limit_exceeded")),
]
fallbacks = pytest.mark.parametrize(Fallback._fields, FALLBACKS)


@fallbacks
async def test_an_upstreams_own_trouble_is_tried_again_or_elsewhere(failure, tried, told):
    first, second = (
        scripted(then=lambda _: failure)
        if isinstance(failure, Vectors)
        else scripted(then=failure),
        scripted(),
    )

    answer = await embed(gateway_of(first, second))

    assert [tried, 1] == calls(first, second)
    assert ("b",) == answer.providers
    assert answer.trace.attempts == tried + 1


@fallbacks
async def test_without_fallbacks_the_first_failure_is_told_by_its_own_status(failure, tried, told):
    first, second = scripted(then=failure), scripted()

    error = await failure_of(gateway_of(first, second), provider={"allow_fallbacks": False})

    assert told == (error.status, error.code)
    assert [tried, 0] == calls(first, second)


@pytest.mark.parametrize(
    "failure", [UpstreamRejectedInput("bad input"), ContextTooLong("too long")]
)
async def test_the_inputs_own_fault_stops_at_once_and_counts_against_nobody(failure):
    first, second = scripted(*[failure] * 9), scripted()
    gateway = gateway_of(first, second, breaker=BreakerPolicy(failures=1))

    for _ in range(9):
        error = await failure_of(gateway)
        assert (error.status, error.code) == (400, failure.code)

    await embed(gateway)
    assert [10, 0] == calls(first, second)


@pytest.mark.parametrize("given", [None, "vectors", Vectors("nothing"), 7])
async def test_what_a_plugin_gives_back_instead_of_vectors_is_its_failure(given):
    async def give(_):
        return given

    assert (await failure_of(gateway_of(scripted(then=give)))).code == "upstream_invalid_response"
    await embed(gateway_of(scripted(then=give), scripted()))


async def test_a_refused_key_is_never_told_to_the_client():
    error = await failure_of(
        gateway_of(scripted(then=UpstreamAuthError("Incorrect API key sk-secret-1")))
    )

    assert "sk-secret" not in error.message
    assert (error.status, error.retryable) == (502, False)


async def test_a_refused_key_rests_its_endpoint():
    first, second = scripted(then=UpstreamAuthError("no")), scripted()
    gateway = gateway_of(first, second)

    for _ in range(3):
        await embed(gateway)

    assert [1, 3] == calls(first, second)


async def test_a_rate_limited_endpoint_is_not_called_before_its_rest_is_over():
    first, second = scripted(RateLimited("slow down", retry_after=0.3)), scripted()
    gateway = gateway_of(first, second)

    await embed(gateway)
    await embed(gateway)
    assert [1, 2] == calls(first, second)
    await anyio.sleep(0.32)
    await embed(gateway)
    assert [2, 2] == calls(first, second)


async def test_where_all_are_limited_the_nearest_hint_is_waited_for():
    first, second = (
        scripted(RateLimited("slow", retry_after=60)),
        scripted(RateLimited("slow", retry_after=0.2)),
    )
    began = time.monotonic()

    answer = await embed(gateway_of(first, second))

    assert 0.2 <= time.monotonic() - began < 2
    assert ("b",) == answer.providers
    assert [1, 2] == calls(first, second)


async def test_a_hint_past_the_deadline_is_told_instead_of_waited_for():
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
async def test_whatever_is_called_after_a_rest_is_a_retry_and_has_a_budget(endpoints):
    """Each endpoint is tried once for nothing; then come the ten that are always allowed, for a fifth of a call is none."""
    limited = [scripted(then=RateLimited("slow", retry_after=0.001)) for _ in range(endpoints)]

    assert (await failure_of(gateway_of(*limited, deadline=60))).status == 429
    assert sum(calls(*limited)) == endpoints + 10


@pytest.mark.parametrize("is_told", ["by a refusal", "by another request"])
async def test_what_is_cut_after_a_rest_is_chunks_that_were_not_tried_before(is_told):
    """They are as many as an endpoint that asks for no rest would get: no budget for retries may fail the request."""

    def judge(batch):
        if len(only.batches) == 1:
            if is_told == "by another request":
                gateway.healths.get(
                    gateway.directory.resolve("m").candidates[0]
                ).record_batch_too_large(time.monotonic(), Measure.INPUTS, 32)
            raise RateLimited("slow", retry_after=0.001)
        if len(batch) > 16:
            raise BatchTooLarge("too many inputs")
        return right(batch.texts)

    only = scripted(then=judge)
    gateway = gateway_of(only, deadline=60)

    await embed(gateway, [f"text {at}" for at in range(64)])

    assert len(only.batches) <= 1 + 4 * 2


async def test_who_meets_a_rest_before_its_first_call_spends_no_retry():
    only = scripted(RateLimited("slow", retry_after=0.2))
    gateway = gateway_of(only)

    async with anyio.create_task_group() as group:
        for at in range(100):
            group.start_soon(embed, gateway, [f"text {at}"])

    assert len(only.batches) == 101


async def test_where_the_nearest_fails_after_its_rest_the_next_is_tried():
    async def fail(_):
        await anyio.sleep(0.3)
        raise UpstreamUnavailable("down")

    first = scripted(RateLimited("slow", retry_after=0.05), then=fail)
    second = scripted(RateLimited("slow", retry_after=0.06))

    answer = await embed(gateway_of(first, second, retries=RetryPolicy(attempts=1)))

    assert ("b",) == answer.providers
    assert [2, 2] == calls(first, second)


async def test_the_breaker_opens_and_then_lets_one_probe_through_at_a_time():
    release = anyio.Event()

    async def probed(batch):
        await release.wait()
        return right(batch.texts)

    only = scripted(*[UpstreamUnavailable("down")] * 3, then=probed)
    gateway = gateway_of(
        only,
        retries=RetryPolicy(attempts=1),
        breaker=BreakerPolicy(failures=3, initial_cooldown=0.1),
    )
    for _ in range(3):
        assert (await failure_of(gateway)).status == 502
    error = await failure_of(gateway)
    assert (error.status, error.code) == (503, "no_healthy_endpoint")
    assert error.retry_after
    assert calls(only) == [3]
    await anyio.sleep(0.11)

    async with anyio.create_task_group() as group:
        group.start_soon(embed, gateway, ["the probe"])
        await anyio.wait_all_tasks_blocked()
        assert (await failure_of(gateway, ["not now"])).code == "no_healthy_endpoint"
        assert calls(only) == [4]
        release.set()
    await embed(gateway)
    assert calls(only) == [5]


@pytest.mark.parametrize("endpoints", [1, 2])
async def test_what_is_cut_finds_out_by_one_chunk_that_an_outage_is_over(endpoints):
    """Chunks beside the probe would be refused, and end it: no such request could ever close the breaker."""
    answers = [scripted(UpstreamUnavailable("down")) for _ in range(endpoints)]
    policy = BreakerPolicy(failures=1, initial_cooldown=0.05)
    gateway = gateway_of(
        *answers, accepts={"max_inputs": 2}, retries=RetryPolicy(attempts=1), breaker=policy
    )
    await failure_of(gateway, ["one"])
    assert (await failure_of(gateway)).code == "no_healthy_endpoint"
    await anyio.sleep(0.06)

    await embed(gateway)

    assert [2, 2, 2, 1] == sorted(
        (len(batch) for it in answers for batch in it.batches[1:]), reverse=True
    )


@pytest.mark.parametrize("late", ["answered", "failed", "cancelled"])
async def test_a_call_from_before_the_outage_does_not_end_the_probe(late):
    """However it ends: while the probe is under way nobody else is let in, and the probe's answer is what closes."""
    come, over, probed, given_up = anyio.Event(), anyio.Event(), anyio.Event(), anyio.CancelScope()

    async def judge(batch):
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

    breaker = BreakerPolicy(failures=1, initial_cooldown=0.01)
    gateway = gateway_of(
        scripted(then=judge), deadline=60, retries=RetryPolicy(attempts=1), breaker=breaker
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


async def test_a_cancelled_probe_makes_room_for_the_next():
    only = scripted(UpstreamUnavailable("down"), 60.0)
    gateway = gateway_of(
        only,
        retries=RetryPolicy(attempts=1),
        breaker=BreakerPolicy(failures=1, initial_cooldown=0.01),
    )
    assert (await failure_of(gateway)).status == 502
    await anyio.sleep(0.02)

    with anyio.move_on_after(0.05):
        await embed(gateway)
    await embed(gateway)


async def test_the_failure_that_opens_the_breaker_is_told_as_it_is():
    only = scripted(then=UpstreamUnavailable("down"))
    gateway = gateway_of(only, breaker=BreakerPolicy(failures=1))

    error = await failure_of(gateway)

    assert (error.status, str(error)) == (502, "down")
    assert calls(only) == [1]


async def test_retries_stay_within_their_budget():
    """20 % of the calls of the last 10 s, and 10 besides."""
    only = scripted(then=UpstreamUnavailable("down"))
    gateway = gateway_of(only, breaker=BreakerPolicy(failures=10_000))

    for _ in range(100):
        await failure_of(gateway)

    assert 110 <= len(only.batches) <= 130


async def test_an_upstream_that_hangs_for_the_whole_of_each_request_is_left_alone():
    """The request's own bound ends the call then, not the call's."""
    only = scripted(then=60.0)
    gateway = gateway_of(only, deadline=0.1, breaker=BreakerPolicy(failures=3))
    async with gateway.lifespan():
        told = [(await failure_of(gateway)).status for _ in range(6)]

    assert [504, 504, 504, 503, 503, 503] == told
    assert 3 == len(only.batches)


async def test_a_call_that_hangs_counts_once_however_many_share_it():
    only, told = scripted(then=60.0), []
    gateway = gateway_of(only, deadline=0.3, breaker=BreakerPolicy(failures=3))
    candidate = gateway.directory.routes["m"].candidates[0]
    force_setattr(candidate, "micro_batch_ms", 20.0)

    async def one(text):
        with pytest.raises(EmbedrouteError) as failure:
            await gateway.embed(text, model="m")
        told.append(failure.value.status)

    async with gateway.lifespan(), anyio.create_task_group() as group:
        for at in range(6):
            group.start_soon(one, f"t{at}")

    assert [504] * 6 == told
    assert len(only.batches) < 3
    assert gateway.healths.get(candidate).state(time.monotonic()) is State.CLOSED


async def test_a_shared_call_is_measured_as_the_call_that_it_is():
    """By its own time, without the wait for company, and by all of its tokens."""
    only = scripted(then=0.3)
    gateway = gateway_of(only)
    candidate = gateway.directory.routes["m"].candidates[0]
    force_setattr(candidate, "micro_batch_ms", 200.0)

    async with gateway.lifespan(), anyio.create_task_group() as group:
        for at in range(9):
            group.start_soon(partial(gateway.embed, f"text {at}", model="m"))

    alone, shared = gateway.healths.get(candidate)._samples
    assert [1, 8] == [len(batch) for batch in only.batches]
    assert shared.latency < alone.latency + 0.15
    assert 4 < shared.throughput / alone.throughput


async def test_a_call_that_is_given_up_in_time_says_nothing_of_its_upstream():
    """Its client left, or whoever shared it."""
    only = scripted(then=60.0)
    gateway = gateway_of(only, breaker=BreakerPolicy(failures=1))
    for _ in range(3):
        with anyio.move_on_after(0.05):
            await embed(gateway)

    assert 3 == len(only.batches)


async def test_one_deadline_is_shared_by_the_endpoints():
    slow, slower, last = scripted(then=60.0), scripted(then=60.0), scripted()
    began = time.monotonic()

    answer = await embed(gateway_of(slow, slower, last, deadline=3.0))

    assert time.monotonic() - began == pytest.approx(2.0, abs=0.6)
    assert ("c",) == answer.providers
    assert [1, 1, 1] == calls(slow, slower, last)


async def test_when_nobody_answers_in_time_the_client_is_told_in_time():
    began = time.monotonic()

    error = await failure_of(gateway_of(scripted(then=60.0), scripted(then=60.0), deadline=0.3))

    assert (error.status, error.type) == (504, "timeout_error")
    assert time.monotonic() - began == pytest.approx(0.3, abs=0.2)


# Splitting.


class Split(NamedTuple):
    """Batch sizes that an endpoint sees for a request of ``count`` inputs, if they are always the same, and for the next."""

    backend: Callable[[], ScriptedBackend]
    accepts: dict[str, int]
    first: list[int] | None
    then: list[int]
    count: int = 7


@pytest.mark.parametrize(
    Split._fields,
    [
        Split(scripted, {"max_inputs": 3}, [3, 3, 1], [3, 3, 1]),
        Split(scripted, {"max_inputs": 7}, [7], [7]),
        Split(scripted, {"max_tokens": 2}, [2, 2, 2, 1], [2, 2, 2, 1]),
        Split(scripted, {"max_bytes": ENVELOPE + 20}, [2, 2, 2, 1], [2, 2, 2, 1]),
        Split(scripted, {"max_bytes": 1}, [1] * 7, [1] * 7),
        Split(lambda: capped(32), {}, [64, 32, 32], [32, 32], 64),
        Split(lambda: capped(16), {}, None, [16, 16, 16, 16], 64),
        Split(lambda: capped(8), {}, None, [16, 16, 8, 8, 8, 8], 32),
        Split(lambda: capped(3), {}, [7, 4, 3, 2, 2], [7, 4, 3, 2, 2]),
        Split(
            lambda: capped(32, said="the batch is too large"), {}, [64, 32, 32], [64, 32, 32], 64
        ),
        Split(
            lambda: capped(32, said="too many tokens in request"),
            {},
            [64, 32, 32],
            [64, 32, 32],
            64,
        ),
    ],
)
async def test_chunks_keep_within_caps_and_a_cap_is_learned_once(
    backend, accepts, first, then, count
):
    """A cap is learned of what the refusal counts, and never one below 16 inputs or 8,192 tokens."""
    made = backend()
    gateway = gateway_of(made, accepts=accepts)

    for sizes in (first, then):
        made.batches.clear()
        answer = await embed(gateway, [f"text {at}" for at in range(count)])
        assert answer.trace.attempts == len(made.batches)
        if sizes is not None:
            assert sorted(sizes) == sorted(map(len, made.batches))


@pytest.mark.parametrize("said", ["payload too large", "too many tokens in request"])
async def test_a_cap_on_bytes_or_tokens_is_learned_and_is_none_on_inputs(said):
    """Short texts go in one call, and no call of long ones is refused again."""

    def judge(batch):
        if sum(map(len, batch.texts)) > 250_000:
            raise BatchTooLarge(said)
        return right(batch.texts)

    only = scripted(then=judge)
    gateway = gateway_of(only)
    sizes = []
    for count, length in ((40, 10_000), (80, 5000), (2048, 20)):
        only.batches.clear()
        await embed(gateway, [f"{at:0{length}}" for at in range(count)])
        sizes.append([len(batch) for batch in only.batches])

    assert [[40, 20, 20], [2048]] == [sizes[0], sizes[2]]
    assert len(sizes[1]) <= 3


async def test_a_single_input_that_is_answered_raises_a_cap_that_it_is_over():
    only = scripted(BatchTooLarge("payload too large"))
    gateway = gateway_of(only)
    await embed(gateway, ["a" * 30_000, "b" * 30_000])
    await embed(gateway, ["c" * 55_000])
    await embed(gateway, ["d" * 27_000, "e" * 27_000])

    assert [2, 1, 1, 1, 2] == [len(batch) for batch in only.batches]


async def test_an_endpoint_that_rejects_every_input_without_a_word_of_keys_rests():
    """A refused key may look so. Two inputs show it; one, however often it is sent, does not."""
    only = scripted(then=RejectedByPage("blocked"))
    gateway = gateway_of(only)
    for text, status in [("a", 502), ("a", 502), ("b", 502), ("c", 503)]:
        assert status == (await failure_of(gateway, [text])).status
    assert 3 == len(only.batches)


async def test_inputs_that_are_rejected_rest_no_endpoint_that_serves_others():
    def judge(batch):
        if "bad" in batch.texts[0]:
            raise RejectedByPage("blocked")
        return right(batch.texts)

    gateway = gateway_of(scripted(then=judge))
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


async def test_a_late_refusal_of_a_larger_batch_does_not_raise_what_was_learned():
    """Chunks of one request fail in any order; the smallest cap stays."""
    texts = [f"text {at}" for at in range(112)]

    async def judge(batch):
        await anyio.sleep(0.02 if "text 111" in batch.texts else 0)
        if len(batch) > 16:
            raise BatchTooLarge("too many inputs")
        return right(batch.texts)

    only = scripted(then=judge)
    gateway = gateway_of(only)
    await embed(gateway, texts)
    only.batches.clear()

    await embed(gateway, texts)

    assert [16] * 7 == list(map(len, only.batches))


async def test_chunks_run_side_by_side_but_not_all_at_once():
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


async def test_halves_of_halves_are_not_called_all_at_once_either():
    """And whichever waits for its turn while a cap is learned is cut before it is called."""
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


async def test_no_cap_is_learned_from_an_input_that_is_refused_alone_as_well():
    """Some servers say 413 whatever is too large; one client's input must not cut everybody's calls."""
    long, short = "x" * 40_000, "y" * 40_000

    def judge(batch):
        if long in batch.texts:
            raise (
                BatchTooLarge("payload too large")
                if len(batch) > 1
                else UpstreamRejectedInput("413")
            )
        return right(batch.texts)

    only = scripted(then=judge)
    gateway = gateway_of(only)
    assert (await failure_of(gateway, [long, short])).status == 400
    only.batches.clear()

    await embed(gateway, ["a" * 30_000, "b" * 30_000])

    assert [2] == list(map(len, only.batches))


@pytest.mark.parametrize("inputs", [1, 7])
async def test_what_failed_before_work_was_cut_is_told_as_well(inputs):
    """The first trouble may heal, and the client may try again, however the second endpoint takes its inputs."""
    first, second = (
        scripted(then=UpstreamUnavailable("reset")),
        Narrow(then=UpstreamAuthError("bad key"), width=WIDTH),
    )

    error = await failure_of(gateway_of(first, second), TEXTS[:inputs])

    assert (error.status, error.code, error.retryable) == (502, None, True)


async def test_a_chunk_that_fails_goes_on_alone():
    """Its siblings' vectors are kept: nobody computes them again."""

    def judge(batch):
        if "text 3" in batch.texts:
            raise UpstreamUnavailable("down")
        return right(batch.texts)

    first, second = scripted(then=judge), scripted()

    answer = await embed(gateway_of(first, second, accepts={"max_inputs": 2}))

    assert [["text 2", "text 3"]] == [list(batch.texts) for batch in second.batches]
    assert {"a", "b"} == set(answer.providers)


async def test_what_landed_is_kept_though_the_request_fails():
    async def judge(batch):
        if "text 3" in batch.texts:
            await anyio.sleep(0.05)
            raise UpstreamUnavailable("down")
        return right(batch.texts)

    only = scripted(then=judge)
    gateway = gateway_of(
        only, cache=1 << 20, accepts={"max_inputs": 2}, retries=RetryPolicy(attempts=1)
    )
    assert (await failure_of(gateway)).status == 502
    only.batches.clear()

    answer = await embed(gateway, [text for text in TEXTS if text not in ("text 2", "text 3")])

    assert [] == only.batches
    assert answer.trace.hits == 5


async def test_a_narrow_endpoint_takes_in_pieces_what_a_wide_one_refused():
    class Narrow(ScriptedBackend, frozen=True, kw_only=True):
        accepts = Accepts(max_inputs=2, dimensions=True)

    wide, narrow = scripted(then=UpstreamUnavailable("down")), Narrow(width=WIDTH)

    await embed(gateway_of(wide, narrow))

    assert [1, 2, 2, 2] == sorted(map(len, narrow.batches))
    assert [7, 7] == list(map(len, wide.batches))


async def test_widths_that_differ_within_one_answer_are_refused_where_no_width_is_declared():
    def judge(batch):
        return Vectors(np.ones((len(batch), 4 if "text 3" in batch.texts else 8), "<f4"))

    error = await failure_of(
        gateway_of(scripted(then=judge), dimensions=None, accepts={"max_inputs": 2})
    )

    assert (error.status, error.code) == (502, "upstream_invalid_response")


@pytest.mark.parametrize("most", [None, 2], ids=["whole", "cut by the other"])
@pytest.mark.parametrize("other", [UpstreamUnavailable("down"), UpstreamAuthError("no")], ids=repr)
async def test_who_asks_for_a_rest_is_waited_for_whatever_became_of_the_others(other, most):
    """Also when another endpoint has cut the work before it failed."""

    class Narrow(ScriptedBackend):
        accepts = Accepts(max_inputs=most)

    resting = scripted(RateLimited("slow down", retry_after=0.1))
    gateway = gateway_of(resting, Narrow(then=other, width=WIDTH), retries=RetryPolicy(attempts=1))

    answer = await embed(gateway)

    assert ("a",) == answer.providers


async def test_the_first_answer_settles_the_width_of_a_space_that_nobody_declared():
    """Whoever answers otherwise is passed over, be it a part of one request or a later one."""
    honest = scripted(0.0, UpstreamUnavailable("down"), UpstreamUnavailable("down"))
    odd = ScriptedBackend(width=WIDTH + 2)
    gateway = gateway_of(
        honest, odd, dimensions=None, cache=1 << 20, retries=RetryPolicy(attempts=1)
    )

    await embed(gateway, ["known"])
    for texts in (["known", "new"], ["other"]):
        assert 502 == (await failure_of(gateway, texts)).status
    await embed(gateway, ["known", "new"])

    assert [4, 2] == calls(honest, odd)
