"""Tests that decoding in steps has the same result as decoding at once."""

import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import Settings
from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, ImageURL, Kind, TextPart
from embedroute.protocol import (
    MEDIUM,
    MOST_OTHER,
    SLICE,
    SMALL,
    Limits,
    decode_in_steps,
    decode_request,
    is_small,
    most_marks,
)
from embedroute.protocol.large_request import PIECE
from embedroute.protocol.requests import LONGEST_NAME
from embedroute.runtime import finished

LENIENT = Limits(ignored_fields=frozenset({"x", "odd"}))
PLAIN = Limits()


def in_steps(body, limits=PLAIN):
    return finished(decode_in_steps(body, limits))


def refusal(body, limits=PLAIN, read=in_steps):
    with pytest.raises(InvalidRequest) as caught:
        read(body, limits)
    return caught.value


def body_of(**fields):
    return json.dumps({"model": "m", **fields}, ensure_ascii=False).encode()


UNITS = [
    "a",
    "é",
    "中",
    "\U0001f600",
    r"\n",
    r"\\",
    r"\"",
    r"\\\"",
    r"\"\\",
    r"\u4e2d",
    r"\\u4e2d",
    r"\ud83d\ude00",
    r"\/\u003a",
    "a\\\\é",
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("shift", range(13))
def test_decodes_a_long_text_wherever_its_pieces_end(unit, shift):
    encoded = "x" * shift + unit * (2 * PIECE // len(unit.encode()) + 5)

    job = in_steps(f'{{"model":"m","input":"{encoded}"}}'.encode())

    assert json.loads(f'"{encoded}"') == job.inputs[0]
    assert job.large


@pytest.mark.parametrize("seed", range(8))
def test_decodes_many_texts_wherever_slices_end(seed):
    chance = random.Random(seed)
    lengths = [0, 1, 100, 255, 256, 257, 510, 511, 512, 513, 514, 5000, SLICE - 1, SLICE, SLICE + 1]
    texts = [
        "".join(chance.choices('aé中\U0001f600\n\\"[]{},:', k=chance.choice(lengths) + 1))
        for _ in range(200)
    ]

    job = in_steps(json.dumps({"input": texts, "model": "m"}, ensure_ascii=seed % 2 == 0).encode())

    assert (texts, Kind.TEXT) == (job.inputs, job.kind)


def test_restores_long_parts_under_both_names_of_the_input():
    text, url = "t" * 1000, "data:image/png;base64,iVBORw0KGgo" + "A" * 1004 + "="
    item = {
        "content": [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": url}},
        ]
    }

    job = in_steps(body_of(input=[item, item], inputs=[item, item]))

    assert [(TextPart(text), ImagePart(ImageURL(url)))] * 2 == job.inputs
    assert "inputs" == refusal(body_of(input=["a" * 600], inputs=["b" * 600])).param


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["x" * 513, "é" * 600, "0" * 513, "\\" * 700]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**33)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
INPUTS = (
    TEXTS
    | st.lists(TEXTS, max_size=4)
    | st.lists(st.integers(0, 9), max_size=4)
    | st.lists(st.lists(st.integers(0, 9) | st.just(5.0), max_size=3), max_size=3)
    | st.lists(
        st.fixed_dictionaries(
            {
                "content": st.lists(
                    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=3
                )
            }
        ),
        max_size=3,
    )
)
FIELDS = {
    "user": st.none() | TEXTS,
    "provider": st.none()
    | TEXTS
    | st.just({"sort": None})
    | st.just({"only": ["a"], "sort": {"by": "price"}})
    | VALUES,
    "dimensions": st.none() | st.just(3) | VALUES,
    "debug": st.none() | st.just({"trace": True}) | VALUES,
    "odd": VALUES,
}


@given(
    st.fixed_dictionaries({"model": TEXTS, "input": INPUTS | VALUES}, optional=FIELDS),
    st.sampled_from([PLAIN, LENIENT]),
    st.booleans(),
)
def test_decodes_a_body_equally_at_once_and_in_steps(fields, limits, ascii_only):
    same(json.dumps(fields, ensure_ascii=ascii_only).encode(), limits)


BROKEN = [
    *',:{}[]"\\ 1\1é',
    "\\u",
    "d83d",
    "1e999",
    "null",
    "true",
    "\ud800",
    '"input"',
    '"model":"m"',
    '"user":null',
    '"user":"u"',
]
BROKEN += ['{"model":"m","input":"a"', '"x":[{"a":1,"a":2}]', f'"{"y" * 513}"']


@given(st.lists(st.sampled_from(BROKEN), max_size=12), st.sampled_from([PLAIN, LENIENT]))
def test_refuses_a_malformed_body_at_once_and_in_steps(pieces, limits):
    same("".join(pieces).encode(errors="surrogatepass"), limits)
    same(
        ('{"model":"m","input":"a",' + "".join(pieces) + "}").encode(errors="surrogatepass"), limits
    )


def same(body, limits):
    try:
        expected = decode_request(body, limits)
    except InvalidRequest:
        assert 400 == refusal(body, limits).status
        return
    try:
        found = in_steps(body, limits)
    except InvalidRequest as refused:
        assert "The body has a key of more than 512 bytes" in refused.message  # noqa: PT017 - only that may differ
    else:
        assert msgspec.structs.replace(expected, large=True) == found


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (body_of(input="a", user="u" * 513), "user", "'user' must be at most 512 characters long."),
        (
            body_of(input="a", encoding_format="u" * 513),
            "encoding_format",
            "'encoding_format' must be one of float, base64.",
        ),
        (
            body_of(input="a", provider={"max_price": {"prompt": "1" * 513}}),
            "provider.max_price.prompt",
            None,
        ),
        (rb'{"model":"m","input":["a","%b\ud800"]}' % (b"b" * 600), "input[1]", None),
        (body_of(input=[5, "b" * 600]), "input", None),
        (body_of(input=[-1]), "input", "'input' must hold token ids from 0 to 2147483647."),
        (
            body_of(input="a", **{"k" * 513: 1}),
            None,
            "The body has a key of more than 512 bytes. Remove it.",
        ),
        (b'{"model":"m","input":"a', None, "The body is not valid JSON: it ends inside a string."),
        (
            b'{"model":"m","input":"a"}x',
            None,
            "The body is not valid JSON: JSON is malformed: trailing characters.",
        ),
        (
            b'{"model":"m","user":null,"input":"a","user":null}',
            "user",
            "Duplicate key 'user' in an object. Send it once.",
        ),
        (
            b'{"model":"m","input":[{"content":[{"type":"text","text":"a","text":"b"}]}]}',
            "input",
            None,
        ),
        (b'{"model":"m","input":"a","provider":{"sort":null,"sort":null}}', "provider.sort", None),
        (b"[" * 33, None, "The body is nested deeper than 32 levels."),
    ],
)
def test_names_what_is_wrong_with_a_large_body(body, param, message):
    refused = refusal(body)

    assert param == refused.param
    assert message in (None, refused.message)


def test_accepts_the_maximum_number_of_values():
    """Each kind of input at its maximum size, in the maximum number of parts."""
    part = {"type": "text", "text": "a"}
    legal = [
        [7] * PLAIN.max_token_ids,
        [[7] * (PLAIN.max_token_ids // 2048)] * 2048,
        ["a"] * 2048,
        [{"content": [part] * 32}] * 2048,
        [
            {
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="},
                    }
                ]
                * 32
            }
        ]
        * 2048,
    ]
    for given_input in legal:
        assert len(in_steps(body_of(input=given_input)).inputs) == (
            1 if given_input[0] == 7 else 2048
        )


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        ("1", "max_tokens_per_request"),
        ("[]", None),
        ("{}", None),
        ('""', None),
        ("1e300", None),
        ("9" * 100, None),
    ],
)
def test_refuses_too_many_values_before_decoding(unit, code):
    count = most_marks(PLAIN).commas + 2 if unit in {"1", "[]", "{}"} else most_marks(PLAIN).quotes
    steps = decode_in_steps(f'{{"model":"m","input":[{",".join([unit] * count)}]}}'.encode(), PLAIN)

    with pytest.raises(InvalidRequest) as refused:
        finished(steps)

    assert code == refused.value.code
    assert "The body holds too m" in refused.value.message


def test_limits_the_values_of_an_ignored_field():
    values = [{"a": 1}] * (MOST_OTHER // 3)

    assert in_steps(body_of(input="a", odd=values), LENIENT).model == "m"
    assert "odd" == refusal(body_of(input="a", odd=values * 2), LENIENT).param


@pytest.mark.parametrize(
    "value",
    [
        b'"%b\xff"' % (b"a" * 600),
        b'"\xff"',
        b'"%b\\ud800"' % (b"a" * 600),
        b"[1,01]",
        b'{"a":1,"a":1}',
    ],
)
def test_an_ignored_field_must_be_valid_json(value):
    assert 400 == refusal(b'{"model":"m","input":"a","x":%b}' % value, LENIENT).status


def test_the_name_of_an_ignored_field_must_be_utf8():
    assert 400 == refusal(b'{"model":"m","input":"a","\xff":1}', LENIENT).status


@pytest.mark.parametrize("limits", [PLAIN, Limits(max_token_ids=10, max_inputs=3)])
def test_token_ids_are_counted_over_all_inputs(limits):
    most = limits.max_token_ids
    for read in (decode_request, in_steps):
        assert len(read(body_of(input=[1] * most), limits).inputs[0]) == most
        assert len(read(body_of(input=[[1] * (most - 1), [1]]), limits).inputs) == 2
        for over in ([1] * (most + 1), [[1] * most, [1]]):
            refused = refusal(body_of(inputs=over), limits, read)
            assert ("inputs", "max_tokens_per_request") == (refused.param, refused.code)


@pytest.mark.parametrize("read", [decode_request, in_steps])
@pytest.mark.parametrize(
    ("wrap", "param"),
    [
        (lambda text: text, "input"),
        (lambda text: [text], "input[0]"),
        (lambda text: ["a", text, text], "input[1]"),
        (
            lambda text: [{"content": [{"type": "text", "text": text}]}],
            "input[0].content[0].text",
        ),
    ],
    ids=["text", "list of one", "list", "part"],
)
@pytest.mark.parametrize("most", [10, LONGEST_NAME + 88, 2 * PIECE])
def test_limits_the_characters_of_each_text(read, wrap, param, most):
    limits = Limits(max_text_characters=most)
    for letter in ("a", "é", "\U0001f600"):
        assert read(body_of(input=wrap(letter * most)), limits).inputs
        refused = refusal(body_of(input=wrap(letter * (most + 1))), limits, read)
        assert (param, "context_length_exceeded") == (refused.param, refused.code)
        assert f"longer than {most} characters" in refused.message
        assert "max_text_characters" in refused.message


@pytest.mark.parametrize(
    ("body", "small"),
    [
        (body_of(input="a" * (SMALL - 100)), True),
        (body_of(input=["the quick brown fox jumps over the lazy dog, " * 40] * 400), True),
        (body_of(input="a" * MEDIUM), False),
        (body_of(input=[1] * SMALL), False),
        (body_of(input=[[1] * SMALL]), False),
        (body_of(input=["a"] * SMALL), False),
        (body_of(input="a," * 40_000), False),
    ],
)
def test_decodes_a_large_body_of_few_texts_at_once(body, small):
    """Other bodies of this size would take more than a few milliseconds."""
    assert small is is_small(body)


@pytest.mark.parametrize("name", ["max_inputs", "max_token_ids", "max_text_characters"])
def test_limits_are_settings_of_the_gateway(name):
    assert getattr(Limits.of(Settings(**{name: 7})), name) == 7
