"""Reports upstream calls to the metrics and the observers of a gateway."""

from collections.abc import Awaitable, Callable, Sequence

from embedroute.backend import Batch, Vectors
from embedroute.errors import EmbedrouteError, RequestError, UpstreamError
from embedroute.execution.context import DispatchContext
from embedroute.inputs import estimate_sizes
from embedroute.reasons import describe
from embedroute.routing import ResolvedEndpoint
from embedroute.telemetry import (
    CallOutcome,
    Counts,
    FinishedCall,
    Observer,
    classify_outcome,
    report_call,
)


class ObservedCalls:
    """Reports the calls of one event loop; ``observers`` may be added while it is used."""

    def __init__(
        self, observers: Sequence[Observer], counts: Counts | None, clock: Callable[[], float]
    ) -> None:
        """Report to ``observers`` and ``counts``, with the times of ``clock`` in seconds."""
        self._observers = observers
        self._counts = counts
        self._clock = clock

    async def run(
        self,
        call: Awaitable[Vectors],
        candidate: ResolvedEndpoint,
        batch: Batch,
        context: DispatchContext,
    ) -> Vectors:
        """Await ``call``, and report its outcome.

        Not reported is a call whose request the backend could not build: nothing was sent.

        Raises:
            EmbedrouteError: what ``call`` raises.
        """
        began = self._clock()
        try:
            answer = await call
        except RequestError:
            raise
        except EmbedrouteError as error:
            status = error.upstream_status if isinstance(error, UpstreamError) else None
            outcome = classify_outcome(error)
            self._report(candidate, batch, context, began, outcome, status, describe(error))
            raise
        except BaseException:
            watch = context.watch
            is_late = watch is not None and watch.expired
            self._report(candidate, batch, context, began, "timed_out" if is_late else "cancelled")
            raise
        self._report(candidate, batch, context, began, "answered", 200, answer=answer)
        return answer

    def _report(
        self,
        candidate: ResolvedEndpoint,
        batch: Batch,
        context: DispatchContext,
        began: float,
        outcome: CallOutcome,
        status: int | None = None,
        reason: str | None = None,
        answer: Vectors | None = None,
    ) -> None:
        seconds = self._clock() - began
        model = context.prepared.route.public_name
        if self._counts is not None:
            self._counts.count_call(candidate.provider, model, outcome, seconds, len(batch))
        if not self._observers:
            return
        tokens = 0 if answer is None else answer.prompt_tokens
        if tokens is None:
            tokens = sum(estimate_sizes(batch.inputs))
        call = FinishedCall(
            request_id=context.trace.request_id,
            provider=candidate.provider,
            model=model,
            upstream_model=candidate.model,
            endpoint=candidate.name,
            outcome=outcome,
            status=status,
            reason=reason,
            inputs=len(batch),
            tokens=tokens,
            began=began,
            seconds=seconds,
        )
        report_call(self._observers, call)
