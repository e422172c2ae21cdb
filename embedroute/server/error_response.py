"""Makes the response to an error: its headers, and for routes of the host the whole response."""

import math

from starlette.responses import Response

from embedroute.errors import (
    LONGEST_RETRY_AFTER,
    BudgetExceeded,
    EmbedrouteError,
    MethodNotAllowed,
    RateLimitExceeded,
    RequestError,
    UpstreamRejectedInput,
)
from embedroute.protocol import DIALECTS
from embedroute.routing import SHORTEST_COOLDOWN
from embedroute.server.exchange import Header
from embedroute.trace import RequestTrace, new_request_id


def error_headers(error: EmbedrouteError, status: int) -> list[Header]:
    """Return the headers that tell a client library how to handle an error."""
    headers: list[Header] = []
    if status in {429, 503} and not isinstance(error, BudgetExceeded):
        # LangChain.js does not retry after a 429 without retry-after. If the upstream gave none,
        # send our shortest cool-down.
        retry_after = SHORTEST_COOLDOWN if error.retry_after is None else error.retry_after
        seconds = min(max(retry_after, 0.0), LONGEST_RETRY_AFTER)
        headers += [
            (b"retry-after", b"%d" % math.ceil(seconds)),
            (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)),
        ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, RateLimitExceeded):
        headers += error.headers
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if error.code == "unsupported_content_encoding":
        headers.append((b"accept-encoding", b"identity"))
    # Clients do not retry the status of a mistake in the request, so it needs no header.
    if not error.retryable and not isinstance(error, RequestError | UpstreamRejectedInput):
        headers.append((b"x-should-retry", b"false"))
    return headers


def respond_to_error(error: EmbedrouteError, dialect: str) -> Response:
    """Return the response of the API to an ``error`` of an in-process call."""
    error = DIALECTS[dialect].adapt(error)
    body = DIALECTS[dialect].error(error, RequestTrace(new_request_id()))
    response = Response(body, error.status, media_type="application/json")
    response.raw_headers += error_headers(error, error.status)
    return response
