"""Checks that a backend keeps the contract of :mod:`embedroute.backend`; each mistake found says what to do about it.

What a backend that is no HTTP gives when it is run, on an event loop and workers of its own.
"""

import inspect
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import anyio
import anyio.to_thread

from embedroute.backend import Backend, Batch, HTTPBackend, LocalBackend, Vectors
from embedroute.testing.contract_class import class_mistakes, secret_mistakes
from embedroute.testing.contract_http import (
    Reply,
    answer_mistakes,
    close,
    order_mistakes,
    parse_mistakes,
    request_mistakes,
)
from embedroute.testing.samples import attempt, describe_exception, reversed_batch, samples_for


def check_backend(
    backend: HTTPBackend | LocalBackend | Backend,
    *,
    reply: Reply | None = None,
    model: str = "model",
    dimensions: int = 64,
) -> None:
    """Check that ``backend`` keeps the contract; call it from any test, inside a running event loop or not.

    An ``HTTPBackend`` is never sent anywhere: its requests are read, and ``parse`` must refuse what is no answer.
    ``reply`` lets more be checked: it gives the JSON (or the bytes) that the API would answer to a batch, one vector
    for each of ``batch.inputs``. Any other backend is run for real, on ``model``, and with ``dimensions`` if it
    accepts that.

    Raises:
        AssertionError: names each mistake, and what to do about it.
    """
    mistakes: list[str] = []
    cause: BaseException | None = None
    try:
        # What was found before code of the author's raised is kept.
        mistakes.extend(_mistakes(backend, reply, model, dimensions))
    except AssertionError as raised:
        mistakes.append(str(raised))
        cause = raised.__cause__
    if mistakes:
        raise AssertionError("\n".join(dict.fromkeys(mistakes))) from cause


def _mistakes(
    backend: HTTPBackend | LocalBackend | Backend, reply: Reply | None, model: str, dimensions: int
) -> Iterator[str]:
    in_class = list(class_mistakes(backend))
    yield from in_class
    if in_class:
        return
    yield from secret_mistakes(backend)
    samples = samples_for(type(backend).accepts, model, dimensions)
    if isinstance(backend, HTTPBackend):
        yield from request_mistakes(backend, samples)
        yield from parse_mistakes(backend, reply, samples)
    else:
        yield from run_mistakes(backend, samples)


ADVICE: Final = "It must embed whatever accepts lets through."


def run_mistakes(backend: LocalBackend | Backend, samples: Sequence[Batch]) -> Iterator[str]:
    """Have every sample embedded, and the first in reverse, and look at the answers."""
    # In a thread of its own, for the caller may be on a running event loop.
    with ThreadPoolExecutor(1) as thread:
        found, other = thread.submit(anyio.run, _embedded, backend, samples).result()
    pairs = zip(found, samples, strict=True)
    mistakes = [
        mistake
        for answer, batch in pairs
        for mistake in answer_mistakes(answer, batch, batch.dimensions)
    ]
    yield from mistakes or order_mistakes(found[0], other)
    if isinstance(backend, LocalBackend) and not mistakes:
        yield from slice_mistakes(found, samples)


def slice_mistakes(found: Sequence[Vectors], samples: Sequence[Batch]) -> Iterator[str]:
    """Compare the vector of an input alone with the one it gets beside others."""
    (several, alone, *_), (one, other, *_) = found, samples
    if one.inputs[-1:] == other.inputs and not close(several.array[-1:], alone.array):
        yield "An input alone gets another vector than beside others: run is given parts of a batch."


async def _embedded(
    backend: LocalBackend | Backend, samples: Sequence[Batch]
) -> tuple[list[Vectors], Vectors]:
    loaded = None
    if isinstance(backend, LocalBackend):
        loaded = attempt("load", "It must give the model, which run is then given.", backend.load)
    return [await _embed(backend, loaded, batch) for batch in samples], await _embed(
        backend, loaded, reversed_batch(samples[0])
    )


async def _embed(backend: LocalBackend | Backend, loaded: object, batch: Batch) -> Vectors:
    if isinstance(backend, LocalBackend):
        return await anyio.to_thread.run_sync(
            attempt, "run", ADVICE, lambda: backend.run(loaded, batch)
        )
    coming: object = attempt("embed", ADVICE, lambda: backend.embed(batch))
    if not inspect.isawaitable(coming):
        raise AssertionError("embed is not async: write async def embed(self, batch).")
    try:
        return await coming
    except (Exception, SystemExit) as error:
        raise describe_exception("embed", ADVICE, error) from error
