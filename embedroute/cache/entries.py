"""Encodes cached vectors for a store, and verifies what comes back from it.

An entry starts with the version of the format and contains its whole key. An entry that is
damaged, of another version, or stored under another key is not decoded.
"""

import struct
from collections.abc import Mapping
from typing import Final
from zlib import crc32

import msgspec

from embedroute.cache.memory import Entry
from embedroute.routing import CacheKey, EmbeddedInput
from embedroute.vectors import from_stored, to_stored

MAGIC: Final = b"er\x01"
"""The start of an entry, with the version of the format."""
_HEAD: Final = struct.Struct("<3scIdBBHH")
"""Magic, type of the numbers, tokens, expiry, and four lengths or flags: see ``encode``."""
_CHECKSUM: Final = struct.Struct("<I")
_ESTIMATED: Final = 1
_MODALITIES: Final = msgspec.json.Decoder(dict[str, int])


def encode(key: CacheKey, item: EmbeddedInput, owners: tuple[int, ...], expires: float) -> bytes:
    """Return the bytes of an entry: head, key, owners, tokens by modality, numbers, checksum.

    ``expires`` is in seconds since 1970.
    """
    letter, numbers = to_stored(item.vector)
    modalities = msgspec.json.encode(item.modality_tokens) if item.modality_tokens else b""
    head = _HEAD.pack(
        MAGIC,
        letter,
        min(item.tokens, 0xFFFF_FFFF),
        expires,
        _ESTIMATED if item.estimated else 0,
        len(owners),
        len(key),
        len(modalities),
    )
    marks = struct.pack(f"<{len(owners)}q", *owners)
    body = b"".join((head, key, marks, modalities, numbers))
    return body + _CHECKSUM.pack(crc32(body))


def decode(key: CacheKey, value: bytes, now: float, clock_offset: float) -> Entry | None:
    """Return the entry of ``key``, or None if ``value`` is not a valid entry of this key.

    ``now`` is in seconds since 1970. ``clock_offset`` plus such seconds are those of the cache's
    clock.
    """
    try:
        return _decode(key, value, now, clock_offset)
    except (ValueError, struct.error, msgspec.DecodeError):
        return None


def _decode(key: CacheKey, value: bytes, now: float, clock_offset: float) -> Entry | None:
    magic, letter, tokens, expires, flags, count, size, modalities = _HEAD.unpack_from(value)
    owners_at = _HEAD.size + size
    modalities_at = owners_at + 8 * count
    numbers_at = modalities_at + modalities
    if magic != MAGIC or expires <= now or value[_HEAD.size : owners_at] != key:
        return None
    body = memoryview(value)[: -_CHECKSUM.size]
    if (crc32(body),) != _CHECKSUM.unpack(value[-_CHECKSUM.size :]):
        return None
    by_modality: Mapping[str, int] | None = None
    if modalities:
        by_modality = _MODALITIES.decode(value[modalities_at:numbers_at])
    return Entry(
        from_stored(letter, value[numbers_at : -_CHECKSUM.size]),
        tokens,
        bool(flags & _ESTIMATED),
        None,
        by_modality,
        expires=expires + clock_offset,
        owners=struct.unpack_from(f"<{count}q", value, owners_at),
    )
