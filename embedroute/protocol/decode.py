"""Reads a body into a job: everything that can be judged without knowing models or providers is judged here."""

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Final

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import Input, Kind, detect_kind
from embedroute.protocol import decode_errors
from embedroute.protocol.coerce import Plain
from embedroute.protocol.decode_errors import CHOICES, FIELDS
from embedroute.protocol.input_kinds import Limits, narrow, narrow_in_steps
from embedroute.protocol.large_body import most_marks, outlined, refuse_duplicate_members, restored
from embedroute.protocol.requests import (
    GOOGLE_TASKS,
    NEUTRAL,
    NO_PREFERENCES,
    SPELLINGS,
    Content,
    CreateEmbeddingRequest,
    Debug,
    EmbeddingOptions,
    LenientRequest,
    Preferences,
    WireInput,
)
from embedroute.runtime import LARGE, finished
from embedroute.text import echo

NO_OPTIONS: Final = EmbeddingOptions()
NO_DEBUG: Final = Debug()

SMALL: Final = 1 << 14
"""Bytes of a body that is read at once, whatever is in it: 16 KiB of ``1e308`` take 25 ms."""
MEDIUM: Final = 1 << 20
"""Bytes of a body that is read at once if it holds no numbers as inputs, ``FEW_QUOTES`` and ``FEW_VALUES``."""
FEW_QUOTES: Final = 8192
FEW_VALUES: Final = 30_000

_NUMBERS = re.compile(rb"\[[ \t\r\n]*[-0-9\[]")
_POSITION = re.compile(r" \(byte \d+\)")
_STRICT = msgspec.json.Decoder(CreateEmbeddingRequest)
_LENIENT = msgspec.json.Decoder(LenientRequest)


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, checked: n ``inputs`` of one ``kind``, and how they are to be embedded and answered.

    ``dimensions`` is None when unset, ``input_type`` a neutral word, ``provider`` the string form of ``provider``.
    ``large`` says that work on all inputs at once would hold an event loop up.
    """

    model: str
    inputs: Sequence[Input]
    kind: Kind
    base64: bool = False
    dimensions: int | None = None
    input_type: str | None = None
    user: str | None = None
    provider: str | None = None
    preferences: Preferences = NO_PREFERENCES
    options: EmbeddingOptions = NO_OPTIONS
    debug: Debug = NO_DEBUG
    large: bool = False


def decode_request(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Read the body of ``POST /v1/embeddings``.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    return (
        decode_at_once(body, limits) if is_small(body) else finished(decode_in_steps(body, limits))
    )


def decode_at_once(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Read a body that ``is_small``.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    request = _read(body, limits)
    decode_errors.refuse_duplicate_keys(body, request, _texts(request))
    given, name = _given(request)
    inputs, kind = narrow(given, limits, name)
    return _job(request, inputs, kind)


def is_small(body: bytes) -> bool:
    """Whether reading a body at once holds an event loop up for some milliseconds at most.

    Strings are quick to read, so a larger body counts as small if it holds few of them and few other values.
    """
    return len(body) <= SMALL or (
        len(body) <= MEDIUM
        and body.count(b'"') <= FEW_QUOTES
        and body.count(b",") + body.count(b"[") + body.count(b"{") <= FEW_VALUES
        and not _NUMBERS.search(body)
    )


def decode_in_steps(body: bytes, limits: Limits) -> Generator[None, None, EmbeddingRequest]:
    """Read any body in steps of some milliseconds each.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    outline = yield from outlined(body, limits)
    try:
        request = _read(outline.json, limits)
    except InvalidRequest as error:
        # Positions are those of the outline.
        raise InvalidRequest(_POSITION.sub("", error.message), param=error.param) from None
    yield
    yield from refuse_duplicate_members(outline, request, limits)
    request = yield from restored(request, body, outline, limits)
    yield
    given, name = _given(request)
    inputs, kind = yield from narrow_in_steps(given, limits, name)
    return _job(request, inputs, kind, large=True)


def _read(body: bytes, limits: Limits) -> CreateEmbeddingRequest:
    try:
        return (_LENIENT if limits.ignore_unknown else _STRICT).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _reworded(error, body) from None
    except RecursionError:
        decode_errors.refuse_depth()


def _reworded(error: Exception, body: bytes) -> InvalidRequest:
    # How deep msgspec reads before it gives up differs between versions of Python.
    if decode_errors.measure_depth(body) > decode_errors.DEEPEST:
        decode_errors.refuse_depth()
    try:
        return decode_errors.explain_error(error, body, FIELDS, CHOICES)
    except (
        ValueError
    ) as worse:  # msgspec stops at the first unknown field, so the rest is read only now
        return InvalidRequest(f"The body is not valid JSON: {worse}.")
    except RecursionError:
        decode_errors.refuse_depth()


def make_request(fields: Mapping[str, object], limits: Limits) -> EmbeddingRequest:
    """Check a request that was not read from the wire, by the same rules; values of a host's own types are taken by value.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    try:
        given = Plain(most_marks(limits).commas).plain(fields)
    except RecursionError:
        decode_errors.refuse_depth()
    try:
        request = msgspec.convert(given, CreateEmbeddingRequest)
        msgspec.json.encode(request)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        body = json.dumps(given, default=msgspec.to_builtins).encode()
        raise decode_errors.explain_error(error, body, FIELDS, CHOICES) from None
    parsed = check_request(request, limits)
    return (
        msgspec.structs.replace(parsed, large=True) if _letters(parsed.inputs) >= LARGE else parsed
    )


def _letters(inputs: Sequence[Input]) -> int:
    """Count the characters and ids of texts and ids; content parts count as many."""
    return sum(map(len, inputs)) if detect_kind(inputs[0]) is not Kind.PARTS else LARGE


def _texts(request: CreateEmbeddingRequest) -> list[str] | None:
    texts = [
        text
        for text in (request.model, request.user, request.provider, request.input_type)
        if isinstance(text, str)
    ]
    for given in (request.input, request.inputs):
        if isinstance(given, str):
            texts.append(given)
        elif given is not None:
            texts.extend(item for item in given if isinstance(item, str))
            if any(isinstance(item, Content) for item in given):
                return None
    return texts


def check_request(request: CreateEmbeddingRequest, limits: Limits) -> EmbeddingRequest:
    """Judge the values of a well-typed request.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    given, name = _given(request)
    inputs, kind = narrow(given, limits, name)
    return _job(request, inputs, kind)


def _job(
    request: CreateEmbeddingRequest, inputs: Sequence[Input], kind: Kind, *, large: bool = False
) -> EmbeddingRequest:
    options = request.embedding_options or NO_OPTIONS
    provider = request.provider
    if isinstance(provider, Preferences):
        _refuse_duplicates(provider)
    return EmbeddingRequest(
        model=request.model,
        inputs=inputs,
        kind=kind,
        base64=request.encoding_format == "base64",
        dimensions=_dimensions(request.dimensions, options),
        input_type=_input_type(request.input_type, options),
        user=request.user,
        provider=provider if isinstance(provider, str) else None,
        preferences=provider if isinstance(provider, Preferences) else NO_PREFERENCES,
        options=options,
        debug=request.debug or NO_DEBUG,
        large=large,
    )


def _given(request: CreateEmbeddingRequest) -> tuple[WireInput, str]:
    """Tell what is to be embedded, and in which of the two fields it came."""
    given = request.inputs if request.input is None else request.input
    if given is None:
        wanted = "a string, or an array of strings, token ids or content objects"
        raise InvalidRequest(f"'input' is required: {wanted}.", param="input")
    if request.inputs is not None and request.inputs != given:
        raise InvalidRequest(
            "'inputs' is another name for 'input'; send one of them, or both alike.", param="inputs"
        )
    return given, "inputs" if request.input is None else "input"


def _dimensions(asked: int | None, options: EmbeddingOptions) -> int | None:
    if options is NO_OPTIONS:
        return asked or None
    wishes = {
        "embedding_options.google.output_dimensionality": options.google
        and options.google.output_dimensionality,
        "embedding_options.mistral.output_dimension": options.mistral
        and options.mistral.output_dimension,
    }
    for param, wish in wishes.items():
        if asked and wish and wish != asked:
            raise InvalidRequest(
                f"'{param}' contradicts 'dimensions'; send one of them.", param=param
            )
    return asked or None


def _input_type(asked: str | None, options: EmbeddingOptions) -> str | None:
    if asked is None:
        return None
    neutral = NEUTRAL.get(asked.lower())
    if neutral is None:
        known = ", ".join(SPELLINGS)
        raise InvalidRequest(
            f"'input_type' {echo(asked)} is not known; use one of {known}, or a vendor's spelling of it.",
            param="input_type",
        )
    _refuse_other_task(neutral, options)
    return neutral


def _refuse_other_task(neutral: str, options: EmbeddingOptions) -> None:
    task = options.google and options.google.task_type
    if task and GOOGLE_TASKS[task] not in (None, neutral):
        param = "embedding_options.google.task_type"
        raise InvalidRequest(f"'{param}' contradicts 'input_type'; send one of them.", param=param)


def with_input_type(parsed: EmbeddingRequest, neutral: str) -> EmbeddingRequest:
    """Set the input type that a suffix of the model's name asks for.

    Raises:
        InvalidRequest: ``input_type`` or a vendor's option asks for another one.
    """
    if parsed.input_type not in (None, neutral):
        message = f"'input_type' contradicts the suffix ':{neutral}' of 'model'; send one of them."
        raise InvalidRequest(message, param="input_type")
    _refuse_other_task(neutral, parsed.options)
    return msgspec.structs.replace(parsed, input_type=neutral)


def _refuse_duplicates(preferences: Preferences) -> None:
    for field in ("order", "only", "ignore"):
        names: list[str] = getattr(preferences, field) or []
        if len(set(names)) < len(names):
            raise InvalidRequest(
                f"'provider.{field}' names a provider twice.", param=f"provider.{field}"
            )
