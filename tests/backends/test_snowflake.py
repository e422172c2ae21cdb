"""Tests of the Snowflake backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.snowflake import Snowflake
from embedroute.errors import InvalidUpstreamResponse, RateLimited, UpstreamAuthError

BACKEND = Snowflake(api_key=Secret("k"), account="ab12345.eu-central-1")
MODEL = "snowflake-arctic-embed-l-v2.0"
PATH = "/api/v2/cortex/inference:embed"


@pytest.mark.parametrize(
    ("backend", "url", "headers", "content"),
    [
        pytest.param(
            BACKEND,
            f"https://ab12345.eu-central-1.snowflakecomputing.com{PATH}",
            {},
            b'{"text":["a","b"],"model":"snowflake-arctic-embed-l-v2.0"}',
            id="texts",
        ),
        pytest.param(
            Snowflake(
                api_key=Secret("k"),
                base_url="https://proxy.example/",
                token_type="KEYPAIR_JWT",
                provisioned_throughput_id="p1",
            ),
            f"https://proxy.example{PATH}",
            {"x-snowflake-authorization-token-type": "KEYPAIR_JWT"},
            b'{"text":["a","b"],"model":"snowflake-arctic-embed-l-v2.0",'
            b'"provisioned_throughput_id":"p1"}',
            id="options",
        ),
    ],
)
def test_builds_the_request(backend, url, headers, content):
    request = backend.build(Batch(model=MODEL, texts=("a", "b"), user="never sent"))

    assert url == request.url
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer k"),
        **headers,
    }
    assert content == request.content


@pytest.mark.parametrize(
    ("options", "problem"),
    [({}, "account is missing"), ({"account": "a b"}, "base_url must be")],
)
def test_needs_the_name_of_an_account(options, problem):
    with pytest.raises(ValueError, match=problem):
        Snowflake(api_key=Secret("k"), **options)


@pytest.mark.parametrize("padding", [0, 70_000], ids=["small", "large"])
def test_reads_the_nested_vectors(padding):
    content = (
        b'{"object":"list","data":[{"object":"embedding","embedding":[[3,4]],"index":1},'
        b'{"object":"embedding","embedding":[[1,2]],"index":0}],'
        b'"model":"snowflake-arctic-embed-l-v2.0","usage":{"total_tokens":4}}'
    ) + b" " * padding

    found = BACKEND.parse(Batch(model=MODEL, texts=("a", "b")), UpstreamResponse(200, {}, content))

    assert ([[1, 2], [3, 4]], 4, MODEL) == (
        found.array.tolist(),
        found.prompt_tokens,
        found.model,
    )


@pytest.mark.parametrize(
    "content",
    [
        b'{"data":[{"embedding":[[1],[2]],"index":0}]}',
        b'{"data":[{"embedding":[],"index":0}]}',
        b'{"data":[{"embedding":[1,2],"index":0}]}',
        b'{"message":"no"}',
    ],
)
def test_rejects_other_numbers_of_vectors(content):
    with pytest.raises(InvalidUpstreamResponse):
        BACKEND.parse(Batch(model=MODEL, texts=("a",)), UpstreamResponse(200, {}, content))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b'{"code":"390303","message":"Invalid OAuth access token."}', UpstreamAuthError),
        (429, b'{"message":"too many requests","request_id":"1"}', RateLimited),
    ],
)
def test_maps_its_errors(status, body, error):
    assert error is type(BACKEND.map_error(UpstreamResponse(status, {}, body)))
