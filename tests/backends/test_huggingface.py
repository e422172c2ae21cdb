"""Tests of the Hugging Face backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.huggingface import HuggingFace
from embedroute.errors import (
    InvalidUpstreamResponse,
    QuotaExhausted,
    UpstreamAuthError,
    UpstreamUnavailable,
)

BACKEND = HuggingFace(api_key=Secret("k"))
MODEL = "intfloat/multilingual-e5-large"
TEXT = Batch(model=MODEL, texts=("a",))


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        pytest.param(
            BACKEND,
            Batch(model=MODEL, texts=("a", "b"), user="never sent"),
            b'{"inputs":["a","b"],"normalize":true,"truncate":false}',
            id="texts",
        ),
        pytest.param(
            HuggingFace(
                api_key=Secret("k"),
                normalize=None,
                truncate=True,
                truncation_direction="left",
                prompt_name="query",
            ),
            TEXT,
            b'{"inputs":["a"],"truncate":true,"truncation_direction":"left","prompt_name":"query"}',
            id="options",
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    request = backend.build(batch)

    base = "https://router.huggingface.co/hf-inference/models/intfloat/multilingual-e5-large"
    assert request.url == f"{base}/pipeline/feature-extraction"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_the_model_stays_inside_its_part_of_the_path():
    request = BACKEND.build(Batch(model="a?b#c d/e", texts=("a",)))

    assert request.url.endswith("/models/a%3Fb%23c%20d/e/pipeline/feature-extraction")


@pytest.mark.parametrize(
    ("content", "rows"),
    [(b"[[1,2]]", [[1, 2]]), (b" [ [ 1e0 , 2 ] ] ", [[1, 2]])],
)
def test_reads_the_vectors(content, rows):
    found = BACKEND.parse(TEXT, UpstreamResponse(200, {"x-compute-tokens": "3"}, content))

    assert (rows, 3) == (found.array.tolist(), found.prompt_tokens)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[[[1,2],[3,4]]]", "one vector per token"),
        (b"[ [ [1,2] ] ]", "one vector per token"),
        (b"[1,2]", "2 rows"),
        (b"[[1],[2]]", "2 rows"),
        (b'{"error":"x"}', "expected JSON"),
        (b"[[1,2]", "expected JSON"),
    ],
)
def test_rejects_what_is_not_one_vector_per_text(content, words):
    with pytest.raises(InvalidUpstreamResponse, match=words):
        BACKEND.parse(TEXT, UpstreamResponse(200, {}, content))


def test_waits_as_long_as_the_model_is_said_to_load():
    body = b'{"error":"Model is currently loading","estimated_time":20.5}'

    found = BACKEND.map_error(UpstreamResponse(503, {}, body))

    assert (UpstreamUnavailable, 20.5) == (type(found), found.retry_after)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b'{"error":"Invalid username or password."}', UpstreamAuthError),
        (402, b'{"error":"You have exceeded your monthly included credits"}', QuotaExhausted),
        (504, b"Gateway Timeout", UpstreamUnavailable),
    ],
)
def test_maps_its_errors(status, body, error):
    assert error is type(BACKEND.map_error(UpstreamResponse(status, {}, body)))
