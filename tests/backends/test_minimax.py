"""Tests of the MiniMax backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.minimax import MiniMax
from embedroute.errors import (
    InvalidUpstreamResponse,
    QuotaExhausted,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamUnavailable,
)

BACKEND = MiniMax(api_key=Secret("k"))
TEXT = Batch(model="embo-01", texts=("a",))


@pytest.mark.parametrize(
    ("backend", "batch", "url", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model="embo-01", texts=("a", "b"), user="never sent"),
            "https://api.minimax.chat/v1/embeddings",
            b'{"texts":["a","b"],"model":"embo-01","type":"db"}',
            id="texts",
        ),
        pytest.param(
            MiniMax(
                api_key=Secret("k"),
                base_url="https://api.minimax.io/v1/",
                group_id="1 &",
                default_type="query",
            ),
            TEXT,
            "https://api.minimax.io/v1/embeddings?GroupId=1%20%26",
            b'{"texts":["a"],"model":"embo-01","type":"query"}',
            id="options",
        ),
        pytest.param(
            BACKEND,
            Batch(model="embo-01", texts=("a",), input_type="query"),
            "https://api.minimax.chat/v1/embeddings",
            b'{"texts":["a"],"model":"embo-01","type":"query"}',
            id="query",
        ),
    ],
)
def test_builds_the_request(backend, batch, url, content):
    request = backend.build(batch)

    assert url == request.url
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_reads_vectors_and_usage():
    content = b'{"vectors":[[1,2]],"total_tokens":4,"base_resp":{"status_code":0,"status_msg":""}}'

    found = BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))

    assert ([[1, 2]], 4) == (found.array.tolist(), found.prompt_tokens)


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (1000, "unknown error", UpstreamUnavailable),
        (1001, "request timeout", UpstreamUnavailable),
        (1002, "rate limit triggered", RateLimited),
        (1004, "login fail: Please carry the API secret key in the header", UpstreamAuthError),
        (1008, "insufficient balance", QuotaExhausted),
        (1039, "token limit triggered", RateLimited),
        (2013, "invalid params, unknown model", Rejected),
        (2049, "invalid api key", UpstreamAuthError),
    ],
)
def test_maps_the_errors_that_have_the_status_200(code, message, error):
    content = (
        b'{"vectors":null,"total_tokens":0,"base_resp":{"status_code":%d,"status_msg":"%s"}}'
        % (code, message.encode())
    )

    with pytest.raises(error) as caught:
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))

    assert error is type(caught.value)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "content", [b"{}", b'{"vectors":null}', b'{"vectors":[]}', b'{"vectors":[[1],[2]]}']
)
def test_rejects_a_response_without_vectors(content):
    with pytest.raises(InvalidUpstreamResponse):
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))
