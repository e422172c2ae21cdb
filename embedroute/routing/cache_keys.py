"""Makes the cache key of each input: what makes two requests share a vector.

A cache key is a digest of everything that determines a vector (vector space, width, dtype, input
type, title, options and input) and of who may see it (cache scope and data policy).
"""

import hashlib
from array import array
from collections.abc import Generator, Mapping, Sequence
from typing import Final, cast

from embedroute.inputs import ImagePart, Input, Part
from embedroute.protocol import Preferences
from embedroute.routing.filters import Parameters
from embedroute.routing.registry import Route
from embedroute.runtime import finished

PIECE: Final = 1 << 18
"""Characters of a text that are hashed at a time."""

CacheKey = bytes
"""Digest of everything that determines a vector, and of the callers that may see it."""


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


def rekeyed(work: Mapping[CacheKey, Input], key_prefix: bytes) -> dict[CacheKey, CacheKey]:
    """Map each key of ``work`` to the key of the same input under another ``key_prefix``."""
    return dict(zip(work, make_keys(list(work.values()), key_prefix), strict=True))


def rekeyed_in_steps(
    work: Mapping[CacheKey, Input], key_prefix: bytes
) -> Generator[None, None, dict[CacheKey, CacheKey]]:
    """Return the same as ``rekeyed``, in steps."""
    keys = yield from make_keys_in_steps(list(work.values()), key_prefix)
    return dict(zip(work, keys, strict=True))
