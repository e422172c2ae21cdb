"""Tests that the OpenAPI document agrees with the decoder and the encoders."""

import json
from importlib.metadata import version
from typing import get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Mount

from embedroute import Config, EmbeddingsMiddleware, Gateway, embeddings_app
from embedroute.config import Model, ProtocolName
from embedroute.errors import InvalidRequest, RateLimited, UpstreamUnavailable
from embedroute.fastapi import embeddings_router
from embedroute.inputs import Kind
from embedroute.plugins import Namespaces
from embedroute.protocol import (
    DIALECTS,
    ENCODER,
    EmbeddingRequest,
    Embeddings,
    Limits,
    decode_request,
    iter_values,
)
from embedroute.routing import Route
from embedroute.server import (
    EMBED,
    LIST_MODELS,
    components,
    describe,
    inlined,
    model_card,
    model_list,
    openrouter_list,
)
from embedroute.server.openapi import openapi
from embedroute.trace import RequestTrace
from embedroute.vectors import from_lists
from tests.support.asgi_client import call

DOCUMENT = json.loads(openapi())
OWN = {"secret": {"dimensions": 8, "endpoints": [{"provider": "own"}]}}
HASHED = {"org/m": {"dimensions": 8, "endpoints": [{"provider": "hashed"}]}}


def mounted(gateway):
    return Starlette(routes=[Mount("/ai", app=embeddings_app(gateway))])


def as_middleware(gateway):
    return EmbeddingsMiddleware(Starlette(), gateway, prefix="/ai/v1")


def as_router(gateway):
    app = FastAPI()
    app.include_router(embeddings_router(gateway), prefix="/ai")
    return app


@pytest.mark.anyio
@pytest.mark.parametrize("host", [mounted, as_middleware, as_router])
@pytest.mark.parametrize(
    ("path", "method"),
    [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods],
)
async def test_every_documented_operation_is_served_by_every_kind_of_host(host, path, method):
    app = host(Gateway(Config(gateway={"auth": "open"}, providers={"hashed": {}}, models=HASHED)))
    body = b'{"model":"org/m","input":"a"}'
    url = f"/ai{path.replace('{id}', 'org/m')}"
    headers = [("content-type", "application/json")]

    served = await call(app, method.upper(), url, headers, [body])
    refused = await call(app, "DELETE", url, headers, [body])

    assert served.status == 200
    assert refused.status == 405
    assert refused.header("allow").split(", ")[0] == method.upper()


@pytest.mark.anyio
async def test_a_plan_is_documented():
    """``ignore`` excludes one of the two endpoints."""
    endpoints = [{"provider": "hashed"}, {"provider": "other", "price": 1}]
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "debug": True, "ignore": ["other"]},
            providers={"hashed": {}, "other": {"backend": "hashed"}},
            models={"m": {"dimensions": 8, "endpoints": endpoints}},
        )
    )
    body = b'{"model":"m","input":["a","b"]}'
    headers = [("content-type", "application/json")]
    [parameter] = DOCUMENT["paths"]["/v1/embeddings"]["post"]["parameters"]
    query = f"{parameter['name']}=true"
    answer = await call(embeddings_app(gateway), "POST", f"/v1/embeddings?{query}", headers, [body])

    assert answer.json["object"] == "plan"
    assert [len(answer.json[name]) for name in ("order", "filtered")] == [1, 1]
    validator("Plan").validate(answer.json)
    assert parameter["schema"] == {"type": "boolean"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_result_of_a_request_has_one_type(dialect):
    """A union with the plan would make every caller of a generated client narrow it first."""
    document = json.loads(openapi(dialect=dialect))
    success = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]
    name = success["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]

    assert document["components"]["schemas"][name]["type"] == "object"


def validator(name):
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    )


def test_schemas_are_valid_json_schema():
    for schema in components().values():
        Draft202012Validator.check_schema(schema)


def test_every_reference_resolves():
    found = [value for path, value in iter_values(DOCUMENT) if path.endswith("$ref")]

    assert found
    assert {ref.removeprefix("#/components/schemas/") for ref in found} <= set(
        DOCUMENT["components"]["schemas"]
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_descriptions_are_markdown(dialect):
    document = openapi(dialect=dialect, protocols=get_args(ProtocolName)).decode()

    assert "``" not in document
    assert "`" in document


def test_names_are_those_of_openais_document():
    wanted = {"CreateEmbeddingRequest", "CreateEmbeddingResponse", "Embedding", "Usage", "Error"}

    assert wanted <= set(components())
    assert not [name for name in components() if name.startswith("_")]


def test_the_document_has_the_version_of_the_package():
    assert version("embedroute") == DOCUMENT["info"]["version"]


@pytest.mark.parametrize(
    ("config", "model"),
    [
        ({"providers": {"wordllama": {}}}, "wordllama"),
        ({"providers": {"own": {"backend": "hashed"}}, "models": OWN}, "MODEL"),
    ],
)
def test_the_example_names_only_a_model_of_the_catalogue(config, model):
    """The document needs no key, and must not disclose the names of an operator's own models."""
    app = embeddings_app(Gateway(Config(gateway={"auth": "open"}, **config)))
    document = TestClient(app).get("/openapi.json").json()
    content = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]
    example = content["application/json"]["example"]

    assert example["model"] == model
    assert validator("CreateEmbeddingRequest").is_valid(example)


def test_operation_ids_are_unique():
    found = [
        operation["operationId"]
        for path in DOCUMENT["paths"].values()
        for operation in path.values()
    ]

    assert sorted(set(found)) == sorted(found)


@pytest.mark.parametrize("operation", [describe(EMBED), describe(LIST_MODELS)])
def test_an_inlined_operation_has_no_references(operation):
    assert "$ref" not in json.dumps(inlined(operation))


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"m","input":"a"}',
        '{"model":"m","inputs":["a","b"],"encoding_format":"base64","dimensions":0,"user":null,"input_type":"query"}',
        '{"model":"m","input":[1,2.0]}',
        '{"model":"m","input":[0,2147483647,1e3]}',
        '{"model":"m","input":null,"inputs":"a"}',
        '{"model":"m","input":["a"],"inputs":["a"]}',
        '{"model":"m","input":[[1,2],[3]],"provider":"mock"}',
        '{"model":"m","input":[{"content":[{"type":"text","text":"a"}]}],"debug":{"trace":false,"trace_level":"full"}}',
        '{"model":"m","input":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]}',
        '{"model":"m","input":"a","embedding_options":{"mistral":{"output_dtype":"int8"},"google":{"title":"t"}}}',
        '{"model":"m","input":"a","truncate":"NONE","output_dtype":"ubinary"}',
        '{"model":"m","input":"a","embedding_options":{"cohere":{"max_tokens":9,"priority":0},"vertex":{"autoTruncate":true}}}',
        (
            '{"model":"m","input":"a","provider":{"only":["a"],"sort":{"by":"price"},"max_price":{"prompt":"0.1"},'
            '"preferred_max_latency":{"p50":1},"preferred_min_throughput":5,"quantizations":["fp8"],"zdr":true}}'
        ),
    ],
)
def test_a_valid_request_fits_the_schema(text):
    decode_request(text.encode(), Limits(namespaces=Namespaces()))

    validator("CreateEmbeddingRequest").validate(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"input":"a"}',
        '{"model":"","input":"a"}',
        '{"model":"m","input":5}',
        '{"model":"m","input":"a","dimensions":-1}',
        '{"model":"m","input":"a","dimensions":2147483648}',
        '{"model":"m","input":"a","dimension":1}',
        '{"model":"m","input":"a","encoding_format":"FLOAT"}',
        '{"model":"m","input":"a","user":"%s"}' % ("u" * 513),
        '{"model":"m","input":"a","provider":{"onyl":[]}}',
        '{"model":"m","input":"a","provider":{"max_price":{"prompt":"1_0"}}}',
        '{"model":"m","input":"a","debug":{"trace":1}}',
        '{"model":"m","input":[{"content":[]}]}',
        '{"model":"m","input":[{"type":"text","text":"a"},{"type":"audio"}]}',
        '{"model":"m","input":[{"type":"text","text":"a"},"b"]}',
        '{"model":"m","input":[{"content":[{"type":"audio"}]}]}',
        '{"model":"m"}',
        '{"model":"m","input":null}',
        '{"model":"m","input":null,"inputs":null}',
        '{"model":"m","input":""}',
        '{"model":"m","inputs":""}',
        '{"model":"m","input":[]}',
        '{"model":"m","input":[""]}',
        '{"model":"m","input":["a",""]}',
        '{"model":"m","input":[[]]}',
        '{"model":"m","inputs":[[1],[]]}',
        '{"model":"m","input":[-1]}',
        '{"model":"m","input":[[2147483648]]}',
        '{"model":"m","input":[1.5]}',
        '{"model":"m","input":["a",1]}',
        '{"model":"m","input":[[1],"a"]}',
        '{"model":"m","input":[1,{"content":[{"type":"text","text":"a"}]}]}',
        '{"model":"m","input":[{"content":[{"type":"text","text":""}]}]}',
        '{"model":"m","input":"a","truncate":"middle"}',
        '{"model":"m","input":"a","output_dtype":"int4"}',
        '{"model":"m","input":"a","embedding_options":{"cohere":{"truncate":"end"}}}',
        '{"model":"m","input":"a","embedding_options":{"cohere":{"embedding_types":["float","int8"]}}}',
        '{"model":"m","input":"a","embedding_options":{"vertex":{"auto_truncate":true}}}',
        '{"model":"m","input":"a","embedding_options":{"acme":{}}}',
    ],
)
def test_a_request_that_the_decoder_rejects_does_not_fit_the_schema(text):
    with pytest.raises(InvalidRequest):
        decode_request(text.encode(), Limits(namespaces=Namespaces()))

    assert not validator("CreateEmbeddingRequest").is_valid(json.loads(text))


def schema_of(dialect, path, status, method="get"):
    """Return the validator for a response, from the document of a mount with this ``dialect``."""
    document = json.loads(openapi(dialect=dialect))
    answer = document["paths"][path][method]["responses"][str(status)]["content"][
        "application/json"
    ]["schema"]
    Draft202012Validator.check_schema(answer)
    return Draft202012Validator({**answer, "components": document["components"]})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("base64", [True, False])
def test_a_response_fits_the_schema(base64, dialect):
    trace = RequestTrace("req_1")
    trace.record_usage("mock", {}, 1, {"text": 1, "image": 2})
    answer = Embeddings(
        rows=list(from_lists([[1.0, 2.0]])), model="m", prompt_tokens=1, trace=trace
    )
    job = EmbeddingRequest(model="m", inputs=["a"], kind=Kind.TEXT, base64=base64)
    body = json.loads(b"".join(DIALECTS[dialect].success(answer, job)))

    schema_of(dialect, "/v1/embeddings", 200, "post").validate(body)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_of_a_response_is_documented(dialect):
    trace = RequestTrace("req_1")
    trace.open(trace=True, sent=True, received=True, full=True)
    trace.add_event("call", "answered")
    trace.sent.append({"body": "a"})
    trace.received.append({"body": "b"})
    trace.record_usage("mock", {}, 1, {"text": 1, "image": 2})
    answer = Embeddings(rows=list(from_lists([[1.0]])), model="m", prompt_tokens=1, trace=trace)
    job = EmbeddingRequest(model="m", inputs=["a"], kind=Kind.TEXT)
    body = json.loads(b"".join(DIALECTS[dialect].success(answer, job)))
    schema = components(dialect)[DIALECTS[dialect].success_body.__name__]

    assert {"trace", "upstream_request", "upstream_response"} <= set(body)
    assert set(body) == set(schema["properties"])


ALSO_FITTING = {
    "openai": {"openai", "gomodel"},
    "gomodel": {"openai", "gomodel"},
    "spice": {"spice", "phaseo"},
}
"""Dialects whose error schema also accepts the errors of these other dialects."""
FAULTS = [
    InvalidRequest("x", param="input"),
    UpstreamUnavailable("x", upstream_status=503),
    RateLimited("x", retry_after=1),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("error", FAULTS)
def test_an_error_fits_the_schema_of_its_dialect(dialect, error):
    error.provider = "mock"
    bodies = {
        name: json.loads(dialect.error(error, RequestTrace("req_1")))
        for name, dialect in DIALECTS.items()
    }
    fits = {
        name
        for name, body in bodies.items()
        if schema_of(dialect, "/v1/embeddings", 400, "post").is_valid(body)
    }

    assert fits == ALSO_FITTING.get(dialect, {dialect})


def test_every_operation_lists_its_error_statuses():
    wanted = {
        "/v1/embeddings": {
            "400",
            "401",
            "403",
            "404",
            "405",
            "408",
            "413",
            "415",
            "429",
            "500",
            "502",
            "503",
            "504",
        },
        "/v1/models": {"401", "500"},
        "/v1/embeddings/models": {"401", "500"},
        "/v1/models/{id}": {"401", "404", "500"},
    }

    assert wanted == {
        path: {status for operation in operations.values() for status in operation["responses"]}
        - {"200"}
        for path, operations in DOCUMENT["paths"].items()
    }


MODEL = Route(
    name="m",
    public_name="m",
    model=Model(dimensions=8, matryoshka=True, max_input_tokens=77, modalities=["text", "image"]),
    candidates=[],
)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", model_list([MODEL])),
        ("/v1/models", model_list([])),
        ("/v1/models/{id}", model_card([MODEL], "m")),
        ("/v1/embeddings/models", openrouter_list([MODEL])),
    ],
)
def test_a_list_of_models_fits_the_schema(path, body):
    schema_of("openai", path, 200).validate(json.loads(ENCODER.encode(body)))
    assert not schema_of("openai", path, 200).is_valid({"object": "list", "data": [{}]})


@pytest.mark.parametrize(("secured", "security"), [(True, [{"bearer": []}]), (False, None)])
def test_the_document_requires_a_key_only_with_auth_keys(secured, security):
    assert security == json.loads(openapi(secured=secured)).get("security")
