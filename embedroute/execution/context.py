"""Provides the context of a request: builds batches, records results, sanitises errors."""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from traceback import walk_tb
from typing import Any, Final, cast

import msgspec
from anyio import CapacityLimiter

from embedroute.auth import Caller
from embedroute.backend import Batch, Vectors, forget_frames
from embedroute.cache import CachePolicy
from embedroute.errors import (
    EmbedrouteError,
    InputFailed,
    QuotaExhausted,
    UpstreamAuthError,
    UpstreamError,
    UpstreamKeyRejected,
    UpstreamRejectedInput,
)
from embedroute.execution.active_config import ActiveConfig
from embedroute.execution.redaction import list_secrets, mentions, redact_message
from embedroute.inputs import (
    Input,
    Kind,
    Part,
    estimate_sizes,
    estimate_sizes_in_steps,
    images_in,
)
from embedroute.protocol import EmbeddingRequest
from embedroute.reasons import describe
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
from embedroute.text import printable
from embedroute.trace import RequestTrace
from embedroute.upstream_errors import neutral_message, translate_index
from embedroute.upstream_errors.neutral import neutral


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its caller, trace and deadline (in seconds of the monotonic clock).

    ``active`` is the config with which it began.
    """

    active: ActiveConfig
    request: EmbeddingRequest
    caller: Caller
    trace: RequestTrace
    cache_policy: CachePolicy
    deadline: float
    watch: Watch | None = None


Work = Mapping[CacheKey, Input]
"""Inputs by cache key."""
Results = Mapping[CacheKey, EmbeddedInput]
"""Embedded inputs by cache key."""
OnResult = Callable[[Results], None]
"""Receives vectors as soon as they are computed."""
AdmitFirstTry = Callable[[float], bool]
"""Takes the time in seconds; returns whether an endpoint may be tried for the first time."""
StoreResults = Callable[[Results, int | None, str], None]
"""Stores results in the cache, with the mark of their owner, if there is one, and their model."""


class DispatchContext(msgspec.Struct, frozen=True, eq=False):
    """What all chunks of one request share.

    ``caller`` is its name. ``keys`` are the cache keys of the request's inputs, in their order.
    ``deadline`` is in seconds of the monotonic clock. ``store`` receives the results and their
    owner for the cache; None if they are not cached. ``slots`` limits the concurrent calls of a
    request that was split.
    """

    request: EmbeddingRequest
    prepared: PreparedSelection
    trace: RequestTrace
    caller: str
    keys: Sequence[CacheKey]
    deadline: float
    watch: Watch | None = None
    store: StoreResults | None = None
    slots: CapacityLimiter | None = None


class Dispatch(msgspec.Struct, frozen=True, eq=False):
    """The inputs of a request, or a part of them, and where they may be embedded.

    ``on_result`` gets the vectors of each chunk as soon as they come. A first try counts as a call
    and not as a retry, unless ``admit_first_try`` decides. ``earlier_errors`` are the errors from
    before the part was split off. ``waited_for`` are the endpoints whose rate limits were waited
    for. ``last_resorts`` counts the calls after every endpoint had failed, with this one.
    ``waits`` counts the waits for an endpoint with too many calls in flight. ``companion_at`` is
    the endpoint at which a call failed that was merged with those of other requests.
    """

    candidates: Sequence[ResolvedEndpoint]
    context: DispatchContext
    work: Work
    on_result: OnResult
    admit_first_try: AdmitFirstTry | None = None
    earlier_errors: Sequence[EmbedrouteError] = ()
    waited_for: frozenset[str] = frozenset()
    last_resorts: int = 0
    waits: int = 0
    companion_at: str = ""


def make_batch(
    candidate: ResolvedEndpoint,
    work: Mapping[CacheKey, Input],
    context: DispatchContext,
    kind: Kind | None = None,
) -> Batch:
    """Build the batch of a chunk for one endpoint, with only the parameters that it accepts.

    The texts of a large request get their prefix in ``prepare_in_steps``.
    """
    model = context.prepared.route.model
    parameters = context.prepared.selection.parameters
    accepts = candidate.accepts
    kind = kind or context.request.kind
    inputs = list(work.values())
    texts = cast("list[str]", inputs) if kind is Kind.TEXT else ()
    input_type = parameters.input_type
    if input_type is not None:
        prefix = text_before(candidate, model, input_type)
        if prefix and not context.request.large:
            texts = [prefix + text for text in texts]
        if input_type not in accepts.input_types:
            input_type = None
    has_options = parameters.options or parameters.title is not None
    return Batch(
        candidate.model,
        texts,
        cast("list[tuple[int, ...]]", inputs) if kind is Kind.TOKENS else (),
        cast("list[tuple[Part, ...]]", inputs) if kind is Kind.PARTS else (),
        dimensions=parameters.dimensions if accepts.dimensions else None,
        width=parameters.width if accepts.dimensions else model.dimensions,
        input_type=input_type,
        dtype=parameters.dtype,
        user=context.request.user if accepts.user else None,
        options=_select_options(candidate, parameters) if has_options else {},
        truncate=parameters.truncate,
    )


def _select_options(candidate: ResolvedEndpoint, parameters: Parameters) -> Mapping[str, Any]:
    """Return the options of a request for the APIs that an endpoint supports."""
    options = dict[str, Any]()
    for namespace, values in parameters.options.items():
        if not namespace or namespace in candidate.accepts.options:
            options |= values
    if parameters.title is not None and not candidate.backend.forwards_fields:
        options["title"] = parameters.title
    return options


def prepare_in_steps(
    batch: Batch, candidate: ResolvedEndpoint, context: DispatchContext
) -> Generator[None, None, tuple[Batch, Sequence[int]]]:
    """Add the prefix to the texts of a large batch; return it and its sizes without the prefix.

    At once, copying 32 MiB of texts takes up to 125 ms, and estimating their tokens 55 ms.
    """
    sizes = yield from estimate_sizes_in_steps(batch.inputs)
    input_type = context.prepared.selection.parameters.input_type
    prefix = text_before(candidate, context.prepared.route.model, input_type)
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
    if answer.modality_tokens and sum(answer.modality_tokens.values()) > tokens:
        answer = msgspec.structs.replace(answer, modality_tokens={})
    prices = candidate.prices
    if not made:
        prices = {kind: price for kind, price in prices.items() if kind != "request"}
    trace.record_usage(
        candidate.provider,
        prices,
        tokens,
        answer.modality_tokens,
        images=images_in(work.values()) if context.request.kind is Kind.PARTS else 0,
        inputs=len(work),
    )
    results = pair_with_keys(work, answer, tokens, sizes)
    if context.store is not None:
        context.store(results, context.prepared.owner, context.prepared.route.public_name)
    return results


def for_client(
    error: EmbedrouteError, candidate: ResolvedEndpoint, outside: BaseException | None
) -> EmbedrouteError:
    """Return the error without secrets, and without the upstream's message if it rejected our key.

    Chained exceptions hold the original message, so they are removed. Only the cause is kept, if no
    secret is in it: it is what a backend raised. Tracebacks are removed, because their frames hold
    the response and the backend's local variables. A note says where the cause was raised.
    ``outside`` is the exception that the host was handling; it is not changed, nor is ``error``,
    which a backend may raise again.
    """
    secrets = list_secrets(candidate.backend)
    cause = error.__cause__
    error.__context__ = error.__traceback__ = None
    error = copy.copy(error)
    error.__cause__ = cause
    place = ""
    if cause is not None:
        place = _find_place(cause, type(candidate.backend).__module__)
        error.__notes__ = [*getattr(error, "__notes__", ()), _describe_place(cause)]
        if mentions(cause, secrets):
            error.__cause__ = None
        forget_frames(cause, outside)
    error.__traceback__ = None
    if not isinstance(error, UpstreamError):
        return error
    if error.is_neutral:
        copied = neutral(error, candidate.provider)
        copied.already_recorded = error.already_recorded
        copied.was_merged = error.was_merged
        error = copied
    elif isinstance(error, UpstreamAuthError):
        if candidate.key_digest:
            error = _blame_callers_key(error, candidate)
        else:
            error.message = neutral_message(type(error), candidate.provider)
    else:
        named = name_provider(redact_message(error.message, secrets), candidate.provider)
        error.message = printable(named)
    error.provider = candidate.provider
    error.place = place
    return error


def _blame_callers_key(error: UpstreamAuthError, candidate: ResolvedEndpoint) -> UpstreamError:
    """Return the error of a caller whose own key is rejected, or whose account is spent."""
    header = next(iter(candidate.caller_keys.values()))
    place = f"of the provider {candidate.provider} in the header '{header}'"
    if isinstance(error, QuotaExhausted):
        error.message = f"The account of your key {place} has no quota left."
        return error
    rejected = UpstreamKeyRejected(
        f"Your key {place} was rejected. Check that key.", upstream_status=error.upstream_status
    )
    rejected.already_recorded = error.already_recorded
    return rejected


def name_provider(message: str, provider: str) -> str:
    """Return a message that says which provider failed.

    The messages of transports and backends begin with "The upstream", as they do not know its name.
    """
    prefix = f"Provider {provider}: "
    if message.startswith((f"The provider {provider}", prefix)):
        return message
    for start, named in _STARTS.items():
        if message.startswith(start):
            return named.format(provider) + message.removeprefix(start)
    return prefix + message


_STARTS: Final[Mapping[str, str]] = {
    "The upstream": "The provider {}",
    "Cannot connect to the upstream": "Cannot connect to the provider {}",
    "The backend": "The backend of the provider {}",
    "The provider": "The provider {}",
}
"""How messages of the gateway begin → how they begin with the name of the provider."""


def _find_place(cause: BaseException, module: str) -> str:
    """Return the class of a cause, and the last line of ``module`` in its traceback.

    Without a line of ``module``, it is the last line of all.
    """
    frames = list(walk_tb(cause.__traceback__))
    own = [each for each in frames if each[0].f_globals.get("__name__") == module]
    if not frames:
        return ""
    frame, line = (own or frames)[-1]
    where = f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
    return f"{type(cause).__name__} at {where}"


def _describe_place(cause: BaseException) -> str:
    lines = [
        f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_qualname}'
        for frame, line in walk_tb(cause.__traceback__)
    ]
    return "\n".join([f"{type(cause).__name__} was raised in:", *lines])


def name_input(
    error: UpstreamError, key: CacheKey | None, keys: Sequence[CacheKey]
) -> UpstreamError:
    """Name the blamed input as the client does: ``input[i]``, or ``input`` if it is the only one.

    ``key`` is the cache key of that input, and ``keys`` those of all inputs of the request. An
    upstream counts the inputs of its own call, which is only a part of them. So without a ``key``,
    its index is removed.
    """
    name = None
    if key is not None:
        name = f"input[{keys.index(key)}]" if len(keys) > 1 else "input"
        error.param = name
    elif error.param is not None and error.param.startswith("input["):
        error.param = "input"
    if error.input_index is not None:
        error.message = translate_index(error.message, error.input_index, name)
    return error


def input_failed(error: UpstreamError, key: CacheKey, keys: Sequence[CacheKey]) -> UpstreamError:
    """Return the error for the input ``key``, which fails alone with ``error``."""
    failure = error
    if not isinstance(error, UpstreamRejectedInput):
        failure = InputFailed(
            f"The provider fails for this input, while it embeds others. {error.message}",
            upstream_status=error.upstream_status,
        )
        failure.provider = error.provider
    return name_input(failure, key, keys)


def describe_outcome(failure: EmbedrouteError | None) -> dict[str, object]:
    """Return the outcome of an attempt as fields for the trace and the log."""
    if failure is None:
        return {"status": 200}
    status = failure.upstream_status if isinstance(failure, UpstreamError) else None
    return {"error": describe(failure), "status": status}


def describe_values(
    candidate: ResolvedEndpoint,
    failure: EmbedrouteError | None,
    context: DispatchContext,
    work: Mapping[CacheKey, Input],
) -> dict[str, object]:
    """Return the values of an attempt for a full trace: its inputs, its price and its message.

    ``inputs`` are positions in the request. ``failure`` must be without secrets (``for_client``).
    """
    values: dict[str, object] = {
        "inputs": [position for position, key in enumerate(context.keys) if key in work],
        "price": {kind: f"{price:f}" for kind, price in candidate.prices.items()},
    }
    return values if failure is None else {**values, "message": failure.message}
