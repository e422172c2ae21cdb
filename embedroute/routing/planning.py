"""Plans the work of a request: de-duplication by cache key, and the order of the results.

Between ``make_plan`` and ``assemble``, work and results are mappings by cache key. Only these two
know the positions of inputs in the request; ``execution/context.py`` uses ``Plan.keys`` to name the
inputs in errors.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import repeat

import msgspec

from embedroute import vectors
from embedroute.backend import Source, Vectors
from embedroute.config import Model
from embedroute.errors import InvalidUpstreamResponse
from embedroute.inputs import Input, content_size, estimate_sizes
from embedroute.routing.cache_keys import CacheKey, make_keys, make_keys_in_steps
from embedroute.routing.registry import ResolvedEndpoint
from embedroute.routing.token_shares import share_modalities, share_out
from embedroute.vectors import Array


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


def make_plan(inputs: Sequence[Input], key_prefix: bytes) -> Plan:
    """Plan the work of a request: one entry per different input."""
    keys = make_keys(inputs, key_prefix)
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def make_plan_in_steps(inputs: Sequence[Input], key_prefix: bytes) -> Generator[None, None, Plan]:
    """Make the same plan as ``make_plan``, in steps."""
    keys = yield from make_keys_in_steps(inputs, key_prefix)
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


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
