"""Recognises that this process has run out of a resource, or that its event loop is late.

Such a failure says nothing about an upstream, so it is a ``ResourcesExhausted``: a 503 that does
not count against the health of an endpoint.
"""

import errno
import socket
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Final

from embedroute.errors import ResourcesExhausted
from embedroute.log_records import LogLimit, ProcessExhausted, write
from embedroute.reasons import chain

RETRY_AFTER: Final = 1.0
"""Seconds after which a client may try again: the requests in flight free what they use."""
FILES: Final = "file descriptors"
THREADS: Final = "threads"
LOOP: Final = "event loop"
NO_THREAD: Final = "can't start new thread"
"""The message of the ``RuntimeError`` that ``threading.Thread.start`` raises."""

EXHAUSTED: Final[Mapping[int, tuple[str, str]]] = {
    errno.EMFILE: (
        FILES,
        (
            "The gateway's process has no file descriptors left. Raise its limit (`ulimit -n`,"
            " LimitNOFILE in systemd), or lower max_connections."
        ),
    ),
    errno.ENFILE: (
        FILES,
        (
            "The gateway's host has no file descriptors left. Raise fs.file-max, or lower"
            " max_connections."
        ),
    ),
    errno.ENOBUFS: (
        "socket buffers",
        (
            "The gateway's host has no memory left for sockets. Lower max_connections, or raise"
            " net.core.wmem_max and net.ipv4.tcp_mem."
        ),
    ),
    errno.ENOMEM: (
        "memory",
        (
            "The gateway's host has no memory left for connections. Give it more memory, or lower"
            " max_connections."
        ),
    ),
}
"""``errno`` → the resource, and what to do."""
UNCLEAR: Final = (None, errno.EBUSY)
"""``errno`` of errors that any failure may have caused.

glibc's ``getaddrinfo`` reports ``EBUSY`` if it cannot open the files of its name services.
"""
NO_MORE_THREADS: Final = (
    "The gateway's process cannot start another thread. Raise its limit (`ulimit -u`, TasksMax in"
    " systemd, pids.max of the container), or run fewer workers."
)


def find_exhaustion(
    error: BaseException, *, with_context: bool = False, outside: BaseException | None = None
) -> ResourcesExhausted | None:
    """Return the error to raise if ``error`` means that this process has run out of a resource.

    Causes are examined too, and the contexts of exceptions without a cause if ``with_context``.
    ``outside`` is the exception that the host was handling when the gateway was called.
    """
    is_unclear = False
    for each in chain(error, outside, with_context=with_context):
        if isinstance(each, RuntimeError) and NO_THREAD in str(each):
            return _exhausted(THREADS, NO_MORE_THREADS)
        if isinstance(each, OSError):
            code = None if isinstance(each, socket.gaierror) else each.errno
            if code in EXHAUSTED:
                return _exhausted(*EXHAUSTED[code])
            is_unclear = is_unclear or code in UNCLEAR
    return _try_socket() if is_unclear else None


def _try_socket() -> ResourcesExhausted | None:
    """Return the error if no socket can be opened.

    The system's resolver reports an unknown name if it cannot open a socket, or that its files are
    busy. An error that combines several ones has no ``errno``.
    """
    try:
        socket.socket().close()
    except OSError as error:
        if error.errno in EXHAUSTED:
            return _exhausted(*EXHAUSTED[error.errno])
    return None


def _exhausted(resource: str, message: str) -> ResourcesExhausted:
    error = ResourcesExhausted(message, retry_after=RETRY_AFTER)
    error.resource = resource
    return error


def late_loop_error(lag: float) -> ResourcesExhausted:
    """Create the error for a time limit that has passed while the event loop was late by ``lag``.

    ``lag`` is in seconds. What the request waited for may have arrived in time.
    """
    return _exhausted(
        LOOP,
        f"The gateway's event loop was blocked for {lag:.1f} s, so it could not serve this request"
        " in time. Run more workers, or find what blocks the loop (asyncio's debug mode logs it).",
    )


class ExhaustionLog:
    """Logs each kind of exhaustion at most once a minute, as many requests fail of it."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        """Create a log without records."""
        self._clock = clock
        self._limit = LogLimit()

    def record(self, error: ResourcesExhausted) -> None:
        """Log ``error``, unless its resource was logged in the last minute."""
        if self._limit.due(self._clock(), error.resource):
            write(ProcessExhausted(resource=error.resource, advice=error.message))
