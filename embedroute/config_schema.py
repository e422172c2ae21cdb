"""Builds the JSON Schema of ``embedroute.toml``, with which editors complete and check it.

It is made from the structs of the tables, from the options of the installed backends and from the
sentences of docs/configuration.md. It is more lenient than ``embedroute check``, which also checks
what depends on several tables. Its version is draft 7, the newest that all editors support.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

import msgspec

from embedroute.backend import Accepts, BackendBase, Secret
from embedroute.config import Config, Provider, known_providers
from embedroute.errors import EmbedrouteError
from embedroute.plugins import list_backends, load

Schema = dict[str, object]

SCHEMA_FILE: Final = "embedroute.schema.json"
"""The name of the schema beside a config; the first line of the config names it."""

_REF: Final = "#/definitions/{name}"
_TABLES_OF_PARTS: Final = (
    ("Endpoint", "accepts", "Accepts"),
    ("Provider", "retries", "RetryPolicy"),
    ("Provider", "breaker", "BreakerPolicy"),
)
"""The tables that replace single values of others, and the structs of their fields."""

_DESCRIPTIONS: Final = Path(__file__).parent / "config" / "data" / "descriptions.json"


def build_schema() -> Schema:
    """Return the schema for the backends that are installed."""
    definitions = _definitions()
    properties = cast("Schema", definitions.pop("Config")["properties"])
    backends = _option_schemas()
    definitions |= {f"{name}-options": schema for name, schema in backends.items()}
    for name, schema in backends.items():
        definitions[f"{name}-provider"] = _provider(name, schema)
    properties["providers"] = _providers(backends)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "embedroute.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": ["gateway"],
        "definitions": definitions,
    }


def _definitions() -> dict[str, Schema]:
    """Return the schemas of all tables, by the names of their structs."""
    _, components = msgspec.json.schema_components(
        [Config, Accepts], schema_hook=_schema_of, ref_template=_REF
    )
    definitions = cast("dict[str, Schema]", _without_null(components))
    descriptions = _descriptions()
    for name, definition in definitions.items():
        _describe(definition, descriptions.get(name, {}))
    for table, option, struct in _TABLES_OF_PARTS:
        _replace(definitions[table], option, {"$ref": _REF.format(name=struct)})
    names: Schema = {"type": "string", "examples": sorted(_names_by_backend())}
    _replace(definitions["Provider"], "backend", names)
    definitions["Settings"]["required"] = ["auth"]
    return {name: cast("Schema", _refs_in_all_of(schema)) for name, schema in definitions.items()}


def _option_schemas() -> dict[str, Schema]:
    """Return the schemas of the options of each backend that can be imported.

    Required options may be in the table ``options``, so the schema requires none.
    """
    schemas: dict[str, Schema] = {}
    for entry in list_backends():
        try:
            schema = _option_schema(entry.name, load(entry.name))
        except (EmbedrouteError, TypeError, NotImplementedError):
            continue
        schemas[entry.name] = schema
    return schemas


def _option_schema(name: str, backend: type[BackendBase]) -> Schema:
    _, components = msgspec.json.schema_components(
        [backend], schema_hook=_schema_of, ref_template=_REF
    )
    schema = cast("Schema", _without_null(components[backend.__name__]))
    _describe(schema, _descriptions().get(f"{name}-options", {}))
    return {"type": "object", "properties": schema["properties"]}


def _provider(name: str, options: Schema) -> Schema:
    """Return the schema of a provider with a known backend: no other options are allowed."""
    backends = [slug for slug, backend in _names_by_backend().items() if backend == name]
    names = sorted({*Provider.__struct_fields__, *_properties(options)})
    return {
        "allOf": [
            {"$ref": _REF.format(name="Provider")},
            {"$ref": _REF.format(name=f"{name}-options")},
        ],
        "if": {"properties": {"backend": {"enum": sorted({name, *backends})}}},
        "then": {"propertyNames": {"enum": names}},
    }


def _providers(backends: Mapping[str, Schema]) -> Schema:
    """Return the schema of ``[providers]``: the backend follows from the slug or is named."""
    by_name = {
        name: backend for name, backend in _names_by_backend().items() if backend in backends
    }
    refs = {name: {"$ref": _REF.format(name=f"{by_name[name]}-provider")} for name in by_name}
    named = [
        {
            "if": {"properties": {"backend": {"enum": names}}, "required": ["backend"]},
            "then": {"$ref": _REF.format(name=f"{backend}-provider")},
        }
        for backend, names in _grouped(by_name).items()
    ]
    return {
        "type": "object",
        "properties": refs,
        "patternProperties": {f"^{name}/": ref for name, ref in refs.items()},
        "additionalProperties": {"allOf": [{"$ref": _REF.format(name="Provider")}, *named]},
    }


def _grouped(by_name: Mapping[str, str]) -> dict[str, list[str]]:
    """Map each backend to the names that it has, both sorted."""
    return {
        backend: sorted(name for name in by_name if by_name[name] == backend)
        for backend in sorted({*by_name.values()})
    }


def _names_by_backend() -> dict[str, str]:
    """Map each name that ``backend`` can have to the backend behind it."""
    known = {slug: row.backend for slug, row in known_providers().items() if row.backend}
    return {**{entry.name: entry.name for entry in list_backends()}, **known}


def _schema_of(type_: type) -> Schema:
    if type_ is Secret:
        return {"type": "string"}
    if type_ is object:
        return {"$comment": "any value"}
    raise NotImplementedError


def _properties(schema: Schema) -> dict[str, Schema]:
    return cast("dict[str, Schema]", schema["properties"])


def _replace(definition: Schema, option: str, schema: Schema) -> None:
    """Replace the schema of an option, but not its description."""
    properties = _properties(definition)
    properties[option] = {"description": properties[option]["description"], **schema}


def _descriptions() -> Mapping[str, Mapping[str, str]]:
    return msgspec.json.decode(_DESCRIPTIONS.read_bytes(), type=dict[str, dict[str, str]])


def _describe(schema: Schema, descriptions: Mapping[str, str]) -> None:
    """Replace the docstring of a struct by descriptions of its fields."""
    schema.pop("description", None)
    for name, text in descriptions.items():
        _properties(schema)[name]["description"] = text


def _without_null(value: object) -> object:
    """Remove what TOML does not have: null. Write patterns as JavaScript does."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [_without_null(item) for item in items if item != {"type": "null"}]
    if not isinstance(value, dict):
        return value
    result = {
        name: _without_null(item)
        for name, item in cast("Schema", value).items()
        if not (name == "default" and (item is None or isinstance(item, dict)))
    }
    if isinstance(pattern := result.get("pattern"), str):
        result["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    alternatives = result.get("anyOf")
    if isinstance(alternatives, list) and len(cast("list[object]", alternatives)) == 1:
        (only,) = cast("list[Schema]", result.pop("anyOf"))
        result |= only
    return result


def _refs_in_all_of(value: object) -> object:
    """Wrap each ``$ref`` that has siblings, which draft 7 would ignore."""
    if isinstance(value, list):
        return [_refs_in_all_of(item) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    result = {name: _refs_in_all_of(item) for name, item in cast("Schema", value).items()}
    if "$ref" in result and len(result) > 1:
        return {"allOf": [{"$ref": result.pop("$ref")}], **result}
    return result
