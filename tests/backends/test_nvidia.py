"""Tests of the NVIDIA backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.nvidia import Nvidia
from embedroute.errors import (
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import refine_with_inputs

BACKEND = Nvidia(api_key=Secret("k"))
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
TEXT = TextPart("a")


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model="nvidia/nv-embedqa-e5-v5", texts=("a", "b"), user="never sent"),
            b'{"model":"nvidia/nv-embedqa-e5-v5","input":["a","b"],"input_type":"passage",'
            b'"encoding_format":"base64","truncate":"NONE"}',
            id="texts",
        ),
        pytest.param(
            BACKEND,
            Batch(model="m", texts=("a",), input_type="query", dimensions=384, dtype="int8"),
            b'{"model":"m","input":["a"],"input_type":"query","encoding_format":"float",'
            b'"embedding_type":"int8","dimensions":384,"truncate":"NONE"}',
            id="parameters",
        ),
        pytest.param(
            BACKEND,
            Batch(model="m-query", texts=("a",)),
            b'{"model":"m-query","input":["a"],"encoding_format":"base64","truncate":"NONE"}',
            id="input type in the name",
        ),
        pytest.param(
            BACKEND,
            Batch(model="m", parts=((TEXT, IMAGE), (IMAGE,), (TEXT,))),
            b'{"model":"m","input":["a data:image/png;base64,AAAA","data:image/png;base64,AAAA","a"],'
            b'"modality":["text_image","image","text"],"input_type":"passage",'
            b'"encoding_format":"base64","truncate":"NONE"}',
            id="parts",
        ),
        pytest.param(
            Nvidia(api_key=Secret("k"), default_input_type="omit", truncate="END"),
            Batch(model="m", texts=("a",)),
            b'{"model":"m","input":["a"],"encoding_format":"base64","truncate":"END"}',
            id="options",
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    request = backend.build(batch)

    assert request.url == "https://integrate.api.nvidia.com/v1/embeddings"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_an_own_nim_needs_no_key():
    request = Nvidia(base_url="http://127.0.0.1:8000/v1").build(Batch(model="m", texts=("a",)))

    assert ("http://127.0.0.1:8000/v1/embeddings", {"content-type": "application/json"}) == (
        request.url,
        request.headers,
    )


@pytest.mark.parametrize("parts", [(IMAGE, IMAGE), (TEXT, TEXT)])
def test_refuses_several_parts_of_one_kind(parts):
    with pytest.raises(UpstreamRejectedInput):
        BACKEND.build(Batch(model="m", parts=(parts,)))


@pytest.mark.parametrize(
    ("dtype", "content", "rows"),
    [
        ("float", b'{"data":[{"index":0,"embedding":"AACAPwAAAEA="}]}', [[1, 2]]),
        ("uint8", b'{"data":[{"index":0,"embedding":[0,255]}]}', [[0, 255]]),
    ],
)
def test_reads_the_vectors(dtype, content, rows):
    batch = Batch(model="m", texts=("a",), dtype=dtype)

    assert rows == BACKEND.parse(batch, UpstreamResponse(200, {}, content)).array.tolist()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"object":"error","message":"Input length 600 exceeds maximum allowed token size 512","detail":{},"type":"invalid_request_error"}', ContextTooLong),
        (400, b'{"error":"\'input_type\' parameter is required for this model"}', Rejected),
        (401, b'{"detail":"Authentication failed"}', UpstreamAuthError),
        (402, b'{"detail":"Cloud credits expired"}', QuotaExhausted),
        (404, b'{"detail":"Not found"}', UpstreamModelNotFound),
        (422, b'{"object":"error","message":"truncate: invalid value","detail":{},"type":"invalid_request_error"}', Rejected),
        (429, b'{"detail":"Too Many Requests"}', RateLimited),
        (503, b'{"detail":"loading"}', UpstreamUnavailable),
    ],
)  # fmt: skip
def test_maps_its_errors(status, body, error):
    found = BACKEND.map_error(UpstreamResponse(status, {}, body))

    assert error is type(refine_with_inputs(found, ("word " * 480,)))
