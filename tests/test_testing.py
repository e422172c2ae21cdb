"""The double that stands in for an upstream, and the check that finds each mistake that the author of a backend can make."""

import time
from itertools import count
from typing import ClassVar

import anyio
import anyio.lowlevel
import msgspec
import numpy as np
import pytest

from embedroute.backend import (
    Accepts,
    Backend,
    Batch,
    HTTPBackend,
    LocalBackend,
    Secret,
    UpstreamRequest,
    Vectors,
)
from embedroute.backends.gemini import Gemini
from embedroute.backends.hashed import Hashed
from embedroute.backends.mistral import Mistral
from embedroute.backends.openai import OpenAI
from embedroute.backends.wordllama import WordLlama
from embedroute.errors import BadAnswer, RateLimited, Unavailable
from embedroute.testing import ScriptedBackend, check_backend, expected_vector

URL = "https://api.acme.example/embed"
TICKS = count()


def batch(*texts, **more):
    return Batch(model="m", texts=texts, **more)


ONE = Vectors(np.asarray([[1, 2]], dtype="<f4"), prompt_tokens=3)


async def slowly(_batch):
    await anyio.lowlevel.checkpoint()
    return ONE


def fail(_batch):
    raise Unavailable("reset")


@pytest.mark.anyio
async def test_the_default_answer_is_the_vector_expected_of_each_input():
    backend = ScriptedBackend(width=8)

    found = await backend.embed(batch("a", "b", input_type="query"))

    wanted = [expected_vector(text, 8, input_type="query") for text in ("a", "b")]
    assert np.array_equal(found.array, np.stack(wanted))


@pytest.mark.anyio
async def test_the_default_answer_is_what_hashed_gives():
    scripted, hashed = await ScriptedBackend().embed(batch("a")), await Hashed().embed(batch("a"))

    assert np.array_equal(scripted.array, hashed.array)
    assert scripted.prompt_tokens == hashed.prompt_tokens


@pytest.mark.anyio
async def test_a_script_is_played_one_step_a_call_and_then_the_rest():
    backend = ScriptedBackend(script=[Unavailable("reset"), ONE, lambda _: ONE, slowly, fail, 0.0], then=RateLimited("slow"))
    played = []
    for _ in range(8):
        try:
            played.append(type(await backend.embed(batch("a"))))
        except (Unavailable, RateLimited) as error:
            played.append(type(error))

    assert played == [Unavailable, Vectors, Vectors, Vectors, Unavailable, Vectors, RateLimited, RateLimited]


@pytest.mark.anyio
async def test_a_number_is_seconds_to_wait():
    started = time.monotonic()

    await ScriptedBackend(script=[0.05]).embed(batch("a"))

    assert time.monotonic() - started >= 0.05


@pytest.mark.anyio
async def test_writes_down_what_it_was_asked():
    backend, other = ScriptedBackend(), ScriptedBackend()
    asked = [batch("a"), batch("b", dimensions=4)]
    for each in asked:
        await backend.embed(each)

    assert asked == backend.batches
    assert other.batches == []


class Acme(HTTPBackend, frozen=True):
    """A good backend; each mistake below is one change to it."""

    accepts: ClassVar[Accepts] = Accepts(
        tokens=True,
        modalities=("text", "image"),
        dimensions=True,
        user=True,
        input_types=("query", "document"),
        dtypes=("float", "int8"),
    )

    api_key: Secret = Secret("k")

    def build(self, batch):
        body = {
            "in": batch.inputs,
            "size": batch.dimensions,
            "user": batch.user,
            "type": batch.input_type,
            "dtype": batch.dtype,
        }
        return UpstreamRequest.json(URL, body, bearer=self.api_key)

    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["vectors"], dtype=batch.dtype)


def by_input(batch):
    return {"vectors": [[len(str(item)), 1] for item in batch.inputs]}


def by_place(batch):
    return msgspec.json.encode({"vectors": [[place + 1, 1] for place, _ in enumerate(batch.inputs)]})


def openai_reply(batch):
    rows = [{"embedding": [len(str(item)), 1], "index": place} for place, item in enumerate(batch.inputs)]
    return {"data": rows[::-1], "usage": {"prompt_tokens": 3}}


def gemini_reply(batch):
    return {"embeddings": [{"values": [len(str(item)), 1]} for item in batch.inputs]}


@pytest.mark.parametrize(
    ("backend", "reply"),
    [
        (Acme(), by_input),
        (Acme(), by_place),
        (OpenAI(api_key=Secret("k")), openai_reply),
        (OpenAI(), openai_reply),
        (Mistral(api_key=Secret("k")), openai_reply),
        (Gemini(api_key=Secret("k")), gemini_reply),
        (Hashed(), None),
        (ScriptedBackend(), None),
        (WordLlama(), None),
    ],
)
def test_a_backend_that_keeps_the_contract_passes(backend, reply):
    check_backend(backend, reply=reply)


class AcceptsField(Acme, frozen=True):
    accepts: Accepts = Accepts()


class PlainKey(Acme, frozen=True):
    other_key: str = "k"


class KeyInURL(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), url=f"{URL}?key={self.api_key.reveal()}")


class KeyInHeader(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"x-key": self.api_key.reveal()})


class KeyInRepr(Acme, frozen=True):
    def __repr__(self):
        return f"KeyInRepr({self.api_key.reveal()})"


class UpperCase(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"X-Key": self.api_key})


class Unsteady(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"x-id": str(next(TICKS))})


class NoURL(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), url="/embed")


class NoRequest(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts()

    def build(self, batch):
        return {"texts": batch.texts}


class Deaf(Acme, frozen=True):
    def build(self, batch):
        return UpstreamRequest.json(URL, {"in": batch.inputs})


class DeafToInputs(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts()

    def build(self, _batch):
        return UpstreamRequest.json(URL, {})


class Turned(Acme, frozen=True):
    def parse(self, batch, reply):
        return Vectors.from_lists(sorted(reply.json()["vectors"]), dtype=batch.dtype)


class Fused(Acme, frozen=True):
    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["vectors"][:1], dtype=batch.dtype)


class NoVectors(Acme, frozen=True):
    def parse(self, _batch, reply):
        return reply.json()["vectors"]


class Hopeful(Acme, frozen=True):
    def parse(self, batch, reply):
        try:
            return super().parse(batch, reply)
        except (BadAnswer, KeyError, TypeError):
            return Vectors.from_lists([[1, 1] for _ in batch.inputs], dtype=batch.dtype)


class Rash(Acme, frozen=True):
    def parse(self, batch, reply):
        if b"vectors" not in reply.content:
            raise LookupError(batch)
        return super().parse(batch, reply)


class Sums(LocalBackend, frozen=True):
    """A local model that gives each text one number too many, or each the same."""

    accepts: ClassVar[Accepts] = Accepts(dimensions=True)

    def load(self):
        return 3

    def run(self, model, batch):
        return Vectors.from_lists([[1, place + 1, model] for place, _ in enumerate(batch.inputs)])


class Images(Backend, frozen=True):
    """Takes images alone."""

    accepts: ClassVar[Accepts] = Accepts(texts=False, modalities=("image",))

    async def embed(self, batch):
        return Vectors.from_lists([[1, place + 1] for place, _ in enumerate(batch.parts)])


@pytest.mark.parametrize(
    ("backend", "reply", "said"),
    [
        (Acme(), None, "Pass reply="),
        (AcceptsField(), by_input, "'accepts' is a field"),
        (PlainKey(), by_input, "'other_key' is a str"),
        (KeyInURL(), by_input, "secret into the URL"),
        (KeyInHeader(), by_input, "as a Secret in headers"),
        (KeyInRepr(), by_input, "shows in repr"),
        (UpperCase(), by_input, "lower case"),
        (Unsteady(), by_input, "two requests for one batch"),
        (NoURL(), by_input, "begin it with https"),
        (NoRequest(), by_input, "return UpstreamRequest"),
        (Deaf(), by_input, "lists dimensions"),
        (Deaf(), by_input, "lists input_type"),
        (Deaf(), by_input, "lists dtype"),
        (Deaf(), by_input, "accepts says user"),
        (DeafToInputs(), by_input, "same request for other inputs"),
        (Turned(), by_input, "give row i for input i"),
        (Fused(), by_input, "1 rows for 3 inputs"),
        (NoVectors(), by_input, "return Vectors"),
        (Hopeful(), by_input, "parse made vectors of"),
        (Rash(), by_input, "parse raised LookupError"),
        (Sums(), None, "3 numbers where 64"),
        (Images(), None, "give row i for input i"),
    ],
)
def test_a_mistake_is_named(backend, reply, said):
    with pytest.raises(AssertionError, match=said):
        check_backend(backend, reply=reply)


@pytest.mark.parametrize(("backend", "mistakes"), [(Deaf(), 4), (Unsteady(), 1), (UpperCase(), 1)])
def test_every_mistake_is_named_once(backend, mistakes):
    with pytest.raises(AssertionError) as caught:
        check_backend(backend, reply=by_input)

    assert mistakes == len(str(caught.value).splitlines())


def test_the_size_that_is_tried_can_be_chosen():
    check_backend(ScriptedBackend(), dimensions=3)

    with pytest.raises(AssertionError, match="where 4 were due"):
        check_backend(Sums(), dimensions=4)
