"""Tests LangChain's embeddings with a real server.

``test_captured`` tests its default, token arrays.
"""

import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from tests.clients.served import KEY, MODEL, WIDTH
from tests.fault_upstream import vector_of

TEXTS = [f"text {at}" for at in range(25)]


@pytest.fixture
def client():
    # LangChain never closes its own HTTP clients.
    with openai.DefaultHttpxClient() as client:
        yield client


@pytest.fixture
def made(server, client):
    def made(**options):
        # With the length check LangChain would fetch tiktoken's tables from the network.
        fixed = {"check_embedding_ctx_length": False, "max_retries": 0, "http_client": client}
        return OpenAIEmbeddings(
            model=MODEL, base_url=f"{server.url}/v1", api_key=KEY, **fixed, **options
        )

    return made


def test_documents_and_queries_get_the_vectors_of_their_texts(made, upstream):
    embeddings = made(chunk_size=10)

    assert np.allclose(
        [vector_of(text, WIDTH) for text in TEXTS], embeddings.embed_documents(TEXTS), atol=1e-6
    )
    assert np.allclose(vector_of("query", WIDTH), embeddings.embed_query("query"), atol=1e-6)
    assert [len(ask.inputs) for ask in upstream.requests] == [10, 10, 5, 1]


@pytest.mark.usefixtures("upstream")
def test_langchain_can_request_fewer_dimensions(made):
    assert np.allclose(vector_of("narrow", 3), made(dimensions=3).embed_query("narrow"), atol=1e-6)


@pytest.mark.anyio
@pytest.mark.usefixtures("upstream")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_async_methods_return_the_same_vectors(made):
    texts = [f"async {text}" for text in TEXTS]
    async with openai.DefaultAsyncHttpxClient() as client:
        vectors = await made(http_async_client=client).aembed_documents(texts)

    assert np.allclose([vector_of(text, WIDTH) for text in texts], vectors, atol=1e-6)
