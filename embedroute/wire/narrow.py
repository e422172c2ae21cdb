"""Tells the shapes of ``input`` apart and narrows them to n inputs of one kind, within what config allows."""

from collections.abc import Sequence
from typing import Self, cast

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, Input, Kind, Part
from embedroute.settings import Settings
from embedroute.wire import media
from embedroute.wire.requests import Content, WireInput


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


def narrow(given: WireInput, limits: Limits, name: str = "input") -> tuple[Sequence[Input], Kind]:
    """Tell the four shapes of ``input`` apart: n inputs of one kind; ``name`` is the field they came in.

    Raises:
        InvalidRequest: none or too many inputs, an empty one, two kinds, or an id that no vocabulary has.
    """
    if isinstance(given, str):
        return _texts_of([given], name), Kind.TEXT
    if not given:
        raise InvalidRequest(f"'{name}' must not be an empty array.", param=name)
    kinds = set(map(type, given))
    if kinds <= {int, float}:
        return [_ids(cast("list[float]", given), name)], Kind.TOKENS
    if len(kinds) > 1:
        wanted = "strings, token ids, arrays of token ids or content objects"
        raise InvalidRequest(f"'{name}' must hold one kind of item: {wanted}.", param=name)
    _refuse_too_many(given, limits, name)
    if kinds == {str}:
        return _texts_of(cast("list[str]", given), name), Kind.TEXT
    if kinds == {list}:
        return [_ids(ids, f"{name}[{position}]") for position, ids in enumerate(cast("list[list[float]]", given))], Kind.TOKENS
    return [_parts(it, f"{name}[{at}]", limits) for at, it in enumerate(cast("list[Content]", given))], Kind.PARTS


def _texts_of(texts: list[str], name: str) -> list[str]:
    if "" in texts:
        param = f"{name}[{texts.index('')}]" if len(texts) > 1 else name
        raise InvalidRequest(f"'{param}' must not be empty.", param=param)
    return texts


def _refuse_too_many(items: Sequence[object], limits: Limits, name: str) -> None:
    if len(items) > limits.max_inputs:
        raise InvalidRequest(f"'{name}' holds {len(items)} inputs; send at most {limits.max_inputs} at a time.", param=name)


def _ids(ids: list[float], param: str) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest(f"'{param}' must not be empty.", param=param)
    whole = tuple(map(int, ids))
    if whole != tuple(ids):
        raise InvalidRequest(f"'{param}' must hold whole numbers.", param=param)
    if min(whole) < 0 or max(whole) >= 2**31:
        raise InvalidRequest(f"'{param}' must hold token ids from 0 to {2**31 - 1}.", param=param)
    return whole


def _parts(item: Content, param: str, limits: Limits) -> tuple[Part, ...]:
    for position, part in enumerate(item.content):
        where = f"{param}.content[{position}]"
        if isinstance(part, ImagePart):
            media.check_media(part.image_url.url, limits.media_domains, f"{where}.image_url.url")
        elif not part.text:
            raise InvalidRequest(f"'{where}.text' must not be empty.", param=f"{where}.text")
    return tuple(item.content)
