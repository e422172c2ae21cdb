"""The server of the upstream: it runs in a separate thread and records its requests."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from tests.fault_upstream.connection import Connection
from tests.fault_upstream.modes import MODES, Step
from tests.fault_upstream.refusals import not_found, unreadable
from tests.fault_upstream.rows import honest
from tests.fault_upstream.truth import Ask

Mode = str | Iterable[str] | Callable[[Ask], str]
ELSEWHERE = "/elsewhere/v1/embeddings"


class Upstream:
    """A loopback upstream that runs inside ``with``. All attributes can be set while it runs.

    ``delay`` is the seconds before each response, ``width`` the dimension of a vector, ``space``
    the name of the vector space, ``limit`` the batch limit of the ``batch_…`` modes, and
    ``elsewhere`` the target of ``redirect`` (by default another name of this host).
    """

    def __init__(
        self,
        mode: Mode = "honest",
        *,
        port: int = 0,
        delay: float = 0.0,
        width: int = 8,
        space: str = "",
        limit: int = 2,
        elsewhere: str = "",
        remember: bool = True,
    ):
        self.mode = mode
        self.port, self.delay, self.width, self.space, self.limit = port, delay, width, space, limit
        self.remember = remember
        self.requests: list[Ask] = []
        self.connections = self.in_flight = self.most_in_flight = self.aborted = 0
        self.open: set[Connection] = set()
        self._elsewhere = elsewhere

    @property
    def mode(self) -> Mode:
        """A mode, several modes (the last one is repeated), or a function of the request."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode, self._choose = mode, chooser(mode)

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def elsewhere(self) -> str:
        """The target of ``redirect``, such as another upstream's ``url`` plus ``/embeddings``."""
        return self._elsewhere or f"http://localhost:{self.port}{ELSEWHERE}"

    @elsewhere.setter
    def elsewhere(self, url: str) -> None:
        self._elsewhere = url

    @property
    def followed(self) -> list[Ask]:
        """The requests that followed the default redirect."""
        return [ask for ask in self.requests if ask.path.startswith("/elsewhere")]

    def __enter__(self) -> Self:
        # The first socket only reserves the port for the time while the upstream is down.
        self._holder = bound(self.port)
        self.port = self._holder.getsockname()[1]
        self._listener = listening(self.port)
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name=f"upstream:{self.port}", daemon=True
        )
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._holder.close()

    def down(self) -> None:
        """Close all connections and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()

    def up(self) -> None:
        """Accept connections again on the same port."""
        self._listener = listening(self.port)
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._listen()
        self._ready.set()
        await self._stop.wait()
        await self._close()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: Connection(self), sock=self._listener, backlog=1024
        )

    async def _close(self) -> None:
        self._server.close()
        # A connection that was just accepted appears in self.open after a few loop iterations.
        for _ in range(8):
            for connection in self.open:
                connection.cut()
            await asyncio.sleep(0)

    def steps_for(self, ask: Ask) -> Iterator[Step]:
        """Record a request and choose its response."""
        if self.remember:
            self.requests.append(ask)
        path = ask.path.partition("?")[0]
        if ask.method != "POST" or path not in {"/v1/embeddings", ELSEWHERE}:
            return iter(not_found(ask))
        if not ask.inputs:
            return iter(unreadable(ask))
        if path == ELSEWHERE:
            return iter(honest(ask))
        ask.mode = self._choose(ask)
        return iter(MODES[ask.mode](ask))


class Script:
    """Returns one mode per request, and repeats the last one."""

    def __init__(self, modes: Iterable[str]):
        self.modes, self.last = iter(modes), "honest"

    def __call__(self, _ask: Ask) -> str:
        self.last = next(self.modes, self.last)
        return self.last


def chooser(mode: Mode) -> Callable[[Ask], str]:
    """Return a function that chooses the mode of a request.

    Raises:
        ValueError: there is no mode of that name.
    """
    if callable(mode):
        return mode
    names = [mode] if isinstance(mode, str) else mode
    if isinstance(names, list | tuple) and (
        unknown := [name for name in names if name not in MODES]
    ):
        raise ValueError(f"No such mode: {', '.join(unknown)}")
    return Script(names)


def bound(port: int) -> socket.socket:
    """Bind a port on loopback without listening, so that connections are refused."""
    bound_socket = socket.socket()
    bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound_socket.bind(("127.0.0.1", port))
    except OSError:
        bound_socket.close()
        raise
    return bound_socket


def listening(port: int) -> socket.socket:
    """Listen at once, so that no client is refused while the thread starts."""
    listener = bound(port)
    listener.listen(1024)
    return listener
