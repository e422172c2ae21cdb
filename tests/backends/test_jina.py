"""Tests of the Jina backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.jina import TASKS, Jina
from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    QuotaExhausted,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import refine_with_inputs

BACKEND = Jina(api_key=Secret("k"))
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
REMOTE = ImagePart(ImageURL("https://images.example/i.png"))
V4 = "jina-embeddings-v4"


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model="jina-embeddings-v2-base-en", texts=("a", "b"), user="never sent"),
            b'{"model":"jina-embeddings-v2-base-en","input":["a","b"],"embedding_type":"base64"}',
            id="texts",
        ),
        pytest.param(
            BACKEND,
            Batch(model=V4, texts=("a",), input_type="query", dimensions=128, dtype="ubinary"),
            b'{"model":"jina-embeddings-v4","input":["a"],"task":"retrieval.query",'
            b'"dimensions":128,"embedding_type":"ubinary"}',
            id="parameters",
        ),
        pytest.param(
            BACKEND,
            Batch(model=V4, parts=((TextPart("a"),), (IMAGE,), (REMOTE,))),
            b'{"model":"jina-embeddings-v4","input":[{"text":"a"},{"image":"AAAA"},'
            b'{"image":"https://images.example/i.png"}],"embedding_type":"base64"}',
            id="parts",
        ),
        pytest.param(
            Jina(
                api_key=Secret("k"),
                normalized=False,
                truncate=True,
                tasks={"query": "code2code.query"},
            ),
            Batch(model="jina-code-embeddings-0.5b", texts=("a",), input_type="query"),
            b'{"model":"jina-code-embeddings-0.5b","input":["a"],"task":"code2code.query",'
            b'"embedding_type":"base64","normalized":false,"truncate":true}',
            id="options",
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    request = backend.build(batch)

    assert request.url == "https://api.jina.ai/v1/embeddings"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


@pytest.mark.parametrize(
    ("model", "input_type", "task"),
    [
        ("jina-embeddings-v3", "document", "retrieval.passage"),
        ("jina-embeddings-v3", "clustering", "separation"),
        ("jina-embeddings-v3", "similarity", "text-matching"),
        (V4, "code_query", "code.query"),
        ("jina-embeddings-v5-text-small", "clustering", "clustering"),
        ("jina-embeddings-v5-omni-nano", "classification", "classification"),
        ("jina-code-embeddings-1.5b", "document", "nl2code.passage"),
        ("jina-clip-v2", "query", "retrieval.query"),
        ("jina-embeddings-v6", "query", "retrieval.query"),
    ],
)
def test_an_input_type_is_a_task_of_the_model(model, input_type, task):
    batch = Batch(model=model, texts=("a",), input_type=input_type)

    assert b'"task":"%s"' % task.encode() in BACKEND.build(batch).content


@pytest.mark.parametrize(
    ("model", "input_type"),
    [
        (model, input_type)
        for model, tasks in TASKS.items()
        for input_type in Jina.accepts.input_types
        if input_type not in tasks
    ],
)
def test_a_task_that_the_model_lacks_is_refused(model, input_type):
    with pytest.raises(UpstreamRejectedInput) as caught:
        BACKEND.build(Batch(model=model, texts=("a",), input_type=input_type))

    assert "input_type" == caught.value.param


def test_parts_are_not_fused():
    with pytest.raises(UpstreamRejectedInput):
        BACKEND.build(Batch(model=V4, parts=((TextPart("a"), IMAGE),)))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"total_tokens":5}', 5),
        (b'{"total_tokens":5,"prompt_tokens":5}', 5),
        (b'{"total_tokens":5,"prompt_tokens":0}', 5),
    ],
)
def test_reads_its_usage(usage, tokens):
    content = b'{"data":[{"index":0,"embedding":"AACAPw=="}],"usage":%s}' % usage

    found = BACKEND.parse(Batch(model=V4, texts=("a",)), UpstreamResponse(200, {}, content))

    assert tokens == found.prompt_tokens


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"detail":{"message":"[INPUT_MODEL_NOT_FOUND] Model x not found","request_id":"1","code":"INPUT_MODEL_NOT_FOUND"}}', UpstreamModelNotFound),
        (400, b'{"detail":{"message":"Input exceeds 8192 tokens","request_id":"1","code":"INPUT_TOKEN_LIMIT_EXCEEDED"}}', ContextTooLong),
        (400, b'{"detail":"[RID: 1] Each input list can contain at most 512 items"}', BatchTooLarge),
        (400, b'{"detail":"extra fields not permitted"}', Rejected),
        (401, b'{"detail":"Unauthorized"}', UpstreamAuthError),
        (401, b'{"detail":{"message":"Invalid API key","code":"AUTH_INVALID_API_KEY"}}', UpstreamAuthError),
        (402, b'{"detail":{"message":"Insufficient balance","code":"AUTHZ_INSUFFICIENT_BALANCE"}}', QuotaExhausted),
        (403, b'{"detail":{"message":"Insufficient balance","code":"AUTHZ_INSUFFICIENT_BALANCE"}}', QuotaExhausted),
        (422, b'{"detail":"Validation error","request_id":"1","errors":[{"field":"task","message":"invalid","type":"enum"}]}', Rejected),
        (429, b'{"detail":{"message":"Rate limit exceeded","code":"RATE_TOKEN_LIMIT_EXCEEDED"}}', RateLimited),
    ],
)  # fmt: skip
def test_maps_its_errors(status, body, error):
    found = BACKEND.map_error(UpstreamResponse(status, {}, body))

    texts = ("a",) * (513 if error is BatchTooLarge else 1)
    assert error is type(refine_with_inputs(found, texts))
