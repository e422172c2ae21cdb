"""Invalid responses that upstreams were seen to return; another endpoint takes over."""

import numpy as np
import pytest

from tests.fault_upstream.messages import whole
from tests.fault_upstream.truth import say
from tests.regressions.requesting import (
    TEXTS,
    WIDTH,
    ask,
    at,
    facts_of,
    gateway_of,
    numbers_in,
    right,
    table,
)

pytestmark = pytest.mark.anyio

BAD = "upstream_invalid_response"
LIMITED = "rate_limit_exceeded"
REST = 100
"""Seconds of ``retry-after``: longer than any deadline here, so that no request waits."""
HTML = b"<!DOCTYPE html><html><script>alert(1)</script><h1>404</h1></html>"


def asks(limited):
    """The header of an upstream with a rate limit."""
    return {"retry_after": REST} if limited else {}


def openrouter(status, code, message="No instances available", **metadata):
    """OpenRouter's error format, whose code is a number."""
    body = {"error": {"code": code, "message": message, "metadata": metadata}, "user_id": "u"}
    return lambda _: say(body, status, **asks(429 in {status, code}))


def first_text_only(request):
    return say(request.answer(request.rows(request.vectors()[:1])))


def one_number_a_byte(request):
    """Rows with a quarter of their numbers, as if base64 had been confused with a list."""
    return say(request.answer(request.rows(request.vectors()[:, : WIDTH // 4])))


def flattened(request):
    """One vector per token, concatenated."""
    return say(request.answer(request.rows(np.hstack([request.vectors(), request.vectors()]))))


def zeros(request):
    return say(request.answer(request.rows(request.vectors() * 0)))


def tei(status, kind):
    return lambda _: say(
        {"error": "Model is overloaded", "error_type": kind}, status, **asks(status == 429)
    )


def page(status):
    return lambda _: [whole(HTML, status, content_type="text/html; charset=utf-8")]


answers = table(
    "mode status code",
    {
        # The number of rows differs from the number of inputs.
        "litellm-24209-inputs-fused-into-one": ("fused", 502, BAD),
        "litellm-33681-fused-at-usage-0": (
            lambda ask: say({"data": ask.rows()[:1], "usage": {"prompt_tokens": 0}}),
            502,
            BAD,
        ),
        "bifrost-1138-several-texts-one-row": (first_text_only, 502, BAD),
        "new-api-1493-first-text-only": (first_text_only, 502, BAD),
        "new-api-1500-first-text-repeated-index": ("duplicated_index", 502, BAD),
        "vercel-ai-16575-a-row-too-few": ("missing_row", 502, BAD),
        "vercel-ai-16575-a-row-too-many": ("extra_row", 502, BAD),
        "vercel-ai-20359-one-value-for-all": (
            lambda ask: say({"embedding": {"values": ask.vectors()[0]}}),
            502,
            BAD,
        ),
        "deepseek-reasonix-732-dropped-input": ("missing_middle_row", 502, BAD),
        "xberg-1302-index-of-another-text": ("index_from_one", 502, BAD),
        "litellm-20949-shuffled-with-few-indexes": ("partly_indexed", 502, BAD),
        # The dimensions differ from those of the model.
        "openai-node-1542-a-quarter-of-the-width": (one_number_a_byte, 502, BAD),
        "n8n-16647-a-quarter-of-the-width": ("all_short", 502, BAD),
        "infinity-450-multi-vector-flattened": (flattened, 502, BAD),
        "infinity-450-multi-vector-nested": ("nested_row", 502, BAD),
        "gbrain-925-widths-mixed": ("ragged", 502, BAD),
        "gbrain-926-one-row-short": ("short_row", 502, BAD),
        "gbrain-926-one-row-null": ("null_row", 502, BAD),
        "vellum-assistant-1419-doubles-for-floats": ("base64_of_doubles", 502, BAD),
        # Values that are not finite numbers.
        "omlx-3507-nan-became-null": ("null_number", 502, BAD),
        "omlx-3507-nan": ("nan", 502, BAD),
        "omlx-3507-nan-literal": ("nan_literal", 502, BAD),
        "tei-557-empty-row": ("empty_row", 502, BAD),
        "tei-557-zero-row": ("zero_row", 502, BAD),
        "caura-721-zeros-after-a-failed-batch": (zeros, 502, BAD),
        "infinity-349-base64-of-another-layout": ("base64_odd", 502, BAD),
        # A response with status 200 that is an error.
        "langchain-35204-error-in-a-200": ("error_in_200", 502, BAD),
        "langchain-35204-error-beside-rows": (
            lambda ask: say({**ask.answer(), "error": {"message": "CUDA"}}),
            502,
            BAD,
        ),
        "langchain-35204-no-data-in-a-200": ("empty_object", 502, BAD),
        "langchain-35204-openrouter-429-in-a-200": (openrouter(200, 429), 429, LIMITED),
        "portkey-1622-openrouter-502-in-a-200": (
            openrouter(200, 502, provider_name="Google"),
            502,
            None,
        ),
        "bifrost-2288-html-page": (page(200), 502, BAD),
        "bifrost-2496-html-as-json": ("html_as_json", 502, BAD),
        "bifrost-2496-html-at-an-error": (page(500), 502, None),
        # An endpoint that is unreachable or fails.
        "vllm-53742-no-such-route": ("bare_404", 502, "upstream_model_not_found"),
        "vllm-53742-no-such-model": ("status_404", 502, "upstream_model_not_found"),
        "bifrost-6016-predict-is-404-html": (page(404), 502, "upstream_model_not_found"),
        "bifrost-key-is-dead-401": ("status_401", 502, "upstream_credentials"),
        "bifrost-key-is-dead-402": ("status_402", 502, "upstream_quota_exhausted"),
        "openhuman-5116-model-not-allowed": ("status_403", 502, "upstream_model_not_found"),
        "portkey-1622-openrouter-402": (
            openrouter(402, 402, "Insufficient credits"),
            502,
            "upstream_quota_exhausted",
        ),
        "portkey-1622-openrouter-404": (
            openrouter(404, 404, "No endpoints found"),
            502,
            "upstream_model_not_found",
        ),
        "portkey-1622-openrouter-503": (openrouter(503, 503), 502, None),
        "openrouter-529-overloaded": ("status_529", 502, None),
        "tei-424-backend-failed": (tei(424, "Backend"), 502, None),
        "tei-429-overloaded": (tei(429, "Overloaded"), 429, LIMITED),
        "tei-503-unhealthy": (tei(503, "Unhealthy"), 502, None),
        "infinity-517-out-of-memory": ("error_string_in_200", 502, BAD),
        "infinity-609-worker-killed": ("reset_before_headers", 502, None),
        "infinity-609-worker-killed-half-way": ("half_body_fin", 502, None),
    },
)


@answers
async def test_an_invalid_response_is_an_error_without_details(upstreams, mode, status, code):
    """Never a 200, never a 4xx that blames the client, and no text of an error page."""
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])})
    async with gateway.lifespan():
        answer = await ask(gateway, dimensions=6)

    assert (status, (None, code)) == (answer.status, facts_of(answer.error))
    assert b"<" not in answer.body
    assert b"sk-up" not in answer.body
    assert len(answer.error["message"]) < 400


@answers
async def test_falls_back_to_another_endpoint_after_an_invalid_response(
    upstreams, mode, status, code
):
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0]), "b": at(upstreams[1])})
    async with gateway.lifespan():
        answer = await ask(gateway, dimensions=6, provider={"order": ["a"]})

    assert (200, "b") == (answer.status, answer.header("x-embedroute-provider"))
    assert right(TEXTS, 6) == numbers_in(answer)
    # What a bad input may cause is looked for in both halves, then in a harmless text.
    whole = [each for each in upstreams[0].requests if each.inputs == TEXTS]
    parts = len(upstreams[0].requests) - len(whole)
    assert len(whole) == (2 if status == 502 and code in {None, BAD} else 1)
    assert parts in {0, 3, 4, 5}


@table(
    "mode code",
    {
        "vllm-6744-context-length": ("context_too_long", "context_length_exceeded"),
        "llama.cpp-context-as-500": ("context_too_long_500", "context_length_exceeded"),
        "tei-413-too-long": ("status_413", "context_length_exceeded"),
        "openai-400-unreadable": ("status_400", None),
    },
)
async def test_reports_a_rejected_input_without_fallback(upstreams, mode, code):
    """Another endpoint of the same model would reject the input too."""
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0]), "b": at(upstreams[1])})
    async with gateway.lifespan():
        answer = await ask(gateway, provider={"order": ["a"]})

    assert (400, (None, code)) == (answer.status, facts_of(answer.error))
    assert answer.error["type"] == "invalid_request_error"
    assert [1, 0] == [len(ask.requests) for ask in upstreams]


@table(
    "mode",
    {
        "tei-422-validation": ("status_422",),
        "portkey-1622-openrouter-400": (openrouter(400, 400, "Input is malformed"),),
        "openai-gemini-4-location": (openrouter(400, 400, "User location is not supported."),),
    },
)
async def test_falls_back_after_a_refusal_that_names_no_fault_of_the_input(upstreams, mode):
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0]), "b": at(upstreams[1])})
    async with gateway.lifespan():
        answer = await ask(gateway, provider={"order": ["a"]})

    assert answer.status == 200
    harmless = [each for each in upstreams[0].requests if each.inputs == ["hello"]]
    assert [1, 1] == [len(upstreams[0].requests) - len(harmless), len(upstreams[1].requests)]


def sliced(ask):
    """The first numbers of the full vectors, not normalised."""
    return say(ask.answer(ask.rows(ask.full_vectors()[:, : ask.width])))


@table(
    "first",
    {
        "infinity-538-sliced-and-not-scaled": ([],),
        "infinity-538-the-whole-vectors-are-held": ([{}],),
        "infinity-538-held-itself": ([{"dimensions": 4}],),
    },
)
async def test_truncates_equally_in_upstream_and_gateway(upstreams, first):
    upstreams[0].tell(sliced)
    gateway = gateway_of({"a": at(upstreams[0])})
    async with gateway.lifespan():
        for fields in first:
            await ask(gateway, **fields)
        answer = await ask(gateway, dimensions=4)

    whole = np.array(right(TEXTS))[:, :4]
    assert np.allclose(
        whole / np.linalg.norm(whole, axis=1, keepdims=True), numbers_in(answer), atol=1e-6
    )


@table(
    "mode attempts",
    {
        "tei-557-one-empty-row-under-load": (["empty_row", "honest"], 2),
        "litellm-8744-the-request-is-sent-again": (["status_500", "honest"], 2),
        "litellm-27363-retries-are-counted": (["reset_before_headers", "honest"], 2),
        "tei-424-recovers": (["status_424", "honest"], 2),
        "xberg-1302-once-wrong": (["duplicated_index", "honest"], 2),
        "litellm-20949-shuffled-rows": (["shuffled"], 1),
        "tensorzero-4617-usage-null": (["usage_null"], 1),
        "llama.cpp-10887-floats-for-base64": (["float_for_base64"], 1),
    },
)
async def test_retries_temporary_failures_with_the_same_request(upstreams, mode, attempts):
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])})
    async with gateway.lifespan():
        answer = await ask(gateway, dimensions=6)

    assert (200, str(attempts)) == (answer.status, answer.header("x-embedroute-attempts"))
    assert right(TEXTS, 6) == numbers_in(answer)
    (body,) = {ask.body for ask in upstreams[0].requests}
    assert (
        body
        == b'{"model":"m","input":["one","zwei","\xd1\x82\xd1\x80\xd0\xb8"],"encoding_format":"base64","dimensions":6}'
    )
