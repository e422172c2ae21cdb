"""Tests each native backend against a loopback server with the API of its provider."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest

from embedroute import Config, Gateway, RetryPolicy
from embedroute.backend import Batch, Secret
from embedroute.backends.azure import Azure
from embedroute.backends.cohere import Cohere
from embedroute.backends.dashscope import DashScope
from embedroute.backends.huggingface import HuggingFace
from embedroute.backends.jina import Jina
from embedroute.backends.minimax import MiniMax
from embedroute.backends.nomic import Nomic
from embedroute.backends.nvidia import Nvidia
from embedroute.backends.perplexity import Perplexity
from embedroute.backends.snowflake import Snowflake
from embedroute.backends.voyage import Voyage
from embedroute.errors import EmbedrouteError
from embedroute.testing import check_backend
from tests.backends import apis
from tests.support.fake_api import FakeAPI

pytestmark = pytest.mark.anyio

TEXTS = ("b", "a", "ccc")
ONE_TRY = RetryPolicy(attempts=1, repeats=0)


class API(NamedTuple):
    """How a backend is tested: its class and options, the fake, and the header of the key."""

    backend: type
    reply: object
    path: str
    model: str = "m"
    options: Mapping = MappingProxyType({})
    header: tuple = ("authorization", "Bearer k")
    item: object = staticmethod(lambda text: text)
    has_usage: bool = True


APIS = {
    "azure-v1": API(Azure, apis.openai, "/openai/v1/embeddings", header=("api-key", "k")),
    "azure-deployments": API(
        Azure,
        apis.openai,
        "/openai/deployments/m/embeddings?api-version=2024-10-21",
        options={"api_version": "2024-10-21"},
        header=("api-key", "k"),
    ),
    "cohere": API(Cohere, apis.cohere, "/v2/embed", "embed-v4.0"),
    "cohere-base64": API(
        Cohere, apis.cohere, "/v2/embed", "embed-v4.0", {"encoding_format": "base64"}
    ),
    "dashscope": API(
        DashScope, apis.dashscope, "/services/embeddings/text-embedding/text-embedding"
    ),
    "dashscope-multimodal": API(
        DashScope,
        apis.dashscope,
        "/services/embeddings/multimodal-embedding/multimodal-embedding",
        "qwen3-vl-embedding",
        item=lambda text: {"text": text},
    ),
    "huggingface": API(
        HuggingFace,
        apis.huggingface,
        "/models/org/m/pipeline/feature-extraction",
        "org/m",
        has_usage=False,
    ),
    "jina": API(Jina, apis.jina, "/embeddings", "jina-embeddings-v4"),
    "minimax": API(MiniMax, apis.minimax, "/embeddings?GroupId=g", options={"group_id": "g"}),
    "nomic": API(Nomic, apis.nomic, "/embedding/text"),
    "nvidia": API(Nvidia, apis.nvidia, "/embeddings"),
    "perplexity": API(Perplexity, apis.perplexity, "/embeddings"),
    "perplexity-context": API(
        Perplexity,
        apis.perplexity,
        "/contextualizedembeddings",
        "pplx-embed-context-v1-4b",
        item=lambda text: [text],
    ),
    "snowflake": API(Snowflake, apis.snowflake, "/api/v2/cortex/inference:embed"),
    "voyage": API(Voyage, apis.voyage, "/embeddings"),
    "voyage-context": API(
        Voyage,
        apis.voyage,
        "/contextualizedembeddings",
        "voyage-context-3",
        item=lambda text: [text],
    ),
    "voyage-multimodal": API(
        Voyage,
        apis.voyage,
        "/multimodalembeddings",
        "voyage-multimodal-3.5",
        item=lambda text: {"content": [{"type": "text", "text": text}]},
    ),
}
# The event loop matters to the transport, not to what a backend makes of an answer.
ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])
ALL = pytest.mark.parametrize("api", APIS.values(), ids=APIS)


def make_backend(api, base_url="https://api.example"):
    return api.backend(base_url=base_url, api_key=Secret("k"), **api.options)


def make_gateway(api, base_url, **provider):
    config = Config(
        gateway={"auth": "open"},
        providers={"p": {"backend": make_backend(api, base_url), **provider}},
        models={
            "public": {
                "dimensions": apis.WIDTH,
                "endpoints": [{"provider": "p", "model": api.model}],
            }
        },
    )
    return Gateway(config, retries=ONE_TRY)


def unit(rows):
    array = np.array(rows, "f8")
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@ALL
def test_keeps_the_contract(api):
    backend = make_backend(api)

    def reply(batch: Batch):
        return api.reply(json.loads(backend.build(batch).content))

    check_backend(backend, reply=reply, model=api.model, dimensions=8)


@ALL
async def test_returns_the_vectors_of_the_inputs_in_order(api):
    with FakeAPI(api.reply) as fake:
        answer = await make_gateway(api, fake.url).embed(TEXTS, model="public")
    [request] = fake.requests

    assert api.path == request.path
    name, value = api.header
    assert value == request.headers[name]
    assert "k" not in json.dumps(request.body).split('"')
    expected = unit([apis.numbers(api.item(text)) for text in TEXTS])
    assert unit(answer.vectors) == pytest.approx(expected, abs=1e-6)
    billed = apis.count([api.item(text) for text in TEXTS])
    assert not api.has_usage or answer.prompt_tokens == billed


@ASYNCIO
@ALL
@pytest.mark.parametrize("extra", [-1, 1], ids=["too few", "too many"])
async def test_rejects_another_number_of_vectors(api, extra):
    backend = make_backend(api)
    texts = (*TEXTS, "more")[: len(TEXTS) + extra]
    body = json.loads(backend.build(Batch(model=api.model, texts=texts)).content)
    wrong = (200, {}, json.dumps(api.reply(body)))
    with FakeAPI(api.reply, [wrong]) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url).embed(TEXTS, model="public")

    assert (502, "upstream_invalid_response") == (caught.value.status, caught.value.code)


@ASYNCIO
@ALL
async def test_rejects_an_answer_that_ends_early(api):
    with FakeAPI(api.reply, cut=40) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url).embed(TEXTS, model="public")

    assert 502 == caught.value.status


@pytest.mark.parametrize("name", ["cohere", "huggingface"])
async def test_a_slow_answer_is_a_timeout(name):
    api = APIS[name]
    with FakeAPI(api.reply, delay=1.0) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url, attempt_timeout=0.5).embed(TEXTS, model="public")

    assert (504, "timeout_error") == (caught.value.status, caught.value.type)
