"""What other clients were seen to send, byte for byte, and what each of them needs to see in the answer.

Each row is a promise: the body and headers were captured from the client, or stand in its source.
"""

import base64
import json
from typing import Any, NamedTuple

import httpx2
import msgspec
import numpy as np
import pytest

from embedroute.testing import expected_vector
from tests.clients.served import KEY, WIDTH

JSON = {"content-type": "application/json", "accept": "application/json"}
STAINLESS = {
    **JSON,
    "accept-encoding": "gzip, deflate",
    "user-agent": "OpenAI/Python 3.52.0",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "3.52.0",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.7",
    "x-stainless-async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
NODE = {
    **STAINLESS,
    "accept-language": "*",
    "sec-fetch-mode": "cors",
    "user-agent": "OpenAI/JS 7.55.0",
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "1",
}
LANGCHAIN_TOKENS = [[15339, 1917], [15339, 11, 1268, 527, 499, 30]]
PRETTY = """{
  "model": "hash",
  "input": [
    "hello",
    "world"
  ],
  "encoding_format": "base64"
}"""
TWO = ["hello", "world"]


class Client(NamedTuple):
    """``body`` as it was sent, ``base64`` whether the answer must be (a list of numbers otherwise), ``inputs`` in order."""

    name: str
    body: str
    base64: bool
    inputs: list[Any]
    headers: dict[str, str] = JSON
    path: str = "/v1/embeddings"
    width: int = WIDTH


CLIENTS = [
    Client("openai-python", '{"input":["hello","world"],"model":"hash","encoding_format":"base64"}', True, TWO, STAINLESS),
    Client("openai-python one", '{"input":"hello","model":"hash","encoding_format":"base64"}', True, ["hello"], STAINLESS),
    Client(
        "langchain-openai default",
        '{"input":[[15339,1917],[15339,11,1268,527,499,30]],"model":"hash","encoding_format":"base64"}',
        True,
        LANGCHAIN_TOKENS,
        STAINLESS,
    ),
    Client(
        "langchain-openai one long text", '{"input":[[1,2,3]],"model":"hash","encoding_format":"base64"}', True, [[1, 2, 3]]
    ),
    Client(
        "llama-index",
        '{"input":["hello","world"],"model":"hash","encoding_format":"base64"}',
        True,
        TWO,
        {**STAINLESS, "x-stainless-read-timeout": "60.0"},
    ),
    Client("haystack text", '{"model":"hash","input":"hello","encoding_format":"float"}', False, ["hello"], STAINLESS),
    Client("haystack documents", '{"model":"hash","input":["hello","world"],"encoding_format":"float"}', False, TWO, STAINLESS),
    Client(
        "litellm",
        '{"model":"hash","input":["hello","world"],"encoding_format":null}',
        False,
        TWO,
        {**STAINLESS, "accept-encoding": "gzip, deflate, br, zstd"},
    ),
    Client("openai-node", '{"model":"hash","input":["hello","world"],"encoding_format":"base64"}', True, TWO, NODE),
    Client("openai-node 4 of chroma", PRETTY, True, TWO, {**NODE, "user-agent": "OpenAI/JS 4.104.0"}),
    Client(
        "@langchain/openai",
        '{"model":"hash","input":["hello","world"],"encoding_format":"base64"}',
        True,
        TWO,
        {**NODE, "user-agent": "langchainjs-openai/1.0.0 ((node/v22))"},
    ),
    Client(
        "AI SDK",
        '{"model":"hash","input":["hello","world"],"encoding_format":"float"}',
        False,
        TWO,
        {"content-type": "application/json", "accept": "*/*", "user-agent": "ai/7.0.173 ai-sdk/openai/4.0.118"},
    ),
    Client(
        "AI SDK with dimensions",
        '{"model":"hash","input":["hello"],"encoding_format":"float","dimensions":3}',
        False,
        ["hello"],
        width=3,
    ),
    Client(
        "Open WebUI",
        '{"input": ["hello", "world"], "model": "hash"}',
        False,
        TWO,
        {
            **JSON,
            "x-openwebui-user-name": "Ada%20L",
            "x-openwebui-user-id": "1",
            "x-openwebui-user-email": "a@example.org",
            "x-openwebui-user-role": "admin",
        },
    ),
    Client(
        "Dify",
        '{"input": ["hello"], "model": "hash", "encoding_format": "float", "user": "abc-123"}',
        False,
        ["hello"],
        path="/embeddings",
    ),
    Client("Dify validation", '{"input": "ping", "model": "hash"}', False, ["ping"]),
    Client(
        "Weaviate",
        '{"input":["hello","world"],"model":"hash","dimensions":4}',
        False,
        TWO,
        {**JSON, "openai-organization": ""},
        width=4,
    ),
    Client("Weaviate bare", '{"input":["hello","world"],"model":"hash"}', False, TWO, {"content-type": "application/json"}),
    Client(
        "Milvus",
        '{"model":"hash","input":["hello","world"],"encoding_format":"float","dimensions":4,"user":"u"}',
        False,
        TWO,
        width=4,
    ),
    Client("Elastic inference", '{"input":["hello","world"],"model":"hash","user":"u","dimensions":4}', False, TWO, width=4),
    Client("pgai", '{"input":["hello","world"],"model":"hash","encoding_format":"float"}', False, TWO, STAINLESS),
    Client(
        "LangChain4j",
        '{\n  "model" : "hash",\n  "input" : [ "hello", "world" ]\n}',
        False,
        TWO,
        {**JSON, "user-agent": "langchain4j-openai"},
    ),
    Client("Spring AI", '{"input":["hello","world"],"model":"hash","encoding_format":"float"}', False, TWO),
    Client(
        "go-openai",
        '{"input":["hello","world"],"model":"hash"}',
        False,
        TWO,
        {**JSON, "content-type": "application/json; charset=utf-8"},
    ),
    Client(
        "async-openai",
        '{"model":"hash","input":["hello","world"]}',
        False,
        TWO,
        {"content-type": "application/json", "accept": "*/*"},
    ),
    Client("async-openai base64", '{"model":"hash","input":"hello","encoding_format":"base64"}', True, ["hello"]),
    Client("openai-dotnet", '{"input":["hello","world"],"model":"hash","encoding_format":"base64"}', True, TWO),
    Client("openai-dotnet tokens", '{"input":[[1,2],[3]],"model":"hash","encoding_format":"base64"}', True, [[1, 2], [3]]),
    Client("one array of tokens", '{"input":[5,6,7],"model":"hash"}', False, [[5, 6, 7]]),
    Client(
        "curl",
        '{"input": "hello", "model": "hash", "user": null, "dimensions": null}',
        False,
        ["hello"],
        {"content-type": "application/json", "accept": "*/*"},
    ),
]


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """What the strictest client (async-openai, in Rust) demands of a row; it wants every one of these."""

    object: str
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    """Haystack, Dify and async-openai fail without; LangChain4j and go-openai want whole numbers."""

    prompt_tokens: int
    total_tokens: int


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The whole body, and nothing else."""

    object: str
    data: list[Row]
    model: str
    usage: Usage


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """Milvus and async-openai fail on a number here; go-openai, Weaviate and the AI SDK on any other shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """An error's whole body."""

    error: Fault


@pytest.fixture(scope="session")
def wire(standing):
    with httpx2.Client(base_url=standing[0].url, trust_env=False, timeout=20) as client:
        yield client


def post(wire, body, headers=JSON, path="/v1/embeddings", key=KEY):
    # The client's own headers would stand beside the captured ones.
    request = httpx2.Request(
        "POST", f"{wire.base_url}".rstrip("/") + path, content=body, headers={**headers, "authorization": f"Bearer {key}"}
    )
    return wire.send(request)


@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
def test_each_client_gets_what_it_can_read(wire, client):
    """Rows in order with ``index`` (all but one client ignore it), in the encoding asked for and never the other."""
    reply = post(wire, client.body.encode(), client.headers, client.path)
    assert reply.status_code == 200, reply.text
    answer = msgspec.json.decode(reply.content, type=Answer)
    vectors = [unpacked(row.embedding) for row in answer.data]

    assert {str if client.base64 else list} == {type(row.embedding) for row in answer.data}
    assert np.allclose([expected_vector(it, client.width) for it in client.inputs], vectors, atol=1e-6)
    assert {len(row) for row in vectors} == {client.width}
    assert [row.index for row in answer.data] == list(range(len(client.inputs)))
    assert {row.object for row in answer.data} == {"embedding"}
    assert (answer.object, answer.model) == ("list", "hash")
    assert 0 < answer.usage.prompt_tokens == answer.usage.total_tokens < 2**32


@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
def test_each_client_can_read_the_headers(wire, client):
    """openai-node and langchain-js keep the body as text under any other type; the SDKs show the request id."""
    reply = post(wire, client.body.encode(), client.headers, client.path)

    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert int(reply.headers["content-length"]) == len(reply.content)
    assert "content-encoding" not in reply.headers
    assert reply.headers["openai-processing-ms"].isdigit()


def unpacked(embedding):
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    return np.array(embedding, "<f4")


GOOD = '{"input":"hello","model":"hash"}'


@pytest.mark.parametrize(
    ("body", "headers", "path", "key", "status"),
    [
        ('{"input":"","model":"hash"}', JSON, "/v1/embeddings", KEY, 400),
        (
            '{"input":["hello"],"model":"hash","encoding_format":"base64","dimensions":-1}',
            STAINLESS,
            "/v1/embeddings",
            KEY,
            400,
        ),
        ('{"input":"hello","model":"hash","extra_body":{}}', JSON, "/v1/embeddings", KEY, 400),
        ("{", JSON, "/v1/embeddings", KEY, 400),
        (GOOD, JSON, "/v1/embeddings", "sk-wrong", 401),
        (GOOD, JSON, "/v1/embedding", KEY, 404),
        (GOOD, JSON, "/openai/deployments/d/embeddings?api-version=2024-02-01", KEY, 404),
        ('{"input":"hello","model":"gone"}', JSON, "/v1/embeddings", KEY, 404),
        (GOOD, JSON, "/v1/models", KEY, 405),
        (json.dumps({"input": "a" * 1_100_000, "model": "hash"}), JSON, "/v1/embeddings", KEY, 413),
        (GOOD, {"content-type": "text/plain"}, "/v1/embeddings", KEY, 415),
        (GOOD, {**JSON, "content-encoding": "gzip"}, "/v1/embeddings", KEY, 415),
    ],
)
def test_each_client_can_read_an_error(wire, body, headers, path, key, status):
    """``code`` and ``param`` are strings or null, ``message`` a string, whatever went wrong."""
    reply = post(wire, body.encode(), headers, path, key)
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert fault.message
    assert fault.type == "invalid_request_error"


def test_a_rate_limit_says_when_to_come_back(wire, upstream):
    """``retry-after-ms`` is what the SDKs prefer; over 120 s they do not retry at all."""
    upstream.mode = "limited_huge"
    reply = post(wire, b'{"input":"too fast","model":"limited"}')
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert (reply.status_code, fault.type, fault.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 0 < int(reply.headers["retry-after"]) <= 120
    assert 0 < int(reply.headers["retry-after-ms"]) <= 120_000
    assert "x-should-retry" not in reply.headers


def test_a_key_of_ours_that_is_refused_is_not_the_clients_fault(wire, upstream):
    upstream.mode = "status_401"
    reply = post(wire, b'{"input":"bad key","model":"refused-captured"}')
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert (reply.status_code, fault.code) == (502, "upstream_credentials")
    assert reply.headers["x-should-retry"] == "false"
    assert "sk-up" not in reply.text
