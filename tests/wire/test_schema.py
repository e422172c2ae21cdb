"""The OpenAPI document says what decode and encode do."""

import json

import pytest
from jsonschema import Draft202012Validator

from embedroute.errors import InvalidRequest
from embedroute.inputs import Kind
from embedroute.journal import Journal
from embedroute.vectors import from_lists
from embedroute.wire.decode import Job, decode_request
from embedroute.wire.dialects import DIALECTS
from embedroute.wire.narrow import Limits
from embedroute.wire.responses import Embeddings
from embedroute.wire.schema import components, inlined, models_operation, openapi, operation
from embedroute.wire.strict import places

DOCUMENT = json.loads(openapi())


def validator(name):
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def test_every_schema_is_one():
    for schema in components().values():
        Draft202012Validator.check_schema(schema)


def test_every_reference_resolves():
    told = [value for path, value in places(DOCUMENT) if path.endswith("$ref")]

    assert told
    assert {ref.removeprefix("#/components/schemas/") for ref in told} <= set(DOCUMENT["components"]["schemas"])


def test_names_are_those_of_openais_document():
    wanted = {"CreateEmbeddingRequest", "CreateEmbeddingResponse", "Embedding", "Usage", "Error"}

    assert wanted <= set(components())
    assert not [name for name in components() if name.startswith("_")]


def test_operations_have_names_of_their_own():
    told = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]

    assert sorted(set(told)) == sorted(told)


@pytest.mark.parametrize("operation", [operation(), models_operation()])
def test_a_host_can_take_the_operation_without_our_components(operation):
    assert "$ref" not in json.dumps(inlined(operation))


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"m","input":"a"}',
        '{"model":"m","inputs":["a","b"],"encoding_format":"base64","dimensions":0,"user":null,"input_type":"query"}',
        '{"model":"m","input":[1,2.0]}',
        '{"model":"m","input":[[1,2],[3]],"provider":"mock"}',
        '{"model":"m","input":[{"content":[{"type":"text","text":"a"}]}],"debug":{"trace":false,"trace_level":"full"}}',
        '{"model":"m","input":"a","embedding_options":{"mistral":{"output_dtype":"int8"},"google":{"title":"t"}}}',
        (
            '{"model":"m","input":"a","provider":{"only":["a"],"sort":{"by":"price"},"max_price":{"prompt":"0.1"},'
            '"preferred_max_latency":{"p50":1},"preferred_min_throughput":5,"quantizations":["fp8"],"zdr":true}}'
        ),
    ],
)
def test_a_good_request_fits_the_schema(text):
    decode_request(text.encode(), Limits())

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
        '{"model":"m","input":[{"content":[{"type":"audio"}]}]}',
    ],
)
def test_a_bad_request_fits_neither(text):
    with pytest.raises(InvalidRequest):
        decode_request(text.encode(), Limits())

    assert not validator("CreateEmbeddingRequest").is_valid(json.loads(text))


@pytest.mark.parametrize("base64", [True, False])
def test_an_answer_fits_the_schema(base64):
    answer = Embeddings(rows=list(from_lists([[1.0, 2.0]])), model="m", prompt_tokens=1, journal=Journal("req_1"))
    job = Job(model="m", inputs=["a"], kind=Kind.TEXT, base64=base64)

    validator("CreateEmbeddingResponse").validate(json.loads(b"".join(DIALECTS["openai"].success(answer, job))))


def test_an_error_fits_the_schema():
    told = DIALECTS["openai"].error(InvalidRequest("x"), Journal("req_1"))

    validator("ErrorResponse").validate(json.loads(told))
