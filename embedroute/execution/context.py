"""Provides the context of a request: builds batches, records results, sanitises errors."""

from collections.abc import Generator, Mapping, Sequence
from typing import cast

import msgspec
from anyio import CapacityLimiter

from embedroute.auth import Caller
from embedroute.backend import Batch, Vectors
from embedroute.cache import CachePolicy
from embedroute.config import Model
from embedroute.errors import EmbedrouteError, UpstreamAuthError, UpstreamError
from embedroute.execution.redaction import list_secrets, mentions, redact_message
from embedroute.execution.singleflight import OnResult
from embedroute.inputs import (
    Input,
    Kind,
    Part,
    estimate_sizes,
    estimate_sizes_in_steps,
    images_in,
)
from embedroute.protocol import EmbeddingRequest
from embedroute.routing import (
    CacheKey,
    EmbeddedInput,
    Parameters,
    PreparedSelection,
    ResolvedEndpoint,
    pair_with_keys,
    text_before,
)
from embedroute.runtime import Watch
from embedroute.trace import RequestTrace
from embedroute.upstream_errors import neutral_message
from embedroute.upstream_errors.neutral import neutral


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its caller, trace and deadline (in seconds of the monotonic clock)."""

    request: EmbeddingRequest
    caller: Caller
    trace: RequestTrace
    cache_policy: CachePolicy
    deadline: float
    watch: Watch | None = None


Results = Mapping[CacheKey, EmbeddedInput]
"""Embedded inputs by cache key."""


class DispatchContext(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What all chunks of one request share.

    ``deadline`` is in seconds of the monotonic clock. ``space`` identifies the vector space, and
    ``shared`` is the common part of the cache keys. ``store`` receives the results for the cache.
    ``slots`` limits the concurrent calls of a request that was split. ``large``: work on all inputs
    at once would block the event loop.
    """

    model: Model
    parameters: Parameters
    kind: Kind
    user: str | None
    deadline: float
    trace: RequestTrace
    space: str = ""
    shared: bytes = b""
    store: OnResult | None = None
    slots: CapacityLimiter | None = None
    watch: Watch | None = None
    large: bool = False


def make_context(
    context: RequestContext, prepared: PreparedSelection, store: OnResult
) -> DispatchContext:
    """Build the context for the dispatcher; ``store`` is dropped if the request says no-store."""
    return DispatchContext(
        model=prepared.route.model,
        parameters=prepared.selection.parameters,
        kind=context.request.kind,
        user=context.request.user,
        deadline=context.deadline,
        trace=context.trace,
        space=prepared.route.vector_space,
        shared=prepared.shared,
        store=store if context.cache_policy.store else None,
        watch=context.watch,
        large=context.request.large,
    )


def make_batch(
    candidate: ResolvedEndpoint, work: Mapping[CacheKey, Input], context: DispatchContext
) -> Batch:
    """Build the batch of a chunk for one endpoint, with only the parameters that it accepts.

    The texts of a large request get their prefix in ``prepare_in_steps``.
    """
    parameters = context.parameters
    accepts = candidate.accepts
    inputs = list(work.values())
    native_type = parameters.input_type is not None and parameters.input_type in accepts.input_types
    prefix = text_before(candidate, context.model, parameters.input_type)
    texts: Sequence[str] = ()
    if context.kind is Kind.TEXT:
        texts = cast("list[str]", inputs)
        if prefix and not context.large:
            texts = [prefix + text for text in texts]
    return Batch(
        model=candidate.model,
        texts=texts,
        tokens=cast("list[tuple[int, ...]]", inputs) if context.kind is Kind.TOKENS else (),
        parts=cast("list[tuple[Part, ...]]", inputs) if context.kind is Kind.PARTS else (),
        dimensions=parameters.dimensions if accepts.dimensions else None,
        width=parameters.width if accepts.dimensions else context.model.dimensions,
        input_type=parameters.input_type if native_type else None,
        dtype=parameters.dtype,
        user=context.user if accepts.user else None,
        options={"title": parameters.title} if parameters.title is not None else {},
    )


def prepare_in_steps(
    batch: Batch, candidate: ResolvedEndpoint, context: DispatchContext
) -> Generator[None, None, tuple[Batch, Sequence[int]]]:
    """Add the prefix to the texts of a large batch; return it and its sizes without the prefix.

    At once, copying 32 MiB of texts takes up to 125 ms, and estimating their tokens 55 ms.
    """
    sizes = yield from estimate_sizes_in_steps(batch.inputs)
    prefix = text_before(candidate, context.model, context.parameters.input_type)
    if not prefix or not batch.texts:
        return batch, sizes
    texts = list[str]()
    for text in batch.texts:
        texts.append(prefix + text)
        yield
    return msgspec.structs.replace(batch, texts=texts), sizes


def record_results(
    candidate: ResolvedEndpoint,
    work: Mapping[CacheKey, Input],
    answer: Vectors,
    context: DispatchContext,
    *,
    made: bool,
    sizes: Sequence[int],
) -> Results:
    """Pair a chunk's keys with their vectors, record tokens and cost, and store the results.

    ``made``: this request made the call. Of the requests that share a call, only that one pays the
    price per request. ``sizes`` are the estimated tokens of the inputs if they are known.
    """
    trace = context.trace
    tokens = answer.prompt_tokens
    if tokens is None:
        sizes = sizes or estimate_sizes(work.values())
        tokens = sum(sizes)
    prices = candidate.prices
    if not made:
        prices = {kind: price for kind, price in prices.items() if kind != "request"}
    trace.record_usage(
        candidate.provider,
        prices,
        tokens,
        answer.modality_tokens,
        images=images_in(work.values()) if context.kind is Kind.PARTS else 0,
    )
    results = pair_with_keys(work, answer, tokens, sizes)
    if context.store is not None:
        context.store(results)
    return results


def for_client(error: EmbedrouteError, candidate: ResolvedEndpoint) -> EmbedrouteError:
    """Return the error without secrets, and without the upstream's message if it rejected our key.

    Chained exceptions hold the original message, so they are removed. Only the cause is kept, if no
    secret is in it: it is what a backend raised.
    """
    secrets = list_secrets(candidate.backend)
    error.__context__ = None
    if error.__cause__ is not None and mentions(error.__cause__, secrets):
        error.__cause__ = None
    if not isinstance(error, UpstreamError):
        return error
    if error.is_neutral:
        already_recorded = error.already_recorded
        error = neutral(error, candidate.provider)
        error.already_recorded = already_recorded
    elif isinstance(error, UpstreamAuthError):
        error.message = neutral_message(UpstreamAuthError, candidate.provider)
    else:
        error.message = redact_message(error.message, secrets)
    error.provider = candidate.provider
    return error


def describe_outcome(failure: EmbedrouteError | None) -> dict[str, object]:
    """Return the outcome of an attempt as fields for the trace and the log."""
    if failure is None:
        return {"status": 200}
    return {"error": type(failure).__name__, "status": getattr(failure, "upstream_status", None)}
