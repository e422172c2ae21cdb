"""What a request is told of a failed call that it shares with other requests.

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
    InvalidUpstreamResponse,
    RateLimited,
    Rejected,
    RejectedByPage,
    RequestError,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
)

BLAMES_INPUTS: Final = (UpstreamRejectedInput, BatchTooLarge, Rejected, RequestError)
"""Failures that one input, or the number of inputs, can cause.

A request without that input must not get them.
"""

MESSAGES: Final[Mapping[type, str]] = {
    ContextTooLong: "refused an input that is longer than the model's context. Shorten it.",
    UpstreamRejectedInput: "refused an input of this request. Send it again for the provider's own message.",
    Rejected: "rejected the request. Send it again for the provider's own message.",
    RejectedByPage: "rejected the request with an error page. Send it again.",
    BatchTooLarge: "refused the batch as too large. Send fewer inputs in one request.",
    UpstreamAuthError: "refuses this gateway's own credentials. Its operator must correct them.",
    UpstreamModelNotFound: "does not serve this model. Use another model, or tell the operator.",
    RateLimited: "limits the rate of calls. Wait before you send the request again.",
    UpstreamTimeout: "did not answer in time. Send the request again.",
    InvalidUpstreamResponse: "returned an invalid response. Send the request again.",
    ConnectError: "cannot be reached. Send the request again later.",
    UpstreamUnavailable: "failed. Send the request again later.",
    UpstreamError: "did not serve this request. Send the request again later.",
}
"""Class → what its provider did and what to do, without anything that an upstream wrote."""

FIELDS: Final = frozenset({"model", "input", "inputs", "dimensions", "input_type", "user"})
"""Fields that an error may name to another request. The index of an input means nothing there."""


def neutral(error: UpstreamError, provider: str | None = None) -> UpstreamError:
    """Make a new error of the same class that quotes nothing.

    ``provider`` is named in the message if ``error`` does not know its provider.

    Kept are the class and with it status, type and code, the upstream's status, ``retry_after``,
    and ``param`` if it is the name of a field. A class that a plugin defines becomes the gateway's
    class that it derives from.
    """
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, UpstreamError)]
    own = next(kind for kind in kinds if kind.__module__ == errors.__name__)
    provider = error.provider or provider
    status = error.upstream_status
    copy = own(
        neutral_message(own, provider),
        param=error.param if error.param in FIELDS else None,
        retry_after=error.retry_after,
        upstream_status=status if isinstance(status, int) else None,
    )
    copy.provider = provider
    copy.is_neutral = True
    return copy


def neutral_message(kind: type[UpstreamError], provider: str | None) -> str:
    """Write the neutral message of a class, or else of the nearest class above it."""
    said = next(MESSAGES[known] for known in kind.__mro__ if known in MESSAGES)
    return f"The provider {provider} {said}" if provider else f"The provider {said}"
