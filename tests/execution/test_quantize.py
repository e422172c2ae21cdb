"""Vectors of integers that the gateway computes from floats, for models that declare it."""

import base64
import json

import numpy as np
import pytest

from embedroute import Config, ConfigError, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Vectors
from embedroute.errors import InvalidRequest
from embedroute.testing import ScriptedBackend
from embedroute.vectors import from_lists, quantize_rows
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

ROW = [0.6, -0.8, 0.0, 0.1, -0.1, 0.05, 0.2, -0.2, 0.3]
BITS = 0b10010110, 0b10000000


def answer(batch):
    assert batch.dtype == "float"
    return Vectors(from_lists([ROW for _ in batch.inputs]), len(batch.inputs))


def make_gateway(backend=None, **facts):
    model = {
        "dimensions": len(ROW),
        "quantize": ["int8", "uint8", "binary", "ubinary"],
        "quantize_range": [-0.5, 0.5],
        "endpoints": [{"provider": "p"}],
    }
    return Gateway(
        Config(
            gateway={"auth": "open", "protocols": ["openai", "cohere", "jina", "voyage"]},
            providers={"p": Provider(backend=backend or ScriptedBackend(then=answer))},
            models={"m": Model(**{**model, **facts})},
        )
    )


STEPS = [255, 0, 128, 153, 102, 140, 179, 76, 204]


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("uint8", STEPS),
        ("int8", [step - 128 for step in STEPS]),
        ("ubinary", [*BITS]),
        ("binary", [bits - 128 for bits in BITS]),
    ],
)
async def test_makes_integers_of_floats(dtype, numbers):
    embeddings = await make_gateway().embed("a", model="m", output_dtype=dtype)

    assert embeddings.array.tolist() == [numbers]
    assert embeddings.array.dtype == np.dtype("uint8" if dtype.startswith("u") else "int8")


async def test_floats_are_cached_for_all_dtypes():
    backend = ScriptedBackend(then=answer)
    gateway = make_gateway(backend)
    for dtype in ("int8", "float", "ubinary"):
        await gateway.embed("a", model="m", output_dtype=dtype)

    assert len(backend.batches) == 1


@pytest.mark.parametrize(
    ("target", "fields", "found"),
    [
        ("/v1/embeddings", {"output_dtype": "ubinary"}, [*BITS]),
        ("/v1/embeddings", {"output_dtype": "ubinary", "encoding_format": "base64"}, base64.b64encode(bytes(BITS)).decode()),
        ("/v1/embeddings", {"output_dtype": "int8", "encoding_format": "base64"}, base64.b64encode(bytes((step - 128) % 256 for step in STEPS)).decode()),
        ("/v1/embeddings", {"embedding_options": {"voyage": {"output_dtype": "ubinary"}}}, None),
        ("/v1/embeddings", {"embedding_type": "ubinary"}, [*BITS]),
    ],
)  # fmt: skip
async def test_the_answer_has_the_integers_or_their_bytes(target, fields, found):
    body = json.dumps({"model": "m", "input": "a", **fields}).encode()
    app = embeddings_app(make_gateway())
    response = await call(app, "POST", target, [("content-type", "application/json")], [body])

    if found is None:  # no endpoint has that API
        assert response.status == 400
    else:
        assert response.json["data"][0]["embedding"] == found


async def test_cohere_gets_the_type_that_it_asked_for():
    body = {"model": "m", "texts": ["a"], "input_type": "search_query"}
    app = embeddings_app(make_gateway(input_types=[]))
    content = json.dumps({**body, "embedding_types": ["int8"]}).encode()
    response = await call(
        app, "POST", "/v2/embed", [("content-type", "application/json")], [content]
    )

    assert response.json["embeddings"] == {"int8": [[step - 128 for step in STEPS]]}


async def test_a_model_that_does_not_declare_it_has_no_integers():
    with pytest.raises(InvalidRequest) as caught:
        await make_gateway(quantize=["binary"]).embed("a", model="m", output_dtype="int8")

    assert caught.value.param == "output_dtype"


async def test_large_answers_are_quantised_too():
    gateway = make_gateway(ScriptedBackend(width=2048), dimensions=2048)
    embeddings = await gateway.embed(
        [f"t{at}" for at in range(256)], model="m", output_dtype="ubinary"
    )

    assert embeddings.array.shape == (256, 256)


async def test_pools_floats_before_it_quantises():
    gateway = make_gateway(max_input_tokens=10, over_length="pool")
    embeddings = await gateway.embed("word " * 30, model="m", output_dtype="ubinary")

    assert (embeddings.array.tolist(), embeddings.truncated) == ([[*BITS]], [0])


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"quantize_range": None}, "quantize needs quantize_range for int8 and uint8"),
        ({"quantize_range": [0.5, 0.5]}, "the first less than the second"),
        ({"quantize": ["int4"]}, "quantize"),
    ],
)
def test_a_range_that_cannot_be_used_is_a_mistake(facts, words):
    with pytest.raises(ConfigError, match=words):
        make_gateway(**facts)


def test_bits_need_no_range():
    assert make_gateway(quantize=["binary"], quantize_range=None)
    [row] = quantize_rows([np.array([1, -1], "f4")], "ubinary", None)
    assert row.tolist() == [0b10000000]
