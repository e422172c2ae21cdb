"""Merges ``embedding_options``, the options of single upstream APIs, into neutral parameters.

An option of an API that a candidate supports is honoured. Any other option is dropped if it changes
nothing, and otherwise the request is rejected.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import msgspec

from embedroute.config import Model
from embedroute.errors import InvalidRequest
from embedroute.protocol import GOOGLE_TASKS, EmbeddingRequest

EFFECTS: Final = {
    "google": {
        "output_dimensionality": "dimensions",
        "task_type": "input_type",
        "title": "title",
    },
    "mistral": {"output_dimension": "dimensions", "output_dtype": "dtype"},
}
"""Namespace → its options → the neutral parameter that each of them sets."""

_ABSENT: Final = (None, "", "TASK_TYPE_UNSPECIFIED")


class Option(msgspec.Struct, frozen=True):
    """One option of a request: its name, the neutral parameter that it sets, and its value."""

    namespace: str
    field: str
    parameter: str
    value: object

    @property
    def name(self) -> str:
        """The path of the option in the request."""
        return f"embedding_options.{self.namespace}.{self.field}"


class MergedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The neutral parameters of a request with options, and the options that have no effect."""

    namespaces: tuple[str, ...]
    size: int | None
    input_type: str | None
    dtype: str
    title: str | None
    dropped: Sequence[Option]


def list_options(request: EmbeddingRequest) -> list[Option]:
    """List the options that a request sets."""
    options: list[Option] = []
    for namespace, effects in EFFECTS.items():
        fields = getattr(request.options, namespace)
        if fields is None:
            continue
        for field, parameter in effects.items():
            value = getattr(fields, field)
            if isinstance(value, float):
                value = int(value)
            if value not in _ABSENT:
                options.append(Option(namespace, field, parameter, value))
    return options


def merge_options(
    request: EmbeddingRequest, model: Model, namespaces: tuple[str, ...]
) -> MergedOptions:
    """Merge the options of the supported ``namespaces`` into the neutral parameters of a request.

    Raises:
        InvalidRequest: two parameters contradict each other, or an option would change the vectors
            and nothing covers it.
    """
    options = list_options(request)
    honoured = [option for option in options if option.namespace in namespaces]
    size = _resolve("dimensions", request.dimensions, honoured)
    input_type = _resolve("input_type", request.input_type, honoured)
    dtype = _resolve("dtype", None, honoured)
    title = _resolve("title", None, honoured)
    values = {"dimensions": size, "input_type": input_type, "dtype": dtype, "title": title}
    dropped = [option for option in options if option not in honoured]
    for option in dropped:
        _refuse_other_task(option, input_type)
        if not _is_covered(option, values, model):
            raise InvalidRequest(
                f"'{option.name}' would change the vectors, and no provider of this model supports "
                "it. Omit it.",
                param=option.name,
            )
    if title is not None and input_type != "document":
        dropped += [option for option in honoured if option.parameter == "title"]
        title = None
    if dropped and request.preferences.require_parameters:
        _refuse_dropped(dropped[0], namespaces)
    return MergedOptions(
        namespaces=namespaces,
        size=size,
        input_type=input_type,
        dtype=dtype or "float",
        title=title,
        dropped=dropped,
    )


def name_of(parameter: str, request: EmbeddingRequest, namespaces: Collection[str]) -> str:
    """Return the name under which a request sets a neutral parameter."""
    if getattr(request, parameter, None) is None:
        for option in list_options(request):
            if option.parameter == parameter and option.namespace in namespaces:
                return option.name
    return parameter


def _resolve(parameter: str, value: object, honoured: Sequence[Option]) -> Any:
    """Return the value of a neutral parameter, in its own field or in options."""
    first = parameter
    for option in honoured:
        if option.parameter != parameter:
            continue
        own = GOOGLE_TASKS[cast("str", option.value)] if parameter == "input_type" else option.value
        if value is None:
            value = own
            first = option.name
        elif own != value:
            raise InvalidRequest(
                f"'{option.name}' contradicts '{first}'. Send one of them.", param=option.name
            )
    return value


def _refuse_other_task(option: Option, input_type: str | None) -> None:
    """Refuse a task type that contradicts the input type, also if no API reads it."""
    if option.parameter != "input_type" or input_type is None:
        return
    if GOOGLE_TASKS[cast("str", option.value)] not in (None, input_type):
        raise InvalidRequest(
            f"'{option.name}' contradicts the input type '{input_type}' of this request. "
            "Send one of them.",
            param=option.name,
        )


def _is_covered(option: Option, values: Mapping[str, object], model: Model) -> bool:
    """Return whether an option that no candidate supports changes nothing."""
    if values[option.parameter] is not None or option.parameter == "title":
        return True
    if option.parameter == "dimensions":
        return option.value == model.dimensions
    if option.parameter == "input_type":
        return model.input_types == []
    return option.value == "float"


def _refuse_dropped(option: Option, namespaces: Collection[str]) -> NoReturn:
    if option.namespace in namespaces:
        raise InvalidRequest(
            f"'{option.name}' is used only with the task type RETRIEVAL_DOCUMENT. "
            "Set that task type, or omit it.",
            param=option.name,
        )
    param = f"embedding_options.{option.namespace}"
    raise InvalidRequest(f"'{param}' is not supported by any provider of this model.", param=param)
