"""Finds what is valid in a config but cannot work, or is hardly what its author wants.

A mistake keeps a gateway from starting; a warning does not. ``embedroute check`` and ``embedroute
serve`` show the warnings.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, cast

import msgspec

from embedroute.backend import Secret
from embedroute.config import Config, KnownProvider, Provider, known_providers, quoted
from embedroute.plugins import map_known_providers
from embedroute.routing import ModelRegistry, ResolvedEndpoint

SHORTEST_KEY: Final = 16
"""Characters; a shorter API key can be guessed."""

_OTHER_SYNTAX: Final = re.compile(
    r"\$\{(\w+)(?::?-.*)?\}|\$(\w+)|%(\w+)%|os\.environ/(\w+)|\{\{\s*\$?\.?(?:env\.)?(\w+)\s*\}\}"
)
"""A reference to a variable as shells, Docker Compose, Windows, LiteLLM and templates write it."""

_TO_REPLACE: Final = re.compile(r"ACCOUNT_ID|[a-z-]+\.invalid\b")
"""The parts of a shipped base URL that each operator replaces."""


def find_warnings(config: Config, directory: ModelRegistry) -> list[str]:
    """Return the warnings about a valid config, one line each, with their place.

    ``directory`` is that of the gateway that was made from ``config``.
    """
    return [
        *_access(config),
        *_references(config),
        *_providers(config, directory),
        *_models(config, directory),
        *_fallback_cycles({name: model.fallback for name, model in config.models.items()}),
    ]


def _access(config: Config) -> Iterator[str]:
    """Warn of keys that are never used or that can be guessed."""
    auth = config.gateway.auth
    if config.keys and auth != "keys":
        who = "anyone may call" if auth == "open" else "the host application authenticates callers"
        yield (
            f'[keys] is not used with auth = "{auth}": {who}. '
            'Set auth = "keys", or remove the [keys] tables.'
        )
        return
    for name, key in config.keys.items():
        length = len(key.key.reveal())
        if length < SHORTEST_KEY and not _OTHER_SYNTAX.fullmatch(key.key.reveal()):
            yield (
                f"[keys.{quoted(name)}] key has only {length} characters and can be guessed. "
                f"Use at least {SHORTEST_KEY} random ones, such as the output of: "
                "openssl rand -hex 24"
            )


def _references(config: Config) -> Iterator[str]:
    """Warn of references to variables that are taken as literal text."""
    texts = [
        *((f"keys.{quoted(name)}", "key", key.key) for name, key in config.keys.items()),
        ("gateway", "proxy", config.gateway.proxy),
        *(
            (f"providers.{quoted(slug)}", option, value)
            for slug, provider in config.providers.items()
            for option, value in _flatten(provider.options)
        ),
    ]
    for place, option, value in texts:
        text = value.reveal() if isinstance(value, Secret) else value
        match = _OTHER_SYNTAX.fullmatch(text) if isinstance(text, str) else None
        if match is not None:
            variable = next(filter(None, match.groups()))
            yield (
                f"[{place}] {option} is not a reference to a variable but this text itself. "
                f'Write {option} = "env:{variable}".'
            )


def _flatten(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, object]", value)
            yield from ((f"{name}.{key}", item) for key, item in inner.items())
        else:
            yield name, value


def _providers(config: Config, directory: ModelRegistry) -> Iterator[str]:
    """Warn of providers whose calls must fail."""
    if not config.providers:
        yield (
            "No provider is configured, so no request can be served. "
            'Add one, for example [providers.openai] with api_key = "env:OPENAI_API_KEY".'
        )
    known = known_providers()
    bases = map_known_providers(config, known)
    for slug, provider in config.providers.items():
        options = msgspec.structs.asdict(directory.providers[slug].backend)
        place = f"[providers.{quoted(slug)}]"
        row = known.get(bases.get(slug, ""))
        if row is not None and "base_url" not in provider.options:
            yield from _missing_key(place, provider, row, options)
        base_url = options.get("base_url")
        if isinstance(base_url, str):
            yield from _unusable_url(place, base_url)


def _missing_key(
    place: str, provider: Provider, row: KnownProvider, options: Mapping[str, object]
) -> Iterator[str]:
    variables = row.env.get("api_key")
    has_header = "authorization" in {name.lower() for name, _ in _headers(provider)}
    if variables and options.get("api_key", "") is None and not has_header:
        yield (
            f"{place} api_key is missing, and {row.vendor} requires one. "
            f'Set api_key = "env:{variables[0]}".'
        )


def _headers(provider: Provider) -> Iterable[tuple[str, object]]:
    headers = provider.options.get("extra_headers")
    return cast("Mapping[str, object]", headers).items() if isinstance(headers, Mapping) else ()


def _unusable_url(place: str, base_url: str) -> Iterator[str]:
    if base_url.rstrip("/").endswith("/embeddings"):
        yield (
            f"{place} base_url ends in /embeddings, and the backend adds that path. "
            "Remove /embeddings from base_url."
        )
    if part := _TO_REPLACE.search(base_url):
        yield f"{place} base_url is an example. Set base_url, with your own value for {part[0]}."


def _models(config: Config, directory: ModelRegistry) -> Iterator[str]:
    """Warn of models that no request can reach."""
    if config.providers and not directory.routes:
        yield (
            "No model is declared, so requests must name a provider and its model "
            f'("{next(iter(config.providers))}/…"). Declare one: '
            "[models.NAME] with dimensions and endpoints = "
            f'[{{ provider = "{next(iter(config.providers))}" }}].'
        )
    only = config.gateway.only
    ignore = config.gateway.ignore
    for name in config.models:
        candidates = directory.routes[name].candidates
        if not any(_is_used(candidate, only, ignore) for candidate in candidates):
            yield (
                f"[models.{quoted(name)}] is served by no provider: 'only' and 'ignore' of "
                "[gateway] exclude all of its endpoints. Change these lists."
            )


def _is_used(candidate: ResolvedEndpoint, only: Sequence[str], ignore: Sequence[str]) -> bool:
    return not any(map(candidate.named, ignore)) and (not only or any(map(candidate.named, only)))


def _fallback_cycles(fallbacks: Mapping[str, str | None]) -> Iterator[str]:
    """Warn of each cycle of fallbacks once, at its first model."""
    reported: set[str] = set()
    for name in fallbacks:
        chain = [name]
        while (following := fallbacks.get(chain[-1])) and following not in chain:
            chain.append(following)
        if following == name and reported.isdisjoint(chain):
            reported.update(chain)
            shown = " → ".join([*chain, name])
            yield (
                f"[models.{quoted(name)}] fallback is part of a cycle: {shown}. A request uses at "
                "most one fallback. Remove one of them."
            )
