"""Requests and tokens per minute, and concurrent requests, of callers, models and the gateway."""

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import Caller, Config, Gateway, Provider, RateLimits, embeddings_app
from embedroute.errors import RateLimitExceeded, TooManyTokens, UpstreamUnavailable
from embedroute.limits import MOST_CALLERS, Rate, RateLimiter
from embedroute.testing import ScriptedBackend
from tests.support.virtual_time import virtual_loop

pytestmark = pytest.mark.anyio
KEY = "sk-team-a-0123456789"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return virtual_loop(request.param)


def gateway_of(*, backend=None, key=None, model=None, gateway=None, **settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", "limits": gateway, **settings},
            keys={
                "a": {"key": KEY, "limits": key},
                "b": {"key": f"{KEY}-b"},
            },
            providers={"p": Provider(backend=backend or ScriptedBackend(width=8))},
            models={
                name: {"dimensions": 8, "endpoints": [{"provider": "p"}], "limits": limits}
                for name, limits in (("m", model), ("other", None))
            },
        ),
        environ={},
        clock=anyio.current_time,
    )


async def post(gateway, text="text", *, key=KEY, model="m"):
    transport = httpx2.ASGITransport(embeddings_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
        return await client.post(
            "/v1/embeddings",
            json={"model": model, "input": text},
            headers={"authorization": f"Bearer {key}"},
        )


def limit_headers(response):
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in response.headers.items()
        if name.startswith("x-ratelimit-")
    }


# One rate.


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_a_rate_admits_at_most_a_minutes_units_and_what_refills(per_minute, steps):
    rate, now, taken = Rate(per_minute), 0.0, []
    for pause, units in steps:
        now += pause
        if units <= per_minute and not rate.wait(now, units):
            rate.take(now, units)
            taken.append((now, units))
    for first, (began, _) in enumerate(taken):
        for last in range(first, len(taken)):
            used = sum(units for _, units in taken[first : last + 1])
            assert used <= per_minute * (1 + (taken[last][0] - began) / 60) + 1e-3


def test_a_refused_caller_can_do_after_the_wait_what_it_was_refused():
    rate = Rate(7)
    rate.take(100.0, 5)
    wait = rate.wait(100.0, 4)
    assert wait > 0
    assert rate.wait(100.0 + wait - 0.001, 4) > 0
    assert rate.wait(100.0 + wait, 4) == pytest.approx(0.0, abs=1e-9)
    assert rate.remaining(100.0) == 2
    assert rate.reset(100.0) == pytest.approx(5 * 60 / 7)


@pytest.mark.parametrize("per_minute", [3, 7, 49, 1_000_003])
def test_units_that_are_put_back_can_be_taken_again(per_minute):
    rate = Rate(per_minute)
    for number in range(50):
        now = 1000 + number / 7
        assert not rate.wait(now, per_minute)
        rate.take(now, per_minute)
        rate.take(now + 0.01, -per_minute)


# Over HTTP.


async def test_a_key_over_its_requests_per_minute_gets_a_429_and_others_do_not():
    gateway = gateway_of(key={"requests_per_minute": 2})

    answers = [await post(gateway, f"text {number}") for number in range(3)]

    assert [each.status_code for each in answers] == [200, 200, 429]
    refused = answers[2]
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("30", "30000")
    assert refused.json()["error"] == {
        "message": "This caller may make 2 requests per minute. Try again in 30s.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert (await post(gateway, key=f"{KEY}-b")).status_code == 200
    await anyio.sleep(30)
    assert [(await post(gateway)).status_code for _ in range(2)] == [200, 429]


async def test_responses_have_the_headers_of_openai():
    limits = {"requests_per_minute": 60, "tokens_per_minute": 6000}
    gateway = gateway_of(key=limits)

    first, second = [await post(gateway, text) for text in ("x" * 400, "y" * 4)]

    assert limit_headers(first) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "6000",
        "remaining-tokens": "5900",
        "reset-tokens": "1s",
    }
    assert limit_headers(second)["remaining-requests"] == "58"
    assert limit_headers(second)["remaining-tokens"] == "5899"
    assert limit_headers(await post(gateway, key=f"{KEY}-b")) == {}


@pytest.mark.parametrize(
    ("where", "refused"),
    [
        ("gateway", {"m": [200, 429], "other": [429, 429]}),
        ("model", {"m": [200, 429], "other": [200, 200]}),
    ],
)
async def test_a_limit_of_the_gateway_or_a_model_holds_for_all_callers(where, refused):
    gateway = gateway_of(**{where: {"requests_per_minute": 1}})
    for model, statuses in refused.items():
        for key, status in zip((KEY, f"{KEY}-b"), statuses, strict=True):
            answer = await post(gateway, model=model, key=key)
            assert answer.status_code == status
            if status == 429:
                assert answer.json()["error"]["message"].startswith("All callers")


async def test_headers_are_those_of_the_limit_with_the_least_left():
    gateway = gateway_of(
        key={"requests_per_minute": 10},
        model={"requests_per_minute": 3},
        gateway={"requests_per_minute": 5},
    )

    assert limit_headers(await post(gateway))["limit-requests"] == "3"
    assert limit_headers(await post(gateway, model="other"))["limit-requests"] == "5"


async def test_a_refused_request_uses_up_no_other_limit():
    gateway = gateway_of(key={"requests_per_minute": 10}, model={"requests_per_minute": 1})
    await post(gateway)
    refused = [await post(gateway) for _ in range(5)]

    answer = await post(gateway, model="other")

    assert {each.status_code for each in refused} == {429}
    assert limit_headers(answer)["remaining-requests"] == "8"


async def test_a_request_that_fails_gives_its_tokens_back():
    backend = ScriptedBackend(then=UpstreamUnavailable("down"), width=8)
    gateway = gateway_of(backend=backend, key={"tokens_per_minute": 100})

    answers = [await post(gateway, "x" * 400) for _ in range(3)]

    assert {each.status_code for each in answers} <= {502, 503}
    assert limit_headers(answers[-1])["remaining-tokens"] == "100"


async def test_tokens_are_counted_as_the_upstream_bills_them():
    gateway = gateway_of(key={"tokens_per_minute": 1000})

    bought, cached = await post(gateway, "x" * 400), await post(gateway, "x" * 400)

    assert limit_headers(bought)["remaining-tokens"] == "900"
    assert limit_headers(cached)["remaining-tokens"] == "900"


async def test_a_request_that_no_minute_allows_is_not_worth_a_retry():
    answer = await post(gateway_of(key={"tokens_per_minute": 10}), "x" * 400)

    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "this request needs about 100. Send fewer inputs" in answer.json()["error"]["message"]


async def test_concurrent_requests_are_bounded_and_end_with_their_clients():
    backend = ScriptedBackend(then=5.0, width=8)
    gateway = gateway_of(backend=backend, key={"concurrent_requests": 2})
    statuses = []

    async def send(number):
        statuses.append((await post(gateway, f"text {number}")).status_code)

    with anyio.move_on_after(1):
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(send, number)
    assert statuses == [429]
    async with anyio.create_task_group() as group:
        group.start_soon(send, 4)
        group.start_soon(send, 5)
    assert statuses == [429, 200, 200]


# In process.


async def test_callers_of_the_host_are_limited_by_name():
    gateway = gateway_of()
    limits = RateLimits(requests_per_minute=1)

    await gateway.embed("text", model="m", caller=Caller(name="user 1", limits=limits))
    await gateway.embed("text", model="m", caller=Caller(name="user 2", limits=limits))
    with pytest.raises(RateLimitExceeded) as caught:
        await gateway.embed("text", model="m", caller=Caller(name="user 1", limits=limits))

    assert caught.value.retry_after == pytest.approx(60)
    with pytest.raises(TooManyTokens):
        await gateway.embed(
            "x" * 400,
            model="m",
            caller=Caller(name="user 3", limits=RateLimits(tokens_per_minute=9)),
        )


def test_changed_limits_of_a_caller_count_what_was_used():
    limiter = RateLimiter(None, {})

    def begin(per_minute):
        limits = RateLimits(requests_per_minute=per_minute, concurrent_requests=9)
        limiter.begin("user", limits, "m", 1, 0.0)

    for _ in range(4):
        begin(5)
    begin(6)
    begin(6)
    with pytest.raises(RateLimitExceeded) as caught:
        begin(6)
    assert caught.value.retry_after == pytest.approx(10)


def test_callers_that_use_nothing_are_forgotten():
    limiter = RateLimiter(None, {})
    limits = RateLimits(requests_per_minute=60)
    for number in range(MOST_CALLERS):
        limiter.end(limiter.begin(f"user {number}", limits, "m", 1, 0.0), 1, 0.0)
    for _ in range(60):
        limiter.begin("busy", limits, "m", 1, 30.0)

    with pytest.raises(RateLimitExceeded):
        limiter.begin("busy", limits, "m", 1, 30.0)
    assert limiter.callers == 1
