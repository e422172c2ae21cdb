"""The root of the error tree, and the branch for what goes wrong upstream.

An upstream failure is judged by :mod:`embedroute.routing.retry`: it may be tried again, tried elsewhere, or passed
on. Whoever raises or catches one takes it from :mod:`embedroute.errors`, which holds the whole tree.

The error tree: every failure the gateway knows, with the status, type and code that a client is told.

Two families share one root. A *refusal* is the request's own fault and is final; it stands here. An *upstream
failure* stands in :mod:`embedroute.errors`, with the root. Names of types and codes follow OpenAI's error
reference; the statuses follow RFC 9110.
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
    "ConfigError",
    "ConnectError",
    "ContextTooLong",
    "DeadlineExceeded",
    "EmbedrouteError",
    "InternalError",
    "InvalidRequest",
    "InvalidUpstreamResponse",
    "Measure",
    "MethodNotAllowed",
    "MissingExtra",
    "ModelNotFound",
    "NoEligibleProvider",
    "NoHealthyEndpoint",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "RateLimited",
    "Rejected",
    "RejectedByPage",
    "RequestError",
    "Unauthorized",
    "UnsupportedContentType",
    "UpstreamAuthError",
    "UpstreamError",
    "UpstreamModelNotFound",
    "UpstreamRejectedInput",
    "UpstreamTimeout",
    "UpstreamUnavailable",
]

LONGEST_RETRY_AFTER = 120.0
"""Seconds; OpenAI's clients take a longer ``retry-after`` as "do not retry"."""


class EmbedrouteError(Exception):
    """Anything that ends a request: ``message`` is for the client and says what to do."""

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
        """Remember what the client is told; ``retry_after`` is in seconds."""
        super().__init__(message)
        self.param = param
        self.code = code or self.code
        self.retry_after = _seconds(retry_after)

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle every subclass whatever its ``__init__`` takes: by what it holds."""
        return _restored, (type(self), self.args, vars(self))

    @property
    def message(self) -> str:
        """What the client is told; it is kept nowhere else, so that what is taken out of it is gone."""
        return str(self.args[0])

    @message.setter
    def message(self, message: str) -> None:
        self.args = (message,)


E = TypeVar("E", bound=EmbedrouteError)


def _restored(kind: type[E], args: tuple[object, ...], held: Mapping[str, object]) -> E:
    error = kind.__new__(kind, *args)
    vars(error).update(held)
    return error


def _seconds(told: float | None) -> float | None:
    """Read how long a plugin says to wait, as a header may have it; what is no time to come says nothing."""
    try:
        seconds = -1.0 if told is None else float(told)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None


class UpstreamError(EmbedrouteError):
    """502: an upstream failed; ``upstream_status`` is what it answered, if it did, and ``provider`` whose it was.

    ``matched_text`` are the words of the upstream by which the failure is known, if it was by words that a client could write.
    ``is_neutral`` says that the message quotes nothing (see :mod:`embedroute.upstream_errors.neutral`).
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
    ) -> None:
        """Remember the upstream's own status beside what the client is told."""
        super().__init__(message, param=param, code=code, retry_after=retry_after)
        self.upstream_status = upstream_status
        self.matched_text = ""
        self.provider: str | None = None
        self.already_recorded = False
        self.is_neutral = False


class UpstreamUnavailable(UpstreamError):
    """The upstream's own trouble: 408, 424, 5xx, a reset, a body that broke off."""


class ConnectError(UpstreamUnavailable):
    """No connection was made, so nothing was sent and trying again at once is free."""


class UpstreamTimeout(UpstreamUnavailable):
    """The upstream was too slow; it may still be working, so the same endpoint is not asked again."""

    status = 504
    type = "timeout_error"


class InvalidUpstreamResponse(UpstreamUnavailable):
    """A 200 that is not one right vector per input."""

    code = "upstream_invalid_response"


class UpstreamAuthError(UpstreamError):
    """The upstream refuses *our* key, or our account's quota is spent; the client's key is fine."""

    code = "upstream_credentials"
    retryable = False


class UpstreamModelNotFound(UpstreamError):
    """The upstream does not know the model."""

    code = "upstream_model_not_found"


class RateLimited(UpstreamError):
    """429: the upstream asks for a rest of ``retry_after`` seconds, if it says so."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UpstreamRejectedInput(UpstreamError):
    """400: the upstream finds fault with the input itself; no other endpoint would take it."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(UpstreamRejectedInput):
    """400: an input is longer than the model's context."""

    code = "context_length_exceeded"


class Rejected(UpstreamError):
    """400: a 4xx that blames neither the input nor our key, as a moderation's 403.

    Another endpoint may serve the input.
    """

    status = 400
    type = "invalid_request_error"
    code = "upstream_refused"
    retryable = False


class RejectedByPage(Rejected):
    """502: the same without a message for the client: a firewall's web page, or an empty body."""

    status = 502
    type = "upstream_error"
    code = None


class Measure(StrEnum):
    """What of a call an upstream counts when it finds the call too large."""

    INPUTS = "inputs"
    TOKENS = "tokens"
    BYTES = "bytes"


class BatchTooLarge(UpstreamError):
    """The call holds more than the upstream takes; half of it may pass.

    ``measure`` is what the upstream counts, or None if it does not say: then no cap is learned.
    """

    measure: Measure | None = None


class ConfigError(EmbedrouteError):
    """A configuration that cannot be started, with one line per mistake."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Join ``mistakes``, each of which names its place; a name in one may hold a line break."""
        self.mistakes = tuple(map(escaped, mistakes))
        super().__init__("\n".join(self.mistakes))


class MissingExtra(ConfigError, ImportError):
    """An optional dependency that is not installed; an ``ImportError`` too, as a failed import is expected to raise."""

    def __init__(self, extra: str, package: str) -> None:
        """Name the pip command that installs ``package``."""
        super().__init__([f"{package} is not installed; run: pip install 'embedroute[{extra}]'"])


class RequestError(EmbedrouteError):
    """The request cannot be served as it stands; sending it again will not help."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """400: a bad body or value; ``param`` names the field."""


class Unauthorized(RequestError):
    """401: a missing, malformed or unknown key (RFC 6750)."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(RequestError):
    """403: a good key that may not do this."""

    status = 403
    type = "permission_error"


class NotFound(RequestError):
    """404: no such path, model or eligible provider."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """404: neither the config nor the catalogue knows the model."""

    code = "model_not_found"


class NoEligibleProvider(NotFound):
    """404: the preferences leave nobody."""

    code = "no_eligible_provider"


class MethodNotAllowed(RequestError):
    """405: the path is right, the method is not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        """Name the methods that the path has."""
        super().__init__(f"{echo(method)} is not allowed here; use {allow}.")
        self.allow = allow


class BodyTimeout(RequestError):
    """408: the body was not whole in time."""

    status = 408
    type = "timeout_error"


class BodyTooLarge(RequestError):
    """413: the body is over ``max_body_bytes``."""

    status = 413


class UnsupportedContentType(RequestError):
    """415: not plain UTF-8 JSON."""

    status = 415
    code = "unsupported_content_type"


class InternalError(EmbedrouteError):
    """500: our bug; no detail leaves the process."""


class Overloaded(EmbedrouteError):
    """503: shed, or every endpoint is resting."""

    status = 503
    type = "overloaded_error"
    code = "overloaded"


class NoHealthyEndpoint(Overloaded):
    """503: every candidate's breaker is open."""

    code = "no_healthy_endpoint"


class DeadlineExceeded(EmbedrouteError):
    """504: the request's deadline passed."""

    status = 504
    type = "timeout_error"
