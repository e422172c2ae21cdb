"""Defines every log record that the package writes: its logger, level, message and fields.

A message is readable with the default formatter: the event, a colon, and the fields as
``name=value``. The fields are attributes of the ``logging.LogRecord`` too (``extra``). No other
module calls a logger. The section Logs of ``docs/operations.md`` lists the records.

Which record a failed upstream call writes is decided in ``execution/attempt.py``, and that of a
failed request in ``server/request_log.py``. Nothing here configures logging: that is the host's.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, TypedDict, cast

import msgspec

from embedroute.text import escaped

GENERAL: Final = logging.getLogger("embedroute")
ACCESS: Final = logging.getLogger("embedroute.access")
CALLS: Final = logging.getLogger("embedroute.calls")
TRANSPORT: Final = logging.getLogger("embedroute.http")
LIMITS: Final = logging.getLogger("embedroute.limits")
STORE: Final = logging.getLogger("embedroute.store")

INTERVAL: Final = 60.0
"""Seconds between two lines about the same thing."""
MOST_KEYS: Final = 1024
"""Things that are remembered, so that clients cannot fill the memory with names."""

_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A log record. Its fields are those of the record; None means that there is no value.

    ``event`` is the constant part of the message. The record has it as a field too.
    """

    logger: ClassVar[logging.Logger]
    level: ClassVar[int]
    event: ClassVar[str]

    def is_enabled(self) -> bool:
        """Return whether the host's logging lets the record through."""
        return self.logger.isEnabledFor(self.level)


class ResponseFacts(TypedDict):
    """The fields that the records of all responses have."""

    status: int
    code: str | None
    model: str | None
    caller: str | None
    providers: Sequence[str]
    attempts: int
    inputs: int
    tokens: int
    cost: float | None
    hits: int
    misses: int
    shared_hits: int
    ms: float
    gateway_ms: float
    upstream_ms: float
    request_id: str


class _Response(Record, frozen=True, kw_only=True):
    """What the records of all responses have in common.

    ``ms`` is the time in milliseconds: in the gateway and waiting for upstreams. ``code`` is that
    of the error, ``inputs`` counts those of the request, and ``hits`` and ``misses`` those that
    were in the cache and those that were not. ``attempts`` counts upstream calls. ``tokens`` are
    those in the response, and ``cost`` is in USD, or None if a price is unknown.
    """

    status: int
    code: str | None = None
    model: str | None = None
    caller: str | None = None
    providers: Sequence[str]
    attempts: int
    inputs: int
    tokens: int
    cost: float | None = None
    hits: int
    misses: int
    shared_hits: int
    ms: float
    gateway_ms: float
    upstream_ms: float
    request_id: str


class RequestCompleted(_Response, frozen=True, kw_only=True):
    """A request was served."""

    logger = ACCESS
    level = logging.INFO
    event = "request completed"


class RequestRejected(_Response, frozen=True, kw_only=True):
    """A request got a 4xx, or was not in the cache (``only-if-cached``)."""

    logger = ACCESS
    level = logging.INFO
    event = "request rejected"


class RequestFailed(Record, frozen=True, kw_only=True):
    """A request got a 5xx. It has the fields of any response, and two more.

    ``error`` says why it failed. ``count`` is how many equal records there were since the last
    written one, with this one.
    """

    logger = ACCESS
    level = logging.WARNING
    event = "request failed"

    status: int
    error: str
    code: str | None = None
    model: str | None = None
    caller: str | None = None
    providers: Sequence[str]
    count: int | None = None
    attempts: int
    inputs: int
    tokens: int
    cost: float | None = None
    hits: int
    misses: int
    shared_hits: int
    ms: float
    gateway_ms: float
    upstream_ms: float
    request_id: str


class DisconnectLogged(_Response, frozen=True, kw_only=True):
    """The client disconnected before its response was complete."""

    logger = ACCESS
    level = logging.INFO
    event = "client disconnected"


class SlowClientLogged(_Response, frozen=True, kw_only=True):
    """The client read nothing of its response for ``write_timeout``."""

    logger = ACCESS
    level = logging.INFO
    event = "client too slow"


class CallerUnknown(Record, frozen=True, kw_only=True):
    """With ``auth = "host"``, the host has not identified the caller of a request."""

    logger = ACCESS
    level = logging.WARNING
    event = 'auth = "host", but the host has not identified the caller: scope["user"] is missing'

    advice: str


class ModelNotConfigured(Record, frozen=True, kw_only=True):
    """A client requested a model of the catalogue, and none of its providers is configured."""

    logger = ACCESS
    level = logging.WARNING
    event = "model not configured"

    model: str
    advice: str


class UnhandledException(Record, frozen=True, kw_only=True):
    """A bug of the gateway, or of ``authenticate=``; with the traceback."""

    logger = ACCESS
    level = logging.ERROR
    event = "unhandled exception"

    request_id: str


class ObserverFailed(Record, frozen=True, kw_only=True):
    """An observer of the gateway raised an exception; with the traceback."""

    logger = GENERAL
    level = logging.ERROR
    event = "observer failed"

    observer: str


class StartFailed(Record, frozen=True, kw_only=True):
    """The lifespan could not open the gateway; with the traceback."""

    logger = GENERAL
    level = logging.ERROR
    event = "gateway failed to start"

    error: str


class InvalidConfiguration(Record, frozen=True, kw_only=True):
    """The config does not work on this kind of event loop; with the traceback."""

    logger = GENERAL
    level = logging.ERROR
    event = "invalid configuration"

    reason: str


class ConfigReloaded(Record, frozen=True, kw_only=True):
    """New requests use the config that was read again."""

    logger = GENERAL
    level = logging.INFO
    event = "config reloaded"


class ReloadRejected(Record, frozen=True, kw_only=True):
    """The config that was read again is not used. ``reason`` is its mistakes."""

    logger = GENERAL
    level = logging.ERROR
    event = "config not reloaded; the one before remains in use"

    reason: str


class _Call(Record, frozen=True, kw_only=True):
    """What the records of all upstream calls have in common."""

    provider: str
    model: str
    endpoint: str
    attempt: int
    ms: float
    request_id: str


class CallCompleted(_Call, frozen=True, kw_only=True):
    """An upstream call was answered."""

    logger = CALLS
    level = logging.DEBUG
    event = "upstream call completed"

    url: str | None = None
    status: int | None = None


class CallFailed(Record, frozen=True, kw_only=True):
    """An upstream call failed. ``url`` has no user info and no query.

    ``place`` is where a backend raised an exception, and ``count`` how many equal failures there
    were since the last line, with this one.
    """

    logger = CALLS
    level = logging.WARNING
    event = "upstream call failed"

    provider: str
    model: str
    url: str | None = None
    attempt: int
    error: str
    status: int | None = None
    place: str | None = None
    count: int | None = None
    endpoint: str
    ms: float
    request_id: str


class CallCancelled(_Call, frozen=True, kw_only=True):
    """A hedged call was cancelled, because another one was answered first."""

    logger = CALLS
    level = logging.DEBUG
    event = "upstream call cancelled because another one was answered first"


class AliasLearned(Record, frozen=True, kw_only=True):
    """An endpoint names another model than the requested one in its first answer."""

    logger = CALLS
    level = logging.WARNING
    event = "upstream uses another name for the model, which is its alias from now on"

    endpoint: str
    model: str
    named: str


class WrongModel(Record, frozen=True, kw_only=True):
    """An answer was refused, because it names another model."""

    logger = CALLS
    level = logging.WARNING
    event = "upstream answered with another model"

    endpoint: str
    model: str
    named: str


class FieldOmitted(Record, frozen=True, kw_only=True):
    """An endpoint rejects a field that only the gateway sets."""

    logger = CALLS
    level = logging.WARNING
    event = "upstream rejects a field, which is left out from now on"

    endpoint: str
    field: str


class BackendBlocked(Record, frozen=True, kw_only=True):
    """A step of a backend took so long that all requests waited."""

    logger = CALLS
    level = logging.WARNING
    event = "backend blocks the event loop"

    provider: str
    backend: str
    method: str
    seconds: float


class CancellationIgnored(Record, frozen=True, kw_only=True):
    """A backend continued after it was cancelled, and was abandoned."""

    logger = CALLS
    level = logging.WARNING
    event = "backend ignored cancellation"

    provider: str
    backend: str
    method: str


class TransportSelected(Record, frozen=True, kw_only=True):
    """An event loop uses this transport."""

    logger = TRANSPORT
    level = logging.INFO
    event = "transport selected"

    transport: str


class UnsolicitedResponse(Record, frozen=True, kw_only=True):
    """An upstream sent a response that was not requested."""

    logger = TRANSPORT
    level = logging.ERROR
    event = (
        "upstream sent an unsolicited response; its connections are no longer reused,"
        " and the responses that came over reused ones are no longer cached"
    )

    provider: str
    host: str


class StoreUnavailable(Record, frozen=True, kw_only=True):
    """The store failed. ``count`` is how many equal failures there were since the last line."""

    logger = STORE
    level = logging.WARNING
    event = "store unavailable; requests are served without it"

    store: str
    error: str
    count: int | None = None


class StoreRecovered(Record, frozen=True, kw_only=True):
    """The store answers again."""

    logger = STORE
    level = logging.INFO
    event = "store available again"

    store: str


class StoreEntriesDropped(Record, frozen=True, kw_only=True):
    """Vectors were not written, because the store is slower than the upstreams or fails."""

    logger = STORE
    level = logging.WARNING
    event = "vectors not written to the store"

    store: str
    entries: int


class UsageDropped(Record, frozen=True, kw_only=True):
    """Rows of the usage ledger were lost, because the store has failed for too long."""

    logger = STORE
    level = logging.ERROR
    event = "usage not written to the store"

    store: str
    rows: int


class ProcessExhausted(Record, frozen=True, kw_only=True):
    """This process has run out of a resource. ``advice`` says what to do."""

    logger = LIMITS
    level = logging.ERROR
    event = "requests fail because of this process, not of an upstream"

    resource: str
    advice: str


def write(
    record: Record, *, level: int | None = None, exception: BaseException | None = None
) -> None:
    """Write a record, at its own level or at ``level``, with the traceback of ``exception``."""
    level = record.level if level is None else level
    log = record.logger
    if not log.isEnabledFor(level):
        return
    fields = log_fields(msgspec.structs.asdict(record))
    template = f"{record.event}: %s"  # a constant, so that tools can group the records by it
    log.log(
        level,
        template,
        format_fields(fields),
        exc_info=exception,
        extra={"event": record.event, **fields},
        stacklevel=2,
    )


def log_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Escape the values of a log record's fields, in lists too.

    Names of models and callers come from clients; a line break in one could forge a log line.
    Escaped are control and format characters, separators of lines and paragraphs, and surrogates.
    """
    return {name: _escape_value(value) for name, value in fields.items()}


def _escape_value(value: object) -> object:
    if isinstance(value, str):
        return value if value.isprintable() else escaped(value)
    if isinstance(value, list | tuple):
        return [_escape_value(item) for item in cast("Sequence[object]", value)]
    return value


def format_fields(fields: Mapping[str, object]) -> str:
    """Return fields as ``name=value``; those without a value are left out.

    A text with a space, a quote or an equals sign is quoted, as in logfmt.
    """
    pairs = [
        f"{name}={_format_value(value)}"
        for name, value in fields.items()
        if value is not None and value != []
    ]
    return " ".join(pairs)


def _format_value(value: object) -> str:
    is_list = isinstance(value, list)
    text = ",".join(map(str, cast("list[object]", value))) if is_list else str(value)
    if text and not any(letter in text for letter in ' "='):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def without_numbers(text: str) -> str:
    """Return a text in which numbers make no difference: two timeouts are equal failures."""
    return _NUMBER.sub("#", text)


class LogLimit:
    """Summarises equal records: the first is written, then one per ``INTERVAL`` with a count."""

    def __init__(self) -> None:
        """Create a limit that knows no records."""
        self._written: dict[tuple[str, ...], tuple[float, int]] = {}

    def due(self, now: float, *key: str) -> int:
        """Return how many records with this ``key`` the record that is due now sums up.

        These are the records since the last written one, with this one. 0 means that no record is
        due: the last one was written less than ``INTERVAL`` before ``now``, in seconds.
        """
        entry = self._written.get(key)
        if entry is None:
            self._make_room(now)
            self._written[key] = now, 0
            return 1
        at, suppressed = entry
        if now - at < INTERVAL:
            self._written[key] = at, suppressed + 1
            return 0
        self._written[key] = now, 0
        return suppressed + 1

    def __len__(self) -> int:
        """Return the number of keys that are remembered."""
        return len(self._written)

    def _make_room(self, now: float) -> None:
        if len(self._written) < MOST_KEYS:
            return
        recent = {key: entry for key, entry in self._written.items() if now - entry[0] < INTERVAL}
        self._written = recent if len(recent) < MOST_KEYS else {}
