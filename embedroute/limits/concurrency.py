"""Learns how many calls an endpoint can serve at a time, from its refusals, timeouts and durations.

The limit starts at ``FIRST`` and changes by these rules, while it is reached:

- Each *round* of as many answers as the limit doubles it, up to the *ceiling*, which refusals set.
- At the ceiling, ``PATIENT_ROUNDS`` rounds raise both by a step, which then doubles.
- A refusal (429, 502, 503 or 504) while other calls are in flight lowers limit and ceiling to the
  number of those calls.
- If a 502, 503 or 504 comes while no other call is in flight, too many calls were not the cause:
  the limit is restored, and such errors are ignored for a while.
- A timeout halves the limit, at most once a second.
- If no call has a response for a while, those in flight are given up, and one may be made.
- If calls take ``SLOW`` times as long as with few in flight, a fifth is taken off.

The endpoint answers the same number of calls a second with any limit above its capacity, but then
they wait at the gateway: in a fair order, and only those that can be served in time. Doubling and
lowering in proportion follow TCP's congestion control (RFC 5681); the comparison with the duration
at low load follows its variants that react to delay (Brakmo and Peterson, "TCP Vegas", 1995).

Time is an argument: every method takes ``now`` in seconds of one monotonic clock.
"""

from collections import deque
from typing import Final

FIRST: Final = 32
"""Calls in flight that are allowed at first."""
MOST: Final = 1024
"""Calls in flight at most, if the config does not limit them."""
LEAST: Final = 4
"""Lowest limit that timeouts and slow answers set."""
PATIENT_ROUNDS: Final = 10
"""Rounds at the ceiling before it is raised."""
STALLED: Final = 1.0
"""Seconds without a response after which calls in flight are given up, at least."""
STALLED_FACTOR: Final = 3
"""How many times the usual duration that is."""
STALLED_AT_FIRST: Final = 5.0
"""Seconds that it is while no call was answered yet."""
QUIET: Final = 1.0
"""Seconds after a refusal in which the limit does not rise."""
QUIET_AFTER_HINT: Final = 60.0
"""The same after a 429 with Retry-After, which stops all calls to the endpoint for a while."""
IGNORED: Final = 30.0
"""Seconds in which errors of overload are ignored after one has come alone."""
BETWEEN_TIMEOUTS: Final = 1.0
"""Seconds in which further timeouts do not lower the limit again."""
TIMEOUT_FACTOR: Final = 0.5
SLOW_FACTOR: Final = 0.8
SLOW: Final = 3.0
"""How many times as long as at low load a call takes if the endpoint has too many of them."""
SLOWER: Final = 1.5
"""How many times as long as at low load a call takes if there are enough of them."""
NOTICEABLE: Final = 0.1
"""Seconds by which a call must be slower than at low load before that counts."""

REMEMBERED: Final = 32
"""Answered calls that are remembered for each size class."""
RECENT: Final = 9
"""Answered calls of a size class that tell how quick the endpoint is at the moment."""
LOW_LOAD: Final = 4
"""With this many calls in flight, or fewer, a call is made at low load."""
LOW_PART: Final = 8
"""With this part of the limit in flight, or less, it is made at low load as well."""
AT_LOW_LOAD: Final = 9
"""Answered calls at low load that are remembered for each size class."""
KEPT: Final = 0.995
"""Share of the longest duration that is left after another call."""
FIRST_DURATION: Final = 1.0
"""Estimate in seconds while no call of a size class was answered yet."""
PER_INPUT: Final = 0.01
"""Seconds that each input adds to ``FIRST_DURATION``."""


class Durations:
    """The durations in seconds of the last answered calls of one size class.

    ``low`` are those of calls that began while few others were in flight. ``longest`` is the
    longest duration; it decays with each further call, so that it covers some hundred calls.
    """

    __slots__ = ("last", "longest", "low")

    def __init__(self) -> None:
        """Create an empty history."""
        self.last: deque[float] = deque(maxlen=REMEMBERED)
        self.low: deque[float] = deque(maxlen=AT_LOW_LOAD)
        self.longest: float = 0.0

    def percentile(self, percent: int) -> float:
        """Return a percentile (nearest rank) of the last durations."""
        ordered = sorted(self.last)
        return ordered[-(-percent * len(ordered) // 100) - 1]

    def recent(self) -> float:
        """Return the median of the last ``RECENT`` durations."""
        last = self.last
        ordered = sorted(last[at] for at in range(-min(RECENT, len(last)), 0))
        return ordered[len(ordered) // 2]

    def slowdown(self) -> float:
        """Return how many times as long as at low load calls take; 1 if unnoticeable."""
        if not self.low:
            return 1.0
        low = sorted(self.low)[len(self.low) // 2]
        recent = self.recent()
        return recent / low if recent - low > NOTICEABLE else 1.0


class ConcurrencyLimit:
    """The calls to one endpoint that are in flight, and how many may be.

    Callers increment ``in_flight`` before a call, pass its outcome to one of the ``record_*``
    methods, and decrement it afterwards if the ``generation`` is still that of the call's begin.
    Calls of earlier generations were given up. ``progress_at`` is when a call last
    had a response.
    """

    __slots__ = (
        "_answers",
        "_before_overload",
        "_by_size",
        "_ceiling",
        "_ignored_until",
        "_learns",
        "_lowered_at",
        "_most",
        "_proven",
        "_quiet_until",
        "_rounds",
        "_step",
        "generation",
        "in_flight",
        "limit",
        "progress_at",
    )

    def __init__(self, most: int | None = None, *, learns: bool = True) -> None:
        """Start with ``FIRST`` calls, at most ``most``; stay at ``most`` unless it ``learns``."""
        self._before_overload = 0
        self._ignored_until = 0.0
        self._proven = 1
        self._most = MOST if most is None else most
        self._learns = learns
        self.limit: int = min(FIRST, self._most) if learns else self._most
        self.in_flight: int = 0
        self.generation: int = 0
        self.progress_at: float = float("-inf")
        self._ceiling = self._most
        self._step = 1
        self._rounds = 0
        self._answers = 0
        self._quiet_until = 0.0
        self._lowered_at = float("-inf")
        self._by_size: dict[int, Durations] = {}

    @property
    def proven(self) -> int:
        """How many calls at a time the endpoint can be expected to serve as quickly as lately."""
        return min(self.limit, 2 * self._proven)

    def record_answer(self, now: float, inputs: int, seconds: float, place: int) -> None:
        """Record that a call of ``inputs`` inputs was answered after ``seconds``.

        At its begin, ``place`` calls were in flight, with this one.
        """
        size_class = inputs.bit_length()
        durations = self._by_size.get(size_class)
        if durations is None:
            durations = self._by_size[size_class] = Durations()
        durations.last.append(seconds)
        durations.longest = max(seconds, durations.longest * KEPT)
        self.progress_at: float = now
        self._proven = max(self._proven, place)
        if place <= max(LOW_LOAD, self.limit // LOW_PART):
            durations.low.append(seconds)
        if self.in_flight < self.limit or not self._learns:
            return
        self._answers += 1
        if self._answers >= self.limit and now >= self._quiet_until:
            self._end_round(now, durations.slowdown())

    def record_rate_limit(self, now: float, *, has_hint: bool) -> bool:
        """Record a 429; return False if it was the only call in flight.

        Then the upstream does not limit how many calls it serves at once, but how many in a time.
        """
        return self._record_refusal(now, QUIET_AFTER_HINT if has_hint else QUIET)

    def record_overload(self, now: float) -> bool:
        """Record a status of overload; return False if too many calls at once are not the cause."""
        if now < self._ignored_until:
            return False
        before = self.limit
        if self._record_refusal(now, QUIET):
            self._before_overload = max(before, self._before_overload)
            return True
        if self._before_overload:
            self.limit: int = self._before_overload
            self._ceiling = self._most
            self._quiet_until = now
            self._before_overload = 0
            self._ignored_until = now + IGNORED
        return False

    def _record_refusal(self, now: float, quiet: float) -> bool:
        others = self.in_flight - 1
        if others < 1 or not self._learns:
            return False
        self._set(min(self.limit, others), now, quiet)
        self._ceiling = self._proven = self.limit
        self._step = 1
        return True

    def record_slow_call(self, now: float, inputs: int, seconds: float) -> bool:
        """Record that a call was given up after ``seconds``; return False if the endpoint stalls.

        If it has just responded to another call, it did not stall: single calls take longer.
        """
        if now - self.progress_at >= seconds / 2:
            return False
        durations = self._by_size.get(inputs.bit_length())
        if durations is not None:
            durations.longest = max(durations.longest, seconds)
        return True

    def record_timeout(self, now: float) -> None:
        """Record that a call was not answered in time."""
        if self._learns and now - self._lowered_at >= BETWEEN_TIMEOUTS:
            self._lowered_at = now
            self._lower(now, TIMEOUT_FACTOR)

    def stalled_after(self, inputs: int) -> float:
        """Return the seconds without a response after which the endpoint is stalled."""
        if not self.knows(inputs):
            return STALLED_AT_FIRST
        return max(STALLED, STALLED_FACTOR * self.usual(inputs, 90))

    def give_up_stalled(self, now: float, inputs: int) -> None:
        """Give up the calls in flight without a response for too long; one more is allowed then.

        The limit rises again as soon as calls are answered.
        """
        if self._learns and now - self.progress_at >= self.stalled_after(inputs):
            self._ceiling = max(self._ceiling, self.limit)
            self.generation += 1
            self.in_flight: int = 0
            self.limit = 1
            self.progress_at = now

    def usual(self, inputs: int, percent: int) -> float:
        """Return the seconds in which ``percent`` % of the calls of this size are answered."""
        durations = self._by_size.get(inputs.bit_length())
        return durations.percentile(percent) if durations else FIRST_DURATION + PER_INPUT * inputs

    def expect(self, inputs: int) -> float:
        """Return the seconds that calls of this size have taken most recently.

        If there was none: a part of what a larger call took, or what a smaller one took, or 0.
        """
        bits = inputs.bit_length()
        durations = self._by_size.get(bits)
        if durations is not None:
            return durations.recent()
        larger = [each for each in self._by_size if each > bits]
        if larger:
            return self._by_size[min(larger)].recent() / 2.0 ** (min(larger) - bits)
        return self._by_size[max(self._by_size)].recent() if self._by_size else 0.0

    def longest(self, inputs: int) -> float | None:
        """Return the seconds of the longest of the last calls of this size; None without any.

        If none of this size was answered: what a larger call took, or a smaller one in proportion.
        """
        bits = inputs.bit_length()
        durations = self._by_size.get(bits)
        if durations is not None:
            return durations.longest
        larger = [each for each in self._by_size if each > bits]
        if larger:
            return self._by_size[min(larger)].longest
        if not self._by_size:
            return None
        nearest = max(self._by_size)
        return self._by_size[nearest].longest * 2.0 ** (bits - nearest)

    def knows(self, inputs: int) -> bool:
        """Return whether a call of this size was answered."""
        return inputs.bit_length() in self._by_size

    def _end_round(self, now: float, slowdown: float) -> None:
        self._answers = 0
        if slowdown > SLOW:
            self._lower(now, SLOW_FACTOR)
        elif slowdown > SLOWER:
            self._rounds = 0
        elif self.limit < self._ceiling:
            self.limit = min(2 * self.limit, self._ceiling)
        else:
            self._rounds += 1
            if self._rounds >= PATIENT_ROUNDS:
                self._rounds = 0
                self.limit = self._ceiling = min(self._ceiling + self._step, self._most)
                self._step *= 2

    def _lower(self, now: float, factor: float) -> None:
        lowest = min(self.limit, LEAST)
        self._set(max(lowest, int(self.limit * factor)), now, QUIET)
        self._ceiling = max(self.limit, 1)

    def _set(self, limit: int, now: float, quiet: float) -> None:
        self.limit = limit
        self._rounds = self._answers = 0
        self._quiet_until = max(self._quiet_until, now + quiet)
