"""Decides how long a call may take while another endpoint can still be used.

A stalled endpoint then costs a request this time, and not its share of the deadline.
"""

from typing import Final

from embedroute.limits.concurrency import PER_INPUT, ConcurrencyLimit

SHORTEST_TIMEOUT: Final = 2.0
"""Seconds that a call of one short input is given at least."""
TIMEOUT_FACTOR: Final = 3
"""How many times as long as the longest of the last calls of its size a call may take."""
UNKNOWN_TIMEOUT: Final = 10.0
"""Seconds that a call of one short input is given while none was answered."""
LETTERS_PER_SECOND: Final = 4000
"""Characters for which a call gets another second, about a thousand tokens.

An endpoint that answers short texts at once may need seconds for one long text.
"""


def attempt_timeout(
    calls: ConcurrencyLimit, inputs: int, letters: int, *, is_probe: bool = False
) -> float:
    """Return the seconds that a call of ``inputs`` inputs with ``letters`` characters may take.

    The probe of a half-open breaker gets no more than its size needs: the endpoint has just failed,
    and the request can be served elsewhere.
    """
    for_size = PER_INPUT * inputs + letters / LETTERS_PER_SECOND
    longest = calls.longest(inputs)
    if is_probe:
        return max(SHORTEST_TIMEOUT + for_size, longest or 0.0)
    if longest is None:
        return UNKNOWN_TIMEOUT + for_size
    return max(SHORTEST_TIMEOUT + for_size, TIMEOUT_FACTOR * longest)
