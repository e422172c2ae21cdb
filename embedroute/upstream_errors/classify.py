"""Classifies an upstream's error response by evidence, in two stages. Pure functions.

``classify_response`` knows the response: its status, headers and body. ``refine_with_inputs`` also
knows the inputs of the call: it recognises refusals by their numbers, and discards evidence that
the upstream may have quoted from an input.

An error blames an input only if the upstream names an input's fault. Any other refusal is
``Rejected``: another endpoint may accept the request. The codes and messages are in
:mod:`embedroute.upstream_errors.patterns`.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import msgspec

from embedroute.errors import (
    BatchTooLarge,
    ContextTooLong,
    Measure,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RejectedByPage,
    UpstreamAuthError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, Input, estimate_size
from embedroute.upstream_errors import references
from embedroute.upstream_errors.accounts import find_spent_words, names_short_period
from embedroute.upstream_errors.body import ErrorBody, parse_body
from embedroute.upstream_errors.patterns import (
    FIRST_PATTERNS,
    FORBIDDEN_CODES,
    LATER_PATTERNS,
    MEASURES,
    REQUESTED_TOKENS,
    SPENT_PATTERN,
    ErrorPattern,
    MatchScope,
)
from embedroute.upstream_errors.quotes import QuoteCheck
from embedroute.upstream_errors.retry_after import find_wait, find_wait_in_text
from embedroute.upstream_errors.sizes import (
    SizeMatch,
    exceeds_rate_limit,
    find_exceeded_rate,
    find_size_refusal,
    measure_call,
)

BY_STATUS: Final[Mapping[int, type[UpstreamError]]] = {
    401: UpstreamAuthError,
    402: QuotaExhausted,
    404: UpstreamModelNotFound,
    408: UpstreamUnavailable,
    409: UpstreamUnavailable,  # Jina: the resource is busy
    424: UpstreamUnavailable,
    425: UpstreamUnavailable,
    429: RateLimited,
    498: UpstreamAuthError,  # Cohere
    499: UpstreamUnavailable,
}
"""Status → error class, if nothing in the response says more.

Any other 4xx is ``Rejected``, or ``RejectedByPage`` if it has no message. All other statuses are
``UpstreamUnavailable``.
"""

FIELD_STATUSES: Final = frozenset({400, 422})
"""Statuses that refuse a field of the request."""

HARMS_OTHERS: Final = (
    BatchTooLarge,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamUnavailable,
)
"""Errors that change how the endpoint is used for other requests; a quote must not cause them."""

MOST_QUOTES: Final = 8
"""Maximum number of times that a message is classified without words of the inputs."""

LARGE_BODY: Final = 32 * 1024
"""Bytes of an input from which a 413 without a message is about that input."""

MOST_RATE_LIMITS: Final = 16
LONGEST_RATE_LIMIT: Final = 128


class Verdict(msgspec.Struct, frozen=True):
    """An error class, and the text of the upstream by which it was chosen (empty for a code)."""

    kind: type[UpstreamError]
    matched_text: str = ""
    measure: Measure | None = None


def classify_response(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    *,
    now: float | None = None,
    rate_limit_codes: AbstractSet[str] = frozenset(),
) -> UpstreamError:
    """Make the error for a response whose status is not a success.

    Its message is the upstream's own; the caller must redact secrets and shorten it. ``now`` is the
    time in seconds since 1970 (default: the system clock). ``rate_limit_codes`` are codes that this
    provider uses for a rate limit, although others use them for a spent account. Call
    ``refine_with_inputs`` with the error when the inputs of the call are known.
    """
    body = parse_body(content, headers.get("content-type", ""))
    amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
    if amazon:
        body = msgspec.structs.replace(body, fields=(*body.fields, ("code", amazon)))
    wait = find_wait(headers, body, now=time.time() if now is None else now)
    verdict = _find_verdict(status, body, wait and wait.seconds, rate_limit_codes)
    if verdict is None and status == 403 and _names_key(headers):
        verdict = Verdict(UpstreamAuthError)
    if verdict is None:
        verdict = Verdict(_classify_status(status, body.message))
    error = verdict.kind(
        f"The upstream answered {status}" + (f": {body.message}" if body.message else "."),
        retry_after=wait and wait.capped,
        upstream_status=status,
    )
    error.matched_text = verdict.matched_text
    error.rate_limits = read_rate_limits(headers)
    if isinstance(error, BatchTooLarge):
        error.measure = verdict.measure
    _set_references(error, body)
    return error


def _find_verdict(
    status: int,
    body: ErrorBody,
    wait: float | None,
    rate_limit_codes: AbstractSet[str] = frozenset(),
) -> Verdict | None:
    """Return the verdict of the first evidence that matches, or None."""
    if status == 429 and not rate_limit_codes.isdisjoint(body.codes):
        spent = SPENT_PATTERN.search(body)
        return Verdict(QuotaExhausted, spent) if spent else Verdict(RateLimited)
    verdict = _match(FIRST_PATTERNS, status, body)
    if verdict is None and (words := find_spent_words(status, body.message, wait)):
        verdict = Verdict(QuotaExhausted, words)
    verdict = verdict or _match(LATER_PATTERNS, status, body)
    is_batch = verdict is not None and verdict.kind is BatchTooLarge
    if status == 429 and is_batch and exceeds_rate_limit(body.message) is False:
        return Verdict(RateLimited)
    return verdict


def _match(patterns: Sequence[ErrorPattern], status: int, body: ErrorBody) -> Verdict | None:
    for pattern in patterns:
        if status in pattern.statuses and (text := pattern.search(body)):
            is_code = pattern.where is MatchScope.CODE
            return Verdict(pattern.means, "" if is_code else text, _measure_in(text))
    return None


def _set_references(error: UpstreamError, body: ErrorBody) -> None:
    """Set the input and the field that the response refers to."""
    indexes = {match.number for match in references.find_indexes(body.message)}
    indexes |= references.find_structured_indexes(body)
    if len(indexes) == 1:
        error.input_index = indexes.pop()
    if isinstance(error, Rejected) and error.upstream_status in FIELD_STATUSES:
        match = references.find_field(body.message)
        error.field = match.field if match else references.find_structured_field(body)


def read_rate_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the first ``x-ratelimit-*`` headers, each cut at ``LONGEST_RATE_LIMIT``."""
    names = [name for name in headers if name.startswith("x-ratelimit-")]
    return {
        name[:LONGEST_RATE_LIMIT]: headers[name][:LONGEST_RATE_LIMIT]
        for name in names[:MOST_RATE_LIMITS]
    }


def refine_with_inputs(error: UpstreamError, inputs: Sequence[Input]) -> UpstreamError:
    """Correct the class of an error, given the ``inputs`` of the failed call.

    If the text by which the error was classified occurs in an input, the upstream may have quoted
    it, so it is not evidence. A refusal that states a size of this call is about size: one input
    is rejected, a call of several inputs is halved.
    """
    check = QuoteCheck(inputs)
    _drop_quoted_references(error, len(inputs), check)
    error = _refine_class(error, inputs, check)
    _drop_doubtful_index(error, inputs)
    _drop_unknown_indexes(error, len(inputs), check)
    return error


def _refine_class(
    error: UpstreamError, inputs: Sequence[Input], check: QuoteCheck
) -> UpstreamError:
    if isinstance(error, HARMS_OTHERS) and check.is_quote(error.matched_text):
        error = _classify_without_quotes(error, check)
    size = _find_size(error, inputs, check)
    if size is not None:
        names_input = error.input_index is not None or len(inputs) == 1
        error = _convert(error, ContextTooLong if names_input else BatchTooLarge)
        if isinstance(error, BatchTooLarge):
            error.measure = size.measure
        return error
    return _refine_size(error, inputs, check)


def _drop_quoted_references(error: UpstreamError, count: int, check: QuoteCheck) -> None:
    """Remove a wait, an index or a field that may be quoted, and an index that is out of range."""
    message = own_message(error)
    wait = find_wait_in_text(message)
    if wait and error.retry_after == wait.capped and check.is_quote(wait.text):
        error.retry_after = None
    if error.input_index is not None:
        texts = {match.text for match in references.find_indexes(message)}
        if error.input_index >= count or any(map(check.is_quote, texts)):
            error.input_index = None
    if error.field is not None:
        match = references.find_field(message)
        if match and check.is_quote(match.text):
            error.field = None


def _drop_doubtful_index(error: UpstreamError, inputs: Sequence[Input]) -> None:
    """Remove the index of an input that does not have the fault: the upstream counts from 1.

    The fault can be seen in an input that is too long, that is empty, or that has an image.
    """
    index = error.input_index
    if index is None or not isinstance(error, UpstreamRejectedInput):
        return
    if isinstance(error, ContextTooLong):
        # An upstream that counts from 0 would have named a longer input before this one first.
        is_wrong = index > 0 and estimate_size(inputs[index - 1]) > estimate_size(inputs[index])
    else:
        message = own_message(error)
        faults = (fault for words, fault in _VISIBLE_FAULTS if words.search(message))
        is_wrong = any(not fault(inputs[index]) and any(map(fault, inputs)) for fault in faults)
    if is_wrong:
        error.input_index = None


def _is_blank(item: Input) -> bool:
    return not item.strip() if isinstance(item, str) else not item


def _has_image(item: Input) -> bool:
    return not isinstance(item, str) and any(isinstance(part, ImagePart) for part in item)


_VISIBLE_FAULTS: Final[Sequence[tuple[re.Pattern[str], Callable[[Input], bool]]]] = (
    (re.compile(r"\b(?:empty|blank|minLength: 1)\b", re.IGNORECASE), _is_blank),
    (re.compile(r"\bimage\b", re.IGNORECASE), _has_image),
)
"""Words for a fault → whether an input has it."""


def _drop_unknown_indexes(error: UpstreamError, count: int, check: QuoteCheck) -> None:
    """Remove the numbers of inputs that the gateway cannot translate into the client's own."""
    own = own_message(error)
    known = references.remove_ordinals(own, count, check.is_quote)
    if error.input_index is None:
        known = references.remove_indexes(known, count, check.is_quote)
    if known != own:
        error.message = error.message.removesuffix(own) + known


def _classify_without_quotes(error: UpstreamError, check: QuoteCheck) -> UpstreamError:
    """Classify the message again, without the words of it that occur in an input."""
    status = error.upstream_status
    if status is None:
        return _convert(error, Rejected)
    rest = own_message(error)
    verdict = Verdict(type(error), error.matched_text)
    for _ in range(MOST_QUOTES):
        rest = re.sub(re.escape(verdict.matched_text), " ", rest, flags=re.IGNORECASE)
        body = ErrorBody(document=rest, message=rest, fields=())
        new_verdict = _find_verdict(status, body, error.retry_after)
        if new_verdict is None:
            break
        verdict = new_verdict
        if not check.is_quote(verdict.matched_text):
            converted = _convert(error, verdict.kind, verdict.matched_text)
            if isinstance(converted, BatchTooLarge):
                converted.measure = verdict.measure
            return converted
    return _convert(error, _classify_status(status, own_message(error)), "")


def own_message(error: UpstreamError) -> str:
    """Return the upstream's message, without the gateway's words before it."""
    return error.message.removeprefix(f"The upstream answered {error.upstream_status}: ")


def _find_size(
    error: UpstreamError, inputs: Sequence[Input], check: QuoteCheck
) -> SizeMatch | None:
    """Return the numbers that make a refusal of unknown cause one of size, or None."""
    status = error.upstream_status
    is_open = isinstance(error, Rejected | RateLimited) or type(error) is UpstreamUnavailable
    is_about_field = error.field is not None and error.field not in references.INPUT_FIELDS
    if status is None or not is_open or is_about_field or not inputs:
        return None
    message = own_message(error)
    if status == 429 and names_short_period(message):
        message = find_exceeded_rate(message)
    found = find_size_refusal(message, status, measure_call(inputs))
    return found if found and not check.is_quote(found.text) else None


def _refine_size(error: UpstreamError, inputs: Sequence[Input], check: QuoteCheck) -> UpstreamError:
    """Correct a size refusal by the number of inputs, and set its measure."""
    kind, measure = _find_size_class(error, inputs, check)
    refined = _convert(error, kind)
    if isinstance(refined, BatchTooLarge):
        refined.measure = measure
    return refined


def _find_size_class(
    error: UpstreamError, inputs: Sequence[Input], check: QuoteCheck
) -> tuple[type[UpstreamError], Measure | None]:
    """Return the class of an error, and for ``BatchTooLarge`` the unit of the exceeded limit."""
    several = len(inputs) > 1
    if isinstance(error, ContextTooLong):
        is_count = several and _states_count(error.message, len(inputs), check)
        return (BatchTooLarge, Measure.INPUTS) if is_count else (type(error), None)
    is_too_large = error.upstream_status == 413 and isinstance(error, Rejected | BatchTooLarge)
    if is_too_large and several:
        return BatchTooLarge, _stated_measure(error, check) or Measure.BYTES
    if is_too_large and isinstance(error, Rejected):
        is_large = inputs and measure_call(inputs).bytes >= LARGE_BODY
        return UpstreamRejectedInput if is_large else type(error), None
    if not isinstance(error, BatchTooLarge):
        return type(error), None
    if not several:
        is_context = "token" in error.message.lower()
        return ContextTooLong if is_context else UpstreamRejectedInput, None
    measure = _stated_measure(error, check)
    if measure is None and error.upstream_status is None:
        measure = _measure_in(error.message)
    return type(error), measure


def _stated_measure(error: UpstreamError, check: QuoteCheck) -> Measure | None:
    """Return the unit that the upstream has stated, unless it may be quoted from an input."""
    measure = error.measure if isinstance(error, BatchTooLarge) else None
    return None if measure is None or check.is_quote(error.matched_text) else measure


def _convert(
    error: UpstreamError, kind: type[UpstreamError], matched_text: str | None = None
) -> UpstreamError:
    """Return the error with another class; its message and evidence are kept."""
    if kind is type(error) and matched_text is None:
        return error
    converted = kind(
        error.message,
        param=error.param,
        retry_after=error.retry_after,
        upstream_status=error.upstream_status,
        reason=error.reason,
    )
    converted.matched_text = error.matched_text if matched_text is None else matched_text
    converted.provider = error.provider
    converted.input_index = error.input_index
    converted.field = error.field if issubclass(kind, Rejected) else None
    converted.rate_limits = error.rate_limits
    return converted


def _measure_in(text: str) -> Measure | None:
    return next((measure for measure, pattern in MEASURES if pattern.search(text)), None)


def _states_count(message: str, count: int, check: QuoteCheck) -> bool:
    """Whether the number of tokens in the message is in fact the number of inputs (Volcengine)."""
    match = REQUESTED_TOKENS.search(message)
    return match is not None and int(match[1]) == count and not check.is_quote(match[0])


def _classify_status(status: int, message: str) -> type[UpstreamError]:
    """Return the class for a status; ``message`` is the one in the body, or empty."""
    if (kind := BY_STATUS.get(status)) is not None:
        return kind
    if 400 <= status < 500:
        return Rejected if message else RejectedByPage
    return UpstreamUnavailable


def _names_key(headers: Mapping[str, str]) -> bool:
    """Whether the headers of a 403, which a client cannot influence, concern the API key."""
    amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
    return "www-authenticate" in headers or FORBIDDEN_CODES.fullmatch(amazon) is not None
