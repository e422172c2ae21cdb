"""Embeds inputs that are longer than the context of a model: the first part, or the mean of all.

The parts are embedded and cached as inputs of their own. So a vector in the cache never depends on
what a config does with long inputs.
"""

import re
from collections.abc import Awaitable, Callable, Collection
from copy import copy
from functools import partial
from itertools import groupby
from typing import Final, TypeVar

import msgspec

from embedroute import vectors
from embedroute.errors import ContextTooLong, EmbedrouteError, InvalidRequest
from embedroute.protocol import EmbeddingRequest, Embeddings
from embedroute.routing import (
    CAUTIOUS,
    LIKELY,
    MOST_PIECES,
    OverLength,
    Pieces,
    estimate_tokens,
    find_overlong,
    split_overlong,
)
from embedroute.runtime import fairness
from embedroute.vectors import Array

T = TypeVar("T")

ROUNDS: Final = 5
"""Attempts at most, of which each but the first has shorter parts."""

_POSITION: Final = re.compile(r"input\[(\d+)\]")

Embed = Callable[[EmbeddingRequest], Awaitable[Embeddings]]
"""Embeds a request whose inputs are parts."""


async def embed_parts(request: EmbeddingRequest, rule: OverLength, embed: Embed) -> Embeddings:
    """Embed a request with inputs that may be too long.

    Raises:
        InvalidRequest: an input is far too long, or vectors of integers would have to be averaged.
        EmbedrouteError: the error of ``embed``, with the positions of the inputs in the request.
    """
    limits = await _run(request, partial(_first_limits, request, rule))
    for attempts_left in reversed(range(ROUNDS)):
        pieces = await _run(
            request, partial(split_overlong, request.inputs, limits, pool=rule.pool)
        )
        _check(pieces, rule)
        try:
            embeddings = await embed(msgspec.structs.replace(request, inputs=pieces.inputs))
        except EmbedrouteError as error:
            if not isinstance(error, ContextTooLong) or not attempts_left:
                raise _renamed(error, pieces, len(request.inputs)) from None
            refused = _find_refused(error, pieces, limits)
            limits = await _run(request, partial(_shorten, request, limits, refused, rule))
        else:
            return _join(embeddings, pieces, rule)
    raise AssertionError  # the last attempt has returned or raised


async def _run(request: EmbeddingRequest, work: Callable[[], T]) -> T:
    """Run ``work``, for a large request in a worker thread."""
    return await fairness.run_in_worker(work) if request.large else work()


def _first_limits(request: EmbeddingRequest, rule: OverLength) -> dict[int, int]:
    bytes_per_token = LIKELY if rule.refuses else CAUTIOUS
    return dict.fromkeys(find_overlong(request.inputs, rule.limit, bytes_per_token), rule.limit)


def _shorten(
    request: EmbeddingRequest, limits: dict[int, int], refused: Collection[int], rule: OverLength
) -> dict[int, int]:
    """Return shorter limits after the endpoint has refused the inputs at ``refused``.

    All that may be too long are cut then, so that each does not need a refusal of its own.
    """
    doubtful = find_overlong(request.inputs, rule.limit)
    shorter = {**dict.fromkeys(doubtful, rule.limit), **limits}
    for position in refused:
        if position in limits or position not in doubtful:
            size = estimate_tokens(request.inputs[position])
            shorter[position] = max(1, min(size, shorter.get(position, size)) // 2)
    return shorter


def _find_refused(
    error: EmbedrouteError, pieces: Pieces, limits: Collection[int]
) -> Collection[int]:
    """Return the inputs that an error blames: the one it names, else all that were cut."""
    found = _POSITION.match(error.param or "")
    if found is not None:
        return {pieces.owners[int(found[1])]}
    return set(limits) or set(pieces.owners)


def _check(pieces: Pieces, rule: OverLength) -> None:
    if rule.pool and pieces.cut and not rule.is_float:
        raise InvalidRequest(
            f"'input[{pieces.cut[0]}]' is longer than the model's context, and only vectors of"
            " floats can be averaged. Shorten it, or omit 'output_dtype'.",
            param="output_dtype",
        )
    if pieces.cut and len(pieces.inputs) > MOST_PIECES:
        raise InvalidRequest(
            f"'input' would be cut to {len(pieces.inputs)} parts of the model's context. Send at"
            f" most {MOST_PIECES} in one request.",
            param="input",
            code="context_length_exceeded",
        )


def _renamed(error: EmbedrouteError, pieces: Pieces, count: int) -> EmbedrouteError:
    """Return ``error`` with the position of the input in place of that of its part."""
    found = _POSITION.match(error.param or "")
    if found is None and len(pieces.inputs) > 1 and count > 1:
        return error
    owner = pieces.owners[int(found[1])] if found else 0
    name = f"input[{owner}]" if count > 1 else "input"
    error = copy(error)  # requests that wait for the same call share it
    if error.param is not None and (found or error.param == "input"):
        error.param = name
    error.message = _POSITION.sub(name, error.message)
    return error


def _join(embeddings: Embeddings, pieces: Pieces, rule: OverLength) -> Embeddings:
    """Return the vector of each input: that of its only part, or the mean of those of its parts."""
    trace = embeddings.trace
    trace.cut_inputs = pieces.cut
    if not pieces.cut:
        return embeddings
    if trace.events is not None:
        action = "pooled" if rule.pool else "truncated"
        trace.add_event("over_length", action, inputs=list(pieces.cut), parts=len(pieces.inputs))
    rows: list[Array] = []
    for _, group in groupby(range(len(pieces.owners)), pieces.owners.__getitem__):
        positions = list(group)
        row = embeddings.rows[positions[0]]
        if len(positions) > 1:
            parts = [embeddings.rows[position] for position in positions]
            row = vectors.pool(parts, [pieces.weights[position] for position in positions])
        rows.append(row)
    return msgspec.structs.replace(embeddings, rows=rows)
