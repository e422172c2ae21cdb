"""One batch to one backend and back: HTTP, local or its own way; what comes back is checked before anyone sees it.

The width of each vector space that nobody declared: the first answer's, from which no other may differ.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from traceback import clear_frames
from typing import Final

import anyio
import msgspec

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
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from embedroute.execution.local_models import LocalModels
from embedroute.execution.redaction import KEPT_AT_ONCE
from embedroute.routing import BoundedMap
from embedroute.runtime import LARGE, fairness, tasks
from embedroute.transport import DEFAULT_LIMITS, LARGEST_REPLY, ExchangeLimits, Transport
from embedroute.upstream_errors import refine_with_inputs
from embedroute.vectors import Array

CaptureHook = Callable[[UpstreamRequest | UpstreamResponse], None]
"""What debug does with a request before it is sent, and with the reply if there is one."""

ROUNDING: Final = 1e-3
"""How far from 1 the length of a shortened row may be and still count as an API's own scaling to length 1."""

_BACKENDS = (HTTPBackend, LocalBackend, Backend)
_PLAIN_MISTAKES = (KeyError, TypeError, ValueError, IndexError, AttributeError)


class CallResources(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What every exchange of an event loop is made with: its engine and the local models."""

    transport: Transport
    local: LocalModels


async def call_backend(
    backend: BackendBase,
    batch: Batch,
    resources: CallResources,
    timeout: float,
    on_capture: CaptureHook | None = None,
    rest: float = DEFAULT_LIMITS.rest,
    provider: str = "",
    *,
    large: bool = False,
    due: int | None = None,
    matryoshka: bool = False,
) -> Vectors:
    """Have ``backend`` embed ``batch`` within ``timeout`` seconds, and validate what comes back.

    ``rest`` and ``provider`` are those of ``ExchangeLimits``, ``due`` and ``matryoshka`` those of ``checked``. The body
    of a ``large`` call is written in a worker thread.

    Raises:
        UpstreamError: whatever went wrong, mistakes of the backend's own code included.
    """
    if not isinstance(backend, _BACKENDS):
        raise TypeError(
            f"{type(backend).__name__} must subclass HTTPBackend, LocalBackend or Backend."
        )
    source = None
    try:
        if isinstance(backend, HTTPBackend):
            request = await _built_in_thread(backend, batch) if large else _built(backend, batch)
            limits = ExchangeLimits(largest_answer(batch, len(request.content)), rest, provider)
            send = resources.transport.send
            reply = await (send if on_capture is None else partial(_kept, send, on_capture))(
                request, timeout, limits
            )
            source = reply.source
            if len(reply.content) < LARGE:
                answer = _read(backend, batch, reply)
            else:
                answer = await fairness.run_in_worker(partial(_read, backend, batch, reply))
        else:
            answer = await _in_time(backend, batch, resources, timeout)
    except EmbedrouteError as error:
        if not isinstance(error, UpstreamError):
            raise
        raise refine_with_inputs(error, batch.inputs) from error.__cause__
    except BaseException as error:
        if _ends_the_task(error):
            raise
        if cancelled := tasks.cancellation(error):
            raise cancelled from None
        # A backend that exits, or cancels nobody, ends its own call and not the host's.
        raise _failed(backend, error) from error
    if len(batch) * (batch.width or 0) * 4 < LARGE:
        return validate_vectors(answer, batch, due=due, matryoshka=matryoshka, source=source)
    return await fairness.run_in_worker(
        partial(validate_vectors, answer, batch, due=due, matryoshka=matryoshka, source=source)
    )


def _ends_the_task(error: BaseException) -> bool:
    ends = isinstance(error, KeyboardInterrupt | GeneratorExit | anyio.get_cancelled_exc_class())
    return ends and not tasks.is_foreign_cancellation(error)


async def _in_time(
    backend: LocalBackend | Backend, batch: Batch, resources: CallResources, timeout: float
) -> Vectors:
    try:
        with tasks.fail_after(timeout):
            return await _run_backend(backend, batch, resources)
    except TimeoutError:
        raise UpstreamTimeout(f"The backend did not answer within {timeout:.1f} s.") from None


async def _run_backend(
    backend: LocalBackend | Backend, batch: Batch, resources: CallResources
) -> Vectors:
    try:
        if isinstance(backend, Backend):
            return await backend.embed(batch)
        return await resources.local.run(backend, batch, partial(validate_vectors, due=None))
    except TimeoutError as error:  # its own, so it is not told as ours
        raise _failed(backend, error) from error


def _failed(backend: BackendBase, error: BaseException) -> EmbedrouteError:
    kind = UpstreamTimeout if isinstance(error, TimeoutError) else UpstreamUnavailable
    return kind(f"The backend {type(backend).__name__} failed ({type(error).__name__}).")


async def _kept(
    send: Callable[[UpstreamRequest, float, ExchangeLimits], Awaitable[UpstreamResponse]],
    on_capture: CaptureHook,
    request: UpstreamRequest,
    timeout: float,
    limits: ExchangeLimits,
) -> UpstreamResponse:
    # Kept before it is sent: an exchange that is cancelled leaves no time for a large body.
    await _keep(on_capture, request)
    reply = await send(request, timeout, limits)
    await _keep(on_capture, reply)
    return reply


async def _keep(keep: CaptureHook, message: UpstreamRequest | UpstreamResponse) -> None:
    if len(message.content) <= KEPT_AT_ONCE:
        keep(message)
    else:
        await fairness.run_in_worker(partial(keep, message))


def _built(backend: HTTPBackend, batch: Batch) -> UpstreamRequest:
    try:
        return backend.build(batch)
    except BaseException as error:
        clear_frames(error.__traceback__)  # a backend may hold its key in a variable
        raise


async def _built_in_thread(backend: HTTPBackend, batch: Batch) -> UpstreamRequest:
    return await fairness.run_in_worker(partial(write_in_pieces, partial(_built, backend, batch)))


def _read(backend: HTTPBackend, batch: Batch, response: UpstreamResponse) -> Vectors:
    try:
        return _parsed(backend, batch, response)
    except BaseException as error:
        # Whoever keeps a failure keeps the frames that it came through: not with an answer of megabytes in them.
        for it in (error, error.__cause__):
            clear_frames(it and it.__traceback__)
        msgspec.structs.force_setattr(response, "content", b"")
        raise


def _parsed(backend: HTTPBackend, batch: Batch, response: UpstreamResponse) -> Vectors:
    if not 200 <= response.status < 300:
        raise backend.map_error(response)
    try:
        return backend.parse(batch, response)
    except _PLAIN_MISTAKES as error:
        raise InvalidUpstreamResponse(
            f"The upstream's answer is not what its API documents ({type(error).__name__})."
        ) from error


def largest_answer(batch: Batch, sent: int) -> int:
    """Bound the bytes of a successful response to a request of ``sent`` bytes.

    Counted are the numbers, 16 at least to allow for what stands around a short vector, 64 KiB for all else, and twice
    the request: some APIs repeat the inputs, and escape them.
    """
    width = max(batch.width or vectors.WIDEST, 16)
    return min(len(batch) * width * vectors.TEXT_OF_NUMBER + 64 * 1024 + 2 * sent, LARGEST_REPLY)


def validate_vectors(
    answer: Vectors,
    batch: Batch,
    *,
    due: int | None,
    matryoshka: bool = False,
    source: Source | None = None,
) -> Vectors:
    """Refuse an answer that is not one sound row per input; cut it to ``due`` numbers if the API did not.

    The result carries ``source``.

    A row of a ``matryoshka`` model that the API shortened itself has length 1 afterwards, like one that is cut here:
    some servers only slice, and one request must not have two vectors, by who cut it.

    Raises:
        InvalidUpstreamResponse: rows are missing, of another width, zero or not finite, or the backend gave something else.
    """
    width = (
        -(-batch.width // 8)
        if batch.width and batch.dtype in {"binary", "ubinary"}
        else batch.width
    )
    try:
        array = vectors.check(answer.array, len(batch), width, batch.dtype)
        tokens = parse_token_count(answer.prompt_tokens)
        split = parse_token_counts(answer.modality_tokens) if answer.modality_tokens else {}
    except _PLAIN_MISTAKES as error:
        raise InvalidUpstreamResponse(
            f"The backend gave back no vectors ({type(error).__name__})."
        ) from error
    if due is not None and due != batch.width and batch.dtype == "float":
        array = vectors.truncate(array, due)
    elif due is not None and batch.dtype == "float" and matryoshka and batch.dimensions is not None:
        array = _of_length_1(array)
    return Vectors(array, tokens, split, source)


def _of_length_1(array: Array) -> Array:
    """Scale the rows that are not of length 1 already; an API's own rounding is left as it is."""
    exact = array.astype("f8")
    lengths = (exact * exact).sum(axis=1) ** 0.5
    off = abs(lengths - 1) > ROUNDING
    if not off.any():
        return array
    lengths[~off] = 1
    return (exact / lengths[:, None]).astype(vectors.FLOAT32)


class WidthRegistry:
    """Space and dtype → width, as the first answer had it; for as long as the space is in use."""

    def __init__(self) -> None:
        """Know none yet."""
        self._widths: BoundedMap[tuple[str, str], int] = BoundedMap()

    def check(self, space: str, dtype: str, width: int) -> None:
        """Hold a width against the first one.

        Raises:
            InvalidUpstreamResponse: it is another; the endpoint answers from another space.
        """
        first = self._widths.get_or_insert((space, dtype), width)
        if width != first:
            raise InvalidUpstreamResponse(
                f"The upstream answered vectors of {width} numbers where others of this model have {first}."
            )
