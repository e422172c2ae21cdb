"""How bytes reach an upstream: one small protocol, and engines that keep it. Alone knows HTTP clients."""

from typing import Protocol

from embedroute.backend import UpstreamReply, UpstreamRequest

LARGEST_REPLY = 256 * 1024 * 1024
"""Bytes of an answer that are read; 2048 float vectors of 4096 numbers are about 180 MB of text."""


class Engine(Protocol):
    """Sends one request and gives back the whole answer.

    Every engine asks for no compression and refuses compressed bodies, follows no redirect, keeps no cookies and
    uses no proxy that it was not told of. Cancelling ``send`` gives the connection up.
    """

    name: str

    async def send(self, request: UpstreamRequest, timeout: float) -> UpstreamReply:
        """Exchange ``request`` for its answer within ``timeout`` seconds.

        Raises:
            Unreachable: no connection was made.
            TimedOut: the answer was not whole in time.
            Unavailable: the connection broke, or the answer is no HTTP.
            BadAnswer: the answer is compressed, or larger than ``LARGEST_REPLY``.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
