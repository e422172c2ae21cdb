"""The options of a request, from the body to the batch of the backend that has them."""

from typing import ClassVar

import pytest

from embedroute import Config, ConfigError, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Accepts, Options
from embedroute.backends.cohere import CohereOptions
from embedroute.testing import ScriptedBackend
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio


class Cohere(ScriptedBackend, frozen=True, kw_only=True):
    """An API with Cohere's parameters."""

    accepts: ClassVar[Accepts] = Accepts(options=("cohere",), truncate=("none", "end"))
    request_options: ClassVar[tuple[type[Options], ...]] = (CohereOptions,)


class Open(ScriptedBackend, frozen=True, kw_only=True):
    """An API that gets all fields."""

    forwards_fields: ClassVar[bool] = True


def make_gateway(backend, **fields):
    return Gateway(
        Config(
            gateway={"auth": "open"},
            providers={"p": Provider(backend=backend, **fields)},
            models={"m": Model(dimensions=4, endpoints=[{"provider": "p"}])},
        )
    )


async def test_a_backend_gets_its_options_and_each_value_has_its_own_cache_entry():
    backend = Cohere(width=4)
    gateway = make_gateway(backend)
    for options in ({"max_tokens": 5}, {"max_tokens": 5, "priority": 1}, {"max_tokens": 6}, {}):
        await gateway.embed("a", model="m", embedding_options={"cohere": options})
    await gateway.embed("a", model="m", embedding_options={"cohere": {"truncate": "END"}})
    await gateway.embed("a", model="m", truncate="end")

    assert [(batch.options, batch.truncate) for batch in backend.batches] == [
        ({"max_tokens": 5}, None),
        ({"max_tokens": 6}, None),
        ({}, None),
        ({}, "end"),
    ]


async def test_a_provider_gets_the_fields_that_it_allows():
    backend = Open(width=4)
    app = embeddings_app(make_gateway(backend, allow_fields=["normalize", "prompt_template"]))
    texts = ['"normalize":false', '"normalize":null', '"normalise":false']
    answers = [
        await call(
            app,
            "POST",
            "/v1/embeddings",
            [("content-type", "application/json")],
            [b'{"model":"m","input":"a",%s}' % text.encode()],
        )
        for text in texts
    ]

    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [batch.options for batch in backend.batches] == [{"normalize": False}, {}]
    assert 'did you mean \\"normalize\\"?' in answers[2].body.decode()


@pytest.mark.parametrize(
    ("backend", "names", "words"),
    [
        (Cohere(), ["max_token"], 'does not send "max_token"; did you mean "max_tokens"?'),
        (ScriptedBackend(), ["x"], 'does not send "x"; it sends no such field'),
        (Open(), ["user"], '"user" is a field of every request; leave it out'),
    ],
)
async def test_a_field_that_cannot_be_allowed_is_a_mistake(backend, names, words):
    with pytest.raises(ConfigError, match=r"\[providers.p\] allow_fields: ") as caught:
        make_gateway(backend, allow_fields=names)

    assert words in str(caught.value)


async def test_a_namespace_that_is_taken_is_a_mistake():
    class Taken(ScriptedBackend, frozen=True, kw_only=True):
        class Own(Options, frozen=True, kw_only=True):
            namespace: ClassVar[str] = "jina"

        request_options: ClassVar[tuple[type[Options], ...]] = (Own,)

    with pytest.raises(ConfigError, match=r'the namespace "jina" .* belongs to JinaOptions'):
        make_gateway(Taken())
