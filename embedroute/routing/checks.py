"""What in a config cannot be true, or names what is not there: each with its place, so that none starts quietly wrong."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from embedroute.config import Config
from embedroute.errors import EmbedrouteError
from embedroute.models import Model
from embedroute.reading import Unread, quoted
from embedroute.routing.routes import Candidate, Directory, Route, is_known, normalise
from embedroute.settings import Key
from embedroute.wording import did_you_mean, echo

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


def misnamed(config: Config, directory: Directory, unread: Unread) -> Iterable[str]:
    """Name the slugs that are not well formed or alike, and the lists and fallbacks that name nobody."""
    slugs: dict[str, str] = {}
    for slug in config.providers:
        place = f"[providers.{quoted(slug)}]"
        if not SLUG.fullmatch(slug):
            yield f"{place} a slug is lower-case letters, digits, '.', '_' and '-', with at most one '/'"
        if (other := slugs.setdefault(normalise(slug), slug)) != slug:
            yield f'{place} is the same name as "{other}": case, dots, spaces and underscores do not count'
    for name, model in config.models.items():
        hidden = unread.at("providers") or unread.at("models")
        if model.fallback == name or not (model.fallback is None or model.fallback in directory.routes or hidden):
            yield f'[models.{quoted(name)}] fallback "{model.fallback}" is not another model of this config'
    if any(unread.at("providers", slug, "vendor") for slug in ("", *config.providers)):
        return
    tables = {"gateway": config.gateway, **{f"keys.{quoted(name)}": key for name, key in config.keys.items()}}
    for place, table in tables.items():
        for field, names in (("only", table.only), ("ignore", table.ignore)):
            yield from (f"[{place}] {field}: {fault}" for fault in _unknown(names, directory.known_names))


def misheld(config: Config, directory: Directory, unread: Unread) -> Iterable[str]:
    """Name the models that a key may use and that do not exist."""
    for name, key in config.keys.items():
        for model in () if _unsure(unread) else key.models or ():
            try:
                _meant(directory, model)
            except EmbedrouteError as error:
                yield f"[keys.{quoted(name)}] models: {error.message}"


def _unsure(unread: Unread) -> bool:
    """Whether an endpoint may be unknown, and with it what its provider calls a model."""
    return unread.at("providers") or any(it[0] == "models" and it[2:3] in ((), ("endpoints",)) for it in unread.places)


def held(config: Config, directory: Directory) -> Mapping[str, Key]:
    """The keys, each with the models that its list means by their own names, to which every request's name comes down."""
    return {
        name: msgspec.structs.replace(key, models=None if key.models is None else [_meant(directory, it) for it in key.models])
        for name, key in config.keys.items()
    }


def _meant(directory: Directory, name: str) -> str:
    route = directory.resolve(name)
    whole = directory.routes.get(route.name, route)
    if len(route.candidates) < len(whole.candidates):
        raise EmbedrouteError(
            f"{echo(name)} is only some of the endpoints of {echo(route.name)}; name the model itself, and providers in 'only'"
        )
    return route.name


def _unknown(names: Sequence[str], known: frozenset[str]) -> Iterable[str]:
    return (f'"{name}" is no known provider{did_you_mean(name, sorted(known))}' for name in names if not is_known(name, known))


def _listed(words: Iterable[str]) -> str:
    return " and ".join(words)
