"""Fallback errors of other gateways: mixed vector spaces, too many or too few calls."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytest

from embedroute.backend import Vectors
from embedroute.errors import (
    ConnectError,
    InvalidUpstreamResponse,
    RateLimited,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.testing import ScriptedBackend, expected_vector
from tests.regressions.requesting import (
    ONCE,
    TEXTS,
    WIDTH,
    ask,
    at,
    facts_of,
    gateway_of,
    inputs_of,
    numbers_in,
    right,
    scripted,
    table,
)

pytestmark = pytest.mark.anyio

DOWN, DEAD, SLOW = UpstreamUnavailable("reset"), ConnectError("refused"), UpstreamTimeout("slow")
REST, KEY, GONE = (
    RateLimited("slow down", retry_after=100),
    UpstreamAuthError("no"),
    UpstreamModelNotFound("no such model"),
)
OTHER_WIDTH = Vectors(np.ones((len(TEXTS), WIDTH + 1), "<f4"))
OK = 0.0
"""A step of a script: the correct vectors without delay."""


class Course(NamedTuple):
    """Scripts of the endpoints of "m", the expected calls to each, and the last response."""

    scripts: Sequence[Sequence[object]]
    calls: Sequence[int]
    provider: str | None = None
    status: int = 200
    code: str | None = None
    asks: int = 1
    preferences: Mapping[str, object] = {"order": ["a"]}


LIMITED, RESTING, REFUSED, BAD = (
    "rate_limit_exceeded",
    "no_healthy_endpoint",
    "upstream_credentials",
    "upstream_invalid_response",
)

COURSES = {
    # A retry, at the same or another endpoint.
    "litellm-27363-async-retries": Course([[DOWN, OK]], [2], "a"),
    "litellm-27363-async-failover": Course([[DOWN], [OK]], [2, 1], "b"),
    "litellm-14403-primary-dead": Course([[DEAD], [OK]], [2, 1], "b"),
    "litellm-14403-all-dead": Course([[DEAD], [DEAD]], [2, 2], "a,b", 502),
    "freellmapi-195-inside-the-family": Course([[DOWN], [DOWN], [OK]], [2, 2, 1], "c"),
    "reflexio-141-read-timeout-not-repeated": Course([[SLOW]], [1], "a", 504),
    "reflexio-141-read-timeout-moves-on": Course([[SLOW], [OK]], [1, 1], "b"),
    "reflexio-141-connect-error-repeated": Course([[DEAD, OK]], [2], "a"),
    "bifrost-refused-key-moves-on": Course([[KEY], [OK]], [1, 1], "b"),
    "bifrost-all-fail-reports-the-first": Course(
        [[InvalidUpstreamResponse("nonsense")], [DOWN]], [2, 2], "a,b", 502, BAD
    ),
    "bifrost-all-fail-reports-the-temporary-failure": Course([[KEY], [DOWN]], [1, 2], "a,b", 502),
    "bifrost-all-keys-dead": Course([[KEY], [KEY]], [1, 1], "a,b", 502, REFUSED),
    "vllm-53742-model-only-here-unknown": Course([[GONE], [OK]], [1, 1], "b"),
    "litellm-context-window-is-no-outage": Course(
        [[UpstreamRejectedInput("too long")], [OK]], [1, 0], "a", 400
    ),
    "openrouter-no-fallbacks-keeps-the-status": Course(
        [[REST], [OK]],
        [1, 0],
        "a",
        429,
        LIMITED,
        preferences={"order": ["a"], "allow_fallbacks": False},
    ),
    # A failing endpoint is not called for a while.
    "litellm-32574-cooldown-after-failures": Course([[DOWN], [OK]], [5, 4], "b", asks=4),
    "litellm-32574-no-cooldown-before": Course([[DOWN], [OK]], [4, 2], "b", asks=2),
    "litellm-cooldown-at-once-on-429": Course([[REST], [OK]], [1, 3], "b", asks=3),
    "litellm-cooldown-at-once-on-401": Course([[KEY], [OK]], [1, 3], "b", asks=3),
    "bifrost-dead-key-is-remembered": Course([[KEY], [OK]], [1, 2], "b", asks=2),
    "litellm-3646-all-cooling-429": Course([[REST], [REST]], [1, 1], None, 429, LIMITED, asks=2),
    "litellm-3646-all-cooling-down": Course([[DOWN], [DOWN]], [5, 5], None, 503, RESTING, asks=4),
    "litellm-3646-one-cooling-one-dead": Course([[KEY], [KEY]], [1, 1], None, 502, REFUSED, asks=3),
    "openrouter-30-s-after-an-outage": Course([[DOWN], [OK]], [2, 3], "b", asks=3, preferences={}),
    # Other dimensions mean another vector space.
    "vellum-assistant-1419-other-width": Course([[OTHER_WIDTH]], [2], "a", 502, BAD),
    "muninndb-582-other-width-beside": Course([[DOWN], [OTHER_WIDTH]], [2, 2], "a,b", 502),
    "qmd-761-other-width-passed-over": Course([[OTHER_WIDTH], [OK]], [2, 1], "b"),
}


def played(script):
    """A backend that plays ``script`` and then repeats its last step."""
    *first, last = [
        (lambda _, step=step: step) if isinstance(step, Vectors) else step for step in script
    ]
    return ScriptedBackend(script=first, then=last, width=WIDTH)


@table(" ".join(Course._fields), COURSES)
async def test_calls_each_provider_the_expected_number_of_times(
    scripts, calls, provider, status, code, asks, preferences
):
    """The prices differ so much that the choice by price is not random."""
    backends = {slug: played(script) for slug, script in zip("abc", scripts, strict=False)}
    prices = {slug: {"price": 10 ** (9 * at)} for at, slug in enumerate(backends)}
    gateway = gateway_of(backends, endpoints=prices, cache=0)
    answers = [await ask(gateway, provider=preferences) for _ in range(asks)]

    assert (status, provider) == (answers[-1].status, answers[-1].header("x-embedroute-provider"))
    assert list(calls) == [len(backend.batches) for backend in backends.values()]
    assert (status in {429, 503}) == (answers[-1].header("retry-after") is not None)
    assert (code == REFUSED) == (answers[-1].header("x-should-retry") == "false")
    if status == 200:
        assert scripted(TEXTS) == numbers_in(answers[-1])
    else:
        assert (None, code) == facts_of(answers[-1].error)


def turned(batch):
    """The vectors of another vector space: the negated ones."""
    return Vectors(-np.array([expected_vector(text, WIDTH) for text in batch.texts]))


A, AB = ["a"], ["a", "b"]


@table(
    "script fallback asks models sent",
    {
        "openclaw-53992-no-fallback-unasked": ([DOWN], None, [A], [None], []),
        "muninndb-582-fails-closed": ([KEY], None, [AB], [None], []),
        "openclaw-91719-fallback-is-told": ([DOWN], "n", [AB], ["n"], [AB]),
        "unsloth-10315-what-produced-the-vectors": ([GONE], "n", [A], ["n"], [A]),
        "openclaw-91719-the-whole-request": ([OK, DOWN], "n", [A, AB], ["m", "n"], [AB]),
        "remnic-1288-no-batch-of-two-spaces": (
            [OK, DOWN, DOWN],
            "n",
            [A, AB, A],
            ["m", "n", "m"],
            [AB],
        ),
        "openclaw-96534-does-not-stay-there": ([DOWN, OK], "n", [A, A], ["n", "m"], [A]),
        "qmd-761-kept-apart-in-the-cache": ([DOWN, OK], "n", [AB, AB, A], ["n", "m", "m"], [AB]),
        "openclaw-91719-not-for-the-inputs-fault": (
            [UpstreamRejectedInput("bad")],
            "n",
            [A],
            [None],
            [],
        ),
    },
)
async def test_never_mixes_vector_spaces(script, fallback, asks, models, sent):
    """With a fallback model, all vectors of a response are from one model, which it names."""
    backends = {"a": played(script), "b": ScriptedBackend(then=turned)}
    facts = {name: {"endpoints": [{"provider": slug}]} for name, slug in (("m", "a"), ("n", "b"))}
    facts["m"]["fallback"] = fallback
    gateway = gateway_of(backends, models=facts, retries=ONCE)
    for texts, model in zip(asks, models, strict=True):
        answer = await ask(gateway, input=texts)

        assert (model is not None) == (answer.status == 200)
        if model:
            sign = 1 if model == "m" else -1
            assert (model, "n" if model == "n" else None) == (
                answer.json["model"],
                answer.header("x-embedroute-model-fallback"),
            )
            assert scripted(texts) == (sign * np.array(numbers_in(answer))).tolist()

    assert sent == inputs_of(backends["b"])


@table(
    "modes deadline status",
    {
        "litellm-37742-dead-upstream-alone": (["stalled"], 0.3, 504),
        "litellm-14403-endless-wait-for-a-body": (["stalled_half_body"], 0.3, 504),
        "litellm-37742-another-is-there": (["stalled", "honest"], 2.0, 200),
    },
)
async def test_ends_every_request_at_its_deadline(upstreams, modes, deadline, status):
    """Clients of another gateway waited for 685 s. Each endpoint gets a share of the deadline."""
    for upstream, mode in zip(upstreams, modes, strict=False):
        upstream.tell(mode)
    gateway = gateway_of(
        {slug: at(upstream) for slug, upstream, _ in zip("ab", upstreams, modes, strict=False)},
        deadline=deadline,
    )
    async with gateway.lifespan():
        answer = await ask(gateway, provider={"order": ["a"]})

    assert status == answer.status
    assert answer.elapsed.ticks < 30
    if status == 200:
        assert right(TEXTS) == numbers_in(answer)
