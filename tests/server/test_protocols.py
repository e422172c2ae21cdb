"""Requests of other APIs, byte for byte: what each is answered, and that they are off by default."""

import json
import re

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from embedroute import Config, ConfigError, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Accepts, Vectors
from embedroute.protocol import DIALECTS
from embedroute.testing import ScriptedBackend, expected_vector
from embedroute.vectors import from_lists, unit
from tests.support.asgi_client import call

pytestmark = pytest.mark.anyio

KEY = "sk-of-a-protocol-test"
BEARER = ("authorization", f"Bearer {KEY}")
JSON = ("content-type", "application/json")
ALL = ("openai", "azure", "cohere", "engines", "jina", "ollama", "tei", "voyage")
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def long_vectors(batch):
    """Return vectors of length 5."""
    return Vectors(from_lists([[3.0, 4.0] for _ in batch.inputs]), len(batch.inputs))


class Typed(ScriptedBackend, frozen=True, kw_only=True):
    """A backend with quantised vectors, input types and images."""

    accepts = Accepts(
        modalities=("text", "image"),
        input_types=("query", "document"),
        dtypes=("float", "int8"),
        truncate=("none", "end"),
    )


def make_app(**options):
    names = {"one": {"key": KEY, "models": ["org/m"]}, "two": {"key": "sk-of-another-caller"}}
    return embeddings_app(
        Gateway(
            Config(
                gateway={"auth": "keys", "protocols": ALL},
                keys=names,
                providers={
                    "typed": Provider(backend=Typed(then=long_vectors)),
                    "other": Provider(backend=ScriptedBackend(width=2)),
                },
                models={
                    "org/m": Model(
                        dimensions=2,
                        modalities=["text", "image"],
                        max_input_tokens=99,
                        endpoints=[{"provider": "typed"}],
                    ),
                    "n": Model(dimensions=2, endpoints=[{"provider": "other"}]),
                },
            )
        ),
        **options,
    )


async def ask(app, target, body, headers=(BEARER, JSON), method="POST"):
    text = body if isinstance(body, str) else json.dumps(body)
    return await call(app, method, target, headers, [text.encode()] if text else [])


def openai_body(*rows, tokens):
    data = [
        {"embedding": row, "index": index, "object": "embedding"} for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": "org/m", "usage": usage}


def cohere_body(kind, *rows, tokens=1, **fields):
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}}
    embeddings = {kind: list(rows)}
    return {"embeddings": embeddings, "meta": meta, "response_type": "embeddings_by_type", **fields}


LONG = [3.0, 4.0]
UNIT = [0.6, 0.8]
IN_BASE64 = "AABAQAAAgEA="
UNIT_IN_BASE64 = "mpkZP83MTD8="
EMBED = {"model": "org/m", "input": ["a", "b"]}
COHERE = {"model": "org/m", "texts": ["a"], "input_type": "search_query"}
ANSWERED = {
    "azure": ("/openai/deployments/org/m/embeddings?api-version=1", {"input": ["a", "b"], "model": "x"}, openai_body(LONG, LONG, tokens=2)),
    "azure v1": ("/openai/v1/embeddings", EMBED, openai_body(LONG, LONG, tokens=2)),
    "azure, encoded slash": ("/openai/deployments/org%2Fm/embeddings", {"input": "a"}, openai_body(LONG, tokens=1)),
    "engine": ("/v1/engines/org/m/embeddings", {"input": ["a"], "encoding_format": "base64"}, openai_body(IN_BASE64, tokens=1)),
    "ollama": ("/api/embed", {**EMBED, "truncate": True, "keep_alive": "5m", "options": {"seed": 1, "num_ctx": None}}, {"embeddings": [UNIT, UNIT], "model": "org/m", "prompt_eval_count": 2}),
    "ollama, latest": ("/api/embed", {"model": "org/m:latest", "input": "a"}, {"embeddings": [UNIT], "model": "org/m", "prompt_eval_count": 1}),
    "ollama, old path": ("/api/embeddings", {"model": "org/m", "prompt": "a"}, {"embedding": LONG}),
    "tei": ("/tei/org/m/embed", {"inputs": ["a", "b"], "normalize": True, "truncate": True, "truncation_direction": "Right", "prompt_name": "query"}, [UNIT, UNIT]),
    "tei, base URL": ("/tei/org/m", {"inputs": "a"}, [UNIT]),
    "tei, only model": ("/embed", {"inputs": "a"}, [UNIT]),
    "cohere": ("/v2/embed", {**COHERE, "truncate": "END", "priority": 1}, cohere_body("float", LONG, texts=["a"])),
    "cohere, base64": ("/v2/embed", {**COHERE, "embedding_types": ["base64"]}, cohere_body("base64", IN_BASE64, texts=["a"])),
    "cohere, images": ("/v2/embed", {"model": "org/m", "images": [PIXEL], "texts": None, "input_type": "search_document"}, cohere_body("float", LONG)),
    "cohere, inputs": ("/v2/embed", {"model": "org/m", "inputs": [{"content": [{"type": "text", "text": "a"}]}], "input_type": "search_document"}, cohere_body("float", LONG)),
    "voyage": ("/v1/embeddings", {**EMBED, "output_dimension": 2, "output_dtype": "float", "truncation": True, "input_type": None}, openai_body(LONG, LONG, tokens=2)),
    "jina": ("/v1/embeddings", {**EMBED, "task": "retrieval.query", "normalized": True, "late_chunking": False, "truncate": True, "embedding_type": "float"}, openai_body(UNIT, UNIT, tokens=2)),
    "jina, base64": ("/v1/embeddings", {**EMBED, "input": "a", "embedding_type": "base64", "encoding_format": "base64"}, openai_body(UNIT_IN_BASE64, tokens=1)),
    "jina, texts": ("/v1/embeddings", {**EMBED, "input": [{"text": "a"}, "b"]}, openai_body(UNIT, UNIT, tokens=2)),
    "jina, images": ("/v1/embeddings", {**EMBED, "input": [{"image": "iVBORw0KGgo="}, {"image": PIXEL, "text": "b"}]}, openai_body(UNIT, UNIT, tokens=2)),
    "jina, one object": ("/v1/embeddings", {**EMBED, "input": {"text": "a"}}, openai_body(UNIT, tokens=1)),
}  # fmt: skip


@pytest.mark.parametrize(("target", "body", "expected"), ANSWERED.values(), ids=ANSWERED)
async def test_answers_in_the_format_of_the_api(target, body, expected):
    answer = await ask(make_app(), target, body)
    found = answer.json
    has_images = "image" in json.dumps(body)
    expected = json.loads(json.dumps(expected))

    assert answer.status == 200, answer.body
    if isinstance(found, dict):
        assert found.pop("id", None) in {None, answer.header("x-request-id")}
        for name in ("usage", "meta") if has_images else ():  # the estimate is tested elsewhere
            assert (found.pop(name, None) is None) == (expected.pop(name, None) is None)
    assert found == expected


def failure(message, **fields):
    return {"message": message, **fields}


REFUSED = {
    "azure, unknown": ("/openai/deployments/none/embeddings", {"input": "a"}, 404, {"error": {"code": "DeploymentNotFound", "message": "The model 'none' does not exist; see GET /v1/models."}}),
    "azure, empty": ("/openai/deployments/org/m/embeddings", {"input": [""]}, 400, {"error": {"code": "invalid_request_error", "type": "invalid_request_error", "param": "input", "message": "'input' must not be empty."}}),
    "azure, no object": ("/openai/deployments/org/m/embeddings", "[]", 400, {"error": {"code": "invalid_request_error", "type": "invalid_request_error", "message": "The body must be a JSON object.", "param": None}}),
    "engine, empty": ("/v1/engines/org/m/embeddings", {"input": ["a", ""]}, 400, {"error": {"message": "'input[1]' must not be empty.", "type": "invalid_request_error", "param": "input[1]", "code": None}}),
    "ollama, unknown": ("/api/embed", {"model": "none", "input": "a"}, 404, {"error": "model \"none\" not found, The model 'none' does not exist; see GET /v1/models."}),
    "ollama, num_ctx": ("/api/embed", {**EMBED, "options": {"num_ctx": 5}}, 400, {"error": "'options.num_ctx' would change the vectors, and the gateway cannot set it. Leave it out."}),
    "ollama, dimensions": ("/api/embed", {**EMBED, "dimensions": 1}, 400, {"error": "'dimensions' must be 2 for this model; its vectors cannot be shortened."}),
    "ollama, list as prompt": ("/api/embeddings", {"model": "org/m", "prompt": ["a"]}, 400, {"error": "'prompt' must be a string."}),
    "ollama, empty prompt": ("/api/embeddings", {"model": "org/m", "prompt": ""}, 400, {"error": "'prompt' must not be empty."}),
    "ollama, show nothing": ("/api/show", {}, 400, {"error": "'model' is required."}),
    "ollama, show unknown": ("/api/show", {"model": "n"}, 404, {"error": "model \"n\" not found, The model 'n' does not exist; see GET /v1/models."}),
    "tei, not normalized": ("/embed", {"inputs": "a", "normalize": False}, 400, {"error": "'normalize' must not be false: the gateway returns vectors of length 1 here. Leave it out.", "error_type": "Validation"}),
    "tei, unknown prompt": ("/embed", {"inputs": "a", "prompt_name": "s2p"}, 400, {"error": "'prompt_name' 's2p' is unknown. Use 'query', 'document' or another input type.", "error_type": "Validation"}),
    "tei, prompt of other models": ("/embed", {"inputs": "a", "prompt_name": "clustering"}, 400, {"error": "'prompt_name' is not supported by any provider that supports the other parameters.", "error_type": "Validation"}),
    "tei, unknown model": ("/tei/none/embed", {"inputs": "a"}, 404, {"error": "The model 'none' does not exist; see GET /v1/models.", "error_type": "Validation"}),
    "tei, empty": ("/embed", {"inputs": ["a", ""]}, 400, {"error": "'inputs[1]' must not be empty.", "error_type": "Validation"}),
    "tei, unknown field": ("/embed", {"inputs": "a", "dimension": 2}, 400, {"error": "Unknown field: 'dimension' (did you mean \"dimensions\"?). Remove or rename it.", "error_type": "Validation"}),
    "cohere, two sources": ("/v2/embed", {**COHERE, "images": [PIXEL]}, 400, failure("Send exactly one of 'texts', 'images', 'inputs'.")),
    "cohere, no source": ("/v2/embed", {"model": "org/m", "input_type": "search_query"}, 400, failure("Send exactly one of 'texts', 'images', 'inputs'.")),
    "cohere, no input type": ("/v2/embed", {"model": "org/m", "texts": ["a"]}, 400, failure("'input_type' is required.")),
    "cohere, max_tokens": ("/v2/embed", {**COHERE, "max_tokens": 5}, 400, failure("'max_tokens' would cut the inputs, which the gateway does not do. Leave it out.")),
    "cohere, two types": ("/v2/embed", {**COHERE, "embedding_types": ["float", "int8"]}, 400, failure("'embedding_types' must hold one type. Send one request for each.")),
    "cohere, unknown type": ("/v2/embed", {**COHERE, "embedding_types": ["int4"]}, 400, failure("'embedding_types[0]' must be one of float, int8, uint8, binary, ubinary, base64.")),
    "cohere, type of other models": ("/v2/embed", {**COHERE, "embedding_types": ["binary"]}, 400, failure("'embedding_types' is not supported by any provider that supports the other parameters.")),
    "cohere, width": ("/v2/embed", {**COHERE, "output_dimension": 1}, 400, failure("'output_dimension' must be 2 for this model; its vectors cannot be shortened.")),
    "cohere, duplicate": ("/v2/embed", '{"model":"n","model":"org/m","texts":["a"],"input_type":"query"}', 400, failure("Duplicate key 'model' in an object. Send it once.")),
    "cohere, duplicate in an input": ("/v2/embed", '{"model":"org/m","inputs":[{"content":[{"type":"text","text":"a","text":"b"}]}],"input_type":"query"}', 400, failure("Duplicate key 'inputs[0].content[0].text' in an object. Send it once.")),
    "cohere, bad JSON": ("/v2/embed", '{"model":', 400, failure("The body is not valid JSON: Input data was truncated.")),
    "voyage, width": ("/v1/embeddings", {**EMBED, "output_dimension": 1}, 400, {"detail": "'output_dimension' must be 2 for this model; its vectors cannot be shortened."}),
    "voyage, no input": ("/v1/embeddings", {"truncation": True}, 400, {"detail": "'model' is required."}),
    "voyage, two widths": ("/v1/embeddings", {**EMBED, "output_dimension": 2, "dimensions": 1}, 400, {"detail": "'output_dimension' contradicts 'dimensions'. Send one of them."}),
    "cohere, truncate": ("/v2/embed", {**COHERE, "truncate": "START"}, 400, failure("'truncate' asks for 'start', which no provider of this model supports. Use none or end, or omit it.")),
    "tei, truncate": ("/tei/org/m/embed", {"inputs": "a", "truncate": True, "truncation_direction": "left"}, 400, {"error": "'truncate' asks for 'start', which no provider of this model supports. Use none or end, or omit it.", "error_type": "Validation"}),
    "voyage, dtype": ("/v1/embeddings", {**EMBED, "output_dtype": "ubinary"}, 400, {"detail": "'output_dtype' is not supported by any provider that supports the other parameters."}),
    "jina, late chunking": ("/v1/embeddings", {**EMBED, "late_chunking": True}, 400, {"detail": {"message": "'late_chunking' would change the vectors, and the gateway cannot set it. Leave it out.", "code": "invalid_request_error"}}),
    "jina, several vectors": ("/v1/embeddings", {**EMBED, "return_multivector": True}, 400, {"detail": {"message": "'return_multivector' would change the vectors, and the gateway cannot set it. Leave it out.", "code": "invalid_request_error"}}),
    "jina, not normalized": ("/v1/embeddings", {**EMBED, "normalized": False}, 400, {"detail": {"message": "'normalized' must not be false: the gateway returns vectors of length 1 here. Leave it out.", "code": "invalid_request_error"}}),
    "jina, task": ("/v1/embeddings", {**EMBED, "task": "code.passage"}, 400, {"detail": {"message": "'task' 'code.passage' is unknown. Use 'retrieval.query', 'retrieval.passage' or another task.", "code": "invalid_request_error"}}),
    "jina, two types": ("/v1/embeddings", {**EMBED, "task": "retrieval.query", "input_type": "document"}, 400, {"detail": {"message": "'task' contradicts 'input_type'. Send one of them.", "code": "invalid_request_error"}}),
    "openai, unknown field": ("/v1/embeddings", {**EMBED, "dimension": 2}, 400, {"error": {"message": "Unknown field: 'dimension' (did you mean \"dimensions\"?). Remove or rename it.", "type": "invalid_request_error", "param": "dimension", "code": None}}),
}  # fmt: skip


@pytest.mark.parametrize(("target", "body", "status", "expected"), REFUSED.values(), ids=REFUSED)
async def test_refuses_in_the_format_of_the_api(target, body, status, expected):
    answer = await ask(make_app(), target, body)
    found = answer.json
    for fields in (found, found.get("detail")):
        if isinstance(fields, dict):
            assert fields.pop("request_id", fields.pop("id", None)) in {
                None,
                answer.header("x-request-id"),
            }

    assert (status, expected) == (answer.status, found)


UNAUTHORIZED = {
    "azure": ("/openai/deployments/org/m/embeddings", {"error": {"code": "401", "message": "An API key is required; send one header 'api-key: KEY'."}}),
    "ollama": ("/api/embed", {"error": "An API key is required; send one header 'Authorization: Bearer KEY'."}),
    "tei": ("/embed", {"error": "An API key is required; send one header 'Authorization: Bearer KEY'.", "error_type": "Validation"}),
    "cohere": ("/v2/embed", {"message": "An API key is required; send one header 'Authorization: Bearer KEY'."}),
}  # fmt: skip


@pytest.mark.parametrize(("target", "expected"), UNAUTHORIZED.values(), ids=UNAUTHORIZED)
async def test_a_missing_key_is_refused_in_the_format_of_the_api(target, expected):
    answer = await ask(make_app(), target, "{", [JSON])
    found = answer.json
    found.pop("id", None)

    assert (401, expected) == (answer.status, found)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("api-key", KEY)], 200),
        ([BEARER], 200),
        ([("api-key", "sk-wrong")], 401),
        ([("api-key", KEY), ("api-key", KEY)], 401),
        ([("api-key", "k" * 257)], 401),
        ([("api-key", KEY), ("authorization", "Bearer sk-wrong")], 401),
    ],
)
async def test_azures_clients_send_their_key_in_a_header_of_its_own(headers, status):
    answer = await ask(make_app(), "/openai/v1/embeddings", EMBED, [*headers, JSON])

    assert answer.status == status
    assert KEY not in str(answer)


async def test_only_azures_paths_accept_its_header():
    answer = await ask(make_app(), "/v1/embeddings", EMBED, [("api-key", KEY), JSON])

    assert answer.status == 401


@pytest.mark.parametrize("path", ["/embed", "/info"])
async def test_without_a_model_in_the_path_there_must_be_one_model(path):
    """The caller "two" may use several models."""
    headers = [("authorization", "Bearer sk-of-another-caller"), JSON]
    method, body = ("POST", {"inputs": "a"}) if path == "/embed" else ("GET", "")
    answer = await ask(make_app(), path, body, headers, method)

    assert answer.status == 400
    assert answer.json["error"].endswith("Use the base URL …/tei/MODEL.")


ABOUT_MODELS = {
    "ollama, list": ("GET", "/api/tags", "", {"models": [{"name": "org/m", "model": "org/m", "size": 0}]}),
    "ollama, show": ("POST", "/api/show", {"model": "org/m:latest"}, {"model_info": {"general.architecture": "embedding", "embedding.embedding_length": 2, "embedding.context_length": 99}, "capabilities": ["embedding", "vision"]}),
    "ollama, show by name": ("POST", "/api/show", {"name": "org/m", "verbose": True}, {"capabilities": ["embedding", "vision"]}),
    "ollama, version": ("GET", "/api/version", "", {"version": "0.12.6"}),
    "tei": ("GET", "/tei/org/m/info", "", {"model_id": "org/m", "max_input_length": 99, "max_client_batch_size": 2048, "auto_truncate": False}),
    "tei, only model": ("GET", "/info", "", {"model_id": "org/m"}),
}  # fmt: skip


def part_of(found, expected):
    """Return the fields of ``found`` that ``expected`` has."""
    if isinstance(expected, dict):
        return {name: part_of(found[name], value) for name, value in expected.items()}
    if isinstance(expected, list) and len(found) == len(expected):
        return [part_of(*pair) for pair in zip(found, expected, strict=True)]
    return found


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"), ABOUT_MODELS.values(), ids=ABOUT_MODELS
)
async def test_describes_the_models_of_the_caller(method, path, body, expected):
    answer = await ask(make_app(), path, body, [BEARER, JSON], method)

    assert answer.status == 200
    assert part_of(answer.json, expected) == expected


@pytest.mark.parametrize("path", ["/health", "/tei/org/m/health"])
async def test_the_health_of_tei_needs_no_key(path):
    assert (await ask(make_app(), path, "", [], "GET")).status == 200


TARGETS = sorted({re.sub(r"\?.*", "", case[0]) for case in ANSWERED.values()} - {"/v1/embeddings"})
OTHERS = ["/api/tags", "/api/show", "/api/version", "/info", "/health", "/tei/org/m/info"]


@pytest.mark.parametrize("target", [*TARGETS, *OTHERS])
async def test_other_protocols_are_off_by_default(target):
    app = make_app(protocols=["openai"])
    answer = await ask(app, target, EMBED)

    assert (404, "not_found") == (answer.status, answer.error["code"])


@pytest.mark.parametrize("field", ["truncation", "task"])
async def test_fields_of_other_apis_are_unknown_by_default(field):
    answer = await ask(make_app(protocols=["openai"]), "/v1/embeddings", {**EMBED, field: None})

    assert answer.status == 400
    assert answer.error["message"].startswith(f"Unknown field: '{field}'")


async def test_openais_api_can_be_left_out():
    app = make_app(protocols=["ollama"])
    refused = [
        await ask(app, "/v1/embeddings", EMBED),
        await ask(app, "/v1/models", "", method="GET"),
        await ask(app, "/v1/models/org/m", "", method="GET"),
    ]
    document = await ask(app, "/openapi.json", "", [], "GET")

    assert [404] * 3 == [answer.status for answer in refused]
    assert (await ask(app, "/api/embed", EMBED)).status == 200
    assert {"/api/embed", "/api/embeddings", "/api/tags", "/api/show", "/api/version"} == set(
        document.json["paths"]
    )


@pytest.mark.parametrize("protocols", [["ollamma"], [], "ollama"])
def test_an_unknown_protocol_is_refused(protocols):
    with pytest.raises(ConfigError, match="protocols="):
        make_app(protocols=protocols)


async def test_the_openapi_document_describes_only_what_is_enabled():
    plain = (await ask(make_app(protocols=["openai"]), "/openapi.json", "", [], "GET")).json
    full = (await ask(make_app(), "/openapi.json", "", [], "GET")).json
    request = full["components"]["schemas"]["CreateEmbeddingRequest"]

    assert "late_chunking" not in json.dumps(plain)
    own = {name for name in plain["components"]["schemas"] if name.startswith("Ollama")}
    assert own == {"OllamaOptions"}
    assert all("/api/" not in path for path in plain["paths"])
    assert {"task", "output_dtype", "truncation", "late_chunking"} <= request["properties"].keys()
    assert full["components"]["securitySchemes"]["api-key"]["in"] == "header"


def schema_for(document, path, part):
    operation = next(iter(document["paths"][path].values()))
    if part == "request":
        content = operation["requestBody"]["content"]
    else:
        content = operation["responses"][part]["content"]
    schema = content["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": document["components"]})


@pytest.mark.parametrize("case", [name for name in ANSWERED if not name.startswith("tei, base")])
async def test_the_openapi_document_fits_requests_and_responses(case):
    target, body, _ = ANSWERED[case]
    document = (await ask(make_app(), "/openapi.json", "", [], "GET")).json
    template = re.sub(r"org(/|%2F)m", "{model}", target.partition("?")[0])
    answer = await ask(make_app(), target, body)
    wrong = await ask(make_app(), target, {**body, "dimensions": -1, "output_dimension": -1})

    if "jina" not in case or "{" not in json.dumps(body["input"]):
        schema_for(document, template, "request").validate(
            {name: value for name, value in body.items() if value is not None}
        )
    schema_for(document, template, "200").validate(answer.json)
    if template != "/v1/embeddings":
        schema_for(document, template, "400").validate(wrong.json)
    assert wrong.status == 400


@pytest.mark.parametrize(
    ("target", "body", "read"),
    [
        ("/api/embed", {"model": "org/m", "input": None}, lambda found: found["embeddings"]),
        ("/tei/org/m/embed", {"inputs": None}, lambda found: found),
        ("/v2/embed", {"model": "org/m", "texts": None, "input_type": "search_query"}, lambda found: found["embeddings"]["float"]),
        ("/openai/v1/embeddings", {"model": "org/m", "input": None}, lambda found: [row["embedding"] for row in found["data"]]),
    ],
)  # fmt: skip
async def test_large_requests_and_responses_pass_in_pieces(target, body, read):
    """400 texts of 4 kB are decoded in steps, and their vectors are sent in pieces."""
    width, count = 1024, 400
    texts = [f"{index} {'x' * 4000}" for index in range(count)]
    [name] = [name for name, value in body.items() if value is None]
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "protocols": ALL},
            providers={"typed": Provider(backend=Typed(width=width))},
            models={"org/m": Model(dimensions=width, endpoints=[{"provider": "typed"}])},
        )
    )
    answer = await ask(embeddings_app(gateway), target, {**body, name: texts})
    kind = "query" if target == "/v2/embed" else None

    assert answer.status == 200, answer.body[:200]
    assert answer.header("content-length") is None  # sent in chunks
    assert len(read(answer.json)) == count
    last = expected_vector(texts[-1], width, input_type=kind)
    assert np.allclose(read(answer.json)[-1], last, atol=1e-6)


async def test_int8_vectors_are_not_served_from_floats_in_the_cache():
    """Both requests have the same text; only the type of the numbers differs."""

    def typed(batch):
        numbers = [[1, 2]] if batch.dtype == "int8" else [[3.0, 4.0]]
        return Vectors(from_lists(numbers, batch.dtype), 1)

    backend = Typed(then=typed)
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "protocols": ALL},
            providers={"typed": Provider(backend=backend)},
            models={"org/m": Model(dimensions=2, endpoints=[{"provider": "typed"}])},
        )
    )
    app = embeddings_app(gateway)
    found = []
    for kind in ("float", "int8", "float", "int8"):
        answer = await ask(app, "/v2/embed", {**COHERE, "embedding_types": [kind]})
        found.append(answer.json["embeddings"])

    assert [{"float": [[3.0, 4.0]]}, {"int8": [[1, 2]]}] * 2 == found
    assert ["float", "int8"] == [batch.dtype for batch in backend.batches]


async def test_voyages_base64_holds_the_numbers_of_its_type():
    body = {**EMBED, "input": "a", "output_dtype": "int8", "encoding_format": "base64"}
    backend = Typed(then=Vectors(from_lists([[1, -1]], "int8"), 1))
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "protocols": ALL},
            providers={"typed": Provider(backend=backend)},
            models={"org/m": Model(dimensions=2, endpoints=[{"provider": "typed"}])},
        )
    )
    answer = await ask(embeddings_app(gateway), "/v1/embeddings", body)

    assert answer.json["data"][0]["embedding"] == "Af8="


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_engine_answers_in_the_dialect_of_the_mount(dialect):
    answer = await ask(make_app(dialect=dialect), "/v1/engines/none/embeddings", {"input": "a"})
    direct = await ask(make_app(dialect=dialect), "/v1/embeddings", {"input": "a", "model": "none"})

    def without_id(found):
        return {name: value for name, value in found.items() if name != "generation_id"}

    assert without_id(answer.json) == without_id(direct.json)


async def test_a_vector_of_length_one_is_written_unchanged():
    row = unit(np.array([[1.0, 2.0, 3.0]]))
    backend = Typed(then=Vectors(row, 1))
    gateway = Gateway(
        Config(
            gateway={"auth": "open", "protocols": ALL},
            providers={"typed": Provider(backend=backend)},
            models={"org/m": Model(dimensions=3, endpoints=[{"provider": "typed"}])},
        )
    )
    answer = await ask(embeddings_app(gateway), "/embed", {"inputs": "a"})

    assert answer.json == json.loads(json.dumps([[float(str(number)) for number in row[0]]]))
