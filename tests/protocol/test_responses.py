"""Tests of response bodies, byte by byte."""

import base64
import json
import struct
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import (
    DeadlineExceeded,
    InvalidRequest,
    InvalidUpstreamResponse,
    MethodNotAllowed,
    NoHealthyEndpoint,
    PermissionDenied,
    RateLimited,
    Unauthorized,
    UpstreamAuthError,
)
from embedroute.inputs import Kind
from embedroute.protocol import DIALECTS, ENCODER, EmbeddingRequest, Embeddings, response_bodies
from embedroute.trace import RequestTrace

OPENAI = DIALECTS["openai"]


def array(*numbers):
    return np.array(numbers, dtype="<f4")


def success(vectors, *, base64):
    answer = Embeddings(rows=list(vectors), model="m", prompt_tokens=7, trace=RequestTrace("req_1"))
    return b"".join(
        OPENAI.success(
            answer, EmbeddingRequest(model="m:floor", inputs=["a"], kind=Kind.TEXT, base64=base64)
        )
    )


END = b'],"model":"m","usage":{"prompt_tokens":7,"total_tokens":7}}'


@pytest.mark.parametrize(
    ("vectors", "base64", "data"),
    [
        (array([0.1, -2.0]), False, b'{"embedding":[0.1,-2.0],"index":0,"object":"embedding"}'),
        (array([0.1, -2.0]), True, b'{"embedding":"zczMPQAAAMA=","index":0,"object":"embedding"}'),
        (
            array([1.0], [1e-7]),
            False,
            b'{"embedding":[1.0],"index":0,"object":"embedding"},{"embedding":[1e-7],"index":1,"object":"embedding"}',
        ),
        (
            array([1.0], [0.5]),
            True,
            b'{"embedding":"AACAPw==","index":0,"object":"embedding"},{"embedding":"AAAAPw==","index":1,"object":"embedding"}',
        ),
        (
            np.array([[1, -128]], dtype="int8"),
            False,
            b'{"embedding":[1,-128],"index":0,"object":"embedding"}',
        ),
        (
            np.array([[1, -128]], dtype="int8"),
            True,
            b'{"embedding":"AYA=","index":0,"object":"embedding"}',
        ),
        (
            np.array([[1, 255]], dtype="uint8"),
            True,
            b'{"embedding":"Af8=","index":0,"object":"embedding"}',
        ),
    ],
)
def test_encodes_the_list_of_embeddings(vectors, base64, data):
    """Rows are in order and have an ``index``; the model is the public name."""
    assert b'{"object":"list","data":[' + data + END == success(vectors, base64=base64)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_numbers_read_back_as_the_same_float32(numbers):
    vectors = array(numbers)

    read = json.loads(success(vectors, base64=False))["data"][0]["embedding"]

    assert vectors.tobytes() == np.array([read], dtype="<f4").tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
def test_base64_is_the_bytes_of_little_endian_float32(numbers):
    actual = json.loads(success(array(numbers), base64=True))["data"][0]["embedding"]

    assert struct.pack(f"<{len(numbers)}f", *numbers) == base64.b64decode(actual, validate=True)


@pytest.mark.parametrize("slices", [np.s_[::2], np.s_[:, ::2], np.s_[:, :2], np.s_[::-1]])
def test_encodes_the_content_of_array_views(slices):
    """The memory of a sliced or strided array differs from its values."""
    view = np.arange(12, dtype="<f4").reshape(3, 4)[slices]

    actual = [
        base64.b64decode(row["embedding"]) for row in json.loads(success(view, base64=True))["data"]
    ]

    assert [row.tobytes() for row in view] == actual
    assert view.tolist() == [
        row["embedding"] for row in json.loads(success(view, base64=False))["data"]
    ]


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (
            InvalidRequest("'input[1]' must not be empty.", param="input[1]"),
            400,
            b'{"message":"\'input[1]\' must not be empty.","type":"invalid_request_error","param":"input[1]","code":null}',
        ),
        (
            InvalidRequest("x", param="p" * 200, code="invalid_media_url"),
            400,
            b'{"message":"x","type":"invalid_request_error","param":"'
            + b"p" * 128
            + b'","code":"invalid_media_url"}',
        ),
        (
            Unauthorized("x"),
            401,
            b'{"message":"x","type":"invalid_request_error","param":null,"code":"invalid_api_key"}',
        ),
        (
            PermissionDenied("x", param="debug", code="debug_not_allowed"),
            403,
            b'{"message":"x","type":"permission_error","param":"debug","code":"debug_not_allowed"}',
        ),
        (
            MethodNotAllowed("GET", "POST"),
            405,
            (
                b'{"message":"Method \'GET\' is not allowed. Use POST.","type":"invalid_request_error","param":null,'
                b'"code":"method_not_allowed"}'
            ),
        ),
        (
            RateLimited("x"),
            429,
            b'{"message":"x","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}',
        ),
        (
            UpstreamAuthError("x"),
            502,
            b'{"message":"x","type":"upstream_error","param":null,"code":"upstream_credentials"}',
        ),
        (
            InvalidUpstreamResponse("x"),
            502,
            b'{"message":"x","type":"upstream_error","param":null,"code":"upstream_invalid_response"}',
        ),
        (
            NoHealthyEndpoint("x"),
            503,
            b'{"message":"x","type":"overloaded_error","param":null,"code":"no_healthy_endpoint"}',
        ),
        (
            DeadlineExceeded("x"),
            504,
            b'{"message":"x","type":"timeout_error","param":null,"code":null}',
        ),
    ],
)
def test_an_error_has_all_four_keys(error, status, body):
    assert (error.status, OPENAI.error(error, RequestTrace("req_1"))) == (
        status,
        b'{"error":' + body + b"}",
    )


def test_prices_are_strings():
    """A JSON parser would round floats."""
    model = response_bodies.Model(
        id="m",
        owned_by="o",
        dimensions=8,
        dimensions_allowed=None,
        matryoshka=False,
        context_length=None,
        modalities=("text",),
        pricing={"prompt": Decimal("0.020")},
        providers=("o",),
        supported_endpoints=["/v1/embeddings"],
        created=0,
    )

    assert json.loads(ENCODER.encode(model))["pricing"] == {"prompt": "0.020"}
