"""Tests of the error messages for invalid bodies."""

import pytest

from embedroute.errors import InvalidRequest
from embedroute.plugins import Namespaces
from embedroute.protocol import Limits, decode_request

LIMITS = Limits(namespaces=Namespaces())


def refusal(content):
    with pytest.raises(InvalidRequest) as caught:
        decode_request(content if isinstance(content, bytes) else content.encode(), LIMITS)
    return caught.value.param, caught.value.message


def with_fields(more):
    return '{"model":"m","input":"a",' + more + "}"


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ('"dimension":8', "dimension", "'dimension' (did you mean \"dimensions\"?)"),
        ('"inptu":8', "inptu", "'inptu' (did you mean \"input\"?)"),
        ('"stream":true', "stream", "'stream'"),
        ('"":1', "", "''"),
        ('"__proto__":{}', "__proto__", "'__proto__'"),
        ('"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1', "a", "'a', 'b', 'c', 'd', 'e' and 2 more"),
        ('"' + "k" * 300 + '":1', "k" * 128, f"'{'k' * 128}'"),
        ('"é\\n":1', "é\n", r"'\xe9\n'"),
        ('"provider":{"onyl":["a"]}', "provider.onyl", "'provider.onyl' (did you mean \"only\"?)"),
        (
            '"provider":{"onyl":["a"],"odrer":[],"x":1}',
            "provider.onyl",
            "'provider.onyl' (did you mean \"only\"?), 'provider.odrer' (did you mean \"order\"?), 'provider.x'",
        ),
        (
            '"provider":{"max_price":{"promt":1}}',
            "provider.max_price.promt",
            "'provider.max_price.promt' (did you mean \"prompt\"?)",
        ),
        (
            '"provider":{"sort":{"by":"price","dir":"desc"}}',
            "provider.sort.dir",
            "'provider.sort.dir'",
        ),
        (
            '"provider":{"preferred_max_latency":{"p42":1}}',
            "provider.preferred_max_latency.p42",
            None,
        ),
        (
            '"provider":{"preferred_min_throughput":{"avg":5}}',
            "provider.preferred_min_throughput.avg",
            None,
        ),
        ('"debug":{"dump_env":true}', "debug.dump_env", "'debug.dump_env'"),
        (
            '"embedding_options":{"openai":5}',
            "embedding_options.openai",
            "'embedding_options.openai'",
        ),
        (
            '"embedding_options":{"google":{"x":1}}',
            "embedding_options.google.x",
            "'embedding_options.google.x'",
        ),
        ('"inputs":[{"x":1,"content":[]}]', "inputs[0].x", "'inputs[0].x'"),
        (
            '"inputs":[{"content":[{"type":"text","text":"a","x":1}]}]',
            "inputs[0].content[0].x",
            "'inputs[0].content[0].x'",
        ),
        (
            '"inputs":[{"content":[{"type":"text","text":"a","image_url":{}}]}]',
            "inputs[0].content[0].image_url",
            "'inputs[0].content[0].image_url'",
        ),
        (
            '"inputs":[{"content":[{"type":"image_url","image_url":{"url":"u","detail":"low"}}]}]',
            "inputs[0].content[0].image_url.detail",
            "'inputs[0].content[0].image_url.detail'",
        ),
        ('"x` - at `$.provider":1', "x` - at `$.provider", "'x` - at `$.provider'"),
        ('"x` - at `$.provider":1,"provider":{"y":1}', "provider.y", "'provider.y'"),
        ('"x` - at `$.provider":1,"provider":{}', "x` - at `$.provider", "'x` - at `$.provider'"),
        (
            '"x` - at `$.provider[0].y":1,"provider":"p"',
            "x` - at `$.provider[0].y",
            "'x` - at `$.provider[0].y'",
        ),
        (
            '"provider":{"x` - at `$.debug":1}',
            "provider.x` - at `$.debug",
            "'provider.x` - at `$.debug'",
        ),
    ],
)
def test_names_unknown_fields_with_suggestions(more, param, said):
    """A key may contain text that looks like the end of msgspec's message."""
    named, message = refusal(with_fields(more))

    assert param == named
    several = "', '" in message or "), '" in message
    assert message.startswith(f"Unknown field{'s' if several else ''}: {said or ''}")
    assert message.endswith(f" Remove or rename {'them' if several else 'it'}.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "The body is empty. Send a JSON object."),
        (b" \n", "The body is empty. Send a JSON object."),
        (b"null", "The body must be a JSON object."),
        (b"[]", "The body must be a JSON object."),
        (b"5", "The body must be a JSON object."),
        (b'"x"', "The body must be a JSON object."),
        (
            b"{not json",
            "The body is not valid JSON: JSON is malformed: object keys must be strings (byte 1).",
        ),
        (
            b'\xef\xbb\xbf{"model":"m"}',
            "The body is not valid JSON: JSON is malformed: invalid character (byte 0).",
        ),
        (b'{"model":"\xe9","input":"a"}', "The body is not valid JSON: it is not UTF-8."),
        (b'{"model":"m","input":"\xed\xa0\x80"}', "The body is not valid JSON: it is not UTF-8."),
        (b'{"model":"m","input":"\xe2\x82"}', "The body is not valid JSON: it is not UTF-8."),
        (
            b'{"model":"m","input":NaN}',
            "The body is not valid JSON: JSON is malformed: invalid character (byte 21).",
        ),
        (
            b'{"model":"m","input":[Infinity]}',
            "The body is not valid JSON: JSON is malformed: invalid character (byte 22).",
        ),
        (
            b'{"model":"m","input":[-Infinity]}',
            "The body is not valid JSON: JSON is malformed: invalid character (byte 23).",
        ),
        (
            b'{"model":"m","input":"a"} {}',
            "The body is not valid JSON: JSON is malformed: trailing characters (byte 27).",
        ),
        (
            rb'{"model":"m","input":"\u12"}',
            "The body is not valid JSON: JSON is malformed: invalid character in unicode escape (byte 27).",
        ),
        (
            b'{"x":1,"y":',
            "The body is not valid JSON: Expecting value: line 1 column 12 (char 11).",
        ),
        (
            b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            "The body is nested deeper than 32 levels.",
        ),
        (
            b'{"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
            "The body is nested deeper than 32 levels.",
        ),
    ],
)
def test_refuses_a_body_that_is_not_a_json_object(content, message):
    assert refusal(content) == (None, message)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (r'{"model":"\ud800","input":"a"}', "model"),
        (r'{"model":"m","input":"a\udc00"}', "input"),
        (r'{"model":"m","input":["a","\ud800b"]}', "input[1]"),
        (r'{"model":"m","input":"a","user":"\ud800\ud800"}', "user"),
        (r'{"model":"m","input":"a","provider":{"only":["\udc00"]}}', "provider.only[0]"),
        (
            r'{"model":"m","input":[{"content":[{"type":"text","text":"\ud800"}]}]}',
            "input[0].content[0].text",
        ),
    ],
)
def test_names_the_field_with_half_a_surrogate_pair(content, param):
    assert refusal(content) == (
        param,
        f"'{param}' contains half of a surrogate pair. Send complete characters.",
    )


@pytest.mark.parametrize(
    "content", [r'{"\ud800":1}', r'{"\ud800":"\ud800"}', r'{"a\ud800":{"b":"\udc00"}}']
)
def test_does_not_quote_a_malformed_key(content):
    """A key that cannot be encoded cannot be part of the response."""
    param, message = refusal(content)

    assert param is None
    assert message.startswith("The body is not valid JSON: ")
