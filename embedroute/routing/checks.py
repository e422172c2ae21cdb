"""What in a config cannot be true, or names what is not there: each with its place, so that none starts quietly wrong."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from embedroute.config import Config
from embedroute.errors import EmbedrouteError
from embedroute.models import Model
from embedroute.reading import quoted
from embedroute.routing.routes import Candidate, Directory, Route, is_known, normalise
from embedroute.wording import did_you_mean

SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)?")


def width_faults(model: Model) -> Iterable[str]:
    """Name the widths of a model that are over its own."""
    for field, width in (
        ("dimensions_allowed", max(model.dimensions_allowed or [0])),
        ("dimensions_min", model.dimensions_min),
    ):
        if model.dimensions and width and width > model.dimensions:
            yield f"{field} holds a width over dimensions = {model.dimensions}"


def contradictions(route: Route, known_width: Callable[[Candidate], int | None]) -> Iterable[str]:
    """Name the endpoints whose facts cannot be true together with the model's, or with each other's."""
    due = route.model.dimensions
    modalities = route.model.modalities or ()
    names = [it.name for it in route.candidates]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two endpoints are {name}; name it once"
    for it in route.candidates:
        if modalities and not set(modalities) & set(it.accepts.modalities):
            yield f"the endpoint {it.name} takes {_listed(it.accepts.modalities)}, the model {_listed(modalities)}"
        if not (it.accepts.texts or it.accepts.tokens or len(it.accepts.modalities) > 1):
            yield f"the endpoint {it.name} accepts no kind of input"
        width = known_width(it)
        due = due or width
        if width and width != due:
            yield f"the endpoint {it.name} gives vectors of {width} numbers, not {due}: another vector space"


def misnamed(config: Config, directory: Directory) -> Iterable[str]:
    """Name the slugs that are not well formed or alike, and the lists and fallbacks that name nobody."""
    slugs: dict[str, str] = {}
    for slug in config.providers:
        place = f"[providers.{quoted(slug)}]"
        if not SLUG.fullmatch(slug):
            yield f"{place} a slug is lower-case letters, digits, '.', '_' and '-', with at most one '/'"
        if (other := slugs.setdefault(normalise(slug), slug)) != slug:
            yield f'{place} is the same name as "{other}": case, dots, spaces and underscores do not count'
    for name, model in config.models.items():
        if model.fallback is not None and (model.fallback == name or model.fallback not in directory.routes):
            yield f'[models.{quoted(name)}] fallback "{model.fallback}" is not another model of this config'
    tables = {"gateway": config.gateway, **{f"keys.{quoted(name)}": key for name, key in config.keys.items()}}
    for place, table in tables.items():
        for field, names in (("only", table.only), ("ignore", table.ignore)):
            yield from (f"[{place}] {field}: {fault}" for fault in _unknown(names, directory.known_names))


def misheld(config: Config, directory: Directory) -> Iterable[str]:
    """Name the models that a key may use and that do not exist."""
    for name, key in config.keys.items():
        for model in key.models or ():
            try:
                directory.resolve(model)
            except EmbedrouteError as error:
                yield f"[keys.{quoted(name)}] models: {error.message}"


def _unknown(names: Sequence[str], known: frozenset[str]) -> Iterable[str]:
    return (f'"{name}" is no known provider{did_you_mean(name, sorted(known))}' for name in names if not is_known(name, known))


def _listed(words: Iterable[str]) -> str:
    return " and ".join(words)
