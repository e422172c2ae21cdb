"""Requests that are refused before an upstream call, and configs that are refused at start."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from embedroute import ConfigError, EmbeddingsMiddleware, embeddings_app
from tests.regressions.requesting import (
    JSON,
    TEXTS,
    ask,
    at,
    facts_of,
    gateway_of,
    numbers_in,
    right,
    table,
)
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

METADATA = "http://169.254.169.254/latest/meta-data/"
NO_TOKENS, NO_WIDTH = {"accepts": {"tokens": False}}, {"accepts": {"dimensions": False}}
SEES = {"accepts": {"modalities": ["text", "image"], "fetches": True}}
FIXED, NARROW = {"matryoshka": False}, {"dimensions_allowed": [2, 4]}
SHORT = {"max_input_tokens": 512}


class Refused(NamedTuple):
    """A request, the expected ``param`` and ``code``, and the config."""

    sent_request: Mapping[str, object]
    param: str | None
    code: str | None = None
    slug: str = "a"
    endpoint: Mapping[str, object] = {}
    facts: Mapping[str, object] = {}
    settings: Mapping[str, object] = {}
    status: int = 400


def image(url):
    return {"input": [{"content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def google(**options):
    return {"embedding_options": {"google": options}}


def mistral(**options):
    return {"embedding_options": {"mistral": options}}


MODALITY, MEDIA, LONG = "unsupported_modality", "invalid_media_url", "context_length_exceeded"
SEEN = "input[0].content[0].image_url.url"
SIZE = "embedding_options.mistral.output_dimension"

REFUSED = {
    # Invalid inputs.
    "openclaw-117615-empty-list": Refused({"input": []}, "input"),
    "openclaw-117615-empty-text": Refused({"input": ""}, "input"),
    "openclaw-117615-list-of-nothing": Refused({"input": [""]}, "input"),
    "openclaw-117615-no-ids": Refused({"input": [[]]}, "input[0]"),
    "openclaw-117615-one-empty-among-others": Refused({"input": ["a", "", "b"]}, "input[1]"),
    "openclaw-117615-null": Refused({"input": None}, "input"),
    "spice-2049-inputs": Refused({"input": ["a"] * 2049}, "input"),
    "spice-negative-dimensions": Refused({"dimensions": -1}, "dimensions"),
    "envoy-input-xor-inputs": Refused({"inputs": ["other"]}, "inputs"),
    # Token ids are never decoded, and never sent to an API that does not support them.
    "litellm-10113-ids-where-none-are-taken": Refused(
        {"input": [[1, 2]]}, "input", MODALITY, endpoint=NO_TOKENS
    ),
    "litellm-17468-flat-ids-where-none-are-taken": Refused(
        {"input": [1, 2]}, "input", MODALITY, endpoint=NO_TOKENS
    ),
    "lmstudio-756-ids": Refused({"input": [[1, 2]]}, "input", MODALITY, "lmstudio"),
    "local-deep-research-4195-ids": Refused({"input": [1, 2]}, "input", MODALITY, "lmstudio"),
    "new-api-ids-that-are-no-ids": Refused({"input": [[1.5]]}, "input[0]"),
    "envoy-1087-negative-id": Refused({"input": [1, -1]}, "input"),
    "vmlx-255-truncated-at-512": Refused({"input": [1] * 513}, "input", LONG, facts=SHORT),
    "vmlx-255-one-of-several": Refused({"input": [[1], [1] * 513]}, "input[1]", LONG, facts=SHORT),
    # Parameters that change the vector are never dropped.
    "litellm-drop-params-dimensions": Refused(
        {"dimensions": 4}, "dimensions", endpoint=NO_WIDTH, facts=FIXED
    ),
    "phaseo-dimensions-dropped-for-together": Refused(
        {"dimensions": 4}, "dimensions", slug="together", facts=FIXED
    ),
    "vllm-not-matryoshka": Refused({"dimensions": 4}, "dimensions", slug="vllm", facts=FIXED),
    "infinity-519-width-out-of-range": Refused({"dimensions": 9}, "dimensions", slug="infinity"),
    "litellm-20235-width-not-offered": Refused({"dimensions": 3}, "dimensions", facts=NARROW),
    "litellm-drop-params-input-type": Refused({"input_type": "query"}, "input_type", slug="vllm"),
    "openrouter-unsupported-dropped-silently": Refused(
        {"input_type": "query", "user": "u"}, "input_type"
    ),
    "phaseo-task-of-another-api": Refused(
        {"provider": {"require_parameters": True}, **google(title="T")}, "embedding_options.google"
    ),
    "phaseo-sizes-contradict": Refused(
        {"dimensions": 4, **mistral(output_dimension=2)}, SIZE, slug="mistral"
    ),
    "phaseo-task-contradicts-the-suffix": Refused(
        {"model": "m:query", **google(task_type="CLUSTERING")},
        "embedding_options.google.task_type",
        slug="gemini",
    ),
    "phaseo-size-of-another-api": Refused(mistral(output_dimension=4), SIZE, slug="gemini"),
    "phaseo-dtype-of-another-api": Refused(
        mistral(output_dtype="int8"), "embedding_options.mistral.output_dtype", slug="openai"
    ),
    "phaseo-task-of-another-api-alone": Refused(
        google(task_type="CLUSTERING"), "embedding_options.google.task_type", slug="openai"
    ),
    "bifrost-2559-int8-where-none-is-given": Refused(
        mistral(output_dtype="int8"),
        "embedding_options.mistral.output_dtype",
        endpoint={"accepts": {"options": ["mistral"]}},
    ),
    "kilo-cloud-3375-misspelt-dimension": Refused({"dimension": 4}, "dimension"),
    "tensorzero-unknown-encoding": Refused({"encoding_format": "base64_int8"}, "encoding_format"),
    # The client chooses neither the URL nor the key of an upstream call.
    "litellm-28223-api-base": Refused({"api_base": METADATA}, "api_base"),
    "litellm-28223-base-url": Refused({"base_url": METADATA}, "base_url"),
    "litellm-28223-api-key": Refused({"api_key": "sk-other"}, "api_key"),
    "litellm-28223-extra-headers": Refused({"extra_headers": {"host": "x"}}, "extra_headers"),
    "portkey-1372-provider-as-address": Refused({"provider": METADATA}, "provider"),
    "portkey-1372-model-as-address": Refused(
        {"model": METADATA}, "model", "model_not_found", status=404
    ),
    "infinity-609-image-of-the-metadata-host": Refused(image(METADATA), SEEN, MEDIA, endpoint=SEES),
    "infinity-609-image-by-address": Refused(
        image("https://169.254.169.254/a.png"),
        SEEN,
        MEDIA,
        endpoint=SEES,
        settings={"media_domains": ["169.254.169.254"]},
    ),
    "infinity-609-image-of-an-unlisted-host": Refused(
        image("https://other.example/a.png"), SEEN, MEDIA, endpoint=SEES
    ),
    "infinity-609-image-of-a-like-host": Refused(
        image("https://img.example.evil.example/a.png"),
        SEEN,
        MEDIA,
        endpoint=SEES,
        settings={"media_domains": ["img.example"]},
    ),
    "infinity-609-image-from-a-file": Refused(
        image("file:///etc/passwd"), SEEN, MEDIA, endpoint=SEES
    ),
    "infinity-609-image-that-is-none": Refused(
        image("data:image/png;base64,AAAA"), SEEN, MEDIA, endpoint=SEES
    ),
    "litellm-31178-image-at-a-text-model": Refused(
        image("data:image/png;base64,iVBORw0KGgo="), "input", MODALITY
    ),
}


@table(" ".join(Refused._fields), REFUSED)
async def test_refuses_a_request_without_an_upstream_call(
    upstreams, sent_request, param, code, slug, endpoint, facts, settings, status
):
    gateway = gateway_of(
        {slug: at(upstreams[0])}, endpoints={slug: endpoint}, models={"m": facts}, **settings
    )
    answer = await ask(gateway, **sent_request)

    assert (status, (param, code)) == (answer.status, facts_of(answer.error))
    assert answer.error["type"] == "invalid_request_error"
    assert [] == upstreams[0].requests


@table("slug", {"gemini-2-image-without-a-text-for-the-prefix": ("gemini",)})
async def test_a_request_that_a_backend_cannot_build_is_no_upstream_failure(upstreams, slug):
    """Phaseo's error format says whose failure it is."""
    seeing = {"modalities": ["text", "image"]}
    gateway = gateway_of(
        {slug: at(upstreams[0])},
        endpoints={slug: {"model": "gemini-embedding-2"}},
        models={"m": seeing},
    )
    picture = image("data:image/gif;base64,R0lGODlhAQABAAAAACw=")

    answer = await ask(gateway, dialect="phaseo", input_type="query", **picture)

    assert (400, "input_type") == (answer.status, answer.json["param"])
    assert ("gateway", "user") == (answer.json["error_origin"], answer.json["error_type"])
    assert (0, []) == (answer.json["attempt_count"], answer.json["failed_providers"])
    assert ("0", None) == (
        answer.header("x-embedroute-attempts"),
        answer.header("x-embedroute-provider"),
    )
    assert [] == upstreams[0].requests


@table(
    "sent_request endpoints provider",
    {
        "litellm-10113-ids-go-where-they-are-taken": ({"input": [[1, 2]]}, {"a": NO_TOKENS}, "b"),
        "lmstudio-756-texts-go-anywhere": ({"input": ["a"]}, {"a": NO_TOKENS}, "a"),
        "phaseo-width-goes-where-it-is-honoured": (
            {"input": ["a"], "dimensions": 4},
            {"a": NO_WIDTH},
            "b",
        ),
        "vmlx-255-within-512": ({"input": [1] * 512}, {}, "a"),
    },
)
async def test_skips_an_endpoint_that_lacks_a_parameter(
    upstreams, sent_request, endpoints, provider
):
    """Its price is lower, so without the parameter it is called first."""
    facts = {"dimensions": None} if "dimensions" in sent_request else SHORT
    prices = {
        slug: {"price": price, **endpoints.get(slug, {})}
        for slug, price in {"a": 1, "b": 10**9}.items()
    }
    gateway = gateway_of(
        {"a": at(upstreams[0]), "b": at(upstreams[1])}, endpoints=prices, models={"m": facts}
    )
    async with gateway.lifespan():
        answer = await ask(gateway, **sent_request)

    inputs = (
        sent_request["input"]
        if isinstance(sent_request["input"][0], str | list)
        else [sent_request["input"]]
    )
    assert (200, provider) == (answer.status, answer.header("x-embedroute-provider"))
    assert right(inputs, sent_request.get("dimensions", 8)) == numbers_in(answer)


@table(
    "headers fields",
    {
        "portkey-1372-custom-host": (
            [("x-portkey-custom-host", METADATA), ("x-portkey-provider", "openai")],
            {},
        ),
        "litellm-28223-lenient-api-base": ([], {"api_base": METADATA, "api_key": "sk-other"}),
        "helicone-target-url": ([("helicone-target-url", METADATA)], {}),
        "litellm-28223-authorization": ([("authorization", "Bearer sk-client")], {}),
    },
)
async def test_ignored_fields_change_neither_url_nor_key(upstreams, headers, fields):
    gateway = gateway_of({"a": at(upstreams[0])}, unknown_fields=["api_base", "api_key"])
    async with gateway.lifespan():
        answer = await ask(gateway, *headers, **fields)

    (request,) = upstreams[0].requests
    assert (200, right(TEXTS)) == (answer.status, numbers_in(answer))
    assert {"model", "input", "encoding_format"} == request.json.keys()
    assert ("sk-up", f"127.0.0.1:{upstreams[0].port}") == (request.key, request.headers["host"])
    assert not {"x-portkey-custom-host", "helicone-target-url"} & request.headers.keys()


@pytest.mark.parametrize(
    ("endpoint", "facts", "mistake"),
    [
        pytest.param(
            {"accepts": {"max_inputs": -1}},
            {},
            "max_inputs must be at least 1",
            id="caura-721-negative-cap",
        ),
        pytest.param(
            {"accepts": {"max_tokens": 0}},
            {},
            "max_tokens must be at least 1",
            id="caura-721-cap-of-0",
        ),
        pytest.param(
            {"provider": "q"},
            {},
            r"refers to unknown provider",
            id="muninndb-582-no-such-provider",
        ),
        pytest.param(
            {}, {"fallback": "n"}, "is not another model", id="openclaw-91719-fallback-to-nothing"
        ),
        pytest.param(
            {},
            {"dimensions_allowed": [16]},
            "must not exceed dimensions = 8",
            id="vllm-width-that-is-none",
        ),
    ],
)
def test_refuses_an_inconsistent_config_at_start(endpoint, facts, mistake):
    with pytest.raises(ConfigError, match=mistake):
        gateway_of({"h": {"backend": "hashed"}}, endpoints={"h": endpoint}, models={"m": facts})


def mounted(gateway):
    return Starlette(routes=[Mount("/x", app=embeddings_app(gateway))])


def twice_mounted(gateway):
    return Starlette(routes=[Mount("/x", routes=[Mount("/y", app=embeddings_app(gateway))])])


def in_front(gateway):
    return EmbeddingsMiddleware(Starlette(), gateway, "/x/v1")


@table(
    "host path root status",
    {
        "litellm-5997-below-a-mount": (mounted, "/x/v1/embeddings", "", 200),
        "litellm-5997-mount-and-root-path": (mounted, "/api/x/v1/embeddings", "/api", 200),
        "litellm-5997-mount-and-root-path-left-out": (mounted, "/x/v1/embeddings", "/api", 200),
        "litellm-5997-mount-in-a-mount": (twice_mounted, "/x/y/v1/embeddings", "", 200),
        "litellm-5997-not-above-the-mount": (mounted, "/v1/embeddings", "", 404),
        "litellm-5997-middleware": (in_front, "/x/v1/embeddings", "", 200),
        "litellm-5997-middleware-and-root-path": (in_front, "/api/x/v1/embeddings", "/api", 200),
        "helicone-197-there-is-a-route": (embeddings_app, "/v1/embeddings", "", 200),
        "tensorzero-1209-there-is-a-route": (embeddings_app, "/embeddings", "", 200),
        "spice-errors-are-json": (embeddings_app, "/v1/embedding", "", 404),
    },
)
async def test_serves_the_route_under_every_mount_path(host, path, root, status):
    gateway = gateway_of({"h": {"backend": "hashed"}})
    body = json.dumps({"model": "m", "input": "a"}).encode()
    answer = await call(host(gateway), "POST", path, [JSON], [body], root_path=root)

    assert status == answer.status


@table(
    "gateways",
    {"litellm-5997-lifespan-below-a-mount": (1,), "litellm-5997-two-gateways-in-one-host": (2,)},
)
async def test_mounts_need_no_lifespan_and_share_no_state(gateways):
    widths = range(1, gateways + 1)
    routes = [
        Mount(
            f"/{width}",
            app=embeddings_app(
                gateway_of({"h": {"backend": "hashed"}}, models={"m": {"dimensions": width}})
            ),
        )
        for width in widths
    ]
    body = json.dumps({"model": "m", "input": "a"}).encode()
    answers = [
        await call(Starlette(routes=routes), "POST", f"/{width}/v1/embeddings", [JSON], [body])
        for width in widths
    ]

    assert list(widths) == [len(numbers_in(answer)[0]) for answer in answers]
