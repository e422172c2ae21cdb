"""Finds which input, or which field of the request, an upstream's message refers to.

All known APIs that name an input by an index, such as ``input[2]``, count from 0. A number as in
"input #2" may count from 0 or from 1, so it is not evidence and is removed. Pure functions.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import Final, NamedTuple, cast

from embedroute.upstream_errors.body import ErrorBody
from embedroute.upstream_errors.lazy_pattern import LazyPattern

_INPUTS: Final = (
    "inputs?|texts?|documents?|sentences?|instances?|requests?|contents?|images?|strings?|items?"
    "|elements?|entry|entries|chunks?|passages?|prompts?|queries|query|records?|rows?|embeddings?"
)
_INPUT: Final = (
    "input|text|document|sentence|instance|request|content|image|string|item|element|entry|chunk"
    "|passage|prompt|query|record|row|embedding"
)
_NUMBER: Final = r"(?P<index>\d{1,6})"
_INDEX_WORD: Final = r"(?:index|idx)(?: ?[:=]| ?\[)? ?"

_INDEX_FORMS: Final = (
    # OpenAI: Invalid 'input[2]'; JSON path: $.input[1]
    (rf"(?P<name>(?:\$\.|body\.)?\b(?:{_INPUTS}|data))\.?\[ ?{_NUMBER} ?\]", "{name}"),
    (rf"(?P<name>\$\[['\"](?:{_INPUTS})['\"]\])\[{_NUMBER}\]", "{name}"),
    # Bedrock: #/texts/0; JSON pointer: /input/0
    (rf"(?P<name>(?<![\w/])(?:#?/(?:{_INPUTS})|\binput))/{_NUMBER}\b(?!\.\d)", "{name}"),
    # Pydantic: ('body', 'input', 3) and body -> input -> 3 and body.input.3
    (rf"(?P<name>'(?:{_INPUTS})')(?:, '[^']{{1,40}}')?, {_NUMBER}\b(?=[,)\]])", "{name}"),
    (rf"(?P<name>\b(?:{_INPUTS})) -> {_NUMBER}\b", "{name}"),
    (rf"(?<![\w.])(?P<name>(?:body\.)?(?:{_INPUTS}))\.{_NUMBER}\b(?!\.\d)", "{name}"),
    (rf"\b(?P<name>input) id {_NUMBER}\b", "{name}"),  # Mistral
    # Cohere: at index 0
    (rf"(?P<name> (?:at|for|with)(?: the)?) {_INDEX_WORD}{_NUMBER}\b[\])]?", ""),
    (rf"\b(?P<name>){_INDEX_WORD}{_NUMBER}\b\]?", "an input"),
)
"""Form of a reference to an input → what is left if the index is removed."""

_INDEX: Final = [(LazyPattern(form), left) for form, left in _INDEX_FORMS]

_VERB: Final = (
    " (?:is|are|was|were|has|have|had|does|did|contains?|exceeds?|can|cannot|could|may|must|should"
    "|failed|fails|too|not|bad|invalid|empty)\\b"
)
_RANKS: Final = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last"
_ORDINAL_FORMS: Final = (
    (
        rf"\b(?P<name>{_INPUTS}) ?(?:#|no\.? ?|n[ro°]\.? ?|number |position ){_NUMBER}\b(?!\.\d)",
        "{name}",
    ),
    (rf"\b(?P<name>{_INPUTS}) {_NUMBER} of \d{{1,6}}\b", "{name}"),
    (rf"\b(?P<name>{_INPUTS}) {_NUMBER}(?=:|{_VERB})", "{name}"),
    (rf"\b(?P<name>{_INPUT}):? ?{_NUMBER}(?=:|{_VERB})", "{name}"),
    (rf"(?<![\w.-])(?P<name>{_INPUT})_{_NUMBER}(?![\w.-])", "{name}"),
    (rf"\b(?P<name>{_INPUT}) ?[(<]{_NUMBER}[)>]", "{name}"),
    (rf"\b(?:{_RANKS})(?P<index>) (?P<name>{_INPUT})(?=:|{_VERB})", "{name}"),
    (rf"(?P<name>) (?:at|in|on) (?:position|line|row) #?{_NUMBER}\b", ""),
    (rf"(?P<name>) (?:at|in|on|for) (?:{_INPUT}) #?{_NUMBER}\b(?!\.\d)", ""),
    (rf"\b(?P<name>(?:index|idx)) #{_NUMBER}\b", "an input"),
    (rf"\b{_NUMBER}(?:st|nd|rd|th) (?P<name>{_INPUTS})\b", "{name}"),
    (rf"(?P<name>)第 ?{_NUMBER} ?[条個个段项行件篇]", ""),
    (rf"(?P<name>){_NUMBER} ?(?:番目の?|번째)", ""),
)
"""Form of a number of an input that may count from 0 or from 1 → what is left without it."""

_ORDINALS: Final = [(LazyPattern(form), left) for form, left in _ORDINAL_FORMS]

MOST_REFERENCES: Final = 8
"""Maximum references to inputs that are read; each is compared with all inputs."""

FIELDS: Final = (
    *("encoding_format", "encodingFormat", "embedding_types?", "embedding_format"),
    *("output_dimensionality", "outputDimensionality", "output_dimensions?", "outputDimension"),
    *("dimensions?", "input_type", "inputType", "task_type", "taskType", "task", "user"),
    *("output_dtype", "embedding_type", "truncate", "autoTruncate", "normalized?", "title"),
    *("inputs?", "texts?", "instances"),
)
"""Fields of requests for embeddings that an upstream may refuse."""

INPUT_FIELDS: Final = frozenset({"input", "inputs", "text", "texts", "instances"})
_DISTINCTIVE: Final = "|".join(
    name for name in FIELDS if "_" in name or name != name.lower() or name == "dimensions?"
)
_QUOTED: Final = r"""[`'"\[(]{1,3}(?:body\.|\$\.)?(?P<field>%s)[`'"\])]{1,3}"""
_BARE: Final = r"\b(?P<field>%s)\b(?![\[.'\"`]*\d)"
_NOUN: Final = (
    r"(?: (?:request|keyword|body|json|input|name|value|field|parameter|param|argument|arg|property"
    r"|key|option)s?){0,3}(?: for| in request| supplied| provided|,? (?:is |are )?not permitted)?"
)
_BAD: Final = (
    r"\b(?:unsupported|unknown|unexpected|unrecogni[sz]ed|extra|extraneous|additional|invalid"
    rf"|illegal|forbidden){_NOUN}:? "
)
_IS_BAD: Final = (
    r"(?: (?:fields?|parameters?|params?|arguments?|options?|values?|property|key))?:?"
    r"(?:\s+(?:is|are|was|were|currently|yet)){0,3}\s+"
    r"(?:not (?:currently |yet )?(?:supported|permitted|allowed|accepted|valid|recogni[sz]ed)"
    r"|unsupported|unknown|unexpected|invalid|forbidden|extra (?:inputs?|fields?) (?:is|are) not "
    r"(?:permitted|allowed))"
)
_REFUSES: Final = (
    r"\b(?:does|do|did|can|could|will)(?:n't|not| not) (?:yet |currently )?"
    r"(?:support|accept|allow|take|recogni[sz]e)(?: (?:specifying|setting|changing|custom|the|an?"
    r"|use of|fields?|parameters?|arguments?|options?)){0,3}:? "
)
_BOUNDS: Final = (
    r"(?: (?:field|parameter|value))? (?:must|should) be (?:one of|between|less|greater|at (?:most"
    r"|least)|an? )"
)


def _field_forms() -> Iterator[str]:
    for name in (_QUOTED % "|".join(FIELDS), _BARE % _DISTINCTIVE):
        yield from (_BAD + name, name + _IS_BAD, _REFUSES + name)
    other = "|".join(field for field in FIELDS if field.rstrip("s?") not in INPUT_FIELDS)
    yield _QUOTED % other + _BOUNDS
    yield _BARE % _DISTINCTIVE + _BOUNDS
    # OpenAI's older form: Unrecognized request argument supplied: user
    yield rf"\bargument supplied: (?P<field>{'|'.join(FIELDS)})\b"
    yield r"'extra_forbidden', 'loc': \('body', '(?P<field>\w{1,64})'"  # Pydantic
    yield r"extraneous key \[(?P<field>\w{1,64})\] is not permitted"  # Bedrock
    # Ollama: invalid input type; LM Studio: 'input' field must be a string
    yield r"\binvalid (?P<field>input) type\b"
    yield (
        r"""[`'"]?\b(?P<field>inputs?|texts?)[`'"]?(?: field)? must be (?:an? )?"""
        r"(?:strings?|array|list)\b(?! of at most)"
    )


_FIELD: Final = tuple(map(LazyPattern, _field_forms()))
_MATRYOSHKA: Final = LazyPattern(r"does not support matryoshka representation")
_KNOWN_FIELD: Final = LazyPattern("|".join(FIELDS), 0)
_INPUT_NAME: Final = LazyPattern(_INPUTS, 0)


class FieldMatch(NamedTuple):
    """A refused field; ``text`` is the part of the message that refuses it."""

    field: str
    text: str


def find_field(message: str) -> FieldMatch | None:
    """Return the field of the upstream request that a message refuses, or None."""
    if match := _MATRYOSHKA.search(message):
        return FieldMatch("dimensions", match[0])
    matches = (pattern.search(message) for pattern in _FIELD)
    return next((FieldMatch(match["field"], match[0]) for match in matches if match), None)


def find_structured_field(body: ErrorBody) -> str | None:
    """Return the field that ``param`` or Pydantic's ``loc`` names, or None."""
    for name, value in _iter_places(body.document):
        path = [value] if name == "param" else value if name == "loc" else []
        names = [part for part in cast("list[object]", path) if isinstance(part, str)]
        known = [part for part in names if _KNOWN_FIELD.fullmatch(part)]
        if known and known[0] not in INPUT_FIELDS:
            return known[0]
        if len(names) == 2 and names[0] == "body" and names[1] not in {*INPUT_FIELDS, "model"}:
            return names[1][:64]
    return None


class IndexMatch(NamedTuple):
    """The index of an input; ``text`` is the part of the message that names it."""

    number: int
    text: str


def find_indexes(message: str) -> list[IndexMatch]:
    """Return the first references to an input by its index in a message."""
    found = (
        IndexMatch(int(match["index"]), match[0].strip())
        for pattern, _ in _INDEX
        for match in pattern.finditer(message)
    )
    return list(islice(found, MOST_REFERENCES))


def find_structured_indexes(body: ErrorBody) -> set[int]:
    """Return the indexes of inputs in ``param``, Pydantic's ``loc`` and Jina's ``field``."""
    found: set[int] = set()
    for name, value in _iter_places(body.document):
        if name != "loc":
            found.update(match.number for match in find_indexes(str(value)[:200]))
            continue
        path = [part for part in cast("list[object]", value) if not _is_type(part)]
        found.update(
            part
            for before, part in pairwise(path)
            if isinstance(before, str)
            and _INPUT_NAME.fullmatch(before)
            and isinstance(part, int)
            and not isinstance(part, bool)
        )
    return found


def _is_type(part: object) -> bool:
    """Return whether a part of a ``loc`` is a type, as in ``["body", "input", "list[str]", 3]``."""
    return isinstance(part, str) and part.startswith(("list[", "constrained-", "function-"))


def _iter_places(document: object, depth: int = 6) -> Iterator[tuple[str, object]]:
    """Yield the values of ``param``, ``field`` and ``loc`` in the first entries of a body."""
    if depth and isinstance(document, list):
        for item in cast("list[object]", document)[:64]:
            yield from _iter_places(item, depth - 1)
    elif depth and isinstance(document, dict):
        fields = cast("dict[str, object]", document)
        is_missing = fields.get("type") in ("missing", "value_error.missing")
        for name, value in list(fields.items())[:64]:
            is_text = name in {"param", "field"} and isinstance(value, str)
            if is_text or (name == "loc" and isinstance(value, list) and not is_missing):
                yield name, value
            elif name not in {"input", "ctx"} and isinstance(value, dict | list):
                yield from _iter_places(cast("object", value), depth - 1)


def translate_index(message: str, old: int, new: str | None) -> str:
    """Replace the references to input ``old`` in an upstream's message by ``new``.

    ``new`` is the client's own name of that input, such as ``input[7]``, or ``input`` for a single
    string. If it is None, the index is removed.
    """
    for pattern, left in _INDEX:
        message = pattern.sub(lambda match, left=left: _rename(match, left, old, new), message)
    return message


def remove_indexes(message: str, count: int, is_quote: Callable[[str], bool]) -> str:
    """Remove all indexes of inputs from an upstream's message: none of them can be translated.

    A number larger than the ``count`` of inputs is something else. A quote of an input is kept, if
    it is among the first ``MOST_REFERENCES`` forms.
    """
    return _remove(_INDEX, message, count, is_quote)


def remove_ordinals(message: str, count: int, is_quote: Callable[[str], bool]) -> str:
    """Remove the numbers of inputs that may count from 0 or from 1, as ``remove_indexes`` does."""
    return _remove(_ORDINALS, message, count, is_quote)


def _remove(
    forms: Sequence[tuple[LazyPattern, str]],
    message: str,
    count: int,
    is_quote: Callable[[str], bool],
) -> str:
    quotes: dict[str, bool] = {}

    def replace(match: re.Match[str], left: str) -> str:
        text = match[0].strip()
        if int(match["index"] or 0) > count:
            return match[0]
        if text not in quotes and len(quotes) < MOST_REFERENCES:
            quotes[text] = is_quote(text)
        return match[0] if quotes.get(text) else left.format(name=match["name"])

    for pattern, left in forms:
        message = pattern.sub(partial(replace, left=left), message)
    return message


def _rename(match: re.Match[str], left: str, old: int, new: str | None) -> str:
    if int(match["index"]) != old:
        return match[0]
    if new is None:
        return left.format(name=match["name"])
    if match["name"].startswith("'"):
        return f"'{new}'"
    preposition = match["name"] if match["name"].startswith(" ") else ""
    return f"{preposition} {new}" if preposition else new
