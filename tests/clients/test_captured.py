"""Replays captured requests of clients, and checks that each client can read the response."""

import base64
import json

import httpx2
import msgspec
import numpy as np
import pytest

from embedroute.testing import expected_vector
from tests.clients.captured import CLIENTS, JSON, LANGCHAIN_BODY, LANGCHAIN_TOKENS, python
from tests.clients.served import KEY
from tests.fault_upstream import vector_of


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """A row as async-openai, the strictest client, requires it: with all of these fields."""

    object: str
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, forbid_unknown_fields=True):
    """Haystack, Dify and async-openai fail without it.

    LangChain4j and go-openai require integers.
    """

    prompt_tokens: int
    total_tokens: int


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The complete body, without other fields."""

    object: str
    data: list[Row]
    model: str
    usage: Usage


class Fault(msgspec.Struct, forbid_unknown_fields=True):
    """Milvus and async-openai fail on a number here.

    Go-openai, Weaviate and the AI SDK on other types.
    """

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The complete body of an error."""

    error: Fault


@pytest.fixture(scope="session")
def wire(standing):
    with httpx2.Client(base_url=standing[0].url, trust_env=False, timeout=120) as client:
        yield client


def post(wire, body, headers=JSON, path="/v1/embeddings", key=KEY):
    # Remove the default headers of this client, so that only the captured ones are sent.
    request = httpx2.Request(
        "POST",
        f"{wire.base_url}".rstrip("/") + path,
        content=body,
        headers={**headers, "authorization": f"Bearer {key}"},
    )
    return wire.send(request)


@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
@pytest.mark.usefixtures("upstream")
def test_each_client_can_read_the_response(wire, client):
    """Rows are in order, have an ``index``, and are in the requested encoding."""
    reply = post(wire, client.body.encode(), client.headers, client.path)
    assert reply.status_code == 200, reply.text
    expected = expected_vector if client.model == "hash" else vector_of
    answer = msgspec.json.decode(reply.content, type=Answer)
    vectors = [unpacked(row.embedding) for row in answer.data]

    assert {str if client.base64 else list} == {type(row.embedding) for row in answer.data}
    assert np.allclose([expected(item, client.width) for item in client.inputs], vectors, atol=1e-6)
    assert {len(row) for row in vectors} == {client.width}
    assert [row.index for row in answer.data] == list(range(len(client.inputs)))
    assert {row.object for row in answer.data} == {"embedding"}
    assert (answer.object, answer.model) == ("list", client.model)
    assert 0 < answer.usage.prompt_tokens == answer.usage.total_tokens < 2**32


@pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])
def test_each_client_can_read_the_headers(wire, client):
    """openai-node and langchain-js treat other types as text; the SDKs show the request id."""
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


def test_token_arrays_are_sent_to_an_upstream_that_accepts_them(wire, upstream):
    """LangChain sends them by default; they are passed on unchanged."""
    # Other ids, which are not in the cache yet.
    body = LANGCHAIN_BODY.replace("[[", "[[7,").replace("],[", "],[7,")
    reply = post(wire, body.encode(), python("3.52.0"))

    assert reply.status_code == 200
    assert [ask.inputs for ask in upstream.requests] == [[[7, *ids] for ids in LANGCHAIN_TOKENS]]


def test_token_arrays_are_rejected_by_a_model_that_accepts_only_text(wire, upstream):
    """LangChain shows the message to its user, who can set ``check_embedding_ctx_length=False``."""
    reply = post(
        wire, LANGCHAIN_BODY.replace("text-embedding-3-small", "words").encode(), python("3.52.0")
    )
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert (reply.status_code, fault.type) == (400, "invalid_request_error")
    assert (fault.param, fault.code) == ("input", "unsupported_modality")
    assert "token ids" in fault.message
    assert not upstream.requests


GOOD = '{"input":"hello","model":"hash"}'


@pytest.mark.parametrize(
    ("body", "headers", "path", "key", "status"),
    [
        (
            '{"model":"text-embedding-3-small","input":"","encoding_format":"base64"}',
            python("3.52.0"),
            "/v1/embeddings",
            KEY,
            400,
        ),
        (
            '{"input":["hello"],"model":"hash","encoding_format":"base64","dimensions":-1}',
            python("3.52.0"),
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
    """For every error, ``code`` and ``param`` are strings or null, and ``message`` is a string."""
    reply = post(wire, body.encode(), headers, path, key)
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert fault.message
    assert fault.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("model", "mode", "rest"),
    [
        ("limited-huge", "limited_huge", (120, 120_000)),
        ("limited-silent", "limited_silent", (1, 1000)),
    ],
)
def test_a_rate_limit_response_has_a_retry_after(wire, upstream, model, mode, rest):
    """The SDKs prefer ``retry-after-ms`` and do not retry after more than 120 s.

    LangChain.js needs one of them.
    """
    upstream.mode = mode
    reply = post(wire, json.dumps({"input": "too fast", "model": model}).encode())
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert (reply.status_code, fault.type, fault.code) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert (int(reply.headers["retry-after"]), int(reply.headers["retry-after-ms"])) == rest
    assert "x-should-retry" not in reply.headers


def test_a_rejected_upstream_key_is_not_reported_as_the_clients_error(wire, upstream):
    upstream.mode = "status_401"
    reply = post(wire, b'{"input":"bad key","model":"refused-captured"}')
    fault = msgspec.json.decode(reply.content, type=Envelope).error

    assert (reply.status_code, fault.code) == (502, "upstream_credentials")
    assert reply.headers["x-should-retry"] == "false"
    assert "sk-up" not in reply.text
