"""What the processes tell each other: behaviours and counts of upstreams, jobs and records of clients."""

from typing import Literal

import msgspec

FAILED = 0
"""Status of a request whose connection was refused or reset."""
TIMED_OUT = -1
"""Status of a request that got no response before the client's own timeout."""
WRONG = -2
"""Status of a 200 with other vectors than those of the request's texts."""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How an upstream responds. Durations are in seconds.

    A call takes ``service`` plus ``per_input`` for each input, and ``slow_seconds`` more with the
    probability ``slow``. With the probability ``fail`` it then fails with a status of ``statuses``;
    0 resets the connection. The next ``fail_next`` calls fail anyway.

    ``workers`` is the number of calls that are served at full speed (0: any number). Further calls
    wait (``queue``), slow all calls down (``share``), or get the status ``refuse_with`` after
    ``refuse_after`` seconds (``refuse``). A call whose client has gone is served nevertheless.

    An ``outage`` overrides all of it: connections are refused, or every call gets a 503 at once, or
    none gets a response.
    """

    service: float = 0.0
    per_input: float = 0.0
    slow: float = 0.0
    slow_seconds: float = 2.0
    fail: float = 0.0
    fail_next: int = 0
    statuses: tuple[int, ...] = (503,)
    workers: int = 0
    beyond: Literal["queue", "share", "refuse"] = "queue"
    refuse_with: int = 429
    refuse_after: float = 0.0
    retry_after: str = ""
    outage: Literal["", "refuse", "503", "stall"] = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Sets the behaviour of an upstream, which is created if it does not exist, and resets counts."""

    upstream: str
    behaviour: Behaviour | None = None
    reset: bool = False


class Counts(msgspec.Struct, kw_only=True):
    """What an upstream has seen since the last reset.

    ``most_at_once`` is the maximum of calls without a response, refused ones included; ``burst``
    the maximum of calls that arrived within 250 ms.
    """

    port: int = 0
    calls: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    at_once: int = 0
    most_at_once: int = 0
    burst: int = 0


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one kind: ``rate`` per second, or from ``clients`` that wait for each response.

    Requests start from ``begin`` until ``end`` (seconds after the start of the job). They go to the
    ``ports`` in turn. With ``retries``, a request that failed is sent again, to the next port, after
    a short random wait that doubles each time, and not before a Retry-After. A client waits for
    about ``pause`` seconds after a request that failed, or as long as a Retry-After says. With ``once``, a client sends one request. With
    ``connect_first``, the connections of all clients are open before the first request.
    """

    name: str
    model: str
    ports: tuple[int, ...]
    end: float
    begin: float = 0.0
    rate: float = 0.0
    clients: int = 0
    inputs: int = 1
    retries: int = 0
    timeout: float = 30.0
    pause: float = 0.0
    once: bool = False
    connect_first: bool = False


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One request: times of the monotonic clock that all processes share, and its final status.

    ``retry_after`` and ``code`` (of the error) are empty if the response has none.
    """

    stream: str
    sent: float
    ended: float
    status: int
    tries: int
    retry_after: str
    code: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a job: when it started, one record per request, and the seconds of CPU it took."""

    started: float
    records: list[Record]
    cpu: float
