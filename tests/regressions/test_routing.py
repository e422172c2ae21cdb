"""Routing as other gateways document it: which endpoints are called, in which order."""

from collections.abc import Mapping
from typing import NamedTuple

import pytest

from embedroute.errors import UpstreamModelNotFound
from embedroute.testing import ScriptedBackend
from tests.regressions.requesting import ask, at, gateway_of, numbers_in, right, table

pytestmark = pytest.mark.anyio


class Offer(NamedTuple):
    """One endpoint: its price in USD per million tokens, and the facts of endpoint and provider."""

    price: float | None
    endpoint: Mapping[str, object] = {}
    provider: Mapping[str, object] = {}


OFFERS = {
    "deepinfra": Offer(1, {"quantization": "fp8", "quality": 1}, {"data_collection": "deny"}),
    "google-vertex/us-east5": Offer(
        10**9, {"quantization": "fp16", "quality": 3}, {"zdr": True, "data_collection": "deny"}
    ),
    "google-vertex/eu": Offer(
        10**18,
        {"quantization": "fp16", "quality": 2},
        {"distillable": True, "data_collection": "allow"},
    ),
    "tei": Offer(None, {"accepts": {"user": False}}, {"stage": "beta"}),
    "vllm": Offer(10**8, {}, {"stage": "alpha"}),
}
DEEP, EAST, EU, TEI, VLLM = OFFERS
NONE_ELIGIBLE = (404, "no_eligible_provider", "provider")


def wrong(param):
    return 400, None, param


@table(
    "model preferences expected",
    {
        "openrouter-cheapest-first": ("m", {}, [DEEP, EAST, EU, TEI]),
        # order
        "openrouter-order-then-the-rest": ("m", {"order": [EU]}, [EU, DEEP, EAST, TEI]),
        "openrouter-order-base-slug": ("m", {"order": ["google-vertex"]}, [EAST, EU, DEEP, TEI]),
        "openrouter-order-full-slug": ("m", {"order": [EU, DEEP]}, [EU, DEEP, EAST, TEI]),
        "openrouter-order-vendor": (
            "m",
            {"order": ["DeepInfra", "google_vertex/EU"]},
            [DEEP, EU, EAST, TEI],
        ),
        "openrouter-order-skips-who-has-it-not": (
            "m",
            {"order": ["azure", TEI]},
            [TEI, DEEP, EAST, EU],
        ),
        "openrouter-order-and-no-others": (
            "m",
            {"order": [TEI, EU], "allow_fallbacks": False},
            [TEI, EU],
        ),
        "openrouter-order-empty-and-no-others": (
            "m",
            {"order": [], "allow_fallbacks": False},
            NONE_ELIGIBLE,
        ),
        "openrouter-no-fallbacks": ("m", {"allow_fallbacks": False}, [DEEP]),
        "openrouter-no-fallbacks-sorted": (
            "m",
            {"allow_fallbacks": False, "sort": "price"},
            [DEEP],
        ),
        # only, ignore
        "openrouter-only-is-an-intersection": ("m", {"only": [TEI, DEEP]}, [DEEP, TEI]),
        "openrouter-only-base-slug": ("m", {"only": ["google-vertex"]}, [EAST, EU]),
        "openrouter-only-in-order": ("m", {"only": [TEI, DEEP], "order": [TEI]}, [TEI, DEEP]),
        "openrouter-only-excludes-all": ("m", {"only": ["azure"]}, NONE_ELIGIBLE),
        "phaseo-only-and-ignore-leave-none": (
            "m",
            {"only": [DEEP], "ignore": [DEEP]},
            NONE_ELIGIBLE,
        ),
        "phaseo-ignore-everybody": ("m", {"ignore": [DEEP, TEI, "google-vertex"]}, NONE_ELIGIBLE),
        "openrouter-ignore": ("m", {"ignore": [DEEP, TEI]}, [EAST, EU]),
        "openrouter-ignore-wins-over-order": (
            "m",
            {"order": [DEEP], "ignore": [DEEP]},
            [EAST, EU, TEI],
        ),
        "openrouter-misspelt-ignore": ("m", {"ignore": ["deepinfrra"]}, wrong("provider.ignore")),
        "openrouter-misspelt-region": (
            "m",
            {"only": ["google-vertex/us-east9"]},
            wrong("provider.only"),
        ),
        # sort
        "openrouter-sort-price": ("m", {"sort": "price"}, [DEEP, EAST, EU, TEI]),
        "openrouter-sort-exacto": ("m", {"sort": "exacto"}, [EAST, EU, DEEP, TEI]),
        "openrouter-sort-object": (
            "m",
            {"sort": {"by": "exacto", "partition": "none"}},
            [EAST, EU, DEEP, TEI],
        ),
        "openrouter-sort-by-unmeasured": (
            "m",
            {"sort": "latency"},
            [DEEP, EAST, EU, TEI],
        ),
        "openrouter-sort-unknown": ("m", {"sort": "speed"}, wrong("provider.sort")),
        "openrouter-floor": ("m:floor", {}, [DEEP, EAST, EU, TEI]),
        "openrouter-nitro": ("m:nitro", {}, [DEEP, EAST, EU, TEI]),
        "openrouter-free-is-no-suffix-here": ("m:free", {}, (404, "model_not_found", "model")),
        # price
        "openrouter-max-price-a-number": ("m", {"max_price": {"prompt": 1}}, [DEEP]),
        "openrouter-max-price-a-string": ("m", {"max_price": {"prompt": "1.000"}}, [DEEP]),
        "openrouter-max-price-just-below": (
            "m",
            {"max_price": {"prompt": "0.999999999999999999"}},
            NONE_ELIGIBLE,
        ),
        "openrouter-max-price-of-what-costs-nothing": (
            "m",
            {"max_price": {"prompt": 10**9, "image": 0}},
            [DEEP, EAST],
        ),
        "openrouter-max-price-nan": (
            "m",
            {"max_price": {"prompt": "NaN"}},
            wrong("provider.max_price.prompt"),
        ),
        # speed reorders and never excludes
        "openrouter-latency-excludes-none": (
            "m",
            {"preferred_max_latency": 0},
            [DEEP, EAST, EU, TEI],
        ),
        "openrouter-throughput-excludes-none": (
            "m",
            {"preferred_min_throughput": {"p50": 10**9, "p99": 10**9}},
            [DEEP, EAST, EU, TEI],
        ),
        # facts: an unknown fact excludes an endpoint if the request requires it
        "openrouter-quantizations": ("m", {"quantizations": ["fp16", "bf16"]}, [EAST, EU]),
        "openrouter-quantizations-unknown": ("m", {"quantizations": ["unknown"]}, [TEI]),
        "openrouter-data-collection": ("m", {"data_collection": "deny"}, [DEEP, EAST]),
        "openrouter-zdr": ("m", {"zdr": True}, [EAST]),
        "openrouter-zdr-false-demands-nothing": ("m", {"zdr": False}, [DEEP, EAST, EU, TEI]),
        "openrouter-distillable": ("m", {"enforce_distillable_text": True}, [EU]),
        "openrouter-require-parameters": ("m", {"require_parameters": True}, [DEEP, EAST, EU]),
        "phaseo-alpha-asked-for": (
            "m",
            {"include_alpha": True},
            [DEEP, EAST, EU, VLLM, TEI],
        ),
        "phaseo-alpha-sorted-by-price": (
            "m",
            {"include_alpha": True, "sort": "price"},
            [DEEP, EAST, EU, VLLM, TEI],
        ),
        "phaseo-alpha-is-out": ("m", {"only": [VLLM]}, NONE_ELIGIBLE),
        # types
        "openrouter-null-is-absent": (
            "m",
            {"order": None, "only": None, "sort": None, "max_price": None},
            [DEEP, EAST, EU, TEI],
        ),
        "openrouter-camel-case": ("m", {"allowFallbacks": False}, wrong("provider.allowFallbacks")),
        "openrouter-a-string-for-a-list": ("m", {"order": DEEP}, wrong("provider.order")),
    },
)
async def test_calls_endpoints_in_the_expected_order(model, preferences, expected):
    """All endpoints fail, so all are called. The prices differ too much for a random choice."""
    backends = {
        slug: ScriptedBackend(then=UpstreamModelNotFound("not here"), width=8) for slug in OFFERS
    }
    providers = {slug: {"backend": backends[slug], **OFFERS[slug].provider} for slug in OFFERS}
    endpoints = {slug: {"price": offer.price, **offer.endpoint} for slug, offer in OFFERS.items()}
    answer = await ask(
        gateway_of(providers, endpoints=endpoints),
        model=model,
        provider=preferences,
        user="u",
        dialect="phaseo",
    )

    if isinstance(expected, list):
        assert (502, expected) == (answer.status, answer.json["failed_providers"])
    else:
        status, code, param = expected
        assert (status, code or "invalid_request_error", param) == (
            answer.status,
            answer.json["error"],
            answer.json["param"],
        )
        assert [[]] * len(OFFERS) == [backend.batches for backend in backends.values()]


A, B = "openai", "openrouter"


@table(
    "sent_request provider upstream public",
    {
        "gomodel-bare-name": ({"model": "m"}, A, "m", "m"),
        "gomodel-prefix-of-a-provider": ({"model": "openrouter/x"}, B, "x", "x"),
        "gomodel-prefix-that-is-no-provider": (
            {"model": "BAAI/bge-m3"},
            A,
            "BAAI/bge-m3",
            "BAAI/bge-m3",
        ),
        "gomodel-hint-and-raw-id": (
            {"model": "BAAI/other", "provider": B},
            B,
            "BAAI/other",
            "BAAI/other",
        ),
        "gomodel-redundant-prefix-goes": ({"model": "openrouter/x", "provider": B}, B, "x", "x"),
        "gomodel-redundant-prefix-goes-once": (
            {"model": "openai/openai/x", "provider": A},
            A,
            "openai/x",
            "openai/x",
        ),
        "gomodel-conflict-keeps-the-id": (
            {"model": "openai/x", "provider": B},
            B,
            "openai/x",
            "openai/x",
        ),
        "gomodel-hint-pins-a-known-model": ({"model": "m", "provider": B}, B, "m", "m"),
        "gomodel-nested-id": (
            {"model": "openrouter/google/gemini"},
            B,
            "google/gemini",
            "google/gemini",
        ),
        "openrouter-suffix-stays-here": ({"model": "m:floor"}, A, "m", "m"),
    },
)
async def test_a_model_name_may_select_provider_and_model(
    upstreams, sent_request, provider, upstream, public
):
    """``provider`` is not sent upstream; the response names the provider that was used."""
    models = {"m": {}, "BAAI/bge-m3": {}}
    gateway = gateway_of(
        dict(zip((A, B), map(at, upstreams), strict=True)), endpoints=CHEAPER, models=models
    )
    async with gateway.lifespan():
        answer = await ask(gateway, input=["a"], dialect="gomodel", **sent_request)

    served = upstreams[0] if provider == A else upstreams[1]
    assert (200, provider, public) == (answer.status, answer.json["provider"], answer.json["model"])
    assert [(upstream, ["a"], False)] == [
        (item.json["model"], item.json["input"], "provider" in item.json)
        for item in served.requests
    ]
    assert right(["a"]) == numbers_in(answer)


CHEAPER = {A: {"price": 1}, B: {"price": 10**9}}


@table(
    "sent_request status code param",
    {
        "gomodel-empty-hint": ({"provider": ""}, 400, None, "provider"),
        "gomodel-unknown-hint": ({"provider": "absent"}, 400, None, "provider"),
        "gomodel-unknown-prefix": ({"model": "absent/x"}, 404, "model_not_found", "model"),
        "gomodel-prefix-and-nothing": ({"model": "openai/"}, 404, "model_not_found", "model"),
        "gpt.ge-no-model": ({"model": ""}, 400, None, "model"),
    },
)
async def test_refuses_an_unknown_model_or_provider_name(
    upstreams, sent_request, status, code, param
):
    gateway = gateway_of({A: at(upstreams[0])})
    answer = await ask(gateway, **sent_request)

    assert (status, code, param) == (answer.status, answer.error["code"], answer.error["param"])
    assert [] == upstreams[0].requests


@table(
    "preferences order filtered",
    {
        "phaseo-diagnostics-of-all": ({}, [B, A], {}),
        "phaseo-diagnostics-of-a-filter": ({"ignore": [B]}, [A], {B: "ignore"}),
        "tensorzero-dryrun": ({"max_price": {"prompt": 2}}, [B], {A: "max_price"}),
    },
)
async def test_explains_a_plan_without_a_call(preferences, order, filtered):
    backends = {slug: ScriptedBackend(width=8) for slug in (A, B)}
    gateway = gateway_of(backends, endpoints={A: {"price": 10**9}, B: {"price": 1}}, debug=True)
    answer = await ask(gateway, path="/v1/embeddings?explain=1", provider=preferences)

    assert (200, order) == (answer.status, [item["provider"] for item in answer.json["order"]])
    assert filtered == {item["provider"]: item["filter"] for item in answer.json["filtered"]}
    assert [[], []] == [backend.batches for backend in backends.values()]
