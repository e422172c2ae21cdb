"""Whose fault a failure is: an input's, the request's, an endpoint's or the gateway's.

Upstreams are scripted backends whose rules depend on the texts of a call, as the cause of a real
failure does. ``WRONGS`` are the ways in which upstreams fail for a single text.
"""

import base64
import json
import logging
import math
import time
from collections import Counter

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedroute import Config, EmbedrouteError, Gateway, Provider
from embedroute.backend import Accepts, UpstreamResponse, Vectors
from embedroute.errors import PoolTimeout, UpstreamError, UpstreamTimeout
from embedroute.routing import BreakerPolicy, RetryPolicy, State
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.trace import RequestTrace
from embedroute.upstream_errors import classify_response
from tests.support.elapsed import measured
from tests.support.slow import examples

WIDTH = 8
HARMLESS = "hello"
QUICK = RetryPolicy(repeats=0, first_wait=0.0, longest_wait=0.0)


def fail(status, body, content_type="application/json"):
    def answer(_texts):
        raise classify_response(status, {"content-type": content_type}, body)

    return answer


def spoil(value):
    def answer(texts):
        rows = np.stack([expected_vector(text, WIDTH) for text in texts])
        rows[[text.startswith("bad") for text in texts]] = value
        return Vectors(rows)

    return answer


PAGE = b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Blocked</body></html>"
WRONGS = {
    # ollama/ollama#15582
    "500": fail(500, b'{"error":{"message":"json: unsupported value: NaN","type":"api_error"}}'),
    "a zero row": spoil(0.0),
    "not a number": spoil(math.nan),
    # BerriAI/litellm#12421
    "403 page": fail(403, PAGE, "text/html"),
    "400 without a reason": fail(400, b'{"error":{"message":"Bad request"}}'),
}


class Upstream:
    """Embeds every call without a bad text; one with a bad text fails as ``wrong`` says."""

    def __init__(self, wrong, most=None):
        self.wrong = WRONGS[wrong]
        self.calls = []

        class Limited(ScriptedBackend):
            accepts = Accepts(max_inputs=most)

        self.backend = Limited(then=self.answer, width=WIDTH)

    def answer(self, batch):
        texts = list(batch.texts)
        self.calls.append(texts)
        if any(text.startswith("bad") for text in texts):
            return self.wrong(texts)
        return Vectors(np.stack([expected_vector(text, WIDTH) for text in texts]))


def gateway_of(*upstreams, cache=1 << 20, breaker=None, **endpoint):
    names = "abc"[: len(upstreams)]
    config = Config(
        gateway={"auth": "open", "deadline": 30.0},
        cache={"bytes": cache},
        providers={
            name: Provider(backend=upstream.backend)
            for name, upstream in zip(names, upstreams, strict=True)
        },
        models={
            "m": {
                "dimensions": WIDTH,
                "endpoints": [{"provider": name, **endpoint} for name in names],
            }
        },
    )
    return Gateway(config, retries=QUICK, breaker=breaker, environ={})


async def outcome_of(gateway, texts, **fields):
    try:
        return await gateway.embed(texts, model="m", **fields)
    except EmbedrouteError as error:
        return error


def is_right(embeddings, texts):
    expected = [expected_vector(text, WIDTH).tolist() for text in texts]
    return embeddings.vectors.tolist() == expected


def states(gateway):
    candidates = gateway.models.routes["m"].candidates
    return [gateway.healths.get(each).state(time.monotonic()) for each in candidates]


# One input


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize("count", [2, 3, 8, 31, 64])
async def test_one_bad_input_is_found_and_the_others_are_cached(wrong, count):
    """Within 2·⌈log2 n⌉+2 calls after the first, and then the others are not sent again."""
    upstream = Upstream(wrong)
    gateway = gateway_of(upstream)
    texts = [f"text {index}" for index in range(count)]
    texts[count // 3] = "bad"

    error = await outcome_of(gateway, texts)

    assert (error.status, error.code) == (400, "input_failed")
    assert error.param == f"input[{count // 3}]"
    assert len(upstream.calls) - 1 <= 2 * math.ceil(math.log2(count)) + 2
    assert states(gateway) == [State.CLOSED]
    good = [text for text in texts if text != "bad"]
    upstream.calls.clear()
    assert is_right(await outcome_of(gateway, good), good)
    assert upstream.calls == []


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", WRONGS)
async def test_another_endpoint_serves_the_input_that_one_cannot_embed(wrong):
    first, second = Upstream(wrong), Upstream(wrong)
    second.wrong = lambda texts: Vectors(np.stack([expected_vector(t, WIDTH) for t in texts]))
    gateway = gateway_of(first, second)
    texts = ["a", "b", "bad", "c"]

    embeddings = await outcome_of(gateway, texts, provider={"order": ["a"]})

    assert is_right(embeddings, texts)
    assert states(gateway) == [State.CLOSED, State.CLOSED]


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", WRONGS)
async def test_bad_inputs_alone_do_not_open_the_breaker(wrong):
    """Each request has another bad text, and none of them is answered."""
    upstream = Upstream(wrong)
    gateway = gateway_of(
        upstream,
        breaker=BreakerPolicy(failures=3, minimum_calls=3, slow_start=1),
    )

    for index in range(10):
        error = await outcome_of(gateway, f"bad {index}")
        assert isinstance(error, UpstreamError)

    assert is_right(await outcome_of(gateway, "good"), ["good"])
    assert states(gateway) == [State.CLOSED]


@given(
    st.sampled_from(sorted(WRONGS)),
    st.lists(st.booleans(), min_size=1, max_size=24),
    st.sampled_from([None, 1, 2, 5]),
    st.integers(1, 2),
)
@settings(max_examples=examples(100, quick=30))
def test_good_inputs_are_answered_for_any_mix_of_bad_ones(wrong, mix, most, endpoints):
    """For any split, and also if several endpoints fail in the same way.

    A good input was answered if it is in the cache afterwards.
    """

    async def check():
        upstreams = [Upstream(wrong, most) for _ in range(endpoints)]
        gateway = gateway_of(*upstreams)
        texts = [f"{'bad' if bad else 'good'} {index}" for index, bad in enumerate(mix)]
        outcome = await outcome_of(gateway, texts)
        if not any(mix):
            assert is_right(outcome, texts)
            return
        assert outcome.status in {400, 502}
        if outcome.param is not None and "[" in outcome.param:
            assert texts[int(outcome.param[6:-1])].startswith("bad")
        good = [text for text in texts if text.startswith("good")]
        for upstream in upstreams:
            upstream.calls.clear()
        if good:
            assert is_right(await outcome_of(gateway, good), good)
            assert [] == [call for upstream in upstreams for call in upstream.calls]

    anyio.run(check)


@given(st.sampled_from(sorted(WRONGS)), st.integers(2, 130), st.floats(0, 1, exclude_max=True))
@settings(max_examples=30)
def test_one_bad_input_is_found_in_few_calls_for_any_batch(wrong, count, place):
    async def check():
        upstream = Upstream(wrong)
        gateway = gateway_of(upstream)
        texts = [f"text {index}" for index in range(count)]
        texts[int(place * count)] = "bad"

        error = await outcome_of(gateway, texts)

        assert (error.code, error.param) == ("input_failed", f"input[{int(place * count)}]")
        assert len(upstream.calls) - 1 <= 2 * math.ceil(math.log2(count)) + 2

    anyio.run(check)


@pytest.mark.anyio
async def test_a_part_that_the_second_endpoint_rejects_too_is_bisected_there():
    """The first endpoint rejects the whole, and the second one the chunk with the bad input."""
    upstreams = [Upstream("400 without a reason"), Upstream("400 without a reason", most=3)]
    gateway = gateway_of(*upstreams)
    texts = ["good 0", "good 1", "bad", "good 2"]

    error = await outcome_of(gateway, texts, provider={"order": ["a", "b"]})

    assert (error.code, error.param) == ("input_failed", "input[2]")
    for upstream in upstreams:
        upstream.calls.clear()
    good = ["good 0", "good 1", "good 2"]
    assert is_right(await outcome_of(gateway, good), good)
    assert [upstream.calls for upstream in upstreams] == [[], []]


MIXES = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=1, max_size=10),
    min_size=1,
    max_size=6,
)
"""Concurrent requests with repeated inputs; each input is bad or not, and has a number."""


@given(
    MIXES,
    st.lists(
        st.tuples(st.sampled_from(sorted(WRONGS)), st.sampled_from([None, 1, 3])),
        min_size=1,
        max_size=3,
    ),
    st.sets(st.integers(0, 9), max_size=4),
    st.sampled_from([None, 2.0]),
)
@settings(max_examples=60)
@pytest.mark.thorough
def test_good_inputs_are_answered_beside_bad_ones_of_other_requests(
    mixes, endpoints, cached, micro_batch_ms
):
    """Merged, split, cached, repeated, and with endpoints that fail and are limited differently."""

    async def check():
        upstreams = [Upstream(wrong, most) for wrong, most in endpoints]
        gateway = gateway_of(*upstreams, micro_batch_ms=micro_batch_ms)
        requests = [
            [f"{'bad' if bad else 'good'} {number}" for bad, number in mix] for mix in mixes
        ]
        outcomes = {}

        async def ask(position):
            outcomes[position] = await outcome_of(gateway, requests[position])

        async with gateway.lifespan():
            if cached:
                await gateway.embed([f"good {number}" for number in cached], model="m")
            async with anyio.create_task_group() as group:
                for position in range(len(requests)):
                    group.start_soon(ask, position)
            good = sorted({t for texts in requests for t in texts if t.startswith("good")})
            for upstream in upstreams:
                upstream.calls.clear()
            if good:
                assert is_right(await outcome_of(gateway, good), good)

        assert [] == [call for upstream in upstreams for call in upstream.calls]
        for position, texts in enumerate(requests):
            outcome = outcomes[position]
            if all(text.startswith("good") for text in texts):
                assert is_right(outcome, texts)
            elif outcome.param is not None and "[" in outcome.param:
                assert texts[int(outcome.param[6:-1])].startswith("bad")
            else:
                assert outcome.status in {400, 502}
        assert states(gateway) == [State.CLOSED] * len(upstreams)

    anyio.run(check)


# Soak


@pytest.mark.anyio
@pytest.mark.parametrize("micro_batch_ms", [None, 2.0])
async def test_no_good_request_fails_beside_poisoned_ones(micro_batch_ms):
    """Of the inputs 10 % are poisoned, in four ways. No breaker opens.

    It would open if a fifth of the calls counted as failures, and more of them fail.
    """
    kinds = ["500", "a zero row", "403 page", "400 without a reason"]
    upstream = Upstream("500")

    def answer(batch):
        texts = list(batch.texts)
        upstream.calls.append(texts)
        bad = [text for text in texts if text.startswith("bad")]
        if bad:
            return WRONGS[kinds[int(bad[0].split()[1]) // 10 % len(kinds)]](texts)
        return Vectors(np.stack([expected_vector(text, WIDTH) for text in texts]))

    upstream.backend = ScriptedBackend(then=answer, width=WIDTH)
    breaker = BreakerPolicy(failure_rate=0.2, minimum_calls=3, failures=3)
    gateway = gateway_of(upstream, breaker=breaker, micro_batch_ms=micro_batch_ms)
    outcomes = Counter()

    async def ask(index):
        texts = [
            f"{'bad' if number % 10 == 0 else 'good'} {number}"
            for number in range(3 * index, 3 * index + 3)
        ]
        good = [text for text in texts if text.startswith("good")]
        outcome = await outcome_of(gateway, good)
        is_served = not isinstance(outcome, EmbedrouteError) and is_right(outcome, good)
        outcomes["good" if is_served else "failed"] += 1
        if len(good) < len(texts):
            outcomes[
                "poisoned" if isinstance(await outcome_of(gateway, texts), EmbedrouteError) else "?"
            ] += 1

    async with gateway.lifespan():
        for start in range(0, 400, 40):
            async with anyio.create_task_group() as group:
                for index in range(start, start + 40):
                    group.start_soon(ask, index)

    assert outcomes == {"good": 400, "poisoned": 120}
    assert states(gateway) == [State.CLOSED]


# An endpoint


class Refusing(Upstream):
    """Refuses everything in one way."""

    def __init__(self, status, body):
        super().__init__("500")
        self.wrong = fail(status, body)

    def answer(self, batch):
        self.calls.append(list(batch.texts))
        return self.wrong(list(batch.texts))


REFUSALS = {
    # zuisong/gemini-openai-proxy#4
    "region": (
        400,
        (
            b'{"error":{"code":400,"message":"User location is not supported for the API use.",'
            b'"status":"FAILED_PRECONDITION"}}'
        ),
    ),
    # xorbitsai/inference#1005
    "model": (400, b'{"detail":"Model not found in the model list, uid: bge-m3"}'),
    # tinyhumansai/openhuman#5116
    "model of a project": (
        403,
        (
            b'{"error":{"message":"You are not allowed to generate embeddings from this model",'
            b'"type":"invalid_request_error","param":null,"code":null}}'
        ),
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"]], ids=len)
async def test_the_next_endpoint_serves_what_one_refuses_and_the_first_is_to_blame(refusal, texts):
    """The first is not asked again until its cool-down ends."""
    first, second = Refusing(*REFUSALS[refusal]), Upstream("500")
    gateway = gateway_of(first, second, cache=0)

    for _ in range(3):
        embeddings = await outcome_of(gateway, texts, provider={"order": ["a"]})
        assert is_right(embeddings, texts)

    assert len(first.calls) <= 2
    assert states(gateway) == [State.OPEN, State.CLOSED]


@pytest.mark.anyio
async def test_a_spent_account_is_called_once():
    """Source: bruin-data/dataline#175."""
    body = b'{"error":{"message":"Your account is not active, please check your billing details on our website.","type":"billing_not_active","param":null,"code":"billing_not_active"}}'
    upstream = Refusing(429, body)
    gateway = gateway_of(upstream)

    errors = [await outcome_of(gateway, text) for text in ("a", "b")]

    assert 1 == len(upstream.calls)
    for error in errors:
        assert (error.status, error.code) == (502, "upstream_quota_exhausted")
        assert error.retryable is False
        assert "no quota left" in error.message
        assert "API key" not in error.message


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("failure", "state"),
    [(UpstreamTimeout("slow"), State.OPEN), (PoolTimeout("full"), State.CLOSED)],
)
async def test_a_health_check_that_waits_for_a_connection_says_nothing(failure, state):
    upstream = Refusing(500, b"{}")
    fail_input = upstream.wrong

    def answer(texts):
        if texts == [HARMLESS]:
            raise failure
        return fail_input(texts)

    upstream.wrong = answer
    gateway = gateway_of(upstream, breaker=BreakerPolicy(failures=1, minimum_calls=1, slow_start=1))

    await outcome_of(gateway, "a")

    assert [HARMLESS] in upstream.calls
    assert [state] == states(gateway)


# The gateway


class Server:
    """Answers requests in OpenAI's format in place of a transport, unless ``refuse`` objects."""

    name = "scripted"

    def __init__(self, refuse):
        self.refuse = refuse
        self.bodies = []

    async def send(self, request, _timeout, _limits):
        body = json.loads(request.content)
        self.bodies.append(body)
        if refusal := self.refuse(body):
            return UpstreamResponse(*refusal)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        rows = [
            {"index": index, "embedding": expected_vector(text, WIDTH).tolist()}
            for index, text in enumerate(texts)
        ]
        return UpstreamResponse(200, {}, json.dumps({"data": rows}).encode())

    async def aclose(self):
        pass


def refuse_field(name, message, status=400):
    """Refuse a body with a field; of ``input``, only a list is refused."""

    def refuse(body):
        if name == "input" and not isinstance(body["input"], list):
            return None
        content = json.dumps({"error": {"message": message, "type": "invalid_request_error"}})
        return (status, {}, content.encode()) if name in body else None

    return refuse


def gateway_before(server, **options):
    config = Config(
        gateway={"auth": "open"},
        cache={"bytes": 0},
        providers={"acme": Provider(backend="openai", options={"api_key": "sk-1", **options})},
        models={
            "m": {"dimensions": WIDTH, "matryoshka": True, "endpoints": [{"provider": "acme"}]}
        },
    )
    return Gateway(config, retries=QUICK, environ={}, transport=lambda: server)


OWN_FIELDS = {
    # 1Panel-dev/MaxKB#2639
    "encoding_format": ("encoding_format", "This model does not support encoding_format.", {}),
    "user": ("user", "Unrecognized request argument supplied: user", {"user": "me"}),
    "list of one": ("input", "'input' must be a string", {}),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", OWN_FIELDS)
async def test_a_refused_field_of_the_gateway_is_left_out_from_then_on(case, caplog):
    name, message, fields = OWN_FIELDS[case]
    server = Server(refuse_field(name, message))
    gateway = gateway_before(server)

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert is_right(await outcome_of(gateway, "a", **fields), ["a"])

    assert 4 == len(server.bodies)
    refused = [server.refuse(body) is not None for body in server.bodies]
    assert refused == [True, False, False, False]
    logged = [each for each in caplog.records if "left out" in each.getMessage()]
    assert [("acme:m", name)] == [(each.endpoint, each.field) for each in logged]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "message", "fields"),
    [
        ("dimensions", "This model does not support specifying dimensions.", {"dimensions": 4}),
        ("input", "'input' must be a string", {}),
    ],
)
async def test_a_field_that_changes_the_vector_is_never_left_out(name, message, fields):
    server = Server(refuse_field(name, message))
    texts = ["a", "b"] if name == "input" else "a"

    error = await outcome_of(gateway_before(server), texts, **fields)

    assert (error.status, error.code) == (400, "upstream_refused")
    assert all(server.refuse(body) for body in server.bodies if body["input"] != ["hello"])


@pytest.mark.anyio
async def test_the_upstreams_numbering_is_translated_to_the_clients():
    """Through cache hits, duplicates and chunks."""

    def refuse(body):
        if "bad" not in body["input"]:
            return None
        index = body["input"].index("bad")
        message = f"Invalid 'input[{index}]': string too long. Expected at most 9, got 10."
        error = {"message": message, "type": "invalid_request_error", "param": f"input[{index}]"}
        return 400, {}, json.dumps({"error": error}).encode()

    config = Config(
        gateway={"auth": "open"},
        providers={"acme": Provider(backend="openai", options={"api_key": "sk-1"})},
        models={
            "m": {
                "dimensions": WIDTH,
                "endpoints": [{"provider": "acme", "accepts": {"max_inputs": 3}}],
            }
        },
    )
    gateway = Gateway(config, retries=QUICK, environ={}, transport=lambda: Server(refuse))
    await gateway.embed(["a", "c"], model="m")

    error = await outcome_of(gateway, ["a", "b", "b", "c", "d", "e", "f", "bad", "g"])

    assert (error.status, error.param) == (400, "input[7]")
    assert "input[7]" in error.message
    assert "input[0]" not in error.message


@pytest.mark.anyio
async def test_the_rate_limit_headers_of_an_upstream_are_kept_in_the_trace():
    headers = {"x-ratelimit-remaining-requests": "0", "retry-after": "60", "x-other": "1"}
    gateway = gateway_before(Server(lambda _body: (429, headers, b"{}")))
    trace = RequestTrace("r-1")
    trace.open(trace=True, sent=False, received=False, full=False)

    assert 429 == (await outcome_of(gateway, "a", trace=trace)).status
    [call] = [event for event in trace.events if event["stage"] == "call"]
    assert {"x-ratelimit-remaining-requests": "0"} == call["rate_limits"]


@pytest.mark.anyio
async def test_a_rate_limit_is_waited_for_once_and_stays_a_429():
    upstream = Refusing(
        429, b'{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}'
    )
    upstream.wrong = lambda _texts: (_ for _ in ()).throw(
        classify_response(429, {"retry-after": "0.05"}, b"{}")
    )
    gateway = gateway_of(upstream)

    for _ in range(3):
        error = await outcome_of(gateway, "a")
        assert (error.status, error.code) == (429, "rate_limit_exceeded")
        assert error.retry_after is not None

    assert len(upstream.calls) <= 6


@pytest.mark.anyio
async def test_a_long_rate_limit_is_not_waited_for(caplog):
    upstream = Refusing(429, b"{}")
    upstream.wrong = lambda _texts: (_ for _ in ()).throw(
        classify_response(429, {"retry-after": "7"}, b"{}")
    )
    gateway = gateway_of(upstream)
    with caplog.at_level(logging.INFO):
        async with measured() as elapsed:
            error = await outcome_of(gateway, "a")

    assert (error.status, 6 - elapsed.seconds < error.retry_after <= 7) == (429, True)
    assert elapsed.ticks < 5
    assert 1 == len(upstream.calls)


# What a review has found


@pytest.mark.anyio
async def test_concurrent_first_requests_are_all_sent_again_without_a_rejected_field():
    server = Server(refuse_field("encoding_format", "encoding_format is not supported"))
    gateway = gateway_before(server)
    outcomes = []

    async def ask(text):
        outcomes.append(is_right(await outcome_of(gateway, text), [text]))

    async with anyio.create_task_group() as group:
        for text in "abcdefgh":
            group.start_soon(ask, text)

    assert outcomes == [True] * 8


@pytest.mark.anyio
async def test_a_field_is_left_out_only_if_the_call_is_then_answered():
    """A blank text is refused as a list and as a string; the list was not at fault."""

    def refuse(body):
        if body["input"] in ([" "], " "):
            return 400, {}, b'{"error":{"message":"\'input\' must be an array of strings"}}'
        return None

    server = Server(refuse)
    gateway = gateway_before(server)

    assert 400 == (await outcome_of(gateway, " ")).status
    assert is_right(await outcome_of(gateway, "a"), ["a"])
    assert server.bodies[-1]["input"] == ["a"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 500])
async def test_parameters_that_an_upstream_cannot_serve_harm_no_other_request(status):
    def refuse(body):
        return (status, {}, b'{"error":{"message":"no"}}') if "dimensions" in body else None

    gateway = gateway_before(Server(refuse))
    for number in range(8):
        texts = [f"{number} a", f"{number} b"]
        assert isinstance(await outcome_of(gateway, texts, dimensions=4), EmbedrouteError)

    assert is_right(await outcome_of(gateway, "good"), ["good"])
    assert states(gateway) == [State.CLOSED]


@pytest.mark.anyio
async def test_concurrent_requests_share_one_harmless_text():
    calls = []

    async def answer(batch):
        calls.append(list(batch.texts))
        await anyio.sleep(0.02)
        raise classify_response(500, {}, b'{"error":{"message":"broken"}}')

    upstream = Upstream("500")
    upstream.backend = ScriptedBackend(then=answer, width=WIDTH)
    gateway = gateway_of(upstream)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(outcome_of, gateway, [f"{number} a", f"{number} b"])

    assert 1 == calls.count([HARMLESS])
    assert states(gateway) == [State.OPEN]


@pytest.mark.anyio
async def test_repeating_the_same_texts_in_an_outage_opens_the_breaker():
    """They count once, but the harmless text fails too."""
    upstream = Refusing(500, b'{"error":{"message":"broken"}}')
    gateway = gateway_of(upstream)

    for _ in range(40):
        await outcome_of(gateway, ["a", "b", "c", "d"])

    assert len(upstream.calls) <= 10
    assert states(gateway) == [State.OPEN]


@pytest.mark.anyio
async def test_an_endpoint_that_fails_at_random_blames_no_input():
    """Every other call fails, for any inputs."""
    upstream = Upstream("500")

    def answer(batch):
        upstream.calls.append(list(batch.texts))
        if len(upstream.calls) % 2:
            raise classify_response(500, {}, b'{"error":{"message":"broken"}}')
        return Vectors(np.stack([expected_vector(text, WIDTH) for text in batch.texts]))

    upstream.backend = ScriptedBackend(then=answer, width=WIDTH)
    gateway = gateway_of(upstream, cache=0)

    for number in range(20):
        texts = [f"{number} {index}" for index in range(4)]
        assert is_right(await outcome_of(gateway, texts), texts)


@pytest.mark.anyio
async def test_an_endpoint_without_texts_is_not_sent_a_harmless_one():
    """Its breaker opens after the failures of enough different inputs."""
    calls = []

    class Images(ScriptedBackend):
        accepts = Accepts(texts=False, modalities=("text", "image"))

    def answer(batch):
        calls.append(batch)
        raise classify_response(500, {}, b'{"error":{"message":"broken"}}')

    config = Config(
        gateway={"auth": "open"},
        providers={"a": Provider(backend=Images(then=answer, width=WIDTH))},
        models={
            "m": {"dimensions": WIDTH, "modalities": ["image"], "endpoints": [{"provider": "a"}]}
        },
    )
    gateway = Gateway(config, retries=QUICK, environ={})
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
    found = []
    for number in [0, 0, 0, 0, 1, 2, 3, 4]:
        await outcome_of(gateway, [{"content": [part] * (number + 1)}])
        found += states(gateway)

    assert [State.CLOSED] * 7 + [State.OPEN] == found
    assert not any(batch.texts for batch in calls)


@pytest.mark.anyio
async def test_an_input_that_fails_alone_is_embedded_by_the_fallback_model():
    first, second = Upstream("500"), Upstream("500")
    second.wrong = lambda texts: Vectors(np.stack([expected_vector(t, WIDTH) for t in texts]))
    config = Config(
        gateway={"auth": "open"},
        providers={"a": Provider(backend=first.backend), "b": Provider(backend=second.backend)},
        models={
            "m": {"dimensions": WIDTH, "fallback": "n", "endpoints": [{"provider": "a"}]},
            "n": {"dimensions": WIDTH, "endpoints": [{"provider": "b"}]},
        },
    )
    gateway = Gateway(config, retries=QUICK, environ={})

    embeddings = await outcome_of(gateway, ["bad", "good"])

    assert (embeddings.model, is_right(embeddings, ["bad", "good"])) == ("n", True)
