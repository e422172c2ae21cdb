"""Decodes the body of a request into an ``EmbeddingRequest``.

All checks that need no knowledge of models or providers are made here.
"""

import json
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import msgspec

from embedroute.backend import Dtype, Truncate
from embedroute.errors import InvalidRequest
from embedroute.inputs import Input, Kind, TextPart, detect_kind
from embedroute.protocol import decode_errors, listed_parts
from embedroute.protocol.coerce import Coercer
from embedroute.protocol.decode_errors import CHOICES, FIELDS
from embedroute.protocol.input_kinds import (
    Limits,
    convert_inputs,
    convert_inputs_in_steps,
    text_too_long,
)
from embedroute.protocol.large_request import (
    Outline,
    make_outline,
    most_marks,
    refuse_duplicate_members,
    restore_strings,
)
from embedroute.protocol.options import (
    NO_OPTIONS,
    RequestOptions,
    list_literals,
    parse_options,
    read_allowed_fields,
)
from embedroute.protocol.requests import (
    NEUTRAL,
    NO_PREFERENCES,
    SPELLINGS,
    Content,
    CreateEmbeddingRequest,
    Debug,
    LenientRequest,
    Preferences,
    WireInput,
)
from embedroute.runtime import LARGE, finished
from embedroute.text import echo
from embedroute.vectors import SupportsArray

NO_DEBUG: Final = Debug()

SMALL: Final = 1 << 14
"""Maximum bytes of a body that is always decoded at once: 16 KiB of ``1e308`` take 25 ms."""
MEDIUM: Final = 1 << 20
"""Maximum bytes of a body that is decoded at once if its inputs are not numbers.

It must also have at most ``FEW_QUOTES`` quotes and ``FEW_VALUES`` values.
"""
FEW_QUOTES: Final = 8192
FEW_VALUES: Final = 30_000

_NUMBERS = re.compile(rb"\[[ \t\r\n]*[-0-9\[]")
_POSITION = re.compile(r" \(byte \d+\)")
_STRICT = msgspec.json.Decoder(CreateEmbeddingRequest)
_LENIENT = msgspec.json.Decoder(LenientRequest)


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A decoded and validated request.

    ``inputs`` are n inputs of one ``kind``. ``dimensions`` is None if it is not set. ``input_type``
    is one of the neutral names (the keys of ``SPELLINGS``). ``field`` is the name of the field that
    held the inputs: ``input`` or ``inputs``. If the field ``provider`` is a string,
    it is ``provider`` here; if it is an object, it is ``preferences``. ``dtype`` is that of the
    vectors. ``large`` is true if processing all inputs at once would block the event loop.
    """

    model: str
    inputs: Sequence[Input]
    kind: Kind
    field: str = "input"
    base64: bool = False
    dimensions: int | None = None
    input_type: str | None = None
    user: str | None = None
    provider: str | None = None
    preferences: Preferences = NO_PREFERENCES
    options: RequestOptions = NO_OPTIONS
    debug: Debug = NO_DEBUG
    dtype: Dtype = "float"
    large: bool = False


InputValue = (
    EmbeddingRequest
    | str
    | Sequence[str]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Sequence[Content]
    | Sequence[Mapping[str, object]]
    | SupportsArray
)
"""What ``Gateway.embed`` embeds: texts, token ids or content parts, one or several.

Arrays of numpy and columns of data frames count as sequences.
"""


def decode_request(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Decode the body of ``POST /v1/embeddings``.

    Raises:
        InvalidRequest: the body is invalid; ``param`` names the field.
    """
    if is_small(body):
        return decode_at_once(body, limits)
    return finished(decode_in_steps(body, limits))


def decode_at_once(body: bytes, limits: Limits) -> EmbeddingRequest:
    """Decode a body for which ``is_small`` is true.

    Raises:
        InvalidRequest: the body is invalid; ``param`` names the field.
    """
    try:
        request = _decode_json(body, limits)
    except InvalidRequest as error:
        return _decode_listed_parts(body, limits, error)
    # Each member of an object has one colon. So a body with as many colons as fields that are set
    # has no duplicate key; only with more of them a duplicate is possible.
    values = msgspec.structs.astuple(request)
    colons = body.count(b":") - len(values) + values.count(None)
    if colons:
        decode_errors.refuse_duplicate_keys(body, colons, _texts(request))
    fields = _read_other_fields(body, limits) if limits.other_fields else NO_OPTIONS.fields
    wire_input, field = _select_input(request)
    if isinstance(wire_input, str) and 0 < len(wire_input) <= limits.max_text_characters:
        inputs, kind = [wire_input], Kind.TEXT  # the usual request: one text
    else:
        inputs, kind = convert_inputs(wire_input, limits, field)
    return _make_embedding_request(request, inputs, kind, field, limits, fields)


def _decode_listed_parts(body: bytes, limits: Limits, error: InvalidRequest) -> EmbeddingRequest:
    """Decode a body whose ``input`` lists parts; for any other one, raise its ``error``."""
    wrapped = listed_parts.wrap_json(body)
    if wrapped is None:
        raise error
    decode_errors.parse_again(body)
    try:
        return decode_at_once(wrapped.json, limits)
    except InvalidRequest as part_error:
        raise listed_parts.rename(part_error) from None


def _read_other_fields(body: bytes, limits: Limits) -> Mapping[str, Any]:
    """Return the fields that the config allows at the top level, and refuse unknown ones."""
    return read_allowed_fields(
        decode_errors.read_members(body, limits.other_fields), limits.allowed_fields
    )


def is_small(body: bytes) -> bool:
    """Whether decoding a body at once blocks the event loop for a few milliseconds at most.

    Strings are decoded quickly, so a larger body counts as small if it has few strings and values.
    """
    return len(body) <= SMALL or (
        len(body) <= MEDIUM
        and body.count(b'"') <= FEW_QUOTES
        and body.count(b",") + body.count(b"[") + body.count(b"{") <= FEW_VALUES
        and not _NUMBERS.search(body)
    )


def decode_in_steps(body: bytes, limits: Limits) -> Generator[None, None, EmbeddingRequest]:
    """Decode a body of any size, in steps of a few milliseconds.

    Raises:
        InvalidRequest: the body is invalid; ``param`` names the field.
    """
    outline = yield from make_outline(body, limits)
    try:
        return (yield from _decode_outline(body, outline, limits))
    except InvalidRequest:
        wrapped = listed_parts.wrap_json(outline.json)
        if wrapped is None:
            raise
    yield
    colons = outline.marks.colons + wrapped.added
    marks = msgspec.structs.replace(outline.marks, colons=colons)
    outline = Outline(wrapped.json, outline.strings, marks)
    try:
        return (yield from _decode_outline(body, outline, limits))
    except InvalidRequest as error:
        raise listed_parts.rename(error) from None


def _decode_outline(
    body: bytes, outline: Outline, limits: Limits
) -> Generator[None, None, EmbeddingRequest]:
    try:
        request = _decode_json(outline.json, limits)
    except InvalidRequest as error:
        # The position is in the outline, not in the body.
        raise InvalidRequest(_POSITION.sub("", error.message), param=error.param) from None
    yield
    yield from refuse_duplicate_members(outline, request, limits)
    fields = NO_OPTIONS.fields
    if limits.other_fields:
        fields = _read_other_fields(outline.json, limits)
    request = yield from restore_strings(request, body, outline, limits)
    yield
    wire_input, field = _select_input(request)
    inputs, kind = yield from convert_inputs_in_steps(wire_input, limits, field)
    return _make_embedding_request(request, inputs, kind, field, limits, fields, large=True)


def _decode_json(body: bytes, limits: Limits) -> CreateEmbeddingRequest:
    try:
        return (_LENIENT if limits.other_fields else _STRICT).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _explain(error, body) from None
    except RecursionError:
        decode_errors.refuse_depth()


def _explain(error: Exception, body: bytes) -> InvalidRequest:
    # How deep msgspec reads before it gives up differs between versions of Python. The outline of a
    # large body was measured when it was made.
    if is_small(body) and decode_errors.measure_depth(body) > decode_errors.DEEPEST:
        decode_errors.refuse_depth()
    try:
        return decode_errors.explain_error(error, body, FIELDS, CHOICES)
    except ValueError as syntax_error:
        # msgspec stops at the first unknown field; a syntax error after it is found only now.
        return InvalidRequest(f"The body is not valid JSON: {syntax_error}.")
    except RecursionError:
        decode_errors.refuse_depth()


S = TypeVar("S", bound=msgspec.Struct)


def decode_struct(body: bytes, struct: type[S]) -> S:
    """Decode a body as ``struct``.

    Raises:
        InvalidRequest: it does not fit; ``param`` names the field.
    """
    try:
        return msgspec.json.decode(body, type=struct)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        fields = {"": struct.__struct_fields__}
        choices = {
            path: list_literals(field.type)
            for field in msgspec.structs.fields(struct)
            for path in (field.name, f"{field.name}[]")
        }
        raise decode_errors.explain_error(error, body, fields, choices) from None
    except RecursionError:
        decode_errors.refuse_depth()


def make_request(fields: Mapping[str, object], limits: Limits) -> EmbeddingRequest:
    """Validate an in-process request by the same rules as a body.

    Raises:
        InvalidRequest: a field is invalid; ``param`` names it.
    """
    try:
        coerced = Coercer(most_marks(limits).commas).coerce(fields)
    except RecursionError:
        decode_errors.refuse_depth()
    values = cast("Mapping[str, object]", coerced)
    wrapped = listed_parts.wrap_values(values)
    if wrapped is None:
        return _check_values(values, limits)
    try:
        return _check_values(wrapped, limits)
    except InvalidRequest as error:
        raise listed_parts.rename(error) from None


def _check_values(values: Mapping[str, object], limits: Limits) -> EmbeddingRequest:
    """Validate values of the types of JSON."""
    try:
        request = msgspec.convert(values, CreateEmbeddingRequest)
        msgspec.json.encode(request)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        body = json.dumps(values, default=msgspec.to_builtins).encode()
        raise decode_errors.explain_error(error, body, FIELDS, CHOICES) from None
    parsed = check_request(request, limits)
    if _count_letters(parsed.inputs) >= LARGE:
        return msgspec.structs.replace(parsed, large=True)
    return parsed


def _count_letters(inputs: Sequence[Input]) -> int:
    """Count characters or token ids; content parts, which may hold images, count as ``LARGE``."""
    return sum(map(len, inputs)) if detect_kind(inputs[0]) is not Kind.PARTS else LARGE


def _texts(request: CreateEmbeddingRequest) -> list[str]:
    """List the strings of a request, except those in objects."""
    values = [request.model, request.user, request.provider, request.input_type]
    for wire_input in (request.input, request.inputs):
        values += wire_input if isinstance(wire_input, list) else [wire_input]
    return [value for value in values if isinstance(value, str)]


def check_request(request: CreateEmbeddingRequest, limits: Limits) -> EmbeddingRequest:
    """Validate the values of a request whose types are correct.

    Raises:
        InvalidRequest: a value is invalid; ``param`` names the field.
    """
    wire_input, field = _select_input(request)
    inputs, kind = convert_inputs(wire_input, limits, field)
    return _make_embedding_request(request, inputs, kind, field, limits, {})


def _make_embedding_request(
    request: CreateEmbeddingRequest,
    inputs: Sequence[Input],
    kind: Kind,
    field: str,
    limits: Limits,
    fields: Mapping[str, Any],
    *,
    large: bool = False,
) -> EmbeddingRequest:
    options = NO_OPTIONS
    if request.embedding_options is not None or request.truncate is not None or fields:
        options = RequestOptions(
            by_api=parse_options(request.embedding_options or {}, limits.namespaces),
            fields=fields,
            truncate=request.truncate and cast("Truncate", request.truncate.lower()),
        )
    provider = request.provider
    if isinstance(provider, Preferences):
        _refuse_duplicate_names(provider)
    input_type = request.input_type
    return EmbeddingRequest(
        model=request.model,
        inputs=inputs,
        kind=kind,
        field=field,
        base64=request.encoding_format == "base64",
        dimensions=int(request.dimensions) if request.dimensions else None,
        input_type=None if input_type is None else _parse_input_type(input_type),
        user=request.user,
        provider=provider if isinstance(provider, str) else None,
        preferences=provider if isinstance(provider, Preferences) else NO_PREFERENCES,
        options=options,
        debug=request.debug or NO_DEBUG,
        dtype=request.output_dtype or "float",
        large=large,
    )


def _select_input(request: CreateEmbeddingRequest) -> tuple[WireInput, str]:
    """Return the value to embed, and the name of its field: ``input`` or ``inputs``."""
    wire_input = request.inputs if request.input is None else request.input
    if wire_input is None:
        expected = "a string, or an array of strings, token ids or content objects"
        raise InvalidRequest(f"'input' is required: {expected}.", param="input")
    if request.inputs is not None and request.inputs != wire_input:
        raise InvalidRequest(
            "'inputs' is another name for 'input' and must not differ from it. Send one of them.",
            param="inputs",
        )
    return wire_input, "inputs" if request.input is None else "input"


def _parse_input_type(spelling: str) -> str:
    neutral = NEUTRAL.get(spelling.lower())
    if neutral is None:
        known = ", ".join(SPELLINGS)
        raise InvalidRequest(
            f"'input_type' {echo(spelling)} is unknown. "
            f"Use one of {known}, or a vendor's spelling of it.",
            param="input_type",
        )
    return neutral


def fold_parts_in_steps(
    parsed: EmbeddingRequest, limits: Limits
) -> Generator[None, None, EmbeddingRequest]:
    """Join the parts of each input, which are all texts, to one text with line breaks.

    Raises:
        InvalidRequest: a joined text is longer than ``max_text_characters``.
    """
    texts = list[str]()
    for position, parts in enumerate(cast("Sequence[tuple[TextPart, ...]]", parsed.inputs)):
        text = "\n".join([part.text for part in parts])
        if len(text) > limits.max_text_characters:
            raise text_too_long(limits, f"{parsed.field}[{position}]")
        texts.append(text)
        yield
    return msgspec.structs.replace(parsed, inputs=texts, kind=Kind.TEXT)


def with_input_type(parsed: EmbeddingRequest, neutral: str) -> EmbeddingRequest:
    """Set the input type from the suffix of the model name.

    Raises:
        InvalidRequest: ``input_type`` has a different value.
    """
    if parsed.input_type not in (None, neutral):
        message = f"'input_type' contradicts the suffix ':{neutral}' of 'model'. Send one of them."
        raise InvalidRequest(message, param="input_type")
    return msgspec.structs.replace(parsed, input_type=neutral)


def _refuse_duplicate_names(preferences: Preferences) -> None:
    for field in ("order", "only", "ignore"):
        names: list[str] = getattr(preferences, field) or []
        if len(set(names)) < len(names):
            raise InvalidRequest(
                f"'provider.{field}' names a provider twice.", param=f"provider.{field}"
            )
