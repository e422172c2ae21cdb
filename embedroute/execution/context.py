"""What one request orders of its endpoints: how a chunk is worded for a backend, what it costs, how its failure is told."""

from collections.abc import Collection, Mapping
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
from embedroute.inputs import Input, Kind, Part, estimate_sizes, images_in
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


class RequestContext(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request on its way; ``deadline`` is in seconds of the monotonic clock."""

    request: EmbeddingRequest
    caller: Caller
    trace: RequestTrace
    cache_policy: CachePolicy
    deadline: float
    watch: Watch | None = None


Results = Mapping[CacheKey, EmbeddedInput]
"""Vectors that have come, under the keys that asked for them."""


class DispatchContext(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """What all chunks of one request share: how to embed, in which vector space, by when, and what keeps the results.

    ``deadline`` is in seconds of the monotonic clock; ``slots`` bounds the calls under way at a time, once it is cut.
    ``large`` says that work on all inputs at once would hold an event loop up.
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
    """Word what a request orders; ``store`` keeps what has come, if the request lets it."""
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
    """Word a chunk as the endpoint's backend takes it."""
    wanted, accepts = context.parameters, candidate.accepts
    inputs = list(work.values())
    native = wanted.input_type is not None and wanted.input_type in accepts.input_types
    before = text_before(candidate, context.model, wanted.input_type)
    return Batch(
        model=candidate.model,
        texts=()
        if context.kind is not Kind.TEXT
        else _prefixed(cast("list[str]", inputs), before)
        if before
        else cast("list[str]", inputs),
        tokens=cast("list[tuple[int, ...]]", inputs) if context.kind is Kind.TOKENS else (),
        parts=cast("list[tuple[Part, ...]]", inputs) if context.kind is Kind.PARTS else (),
        dimensions=wanted.dimensions if accepts.dimensions else None,
        width=wanted.width if accepts.dimensions else context.model.dimensions,
        input_type=wanted.input_type if native else None,
        dtype=wanted.dtype,
        user=context.user if accepts.user else None,
        options={"title": wanted.title} if wanted.title is not None else {},
    )


def _prefixed(texts: list[str], before: str) -> list[str]:
    return [before + text for text in texts]


def record_results(
    candidate: ResolvedEndpoint,
    work: Mapping[CacheKey, Input],
    answer: Vectors,
    context: DispatchContext,
    *,
    made: bool,
) -> Results:
    """Pair a chunk's keys with their vectors, count and bill its tokens, and keep what may be kept.

    ``made`` says whether this request made the call: a call that several share is billed by the call only once.
    """
    trace, tokens = context.trace, count_tokens(answer, work.values())
    prices = (
        candidate.prices
        if made
        else {kind: price for kind, price in candidate.prices.items() if kind != "request"}
    )
    trace.record_usage(
        candidate.provider,
        prices,
        tokens,
        answer.modality_tokens,
        images=images_in(work.values()) if context.kind is Kind.PARTS else 0,
    )
    landed = pair_with_keys(work, answer, tokens)
    if context.store is not None:
        context.store(landed)
    return landed


def count_tokens(answer: Vectors, inputs: Collection[Input]) -> int:
    """The tokens of a call: what its upstream counted, or an estimate."""
    return sum(estimate_sizes(inputs)) if answer.prompt_tokens is None else answer.prompt_tokens


def for_client(error: EmbedrouteError, candidate: ResolvedEndpoint) -> EmbedrouteError:
    """Word a failure so that it can be shown: no secret, and nothing of what a refused key made an upstream say.

    Exceptions behind it hold the words as they came, so they are let go; but not what a backend raised, if no secret is in it.
    """
    secrets = list_secrets(candidate.backend)
    error.__context__ = None
    if error.__cause__ is not None and mentions(error.__cause__, secrets):
        error.__cause__ = None
    if not isinstance(error, UpstreamError):
        return error
    if error.is_neutral:
        counted, error = error.already_recorded, neutral(error, candidate.provider)
        error.already_recorded = counted
    elif isinstance(error, UpstreamAuthError):
        error.message = neutral_message(UpstreamAuthError, candidate.provider)
    else:
        error.message = redact_message(error.message, secrets)
    error.provider = candidate.provider
    return error


def describe_outcome(failure: EmbedrouteError | None) -> dict[str, object]:
    """Tell how an attempt ended, as traces and logs name it."""
    if failure is None:
        return {"status": 200}
    return {"error": type(failure).__name__, "status": getattr(failure, "upstream_status", None)}
