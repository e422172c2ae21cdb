"""Checks that a backend keeps the contract of :mod:`embedroute.backend`; each mistake found says what to do about it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import msgspec
from msgspec.structs import replace

from embedroute import vectors
from embedroute.backend import (
    Accepts,
    Backend,
    Batch,
    HTTPBackend,
    LocalBackend,
    Secret,
    UpstreamReply,
    UpstreamRequest,
    Vectors,
)
from embedroute.errors import BadAnswer, UpstreamError
from embedroute.inputs import ImagePart, ImageURL, TextPart

Reply = Callable[[Batch], object]

MARK: Final = "embedroute-s3cret"
"""Stands in for every secret while it is looked for where none may be."""

IMAGE: Final = ImagePart(ImageURL("data:image/png;base64,iVBORw0KGgo="))
GARBAGE: Final = (b"", b"<html>502</html>", b"{}", b"[]", b"null", b'"ok"', b"1", b'{"error":{"message":"no"}}', b"\xff\xfe")
COUNTED: Final = (UpstreamError, KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What ``parse`` may raise; the host counts all but the first as ``BadAnswer``."""


def check_backend(
    backend: HTTPBackend | LocalBackend | Backend, *, reply: Reply | None = None, model: str = "model", dimensions: int = 64
) -> None:
    """Check that ``backend`` keeps the contract. Call it from a plain test: it starts a loop of its own if it needs one.

    An ``HTTPBackend`` is never sent anywhere: ``reply`` gives the JSON (or the bytes) that the API would answer to a
    batch, one vector for each of ``batch.inputs``. Any other backend is run for real, on ``model``, and with
    ``dimensions`` if it accepts that.

    Raises:
        AssertionError: names each mistake, and what to do about it.
    """
    mistakes = list(_class_mistakes(backend))
    if not mistakes:
        samples = _samples(type(backend).accepts, model, dimensions)
        if isinstance(backend, HTTPBackend):
            mistakes = _http_mistakes(backend, reply, samples)
        else:
            mistakes = anyio.run(_run_mistakes, backend, samples)
    if mistakes:
        raise AssertionError("\n".join(dict.fromkeys(mistakes)))


def _class_mistakes(backend: HTTPBackend | LocalBackend | Backend) -> Iterator[str]:
    fields: Mapping[str, object] = {name: getattr(backend, name) for name in backend.__struct_fields__}
    if "accepts" in fields:
        yield "'accepts' is a field, which would win over config: annotate it as ClassVar[Accepts], or not at all."
    for name, value in fields.items():
        if isinstance(value, str) and {"key", "token", "secret", "password"} & set(name.lower().split("_")):
            yield f"'{name}' is a str, which shows in logs: annotate it as Secret."


def _samples(accepts: Accepts, model: str, dimensions: int) -> list[Batch]:
    """Write batches of all that is accepted; the first is of several inputs, and each later one changes one thing."""
    one, many = Batch(model=model, texts=("a",)), Batch(model=model, texts=("a", "bc", "def"))
    if not accepts.texts:
        one, many = Batch(model=model, parts=((IMAGE,),)), Batch(model=model, parts=((IMAGE,), (TextPart("a"), IMAGE)))
    tokens = [Batch(model=model, tokens=((1, 2, 3), (4,)))] if accepts.tokens else []
    parts = [Batch(model=model, parts=((TextPart("a"), IMAGE), (IMAGE,)))] if "image" in accepts.modalities else []
    sizes = [replace(many, dimensions=dimensions)] if accepts.dimensions else []
    types = [replace(many, input_type=word) for word in accepts.input_types]
    dtypes = [replace(many, dtype=dtype) for dtype in accepts.dtypes if dtype != "float"]
    return [many, one, *tokens, *parts, *sizes, *types, *dtypes]


async def _run_mistakes(backend: LocalBackend | Backend, samples: Sequence[Batch]) -> list[str]:
    loaded = backend.load() if isinstance(backend, LocalBackend) else None

    async def embed(batch: Batch) -> Vectors:
        if isinstance(backend, LocalBackend):
            return await anyio.to_thread.run_sync(backend.run, loaded, batch)
        return await backend.embed(batch)

    found = [await embed(batch) for batch in samples]
    turned = await embed(_turned(samples[0]))
    pairs = zip(found, samples, strict=True)
    mistakes = [mistake for answer, batch in pairs for mistake in _answer_mistakes(answer, batch, batch.dimensions)]
    return mistakes or list(_order_mistakes(found[0], turned))


def _http_mistakes(backend: HTTPBackend, reply: Reply | None, samples: Sequence[Batch]) -> list[str]:
    if reply is None:
        return ["Pass reply=: a function from a batch to the JSON that the API would answer, one vector per batch.inputs."]
    secrets = {name: Secret(MARK) for name in backend.__struct_fields__ if isinstance(getattr(backend, name), Secret)}
    marked = replace(backend, **secrets)
    mistakes = list(_deaf_mistakes(backend, samples))
    if MARK in repr(marked):
        mistakes.append(f"A secret shows in repr({type(backend).__name__}): keep it in its Secret field alone.")
    for batch in samples:
        mistakes += _request_mistakes(marked.build(batch), marked.build(batch))
        mistakes += _answer_mistakes(backend.parse(batch, _reply_to(batch, reply)), batch, None)
    return mistakes or list(_parse_mistakes(backend, reply, samples[0]))


def _request_mistakes(request: object, again: object) -> Iterator[str]:
    if not isinstance(request, UpstreamRequest):
        yield f"build gave {type(request).__name__}: return UpstreamRequest.json(url, body, bearer=…)."
        return
    if request != again:
        yield "build gave two requests for one batch: leave time, chance and state out of it."
    if urlsplit(request.url).scheme not in {"http", "https"} or not urlsplit(request.url).hostname:
        yield f"build gave the URL {request.url!r}: begin it with https:// and a host."
    if MARK in request.url:
        yield "build put a secret into the URL, which shows in logs: send it in a header."
    elif MARK in repr(request):
        yield "build put a secret where it shows: pass it as bearer=, or as a Secret in headers."
    if any(name != name.lower() for name in request.headers):
        yield "build gave header names in upper case: write them in lower case."


def _deaf_mistakes(backend: HTTPBackend, samples: Sequence[Batch]) -> Iterator[str]:
    # Two input types may be one to an API, so it is enough that one of them changes the request.
    plain = backend.build(samples[0])
    for name in ("dimensions", "input_type", "dtype"):
        changed = [batch for batch in samples if getattr(batch, name) != getattr(samples[0], name)]
        if changed and all(backend.build(batch) == plain for batch in changed):
            yield f"accepts lists {name}, but build writes the same request whatever batch.{name} says: send it."
    if type(backend).accepts.user and backend.build(replace(samples[0], user="somebody")) == plain:
        yield "accepts says user, but build writes the same request whatever batch.user says: send it."
    if backend.build(_turned(samples[0])) == plain:
        yield "build writes the same request for other inputs: send batch.texts, batch.tokens or batch.parts."


def _parse_mistakes(backend: HTTPBackend, reply: Reply, batch: Batch) -> Iterator[str]:
    good, turned = _reply_to(batch, reply), _reply_to(_turned(batch), reply)
    if good.content != turned.content:
        yield from _order_mistakes(backend.parse(batch, good), backend.parse(_turned(batch), turned))
    for content in (*GARBAGE, good.content[: len(good.content) // 2]):
        yield from _garbage_mistakes(backend, batch, content)


def _garbage_mistakes(backend: HTTPBackend, batch: Batch, content: bytes) -> Iterator[str]:
    try:
        vectors.check(backend.parse(batch, UpstreamReply(200, {}, content)).array, len(batch), None)
    except COUNTED:
        return
    except Exception as error:
        advice = "read the body with reply.json(), or raise BadAnswer."
        raise AssertionError(f"parse raised {type(error).__name__} for {content!r}: {advice}") from error
    else:
        yield f"parse made vectors of {content!r}: raise BadAnswer for a body that holds none."


def _answer_mistakes(found: object, batch: Batch, width: int | None) -> Iterator[str]:
    if not isinstance(found, Vectors):
        yield f"{type(found).__name__} came back where Vectors are due: return Vectors.from_lists(…)."
        return
    try:
        vectors.check(found.array, len(batch), width, batch.dtype)
    except BadAnswer as error:
        yield f"For {len(batch)} inputs of kind {batch.kind}, dtype {batch.dtype}: {error.message}"


def _order_mistakes(found: Vectors, turned: Vectors) -> Iterator[str]:
    if not close(found.array, turned.array[::-1]):
        yield "The same inputs in reverse do not give the same vectors in reverse: give row i for input i."


def _reply_to(batch: Batch, reply: Reply) -> UpstreamReply:
    body = reply(batch)
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return UpstreamReply(200, {"content-type": "application/json"}, content)


def _turned(batch: Batch) -> Batch:
    return replace(batch, texts=batch.texts[::-1], parts=batch.parts[::-1])


def close(left: vectors.Array, right: vectors.Array) -> bool:
    """Tell whether two arrays are of one shape and the same numbers, but for what float32 arithmetic may differ by."""
    return left.shape == right.shape and bool((abs(left - right) <= 1e-5 + 1e-4 * abs(right)).all())
