"""Tests of the wordllama backend with the real model from its wheel."""

import sys
from concurrent.futures import ThreadPoolExecutor

import anyio
import numpy as np
import pytest

from embedroute import vectors
from embedroute.backend import Batch
from embedroute.backends.wordllama import WordLlama
from embedroute.execution import LocalModels

TEXTS = ("hello world", "the quick brown fox " * 20, "a", "日本語 text", " ", "\n", "\x00", "😀")

SILENT = """
import logging
from embedroute.backends.wordllama import WordLlama

WordLlama().load()
print(logging.root.handlers, logging.root.level == logging.WARNING)
"""

MISSING = """
import sys
sys.modules["wordllama"] = None
from embedroute.backends.wordllama import WordLlama
from embedroute.errors import MissingExtra

try:
    WordLlama()
except MissingExtra as error:
    print(error.message)
"""


@pytest.fixture(scope="module")
def model():
    return WordLlama().load()


def run(model, *texts, **batch):
    return WordLlama().run(model, Batch(model="wordllama", texts=texts, **batch))


@pytest.mark.parametrize("width", [64, 128, 256])
def test_returns_the_vectors_of_wordllama_itself_at_that_width(model, width):
    """The expected values are from its ``embed`` with padding, of a model loaded with ``width``."""
    own = WordLlama().load()
    own.tokenizer.enable_padding()
    own.embedding = own.embedding[:, :width]

    found = run(model, *TEXTS, dimensions=width)

    vectors.check(found.array, len(TEXTS), width)
    assert np.allclose(found.array, own.embed(list(TEXTS), norm=True), atol=1e-6)
    assert np.allclose(np.linalg.norm(found.array, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "width"), [({}, 256), ({"width": 128}, 128), ({"dimensions": 64, "width": 128}, 64)]
)
def test_uses_the_requested_or_declared_width(model, batch, width):
    assert run(model, "a", **batch).array.shape == (1, width)


def test_a_vector_does_not_depend_on_the_other_texts(model):
    together = run(model, *TEXTS).array

    assert np.array_equal(together, np.concatenate([run(model, text).array for text in TEXTS]))


def test_counts_the_tokens_of_each_text_without_padding(model):
    assert [run(model, text).prompt_tokens for text in TEXTS[:3]] == [2, 101, 1]
    assert run(model, *TEXTS[:3]).prompt_tokens == 104


def test_a_long_text_is_the_mean_of_all_its_tokens(model):
    long = "hello world " * 5000
    ids = model.tokenizer.encode(long, add_special_tokens=False).ids
    mean = model.embedding[ids].mean(axis=0, dtype=np.float64)

    assert len(ids) > 8192
    assert np.allclose(run(model, long).array[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_threads_may_share_the_model(model):
    wanted = run(model, *TEXTS).array

    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(
                lambda size: run(model, *TEXTS[:size]).array,
                [1 + at % len(TEXTS) for at in range(40)],
            )
        )

    assert all(np.array_equal(array, wanted[: len(array)]) for array in found)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (SILENT, "[] True"),
        (MISSING, "wordllama is not installed; run: pip install 'embedroute[local]'"),
    ],
)
@pytest.mark.anyio
async def test_loads_in_a_separate_process(script, said):
    """Importing wordllama calls ``logging.basicConfig``, which must not change the host's logging."""
    done = await anyio.run_process([sys.executable, "-W", "error", "-c", script])

    assert (said, b"") == (done.stdout.decode().strip(), done.stderr)


@pytest.mark.anyio
async def test_a_batch_in_slices_has_the_same_vectors_as_a_whole(model):
    texts = [f"{text} {at}" for at in range(40) for text in TEXTS]
    whole = run(model, *texts)
    slices = []

    def check(answer, batch):
        slices.append(len(batch))
        return answer

    batch = Batch(model="wordllama", texts=texts)
    found = await LocalModels().run(WordLlama(), batch, check)

    assert len(slices) > 1
    assert np.array_equal(whole.array, found.array)
    assert whole.prompt_tokens == found.prompt_tokens
