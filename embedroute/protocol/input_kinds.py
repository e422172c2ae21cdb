"""Tells the shapes of ``input`` apart and narrows them to n inputs of one kind, within what config allows."""

from collections.abc import Generator, Sequence
from typing import Final, Self, cast

import msgspec

from embedroute.config import Settings
from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, Input, Kind, Part
from embedroute.protocol import media
from embedroute.protocol.requests import Content, WireInput, WireItems
from embedroute.runtime import finished

LARGEST_ID: Final = 2**31 - 1
IDS: Final = 1 << 14
"""Token ids that are converted at a time."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What config lets a body hold; ``media_domains`` are lower-case host names."""

    max_inputs: int = 2048
    max_token_ids: int = 300_000
    media_domains: frozenset[str] = frozenset()
    ignore_unknown: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take them from the ``[gateway]`` table."""
        domains = frozenset(domain.lower() for domain in settings.media_domains)
        return cls(
            max_inputs=settings.max_inputs,
            max_token_ids=settings.max_token_ids,
            media_domains=domains,
            ignore_unknown=settings.unknown_fields == "ignore",
        )


def narrow(given: WireInput, limits: Limits, name: str = "input") -> tuple[Sequence[Input], Kind]:
    """Tell the four shapes of ``input`` apart: n inputs of one kind; ``name`` is the field they came in.

    Raises:
        InvalidRequest: none or too many inputs, an empty one, two kinds, or an id that no vocabulary has.
    """
    if isinstance(given, str):
        if not given:
            raise _empty(name)
        return [given], Kind.TEXT
    kind = _kind(given, limits, name)
    if kind is Kind.TEXT:
        return cast("list[str]", given), kind
    return finished(_converted(given, kind, limits, name)), kind


def narrow_in_steps(
    given: WireInput, limits: Limits, name: str = "input"
) -> Generator[None, None, tuple[Sequence[Input], Kind]]:
    """Do the same in steps: 300,000 ids or an image of 20 MiB take 30 ms."""
    if isinstance(given, str):
        return narrow(given, limits, name)
    kind = _kind(given, limits, name)
    if kind is Kind.TEXT:
        return cast("list[str]", given), kind
    yield
    return (yield from _converted(given, kind, limits, name)), kind


def _kind(given: WireItems, limits: Limits, name: str) -> Kind:
    if not given:
        raise InvalidRequest(f"'{name}' must not be an empty array.", param=name)
    kinds = set(map(type, given))
    if kinds <= {int, float}:
        _refuse_too_many_ids(len(given), limits, name)
        return Kind.TOKENS
    if len(kinds) > 1:
        wanted = "strings, token ids, arrays of token ids or content objects"
        raise InvalidRequest(f"'{name}' must hold one kind of item: {wanted}.", param=name)
    if len(given) > limits.max_inputs:
        raise InvalidRequest(
            f"'{name}' holds {len(given)} inputs; send at most {limits.max_inputs} at a time.",
            param=name,
        )
    if kinds == {str}:
        _refuse_empty(cast("list[str]", given), name)
        return Kind.TEXT
    if kinds == {list}:
        _refuse_too_many_ids(sum(map(len, cast("list[list[float]]", given))), limits, name)
        return Kind.TOKENS
    return Kind.PARTS


def _refuse_empty(texts: list[str], name: str) -> None:
    if "" in texts:
        raise _empty(f"{name}[{texts.index('')}]" if len(texts) > 1 else name)


def _empty(param: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' must not be empty.", param=param)


def _refuse_too_many_ids(count: int, limits: Limits, name: str) -> None:
    if count > limits.max_token_ids:
        raise InvalidRequest(
            f"'{name}' holds {count} token ids; send at most {limits.max_token_ids} at a time.",
            param=name,
            code="max_tokens_per_request",
        )


def _converted(
    given: WireItems, kind: Kind, limits: Limits, name: str
) -> Generator[None, None, list[Input]]:
    """Convert ids or content parts; what is left to judge is each item by itself."""
    if kind is Kind.TOKENS and not isinstance(given[0], list):
        return [(yield from _ids(cast("list[float]", given), name))]
    inputs = list[Input]()
    for position, item in enumerate(given):
        place = f"{name}[{position}]"
        if isinstance(item, Content):
            inputs.append((yield from _parts(item, place, limits)))
        else:
            inputs.append((yield from _ids(cast("list[float]", item), place)))
        yield
    return inputs


def _ids(ids: list[float], param: str) -> Generator[None, None, tuple[int, ...]]:
    if not ids:
        raise _empty(param)
    whole = list[int]()
    for start in range(0, len(ids), IDS):
        some = ids[start : start + IDS]
        # The range comes first: an integer made of 1e308 has 1,024 bits.
        if min(some) < 0 or max(some) > LARGEST_ID:
            raise InvalidRequest(
                f"'{param}' must hold token ids from 0 to {LARGEST_ID}.", param=param
            )
        whole += map(int, some)
        if whole[start:] != some:
            raise InvalidRequest(f"'{param}' must hold whole numbers.", param=param)
        yield
    return tuple(whole)


def _parts(item: Content, param: str, limits: Limits) -> Generator[None, None, tuple[Part, ...]]:
    for position, part in enumerate(item.content):
        where = f"{param}.content[{position}]"
        if isinstance(part, ImagePart):
            yield from media.check_media_in_steps(
                part.image_url.url, limits.media_domains, f"{where}.image_url.url"
            )
        elif not part.text:
            raise _empty(f"{where}.text")
    return tuple(item.content)
