"""Usage, cost, errors of five dialects, debug output and model lists in responses."""

from collections.abc import Mapping

import pytest

from embedroute import embeddings_app
from embedroute.errors import RateLimited, UpstreamAuthError, UpstreamUnavailable
from embedroute.testing import ScriptedBackend
from tests.fault_upstream.truth import say
from tests.regressions.requesting import ask, at, gateway_of, inputs_of, numbers_in, right, table
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

LONG = ["x" * 40, "y" * 80]
"""Texts with 10 and 20 tokens, estimated by length."""


def billed(tokens):
    return lambda item: say(item.answer(usage={"prompt_tokens": tokens, "total_tokens": tokens}))


@table(
    "mode inputs tokens",
    {
        "tensorzero-4617-usage-null": ("usage_null", LONG, None),
        "tensorzero-4617-usage-missing": ("usage_missing", LONG, None),
        "tensorzero-4617-usage-empty": ("usage_empty", LONG, None),
        "tensorzero-4617-usage-partial": ("usage_null_counts", LONG, None),
        "tensorzero-4617-usage-a-fraction": ("usage_float", LONG, None),
        "tensorzero-4617-usage-a-string": ("usage_string", LONG, None),
        "tensorzero-4617-usage-a-list": ("usage_list", LONG, None),
        "spiceai-3095-usage-zeros": ("usage_zero", LONG, None),
        "litellm-33681-usage-zero": ("usage_zero", LONG, None),
        "litellm-usage-negative": ("usage_negative", LONG, None),
        "litellm-usage-past-any-bill": ("usage_huge", LONG, None),
        "new-api-2061-ids-are-counted": ("usage_missing", [[1] * 30], None),
        "new-api-1325-prompt-tokens-kept": (billed(77), LONG, 77),
        "new-api-2061-ids-as-billed": (billed(31), [[1] * 30], 31),
        "litellm-41750-a-batch-is-billed": (billed(7), list("abcdefg"), 7),
    },
)
async def test_usage_is_reported_by_the_upstream_or_marked_as_estimated(
    upstreams, mode, inputs, tokens
):
    """The repeated request is a cache hit: the same token count, and no cost."""
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])}, endpoints={"a": {"price": 2}})
    async with gateway.lifespan():
        answers = [await ask(gateway, input=inputs, dialect="openrouter") for _ in range(2)]

    expected = tokens or 30
    assert [200, 200] == [item.status for item in answers]
    assert [right(inputs)] * 2 == [numbers_in(item) for item in answers]
    assert [(expected, expected)] * 2 == [
        (item.json["usage"]["prompt_tokens"], item.json["usage"]["total_tokens"])
        for item in answers
    ]
    assert [2 * expected / 1_000_000, 0] == [item.json["usage"]["cost"] for item in answers]
    assert [None if tokens else "estimated"] * 2 == [
        item.header("x-embedroute-usage") for item in answers
    ]


@table(
    "first then tokens cost",
    {
        "litellm-10424-partial-hit-is-counted-whole": (LONG[:1], LONG, 30, 20),
        "litellm-30046-a-hit-is-not-counted-again": (LONG, LONG[1:], 20, 0),
        "tensorzero-hit-tells-its-tokens": (LONG, LONG, 30, 0),
        "litellm-36646-equal-inputs-are-billed-once": (["z" * 4], [*LONG, *LONG], 60, 30),
        "litellm-41750-split-calls-are-added-up": (["z" * 4], [*LONG, "w" * 40, "v" * 40], 50, 50),
    },
)
async def test_counts_the_tokens_of_cached_inputs_without_cost(first, then, tokens, cost):
    backend = ScriptedBackend(width=8)
    gateway = gateway_of(
        {"p": backend}, endpoints={"p": {"price": 1_000_000, "accepts": {"max_inputs": 3}}}
    )
    await ask(gateway, input=first)
    answer = await ask(gateway, input=then, dialect="openrouter")

    assert (tokens, cost) == (answer.json["usage"]["prompt_tokens"], answer.json["usage"]["cost"])
    assert all(len(call) <= 3 for call in inputs_of(backend))


def modalities(**counts):
    """Gemini's response to one input, with tokens by modality."""
    details = [{"modality": name.upper(), "tokenCount": count} for name, count in counts.items()]
    usage = {"promptTokenCount": sum(counts.values()), "promptTokenDetails": details}
    return lambda _: say({"embeddings": [{"values": [1.0] * 8}], "usageMetadata": usage})


@table(
    "mode details",
    {
        "openrouter-details-of-two-modalities": (
            modalities(text=5, image=258),
            {"text_tokens": 5, "image_tokens": 258},
        ),
        "openrouter-no-details-of-one": (modalities(text=5), None),
        "openrouter-no-details-of-none-of-it": (modalities(text=5, image=0), None),
    },
)
async def test_reports_tokens_by_modality_if_there_are_two(upstreams, mode, details):
    upstreams[0].tell(mode)
    gateway = gateway_of(
        {"gemini": at(upstreams[0])}, endpoints={"gemini": {"model": "gemini-embedding-2"}}
    )
    async with gateway.lifespan():
        answer = await ask(gateway, input="a", dialect="openrouter")

    assert (200, details) == (answer.status, answer.json["usage"].get("prompt_tokens_details"))
    assert answer.json["id"]


DOWN, REST, KEY = (
    UpstreamUnavailable("reset"),
    RateLimited("slow down", retry_after=99.2),
    UpstreamAuthError("sk-1 is bad"),
)


@table(
    "dialect step sent_request status said",
    {
        "openrouter-400": (
            "openrouter",
            0.0,
            {"input": []},
            400,
            {"error.code": 400, "error.metadata": None, "user_id": None},
        ),
        "openrouter-404": ("openrouter", 0.0, {"model": "x"}, 404, {"error.code": 404}),
        "openrouter-429": (
            "openrouter",
            REST,
            {},
            429,
            {"error.code": 429, "error.metadata.provider_name": "p"},
        ),
        "openrouter-502": (
            "openrouter",
            DOWN,
            {},
            502,
            {"error.code": 502, "error.metadata.raw": "Provider p: reset"},
        ),
        "gomodel-400": (
            "gomodel",
            0.0,
            {"input": ""},
            400,
            {"error.type": "invalid_request_error", "error.param": "input"},
        ),
        "gomodel-404": (
            "gomodel",
            0.0,
            {"model": "x"},
            404,
            {"error.type": "not_found_error", "error.code": "model_not_found"},
        ),
        "gomodel-429": ("gomodel", REST, {}, 429, {"error.type": "rate_limit_error"}),
        "gomodel-502": (
            "gomodel",
            DOWN,
            {},
            502,
            {"error.type": "provider_error", "error.param": None, "error.code": None},
        ),
        "gomodel-refused-key-is-not-the-clients": (
            "gomodel",
            KEY,
            {},
            502,
            {"error.type": "provider_error"},
        ),
        "phaseo-400": (
            "phaseo",
            0.0,
            {"input": ""},
            400,
            {"status_code": 400, "error_type": "user", "error_origin": "gateway"},
        ),
        "phaseo-502": (
            "phaseo",
            DOWN,
            {},
            502,
            {"error_type": "system", "error_origin": "upstream", "failed_providers": ["p", "p"]},
        ),
        "phaseo-429": (
            "phaseo",
            REST,
            {},
            429,
            {"status_code": 429, "error_type": "system", "attempt_count": 1},
        ),
        "spice-400": ("spice", 0.0, {"input": ""}, 400, {"error": "'input' must not be empty."}),
        "spice-plain-text-500": ("spice", DOWN, {}, 502, {"error": "Provider p: reset"}),
        "portkey-odd-error-shape": (
            "openai",
            DOWN,
            {},
            502,
            {"error.type": "upstream_error", "error.param": None},
        ),
        "tensorzero-502-for-the-clients-fault": (
            "openai",
            0.0,
            {"input": ""},
            400,
            {"error.type": "invalid_request_error"},
        ),
        "tei-null-encoding-refused": (
            "openai",
            0.0,
            {"encoding_format": None},
            200,
            {"object": "list"},
        ),
    },
)
async def test_errors_have_the_format_of_each_dialect(dialect, step, sent_request, status, said):
    gateway = gateway_of({"p": ScriptedBackend(then=step, width=8)})
    answer = await ask(gateway, dialect=dialect, **sent_request)

    assert (status, said) == (answer.status, {path: found_at(answer.json, path) for path in said})
    assert "sk-1" not in answer.body.decode()
    assert (("100", "99200") if status == 429 else (None, None)) == (
        answer.header("retry-after"),
        answer.header("retry-after-ms"),
    )


def found_at(body, path):
    for name in path.split("."):
        body = body[name] if isinstance(body, Mapping) else body[int(name)]
    return body


@table(
    "mode debug shown",
    {
        "phaseo-upstream-request": (
            "honest",
            {"return_upstream_request": True},
            {"upstream_request"},
        ),
        "phaseo-upstream-response-in-errors": (
            "status_500",
            {"return_upstream_response": True},
            {"upstream_response"},
        ),
        "phaseo-upstream-response-with-our-key": (
            "status_401",
            {"return_upstream_response": True},
            {"upstream_response"},
        ),
        "phaseo-trace": ("honest", {"trace": True}, {"trace"}),
        "phaseo-trace-in-errors": ("status_401", {"enabled": True, "trace": True}, {"trace"}),
        "phaseo-disabled-shows-nothing": ("honest", {"enabled": False, "trace": True}, set()),
        "phaseo-all-false-shows-nothing": ("honest", {"trace": False}, set()),
    },
)
async def test_debug_shows_the_upstream_calls_without_keys(upstreams, mode, debug, shown):
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])}, debug=True)
    async with gateway.lifespan():
        answer = await ask(gateway, debug=debug)

    assert shown == {"upstream_request", "upstream_response", "trace"} & answer.json.keys()
    assert "sk-up" not in answer.body.decode()
    assert all("debug" not in item.json for item in upstreams[0].requests)


@table(
    "path said",
    {
        "speakr-352-which-models-take-dimensions": (
            "/v1/models",
            {
                "data.0.id": "m",
                "data.0.matryoshka": True,
                "data.0.dimensions": 8,
                "data.0.dimensions_allowed": [2, 4, 8],
            },
        ),
        "speakr-352-one-model": (
            "/v1/models/m",
            {"matryoshka": True, "context_length": 512, "modalities": ["text"]},
        ),
        "openrouter-list-of-embedding-models": (
            "/v1/embeddings/models",
            {"data.0.id": "m", "data.0.context_length": 512, "data.0.pricing.prompt": "0.00000002"},
        ),
        "envoy-1034-base64-in-the-schema": (
            "/openapi.json",
            {"components.schemas.Embedding.properties.embedding.anyOf.1.type": "string"},
        ),
    },
)
async def test_model_lists_have_the_facts_for_a_choice(path, said):
    facts = {"dimensions_allowed": [2, 4, 8], "max_input_tokens": 512}
    gateway = gateway_of(
        {"h": {"backend": "hashed"}}, endpoints={"h": {"price": "0.02"}}, models={"m": facts}
    )
    answer = await call(embeddings_app(gateway), "GET", path)

    assert said == {path: found_at(answer.json, path) for path in said}
