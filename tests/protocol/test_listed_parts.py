"""Tests of an ``input`` that lists the content parts of one input."""

import json

import pytest

from embedroute import Config, Gateway, Model, Provider
from embedroute.errors import InvalidRequest
from embedroute.inputs import ImagePart, ImageURL, Kind, TextPart
from embedroute.protocol import Limits, decode_request, make_request

TEXT = {"type": "text", "text": "a red chair"}
URL = "data:image/png;base64,iVBORw0KGgo="
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
LONG = "x" * 2_000_000
"""A text from which a body counts as large."""


def encode(**fields):
    return json.dumps({"model": "m", **fields}).encode()


def decode(body):
    return decode_request(body, Limits())


@pytest.mark.parametrize("field", ["input", "inputs"])
@pytest.mark.parametrize("text", ["a", LONG], ids=["small", "large"])
def test_listed_parts_are_one_input(field, text):
    parts = [{"type": "text", "text": text}, IMAGE]
    expected = [(TextPart(text), ImagePart(ImageURL(URL)))]
    request = decode(encode(**{field: parts}))

    assert (expected, Kind.PARTS, field) == (request.inputs, request.kind, request.field)
    assert request == decode(encode(**{field: [{"content": parts}]}))
    assert expected == make_request({"model": "m", field: parts}, Limits()).inputs


def test_structs_of_parts_can_be_listed():
    parts = [TextPart("a"), ImagePart(ImageURL(URL))]

    assert [tuple(parts)] == make_request({"model": "m", "input": parts}, Limits()).inputs


@pytest.mark.parametrize("text", ["a", LONG], ids=["small", "large"])
def test_both_names_may_list_the_same_parts(text):
    parts = [{"type": "text", "text": text}]

    assert [(TextPart(text),)] == decode(encode(input=parts, inputs=parts)).inputs


WRONG = [
    ([TEXT, {"type": "text", "txt": "a"}], "input[1].txt", "Unknown field"),
    ([TEXT, {"type": "text", "text": ""}], "input[1].text", "must not be empty"),
    ([TEXT, {"type": "text"}], "input[1].text", "is required"),
    ([TEXT, "a"], "input[1]", "must be an object, not a string"),
    ([TEXT, [1]], "input[1]", "must be an object, not an array"),
    ([TEXT, {"content": [TEXT]}], "input[1].type", "is required"),
    ([{"type": "sound"}], "input[0].type", "must be one of text, image_url"),
    ([{"type": 1}], "input[0].type", "must be one of text, image_url"),
    ([TEXT] * 33, "input", "at most 32"),
    (
        [TEXT, {"type": "image_url", "image_url": {"url": "ftp://a"}}],
        "input[1].image_url.url",
        "image_url.url",
    ),
    ([{"content": [TEXT]}, TEXT], "input[1].type", "Unknown field"),
    ([{"text": "a"}], "input[0].type", "is required"),
]


@pytest.mark.parametrize("padding", ["", LONG], ids=["small", "large"])
@pytest.mark.parametrize(("items", "param", "message"), WRONG)
def test_an_error_names_the_part_as_it_was_listed(items, param, message, padding):
    with pytest.raises(InvalidRequest) as caught:
        decode(encode(user="u", input=items) + b" " * len(padding))

    assert param == caught.value.param
    assert message in caught.value.message
    assert "content" not in caught.value.message.replace("a content", "")


def test_an_error_of_an_in_process_request_names_the_part():
    with pytest.raises(InvalidRequest, match=r"'input\[1\].text' must not be empty") as caught:
        make_request({"model": "m", "input": [TEXT, {"type": "text", "text": ""}]}, Limits())

    assert "input[1].text" == caught.value.param


@pytest.mark.parametrize("text", ["a", LONG], ids=["small", "large"])
@pytest.mark.parametrize(
    "body",
    [
        '{"model":"m","input":[{"type":"text","text":"TEXT","text":"b"}]}',
        '{"model":"m","model":"n","input":[{"type":"text","text":"TEXT"}]}',
        '{"model":"m","input":[{"type":"text","text":"a"}],"input":[{"type":"text","text":"TEXT"}]}',
    ],
)
def test_a_duplicate_key_is_refused(body, text):
    with pytest.raises(InvalidRequest, match="Duplicate key"):
        decode(body.replace("TEXT", text).encode())


@pytest.mark.anyio
async def test_listed_parts_get_the_vector_of_their_content_object():
    gateway = Gateway(
        Config(
            gateway={"auth": "open"},
            providers={"one": Provider(backend="hashed")},
            models={
                "m": Model(
                    dimensions=8, modalities=["text", "image"], endpoints=[{"provider": "one"}]
                )
            },
        )
    )
    embeddings = await gateway.embed([TEXT, IMAGE], model="m")
    expected = await gateway.embed([{"content": [TEXT, IMAGE]}], model="m")

    assert (1, 8) == embeddings.vectors.shape
    assert embeddings.vectors.tolist() == expected.vectors.tolist()
