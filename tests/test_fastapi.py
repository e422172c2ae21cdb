"""Tests the FastAPI router: OpenAPI document, dependencies and prefixes of the host."""

import json
from contextlib import aclosing
from typing import Annotated

import anyio
import jsonschema
import pytest
from fastapi import Body, Depends, FastAPI, Header, HTTPException, Request
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from embedroute import Config, Gateway, Provider
from embedroute.fastapi import embeddings_router
from embedroute.testing import ScriptedBackend, expected_vector
from tests.hosts.gateways import KEY, WIDTH, make
from tests.support.asgi_client import call
from tests.support.wait import until_on_loop

ASKED = {"model": "hash", "input": "one"}
SIGNED = {"authorization": f"Bearer {KEY}"}
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/ai/v1/embeddings",
    "raw_path": b"/ai/v1/embeddings",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}
METHODS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"]


def host(prefix="/ai", *, dependencies=(), options=None, **settings):
    app = FastAPI()
    app.include_router(
        embeddings_router(make(**settings), **(options or {})),
        prefix=prefix,
        dependencies=list(dependencies),
    )
    return app


def nodes_of(document):
    yield document
    inner = (
        document.values()
        if isinstance(document, dict)
        else document
        if isinstance(document, list)
        else ()
    )
    for node in inner:
        yield from nodes_of(node)


def resolved(document, ref):
    assert ref.startswith("#/")
    for part in ref[2:].split("/"):
        document = document[part.replace("~1", "/").replace("~0", "~")]
    return document


@pytest.mark.parametrize("prefix", ["/ai", "", "/a/b"])
def test_the_host_document_describes_the_embeddings_operation(prefix):
    document = TestClient(host(prefix)).get("/openapi.json").json()
    post = document["paths"][f"{prefix}/v1/embeddings"]["post"]
    answers = post["responses"]

    assert set(document["paths"]) == {f"{prefix}/v1/embeddings", f"{prefix}/v1/models"}
    assert [
        method for method in METHODS if method in document["paths"][f"{prefix}/v1/embeddings"]
    ] == ["post"]
    assert [method for method in METHODS if method in document["paths"][f"{prefix}/v1/models"]] == [
        "get"
    ]
    assert post["requestBody"]["content"]["application/json"]["schema"]["required"] == ["model"]
    assert {"200", "400", "401", "404", "413", "415", "429", "500", "502", "503", "504"} <= set(
        answers
    )
    assert "422" not in answers
    assert "description" in answers["200"]


def test_every_reference_in_the_host_document_resolves():
    document = TestClient(host()).get("/openapi.json").json()

    for node in nodes_of(document):
        if isinstance(node, dict) and isinstance(node.get("$ref"), str):
            resolved(document, node["$ref"])


def test_a_host_may_include_two_routers():
    app = FastAPI()
    app.include_router(embeddings_router(make()), prefix="/one")
    app.include_router(embeddings_router(make(), dialect="openrouter"), prefix="/two")
    paths = TestClient(app).get("/openapi.json").json()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]

    assert {"/one/v1/embeddings", "/two/v1/embeddings"} <= set(paths)
    assert len(names) == len(set(names)) == 4


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"model": "m", "input": "a"}, True),
        ({"model": "m", "input": ["a", "b"], "encoding_format": None, "dimensions": 8}, True),
        ({"model": "m", "input": [[1, 2], [3]], "provider": {"order": ["a"]}}, True),
        ({"model": "m", "input": [{"content": [{"type": "text", "text": "a"}]}]}, True),
        ({"input": "a"}, False),
        ({"model": "m", "input": 5}, False),
        ({"model": "m", "input": "a", "encoding_format": "hex"}, False),
    ],
)
def test_a_request_is_accepted_if_it_fits_the_documented_schema(body, fits):
    document = TestClient(host()).get("/openapi.json").json()
    schema = document["paths"]["/ai/v1/embeddings"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)

    assert fits is jsonschema.Draft202012Validator(
        {**schema, "components": document.get("components", {})}
    ).is_valid(body)


def test_responses_fit_the_documented_schemas():
    client = TestClient(host())
    answers = client.get("/openapi.json").json()["paths"]["/ai/v1/embeddings"]["post"]["responses"]
    good = client.post("/ai/v1/embeddings", json=ASKED, headers=SIGNED)
    bad = client.post("/ai/v1/embeddings", json={"model": "hash"}, headers=SIGNED)

    assert (good.status_code, bad.status_code) == (200, 400)
    for reply in (good, bad):
        schema = answers[str(reply.status_code)]["content"]["application/json"]["schema"]
        jsonschema.validate(reply.json(), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("prefix", ["/ai", "", "/{tenant}/ai"])
@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/", "/embeddings/"]
)
def test_every_form_of_a_path_is_served_without_a_redirect(prefix, path):
    """A redirect would make the client send the body and the key again."""
    client = TestClient(host(prefix), follow_redirects=False)
    reply = client.post(prefix.replace("{tenant}", "t") + path, json=ASKED, headers=SIGNED)

    assert reply.status_code == 200
    assert reply.json()["data"][0]["embedding"] == pytest.approx(
        expected_vector("one", WIDTH).tolist()
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("DELETE", "/v1/embeddings", 405, "method_not_allowed"),
        ("PATCH", "/embeddings", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/models/hash", 405, "method_not_allowed"),
        ("GET", "/v1/models/gone", 404, "model_not_found"),
        ("GET", "/v1/models/a/b", 404, "model_not_found"),
        ("GET", "/v1/models/", 200, None),
        ("GET", "/v1/models", 200, None),
        ("GET", "/models/hash/", 200, None),
        ("GET", "/embeddings/models", 200, None),
    ],
)
def test_the_gateway_handles_wrong_methods_and_unknown_models(method, path, status, code):
    reply = TestClient(host(), follow_redirects=False).request(method, f"/ai{path}", headers=SIGNED)

    assert reply.status_code == status
    assert reply.json().get("error", {}).get("code") == code
    assert ("allow" in reply.headers) is (status == 405)


PATHS = ["/v1/embeddings", "/embeddings/", "/v1/models", "/models/a/b", "/v1/embeddings/models"]


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FOO"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dialect", ["openai", "spice"])
def test_a_wrong_method_gets_an_error_in_the_dialect(method, path, dialect):
    app = FastAPI()
    app.include_router(embeddings_router(make(), dialect=dialect), prefix="/ai")
    reply = TestClient(app, follow_redirects=False).request(method, f"/ai{path}", headers=SIGNED)

    assert reply.status_code == 405
    assert reply.headers["allow"] == ("GET, HEAD" if "models" in path else "POST")
    assert isinstance(reply.json()["error"], dict if dialect == "openai" else str)


def test_a_dependency_runs_for_every_method():
    async def refuse() -> None:
        raise HTTPException(402, "Who pays?")

    client = TestClient(host(dependencies=[Depends(refuse)]))

    assert {402} == {
        client.request(method, f"/ai{path}").status_code
        for method in ("FOO", "GET")
        for path in PATHS
    }


def test_the_host_document_describes_errors_in_the_dialect():
    app = FastAPI()
    app.include_router(embeddings_router(make(), dialect="spice"), prefix="/ai")
    client = TestClient(app)
    paths = client.get("/openapi.json").json()["paths"]

    for method, path in [("post", "/ai/v1/embeddings"), ("get", "/ai/v1/models")]:
        reply = client.request(method, path)
        schema = paths[path][method]["responses"]["401"]["content"]["application/json"]["schema"]
        assert reply.status_code == 401
        jsonschema.validate(reply.json(), schema, jsonschema.Draft202012Validator)
        assert not jsonschema.Draft202012Validator(schema).is_valid({"error": {"message": "x"}})


def test_other_paths_are_served_by_the_host():
    app = host("")

    @app.get("/v1/other")
    async def other() -> str:
        return "other"

    client = TestClient(app)

    assert client.get("/v1/other").json() == "other"
    assert client.get("/v1/nothing").json() == {"detail": "Not Found"}


def test_a_rejection_by_a_dependency_has_the_format_of_the_host():
    """It runs before all checks of the gateway, also that of the content type."""

    async def paid(x_tenant: Annotated[str, Header()] = "") -> None:
        if x_tenant != "known":
            raise HTTPException(402, "Who pays?")

    client = TestClient(host(dependencies=[Depends(paid)]))
    refused = client.post(
        "/ai/v1/embeddings", content=b"not json", headers={"content-type": "text/plain"}
    )
    known = client.post("/ai/v1/embeddings", json=ASKED, headers={**SIGNED, "x-tenant": "known"})

    assert (refused.status_code, refused.json()) == (402, {"detail": "Who pays?"})
    assert known.status_code == 200


@pytest.mark.anyio
async def test_a_dependency_can_reject_a_request_before_its_body_is_read():
    async def refuse() -> None:
        raise HTTPException(402, "Who pays?")

    sent, sent_request = [], []

    async def receive():
        sent_request.append("body")
        return {"type": "http.request", "body": b"{}", "more_body": True}

    async def send(message):
        sent.append(message)

    declared = [*SCOPE["headers"], (b"content-length", b"9999999999")]
    await host(dependencies=[Depends(refuse)])(SCOPE | {"headers": declared}, receive, send)

    assert sent[0]["status"] == 402
    assert sent_request == []


async def reads(request: Request):
    return await request.body()


async def streams(request: Request):
    return b"".join([piece async for piece in request.stream()])


async def begins(request: Request):
    async with aclosing(request.stream()) as pieces:
        return await anext(pieces)


async def watches(request: Request):
    assert not await request.is_disconnected()


async def takes(model: Annotated[str, Body()], input: Annotated[str, Body()]):
    assert [model, input] == list(ASKED.values())


TYPED = [("content-type", "application/json"), *SIGNED.items()]


@pytest.mark.anyio
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("dependency", [reads, streams, begins, watches, takes])
async def test_a_dependency_may_read_the_body(dependency, pieces):
    """ASGI delivers a body once; without a replay, the gateway would not receive it."""
    whole = json.dumps(ASKED).encode()
    cut = [whole] if pieces == 1 else [whole[:5], whole[5:9], whole[9:]]
    with anyio.fail_after(10):
        answer = await call(
            host(dependencies=[Depends(dependency)]), "POST", "/ai/v1/embeddings", TYPED, cut
        )

    assert answer.status == 200
    assert answer.json["data"][0]["embedding"] == pytest.approx(
        expected_vector("one", WIDTH).tolist()
    )


@pytest.mark.anyio
async def test_a_disconnect_is_noticed_after_a_dependency_has_read_the_body():
    backend, gone, sent = ScriptedBackend(then=60.0), anyio.Event(), []
    models = {"m": {"dimensions": WIDTH, "endpoints": [{"provider": "p"}]}}
    gateway = Gateway(
        Config(gateway={"auth": "open"}, providers={"p": Provider(backend=backend)}, models=models)
    )
    app = FastAPI()
    app.include_router(embeddings_router(gateway), prefix="/ai", dependencies=[Depends(reads)])
    messages = iter([{"type": "http.request", "body": b'{"model":"m","input":"one"}'}])

    async def receive():
        if (message := next(messages, None)) is not None:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(app, {**SCOPE}, receive, send)
            await until_on_loop(lambda: backend.batches)
            gone.set()

    assert sent == []


def test_a_route_class_of_the_host_is_used():
    served = []

    class Counted(APIRoute):
        async def handle(self, scope, receive, send):
            served.append(self.path_format)
            await super().handle(scope, receive, send)

    client = TestClient(host(options={"route_class": Counted}, dependencies=[Depends(reads)]))

    assert client.post("/ai/v1/embeddings", json=ASKED, headers=SIGNED).status_code == 200
    assert len(served) == 1


def test_a_dependency_may_identify_the_caller():
    """With ``auth = "host"`` the caller is read from the scope, where a dependency can store it."""

    async def sign_in(request: Request) -> None:
        request.scope["user"] = User(request.headers.get("x-user", ""))

    client = TestClient(host(dependencies=[Depends(sign_in)], auth="host"))

    assert (
        client.post("/ai/v1/embeddings", json=ASKED, headers={"x-user": "ada"}).status_code == 200
    )
    assert client.post("/ai/v1/embeddings", json=ASKED).status_code == 401


class User:
    def __init__(self, name):
        self.display_name, self.is_authenticated = name, bool(name)


def test_options_are_passed_to_the_router():
    document = (
        TestClient(host(options={"tags": ["ours"], "deprecated": True})).get("/openapi.json").json()
    )
    post = document["paths"]["/ai/v1/embeddings"]["post"]

    assert "ours" in post["tags"]
    assert post["deprecated"] is True
