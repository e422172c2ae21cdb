"""Tests of duplicate keys and deep nesting, which JSON allows and the gateway refuses."""

import pytest

from embedroute.errors import InvalidRequest
from embedroute.protocol import Limits, decode_request

LENIENT = Limits(ignored_fields=frozenset({"x", "user2", *(f"k{at}" for at in range(19_000))}))


def refusal(text, limits=Limits()):  # noqa: B008 - frozen
    with pytest.raises(InvalidRequest) as caught:
        decode_request(text.encode(), limits)
    return caught.value


TEXT_PART = '{"type":"text","text":"a"}'
TWICE = '{"type":"text","text":"a","text":"b"}'


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"model":"m","input":"a","input":"b"}', "input"),
        ('{"model":"m","model":"m","input":"a"}', "model"),
        ('{"model":"m","input":"a","input":"a"}', "input"),
        (r'{"model":"m","input":"a","in\u0070ut":"b"}', "input"),
        (r'{"model":"m","input":"a\u003a","input":"b:"}', "input"),
        (r'{"model":"m","input":":","input":"a\u003A"}', "input"),
        (r'{"model":"m","input":"\u003a:","user":"a","user":"b"}', "user"),
        ('{"model":"a:b","input":["a:",":"],"input":["a:b"]}', "input"),
        ('{"model":"m","input":"a","user":null,"user":null}', "user"),
        ('{"model":"m","input":"a","user":null,"user":"u"}', "user"),
        ('{"model":"m","input":[1],"input":[1]}', "input"),
        ('{"model":"m","input":"a","provider":{"only":["a"],"only":["b"]}}', "provider.only"),
        (
            '{"model":"m","input":"a","provider":{"sort":{"by":"price","by":"price"}}}',
            "provider.sort.by",
        ),
        ('{"model":"m","input":"a","debug":{"trace":false,"trace":false}}', "debug.trace"),
        (
            '{"model":"m","input":"a","embedding_options":{"google":null,"google":null}}',
            "embedding_options.google",
        ),
        ('{"model":"m","input":[{"content":[' + TWICE + "]}]}", "input[0].content[0].text"),
        (
            '{"model":"m","input":[{"content":[' + f"{TEXT_PART},{TEXT_PART},{TWICE}" + "]}]}",
            "input[0].content[2].text",
        ),
        (
            '{"model":"m","input":[{"content":[' + TEXT_PART + '],"content":[' + TEXT_PART + "]}]}",
            "input[0].content",
        ),
    ]
    + [
        (
            '{"model":"m","input":[{"content":[' + ",".join([TWICE, *[TEXT_PART] * more]) + "]}]}",
            "input[0].content[0].text",
        )
        for more in range(8)
    ],
)
def test_refuses_a_duplicate_key(text, param):
    """The number of colons in texts does not hide a duplicate."""
    refused = refusal(text)

    assert (param, f"Duplicate key '{param}' in an object. Send it once.") == (
        refused.param,
        refused.message,
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"a:b","input":"c:d"}',
        '{"model":"m","input":["\\"input\\":","{\\"a\\":1,\\"a\\":2}"]}',
        r'{"model":"m","input":"\u003a"}',
        r'{"model":"m","input":"\\u003a"}',
        '{"model":"m","input":"a","user":"model:m","user2":1}',
        '{"model":"m","input":[{"content":[' + TEXT_PART + "," + TEXT_PART + "]}]}",
        '{"model" : "m" , "input" : "a" , "dimensions" : null}',
    ],
)
def test_colons_in_texts_do_not_count_as_keys(text):
    assert decode_request(text.encode(), LENIENT).model


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('{"model":"m","input":"a","x":1,"x":2}', "x"),
        ('{"model":"m","input":"a","x":{"y":[{"z":1,"z":2}]}}', "x.y[0].z"),
        (
            '{"model":"m","input":"a","x":"'
            + "k" * 200
            + '","'
            + "k" * 200
            + '":1,"'
            + "k" * 200
            + '":1}',
            "k" * 128,
        ),
    ],
)
def test_refuses_duplicate_keys_in_ignored_fields(text, param):
    assert param == refusal(text, LENIENT).param


@pytest.mark.parametrize(
    ("opened", "closed", "levels", "refused"),
    [
        ("[", "]", 31, False),
        ("[", "]", 32, True),
        ('{"a":', "}", 31, False),
        ('{"a":', "}", 32, True),
        ("[", "]", 900, True),
        ("[", "]", 100_000, True),
        ('{"a":', "}", 100_000, True),
    ],
)
def test_limits_nesting_in_ignored_fields(opened, closed, levels, refused):
    """The root object is the first of 32 levels."""
    text = '{"model":"m","input":"a","x":' + opened * levels + "1" + closed * levels + "}"
    if refused:
        assert refusal(text, LENIENT).message == "The body is nested deeper than 32 levels."
    else:
        assert decode_request(text.encode(), LENIENT).model == "m"


@pytest.mark.parametrize("value", ['["[[[["]', r'"\"[{"', '[["\\\\"],["[["]]'])
def test_brackets_in_texts_do_not_count_as_nesting(value):
    text = '{"model":"m","input":"a","x":[' + ",".join([value] * 40) + "]}"

    assert decode_request(text.encode(), LENIENT).model == "m"


def test_an_ignored_field_must_be_utf8():
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode_request(b'{"model":"m","input":"a","x":"\xff"}', LENIENT)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (19_000, "Duplicate key in the body. Send it once."),
        pytest.param(
            200_000,
            "The objects of the body, except inputs, have more than 20000 members. Send fewer.",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_refuses_a_duplicate_among_many_ignored_keys(count, message):
    """The duplicate key of a large body is not named."""
    keys = ",".join(f'"k{at}":1' for at in range(count))

    assert (
        decode_request(f'{{"model":"m","input":"a",{keys}}}'.encode(), LENIENT).model
        if count == 19_000
        else True
    )
    assert (None, message) == _told('{"model":"m","input":"a",' + keys + f',"k{count - 1}":1}}')


def _told(text):
    refused = refusal(text, LENIENT)
    return refused.param, refused.message
