"""Finds backends: built-ins by a static table, third parties by one scan of the entry points; loads only what is named."""

import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec

from embedroute.backend import Accepts, BackendBase
from embedroute.config import (
    Config,
    ConvertResult,
    KnownProvider,
    Provider,
    UnknownFields,
    convert_fields,
    known_providers,
    quoted,
)
from embedroute.errors import EmbedrouteError, MissingExtra
from embedroute.text import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

GROUP: Final = "embedroute.backends"
_WORDS: Final = re.compile(r"\w+")

BUILT_IN: Final[Mapping[str, str]] = {
    "gemini": "embedroute.backends.gemini:Gemini",
    "hashed": "embedroute.backends.hashed:Hashed",
    "mistral": "embedroute.backends.mistral:Mistral",
    "openai": "embedroute.backends.openai:OpenAI",
    "wordllama": "embedroute.backends.wordllama:WordLlama",
}
"""The same names stand in our own entry points; from here they are known even where a package's metadata is left out."""


class BackendEntry(msgspec.Struct, frozen=True):
    """A backend that can be named in a config: its name, where its code is, and who ships it."""

    name: str
    value: str
    distribution: str

    @property
    def whose(self) -> str:
        """Name it in a mistake."""
        return f'the backend "{self.name}" ({self.value} of {self.distribution})'


@cache
def _scanned() -> "Sequence[EntryPoint]":
    # Reading metadata costs as much to import as a fifth of embedroute, so that waits for the first config.
    found: EntryPoints = importlib.import_module("importlib.metadata").entry_points(group=GROUP)
    return tuple(entry for entry in found if BUILT_IN.get(entry.name) != entry.value)


def listed() -> list[BackendEntry]:
    """List every backend that can be named, by name; nothing is imported."""
    own = [BackendEntry(name, value, "embedroute") for name, value in BUILT_IN.items()]
    return sorted(
        own + [it for it in _of_others() if not _is_shipped(it.name)], key=lambda it: it.name
    )


def unused() -> list[BackendEntry]:
    """List the installed backends whose name is that of a provider in the shipped table: its own code is used instead."""
    return sorted((it for it in _of_others() if _is_shipped(it.name)), key=lambda it: it.name)


def _of_others() -> list[BackendEntry]:
    return [
        BackendEntry(entry.name, entry.value, entry.dist.name if entry.dist else "?")
        for entry in _scanned()
    ]


def _is_shipped(name: str) -> bool:
    """Whether the shipped table says how to speak to a provider of this name; a plugin there would be given its key."""
    row = known_providers().get(name)
    return name not in BUILT_IN and row is not None and row.backend is not None


def find_origin(backend: BackendBase) -> tuple[str, str]:
    """Return where the code of a backend is and which distribution brings it, "" if none lists it as a backend."""
    kind = type(backend)
    for it in sorted(listed(), key=lambda it: it.name not in BUILT_IN):
        module, _, attribute = it.value.partition(":")
        # Nothing is imported: the module of a backend that was made is loaded.
        if module in sys.modules and _get_attribute(sys.modules[module], attribute) is kind:
            return it.value, it.distribution
    return f"{kind.__module__}:{kind.__qualname__}", ""


def _get_attribute(found: object, path: str) -> object:
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def known_provider_of(config: Config, known: Mapping[str, KnownProvider]) -> dict[str, str]:
    """Configured slug → the slug of the shipped row that is about it; none where another backend was put there.

    That is the slug's own base, or the known provider that ``backend`` names.
    """
    found = {slug: _base(slug, it.backend, known) for slug, it in config.providers.items()}
    return {slug: base for slug, base in found.items() if base in known}


def _base(slug: str, said: object, known: Mapping[str, KnownProvider]) -> str:
    own = slug.partition("/")[0]
    if said is None:
        return own
    row = known.get(said) if isinstance(said, str) else None
    if row is None or row.backend is None:
        return ""
    # A built-in backend is meant without the row of its name, unless the slug is that name too.
    return str(said) if said not in BUILT_IN or said == own == row.backend else ""


def load(name: str) -> type[BackendBase]:
    """Import the backend of that name.

    Raises:
        EmbedrouteError: it is not installed, two packages claim the name, or it does not import.
    """
    return _imported(_find(name))


def _find(name: str, also: Sequence[str] = ()) -> BackendEntry:
    claims = [it for it in listed() if it.name == name]
    if not claims:
        raise EmbedrouteError(
            f'no backend "{name}" is installed{did_you_mean(name, [*(it.name for it in listed()), *also])}'
        )
    if len(claims) > 1:
        packages = ", ".join(it.distribution for it in claims)
        raise EmbedrouteError(f'two packages bring a backend "{name}": {packages}; uninstall one')
    return claims[0]


def _imported(claim: BackendEntry) -> type[BackendBase]:
    try:
        module, _, attribute = claim.value.partition(":")
        found: object = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except (
        BaseException
    ) as error:  # whatever a plugin raises, SystemExit too, names the plugin and harms no other
        raise EmbedrouteError(f"{claim.whose} does not import: {_named(error)}") from error
    if not (isinstance(found, type) and issubclass(found, BackendBase)):
        raise EmbedrouteError(f"{claim.whose} is not an HTTPBackend, LocalBackend or Backend")
    if not _declares(found):
        raise EmbedrouteError(f"{claim.whose} {_DECLARE}")
    return found


_DECLARE: Final = "must declare accepts: ClassVar[Accepts] = Accepts(…)"


def _declares(backend: type[BackendBase]) -> bool:
    # A field's default is not on the class: as a field, it would silently win over what config says.
    return isinstance(getattr(backend, "accepts", None), Accepts)


def build_backends(
    config: Config,
    known: Mapping[str, KnownProvider],
    bases: Mapping[str, str],
    environ: Mapping[str, str],
    unread: UnknownFields,
) -> tuple[dict[str, BackendBase], list[str]]:
    """Make the backend of every configured provider; what does not fit is named in the second part."""
    built: dict[str, BackendBase] = {}
    mistakes: list[str] = []
    also = [slug for slug, row in known.items() if row.backend]
    for slug, provider in config.providers.items():
        if unread.at("providers", slug, "options"):
            continue
        place, row = (
            f"providers.{quoted(slug)}",
            known.get(bases.get(slug, ""), KnownProvider(vendor=slug)),
        )
        try:
            backend, wrong = _build(place, slug, provider, row, environ, also)
        except EmbedrouteError as error:
            backend, wrong = None, [f"[{place}] {error.message}"]
        mistakes += wrong
        if backend is not None:
            built[slug] = backend
    return built, mistakes


def _build(
    place: str,
    slug: str,
    provider: Provider,
    row: KnownProvider,
    environ: Mapping[str, str],
    also: Sequence[str],
) -> tuple[BackendBase | None, list[str]]:
    said = provider.backend
    if isinstance(said, BackendBase):
        return _given(said), [
            f"[{place}] options go into the backend object" for _ in (provider.options and [1])
        ]
    if said is not None and not (isinstance(said, str) and said):
        raise EmbedrouteError(
            "backend must be a name, or an object whose class is an HTTPBackend, LocalBackend or Backend"
        )
    claim = _find(row.backend or said or slug.partition("/")[0], also)
    return _made(place, claim, {**row.options, **provider.options}, environ)


def _made(
    place: str, claim: BackendEntry, options: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[BackendBase | None, list[str]]:
    backend, fitted = _imported(claim), ConvertResult({}, [], set())
    try:
        fitted = convert_fields(place, options, backend, environ, Provider.__struct_fields__)
        unread = {name: None for name in backend.__struct_fields__ if name in fitted.unread}
        made = backend(**{**unread, **fitted.values})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - as in _imported, it harms no other
        refused = [f"[{place}] {claim.whose} cannot be made: {_worded(error)}"]
        return None, [
            *fitted.mistakes,
            *(refused if _is_independent_error(error, backend, fitted) else ()),
        ]
    return (None if fitted.mistakes else made), fitted.mistakes


def _is_independent_error(
    error: BaseException, backend: type[BackendBase], fitted: ConvertResult
) -> bool:
    """Whether the options would be refused so with the mistaken ones mended too; if in doubt, not."""
    if not fitted.mistakes or isinstance(error, MissingExtra):
        return True
    named = set(_WORDS.findall(str(error))) & set(backend.__struct_fields__)
    return (
        isinstance(error, (EmbedrouteError, ValueError))
        and bool(named)
        and named.isdisjoint(fitted.unread)
    )


def _worded(error: BaseException) -> str:
    # A ValueError is worded for the operator, as our own errors are.
    plain = str(error) if isinstance(error, (EmbedrouteError, ValueError)) else ""
    return " ".join(plain.split()) or _named(error)


def _named(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _given(backend: BackendBase) -> BackendBase:
    if not _declares(type(backend)):
        raise EmbedrouteError(f"the backend {type(backend).__name__} {_DECLARE}")
    return backend
