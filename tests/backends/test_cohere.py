"""Tests of the Cohere backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.cohere import Cohere
from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    InvalidUpstreamResponse,
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

BACKEND = Cohere(api_key=Secret("k"))
V3, V4 = "embed-english-v3.0", "embed-v4.0"
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
TEXT = Batch(model=V4, texts=("a",))


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model=V3, texts=("a", "b"), user="never sent"),
            b'{"model":"embed-english-v3.0","input_type":"search_document","texts":["a","b"],'
            b'"embedding_types":["float"],"truncate":"NONE"}',
            id="texts",
        ),
        pytest.param(
            BACKEND,
            Batch(model=V4, texts=("a",), input_type="query", dimensions=256, dtype="int8"),
            b'{"model":"embed-v4.0","input_type":"search_query","texts":["a"],'
            b'"embedding_types":["int8"],"output_dimension":256,"truncate":"NONE"}',
            id="parameters",
        ),
        pytest.param(
            Cohere(
                api_key=Secret("k"),
                default_input_type="clustering",
                truncate="END",
                encoding_format="base64",
            ),
            TEXT,
            b'{"model":"embed-v4.0","input_type":"clustering","texts":["a"],'
            b'"embedding_types":["base64"],"truncate":"END"}',
            id="options",
        ),
        pytest.param(
            BACKEND,
            Batch(model=V4, parts=((TextPart("a"), IMAGE), (IMAGE,)), input_type="document"),
            b'{"model":"embed-v4.0","input_type":"search_document","inputs":['
            b'{"content":[{"type":"text","text":"a"},'
            b'{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]},'
            b'{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],'
            b'"embedding_types":["float"],"truncate":"NONE"}',
            id="parts",
        ),
        pytest.param(
            BACKEND,
            Batch(model=V3, parts=((IMAGE,),)),
            b'{"model":"embed-english-v3.0","input_type":"image",'
            b'"images":["data:image/png;base64,AAAA"],"embedding_types":["float"],"truncate":"NONE"}',
            id="image of version 3",
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    request = backend.build(batch)

    assert request.url == "https://api.cohere.com/v2/embed"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


@pytest.mark.parametrize(
    ("batch", "error", "param"),
    [
        (Batch(model=V3, parts=((TextPart("a"), IMAGE),)), UpstreamRejectedInput, "input"),
        (Batch(model=V3, parts=((IMAGE,), (IMAGE,))), BatchTooLarge, None),
        (Batch(model=V4, texts=("a",), input_type="image"), UpstreamRejectedInput, "input_type"),
    ],
    ids=["text and image", "two images", "text as image"],
)
def test_refuses_what_the_model_cannot_take(batch, error, param):
    with pytest.raises(error) as caught:
        BACKEND.build(batch)

    assert (error, param) == (type(caught.value), caught.value.param)


@pytest.mark.parametrize(
    ("meta", "headers", "tokens", "split"),
    [
        (b'{"billed_units":{"input_tokens":3,"image_tokens":0}}', {}, 3, {}),
        (b'{"billed_units":{"input_tokens":3.0}}', {"num_tokens": "9"}, 3, {}),
        (
            b'{"billed_units":{"input_tokens":3,"image_tokens":4}}',
            {},
            7,
            {"text": 3, "image": 4},
        ),
        (b'{"billed_units":{"image_tokens":4}}', {}, 4, {"image": 4}),
        (b'{"api_version":{"version":"2"}}', {"num_tokens": "9"}, 9, {}),
        (b"null", {"num_tokens": "nine"}, None, {}),
        (b'{"billed_units":{"input_tokens":"3"}}', {}, None, {}),
    ],
)
def test_reads_the_billed_tokens(meta, headers, tokens, split):
    content = b'{"id":"1","embeddings":{"float":[[1,2]]},"meta":%s}' % meta

    found = BACKEND.parse(TEXT, UpstreamResponse(200, headers, content))

    assert (tokens, split) == (found.prompt_tokens, found.modality_tokens)


@pytest.mark.parametrize(
    ("dtype", "content", "row"),
    [
        ("float", b'{"embeddings":{"float":[[0.5, -2]],"int8":null}}', [0.5, -2]),
        ("int8", b'{"embeddings":{"int8":[[-128,127]]}}', [-128, 127]),
        ("ubinary", b'{"embeddings":{"float":[[9,9]],"ubinary":[[0,255]]}}', [0, 255]),
        ("float", b'{\n "embeddings": {\n  "float" : [ [ 1e0 ,\n 2 ] ]\n }\n}', [1, 2]),
        ("float", b'{"texts":["\\"float\\":[[9]]"],"embeddings":{"float":[[1,2]]}}', [1, 2]),
    ],
)
def test_reads_the_requested_type(dtype, content, row):
    batch = Batch(model=V4, texts=("a",), dtype=dtype)

    assert [row] == BACKEND.parse(batch, UpstreamResponse(200, {}, content)).array.tolist()


@pytest.mark.parametrize(
    "content",
    [
        b'{"embeddings":{}}',
        b'{"embeddings":{"float":null}}',
        b'{"embeddings":[[1,2]]}',
        b'{"embeddings":{"int8":[[1]]}}',
        b'{"embeddings":{"float":[[1,2],[3,4]]}}',
        b'{"embeddings":{"float":[[1,null]]}}',
        b'{"embeddings":{"float":[[[1]]]}}',
        b'{"embeddings":{"float":[[1,2]',
        b'{"message":"no"}',
    ],
)
def test_rejects_an_invalid_response(content):
    with pytest.raises((InvalidUpstreamResponse, KeyError)):
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "invalid request: total number of texts must be at most 96 - received 97", BatchTooLarge),
        (400, "too many tokens: size limit exceeded by 12. Try using shorter or fewer inputs", ContextTooLong),
        (400, "model 'x' not found, make sure the correct model ID was used", UpstreamModelNotFound),
        (400, "invalid request: output_dimension is not supported for this model", Rejected),
        (401, "invalid api token", UpstreamAuthError),
        (404, "model 'x' not found", UpstreamModelNotFound),
        (429, "trial token rate limit exceeded, limit is 100 api calls per minute", RateLimited),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month", QuotaExhausted),
        (498, "invalid token", UpstreamAuthError),
        (500, "internal server error", UpstreamUnavailable),
    ],
)  # fmt: skip
def test_maps_its_errors(status, message, error):
    texts = ("a",) * (97 if error is BatchTooLarge else 1)
    content = b'{"id":"fd5a6ef4","message":"%s"}' % message.encode()

    found = BACKEND.map_error(UpstreamResponse(status, {}, content))

    assert error is type(refine_with_inputs(found, texts))
