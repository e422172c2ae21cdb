"""Provides the httpx2 transport for asyncio and trio.

It uses its own connections, or a client of the host.
"""

import re
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

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
from embedroute.errors import (
    ConnectError,
    EmbedrouteError,
    PoolTimeout,
    UpstreamError,
    UpstreamUnavailable,
)
from embedroute.exhaustion import find_exhaustion, late_loop_error
from embedroute.reasons import INCOMPLETE, describe, describe_timeout
from embedroute.runtime import time_limits
from embedroute.transport.base import (
    CONNECT_TIMEOUT,
    DEFAULT_CONFIG,
    DEFAULT_HEADERS,
    DEFAULT_LIMITS,
    LARGEST_ERROR,
    ExchangeLimits,
    TransportConfig,
    broken,
    cannot_connect,
    connect_timeout,
    decompress_error_body,
    header_with_line_break,
    lower_names,
    not_http,
    refuse_compressed,
    timed_out,
    too_large,
)
from embedroute.transport.connection_slots import WAIT_SHARE
from embedroute.transport.httpx2_connections import Connections
from embedroute.transport.proxy import (
    PROXY_AUTHENTICATION_REQUIRED,
    describe_proxy,
    parse_proxy,
    parse_status,
)
from embedroute.transport.resolver import Resolver
from embedroute.transport.url import basic_credentials, bracketed


class Httpx2Transport:
    """Sends requests with httpx2, on its own connections or through a client of the host.

    On its own connections, it sends one request per HTTP/1.1 connection and keeps HTTP/2
    connections, stores no cookies, and httpx2 does not log the URL. A client of the host follows
    its own settings. If it keeps HTTP/1.1 connections, a surplus response can be taken for the
    response to another request. Its cookie jar stores the cookies of upstreams.
    """

    name = "httpx2"

    def __init__(
        self,
        client: httpx2.AsyncClient | None = None,
        connect: TransportConfig = DEFAULT_CONFIG,
        resolver: Resolver | None = None,
    ) -> None:
        """Use ``client``, which the host must close, or create own connections from ``connect``.

        ``resolver`` replaces the one that ``connect`` describes. A client resolves names itself.
        """
        self._connections = Connections(connect, resolver) if client is None else HostClient(client)
        self._proxy = parse_proxy(connect.proxy) if client is None else None

    async def send(
        self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS
    ) -> UpstreamResponse:
        """Send ``request`` and return its response, within ``timeout`` seconds and ``limits``."""
        failure: EmbedrouteError
        outside = sys.exception()
        try:
            return await self._exchange(request, timeout, limits)
        except EmbedrouteError as error:
            failure = error.with_traceback(None)
        except httpx2.PoolTimeout:
            waited = timeout * WAIT_SHARE
            failure = PoolTimeout(
                "The upstream was not called: all connections of the http_client were in use for"
                f" {waited:.1f} s. Raise max_connections in its httpx2.Limits, or send fewer"
                " requests at once.",
                reason=describe_timeout(waited, "waiting for one of the connections"),
            )
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout):
            failure = timed_out(timeout)
        except httpx2.ProxyError as error:
            failure = self._proxy_error(httpx2.URL(request.url), parse_status(str(error)))
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            route = describe_proxy(self._proxy)
            failure = find_exhaustion(error, with_context=True, outside=outside) or _connect_error(
                error, outside, timeout, route
            )
        except Exception as error:  # noqa: BLE001 - h2 and host clients raise their own errors
            failure = find_exhaustion(error, with_context=True, outside=outside) or _exchange_error(
                error, outside
            )
        except BaseException as error:
            # The exchange was cancelled. The frames of httpx2 contain the headers.
            forget_frames(error, outside)
            raise
        # Raised outside of the except blocks: otherwise its traceback or context would contain
        # frames with the key as a local variable.
        try:
            raise failure
        finally:
            del failure  # break the reference cycle between this frame and the traceback

    async def _exchange(
        self,
        request: UpstreamRequest,
        timeout: float,
        limits: ExchangeLimits,
    ) -> UpstreamResponse:
        httpx2_request = _build(self._connections, request, timeout)
        # Loading certificates takes no time of the upstream.
        self._connections.prepare(httpx2_request.url)
        deadline = anyio.current_time() + timeout
        async with self._connections.slot(httpx2_request.url, limits, timeout):
            try:
                with anyio.fail_after(deadline - anyio.current_time()):
                    return await self._receive(httpx2_request, limits)
            except TimeoutError:
                lag = time_limits.significant_lag(anyio.current_time() - deadline, timeout)
                if lag:
                    raise late_loop_error(lag) from None
                raise

    async def _receive(self, request: httpx2.Request, limits: ExchangeLimits) -> UpstreamResponse:
        largest = limits.largest
        async with self._connections.exchange(request, limits) as response:
            status = response.status_code
            if status == PROXY_AUTHENTICATION_REQUIRED and self._is_proxied(request.url):
                raise self._proxy_error(request.url, status)
            encoding = response.headers.get("content-encoding")
            refuse_compressed(encoding, status)
            if status < 300:
                body = await _read(response, largest)
            else:
                body = decompress_error_body(
                    encoding, await _read(response, max(largest, LARGEST_ERROR))
                )
            return UpstreamResponse(status, Headers(response.headers.raw), body)

    def _is_proxied(self, url: httpx2.URL) -> bool:
        """Return whether a proxy reads the request: a tunnel transports it encrypted."""
        return self._proxy is not None and url.scheme == "http"

    def _proxy_error(self, url: httpx2.URL, status: int) -> UpstreamError:
        if self._proxy is None:
            return ConnectError(
                "The proxy of the http_client refused to connect to the upstream.",
                reason="proxy refused to connect",
            )
        default_port = 443 if url.scheme == "https" else 80
        port = default_port if url.port is None else url.port
        return self._proxy.refused(status, f"{bracketed(url.host)}:{port}")

    async def aclose(self) -> None:
        """Close the own connections; a client of the host stays open."""
        await self._connections.aclose()


class HostClient:
    """Adapts a client of the host, which the host closes."""

    headers: Mapping[str, str] = {
        name: DEFAULT_HEADERS[name] for name in ("accept", "accept-encoding")
    }

    def __init__(self, client: httpx2.AsyncClient) -> None:
        """Send requests through ``client``."""
        self._client = client
        self.make_request: Callable[..., httpx2.Request] = client.build_request

    def prepare(self, url: httpx2.URL) -> None:
        """Do nothing: the client has loaded its certificates."""

    @asynccontextmanager
    async def slot(
        self, url: httpx2.URL, limits: ExchangeLimits, timeout: float
    ) -> AsyncGenerator[None]:
        """Do nothing: the client has its own limit of connections."""
        del url, limits, timeout
        yield

    @asynccontextmanager
    async def exchange(
        self, request: httpx2.Request, limits: ExchangeLimits
    ) -> AsyncGenerator[httpx2.Response]:
        """Send ``request``. Read the response inside the ``async with``."""
        del limits
        response = await self._client.send(request, stream=True, follow_redirects=False)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Do nothing: the host closes its client."""


_ENDED_EARLY: Final = re.compile(
    r"disconnected|closed connection|connection (?:was )?(?:closed|lost)"
)
"""Texts of h11, h2 and httpcore for a connection that ended before the response was complete."""


def _connect_timeout(timeout: float) -> float:
    """Return the seconds for connecting, of ``timeout`` seconds for the exchange.

    They are fewer, so that the error of a slow connection says that it could not connect.
    """
    return min(timeout * 0.9, CONNECT_TIMEOUT)


def _connect_error(
    error: Exception, outside: BaseException | None, timeout: float, route: str
) -> ConnectError:
    if isinstance(error, httpx2.ConnectTimeout):
        return connect_timeout(_connect_timeout(timeout), route)
    if isinstance(error, httpx2.UnsupportedProtocol):
        return cannot_connect("its URL does not begin with http:// or https://", route)
    return cannot_connect(describe(error, outside), route)


def _exchange_error(error: Exception, outside: BaseException | None) -> UpstreamUnavailable:
    """Return the error for an exchange that failed; httpx2's own ones differ only by their text."""
    if words := describe(error, outside):
        return broken(words)
    ended = isinstance(error, httpx2.NetworkError) or _ENDED_EARLY.search(str(error).lower())
    return broken(INCOMPLETE) if ended else not_http()


def _build(
    connections: Connections | HostClient,
    request: UpstreamRequest,
    timeout: float,
) -> httpx2.Request:
    """Create the request of httpx2.

    Credentials in the URL are moved to a header, because httpx2 logs URLs.
    """
    url = httpx2.URL(request.url)
    own_headers = lower_names(request.headers)
    if url.userinfo:
        name, _, password = url.userinfo.decode().partition(":")
        own_headers.setdefault("authorization", basic_credentials(name, password))
        url = url.copy_with(userinfo=b"")
    for name, value in own_headers.items():
        if any(end in text for text in (name, to_wire_value(value)) for end in "\r\n\0"):
            raise header_with_line_break()
    all_headers: dict[str, str | Secret] = {**connections.headers, **own_headers}
    headers = [
        (name.encode(), to_wire_value(value).encode("latin-1"))
        for name, value in all_headers.items()
    ]
    connect = _connect_timeout(timeout)
    timeouts = {"connect": connect, "read": timeout, "write": timeout, "pool": timeout * WAIT_SHARE}
    return connections.make_request(
        request.method,
        url,
        content=request.content,
        headers=headers,
        extensions={"timeout": timeouts},
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
        body.clear()  # the traceback of an error would keep the bytes in memory


async def _read_into(body: bytearray, response: httpx2.Response, largest: int) -> None:
    try:
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > largest:
                # If the loop ended here, httpx2 would leave its inner generators open, and trio
                # warns about that. Reading from a closed connection ends them.
                await response.extensions.get("network_stream", response).aclose()
    except httpx2.HTTPError:
        if len(body) <= largest:
            raise
    if len(body) > largest:
        raise too_large(largest)
