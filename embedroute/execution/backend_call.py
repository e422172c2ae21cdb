"""Calls a backend with one batch, and validates the vectors that it returns.

``WidthRegistry`` checks that an undeclared model always returns vectors of the same width.
"""

from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from functools import partial
from time import perf_counter
from typing import Final, TypeVar, cast

import anyio
import msgspec
from msgspec.structs import replace

from embedroute import vectors
from embedroute.backend import (
    Backend,
    BackendBase,
    Batch,
    HTTPBackend,
    LocalBackend,
    Source,
    UpstreamRequest,
    UpstreamResponse,
    Vectors,
    parse_token_count,
    parse_token_counts,
    write_in_pieces,
)
from embedroute.errors import (
    EmbedrouteError,
    InvalidUpstreamResponse,
    ResourcesExhausted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution.credentials import CredentialStore
from embedroute.execution.debug_capture import KEPT_AT_ONCE
from embedroute.execution.local_models import LocalModels
from embedroute.execution.model_echo import EchoedModels
from embedroute.execution.own_fields import omit_fields
from embedroute.execution.watchdog import BLOCKING, Watchdog
from embedroute.exhaustion import ExhaustionLog, find_exhaustion, late_loop_error
from embedroute.reasons import BACKEND_RAISED, describe, describe_timeout
from embedroute.routing import BoundedMap
from embedroute.runtime import LARGE, cancellation, fairness, tasks, time_limits
from embedroute.transport import DEFAULT_LIMITS, LARGEST_REPLY, ExchangeLimits, Transport
from embedroute.upstream_errors import refine_with_inputs
from embedroute.vectors import Array

T = TypeVar("T")

CaptureHook = Callable[[UpstreamRequest | UpstreamResponse], None]
"""Records a request before it is sent, and its response if there is one, for debug output."""

Send = Callable[[UpstreamRequest, float, ExchangeLimits], Awaitable[UpstreamResponse]]
"""Sends a request within some seconds, as ``Transport.send`` does."""

ROUNDING: Final = 1e-3
"""Tolerance for the length of a truncated row: within it, the API has scaled the row itself."""

_BACKENDS = (HTTPBackend, LocalBackend, Backend)
_PLAIN_MISTAKES = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class Destination(msgspec.Struct, eq=False, kw_only=True):
    """Where a call went: its request, or None if there was none."""

    request: UpstreamRequest | None = None


class CallResources(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What all calls on one event loop use: its transport, and what belongs to the gateway.

    ``models`` are the names that the gateway's upstreams gave to their models. ``watchdog`` logs
    what backends do wrong. ``credentials`` are those that backends obtain at run time.
    """

    transport: Transport
    local: LocalModels
    models: EchoedModels = msgspec.field(default_factory=EchoedModels)
    watchdog: Watchdog = msgspec.field(default_factory=Watchdog)
    exhaustion_log: ExhaustionLog = msgspec.field(default_factory=ExhaustionLog)
    credentials: CredentialStore = msgspec.field(default_factory=CredentialStore)


async def call_backend(
    backend: BackendBase,
    batch: Batch,
    resources: CallResources,
    timeout: float,
    on_capture: CaptureHook | None = None,
    limits: ExchangeLimits = DEFAULT_LIMITS,
    *,
    large: bool = False,
    width: int | None = None,
    matryoshka: bool = False,
    omitted: Collection[str] = (),
    endpoint: str = "",
    public_model: str = "",
    destination: Destination | None = None,
) -> Vectors:
    """Embed ``batch`` with ``backend`` within ``timeout`` seconds, and validate the result.

    The largest answer of ``limits`` is set here. ``width`` and ``matryoshka`` are parameters of
    ``validate_vectors``. For a ``large`` call, a worker thread encodes the body and compares an
    error with the inputs. ``omitted`` are fields that the upstream rejects. The model that the
    answer names is checked under the name of its ``endpoint``, unless that is empty;
    ``public_model`` is the name that clients use. ``destination`` gets the request.

    Raises:
        UpstreamError: the call failed. This includes exceptions in the backend's own code.
        ResourcesExhausted: this process lacks a resource. Each kind is logged once a minute.
    """
    if not isinstance(backend, _BACKENDS):
        raise TypeError(f"{type(backend)} must subclass HTTPBackend, LocalBackend or Backend.")
    source = None
    count = len(batch)
    try:
        try:
            if isinstance(backend, HTTPBackend):
                build = partial(_build, backend, batch, resources.watchdog, limits.provider)
                request = await _build_in_thread(backend, batch) if large else build()
                request = omit_fields(request, omitted) if omitted else request
                (destination or Destination()).request = request
                largest = largest_answer(count, batch.width, len(request.content))
                send = _select_sender(backend, resources, on_capture)
                response = await send(request, timeout, replace(limits, largest=largest))
                source = response.source
                parse = partial(_parse, backend, batch, response)
                answer = (
                    parse(resources.watchdog, limits.provider)
                    if len(response.content) < LARGE
                    else await _run_in_worker(parse)
                )
            else:
                answer = await _run_without_http(backend, batch, resources, timeout, limits)
        except EmbedrouteError as error:
            raise await _refine(error, batch, in_thread=large) from error.__cause__
        except BaseException as error:
            _raise_as_upstream_error(error)
            raise
        named = answer.model if isinstance(cast("object", answer), Vectors) else None
        if named != resources.models.names.get(endpoint) and endpoint:
            names = (batch.model, public_model or batch.model)
            resources.models.check(endpoint, names, named, backend)
        validate = partial(
            validate_vectors, answer, batch, width=width, matryoshka=matryoshka, source=source
        )
        is_small = count * (batch.width or 0) * 4 < LARGE
        return validate() if is_small else await _run_in_worker(validate)
    except ResourcesExhausted as error:
        resources.exhaustion_log.record(error)
        raise


def _select_sender(
    backend: HTTPBackend, resources: CallResources, on_capture: CaptureHook | None
) -> Send:
    """Return the function that sends a request, with the backend's credentials if it has some."""
    send = resources.transport.send
    if type(backend).fetch_credentials is not HTTPBackend.fetch_credentials:
        send = partial(resources.credentials.send, backend, send)
    return send if on_capture is None else partial(_send_and_capture, send, on_capture)


async def _run_in_worker(work: Callable[[], T]) -> T:
    """Run ``work`` in a worker thread.

    Raises:
        ResourcesExhausted: the system has no thread left.
    """
    try:
        return await fairness.run_in_worker(work)
    except RuntimeError as error:
        exhausted = find_exhaustion(error)
        if exhausted is None:
            raise
        raise exhausted from None


async def _refine(error: EmbedrouteError, batch: Batch, *, in_thread: bool) -> EmbedrouteError:
    if not isinstance(error, UpstreamError):
        return error
    if in_thread:
        # It compares the message with all texts, which takes 0.3 s for 28 MB of them.
        return await _run_in_worker(partial(refine_with_inputs, error, batch.inputs))
    return refine_with_inputs(error, batch.inputs)


def _raise_as_upstream_error(error: BaseException) -> None:
    """Raise what the caller gets instead of ``error``. Return if it gets ``error`` itself."""
    if _must_propagate(error):
        return
    if cancelled := cancellation.cancellation(error):
        raise cancelled from None
    raise _backend_error(error) from error


def _must_propagate(error: BaseException) -> bool:
    """Return whether an error ends the task. SystemExit from a backend must not end the host's."""
    ends = isinstance(error, KeyboardInterrupt | GeneratorExit | anyio.get_cancelled_exc_class())
    return ends and not cancellation.is_foreign_cancellation(error)


async def _run_without_http(
    backend: LocalBackend | Backend,
    batch: Batch,
    resources: CallResources,
    timeout: float,
    limits: ExchangeLimits,
) -> Vectors:
    watchdog = resources.watchdog
    provider = limits.provider
    call = partial(_run_backend, backend, batch, resources)
    time_limit = time_limits.fail_after(timeout)
    try:
        with time_limit:
            if isinstance(backend, LocalBackend):
                return await call()
            return await tasks.run_abandonable(
                partial(watchdog.watch, provider, backend, call),
                timeout,
                partial(watchdog.report_ignored, provider, backend),
            )
    except TimeoutError:
        if time_limit.lag:
            raise late_loop_error(time_limit.lag) from None
        reason = describe_timeout(timeout)
        raise UpstreamTimeout(f"The upstream {reason}.", reason=reason) from None


async def _run_backend(
    backend: LocalBackend | Backend, batch: Batch, resources: CallResources
) -> Vectors:
    try:
        if isinstance(backend, Backend):
            return await backend.embed(batch)
        return await resources.local.run(backend, batch, partial(validate_vectors, width=None))
    except TimeoutError as error:  # raised by the backend, so it must not look like our timeout
        raise _backend_error(error) from error


def _backend_error(error: BaseException) -> EmbedrouteError:
    if exhausted := find_exhaustion(error):
        return exhausted
    kind = UpstreamTimeout if isinstance(error, TimeoutError) else UpstreamUnavailable
    reason = describe(error)
    if reason:
        return kind(f"The upstream failed: {reason}.", reason=reason)
    return kind("The backend raised an exception.", reason=BACKEND_RAISED)


async def _send_and_capture(
    send: Send,
    on_capture: CaptureHook,
    request: UpstreamRequest,
    timeout: float,
    limits: ExchangeLimits,
) -> UpstreamResponse:
    # Capture the request before sending: after a cancellation there is no time for a large body.
    await _capture(on_capture, request)
    response = await send(request, timeout, limits)
    await _capture(on_capture, response)
    return response


async def _capture(on_capture: CaptureHook, message: UpstreamRequest | UpstreamResponse) -> None:
    if len(message.content) <= KEPT_AT_ONCE:
        on_capture(message)
    else:
        await _run_in_worker(partial(on_capture, message))


def _build(
    backend: HTTPBackend, batch: Batch, watchdog: Watchdog, provider: str
) -> UpstreamRequest:
    began = perf_counter()
    try:
        return backend.build(batch)
    finally:
        seconds = perf_counter() - began
        if seconds >= BLOCKING:
            watchdog.report_blocking(provider, backend, "build", seconds)


async def _build_in_thread(backend: HTTPBackend, batch: Batch) -> UpstreamRequest:
    return await _run_in_worker(partial(write_in_pieces, partial(backend.build, batch)))


def _parse(
    backend: HTTPBackend,
    batch: Batch,
    response: UpstreamResponse,
    watchdog: Watchdog | None = None,
    provider: str = "",
) -> Vectors:
    """Read the vectors or the error of a response. A ``watchdog`` watches the event loop."""
    began = perf_counter()
    method = "map_error"
    try:
        if not 200 <= response.status < 300:
            raise backend.map_error(response)
        method = "parse"
        return backend.parse(batch, response)
    except _PLAIN_MISTAKES as error:
        if method != "parse":
            raise
        raise InvalidUpstreamResponse(
            "The upstream's response does not match its API.",
            reason="response does not match the API",
        ) from error
    finally:
        seconds = perf_counter() - began
        if seconds >= BLOCKING and watchdog is not None:
            watchdog.report_blocking(provider, backend, method, seconds)


def largest_answer(count: int, width: int | None, sent: int) -> int:
    """Return the most bytes that a successful response with ``count`` vectors may have.

    ``width`` is the dimension of a vector if it is known, and ``sent`` the bytes of the request.

    The limit allows for the numbers (at least 16 per vector, to include the JSON around it), twice
    the request (some APIs repeat the inputs, with escapes), and 64 KiB for everything else.
    """
    numbers = count * max(width or vectors.WIDEST, 16)
    return min(numbers * vectors.TEXT_OF_NUMBER + 64 * 1024 + 2 * sent, LARGEST_REPLY)


def validate_vectors(
    answer: Vectors,
    batch: Batch,
    *,
    width: int | None,
    matryoshka: bool = False,
    source: Source | None = None,
) -> Vectors:
    """Return the answer with one valid row per input, truncated to ``width`` if necessary.

    The result carries ``source``. If the API truncated the vectors of a ``matryoshka`` model, they
    are scaled to length 1: some servers do not scale, and a vector must not depend on whether the
    server or the gateway truncated it.

    Raises:
        InvalidUpstreamResponse: rows are missing, have the wrong width, are zero or not finite, or
            the backend did not return vectors.
    """
    upstream_width = (
        -(-batch.width // 8)
        if batch.width and batch.dtype in {"binary", "ubinary"}
        else batch.width
    )
    try:
        array = vectors.check(answer.array, len(batch), upstream_width, batch.dtype)
        tokens = parse_token_count(answer.prompt_tokens)
        modality_tokens: Mapping[str, int] = {}
        if answer.modality_tokens:
            modality_tokens = parse_token_counts(answer.modality_tokens)
    except _PLAIN_MISTAKES as error:
        raise InvalidUpstreamResponse(
            "The backend did not return vectors.", reason="backend did not return vectors"
        ) from error
    if width is None or batch.dtype != "float":
        return Vectors(array, tokens, modality_tokens, source)
    if width != batch.width:
        array = vectors.truncate(array, width)
    elif matryoshka and batch.dimensions is not None:
        array = _scale_to_length_1(array)
    return Vectors(array, tokens, modality_tokens, source)


def _scale_to_length_1(array: Array) -> Array:
    """Scale the rows whose length differs from 1 by more than ``ROUNDING``."""
    exact = array.astype("f8")
    lengths = (exact * exact).sum(axis=1) ** 0.5
    unscaled = abs(lengths - 1) > ROUNDING
    if not unscaled.any():
        return array
    lengths[~unscaled] = 1
    return (exact / lengths[:, None]).astype(vectors.FLOAT32)


class WidthRegistry:
    """The width of the first answer for each vector space and dtype, for undeclared models."""

    def __init__(self) -> None:
        """Create an empty registry."""
        self._widths: BoundedMap[tuple[Hashable, str], int] = BoundedMap()

    def check(self, space: Hashable, dtype: str, width: int) -> None:
        """Compare a width with that of the first answer.

        ``space`` is the vector space, with the generation of its route: a reload of the config may
        change the width.

        Raises:
            InvalidUpstreamResponse: the widths differ, so the endpoint uses another vector space.
        """
        first = self._widths.get_or_insert((space, dtype), width)
        if width != first:
            raise InvalidUpstreamResponse(
                f"The upstream returned {width}-dimensional vectors; "
                f"earlier vectors of this model have {first} dimensions.",
                reason=f"{width} dimensions instead of {first}",
            )
