"""What an editor knows of the Python API; pyright checks this file, nothing runs it."""

from collections.abc import Sequence
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from embedroute import Caller, Embeddings, Gateway


async def embed_texts(gateway: Gateway, texts: Sequence[str], array: NDArray[np.str_]) -> None:
    embeddings = await gateway.embed("one text", model="m")
    assert_type(embeddings, Embeddings)
    assert_type(embeddings.vectors, NDArray[np.float32])
    assert_type(embeddings.model, str)
    assert_type(embeddings.prompt_tokens, int)
    assert_type(embeddings.providers, Sequence[str])
    await gateway.embed(texts, model="m", dimensions=64, encoding_format="float")
    await gateway.embed(("a", "b"), model="m", caller=Caller(name="me"))
    await gateway.embed([1, 2, 3], model="m", provider={"order": ["openai"]})
    await gateway.embed([[1, 2], [3]], model="m")
    await gateway.embed([{"content": [{"type": "text", "text": "a"}]}], model="m")
    await gateway.embed(array, model="m")
    await gateway.embed(np.array([[1, 2]]), model="m")


def embed_in_a_script(gateway: Gateway) -> None:
    assert_type(gateway.embed_sync(["a"], model="m").vectors, NDArray[np.float32])


async def mistakes(gateway: Gateway) -> None:
    await gateway.embed(7, model="m")  # pyright: ignore[reportArgumentType]
    await gateway.embed("a", model="m", dimension=64)  # pyright: ignore[reportCallIssue]
    await gateway.embed("a", model="m", encoding_format="hex")  # pyright: ignore[reportArgumentType]
