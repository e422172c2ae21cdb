"""Says in a few words why a call failed: one function, from any exception to its reason.

The words are for clients, traces and log lines. They hold no text of an upstream or of an input, no
secret, and no name of a Python class.
"""

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Final, cast

from embedroute.errors import (
    BatchTooLarge,
    BudgetExceeded,
    ConnectError,
    ContextTooLong,
    DeadlineExceeded,
    EmbedrouteError,
    EndpointBusy,
    FieldRejected,
    InputFailed,
    InvalidUpstreamResponse,
    InvalidVector,
    MissingRows,
    NoHealthyEndpoint,
    NotCached,
    Overloaded,
    PoolTimeout,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    RequestError,
    ResourcesExhausted,
    TLSError,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamWrongModel,
)

LONGEST_CHAIN: Final = 16
"""Exceptions of a chain that are examined."""

OWN_ERRORS: Final[Mapping[type[EmbedrouteError], str]] = {
    ContextTooLong: "input too long",
    InputFailed: "fails for one input",
    UpstreamRejectedInput: "input rejected",
    FieldRejected: "field rejected",
    RejectedByPage: "request rejected with an error page",
    Rejected: "request rejected",
    BatchTooLarge: "batch too large",
    QuotaExhausted: "quota exhausted",
    UpstreamAuthError: "API key rejected",
    UpstreamModelNotFound: "model not found",
    RateLimited: "rate limited",
    PoolTimeout: "no free connection",
    UpstreamTimeout: "timed out",
    UpstreamWrongModel: "answered with another model",
    InvalidVector: "invalid vector",
    MissingRows: "vectors are missing",
    InvalidUpstreamResponse: "invalid response",
    TLSError: "TLS failed",
    ConnectError: "connection failed",
    UpstreamUnavailable: "failed",
    UpstreamError: "failed",
    RequestError: "request not supported",
    EndpointBusy: "endpoint busy",
    NoHealthyEndpoint: "no healthy endpoint",
    ResourcesExhausted: "resource exhausted",
    Overloaded: "overloaded",
    BudgetExceeded: "budget exceeded",
    NotCached: "not in the cache",
    DeadlineExceeded: "deadline passed",
    EmbedrouteError: "internal error",
}
"""The gateway's own errors → words, if an error does not carry its reason."""

CERTIFICATES: Final[Mapping[int, str]] = {
    9: "certificate not valid yet",
    10: "certificate expired",
    18: "self-signed certificate",
    19: "certificate of an unknown authority",
    20: "certificate of an unknown authority",
    21: "certificate of an unknown authority",
    23: "certificate revoked",
    62: "certificate for another host name",
    64: "certificate for another IP address",
}
"""OpenSSL's code of a failed verification (``X509_V_ERR_…``) → words."""

NOT_TLS: Final = frozenset(
    {
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
"""OpenSSL's reasons for bytes that are not TLS."""

NOT_VALID: Final = "certificate not valid"
NO_TLS: Final = "server does not use TLS"
TLS_REASONS: Final = frozenset({*CERTIFICATES.values(), NOT_VALID, NO_TLS})
"""Failures of TLS that a retry does not change."""

CLOSED: Final = "connection closed"
RESET: Final = "connection reset"
INCOMPLETE: Final = "connection closed before the response was complete"
NOT_HTTP: Final = "response is not valid HTTP"
NOT_JSON: Final = "response is not the expected JSON"
BACKEND_RAISED: Final = "exception in the backend"

SYSTEM_ERRORS: Final[Mapping[int, str]] = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.ECONNABORTED: CLOSED,
    errno.EHOSTUNREACH: "host unreachable",
    errno.EHOSTDOWN: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ENETDOWN: "network unreachable",
    errno.ETIMEDOUT: "timed out",
    errno.EADDRNOTAVAIL: "no local address or port left",
    errno.EACCES: "connection not permitted",
    errno.EPERM: "connection not permitted",
}
"""``errno`` → words."""


def describe(error: BaseException, outside: BaseException | None = None) -> str:
    """Return in words why ``error`` was raised, or "" if neither it nor its causes show that.

    ``outside`` is the exception that the host was handling when the gateway was called.
    """
    if isinstance(error, EmbedrouteError):
        return _describe_own(error)
    described = map(_describe_one, chain(error, outside))
    return next((words for words in described if words), "")


def describe_timeout(seconds: float, what: str = "") -> str:
    """Return the words for a time limit of ``seconds``, for example on the ``DNS lookup``."""
    shown = round(seconds, 1) or round(seconds, 3)
    return f"{what} timed out after {shown:g} s".lstrip()


def _describe_own(error: EmbedrouteError) -> str:
    if isinstance(error, ResourcesExhausted) and error.resource:
        return f"{error.resource} exhausted"
    if isinstance(error, UpstreamError):
        if error.reason:
            return error.reason
        if type(error) is UpstreamUnavailable and error.upstream_status is not None:
            return f"answered {error.upstream_status}"
    return next(OWN_ERRORS[kind] for kind in type(error).__mro__ if kind in OWN_ERRORS)


def chain(
    error: BaseException, outside: BaseException | None, *, with_context: bool = True
) -> Iterator[BaseException]:
    """Yield an exception, its causes, and the members of exception groups among them.

    The context of an exception without a cause belongs to them if ``with_context``.
    """
    pending = [error]
    for _ in range(LONGEST_CHAIN):
        if not pending:
            return
        each = pending.pop()
        yield each
        before = each.__cause__ or (each.__context__ if with_context else None)
        if before is not None and before is not outside:
            pending.append(before)
        if isinstance(each, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", each).exceptions


def _describe_one(error: BaseException) -> str:
    if isinstance(error, EmbedrouteError):
        return _describe_own(error)
    if isinstance(error, socket.gaierror):
        return "DNS lookup failed"
    if isinstance(error, ssl.SSLError):
        return _describe_tls(error)
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        return SYSTEM_ERRORS[error.errno]
    return next((words for kind, words in _KINDS if isinstance(error, kind)), "")


_KINDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (ConnectionRefusedError, "connection refused"),
    (ConnectionResetError, RESET),
    (BrokenPipeError, RESET),
    (ConnectionAbortedError, CLOSED),
    (TimeoutError, "timed out"),
    (EOFError, CLOSED),
    (UnicodeEncodeError, "invalid host name"),
)
"""Exceptions without an ``errno`` → words. asyncio and other libraries raise them so."""


def _describe_tls(error: ssl.SSLError) -> str:
    facts = vars(error)  # an error that Python code has made lacks the attributes of OpenSSL's
    if isinstance(error, ssl.SSLCertVerificationError):
        return CERTIFICATES.get(facts.get("verify_code", 0), NOT_VALID)
    if facts.get("reason") in NOT_TLS:
        return NO_TLS
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return CLOSED
    return "TLS handshake failed"
