"""The quick engine, behind the extra ``fast``: pyreqwest (Rust's reqwest), asyncio only."""

from datetime import timedelta
from pathlib import Path

from pyreqwest import exceptions
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.proxy import ProxyBuilder
from pyreqwest.response import Response

from embedroute.backend import UpstreamReply, UpstreamRequest
from embedroute.errors import TimedOut, Unavailable, Unreachable, UpstreamError
from embedroute.http import CONNECT_TIMEOUT, DIRECT, LARGEST_REPLY, Connect, refuse_compressed, revealed, too_large
from embedroute.http.httpx2_engine import Httpx2Engine

FIXED = {"accept": "application/json", "accept-encoding": "identity"}


class PyreqwestEngine:
    """Sends requests through one pyreqwest client; an answer's headers are read as they are asked for.

    It cannot see what an upstream sends beyond an answer, so a host is first met, and watched, by ``Httpx2Engine``.
    """

    name = "pyreqwest"

    def __init__(self, connect: Connect = DIRECT) -> None:
        """Make the client; it connects when it is first used."""
        self._client = _client(connect)
        self._careful = Httpx2Engine(connect=connect)

    async def send(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds."""
        if not self._careful.trusts(request.url):
            return await self._careful.send(request, timeout)
        try:
            builder = self._client.request(request.method, request.url).headers(FIXED | revealed(request.headers))
            streamed = builder.body_bytes(request.content).timeout(timedelta(seconds=timeout)).build_streamed()
            # A body that is read whole leaves nothing to give back, so only a body that is not is left.
            response = await streamed.__aenter__()
            try:
                content = await _content(response)
            except BaseException as error:
                await streamed.__aexit__(type(error), error, error.__traceback__)
                raise
            return UpstreamReply(response.status, response.headers, content)
        except exceptions.PyreqwestError as error:
            raise _failure(error, timeout) from None
        except (UnicodeError, ValueError) as error:
            raise Unavailable(f"The exchange with the upstream broke off ({type(error).__name__}).") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._careful.aclose()
        await self._client.close()


def _client(connect: Connect) -> Client:
    builder = ClientBuilder().http1_only().follow_redirects(enable=False).referer(enable=False)
    builder = builder.gzip(enable=False).brotli(enable=False).zstd(enable=False).deflate(enable=False)
    builder = builder.connect_timeout(timedelta(seconds=CONNECT_TIMEOUT)).pool_idle_timeout(timedelta(seconds=30))
    if connect.ca_file:
        builder = builder.add_root_certificate_pem(Path(connect.ca_file).read_bytes())
    return (builder.proxy(ProxyBuilder.all(connect.proxy.reveal())) if connect.proxy else builder.no_proxy()).build()


def _failure(error: exceptions.PyreqwestError, timeout: float) -> UpstreamError:
    # The classes say at which await it happened; only the causes tell whether a connection was made at all.
    details = error.details if isinstance(error, exceptions.DetailedPyreqwestError) else None
    causes = [cause["message"] for cause in (details or {}).get("causes") or ()]
    if "client error (Connect)" in causes:
        return Unreachable(f"The upstream cannot be reached ({causes[-1]}).")
    if isinstance(error, exceptions.RequestTimeoutError):
        return TimedOut(f"The upstream did not answer within {timeout:.1f} s.")
    return Unavailable(f"The exchange with the upstream broke off ({type(error).__name__}).")


async def _content(response: Response) -> bytes:
    """Read the whole body, at once if its declared length is within bounds, else piece by piece."""
    refuse_compressed(response.get_header("content-encoding"))
    declared = response.get_header("content-length")
    if declared is not None and declared.isdigit():
        if int(declared) > LARGEST_REPLY:
            raise too_large()
        return (await response.bytes()).to_bytes()
    body = bytearray()
    while piece := await response.body_reader.read_chunk():
        body += piece
        if len(body) > LARGEST_REPLY:
            raise too_large()
    return bytes(body)
