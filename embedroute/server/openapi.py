"""Generates the OpenAPI 3.1 document of a mount, and the descriptions of its operations."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import msgspec

from embedroute.config import DialectName, ProtocolName
from embedroute.protocol import DIALECTS
from embedroute.server.routes import API, EMBED, GET_MODEL, Operation, list_enabled
from embedroute.server.schemas import REQUEST, components, reference
from embedroute.version import __version__

KEY_DESCRIPTION: Final = "An API key of the gateway"
"""Describes the security scheme."""

STATUSES: Final = {
    400: "The request is invalid; the error names the field",
    401: "The API key is missing or unknown",
    403: "The caller may not use the model or the field",
    404: "The model is unknown, or no provider may serve the request",
    405: "The path has no such method",
    408: "The body was not complete in time",
    413: "The body is too large",
    415: "The body is not declared as uncompressed JSON",
    429: "Too many requests; `retry-after` says how long to wait",
    500: "The gateway failed",
    502: "The provider failed",
    503: "The gateway or its providers are overloaded; `retry-after` says how long to wait",
    504: "There was no response within the deadline",
}
"""Status → its description."""

_MODEL_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_MODEL: Final = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
_EXPLAIN: Final = {
    "name": "explain",
    "in": "query",
    "description": (
        "Return a `Plan` instead: how the request would be served, without a call. The key needs "
        "debug. The schema of the response does not list the plan, because the result of every "
        "call of a generated client would then be a union of both types."
    ),
    "schema": {"type": "boolean"},
}


def describe(
    operation: Operation, dialect: DialectName = "openai", model: str = "MODEL"
) -> dict[str, object]:
    """Return the OpenAPI description of an operation; its ``$ref`` need ``components``.

    ``model`` is the model of the example.
    """
    described: dict[str, object] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": ["embeddings"],
    }
    if operation.protocol != "openai":
        return described | _describe_foreign(operation, dialect)
    if operation is EMBED:
        described["requestBody"] = {"required": True, "content": _request_content(model)}
        described["parameters"] = [_EXPLAIN]
    if operation is GET_MODEL:
        described["parameters"] = [_MODEL_ID]
    success = reference(operation.body or DIALECTS[dialect].success_body)
    described["responses"] = {
        "200": {"description": operation.description, "content": _json_content(success)},
        **{str(status): describe_error(status, dialect) for status in operation.statuses},
    }
    return described


def _describe_foreign(operation: Operation, dialect: DialectName) -> dict[str, object]:
    """Return the description of an operation of another API, besides its names."""
    error = reference(operation.error_body or DIALECTS[dialect].error_body)
    success = operation.schema or reference(operation.body or DIALECTS[dialect].success_body)
    described: dict[str, object] = {
        "responses": {
            "200": {"description": operation.description, "content": _json_content(success)},
            **{
                str(status): {"description": STATUSES[status], "content": _json_content(error)}
                for status in operation.statuses
            },
        }
    }
    if operation.request is not None:
        content = _json_content(reference(operation.request))
        described["requestBody"] = {"required": True, "content": content}
    if "{model}" in operation.path:
        described["parameters"] = [_MODEL]
    return described


def describe_error(status: int, dialect: DialectName = "openai") -> dict[str, object]:
    """Return the OpenAPI description of an error of a status."""
    content = _json_content(reference(DIALECTS[dialect].error_body))
    return {"description": STATUSES[status], "content": content}


@cache
def openapi(
    server: str = ".",
    *,
    dialect: DialectName = "openai",
    secured: bool = True,
    model: str = "MODEL",
    protocols: Sequence[ProtocolName] = ("openai",),
) -> bytes:
    """Return the OpenAPI document as JSON.

    ``server`` is the URL of the mount, relative to the URL of the document. ``secured`` says
    whether requests need an API key. ``model`` is the model of the example.
    """
    schemas = components(dialect, protocols)
    operations = list_enabled(protocols)
    document: dict[str, object] = {
        "openapi": "3.1.0",
        "info": {
            "title": "embedroute",
            "version": __version__,
            "description": "OpenAI-compatible embeddings.",
        },
        "servers": [{"url": server}],
        "paths": {
            f"/v1{operation.path}" if operation in API else operation.path: {
                operation.methods[0].lower(): describe(operation, dialect, model)
            }
            for operation in operations
        },
        "components": {"schemas": schemas},
    }
    if secured:
        schemes: dict[str, object] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": KEY_DESCRIPTION}
        }
        for header in {item.key_header.decode() for item in operations if item.key_header}:
            schemes[header] = {
                "type": "apiKey",
                "in": "header",
                "name": header,
                "description": KEY_DESCRIPTION,
            }
        document["components"] = {"schemas": schemas, "securitySchemes": schemes}
        document["security"] = [{name: []} for name in schemes]
    return msgspec.json.encode(document)


def _request_content(model: str) -> dict[str, object]:
    example = {"model": model, "input": ["the cat sat on the mat"]}
    return {"application/json": {"schema": reference(REQUEST), "example": example}}


def _json_content(schema: Mapping[str, object]) -> dict[str, object]:
    return {"application/json": {"schema": schema}}
