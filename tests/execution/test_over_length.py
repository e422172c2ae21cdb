"""Inputs that are longer than a model's context, through the gateway: parts, refusals, answers."""

import json
import re
from typing import ClassVar

import numpy as np
import pytest

from embedroute import Config, ConfigError, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Accepts, Vectors
from embedroute.errors import (
    ContextTooLong,
    EmbedrouteError,
    InvalidRequest,
    UpstreamRejectedInput,
)
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.vectors import unit
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

WIDTH = 4


class Refusing(ScriptedBackend, frozen=True, kw_only=True):
    """An API with a context of ``most`` characters or token ids that refuses longer inputs."""

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True, truncate=("none",), dtypes=("float", "int8"), input_types=("query",)
    )
    most: int = 30
    is_named: bool = True

    async def embed(self, batch):
        self.batches.append(batch)
        for position, item in enumerate(batch.inputs):
            if len(item) > self.most:
                error = ContextTooLong("The context length is exceeded.", upstream_status=400)
                if self.is_named:
                    error.input_index = position
                    error.param = f"input[{position}]"
                raise error
        return Vectors(np.stack([expected_vector(item, self.width) for item in batch.inputs]))


class Cutting(Refusing, frozen=True, kw_only=True):
    """An API that may cut texts by itself, and cannot be told not to."""

    accepts: ClassVar[Accepts] = Accepts()


def make_gateway(backend, over_length="pool", **facts):
    return Gateway(
        Config(
            gateway={"auth": "open", "debug": True},
            providers={"p": Provider(backend=backend)},
            models={
                "m": Model(
                    **{
                        "dimensions": WIDTH,
                        "max_input_tokens": 10,
                        "over_length": over_length,
                        "endpoints": [{"provider": "p"}],
                        **facts,
                    }
                )
            },
        )
    )


def mean(*parts):
    rows = np.stack([expected_vector(part, WIDTH) for part in parts])
    weights = np.array([-(-len(part) // 3) for part in parts])
    return unit((weights @ rows)[np.newaxis])[0]


FIRST = "The first sentence is long. "
SECOND = "The second is here. "
LONG = FIRST + SECOND
TEXT = "abcdefghijklmnopqrstuvwxyz123456"


@pytest.mark.parametrize("backend", [Refusing(width=WIDTH), Cutting(width=WIDTH)])
async def test_pools_the_vectors_of_the_parts(backend):
    embeddings = await make_gateway(backend).embed(["short", LONG, "end"], model="m")

    expected = [expected_vector("short", WIDTH), mean(FIRST, SECOND), expected_vector("end", WIDTH)]
    np.testing.assert_allclose(embeddings.vectors, np.stack(expected), atol=1e-6)
    assert embeddings.truncated == [1]


@pytest.mark.parametrize("backend", [Refusing(width=WIDTH), Cutting(width=WIDTH)])
async def test_embeds_the_first_part(backend):
    embeddings = await make_gateway(backend, "truncate").embed(["short", LONG], model="m")

    np.testing.assert_array_equal(embeddings.vectors[1], expected_vector(FIRST, WIDTH))
    assert embeddings.truncated == [1]
    assert [*backend.batches[-1].texts] == ["short", FIRST]


async def test_cuts_token_ids_exactly():
    backend = Refusing(width=WIDTH, most=10)
    gateway = make_gateway(backend)
    ids = tuple(range(1, 15))
    embeddings = await gateway.embed([[*ids], [5]], model="m")

    parts = [ids[:10], ids[10:]]
    rows = np.stack([expected_vector(part, WIDTH) for part in parts])
    np.testing.assert_allclose(
        embeddings.vectors[0], unit((np.array([10, 4]) @ rows)[np.newaxis])[0], atol=1e-6
    )
    assert (embeddings.truncated, [len(each) for each in backend.batches]) == ([0], [3])


@pytest.mark.parametrize("is_named", [True, False])
async def test_a_refusal_makes_the_parts_shorter(is_named):
    """32 characters are likely to fit, by the estimate. The endpoint has room for 12."""
    backend = Refusing(width=WIDTH, most=12, is_named=is_named)
    embeddings = await make_gateway(backend).embed(["ok", TEXT], model="m")

    assert embeddings.truncated == [1]
    assert max(map(len, backend.batches[-1].texts)) <= 12
    assert "".join(backend.batches[-1].texts).endswith(TEXT)


async def test_a_text_that_fits_is_sent_whole_if_the_endpoint_refuses_others():
    text = TEXT  # 8 tokens as most texts have them, 11 at most
    whole, cut = Refusing(width=WIDTH, most=40), Cutting(width=WIDTH, most=40)
    first = await make_gateway(whole).embed(text, model="m")
    second = await make_gateway(cut).embed(text, model="m")

    assert (first.truncated, second.truncated) == ([], [0])
    assert [batch.truncate for batch in whole.batches] == ["none"]
    assert [batch.truncate for batch in cut.batches] == [None]


async def test_parts_are_cached_as_inputs_of_their_own():
    backend = Refusing(width=WIDTH)
    gateway = make_gateway(backend)
    first = await gateway.embed([LONG, FIRST], model="m")
    again = await gateway.embed([LONG], model="m")

    assert len(backend.batches) == 1
    np.testing.assert_array_equal(first.vectors[0], again.vectors[0])
    np.testing.assert_array_equal(first.vectors[1], expected_vector(FIRST, WIDTH))
    assert (first.truncated, again.truncated) == ([0], [0])


async def ask(gateway, body):
    return await call(
        embeddings_app(gateway),
        "POST",
        "/v1/embeddings",
        [("content-type", "application/json")],
        [json.dumps({"model": "m", **body}).encode()],
    )


async def test_the_answer_says_which_inputs_were_cut():
    gateway = make_gateway(Refusing(width=WIDTH))
    texts = ["a", LONG, "b", LONG + LONG]
    cut = await ask(gateway, {"input": texts, "debug": {"trace": True}})
    plain = await ask(gateway, {"input": ["a", "b"]})

    assert (b"x-embedroute-truncated", b"1,3") in cut.headers
    assert all(name != b"x-embedroute-truncated" for name, _ in plain.headers)
    assert [row["index"] for row in cut.json["data"]] == [0, 1, 2, 3]
    [event] = [event for event in cut.json["trace"] if event["stage"] == "over_length"]
    assert event == {"stage": "over_length", "action": "pooled", "inputs": [1, 3], "parts": 8}


async def test_a_text_that_is_still_refused_is_an_error_with_its_position():
    gateway = make_gateway(Refusing(width=WIDTH, most=0))
    with pytest.raises(EmbedrouteError) as caught:
        await gateway.embed(["a" * 99, "b" * 99], model="m")

    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input[0]")


class Failing(Refusing, frozen=True, kw_only=True):
    """An API that refuses one part for another reason."""

    async def embed(self, batch):
        for position, text in enumerate(batch.texts):
            if text == SECOND:
                error = UpstreamRejectedInput(f"input[{position}] is bad.", upstream_status=400)
                error.param = f"input[{position}]"
                error.input_index = position
                raise error
        return await super().embed(batch)


async def test_another_error_of_a_part_names_the_input():
    with pytest.raises(EmbedrouteError) as caught:
        await make_gateway(Failing(width=WIDTH)).embed(["a", "b", LONG], model="m")

    assert caught.value.param == "input[2]"
    assert re.findall(r"input\[\d\]", caught.value.message) in ([], ["input[2]"])


async def test_refuses_what_cannot_be_cut():
    gateway = make_gateway(Refusing(width=WIDTH))
    with pytest.raises(InvalidRequest, match="only vectors of floats can be averaged"):
        await gateway.embed(LONG, model="m", output_dtype="int8")
    with pytest.raises(InvalidRequest, match="cut to 3000 parts"):
        await gateway.embed("a" * 90_000, model="m")


async def test_the_truncate_of_a_request_takes_precedence():
    backend = Refusing(width=WIDTH)
    with pytest.raises(ContextTooLong):
        await make_gateway(backend).embed(LONG, model="m", truncate="none")


def test_a_rule_needs_the_length_of_the_context():
    with pytest.raises(ConfigError, match=r'over_length = "pool" needs max_input_tokens'):
        make_gateway(Refusing(), max_input_tokens=None)
    make_gateway(Refusing(), "refuse", max_input_tokens=None)
