"""Defines the tables of modes.

Each maps the name of a mode to the statuses that a client may get if this upstream is the only
endpoint. A mode is a function from an ``Ask`` to steps: bytes are sent, a float is a pause in
seconds, and ``End`` closes the connection. After the last step the connection is kept.
"""

import math
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Final

from tests.fault_upstream.truth import Ask


class End(Enum):
    """How the upstream ends a connection: an orderly FIN, or a RST."""

    FIN = auto()
    RESET = auto()


Step = bytes | float | End
Lie = Callable[[Ask], Iterable[Step]]

FOREVER: Final = math.inf
"""A pause that ends only if the client disconnects."""

MODES: Final[dict[str, Lie]] = {}
"""All modes by name."""

HARMLESS: Final[dict[str, tuple[int, ...]]] = {}
"""Unusual but correct responses: the client must get the correct vectors."""

DOUBTFUL: Final[dict[str, tuple[int, ...]]] = {}
"""Correct but very unusual: the client must get the correct vectors or an error."""

LIES: Final[dict[str, tuple[int, ...]]] = {}
"""Failures: the client gets correct vectors of another endpoint, or one of these statuses."""

INPUT_FAULTS: Final[dict[str, tuple[int, ...]]] = {}
"""Errors of the client's input: it gets an error, and no other endpoint is called."""

STALLS: Final[set[str]] = set()
"""The failures that only a deadline ends: use a short one."""


def harmless(lie: Lie) -> Lie:
    """Register ``lie`` in ``HARMLESS`` under its name."""
    return _enter(HARMLESS, lie, 200)


def doubtful(lie: Lie) -> Lie:
    """Register ``lie`` in ``DOUBTFUL`` under its name."""
    return _enter(DOUBTFUL, lie, 200, 502)


def input_fault(lie: Lie) -> Lie:
    """Register ``lie`` in ``INPUT_FAULTS`` under its name."""
    return _enter(INPUT_FAULTS, lie, 400)


def lie(*statuses: int) -> Callable[[Lie], Lie]:
    """Register a failure under its name. A client gets one of ``statuses``, by default 502."""
    return lambda function: _enter(LIES, function, *(statuses or (502,)))


def stall(function: Lie) -> Lie:
    """Register a failure that only a deadline ends."""
    STALLS.add(function.__name__)
    return _enter(LIES, function, 502, 504)


def _enter(table: dict[str, tuple[int, ...]], lie: Lie, *statuses: int) -> Lie:
    table[lie.__name__] = statuses
    MODES[lie.__name__] = lie
    return lie
