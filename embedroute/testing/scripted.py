"""For tests without a network: a backend that plays a script, and the check that a backend keeps the contract.

``ScriptedBackend`` stands in for an upstream, in tests of a host or of the gateway; ``check_backend`` is the one line
that the author of a backend needs::

    check_backend(Acme(api_key=Secret("k")))
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import anyio
import msgspec

from embedroute import vectors
from embedroute.backend import Accepts, Backend, Batch, Vectors
from embedroute.backends.hashed import DEFAULT_WIDTH, Hashed, digest, hash_batch
from embedroute.inputs import Input

Step = Vectors | BaseException | float | Callable[[Batch], Vectors | Awaitable[Vectors]]
"""One answer: vectors, an error to raise, seconds to wait before the default answer, or a function of the batch."""


def expected_vector(
    input: Input, width: int = DEFAULT_WIDTH, *, input_type: str | None = None
) -> vectors.Array:
    """Tell the (width,) vector that ``hashed`` and the default answer of ``ScriptedBackend`` give ``input``."""
    return vectors.from_digests([digest(input, input_type, width)])[0]


class ScriptedBackend(Backend, frozen=True, kw_only=True):
    """A backend that plays ``script`` and writes down in ``batches`` what it was asked.

    ``script`` is played one step a call; every call after it plays ``then``. The default answer is
    ``expected_vector`` of each input, ``width`` numbers wide unless the batch says another width::

        ScriptedBackend(script=[UpstreamUnavailable("reset"), 0.1, Vectors(array)])  # then default answers
        ScriptedBackend(then=RateLimited("slow down", retry_after=7))  # always

    Another ``accepts`` is a subclass away: ``class Narrow(ScriptedBackend): accepts = Accepts(max_inputs=2)``.
    """

    accepts: ClassVar[Accepts] = Hashed.accepts

    script: Sequence[Step] = ()
    then: Step = 0.0
    width: int = DEFAULT_WIDTH
    batches: list[Batch] = msgspec.field(default_factory=list[Batch])

    async def embed(self, batch: Batch) -> Vectors:
        """Play the next step."""
        self.batches.append(batch)
        over = len(self.batches) > len(self.script)
        step = self.then if over else self.script[len(self.batches) - 1]
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, Vectors):
            return step
        if callable(step):
            made = step(batch)
            return made if isinstance(made, Vectors) else await made
        await anyio.sleep(step)
        return hash_batch(batch, self.width)
