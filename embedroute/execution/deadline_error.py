"""Makes the error of a request that is not done within its deadline."""

from embedroute.errors import DeadlineExceeded, EmbedrouteError
from embedroute.exhaustion import late_loop_error
from embedroute.trace import RequestTrace


def make_deadline_error(seconds: float, trace: RequestTrace, lag: float) -> EmbedrouteError:
    """Make the error of a request that is not done within its deadline of ``seconds``.

    ``trace`` names the provider that has timed out, if any. ``lag`` is the seconds by which the
    event loop was late, or 0.
    """
    if lag:
        return late_loop_error(lag)
    message = f"No response within the deadline of {seconds:g} s"
    if trace.timed_out:
        message += f": the provider {trace.timed_out} timed out"
    return DeadlineExceeded(f"{message}.")
