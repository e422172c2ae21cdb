"""The model that an answer names: which names are one model, and what is done about the others."""

# A scripted reply does not depend on the request.
# ruff: noqa: ARG002

import asyncio
import logging

import numpy as np
import pytest

from embedroute import Config, Gateway
from embedroute.backend import HTTPBackend, Secret, UpstreamRequest, UpstreamResponse, Vectors
from embedroute.errors import InvalidUpstreamResponse, UpstreamWrongModel
from embedroute.execution import (
    CallResources,
    EchoedModels,
    LocalModels,
    Verdict,
    call_backend,
    catalogue_bases,
    decide,
    is_same_model,
    parse_name,
)
from embedroute.routing import may_be_caused_by_input
from tests.execution.test_backend_call import BATCH, FixedTransport, RemoteBackend

ONE_MODEL = [
    # OpenAI: api.openai.com names the resolved model (API reference; openai/openai-openapi).
    ("text-embedding-3-small", "text-embedding-3-small"),
    ("text-embedding-3-small", "text-embedding-3-small-2024-01-25"),
    ("text-embedding-ada-002", "text-embedding-ada-002-v2"),
    ("Text-Embedding-3-Large", "text-embedding-3-large"),
    # OpenRouter and Vercel: names with a publisher (their model lists).
    ("openai/text-embedding-3-small", "text-embedding-3-small"),
    ("qwen/qwen3-embedding-8b", "Qwen/Qwen3-Embedding-8B"),
    ("google/gemini-embedding-001", "gemini-embedding-001"),
    ("baai/bge-m3:free", "baai/bge-m3"),
    # Google: models/ and the resource names of Vertex AI (Gemini API and Vertex references).
    ("gemini-embedding-001", "models/gemini-embedding-001"),
    ("gemini-embedding-001", "publishers/google/models/gemini-embedding-001"),
    ("google/gemini-embedding-001", "models/gemini-embedding-001"),
    ("textembedding-gecko", "textembedding-gecko@003"),
    ("gemini-embedding-exp", "gemini-embedding-exp-03-07"),
    # Mistral: a name without a date is an alias (platform-docs-public, models).
    ("mistral-embed", "mistral-embed-2312"),
    ("codestral-embed", "codestral-embed-2505"),
    # Volcengine: dates of six digits (model list of Ark).
    ("doubao-embedding-large-text", "doubao-embedding-large-text-250515"),
    # Ollama: a name without a tag is :latest (docs/api.md, "Model names").
    ("nomic-embed-text", "nomic-embed-text:latest"),
    ("nomic-embed-text:latest", "nomic-embed-text"),
    ("qwen3-embedding:0.6b", "qwen3-embedding:0.6b"),
    # vLLM: --served-model-name, else the value of --model (vllm serve reference; vllm#15845).
    ("bge-m3", "BAAI/bge-m3"),
    ("BAAI/bge-m3", "/models/bge-m3"),
    ("BAAI/bge-m3", "/data/models/BAAI/bge-m3/"),
    ("bge-m3", "./bge-m3"),
    (
        "BAAI/bge-m3",
        "/root/.cache/huggingface/hub/models--BAAI--bge-m3/snapshots/5617a9f61b028005a4858fdac845db406aefb181",
    ),
    # Text Embeddings Inference: its --model-id, which may be a folder (TEI#685).
    ("intfloat/multilingual-e5-large-instruct", "/data/multilingual-e5-large-instruct"),
    # Infinity: the last two parts of the path (michaelfeil/infinity#180).
    ("mixedbread-ai/mxbai-embed-large-v1", "mixedbread-ai/mxbai-embed-large-v1"),
    ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    # llama.cpp, llamafile: the file (llama-server README, --alias; mozilla-ai/llamafile#277).
    ("nomic-embed-text-v1.5", "nomic-embed-text-v1.5.f16.gguf"),
    ("nomic-ai/nomic-embed-text-v1.5", "nomic-embed-text-v1.5.Q8_0.gguf"),
    ("bge-m3", "/models/bge-m3-Q4_K_M.gguf"),
    ("bge-m3", "C:\\models\\bge-m3-q8_0.gguf"),
    ("nomic-ai/nomic-embed-text-v1.5", "hf.co/nomic-ai/nomic-embed-text-v1.5-GGUF:F16"),
    ("Qwen/Qwen3-Embedding-0.6B", "Qwen3-Embedding-0.6B-Q8_0.gguf"),
    # LM Studio: a quantization after @ (docs, "REST endpoints").
    ("text-embedding-nomic-embed-text-v1.5", "text-embedding-nomic-embed-text-v1.5@q8_0"),
    # Cloudflare: @cf/publisher/model (Workers AI, models).
    ("@cf/baai/bge-m3", "baai/bge-m3"),
    # OVHcloud and DigitalOcean: names without a publisher (their model lists).
    ("BAAI/bge-m3", "BGE-M3"),
    ("Qwen/Qwen3-Embedding-0.6B", "qwen3-embedding-0.6b"),
    # Fireworks: accounts/…/models/…, and 0p6b for 0.6b (its model list).
    ("fireworks/qwen3-embedding-8b", "accounts/fireworks/models/qwen3-embedding-8b"),
    ("qwen3-embedding-0.6b", "accounts/fireworks/models/qwen3-embedding-0p6b"),
    # Bedrock: the version after a colon (Bedrock model ids).
    ("amazon.titan-embed-text-v2", "amazon.titan-embed-text-v2:0"),
    # Nvidia: the input type as a suffix (NIM reference, "input_type").
    ("nvidia/nv-embedqa-e5-v5-query", "nvidia/nv-embedqa-e5-v5"),
]

TWO_MODELS = [
    ("text-embedding-3-small", "text-embedding-3-large"),
    ("text-embedding-3-small", "text-embedding-ada-002"),
    ("text-embedding-ada-002", "gemini-embedding-2"),  # iBUHub/AIStudioToAPI#168 maps it
    ("text-embedding-3-small-2024-01-25", "text-embedding-3-small-2025-01-25"),
    ("mistral-embed-2312", "mistral-embed-2505"),
    ("doubao-embedding-large-text-240915", "doubao-embedding-large-text-250515"),
    ("bge-large-en", "bge-large-en-v1.5"),
    ("nomic-embed-text", "nomic-embed-text-v2-moe"),
    ("snowflake-arctic-embed", "snowflake-arctic-embed2"),
    ("gemini-embedding-2", "gemini-embedding-2-preview"),
    ("textembedding-gecko@001", "textembedding-gecko@003"),
    ("qwen3-embedding:0.6b", "qwen3-embedding:8b"),
    ("qwen3-embedding:0.6b", "qwen3-embedding:latest"),
    ("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-8B"),
    ("granite-embedding:30m", "granite-embedding:278m"),
    ("jina-embeddings-v3", "jina-embeddings-v4"),
    ("BAAI/bge-m3", "someone/bge-m3"),
    ("bge-m3-Q8_0.gguf", "bge-m3-Q4_K_M.gguf"),
    ("nvidia/nv-embedqa-e5-v5-query", "nvidia/nv-embedqa-e5-v5-passage"),
    ("amazon.titan-embed-text-v1", "amazon.titan-embed-text-v2:0"),
    # No name of a model at all, or one that only the server knows.
    ("bge-m3", "gpt-3.5-turbo"),  # llama.cpp, DEFAULT_OAICOMPAT_MODEL
    ("bge-m3", "bge-m3-1-0"),  # xorbitsai/inference#2751 names a replica
    ("BAAI/bge-m3", "BAAIbge-m3"),  # infinity before its pull request 180
    ("ada-embeddings", "text-embedding-ada-002"),  # MicrosoftDocs/azure-docs#111005
    ("bge-m3", "5617a9f61b028005a4858fdac845db406aefb181"),
]


@pytest.mark.parametrize(("requested", "named"), ONE_MODEL)
def test_a_dated_version_a_path_and_a_tag_are_the_same_model(requested, named):
    assert is_same_model(requested, named)
    assert is_same_model(named, requested)


@pytest.mark.parametrize(("requested", "named"), TWO_MODELS)
def test_other_names_are_other_models(requested, named):
    assert not is_same_model(requested, named)
    assert not is_same_model(named, requested)


def test_a_name_of_any_length_and_form_can_be_parsed():
    for name in (
        "",
        "/",
        "//",
        ":latest",
        ".gguf",
        "-2024-01-25",
        "a" * 10**6,
        "\ud800",
        "models/",
    ):
        assert isinstance(parse_name(name).base, str)


SMALL = "text-embedding-3-small"
ADA = "text-embedding-ada-002"


@pytest.mark.parametrize(
    ("requested", "public", "learned", "named", "verdict"),
    [
        pytest.param(SMALL, SMALL, None, f"{SMALL}-2024-01-25", Verdict.ACCEPT, id="dated"),
        pytest.param("my-deploy", SMALL, None, SMALL, Verdict.ACCEPT, id="the public name"),
        pytest.param("my-deploy", "mine", None, ADA, Verdict.LEARN, id="a renamed deployment"),
        pytest.param("bge-m3", "bge-m3", None, "gpt-3.5-turbo", Verdict.LEARN, id="a fixed text"),
        pytest.param(SMALL, SMALL, None, ADA, Verdict.REFUSE, id="another known model at once"),
        pytest.param("my-deploy", SMALL, None, ADA, Verdict.REFUSE, id="not the public model"),
        pytest.param(
            "bge-large", "bge-large", None, "bge-large-en-v1.5", Verdict.LEARN, id="a longer name"
        ),
        pytest.param("m", "m", "m", "other", Verdict.REFUSE, id="a swap"),
        pytest.param("m", "m", "alias", "alias", Verdict.ACCEPT, id="the alias again"),
        pytest.param("m", "m", "alias", "Org/Alias:latest", Verdict.ACCEPT, id="alias as path"),
        pytest.param("m", "m", "alias", "other", Verdict.REFUSE, id="not the alias"),
        pytest.param("m", "m", "alias", "m", Verdict.ACCEPT, id="the asked name after an alias"),
        pytest.param(
            "mistral-embed",
            "mistral-embed",
            "mistral-embed-2312",
            "mistral-embed-2505",
            Verdict.REFUSE,
            id="another date than before",
        ),
        pytest.param(
            "bge-m3", "bge-m3", "BAAI/bge-m3", "x/bge-m3", Verdict.REFUSE, id="another publisher"
        ),
    ],
)
def test_what_is_done_about_a_named_model(requested, public, learned, named, verdict):
    assert decide(named, (requested, public), learned, catalogue_bases()) is verdict


class NamingBackend(HTTPBackend, frozen=True, kw_only=True):
    api_key: Secret = Secret("sk-a-secret-of-the-gateway")

    def build(self, batch):
        return UpstreamRequest.json("http://host", {"texts": batch.texts})

    def parse(self, batch, response):
        answer = response.json()
        return Vectors.from_lists(answer["rows"], model=answer.get("model"))


class Caller:
    """Makes calls whose answers name models, for one gateway."""

    def __init__(self):
        self.models = EchoedModels()

    async def call(self, model, endpoint="up:m", rows="[[1, 2, 3], [4, 5, 6]]"):
        body = f'{{"rows": {rows}, "model": {model}}}'.encode()
        resources = CallResources(
            transport=FixedTransport(UpstreamResponse(200, {}, body)),
            local=LocalModels(),
            models=self.models,
        )
        return await call_backend(NamingBackend(), BATCH, resources, 5.0, endpoint=endpoint)


@pytest.mark.anyio
async def test_a_swap_behind_an_alias_is_refused(caplog):
    caller = Caller()
    caplog.set_level(logging.INFO, "embedroute.calls")

    for _ in range(3):
        await caller.call('"served"')
    for _ in range(3):
        with pytest.raises(UpstreamWrongModel) as caught:
            await caller.call('"swapped"')
    await caller.call('"served"')
    await caller.call('"other"', endpoint="second:m")

    assert (502, "upstream_wrong_model") == (caught.value.status, caught.value.code)
    assert "'swapped', not 'm'" in caught.value.message
    assert [
        ("upstream uses another name for the model, which is its alias from now on", "served"),
        ("upstream answered with another model", "swapped"),
        ("upstream uses another name for the model, which is its alias from now on", "other"),
    ] == [(record.event, record.named) for record in caplog.records]


@pytest.mark.anyio
@pytest.mark.parametrize("nothing", ["null", '""', '" "', "7", "[]", "{}", '"/"'])
async def test_an_answer_that_names_no_model_is_accepted(nothing):
    caller = Caller()
    await caller.call(nothing)
    await caller.call('"m"')
    await caller.call(nothing)
    with pytest.raises(UpstreamWrongModel):
        await caller.call('"other"')


@pytest.mark.anyio
async def test_the_wrong_model_is_named_before_its_wrong_width():
    caller = Caller()
    await caller.call('"m"')
    with pytest.raises(UpstreamWrongModel):
        await caller.call('"other"', rows="[[1], [2]]")


@pytest.mark.anyio
async def test_an_endpoint_without_the_check_may_name_any_model():
    caller = Caller()
    for name in ('"m"', '"other"', '"third"'):
        await caller.call(name, endpoint="")


@pytest.mark.anyio
async def test_neither_a_key_nor_a_long_name_reaches_the_log(caplog):
    caller = Caller()
    await caller.call(f'"sk-a-secret-of-the-gateway {"x" * 100_000}"')
    (record,) = caplog.records
    assert "a-secret" not in record.named
    assert len(record.named) <= 300


@pytest.mark.anyio
async def test_vectors_of_a_backend_that_is_no_http_backend_are_checked_too():
    class Named(RemoteBackend, frozen=True, kw_only=True):
        async def embed(self, batch):
            model = batch.model if self.step else "other"
            return Vectors(np.ones((2, 3), "<f4"), model=model)

    resources = CallResources(transport=FixedTransport(None), local=LocalModels())
    await call_backend(Named(step=1), BATCH, resources, 5.0, endpoint="up:m")
    with pytest.raises(UpstreamWrongModel):
        await call_backend(Named(), BATCH, resources, 5.0, endpoint="up:m")


def test_another_model_is_never_an_inputs_fault():
    failure = UpstreamWrongModel("other")
    assert isinstance(failure, InvalidUpstreamResponse)
    assert not may_be_caused_by_input(failure)


class NamingTransport:
    """Answers with one row per call, and with the model that ``named`` holds for the host."""

    name = "naming"

    def __init__(self, named):
        self.named = named
        self.hosts = []

    async def send(self, request, timeout, limits):
        host = request.url.removeprefix("http://")
        self.hosts.append(host)
        model = self.named[host]
        return UpstreamResponse(200, {}, f'{{"rows": [[1, 2, 3]], "model": "{model}"}}'.encode())

    async def aclose(self):
        pass


class NamedHost(NamingBackend, frozen=True, kw_only=True):
    host: str

    def build(self, batch):
        return UpstreamRequest.json(f"http://{self.host}", {"texts": batch.texts})


def gateway_of(transport, **endpoints):
    return Gateway(
        Config(
            gateway={"auth": "open"},
            providers={host: {"backend": NamedHost(host=host)} for host in endpoints},
            models={
                "m": {
                    "dimensions": 3,
                    "endpoints": [
                        {"provider": host, **fields} for host, fields in endpoints.items()
                    ],
                }
            },
        ),
        transport=lambda: transport,
        environ={},
    )


async def ask(gateway, text):
    return await gateway.embed([text], model="m", provider={"order": ["first"]})


@pytest.mark.anyio
async def test_a_request_is_answered_by_the_next_endpoint_when_the_first_has_swapped_its_model():
    transport = NamingTransport({"first": "m", "second": "m"})
    gateway = gateway_of(transport, first={}, second={})
    await ask(gateway, "a")
    transport.named["first"] = "swapped"
    transport.hosts.clear()

    await ask(gateway, "b")

    assert ["first", "first", "second"] == transport.hosts


@pytest.mark.anyio
async def test_a_request_fails_when_the_only_endpoint_has_swapped_its_model():
    transport = NamingTransport({"first": "m"})
    gateway = gateway_of(transport, first={})
    await ask(gateway, "a")
    transport.named["first"] = "swapped"
    with pytest.raises(UpstreamWrongModel) as caught:
        await ask(gateway, "b")
    assert (502, "upstream_wrong_model") == (caught.value.status, caught.value.code)

    transport.named["first"] = "m"
    transport.hosts.clear()
    await ask(gateway, "b")
    assert ["first"] == transport.hosts, "the refused vectors were cached"


@pytest.mark.anyio
async def test_an_endpoint_whose_echo_is_ignored_may_swap_its_model():
    transport = NamingTransport({"first": "m"})
    gateway = gateway_of(transport, first={"model_echo": "ignore"})
    for text, model in (("a", "m"), ("b", "swapped")):
        transport.named["first"] = model
        await ask(gateway, text)


@pytest.mark.anyio
async def test_the_public_name_of_a_model_says_what_a_deployment_must_serve():
    transport = NamingTransport({"first": "text-embedding-ada-002"})
    config = Config(
        gateway={"auth": "open"},
        providers={"first": {"backend": NamedHost(host="first")}},
        models={SMALL: {"dimensions": 3, "endpoints": [{"provider": "first", "model": "ours"}]}},
    )
    gateway = Gateway(config, transport=lambda: transport, environ={})
    with pytest.raises(UpstreamWrongModel):
        await gateway.embed(["a"], model=SMALL)
    transport.named["first"] = SMALL
    await gateway.embed(["a"], model=SMALL)


def test_all_event_loops_of_a_gateway_share_the_first_name():
    transport = NamingTransport({"first": "alias"})
    gateway = gateway_of(transport, first={})
    asyncio.run(ask(gateway, "a"))
    transport.named["first"] = "swapped"
    with pytest.raises(UpstreamWrongModel):
        asyncio.run(ask(gateway, "b"))
