"""Endpoints with as many calls in flight as they can serve: who waits, who is refused, who is spared."""

import asyncio
from contextlib import suppress

import httpx2
import pytest

from embedroute import Config, EmbedrouteError, Gateway, Model, Provider, embeddings_app
from embedroute.backends.hashed import hash_batch
from embedroute.errors import (
    EndpointBusy,
    RateLimited,
    UpstreamAuthError,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.limits import FIRST
from embedroute.routing import State
from embedroute.testing import ScriptedBackend
from embedroute.trace import RequestTrace
from tests.support.virtual_time import run_in_virtual_time

WIDTH = 8


class Counting:
    """A backend that answers after ``seconds`` and counts how many calls it has at a time."""

    def __init__(self, seconds=0.1, refuse=None):
        self.seconds, self.refuse = seconds, refuse
        self.calls = self.now = self.most = 0
        self.answer = None

    async def respond(self, batch):
        if self.answer is not None:
            return await self.answer(batch)
        self.calls += 1
        if self.refuse is not None and self.now >= self.refuse[0]:
            await asyncio.sleep(0.005)
            raise self.refuse[1]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        return hash_batch(batch, batch.dimensions or WIDTH)

    @property
    def backend(self):
        return ScriptedBackend(then=self.respond, width=WIDTH)


def gateway_of(*upstreams, deadline=60.0, endpoint=None, **provider):
    names = [f"p{number}" for number in range(len(upstreams))]
    endpoints = [{"provider": name, **(endpoint or {})} for name in names]
    return Gateway(
        Config(
            gateway={"auth": "open", "deadline": deadline},
            cache={"bytes": 0},
            providers={
                name: Provider(backend=upstream.backend, **provider)
                for name, upstream in zip(names, upstreams, strict=True)
            },
            models={"m": Model(dimensions=WIDTH, matryoshka=True, endpoints=endpoints)},
        ),
        environ={},
        clock=asyncio.get_running_loop().time,
    )


async def embed_all(gateway, number, **fields):
    return await asyncio.gather(
        *[gateway.embed(f"text {at}", model="m", **fields) for at in range(number)],
        return_exceptions=True,
    )


def health_of(gateway):
    [candidate] = gateway.models.routes["m"].candidates
    return gateway.healths.get(candidate)


def state_of(gateway):
    health = health_of(gateway)
    now = asyncio.get_running_loop().time()
    return health.state(now), health.available_at(now) - now


@pytest.mark.parametrize(
    ("provider", "endpoint", "most"),
    [
        ({}, {}, FIRST),
        ({"max_concurrent": 3}, {}, 3),
        ({}, {"max_concurrent": 2}, 2),
        ({"max_concurrent": 3}, {"max_concurrent": 5}, 5),
    ],
)
def test_an_endpoint_gets_no_more_calls_at_a_time_than_configured(provider, endpoint, most):
    async def main():
        upstream = Counting()
        answers = await embed_all(gateway_of(upstream, endpoint=endpoint, **provider), 40)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert upstream.most == most

    run_in_virtual_time(main())


def test_a_trace_says_why_an_endpoint_rests():
    async def main():
        refusing = Counting(refuse=(0, UpstreamAuthError("no such key")))
        gateway = gateway_of(refusing, Counting())
        await gateway.embed("first", model="m", provider={"order": ["p0"]})
        trace = RequestTrace("r")
        trace.open(trace=True, sent=False, received=False, full=False)
        await gateway.embed("second", model="m", provider={"order": ["p0"]}, trace=trace)

        (skipped,) = [event for event in trace.events if event.get("action") == "skipped"]
        assert "it rests: API key rejected" == skipped["reason"]

    run_in_virtual_time(main())


def test_a_trace_tells_how_long_a_call_has_waited():
    async def main():
        gateway = gateway_of(Counting(), max_concurrent=1)
        trace = RequestTrace("r")
        trace.open(trace=True, sent=False, received=False, full=False)
        await asyncio.gather(
            gateway.embed("first", model="m"), gateway.embed("second", model="m", trace=trace)
        )
        selected = [event for event in trace.events if event["stage"] == "select"]
        assert [(each["action"], each.get("reason"), each.get("ms")) for each in selected[-2:]] == [
            ("skipped", "it is full", None),
            ("waited", None, 100.0),
        ]
        assert trace.attempts == 1

    run_in_virtual_time(main())


def test_a_full_endpoint_is_followed_by_one_with_room():
    async def main():
        first, second = Counting(), Counting()
        gateway = gateway_of(first, second, max_concurrent=2)
        began = asyncio.get_running_loop().time()
        await embed_all(gateway, 4, provider={"order": ["p0"]})
        assert (first.calls, second.calls) == (2, 2)
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.1)

    run_in_virtual_time(main())


def test_what_cannot_be_served_in_time_is_refused_at_once_with_503():
    async def main():
        upstream = Counting(seconds=0.5)
        gateway = gateway_of(upstream, deadline=2.0, max_concurrent=1)
        await gateway.embed("known", model="m")
        transport = httpx2.ASGITransport(embeddings_app(gateway))
        async with httpx2.AsyncClient(transport=transport, base_url="http://g") as client:
            posts = [
                client.post("/v1/embeddings", json={"model": "m", "input": f"text {at}"})
                for at in range(6)
            ]
            answers = await asyncio.gather(*posts)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert {answer.status_code for answer in refused} == {503}
        assert {answer.json()["error"]["code"] for answer in refused} == {"overloaded"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert 2 <= len(refused) <= 4
        assert state_of(gateway) == (State.CLOSED, 0.0)

    run_in_virtual_time(main())


@pytest.mark.parametrize(
    "refusal",
    [
        RateLimited("429", upstream_status=429),
        UpstreamUnavailable("503", upstream_status=503),
    ],
)
def test_a_refusal_beside_other_calls_says_nothing_about_the_endpoint(refusal):
    async def main():
        upstream = Counting(refuse=(4, refusal))
        gateway = gateway_of(upstream)
        answers = await embed_all(gateway, 24)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert state_of(gateway) == (State.CLOSED, 0.0)
        assert upstream.calls <= 24 + 20
        before = upstream.calls
        await embed_all(gateway, 24)
        # It knows now that four calls are served at a time.
        assert upstream.calls - before <= 24 + 1

    run_in_virtual_time(main())


def test_a_429_that_comes_alone_starts_a_cooldown():
    async def main():
        gateway = gateway_of(Counting(refuse=(0, RateLimited("429", upstream_status=429))))
        with suppress(EmbedrouteError, TimeoutError):
            await asyncio.wait_for(gateway.embed("text", model="m"), 0.5)
        assert state_of(gateway)[1] == pytest.approx(0.5, abs=0.05)

    run_in_virtual_time(main())


def test_a_call_that_waits_is_not_made_after_the_breaker_has_opened():
    async def main():
        upstream = Counting(seconds=0.1)
        gateway = gateway_of(upstream, max_concurrent=1)
        requests = asyncio.ensure_future(embed_all(gateway, 30))
        await asyncio.sleep(0.05)
        health = health_of(gateway)
        permit = health.acquire(asyncio.get_running_loop().time())
        health.record_rejection(permit, asyncio.get_running_loop().time())
        outcomes = await requests
        assert upstream.calls == 1
        assert sum(isinstance(outcome, EmbedrouteError) for outcome in outcomes) == 29
        assert not any(isinstance(outcome, EndpointBusy) for outcome in outcomes)

    run_in_virtual_time(main())


def test_a_merged_call_takes_one_slot():
    async def main():
        upstream = Counting()
        gateway = gateway_of(upstream, endpoint={"micro_batch_ms": 5.0}, max_concurrent=2)
        answers = await embed_all(gateway, 30)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert upstream.calls == 2
        assert upstream.most == 2

    run_in_virtual_time(main())


def test_a_cancelled_request_gives_its_slot_back():
    async def main():
        upstream = Counting()
        gateway = gateway_of(upstream, max_concurrent=1)
        began = asyncio.get_running_loop().time()
        tasks = [asyncio.ensure_future(gateway.embed(f"text {at}", model="m")) for at in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()  # it waits
        tasks[0].cancel()  # it is called
        await tasks[2]
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.11)
        await gateway.embed("after", model="m")

    run_in_virtual_time(main())


def test_merged_calls_take_turns_at_a_full_endpoint():
    """Calls of different users are not merged with each other."""

    async def main():
        upstream = Counting()
        gateway = gateway_of(upstream, endpoint={"micro_batch_ms": 5.0}, max_concurrent=1)
        began = asyncio.get_running_loop().time()
        for _ in range(2):
            answers = await asyncio.gather(
                *[gateway.embed(f"text {at}", model="m", dimensions=at) for at in (4, 6, 8)]
            )
            assert [answer.vectors.shape for answer in answers] == [(1, 4), (1, 6), (1, 8)]
        assert (upstream.calls, upstream.most) == (6, 1)
        assert asyncio.get_running_loop().time() - began == pytest.approx(0.6, abs=0.05)

    run_in_virtual_time(main())


def test_a_retry_after_is_respected_although_only_too_many_calls_were_made():
    async def main():
        refusal = RateLimited("429", upstream_status=429, retry_after=2.0)
        upstream = Counting(refuse=(4, refusal))
        gateway = gateway_of(upstream)
        requests = asyncio.ensure_future(embed_all(gateway, 8))
        await asyncio.sleep(0.05)
        assert state_of(gateway) == (State.CLOSED, pytest.approx(1.95, abs=0.01))
        await requests
        assert upstream.calls <= 8 + 4

    run_in_virtual_time(main())


def test_error_responses_are_no_stall():
    """Each of them frees a slot, so the calls in flight are not given up."""

    async def main():
        async def reject(_batch):
            await asyncio.sleep(0.1)
            raise UpstreamRejectedInput("too strange", upstream_status=400)

        gateway = gateway_of(upstream := Counting())
        await gateway.embed("known", model="m")
        upstream.answer = reject
        began = asyncio.get_running_loop().time()
        errors = await embed_all(gateway, 20 * FIRST)
        assert {type(error) for error in errors} == {UpstreamRejectedInput}
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.0, abs=0.2)

    run_in_virtual_time(main())
