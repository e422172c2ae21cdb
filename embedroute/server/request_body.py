"""Reads the body of a request within the limits of bytes.

The watch of the request limits the time.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from embedroute.errors import BodyTimeout, BodyTooLarge
from embedroute.limits import Account, ByteBudget
from embedroute.runtime import ClientDisconnected, time_limits

SMALL_BODY: Final = 1 << 16
"""Bytes; the unread body of a rejected request is drained if it is not longer."""
DRAIN_TIMEOUT: Final = 1.0
"""Seconds to wait for such a body."""


class RequestBody(msgspec.Struct, eq=False):
    """The body of one request.

    ``reserved`` bytes of it are counted in the caller's ``account`` until the handler releases
    them. ``is_done`` is True if nothing more shall be read.
    """

    receive: Receive
    account: Account | None = None
    reserved: int = 0
    is_done: bool = False

    async def read(
        self, lengths: Sequence[bytes], most: int, bodies: ByteBudget, caller: str
    ) -> bytes:
        """Read the body, of at most ``most`` bytes, and count it in the account of ``caller``.

        ``lengths`` are the values of ``content-length``.

        Raises:
            BodyTooLarge: the declared or the actual length is over ``most``.
            Overloaded: too many bytes of request bodies are in flight.
            ClientDisconnected: the client disconnected.
        """
        declared = 0
        for length in lengths:
            if length.isdigit() and (size := int(length[:19])) > declared:
                declared = size
        if declared > most:
            self.is_done = True
            raise _too_large(most)
        if declared:
            self.account = bodies.reserve(caller, declared)
            self.reserved = declared
        try:
            message = await self.receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                # The usual case: the body is one piece of the declared length.
                piece: bytes = message.get("body", b"")
                if len(piece) <= self.reserved:
                    self.is_done = True
                    return piece
            return await self._read(message, most, bodies, caller)
        except OSError as error:
            raise _receive_error(error) from None
        except HTTPException as error:  # how FastAPI reports a body over the host's limit
            if error.status_code != 413:
                raise
            raise BodyTooLarge(f"{error.detail}; send fewer inputs at a time.") from None

    async def _read(
        self, message: Message, most: int, bodies: ByteBudget | None = None, caller: str = ""
    ) -> bytes:
        """Read the rest of a body whose first message is ``message``."""
        body = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            piece: bytes = message.get("body", b"")
            size = len(body) + len(piece)
            if size > most:
                raise _too_large(most)
            if size > self.reserved and bodies is not None:
                self.account = bodies.reserve(caller, size - self.reserved)
                self.reserved = size
            body += piece
            if not message.get("more_body", False):
                self.is_done = True
                return bytes(body)
            message = await self.receive()

    async def drain(self) -> None:
        """Read and discard the rest of a small body.

        Some servers close a connection whose request was not read. If the client is still sending,
        the connection is then reset, and the client may not receive the response.
        """
        with (
            suppress(TimeoutError, OSError, BodyTooLarge, ClientDisconnected),
            time_limits.fail_after(DRAIN_TIMEOUT),
        ):
            await self._read(await self.receive(), SMALL_BODY)


def _receive_error(error: OSError) -> Exception:
    """Return the gateway's exception for an error of ``receive``."""
    if isinstance(error, TimeoutError):
        # A time limit of the host's own around `receive`.
        return BodyTimeout("The request body was not complete in time.")
    # How servers report a disconnect since ASGI 2.4.
    return ClientDisconnected()


def _too_large(most: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is over {most} bytes; send fewer inputs at a time.")
