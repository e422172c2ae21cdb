"""Tests of the Mistral backend: exact requests, and quantised responses."""

import pytest

from embedroute import vectors
from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.mistral import Mistral
from embedroute.errors import InvalidUpstreamResponse

BACKEND = Mistral(api_key=Secret("k"))


def reply(content):
    return UpstreamResponse(200, {}, content)


@pytest.mark.parametrize(
    ("batch", "content"),
    [
        (
            Batch(model="m", texts=("a", "b")),
            b'{"model":"m","input":["a","b"],"encoding_format":"base64"}',
        ),
        (
            Batch(model="m", texts=("a",), dimensions=16, user="never sent"),
            b'{"model":"m","input":["a"],"encoding_format":"base64","output_dimension":16}',
        ),
        (
            Batch(model="m", texts=("a",), dimensions=16, dtype="ubinary"),
            b'{"model":"m","input":["a"],"encoding_format":"float","output_dimension":16,"output_dtype":"ubinary"}',
        ),
    ],
)
def test_builds_the_request(batch, content):
    request = BACKEND.build(batch)

    assert request.url == "https://api.mistral.ai/v1/embeddings"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
    }
    assert content == request.content


def test_the_european_host_is_an_option():
    backend = Mistral(api_key=Secret("k"), base_url="https://api.eu.mistral.ai/v1/")

    assert (
        backend.build(Batch(model="m", texts=("a",))).url
        == "https://api.eu.mistral.ai/v1/embeddings"
    )


@pytest.mark.parametrize(
    ("dtype", "content", "rows"),
    [
        ("float", b'{"data":[{"index":0,"embedding":"AACAPwAAAEA="}]}', [[1, 2]]),
        ("float", b'{"data":[{"index":0,"embedding":[1.0,2.0]}]}', [[1, 2]]),
        ("int8", b'{"data":[{"index":0,"embedding":[-128,127]}]}', [[-128, 127]]),
        ("uint8", b'{"data":[{"index":0,"embedding":[0,255]}]}', [[0, 255]]),
        (
            "binary",
            b'{"data":[{"index":1,"embedding":[-128]},{"index":0,"embedding":[127]}]}',
            [[127], [-128]],
        ),
        ("ubinary", b'{"data":[{"index":0,"embedding":[255]}]}', [[255]]),
    ],
)
def test_reads_the_numbers_of_each_dtype(dtype, content, rows):
    found = BACKEND.parse(Batch(model="m", texts=("a",) * len(rows), dtype=dtype), reply(content))

    vectors.check(found.array, len(rows), None, dtype)
    assert rows == found.array.tolist()


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("int8", b"128"),
        ("int8", b"0.5"),
        ("uint8", b"-1"),
        ("ubinary", b"256"),
        ("binary", b"1e300"),
    ],
)
def test_rejects_a_number_outside_the_range_of_the_dtype(dtype, numbers):
    with pytest.raises(InvalidUpstreamResponse, match=dtype):
        BACKEND.parse(
            Batch(model="m", texts=("a",), dtype=dtype),
            reply(b'{"data":[{"embedding":[%s]}]}' % numbers),
        )


def test_reads_its_usage():
    content = b'{"data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":6,"prompt_audio_seconds":null}}'

    assert BACKEND.parse(Batch(model="m", texts=("a",)), reply(content)).prompt_tokens == 6
