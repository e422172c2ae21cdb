"""The headers of an answer: what a request's journey was, and what a client's library is to do about an error."""

import math

from embedroute.errors import LONGEST_RETRY_AFTER, EmbedrouteError, MethodNotAllowed
from embedroute.routing import SHORTEST_COOLDOWN
from embedroute.trace import RequestTrace

Header = tuple[bytes, bytes]


def make_headers(trace: RequestTrace, status: int, size: int, took: float) -> list[Header]:
    """The headers of every answer: its ``size`` in bytes, the milliseconds it ``took``, and what its journey was."""
    facts = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % size),
        (b"x-request-id", trace.request_id.encode()),
        (b"server-timing", b"total;dur=%.1f" % took),
        (b"openai-processing-ms", b"%d" % took),
        (b"x-embedroute-attempts", b"%d" % trace.attempts),
        (b"x-embedroute-cache", b"hits=%d misses=%d" % (trace.hits, trace.misses)),
    ]
    if providers := trace.providers_for(status):
        facts.append((b"x-embedroute-provider", ",".join(providers).encode()))
    if trace.estimated:
        facts.append((b"x-embedroute-usage", b"estimated"))
    if trace.fallback:
        facts.append(
            (b"x-embedroute-model-fallback", trace.fallback.encode("ascii", "backslashreplace"))
        )
    return facts


def error_headers(error: EmbedrouteError, status: int) -> list[Header]:
    """The headers that tell a client's library what to do about an error."""
    hints: list[Header] = []
    if status in {429, 503}:
        # LangChain.js does not come back from a 429 that names no rest; without an upstream's word ours is this long.
        rest = SHORTEST_COOLDOWN if error.retry_after is None else error.retry_after
        wait = min(max(rest, 0.0), LONGEST_RETRY_AFTER)
        hints += [
            (b"retry-after", b"%d" % math.ceil(wait)),
            (b"retry-after-ms", b"%d" % math.ceil(wait * 1000)),
        ]
    if status == 401:
        hints.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        hints.append((b"allow", error.allow.encode()))
    if error.code == "unsupported_content_encoding":
        hints.append((b"accept-encoding", b"identity"))
    if not error.retryable:
        hints.append((b"x-should-retry", b"false"))
    return hints
