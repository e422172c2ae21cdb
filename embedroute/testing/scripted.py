"""Provides ``ScriptedBackend``, which replaces an upstream in tests without a network."""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import anyio
import msgspec

from embedroute import vectors
from embedroute.backend import Accepts, Backend, Batch, Vectors
from embedroute.backends.hashed import DEFAULT_WIDTH, Hashed, digest, hash_batch
from embedroute.inputs import Input

Step = Vectors | BaseException | float | Callable[[Batch], Vectors | Awaitable[Vectors]]
"""The result of one call.

It is vectors, an error to raise, the seconds to wait before the default result, or a function of
the batch.
"""


def expected_vector(
    input: Input, width: int = DEFAULT_WIDTH, *, input_type: str | None = None
) -> vectors.Array:
    """Return the (width,) vector that ``hashed`` and ``ScriptedBackend`` compute for ``input``."""
    return vectors.from_digests([digest(input, input_type, width)])[0]


class ScriptedBackend(Backend, frozen=True, kw_only=True):
    """A backend that returns the results of ``script`` and records its calls in ``batches``.

    Each call uses one step of ``script``; calls after the last step use ``then``. The default
    result is the ``expected_vector`` of each input, with ``width`` dimensions unless the batch sets
    another width::

        # one error, one result after 0.1 s, one given result, then default results
        ScriptedBackend(script=[UpstreamUnavailable("reset"), 0.1, Vectors(array)])
        # always the same error
        ScriptedBackend(then=RateLimited("slow down", retry_after=7))

    To change ``accepts``, define a subclass::

        class Narrow(ScriptedBackend):
            accepts = Accepts(max_inputs=2)
    """

    accepts: ClassVar[Accepts] = Hashed.accepts

    script: Sequence[Step] = ()
    then: Step = 0.0
    width: int = DEFAULT_WIDTH
    batches: list[Batch] = msgspec.field(default_factory=list[Batch])

    async def embed(self, batch: Batch) -> Vectors:
        """Use the next step."""
        self.batches.append(batch)
        is_over = len(self.batches) > len(self.script)
        step = self.then if is_over else self.script[len(self.batches) - 1]
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, Vectors):
            return step
        if callable(step):
            result = step(batch)
            return result if isinstance(result, Vectors) else await result
        await anyio.sleep(step)
        return hash_batch(batch, self.width)
