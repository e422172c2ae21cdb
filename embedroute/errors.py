"""Defines every error that the gateway raises, with its HTTP status, ``type`` and ``code``.

The tree has one root, :class:`EmbedrouteError`, and two main branches:

- :class:`RequestError`: the request itself is wrong (4xx). Sending it again does not help.
- :class:`UpstreamError`: an upstream API failed. :mod:`embedroute.routing.retry` decides whether to
  retry the call, to use another endpoint, or to report the error to the client.

Types and codes follow OpenAI's error reference. Statuses follow RFC 9110.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, TypeVar

from embedroute.text import echo, escaped

__all__ = [
    "LONGEST_RETRY_AFTER",
    "BatchTooLarge",
    "BodyTimeout",
    "BodyTooLarge",
    "BudgetExceeded",
    "ConfigError",
    "ConnectError",
    "ContextTooLong",
    "DeadlineExceeded",
    "EmbedrouteError",
    "EndpointBusy",
    "FieldRejected",
    "InputFailed",
    "InsufficientQuota",
    "InternalError",
    "InvalidRequest",
    "InvalidUpstreamResponse",
    "InvalidVector",
    "Measure",
    "MethodNotAllowed",
    "MissingExtra",
    "MissingRows",
    "ModelNotFound",
    "NoEligibleProvider",
    "NoHealthyEndpoint",
    "NotCached",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PoolTimeout",
    "QuotaExhausted",
    "RateLimitExceeded",
    "RateLimited",
    "Rejected",
    "RejectedByPage",
    "RequestError",
    "ResourcesExhausted",
    "TLSError",
    "TooManyTokens",
    "Unauthorized",
    "UnsupportedContentType",
    "UpstreamAuthError",
    "UpstreamError",
    "UpstreamKeyRejected",
    "UpstreamModelNotFound",
    "UpstreamRejectedInput",
    "UpstreamTimeout",
    "UpstreamUnavailable",
    "UpstreamWrongModel",
]

LONGEST_RETRY_AFTER = 120.0
"""Seconds. OpenAI's clients do not retry if ``retry-after`` is longer than this."""


class EmbedrouteError(Exception):
    """Base class of all errors; ``message`` is written for the client and says what to do.

    ``status``, ``type`` and ``code`` are those of the response. ``retryable`` is whether the same
    request may succeed if it is sent again later.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retryable: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Set the fields that are sent to the client; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.param = param
        self.code = code or self.code
        self.retry_after: float | None = _seconds(retry_after)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle by attributes, so that subclasses may have any ``__init__`` signature."""
        return _restore, (type(self), self.args, vars(self))

    @property
    def message(self) -> str:
        """The message; stored only in ``args``, so that redaction removes a secret completely."""
        return str(self.args[0])

    @message.setter
    def message(self, message: str) -> None:
        super().__init__(message)


E = TypeVar("E", bound=EmbedrouteError)


def _restore(kind: type[E], args: tuple[object, ...], attributes: Mapping[str, object]) -> E:
    error = kind.__new__(kind, *args)
    vars(error).update(attributes)
    return error


def _seconds(value: float | None) -> float | None:
    """Convert ``retry_after`` to a float; values that are negative or no number become None.

    Plugins set it too, so its type is not trusted.
    """
    try:
        seconds = -1.0 if value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


class UpstreamError(EmbedrouteError):
    """502: a call to an upstream API failed.

    ``upstream_status`` is the HTTP status of the upstream's response, or None if there was none.
    ``provider`` is the name of the provider that was called. ``reason`` says in a few words of the
    gateway's own why the call failed ("connection refused"); empty means that the class says it
    (:mod:`embedroute.reasons`). It is shown to other clients too, so it must not hold text of an
    upstream or of an input. ``place`` is where a backend raised an exception. ``matched_text`` is
    the part of the upstream's message by which the error was classified. It is empty if a client
    cannot influence that text. ``is_neutral`` is true if the message quotes nothing from the
    upstream (see :mod:`embedroute.upstream_errors.neutral`).

    ``input_index`` is the index of the blamed input within the call, if the upstream names one.
    ``field`` is the top-level field of the upstream request that it refuses, if it names one.
    ``rate_limits`` are the upstream's ``x-ratelimit-*`` headers: at most 16, of 128 characters.
    ``at_capacity``: the endpoint had too many calls in flight, so it can serve this one later.
    ``was_merged``: the call had inputs of other requests too, and one of those may have caused it.
    """

    status = 502
    type = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        upstream_status: int | None = None,
        reason: str = "",
        input_index: int | None = None,
    ) -> None:
        """Set what is known of the failed call, besides the fields of every error."""
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.upstream_status = upstream_status
        self.reason = reason
        self.place = ""
        self.matched_text = ""
        self.provider: str | None = None
        self.already_recorded = False
        self.is_neutral = False
        self.input_index = input_index
        self.field: str | None = None
        self.rate_limits: Mapping[str, str] = {}
        self.at_capacity = False
        self.was_merged = False


class UpstreamUnavailable(UpstreamError):
    """The upstream failed: 408, 424, 5xx, a connection reset or an incomplete body."""


class ConnectError(UpstreamUnavailable):
    """The connection could not be opened. Nothing was sent, so an immediate retry is safe."""


class TLSError(ConnectError):
    """The server has no valid certificate, or does not use TLS. A retry does not help."""


class UpstreamTimeout(UpstreamUnavailable):
    """504: the upstream was too slow.

    It may still be working on the call, so the same endpoint is not called again.
    """

    status = 504
    type = "timeout_error"


class PoolTimeout(UpstreamTimeout):
    """504: all connections that the gateway may have to the upstream were in use.

    Nothing was sent, so the error says nothing about the health of the endpoint.
    """


class InvalidUpstreamResponse(UpstreamUnavailable):
    """A response with status 200 that does not hold one valid vector per input."""

    code: str | None = "upstream_invalid_response"


class MissingRows(InvalidUpstreamResponse):
    """Inputs of a call have no vector: some servers leave out a text that they cannot embed."""


class InvalidVector(InvalidUpstreamResponse):
    """A vector is all zero or has an item that is not a finite number.

    Some servers return one for a text that their model cannot embed.
    """


class UpstreamWrongModel(InvalidUpstreamResponse):
    """The answer names another model, so its vectors may be of another vector space."""

    code: str | None = "upstream_wrong_model"


class UpstreamAuthError(UpstreamError):
    """The upstream rejected the gateway's API key.

    The client's own key is valid, so this is not a 401.
    """

    code: str | None = "upstream_credentials"
    retryable = False


class UpstreamKeyRejected(UpstreamAuthError):
    """401: the upstream rejected the caller's own key, which the request carries for it."""

    status = 401
    type = "invalid_request_error"
    code: str | None = "upstream_key_rejected"


class QuotaExhausted(UpstreamAuthError):
    """The quota or the balance of the gateway's account is spent; waiting briefly does not help."""

    code: str | None = "upstream_quota_exhausted"


class UpstreamModelNotFound(UpstreamError):
    """The upstream does not know the model, or the gateway's account may not use it."""

    code: str | None = "upstream_model_not_found"


class RateLimited(UpstreamError):
    """429: the upstream limits the rate of calls; ``retry_after`` is the wait that it requests."""

    status = 429
    type = "rate_limit_error"
    code: str | None = "rate_limit_exceeded"


class UpstreamRejectedInput(UpstreamError):
    """400: the upstream rejected the input itself; no other endpoint would accept it."""

    status = 400
    type = "invalid_request_error"
    retryable = False


class ContextTooLong(UpstreamRejectedInput):
    """400: an input is longer than the model's context."""

    code: str | None = "context_length_exceeded"


class InputFailed(UpstreamRejectedInput):
    """400: the upstream fails for this input alone, while it embeds others."""

    code: str | None = "input_failed"


class Rejected(UpstreamError):
    """400: the upstream returned a 4xx that does not say who is to blame.

    It may be an input, a field of the request or the endpoint. Another endpoint may accept it.
    """

    status = 400
    type = "invalid_request_error"
    code: str | None = "upstream_refused"
    retryable = False


class FieldRejected(Rejected):
    """The upstream rejected a field that only the gateway had set; the next call leaves it out."""


class RejectedByPage(Rejected):
    """502: a 4xx without a message, such as the web page of a firewall or an empty body."""

    status = 502
    type = "upstream_error"
    code: str | None = None


class Measure(StrEnum):
    """The unit in which an upstream limits the size of a call."""

    INPUTS = "inputs"
    TOKENS = "tokens"
    BYTES = "bytes"


class BatchTooLarge(UpstreamError):
    """The call exceeds a size limit of the upstream; half of the batch may succeed.

    ``measure`` is the unit of that limit. If it is None (unknown), no batch limit is learned.
    """

    measure: Measure | None = None


class ConfigError(EmbedrouteError):
    """An invalid configuration; the message has one line per mistake."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Join ``mistakes``, each of which names its place in the config.

        Line breaks in them are escaped, as a name from the config may contain one.
        """
        self.mistakes: tuple[str, ...] = tuple(map(escaped, mistakes))
        super().__init__("\n".join(self.mistakes))


class MissingExtra(ConfigError, ImportError):
    """An optional dependency is not installed.

    It is an ``ImportError`` too, because callers expect one from a failed import.
    """

    def __init__(self, extra: str, package: str) -> None:
        """Write the message, with the pip command that installs ``package``."""
        super().__init__([f"{package} is not installed; run: pip install 'embedroute[{extra}]'"])


class RequestError(EmbedrouteError):
    """The request itself is wrong; sending it again unchanged does not help."""

    status = 400
    type = "invalid_request_error"
    retryable = False


class InvalidRequest(RequestError):
    """400: an invalid body or value; ``param`` names the field."""


class Unauthorized(RequestError):
    """401: a missing, malformed or unknown API key (RFC 6750)."""

    status = 401
    code: str | None = "invalid_api_key"


class PermissionDenied(RequestError):
    """403: the API key is valid but lacks the permission for this request."""

    status = 403
    type = "permission_error"


class NotFound(RequestError):
    """404: the path or model does not exist, or no provider is eligible."""

    status = 404
    code: str | None = "not_found"


class ModelNotFound(NotFound):
    """404: the gateway serves no model of this name, which is ``requested``."""

    code: str | None = "model_not_found"
    requested = ""


class NoEligibleProvider(NotFound):
    """404: the routing preferences exclude every provider of the model."""

    code: str | None = "no_eligible_provider"


class MethodNotAllowed(RequestError):
    """405: the path exists but does not support the method."""

    status = 405
    code: str | None = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        """Write the message; ``allow`` lists the methods of the path."""
        super().__init__(f"Method {echo(method)} is not allowed. Use {allow}.")
        self.allow = allow


class BodyTimeout(RequestError):
    """408: the body did not arrive completely within ``body_timeout``."""

    status = 408
    type = "timeout_error"
    retryable = True


class RateLimitExceeded(EmbedrouteError):
    """429: the caller, the model or the gateway has used up a limit of the config.

    ``headers`` describe that limit.
    """

    status = 429
    type = "rate_limit_error"
    code: str | None = "rate_limit_exceeded"
    headers: Sequence[tuple[bytes, bytes]] = ()


class TooManyTokens(RateLimitExceeded):
    """429: the request alone needs more tokens than the limit allows in a minute."""

    retryable = False


class BudgetExceeded(EmbedrouteError):
    """402: the request may cost more than is left of a budget."""

    status = 402
    type = "insufficient_quota"
    code: str | None = "budget_exceeded"
    retryable = False


class InsufficientQuota(BudgetExceeded):
    """429: the same in OpenAI's format, whose clients know no 402."""

    status = 429
    code: str | None = "insufficient_quota"


class BodyTooLarge(RequestError):
    """413: the body is larger than ``max_body_bytes``."""

    status = 413


class UnsupportedContentType(RequestError):
    """415: the body is not uncompressed UTF-8 JSON."""

    status = 415
    code: str | None = "unsupported_content_type"


class InternalError(EmbedrouteError):
    """500: a bug of the gateway; the response contains no details."""


class Overloaded(EmbedrouteError):
    """503: the gateway has no capacity, or every endpoint is in its cool-down."""

    status = 503
    type = "overloaded_error"
    code: str | None = "overloaded"


class NoHealthyEndpoint(Overloaded):
    """503: the circuit breakers of all candidates are open."""

    code: str | None = "no_healthy_endpoint"


class EndpointBusy(Overloaded):
    """503: the endpoint has as many calls in flight as it can serve in time."""


class ResourcesExhausted(Overloaded):
    """503: this process has run out of a resource, or its event loop is late.

    It says nothing about an upstream. ``resource`` names what has run out.
    """

    resource = ""


class NotCached(EmbedrouteError):
    """504: the request may only be served from the cache, which has not all of its inputs."""

    status = 504
    type = "invalid_request_error"
    code: str | None = "not_cached"
    retryable = False


class DeadlineExceeded(EmbedrouteError):
    """504: the deadline of the request passed."""

    status = 504
    type = "timeout_error"
