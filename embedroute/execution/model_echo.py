"""Checks the model that an upstream's answer names against the model that was requested.

Many servers swap the model behind a name without an error: a deployment is changed, another file is
loaded, a proxy maps one name to another. The answer then has valid vectors of a wrong vector space.
The name in the answer is often the only sign. It is not a proof: some servers repeat the request's
name, and others name a path or a fixed text. ``decide`` is the decision, as a pure function.
"""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple

from embedroute.backend import BackendBase
from embedroute.config import catalogue
from embedroute.errors import UpstreamWrongModel
from embedroute.execution.redaction import list_secrets, redact_message
from embedroute.log_records import AliasLearned, LogLimit, WrongModel, write
from embedroute.routing import BoundedMap
from embedroute.text import echo

LONGEST: Final = 512
"""Characters of a name that are compared; a name comes from an upstream and may have megabytes."""

ALIASES: Final[Mapping[str, str]] = {"text-embedding-ada-002-v2": "text-embedding-ada-002"}
"""Name in an answer → name in the request, where a provider documents both for one model."""

CONTAINERS: Final = frozenset(
    {
        *("accounts", "deployments", "engines", "hub", "model", "models", "publishers"),
        *("@cf", "@hf", "hf.co", "huggingface.co"),
    }
)
"""Path segments that are not a publisher."""

_CACHE_FOLDER: Final = re.compile(r"(?:^|/)models--([^/]+?)--([^/]+)(?:/.*)?$")
"""A model in the cache of ``huggingface_hub``: ``models--BAAI--bge-m3/snapshots/…``."""
_ABSOLUTE: Final = re.compile(r"(?:file:|\.{0,2}/|[a-z]:/|~)")
_FILE: Final = re.compile(r"\.(?:gguf|ggml|safetensors|onnx|bin|llamafile|pt)$")
_QUANTIZATION: Final = re.compile(
    r"[-._@](i?q\d(?:[-_][a-z0-9]+)*|b?f(?:p)?(?:8|16|32)|int[48]|awq|gptq)$"
)
_TAG: Final = re.compile(r"[:@]([a-z0-9._-]+)$")
_DATE: Final = re.compile(
    r"-((?:20\d\d-(?:0[1-9]|1[0-2])-[0-3]\d)|(?:20\d\d(?:0[1-9]|1[0-2])[0-3]\d)"
    r"|(?:2\d(?:0[1-9]|1[0-2])(?:[0-3]\d)?)|(?:(?:0[1-9]|1[0-2])-[0-3]\d))$"
)
"""``-2024-01-25``, ``-20240125``, ``-240125``, ``-2401`` or ``-01-25`` at the end of a name."""
_ROLE: Final = re.compile(r"-(query|passage)$")
"""Nvidia's suffixes for the input type."""
_SEPARATOR: Final = re.compile(r"[._]|(?<=\d)p(?=\d)")
"""``qwen3-embedding-0.6b`` is written ``0p6b`` by Fireworks and ``0-6b`` by Databricks."""


class ModelName(NamedTuple):
    """The parts of a model's name, in lower case. All but ``base`` may be empty."""

    base: str
    publisher: str = ""
    date: str = ""
    tag: str = ""
    quantization: str = ""
    role: str = ""


class Verdict(StrEnum):
    """What to do with an answer that names a model."""

    ACCEPT = "accept"
    LEARN = "learn"
    REFUSE = "refuse"


def parse_name(name: str) -> ModelName:
    """Split the name of a model, which may be a path or the name of a file."""
    text = name[:LONGEST].strip().lower().replace("\\", "/").rstrip("/")
    if folder := _CACHE_FOLDER.search(text):
        text = f"{folder[1]}/{folder[2]}"
    is_path = bool(_ABSOLUTE.match(text) or _FILE.search(text))
    *folders, base = text.split("/")
    publishers = [folder for folder in folders if folder and folder not in CONTAINERS]
    publisher = publishers[-1] if publishers and not is_path else ""
    base, _ = _cut(_FILE, ALIASES.get(base, base))
    base, quantization = _cut(_QUANTIZATION, base)
    base, tag = _cut(_TAG, base)
    if not quantization and _QUANTIZATION.fullmatch(f"-{tag}"):
        quantization = tag
        tag = ""
    base, date = _cut(_DATE, base.removesuffix("-gguf"))
    base, role = _cut(_ROLE, base)
    return ModelName(_SEPARATOR.sub("-", base), publisher, date, tag, quantization, role)


def _cut(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """Return ``text`` without what ``pattern`` finds at its end, and its first group, if any."""
    match = pattern.search(text)
    if match is None or not match.start():
        return text, ""
    return text[: match.start()], match[1] if pattern.groups else ""


def is_same_model(one: str, other: str) -> bool:
    """Return whether two names may mean one model.

    They have the same base. A publisher, date, tag or quantization that only one of them has makes
    no difference. One that differs does: two dated versions are two models.
    """
    left = parse_name(one)
    right = parse_name(other)
    return left.base == right.base and all(
        a == b or not a or not b for a, b in zip(left, right, strict=True)
    )


@cache
def catalogue_bases() -> frozenset[str]:
    """Return the bases of the names of all shipped models, as the providers write them too."""
    names = [
        name
        for model, facts in catalogue().items()
        for name in (model, *(endpoint.model for endpoint in facts.endpoints if endpoint.model))
    ]
    return frozenset(parse_name(name).base for name in names)


def is_known_other(requested: str, named: str, known: Collection[str]) -> bool:
    """Return whether both names are of ``known`` models, and these are two models.

    If one base is the start of the other (``bge-large``, ``bge-large-en-v1.5``), they may be one.
    """
    left = parse_name(requested).base
    right = parse_name(named).base
    is_start = left.startswith(right) or right.startswith(left)
    return not is_start and left in known and right in known


def decide(
    named: str, expected: Sequence[str], learned: str | None, known: Collection[str]
) -> Verdict:
    """Decide about an answer that names the model ``named``.

    ``expected`` are the names under which the model was requested: the upstream's and the public
    one. ``learned`` is the first name that this endpoint gave, or None. ``known`` are the bases of
    the shipped models.
    """
    is_expected = any(is_same_model(name, named) for name in expected)
    if learned is None:
        if is_expected:
            return Verdict.ACCEPT
        is_other = any(is_known_other(name, named, known) for name in expected)
        return Verdict.REFUSE if is_other else Verdict.LEARN
    if is_same_model(learned, named):
        return Verdict.ACCEPT
    was_alias = not any(is_same_model(name, learned) for name in expected)
    return Verdict.ACCEPT if was_alias and is_expected else Verdict.REFUSE


class EchoedModels:
    """The first name that each endpoint of a gateway gave to its model in an answer."""

    def __init__(self) -> None:
        """Create an empty registry."""
        self.names: BoundedMap[str, str] = BoundedMap()
        self._log_limit = LogLimit()

    def check(
        self, endpoint: str, expected: Sequence[str], named: object, backend: BackendBase
    ) -> None:
        """Check the model that an answer of ``endpoint`` names, and remember the first one.

        An answer that names no model is accepted. Call this only if ``named`` differs from
        ``names[endpoint]``: the usual answer then costs one comparison.

        Raises:
            UpstreamWrongModel: the answer names another model.
        """
        if not isinstance(named, str) or not parse_name(named).base:
            return
        learned = self.names.get(endpoint) or self.names.earlier.get(endpoint)
        verdict = decide(named, expected, learned, catalogue_bases())
        shown = redact_message(named[:LONGEST], list_secrets(backend))
        if verdict is Verdict.REFUSE:
            if self._log_limit.due(time.monotonic(), endpoint):
                write(WrongModel(endpoint=endpoint, model=expected[0], named=shown))
            raise UpstreamWrongModel(
                f"The upstream answered with the model {echo(named)}, not {echo(expected[0])}. "
                'If it is the right one, set the endpoint\'s model_echo = "ignore".'
            )
        first = self.names.get_or_insert(endpoint, named[:LONGEST])
        if verdict is Verdict.LEARN and first == named[:LONGEST]:
            write(AliasLearned(endpoint=endpoint, model=expected[0], named=shown))
