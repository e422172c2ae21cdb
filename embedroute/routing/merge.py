"""Several batches as one call: how many of them it can hold, and whose is what of its answer. Pure."""

from collections.abc import Sequence

import msgspec

from embedroute.backend import Accepts, Batch, Vectors
from embedroute.inputs import size_of
from embedroute.routing.plan import ENVELOPE, bytes_of, share_out


class Load(msgspec.Struct, frozen=True, gc=False):
    """What a batch weighs: its inputs, and its tokens and bytes where the API caps them."""

    inputs: int
    tokens: int
    size: int


def weigh(batch: Batch, accepts: Accepts) -> Load:
    """Weigh a batch by what ``accepts`` caps."""
    tokens = sum(map(size_of, batch.inputs)) if accepts.max_tokens else 0
    return Load(len(batch), tokens, sum(map(bytes_of, batch.inputs)) if accepts.max_bytes else 0)


def fitting(loads: Sequence[Load], accepts: Accepts) -> int:
    """Count the batches, from the first, that one call can hold; at least 1."""
    inputs, tokens, size = 0, 0, ENVELOPE
    for count, load in enumerate(loads):
        inputs, tokens, size = inputs + load.inputs, tokens + load.tokens, size + load.size
        over = inputs > (accepts.max_inputs or inputs) or tokens > (accepts.max_tokens or tokens)
        if count and (over or size > (accepts.max_bytes or size)):
            return count
    return len(loads)


def is_full(loads: Sequence[Load], accepts: Accepts) -> bool:
    """Whether the first batches fill a call; there is nothing more to wait for then."""
    return sum(load.inputs for load in loads) == accepts.max_inputs or fitting(loads, accepts) < len(loads)


def merged(batches: Sequence[Batch]) -> Batch:
    """Make one batch of several that differ in nothing but their inputs."""
    return msgspec.structs.replace(
        batches[0],
        texts=[text for batch in batches for text in batch.texts],
        tokens=[ids for batch in batches for ids in batch.tokens],
        parts=[parts for batch in batches for parts in batch.parts],
    )


def taken_apart(whole: Vectors, batches: Sequence[Batch]) -> list[Vectors]:
    """Cut a merged answer: each batch its rows, and tokens by input length that add up exactly."""
    sizes = [sum(map(size_of, batch.inputs)) for batch in batches]
    tokens = [None] * len(batches) if whole.prompt_tokens is None else share_out(whole.prompt_tokens, sizes)
    parts: list[Vectors] = []
    start = 0
    for batch, share in zip(batches, tokens, strict=True):
        parts.append(Vectors(whole.array[start : start + len(batch)], share, source=whole.source))
        start += len(batch)
    return parts
