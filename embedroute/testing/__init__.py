"""Provides helpers for the tests of backends and hosts.

``ScriptedBackend`` replaces an upstream; ``check_backend`` checks the contract of a backend.
It may import only what third-party packages may.
"""

from embedroute.testing.contract import check_backend
from embedroute.testing.contract_http import close
from embedroute.testing.scripted import ScriptedBackend, Step, expected_vector

__all__ = ["ScriptedBackend", "Step", "check_backend", "close", "expected_vector"]
