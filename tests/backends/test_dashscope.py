"""Tests of the DashScope backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.dashscope import DashScope
from embedroute.errors import (
    BatchTooLarge,
    InvalidUpstreamResponse,
    QuotaExhausted,
    RateLimited,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import refine_with_inputs

BACKEND = DashScope(api_key=Secret("k"))
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
TEXT = Batch(model="text-embedding-v4", texts=("a",))


@pytest.mark.parametrize(
    ("backend", "batch", "api", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model="text-embedding-v4", texts=("a", "b"), user="never sent"),
            "text-embedding",
            b'{"model":"text-embedding-v4","input":{"texts":["a","b"]}}',
            id="texts",
        ),
        pytest.param(
            BACKEND,
            Batch(model="text-embedding-v4", texts=("a",), input_type="query", dimensions=64),
            "text-embedding",
            b'{"model":"text-embedding-v4","input":{"texts":["a"]},'
            b'"parameters":{"text_type":"query","dimension":64}}',
            id="parameters",
        ),
        pytest.param(
            DashScope(api_key=Secret("k"), instruct="Find laws"),
            Batch(model="qwen3.7-text-embedding", texts=("a",), input_type="query"),
            "text-embedding",
            b'{"model":"qwen3.7-text-embedding","input":{"texts":["a"]},'
            b'"parameters":{"text_type":"query","instruct":"Find laws"}}',
            id="instruction",
        ),
        pytest.param(
            DashScope(api_key=Secret("k"), instruct="Find laws"),
            Batch(model="qwen3.7-text-embedding", texts=("a",), input_type="document"),
            "text-embedding",
            b'{"model":"qwen3.7-text-embedding","input":{"texts":["a"]},'
            b'"parameters":{"text_type":"document"}}',
            id="no instruction before a document",
        ),
        pytest.param(
            BACKEND,
            Batch(
                model="qwen3-vl-embedding",
                parts=(
                    (TextPart("a"),),
                    (IMAGE,),
                    (ImagePart(ImageURL("https://images.example/i.png")),),
                ),
                dimensions=256,
            ),
            "multimodal-embedding",
            b'{"model":"qwen3-vl-embedding","input":{"contents":[{"text":"a"},'
            b'{"image":"data:image/png;base64,AAAA"},{"image":"https://images.example/i.png"}]},'
            b'"parameters":{"dimension":256}}',
            id="parts",
        ),
        pytest.param(
            BACKEND,
            Batch(model="tongyi-embedding-vision-plus", texts=("a",)),
            "multimodal-embedding",
            b'{"model":"tongyi-embedding-vision-plus","input":{"contents":[{"text":"a"}]}}',
            id="text of a multimodal model",
        ),
    ],
)
def test_builds_the_request(backend, batch, api, content):
    request = backend.build(batch)

    host = "https://dashscope-intl.aliyuncs.com/api/v1"
    assert request.url == f"{host}/services/embeddings/{api}/{api}"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_rejects_the_address_of_the_compatible_api():
    with pytest.raises(ValueError, match="dashscope-compatible"):
        DashScope(api_key=Secret("k"), base_url="https://dashscope.aliyuncs.com/compatible-mode/v1")


@pytest.mark.parametrize(
    ("batch", "param"),
    [
        (Batch(model="qwen3-vl-embedding", parts=((TextPart("a"), IMAGE),)), "input"),
        (Batch(model="qwen3-vl-embedding", texts=("a",), input_type="query"), "input_type"),
    ],
)
def test_refuses_what_the_multimodal_api_cannot_take(batch, param):
    with pytest.raises(UpstreamRejectedInput) as caught:
        BACKEND.build(batch)

    assert param == caught.value.param


@pytest.mark.parametrize(
    ("content", "rows", "tokens", "split"),
    [
        (
            (
                b'{"output":{"embeddings":[{"embedding":[3],"text_index":1},'
                b'{"embedding":[1],"text_index":0,"sparse_embedding":[]}]},'
                b'"usage":{"total_tokens":4},"request_id":"1"}'
            ),
            [[1], [3]],
            4,
            {},
        ),
        (
            (
                b'{"output":{"embeddings":[{"index":0,"embedding":[1],"type":"text"},'
                b'{"index":1,"embedding":[3],"type":"image"}]},'
                b'"usage":{"input_tokens":4,"image_tokens":98,"image_count":1},"request_id":"1"}'
            ),
            [[1], [3]],
            4,
            {"image": 98},
        ),
        (
            b'{"output":{"embeddings":[{"embedding":[1]},{"embedding":[3]}]},"usage":null}',
            [[1], [3]],
            None,
            {},
        ),
    ],
    ids=["texts", "parts", "no indexes"],
)
def test_reads_the_vectors_and_the_usage(content, rows, tokens, split):
    found = BACKEND.parse(
        Batch(model="text-embedding-v4", texts=("a", "b")), UpstreamResponse(200, {}, content)
    )

    assert rows == found.array.tolist()
    assert (tokens, split) == (found.prompt_tokens, found.modality_tokens)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"{}", InvalidUpstreamResponse),
        (b'{"output":{}}', InvalidUpstreamResponse),
        (b'{"code":"InvalidApiKey","message":"Invalid API-key provided."}', UpstreamAuthError),
        (
            b'{"output":{"embeddings":[{"embedding":[1],"text_index":1}]}}',
            InvalidUpstreamResponse,
        ),
    ],
)
def test_rejects_a_response_without_vectors(content, error):
    with pytest.raises(error) as caught:
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))

    assert error is type(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "message", "error"),
    [
        (400, "InvalidParameter", "batch size is invalid, it should not be larger than 10.: input.contents", BatchTooLarge),
        (400, "Arrearage", "Access denied, please make sure your account is in good standing.", QuotaExhausted),
        (400, "DataInspectionFailed", "Input data may contain inappropriate content.", UpstreamRejectedInput),
        (401, "InvalidApiKey", "Invalid API-key provided.", UpstreamAuthError),
        (403, "Model.AccessDenied", "Model access denied.", UpstreamModelNotFound),
        (403, "AccessDenied", "Access denied.", UpstreamAuthError),
        (404, "ModelNotFound", "Model can not be found.", UpstreamModelNotFound),
        (429, "Throttling.RateQuota", "Requests rate limit exceeded.", RateLimited),
        (429, "Throttling.AllocationQuota", "Allocated quota exceeded.", RateLimited),
        (500, "InternalError", "An internal error has occurred.", UpstreamUnavailable),
    ],
)  # fmt: skip
def test_maps_its_errors(status, code, message, error):
    content = b'{"code":"%s","message":"%s","request_id":"1"}' % (code.encode(), message.encode())

    found = BACKEND.map_error(UpstreamResponse(status, {}, content))

    texts = ("a",) * (11 if error is BatchTooLarge else 1)
    assert error is type(refine_with_inputs(found, texts))
