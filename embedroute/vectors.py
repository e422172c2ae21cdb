"""(n, d) float32 arrays: base64 and JSON in and out, truncation, and the checks; alone knows numpy, orjson and pybase64."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import orjson
import pybase64
from numpy.typing import NDArray

from embedroute.errors import InvalidUpstreamResponse
from embedroute.runtime import chunked

Number = np.float32 | np.int8 | np.uint8
Array = NDArray[Number]
"""(n, d); float32 for float vectors, int8 or uint8 for quantised ones."""

FLOAT32, I8, U8 = np.dtype("<f4"), np.dtype("i1"), np.dtype("u1")
DTYPES: Final[Mapping[str, np.dtype[Number]]] = {
    "float": FLOAT32,
    "int8": I8,
    "uint8": U8,
    "binary": I8,
    "ubinary": U8,
}
"""How a number of each ``output_dtype`` is held; binary packs eight dimensions into one."""

WIDEST: Final = 65_536
"""Numbers that a vector may have where its width is not known."""
TEXT_OF_NUMBER: Final = 48
"""Bytes of JSON that a number may take: 24 digits and signs, a comma, and what pretty-printing, as Google's, adds."""


def from_lists(rows: Sequence[Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of JSON numbers.

    Raises:
        InvalidUpstreamResponse: the rows differ in width, or hold something that is not a number of ``dtype``.
    """
    try:
        found = np.asarray(rows)
    except (TypeError, ValueError, OverflowError):
        found = np.empty(0)
    # Told the dtype, numpy would take null for NaN and the text "1" for 1, so it says what it sees first.
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise InvalidUpstreamResponse("The upstream's rows are not lists of numbers of one width.")
    exact = found.astype(np.float64, copy=False)
    if dtype == "float":
        with np.errstate(over="ignore"):
            return exact.astype(FLOAT32)
    bounds = np.iinfo(DTYPES[dtype].name)
    if exact.size and not (
        np.all(exact == np.trunc(exact)) and exact.min() >= bounds.min and exact.max() <= bounds.max
    ):
        raise InvalidUpstreamResponse(f"The upstream's rows do not hold {dtype} numbers.")
    return exact.astype(DTYPES[dtype])


def from_base64(rows: Sequence[str | bytes | memoryview], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of base64 text, each little-endian numbers of ``dtype``.

    Raises:
        InvalidUpstreamResponse: a row is not strict base64, not whole numbers long, or of another width than the first.
    """
    try:
        # As strict as binascii's strict mode, and many times as fast: it works on whole registers.
        raw = pybase64.b64decode(rows[0], validate=True) if len(rows) == 1 else _packed(rows)
        return _shaped(raw, len(rows), dtype)
    except (TypeError, ValueError):
        raise InvalidUpstreamResponse("The upstream's rows are not base64.") from None


def _packed(rows: Sequence[str | bytes | memoryview]) -> memoryview:
    """Put each row in its place while it is in the processor's cache; joining them all at last costs three times as much."""
    room, size = memoryview(b""), 0
    for group in chunked(len(rows), sum(map(len, rows))):
        for at, text in enumerate(rows[group], group.start):
            row = pybase64.b64decode(text, validate=True)
            if at == 0:
                room, size = np.empty(len(rows) * len(row), U8).data, len(row)
            if len(row) != size:
                raise InvalidUpstreamResponse("The upstream's rows differ in width.")
            room[at * size : at * size + size] = row
    return room


def from_bytes(rows: Sequence[bytes], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of raw little-endian numbers.

    Raises:
        InvalidUpstreamResponse: the rows differ in length, or are not whole numbers long.
    """
    if len(set(map(len, rows))) > 1:
        raise InvalidUpstreamResponse("The upstream's rows differ in width.")
    return _shaped(rows[0] if len(rows) == 1 else b"".join(rows), len(rows), dtype)


def _shaped(raw: bytes | memoryview, count: int, dtype: str) -> Array:
    if not count:
        raise InvalidUpstreamResponse("The upstream answered no rows.")
    if len(raw) % (count * DTYPES[dtype].itemsize):
        raise InvalidUpstreamResponse("The upstream's rows are not whole numbers long.")
    return np.frombuffer(raw, DTYPES[dtype]).reshape(count, -1 if raw else 0)


def from_digests(rows: Sequence[bytes]) -> Array:
    """Make (n, d) unit vectors of rows of 2 d random bytes; none is zero, and shorter digests make prefixes up to scale."""
    whole = np.frombuffer(b"".join(rows), dtype="<i2").reshape(len(rows), -1)
    return unit(whole * np.float64(2) + 1)


def mean(table: Array, picked: Sequence[int]) -> Array:
    """Average the rows ``picked`` of (v, d) ``table``: (d,); piece by piece, so that a long text stays small and exact."""
    pieces = (
        table[picked[start : start + 512]].sum(axis=0) for start in range(0, len(picked), 512)
    )
    return (sum(pieces, np.zeros(table.shape[1])) / max(len(picked), 1)).astype(FLOAT32)


def check(array: Array, count: int, width: int | None, dtype: str = "float") -> Array:
    """Give back ``count`` rows of ``width`` finite numbers, none of them all zero; floats of any size as float32.

    Quantised rows may be zero: a zero byte is a value there.

    Raises:
        InvalidUpstreamResponse: says which of these does not hold.
    """
    # Whatever a plugin made of it becomes a plain array; a masked one, whose holes would pass for numbers, becomes none.
    array = (
        array
        if type(array) is np.ndarray
        else np.asarray(None if isinstance(array, np.ma.MaskedArray) else array)
    )
    if array.ndim != 2 or len(array) != count:
        raise InvalidUpstreamResponse(
            f"The upstream answered {len(array) if array.ndim else 0} rows for {count} inputs."
        )
    if array.shape[1] == 0 or (width is not None and array.shape[1] != width):
        raise InvalidUpstreamResponse(
            f"The upstream answered vectors of {array.shape[1]} numbers where {width} were due."
        )
    if dtype == "float" and array.dtype != FLOAT32 and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(FLOAT32)
    if array.dtype != DTYPES[dtype]:
        raise InvalidUpstreamResponse(
            f"The upstream answered {array.dtype} numbers where {dtype} ones were due."
        )
    if dtype == "float" and not _sound(array):
        raise InvalidUpstreamResponse(
            "The upstream answered a vector that is zero or holds a number that is not finite."
        )
    return array


def _sound(array: Array) -> bool:
    # One pass settles nearly all: a square sum is inf or nan for any such number, 0 for a zero row. Sums may over- or
    # underflow on odd but good rows, so only the exact look refuses; vdot and einsum overflow without a warning.
    if len(array) == 1:
        is_sure = 0 < np.vdot(array, array) < np.inf
    else:
        squares = np.einsum("ij,ij->i", array, array)
        is_sure = ((squares > 0) & (squares < np.inf)).all()
    return bool(is_sure or (np.isfinite(array).all() and array.any(axis=1).all()))


def truncate(array: Array, width: int) -> Array:
    """Cut (n, d) matryoshka vectors to (n, width) and scale each to length 1 (float64 inside, float32 out).

    Raises:
        InvalidUpstreamResponse: a row's first ``width`` numbers are all zero.
    """
    return gathered(
        len(array), (_cut(array[group], width) for group in chunked(len(array), array.nbytes))
    )


def _cut(array: Array, width: int) -> Array:
    cut = array[:, :width].astype(np.float64)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    if not norms.all():
        raise InvalidUpstreamResponse(
            "The upstream answered a vector that is zero once it is cut to the width asked for."
        )
    return (cut / norms).astype(FLOAT32)


def gathered(count: int, groups: Iterable[Array]) -> Array:
    """Put groups of rows, ``count`` rows in all, on top of each other: (count, d), each copied once.

    Raises:
        InvalidUpstreamResponse: they differ in width.
    """
    whole, filled = np.empty((0, 0), FLOAT32), 0
    for group in groups:
        if len(group) == count:
            return group
        if not filled:
            whole = np.empty((count, group.shape[1]), group.dtype)
        # numpy would spread a row of one number over a whole row.
        if group.shape[1] != whole.shape[1]:
            raise InvalidUpstreamResponse("The upstream's rows differ in width.")
        whole[filled : filled + len(group)] = group
        filled += len(group)
    return whole


def unit(array: Array | NDArray[np.float64]) -> Array:
    """Scale each row to length 1 (float64 inside, float32 out); zero rows stay zero, infinite ones turn to NaN."""
    exact = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        return (exact / np.where(norms == 0, 1, norms)).astype(FLOAT32)


def stack(rows: Sequence[Array]) -> Array:
    """Put n rows of (d,) on top of each other: (n, d).

    Raises:
        InvalidUpstreamResponse: they differ in width, as the answers of an endpoint whose width nobody declared may.
    """
    try:
        return np.stack(rows)
    except ValueError:
        raise InvalidUpstreamResponse(
            "The upstream's vectors of one model differ in width; declare its dimensions."
        ) from None


def to_json(row: Array) -> bytes:
    """Write one (d,) row as a JSON array; float32 in its shortest form that reads back the same."""
    return orjson.dumps(
        row if row.flags.c_contiguous else np.ascontiguousarray(row),
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def to_base64(row: Array) -> bytes:
    """Write one (d,) row's little-endian bytes as a JSON string of base64, from its memory where that is contiguous."""
    return b'"%b"' % pybase64.b64encode(
        (row if row.flags.c_contiguous else np.ascontiguousarray(row)).data
    )
