"""Records the bodies of upstream calls for debug output, without secrets."""

from typing import Final, cast

import msgspec

from embedroute.backend import BackendBase, Secret, UpstreamRequest, UpstreamResponse
from embedroute.execution.redaction import MASK, MIN_FRAGMENT, Redactor, list_secrets, make_redactor
from embedroute.runtime import TimeSlice
from embedroute.trace import RequestTrace

LONGEST_CAPTURE = 1_000_000
"""Bytes of all sent bodies that the debug output of a request shows; also of all received ones."""

PLAIN: Final = frozenset(
    {
        "model",
        "encoding_format",
        "dimensions",
        "object",
        "type",
        "code",
        "input_type",
        "outputDimensionality",
    }
)
"""Fields whose text does not depend on the input, so that a summary may show it."""

KEPT_AT_ONCE: Final = 1 << 14
"""Bytes of a body that ``record_exchange`` processes on the event loop, in some milliseconds.

A larger body is processed in a worker thread.
"""


def record_exchange(
    trace: RequestTrace,
    provider: str,
    backend: BackendBase,
    message: UpstreamRequest | UpstreamResponse,
) -> None:
    """Record a request or a response in the trace for debug output, without secrets.

    Headers marked as ``Secret`` are masked, and the body is redacted. A large body can take a
    second, so it belongs in a worker thread, which yields the GIL between two texts.
    """
    is_response = isinstance(message, UpstreamResponse)
    exchanges = trace.received if is_response else trace.sent
    if exchanges is None:
        return
    recorded_bytes = trace.got_bytes if is_response else trace.sent_bytes
    content = message.content[: LONGEST_CAPTURE - recorded_bytes]
    redact = make_redactor(list_secrets(backend))
    if len(content) > KEPT_AT_ONCE:
        redact = _yielding_gil(redact)
    body = _redact_body(content, redact, full=trace.full)
    if isinstance(message, UpstreamResponse):
        trace.got_bytes += len(content)
        exchanges.append({"provider": provider, "status": message.status, "body": body})
        return
    trace.sent_bytes += len(content)
    headers = {
        name: MASK if isinstance(value, Secret) else value
        for name, value in message.headers.items()
    }
    exchanges.append(
        {"provider": provider, "url": redact(message.url), "headers": headers, "body": body}
    )


def _yielding_gil(redact: Redactor) -> Redactor:
    time_slice = TimeSlice()

    def redact_and_yield(text: str) -> str:
        time_slice.yield_gil()
        return redact(text)

    return redact_and_yield


def _redact_body(content: bytes, redact: Redactor, *, full: bool) -> object:
    text = content.decode(errors="replace")
    try:
        body = msgspec.json.decode(text)
        return _redact_value(body, redact) if full else _summarize(body, "", redact)
    except (msgspec.MsgspecError, RecursionError):
        return redact(text) if full else f"[{len(text)} characters]"


def _redact_value(value: object, redact: Redactor) -> object:
    """Redact every text of a body, including field names and long numbers."""
    if isinstance(value, dict):
        return {
            redact(key): _redact_value(inner, redact)
            for key, inner in cast("dict[str, object]", value).items()
        }
    if isinstance(value, list):
        return [_redact_value(inner, redact) for inner in cast("list[object]", value)]
    if isinstance(value, str):
        return redact(value)
    return _redact_number(value, redact)


def _redact_number(value: object, redact: Redactor) -> object:
    # A key may be all digits, and an upstream may repeat it as a number.
    if not isinstance(value, int) or abs(value) < 10 ** (MIN_FRAGMENT - 1):
        return value
    redacted = redact(str(value))
    return value if redacted == str(value) else redacted


def _summarize(value: object, name: str, redact: Redactor) -> object:
    """Keep the structure of a body, and drop every value that may hold an input."""
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {redact(key): _summarize(inner, key, redact) for key, inner in fields.items()}
    if isinstance(value, list):
        return f"[{len(cast('list[object]', value))} items]"
    if isinstance(value, str):
        return redact(value) if name in PLAIN else f"[{len(value)} characters]"
    return _redact_number(value, redact)
