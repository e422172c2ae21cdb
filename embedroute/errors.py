"""The error tree: every failure the gateway knows, with the status, type and code that a client is told.

Two families share one root. A *refusal* is the request's own fault and is final; it stands here. An *upstream
failure* stands in :mod:`embedroute.failures`, with the root. Names of types and codes follow OpenAI's error
reference; the statuses follow RFC 9110.
"""

from collections.abc import Sequence

from embedroute.failures import (
    LONGEST_HINT,
    BadAnswer,
    BatchTooLarge,
    ContextTooLong,
    EmbedrouteError,
    InputRefused,
    KeyRefused,
    Measure,
    ModelRefused,
    RateLimited,
    Rejected,
    RejectedByPage,
    TimedOut,
    Unavailable,
    Unreachable,
    UpstreamError,
)
from embedroute.wording import echo, escaped

__all__ = [
    "LONGEST_HINT",
    "BadAnswer",
    "BatchTooLarge",
    "BodyTimeout",
    "BodyTooLarge",
    "ConfigError",
    "ContextTooLong",
    "DeadlineExceeded",
    "EmbedrouteError",
    "InputRefused",
    "InternalError",
    "InvalidRequest",
    "KeyRefused",
    "Measure",
    "MethodNotAllowed",
    "MissingExtra",
    "ModelNotFound",
    "ModelRefused",
    "NoEligibleProvider",
    "NoHealthyEndpoint",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "RateLimited",
    "Refusal",
    "Rejected",
    "RejectedByPage",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
    "UnsupportedContentType",
    "UpstreamError",
]


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
