"""Tests of the Nomic backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.nomic import Nomic
from embedroute.errors import InvalidUpstreamResponse, RateLimited, UpstreamAuthError

BACKEND = Nomic(api_key=Secret("k"))
MODEL = "nomic-embed-text-v1.5"
TEXT = Batch(model=MODEL, texts=("a",))


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model=MODEL, texts=("a", "b"), user="never sent"),
            b'{"texts":["a","b"],"model":"nomic-embed-text-v1.5","task_type":"search_document",'
            b'"long_text_mode":"truncate","max_tokens_per_text":8192}',
            id="texts",
        ),
        pytest.param(
            BACKEND,
            Batch(model=MODEL, texts=("a",), input_type="query", dimensions=64),
            b'{"texts":["a"],"model":"nomic-embed-text-v1.5","task_type":"search_query",'
            b'"dimensionality":64,"long_text_mode":"truncate","max_tokens_per_text":8192}',
            id="parameters",
        ),
        pytest.param(
            Nomic(
                api_key=Secret("k"),
                default_task_type="clustering",
                long_text_mode="mean",
                max_tokens_per_text=512,
            ),
            TEXT,
            b'{"texts":["a"],"model":"nomic-embed-text-v1.5","task_type":"clustering",'
            b'"long_text_mode":"mean","max_tokens_per_text":512}',
            id="options",
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    request = backend.build(batch)

    assert request.url == "https://api-atlas.nomic.ai/v1/embedding/text"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_reads_vectors_and_usage():
    content = (
        b'{"embeddings":[[1, 2],[3, 4]],"usage":{"prompt_tokens":5,"total_tokens":5},'
        b'"model":"nomic-embed-text-v1.5","inference_model":"nomic-embed-text-v1.5"}'
    )

    found = BACKEND.parse(Batch(model=MODEL, texts=("a", "b")), UpstreamResponse(200, {}, content))

    assert ([[1, 2], [3, 4]], 5, MODEL) == (
        found.array.tolist(),
        found.prompt_tokens,
        found.model,
    )


@pytest.mark.parametrize(
    "content",
    [b'{"embeddings":[]}', b'{"embeddings":null}', b'{"embeddings":[[1],[2]]}', b'{"detail":"no"}'],
)
def test_rejects_an_invalid_response(content):
    with pytest.raises(InvalidUpstreamResponse):
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b'{"detail":"Invalid API key"}', UpstreamAuthError),
        (429, b'{"detail":"Too many requests"}', RateLimited),
    ],
)
def test_maps_its_errors(status, body, error):
    assert error is type(BACKEND.map_error(UpstreamResponse(status, {}, body)))
