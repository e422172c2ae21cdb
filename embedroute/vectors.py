"""(n, d) float32 arrays: base64 and JSON in and out, truncation, and the checks; alone knows numpy and orjson."""

import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from embedroute.errors import BadAnswer

Array = NDArray[np.generic]
"""(n, d); float32 for float vectors, int8 or uint8 for quantised ones."""

FLOAT32 = np.dtype("<f4")
DTYPES = {
    "float": FLOAT32,
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "binary": np.dtype("i1"),
    "ubinary": np.dtype("u1"),
}
"""How a number of each ``output_dtype`` is held; binary packs eight dimensions into one."""


def from_lists(rows: Sequence[Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of JSON numbers.

    Raises:
        BadAnswer: the rows differ in width, or hold something that is not a number of ``dtype``.
    """
    try:
        exact = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadAnswer("The upstream's rows are not lists of numbers of one width.") from None
    if dtype == "float":
        with np.errstate(over="ignore"):
            return exact.astype(FLOAT32)
    bounds = np.iinfo(DTYPES[dtype])
    if exact.size and not (np.all(exact == np.trunc(exact)) and exact.min() >= bounds.min and exact.max() <= bounds.max):
        raise BadAnswer(f"The upstream's rows do not hold {dtype} numbers.")
    return exact.astype(DTYPES[dtype])


def from_base64(rows: Sequence[str | bytes], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of base64 text, each little-endian numbers of ``dtype``.

    Raises:
        BadAnswer: a row is not strict base64, not whole numbers long, or of another width than the first.
    """
    try:
        return from_bytes([binascii.a2b_base64(row, strict_mode=True) for row in rows], dtype)
    except (ValueError, TypeError):
        raise BadAnswer("The upstream's rows are not base64.") from None


def from_bytes(rows: Sequence[bytes], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of raw little-endian numbers.

    Raises:
        BadAnswer: the rows differ in length, or are not whole numbers long.
    """
    held = DTYPES[dtype]
    if len(rows) == 1:
        return _row(rows[0], held)[np.newaxis]
    if len({len(row) for row in rows}) > 1:
        raise BadAnswer("The upstream's rows differ in width.")
    return _row(b"".join(rows), held).reshape(len(rows), -1)


def _row(raw: bytes, held: np.dtype[Any]) -> Array:
    if len(raw) % held.itemsize:
        raise BadAnswer("The upstream's rows are not whole numbers long.")
    return np.frombuffer(raw, dtype=held)


def check(array: Array, count: int, width: int | None, dtype: str = "float") -> None:
    """Refuse anything but ``count`` rows of ``width`` finite numbers, none of them all zero.

    Quantised rows may be zero: a zero byte is a value there.

    Raises:
        BadAnswer: says which of these does not hold.
    """
    if array.ndim != 2 or len(array) != count:
        raise BadAnswer(f"The upstream answered {len(array)} rows for {count} inputs.")
    if array.shape[1] == 0 or (width is not None and array.shape[1] != width):
        raise BadAnswer(f"The upstream answered vectors of {array.shape[1]} numbers where {width} were due.")
    if array.dtype != DTYPES[dtype]:
        raise BadAnswer(f"The upstream answered {array.dtype} numbers where {dtype} ones were due.")
    if dtype == "float" and not _sound(array):
        raise BadAnswer("The upstream answered a vector that is zero or holds a number that is not finite.")


def _sound(array: Array) -> bool:
    # One pass settles nearly all: a square sum is inf or nan for any such number, 0 for a zero row.
    # Sums may over- or underflow on odd but good rows, so only the exact look refuses.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = np.einsum("ij,ij->i", array, array)
    if bool(np.all((squares > 0) & (squares < np.inf))):
        return True
    return bool(np.isfinite(array).all() and array.any(axis=1).all())


def truncate(array: Array, width: int) -> Array:
    """Cut (n, d) matryoshka vectors to (n, width) and scale each to length 1 (float64 inside, float32 out).

    Raises:
        BadAnswer: a row's first ``width`` numbers are all zero.
    """
    cut = array[:, :width].astype(np.float64)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    if not norms.all():
        raise BadAnswer("The upstream answered a vector that is zero once it is cut to the width asked for.")
    return (cut / norms).astype(FLOAT32)


def unit(array: Array) -> Array:
    """Scale each row to length 1 (float64 inside, float32 out); zero rows stay zero."""
    exact = array.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(norms == 0, 1, norms)).astype(FLOAT32)


def stack(rows: Sequence[Array]) -> Array:
    """Put n rows of (d,) on top of each other: (n, d)."""
    return np.stack(rows)


def to_json(row: Array) -> bytes:
    """Write one (d,) row as a JSON array; float32 in its shortest form that reads back the same."""
    return orjson.dumps(np.ascontiguousarray(row), option=orjson.OPT_SERIALIZE_NUMPY)


def to_base64(row: Array) -> bytes:
    """Write one (d,) row as base64 of its little-endian numbers, without quotes."""
    return binascii.b2a_base64(np.ascontiguousarray(row), newline=False)
