"""Requests to upstreams, field by field, and responses in the requested format."""

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest

from tests.fault_upstream.truth import say
from tests.regressions.requesting import TEXTS, WIDTH, ask, at, gateway_of, numbers_in, right, table

pytestmark = pytest.mark.anyio

PIXEL = "data:image/png;base64,iVBORw0KGgo="
IDS = [[1, 2, 3], [4]]
NULLS = dict.fromkeys(
    [
        "inputs",
        "encoding_format",
        "dimensions",
        "input_type",
        "user",
        "provider",
        "embedding_options",
        "debug",
    ]
)
TEXT, IMAGE = {"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": PIXEL}}
BASE64, FLOAT = {"encoding_format": "base64"}, {"encoding_format": "float"}
JINA = {"embedding_type": "base64"}
"""Jina's own field for the encoding, which clients do not send."""
SEEN, BOTH = {"content": [IMAGE]}, {"content": [IMAGE, TEXT]}
SEEING, SIZED = {"modalities": ["text", "image"]}, {"accepts": {"dimensions": True}}
SEES = {"endpoint": {"accepts": SEEING}, "facts": SEEING}
TYPED, PREFIX = {"accepts": {"input_types": ["query"]}}, {"query": "query: "}
OTHERS = {"google": {"title": "T"}, "mistral": {"output_dtype": "float"}}
FULL = {"dimensions": WIDTH}
"""The request of a client that always sends ``dimensions``, here those of the model."""


def body_of(inputs=TEXTS, **fields):
    return {"model": "m", "input": inputs, **fields}


class Sent(NamedTuple):
    """A request, the expected upstream request, and the config."""

    sent_request: Mapping[str, object]
    body: Mapping[str, object]
    slug: str = "a"
    options: Mapping[str, object] = MappingProxyType({})
    endpoint: Mapping[str, object] = MappingProxyType({})
    facts: Mapping[str, object] = MappingProxyType({})


sent = table(
    " ".join(Sent._fields),
    {
        # The fields that each kind of server supports; the gateway does the rest.
        "litellm-19174-openai": Sent({"user": "u"}, body_of(**BASE64, user="u"), "openai"),
        "litellm-19174-vllm-e5": Sent(NULLS, body_of(**BASE64), "vllm"),
        "litellm-19174-tei-e5": Sent(NULLS, body_of(**BASE64), "tei"),
        "litellm-38774-null-at-omitting-server": Sent(NULLS, body_of(), "together"),
        "litellm-38774-null-at-float-only-server": Sent(NULLS, body_of(**FLOAT), "lmstudio"),
        "litellm-12110-null-encoding": Sent({"encoding_format": None}, body_of(**BASE64), "openai"),
        "portkey-1213-null-encoding": Sent({"encoding_format": None}, body_of(**JINA), "jina"),
        "litellm-14680-encoding-refused": Sent(BASE64, body_of(**JINA), "jina"),
        "litellm-14685-encoding-refused": Sent(
            BASE64, body_of(), options={"encoding_format": "omit"}
        ),
        "litellm-14687-encoding-refused": Sent(FLOAT, body_of(), "cloudflare"),
        "new-api-1402-ali-base64": Sent(BASE64, body_of(**FLOAT), "dashscope-compatible"),
        "tei-288-base64-of-a-float-server": Sent(
            BASE64, body_of(**FLOAT), options={"encoding_format": "float"}
        ),
        "tei-301-float-of-a-base64-server": Sent(FLOAT, body_of(**BASE64), "tei"),
        "speakr-352-float-list": Sent(FLOAT, body_of(**BASE64), "openai"),
        "llama.cpp-10887-sdk-default": Sent(BASE64, body_of(**BASE64), "llama-cpp"),
        # Dimensions: by the field of the API or, without one, truncated by the gateway.
        "portkey-174-openai-dimensions": Sent(
            {"dimensions": 4}, body_of(**BASE64, dimensions=4), "openai"
        ),
        "portkey-175-openai-dimensions": Sent(
            {"dimensions": 1}, body_of(**BASE64, dimensions=1), "openai"
        ),
        "portkey-1220-jina-dimensions": Sent(
            {"dimensions": 4}, body_of(dimensions=4, **JINA), "jina"
        ),
        "litellm-6591-jina-dimensions": Sent(
            {"dimensions": 6, **BASE64}, body_of(dimensions=6, **JINA), "jina"
        ),
        "litellm-6591-table-overridden": Sent(
            {"dimensions": 4}, body_of(**FLOAT, dimensions=4), "lmstudio", endpoint=SIZED
        ),
        "vercel-ai-8033-gateway-keeps-width": Sent(
            {"dimensions": 2}, body_of(**FLOAT), "vercel-ai-gateway"
        ),
        "kilo-cloud-3375-gateway-keeps-width": Sent(
            {"dimensions": 2}, body_of(**FLOAT, dimensions=2), "openrouter"
        ),
        "new-api-371-dimensions-lost": Sent(
            {"dimensions": 5}, body_of(**FLOAT, dimensions=5), "dashscope-compatible"
        ),
        "infinity-538-slice-unscaled": Sent({"dimensions": 3}, body_of(**BASE64), "infinity"),
        "tei-676-cut-then-scale": Sent(
            {"dimensions": 3}, body_of(**BASE64), endpoint={"accepts": {"dimensions": False}}
        ),
        "semantic-router-2145-scale-after-cut": Sent({"dimensions": 1}, body_of(), "together"),
        "semantic-router-2183-scale-after-cut": Sent(
            {"dimensions": 7, **BASE64}, body_of(), "together"
        ),
        "mem0-3101-own-width-at-vllm": Sent(
            FULL, body_of(**BASE64), "vllm", facts={"matryoshka": False}
        ),
        "ogx-4553-own-width": Sent(FULL, body_of(**BASE64), facts={"matryoshka": False}),
        "ogx-5109-own-width-matryoshka": Sent(FULL, body_of(**BASE64)),
        "spice-0-is-unset": Sent({"dimensions": 0}, body_of(**BASE64)),
        "vllm-15465-dimensions": Sent({"dimensions": 4}, body_of(**BASE64, dimensions=4), "vllm"),
        # Inputs are neither decoded nor split.
        "litellm-745-one-letter": Sent({"input": "e"}, body_of(["e"], **BASE64)),
        "litellm-745-text-is-one-input": Sent({"input": "hello"}, body_of(["hello"], **BASE64)),
        "litellm-10113-ids-stay-ids": Sent({"input": IDS}, body_of(IDS, **BASE64)),
        "litellm-17468-flat-ids": Sent({"input": [1, 2, 3]}, body_of([[1, 2, 3]], **BASE64)),
        "tensorzero-4334-ids": Sent({"input": [[7]]}, body_of([[7]], **BASE64), "openai"),
        "tensorzero-4335-flat-ids": Sent({"input": [7, 8]}, body_of([[7, 8]], **BASE64), "openai"),
        "envoy-1404-ids": Sent({"input": IDS, **BASE64}, body_of(IDS, **BASE64), "openai"),
        "envoy-1087-flat-ids": Sent(
            {"input": [0, 2**31 - 1]}, body_of([[0, 2**31 - 1]], **BASE64), "openai"
        ),
        "litellm-31178-parts-in-order": Sent({"input": [BOTH]}, body_of([BOTH], **BASE64), **SEES),
        "litellm-6542-image-untouched": Sent(
            {"input": [SEEN, BOTH]}, body_of([SEEN, BOTH], **BASE64), **SEES
        ),
        # Fields of the gateway or of other APIs are not sent.
        "gomodel-provider-is-ours": Sent({"provider": "a"}, body_of(**BASE64)),
        "phaseo-debug-is-ours": Sent({"debug": {"trace": True}}, body_of(**BASE64)),
        "phaseo-options-of-other-apis": Sent({"embedding_options": OTHERS}, body_of(**BASE64)),
        "litellm-drop-params-user": Sent({"user": "u"}, body_of(**FLOAT), "lmstudio"),
        "litellm-drop-params-symmetric": Sent(
            {"input_type": "query"}, body_of(**BASE64), facts={"input_types": []}
        ),
        "envoy-input-type-in-its-words": Sent(
            {"input_type": "RETRIEVAL_QUERY"},
            body_of(**FLOAT, input_type="search_query"),
            "openrouter",
            endpoint=TYPED,
        ),
        "vllm-prefix-for-e5": Sent(
            {"input": ["cat"], "input_type": "query"},
            body_of(["query: cat"], **BASE64),
            "vllm",
            facts={"prefixes": PREFIX},
        ),
    },
)


@sent
async def test_sends_these_fields_and_returns_the_vectors(
    upstreams, sent_request, body, slug, options, endpoint, facts
):
    upstream = upstreams[0]
    gateway = gateway_of(
        {slug: at(upstream, **options)}, endpoints={slug: endpoint}, models={"m": facts}, debug=True
    )
    async with gateway.lifespan():
        answer = await ask(gateway, **sent_request)

    (request,) = upstream.requests
    assert (200, body) == (answer.status, request.json)
    assert b"null" not in request.body
    width = sent_request.get("dimensions") or WIDTH
    assert np.allclose(right(request.inputs, width), numbers_in(answer), atol=1e-6)
    assert np.allclose(1, np.linalg.norm(numbers_in(answer), axis=1), atol=1e-6)
    assert {sent_request.get("encoding_format") == "base64"} == {
        isinstance(row["embedding"], str) for row in answer.json["data"]
    }


@table(
    "mode sent_request encoding",
    {
        "openai-node-1542-floats-for-base64": ("float_for_base64", BASE64, str),
        "n8n-16647-floats-for-base64": ("float_for_base64", {**BASE64, "dimensions": 4}, str),
        "aisix-393-sdk-default": ("honest", BASE64, str),
        "aisix-397-sdk-default": ("base64_for_float", BASE64, str),
        "sglang-28803-float-only": ("float_for_base64", {**BASE64, "input": ["a"]}, str),
        "sglang-30434-base64": ("honest", {**BASE64, "input": ["a"]}, str),
        "litserve-740-float-only": ("float_for_base64", {**BASE64, "input": "a"}, str),
        "litserve-741-null-is-float": ("float_for_base64", {"encoding_format": None}, list),
        "envoy-1034-base64": ("mixed_encodings", BASE64, str),
        "speakr-352-float": ("base64_for_float", FLOAT, list),
        "infinity-349-little-endian": ("honest", {**BASE64, "input": [[1, 2]]}, str),
        "tensorzero-3633-base64-of-a-list": ("mixed_encodings", FLOAT, list),
    },
)
async def test_uses_the_clients_encoding_whatever_the_upstream_sends(
    upstreams, mode, sent_request, encoding
):
    upstreams[0].tell(mode)
    gateway = gateway_of({"a": at(upstreams[0])})
    async with gateway.lifespan():
        answer = await ask(gateway, **sent_request)

    assert 200 == answer.status
    assert {encoding} == {type(row["embedding"]) for row in answer.json["data"]}
    assert right(
        upstreams[0].requests[0].inputs, sent_request.get("dimensions", WIDTH)
    ) == numbers_in(answer)


def gemini(sent_request):
    """Gemini's response: one vector per request, with the requested dimensions."""
    widths = [
        request.get("outputDimensionality", WIDTH) for request in sent_request.json["requests"]
    ]
    rows = [
        {"values": [float(number + at) for number in range(1, width + 1)]}
        for at, width in enumerate(widths)
    ]
    counts = [{"modality": "TEXT", "tokenCount": 5}, {"modality": "IMAGE", "tokenCount": 258}]
    return say(
        {
            "embeddings": rows,
            "usageMetadata": {"promptTokenCount": 263, "promptTokenDetails": counts},
        }
    )


def numbers(rows, width):
    """The vectors of ``gemini``, scaled to length 1."""
    exact = np.array([np.arange(1, width + 1) + at for at in range(rows)], float)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def requests(model, *contents, **fields):
    return {
        "requests": [
            {"model": f"models/{model}", "content": {"parts": parts}, **fields}
            for parts in contents
        ]
    }


FIRST, SECOND = "gemini-embedding-001", "gemini-embedding-2"
ONE, TWO = [{"text": "one"}], [{"text": "two"}]
INLINE = {"inline_data": {"mime_type": "image/png", "data": PIXEL.partition(",")[2]}}


@table(
    "model sent_request body",
    {
        "litellm-17150-gemini-encoding-format": (FIRST, BASE64, requests(FIRST, ONE, TWO)),
        "litellm-17239-gemini-encoding-format": (FIRST, FLOAT, requests(FIRST, ONE, TWO)),
        "litellm-20235-own-field-for-dimensions": (
            FIRST,
            {"dimensions": 4},
            requests(FIRST, ONE, TWO, outputDimensionality=4),
        ),
        "litellm-10809-own-field-for-dimensions": (
            SECOND,
            {"dimensions": 4},
            requests(SECOND, ONE, TWO, outputDimensionality=4),
        ),
        "vercel-ai-8033-output-dimensionality": (
            FIRST,
            {"embedding_options": {"google": {"output_dimensionality": 4}}},
            requests(FIRST, ONE, TWO, outputDimensionality=4),
        ),
        "bifrost-5003-gemini-2-has-a-door-of-its-own": (SECOND, {}, requests(SECOND, ONE, TWO)),
        "vercel-ai-15853-gemini-2-batch": (SECOND, {"input": ["one"]}, requests(SECOND, ONE)),
        "bifrost-1138-gemini-several-texts": (FIRST, {}, requests(FIRST, ONE, TWO)),
        "new-api-1493-gemini-first-text-only": (
            FIRST,
            {"input": ["two", "one"]},
            requests(FIRST, TWO, ONE),
        ),
        "litellm-24209-gemini-2-one-vector-each": (
            SECOND,
            {"input": ["one", "two"]},
            requests(SECOND, ONE, TWO),
        ),
        "litellm-31178-gemini-2-parts": (
            SECOND,
            {"input": [{"content": [{"type": "text", "text": "one"}, IMAGE]}]},
            requests(SECOND, [*ONE, INLINE]),
        ),
        "phaseo-task-type": (
            FIRST,
            {"embedding_options": {"google": {"task_type": "CLUSTERING"}}},
            requests(FIRST, ONE, TWO, taskType="CLUSTERING"),
        ),
        "phaseo-sizes-agree": (
            FIRST,
            {"dimensions": 4, "embedding_options": {"google": {"output_dimensionality": 4}}},
            requests(FIRST, ONE, TWO, outputDimensionality=4),
        ),
        "phaseo-its-own-example": (
            FIRST,
            {
                "inputs": ["one", "two"],
                "dimensions": 2,
                "embedding_options": {
                    "google": {
                        "output_dimensionality": 2,
                        "task_type": "TASK_TYPE_UNSPECIFIED",
                        "title": "T",
                    },
                    "mistral": {"output_dimension": 2, "output_dtype": "float"},
                },
            },
            requests(FIRST, ONE, TWO, outputDimensionality=2),
        ),
        "phaseo-empty-title": (
            FIRST,
            {"embedding_options": {"google": {"title": "", "task_type": ""}}},
            requests(FIRST, ONE, TWO),
        ),
        "phaseo-title-without-document": (
            FIRST,
            {"embedding_options": {"google": {"title": "T"}}},
            requests(FIRST, ONE, TWO),
        ),
        "phaseo-title-of-a-document": (
            FIRST,
            {"embedding_options": {"google": {"title": "T", "task_type": "RETRIEVAL_DOCUMENT"}}},
            requests(FIRST, ONE, TWO, taskType="RETRIEVAL_DOCUMENT", title="T"),
        ),
        "phaseo-user-stays-here": (FIRST, {"user": "u"}, requests(FIRST, ONE, TWO)),
    },
)
async def test_sends_gemini_its_own_request_format(upstreams, model, sent_request, body):
    upstreams[0].tell(gemini)
    gateway = gateway_of(
        {"gemini": at(upstreams[0])}, endpoints={"gemini": {"model": model}}, models={"m": SEEING}
    )
    async with gateway.lifespan():
        answer = await ask(gateway, **{"input": ["one", "two"], **sent_request})

    (request,) = upstreams[0].requests
    assert (200, body) == (answer.status, request.json)
    assert f"/v1/models/{model}:batchEmbedContents" == request.path
    found = np.array(numbers_in(answer))
    assert np.allclose(
        numbers(*found.shape), found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6
    )
    assert len(body["requests"]) == len(found)
    assert answer.json["usage"]["prompt_tokens"] == 263


KINDS = {"int8": (np.int8, [-128, -1, 0, 127]), "uint8": (np.uint8, [0, 1, 128, 255])}
KINDS |= {"binary": (np.int8, [-128]), "ubinary": (np.uint8, [255])}


def mistral(sent_request):
    kind = sent_request.json.get("output_dtype")
    rows = KINDS[kind][1] if kind else np.float32([1, 2, 3, 4])
    return say(
        sent_request.answer(
            sent_request.rows([rows] * len(sent_request.inputs), base64=kind is None)
        )
    )


@table(
    "dtype encoding",
    {
        f"bifrost-2559-{dtype}-{encoding}": (dtype, encoding)
        for dtype in KINDS
        for encoding in ("float", "base64")
    },
)
async def test_quantised_numbers_keep_their_sign(upstreams, dtype, encoding):
    """Signed and unsigned bytes have the same bits; confusing them would change the vectors."""
    upstreams[0].tell(mistral)
    kind, row = KINDS[dtype]
    gateway = gateway_of({"mistral": at(upstreams[0])}, models={"m": {"dimensions": 4}})
    async with gateway.lifespan():
        options = {"mistral": {"output_dtype": dtype}}
        answer = await ask(gateway, embedding_options=options, encoding_format=encoding)
        plain = await ask(gateway)

    actual = [item["embedding"] for item in answer.json["data"]]
    if encoding == "base64":
        actual = [np.frombuffer(base64.b64decode(item), kind).tolist() for item in actual]
    assert [row] * len(TEXTS) == actual
    assert [[1, 2, 3, 4]] * len(TEXTS) == numbers_in(plain)
    assert [dtype, None] == [item.json.get("output_dtype") for item in upstreams[0].requests]
