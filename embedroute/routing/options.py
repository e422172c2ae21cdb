"""Merges the options of single upstream APIs into the neutral parameters of a request.

Options are ``embedding_options`` and top-level fields that the config allows. An option of an API
that a candidate supports is honoured. Any other option is dropped if it changes nothing, and
otherwise the request is rejected. A contradiction between two parameters is always rejected.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NoReturn, cast, get_args

import msgspec

from embedroute.backend import Dtype, OptionField, Options, Truncate, list_fields
from embedroute.config import Model
from embedroute.errors import InvalidRequest
from embedroute.protocol import NEUTRAL, EmbeddingRequest, convert_options
from embedroute.routing.registry import ResolvedEndpoint

_ABSENT: Final = (None, "", "TASK_TYPE_UNSPECIFIED")
_SCALING: Final = frozenset({"normalize", "normalized"})
"""Options that say whether an API scales vectors to length 1."""
_FIELDS: Final = {"dtype": "output_dtype"}
"""Neutral parameter → the field of a request that sets it, if that has another name."""
_WORDS: Final[Mapping[str, Sequence[str]]] = {
    "dtype": get_args(Dtype),
    "truncate": get_args(Truncate),
}


class Option(msgspec.Struct, frozen=True):
    """One option of a request.

    ``name`` is its path in the request, ``field`` its name at the API, and ``namespace`` that of
    the API. ``parameter`` is the neutral parameter that it sets, and ``neutral`` the value of that.
    Without a neutral value, the backend gets the option unchanged.
    """

    name: str
    namespace: str
    field: str
    value: Any
    parameter: str | None = None
    neutral: Any = None
    changes_vectors: bool = True


class MergedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The neutral parameters of a request with options, and the options that have no effect.

    ``native`` maps each namespace to the options that its backends get as they are.
    ``native_vectors`` are those of them that change the vectors. ``fields`` maps each neutral
    parameter to the field of the request that sets it, for errors.
    """

    size: int | None
    input_type: str | None
    dtype: str
    title: str | None
    truncate: Truncate | None
    native: Mapping[str, Mapping[str, Any]]
    native_vectors: Sequence[Option]
    dropped: Sequence[Option]
    fields: Mapping[str, str]


def list_options(request: EmbeddingRequest, candidates: Sequence[ResolvedEndpoint]) -> list[Option]:
    """List the options that a request sets, sorted by namespace.

    A top-level field belongs to the API of the first candidate whose provider allows it.

    Raises:
        InvalidRequest: no candidate allows a top-level field, or its value is invalid.
    """
    options: list[Option] = []
    for namespace, values in sorted(request.options.by_api.items()):
        options += _read_options(namespace, values, f"embedding_options.{namespace}.")
    for name, value in request.options.fields.items():
        options += _read_field(name, value, candidates)
    return options


def _read_field(
    name: str, value: object, candidates: Sequence[ResolvedEndpoint]
) -> Sequence[Option]:
    allowing = [candidate for candidate in candidates if name in candidate.allow_fields]
    if not allowing:
        raise InvalidRequest(
            f"'{name}' is not accepted by any provider of this model. Omit it.", param=name
        )
    for candidate in allowing:
        for struct in type(candidate.backend).request_options:
            if any(field.name == name for field in list_fields(struct)):
                return _read_options(struct.namespace, convert_options({name: value}, struct), "")
    return [Option(name, "", name, value)]


def _read_options(namespace: str, values: Options, prefix: str) -> list[Option]:
    options: list[Option] = []
    for field in list_fields(type(values)):
        value = getattr(values, field.attribute)
        if value not in _ABSENT:
            name = f"{prefix}{field.name}"
            neutral = _to_neutral(field, value)
            parameter = field.parameter
            options.append(
                Option(
                    name, namespace, field.name, value, parameter, neutral, field.changes_vectors
                )
            )
    return options


def _to_neutral(field: OptionField, value: Any) -> object:
    """Return the neutral value of an option: ``query`` for the task ``RETRIEVAL_QUERY``."""
    if field.parameter is None:
        return None
    if isinstance(value, list):
        [value] = cast("list[object]", value)
    if value in field.words:
        return field.words[value]
    if field.parameter == "dimensions":
        return int(value)
    if field.parameter == "input_type":
        return NEUTRAL.get(value.lower())
    if field.parameter in _WORDS:
        return value.lower() if value.lower() in _WORDS[field.parameter] else None
    return value


def merge_options(
    options: Sequence[Option], request: EmbeddingRequest, model: Model, supported: Collection[str]
) -> MergedOptions:
    """Merge the ``options`` of a request into its neutral parameters.

    Options of other namespaces than the ``supported`` ones are dropped if they change nothing.

    Raises:
        InvalidRequest: two parameters contradict each other, or an option would change the vectors
            and nothing covers it.
    """
    honoured = [option for option in options if option.namespace in ("", *supported)]
    dropped = [option for option in options if option not in honoured]
    values: dict[str, Any] = {
        "dimensions": request.dimensions,
        "input_type": request.input_type,
        "dtype": None if request.dtype == "float" else request.dtype,
        "truncate": request.options.truncate,
    }
    fields = {name: _FIELDS.get(name, name) for name, value in values.items() if value is not None}
    native: dict[str, dict[str, Any]] = {}
    for option in honoured:
        _refuse_contradiction(option, values, fields)
        if option.neutral is None:
            native.setdefault(option.namespace, {})[option.field] = option.value
        else:
            values[cast("str", option.parameter)] = option.neutral
        if option.parameter is not None:
            fields.setdefault(option.parameter, option.name)
    _refuse_unscaled(honoured, values["dimensions"])
    for option in dropped:
        _refuse_contradiction(option, values, fields)
        _refuse_uncovered(option, values, model)
    if values.get("input_type") != "document" and values.pop("title", None) is not None:
        dropped += [option for option in honoured if option.parameter == "title"]
    if dropped and request.preferences.require_parameters:
        _refuse_dropped(dropped[0], supported)
    return MergedOptions(
        size=values["dimensions"],
        input_type=values["input_type"],
        dtype=values["dtype"] or "float",
        title=values.get("title"),
        truncate=values["truncate"],
        native=native,
        native_vectors=[
            option for option in honoured if option.neutral is None and option.changes_vectors
        ],
        dropped=dropped,
        fields=fields,
    )


def _refuse_contradiction(
    option: Option, values: Mapping[str, object], fields: Mapping[str, str]
) -> None:
    """Refuse an option whose parameter has another value already, also if no API reads it."""
    parameter = option.parameter
    if parameter is None or parameter not in fields:
        return
    if values.get(parameter) is not None and values[parameter] == option.neutral:
        return
    other = f"'{fields[parameter]}'"
    if other == "'input_type'":
        other = "'input_type', or the suffix of 'model'"
    raise InvalidRequest(
        f"'{option.name}' contradicts {other}. Send one of them.", param=option.name
    )


def _refuse_unscaled(options: Sequence[Option], size: int | None) -> None:
    """Refuse an option for vectors of another length than 1 beside a size.

    The gateway scales the vectors that it or an API has shortened.
    """
    for option in options:
        if size is not None and option.field in _SCALING and option.value is False:
            raise InvalidRequest(
                f"'{option.name}' cannot be false together with a number of dimensions, because "
                "shortened vectors are scaled to length 1. Leave one of them out.",
                param=option.name,
            )


def _refuse_uncovered(option: Option, values: Mapping[str, object], model: Model) -> None:
    """Refuse an option that no candidate supports, unless it changes nothing."""
    if not _is_covered(option, values, model):
        raise InvalidRequest(
            f"'{option.name}' would change the vectors, and no provider of this model supports "
            "it. Omit it.",
            param=option.name,
        )


def _is_covered(option: Option, values: Mapping[str, object], model: Model) -> bool:
    """Return whether an option that no candidate supports changes nothing."""
    if not option.changes_vectors or option.parameter == "title":
        return True
    if option.parameter is None or option.neutral is None:
        return False
    if values.get(option.parameter) is not None:
        return True
    if option.parameter == "dimensions":
        return option.neutral == model.dimensions
    if option.parameter == "input_type":
        return model.input_types == []
    return option.neutral == "float"


def _refuse_dropped(option: Option, supported: Collection[str]) -> NoReturn:
    if option.namespace in supported:
        raise InvalidRequest(
            f"'{option.name}' is used only with the task type RETRIEVAL_DOCUMENT. "
            "Set that task type, or omit it.",
            param=option.name,
        )
    param = f"embedding_options.{option.namespace}"
    raise InvalidRequest(f"'{param}' is not supported by any provider of this model.", param=param)
