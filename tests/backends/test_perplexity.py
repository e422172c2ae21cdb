"""Tests of the Perplexity backend: exact requests, and responses as the API writes them."""

import base64
import math

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.perplexity import Perplexity
from embedroute.errors import (
    InvalidUpstreamResponse,
    RateLimited,
    Rejected,
    UpstreamAuthError,
)

BACKEND = Perplexity(api_key=Secret("k"))
MODEL = "pplx-embed-v1-0.6b"


@pytest.mark.parametrize(
    ("batch", "path", "content"),
    [
        pytest.param(
            Batch(model=MODEL, texts=("a", "b"), user="never sent"),
            "embeddings",
            b'{"model":"pplx-embed-v1-0.6b","input":["a","b"],"encoding_format":"base64_int8"}',
            id="texts",
        ),
        pytest.param(
            Batch(model=MODEL, texts=("a",), dimensions=128, dtype="binary"),
            "embeddings",
            b'{"model":"pplx-embed-v1-0.6b","input":["a"],"dimensions":128,'
            b'"encoding_format":"base64_binary"}',
            id="parameters",
        ),
        pytest.param(
            Batch(model="pplx-embed-context-v1-4b", texts=("a", "b"), dtype="int8"),
            "contextualizedembeddings",
            b'{"model":"pplx-embed-context-v1-4b","input":[["a"],["b"]],'
            b'"encoding_format":"base64_int8"}',
            id="chunks",
        ),
    ],
)
def test_builds_the_request(batch, path, content):
    request = BACKEND.build(batch)

    assert request.url == f"https://api.perplexity.ai/v1/{path}"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


@pytest.mark.parametrize(
    ("dtype", "raw", "row"),
    [
        ("float", bytes([3, 256 - 4]), [0.6, -0.8]),
        ("int8", bytes([3, 256 - 4]), [3, -4]),
        # The first dimension is the lowest bit of the API, and the highest of the gateway.
        ("ubinary", bytes([0b00000001]), [0b10000000]),
        ("ubinary", bytes([0b11001010]), [0b01010011]),
        ("binary", bytes([0b00000001]), [0]),
        ("binary", bytes([0]), [-128]),
    ],
)
def test_reads_signed_bytes_and_bits(dtype, raw, row):
    text = base64.b64encode(raw)
    content = b'{"data":[{"index":0,"embedding":"%s"}],"usage":{"prompt_tokens":2}}' % text

    found = BACKEND.parse(
        Batch(model=MODEL, texts=("a",), dtype=dtype), UpstreamResponse(200, {}, content)
    )

    assert found.array[0].tolist() == pytest.approx(row)
    assert 2 == found.prompt_tokens
    assert dtype != "float" or math.isclose(1, (found.array**2).sum() ** 0.5, rel_tol=1e-6)


def test_rejects_what_is_not_base64():
    content = b'{"data":[{"index":0,"embedding":"!"}]}'

    with pytest.raises(InvalidUpstreamResponse):
        BACKEND.parse(Batch(model=MODEL, texts=("a",)), UpstreamResponse(200, {}, content))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"error":{"message":"dimensions must be 128 to 1024","type":"invalid_request","code":400}}', Rejected),
        (401, b'{"error":{"message":"Invalid API key provided","type":"invalid_api_key","code":401}}', UpstreamAuthError),
        (429, b'{"error":{"message":"Request rate limit exceeded","type":"request_rate_limit_exceeded","code":429}}', RateLimited),
    ],
)  # fmt: skip
def test_maps_its_errors(status, body, error):
    assert error is type(BACKEND.map_error(UpstreamResponse(status, {}, body)))
