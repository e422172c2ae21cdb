"""Reads a body into a job: everything that can be judged without knowing models or providers is judged here."""

import json
from collections.abc import Sequence
from typing import Any, Final, Self, get_args

import msgspec

from embedroute.config import Settings
from embedroute.errors import InvalidRequest, echo
from embedroute.inputs import ImagePart, ImageURL, Input, Kind, TextPart
from embedroute.wire import media, mistakes, strict
from embedroute.wire.preferences import NO_PREFERENCES, MaxPrice, Percentiles, Preferences, Quantization, Sort, SortKey
from embedroute.wire.requests import (
    Content,
    CreateEmbeddingRequest,
    Debug,
    Dtype,
    EmbeddingOptions,
    GoogleOptions,
    GoogleTask,
    LenientRequest,
    MistralOptions,
    WireInput,
)
from embedroute.wire.vocabulary import GOOGLE_TASKS, NEUTRAL, SPELLINGS

FIELDS: Final = {
    "": CreateEmbeddingRequest.__struct_fields__,
    "provider": Preferences.__struct_fields__,
    "provider.sort": Sort.__struct_fields__,
    "provider.max_price": MaxPrice.__struct_fields__,
    "provider.preferred_max_latency": Percentiles.__struct_fields__,
    "provider.preferred_min_throughput": Percentiles.__struct_fields__,
    "embedding_options": EmbeddingOptions.__struct_fields__,
    "embedding_options.google": GoogleOptions.__struct_fields__,
    "embedding_options.mistral": MistralOptions.__struct_fields__,
    "debug": Debug.__struct_fields__,
    **{f"{name}[]": Content.__struct_fields__ for name in ("input", "inputs")},
    **{f"{name}[].content[]": ("type", "text", "image_url") for name in ("input", "inputs")},
    **{f"{name}[].content[].image_url": ImageURL.__struct_fields__ for name in ("input", "inputs")},
}
"""The objects of a body, by path, with the keys that each has; array indexes stand as ``[]``."""

CHOICES: Final = {
    "encoding_format": ("float", "base64"),
    "provider.sort": get_args(SortKey),
    "provider.sort.by": get_args(SortKey),
    "provider.sort.partition": ("model", "none"),
    "provider.data_collection": ("allow", "deny"),
    "provider.quantizations[]": get_args(Quantization),
    "embedding_options.google.task_type": get_args(GoogleTask),
    "embedding_options.mistral.output_dtype": get_args(Dtype),
    "debug.trace_level": ("summary", "full"),
    "input[].content[].type": ("text", "image_url"),
    "inputs[].content[].type": ("text", "image_url"),
}
"""The enumerations of a body, by path, with their values."""

NO_OPTIONS: Final = EmbeddingOptions()
NO_DEBUG: Final = Debug()

_STRICT = msgspec.json.Decoder(CreateEmbeddingRequest)
_LENIENT = msgspec.json.Decoder(LenientRequest)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What config lets a body hold; ``media_domains`` are lower-case host names."""

    max_inputs: int = 2048
    media_domains: frozenset[str] = frozenset()
    ignore_unknown: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take them from the ``[gateway]`` table."""
        domains = frozenset(domain.lower() for domain in settings.media_domains)
        return cls(max_inputs=settings.max_inputs, media_domains=domains, ignore_unknown=settings.unknown_fields == "ignore")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request, checked: n ``inputs`` of one ``kind``, and how they are to be embedded and answered.

    ``dimensions`` is None when unset, ``input_type`` a neutral word, ``hint`` the string form of ``provider``.
    """

    model: str
    inputs: Sequence[Input]
    kind: Kind
    base64: bool = False
    dimensions: int | None = None
    input_type: str | None = None
    user: str | None = None
    hint: str | None = None
    preferences: Preferences = NO_PREFERENCES
    options: EmbeddingOptions = NO_OPTIONS
    debug: Debug = NO_DEBUG


def decode_request(body: bytes, limits: Limits) -> Job:
    """Read the body of ``POST /v1/embeddings``.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    try:
        request = (_LENIENT if limits.ignore_unknown else _STRICT).decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _reworded(error, body) from None
    except RecursionError:
        strict.refuse_depth()
    strict.refuse_duplicate_keys(body, request, _texts(request))
    return check_request(request, limits)


def _reworded(error: Exception, body: bytes) -> InvalidRequest:
    try:
        return mistakes.refusal_of(error, body, FIELDS, CHOICES)
    except ValueError as worse:  # msgspec stops at the first unknown field, so the rest is read only now
        return InvalidRequest(f"The body is not valid JSON: {worse}.")
    except RecursionError:
        strict.refuse_depth()


def make_request(fields: dict[str, Any], limits: Limits) -> Job:
    """Check a request that was not read from the wire, by the same rules.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    try:
        request = msgspec.convert(fields, CreateEmbeddingRequest)
        msgspec.json.encode(request)
    except msgspec.ValidationError as error:
        raise mistakes.refusal_of(error, json.dumps(fields, default=repr).encode(), FIELDS, CHOICES) from None
    except UnicodeEncodeError:
        raise InvalidRequest("A text holds half of a surrogate pair; send whole characters.", param="input") from None
    return check_request(request, limits)


def _texts(request: CreateEmbeddingRequest) -> list[str] | None:
    texts = [text for text in (request.model, request.user, request.provider, request.input_type) if isinstance(text, str)]
    for given in (request.input, request.inputs):
        if isinstance(given, str):
            texts.append(given)
        elif given is not None:
            texts.extend(item for item in given if isinstance(item, str))
            if any(isinstance(item, Content) for item in given):
                return None
    return texts


def check_request(request: CreateEmbeddingRequest, limits: Limits) -> Job:
    """Judge the values of a well-typed request.

    Raises:
        InvalidRequest: ``param`` names the field at fault.
    """
    inputs, kind = narrow(_given(request), limits, "inputs" if request.input is None else "input")
    options = request.embedding_options or NO_OPTIONS
    provider = request.provider
    if isinstance(provider, Preferences):
        _refuse_duplicates(provider)
    return Job(
        model=request.model,
        inputs=inputs,
        kind=kind,
        base64=request.encoding_format == "base64",
        dimensions=_dimensions(request.dimensions, options),
        input_type=_input_type(request.input_type, options),
        user=request.user,
        hint=provider if isinstance(provider, str) else None,
        preferences=provider if isinstance(provider, Preferences) else NO_PREFERENCES,
        options=options,
        debug=request.debug or NO_DEBUG,
    )


def _given(request: CreateEmbeddingRequest) -> WireInput:
    given = request.inputs if request.input is None else request.input
    if given is None:
        wanted = "a string, or an array of strings, token ids or content objects"
        raise InvalidRequest(f"'input' is required: {wanted}.", param="input")
    if request.inputs is not None and request.inputs != given:
        raise InvalidRequest("'inputs' is another name for 'input'; send one of them, or both alike.", param="inputs")
    return given


def narrow(given: WireInput, limits: Limits, name: str = "input") -> tuple[Sequence[Input], Kind]:
    """Tell the four shapes of ``input`` apart: n inputs of one kind; ``name`` is the field they came in.

    Raises:
        InvalidRequest: none or too many inputs, an empty one, two kinds, or an id that no vocabulary has.
    """
    if isinstance(given, str):
        given = [given]
    if not given:
        raise InvalidRequest(f"'{name}' must not be an empty array.", param=name)
    kinds = set(map(type, given))
    if kinds <= {int, float}:
        return [_ids(given, name)], Kind.TOKENS
    if len(kinds) > 1:
        wanted = "strings, token ids, arrays of token ids or content objects"
        raise InvalidRequest(f"'{name}' must hold one kind of item: {wanted}.", param=name)
    _refuse_too_many(given, limits, name)
    if kinds == {str}:
        return _texts_of(given, name), Kind.TEXT
    return _nested(given, limits, name)


def _nested(given: list[Any], limits: Limits, name: str) -> tuple[Sequence[Input], Kind]:
    if isinstance(given[0], list):
        return [_ids(ids, f"{name}[{position}]") for position, ids in enumerate(given)], Kind.TOKENS
    return [_parts(item, f"{name}[{position}]", limits) for position, item in enumerate(given)], Kind.PARTS


def _texts_of(texts: list[Any], name: str) -> list[str]:
    if "" in texts:
        param = f"{name}[{texts.index('')}]" if len(texts) > 1 else name
        raise InvalidRequest(f"'{param}' must not be empty.", param=param)
    return texts


def _refuse_too_many(items: Sequence[object], limits: Limits, name: str) -> None:
    if len(items) > limits.max_inputs:
        raise InvalidRequest(f"'{name}' holds {len(items)} inputs; send at most {limits.max_inputs} at a time.", param=name)


def _ids(ids: list[Any], param: str) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest(f"'{param}' must not be empty.", param=param)
    whole = tuple(map(int, ids))
    if whole != tuple(ids):
        raise InvalidRequest(f"'{param}' must hold whole numbers.", param=param)
    if min(whole) < 0 or max(whole) >= 2**31:
        raise InvalidRequest(f"'{param}' must hold token ids from 0 to {2**31 - 1}.", param=param)
    return whole


def _parts(item: Content, param: str, limits: Limits) -> tuple[TextPart | ImagePart, ...]:
    for position, part in enumerate(item.content):
        where = f"{param}.content[{position}]"
        if isinstance(part, ImagePart):
            media.check_media(part.image_url.url, limits.media_domains, f"{where}.image_url.url")
        elif not part.text:
            raise InvalidRequest(f"'{where}.text' must not be empty.", param=f"{where}.text")
    return tuple(item.content)


def _dimensions(asked: int | None, options: EmbeddingOptions) -> int | None:
    wishes = {
        "embedding_options.google.output_dimensionality": options.google and options.google.output_dimensionality,
        "embedding_options.mistral.output_dimension": options.mistral and options.mistral.output_dimension,
    }
    for param, wish in wishes.items():
        if asked and wish and wish != asked:
            raise InvalidRequest(f"'{param}' contradicts 'dimensions'; send one of them.", param=param)
    return asked or None


def _input_type(asked: str | None, options: EmbeddingOptions) -> str | None:
    neutral = None if asked is None else NEUTRAL.get(asked.lower())
    if asked is not None and neutral is None:
        known = ", ".join(SPELLINGS)
        raise InvalidRequest(
            f"'input_type' {echo(asked)} is not known; use one of {known}, or a vendor's spelling of it.", param="input_type"
        )
    task = options.google and options.google.task_type
    if neutral and task and GOOGLE_TASKS[task] not in (None, neutral):
        param = "embedding_options.google.task_type"
        raise InvalidRequest(f"'{param}' contradicts 'input_type'; send one of them.", param=param)
    return neutral


def _refuse_duplicates(preferences: Preferences) -> None:
    for field in ("order", "only", "ignore"):
        names: list[str] = getattr(preferences, field) or []
        if len(set(names)) < len(names):
            raise InvalidRequest(f"'provider.{field}' names a provider twice.", param=f"provider.{field}")
