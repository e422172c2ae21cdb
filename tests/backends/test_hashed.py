"""Tests of the hashed backend: equal inputs have equal vectors, different inputs do not."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute import vectors
from embedroute.backend import Batch
from embedroute.backends.hashed import INPUT_TYPES, Hashed
from embedroute.inputs import ImagePart, ImageURL, TextPart
from embedroute.protocol import SPELLINGS
from embedroute.testing import close

URL = "https://x.example/i.png"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="

pytestmark = pytest.mark.anyio


async def row(**batch):
    return (await Hashed().embed(Batch(model="m", **batch))).array[0]


async def test_a_vector_is_pinned():
    """These numbers must never change: tests in other repositories rely on them."""
    found = await row(texts=("hello",), dimensions=4)

    assert found.tolist() == pytest.approx([0.0693215, -0.6050750, 0.3491969, -0.7121378], abs=1e-6)


@pytest.mark.parametrize(
    ("batch", "width"),
    [
        ({}, 256),
        ({"dimensions": 3}, 3),
        ({"width": 5}, 5),
        ({"dimensions": 3, "width": 5}, 3),
        ({"dimensions": 1}, 1),
    ],
)
async def test_uses_the_requested_declared_or_default_width(batch, width):
    assert await row(texts=("a",), **batch) is not None
    assert (width,) == (await row(texts=("a",), **batch)).shape


async def test_different_inputs_have_different_vectors():
    different = [
        {"texts": ("ab",)},
        {"texts": ("a",)},
        {"texts": ("[97,98]",)},
        {"texts": (URL,)},
        {"texts": ("ab",), "input_type": "query"},
        {"texts": ("ab",), "input_type": "document"},
        {"tokens": ((97, 98),)},
        {"tokens": ((9798,),)},
        {"parts": ((TextPart("a"), TextPart("b")),)},
        {"parts": ((TextPart("ab"), ImagePart(ImageURL(URL))),)},
        {"parts": ((ImagePart(ImageURL(URL)), TextPart("ab")),)},
        {"parts": ((ImagePart(ImageURL(PIXEL)),),)},
        {"texts": (PIXEL,)},
    ]
    rows = [await row(**batch) for batch in different]

    assert all(abs(float(left @ right)) < 0.5 for left, right in combinations(rows, 2))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (ImagePart(ImageURL(URL)), URL),
        (ImagePart(ImageURL("HTTPS://x.example/i.png")), "HTTPS://x.example/i.png"),
        (TextPart(URL), URL),
        (TextPart("ab"), "ab"),
    ],
)
async def test_an_https_image_is_hashed_as_the_text_of_its_url(part, text):
    as_part, as_text = (
        await row(parts=((part,),), input_type="query"),
        await row(texts=(text,), input_type="query"),
    )
    beside = (
        await row(parts=((TextPart("a"), part),)),
        await row(parts=((TextPart("a"), TextPart(text)),)),
    )

    assert np.array_equal(as_part, as_text)
    assert np.array_equal(*beside)


async def test_a_vector_does_not_depend_on_other_inputs_model_or_user():
    alone, beside = (
        await Hashed().embed(Batch(model="m", texts=("a",))),
        await Hashed().embed(Batch(model="other", texts=("b", "a"), user="u")),
    )

    assert np.array_equal(alone.array[0], beside.array[1])


async def test_a_shorter_vector_is_the_start_of_a_longer_one():
    short, long = await row(texts=("a",), dimensions=8), await row(texts=("a",), dimensions=64)

    assert close(short[np.newaxis], vectors.truncate(long[np.newaxis], 8))


async def test_tokens_are_estimated():
    found = await Hashed().embed(Batch(model="m", texts=("a" * 40, "b" * 8)))

    assert found.prompt_tokens == 12


async def test_accepts_every_neutral_input_type():
    assert set(SPELLINGS) == set(INPUT_TYPES) == set(Hashed.accepts.input_types)


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5
    ),
    width=st.integers(1, 50),
)
async def test_every_vector_is_valid_and_has_length_one(texts, width):
    found = await Hashed().embed(Batch(model="m", texts=texts, dimensions=width))

    vectors.check(found.array, len(texts), width)
    assert np.allclose(np.linalg.norm(found.array, axis=1), 1, atol=1e-6)
