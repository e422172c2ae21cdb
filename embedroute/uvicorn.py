"""Provides ``HTTPProtocol``, with which uvicorn serves clients that offer HTTP/2.

A client that can use HTTP/2 may offer it in a request over HTTP/1.1 (``Upgrade: h2c``), as Java's
does. A server may ignore the offer (RFC 9110 §7.8). uvicorn ignores it too, but httptools ends such
a request after its headers, so that the application gets no body. The parser h11 does not, but it
takes half as much CPU again for a whole request. To use this class in a host of your own::

    uvicorn app:app --http embedroute.uvicorn:HTTPProtocol
"""

import asyncio
from array import array
from typing import Any

from embedroute.errors import MissingExtra

try:
    from httptools import HttpParserUpgrade, HttpRequestParser
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import ServerState
except ImportError:
    raise MissingExtra("serve", "uvicorn") from None


class HTTPProtocol(HttpToolsProtocol):
    """uvicorn's protocol with httptools, except that it ignores offers of other protocols.

    An offer of WebSocket is left to uvicorn.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Create the protocol of one connection; the arguments are uvicorn's."""
        super().__init__(config, server_state, app_state, _loop)
        self.parser: _RequestParser = _RequestParser(self)
        self.without_offer: bytes = b""

    def on_headers_complete(self) -> None:
        """Start the request, unless it is to be parsed again without its offer."""
        if self.parser.should_upgrade() and self._offers_only_others():
            self.without_offer: bytes = self._write_head()
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request, unless it is to be parsed again."""
        if not self.without_offer:
            super().on_message_complete()

    def _offers_only_others(self) -> bool:
        # The method CONNECT counts as an upgrade without this header.
        offers = [value.strip().lower() for name, value in self.headers if name == b"upgrade"]
        return bool(offers) and b"websocket" not in offers

    def _write_head(self) -> bytes:
        """Return the request line and the headers, without the offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


class _RequestParser(HttpRequestParser):
    """A parser that calls ``protocol``, and parses a request with an offer again without it."""

    def __init__(self, protocol: HTTPProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def feed_data(self, data: "bytes | bytearray | memoryview | array[int]") -> None:
        """Parse ``data``; a parser that has seen an offer is replaced, because it has ended."""
        protocol = self._protocol
        parser: HttpRequestParser = self
        while True:
            try:
                HttpRequestParser.feed_data(parser, data)
            except HttpParserUpgrade as offer:
                if not protocol.without_offer:
                    raise
                end_of_head: int = offer.args[0]
                data = memoryview(data)[end_of_head:]
            else:
                return
            head = protocol.without_offer
            protocol.without_offer = b""
            protocol.parser = parser = _RequestParser(protocol)
            HttpRequestParser.feed_data(parser, head)
