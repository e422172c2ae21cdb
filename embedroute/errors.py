"""The error tree: every failure the gateway knows, with the status, type and code that a client is told.

Two families share one root. A *refusal* is the request's own fault and is final. An *upstream failure* is
judged by :mod:`embedroute.routing.retry`: it may be tried again, tried elsewhere, or passed on. Names of
types and codes follow OpenAI's error reference; the statuses follow RFC 9110.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import ClassVar

LONGEST_ECHO = 128
"""Characters of a client's own text that an error repeats."""

LONGEST_HINT = 120.0
"""Seconds; OpenAI's clients take a longer ``retry-after`` as "do not retry"."""


class EmbedrouteError(Exception):
    """Anything that ends a request: ``message`` is for the client and says what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    heals: ClassVar[bool] = True

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
        self.message = message
        self.param = param
        self.code = code or self.code
        self.retry_after = retry_after


class ConfigError(EmbedrouteError):
    """A configuration that cannot be started, with one line per mistake."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        """Join ``mistakes``, each of which names its place."""
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


class MissingExtra(ConfigError):
    """An optional dependency that is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        """Name the pip command that installs ``package``."""
        super().__init__([f"{package} is not installed; run: pip install 'embedroute[{extra}]'"])


class Refusal(EmbedrouteError):
    """The request cannot be served as it stands; sending it again will not help."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(Refusal):
    """400: a bad body or value; ``param`` names the field."""


class Unauthorized(Refusal):
    """401: a missing, malformed or unknown key (RFC 6750)."""

    status = 401
    code = "invalid_api_key"


class PermissionDenied(Refusal):
    """403: a good key that may not do this."""

    status = 403
    type = "permission_error"


class NotFound(Refusal):
    """404: no such path, model or eligible provider."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """404: neither the config nor the catalogue knows the model."""

    code = "model_not_found"


class NoEligibleProvider(NotFound):
    """404: the preferences leave nobody."""

    code = "no_eligible_provider"


class MethodNotAllowed(Refusal):
    """405: the path is right, the method is not."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        """Name the methods that the path has."""
        super().__init__(f"{echo(method)} is not allowed here; use {allow}.")
        self.allow = allow


class BodyTimeout(Refusal):
    """408: the body was not whole in time."""

    status = 408
    type = "timeout_error"


class BodyTooLarge(Refusal):
    """413: the body is over ``max_body_bytes``."""

    status = 413


class UnsupportedContentType(Refusal):
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


class UpstreamError(EmbedrouteError):
    """502: an upstream failed; ``upstream_status`` is what it answered, if it did, and ``provider`` whose it was."""

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
        self.provider: str | None = None
        self.counted = False


class Unavailable(UpstreamError):
    """The upstream's own trouble: 408, 424, 5xx, a reset, a body that broke off."""


class Unreachable(Unavailable):
    """No connection was made, so nothing was sent and trying again at once is free."""


class TimedOut(Unavailable):
    """The upstream was too slow; it may still be working, so the same endpoint is not asked again."""

    status = 504
    type = "timeout_error"


class BadAnswer(Unavailable):
    """A 200 that is not one right vector per input."""

    code = "upstream_invalid_response"


class KeyRefused(UpstreamError):
    """The upstream refuses *our* key, or our account's quota is spent; the client's key is fine."""

    code = "upstream_credentials"
    heals = False


class ModelRefused(UpstreamError):
    """The upstream does not know the model."""

    code = "upstream_model_not_found"


class RateLimited(UpstreamError):
    """429: the upstream asks for a rest of ``retry_after`` seconds, if it says so."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class InputRefused(UpstreamError):
    """400: the upstream finds fault with the input itself; no other endpoint would take it."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(InputRefused):
    """400: an input is longer than the model's context."""

    code = "context_length_exceeded"


class BatchTooLarge(UpstreamError):
    """The call holds more than the upstream takes; half of it may pass."""


def echo(text: str) -> str:
    """Repeat a client's text safely: escaped, and cut at ``LONGEST_ECHO`` characters."""
    return ascii(text[:LONGEST_ECHO])[: LONGEST_ECHO + 2]


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Suggest the closest of ``known``, as ``; did you mean "x"?``, or nothing."""
    close = get_close_matches(name[:LONGEST_ECHO], known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
