"""Makes neutral errors for requests that share a failed upstream call.

An upstream's message may quote any input of its call. A request that did not make the call alone
therefore gets a neutral error: the same class, but a message of the gateway's own, and no
traceback, cause or context.
"""

from collections.abc import Mapping
from typing import Final

from embedroute import errors
from embedroute.errors import (
    BatchTooLarge,
    ConnectError,
    ContextTooLong,
    FieldRejected,
    InputFailed,
    InvalidUpstreamResponse,
    InvalidVector,
    MissingRows,
    PoolTimeout,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    RequestError,
    TLSError,
    UpstreamAuthError,
    UpstreamError,
    UpstreamKeyRejected,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamWrongModel,
)
from embedroute.reasons import describe

BLAMES_INPUTS: Final = (UpstreamRejectedInput, BatchTooLarge, Rejected, RequestError)
"""Errors that a single input, or the number of inputs, can cause.

A request without that input must not receive them.
"""

MESSAGES: Final[Mapping[type, str]] = {
    ContextTooLong: "rejected an input that is longer than the model's context. Shorten it.",
    UpstreamRejectedInput: (
        "rejected an input of this request. Send it again for the provider's own message."
    ),
    InputFailed: "fails for an input of this request, while it embeds others. Change that input.",
    FieldRejected: "rejected a field of the request. Send the request again.",
    InvalidVector: "returned a vector that is zero or not finite. Change the inputs.",
    Rejected: "rejected the request. Send it again for the provider's own message.",
    RejectedByPage: "rejected the request with an error page. Send it again.",
    BatchTooLarge: "rejected the batch as too large. Send fewer inputs in one request.",
    UpstreamAuthError: "rejected the gateway's own API key. Tell the operator to check it.",
    UpstreamKeyRejected: "rejected the key that the request has for it. Check that key.",
    QuotaExhausted: "has no quota left for the gateway's account. Tell the operator to check it.",
    UpstreamModelNotFound: "does not serve this model. Use another model, or tell the operator.",
    RateLimited: "limits the rate of calls. Wait before you send the request again.",
    UpstreamTimeout: "did not respond in time. Send the request again.",
    PoolTimeout: (
        "was not called: all connections to it were in use. "
        "Send fewer requests at once, or tell the operator to raise max_connections."
    ),
    UpstreamWrongModel: "answered with another model. Tell the operator to check the endpoint.",
    MissingRows: "returned too few vectors. Send the request again.",
    InvalidUpstreamResponse: "returned an invalid response. Send the request again.",
    TLSError: "has no valid certificate, or does not use TLS. Tell the operator to check it.",
    ConnectError: "cannot be reached. Send the request again later.",
    UpstreamUnavailable: "failed. Send the request again later.",
    UpstreamError: "did not serve this request. Send the request again later.",
}
"""Class → what the provider did and what to do, without any text of the upstream."""

FIELDS: Final = frozenset({"model", "input", "inputs", "dimensions", "input_type", "user"})
"""Values of ``param`` that are kept; the index of an input is meaningless to other requests."""


def neutral(error: UpstreamError, provider: str | None = None) -> UpstreamError:
    """Make a new error of the same class that quotes nothing from the upstream.

    ``provider`` is used in the message if ``error.provider`` is not set. The new error keeps the
    class (so status, type and code), the upstream's status, ``retry_after``, and ``param`` if it is
    the name of a field. An error class of a plugin becomes the gateway's class that it extends.
    """
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, UpstreamError)]
    gateway_class = next(kind for kind in kinds if kind.__module__ == errors.__name__)
    provider = error.provider or provider
    status = error.upstream_status
    copy = gateway_class(
        neutral_message(gateway_class, provider, _public_reason(error)),
        param=error.param if error.param in FIELDS else None,
        retry_after=error.retry_after,
        upstream_status=status if isinstance(status, int) else None,
        reason=error.reason,
    )
    copy.provider = provider
    copy.is_neutral = True
    copy.at_capacity = error.at_capacity
    return copy


def _public_reason(error: UpstreamError) -> str:
    """Return why a connection or a server failed; other reasons may depend on an input."""
    is_outage = isinstance(error, UpstreamUnavailable)
    if not is_outage or isinstance(error, InvalidUpstreamResponse | PoolTimeout):
        return ""
    has_status = type(error) is UpstreamUnavailable and error.upstream_status is not None
    return describe(error) if error.reason or has_status else ""


def neutral_message(kind: type[UpstreamError], provider: str | None, reason: str = "") -> str:
    """Return the neutral message of a class, or of its nearest base class that has one.

    ``reason`` is added to what the provider did.
    """
    message = next(MESSAGES[known] for known in kind.__mro__ if known in MESSAGES)
    if reason:
        message = message.replace(".", f" ({reason}).", 1)
    return f"The provider {provider} {message}" if provider else f"The provider {message}"
