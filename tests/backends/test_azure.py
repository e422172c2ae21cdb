"""Tests of the Azure backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.azure import Azure
from embedroute.errors import (
    BatchTooLarge,
    RateLimited,
    UpstreamAuthError,
    UpstreamModelNotFound,
)
from embedroute.upstream_errors import refine_with_inputs

HOST = "https://acme.openai.azure.com"
TEXT = Batch(model="my-deployment", texts=("a",))


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"base_url": HOST}, f"{HOST}/openai/v1/embeddings"),
        ({"base_url": f"{HOST}/openai/v1/"}, f"{HOST}/openai/v1/embeddings"),
        (
            {"base_url": f"{HOST}/", "api_version": "2024-10-21"},
            f"{HOST}/openai/deployments/my-deployment/embeddings?api-version=2024-10-21",
        ),
        (
            {"base_url": f"{HOST}/openai", "api_version": "2025-04-01-preview"},
            f"{HOST}/openai/deployments/my-deployment/embeddings?api-version=2025-04-01-preview",
        ),
        (
            {"base_url": "https://acme.services.ai.azure.com"},
            "https://acme.services.ai.azure.com/openai/v1/embeddings",
        ),
    ],
    ids=["v1", "v1 in the address", "deployment", "openai in the address", "foundry"],
)
def test_the_version_decides_the_address(options, url):
    assert url == Azure(api_key=Secret("k"), **options).build(TEXT).url


def test_the_deployment_stays_inside_its_part_of_the_path():
    backend = Azure(base_url=HOST, api_key=Secret("k"), api_version="1")

    request = backend.build(Batch(model="../a?b", texts=("a",)))

    assert request.url == f"{HOST}/openai/deployments/..%2Fa%3Fb/embeddings?api-version=1"


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"api_key": Secret("k")}, {"api-key": Secret("k")}),
        ({"ad_token": Secret("t")}, {"authorization": Secret("Bearer t")}),
    ],
    ids=["key", "Entra token"],
)
def test_sends_the_key_or_the_token(options, headers):
    request = Azure(base_url=HOST, **options).build(TEXT)

    assert request.headers == {"content-type": "application/json", **headers}


@pytest.mark.parametrize(
    ("batch", "content"),
    [
        (
            Batch(model="my-deployment", texts=("a", "b"), dimensions=256, user="u"),
            (
                b'{"model":"my-deployment","input":["a","b"],"encoding_format":"base64",'
                b'"dimensions":256,"user":"u"}'
            ),
        ),
        (
            Batch(model="my-deployment", tokens=((1, 2),)),
            b'{"model":"my-deployment","input":[[1,2]],"encoding_format":"base64"}',
        ),
    ],
    ids=["texts", "token ids"],
)
def test_builds_the_request(batch, content):
    assert content == Azure(base_url=HOST, api_key=Secret("k")).build(batch).content


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "wait"),
    [
        (429, {}, b'{"error":{"code":"429","message":"Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 7 seconds."}}', RateLimited, 7),
        (429, {"retry-after-ms": "500", "retry-after": "1"}, b'{"error":{"code":"429","message":"slow down"}}', RateLimited, 0.5),
        (429, {"retry-after": "86400"}, b'{"error":{"code":"429","message":"Too many requests. Please retry after 86400 seconds."}}', RateLimited, 120),
        (401, {}, b'{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}', UpstreamAuthError, None),
        (404, {}, b'{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}', UpstreamModelNotFound, None),
        (400, {}, b'{"error":{"message":"Too many inputs. The max number of inputs is 1. We hope to increase the number of inputs per request soon.","type":"invalid_request_error","param":null,"code":null}}', BatchTooLarge, None),
    ],
    ids=["words", "milliseconds", "a day", "key", "deployment", "inputs"],
)  # fmt: skip
def test_maps_its_errors(status, headers, body, error, wait):
    backend = Azure(base_url=HOST, api_key=Secret("k"))

    found = backend.map_error(UpstreamResponse(status, headers, body))

    assert (error, wait) == (type(refine_with_inputs(found, ("a", "b"))), found.retry_after)
