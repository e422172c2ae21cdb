"""Tests of the OpenAI backend: exact requests, and invalid responses of compatible servers."""

import base64
import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import vectors
from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.openai import OpenAI
from embedroute.config import known_providers
from embedroute.errors import (
    ContextTooLong,
    InvalidUpstreamResponse,
    InvalidVector,
    QuotaExhausted,
    RateLimited,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.runtime import LARGE

TEXTS = Batch(model="m", texts=("a", "b"))


def base64_of(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def reply(body, status=200):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return UpstreamResponse(status, {"content-type": "application/json"}, content)


def rows(*embeddings, indexes=(0, 1, 2, 3)):
    return {
        "data": [
            {"object": "embedding", "index": at, "embedding": row}
            for at, row in zip(indexes, embeddings, strict=False)
        ]
    }


@pytest.mark.parametrize(
    ("backend", "batch", "content"),
    [
        (OpenAI(), TEXTS, b'{"model":"m","input":["a","b"],"encoding_format":"base64"}'),
        (
            OpenAI(),
            Batch(model="m", texts=("é",)),
            '{"model":"m","input":["é"],"encoding_format":"base64"}'.encode(),
        ),
        (
            OpenAI(),
            Batch(model="m", tokens=((1, 2), (3,)), dimensions=8, user="u"),
            b'{"model":"m","input":[[1,2],[3]],"encoding_format":"base64","dimensions":8,"user":"u"}',
        ),
        (
            OpenAI(encoding_format="float"),
            TEXTS,
            b'{"model":"m","input":["a","b"],"encoding_format":"float"}',
        ),
        (OpenAI(encoding_format="omit"), TEXTS, b'{"model":"m","input":["a","b"]}'),
        (
            OpenAI(extra_body={"normalize": True, "model": "other", "user": "other"}),
            TEXTS,
            b'{"normalize":true,"model":"m","input":["a","b"],"encoding_format":"base64"}',
        ),
        (
            OpenAI(input_types={"document": "passage"}),
            Batch(model="m", texts=("a",), input_type="document"),
            b'{"model":"m","input":["a"],"encoding_format":"base64","input_type":"passage"}',
        ),
        (
            OpenAI(),
            Batch(model="m", texts=("a",), input_type="query"),
            b'{"model":"m","input":["a"],"encoding_format":"base64","input_type":"query"}',
        ),
        (
            OpenAI(),
            Batch(
                model="m", parts=((TextPart("a"), ImagePart(ImageURL("https://x.example/i.png"))),)
            ),
            (
                b'{"model":"m","input":[{"content":[{"type":"text","text":"a"},'
                b'{"type":"image_url","image_url":{"url":"https://x.example/i.png"}}]}],"encoding_format":"base64"}'
            ),
        ),
    ],
)
def test_builds_the_request(backend, batch, content):
    assert content == backend.build(batch).content


@pytest.mark.parametrize("base_url", ["https://api.example/v1", "https://api.example/v1/"])
def test_a_trailing_slash_of_the_base_url_makes_no_difference(base_url):
    assert OpenAI(base_url=base_url).build(TEXTS).url == "https://api.example/v1/embeddings"


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({}, {}),
        ({"api_key": Secret("")}, {}),
        ({"api_key": Secret("k")}, {"authorization": Secret("Bearer k")}),
        (
            {"organization": "o", "project": "p"},
            {"openai-organization": "o", "openai-project": "p"},
        ),
        ({"organization": ""}, {}),
        ({"extra_headers": {"X-Title": Secret("t")}}, {"x-title": Secret("t")}),
    ],
)
def test_builds_the_headers(options, headers):
    assert {"content-type": "application/json", **headers} == OpenAI(**options).build(TEXTS).headers


def test_is_configured_from_plain_data():
    options = {
        "api_key": "k",
        "extra_headers": {"x": "y"},
        "extra_body": {"n": 1},
        "encoding_format": "float",
    }

    backend = msgspec.convert(options, OpenAI, dec_hook=lambda _type, text: Secret(text))

    assert backend == OpenAI(
        api_key=Secret("k"),
        extra_headers={"x": Secret("y")},
        extra_body={"n": 1},
        encoding_format="float",
    )


@pytest.mark.parametrize(
    "wrong",
    [{"encoding_format": "hex"}, {"api_kee": "k"}, {"extra_body": {"a": [1]}}, {"accepts": {}}],
)
def test_rejects_an_invalid_option(wrong):
    with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
        msgspec.convert(wrong, OpenAI)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(rows(base64_of(1, 2), base64_of(3, 4)), id="base64"),
        pytest.param(rows([1, 2], [3.0, 4.0]), id="numbers"),
        pytest.param(rows(base64_of(1, 2), [3, 4]), id="mixed"),
        pytest.param(rows(base64_of(3, 4), base64_of(1, 2), indexes=(1, 0)), id="out of order"),
        pytest.param(
            rows(base64_of(1, 2), base64_of(3, 4), indexes=(None, None)), id="indexes null"
        ),
        pytest.param({"data": [{"embedding": [1, 2]}, {"embedding": [3, 4]}]}, id="no indexes"),
        # spring-projects/spring-ai#7020: Google's OpenAI-compatible API omits the index 0
        pytest.param(
            {"data": [{"embedding": [1, 2]}, {"embedding": [3, 4], "index": 1}]}, id="0 omitted"
        ),
        pytest.param(rows([3, 4], [1, 2], indexes=(1, None)), id="0 omitted, out of order"),
        pytest.param(rows([3, 4], [1, 2], indexes=(None, 0)), id="1 omitted, out of order"),
        pytest.param(rows([3, 4], [1, 2], indexes=("1", "0")), id="indexes are texts"),
        pytest.param(rows([3, 4], [1, 2], indexes=(1.0, 0.0)), id="indexes are floats"),
        pytest.param(rows([1, 2], [3, 4]) | {"error": None}, id="error null"),
        pytest.param(rows([1, 2], [3, 4]) | {"error": {}}, id="error empty"),
        pytest.param(
            rows([1, 2], [3, 4]) | {"model": 7, "object": None, "more": [{}]}, id="odd neighbours"
        ),
    ],
)
def test_returns_row_i_for_input_i(body):
    found = OpenAI().parse(TEXTS, reply(body))

    vectors.check(found.array, 2, 2)
    assert found.array.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("padding", [0, 100_000], ids=["short", "long"])
@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("text-embedding-3-small-2024-01-25", "text-embedding-3-small-2024-01-25"),
        ("", ""),
        (None, None),
        (7, None),
        ([[[]]], None),
        ({"id": "m"}, None),
    ],
)
def test_reads_the_model_that_the_answer_names(named, model, padding):
    body = rows([1, 2], [3, 4]) | {"model": named, "padding": "x" * padding}
    assert OpenAI().parse(TEXTS, reply(body)).model == model
    assert OpenAI().parse(TEXTS, reply(rows([1, 2], [3, 4]) | {"p": "x" * padding})).model is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"<html>", id="HTML"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param([], id="a list"),
        pytest.param({}, id="an empty object"),
        pytest.param(b"null", id="null"),
        pytest.param({"data": None}, id="data null"),
        pytest.param({"data": []}, id="no rows"),
        pytest.param({"data": {}}, id="data an object"),
        pytest.param({"data": [None, None]}, id="rows null"),
        pytest.param({"data": [{}, {}]}, id="rows empty"),
        pytest.param(json.dumps(rows([1, 2], [3, 4])).encode()[:-9], id="truncated"),
        pytest.param(json.dumps(rows([1, 2], [3, 4])).encode() + b"x", id="trailing bytes"),
        pytest.param(rows([1, 2]), id="a row too few"),
        pytest.param(rows([1, 2], [3, 4], [5, 6]), id="a row too many"),
        pytest.param(rows([1, 2], [3, 4], indexes=(0, 0)), id="index twice"),
        pytest.param(rows([1, 2], [3, 4], indexes=(1, 2)), id="index out of range"),
        pytest.param(rows([1, 2], [3, 4], indexes=(-1, 0)), id="index negative"),
        pytest.param(rows([1, 2], [3, 4], indexes=(0, "x")), id="index no number"),
        pytest.param(rows([1, 2], [3, 4], indexes=("0", "-1")), id="index a negative text"),
        pytest.param(rows([1, 2], [3, 4], indexes=(2, None)), id="index missing and one too high"),
        pytest.param(rows([1, 2], [3, 4], indexes=(False, True)), id="index a bool"),
        pytest.param(rows([1, 2], [3, 4], indexes=(0.5, 1)), id="index a fraction"),
        pytest.param(rows([1, 2], [3]), id="widths differ"),
        pytest.param(rows(base64_of(1, 2), base64_of(1)), id="base64 widths differ"),
        pytest.param(rows([], []), id="width 0"),
        pytest.param(rows("", ""), id="base64 of nothing"),
        pytest.param(rows([1, None], [3, 4]), id="null"),
        pytest.param(rows([1, True], [3, 4]), id="a bool"),
        pytest.param(rows([1, "2"], [3, 4]), id="a text"),
        pytest.param(rows([[1, 2]], [[3, 4]]), id="nested"),
        pytest.param(rows(None, [3, 4]), id="a row null"),
        pytest.param(rows(7, [3, 4]), id="a row a number"),
        pytest.param(rows([1, float("nan")], [3, 4]), id="NaN"),
        pytest.param(rows([1, float("inf")], [3, 4]), id="Infinity"),
        pytest.param(b'{"data":[{"embedding":[1e400]},{"embedding":[1]}]}', id="over float64"),
        pytest.param(b'{"data":[{"embedding":[1e39]},{"embedding":[1]}]}', id="over float32"),
        pytest.param(rows(base64_of(1, float("nan")), base64_of(3, 4)), id="base64 NaN"),
        pytest.param(rows(base64_of(1, float("inf")), base64_of(3, 4)), id="base64 infinity"),
        pytest.param(rows([0, 0], [3, 4]), id="a zero vector"),
        pytest.param(rows("sorry", "sorry"), id="words"),
        pytest.param(rows("AAAAAAA", "AAAAAAA="), id="base64 unpadded"),
        pytest.param(rows("AACAPw\n==", base64_of(1)), id="base64 with a newline"),
        pytest.param(rows("AACA-w==", base64_of(1)), id="base64url"),
        pytest.param(rows("AAAA", "AAAA"), id="base64 of three bytes"),
        pytest.param({"error": {"message": "boom"}}, id="an error without a code"),
        pytest.param({"error": "boom"}, id="an error that is a text"),
        pytest.param({"error": {"code": "odd"}} | rows([1, 2], [3, 4]), id="an error beside rows"),
        pytest.param({"error": {"code": 200}}, id="an error whose code is a success"),
        pytest.param({"error": {"code": {"a": 1}}}, id="an error whose code is an object"),
    ],
)
def test_rejects_an_invalid_response(body):
    """The host rejects what ``parse`` accepts, because it checks the vectors of every backend."""
    with pytest.raises(InvalidUpstreamResponse):
        vectors.check(OpenAI().parse(TEXTS, reply(body)).array, 2, None)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("number", [None, float("nan"), float("inf"), float("-inf")])
def test_a_row_with_an_item_that_is_no_number_is_an_invalid_vector(number, large):
    """Only then is the batch bisected: some servers write NaN or null for texts that fail."""
    body = rows([1, number], [3, 4]) | ({"more": "x" * LARGE} if large else {})

    with pytest.raises(InvalidVector):
        OpenAI().parse(TEXTS, reply(body))


def test_a_null_outside_of_the_vectors_of_a_large_body_is_not_an_invalid_vector():
    body = rows([1, True], [3, 4]) | {"more": [None, "x" * LARGE]}

    with pytest.raises(InvalidUpstreamResponse) as caught:
        OpenAI().parse(TEXTS, reply(body))

    assert type(caught.value) is InvalidUpstreamResponse


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow down"}, RateLimited),
        ({"code": "429"}, RateLimited),
        ({"code": "rate_limit_exceeded"}, RateLimited),
        ({"code": "insufficient_quota"}, QuotaExhausted),
        ({"code": 401}, UpstreamAuthError),
        ({"code": "model_not_found"}, UpstreamModelNotFound),
        ({"code": "context_length_exceeded"}, ContextTooLong),
        ({"code": 502}, UpstreamUnavailable),
        ({"code": "server_error"}, UpstreamUnavailable),
    ],
)
def test_classifies_an_error_with_status_200_by_its_code(error, kind):
    with pytest.raises(kind) as caught:
        OpenAI().parse(TEXTS, reply({"error": error}))

    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("codes", "kind"), [([], QuotaExhausted), (["insufficient_quota"], RateLimited)]
)
def test_an_option_lists_the_codes_of_the_servers_rate_limits(codes, kind):
    backend = msgspec.convert({"rate_limit_codes": codes}, OpenAI)
    body = json.dumps({"error": {"code": "insufficient_quota"}}).encode()

    assert type(backend.map_error(UpstreamResponse(429, {}, body))) is kind


def test_a_code_of_a_spent_account_is_a_rate_limit_for_dashscope():
    """Source: help.aliyun.com, error codes of Model Studio."""
    backend = msgspec.convert(known_providers()["dashscope-compatible"].options, OpenAI)
    body = json.dumps({"error": {"code": "insufficient_quota"}}).encode()

    assert type(backend.map_error(UpstreamResponse(429, {}, body))) is RateLimited


def test_an_error_with_status_200_keeps_its_message():
    with pytest.raises(InvalidUpstreamResponse, match="No instances available"):
        OpenAI().parse(TEXTS, reply({"error": {"message": "No instances available"}}))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 7, "total_tokens": 8}, 7),
        ({"prompt_tokens": 7.0}, 7),
        ({"prompt_tokens": 1e308}, None),
        ({"prompt_tokens": 0}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": 1.5}, None),
        ({"prompt_tokens": "7"}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": None}, None),
        ({"prompt_tokens": 10**30}, None),
        ({"total_tokens": 7}, 7),
        ({"total_tokens": 7.0}, 7),
        ({"prompt_tokens": 0, "total_tokens": 7}, 7),
        ({"prompt_tokens": None, "total_tokens": 7}, 7),
        ({"prompt_tokens": "6", "total_tokens": 7}, 7),
        ({"total_tokens": "7"}, None),
        ({}, None),
        (None, None),
        ("7", None),
        ([], None),
        ([[[7]]], None),
    ],
)
def test_ignores_an_invalid_token_count(usage, tokens):
    found = OpenAI().parse(TEXTS, reply(rows([1, 2], [3, 4]) | {"usage": usage}))

    assert tokens == found.prompt_tokens


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("usage", "headers", "tokens"),
    [
        (None, {"num_tokens": "42"}, 42),
        (None, {"x-compute-tokens": "42"}, 42),
        ({}, {"x-compute-tokens": "42"}, 42),
        ({"prompt_tokens": 0}, {"x-compute-tokens": "42"}, 42),
        ({"total_tokens": 7}, {"num_tokens": "42"}, 7),
        (None, {"num_tokens": "none", "x-compute-tokens": "42"}, 42),
        (None, {"num_tokens": "0"}, None),
        (None, {"num_tokens": "-1"}, None),
        (None, {"num_tokens": "4.2"}, None),
        (None, {"num_tokens": "\N{SUPERSCRIPT TWO}"}, None),
        (None, {"num_tokens": "9" * 5000}, None),
        (None, {"x-ratelimit-remaining-tokens": "42"}, None),
    ],
)
def test_reads_the_token_count_from_a_header_if_the_body_has_none(usage, headers, tokens, large):
    """Cohere and TEI use a header. The order is body, header, estimate."""
    body = rows([1, 2], [3, 4]) | {"usage": usage} | ({"more": "x" * LARGE} if large else {})

    found = OpenAI().parse(TEXTS, UpstreamResponse(200, headers, json.dumps(body).encode()))

    assert tokens == found.prompt_tokens


def test_accepts_a_response_without_usage():
    assert OpenAI().parse(TEXTS, reply(rows([1, 2], [3, 4]))).prompt_tokens is None


@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(),
)
def test_sorts_rows_in_any_order_by_index(wanted, random):
    order = list(range(len(wanted)))
    random.shuffle(order)
    encoded = {
        "data": [
            {"index": at, "embedding": base64_of(*wanted[at]) if at % 2 else wanted[at]}
            for at in order
        ]
    }

    found = OpenAI().parse(Batch(model="m", texts=("x",) * len(wanted)), reply(encoded))

    assert np.array_equal(found.array, np.asarray(wanted, dtype="<f4"))


@given(st.permutations(range(7)), st.sets(st.integers(0, 6)), st.sampled_from([int, str, float]))
def test_a_row_without_index_is_accepted_only_if_it_is_the_only_one(order, missing, kind):
    """And all rows without an index are in order."""
    values = [
        {"embedding": [at + 1.0, 1.0], "index": None if at in missing else kind(at)} for at in order
    ]
    batch = Batch(model="m", texts=[str(at) for at in range(7)])
    response = UpstreamResponse(200, {}, json.dumps({"data": values}).encode())

    if len(missing) in {0, 1}:
        assert [at + 1.0 for at in range(7)] == OpenAI().parse(batch, response).array[:, 0].tolist()
    elif len(missing) == 7:
        assert [at + 1.0 for at in order] == OpenAI().parse(batch, response).array[:, 0].tolist()
    else:
        with pytest.raises(InvalidUpstreamResponse):
            OpenAI().parse(batch, response)
