"""The default engine: httpx2, under asyncio and trio, with its own client or the host's."""

from collections.abc import Mapping

import anyio
import httpx2

from embedroute.backend import Secret, UpstreamReply, UpstreamRequest
from embedroute.errors import BadAnswer, TimedOut, Unavailable, Unreachable
from embedroute.http import LARGEST_REPLY

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection and its TLS handshake."""


class Httpx2Engine:
    """Sends requests through an ``httpx2.AsyncClient``; a client of the host's stays the host's to close."""

    name = "httpx2"

    def __init__(self, client: httpx2.AsyncClient | None = None) -> None:
        """Use ``client``, or one of our own that trusts no environment."""
        self._owned = client is None
        self._client = client or httpx2.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=512, max_keepalive_connections=128, keepalive_expiry=30.0),
        )

    async def send(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds."""
        try:
            with anyio.fail_after(timeout):
                return await self._exchange(request, timeout)
        except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout):
            raise TimedOut(f"The upstream did not answer within {timeout:.1f} s.") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            raise Unreachable(f"The upstream cannot be reached ({type(error).__name__}).") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, UnicodeError, ValueError, ExceptionGroup) as error:
            raise Unavailable(f"The exchange with the upstream broke off ({type(error).__name__}).") from None

    async def _exchange(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        limits = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT))
        headers = {"accept": "application/json", "accept-encoding": "identity", **revealed(request.headers)}
        async with self._client.stream(
            request.method, request.url, content=request.content, headers=headers, timeout=limits, follow_redirects=False
        ) as response:
            refuse_compressed(response.headers.get("content-encoding"))
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > LARGEST_REPLY:
                    raise BadAnswer(f"The upstream's answer is larger than {LARGEST_REPLY} bytes.")
            self._client.cookies.clear()
            return UpstreamReply(response.status_code, dict(response.headers.items()), bytes(body))

    async def aclose(self) -> None:
        """Close our own client."""
        if self._owned:
            await self._client.aclose()


def revealed(headers: Mapping[str, str | Secret]) -> dict[str, str]:
    """Headers as they go on the wire."""
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in headers.items()}


def refuse_compressed(encoding: str | None) -> None:
    """Refuse a body that was compressed though ``identity`` was asked for: 1 KiB of brotli can be 1 GiB.

    Raises:
        BadAnswer: ``encoding`` is neither empty nor ``identity``.
    """
    if encoding and encoding.strip().lower() != "identity":
        raise BadAnswer("The upstream compressed its answer though it was asked not to.")
