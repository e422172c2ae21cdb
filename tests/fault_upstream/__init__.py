"""A real OpenAI-shaped embeddings upstream on loopback, which tells the truth or any of a table of lies.

``truth`` knows the right answer, ``rows``, ``bodies``, ``wires`` and ``refusals`` each one kind of lie, ``modes`` the
tables they stand in, ``messages`` how HTTP/1.1 is read and written, ``server`` the sockets.

    with Upstream("honest") as upstream:
        ...  # POST {upstream.url}/embeddings
        upstream.mode = ["status_503", "honest"]  # one for each request, the last one stays
        upstream.mode = lambda ask: "status_400" if "poison" in ask.inputs else "honest"

To tell each lie apart from the truth, ask for at least three distinct inputs and ``dimensions`` below the width.
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
