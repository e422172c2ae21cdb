"""A faulty upstream, mode by mode: what a client gets from it alone, and beside a correct one."""

# Anyio's plugin reads `anyio_backend`.
# ruff: noqa: ARG001

import base64
import json
import logging
from itertools import pairwise

import numpy as np
import pytest

from embedroute import Config, Gateway, embeddings_app
from embedroute.routing import RetryPolicy
from tests.fault_upstream import (
    DOUBTFUL,
    HARMLESS,
    INPUT_FAULTS,
    LIES,
    STALLS,
    Upstream,
    vectors_of,
)
from tests.support.asgi_client import call

WIDTH, ASKED = 8, 6
KEYS = {"liar": "sk-Canary1-a0b1c2d3e4f5-Liar9", "truth": "sk-Canary2-f5e4d3c2b1a0-Truth9"}
TEXTS = [["one", "zwei", "три"], ["quatre", "cinco", "kuusi", "yedi"]]
"""What is asked first, and then: an answer that comes late must not pass for the next one.

Odd and even in number.
"""

PLANTED = "INPUTCANARY"
ENDLESS = {"huge_body", "huge_chunked"}
RESTLESS = {"limited_silent", "limited_garbage", "limited_negative", "limited_nan"}
"""They name no rest that can be kept, so a second is assumed."""
MARGIN = 3.0
"""Seconds that a response may be late after its deadline, because the machine is shared."""

MODES = HARMLESS | DOUBTFUL | LIES | INPUT_FAULTS
SAMPLE = [
    "answers_twice",
    "answers_twice_later",
    "batch_too_large",
    "half_body_fin",
    "key_in_500",
    "stalled_half_body",
    "status_429",
]
RUNS = [("asyncio", mode) for mode in MODES] + [("trio", mode) for mode in SAMPLE]
runs = pytest.mark.parametrize(("anyio_backend", "mode"), RUNS)


@pytest.fixture(scope="module")
def upstreams():
    with Upstream(remember=False) as liar, Upstream(remember=False) as truth:
        yield {"liar": liar, "truth": truth}


def gateway_of(upstreams, *names, deadline=5.0, **settings):
    model = {
        "dimensions": WIDTH,
        "matryoshka": True,
        "endpoints": [{"provider": name} for name in names],
    }
    providers = {
        name: {"backend": "openai", "base_url": upstreams[name].url, "api_key": KEYS[name]}
        for name in names
    }
    config = Config(
        gateway={"auth": "open", "deadline": deadline, **settings},
        providers=providers,
        models={"m": model},
    )
    return Gateway(config, retries=RetryPolicy(repeats=0, first_wait=0.001))


def deadline_of(mode, names):
    # A stalled endpoint gets its share of the time that is left, and the honest one has time on a
    # busy machine too.
    if mode in STALLS | ENDLESS:
        return 0.4 if len(names) == 1 else 1.6
    return 0.9 if mode in RESTLESS and len(names) == 1 else 5.0


async def ask(gateway, texts, **fields):
    body = {
        "model": "m",
        "input": texts,
        "dimensions": ASKED,
        "provider": {"order": ["liar"]},
        **fields,
    }
    headers = [("content-type", "application/json")]
    return await call(
        embeddings_app(gateway), "POST", "/v1/embeddings", headers, [json.dumps(body).encode()]
    )


def vectors_in(answer):
    rows = answer.json["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return np.array([row["embedding"] for row in rows], "<f4")


def right(texts):
    return vectors_of(texts, ASKED).tolist()


def parts_of(key):
    """What must not be seen of a key.

    Eight of its characters in a row, nor as many of its base64, alone or after others.
    """
    coded = [
        base64.b64encode(before + key.encode()).decode()[4:-4] for before in (b"", b"u", b"u:")
    ]
    return [text[at : at + 8] for text in (key, *coded) for at in range(len(text) - 7)]


def assert_envelope(answer):
    assert answer.json.keys() == {"error"}
    assert answer.error.keys() == {"message", "type", "param", "code"}
    assert answer.error["message"].isprintable()
    assert len(answer.error["message"]) <= 300
    assert isinstance(answer.error["type"], str)
    assert {type(answer.error["param"]), type(answer.error["code"])} <= {str, type(None)}


def collect_visible(answer, caplog):
    """Return the response with its headers, and every log record with its fields."""
    logged = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    return "\n".join([repr(answer.headers), answer.body.decode(), *logged])


@runs
async def test_a_faulty_upstream_never_delivers_a_wrong_vector(
    anyio_backend, upstreams, mode, caplog
):
    """The client gets a status of the table, in the right envelope and time, and no part of any key."""
    caplog.set_level(logging.DEBUG)
    upstreams["liar"].mode = mode
    deadline = deadline_of(mode, ["liar"])
    gateway = gateway_of(upstreams, "liar", deadline=deadline)
    async with gateway.lifespan():
        for at, texts in enumerate(TEXTS):
            answer = await ask(gateway, texts)

            assert answer.status in (*MODES[mode], *((429, 503) if at else ()))
            assert answer.elapsed.ticks < deadline + MARGIN
            if answer.status == 200:
                assert vectors_in(answer).tolist() == right(texts)
            else:
                assert_envelope(answer)
            visible = collect_visible(answer, caplog)
            assert not [part for part in parts_of(KEYS["liar"]) if part in visible]
            assert "hunter2" not in visible


@runs
async def test_a_faulty_upstream_beside_a_correct_one_does_not_affect_the_client(
    anyio_backend, upstreams, mode, caplog
):
    """The client gets the right vectors, except for an input error, which is reported at once."""
    caplog.set_level(logging.DEBUG)
    upstreams["liar"].mode = mode
    deadline = deadline_of(mode, ["liar", "truth"])
    gateway = gateway_of(upstreams, "liar", "truth", deadline=deadline)
    async with gateway.lifespan():
        for texts in TEXTS:
            answer = await ask(gateway, texts)

            assert answer.status == (400 if mode in INPUT_FAULTS else 200)
            if answer.status == 200:
                assert vectors_in(answer).tolist() == right(texts)
            assert answer.elapsed.ticks < deadline
            visible = collect_visible(answer, caplog)
            parts = [part for key in KEYS.values() for part in parts_of(key)]
            assert not [part for part in parts if part in visible]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("deadline", "status", "calls"), [(5.0, 200, 2), (0.2, 502, 1)])
async def test_an_upstream_is_not_called_during_its_retry_after(
    anyio_backend, deadline, status, calls
):
    """Unless the request would be too late then: it fails, or tries another endpoint, at once."""
    with Upstream(["busy_503", "honest"]) as liar:
        gateway = gateway_of({"liar": liar}, "liar", deadline=deadline)
        async with gateway.lifespan():
            answer = await ask(gateway, TEXTS[0])

    assert (status, calls) == (answer.status, len(liar.requests))
    assert all(0.3 <= after.at - before.at for before, after in pairwise(liar.requests))
