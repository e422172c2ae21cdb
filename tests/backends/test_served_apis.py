"""Tests the backends of servers and clouds against a loopback server with the API of each."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from embedroute import Config, Gateway, RetryPolicy
from embedroute.backend import Batch, Secret
from embedroute.backends.bedrock import Bedrock
from embedroute.backends.cloudflare import Cloudflare
from embedroute.backends.ollama import Ollama
from embedroute.backends.openrouter import OpenRouter
from embedroute.backends.sagemaker import SageMaker
from embedroute.backends.tei import TEI
from embedroute.backends.vertex import Vertex
from embedroute.backends.vllm import VLLM
from embedroute.backends.watsonx import WatsonX
from embedroute.errors import EmbedrouteError
from embedroute.testing import check_backend
from tests.backends import apis, served_apis
from tests.support.fake_api import FakeAPI

pytestmark = pytest.mark.anyio

TEXTS = ("b", "a", "ccc")
ONE_TRY = RetryPolicy(attempts=1, repeats=0)
KEY = {"api_key": Secret("k")}
AWS = {"access_key_id": Secret("AKIAEXAMPLE"), "secret_access_key": Secret("s3cret")}
BEARER = ("authorization", "Bearer k")
SIGNED = ("authorization", "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/")


class API(NamedTuple):
    """How a backend is tested: its options, the fake, and how the header of the key begins."""

    backend: type
    reply: object
    path: str
    model: str = "m"
    options: dict = KEY
    header: tuple = BEARER
    calls: int = 1
    has_usage: bool = True


APIS = {
    "ollama": API(Ollama, served_apis.ollama, "/api/embed"),
    "tei": API(TEI, served_apis.tei, "/embed", has_usage=False),
    "vllm": API(VLLM, served_apis.vllm, "/embeddings"),
    "openrouter": API(OpenRouter, apis.openai, "/embeddings"),
    "cloudflare": API(
        Cloudflare,
        served_apis.cloudflare,
        "/accounts/acct/ai/run/@cf/baai/bge-m3",
        "@cf/baai/bge-m3",
        {**KEY, "account_id": "acct"},
        has_usage=False,
    ),
    "cloudflare-qwen": API(
        Cloudflare,
        served_apis.cloudflare,
        "/accounts/acct/ai/run/@cf/qwen/qwen3-embedding-0.6b",
        "@cf/qwen/qwen3-embedding-0.6b",
        {**KEY, "account_id": "acct"},
        has_usage=False,
    ),
    "watsonx": API(
        WatsonX,
        served_apis.watsonx,
        "/ml/v1/text/embeddings?version=2024-03-13",
        options={"token": Secret("k"), "project_id": "p"},
    ),
    "bedrock-titan-v1": API(
        Bedrock,
        served_apis.titan,
        "/model/amazon.titan-embed-text-v1/invoke",
        "amazon.titan-embed-text-v1",
        {**KEY, "region": "us-east-1"},
        calls=3,
    ),
    "bedrock-titan-v2": API(
        Bedrock,
        served_apis.titan,
        "/model/amazon.titan-embed-text-v2%3A0/invoke",
        "amazon.titan-embed-text-v2:0",
        {**AWS, "region": "us-east-1"},
        SIGNED,
        calls=3,
    ),
    "bedrock-titan-image": API(
        Bedrock,
        served_apis.titan_image,
        "/model/amazon.titan-embed-image-v1/invoke",
        "amazon.titan-embed-image-v1",
        {**KEY, "region": "us-east-1"},
        calls=3,
    ),
    "bedrock-cohere-v3": API(
        Bedrock,
        served_apis.bedrock_cohere,
        "/model/cohere.embed-english-v3/invoke",
        "cohere.embed-english-v3",
        {**AWS, "region": "eu-central-1"},
        SIGNED,
        has_usage=False,
    ),
    "bedrock-cohere-v4": API(
        Bedrock,
        served_apis.bedrock_cohere,
        "/model/us.cohere.embed-v4%3A0/invoke",
        "us.cohere.embed-v4:0",
        {**KEY, "region": "us-east-1"},
        has_usage=False,
    ),
    "bedrock-nova": API(
        Bedrock,
        served_apis.nova,
        "/model/amazon.nova-2-multimodal-embeddings-v1%3A0/invoke",
        "amazon.nova-2-multimodal-embeddings-v1:0",
        {**KEY, "region": "us-east-1"},
        calls=3,
        has_usage=False,
    ),
    "sagemaker-tei": API(
        SageMaker,
        served_apis.tei,
        "/endpoints/my-endpoint/invocations",
        "my-endpoint",
        {**AWS, "region": "us-east-1"},
        SIGNED,
        has_usage=False,
    ),
    "sagemaker-openai": API(
        SageMaker,
        apis.openai,
        "/endpoints/my-endpoint/invocations",
        "my-endpoint",
        {**AWS, "region": "us-east-1", "container": "openai"},
        SIGNED,
    ),
    "vertex-predict": API(
        Vertex,
        served_apis.vertex_predict,
        "/v1/projects/p/locations/global/publishers/google/models/text-embedding-005:predict",
        "text-embedding-005",
        {**KEY, "project": "p"},
        ("x-goog-api-key", "k"),
    ),
    "vertex-content": API(
        Vertex,
        served_apis.vertex_content,
        "/v1/projects/p/locations/global/publishers/google/models/gemini-embedding-2:embedContent",
        "gemini-embedding-2",
        {**KEY, "project": "p"},
        ("x-goog-api-key", "k"),
        calls=3,
    ),
    "vertex-multimodal": API(
        Vertex,
        served_apis.vertex_multimodal,
        "/v1/projects/p/locations/global/publishers/google/models/multimodalembedding@001:predict",
        "multimodalembedding@001",
        {**KEY, "project": "p"},
        ("x-goog-api-key", "k"),
        has_usage=False,
    ),
}
ALL = pytest.mark.parametrize("api", APIS.values(), ids=APIS)


def make_backend(api, base_url="https://api.example"):
    return api.backend(base_url=base_url, **api.options)


def make_gateway(api, base_url, **provider):
    most = {} if api.calls > 1 else {"max_inputs": 96}
    endpoint = {"provider": "p", "model": api.model, "accepts": most}
    config = Config(
        gateway={"auth": "open"},
        providers={"p": {"backend": make_backend(api, base_url), **provider}},
        models={"public": {"dimensions": apis.WIDTH, "endpoints": [endpoint]}},
    )
    return Gateway(config, retries=ONE_TRY)


def unit(rows):
    array = np.array(rows, "f8")
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "name",
    [
        "ollama",
        "tei",
        "vllm",
        "openrouter",
        "cloudflare",
        "watsonx",
        "bedrock-cohere-v4",
        "bedrock-nova",
        "sagemaker-openai",
        "sagemaker-tei",
        "vertex-predict",
    ],
)
def test_keeps_the_contract(name):
    api = APIS[name]
    backend = make_backend(api)

    def reply(batch: Batch):
        return api.reply(json.loads(backend.build(batch).content))

    check_backend(backend, reply=reply, model=api.model, dimensions=8)


@ALL
async def test_returns_the_vectors_of_the_inputs_in_order(api):
    with FakeAPI(api.reply) as fake:
        answer = await make_gateway(api, fake.url).embed(TEXTS, model="public")

    assert [api.path] * api.calls == [request.path for request in fake.requests]
    name, value = api.header
    assert all(request.headers[name].startswith(value) for request in fake.requests)
    expected = unit([apis.numbers(text) for text in TEXTS])
    assert unit(answer.vectors) == pytest.approx(expected, abs=1e-6)
    assert not api.has_usage or answer.prompt_tokens == apis.count(TEXTS)


@ALL
@pytest.mark.parametrize("extra", [-1, 1], ids=["too few", "too many"])
async def test_rejects_another_number_of_vectors(api, extra):
    if api.calls > 1:
        pytest.skip("the API returns one vector per call")
    backend = make_backend(api)
    texts = (*TEXTS, "more")[: len(TEXTS) + extra]
    body = json.loads(backend.build(Batch(model=api.model, texts=texts)).content)
    wrong = (200, {}, json.dumps(api.reply(body)))
    with FakeAPI(api.reply, [wrong]) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url).embed(TEXTS, model="public")

    assert (502, "upstream_invalid_response") == (caught.value.status, caught.value.code)


@ALL
async def test_rejects_an_answer_that_ends_early(api):
    with FakeAPI(api.reply, cut=30) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url).embed("a", model="public")

    assert 502 == caught.value.status


async def test_a_slow_answer_is_a_timeout():
    api = APIS["bedrock-titan-v2"]
    with FakeAPI(api.reply, delay=1.0) as fake, pytest.raises(EmbedrouteError) as caught:
        await make_gateway(api, fake.url, attempt_timeout=0.5).embed("a", model="public")

    assert (504, "timeout_error") == (caught.value.status, caught.value.type)
