"""Candidates passing through filters: who is left, and why each of the others is not."""

from collections.abc import Callable, Sequence

import msgspec

from embedroute.errors import EmbedrouteError, NoEligibleProvider
from embedroute.routing.routes import Candidate


class Dropped(msgspec.Struct, frozen=True):
    """An endpoint that may not serve a request: which filter took it out, and why."""

    candidate: Candidate
    filter: str
    reason: str


class Sieve:
    """The candidates that are left after each filter; the filter that takes out the last one words the refusal."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        """Begin with all of them."""
        self.left = list(candidates)
        self.dropped: list[Dropped] = []

    def keep(self, name: str, fits: Callable[[Candidate], bool], reason: str, refusal: EmbedrouteError | None = None) -> None:
        """Drop the candidates that do not fit.

        Raises:
            EmbedrouteError: ``refusal``, or ``NoEligibleProvider``, because none is left.
        """
        kept = [candidate for candidate in self.left if fits(candidate)]
        if len(kept) == len(self.left):
            return
        self.dropped += [Dropped(candidate, name, reason) for candidate in self.left if candidate not in kept]
        self.left = kept
        if not kept:
            raise refusal or NoEligibleProvider(
                f"No provider of this model is left: '{name}' took out the last ({reason}).", param="provider"
            )
