"""Tests of reading, validating and writing vectors."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from embedroute import vectors
from embedroute.errors import InvalidUpstreamResponse, MissingRows
from embedroute.testing import close

SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=9)
FLOATS = arrays("<f4", SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
NAN, INF = float("nan"), float("inf")


def floats(*rows):
    return np.asarray(rows, dtype="<f4")


def raw_rows(array):
    return [base64.b64decode(json.loads(vectors.to_base64(row)), validate=True) for row in array]


@given(FLOATS)
def test_float32_survives_every_format(array):
    as_bytes = raw_rows(array)
    as_base64 = [base64.b64encode(raw).decode() for raw in as_bytes]
    as_text = [json.loads(vectors.to_json(row)) for row in array]

    assert vectors.from_bytes(as_bytes).tobytes() == array.tobytes()
    assert vectors.from_base64(as_base64).tobytes() == array.tobytes()
    assert vectors.from_base64([row.encode() for row in as_base64]).tobytes() == array.tobytes()
    assert np.array_equal(vectors.from_lists(as_text), array)


@pytest.mark.parametrize(
    ("dtype", "storage"), [("int8", "i1"), ("uint8", "u1"), ("binary", "i1"), ("ubinary", "u1")]
)
def test_quantised_numbers_survive_every_format(dtype, storage):
    bounds = np.iinfo(storage)
    array = np.arange(bounds.min, bounds.max + 1, dtype=storage).reshape(2, 128)
    as_text = [json.loads(vectors.to_json(row)) for row in array]

    assert np.array_equal(vectors.from_lists(as_text, dtype), array)
    assert np.array_equal(vectors.from_bytes(raw_rows(array), dtype), array)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1))
def test_lists_become_the_nearest_float32(rows):
    assert vectors.from_lists(rows).tolist() == [
        [float(np.float32(number)) for number in row] for row in rows
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [1.0, 2.0],
        [[1.0], [1.0, 2.0]],
        [[[1.0]]],
        [[None]],
        [[None, 1.0]],
        [["1"]],
        [["1", 2.0]],
        [[True]],
        [{}],
        ["1"],
        "12",
        None,
        7,
        {"a": [1]},
        [[10**400]],
        [[{}]],
    ],
)
def test_refuses_lists_that_are_not_rows_of_numbers(rows):
    with pytest.raises(InvalidUpstreamResponse, match="lists of numbers"):
        vectors.from_lists(rows)


def test_an_empty_list_of_vectors_is_refused_as_missing_rows():
    with pytest.raises(MissingRows, match="no vectors"):
        vectors.from_lists([])


@pytest.mark.parametrize(
    ("dtype", "number"),
    [("int8", 128), ("int8", 0.5), ("uint8", -1), ("ubinary", 256), ("int8", NAN), ("int8", INF)],
)
def test_refuses_numbers_out_of_range_of_the_dtype(dtype, number):
    with pytest.raises(InvalidUpstreamResponse, match=dtype):
        vectors.from_lists([[number]], dtype)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["AAAAAAA"], "base64"),
        (["AAAA AAAA"], "base64"),
        (["AAAA-w=="], "base64"),
        (["é"], "base64"),
        (["é".encode()], "base64"),
        ([None], "base64"),
        ([[1.0]], "base64"),
        ([7], "base64"),
        ([], "no vectors"),
        (["AAAA"], "multiple of the size of float"),
        (["AAAAAAAA", "AAAAAAAA"], "multiple of the size of float"),
        (["AAAAAA==", "AAAAAAAAAAA="], "differ in width"),
    ],
)
def test_refuses_rows_that_are_not_base64(rows, said):
    with pytest.raises(InvalidUpstreamResponse, match=said):
        vectors.from_base64(rows)


@pytest.mark.parametrize(
    ("array", "count", "width", "dtype"),
    [
        (floats([1, 2]), 1, 2, "float"),
        (floats([1, 2]), 1, None, "float"),
        (floats([0, 1e-30], [3e38, 3e38]), 2, 2, "float"),
        (floats([3e38, 3e38], [0, 1e-30]), 2, 2, "float"),
        (floats(*[[3e38, 3e38]] * 9), 9, 2, "float"),
        (np.zeros((1, 2), dtype="u1"), 1, 2, "ubinary"),
    ],
)
def test_accepts_valid_vectors(array, count, width, dtype):
    vectors.check(array, count, width, dtype)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (floats([1, 2]), "1 rows for 2"),
        (floats([1, 2], [1, 2], [1, 2]), "3 rows for 2"),
        (floats([1], [2]), "1-dimensional vectors; expected 2"),
        (floats([1, 2, 3], [1, 2, 3]), "3-dimensional vectors; expected 2"),
        (floats([], []), "0-dimensional vectors; expected 2"),
        (np.ones(2, dtype="<f4"), "2 rows for 2"),
        (np.ones((2, 2), dtype="i4"), "int32 numbers; expected float"),
        (np.ones((2, 2), dtype=object), "object numbers; expected float"),
        (np.ma.masked_array(floats([1, 2], [3, 4])), "0 rows for 2"),
        (np.float32(1), "0 rows for 2"),
        (None, "0 rows for 2"),
        (np.full((2, 2), 1e300), "not finite"),
        (floats([0, 0], [1, 2]), "zero"),
        (floats([NAN, 1], [1, 2]), "not finite"),
        (floats([INF, 1], [1, 2]), "not finite"),
        (floats([-INF, 1], [1, 2]), "not finite"),
    ],
)
def test_refuses_invalid_vectors(array, said):
    with pytest.raises(InvalidUpstreamResponse, match=said):
        vectors.check(array, 2, 2)


@pytest.mark.parametrize(
    ("array", "width", "dtype", "message", "reason"),
    [
        (floats([1]), 2, "float", "1-dimensional vectors; expected 2", "1 dimensions instead of 2"),
        (np.ones((1, 3), dtype="i1"), 2, "int8", "3-dimensional vectors; expected 2", "3 dimen"),
        (floats([]), None, "float", "returned empty vectors", "empty vectors"),
        (np.ones((1, 0), dtype="i1"), None, "binary", "returned empty vectors", "empty vectors"),
        (np.ones((1, 3), dtype="i1"), 2, "binary", "3 bytes of packed bits", "3 bytes per vector"),
        (np.ones((1, 3), dtype="u1"), 2, "ubinary", "3 bytes of packed bits", "3 bytes per vector"),
    ],
)
def test_a_wrong_width_is_named_in_its_unit(array, width, dtype, message, reason):
    with pytest.raises(InvalidUpstreamResponse, match=message) as raised:
        vectors.check(array, 1, width, dtype)

    assert raised.value.reason.startswith(reason)


@given(FLOATS, st.integers(1, 9))
def test_a_truncated_vector_has_length_one_or_is_refused(array, width):
    if array[:, :width].any(axis=1).all():
        assert np.allclose(
            np.linalg.norm(vectors.truncate(array, width).astype("f8"), axis=1), 1, atol=1e-6
        )
    else:
        with pytest.raises(InvalidUpstreamResponse, match="zero"):
            vectors.truncate(array, width)


@pytest.mark.parametrize(
    ("row", "scaled"),
    [([3, 4], [0.6, 0.8]), ([0, 0], [0, 0]), ([3e38, 0], [1, 0]), ([1e-38, 0], [1, 0])],
)
def test_scales_to_length_one(row, scaled):
    assert vectors.unit(floats(row))[0].tolist() == pytest.approx(scaled)


def test_scaling_keeps_infinite_rows_invalid():
    with pytest.raises(InvalidUpstreamResponse, match="not finite"):
        vectors.check(vectors.unit(floats([INF, 1])), 1, 2)


def test_the_mean_of_many_rows_is_exact():
    table = np.random.default_rng(7).normal(size=(50, 4)).astype("<f4")
    picked = [at % 50 for at in range(5003)]

    assert np.allclose(
        vectors.mean(table, picked), table[picked].mean(axis=0, dtype="f8"), rtol=1e-5, atol=1e-7
    )
    assert vectors.mean(table, []).tolist() == [0, 0, 0, 0]


@given(st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=5))
def test_digests_become_valid_vectors(rows):
    vectors.check(vectors.from_digests(rows), len(rows), 3)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (floats([1, 2]), floats([1, 2.00001]), True),
        (floats([1, 2]), floats([1, 2.01]), False),
        (floats([1, 2]), floats([1, 2], [1, 2]), False),
    ],
)
def test_close_tolerates_only_rounding(left, right, same):
    assert same is close(left, right)


def test_stacks_rows():
    assert vectors.stack([floats(1, 2), floats(3, 4)]).tolist() == [[1, 2], [3, 4]]


def test_encodes_float32_in_its_shortest_form():
    assert vectors.to_json(floats(0.1, 1, -2.5)) == b"[0.1,1.0,-2.5]"


def test_encodes_a_row_that_is_not_contiguous():
    array = np.asfortranarray(floats([1, 2], [3, 4]))

    assert vectors.to_json(array[0]) == b"[1.0,2.0]"
    assert raw_rows(array) == [floats(1, 2).tobytes(), floats(3, 4).tobytes()]
