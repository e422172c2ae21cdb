"""The tables of modes: name → the statuses that a client may see where this upstream is the only one.

A lie is a function from an ``Ask`` to steps: bytes are sent, a float is a pause in seconds, ``End`` cuts the
connection. After the last step the connection is kept.
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
"""A pause that only the client's going away ends."""

MODES: Final[dict[str, Lie]] = {}
"""Every mode there is."""

HARMLESS: Final[dict[str, tuple[int, ...]]] = {}
"""Odd but true: the right vectors must come out."""

DOUBTFUL: Final[dict[str, tuple[int, ...]]] = {}
"""True, but so odd that refusing it is as good: the right vectors or a failure, never anything else."""

LIES: Final[dict[str, tuple[int, ...]]] = {}
"""The upstream fails: the right vectors come from another endpoint, or the client is told one of these statuses."""

INPUT_FAULTS: Final[dict[str, tuple[int, ...]]] = {}
"""The client's own input is at fault: it is told so, and no other endpoint is asked."""

STALLS: Final[set[str]] = set()
"""The lies that only a deadline ends: give these a short one."""


def harmless(lie: Lie) -> Lie:
    """Enter ``lie`` in its table, under its own name."""
    return _enter(HARMLESS, lie, 200)


def doubtful(lie: Lie) -> Lie:
    """Enter ``lie`` in its table, under its own name."""
    return _enter(DOUBTFUL, lie, 200, 502)


def input_fault(lie: Lie) -> Lie:
    """Enter ``lie`` in its table, under its own name."""
    return _enter(INPUT_FAULTS, lie, 400)


def lie(*statuses: int) -> Callable[[Lie], Lie]:
    """Enter a lie in its table, under its own name; a client sees one of ``statuses``, 502 if none is given."""
    return lambda told: _enter(LIES, told, *(statuses or (502,)))


def stall(told: Lie) -> Lie:
    """Enter a lie that only a deadline ends."""
    STALLS.add(told.__name__)
    return _enter(LIES, told, 502, 504)


def _enter(table: dict[str, tuple[int, ...]], told: Lie, *statuses: int) -> Lie:
    table[told.__name__] = statuses
    MODES[told.__name__] = told
    return told
