"""A real OpenAI-compatible upstream on loopback, with correct responses or a table of faults.

``truth`` computes the correct response. ``rows``, ``bodies``, ``wires`` and ``refusals`` each hold
one kind of fault, and ``modes`` the tables of all. ``messages`` reads and writes HTTP/1.1, and
``server`` manages the sockets.

    with Upstream("honest") as upstream:
        ...  # POST {upstream.url}/embeddings
        upstream.mode = ["status_503", "honest"]  # one per request; the last one is repeated
        upstream.mode = lambda ask: "status_400" if "poison" in ask.inputs else "honest"

Send at least three distinct inputs, and ``dimensions`` below the width: otherwise some faults do
not differ from the correct response.
"""

from tests.fault_upstream import bodies, refusals, rows, wires
from tests.fault_upstream.modes import DOUBTFUL, HARMLESS, INPUT_FAULTS, LIES, MODES, STALLS
from tests.fault_upstream.server import Upstream
from tests.fault_upstream.truth import Ask, vector_of, vectors_of

__all__ = [
    "DOUBTFUL",
    "HARMLESS",
    "INPUT_FAULTS",
    "LIES",
    "MODES",
    "STALLS",
    "Ask",
    "Upstream",
    "bodies",
    "refusals",
    "rows",
    "vector_of",
    "vectors_of",
    "wires",
]
