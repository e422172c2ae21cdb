# ruff: noqa: PLC0415 - each client is imported by its own case, as some take seconds
"""Compares the requests of our backends with those of the providers' own Python clients.

Each client calls the fake API that our backend is tested with. So the fake is not only our reading
of the provider's reference: its answers must be valid for the client too.
"""

import json
from typing import NamedTuple

import numpy as np
import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.azure import Azure
from embedroute.backends.cohere import Cohere
from embedroute.backends.dashscope import DashScope
from embedroute.backends.huggingface import HuggingFace
from embedroute.backends.nvidia import Nvidia
from embedroute.backends.perplexity import Perplexity
from embedroute.backends.voyage import Voyage
from embedroute.inputs import ImagePart, ImageURL, TextPart
from tests.backends import apis
from tests.support.fake_api import FakeAPI

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS = ["b", "a", "ccc"]
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
    "SK+kcQAAAABJRU5ErkJggg=="
)
IMAGE = ImagePart(ImageURL(PNG))


def cohere_texts(url):
    import cohere

    client = cohere.ClientV2(api_key="k", base_url=url)
    answer = client.embed(
        model="embed-v4.0",
        texts=TEXTS,
        input_type="search_query",
        embedding_types=["float"],
        output_dimension=8,
        truncate="NONE",
    )
    assert answer.meta.billed_units.input_tokens == apis.count(TEXTS)
    return answer.embeddings.float_


def cohere_parts(url):
    import cohere

    client = cohere.ClientV2(api_key="k", base_url=url)
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": PNG}},
    ]
    answer = client.embed(
        model="embed-v4.0",
        inputs=[{"content": content}],
        input_type="search_document",
        embedding_types=["ubinary"],
        truncate="NONE",
    )
    return answer.embeddings.ubinary


def cohere_image(url):
    import cohere

    client = cohere.ClientV2(api_key="k", base_url=url)
    answer = client.embed(
        model="embed-english-v3.0",
        images=[PNG],
        input_type="image",
        embedding_types=["float"],
        truncate="NONE",
    )
    return answer.embeddings.float_


def voyage_client(url):
    import voyageai

    return voyageai.Client(api_key="k", base_url=url)


def voyage_texts(url):
    answer = voyage_client(url).embed(
        TEXTS, "voyage-4", "query", truncation=False, output_dtype="int8", output_dimension=8
    )
    assert answer.total_tokens == apis.count(TEXTS)
    return answer.embeddings


def voyage_chunks(url):
    answer = voyage_client(url).contextualized_embed(
        [[text] for text in TEXTS], "voyage-context-3", "document"
    )
    return [result.embeddings[0] for result in sorted(answer.results, key=lambda row: row.index)]


def voyage_parts(url):
    content = [{"type": "text", "text": "a"}, {"type": "image_base64", "image_base64": PNG}]
    answer = voyage_client(url).multimodal_embed(
        [{"content": content}], "voyage-multimodal-3.5", "document", truncation=False
    )
    return answer.embeddings


def azure_deployment(url):
    from openai import AzureOpenAI

    client = AzureOpenAI(api_key="k", api_version="2024-10-21", azure_endpoint=url)
    answer = client.embeddings.create(
        model="text-embedding-3-large", input=TEXTS, dimensions=8, user="u"
    )
    return [row.embedding for row in answer.data]


def azure_v1(url):
    from openai import OpenAI

    client = OpenAI(api_key="k", base_url=f"{url}/openai/v1/")
    answer = client.embeddings.create(model="text-embedding-3-large", input=TEXTS)
    return [row.embedding for row in answer.data]


def perplexity_texts(url):
    from perplexity import Perplexity as Client

    answer = Client(api_key="k", base_url=url).embeddings.create(
        model="pplx-embed-v1-4b", input=TEXTS, dimensions=128, encoding_format="base64_int8"
    )
    return [decode_int8(row.embedding) for row in answer.data]


def perplexity_chunks(url):
    from perplexity import Perplexity as Client

    answer = Client(api_key="k", base_url=url).contextualized_embeddings.create(
        model="pplx-embed-context-v1-4b",
        input=[[text] for text in TEXTS],
        encoding_format="base64_int8",
    )
    documents = sorted(answer.data, key=lambda document: document.index)
    return [decode_int8(document.data[0].embedding) for document in documents]


def decode_int8(text):
    import base64

    return np.frombuffer(base64.b64decode(text), "i1").tolist()


def dashscope_texts(url):
    import dashscope

    dashscope.base_http_api_url = url
    answer = dashscope.TextEmbedding.call(
        "text-embedding-v4", TEXTS, api_key="k", text_type="query", dimension=64
    )
    rows = sorted(answer.output["embeddings"], key=lambda row: row["text_index"])
    return [row["embedding"] for row in rows]


def dashscope_parts(url):
    import dashscope

    dashscope.base_http_api_url = url
    answer = dashscope.MultiModalEmbedding.call(
        "qwen3-vl-embedding", [{"text": "a"}, {"image": PNG}], api_key="k", dimension=256
    )
    rows = sorted(answer.output["embeddings"], key=lambda row: row["index"])
    return [row["embedding"] for row in rows]


def huggingface_texts(url):
    from huggingface_hub import InferenceClient

    address = f"{url}/models/org/m/pipeline/feature-extraction"
    client = InferenceClient(address, token="k")
    return client.feature_extraction(TEXTS, normalize=True, truncate=False).tolist()


def nvidia_texts(url):
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings

    client = NVIDIAEmbeddings(
        model="nvidia/nv-embedqa-e5-v5", api_key="k", base_url=f"{url}/v1", truncate="NONE"
    )
    return client.embed_documents(TEXTS)


class Case(NamedTuple):
    """A call of a client, and the batch for which our backend must send the same."""

    call: object
    reply: object
    backend: object
    batch: Batch
    differs: frozenset = frozenset()


def texts(model, **fields):
    return Batch(model=model, texts=TEXTS, **fields)


def parts(model, *inputs, **fields):
    return Batch(model=model, parts=inputs, **fields)


K = Secret("k")
CASES = {
    "cohere texts": Case(
        cohere_texts,
        apis.cohere,
        lambda url: Cohere(api_key=K, base_url=url),
        texts("embed-v4.0", input_type="query", dimensions=8),
    ),
    "cohere parts": Case(
        cohere_parts,
        apis.cohere,
        lambda url: Cohere(api_key=K, base_url=url),
        parts("embed-v4.0", (TextPart("a"), IMAGE), dtype="ubinary"),
    ),
    "cohere image": Case(
        cohere_image,
        apis.cohere,
        lambda url: Cohere(api_key=K, base_url=url),
        parts("embed-english-v3.0", (IMAGE,)),
    ),
    "voyage texts": Case(
        voyage_texts,
        apis.voyage,
        lambda url: Voyage(api_key=K, base_url=url),
        texts("voyage-4", input_type="query", dimensions=8, dtype="int8"),
    ),
    "voyage chunks": Case(
        voyage_chunks,
        apis.voyage,
        lambda url: Voyage(api_key=K, base_url=url),
        texts("voyage-context-3", input_type="document"),
    ),
    "voyage parts": Case(
        voyage_parts,
        apis.voyage,
        lambda url: Voyage(api_key=K, base_url=url),
        parts("voyage-multimodal-3.5", (TextPart("a"), IMAGE), input_type="document"),
    ),
    "azure deployment": Case(
        azure_deployment,
        apis.openai,
        lambda url: Azure(api_key=K, base_url=url, api_version="2024-10-21"),
        texts("text-embedding-3-large", dimensions=8, user="u"),
    ),
    "azure v1": Case(
        azure_v1,
        apis.openai,
        lambda url: Azure(api_key=K, base_url=url),
        texts("text-embedding-3-large"),
    ),
    "perplexity texts": Case(
        perplexity_texts,
        apis.perplexity,
        lambda url: Perplexity(api_key=K, base_url=f"{url}/v1"),
        texts("pplx-embed-v1-4b", dimensions=128, dtype="int8"),
    ),
    "perplexity chunks": Case(
        perplexity_chunks,
        apis.perplexity,
        lambda url: Perplexity(api_key=K, base_url=f"{url}/v1"),
        texts("pplx-embed-context-v1-4b", dtype="int8"),
    ),
    "dashscope texts": Case(
        dashscope_texts,
        apis.dashscope,
        lambda url: DashScope(api_key=K, base_url=url),
        texts("text-embedding-v4", input_type="query", dimensions=64),
    ),
    "dashscope parts": Case(
        dashscope_parts,
        apis.dashscope,
        lambda url: DashScope(api_key=K, base_url=url),
        parts("qwen3-vl-embedding", (TextPart("a"),), (IMAGE,), dimensions=256),
    ),
    "huggingface texts": Case(
        huggingface_texts,
        apis.huggingface,
        lambda url: HuggingFace(api_key=K, base_url=url),
        texts("org/m"),
    ),
    "nvidia texts": Case(
        nvidia_texts,
        apis.nvidia,
        lambda url: Nvidia(api_key=K, base_url=f"{url}/v1"),
        texts("nvidia/nv-embedqa-e5-v5", input_type="document"),
        differs=frozenset({"encoding_format"}),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sends_what_the_client_sends_and_reads_what_it_reads(case):
    with FakeAPI(case.reply) as fake:
        rows = case.call(fake.url)
        ours = case.backend(fake.url).build(case.batch)
    received = fake.requests[-1]

    assert ours.url == f"{fake.url}{received.path}"
    body = json.loads(ours.content)
    theirs = {name: value for name, value in received.body.items() if value is not None}
    differing = {
        name
        for name in body.keys() | theirs.keys()
        if body.get(name) != theirs.get(name) and (body.get(name) or theirs.get(name))
    }
    assert case.differs == differing, (body, theirs)
    answer = UpstreamResponse(200, {}, json.dumps(case.reply(received.body)).encode())
    found = case.backend(fake.url).parse(case.batch, answer).array
    np.testing.assert_allclose(found, np.array(rows), atol=1e-6)
