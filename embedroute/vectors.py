"""Reads, validates, truncates and writes vectors, as (n, d) arrays.

This is the only module of the package that imports numpy, orjson and pybase64.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, cast, runtime_checkable

import numpy as np
import orjson
import pybase64
from numpy.typing import ArrayLike, NDArray

from embedroute.errors import InvalidUpstreamResponse, InvalidVector, MissingRows
from embedroute.runtime import chunked

Number = np.float32 | np.int8 | np.uint8
Array = NDArray[Number]
"""Shape (n, d); float32 for float vectors, int8 or uint8 for quantised ones."""
FloatArray = NDArray[np.float32]
"""Shape (n, d)."""

FLOAT32 = np.dtype("<f4")
INT8 = np.dtype("i1")
UINT8 = np.dtype("u1")
DTYPES: Final[Mapping[str, np.dtype[Number]]] = {
    "float": FLOAT32,
    "int8": INT8,
    "uint8": UINT8,
    "binary": INT8,
    "ubinary": UINT8,
}
"""``output_dtype`` → type of the array; binary packs eight dimensions into one number."""

_STORED: Final[Mapping[bytes, np.dtype[Number]]] = {b"f": FLOAT32, b"b": INT8, b"B": UINT8}

WIDEST: Final = 65_536
"""Maximum dimensions of a vector whose width is not declared."""
TEXT_OF_NUMBER: Final = 48
"""Maximum bytes of one number in JSON.

They are 24 digits and signs, a comma, and the spaces and line breaks of indented JSON (Google).
"""


UNIT_TOLERANCE: Final = 1e-5
"""How much the square of a unit vector's length may differ from 1, due to rounding."""
MIXED_WIDTHS: Final = "The upstream's vectors differ in width."
NO_VECTORS: Final = "The upstream returned no vectors."


@runtime_checkable
class SupportsArray(Protocol):
    """An array of another library: numpy's protocol, which pandas, polars and pyarrow have too."""

    def __array__(self) -> NDArray[Any]:
        """Return the items as an array of numpy."""
        ...


def list_items(value: SupportsArray, most: int) -> list[object] | None:
    """Return the items of an array or a column as a list, in nested lists if it has more axes.

    None if it has no axis, as a single number, or more than ``most`` items.
    """
    array = np.asarray(value)
    if array.ndim == 0 or array.size > most:
        return None
    return cast("list[object]", array.tolist())


def from_lists(rows: Sequence[Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of JSON numbers.

    Raises:
        InvalidUpstreamResponse: the rows differ in width, or an item is not a number of ``dtype``.
    """
    try:
        array = np.asarray(rows)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    # Let numpy infer the type: with an explicit dtype it would accept null as NaN and "1" as 1.
    if array.dtype.kind == "O" and _hold_null(rows):
        raise InvalidVector("The upstream's vectors are not lists of numbers: one holds null.")
    if array.shape == (0,) and isinstance(cast("object", rows), list) and not rows:
        raise MissingRows(NO_VECTORS)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InvalidUpstreamResponse(
            "The upstream's vectors are not lists of numbers of equal length."
        )
    exact = array.astype(np.float64, copy=False)
    if dtype == "float":
        with np.errstate(over="ignore"):
            return exact.astype(FLOAT32)
    bounds = np.iinfo(DTYPES[dtype].name)
    if exact.size and not (
        np.all(exact == np.trunc(exact)) and exact.min() >= bounds.min and exact.max() <= bounds.max
    ):
        raise InvalidUpstreamResponse(
            f"The upstream's vectors contain numbers that are not {dtype}."
        )
    return exact.astype(DTYPES[dtype])


def _hold_null(rows: object) -> bool:
    return isinstance(rows, list) and any(
        isinstance(row, list) and None in row for row in cast("list[object]", rows)
    )


def from_base64(rows: Sequence[str | bytes | memoryview], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of base64 text, each of little-endian numbers of ``dtype``.

    Raises:
        InvalidUpstreamResponse: a row is not strict base64, its length is not a multiple of the
            size of a number, or the rows differ in width.
    """
    try:
        # pybase64 is as strict as binascii's strict mode and much faster, as it uses SIMD.
        raw = pybase64.b64decode(rows[0], validate=True) if len(rows) == 1 else _decode_rows(rows)
        return _reshape(raw, len(rows), dtype)
    except (TypeError, ValueError):
        raise InvalidUpstreamResponse("The upstream's vectors are not valid base64.") from None


def _decode_rows(rows: Sequence[str | bytes | memoryview]) -> memoryview:
    """Decode each row and copy it into one buffer while it is in the CPU cache.

    Joining all rows at the end takes three times as long.
    """
    buffer = memoryview(b"")
    size = 0
    for group in chunked(len(rows), sum(map(len, rows))):
        for index, text in enumerate(rows[group], group.start):
            row = pybase64.b64decode(text, validate=True)
            if index == 0:
                size = len(row)
                buffer = np.empty(len(rows) * size, UINT8).data
            if len(row) != size:
                raise InvalidUpstreamResponse(MIXED_WIDTHS)
            buffer[index * size : index * size + size] = row
    return buffer


def from_rows(rows: Sequence[str | Sequence[float]], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows that are each base64 text or numbers.

    Raises:
        InvalidUpstreamResponse: a row is neither base64 nor numbers, or has another width.
    """
    kinds = set(map(type, rows))
    if kinds == {str}:
        return from_base64(cast("Sequence[str]", rows), dtype)
    if kinds <= {list}:
        return from_lists(cast("Sequence[list[float]]", rows), dtype)
    return gathered(len(rows), (from_rows([row], dtype) for row in rows))


def from_bytes(rows: Sequence[bytes], dtype: str = "float") -> Array:
    """Make an (n, d) array of rows of raw little-endian numbers.

    Raises:
        InvalidUpstreamResponse: the rows differ in length, or their length is not a multiple of the
            size of a number.
    """
    if len(set(map(len, rows))) > 1:
        raise InvalidUpstreamResponse(MIXED_WIDTHS)
    return _reshape(rows[0] if len(rows) == 1 else b"".join(rows), len(rows), dtype)


def _reshape(raw: bytes | memoryview, count: int, dtype: str) -> Array:
    if not count:
        raise MissingRows(NO_VECTORS)
    if len(raw) % (count * DTYPES[dtype].itemsize):
        raise InvalidUpstreamResponse(
            f"The byte length of the upstream's vectors is not a multiple of the size of {dtype}."
        )
    return np.frombuffer(raw, DTYPES[dtype]).reshape(count, -1 if raw else 0)


def to_stored(row: Array) -> tuple[bytes, bytes]:
    """Return a letter for the type of one (d,) row, and its little-endian bytes."""
    return row.dtype.char.encode(), row.tobytes()


def from_stored(letter: bytes, raw: bytes) -> Array:
    """Make a read-only (d,) row of what ``to_stored`` returned.

    Raises:
        ValueError: the letter is unknown, or the length is not a multiple of the size of a number.
    """
    if letter not in _STORED:
        raise ValueError("unknown type of numbers")
    return np.frombuffer(raw, _STORED[letter])


def from_digests(rows: Sequence[bytes]) -> Array:
    """Make (n, d) unit vectors of rows of 2 d random bytes.

    No vector is zero. A prefix of a digest makes the prefix of its vector, up to scale.
    """
    integers = np.frombuffer(b"".join(rows), dtype="<i2").reshape(len(rows), -1)
    return unit(integers * np.float64(2) + 1)


def mean(table: Array, indices: Sequence[int]) -> Array:
    """Average the rows ``indices`` of (v, d) ``table``: (d,).

    It sums 512 rows at a time into float64, which bounds memory and rounding errors of long texts.
    """
    sums = (
        table[indices[start : start + 512]].sum(axis=0) for start in range(0, len(indices), 512)
    )
    return (sum(sums, np.zeros(table.shape[1])) / max(len(indices), 1)).astype(FLOAT32)


def check(array: Array, count: int, width: int | None, dtype: str = "float") -> Array:
    """Validate vectors and return them as a plain array of ``dtype``.

    The shape must be (``count``, ``width``), or any width over 0 if ``width`` is None. Numbers must
    be finite, and no float row may be all zero. Quantised rows may. Floats become float32.

    Raises:
        InvalidUpstreamResponse: a check failed; the message says which.
    """
    # Plugins may return subclasses. Masked arrays are rejected: masked items would pass as numbers.
    array = (
        array
        if type(array) is np.ndarray
        else np.asarray(None if isinstance(array, np.ma.MaskedArray) else array)
    )
    if array.ndim != 2 or len(array) != count:
        rows = len(array) if array.ndim else 0
        raise wrong_count(rows, count)
    if array.shape[1] == 0 or (width is not None and array.shape[1] != width):
        raise _wrong_width(array.shape[1], width, dtype)
    if dtype == "float" and array.dtype != FLOAT32 and array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(FLOAT32)
    if array.dtype != DTYPES[dtype]:
        raise InvalidUpstreamResponse(
            f"The upstream returned {array.dtype} numbers; expected {dtype}.",
            reason=f"{array.dtype} numbers instead of {dtype}",
        )
    if dtype == "float" and not _is_valid(array):
        raise InvalidVector(
            "The upstream returned a vector that is all zero or has a number that is not finite.",
            reason="vector is zero or not finite",
        )
    return array


def _wrong_width(found: int, width: int | None, dtype: str) -> InvalidUpstreamResponse:
    """Create the error for vectors with ``found`` numbers instead of ``width``, or with none."""
    if width is None:
        return InvalidUpstreamResponse(
            "The upstream returned empty vectors.", reason="empty vectors"
        )
    if "binary" in dtype:
        return InvalidUpstreamResponse(
            f"The upstream returned {found} bytes of packed bits per vector; expected {width}.",
            reason=f"{found} bytes per vector instead of {width}",
        )
    return InvalidUpstreamResponse(
        f"The upstream returned {found}-dimensional vectors; expected {width}.",
        reason=f"{found} dimensions instead of {width}",
    )


def wrong_count(rows: int, count: int) -> InvalidUpstreamResponse:
    """Create the error for a response with ``rows`` vectors for ``count`` inputs."""
    kind = MissingRows if rows < count else InvalidUpstreamResponse
    return kind(
        f"The upstream returned {rows} rows for {count} inputs.",
        reason=f"{rows} rows for {count} inputs",
    )


def _is_valid(array: Array) -> bool:
    # The sum of squares is 0 for a zero row, and inf or nan if a number is not finite. It may also
    # overflow or underflow for valid rows, so the exact check decides if it is not conclusive.
    # vdot and einsum overflow without a warning.
    if len(array) == 1:
        is_certain = 0 < np.vdot(array, array) < np.inf
    else:
        squares = np.einsum("ij,ij->i", array, array)
        is_certain = ((squares > 0) & (squares < np.inf)).all()
    return bool(is_certain or (np.isfinite(array).all() and array.any(axis=1).all()))


def truncate(array: Array, width: int) -> Array:
    """Cut (n, d) Matryoshka vectors to (n, width) and scale each to length 1, in float64.

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
        raise InvalidVector(
            "The upstream returned a vector that is all zero after truncation to `dimensions`."
        )
    return (cut / norms).astype(FLOAT32)


def quantize_rows(
    rows: Sequence[Array], dtype: str, bounds: tuple[float, float] | None
) -> list[Array]:
    """Return (d,) rows of float32 as numbers of ``dtype``.

    ``binary`` and ``ubinary`` have one bit per dimension, which is set if the number is positive.
    The first dimension is the highest bit of the first byte, and a ``binary`` number is 128 less.
    ``int8`` and ``uint8`` divide the range ``bounds`` into 255 equal steps; numbers outside of it
    become the nearest.
    """
    return [_quantize(row, dtype, bounds) for row in rows]


def _quantize(row: Array, dtype: str, bounds: tuple[float, float] | None) -> Array:
    if dtype in ("binary", "ubinary"):
        packed = np.packbits(row > 0)
        return packed if dtype == "ubinary" else (packed ^ 0x80).view(INT8)
    low, high = bounds or (-1.0, 1.0)
    steps = np.rint((row.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)
    unsigned = steps.astype(UINT8)
    return unsigned if dtype == "uint8" else (unsigned ^ 0x80).view(INT8)


def pool(rows: Sequence[Array], weights: Sequence[int]) -> Array:
    """Return the mean of (d,) rows of float32, weighted and scaled to length 1.

    Raises:
        InvalidUpstreamResponse: the mean is zero, or the rows differ in width.
    """
    stacked = stack(rows).astype(np.float64)
    total = np.asarray(weights, np.float64) @ stacked
    length = np.linalg.norm(total)
    if not length:
        raise InvalidVector("The mean of the vectors of an input's parts is zero.")
    return (total / length).astype(FLOAT32)


def gathered(count: int, groups: Iterable[Array]) -> Array:
    """Concatenate groups of rows to one (``count``, d) array, copying each row once.

    Raises:
        InvalidUpstreamResponse: the groups differ in width.
    """
    array = np.empty((0, 0), FLOAT32)
    row_count = 0
    for group in groups:
        if len(group) == count:
            return group
        if not row_count:
            array = np.empty((count, group.shape[1]), group.dtype)
        # numpy would broadcast a row of one number.
        if group.shape[1] != array.shape[1]:
            raise InvalidUpstreamResponse(MIXED_WIDTHS)
        array[row_count : row_count + len(group)] = group
        row_count += len(group)
    return array


def unit(array: Array | NDArray[np.float64]) -> Array:
    """Scale each row to length 1, in float64; zero rows stay zero, infinite rows become NaN."""
    exact = array.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        return (exact / np.where(norms == 0, 1, norms)).astype(FLOAT32)


def scaled(rows: ArrayLike) -> Array:
    """Return rows, shape (n, d), as float32 of length 1; rows of zeros stay zeros.

    It takes arrays, lists of lists, and iterables of rows that a library returns.
    """
    array = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return (array / lengths).astype(FLOAT32)


def as_float32(rows: ArrayLike) -> Array:
    """Return rows, shape (n, d), as float32, without any other change."""
    return np.asarray(rows, dtype=FLOAT32)


def pad(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids as two arrays of shape (n, m): the ids with zeros after them, and a mask.

    m is the length of the longest row. The mask is 1 for an id and 0 for the padding.
    """
    lengths = [len(row) for row in rows]
    places: NDArray[np.int64] = np.arange(max(lengths))
    mask = (places < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.zeros(mask.shape, np.int64)
    ids[mask == 1] = [number for row in rows for number in row]
    return ids, mask


Pooling = Literal["mean", "cls", "last"]
"""How the vectors of tokens become one: their average, the first, or the last."""


def pool_tokens(states: Array, mask: NDArray[np.int64], pooling: Pooling) -> Array:
    """Return one vector per row, shape (n, d), from those of tokens, shape (n, m, d).

    ``mask`` is that of ``pad``.
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[np.arange(len(states)), mask.sum(axis=1) - 1]
    weights = mask[:, :, None]
    return (states * weights).sum(axis=1) / weights.sum(axis=1)


def stack(rows: Sequence[Array]) -> Array:
    """Stack n rows of (d,) to (n, d).

    Raises:
        InvalidUpstreamResponse: the rows differ in width, which may happen if it is not declared.
    """
    try:
        return np.stack(rows)
    except ValueError:
        raise InvalidUpstreamResponse(
            "The vectors of this model differ in width. Declare its dimensions in the config."
        ) from None


def to_json(row: Array) -> bytes:
    """Write one (d,) row as a JSON array; float32 in its shortest exact form."""
    return orjson.dumps(
        row if row.flags.c_contiguous else np.ascontiguousarray(row),
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def to_unit(row: Array) -> Array:
    """Scale one (d,) row of float32 to length 1, unless its length is 1 but for rounding."""
    is_unit = abs(float(np.vdot(row, row)) - 1) <= UNIT_TOLERANCE
    return row if is_unit else unit(row[np.newaxis])[0]


def to_unit_json(row: Array) -> bytes:
    """Write one (d,) row of float32, scaled to length 1, as a JSON array."""
    return to_json(to_unit(row))


def base64_size(row: Array) -> int:
    """Return the length of ``to_base64(row)`` in bytes."""
    return 2 + (row.nbytes + 2) // 3 * 4


def to_base64(row: Array) -> bytes:
    """Write the little-endian bytes of one (d,) row as a JSON string of base64.

    A contiguous row is not copied.
    """
    return b'"%b"' % pybase64.b64encode(
        (row if row.flags.c_contiguous else np.ascontiguousarray(row)).data
    )
