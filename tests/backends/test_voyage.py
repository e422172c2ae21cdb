"""Tests of the Voyage backend: exact requests, and responses as the API writes them."""

import pytest

from embedroute.backend import Batch, Secret, UpstreamResponse
from embedroute.backends.voyage import Voyage
from embedroute.errors import (
    BatchTooLarge,
    InvalidUpstreamResponse,
    RateLimited,
    Rejected,
    UpstreamAuthError,
    UpstreamModelNotFound,
    UpstreamRejectedInput,
    UpstreamUnavailable,
)
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.upstream_errors import refine_with_inputs

BACKEND = Voyage(api_key=Secret("pa-k"))
IMAGE = ImagePart(ImageURL("data:image/png;base64,AAAA"))
REMOTE = ImagePart(ImageURL("https://images.example/i.png"))


@pytest.mark.parametrize(
    ("batch", "path", "content"),
    [
        pytest.param(
            Batch(model="voyage-4", texts=("a", "b"), user="never sent"),
            "embeddings",
            b'{"input":["a","b"],"truncation":false,"model":"voyage-4","encoding_format":"base64"}',
            id="texts",
        ),
        pytest.param(
            Batch(
                model="voyage-code-3",
                texts=("a",),
                input_type="code_query",
                dimensions=256,
                dtype="ubinary",
            ),
            "embeddings",
            b'{"input":["a"],"truncation":false,"model":"voyage-code-3","input_type":"query",'
            b'"encoding_format":"base64","output_dimension":256,"output_dtype":"ubinary"}',
            id="parameters",
        ),
        pytest.param(
            Batch(model="voyage-context-3", texts=("a", "b"), input_type="document"),
            "contextualizedembeddings",
            b'{"inputs":[["a"],["b"]],"model":"voyage-context-3","input_type":"document",'
            b'"encoding_format":"base64"}',
            id="chunks",
        ),
        pytest.param(
            Batch(
                model="voyage-multimodal-3.5",
                parts=((TextPart("a"), IMAGE), (REMOTE,)),
                input_type="query",
            ),
            "multimodalembeddings",
            b'{"inputs":[{"content":[{"type":"text","text":"a"},'
            b'{"type":"image_base64","image_base64":"data:image/png;base64,AAAA"}]},'
            b'{"content":[{"type":"image_url","image_url":"https://images.example/i.png"}]}],'
            b'"truncation":false,"model":"voyage-multimodal-3.5","input_type":"query",'
            b'"encoding_format":"base64"}',
            id="parts",
        ),
        pytest.param(
            Batch(model="voyage-multimodal-3", texts=("a",)),
            "multimodalembeddings",
            b'{"inputs":[{"content":[{"type":"text","text":"a"}]}],"truncation":false,'
            b'"model":"voyage-multimodal-3","encoding_format":"base64"}',
            id="text of a multimodal model",
        ),
    ],
)
def test_builds_the_request(batch, path, content):
    request = BACKEND.build(batch)

    assert request.url == f"https://api.voyageai.com/v1/{path}"
    assert request.headers == {
        "content-type": "application/json",
        "authorization": Secret("Bearer pa-k"),
    }
    assert content == request.content


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"api_key": Secret("al-k")}, "https://ai.mongodb.com/v1/embeddings"),
        (
            {"api_key": Secret("al-k"), "base_url": "http://127.0.0.1:1/v1/"},
            "http://127.0.0.1:1/v1/embeddings",
        ),
    ],
)
def test_a_key_of_atlas_has_its_own_host(options, url):
    assert url == Voyage(**options).build(Batch(model="voyage-4", texts=("a",))).url


def test_truncation_is_an_option():
    backend = Voyage(api_key=Secret("k"), truncation=True)

    assert b'"truncation":true' in backend.build(Batch(model="voyage-4", texts=("a",))).content


def test_refuses_an_image_for_a_model_of_chunks():
    with pytest.raises(UpstreamRejectedInput):
        BACKEND.build(Batch(model="voyage-context-3", parts=((IMAGE,),)))


@pytest.mark.parametrize(
    ("model", "dtype", "content", "rows"),
    [
        ("voyage-4", "float", b'{"data":[{"index":0,"embedding":"AACAPwAAAEA="}]}', [[1, 2]]),
        ("voyage-4", "int8", b'{"data":[{"index":0,"embedding":"gH8="}]}', [[-128, 127]]),
        ("voyage-4", "binary", b'{"data":[{"index":0,"embedding":[-128]}]}', [[-128]]),
        (
            "voyage-context-3",
            "float",
            (
                b'{"data":[{"index":1,"data":[{"index":0,"embedding":[3]}]},'
                b'{"index":0,"data":[{"index":0,"embedding":[1]}]}]}'
            ),
            [[1], [3]],
        ),
    ],
)
def test_reads_the_vectors(model, dtype, content, rows):
    batch = Batch(model=model, texts=("a",) * len(rows), dtype=dtype)

    assert rows == BACKEND.parse(batch, UpstreamResponse(200, {}, content)).array.tolist()


@pytest.mark.parametrize(
    ("usage", "tokens", "split"),
    [
        (b'{"total_tokens":5}', 5, {}),
        (
            b'{"text_tokens":2,"image_pixels":2000000,"video_pixels":0,"total_tokens":3573}',
            3573,
            {"text": 2, "image": 3571},
        ),
        (b'{"text_tokens":5,"image_pixels":0,"video_pixels":0,"total_tokens":5}', 5, {}),
        (b"null", None, {}),
    ],
)
def test_reads_the_usage(usage, tokens, split):
    content = b'{"data":[{"embedding":[1],"index":0}],"usage":%s}' % usage

    found = BACKEND.parse(
        Batch(model="voyage-multimodal-3.5", texts=("a",)), UpstreamResponse(200, {}, content)
    )

    assert (tokens, split) == (found.prompt_tokens, found.modality_tokens)


@pytest.mark.parametrize(
    "content",
    [
        b'{"data":[{"index":0,"data":[]}]}',
        b'{"data":[{"index":0,"data":[{"embedding":[1]},{"embedding":[2]}]}]}',
        b'{"data":[{"index":0,"embedding":[1]}]}',
        b'{"detail":"no"}',
    ],
)
def test_rejects_other_numbers_of_chunks(content):
    with pytest.raises(InvalidUpstreamResponse):
        BACKEND.parse(
            Batch(model="voyage-context-3", texts=("a",)), UpstreamResponse(200, {}, content)
        )


@pytest.mark.parametrize(
    ("status", "detail", "error"),
    [
        (400, "Model voyage-9 is not supported. Supported models are voyage-4, voyage-4-lite.", UpstreamModelNotFound),
        (400, "Request to model 'voyage-4' failed. The max allowed tokens per submitted batch is 320000. Your batch has 400000 tokens after truncation.", BatchTooLarge),
        (401, "Provided API key is invalid.", UpstreamAuthError),
        (403, "Forbidden", Rejected),
        (429, "You have not yet added your payment method in the billing page and will have reduced rate limits of 3 RPM and 10K TPM.", RateLimited),
        (500, "Internal error", UpstreamUnavailable),
        (503, "Service unavailable", UpstreamUnavailable),
    ],
)  # fmt: skip
def test_maps_its_errors(status, detail, error):
    content = b'{"detail":"%s"}' % detail.encode()

    found = BACKEND.map_error(UpstreamResponse(status, {}, content))

    assert error is type(refine_with_inputs(found, ("a", "b")))
