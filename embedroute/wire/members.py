"""Refuses a large body in which an object names a key twice: by counting colons, as each member of an object has one."""

from collections.abc import Generator

import msgspec

from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart
from embedroute.wire.mistakes import EXAMINED
from embedroute.wire.narrow import Limits
from embedroute.wire.outline import MOST_OTHER, Outline, count_marks
from embedroute.wire.requests import Content, CreateEmbeddingRequest, WireInput
from embedroute.wire.strict import parse_again
from embedroute.wording import echo


def refuse_duplicate_members(outline: Outline, request: CreateEmbeddingRequest, limits: Limits) -> Generator[None, None, None]:
    """Refuse a body in which any object names a key twice, in steps; ``request`` is what its outline decoded to.

    Raises:
        InvalidRequest: it does, or there are too many members to look.
    """
    inputs = {"input": _members_of_input(request.input), "inputs": _members_of_input(request.inputs)}
    others = outline.marks.colons - sum(inputs.values())
    if others == _members(request):
        return
    yield
    # A member is null, ignored, or named twice.
    if others > MOST_OTHER:
        raise InvalidRequest(f"The body has more than {MOST_OTHER} members besides those of inputs; send fewer.")
    fields = _fields(outline.json)
    members = len(fields)
    for name, raw in fields.items():
        marks = yield from count_marks(memoryview(raw), limits)
        members += marks.colons
        if name not in inputs:
            if marks.commas + marks.arrays + marks.objects > MOST_OTHER:
                raise InvalidRequest(f"{echo(name)} holds more than {MOST_OTHER} values; send fewer.", param=name)
            parse_again(bytes(raw), name)
        elif marks.colons != inputs[name]:
            raise InvalidRequest(f"An object in {echo(name)} has a key twice; send it once.", param=name)
    if members != outline.marks.colons:
        if len(outline.json) <= EXAMINED:
            parse_again(outline.json)
        raise InvalidRequest("The body has a key twice; send it once.")


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):  # the name of an ignored field has only been skipped so far
        raise InvalidRequest("The body is not valid JSON: the name of a field is malformed.") from None


def _members(value: object) -> int:
    """Count the members of the objects that ``value`` was decoded from, without those of inputs."""
    if not isinstance(value, msgspec.Struct):
        return 0
    given = [held for held in msgspec.structs.astuple(value) if held is not None]
    return len(given) + sum(map(_members, given))


def _members_of_input(given: WireInput | None) -> int:
    if not isinstance(given, list) or Content not in set(map(type, given)):
        return 0
    contents = [item for item in given if isinstance(item, Content)]
    parts = [part for item in contents for part in item.content]
    return len(contents) + 2 * len(parts) + sum(isinstance(part, ImagePart) for part in parts)
