"""Tests that a FastAPI dependency identifies the caller of the embeddings router."""

from collections.abc import AsyncGenerator
from typing import Annotated, NamedTuple

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Security
from fastapi.security import (
    APIKeyHeader,
    HTTPAuthorizationCredentials,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityScopes,
)
from fastapi.testclient import TestClient

from embedroute import Caller, ConfigError
from embedroute.fastapi import embeddings_router
from tests.hosts.gateways import make

ASKED = {"model": "hash", "input": "one"}
USERS = {"ada-token": "ada", "bob-token": "bob"}

oauth2 = OAuth2PasswordBearer("token")
api_key = APIKeyHeader(name="X-API-Key", auto_error=False)


async def current_user(token: Annotated[str, Depends(oauth2)]) -> str:
    if token not in USERS:
        raise HTTPException(401, "Unknown token", {"WWW-Authenticate": "Bearer"})
    return USERS[token]


async def nested(user: Annotated[str, Depends(current_user)]) -> Caller:
    """Depend on the dependency that the host's own routes use."""
    return Caller(name=user, models=frozenset({"hash"}))


def synchronous(key: Annotated[str | None, Depends(api_key)]) -> Caller | None:
    return Caller(name=USERS[key]) if key in USERS else None


async def generator(request: Request) -> AsyncGenerator[Caller | None, None]:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    yield Caller(name=USERS[token]) if token in USERS else None


async def scoped(
    scopes: SecurityScopes,
    sent: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer(scheme_name="scoped"))],
) -> Caller | None:
    known = sent.credentials in USERS and scopes.scopes == ["embed"]
    return Caller(name=sent.credentials) if known else None


class Table:
    """An instance that is called is a dependency too."""

    async def __call__(self, request: Request) -> Caller | None:
        body = await request.json() if await request.body() else {}
        return Caller(name="any", debug=False) if body.get("user") != "eve" else None


BEARER = {"authorization": "Bearer ada-token"}
UNKNOWN = {"authorization": "Bearer wrong"}


class Way(NamedTuple):
    """A dependency, the headers of a caller that it knows and of another, and its schemes."""

    caller: object
    known: dict[str, str]
    unknown: dict[str, str]
    schemes: set[str]


WAYS = {
    "nested": Way(Depends(nested), BEARER, UNKNOWN, {"OAuth2PasswordBearer"}),
    "synchronous": Way(Depends(synchronous), {"x-api-key": "bob-token"}, {}, {"APIKeyHeader"}),
    "generator": Way(Depends(generator), BEARER, {}, set()),
    "scoped": Way(Security(scoped, scopes=["embed"]), BEARER, UNKNOWN, {"scoped"}),
}


def host(caller, **settings):
    app = FastAPI()
    router = embeddings_router(make(auth="host", **settings), caller=caller)
    app.include_router(router, prefix="/ai")
    return app


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings/"])
def test_a_dependency_identifies_the_caller(way, path):
    client = TestClient(host(way.caller))

    assert client.post(f"/ai{path}", json=ASKED, headers=way.known).status_code == 200
    assert client.get("/ai/v1/models", headers=way.known).status_code == 200
    assert client.post(f"/ai{path}", json=ASKED, headers=way.unknown).status_code == 401
    assert client.get("/ai/v1/models", headers=way.unknown).status_code == 401


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_security_schemes_of_the_dependency_are_documented(way):
    document = TestClient(host(way.caller)).get("/openapi.json").json()

    assert way.schemes == set(document.get("components", {}).get("securitySchemes", {}))
    for path, method in [("/ai/v1/embeddings", "post"), ("/ai/v1/models", "get")]:
        security = document["paths"][path][method].get("security", [])
        assert way.schemes == {name for requirement in security for name in requirement}


def test_the_permissions_of_the_caller_apply():
    client = TestClient(host(Depends(nested)))
    cards = client.get("/ai/v1/models", headers=BEARER).json()["data"]
    refused = client.post("/ai/v1/embeddings", json={**ASKED, "model": "wide"}, headers=BEARER)

    assert ["hash"] == [model["id"] for model in cards]
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


def test_none_is_a_401_in_the_format_of_the_gateway():
    client = TestClient(host(Depends(synchronous)))
    error = client.post("/ai/v1/embeddings", json=ASKED).json()["error"]

    assert error["message"] == "The request is not authenticated."
    assert error["code"] == "invalid_api_key"


def test_an_exception_of_the_dependency_has_the_format_of_the_host():
    reply = TestClient(host(Depends(nested))).post("/ai/v1/embeddings", json=ASKED, headers=UNKNOWN)

    assert (reply.status_code, reply.json()) == (401, {"detail": "Unknown token"})


def test_the_dependency_may_read_the_body():
    client = TestClient(host(Depends(Table())))

    assert client.post("/ai/v1/embeddings", json=ASKED).status_code == 200
    assert client.post("/ai/v1/embeddings", json={**ASKED, "user": "eve"}).status_code == 401


def test_a_dependency_is_solved_once_for_each_request():
    """FastAPI caches it, so the host's other dependencies get the same caller."""
    calls, seen = [], []

    async def count() -> Caller:
        calls.append(1)
        return Caller(name="ada")

    async def watch(caller: Annotated[Caller, Depends(count)]) -> None:
        seen.append(caller.name)

    app = FastAPI(dependencies=[Depends(watch)])
    app.include_router(embeddings_router(make(auth="host"), caller=Depends(count)))

    assert TestClient(app).post("/v1/embeddings", json=ASKED).status_code == 200
    assert (len(calls), seen) == (1, ["ada"])


def test_a_dependency_can_be_overridden_in_the_tests_of_the_host():
    app = host(Depends(nested))
    app.dependency_overrides[nested] = lambda: Caller(name="test")

    assert TestClient(app).post("/ai/v1/embeddings", json=ASKED).status_code == 200


@pytest.mark.parametrize("found", ["grace", {"name": "grace"}, True])
def test_another_result_than_a_caller_fails_closed(found, caplog):
    async def wrong() -> object:
        return found

    reply = TestClient(host(Depends(wrong))).post("/ai/v1/embeddings", json=ASKED)

    assert reply.status_code == 500
    assert "grace" not in reply.text  # a name that no hexadecimal request id contains
    assert "must return an embedroute.Caller, or None" in caplog.text


async def by_scope(scope):
    del scope
    return Caller(name="ada")


@pytest.mark.parametrize(
    ("auth", "options", "message"),
    [
        ("host", {"caller": nested}, "Write caller=Depends(nested)."),
        ("keys", {"caller": Depends(nested)}, 'caller= works only with [gateway] auth = "host"'),
        ("open", {"caller": Depends(nested)}, 'and here auth = "open". Set that,'),
        (
            "host",
            {"caller": Depends(nested), "authenticate": by_scope},
            "Leave one of them out.",
        ),
    ],
)
def test_a_caller_that_would_not_be_used_is_a_config_error(auth, options, message):
    with pytest.raises(ConfigError) as caught:
        embeddings_router(make(auth=auth), **options)

    assert message in str(caught.value)
