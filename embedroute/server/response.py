"""Makes response headers: facts about the request, and instructions for client libraries."""

import math
import time

from embedroute.errors import LONGEST_RETRY_AFTER, EmbedrouteError, MethodNotAllowed
from embedroute.routing import SHORTEST_COOLDOWN
from embedroute.trace import RequestTrace

Header = tuple[bytes, bytes]


def make_headers(trace: RequestTrace, status: int, size: int, started_at: float) -> list[Header]:
    """Return the headers of every response.

    ``size`` is the length of the body in bytes, and ``started_at`` the ``time.perf_counter()`` at
    which the request arrived.
    """
    took = (time.perf_counter() - started_at) * 1000
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % size),
        (b"x-request-id", trace.request_id.encode()),
        (b"server-timing", b"total;dur=%.1f" % took),
        (b"openai-processing-ms", b"%d" % took),
        (b"x-embedroute-attempts", b"%d" % trace.attempts),
        (b"x-embedroute-cache", b"hits=%d misses=%d" % (trace.hits, trace.misses)),
    ]
    if providers := trace.providers_for(status):
        headers.append((b"x-embedroute-provider", ",".join(providers).encode()))
    if trace.estimated:
        headers.append((b"x-embedroute-usage", b"estimated"))
    if trace.fallback:
        headers.append(
            (b"x-embedroute-model-fallback", trace.fallback.encode("ascii", "backslashreplace"))
        )
    return headers


def error_headers(error: EmbedrouteError, status: int) -> list[Header]:
    """Return the headers that tell a client library how to handle an error."""
    headers: list[Header] = []
    if status in {429, 503}:
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
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if error.code == "unsupported_content_encoding":
        headers.append((b"accept-encoding", b"identity"))
    if not error.retryable:
        headers.append((b"x-should-retry", b"false"))
    return headers
