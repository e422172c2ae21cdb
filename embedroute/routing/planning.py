"""Plans the work of a request: cache keys, de-duplication, chunks, and the order of the results.

This is the only module that knows the order of inputs. Between ``make_plan`` and ``assemble``, work
and results are mappings by cache key.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, repeat
from math import inf
from typing import Final, cast

import msgspec

from embedroute import vectors
from embedroute.backend import Accepts, Source, Vectors
from embedroute.config import Model
from embedroute.errors import InvalidUpstreamResponse, Measure
from embedroute.inputs import (
    ImagePart,
    Input,
    Part,
    TextPart,
    all_text,
    content_size,
    estimate_size,
    estimate_sizes,
)
from embedroute.protocol import Preferences
from embedroute.routing.batch_limits import ENVELOPE
from embedroute.routing.filters import Parameters
from embedroute.routing.registry import ResolvedEndpoint, Route
from embedroute.runtime import finished
from embedroute.vectors import Array

PIECE: Final = 1 << 18
"""Characters of a text that are hashed at a time."""

_ENCODER: Final = msgspec.json.Encoder()

CacheKey = bytes
"""Digest of everything that determines a vector, and of the callers that may see it."""


class EmbeddedInput(msgspec.Struct, frozen=True, gc=False):
    """The vector of one input, shape (d,), and its share of the tokens of the call.

    ``tokens`` comes from the upstream, or from our estimate if ``estimated``. The vector must not
    be used after its ``source`` (the connection) was found to be unreliable. ``modality_tokens`` is
    the input's share of the tokens of each modality; None if the upstream does not report them.
    """

    vector: Array
    tokens: int
    estimated: bool = False
    source: Source | None = None
    modality_tokens: Mapping[str, int] | None = None


class Plan(msgspec.Struct, frozen=True, gc=False):
    """The keys of a request in its order, and the input of each unique key."""

    keys: Sequence[CacheKey]
    work: Mapping[CacheKey, Input]


def prefix(*fields: str | bytes) -> bytes:
    """Join fields, each with a length prefix, so that different lists give different results."""
    # Names from the host application may hold lone surrogates, which UTF-8 cannot encode.
    encoded = [
        field.encode(errors="surrogatepass") if isinstance(field, str) else field
        for field in fields
    ]
    return b"".join([len(raw).to_bytes(4, "little") + raw for raw in encoded])


def shared_policy(preferences: Preferences, scope: tuple[str, str]) -> bytes:
    """Encode the cache scope and the data policy: only requests equal in both share vectors."""
    return prefix(*scope, f"{preferences.data_collection == 'deny'}{bool(preferences.zdr)}")


def make_key_prefix(
    route: Route,
    parameters: Parameters,
    preferences: Preferences,
    scope: tuple[str, str],
) -> bytes:
    """Encode the common part of a request's cache keys: everything except the input."""
    vector_fields = (
        str(parameters.width or ""),
        parameters.dtype,
        parameters.input_type or "",
        parameters.title or "",
    )
    return prefix(shared_policy(preferences, scope), route.vector_space, *vector_fields)


def make_plan(inputs: Sequence[Input], key_prefix: bytes) -> Plan:
    """Compute the cache key of every input; equal inputs share one key."""
    base = hashlib.blake2b(key_prefix, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = base.copy()
        if isinstance(item, str):
            digest.update(b"t" + item.encode())
        else:
            finished(_update_digest(digest, item))
        keys.append(digest.digest())
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def make_plan_in_steps(inputs: Sequence[Input], key_prefix: bytes) -> Generator[None, None, Plan]:
    """Make the same plan as ``make_plan`` in steps: hashing 32 MiB takes 60 ms."""
    base = hashlib.blake2b(key_prefix, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = base.copy()
        yield from _update_digest(digest, item)
        keys.append(digest.digest())
        yield
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def rekeyed(work: Mapping[CacheKey, Input], key_prefix: bytes) -> dict[CacheKey, CacheKey]:
    """Map each key of ``work`` to the key of the same input under another ``key_prefix``."""
    return dict(zip(work, make_plan(list(work.values()), key_prefix).keys, strict=True))


def rekeyed_in_steps(
    work: Mapping[CacheKey, Input], key_prefix: bytes
) -> Generator[None, None, dict[CacheKey, CacheKey]]:
    """Return the same as ``rekeyed``, in steps."""
    plan = yield from make_plan_in_steps(list(work.values()), key_prefix)
    return dict(zip(work, plan.keys, strict=True))


def cut(
    wider: Mapping[CacheKey, CacheKey], found: Mapping[CacheKey, EmbeddedInput], width: int | None
) -> dict[CacheKey, EmbeddedInput]:
    """Truncate vectors of the model's own width to ``width``.

    ``wider`` maps each requested key to the key of the whole vector in ``found``. A vector that
    would be zero after truncation is left out, so the input counts as not found.
    """
    truncated: dict[CacheKey, EmbeddedInput] = {}
    for key, wide_key in wider.items():
        if (whole := found.get(wide_key)) is not None:
            with suppress(InvalidUpstreamResponse):
                row = vectors.truncate(whole.vector[None], width or 0)[0]
                truncated[key] = EmbeddedInput(
                    row, whole.tokens, whole.estimated, whole.source, whole.modality_tokens
                )
    return truncated


def _update_digest(digest: "hashlib.blake2b", item: Input) -> Generator[None, None, None]:
    """Hash one input in an unambiguous encoding.

    Each kind of input has its own first letter, and the texts of content parts have a length.
    """
    if isinstance(item, str):
        digest.update(b"t")
        yield from _hash_text(digest, item)
    elif isinstance(item[0], int):
        digest.update(b"i" + array("i", cast("tuple[int, ...]", item)).tobytes())
    else:
        for part in cast("tuple[Part, ...]", item):
            text = part.image_url.url if isinstance(part, ImagePart) else part.text
            digest.update(b"%s%d:" % (b"m" if isinstance(part, ImagePart) else b"p", len(text)))
            yield from _hash_text(digest, text)


def _hash_text(digest: "hashlib.blake2b", text: str) -> Generator[None, None, None]:
    for start in range(0, len(text), PIECE):
        digest.update(text[start : start + PIECE].encode())
        if start:
            yield


def text_before(candidate: ResolvedEndpoint, model: Model, input_type: str | None) -> str:
    """Return the prefix for texts of ``input_type``: the model's, if the API has no such type."""
    if input_type is None or input_type in candidate.accepts.input_types:
        return ""
    return (model.prefixes or {}).get(input_type, "")


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


def amount(inputs: Collection[Input], measure: Measure) -> int:
    """Measure one call with ``inputs``: inputs, estimated tokens, or bytes of its body."""
    if measure is Measure.INPUTS:
        return len(inputs)
    if measure is Measure.TOKENS:
        return sum(estimate_sizes(inputs))
    return sum(map(count_bytes, inputs))


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


def pair_with_keys(
    chunk: Mapping[CacheKey, Input], answer: Vectors, tokens: int, sizes: Sequence[int] = ()
) -> dict[CacheKey, EmbeddedInput]:
    """Pair each key of a chunk with its row and its share of the chunk's ``tokens``.

    ``answer.array`` must be validated: row i belongs to input i. The shares are proportional to
    input length and add up exactly. They count as estimates if the upstream reported no tokens.
    ``sizes`` are the estimated tokens of the inputs if they are known.
    """
    shares = [tokens]
    if len(chunk) > 1:
        shares = share_out(tokens, sizes or estimate_sizes(chunk.values()))
    splits: Iterable[Mapping[str, int] | None] = repeat(None)
    if answer.modality_tokens:
        shares, splits = share_modalities(chunk.values(), tokens, answer.modality_tokens)
    estimated = answer.prompt_tokens is None
    rows = map(
        EmbeddedInput, answer.array, shares, repeat(estimated), repeat(answer.source), splits
    )
    return dict(zip(chunk, rows, strict=True))


def share_modalities(
    items: Collection[Input], tokens: int, modality_tokens: Mapping[str, int]
) -> tuple[list[int], list[dict[str, int]]]:
    """Split ``tokens`` and those of each modality among inputs; both add up exactly.

    An input gets its share of a modality in proportion to its own content of it. The tokens that
    belong to no modality are split in proportion to input length.
    """
    sizes = estimate_sizes(items)
    splits: list[dict[str, int]] = [{} for _ in items]
    for modality, total in modality_tokens.items():
        contents = [content_size(item, modality) for item in items]
        shares = share_out(total, contents if any(contents) else sizes)
        for split_tokens, share in zip(splits, shares, strict=True):
            if share:
                split_tokens[modality] = share
    others = share_out(tokens - sum(modality_tokens.values()), sizes)
    totals = [sum(part.values()) + other for part, other in zip(splits, others, strict=True)]
    return totals, splits


def sum_modalities(plan: Plan, found: Mapping[CacheKey, EmbeddedInput]) -> dict[str, int]:
    """Sum the tokens of each modality over all inputs of a request, as ``assemble`` sums tokens.

    Empty if the modalities of an input are unknown. All tokens of an input without images are text.
    """
    counts: Counter[str] = Counter()
    for key in plan.keys:
        item = found[key]
        split_tokens = item.modality_tokens
        if not split_tokens and content_size(plan.work[key], "image"):
            return {}
        counts.update(split_tokens or {"text": item.tokens})
    return dict(counts)


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``sizes``, into integers that add up to it exactly."""
    whole = sum(sizes)
    bounds = [total * running // whole for running in accumulate(sizes)]
    return [bound - previous for bound, previous in zip(bounds, [0, *bounds], strict=False)]


def assemble(plan: Plan, found: Mapping[CacheKey, EmbeddedInput]) -> tuple[list[Array], int, bool]:
    """Return the rows in request order, the sum of their tokens, and whether any is an estimate.

    The rows are n arrays of shape (d,), one per input.
    """
    rows: list[Array] = []
    tokens = 0
    estimated = False
    for key in plan.keys:
        item = found[key]
        rows.append(item.vector)
        tokens += item.tokens
        estimated = estimated or item.estimated
    return rows, tokens, estimated
