"""Tests of the Gemini backend: exact requests for both generations of models, and responses."""

import math

import pytest

from embedroute import vectors
from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.gemini import TASKS, Gemini
from embedroute.errors import InvalidRequest, InvalidUpstreamResponse
from embedroute.inputs import ImagePart, ImageURL, TextPart

BACKEND = Gemini(api_key=Secret("k"))
FIRST, SECOND = "gemini-embedding-001", "gemini-embedding-2"
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
TEXT = Batch(model=FIRST, texts=("a",))


def reply(content):
    return UpstreamResponse(200, {}, content)


@pytest.mark.parametrize(
    ("model", "url"),
    [
        (
            FIRST,
            "https://generativelanguage.googleapis.com/v1beta/models/gemini-embedding-001:batchEmbedContents",
        ),
        (
            "models/x",
            "https://generativelanguage.googleapis.com/v1beta/models/x:batchEmbedContents",
        ),
        (
            "../a?b#c",
            "https://generativelanguage.googleapis.com/v1beta/models/..%2Fa%3Fb%23c:batchEmbedContents",
        ),
    ],
)
def test_the_model_stays_inside_its_part_of_the_path(model, url):
    assert url == BACKEND.build(Batch(model=model, texts=("a",))).url


def test_the_key_goes_in_a_header():
    assert BACKEND.build(TEXT).headers == {
        "content-type": "application/json",
        "x-goog-api-key": Secret("k"),
    }


@pytest.mark.parametrize(
    ("batch", "content"),
    [
        (
            TEXT,
            b'{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"a"}]}}]}',
        ),
        (
            Batch(
                model=FIRST, texts=("a", "b"), dimensions=768, input_type="query", user="never sent"
            ),
            (
                b'{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"a"}]},'
                b'"taskType":"RETRIEVAL_QUERY","outputDimensionality":768},'
                b'{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"b"}]},'
                b'"taskType":"RETRIEVAL_QUERY","outputDimensionality":768}]}'
            ),
        ),
        (
            Batch(model=FIRST, texts=("a",), input_type="document", options={"title": "T"}),
            (
                b'{"requests":[{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"a"}]},'
                b'"taskType":"RETRIEVAL_DOCUMENT","title":"T"}]}'
            ),
        ),
        (
            Batch(model=SECOND, texts=("a",), dimensions=128),
            b'{"requests":[{"model":"models/gemini-embedding-2","content":{"parts":[{"text":"a"}]},"outputDimensionality":128}]}',
        ),
        (
            Batch(model=SECOND, texts=("a",), input_type="query"),
            (
                b'{"requests":[{"model":"models/gemini-embedding-2","content":'
                b'{"parts":[{"text":"task: search result | query: a"}]}}]}'
            ),
        ),
        (
            Batch(model=SECOND, texts=("a",), input_type="document"),
            b'{"requests":[{"model":"models/gemini-embedding-2","content":{"parts":[{"text":"title: none | text: a"}]}}]}',
        ),
        (
            Batch(model=SECOND, texts=("a",), input_type="document", options={"title": "T"}),
            b'{"requests":[{"model":"models/gemini-embedding-2","content":{"parts":[{"text":"title: T | text: a"}]}}]}',
        ),
        (
            Batch(
                model=SECOND,
                parts=((IMAGE, TextPart("a"), TextPart("b")),),
                input_type="clustering",
            ),
            (
                b'{"requests":[{"model":"models/gemini-embedding-2","content":{"parts":['
                b'{"inline_data":{"mime_type":"image/png","data":"AAAA"}},'
                b'{"text":"task: clustering | query: a"},{"text":"b"}]}}]}'
            ),
        ),
        (
            Batch(model=SECOND, parts=((IMAGE,), (TextPart("a"),))),
            (
                b'{"requests":[{"model":"models/gemini-embedding-2","content":{"parts":['
                b'{"inline_data":{"mime_type":"image/png","data":"AAAA"}}]}},'
                b'{"model":"models/gemini-embedding-2","content":{"parts":[{"text":"a"}]}}]}'
            ),
        ),
    ],
)
def test_builds_the_request(batch, content):
    assert content == BACKEND.build(batch).content


@pytest.mark.parametrize("word", TASKS)
def test_every_input_type_changes_the_request_of_both_generations(word):
    for model in (FIRST, SECOND):
        plain, typed = (
            BACKEND.build(Batch(model=model, texts=("a",), input_type=kind))
            for kind in (None, word)
        )

        assert plain != typed


@pytest.mark.parametrize(
    ("batch", "param"),
    [
        (Batch(model=SECOND, parts=((IMAGE,),), input_type="query"), "input_type"),
        (Batch(model=SECOND, parts=((ImagePart(ImageURL("https://x.example/i.png")),),)), "input"),
    ],
)
def test_rejects_inputs_that_the_model_cannot_take(batch, param):
    with pytest.raises(InvalidRequest) as caught:
        BACKEND.build(batch)

    assert param == caught.value.param


@pytest.mark.parametrize(
    ("model", "row"),
    [(FIRST, [0.6, 0.8]), ("x", [0.6, 0.8]), (SECOND, [3, 4]), (f"{SECOND}-preview", [3, 4])],
)
def test_normalises_short_vectors_of_the_first_generation(model, row):
    found = BACKEND.parse(
        Batch(model=model, texts=("a",)), reply(b'{"embeddings":[{"values":[3,4]}]}')
    )

    assert found.array[0].tolist() == pytest.approx(row)


def test_does_not_change_a_vector_of_full_width():
    values = [2.0] + [0.0] * 3071

    found = BACKEND.parse(
        TEXT, UpstreamResponse(200, {}, b'{"embeddings":[{"values":%s}]}' % str(values).encode())
    )

    assert values == found.array[0].tolist()


@pytest.mark.parametrize(
    ("usage", "tokens", "split"),
    [
        (b'{"promptTokenCount":9}', 9, {}),
        (b'{"promptTokenCount":9.0}', 9, {}),
        (
            (
                b'{"promptTokenCount":260,"promptTokenDetails":'
                b'[{"modality":"TEXT","tokenCount":2},{"modality":"IMAGE","tokenCount":258},{"modality":"AUDIO"}]}'
            ),
            260,
            {"text": 2, "image": 258},
        ),
        (b"null", None, {}),
        (b'{"promptTokenCount":"9"}', None, {}),
        (b'{"promptTokenCount":-9}', None, {}),
        (b"[]", None, {}),
    ],
)
def test_ignores_an_invalid_token_count(usage, tokens, split):
    found = BACKEND.parse(
        TEXT, reply(b'{"embeddings":[{"values":[1]}],"usageMetadata":%s}' % usage)
    )

    assert (tokens, split) == (found.prompt_tokens, found.modality_tokens)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"{}",
        b"[]",
        b'{"error":{"code":500}}',
        b'{"embedding":{"values":[1]}}',
        b'{"embeddings":[]}',
        b'{"embeddings":[{}]}',
        b'{"embeddings":[{"values":[]}]}',
        b'{"embeddings":[{"values":[0,0]}]}',
        b'{"embeddings":[{"values":[null]}]}',
        b'{"embeddings":[{"values":[1e39]}]}',
        b'{"embeddings":[{"values":[1]},{"values":[1]}]}',
        b'{"embeddings":[{"values":"AACAPw=="}]}',
        b'{"embeddings":[{"values":0,"statistics":{"values":[9,9]}}]}',
        b'{"embeddings":[{"values":[9,9],"values":0}]}',
        b'{"embeddings":[{"values":"0","statistics":{"values":[9,9]}}]}',
    ],
)
def test_rejects_an_invalid_response(content):
    with pytest.raises(InvalidUpstreamResponse):
        vectors.check(BACKEND.parse(TEXT, reply(content)).array, 1, None)


def test_normalising_large_numbers_does_not_overflow():
    found = BACKEND.parse(TEXT, reply(b'{"embeddings":[{"values":[3e38,3e38]}]}'))

    assert found.array[0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
