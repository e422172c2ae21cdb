"""The default engine: httpx2, under asyncio and trio, with its own client or the host's."""

import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from http.cookiejar import Cookie, CookieJar
from operator import attrgetter
from traceback import format_tb
from typing import Any, Final, cast

import anyio
import httpx2

from embedroute.backend import UpstreamReply, UpstreamRequest
from embedroute.errors import BadAnswer, TimedOut, Unavailable, Unreachable, UpstreamError
from embedroute.http import (
    CONNECT_TIMEOUT,
    DEFAULT_LIMITS,
    DIRECT,
    LARGEST_REPLY,
    Connect,
    ExchangeLimits,
    lower_names,
    refuse_compressed,
    too_large,
)
from embedroute.secret import Secret, forget_frames, revealed
from embedroute.upstream import Headers

FIRST_LOOK = 0.05
"""Seconds for which the first answer of a host is watched for more than it should hold."""

# How many exchanges a connection has had, and h11's state of it: httpx2 has no public way to see what was read too far.
_EXCHANGES: Final[Callable[[Any], tuple[int, Any]]] = attrgetter("_request_count", "_h11_state")
_CONNECTION: Final = attrgetter("stream._stream._httpcore_stream._stream._connection")


Host = tuple[str, bytes]


class Httpx2Engine:
    """Sends requests through an ``httpx2.AsyncClient``; a client of the host's stays the host's to close.

    HTTP/1.1 has no ids: bytes that nobody asked for would be the answer to whatever is sent next on their connection.
    So a connection on which they are seen is closed, a later answer than its first is not trusted, and connections to
    their host are not kept from then on.
    """

    name = "httpx2"

    def __init__(self, client: httpx2.AsyncClient | None = None, connect: Connect = DIRECT) -> None:
        """Use ``client``, or one of our own that trusts no environment."""
        self._owned = client is None
        self._client = client or _client(connect)
        self._quiet: dict[Host, bool] = {}

    async def send(self, request: UpstreamRequest, timeout: float, limits: ExchangeLimits = DEFAULT_LIMITS) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds and ``limits``."""
        del limits
        outside = sys.exception()
        try:
            with anyio.fail_after(timeout):
                return await self._exchange(request, timeout)
        except _FAILURES as error:
            failure = _failure_of(error, timeout)
        except BaseException as error:  # cancelled, or a bug
            if isinstance(error, Exception) and not isinstance(error, UpstreamError):
                error.add_note("".join(format_tb(error.__traceback__)))
            forget_frames(error, outside)
            raise
        # Raised outside the handler, so that httpx2's exception is not its context: httpx2's frames hold the headers.
        raise failure

    async def _exchange(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        url = httpx2.URL(request.url)
        host = _host(url)
        # Ended by its own limit, a connection is closed; ended from outside, trio leaves its socket to the collector.
        limits = httpx2.Timeout(timeout, connect=min(timeout * 0.9, CONNECT_TIMEOUT))
        headers = {"accept": "application/json", "accept-encoding": "identity", **lower_names(request.headers)}
        if self._quiet.get(host) is False:
            headers["connection"] = "close"
        if "authorization" in headers:
            url = url.copy_with(userinfo=b"")  # which httpx2 would send instead
        held = list(self._client.cookies.jar)
        async with self._client.stream(
            request.method, url, content=request.content, headers=_written(headers), timeout=limits, follow_redirects=False
        ) as response:
            _forget_cookies(self._client.cookies.jar, held, response)
            refuse_compressed(response.headers.get("content-encoding"))
            body = await _read(response)
            if response.http_version.startswith("HTTP/1"):
                await self._look_for_more(response, host, timeout)
            return UpstreamReply(response.status_code, Headers(response.headers.raw), body)

    async def _look_for_more(self, response: httpx2.Response, host: Host, timeout: float) -> None:
        line = response.extensions.get("network_stream")
        if line is None:
            return
        try:
            exchanges, parser = _EXCHANGES(_CONNECTION(response))
        except AttributeError:
            # An httpx2 that is built another way: its connections cannot be looked at, so none is kept.
            self._quiet[host] = False
            return
        patience = 0.0 if host in self._quiet else min(FIRST_LOOK, timeout / 4)
        more = parser.trailing_data[0] or await _read_more(line, patience)
        self._quiet[host] = not more and self._quiet.get(host, True)
        if more:
            parser.send_failed()  # so that the connection is closed, not kept
            if exchanges > 1:
                raise BadAnswer("The upstream sent more than one answer to a request, so none can be trusted.")

    async def aclose(self) -> None:
        """Close our own client."""
        if self._owned:
            await self._client.aclose()


_TOO_SLOW: Final = (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout)
_NOT_CONNECTED: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol)
_BROKEN: Final = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError, ValueError, ExceptionGroup)
_FAILURES: Final = (*_TOO_SLOW, *_NOT_CONNECTED, *_BROKEN)


def _failure_of(error: Exception, timeout: float) -> UpstreamError:
    if isinstance(error, _TOO_SLOW):
        return TimedOut(f"The upstream did not answer within {timeout:.1f} s.")
    if isinstance(error, _NOT_CONNECTED):
        return Unreachable(f"The upstream cannot be reached ({type(error).__name__}).")
    return Unavailable(f"The exchange with the upstream broke off ({type(error).__name__}).")


def _written(headers: Mapping[str, str | Secret]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), revealed(value).encode("latin-1")) for name, value in headers.items()]


def _forget_cookies(jar: CookieJar, held: Iterable[Cookie], response: httpx2.Response) -> None:
    """Undo what a response has just done to a jar: whatever it set or expired is as it was among the cookies ``held``."""
    names = {line.partition(";")[0].partition("=")[0].strip() for line in response.headers.get_list("set-cookie")}
    for cookie in [it for it in jar if it.name in names]:
        jar.clear(cookie.domain, cookie.path, cookie.name)
    for cookie in held:
        if cookie.name in names:
            jar.set_cookie(cookie)


async def _read(response: httpx2.Response) -> bytes:
    body = bytearray()
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:19]) > LARGEST_REPLY:
        raise too_large()
    try:
        await _read_into(body, response)
        return bytes(body)
    finally:
        body.clear()  # a failure holds its frames, and what they hold, until the collector comes


async def _read_into(body: bytearray, response: httpx2.Response) -> None:
    try:
        # Not `aiter_raw`: it gives the connection back for reuse before it can be looked at.
        async for piece in cast("AsyncIterable[bytes]", response.stream):
            body += piece
            if len(body) > LARGEST_REPLY:
                # Left early, the generators inside would not be closed before trio complains of it; this ends them.
                await response.aclose()
    except httpx2.HTTPError:
        if len(body) <= LARGEST_REPLY:
            raise
    if len(body) > LARGEST_REPLY:
        raise too_large()


async def _read_more(line: Any, patience: float) -> bytes:
    """Read what stands on a connection that should be silent, or comes within ``patience`` seconds."""
    if not patience and not line.get_extra_info("is_readable"):
        return b""
    try:
        return await line.read(1, timeout=patience or 0.001)
    except Exception:  # noqa: BLE001 - silent in time, or gone; backends differ in how they say so
        return b""


def _host(url: httpx2.URL) -> Host:
    return url.scheme, url.netloc


def _client(connect: Connect) -> httpx2.AsyncClient:
    context = httpx2.create_ssl_context(trust_env=False)
    if connect.ca_file:
        context.load_verify_locations(connect.ca_file)
    return httpx2.AsyncClient(
        verify=context,
        proxy=connect.proxy.reveal() if connect.proxy else None,
        trust_env=False,
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=512, max_keepalive_connections=128, keepalive_expiry=30.0),
    )
