"""Tests the official Python client with a real server: encodings, exception classes and retries."""

import base64
import time

import httpx2
import numpy as np
import openai
import pytest

from embedroute.testing import expected_vector
from tests.clients.served import KEY, MODEL, NARROW_KEY, WIDTH
from tests.fault_upstream import vector_of

TEXTS = ["good day", "wörld", "三", "good day"]


@pytest.fixture(scope="session")
def client(standing):
    with openai.OpenAI(base_url=f"{standing[0].url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def rows(answer):
    return np.array([np.asarray(row.embedding, "<f4") for row in answer.data])


@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize(
    "encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
)
@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("inputs", [TEXTS, "good day", [5, 6, 7], [[1, 2], [3], [1, 2]]])
def test_every_input_comes_back_in_order_in_every_encoding(client, inputs, width, encoding):
    items = inputs if isinstance(inputs, list) and not isinstance(inputs[0], int) else [inputs]
    sized = {} if width is None else {"dimensions": width}
    answer = client.embeddings.create(model=MODEL, input=inputs, **sized, **encoding)
    vectors = [row.embedding for row in answer.data]
    if encoding.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in vectors]

    assert np.allclose([vector_of(item, width or WIDTH) for item in items], vectors, atol=1e-6)
    assert [row.index for row in answer.data] == list(range(len(items)))
    assert (answer.object, answer.model) == ("list", MODEL)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0


@pytest.mark.parametrize("encoding", ["base64", "float"])
@pytest.mark.parametrize(
    "mode", ["shuffled", "float_for_base64", "base64_for_float", "usage_missing", "model_missing"]
)
def test_unusual_upstream_responses_are_normalized(client, upstream, mode, encoding):
    """The client reads rows by position, ignores ``index``, and expects the requested encoding."""
    upstream.mode = mode
    texts = [f"{mode} {encoding} {at}" for at in range(5)]
    options = (
        {} if encoding == "base64" else {"encoding_format": encoding}
    )  # it asks for base64 by itself
    answer = client.embeddings.create(model=MODEL, input=texts, **options)

    assert np.allclose([vector_of(text) for text in texts], rows(answer), atol=1e-6)
    assert answer.usage.prompt_tokens > 0


@pytest.mark.anyio
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
async def test_the_async_client_gets_the_same_vectors(server, encoding):
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, max_retries=0
    ) as client:
        answer = await client.embeddings.create(model="hash", input=TEXTS, **encoding)

    assert np.array_equal([expected_vector(text, WIDTH) for text in TEXTS], rows(answer))


def test_the_client_finds_request_ids_and_models(client):
    raw = client.embeddings.with_raw_response.create(
        model="hash", input="a", extra_headers={"x-request-id": "mine-1"}
    )
    model_ids = [model.id for model in client.models.list()]

    assert raw.request_id == "mine-1"
    assert {"hash", MODEL} <= set(model_ids)
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("sent_request", "key", "kind", "status", "code", "param"),
    [
        (
            {"input": "a", "model": "hash"},
            "sk-wrong",
            openai.AuthenticationError,
            401,
            "invalid_api_key",
            None,
        ),
        ({"input": "", "model": "hash"}, KEY, openai.BadRequestError, 400, None, "input"),
        ({"input": ["a", ""], "model": "hash"}, KEY, openai.BadRequestError, 400, None, "input[1]"),
        (
            {"input": "a", "model": "hash", "dimensions": 9},
            KEY,
            openai.BadRequestError,
            400,
            None,
            "dimensions",
        ),
        (
            {"input": "a", "model": "hash", "encoding_format": "hex"},
            KEY,
            openai.BadRequestError,
            400,
            None,
            "encoding_format",
        ),
        (
            {"input": "a", "model": "hash", "extra_body": {"dimension": 4}},
            KEY,
            openai.BadRequestError,
            400,
            None,
            "dimension",
        ),
        (
            {"input": "a", "model": "gone"},
            KEY,
            openai.NotFoundError,
            404,
            "model_not_found",
            "model",
        ),
        (
            {"input": "a", "model": MODEL},
            NARROW_KEY,
            openai.PermissionDeniedError,
            403,
            "model_not_allowed",
            "model",
        ),
        ({"input": "a" * 1_100_000, "model": "hash"}, KEY, openai.APIStatusError, 413, None, None),
    ],
    ids=[
        "key",
        "empty",
        "empty item",
        "dimensions",
        "encoding",
        "unknown",
        "model",
        "not allowed",
        "too large",
    ],
)
def test_client_errors_raise_the_matching_openai_exception(
    client, sent_request, key, kind, status, code, param
):
    with pytest.raises(kind) as raised:
        client.with_options(api_key=key).embeddings.create(**sent_request)
    error = raised.value

    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert error.type in {"invalid_request_error", "permission_error"}
    assert error.body["message"]
    assert error.request_id.startswith("req_")
    assert key not in str(error)


@pytest.mark.parametrize(
    ("model", "mode", "kind", "status"),
    [
        ("limited", "status_429", openai.RateLimitError, 429),
        ("failing", "status_500", openai.InternalServerError, 502),
        ("refused", "status_401", openai.InternalServerError, 502),
        ("slow", "stalled", openai.InternalServerError, 504),
        ("broken", "status_400", openai.BadRequestError, 400),
    ],
)
def test_upstream_failures_raise_the_matching_openai_exception(
    client, upstream, model, mode, kind, status
):
    upstream.mode = mode
    with pytest.raises(kind) as raised:
        client.embeddings.create(model=model, input=f"{mode}")
    error = raised.value

    assert error.status_code == status
    assert isinstance(error.body["message"], str)
    assert "sk-up" not in str(error)


def test_the_client_retries_retryable_errors_after_the_retry_after(server, upstream):
    """The cool-down is longer than the gateway's deadline, so the client gets a 429 and retries."""
    upstream.mode = ["limited_silent", "honest"]
    began = time.monotonic()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=2) as patient:
        raw = patient.embeddings.with_raw_response.create(model=MODEL, input="come back later")

    assert raw.retries_taken == 1
    assert time.monotonic() - began >= 0.75
    assert len(upstream.requests) == 2
    assert np.allclose(rows(raw.parse()), [vector_of("come back later")])


@pytest.mark.parametrize(
    ("model", "mode"), [("refused-again", "status_401"), ("broken", "status_400")]
)
def test_the_client_does_not_retry_permanent_errors(server, upstream, model, mode):
    """A rejected upstream key is a 502; ``x-should-retry: false`` prevents a retry."""
    upstream.mode, sent = mode, []
    with (
        httpx2.Client(event_hooks={"request": [sent.append]}) as http,
        openai.OpenAI(
            base_url=f"{server.url}/v1", api_key=KEY, max_retries=2, http_client=http
        ) as patient,
        pytest.raises(openai.APIStatusError),
    ):
        patient.embeddings.create(model=model, input=f"{mode} again")

    assert len(sent) == 1
