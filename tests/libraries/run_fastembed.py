"""The fastembed backend with a small ONNX model of the tests, which the library loads itself."""

import numpy as np
import pytest
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

from embedroute.backend import Batch
from embedroute.backends.fastembed import FastEmbed
from embedroute.errors import ContextTooLong
from embedroute.testing import check_backend
from tests.libraries.small_models import CONTEXT, make_onnx, make_tokenizer, table

NAME = "tests/small"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    folder = make_onnx(tmp_path_factory.mktemp("fastembed"))
    config = f'{{"model_max_length": {CONTEXT}, "pad_token": "[PAD]"}}'
    (folder / "tokenizer_config.json").write_text(config)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    TextEmbedding.add_custom_model(
        model=NAME,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="tests/none"),
        dim=table().shape[1],
        model_file="model.onnx",
    )
    return str(folder)


def run(backend, *texts, **batch):
    return backend.run(backend.load(), Batch(model="m", texts=texts, **batch))


def test_it_keeps_the_contract(path):
    check_backend(FastEmbed(model=NAME, path=path))


def test_vectors_are_averages_of_the_tokens_without_padding(path):
    texts = ("the cat sat on a mat", "stock")
    ids = [make_tokenizer().encode(text).ids for text in texts]

    found = run(FastEmbed(model=NAME, path=path, threads=1), *texts)

    means = np.stack([table()[each].mean(axis=0) for each in ids])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(expected, found.array, atol=1e-6)
    assert found.prompt_tokens == sum(map(len, ids))


@pytest.mark.parametrize(
    ("input_type", "method"), [("query", "query_embed"), ("document", "passage_embed")]
)
def test_input_types_call_the_method_of_the_library(path, input_type, method):
    backend = FastEmbed(model=NAME, path=path)
    own = getattr(TextEmbedding(NAME, specific_model_path=path), method)(["the cat"])

    assert np.allclose(np.stack(list(own)), run(backend, "the cat", input_type=input_type).array)


def test_a_text_over_the_context_is_refused_or_cut(path):
    long = "cat " * (CONTEXT + 1)
    with pytest.raises(ContextTooLong, match=f"the maximum of this model is {CONTEXT}") as caught:
        run(FastEmbed(model=NAME, path=path), "cat", long)

    cut = run(FastEmbed(model=NAME, path=path, truncate=True), long)

    assert caught.value.input_index == 1
    own = np.stack(list(TextEmbedding(NAME, specific_model_path=path).embed([long])))
    assert np.allclose(own, cut.array)
