"""Tests of decoding: each field of a request, valid and invalid."""

import json
import math
from collections import OrderedDict, UserString, deque
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedroute.backend import list_fields
from embedroute.backends.cohere import CohereOptions
from embedroute.backends.gemini import GoogleOptions
from embedroute.backends.mistral import MistralOptions
from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, ImageURL, Kind, TextPart
from embedroute.plugins import Namespaces
from embedroute.protocol import (
    Content,
    Debug,
    EmbeddingRequest,
    Limits,
    MaxPrice,
    Percentiles,
    Preferences,
    RequestOptions,
    Sort,
    decode_request,
    make_request,
)
from tests.support.slow import examples

LIMITS = Limits(max_inputs=4, media_domains=frozenset({"img.example"}), namespaces=Namespaces())
PNG = "data:image/png;base64,iVBORw0KGgo="


def decode(text, limits=LIMITS):
    return decode_request(text.encode(errors="surrogatepass"), limits)


def options(**by_api):
    return RequestOptions(by_api=by_api)


def body(rest):
    return '{"model":"m",' + rest + "}"


def refusal(text, limits=LIMITS):
    with pytest.raises(InvalidRequest) as caught:
        decode(text, limits)
    return caught.value.param, caught.value.message


@pytest.mark.parametrize(
    ("value", "inputs", "kind"),
    [
        ('"a"', ["a"], Kind.TEXT),
        ('" "', [" "], Kind.TEXT),
        ('["a","b","a"]', ["a", "b", "a"], Kind.TEXT),
        (r'"\ud83d\ude00"', ["\U0001f600"], Kind.TEXT),
        (r'"a\u0000b"', ["a\0b"], Kind.TEXT),
        ("[1,2]", [(1, 2)], Kind.TOKENS),
        ("[0,2147483647]", [(0, 2**31 - 1)], Kind.TOKENS),
        ("[5.0,1e3,-0.0]", [(5, 1000, 0)], Kind.TOKENS),
        ("[1,2.0]", [(1, 2)], Kind.TOKENS),
        ("[1,2,3,4,5]", [(1, 2, 3, 4, 5)], Kind.TOKENS),  # one input of any length
        ("[[1,2],[3.0]]", [(1, 2), (3,)], Kind.TOKENS),
        ('[{"content":[{"type":"text","text":"a"}]}]', [(TextPart("a"),)], Kind.PARTS),
        ('[{"content":[{"text":"a","type":"text"}]}]', [(TextPart("a"),)], Kind.PARTS),
        (
            '[{"content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"%s"}}]}]'  # noqa: UP031
            % PNG,
            [(TextPart("a"), ImagePart(ImageURL(PNG)))],
            Kind.PARTS,
        ),
    ],
)
@pytest.mark.parametrize("name", ["input", "inputs"])
def test_decodes_four_forms_of_input_under_two_names(name, value, inputs, kind):
    job = decode(body(f'"{name}":{value}'))

    assert (inputs, kind) == (list(job.inputs), job.kind)
    assert all(type(one) is int for item in job.inputs for one in item if kind is Kind.TOKENS)


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        ('""', "input", "'input' must not be empty."),
        ('[""]', "input", "'input' must not be empty."),
        ('["a","","b"]', "input[1]", "'input[1]' must not be empty."),
        ("[]", "input", "'input' must not be an empty array."),
        ("[[]]", "input[0]", "'input[0]' must not be empty."),
        ("[[1],[]]", "input[1]", "'input[1]' must not be empty."),
        ("5", "input", "'input' must be a string or an array, not an integer."),
        ("1.5", "input", "'input' must be a string or an array, not a number."),
        ("true", "input", "'input' must be a string or an array, not true or false."),
        ("{}", "input", "'input' must be a string or an array, not an object."),
        ("[-1]", "input", "'input' must hold token ids from 0 to 2147483647."),
        ("[2147483648]", "input", "'input' must hold token ids from 0 to 2147483647."),
        ("[1e10]", "input", "'input' must hold token ids from 0 to 2147483647."),
        ("[1e308]", "input", "'input' must hold token ids from 0 to 2147483647."),
        (
            "[[0],[18446744073709551616]]",
            "input[1]",
            "'input[1]' must hold token ids from 0 to 2147483647.",
        ),
        ("[1.5]", "input", "'input' must hold whole numbers."),
        ("[5e-324]", "input", "'input' must hold whole numbers."),
        ("[[1],[0.5]]", "input[1]", "'input[1]' must hold whole numbers."),
        ("[1e999]", "input[0]", "'input[0]' is out of range."),
        ("[" + "9" * 5000 + "]", "input[0]", "'input[0]' is out of range."),
        (
            "[1,true]",
            "input[1]",
            "'input[1]' must be a number, a string, an object or an array, not true or false.",
        ),
        ("[[1,true]]", "input[0][1]", "'input[0][1]' must be a number, not true or false."),
        ('[["a"]]', "input[0][0]", "'input[0][0]' must be a number, not a string."),
        ("[[[1]]]", "input[0][0]", "'input[0][0]' must be a number, not an array."),
        (
            '["a",null]',
            "input[1]",
            "'input[1]' must be a number, a string, an object or an array, not null.",
        ),
        (
            '["a","b","c","d","e"]',
            "input",
            "'input' holds 5 inputs. Send at most 4 in one request.",
        ),
        (
            "[[1],[1],[1],[1],[1]]",
            "input",
            "'input' holds 5 inputs. Send at most 4 in one request.",
        ),
        ('[{"content":[]}]', "input[0].content", "'input[0].content' must not be empty."),
        (
            '[{"content":null}]',
            "input[0].content",
            "'input[0].content' must be an array, not null.",
        ),
        (
            '[{"content":"x"}]',
            "input[0].content",
            "'input[0].content' must be an array, not a string.",
        ),
        ("[{}]", "input[0].content", "'input[0].content' is required."),
        (
            '[{"content":[{"type":"text"}]}]',
            "input[0].content[0].text",
            "'input[0].content[0].text' is required.",
        ),
        (
            '[{"content":[{"text":"a"}]}]',
            "input[0].content[0].type",
            "'input[0].content[0].type' is required.",
        ),
        (
            '[{"content":[{"type":"text","text":""}]}]',
            "input[0].content[0].text",
            "'input[0].content[0].text' must not be empty.",
        ),
        (
            '[{"content":[{"type":"audio"}]}]',
            "input[0].content[0].type",
            "'input[0].content[0].type' must be one of text, image_url.",
        ),
        (
            '[{"content":[{"type":"image_url"}]}]',
            "input[0].content[0].image_url",
            "'input[0].content[0].image_url' is required.",
        ),
        (
            '[{"content":[' + ",".join(['{"type":"text","text":"a"}'] * 33) + "]}]",
            "input[0].content",
            "'input[0].content' must be at most 32 items long.",
        ),
    ],
)
@pytest.mark.parametrize("name", ["input", "inputs"])
def test_names_the_field_of_an_invalid_input(name, value, param, message):
    said = (param.replace("input", name, 1), message.replace("input", name, 1))

    assert refusal(body(f'"{name}":{value}')) == said


@pytest.mark.parametrize(
    "value",
    [
        '["a",1]',
        '["a",1.0]',
        '[1,"a"]',
        "[[1],2]",
        "[[1],2.0]",
        "[1.0,[1]]",
        '["a",[1]]',
        '["a",{"content":[]}]',
    ],
)
def test_refuses_inputs_of_two_kinds(value):
    """A number among texts is neither converted to text nor dropped."""
    param, _ = refusal(body(f'"input":{value}'))

    assert param.startswith("input")


@pytest.mark.parametrize(
    ("fields", "inputs"),
    [
        ('"input":"a","inputs":"a"', ["a"]),
        ('"input":[1,2],"inputs":[1.0,2]', [(1, 2)]),
        ('"input":"a","inputs":null', ["a"]),
        ('"input":null,"inputs":"a"', ["a"]),
    ],
)
def test_accepts_both_names_with_equal_values(fields, inputs):
    assert inputs == list(decode(body(fields)).inputs)


@pytest.mark.parametrize(
    "fields",
    ['"input":"a","inputs":"b"', '"input":"a","inputs":["a"]', '"input":[1],"inputs":[[1]]'],
)
def test_refuses_both_names_with_different_values(fields):
    assert refusal(body(fields)) == (
        "inputs",
        "'inputs' is another name for 'input' and must not differ from it. Send one of them.",
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('"encoding_format":"float"', {"base64": False}),
        ('"encoding_format":"base64"', {"base64": True}),
        ('"dimensions":0', {"dimensions": None}),
        ('"dimensions":1', {"dimensions": 1}),
        ('"dimensions":2147483647', {"dimensions": 2**31 - 1}),
        ('"dimensions":1536.0', {"dimensions": 1536}),
        ('"dimensions":1.536e3', {"dimensions": 1536}),
        ('"dimensions":0.0', {"dimensions": None}),
        ('"input_type":"search_query"', {"input_type": "query"}),
        ('"input_type":"RETRIEVAL_DOCUMENT"', {"input_type": "document"}),
        ('"user":"u"', {"user": "u"}),
        ('"user":""', {"user": ""}),
        ('"user":"' + "é" * 512 + '"', {"user": "é" * 512}),
        ('"provider":"mock"', {"provider": "mock"}),
        ('"provider":""', {"provider": ""}),
        ('"provider":{}', {"preferences": Preferences()}),
        ('"embedding_options":{}', {"options": RequestOptions()}),
        (
            '"embedding_options":{"google":{"output_dimensionality":8,"task_type":"CLUSTERING","title":"t"}}',
            {
                "options": options(
                    google=GoogleOptions(output_dimensionality=8, task_type="CLUSTERING", title="t")
                )
            },
        ),
        (
            '"embedding_options":{"mistral":{"output_dimension":8,"output_dtype":"ubinary"}}',
            {
                "options": options(
                    mistral=MistralOptions(output_dimension=8, output_dtype="ubinary")
                )
            },
        ),
        (
            '"dimensions":8,"embedding_options":{"google":{"output_dimensionality":8}}',
            {"dimensions": 8, "options": options(google=GoogleOptions(output_dimensionality=8))},
        ),
        (
            '"input_type":"query","embedding_options":{"google":{"task_type":"TASK_TYPE_UNSPECIFIED"}}',
            {
                "input_type": "query",
                "options": options(google=GoogleOptions(task_type="TASK_TYPE_UNSPECIFIED")),
            },
        ),
        (
            '"embedding_options":{"cohere":{"max_tokens":9,"truncate":"END"},"jina":null}',
            {"options": options(cohere=CohereOptions(max_tokens=9, truncate="END"))},
        ),
        ('"output_dtype":"int8"', {"dtype": "int8"}),
        ('"truncate":"start"', {"options": RequestOptions(truncate="start")}),
        ('"truncate":"END"', {"options": RequestOptions(truncate="end")}),
        ('"debug":{}', {"debug": Debug()}),
        ('"debug":{"enabled":false,"trace":true}', {"debug": Debug(enabled=False, trace=True)}),
        ('"debug":{"trace_level":"full"}', {"debug": Debug(trace_level="full")}),
        (
            (
                '"provider":{"order":["a"],"only":["b"],"ignore":[],"allow_fallbacks":false,"require_parameters":true,'
                '"data_collection":"deny","zdr":true,"enforce_distillable_text":true,"quantizations":["int8","unknown"],'
                '"sort":{"by":"price","partition":"none"},"max_price":{"prompt":"0.1","image":2},'
                '"preferred_max_latency":{"p50":1,"p99":2.5},"preferred_min_throughput":10,"include_alpha":true}'
            ),
            {
                "preferences": Preferences(
                    order=["a"],
                    only=["b"],
                    ignore=[],
                    allow_fallbacks=False,
                    require_parameters=True,
                    data_collection="deny",
                    zdr=True,
                    enforce_distillable_text=True,
                    quantizations=["int8", "unknown"],
                    sort=Sort("price", "none"),
                    max_price=MaxPrice(prompt="0.1", image=2),
                    preferred_max_latency=Percentiles(p50=1, p99=2.5),
                    preferred_min_throughput=10,
                    include_alpha=True,
                )
            },
        ),
    ],
)
def test_decodes_every_other_field(fields, expected):
    plain = {"model": "m", "inputs": ["a"], "kind": Kind.TEXT}

    assert EmbeddingRequest(**plain, **expected) == decode(body(f'"input":"a",{fields}'))


OPTIONAL = [
    "inputs",
    "encoding_format",
    "dimensions",
    "input_type",
    "user",
    "provider",
    "output_dtype",
    "truncate",
    "embedding_options",
    "debug",
]
NESTED = {
    "provider": list(Preferences.__struct_fields__),
    "provider.sort": ["by", "partition"],
    "provider.max_price": list(MaxPrice.__struct_fields__),
    "provider.preferred_max_latency": list(Percentiles.__struct_fields__),
    "provider.preferred_min_throughput": list(Percentiles.__struct_fields__),
    "embedding_options": list(Namespaces()),
    **{
        f"embedding_options.{name}": [field.name for field in list_fields(struct)]
        for name, struct in Namespaces().items()
    },
    "debug": list(Debug.__struct_fields__),
}


def nulls(path, names):
    fields = dict.fromkeys(names)
    for name in reversed(path.split(".") if path else []):
        fields = {name: fields}
    return json.dumps({"model": "m", "input": "a", **fields})


@pytest.mark.parametrize(("path", "names"), [("", OPTIONAL), *NESTED.items()])
def test_null_counts_as_absent_at_every_level(path, names):
    job = decode(nulls(path, names))

    assert (job.dimensions, job.user, job.provider, job.base64) == (None, None, None, False)
    assert not job.debug.any_flag_set()


@pytest.mark.parametrize(
    ("text", "param", "message"),
    [
        ('{"input":"a"}', "model", "'model' is required."),
        ('{"model":null,"input":"a"}', "model", "'model' must be a string, not null."),
        ('{"model":"","input":"a"}', "model", "'model' must not be empty."),
        ('{"model":["m"],"input":"a"}', "model", "'model' must be a string, not an array."),
        (
            '{"model":"m"}',
            "input",
            "'input' is required: a string, or an array of strings, token ids or content objects.",
        ),
        (
            '{"model":"m","input":null}',
            "input",
            "'input' is required: a string, or an array of strings, token ids or content objects.",
        ),
        (
            body('"input":"a","encoding_format":"FLOAT"'),
            "encoding_format",
            "'encoding_format' must be one of float, base64.",
        ),
        (
            body('"input":"a","encoding_format":1'),
            "encoding_format",
            "'encoding_format' must be a string, not an integer.",
        ),
        (body('"input":"a","dimensions":-1'), "dimensions", "'dimensions' must be at least 0."),
        (
            body('"input":"a","dimensions":2147483648'),
            "dimensions",
            "'dimensions' must be at most 2147483647.",
        ),
        (
            body('"input":"a","dimensions":' + "9" * 40),
            "dimensions",
            "'dimensions' must be at most 2147483647.",
        ),
        (
            body('"input":"a","dimensions":' + "9" * 5000),
            "dimensions",
            "'dimensions' is out of range.",
        ),
        (
            body('"input":"a","dimensions":256.5'),
            "dimensions",
            "'dimensions' must be a whole number.",
        ),
        (
            body('"input":"a","dimensions":1e300'),
            "dimensions",
            "'dimensions' must be at most 2147483647.",
        ),
        (
            body('"input":"a","embedding_options":{"google":{"output_dimensionality":0.5}}'),
            "embedding_options.google.output_dimensionality",
            "'embedding_options.google.output_dimensionality' must be at least 1.",
        ),
        (
            body('"input":"a","dimensions":true'),
            "dimensions",
            "'dimensions' must be a number, not true or false.",
        ),
        (
            body('"input":"a","dimensions":"8"'),
            "dimensions",
            "'dimensions' must be a number, not a string.",
        ),
        (
            body('"input":"a","user":"' + "u" * 513 + '"'),
            "user",
            "'user' must be at most 512 characters long.",
        ),
        (body('"input":"a","user":{}'), "user", "'user' must be a string, not an object."),
        (
            body('"input":"a","provider":5'),
            "provider",
            "'provider' must be a string or an object, not an integer.",
        ),
        (
            body('"input":"a","provider":true'),
            "provider",
            "'provider' must be a string or an object, not true or false.",
        ),
        (
            body('"input":"a","provider":[]'),
            "provider",
            "'provider' must be a string or an object, not an array.",
        ),
        (
            body('"input":"a","embedding_options":[]'),
            "embedding_options",
            "'embedding_options' must be an object, not an array.",
        ),
        (
            body('"input":"a","embedding_options":{"mistral":{"output_dimension":0}}'),
            "embedding_options.mistral.output_dimension",
            "'embedding_options.mistral.output_dimension' must be at least 1.",
        ),
        (
            body('"input":"a","debug":true'),
            "debug",
            "'debug' must be an object, not true or false.",
        ),
        (
            body('"input":"a","debug":{"trace":1}'),
            "debug.trace",
            "'debug.trace' must be true or false, not an integer.",
        ),
        (
            body('"input":"a","debug":{"trace_level":"all"}'),
            "debug.trace_level",
            "'debug.trace_level' must be one of summary, full.",
        ),
    ],
)
def test_names_an_invalid_value_and_what_it_must_be(text, param, message):
    assert refusal(text) == (param, message)


IGNORED = Limits(ignored_fields=frozenset({"x", "trace id"}))


def test_skips_listed_unknown_fields():
    job = decode(body('"input":"a","trace id":8,"x":{"y":[1]}'), IGNORED)

    assert (list(job.inputs), job.dimensions) == (["a"], None)


@pytest.mark.parametrize("padding", ["", ',"x":"' + "é" * 20_000 + '"'])
def test_names_unknown_fields_that_are_not_listed(padding):
    with pytest.raises(InvalidRequest) as caught:
        decode(
            body(f'"input":"a","x":1,"dimension":8,"odd":[{{}}]{padding}'.replace('"x":1,', "")),
            IGNORED,
        )

    assert "dimension" == caught.value.param
    assert (
        "Unknown fields: 'dimension' (did you mean \"dimensions\"?), 'odd'" in caught.value.message
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "model": ""}, "model"),
        ({"input": ["a", ""], "model": "m"}, "input[1]"),
        ({"input": "a", "model": "m", "dimension": 8}, "dimension"),
        ({"input": "a", "model": "m", "x": object()}, "x"),
        ({"input": object(), "model": "m"}, "input"),
        ({"input": b"a", "model": "m"}, "input"),
        ({"input": "\ud800", "model": "m"}, "input"),
        ({"input": "a", "model": "m", "dimensions": 2**70}, "dimensions"),
        ({"input": "a", "model": "m", 5: 5}, None),
    ],
)
def test_in_process_requests_follow_the_same_rules(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        make_request(fields, LIMITS)

    assert param == caught.value.param


class Words(str):
    """A subclass of ``str`` with an attribute and its own ``__str__``."""

    __slots__ = ()

    def __str__(self):
        return "shown"


class Word(Words, Enum):
    """An enum of strings with its own ``__str__``."""

    A = "a"
    QUERY = "query"
    MODEL = "m"

    def __str__(self):
        return self.name


class Named(Enum):
    A = "a"


class Size(IntEnum):
    EIGHT = 8


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        (("a", "b"), ["a", "b"]),
        (["a", "b"], ["a", "b"]),
        (deque(["a", "b"]), ["a", "b"]),
        (UserString("a"), ["a"]),
        (range(1, 3), [(1, 2)]),
        (np.str_("a"), ["a"]),
        (Named.A, ["a"]),
        ([Named.A, "b"], ["a", "b"]),
        ([np.str_("a"), "b"], ["a", "b"]),
        (Words("a"), ["a"]),
        ([Words("a"), Word.A, "b"], ["a", "a", "b"]),
        (Word.A, ["a"]),
        ([np.int64(1), 2, np.int32(3)], [(1, 2, 3)]),
        ([np.float32(5), np.float64(6), 7.0], [(5, 6, 7)]),
        ([Size.EIGHT, 1], [(8, 1)]),
        (((1, 2), (np.int64(3),)), [(1, 2), (3,)]),
        ([(1, 2), [3]], [(1, 2), (3,)]),
        (
            [OrderedDict(content=({"type": Words("text"), "text": np.str_("a")},))],
            [(TextPart("a"),)],
        ),
        ([Content(content=[TextPart("a")])], [(TextPart("a"),)]),
    ],
)
def test_accepts_inputs_of_a_hosts_own_types(value, inputs):
    """The result is the same as that of the equal JSON body."""
    job = make_request({"input": value, "model": "m"}, LIMITS)

    assert inputs == list(job.inputs)
    assert {str, tuple} >= {type(item) for item in job.inputs}
    assert {str, int, TextPart} >= {type(part) for item in job.inputs for part in item}


@pytest.mark.parametrize(
    ("fields", "attribute", "value"),
    [
        ({"dimensions": np.int64(8)}, "dimensions", 8),
        ({"dimensions": Size.EIGHT}, "dimensions", 8),
        ({"model": Word.MODEL}, "model", "m"),
        ({"model": np.str_("m")}, "model", "m"),
        ({"input_type": Word.QUERY}, "input_type", "query"),
        ({"provider": Words("a")}, "provider", "a"),
        ({"provider": {Words("only"): (Words("a"),)}}, "preferences", Preferences(only=["a"])),
        ({"provider": Preferences(only=["a"])}, "preferences", Preferences(only=["a"])),
        (
            {"provider": {"max_price": {"prompt": Decimal("0.5")}}},
            "preferences",
            Preferences(max_price=MaxPrice(prompt=0.5)),
        ),
        ({"debug": {"trace": True}}, "debug", Debug(trace=True)),
    ],
)
def test_accepts_fields_of_a_hosts_own_types(fields, attribute, value):
    found = getattr(make_request({"input": "a", "model": "m", **fields}, LIMITS), attribute)

    assert (value, type(value)) == (found, type(found))


UNORDERED = "A set has no order; pass a list."
ROUND: list[object] = []
ROUND.append(ROUND)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": {"a"}}, "input", UNORDERED),
        ({"input": frozenset({"a"})}, "input", UNORDERED),
        ({"input": {"a": 1}.keys()}, "input", UNORDERED),
        ({"input": [{1, 2}]}, "input[0]", UNORDERED),
        ({"provider": {"order": {"a", "b"}}}, "provider.order", UNORDERED),
        ({"input": {"a": 1}}, "input", "must be a string or an array, not an object."),
        ({"input": [UserString("")]}, "input", "must not be empty."),
        ({"input": Fraction(1, 3)}, "input", "not fractions.Fraction."),
        ({"input": (text for text in ["a"])}, "input", "not generator. Pass a list."),
        ({"input": map(str, [1])}, "input", "not map. Pass a list."),
        ({"input": {"a": 1}.values()}, "input", "not dict_values. Pass a list."),
        ({"input": b"a"}, "input", "not bytes."),
        ({"input": bytearray(b"a")}, "input", "not bytearray."),
        ({"input": memoryview(b"a")}, "input", "not memoryview."),
        ({"input": [b"a"]}, "input[0]", "not bytes."),
        ({"input": np.array("a")}, "input", "not numpy.ndarray."),
        ({"input": np.array([b"a"])}, "input[0]", "not bytes."),
        ({"input": [object()]}, "input[0]", "not object."),
        ({"input": [True]}, "input[0]", "not true or false."),
        ({"input": [np.True_]}, "input[0]", "not numpy.bool"),
        ({"input": [1, np.int64(-1)]}, "input", "token ids"),
        ({"input": ["a", np.str_("")]}, "input[1]", "must not be empty."),
        ({"inputs": [[1], [None]]}, "inputs[1][0]", "not null."),
        ({"input": ["a", "\udc00"]}, "input[1]", "half of a surrogate pair"),
        ({"user": "\udc00"}, "user", "half of a surrogate pair"),
        ({"model": "\udc00"}, "model", "half of a surrogate pair"),
        (
            {"input": [Content(content=[TextPart("\udc00")])]},
            "input[0].content[0].text",
            "half of a surrogate pair",
        ),
        ({"input": ROUND}, None, "nested deeper"),
        ({"dimensions": np.float64(8.5)}, "dimensions", "must be a"),
        ({"dimensions": "8"}, "dimensions", "must be a"),
        ({"dimensions": np.True_}, "dimensions", "not numpy.bool"),
        ({"provider": {1: 2}}, "provider", "must be a string"),
        ({"provider": {("a",): 2}}, "provider", "must be a string"),
        ({"debug": object()}, "debug", "not object."),
    ],
)
def test_refuses_types_without_a_json_equivalent(fields, param, message):
    """Sets have no order, so vectors could not be assigned to texts."""
    with pytest.raises(InvalidRequest) as caught:
        make_request(
            {
                **({} if {"input", "inputs"} & set(fields) else {"input": "a"}),
                "model": "m",
                **fields,
            },
            LIMITS,
        )

    assert param == caught.value.param
    assert message in caught.value.message


def repeated(levels):
    """Return a list of ten references to a list of ten references, and so on."""
    items: list[object] = ["a"]
    for _ in range(levels):
        items = [items] * 10
    return items


@pytest.mark.parametrize("value", [range(10**7), repeated(6)], ids=["range", "repeated"])
def test_refuses_a_small_object_with_too_many_values_before_walking_it(value):
    with pytest.raises(InvalidRequest, match="too many values") as caught:
        make_request({"input": value, "model": "m"}, LIMITS)

    assert caught.value.param is not None
    assert caught.value.param.startswith("input")


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {
        "model",
        "input",
        *OPTIONAL,
        *(name for names in NESTED.values() for name in names),
        "type",
        "text",
        "content",
    }
)
NEAR_JSON = st.recursive(
    ANY_JSON,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=examples(300, quick=60), deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), NEAR_JSON), st.booleans(), st.booleans())
def test_decodes_or_refuses_any_json_document(document, lenient, ascii_only):
    """The only exception is ``InvalidRequest``, and it can be encoded as JSON."""
    text = json.dumps({"model": "m", "input": "a", **document}, ensure_ascii=ascii_only)
    try:
        decode(text, Limits(ignored_fields=frozenset({"x", "y"} if lenient else ())))
    except InvalidRequest as refused:
        (refused.message + (refused.param or "")).encode()


@settings(max_examples=examples(300, quick=60), deadline=None)
@given(
    st.binary()
    | st.text().map(str.encode)
    | st.binary().map(lambda raw: b'{"model":"m","input":"a","x":"' + raw + b'"}')
)
def test_decodes_or_refuses_any_bytes(content):
    for lenient in (False, True):
        try:
            decode_request(content, Limits(ignored_fields=frozenset({"x", "y"} if lenient else ())))
        except InvalidRequest as refused:
            (refused.message + (refused.param or "")).encode()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1)


@settings(max_examples=examples(200, quick=50), deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=4) | st.lists(IDS, min_size=1, max_size=4),
    st.booleans(),
    st.none() | st.integers(0, 4096),
    st.booleans(),
)
def test_decodes_a_valid_request_unchanged(inputs, base64, dimensions, ascii_only):
    fields = {
        "model": "m",
        "input": inputs,
        "encoding_format": "base64" if base64 else "float",
        "dimensions": dimensions,
    }

    job = decode(json.dumps(fields, ensure_ascii=ascii_only))

    assert inputs == [item if isinstance(item, str) else list(item) for item in job.inputs]
    assert (base64, dimensions or None) == (job.base64, job.dimensions)


@given(st.lists(st.floats(0, 2**31 - 1).map(math.floor).map(float), min_size=1))
def test_accepts_integral_floats_as_token_ids(ids):
    assert tuple(map(int, ids)) == decode(json.dumps({"model": "m", "input": ids})).inputs[0]
