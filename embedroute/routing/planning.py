"""Plans the work of a request: cache keys, de-duplication, and the order of the results.

A cache key is a digest of everything that determines a vector (vector space, width, dtype, input
type, title, options and input) and of who may see it (cache scope and data policy).

Between ``make_plan`` and ``assemble``, work and results are mappings by cache key. Only these two
know the positions of inputs in the request; ``execution/context.py`` uses ``Plan.keys`` to name the
inputs in errors.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat
from typing import Final, cast

import msgspec

from embedroute import vectors
from embedroute.backend import Source, Vectors
from embedroute.config import Model
from embedroute.errors import InvalidUpstreamResponse
from embedroute.inputs import ImagePart, Input, Part, content_size, estimate_sizes
from embedroute.protocol import Preferences
from embedroute.routing.filters import Parameters
from embedroute.routing.registry import ResolvedEndpoint, Route
from embedroute.routing.token_shares import share_modalities, share_out
from embedroute.runtime import finished
from embedroute.vectors import Array

PIECE: Final = 1 << 18
"""Characters of a text that are hashed at a time."""

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


def encode_fields(*fields: str | bytes) -> bytes:
    """Join fields, each with a length prefix, so that different lists give different results."""
    # Names from the host application may hold lone surrogates, which UTF-8 cannot encode.
    encoded = [
        field.encode(errors="surrogatepass") if isinstance(field, str) else field
        for field in fields
    ]
    return b"".join([len(raw).to_bytes(4, "little") + raw for raw in encoded])


def shared_policy(preferences: Preferences, scope: Sequence[str]) -> bytes:
    """Encode the cache scope and the data policy: only requests equal in both share vectors."""
    return encode_fields(*scope, f"{preferences.data_collection == 'deny'}{bool(preferences.zdr)}")


def make_key_prefix(
    route: Route,
    parameters: Parameters,
    preferences: Preferences,
    scope: Sequence[str],
) -> bytes:
    """Encode the common part of a request's cache keys: everything except the input."""
    dtype = parameters.dtype
    if parameters.truncate or parameters.options_key:
        # Not a field of its own, so that the keys of requests without options stay as they are.
        dtype = f"{dtype}\0{parameters.truncate}\0{parameters.options_key}"
    vector_fields = (
        str(parameters.width or ""),
        dtype,
        parameters.input_type or "",
        parameters.title or "",
    )
    return encode_fields(shared_policy(preferences, scope), route.vector_space, *vector_fields)


def make_keys(inputs: Sequence[Input], key_prefix: bytes) -> list[CacheKey]:
    """Make the cache key of every input; equal inputs have equal keys."""
    base = hashlib.blake2b(key_prefix, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = base.copy()
        if isinstance(item, str):
            digest.update(b"t" + item.encode())
        else:
            finished(_update_digest(digest, item))
        keys.append(digest.digest())
    return keys


def make_keys_in_steps(
    inputs: Sequence[Input], key_prefix: bytes
) -> Generator[None, None, list[CacheKey]]:
    """Make the same keys as ``make_keys`` in steps: hashing 32 MiB takes 60 ms."""
    base = hashlib.blake2b(key_prefix, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = base.copy()
        yield from _update_digest(digest, item)
        keys.append(digest.digest())
        yield
    return keys


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


def make_plan(inputs: Sequence[Input], key_prefix: bytes) -> Plan:
    """Plan the work of a request: one entry per different input."""
    keys = make_keys(inputs, key_prefix)
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def make_plan_in_steps(inputs: Sequence[Input], key_prefix: bytes) -> Generator[None, None, Plan]:
    """Make the same plan as ``make_plan``, in steps."""
    keys = yield from make_keys_in_steps(inputs, key_prefix)
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def rekeyed(work: Mapping[CacheKey, Input], key_prefix: bytes) -> dict[CacheKey, CacheKey]:
    """Map each key of ``work`` to the key of the same input under another ``key_prefix``."""
    return dict(zip(work, make_keys(list(work.values()), key_prefix), strict=True))


def rekeyed_in_steps(
    work: Mapping[CacheKey, Input], key_prefix: bytes
) -> Generator[None, None, dict[CacheKey, CacheKey]]:
    """Return the same as ``rekeyed``, in steps."""
    keys = yield from make_keys_in_steps(list(work.values()), key_prefix)
    return dict(zip(work, keys, strict=True))


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


def text_before(candidate: ResolvedEndpoint, model: Model, input_type: str | None) -> str:
    """Return the prefix for texts of ``input_type``: the model's, if the API has no such type."""
    if input_type is None or input_type in candidate.accepts.input_types:
        return ""
    return (model.prefixes or {}).get(input_type, "")


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
