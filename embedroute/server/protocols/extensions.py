"""Accepts the fields of Voyage and of Jina on ``POST /v1/embeddings``.

A request without any of these fields is one of OpenAI's API, and is not changed.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, Final

import msgspec

from embedroute.config import ProtocolName
from embedroute.errors import EmbedrouteError, InvalidRequest
from embedroute.protocol import Limits, OpenAIDialect, decode_struct, split_members
from embedroute.server.protocols import jina, voyage
from embedroute.server.protocols.translation import Neutral, Translate, Translation, write_body
from embedroute.text import echo

Members = Mapping[str, msgspec.Raw]


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of one API, how they are translated, and the format of its responses."""

    fields: type[msgspec.Struct]
    translate: Callable[[Any], Neutral]
    translate_input: Callable[[msgspec.Raw], object] | None = None
    format: OpenAIDialect


EXTENSIONS: Final[Mapping[ProtocolName, Extension]] = {
    "voyage": Extension(
        fields=voyage.VoyageFields, translate=voyage.translate, format=voyage.VoyageFormat()
    ),
    "jina": Extension(
        fields=jina.JinaFields,
        translate=jina.translate,
        translate_input=jina.translate_input,
        format=jina.JinaFormat(),
    ),
}
"""Protocol → what it adds to ``POST /v1/embeddings``."""


def make_translate(protocols: Collection[ProtocolName]) -> Translate | None:
    """Return the translation of requests for the enabled extensions, or None without any."""
    enabled = [extension for name, extension in EXTENSIONS.items() if name in protocols]
    if not enabled:
        return None

    def translate(body: bytes, model: str, limits: Limits) -> Generator[None, None, Translation]:
        del model
        members = yield from split_members(body, limits)
        used = [extension for extension in enabled if _is_used(extension, members)]
        if not used:
            return Translation(body=body)
        try:
            return _translate(used, members)
        except EmbedrouteError as error:
            return Translation(body=b"", format=used[0].format, refusal=error)

    return translate


def _is_used(extension: Extension, members: Members) -> bool:
    if not members.keys().isdisjoint(extension.fields.__struct_fields__):
        return True
    raw = members.get("input")
    translate = extension.translate_input
    return raw is not None and translate is not None and translate(raw) is not raw


def _translate(used: Collection[Extension], members: Members) -> Translation:
    """Replace the fields of each extension by neutral ones."""
    fields: dict[str, object] = dict(members)
    names: dict[str, str] = {}
    for extension in used:
        own = {name: members[name] for name in extension.fields.__struct_fields__ if name in fields}
        for name in own:
            del fields[name]
        neutral = extension.translate(decode_struct(msgspec.json.encode(own), extension.fields))
        _merge(fields, neutral)
        names |= neutral.names
        if extension.translate_input is not None and "input" in members:
            fields["input"] = extension.translate_input(members["input"])
    [first, *_] = used
    return Translation(body=write_body(**fields), format=first.format, names=names)


def _merge(fields: dict[str, object], neutral: Neutral) -> None:
    """Add neutral fields to those of the request.

    Raises:
        InvalidRequest: the request has the neutral field too, with another value.
    """
    for name, value in neutral.values.items():
        present = fields.get(name)
        if isinstance(present, msgspec.Raw):
            present = msgspec.json.decode(present)
        if present not in (None, value):
            other = neutral.names.get(name, name)
            raise InvalidRequest(
                f"{echo(other)} contradicts {echo(name)}. Send one of them.", param=other
            )
        fields[name] = value
