"""Quantises the vectors of a response."""

from functools import partial

import msgspec

from embedroute.protocol import Embeddings
from embedroute.runtime import fairness
from embedroute.vectors import quantize_rows


async def quantize(
    embeddings: Embeddings, dtype: str, bounds: tuple[float, float] | None
) -> Embeddings:
    """Return ``embeddings`` with rows of ``dtype``; many are converted in a worker thread."""
    work = partial(quantize_rows, embeddings.rows, dtype, bounds=bounds)
    rows = await fairness.run_in_worker(work) if embeddings.large else work()
    return msgspec.structs.replace(embeddings, rows=rows)
