"""The default engine: httpx2 on asyncio and trio, with its own connections or the host's client."""

import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import anyio
import httpx2

from embedroute.backend import (
    Headers,
    Secret,
    UpstreamRequest,
    UpstreamResponse,
    forget_frames,
    to_wire_value,
)
from embedroute.errors import ConnectError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from embedroute.transport.base import (
    CONNECT_TIMEOUT,
    DEFAULT_CONFIG,
    DEFAULT_LIMITS,
    ExchangeLimits,
    TransportConfig,
    lower_names,
    refuse_compressed,
    too_large,
)
from embedroute.transport.http1.request import DEFAULT_HEADERS, basic_credentials
from embedroute.transport.httpx2_connections import Connections


class Httpx2Transport:
    """Sends requests through httpx2, on its own connections or through the host's client.

    On its own connections, HTTP/1.1 is used once per connection and HTTP/2 connections are kept,
    there are no cookies, and httpx2 does not log the URL. A client of the host's works by its own
    settings: where it keeps HTTP/1.1 connections, a surplus answer can be read as the answer to
    another request, and its cookie jar stores the cookies of upstreams.
    """

    name = "httpx2"

    def __init__(
        self, client: httpx2.AsyncClient | None = None, connect: TransportConfig = DEFAULT_CONFIG
    ) -> None:
        """Use ``client``, which the host closes, or connections that ignore the environment."""
        self._connections = Connections(connect) if client is None else HostClient(client)

    async def send(
        self,
        request: UpstreamRequest,
        timeout: float,
        limits: ExchangeLimits = DEFAULT_LIMITS,
    ) -> UpstreamResponse:
        """Exchange ``request`` for its answer within ``timeout`` seconds and ``limits``."""
        failure: UpstreamError
        outside = sys.exception()
        try:
            with anyio.fail_after(timeout):
                return await self._exchange(request, timeout, limits.largest)
        except UpstreamError as error:
            failure = error.with_traceback(None)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout):
            failure = UpstreamTimeout(f"The upstream did not answer within {timeout:.1f} s.")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            failure = ConnectError(f"The upstream cannot be reached ({type(error).__name__}).")
        except Exception as error:  # noqa: BLE001 - h2 and host clients raise their own errors
            name = type(error).__name__
            failure = UpstreamUnavailable(f"The exchange with the upstream broke off ({name}).")
        except BaseException as error:
            forget_frames(error, outside)  # a cancelled exchange: httpx2's frames hold the headers
            raise
        # Not raised where it was caught: its traceback and its context would hold frames in which
        # the key is a local variable.
        try:
            raise failure
        finally:
            del failure  # its traceback holds this frame

    async def _exchange(
        self,
        request: UpstreamRequest,
        timeout: float,
        largest: int,
    ) -> UpstreamResponse:
        built = _build(self._connections, request, timeout)
        async with self._connections.exchange(built) as response:
            refuse_compressed(response.headers.get("content-encoding"))
            body = await _read(response, largest)
            return UpstreamResponse(response.status_code, Headers(response.headers.raw), body)

    async def aclose(self) -> None:
        """Close our own connections."""
        await self._connections.aclose()


class HostClient:
    """A client of the host's, which it closes itself."""

    headers: Mapping[str, str] = {
        name: DEFAULT_HEADERS[name] for name in ("accept", "accept-encoding")
    }

    def __init__(self, client: httpx2.AsyncClient) -> None:
        """Use ``client``."""
        self._client = client
        self.make_request = client.build_request

    @asynccontextmanager
    async def exchange(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Response]:
        """Send ``request``; the answer may be read inside of the ``async with``."""
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Leave the client open."""


def _build(
    connections: Connections | HostClient,
    request: UpstreamRequest,
    timeout: float,
) -> httpx2.Request:
    """Make httpx2's request.

    The credentials of a URL go into a header, because httpx2 logs URLs.
    """
    url = httpx2.URL(request.url)
    given = lower_names(request.headers)
    if url.userinfo:
        name, _, password = url.userinfo.decode().partition(":")
        given.setdefault("authorization", basic_credentials(name, password))
        url = url.copy_with(userinfo=b"")
    for name, value in given.items():
        if any(end in text for text in (name, to_wire_value(value)) for end in "\r\n\0"):
            raise UpstreamUnavailable("A header of this provider holds a line break.")
    sent: dict[str, str | Secret] = {**connections.headers, **given}
    headers = [
        (name.encode(), to_wire_value(value).encode("latin-1")) for name, value in sent.items()
    ]
    # httpx2 closes a connection that its own timeout ends, and leaves one that is cancelled during
    # the TLS handshake to the garbage collector.
    connect = min(timeout * 0.9, CONNECT_TIMEOUT)
    times = {"connect": connect, "read": timeout, "write": timeout, "pool": timeout}
    return connections.make_request(
        request.method, url, content=request.content, headers=headers, extensions={"timeout": times}
    )


async def _read(response: httpx2.Response, largest: int) -> bytes:
    body = bytearray()
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:19]) > largest:
        raise too_large(largest)
    try:
        await _read_into(body, response, largest)
        return bytes(body)
    finally:
        body.clear()  # the frames of a failure keep it until they are collected


async def _read_into(body: bytearray, response: httpx2.Response, largest: int) -> None:
    try:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > largest:
                # httpx2 does not close its inner generators when the outer one is left, and trio
                # warns about that. Reading from a closed connection ends them all.
                await response.extensions.get("network_stream", response).aclose()
    except httpx2.HTTPError:
        if len(body) <= largest:
            raise
    if len(body) > largest:
        raise too_large(largest)
