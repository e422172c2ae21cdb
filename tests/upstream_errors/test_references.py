"""Tests how an upstream's message refers to an input or to a field of the request."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.errors import BatchTooLarge, Rejected, UpstreamRejectedInput
from embedroute.upstream_errors import classify_response, refine_with_inputs, translate_index

TEXTS = [f"text {number}" for number in range(10)]


def judged(body, status=400, inputs=TEXTS):
    content = body if isinstance(body, str) else json.dumps(body)
    return refine_with_inputs(classify_response(status, {}, content.encode(), now=0), inputs)


@pytest.mark.parametrize(
    ("body", "index"),
    [
        ("Invalid 'input[2]': maximum input length is 8192 tokens.", 2),
        ("'$.input[1]' is invalid.", 1),
        ("inputs[0] is blank", 0),
        ("inputs contains an element that is the empty string at index 3", 3),
        ("The document at index 0 is empty", 0),
        ("index 1: bad text", 1),
        ("Malformed input request: #/texts/4: expected maxLength: 2048, actual: 19882", 4),
        ("[{'type': 'string_type', 'loc': ('body', 'input', 3), 'msg': 'bad'}]", 3),
        ("Validation error: body -> input -> 6 is wrong", 6),
        ("body.input.5: wrong", 5),
        ("Input id 0 has 9000 tokens, exceeded max 8192 tokens.", 0),
        ({"detail": [{"loc": ["body", "input", 3], "msg": "bad"}]}, 3),
        ({"detail": [{"loc": ["body", "input", 3, "str"], "msg": "bad"}]}, 3),
        ({"detail": "bad", "errors": [{"field": "input[7]"}]}, 7),
        ({"error": {"message": "bad", "param": "input[8]"}}, 8),
        ("/input/2: must not be blank", 2),
        ("input/2 is wrong", 2),
        ("$['input'][2] is wrong", 2),
        ("input.[2] is wrong", 2),
        ("data[2] is wrong", 2),
        ("prompts[ 2 ] is wrong", 2),
        ("failed at idx 2", 2),
        ("wrong text (index=2)", 2),
        ("wrong text, index [2]", 2),
        ("[{'type': 'string_type', 'loc': ('body', 'input', 'list[str]', 3), 'msg': 'bad'}]", 3),
        ({"detail": [{"loc": ["body", "input", "list[str]", 3], "msg": "bad"}]}, 3),
        ({"detail": [{"loc": ["body", "input", "constrained-str", 3], "msg": "bad"}]}, 3),
        ({"error": {"message": "bad", "param": "/input/8"}}, 8),
        ("Invalid 'input[2]': see input[2]", 2),
        ("input[2] and input[3] are too long", None),
        ({"detail": [{"loc": ["body", "input", n], "msg": "bad"} for n in (1, 2)]}, None),
        ("Invalid 'input[10]': maximum input length is 8192 tokens.", None),
        ("Invalid 'input[999999]': too long", None),
        ("model instance 'NV-Embed-QA_tokenizer_0_3' failed", None),
        ("invalid token[11] = 74429", None),
        ("messages.11.content.0 is too long", None),
        ("Limit 2 of inputs 3", None),
        ({"detail": [{"loc": ["body", "dimensions", 3], "msg": "bad"}]}, None),
        ({"detail": [{"loc": ["body", "input", True], "msg": "bad"}]}, None),
        ("POST /v1/embeddings/3 failed", None),
        ("2 requests/3 seconds", None),
        ("", None),
    ],
)
def test_finds_the_index_of_the_blamed_input(body, index):
    assert index == judged(body).input_index


@pytest.mark.parametrize(
    ("message", "known"),
    [
        # Out of the range from 0, or of several inputs.
        ("Invalid 'input[10]': too long.", "Invalid 'input': too long."),
        ("input[2] and input[3] are too long", "input and input are too long"),
        ("The document at index 10 is empty", "The document is empty"),
        # From 0 or from 1.
        ("Input #2 is too long", "Input is too long"),
        ("Input number 2 exceeds 512 tokens", "Input exceeds 512 tokens"),
        ("text no. 3: bad", "text: bad"),
        ("Text 3 of 10 is empty", "Text is empty"),
        ("Failed on text 3 of 10.", "Failed on text."),
        ("input 10: bad", "input: bad"),
        ("The 2nd input is empty", "The input is empty"),
        ("The document at position 3 is blank", "The document is blank"),
        ("index #2 is bad", "an input is bad"),
        ("row 2: bad", "row: bad"),
        ("batch item 2 not embedded", "batch item not embedded"),
        ("entry 2 is empty", "entry is empty"),
        ("chunk 2 too long", "chunk too long"),
        ("text n°2 is empty", "text is empty"),
        ("input (2) failed", "input failed"),
        ("input <2> failed", "input failed"),
        ("input_2 failed", "input failed"),
        ("input: 2 failed", "input failed"),
        ("Failed for input 2", "Failed"),
        ("The third input is empty", "The input is empty"),
        ("第3条文本为空", "文本为空"),
        ("3番目の入力が空です", "入力が空です"),
        # No number of an input.
        ("inputs (9) > 3 allowed", "inputs (9) > 3 allowed"),
        ("model text_3-large failed", "model text_3-large failed"),
        ("Input length 548 exceeds 512", "Input length 548 exceeds 512"),
        ("Input 548 exceeds 512", "Input 548 exceeds 512"),
        ("list index 50261 out of range", "list index 50261 out of range"),
        ("version 1.2 of the input 1.5 failed", "version 1.2 of the input 1.5 failed"),
    ],
)
def test_removes_a_number_that_cannot_be_translated(message, known):
    error = judged({"error": {"message": message}})

    assert error.input_index is None
    assert error.message == f"The upstream answered 400: {known}"


def test_keeps_a_number_that_an_input_contains():
    inputs = [*TEXTS, "Text 3 of 10 is empty"]

    assert "Text 3 of 10" in judged("Cannot embed 'Text 3 of 10 is empty'", inputs=inputs).message


def test_a_number_out_of_a_count_of_inputs_is_no_size():
    assert type(judged("Text 3 of 10 is empty")) is UpstreamRejectedInput
    assert type(judged("Failed on text 3 of 10")) is Rejected
    assert type(judged("Got 10 of 3 texts")) is BatchTooLarge


def test_ignores_an_index_that_an_input_contains():
    body = "Cannot embed 'What is input[2]?'"

    assert judged(body).input_index == 2
    assert judged(body, inputs=[*TEXTS, "What is input[2]?"]).input_index is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("extra fields not permitted: ['encoding_format']", "encoding_format"),
        ("Invalid value for 'encoding_format' = md5. Supported: ['float']", "encoding_format"),
        ("encoding_format is not supported", "encoding_format"),
        ("`encoding_format` parameter is not supported", "encoding_format"),
        ("Unrecognized request argument supplied: user", "user"),
        ("Unsupported parameter: 'user'", "user"),
        ("got an unexpected keyword argument 'dimensions'", "dimensions"),
        ("This model does not support specifying dimensions.", "dimensions"),
        ("dimensions is currently not supported", "dimensions"),
        ("dimensions\n  Extra inputs are not permitted", "dimensions"),
        ("Model does not support matryoshka representation, changing output", "dimensions"),
        ("output_dimension must be one of 256, 512", "output_dimension"),
        ("dimensions must be less than or equal to 1024", "dimensions"),
        ('Unknown name "outputDimensionality": Cannot find field.', "outputDimensionality"),
        ("input_type is not allowed for this model", "input_type"),
        ("'input' field must be a string or an array of strings", "input"),
        ("invalid input type", "input"),
        ("extraneous key [inputText] is not permitted", "inputText"),
        ("{'type': 'extra_forbidden', 'loc': ('body', 'dimensions'), 'msg': 'x'}", "dimensions"),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "user"], "msg": "no"}]}, "user"),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body", "foo"], "msg": "no"}]}, "foo"),
        (
            {
                "detail": [
                    {"type": "x", "loc": ["body", "EmbeddingRequest", "dimensions"], "msg": "no"}
                ]
            },
            "dimensions",
        ),
        ({"error": {"message": "no", "param": "dimensions"}}, "dimensions"),
        ({"detail": [{"type": "missing", "loc": ["body", "input_type"], "msg": "no"}]}, None),
        ({"detail": [{"type": "x", "loc": ["body", "model"], "msg": "no"}]}, None),
        ({"error": {"message": "no", "param": "model"}}, None),
        ("'input_type' parameter is required for asymmetric models", None),
        ("valid input_type must be provided with the provided model", None),
        ("temperature: 5 is not in the accepted range", None),
        ("Invalid user", None),
        ("This task is not supported", None),
        ("no", None),
    ],
)
def test_finds_the_refused_field(body, field):
    found = judged(body)

    assert (Rejected, field) == (type(found), found.field)


def test_names_no_field_where_an_input_is_at_fault():
    found = judged({"error": {"message": "The input is empty", "param": "dimensions"}})

    assert (UpstreamRejectedInput, None) == (type(found), found.field)


@pytest.mark.parametrize("status", [403, 404, 429, 500])
def test_other_statuses_refuse_no_field(status):
    assert judged("dimensions is not supported", status).field is None


def test_ignores_a_field_that_an_input_contains():
    text = "encoding_format is not supported"

    assert judged(f"Cannot embed '{text}'", inputs=[text]).field is None


@pytest.mark.parametrize(
    ("message", "old", "new", "translated"),
    [
        (
            "Invalid 'input[2]': maximum is 2 tokens.",
            2,
            "input[7]",
            "Invalid 'input[7]': maximum is 2 tokens.",
        ),
        ("Invalid 'input[0]': too long", 0, "input", "Invalid 'input': too long"),
        ("Invalid 'input[2]': too long", 2, None, "Invalid 'input': too long"),
        ("Invalid 'input[2]': too long", 3, "input[7]", "Invalid 'input[2]': too long"),
        ("'$.input[1]' is invalid.", 1, "input[4]", "'input[4]' is invalid."),
        ("'$.input[1]' is invalid.", 1, None, "'$.input' is invalid."),
        ("the empty string at index 0", 0, "input[9]", "the empty string at input[9]"),
        ("the empty string at index 0.", 0, None, "the empty string."),
        ("index 1 is bad", 1, "input[5]", "input[5] is bad"),
        ("index 1 is bad", 1, None, "an input is bad"),
        ("#/texts/0: expected 1", 0, "input[3]", "input[3]: expected 1"),
        ("#/texts/0: expected 1", 0, None, "#/texts: expected 1"),
        ("'loc': ('body', 'input', 3)", 3, "input[1]", "'loc': ('body', 'input[1]')"),
        ("'loc': ('body', 'input', 3)", 3, None, "'loc': ('body', 'input')"),
        ("body -> input -> 6", 6, "input[2]", "body -> input[2]"),
        ("Input id 0 has 9000 tokens", 0, "input[1]", "input[1] has 9000 tokens"),
        ("Input id 0 has 9000 tokens", 0, None, "Input has 9000 tokens"),
        ("tokenizer_0_3: 2 of 2", 2, "input[7]", "tokenizer_0_3: 2 of 2"),
    ],
)
def test_translates_the_index_of_an_input(message, old, new, translated):
    assert translated == translate_index(message, old, new)


REFERENCES = [
    "input[{}]",
    "'inputs[{}]'",
    "$.input[{}]",
    "#/texts/{}",
    "text at index {}",
    "index {}",
    "body -> input -> {}",
]
WORDS = [
    "maximum",
    "is",
    "8192",
    "tokens",
    "(2)",
    "[1, 3]",
    "id-2",
    "v2",
    "2.5",
    "400",
    "n_2:",
    "3",
]


@given(
    pieces=st.lists(st.sampled_from(WORDS), max_size=8),
    reference=st.sampled_from(REFERENCES),
    other=st.sampled_from(REFERENCES),
    place=st.integers(0, 8),
    old=st.integers(0, 5),
    new=st.none() | st.integers(0, 2000).map("input[{}]".format),
)
def test_translating_changes_no_other_number(pieces, reference, other, place, old, new):
    message = " ".join(
        [*pieces[:place], reference.format(old), *pieces[place:], other.format(old + 1)]
    )
    before = re.findall(r"\d+", " ".join(pieces[:place]))
    after = re.findall(r"\d+", " ".join(pieces[place:]))
    renamed = [] if new is None else re.findall(r"\d+", new)

    found = re.findall(r"\d+", translate_index(message, old, new))

    assert [*before, *renamed, *after, str(old + 1)] == found
