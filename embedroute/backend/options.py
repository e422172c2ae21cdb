"""Defines the parameters of an API that a request can set in ``embedding_options``.

An API has a struct of its parameters, with the names of its documentation::

    class AcmeOptions(Options, frozen=True, kw_only=True):
        namespace: ClassVar[str] = "acme"

        size: Annotated[Size | None, sets("dimensions")] = None
        cut: Annotated[bool | None, sets("truncate", {True: "end", False: "none"})] = None
        pooling: Literal["mean", "cls"] | None = None
        priority: Annotated[int | None, KEEPS_VECTORS] = None

A field that ``sets`` a neutral parameter has the same effect as that field of a request. All others
reach the backend in ``Batch.options``. They are part of the cache key, unless they are marked with
``KEEPS_VECTORS``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, cast, get_type_hints

import msgspec
from msgspec import Meta

LARGEST_SIZE: Final = 2**31 - 1
"""Maximum value of ``dimensions``: every upstream can parse it as an integer."""
LONGEST_NAME: Final = 512
"""Maximum characters of the name of a model, provider, user, title or input type."""

Size = (
    Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
    | Annotated[float, Meta(ge=1, le=LARGEST_SIZE, multiple_of=1)]
)
"""A number of dimensions or tokens; many JSON encoders write a whole number as ``1536.0``."""
Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Dtype = Literal["float", "int8", "uint8", "binary", "ubinary"]
Truncate = Literal["none", "start", "end"]
"""What happens to a text that is longer than the model's context: it is refused, or cut there."""
Parameter = Literal["dimensions", "input_type", "dtype", "truncate", "title"]
"""A parameter that several APIs have, by its neutral name."""

TRUNCATES: Final[Mapping[object, str]] = {True: "end", False: "none"}
"""The values of a flag that allows an API to cut the end of a text → ``truncate``."""

_EXTRA: Final = "embedroute"


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of one API; every field is optional.

    ``namespace`` is the name of the API in ``embedding_options``. Every string has a maximum
    length, such as that of ``Name``.
    """

    namespace: ClassVar[str] = ""


class OptionField(msgspec.Struct, frozen=True, kw_only=True):
    """A field of ``Options``.

    ``name`` is that of the request, and ``attribute`` that of the struct. ``parameter`` is the
    neutral parameter that it sets, and ``words`` maps its values to neutral ones.
    """

    name: str
    attribute: str
    parameter: Parameter | None = None
    words: Mapping[object, str] = {}
    changes_vectors: bool = True


def sets(parameter: Parameter, words: Mapping[Any, str] = {}) -> Meta:
    """Mark a field of ``Options`` that sets a neutral parameter.

    ``words`` maps values of the field to values of the parameter. A value that has no neutral
    equivalent reaches the backend in ``Batch.options``.
    """
    return Meta(
        extra={_EXTRA: OptionField(name="", attribute="", parameter=parameter, words=words)}
    )


KEEPS_VECTORS: Final = Meta(
    extra={_EXTRA: OptionField(name="", attribute="", changes_vectors=False)}
)
"""Marks a field of ``Options`` that changes no vector, such as a priority."""


@cache
def list_fields(options: type[Options]) -> Sequence[OptionField]:
    """List the fields of a struct of options."""
    hints = get_type_hints(options, include_extras=True)
    fields = list[OptionField]()
    for field in msgspec.structs.fields(options):
        metadata = cast("Sequence[Meta]", getattr(hints[field.name], "__metadata__", ()))
        marks = [
            meta.extra[_EXTRA]
            for meta in metadata
            if meta.extra is not None and _EXTRA in meta.extra
        ]
        mark = cast("OptionField", marks[0]) if marks else OptionField(name="", attribute="")
        fields.append(msgspec.structs.replace(mark, name=field.encode_name, attribute=field.name))
    return fields
