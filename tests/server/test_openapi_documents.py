"""Tests that the OpenAPI documents of a mount and of a host are valid, and that client generators can read them."""

import re
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.security import OAuth2PasswordBearer
from fastapi.testclient import TestClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from embedroute import Caller, embeddings_app
from embedroute.fastapi import embeddings_router
from embedroute.protocol import iter_values
from tests.hosts.gateways import make


def mount(**options):
    """Return the document of a mount; ``options`` are those of ``embeddings_app``."""
    return TestClient(embeddings_app(make(), **options)).get("/openapi.json").json()


def host(*routers):
    """Return the document of a FastAPI application with the routers of ``routers``."""
    app = FastAPI()
    for at, router in enumerate(routers):
        app.include_router(router, prefix=f"/ai{at or ''}")
    return TestClient(app).get("/openapi.json").json()


async def current_caller(token: Annotated[str, Depends(OAuth2PasswordBearer("token"))]) -> Caller:
    return Caller(name=token)


async def tenant(x_tenant: Annotated[str, Header()] = "") -> str:
    return x_tenant


DOCUMENTS = {
    "mount": mount(),
    "mount-openrouter": mount(dialect="openrouter"),
    "host": host(embeddings_router(make())),
    "host-with-two": host(
        embeddings_router(make(), dialect="gomodel", dependencies=[Depends(tenant)]),
        embeddings_router(make(auth="host"), caller=Depends(current_caller), dialect="phaseo"),
    ),
}

pytestmark = pytest.mark.parametrize(
    "document", [pytest.param(document, id=name) for name, document in DOCUMENTS.items()]
)


def test_the_document_is_valid(document):
    """References that lead nowhere, duplicate ids and invalid schemas are errors."""
    assert [] == [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()]


def test_the_document_has_no_discriminators(document):
    """Their mappings would name components that the document of a host does not have."""
    assert [] == [path for path, _ in iter_values(document) if "discriminator" in path]


def test_patterns_are_those_of_every_language(document):
    patterns = {value for path, value in iter_values(document) if path.endswith(".pattern")}

    assert patterns
    assert [] == [pattern for pattern in patterns if re.search(r"\\[AZz]|\(\?", pattern)]


def test_optional_fields_have_no_defaults(document):
    """A generator of TypeScript makes a property with a default a required one."""
    paths = [path for path, _ in iter_values(document)]

    assert [] == [path for path in paths if re.search(r"\.properties\.\w+\.default$", path)]


def test_every_enumeration_has_a_type(document):
    schemas = [
        path.removesuffix(".enum[0]")
        for path, _ in iter_values(document)
        if path.endswith(".enum[0]")
    ]
    typed = {
        path.removesuffix(".type") for path, _ in iter_values(document) if path.endswith(".type")
    }

    assert schemas
    assert [] == [path for path in schemas if path not in typed]


def test_no_operation_documents_a_422(document):
    """Not even if a dependency of the host has a parameter: FastAPI adds none where ``4XX`` is documented."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    assert [] == [operation for operation in operations if "422" in operation["responses"]]


def test_every_operation_with_a_401_has_a_security_scheme(document):
    schemes = document["components"]["securitySchemes"]
    common = document.get("security", [])
    names = [
        name
        for path in document["paths"].values()
        for operation in path.values()
        for requirement in operation.get("security", common)
        for name in requirement
    ]

    assert set(names) == set(schemes)
    assert len(names) == sum(map(len, document["paths"].values()))
