"""Tests that tokens by modality add up to the prompt tokens, and are billed once."""

import itertools

import msgspec
import numpy as np
import pytest

from embedroute.backend import Batch, UpstreamResponse, Vectors
from embedroute.backends.openai import OpenAI
from embedroute.inputs import ImagePart
from embedroute.testing import ScriptedBackend, expected_vector
from tests.fault_upstream.truth import say
from tests.regressions.requesting import ScriptedUpstream, ask, at, gateway_of
from tests.support.slow import thorough_unless

pytestmark = pytest.mark.anyio

WIDTH = 8
SEES = {"accepts": {"modalities": ["text", "image"]}}
SEEING = {"modalities": ["text", "image"]}


def text(words):
    return {"content": [{"type": "text", "text": words}]}


def image(payload="R0lGODlhAQABAAAAACw="):
    url = f"data:image/gif;base64,{payload}"
    return {"content": [{"type": "image_url", "image_url": {"url": url}}]}


def both(words):
    return {"content": [*text(words)["content"], *image()["content"]]}


def counting(batch):
    """Count 2 tokens a text part and 100 an image, as an upstream that reports modalities."""
    kinds = [isinstance(part, ImagePart) for item in batch.parts for part in item]
    images, texts = 100 * sum(kinds), 2 * (len(kinds) - sum(kinds))
    rows = np.stack([expected_vector(item, WIDTH) for item in batch.inputs])
    return Vectors(rows, images + texts, {"text": texts, "image": images})


def seeing(then=counting, **endpoint):
    return gateway_of(
        {"a": ScriptedBackend(width=WIDTH, then=then)},
        endpoints={"a": {**SEES, **endpoint}},
        models={"m": SEEING},
        dialect="openrouter",
    )


@pytest.mark.parametrize(
    "inputs",
    [
        [text("a"), image()],
        [both("a"), both("a"), both("b")],
        [text("a"), text("a"), image(), both("c")],
    ],
)
@pytest.mark.parametrize("chunk", thorough_unless((2).__eq__, [1, 2, 9]))
async def test_details_add_up_with_any_hits_and_duplicates(inputs, chunk):
    """Each input counts once for each time it is sent, cached or not, as ``prompt_tokens`` does."""
    parts = [part for item in inputs for part in item["content"]]
    images = 100 * sum(part["type"] == "image_url" for part in parts)
    texts = 2 * sum(part["type"] == "text" for part in parts)
    for length in range(len(inputs) + 1):
        for cached in itertools.combinations(inputs, length):
            gateway = seeing(accepts={"modalities": ["text", "image"], "max_inputs": chunk})
            if cached:
                await ask(gateway, input=list(cached))

            usage = (await ask(gateway, input=inputs)).json["usage"]

            assert images + texts == usage["prompt_tokens"]
            assert {"text_tokens": texts, "image_tokens": images} == usage["prompt_tokens_details"]


def without_details_at_first(tokens):
    """Report only ``tokens`` for the first call, and the details for the others."""
    is_first = iter([True])

    def count(batch):
        answer = counting(batch)
        return Vectors(answer.array, tokens) if next(is_first, False) else answer

    return count


async def test_cached_texts_of_an_upstream_without_details_count_as_text():
    gateway = seeing(without_details_at_first(2))
    await ask(gateway, input=[text("a")])

    usage = (await ask(gateway, input=[text("a"), image()])).json["usage"]

    assert {"text_tokens": 2, "image_tokens": 100} == usage["prompt_tokens_details"]


async def test_details_are_left_out_if_an_input_has_none():
    gateway = seeing(without_details_at_first(102))
    await ask(gateway, input=[both("a")])

    usage = (await ask(gateway, input=[both("a"), both("b")])).json["usage"]

    assert (204, False) == (usage["prompt_tokens"], "prompt_tokens_details" in usage)


async def test_details_that_exceed_the_total_are_ignored():
    gateway = seeing(lambda batch: Vectors(counting(batch).array, 5, {"text": 4, "image": 9}))

    usage = (await ask(gateway, input=[both("a")])).json["usage"]

    assert (5, False) == (usage["prompt_tokens"], "prompt_tokens_details" in usage)


@pytest.mark.parametrize(
    ("details", "split"),
    [
        ({"text_tokens": 4, "image_tokens": 6}, {"text": 4, "image": 6}),
        ({"text_tokens": 4.0, "image_tokens": 6, "audio_tokens": 0}, {"text": 4, "image": 6}),
        ({"cached_tokens": 3, "audio_tokens": 0}, {}),
        ({"text_tokens": "4", "image_tokens": True, "video_tokens": 2}, {"video": 2}),
        (None, {}),
        ([], {}),
        ("text", {}),
    ],
)
@pytest.mark.parametrize("padding", [0, 1 << 18])
def test_reads_the_details_of_upstreams_in_openais_format(details, split, padding):
    body = {
        "data": [{"index": 0, "embedding": [1.0, 2.0]}],
        "usage": {"prompt_tokens": 10, "prompt_tokens_details": details},
        "more": "x" * padding,
    }

    found = OpenAI().parse(
        Batch(model="m", texts=("a",)), UpstreamResponse(200, {}, msgspec.json.encode(body))
    )

    assert (10, split) == (found.prompt_tokens, found.modality_tokens)


async def test_tokens_of_images_are_not_billed_by_token_and_by_image():
    def answer(request):
        details = {"text_tokens": 4, "image_tokens": 6}
        usage = {"prompt_tokens": 10, "total_tokens": 10, "prompt_tokens_details": details}
        return say(request.answer(usage=usage))

    with ScriptedUpstream() as upstream:
        upstream.tell(answer)
        gateway = gateway_of(
            {"a": at(upstream)},
            endpoints={"a": {**SEES, "price": {"prompt": 1_000_000, "image": 7}}},
            models={"m": SEEING},
            dialect="openrouter",
        )
        async with gateway.lifespan():
            usage = (await ask(gateway, input=[both("a")])).json["usage"]

    assert {"text_tokens": 4, "image_tokens": 6} == usage["prompt_tokens_details"]
    assert 4 + 7 == usage["cost"]
