"""Merges ``embedding_options``, the options of single upstream APIs, into neutral parameters.

An option of an API that a candidate supports is honoured. Any other option is dropped if it changes
nothing, and otherwise the request is rejected. A contradiction between two parameters is always
rejected.
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

    @property
    def neutral_value(self) -> object:
        """The value of the neutral parameter: ``query`` for the task ``RETRIEVAL_QUERY``."""
        if self.parameter == "input_type":
            return GOOGLE_TASKS[cast("str", self.value)]
        return self.value


class MergedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The neutral parameters of a request with options, and the options that have no effect.

    ``fields`` maps each neutral parameter to the field of the request that sets it, for errors.
    """

    size: int | None
    input_type: str | None
    dtype: str
    title: str | None
    dropped: Sequence[Option]
    fields: Mapping[str, str]


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
    options: Sequence[Option], request: EmbeddingRequest, model: Model, supported: Collection[str]
) -> MergedOptions:
    """Merge the ``options`` of a request into its neutral parameters.

    Options of other namespaces than the ``supported`` ones are dropped if they change nothing.

    Raises:
        InvalidRequest: two parameters contradict each other, or an option would change the vectors
            and nothing covers it.
    """
    honoured = [option for option in options if option.namespace in supported]
    dropped = [option for option in options if option not in honoured]
    values: dict[str, Any] = {
        "dimensions": request.dimensions,
        "input_type": request.input_type,
        "dtype": None if request.dtype == "float" else request.dtype,
    }
    fields = {name: name for name, value in values.items() if value is not None}
    for option in honoured:
        _refuse_contradiction(option, values, fields)
        values[option.parameter] = option.neutral_value
        fields.setdefault(option.parameter, option.name)
    for option in dropped:
        _refuse_contradiction(option, values, fields)
        if not _is_covered(option, values, model):
            raise InvalidRequest(
                f"'{option.name}' would change the vectors, and no provider of this model supports "
                "it. Omit it.",
                param=option.name,
            )
    if values.get("input_type") != "document" and values.pop("title", None) is not None:
        dropped += [option for option in honoured if option.parameter == "title"]
    if dropped and request.preferences.require_parameters:
        _refuse_dropped(dropped[0], supported)
    return MergedOptions(
        size=values["dimensions"],
        input_type=values["input_type"],
        dtype=values["dtype"] or "float",
        title=values.get("title"),
        dropped=dropped,
        fields=fields,
    )


def _refuse_contradiction(
    option: Option, values: Mapping[str, object], fields: Mapping[str, str]
) -> None:
    """Refuse an option whose parameter has another value already, also if no API reads it."""
    value = values.get(option.parameter)
    if value is None or value == option.neutral_value:
        return
    other = f"'{fields[option.parameter]}'"
    if other == "'input_type'":
        other = "'input_type', or the suffix of 'model'"
    raise InvalidRequest(
        f"'{option.name}' contradicts {other}. Send one of them.", param=option.name
    )


def _is_covered(option: Option, values: Mapping[str, object], model: Model) -> bool:
    """Return whether an option that no candidate supports changes nothing."""
    if values.get(option.parameter) is not None or option.parameter == "title":
        return True
    if option.parameter == "dimensions":
        return option.value == model.dimensions
    if option.parameter == "input_type":
        return model.input_types == []
    return option.value == "float"


def _refuse_dropped(option: Option, supported: Collection[str]) -> NoReturn:
    if option.namespace in supported:
        raise InvalidRequest(
            f"'{option.name}' is used only with the task type RETRIEVAL_DOCUMENT. "
            "Set that task type, or omit it.",
            param=option.name,
        )
    param = f"embedding_options.{option.namespace}"
    raise InvalidRequest(f"'{param}' is not supported by any provider of this model.", param=param)
