"""Generates JSON Schemas from the structs that decode requests and encode responses.

msgspec's schemas are valid, but client generators read them badly: a field with a default becomes a
required property in TypeScript, and ``int | float`` becomes a class in Python. ``_simplify`` writes
the same schemas in the form that generators, and validators in other languages, handle best.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, cast

import msgspec

from embedroute.config import DialectName, ProtocolName
from embedroute.plugins import Namespaces
from embedroute.protocol import DIALECTS, make_options_struct, requests, response_bodies
from embedroute.server.protocols import EXTENSIONS
from embedroute.server.routes import list_enabled

Schema = Mapping[str, object]
Document = dict[str, object]

REQUEST: Final = requests.CreateEmbeddingRequest
"""The struct of the request body."""

REF: Final = "#/components/schemas/"

_ONE_INPUT_REQUIRED: Final[Schema] = {
    "if": {"properties": {"input": {"type": "null"}}},
    "then": {"required": ["inputs"], "properties": {"inputs": {"not": {"type": "null"}}}},
}
"""Without ``input``, ``inputs`` is required. ``anyOf`` would make a union type in TypeScript."""


@cache
def components(
    dialect: DialectName = "openai", protocols: Sequence[ProtocolName] = ("openai",)
) -> dict[str, Document]:
    """Return the JSON Schemas to which the operations refer, by name."""
    operations = list_enabled(protocols)
    structs = [
        struct
        for operation in operations
        for struct in (operation.body, operation.request, operation.error_body)
    ]
    options = make_options_struct(Namespaces())
    roots = [
        REQUEST,
        options,
        DIALECTS[dialect].success_body,
        DIALECTS[dialect].error_body,
        response_bodies.Plan,
        *dict.fromkeys(filter(None, structs)),
    ]
    _, schemas = msgspec.json.schema_components(roots, ref_template=f"{REF}{{name}}")
    simplified = {name: _simplify(schema) for name, schema in schemas.items()}
    for struct in roots:
        if issubclass(struct, REQUEST):
            parts = cast("Document", simplified["Content"]["properties"])["content"]
            simplified[struct.__name__] = _complete_request(
                simplified[struct.__name__], cast("Document", parts)
            )
    properties = cast("Document", simplified[REQUEST.__name__]["properties"])
    properties["embedding_options"] = {"anyOf": [reference(options), {"type": "null"}]}
    for name, extension in EXTENSIONS.items():
        if name in protocols:
            properties |= _describe_fields(extension.fields)
    return simplified


def _complete_request(schema: Document, parts: Document) -> Document:
    """Describe what the decoder checks later: one kind of inputs, and one of their two names.

    ``parts`` is the schema of the content parts of one input, which ``input`` may also list.
    """
    properties = dict(cast("dict[str, Document]", schema["properties"]))
    for name in ("input", "inputs"):
        inputs = _with_one_kind_of_items(properties[name])
        alternatives = cast("list[Document]", inputs["anyOf"])
        properties[name] = {**inputs, "anyOf": [*alternatives, parts]}
    return {**schema, "properties": properties, **_ONE_INPUT_REQUIRED}


def _describe_fields(struct: type[msgspec.Struct]) -> Document:
    """Return the schemas of the fields of a struct that has no structs in it."""
    _, schemas = msgspec.json.schema_components([struct], ref_template=f"{REF}{{name}}")
    return cast("Document", _simplify(schemas[struct.__name__])["properties"])


def reference(struct: type[msgspec.Struct]) -> Document:
    """Return a reference to the schema of a struct."""
    return {"$ref": f"{REF}{struct.__name__}"}


def inlined(value: object, dialect: DialectName = "openai") -> object:
    """Replace each ``$ref`` by its schema, for a host that has its own components."""
    if isinstance(value, list):
        return [inlined(item, dialect) for item in cast("list[object]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("Document", value)
    if "$ref" in fields:
        return inlined(components(dialect)[str(fields["$ref"]).removeprefix(REF)], dialect)
    return {name: inlined(item, dialect) for name, item in fields.items()}


def _simplify(schema: Schema) -> Document:
    """Simplify a schema and those inside it. The result accepts the same values.

    A discriminator can only name schemas of ``components``, and adds nothing to the constants that
    tell the alternatives apart.
    """
    simplified = {
        name: _simplify_properties(value) if name == "properties" else _simplify_value(value)
        for name, value in schema.items()
        if name != "discriminator" and not (name == "default" and value is None)
    }
    if "enum" in simplified:
        values = cast("list[object]", simplified["enum"])
        is_text = all(isinstance(value, str) for value in values)
        simplified = {"type": "string" if is_text else "integer", **simplified}
    if simplified.get("multipleOf") == 1:
        # In JSON Schema, 1536.0 is an integer too.
        del simplified["multipleOf"]
        simplified["type"] = "integer"
    if "pattern" in simplified:
        # \A and \Z are Python's. Python's $ also matches before a final newline, unlike others'.
        pattern = str(simplified["pattern"])
        simplified["pattern"] = pattern.replace(r"\A", "^").replace(r"\Z", "$")
    if "description" in simplified:
        # OpenAPI's descriptions are Markdown, docstrings are reStructuredText.
        simplified["description"] = str(simplified["description"]).replace("``", "`")
    if "anyOf" in simplified:
        alternatives = _merge(cast("Sequence[Document]", simplified.pop("anyOf")))
        rest = {"anyOf": alternatives} if len(alternatives) > 1 else alternatives[0]
        simplified |= rest
    return simplified


def _simplify_properties(value: object) -> Document:
    """Simplify the schemas of properties, whose names may be those of keywords."""
    properties = cast("Mapping[str, Schema]", value)
    return {name: _simplify(schema) for name, schema in properties.items()}


def _simplify_value(value: object) -> object:
    if isinstance(value, Mapping):
        return _simplify(cast("Schema", value))
    if isinstance(value, list):
        return [_simplify_value(item) for item in cast("list[object]", value)]
    return value


def _merge(alternatives: Sequence[Document]) -> Sequence[Document]:
    """Merge alternatives of one type: enumerations, and integers with numbers."""
    merged = list[Document]()
    for alternative in alternatives:
        same = [other for other in merged if _includes(other, alternative)]
        enums = [other for other in merged if "enum" in other and "enum" in alternative]
        if enums:
            values = cast("list[str]", enums[0]["enum"]) + cast("list[str]", alternative["enum"])
            enums[0]["enum"] = values
        elif not same:
            merged = [other for other in merged if not _includes(alternative, other)]
            merged.append(alternative)
    return merged


def _includes(schema: Document, other: Document) -> bool:
    """Return whether ``schema`` equals ``other``, or differs in that it accepts all numbers."""
    if schema.get("type") == "number" and other.get("type") == "integer":
        other = {**other, "type": "number"}
    return schema == other


def _with_one_kind_of_items(schema: Document) -> Document:
    """Replace an array of several kinds of items by one array for each kind."""
    alternatives = list[Document]()
    for alternative in cast("list[Document]", schema["anyOf"]):
        items = cast("Document", alternative.get("items", {}))
        kinds = cast("list[Document]", items.get("anyOf", [items] if items else []))
        alternatives += [{**alternative, "items": kind} for kind in kinds] or [alternative]
    return {**schema, "anyOf": alternatives}
