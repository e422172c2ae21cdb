"""Size limits of upstream calls: requests are split by them, and concurrent ones merged."""

import anyio
import numpy as np
import pytest

from embedroute.backends.hashed import hash_batch
from embedroute.errors import UpstreamRejectedInput
from embedroute.testing import ScriptedBackend
from tests.fault_upstream.refusals import refuse
from tests.fault_upstream.truth import say
from tests.regressions.requesting import (
    WIDTH,
    ask,
    at,
    gateway_of,
    inputs_of,
    numbers_in,
    right,
    scripted,
    table,
)

pytestmark = pytest.mark.anyio


def texts(count, size=1):
    return [f"{at:0{size}}" for at in range(count)]


def accepts(**caps):
    return {"accepts": caps}


def no_more_than(most, status, said):
    """Reject calls with more inputs, with the message of one vendor."""
    return lambda item: (
        say(item.answer())
        if len(item.inputs) <= most
        else refuse(status, said.format(most=most, n=len(item.inputs)))
    )


@table(
    "slug inputs endpoint mode sizes",
    {
        # Declared limits: no call exceeds them.
        "tei-378-client-batch-of-32": ("tei", texts(70), {}, "honest", [32, 32, 6]),
        "gbrain-3130-dashscope-10": ("dashscope-compatible", texts(25), {}, "honest", [10, 10, 5]),
        "litellm-4241-jina-512": ("jina", texts(600), {}, "honest", [512, 88]),
        "memsearch-83-openai-2048": ("openai", texts(2048), {}, "honest", [2048]),
        "new-api-cloudflare-100": ("cloudflare", texts(101), {}, "honest", [100, 1]),
        "onyx-2343-vertex-250-by-config": (
            "a",
            texts(600),
            accepts(max_inputs=250),
            "honest",
            [250, 250, 100],
        ),
        "envoy-titan-1-by-config": ("a", texts(3), accepts(max_inputs=1), "honest", [1, 1, 1]),
        "aichat-825-tokens-of-a-batch": (
            "a",
            texts(5, 40),
            accepts(max_tokens=20),
            "honest",
            [2, 2, 1],
        ),
        "openai-300000-tokens-of-a-batch": ("openai", texts(3, 500_000), {}, "honest", [2, 1]),
        "litellm-32528-hangs-unless-split": (
            "a",
            texts(7, 100),
            accepts(max_bytes=1250),
            "honest",
            [2, 2, 2, 1],
        ),
        # Limits that are not declared: the error is recognised, and the batch is halved.
        "gbrain-1281-llama-server-32": (
            "a",
            texts(64),
            {},
            no_more_than(32, 413, "batch size {n} > {most}"),
            [64, 32, 32],
        ),
        "esperanto-108-mistral-128": (
            "a",
            texts(220),
            {},
            no_more_than(128, 400, "Too many inputs in request, split into more batches."),
            [220, 110, 110],
        ),
        "tei-378-learned-from-422": (
            "a",
            texts(64),
            {},
            no_more_than(32, 422, "batch size {n} > {most}"),
            [64, 32, 32],
        ),
        "tei-378-learned-from-413": (
            "a",
            texts(64),
            {},
            no_more_than(32, 413, "batch size {n} > {most}"),
            [64, 32, 32],
        ),
        "gbrain-halves-again": (
            "a",
            texts(96),
            {},
            no_more_than(24, 400, "Too many inputs"),
            [96, 48, 48, *[24] * 4],
        ),
        "aichat-825-tokens-learned": (
            "a",
            texts(4, 20_000),
            {},
            no_more_than(
                2, 400, "Invalid 'input': maximum request size is 10000 tokens per request."
            ),
            [4, 2, 2],
        ),
        "memobase-142-dashscope-25-learned": (
            "a",
            texts(48),
            {},
            no_more_than(
                25,
                400,
                "InvalidParameter: Value error, batch size is invalid, it should not be larger than {most}.",
            ),
            [48, 24, 24],
        ),
        "memsearch-67-gemini-100-learned": (
            "a",
            texts(150),
            {},
            no_more_than(
                100,
                400,
                "BatchEmbedContentsRequest.requests: at most {most} requests can be in one batch",
            ),
            [150, 75, 75],
        ),
    },
)
async def test_splits_a_request_by_the_limits_of_a_call(
    upstreams, slug, inputs, endpoint, mode, sizes
):
    """The second request uses the learned limit."""
    upstreams[0].tell(mode)
    gateway = gateway_of({slug: at(upstreams[0])}, endpoints={slug: endpoint})
    async with gateway.lifespan():
        answer = await ask(gateway, input=inputs)
        first, again = upstreams[0].sizes, await ask(gateway, input=[f"x{text}" for text in inputs])

    assert (200, 200) == (answer.status, again.status)
    assert right(inputs) == numbers_in(answer)
    assert sizes == first
    later = {len(item.inputs) for item in upstreams[0].requests[len(sizes) :]}
    assert mode == "honest" or later == {sizes[-1]}


def gemini(request):
    rows = [
        {"values": [1.0, *map(float, map(ord, item["content"]["parts"][0]["text"]))]}
        for item in request.json["requests"]
    ]
    return say({"embeddings": rows})


@table(
    "count sizes",
    {
        "vercel-ai-6268-gemini-100": (101, [1, 100]),
        "memsearch-68-gemini-100": (250, [50, 100, 100]),
        "bifrost-1138-gemini-several": (3, [3]),
    },
)
async def test_splits_gemini_batches_at_one_hundred_inputs(upstreams, count, sizes):
    upstreams[0].tell(gemini)
    inputs = texts(count, 3)
    gateway = gateway_of({"gemini": at(upstreams[0])}, models={"m": {"dimensions": 4}})
    async with gateway.lifespan():
        answer = await ask(gateway, input=inputs)

    exact = np.array([[1, *map(ord, text)] for text in inputs], float)
    assert sizes == sorted(len(item.json["requests"]) for item in upstreams[0].requests)
    assert np.allclose(
        exact / np.linalg.norm(exact, axis=1, keepdims=True), numbers_in(answer), atol=1e-6
    )


@table(
    "inputs width encoding",
    {
        "envoy-1662-answer-over-2-mb": (texts(512), 2048, "base64"),
        "envoy-827-request-over-32-kb": (["a" * 100_000], 8, "float"),
        "envoy-828-answer-over-32-kb": (texts(8), 1536, "float"),
        "agentgateway-1685-request-and-answer": (texts(256, 1000), 1024, "base64"),
    },
)
async def test_accepts_large_bodies(upstreams, inputs, width, encoding):
    upstreams[0].width = width
    gateway = gateway_of({"a": at(upstreams[0])}, models={"m": {"dimensions": width}})
    async with gateway.lifespan():
        answer = await ask(gateway, input=inputs, encoding_format=encoding)

    assert right(inputs, width) == numbers_in(answer)
    assert len(answer.body) + len(upstreams[0].requests[0].body) > 32_768


async def settle():
    """Let every request in flight run until it waits."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


def gated(gate):
    """A backend that waits for its gate, and rejects the input "poison"."""

    async def answer(batch):
        await gate.wait()
        if "poison" in batch.texts:
            raise UpstreamRejectedInput("This input is poison.")
        return hash_batch(batch, WIDTH)

    return ScriptedBackend(then=answer)


@table(
    "micro_batch_ms parties statuses sent",
    {
        "deltallm-237-merged-while-busy": (1000, ["a", "b", "c"], [200] * 3, ["abc"]),
        "deltallm-237-full-goes-at-once": (1000, ["ab", "cd", "e"], [200] * 3, ["abcd", "e"]),
        "deltallm-75-within-the-cap": (1000, ["ab", "cde"], [200] * 2, ["ab", "cde"]),
        "omlx-2739-each-gets-its-own": (1000, ["ab", "c"], [200] * 2, ["abc"]),
        "lilbee-611-one-call-each-unless-asked": (None, ["a", "b"], [200] * 2, ["a", "b"]),
        "lilbee-611-a-bad-input-fails-alone": (
            1000,
            ["a", "!", "c"],
            [200, 400, 200],
            ["a", "a!c", "c", "!"],
        ),
        "cognee-2881-equal-misses-once": (None, ["a", "a", "ab"], [200] * 3, ["a", "b"]),
        "rust-self-learning-memory-964-in-flight": (None, ["z", "z"], [200] * 2, []),
    },
)
async def test_merges_concurrent_requests_into_shared_calls(
    micro_batch_ms, parties, statuses, sent
):
    """The request for "z" occupies the endpoint until the others wait; "!" is "poison"."""
    gate, answers = anyio.Event(), {}
    backend = gated(gate)
    gateway = gateway_of(
        {"p": backend},
        endpoints={"p": {"micro_batch_ms": micro_batch_ms, "accepts": {"max_inputs": 4}}},
    )

    async def one(at, letters):
        answers[at] = await ask(
            gateway, input=[{"!": "poison"}.get(letter, letter) for letter in letters]
        )

    async with anyio.create_task_group() as group:
        for at, letters in enumerate(["z", *parties]):
            group.start_soon(one, at, letters)
            await settle()
        gate.set()

    first, *rest = ["".join(call).replace("poison", "!") for call in inputs_of(backend)]
    assert ("z", sorted(sent)) == (first, sorted(rest))
    assert [200, *statuses] == [answers[at].status for at in sorted(answers)]
    for at, letters in enumerate(["z", *parties]):
        if answers[at].status == 200:
            assert scripted(letters) == numbers_in(answers[at])
            assert len(letters) == answers[at].json["usage"]["prompt_tokens"]


@table(
    "leaves calls",
    {
        "rust-self-learning-memory-964-waiter-leaves": (1, 1),
        "cognee-2881-leader-leaves": (0, 2),
    },
)
async def test_a_disconnect_does_not_cancel_shared_work(leaves, calls):
    gate, answers, scopes = anyio.Event(), {}, [anyio.CancelScope(), anyio.CancelScope()]
    backend = gated(gate)
    gateway = gateway_of({"p": backend})

    async def one(at):
        with scopes[at]:
            answers[at] = await ask(gateway, input=["a", "b"])

    async with anyio.create_task_group() as group:
        for at in (0, 1):
            group.start_soon(one, at)
            await settle()
        scopes[leaves].cancel()
        await settle()
        gate.set()

    assert [1 - leaves] == list(answers)
    assert scripted("ab") == numbers_in(answers[1 - leaves])
    assert calls == len(backend.batches)
