"""What a backend builds: a whole request, the same each time, that hears all of its batch and shows no secret."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final, cast
from urllib.parse import urlsplit

from msgspec.structs import replace

from embedroute.backend import Batch, HTTPBackend, Secret, UpstreamRequest
from embedroute.conformance.claims import MARK, marked
from embedroute.conformance.samples import changed, turned
from embedroute.conformance.telling import attempt
from embedroute.errors import UpstreamError

ADVICE: Final = "It must write a request for whatever accepts lets through; InputRefused is for what the API cannot do."
DEAF: Final = "build writes the same request"


def request_mistakes(backend: HTTPBackend, samples: Sequence[Batch]) -> Iterator[str]:
    """Look at the request for each sample."""
    shown = cast("HTTPBackend", marked(backend))
    requests = [attempt("build", ADVICE, lambda: shown.build(samples[0]))]
    requests += [built for batch in samples[1:] if (built := build_or_refuse(shown, batch)) is not None]
    shapes = [mistake for request in requests for mistake in _shape_mistakes(request)]
    yield from shapes
    if not shapes:
        yield from (mistake for request in requests for mistake in _show_mistakes(request))
        if attempt("build", ADVICE, lambda: shown.build(samples[0])) != requests[0]:
            yield "build gave two requests for one batch: leave time, chance and state out of it."
        else:
            yield from _deaf_mistakes(shown, samples, requests[0])


def build_or_refuse(backend: HTTPBackend, batch: Batch) -> UpstreamRequest | None:
    """Build a request; None where the backend says that its API cannot do this."""

    def build() -> UpstreamRequest | None:
        try:
            return backend.build(batch)
        except UpstreamError:
            return None

    return attempt("build", ADVICE, build)


def _shape_mistakes(request: object) -> Iterator[str]:
    if not isinstance(request, UpstreamRequest):
        yield f"build gave {type(request).__name__}: return UpstreamRequest.json(url, body, bearer=…)."
        return
    content, headers = cast("object", request.content), cast("dict[object, object]", dict(request.headers))
    if not isinstance(content, bytes):
        yield f"build gave content as {type(content).__name__}: encode it, or use UpstreamRequest.json(…)."
    if not _has_host(request.url):
        yield f"build gave the URL {request.url!r}: begin it with https:// and a host."
    if any(str(name) != str(name).lower() for name in headers):
        yield "build gave header names in upper case: write them in lower case."
    for value in headers.values():
        if not isinstance(value, str | Secret):
            yield f"build gave a header as {type(value).__name__}: write a str or a Secret."


def _has_host(url: str) -> bool:
    with suppress(ValueError):
        return urlsplit(url).scheme in {"http", "https"} and bool(urlsplit(url).hostname)
    return False


def _show_mistakes(request: UpstreamRequest) -> Iterator[str]:
    if MARK in request.url:
        yield "build put a secret into the URL, which shows in logs: send it in a header."
    elif MARK in repr((request.headers, request.content, request.method)):
        yield "build put a secret where it shows: pass it as bearer=, or as a Secret in headers."


def _deaf_mistakes(backend: HTTPBackend, samples: Sequence[Batch], plain: UpstreamRequest) -> Iterator[str]:
    first = samples[0]
    # Two input types may be one to an API, so it is enough that one of them changes the request.
    for name in ("dimensions", "input_type", "dtype"):
        changed = [batch for batch in samples if getattr(batch, name) != getattr(first, name)]
        if changed and all(build_or_refuse(backend, batch) == plain for batch in changed):
            yield f"accepts lists {name}, but {DEAF} whatever batch.{name} says: send it."
    if type(backend).accepts.user and build_or_refuse(backend, replace(first, user="somebody")) == plain:
        yield f"accepts says user, but {DEAF} whatever batch.user says: send it."
    for batch in samples:
        yield from _unheard_inputs(backend, batch)
    # A backend may know the names of its API's models, and this is none of them.
    with suppress(Exception):
        if backend.build(replace(first, model=f"{first.model}-2")) == plain:
            yield f"{DEAF} for another model: send batch.model."


def _unheard_inputs(backend: HTTPBackend, batch: Batch) -> Iterator[str]:
    plain = build_or_refuse(backend, batch)
    if plain is None:
        return
    unheard = [place for place, other in changed(batch) if build_or_refuse(backend, other) == plain]
    if unheard:
        yield f"{DEAF} whatever batch.{unheard[0]} says: send every input."
    elif turned(batch) != batch and build_or_refuse(backend, turned(batch)) == plain:
        yield f"{DEAF} for the same inputs in reverse: send them in their order."
