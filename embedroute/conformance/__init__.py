"""Checks that a backend keeps the contract of :mod:`embedroute.backend`; each mistake found says what to do about it."""

from collections.abc import Iterator

from embedroute.backend import Backend, HTTPBackend, LocalBackend
from embedroute.conformance.answers import Reply, close, parse_mistakes
from embedroute.conformance.claims import class_mistakes, secret_mistakes
from embedroute.conformance.requests import request_mistakes
from embedroute.conformance.runs import run_mistakes
from embedroute.conformance.samples import samples_for

__all__ = ["Reply", "check_backend", "close"]


def check_backend(
    backend: HTTPBackend | LocalBackend | Backend, *, reply: Reply | None = None, model: str = "model", dimensions: int = 64
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


def _mistakes(backend: HTTPBackend | LocalBackend | Backend, reply: Reply | None, model: str, dimensions: int) -> Iterator[str]:
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
