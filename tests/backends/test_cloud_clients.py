"""Compares the requests of our backends with those of the clients of servers and clouds.

Each client calls the fake API that our backend is tested with, and must be able to read its answer.
"""

# The clients are large packages, so only their tests import them.
# ruff: noqa: PLC0415

import json

import numpy as np
import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.bedrock import Bedrock
from embedroute.backends.gemini import Gemini
from embedroute.backends.ollama import Ollama
from embedroute.backends.sagemaker import SageMaker
from embedroute.backends.tei import TEI
from tests.backends import served_apis
from tests.support.fake_api import FakeAPI

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS = ["b", "a", "ccc"]
KEYS = {"access_key_id": Secret("AKIAEXAMPLE"), "secret_access_key": Secret("s3cret")}
TITAN = "amazon.titan-embed-text-v2:0"


def ollama_texts(url):
    import ollama

    client = ollama.Client(host=url)
    answer = client.embed(
        "m", TEXTS, truncate=False, dimensions=8, options={"num_ctx": 2048}, keep_alive="5m"
    )
    assert answer.prompt_eval_count
    return answer.embeddings


def tei_texts(url):
    from huggingface_hub import InferenceClient

    client = InferenceClient(f"{url}/embed")
    return client.feature_extraction(TEXTS, normalize=True, truncate=False).tolist()


def aws_client(service, url):
    import boto3

    return boto3.client(
        service,
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="AKIAEXAMPLE",
        aws_secret_access_key="s3cret",
    )


def bedrock_text(url):
    body = {"inputText": "a", "dimensions": 256, "normalize": True}
    answer = aws_client("bedrock-runtime", url).invoke_model(
        modelId=TITAN,
        body=json.dumps(body),
        contentType="application/json",
        accept="application/json",
    )
    return [json.loads(answer["body"].read())["embedding"]]


def sagemaker_texts(url):
    body = {"inputs": TEXTS, "normalize": True, "truncate": False}
    answer = aws_client("sagemaker-runtime", url).invoke_endpoint(
        EndpointName="my-endpoint", Body=json.dumps(body), ContentType="application/json"
    )
    return json.loads(answer["Body"].read())


def gemini_texts(url):
    from google import genai

    options = genai.types.HttpOptions(base_url=url, api_version="v1beta")
    client = genai.Client(api_key="k", http_options=options)
    answer = client.models.embed_content(
        model="gemini-embedding-001",
        contents=TEXTS,
        config=genai.types.EmbedContentConfig(task_type="RETRIEVAL_QUERY", output_dimensionality=8),
    )
    return [row.values for row in answer.embeddings]


def texts(model, **fields):
    return Batch(model=model, texts=TEXTS, **fields)


CASES = {
    "ollama": (
        ollama_texts,
        served_apis.ollama,
        lambda url: Ollama(base_url=url, keep_alive="5m", model_options={"num_ctx": 2048}),
        texts("m", dimensions=8),
    ),
    "tei": (tei_texts, served_apis.tei, lambda url: TEI(base_url=url), texts("m")),
    "bedrock": (
        bedrock_text,
        served_apis.titan,
        lambda url: Bedrock(base_url=url, region="us-east-1", **KEYS),
        Batch(model=TITAN, texts=["a"], dimensions=256),
    ),
    "sagemaker": (
        sagemaker_texts,
        served_apis.tei,
        lambda url: SageMaker(base_url=url, region="us-east-1", **KEYS),
        texts("my-endpoint"),
    ),
    "gemini": (
        gemini_texts,
        served_apis.gemini,
        lambda url: Gemini(base_url=f"{url}/v1beta", api_key=Secret("k")),
        texts("gemini-embedding-001", input_type="query", dimensions=8),
    ),
}


def known(value):
    """Return a JSON value without what has no effect: nulls, and the role of a content."""
    if isinstance(value, dict):
        return {
            name: known(inner)
            for name, inner in value.items()
            if inner is not None and (name, inner) != ("role", "user")
        }
    return [known(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("call", "reply", "make", "batch"), CASES.values(), ids=CASES)
def test_sends_what_the_client_sends_and_reads_what_it_reads(call, reply, make, batch):
    with FakeAPI(reply) as fake:
        rows = call(fake.url)
        backend = make(fake.url)
    received = fake.requests[-1]
    ours = backend.build(batch)

    assert ours.url == f"{fake.url}{received.path}"
    assert known(received.body) == json.loads(ours.content)
    answer = UpstreamResponse(200, {}, json.dumps(reply(received.body)).encode())
    array = backend.parse(batch, answer).array
    expected = np.array(rows)
    if isinstance(backend, Gemini):
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(array, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["bedrock", "sagemaker"])
def test_signs_as_boto3_signs(name):
    """The signed headers and the scope are equal; boto3 adds headers of its own."""
    call, reply, make, batch = CASES[name]
    with FakeAPI(reply) as fake:
        call(fake.url)
        backend = make(fake.url)
    theirs = fake.requests[-1].headers["authorization"]
    request = backend.build(batch)
    credentials = backend.fetch_credentials(lambda _: None)
    ours = backend.authorize(request, credentials).headers["authorization"].reveal()

    assert theirs.partition(" ")[0] == ours.partition(" ")[0] == "AWS4-HMAC-SHA256"
    assert (
        theirs.split("Credential=")[1].split(",")[0] == ours.split("Credential=")[1].split(",")[0]
    )
    signed = [
        set(text.split("SignedHeaders=")[1].split(",")[0].split(";")) for text in (theirs, ours)
    ]
    assert {"host", "x-amz-date"} <= signed[1] <= signed[0] | {"content-type", "accept"}
