"""Tests of ScriptedBackend, and of check_backend with one backend per mistake."""

# Many of the faulty backends ignore their arguments.
# ruff: noqa: ARG002

import time
from collections.abc import Callable
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
from embedroute.errors import (
    InvalidUpstreamResponse,
    RateLimited,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
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
    raise UpstreamUnavailable("reset")


@pytest.mark.anyio
async def test_the_default_result_is_the_expected_vector_of_each_input():
    backend = ScriptedBackend(width=8)

    found = await backend.embed(batch("a", "b", input_type="query"))

    wanted = [expected_vector(text, 8, input_type="query") for text in ("a", "b")]
    assert np.array_equal(found.array, np.stack(wanted))


@pytest.mark.anyio
async def test_the_default_result_equals_that_of_hashed():
    scripted, hashed = await ScriptedBackend().embed(batch("a")), await Hashed().embed(batch("a"))

    assert np.array_equal(scripted.array, hashed.array)
    assert scripted.prompt_tokens == hashed.prompt_tokens


@pytest.mark.anyio
async def test_uses_one_step_of_the_script_per_call_and_then_the_default():
    backend = ScriptedBackend(
        script=[UpstreamUnavailable("reset"), ONE, lambda _: ONE, slowly, fail, 0.0],
        then=RateLimited("slow"),
    )
    played = []
    for _ in range(8):
        try:
            played.append(type(await backend.embed(batch("a"))))
        except (UpstreamUnavailable, RateLimited) as error:
            played.append(type(error))

    assert played == [
        UpstreamUnavailable,
        Vectors,
        Vectors,
        Vectors,
        UpstreamUnavailable,
        Vectors,
        RateLimited,
        RateLimited,
    ]


@pytest.mark.anyio
async def test_a_number_in_the_script_is_a_wait_in_seconds():
    started = time.monotonic()

    await ScriptedBackend(script=[0.05]).embed(batch("a"))

    assert time.monotonic() - started >= 0.05


@pytest.mark.anyio
async def test_records_its_batches():
    backend, other = ScriptedBackend(), ScriptedBackend()
    request = [batch("a"), batch("b", dimensions=4)]
    for each in request:
        await backend.embed(each)

    assert request == backend.batches
    assert other.batches == []


class Acme(HTTPBackend, frozen=True):
    """A valid backend. Each faulty backend below changes one thing."""

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
            "model": batch.model,
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
    return msgspec.json.encode(
        {"vectors": [[place + 1, 1] for place, _ in enumerate(batch.inputs)]}
    )


def openai_reply(batch):
    rows = [
        {"embedding": [len(str(item)), 1], "index": place}
        for place, item in enumerate(batch.inputs)
    ]
    return {"data": rows[::-1], "usage": {"prompt_tokens": 3}}


def gemini_reply(batch):
    return {"embeddings": [{"values": [len(str(item)), 1]} for item in batch.inputs]}


class DesignExample(HTTPBackend):
    """The example of the design document."""

    api_key: Secret
    base_url: str = "https://api.acme.example"
    accepts = Accepts(max_inputs=96, dimensions=True)

    def build(self, batch):
        body = {"model": batch.model, "texts": batch.texts, "size": batch.dimensions}
        return UpstreamRequest.json(f"{self.base_url}/embed", body, bearer=self.api_key)

    def parse(self, _batch, reply):
        answer = reply.json()
        return Vectors.from_lists(answer["vectors"], prompt_tokens=answer["tokens"])


def design_example_reply(batch):
    return {**by_input(batch), "tokens": 3}


class OneByOne(Acme, frozen=True):
    """Accepts one input per call."""

    accepts: ClassVar[Accepts] = Accepts(max_inputs=1)


class TokensOnly(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts(texts=False, tokens=True)


class Selective(Acme, frozen=True):
    """Rejects unsupported inputs and unknown models, which is allowed."""

    def build(self, batch):
        if batch.parts and batch.input_type is None:
            raise UpstreamRejectedInput("images need an input type")
        return msgspec.structs.replace(
            super().build(batch), headers={"x-model": {"model": "known"}[batch.model]}
        )


class Float64Vectors(Backend, frozen=True):
    """Returns float64 vectors, numpy's default."""

    async def embed(self, batch):
        return Vectors(np.array([[len(text), 1.0] for text in batch.texts]), np.int64(3))


class Awaitable(Float64Vectors, frozen=True):
    """Its ``embed`` is not a coroutine function, but returns an awaitable."""

    def embed(self, batch):
        return super().embed(batch)


class OneImage(Backend, frozen=True):
    accepts: ClassVar[Accepts] = Accepts(texts=False, modalities=("image",), max_inputs=1)

    async def embed(self, batch):
        (((image,),)) = batch.parts
        return Vectors.from_lists([[1, len(image.image_url.url)]])


@pytest.mark.parametrize(
    ("backend", "reply"),
    [
        (Acme(), by_input),
        (Acme(), by_place),
        (Acme(), None),
        (DesignExample(api_key=Secret("k")), None),
        (DesignExample(api_key=Secret("k")), design_example_reply),
        (OneByOne(), by_input),
        (TokensOnly(), by_input),
        (Selective(), by_input),
        (OpenAI(api_key=Secret("k"), extra_headers={"x-key": Secret("k")}), None),
        (Mistral(api_key=Secret("k")), None),
        (Gemini(api_key=Secret("k")), None),
        (Float64Vectors(), None),
        (Awaitable(), None),
        (OneImage(), None),
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
        return msgspec.structs.replace(
            super().build(batch), url=f"{URL}?key={self.api_key.reveal()}"
        )


class KeyInHeader(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(
            super().build(batch), headers={"x-key": self.api_key.reveal()}
        )


class KeyInRepr(Acme, frozen=True):
    def __repr__(self):
        return f"KeyInRepr({self.api_key.reveal()})"


class UpperCase(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"X-Key": self.api_key})


class NonDeterministic(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"x-id": str(next(TICKS))})


class NoURL(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), url="/embed")


class NoRequest(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts()

    def build(self, batch):
        return {"texts": batch.texts}


class IgnoresDimensions(Acme, frozen=True):
    def build(self, batch):
        return UpstreamRequest.json(URL, {"in": batch.inputs})


class IgnoresInputs(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts()

    def build(self, _batch):
        return UpstreamRequest.json(URL, {})


class SendsSelected(Acme, frozen=True):
    """Sends the inputs that ``sent`` selects."""

    sent: Callable = list
    accepts: ClassVar[Accepts] = Accepts(
        tokens=True, modalities=("text", "image"), input_types=("query",)
    )

    def build(self, batch):
        body = {"model": batch.model, "in": self.sent(batch), "type": batch.input_type}
        return UpstreamRequest.json(URL, body)


class ReversedRows(Acme, frozen=True):
    def parse(self, batch, reply):
        return Vectors.from_lists(sorted(reply.json()["vectors"]), dtype=batch.dtype)


class BackwardRows(Acme, frozen=True):
    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["vectors"][::-1], dtype=batch.dtype)


class MergedRows(Acme, frozen=True):
    def parse(self, batch, reply):
        return Vectors.from_lists(reply.json()["vectors"][:1], dtype=batch.dtype)


class NoVectors(Acme, frozen=True):
    def parse(self, _batch, reply):
        return reply.json()["vectors"]


class AcceptsAnyBody(Acme, frozen=True):
    def parse(self, batch, reply):
        try:
            return super().parse(batch, reply)
        except (InvalidUpstreamResponse, KeyError, TypeError):
            return Vectors.from_lists([[1, 1] for _ in batch.inputs], dtype=batch.dtype)


class RaisesLookupError(Acme, frozen=True):
    def parse(self, batch, reply):
        if b"vectors" not in reply.content:
            raise LookupError(batch)
        return super().parse(batch, reply)


class IgnoresModel(Acme, frozen=True):
    def build(self, batch):
        return super().build(msgspec.structs.replace(batch, model="mine"))


class IgnoresOrder(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts()

    def build(self, batch):
        return UpstreamRequest.json(URL, {"model": batch.model, "in": sorted(batch.texts)})


class Buggy(Acme, frozen=True):
    def build(self, batch):
        raise KeyError(batch.texts[7])


class Refusing(Acme, frozen=True):
    def build(self, batch):
        raise UpstreamRejectedInput("never")


class OddURL(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), url="http://[::1")


class TextBody(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), content="{}")


class NumberHeader(Acme, frozen=True):
    def build(self, batch):
        return msgspec.structs.replace(super().build(batch), headers={"x-version": 2})


class TableKey(Acme, frozen=True):
    extra: dict[str, Secret] = msgspec.field(default_factory=lambda: {"x-key": Secret("k")})

    def build(self, batch):
        return msgspec.structs.replace(
            super().build(batch), headers={"x-key": self.extra["x-key"].reveal()}
        )


class AsyncBuild(Acme, frozen=True):
    async def build(self, batch):
        return super().build(batch)


class AsyncCredentials(Acme, frozen=True):
    async def fetch_credentials(self, send):
        return None


class NoBuild(HTTPBackend, frozen=True):
    def parse(self, batch, reply):
        raise InvalidUpstreamResponse("no")


class NoArgument(Acme, frozen=True):
    def parse(self):
        return ONE


class Broken(Acme, frozen=True):
    def parse(self, batch, reply):
        raise RuntimeError("x")


class InvalidMapError(Acme, frozen=True):
    def map_error(self, reply):
        return reply.status


class RaisingMapError(Acme, frozen=True):
    def map_error(self, reply):
        return RateLimited(reply.json()["error"]["message"])


class OddAccepts(Acme, frozen=True):
    accepts: ClassVar = {"max_inputs": 96}


class OddDtype(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts(dtypes=("float", "fp16"))


class NoInput(Acme, frozen=True):
    accepts: ClassVar[Accepts] = Accepts(texts=False)


class NoEmbed(Backend, frozen=True):
    pass


class SyncEmbed(Backend, frozen=True):
    def embed(self, batch):
        return Vectors(np.ones((len(batch), 4), "<f4"))


class ReturnsResult(Backend, frozen=True):
    """Returns or raises ``result``."""

    result: object = None

    async def embed(self, batch):
        if isinstance(self.result, BaseException):
            raise self.result
        rows = np.array([[len(text), 1] for text in batch.texts], "<f4")
        return self.result(rows) if callable(self.result) else self.result


class Unloadable(LocalBackend, frozen=True):
    def load(self):
        raise RuntimeError("no weights")

    def run(self, model, batch):
        raise AssertionError


class Unrunnable(Unloadable, frozen=True):
    def load(self):
        return 1

    def run(self, model, batch):
        raise SystemExit(model)


class AsyncRun(Unrunnable, frozen=True):
    async def run(self, model, batch):
        return ONE


class SumOfCharacters(LocalBackend, frozen=True):
    """A local model whose vectors have the wrong width or are all equal."""

    accepts: ClassVar[Accepts] = Accepts(dimensions=True)

    def load(self):
        return 3

    def run(self, model, batch):
        return Vectors.from_lists([[1, place + 1, model] for place, _ in enumerate(batch.inputs)])


class CentredOnBatch(SumOfCharacters, frozen=True):
    """Computes vectors that depend on the other texts of the call."""

    accepts: ClassVar[Accepts] = Accepts()

    def run(self, model, batch):
        return Vectors(np.array([[len(text), len(batch)] for text in batch.texts], "<f4"))


class OneModel(IgnoresModel, frozen=True):
    """Its API has one model."""

    def build(self, batch):
        if batch.model != "nimbus-1":
            raise UpstreamModelNotFound("This API has only the model nimbus-1.")
        return super().build(batch)


def test_a_backend_of_an_api_with_one_model_rejects_other_names():
    check_backend(OneModel(), model="nimbus-1")


class ImagesOnly(Backend, frozen=True):
    """Accepts only images."""

    accepts: ClassVar[Accepts] = Accepts(texts=False, modalities=("image",))

    async def embed(self, batch):
        return Vectors.from_lists([[1, place + 1] for place, _ in enumerate(batch.parts)])


@pytest.mark.parametrize(
    ("backend", "reply", "said"),
    [
        (Acme, None, "Acme is a class: pass an instance"),
        (Hashed, None, "Hashed is a class: pass an instance"),
        (None, None, "NoneType is not a backend: subclass HTTPBackend, LocalBackend or Backend"),
        ("openai", None, "str is not a backend"),
        (Acme(), {"vectors": []}, "reply= is a dict: pass a function of a batch"),
        (
            Acme(),
            lambda _: {1, "a"} and object(),
            "reply= returned object: return values that JSON supports, or bytes",
        ),
        (Acme(), lambda batch: batch.texts[9], "reply= raised IndexError"),
        (
            IgnoresModel(),
            None,
            r"same request for another model: send batch.model, or if .*/backends.md#model-names",
        ),
        (
            IgnoresOrder(),
            None,
            r"same request for the same inputs in reverse: send them in their order",
        ),
        (
            SendsSelected(sent=lambda batch: batch.inputs[:1]),
            None,
            r"for any batch.texts\[1\]: send every input",
        ),
        (
            SendsSelected(sent=lambda batch: batch.inputs[:1]),
            by_input,
            r"for any batch.texts\[1\]: send every input",
        ),
        (SendsSelected(sent=lambda batch: batch.inputs[-1:]), None, r"for any batch.texts\[0\]"),
        (
            SendsSelected(sent=lambda batch: [batch.inputs[0], batch.inputs[-1]]),
            None,
            r"for any batch.texts\[1\]",
        ),
        (
            SendsSelected(sent=lambda batch: batch.texts or batch.parts or batch.tokens[:1]),
            None,
            r"for any batch.tokens\[1\]",
        ),
        (
            SendsSelected(sent=lambda batch: batch.texts or batch.tokens or batch.parts[:1]),
            None,
            r"for any batch.parts\[1\]\[0\]",
        ),
        (
            SendsSelected(
                sent=lambda batch: batch.texts or batch.tokens or [one[:1] for one in batch.parts]
            ),
            None,
            r"parts\[0\]\[1\]: send every input",
        ),
        (
            SendsSelected(
                sent=lambda batch: batch.texts or batch.tokens or [one[-1:] for one in batch.parts]
            ),
            None,
            r"parts\[0\]\[0\]: send every input",
        ),
        (
            SendsSelected(
                sent=lambda batch: batch.inputs[:1] if batch.input_type else batch.inputs
            ),
            None,
            r"for any batch.texts\[1\]",
        ),
        (
            SendsSelected(sent=lambda batch: batch.texts or batch.parts or sorted(batch.tokens)),
            None,
            "same inputs in reverse",
        ),
        (IgnoresDimensions(), None, "lists dimensions"),
        (KeyInURL(), None, "secret into the URL"),
        (TableKey(), None, "as a Secret in headers"),
        (NonDeterministic(), None, "two requests for one batch"),
        (AcceptsAnyBody(), None, "parse returned vectors for"),
        (RaisesLookupError(), None, "parse raised LookupError"),
        (Broken(), None, "parse raised RuntimeError: x"),
        (Broken(), by_input, "parse raised RuntimeError: x"),
        (NoArgument(), by_input, "parse raised TypeError"),
        (Buggy(), None, "build raised IndexError"),
        (Refusing(), None, "build raised UpstreamRejectedInput"),
        (OddURL(), None, "begin it with https"),
        (TextBody(), None, "content as str: encode it"),
        (NumberHeader(), None, "a header as int: use a str or a Secret"),
        (AsyncBuild(), None, "build is async: write def build"),
        (AsyncCredentials(), None, "fetch_credentials is async: write def fetch_credentials"),
        (NoBuild(), None, "build is missing: write def build"),
        (
            InvalidMapError(),
            None,
            "map_error returned int for a 400: return one of embedroute.errors",
        ),
        (RaisingMapError(), None, "map_error raised"),
        (OddAccepts(), None, "accepts is a dict: write accepts = Accepts"),
        (OddDtype(), None, "accepts lists the dtype 'fp16'"),
        (NoInput(), None, "accepts allows neither texts nor tokens nor images"),
        (NoEmbed(), None, "embed is missing: write async def embed"),
        (SyncEmbed(), None, "embed is not async: write async def embed"),
        (Unloadable(), None, "load raised RuntimeError: no weights"),
        (Unrunnable(), None, "run raised SystemExit"),
        (AsyncRun(), None, "run is async: write def run"),
        (
            ReturnsResult(result=UpstreamUnavailable("reset")),
            None,
            "embed raised UpstreamUnavailable: reset",
        ),
        (ReturnsResult(result=SystemExit(3)), None, "embed raised SystemExit"),
        (ReturnsResult(result=StopIteration()), None, "embed raised RuntimeError"),
        (ReturnsResult(result=[[1.0]]), None, "result is a list, not Vectors"),
        (ReturnsResult(result=Vectors(None)), None, "0 rows for 3 inputs"),
        (
            ReturnsResult(result=lambda rows: Vectors(rows.astype(int))),
            None,
            "int64 numbers; expected float",
        ),
        (
            ReturnsResult(result=lambda rows: Vectors(rows, "7")),
            None,
            "prompt_tokens is '7': return an int, or None",
        ),
        (
            ReturnsResult(result=lambda rows: Vectors(rows, -5)),
            None,
            "prompt_tokens is -5: return an int, or None",
        ),
        (
            ReturnsResult(result=lambda rows: Vectors(rows, 5, {"text": "x"})),
            None,
            "modality_tokens is {'text': 'x'}: return",
        ),
        (AcceptsField(), by_input, "'accepts' is a field"),
        (PlainKey(), by_input, "'other_key' is a str"),
        (KeyInURL(), by_input, "secret into the URL"),
        (KeyInHeader(), by_input, "as a Secret in headers"),
        (KeyInRepr(), by_input, "shows in repr"),
        (UpperCase(), by_input, "lower case"),
        (NonDeterministic(), by_input, "two requests for one batch"),
        (NoURL(), by_input, "begin it with https"),
        (NoRequest(), by_input, "return UpstreamRequest"),
        (IgnoresDimensions(), by_input, "lists dimensions"),
        (IgnoresDimensions(), by_input, "lists input_type"),
        (IgnoresDimensions(), by_input, "lists dtype"),
        (IgnoresDimensions(), by_input, "accepts lists user"),
        (IgnoresInputs(), by_input, r"for any batch.texts\[0\]"),
        (ReversedRows(), by_input, "return row i for input i"),
        (BackwardRows(), by_input, "another vector alone than in a batch"),
        (MergedRows(), by_input, "1 rows for 3 inputs"),
        (NoVectors(), by_input, "return Vectors"),
        (AcceptsAnyBody(), by_input, "parse returned vectors for"),
        (RaisesLookupError(), by_input, "parse raised LookupError"),
        (SumOfCharacters(), None, "3-dimensional vectors; expected 64"),
        (CentredOnBatch(), None, "another vector alone than in a batch of several"),
        (ImagesOnly(), None, "return row i for input i"),
    ],
)
def test_reports_a_mistake(backend, reply, said):
    with pytest.raises(AssertionError, match=said):
        check_backend(backend, reply=reply)


@pytest.mark.parametrize(
    ("backend", "mistakes"),
    [(IgnoresDimensions(), 5), (IgnoresInputs(), 2), (NonDeterministic(), 1), (UpperCase(), 1)],
)
def test_reports_each_mistake_once(backend, mistakes):
    with pytest.raises(AssertionError) as caught:
        check_backend(backend, reply=by_input)

    assert mistakes == len(str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("backend", "reply"), [(Hashed(), None), (Acme(), by_input), (ScriptedBackend(), None)]
)
@pytest.mark.anyio
async def test_can_be_called_inside_a_running_loop(backend, reply):
    check_backend(backend, reply=reply)


@pytest.mark.anyio
async def test_reports_mistakes_inside_a_running_loop():
    with pytest.raises(AssertionError, match="embed raised UpstreamUnavailable"):
        check_backend(ReturnsResult(result=UpstreamUnavailable("reset")))


def test_does_not_show_the_secrets_of_the_backend():
    with pytest.raises(AssertionError) as caught:
        check_backend(KeyInURL(api_key=Secret("sk-real")))

    assert "sk-real" not in str(caught.value)


def test_keeps_the_cause_of_a_mistake():
    with pytest.raises(AssertionError) as caught:
        check_backend(Broken())

    assert isinstance(caught.value.__cause__, RuntimeError)


def test_dimensions_can_be_chosen():
    check_backend(ScriptedBackend(), dimensions=3)

    with pytest.raises(AssertionError, match="expected 4"):
        check_backend(SumOfCharacters(), dimensions=4)
