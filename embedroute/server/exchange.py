"""Handles one HTTP exchange: checks the headers of the request, and sends the response.

``request_body.py`` reads the body, and ``error_response.py`` adds the headers of an error.

A disconnect of the client is only detected here. ``tasks.watch`` cancels the work then.
"""

import math
import re
import time
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import Message, Receive, Scope, Send

from embedroute.cache import FULL_USE, CachePolicy
from embedroute.errors import (
    InvalidRequest,
    UnsupportedContentType,
)
from embedroute.limits import ByteBudget
from embedroute.log_records import ResponseFacts
from embedroute.runtime import (
    ClientDisconnected,
    ClientTooSlow,
    Watch,
    fairness,
    tasks,
)
from embedroute.server.protocols import Format
from embedroute.server.request_body import SMALL_BODY, RequestBody
from embedroute.text import echo
from embedroute.trace import RequestTrace, new_request_id

Header = tuple[bytes, bytes]

_REQUEST_ID: Final = re.compile(rb"[\w.-]{1,128}", re.ASCII)
_JSON: Final = [b"application/json"]
_CONTENT_TYPE: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*charset=(?:utf-8|"utf-8")[ \t]*)?', re.IGNORECASE
)

EXPLAIN: Final[Mapping[str, bool]] = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
"""Value of the query parameter ``explain``, in lower case → whether a forecast is requested."""

SMALL_RESPONSE: Final = 1 << 18
"""Bytes; a longer response is sent in pieces, so that it does not wait in the server's buffer."""
PIECE: Final = 1 << 16
"""Bytes of a piece of an encoded response; most servers buffer as much of a response."""


class HTTPExchange:
    """One HTTP request and its response; ``receive`` and ``send`` are the ASGI server's.

    ``response_started`` is True once the response has been started.
    ``embeds`` is True for a request to embed, and ``explains`` if it requests a forecast.
    ``status`` is that of the response (499 before it), and ``code`` that of the error.
    ``write_timeout`` is the longest time in seconds for which the client may read nothing.

    ``format`` writes the response if the request is one of another API; ``names`` are then the
    client's names of fields. ``key_header`` may hold the API key instead of ``Authorization``.
    """

    __slots__ = (
        "_by_name",
        "_names_unique",
        "_started_at",
        "body",
        "code",
        "embeds",
        "explains",
        "format",
        "headers",
        "key_header",
        "names",
        "receive",
        "response_started",
        "scope",
        "send",
        "status",
        "trace",
        "write_timeout",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, write_timeout: float = 30.0
    ) -> None:
        """Start the clock, and use the client's ``x-request-id`` if it is valid."""
        headers: Iterable[Header] = scope["headers"]
        if not isinstance(headers, list):
            # ASGI allows any iterable. Copy it, because the host's authenticate= reads it too.
            headers = list(headers)
            scope = {**scope, "headers": headers}
        self.headers: Sequence[Header] = headers
        self.scope: Scope = scope
        self.receive: Receive = receive
        self.send: Send = send
        self.write_timeout: float = write_timeout
        self._by_name = dict(headers)
        self._names_unique = len(self._by_name) == len(headers)
        self._started_at = time.perf_counter()
        self.response_started: bool = False
        self.embeds: bool = False
        self.explains: bool = False
        self.status: int = 499
        self.code: str | None = None
        self.body: RequestBody = RequestBody(receive)
        self.format: Format | None = None
        self.names: Mapping[str, str] = {}
        self.key_header: bytes = b""
        request_ids = self.values(b"x-request-id") if b"x-request-id" in self._by_name else []
        is_valid = len(request_ids) == 1 and _REQUEST_ID.fullmatch(request_ids[0])
        self.trace: RequestTrace = RequestTrace(
            request_ids[0].decode() if is_valid else new_request_id()
        )

    def values(self, name: bytes) -> list[bytes]:
        """Return every value of the header ``name``, which is in lower case.

        Spaces and tabs around a value are not part of it (RFC 9110 §5.5). Some servers' parsers
        leave them in.
        """
        if self._names_unique:
            return [self._by_name[name].strip(b" \t")] if name in self._by_name else []
        return [value.strip(b" \t") for header, value in self.headers if header == name]

    def require_json(self) -> None:
        """Check that the body is declared as uncompressed JSON in UTF-8.

        A body without a type or with a text type could be sent by any web page across origins
        (a "simple request" of the Fetch standard).

        Raises:
            UnsupportedContentType: there is not exactly one such ``Content-Type``, or there is a
                ``Content-Encoding`` other than ``identity``.
        """
        if (
            self._names_unique
            and self._by_name.get(b"content-type") == b"application/json"
            and b"content-encoding" not in self._by_name
        ):
            return
        types = self.values(b"content-type")
        if types != _JSON and (len(types) != 1 or not _CONTENT_TYPE.fullmatch(types[0])):
            raise UnsupportedContentType(
                "Send the body with one header 'Content-Type: application/json'."
            )
        encodings = self.values(b"content-encoding")
        if encodings and any(encoding.lower() != b"identity" for encoding in encodings):
            raise UnsupportedContentType(
                "Send the body without Content-Encoding.", code="unsupported_content_encoding"
            )

    def asks_to_explain(self) -> bool:
        """Return whether the query requests a forecast (``?explain=1``) instead of vectors.

        Raises:
            InvalidRequest: the value is not in ``EXPLAIN``; a wrong guess could be billed.
        """
        query: bytes = self.scope.get("query_string") or b""
        if not query:
            return False
        values = [
            value.lower()
            for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True)
            if name == "explain"
        ]
        for value in values:
            if value not in EXPLAIN:
                raise InvalidRequest(
                    f"'explain' must be one of {', '.join(filter(None, EXPLAIN))}, "
                    f"not {echo(value)}.",
                    param="explain",
                )
        return any(EXPLAIN[value] for value in values)

    def cache_policy(self) -> CachePolicy:
        """Return the cache policy that the ``Cache-Control`` headers request."""
        if b"cache-control" not in self._by_name:
            return FULL_USE
        values = self.values(b"cache-control")
        directives = {word.strip().lower() for value in values for word in value.split(b",")}
        return CachePolicy(
            read=b"no-cache" not in directives,
            store=b"no-store" not in directives,
            compute=b"only-if-cached" not in directives,
        )

    def read_body(self, most: int, bodies: ByteBudget, caller: str) -> Awaitable[bytes]:
        """Read the body; see ``RequestBody.read``."""
        return self.body.read(self.values(b"content-length"), most, bodies, caller)

    async def wait_for_disconnect(self) -> None:
        """Wait until the client disconnects. Call this only after the body was read.

        Raises:
            ClientDisconnected: the server reports the disconnect by an error.
        """
        try:
            while (await self.receive())["type"] != "http.disconnect":
                pass
        except OSError:
            raise ClientDisconnected from None

    async def answer(
        self,
        status: int,
        body: bytes,
        extra: Iterable[Header] = (),
        content_type: bytes = b"application/json",
    ) -> None:
        """Send a complete response: an error, a list or a document.

        Raises:
            ClientDisconnected: the client disconnected.
            ClientTooSlow: the client read nothing for ``write_timeout`` seconds.
        """
        async with tasks.watch(self.write_timeout, ClientTooSlow):
            await self.send_whole(status, body, extra, content_type)

    async def send_whole(
        self,
        status: int,
        body: bytes,
        extra: Iterable[Header] = (),
        content_type: bytes = b"application/json",
    ) -> None:
        """Send a complete response, without a timeout.

        Raises:
            ClientDisconnected: the client disconnected.
        """
        self.response_started = True
        self.status = status
        headers = make_headers(self.trace, status, len(body), self._started_at, content_type)
        headers += extra
        if self.scope["method"] == "HEAD":
            body = b""
        try:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            if not self.body.is_done and self._has_unread_body():
                await self.send({"type": "http.response.body", "body": body, "more_body": True})
                await self.body.drain()
                body = b""
            await self.send({"type": "http.response.body", "body": body})
        except OSError:
            raise ClientDisconnected from None

    async def send_pieces(
        self, size: int | None, pieces: Iterator[bytes], watch: Watch, *, in_turn: bool
    ) -> None:
        """Send the 200 of a large response of ``size`` bytes, each piece as the client reads.

        Without a ``size`` the server sends it in chunks (RFC 9112 §7.1).

        With ``in_turn``, other large jobs wait while a piece is computed, because that takes long.
        The last message is empty: the server accepts it only after the client has read the others.

        Raises:
            ClientDisconnected: the client disconnected.
        """
        self.response_started = True
        self.status = 200
        headers = make_headers(self.trace, 200, size, self._started_at)
        take = partial(next, pieces, b"")
        message: Message = {"type": "http.response.start", "status": 200, "headers": headers}
        try:
            while True:
                watch.restart(self.write_timeout, ClientTooSlow, self.wait_for_disconnect)
                await self.send(message)
                # The client is not responsible for the time that the next piece takes.
                watch.restart(math.inf, ClientTooSlow, self.wait_for_disconnect)
                piece = await fairness.run_in_turn(take) if in_turn else take()
                if not piece:
                    break
                message = {"type": "http.response.body", "body": piece, "more_body": True}
            watch.restart(self.write_timeout, ClientTooSlow, None)
            await self.send({"type": "http.response.body", "body": b""})
        except OSError:
            raise ClientDisconnected from None

    def needs_length(self) -> bool:
        """Return whether the client could not see the end of a response without its length.

        HTTP/1.0 has no chunks, so the server would close the connection at the end, and a response
        that was cut off would look complete.
        """
        return self.scope.get("http_version") == "1.0"

    def _has_unread_body(self) -> bool:
        """Return whether the client is sending a small body."""
        if not self.scope.get("http_version", "").startswith("1") or self.values(b"expect"):
            return False
        declared = self.values(b"content-length")
        return (
            len(declared) == 1 and declared[0].isdigit() and 0 < int(declared[0][:19]) <= SMALL_BODY
        )

    def elapsed(self) -> float:
        """Return the seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    def facts(self, status: int, now: float) -> ResponseFacts:
        """Return the fields that the log records of all responses have.

        ``now`` is the time of the gateway's clock.
        """
        trace = self.trace
        seconds = self.elapsed()
        upstream = min(trace.upstream_seconds(now), seconds)
        cost = trace.cost
        return {
            "status": status,
            "code": self.code,
            "model": trace.model or None,
            "caller": trace.caller,
            "providers": list(trace.providers_for(status)),
            "attempts": trace.attempts,
            "inputs": trace.inputs,
            "tokens": trace.served_tokens,
            "cost": None if cost is None else float(cost),
            "hits": trace.hits,
            "misses": trace.misses,
            "shared_hits": trace.shared_hits,
            "ms": round(seconds * 1000, 1),
            "gateway_ms": round((seconds - upstream) * 1000, 1),
            "upstream_ms": round(upstream * 1000, 1),
            "request_id": trace.request_id,
        }


def make_headers(
    trace: RequestTrace,
    status: int,
    size: int | None,
    started_at: float,
    content_type: bytes = b"application/json",
) -> list[Header]:
    """Return the headers of every response.

    ``size`` is the length of the body in bytes if it is known, and ``started_at`` the
    ``time.perf_counter()`` at which the request arrived.
    """
    took = (time.perf_counter() - started_at) * 1000
    headers = [
        (b"content-type", content_type),
        (b"x-request-id", trace.request_id.encode()),
        (b"server-timing", b"total;dur=%.1f" % took),
        (b"openai-processing-ms", b"%d" % took),
        (b"x-embedroute-attempts", b"%d" % trace.attempts),
        (b"x-embedroute-cache", b"hits=%d misses=%d" % (trace.hits, trace.misses)),
    ]
    if size is not None:
        headers.append((b"content-length", b"%d" % size))
    if providers := trace.providers_for(status):
        headers.append((b"x-embedroute-provider", ",".join(providers).encode()))
    headers += trace.limit_headers
    if trace.estimated:
        headers.append((b"x-embedroute-usage", b"estimated"))
    if trace.cut_inputs:
        positions = ",".join(map(str, trace.cut_inputs))
        headers.append((b"x-embedroute-truncated", positions.encode()))
    if trace.fallback:
        headers.append(
            (b"x-embedroute-model-fallback", trace.fallback.encode("ascii", "backslashreplace"))
        )
    return headers
