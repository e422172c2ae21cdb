"""Reports upstream calls to the observers of a gateway."""

from collections.abc import Awaitable, Callable, Sequence

from embedroute.backend import Batch, Vectors
from embedroute.errors import EmbedrouteError, RequestError, UpstreamError
from embedroute.execution.context import DispatchContext
from embedroute.inputs import estimate_sizes
from embedroute.reasons import describe
from embedroute.routing import ResolvedEndpoint
from embedroute.telemetry import (
    CallOutcome,
    FinishedCall,
    Observer,
    classify_outcome,
    report_call,
)


class ObservedCalls:
    """Reports the calls of one event loop; ``observers`` may be added while it is used."""

    def __init__(self, observers: Sequence[Observer], clock: Callable[[], float]) -> None:
        """Report to ``observers``, with the times of ``clock`` in seconds."""
        self._observers = observers
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
        tokens = answer.prompt_tokens
        if tokens is None:
            tokens = sum(estimate_sizes(batch.inputs))
        self._report(candidate, batch, context, began, "answered", 200, tokens=tokens)
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
        tokens: int = 0,
    ) -> None:
        call = FinishedCall(
            request_id=context.trace.request_id,
            provider=candidate.provider,
            model=context.prepared.route.public_name,
            upstream_model=candidate.model,
            endpoint=candidate.name,
            outcome=outcome,
            status=status,
            reason=reason,
            inputs=len(batch),
            tokens=tokens,
            began=began,
            seconds=self._clock() - began,
        )
        report_call(self._observers, call)
