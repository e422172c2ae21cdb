"""Splits the work of a call that is too large for an endpoint: by inputs, tokens and bytes."""

from collections.abc import Collection, Generator, Mapping
from math import inf
from typing import Final, cast

import msgspec

from embedroute.backend import Accepts
from embedroute.errors import Measure
from embedroute.inputs import (
    ImagePart,
    Input,
    Part,
    TextPart,
    all_text,
    estimate_size,
    estimate_sizes_in_steps,
)
from embedroute.routing.batch_limits import ENVELOPE
from embedroute.routing.cache_keys import CacheKey
from embedroute.runtime import finished

PIECE: Final = 1 << 18
"""Characters of a text that are measured at a time."""

_ENCODER: Final = msgspec.json.Encoder()


def split(
    work: Mapping[CacheKey, Input], accepts: Accepts, before: str = ""
) -> list[dict[CacheKey, Input]]:
    """Split work into chunks within the limits of one call on inputs, tokens and bytes.

    ``before`` is the prefix that each text will get. An input that exceeds a limit by itself
    becomes a chunk of its own, and the upstream reports the error.
    """
    return finished(split_in_steps(work, accepts, before))


def split_in_steps(
    work: Mapping[CacheKey, Input], accepts: Accepts, before: str = ""
) -> Generator[None, None, list[dict[CacheKey, Input]]]:
    """Return the same as ``split``, in steps: measuring 32 MiB takes up to 170 ms."""
    if len(work) < 2:
        return [dict(work)] if work else []
    most = accepts.max_inputs or len(work)
    max_tokens = accepts.max_tokens or inf
    max_bytes = (accepts.max_bytes or inf) - ENVELOPE
    if len(work) <= most and _surely_within(work.values(), max_tokens, max_bytes, len(before)):
        return [dict(work)]
    return (yield from _chunks(work, most, max_tokens, max_bytes, before))


def _surely_within(
    items: Collection[Input], max_tokens: float, max_bytes: float, prefix_length: int
) -> bool:
    """Return whether a cheap upper bound is within the limits, so that nothing must be measured.

    A character is at most 1 token, and at most 6 bytes of JSON (an escape). One more character per
    text covers its two quotes and its comma.
    """
    if not all_text(items):
        return max_tokens == max_bytes == inf
    most = sum(map(len, items)) + (prefix_length + 1) * len(items)
    return most <= max_tokens and 6 * most <= max_bytes


def _chunks(
    work: Mapping[CacheKey, Input],
    max_inputs: int,
    max_tokens: float,
    max_bytes: float,
    before: str,
) -> Generator[None, None, list[dict[CacheKey, Input]]]:
    chunks: list[dict[CacheKey, Input]] = []
    chunk: dict[CacheKey, Input] = {}
    chunk_tokens = 0
    chunk_bytes = 0
    for key, item in work.items():
        sent = before + item if isinstance(item, str) else item
        tokens = estimate_size(sent) if max_tokens < inf else 0
        size = (yield from _bytes_in_steps(sent)) if max_bytes < inf else 0
        yield
        if chunk and (
            len(chunk) >= max_inputs
            or chunk_tokens + tokens > max_tokens
            or chunk_bytes + size > max_bytes
        ):
            chunks.append(chunk)
            chunk = {}
            chunk_tokens = 0
            chunk_bytes = 0
        chunk[key] = item
        chunk_tokens += tokens
        chunk_bytes += size
    return [*chunks, chunk] if chunk else chunks


def measure_inputs(inputs: Collection[Input], measure: Measure) -> int:
    """Measure one call with ``inputs``: inputs, estimated tokens, or bytes of its body."""
    return finished(measure_inputs_in_steps(inputs, measure))


def measure_inputs_in_steps(
    inputs: Collection[Input], measure: Measure
) -> Generator[None, None, int]:
    """Return the same as ``measure_inputs``, in steps: a body of 32 MiB takes up to 80 ms."""
    if measure is Measure.INPUTS:
        return len(inputs)
    if measure is Measure.TOKENS:
        return sum((yield from estimate_sizes_in_steps(inputs)))
    total = 0
    for item in inputs:
        total += yield from _bytes_in_steps(item)
        yield
    return total


def count_bytes(item: Input) -> int:
    """Count the bytes of one input in a JSON body, with its delimiters.

    For content parts this is an estimate, because the field names differ between APIs.
    """
    if isinstance(item, str) or isinstance(item[0], int):
        return len(_ENCODER.encode(item)) + 1
    return sum(_part_bytes(part) for part in item if not isinstance(part, int)) + 32


def _bytes_in_steps(item: Input) -> Generator[None, None, int]:
    """Count the same as ``count_bytes``, long texts piece by piece."""
    if isinstance(item, str):
        return (yield from _text_bytes_in_steps(item)) + 1
    if isinstance(item[0], int):
        return count_bytes(item)
    count = 32
    for part in cast("tuple[Part, ...]", item):
        if isinstance(part, TextPart):
            count += 64 + (yield from _text_bytes_in_steps(part.text))
        else:
            count += _part_bytes(part)
    return count


def _text_bytes_in_steps(text: str) -> Generator[None, None, int]:
    if len(text) <= PIECE:
        return len(_ENCODER.encode(text))
    count = 2
    for start in range(0, len(text), PIECE):
        count += len(_ENCODER.encode(text[start : start + PIECE])) - 2
        yield
    return count


def _part_bytes(part: Part) -> int:
    # Image URLs are validated on arrival and need no JSON escapes, so the copy can be avoided.
    if isinstance(part, ImagePart):
        return 64 + len(part.image_url.url)
    return 64 + len(_ENCODER.encode(part.text))


def halves(chunk: Mapping[CacheKey, Input]) -> tuple[dict[CacheKey, Input], dict[CacheKey, Input]]:
    """Split a chunk that was too large into two halves."""
    items = list(chunk.items())
    middle = len(items) // 2
    return dict(items[:middle]), dict(items[middle:])
