"""Order and duplicates: inputs → keys in request order and unique work; chunks; and the way back. Alone knows order."""

import hashlib
from array import array
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
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
"""Digest of all that makes a vector what it is, and of who may see it."""


class EmbeddedInput(msgspec.Struct, frozen=True, gc=False):
    """One input's vector, (d,), and its share of the tokens that computing it cost, as the upstream told or we estimate.

    It must not be used once its ``source`` is caught.
    """

    vector: Array
    tokens: int
    estimated: bool = False
    source: Source | None = None


class Plan(msgspec.Struct, frozen=True, gc=False):
    """The keys of a request in its order, and the input of each unique key."""

    keys: Sequence[CacheKey]
    work: Mapping[CacheKey, Input]


def prefix(*fields: str | bytes) -> bytes:
    """Join what all keys of a request share, length-prefixed so that no two lists of fields run together."""
    # A host's names may hold lone surrogates, which plain UTF-8 refuses.
    raws = [it.encode(errors="surrogatepass") if isinstance(it, str) else it for it in fields]
    return b"".join([len(raw).to_bytes(4, "little") + raw for raw in raws])


def shared_policy(preferences: Preferences, scope: tuple[str, str]) -> bytes:
    """Encode a cache scope and the data policy: requests equal in both share entries and calls."""
    return prefix(*scope, f"{preferences.data_collection == 'deny'}{bool(preferences.zdr)}")


def shared_key(
    route: Route,
    parameters: Parameters,
    preferences: Preferences,
    scope: tuple[str, str],
) -> bytes:
    """Encode what all keys of a request share: who may see its vectors, and all but the input."""
    made = (
        str(parameters.width or ""),
        parameters.dtype,
        parameters.input_type or "",
        parameters.title or "",
    )
    return prefix(shared_policy(preferences, scope), route.vector_space, *made)


def make_plan(inputs: Sequence[Input], shared: bytes) -> Plan:
    """Give every input its key; equal inputs share one."""
    begun = hashlib.blake2b(shared, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = begun.copy()
        if isinstance(item, str):
            digest.update(b"t" + item.encode())
        else:
            finished(_digested(digest, item))
        keys.append(digest.digest())
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def make_plan_in_steps(inputs: Sequence[Input], shared: bytes) -> Generator[None, None, Plan]:
    """Make the same plan in steps: hashing 32 MiB takes 60 ms."""
    begun = hashlib.blake2b(shared, digest_size=24)
    keys: list[CacheKey] = []
    for item in inputs:
        digest = begun.copy()
        yield from _digested(digest, item)
        keys.append(digest.digest())
        yield
    return Plan(keys, dict(zip(keys, inputs, strict=True)))


def rekeyed(work: Mapping[CacheKey, Input], shared: bytes) -> dict[CacheKey, CacheKey]:
    """Key → the key that the same input has under another ``shared``."""
    return dict(zip(work, make_plan(list(work.values()), shared).keys, strict=True))


def rekeyed_in_steps(
    work: Mapping[CacheKey, Input], shared: bytes
) -> Generator[None, None, dict[CacheKey, CacheKey]]:
    """Tell the same in steps."""
    plan = yield from make_plan_in_steps(list(work.values()), shared)
    return dict(zip(work, plan.keys, strict=True))


def cut(
    wider: Mapping[CacheKey, CacheKey], found: Mapping[CacheKey, EmbeddedInput], width: int | None
) -> dict[CacheKey, EmbeddedInput]:
    """Cut found vectors of the model's own width to ``width``, under the keys that asked for them.

    One that would be zero is left out: it is as if it had not been found.
    """
    narrow = dict[CacheKey, EmbeddedInput]()
    for key, wide in wider.items():
        if (whole := found.get(wide)) is not None:
            with suppress(InvalidUpstreamResponse):
                row = vectors.truncate(whole.vector[None], width or 0)[0]
                narrow[key] = EmbeddedInput(row, whole.tokens, whole.estimated, whole.source)
    return narrow


def _digested(digest: "hashlib.blake2b", item: Input) -> Generator[None, None, None]:
    """Hash one input so that no two are written alike: the kinds begin with different letters, and texts have lengths."""
    if isinstance(item, str):
        digest.update(b"t")
        yield from _digested_text(digest, item)
    elif isinstance(item[0], int):
        digest.update(b"i" + array("i", cast("tuple[int, ...]", item)).tobytes())
    else:
        for part in cast("tuple[Part, ...]", item):
            text = part.image_url.url if isinstance(part, ImagePart) else part.text
            digest.update(b"%s%d:" % (b"m" if isinstance(part, ImagePart) else b"p", len(text)))
            yield from _digested_text(digest, text)


def _digested_text(digest: "hashlib.blake2b", text: str) -> Generator[None, None, None]:
    for start in range(0, len(text), PIECE):
        digest.update(text[start : start + PIECE].encode())
        if start:
            yield


def text_before(candidate: ResolvedEndpoint, model: Model, input_type: str | None) -> str:
    """The text that stands before each text of an input type: the model's prefix, where the API takes no such type."""
    if input_type is None or input_type in candidate.accepts.input_types:
        return ""
    return (model.prefixes or {}).get(input_type, "")


def split(
    work: Mapping[CacheKey, Input], accepts: Accepts, before: str = ""
) -> list[dict[CacheKey, Input]]:
    """Cut work into chunks within the caps on inputs, tokens and bytes of one call, each text with ``before`` before it.

    An input that is over a cap by itself goes alone: the upstream then says so in its own words.
    """
    return finished(split_in_steps(work, accepts, before))


def split_in_steps(
    work: Mapping[CacheKey, Input], accepts: Accepts, before: str = ""
) -> Generator[None, None, list[dict[CacheKey, Input]]]:
    """Cut the same in steps: measuring 32 MiB takes up to 170 ms."""
    if len(work) < 2:
        return [dict(work)] if work else []
    most = accepts.max_inputs or len(work)
    tokens, size = accepts.max_tokens or inf, (accepts.max_bytes or inf) - ENVELOPE
    if len(work) <= most and _surely_within(work.values(), tokens, size, len(before)):
        return [dict(work)]
    return (yield from _chunks(work, most, tokens, size, before))


def _surely_within(items: Collection[Input], tokens: float, size: float, before: int) -> bool:
    """Whether texts are so far below the caps that nobody need measure each.

    A character is at most 1 token, or 6 bytes of JSON, as an escape has; two quotes and a comma stand around a text.
    """
    if not all_text(items):
        return tokens == size == inf
    most = sum(map(len, items)) + (before + 1) * len(items)
    return most <= tokens and 6 * most <= size


def _chunks(
    work: Mapping[CacheKey, Input], most: int, tokens: float, size: float, before: str
) -> Generator[None, None, list[dict[CacheKey, Input]]]:
    chunks, chunk = list[dict[CacheKey, Input]](), dict[CacheKey, Input]()
    held = filled = 0
    for key, item in work.items():
        sent = before + item if isinstance(item, str) else item
        cost = estimate_size(sent) if tokens < inf else 0
        weight = (yield from _bytes_in_steps(sent)) if size < inf else 0
        yield
        if chunk and (len(chunk) >= most or held + cost > tokens or filled + weight > size):
            chunks.append(chunk)
            chunk, held, filled = {}, 0, 0
        chunk[key] = item
        held, filled = held + cost, filled + weight
    return [*chunks, chunk] if chunk else chunks


def amount(inputs: Collection[Input], measure: Measure) -> int:
    """Count what one call with ``inputs`` holds: inputs, estimated tokens, or bytes of its body."""
    if measure is Measure.INPUTS:
        return len(inputs)
    return (
        sum(estimate_sizes(inputs)) if measure is Measure.TOKENS else sum(map(count_bytes, inputs))
    )


def count_bytes(item: Input) -> int:
    """Count the bytes of one input in a JSON body, with what stands around it; a part's words differ from API to API."""
    if isinstance(item, str) or isinstance(item[0], int):
        return len(_ENCODER.encode(item)) + 1
    return sum(_part_bytes(part) for part in item if not isinstance(part, int)) + 32


def _bytes_in_steps(item: Input) -> Generator[None, None, int]:
    """Count the same, long texts piece by piece."""
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
    # An image's URL was judged when it came in: it holds nothing that JSON escapes, and copying it would cost.
    return 64 + (
        len(part.image_url.url) if isinstance(part, ImagePart) else len(_ENCODER.encode(part.text))
    )


def halves(chunk: Mapping[CacheKey, Input]) -> tuple[dict[CacheKey, Input], dict[CacheKey, Input]]:
    """Cut a chunk that was too large in two."""
    items = list(chunk.items())
    middle = len(items) // 2
    return dict(items[:middle]), dict(items[middle:])


def pair_with_keys(
    chunk: Mapping[CacheKey, Input], answer: Vectors, tokens: int
) -> dict[CacheKey, EmbeddedInput]:
    """Pair each key of a chunk with its row and its share of the chunk's ``tokens``.

    ``answer.array`` is checked already: row i is input i. Shares go by input length and add up exactly; they are
    estimated where the answer itself tells no tokens.
    """
    shares = share_out(tokens, estimate_sizes(chunk.values())) if len(chunk) > 1 else [tokens]
    estimated = answer.prompt_tokens is None
    source = answer.source
    return {
        key: EmbeddedInput(row, share, estimated, source)
        for key, row, share in zip(chunk, answer.array, shares, strict=True)
    }


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``sizes``, in whole numbers that add up to it exactly."""
    whole = sum(sizes)
    marks = [total * reached // whole for reached in accumulate(sizes)]
    return [mark - before for mark, before in zip(marks, [0, *marks], strict=False)]


def assemble(plan: Plan, found: Mapping[CacheKey, EmbeddedInput]) -> tuple[list[Array], int, bool]:
    """Put the rows in request order: n arrays of (d,), the tokens that all n inputs cost, and whether any are estimated."""
    rows, tokens, estimated = list[Array](), 0, False
    for key in plan.keys:
        item = found[key]
        rows.append(item.vector)
        tokens += item.tokens
        estimated = estimated or item.estimated
    return rows, tokens, estimated
