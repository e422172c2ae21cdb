"""Provides ``check_backend``, which checks the contract of :mod:`embedroute.backend`.

HTTP backends are checked by ``contract_http``. Other backends are run here, on a separate event
loop.
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
    ExpectedError,
    Reply,
    answer_mistakes,
    close,
    error_mistakes,
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
    errors: Sequence[ExpectedError] = (),
) -> None:
    """Check that ``backend`` keeps the contract. Call it from any test, sync or async.

    The requests of an ``HTTPBackend`` are checked but not sent, and its ``parse`` must reject
    invalid responses. Pass ``reply`` to check more: a function that returns the API's response to a
    batch, as JSON or bytes, with one vector for each of ``batch.inputs``. ``errors`` are error
    responses of the API, each a status, a body (JSON or bytes) and the class of
    :mod:`embedroute.errors` that ``map_error`` must return for it. Any other backend is run, with
    ``model``, and with ``dimensions`` if it accepts them.

    Raises:
        AssertionError: lists all mistakes, and how to correct each.
    """
    mistakes: list[str] = []
    cause: BaseException | None = None
    try:
        # If the backend raises, the mistakes before that are still reported.
        mistakes.extend(_mistakes(backend, reply, model, dimensions))
        if isinstance(backend, HTTPBackend):
            mistakes.extend(error_mistakes(backend, errors))
    except AssertionError as raised:
        mistakes.append(str(raised))
        cause = raised.__cause__
    if mistakes:
        raise AssertionError("\n".join(dict.fromkeys(mistakes))) from cause


def _mistakes(
    backend: HTTPBackend | LocalBackend | Backend, reply: Reply | None, model: str, dimensions: int
) -> Iterator[str]:
    mistakes_in_class = list(class_mistakes(backend))
    yield from mistakes_in_class
    if mistakes_in_class:
        return
    yield from secret_mistakes(backend)
    samples = samples_for(type(backend).accepts, model, dimensions)
    if isinstance(backend, HTTPBackend):
        yield from request_mistakes(backend, samples)
        yield from parse_mistakes(backend, reply, samples)
    else:
        yield from run_mistakes(backend, samples)


ADVICE: Final = "It must embed all inputs that its accepts allows."


def run_mistakes(backend: LocalBackend | Backend, samples: Sequence[Batch]) -> Iterator[str]:
    """Embed all samples, and the first one in reverse, and check the results."""
    # In a separate thread, because the caller may be on a running event loop.
    with ThreadPoolExecutor(1) as thread:
        results, of_reversed = thread.submit(anyio.run, _embed_all, backend, samples).result()
    pairs = zip(results, samples, strict=True)
    mistakes = [
        mistake
        for result, batch in pairs
        for mistake in answer_mistakes(result, batch, batch.dimensions)
    ]
    yield from mistakes or order_mistakes(results[0], of_reversed)
    if isinstance(backend, LocalBackend) and not mistakes:
        yield from slice_mistakes(results, samples)


def slice_mistakes(results: Sequence[Vectors], samples: Sequence[Batch]) -> Iterator[str]:
    """Check that an input has the same vector alone as in a batch of several."""
    in_batch, alone, *_ = results
    first, second, *_ = samples
    if first.inputs[-1:] == second.inputs and not close(in_batch.array[-1:], alone.array):
        yield (
            "An input gets another vector alone than in a batch of several."
            " run receives parts of a batch: compute each vector from its input only."
        )


async def _embed_all(
    backend: LocalBackend | Backend, samples: Sequence[Batch]
) -> tuple[list[Vectors], Vectors]:
    model = None
    if isinstance(backend, LocalBackend):
        model = attempt("load", "It must return the model, which is passed to run.", backend.load)
    results = [await _embed(backend, model, batch) for batch in samples]
    return results, await _embed(backend, model, reversed_batch(samples[0]))


async def _embed(backend: LocalBackend | Backend, model: object, batch: Batch) -> Vectors:
    if isinstance(backend, LocalBackend):
        return await anyio.to_thread.run_sync(
            attempt, "run", ADVICE, lambda: backend.run(model, batch)
        )
    awaitable: object = attempt("embed", ADVICE, lambda: backend.embed(batch))
    if not inspect.isawaitable(awaitable):
        raise AssertionError("embed is not async: write async def embed(self, batch).")
    try:
        return await awaitable
    except (Exception, SystemExit) as error:
        raise describe_exception("embed", ADVICE, error) from error
