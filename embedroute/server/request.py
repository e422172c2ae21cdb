"""One HTTP exchange with a client: its headers judged, its body received within bounds, its answer sent."""

import logging
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from embedroute.cache import FULL_USE, CachePolicy
from embedroute.errors import BodyTooLarge, UnsupportedContentType
from embedroute.limits import Account, BodyBudget
from embedroute.runtime import ClientDisconnected, TimeSlice, tasks
from embedroute.server.response import Header, make_headers
from embedroute.text import log_fields
from embedroute.trace import RequestTrace, new_request_id

log = logging.getLogger("embedroute.access")

_REQUEST_ID: Final = re.compile(rb"[\w.-]{1,128}", re.ASCII)
_JSON: Final = [b"application/json"]
_CONTENT_TYPE: Final = re.compile(
    rb'application/json[ \t]*(?:;[ \t]*charset=(?:utf-8|"utf-8")[ \t]*)?', re.IGNORECASE
)

SMALL_BODY: Final = 1 << 16
"""Bytes of a body that is read though its request was refused: it is as good as here."""
LINGER: Final = 1.0
"""Seconds for that."""


class HTTPExchange:
    """A request on its way in and its answer on the way out; ``receive`` and ``send`` are the server's.

    ``reserved`` bytes of its body are counted in the caller's ``account`` until the door releases them.
    """

    __slots__ = (
        "_held",
        "_once",
        "_settled",
        "account",
        "began",
        "begun",
        "headers",
        "receive",
        "reserved",
        "scope",
        "send",
        "trace",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Start the clock and take the client's request id, if it is a good one."""
        headers: Iterable[Header] = scope["headers"]
        if not isinstance(headers, list):
            # ASGI says "iterable": one that can be read once only is read here, for the host's own function too.
            headers = list(headers)
            scope = {**scope, "headers": headers}
        self.headers: Sequence[Header] = headers
        self.scope = scope
        self.receive = receive
        self.send = send
        self._held = dict(headers)
        self._once = len(self._held) == len(headers)
        self.began = time.perf_counter()
        self.begun = False
        self._settled = False
        self.account: Account | None = None
        self.reserved = 0
        given = self.values(b"x-request-id") if b"x-request-id" in self._held else []
        known = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        self.trace = RequestTrace(given[0].decode() if known else new_request_id())

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        if self._once:
            return [self._held[name]] if name in self._held else []
        return [value for held, value in self.headers if held == name]

    def refuse_other_types(self) -> None:
        """Let only plain UTF-8 JSON pass.

        An untyped or text body would be one that any web page may send across origins (Fetch, "simple" requests).

        Raises:
            UnsupportedContentType: not exactly one such ``Content-Type``, or any ``Content-Encoding``.
        """
        if (
            self._once
            and self._held.get(b"content-type") == b"application/json"
            and b"content-encoding" not in self._held
        ):
            return
        types = self.values(b"content-type")
        if types != _JSON and (len(types) != 1 or not _CONTENT_TYPE.fullmatch(types[0])):
            raise UnsupportedContentType(
                "Send the body with one header 'Content-Type: application/json'."
            )
        encodings = self.values(b"content-encoding")
        if encodings and any(encoding.strip().lower() != b"identity" for encoding in encodings):
            raise UnsupportedContentType(
                "Send the body without Content-Encoding.", code="unsupported_content_encoding"
            )

    def asks_to_explain(self) -> bool:
        """Return whether the query asks for a forecast instead of vectors."""
        query: bytes = self.scope.get("query_string") or b""
        return b"explain=1" in query and b"explain=1" in query.split(b"&")

    def cache_policy(self) -> CachePolicy:
        """Read what ``Cache-Control`` asks for."""
        if b"cache-control" not in self._held:
            return FULL_USE
        given = self.values(b"cache-control")
        asked = {word.strip().lower() for value in given for word in value.split(b",")}
        return CachePolicy(read=b"no-cache" not in asked, store=b"no-store" not in asked)

    async def body(self, most: int, bodies: BodyBudget, caller: str) -> bytes:
        """Read and count a whole body of at most ``most`` bytes.

        Raises:
            BodyTooLarge: by its declared length, or while reading.
            Overloaded: too many bytes of bodies are under way.
            ClientDisconnected: the client disconnected.
        """
        declared = 0
        for length in self.values(b"content-length"):
            if length.isdigit() and (size := int(length[:19])) > declared:
                declared = size
        if declared > most:
            self._settled = True
            raise _too_large(most)
        if declared:
            self.account = bodies.reserve(caller, declared)
            self.reserved = declared
        try:
            message = await self.receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                piece: bytes = message.get("body", b"")
                if (
                    len(piece) <= self.reserved
                ):  # nearly every body is one piece of the declared length
                    self._settled = True
                    return piece
            return await self._read(message, most, bodies, caller)
        except OSError:  # a server's way to report that the client has disconnected (ASGI 2.4)
            raise ClientDisconnected from None
        except (
            HTTPException
        ) as error:  # a host's way to report that a body is over a limit of its own
            if error.status_code != 413:
                raise
            raise BodyTooLarge(f"{error.detail}; send fewer inputs at a time.") from None

    async def _read(
        self, message: Message, most: int, bodies: BodyBudget | None = None, caller: str = ""
    ) -> bytes:
        """Read the rest of a body that begins with ``message``."""
        read = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            piece: bytes = message.get("body", b"")
            size = len(read) + len(piece)
            if size > most:
                raise _too_large(most)
            if size > self.reserved and bodies is not None:
                self.account = bodies.reserve(caller, size - self.reserved)
                self.reserved = size
            read += piece
            if not message.get("more_body", False):
                self._settled = True
                return bytes(read)
            message = await self.receive()

    async def gone(self) -> None:
        """Return when the client leaves; the body has been read."""
        try:
            while (await self.receive())["type"] != "http.disconnect":
                pass
        except OSError:
            raise ClientDisconnected from None

    async def answer(self, status: int, body: bytes, extra: Iterable[Header] = ()) -> None:
        """Send a whole answer."""
        await self.answer_in_pieces(status, (body,), extra)

    async def answer_in_pieces(
        self, status: int, pieces: Sequence[bytes], extra: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer whose body lies in pieces.

        Raises:
            ClientDisconnected: the client left.
        """
        self.begun = True
        took = (time.perf_counter() - self.began) * 1000
        headers = make_headers(self.trace, status, sum(map(len, pieces)), took)
        headers += extra
        if self.scope["method"] == "HEAD":
            pieces = (b"",)
        try:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            if len(pieces) > 1:
                await self._send_in_turns(pieces[:-1])
            if self._leaves_body():
                await self.send(
                    {"type": "http.response.body", "body": pieces[-1], "more_body": True}
                )
                await self._linger()
                pieces = (b"",)
            await self.send({"type": "http.response.body", "body": pieces[-1]})
        except OSError:
            raise ClientDisconnected from None

    async def _send_in_turns(self, pieces: Sequence[bytes]) -> None:
        turn = (
            TimeSlice()
        )  # where the client is quick nothing is waited for, and the loop would not go round
        for piece in pieces:
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
            await turn.yield_to_loop()

    def _leaves_body(self) -> bool:
        """Whether a small body was not read though it is on its way."""
        if (
            self._settled
            or not self.scope.get("http_version", "").startswith("1")
            or self.values(b"expect")
        ):
            return False
        declared = self.values(b"content-length")
        return (
            len(declared) == 1 and declared[0].isdigit() and 0 < int(declared[0][:19]) <= SMALL_BODY
        )

    async def _linger(self) -> None:
        """Take in what the client has yet to send, which has its answer by now: it must not meet a closed connection.

        Some servers close one whose request was not read, and a body that comes after that resets the connection.
        """
        with (
            suppress(TimeoutError, OSError, BodyTooLarge, ClientDisconnected),
            tasks.fail_after(LINGER),
        ):
            await self._read(await self.receive(), SMALL_BODY)

    def record(self, event: str, status: int, **facts: object) -> None:
        """Log how the exchange ended: one record, its facts as fields; no secret, no input text."""
        if not log.isEnabledFor(logging.INFO):
            return
        trace = self.trace
        kept = {
            "request_id": trace.request_id,
            "status": status,
            "ms": round((time.perf_counter() - self.began) * 1000, 1),
            "attempts": trace.attempts,
            "hits": trace.hits,
            "misses": trace.misses,
            "shared_hits": trace.shared_hits,
            "providers": list(trace.providers_for(status)),
        }
        log.info(event, extra=log_fields({**kept, **facts}))


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is over {most} bytes; send fewer inputs at a time.")
