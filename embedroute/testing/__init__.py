"""Helps to test backends and hosts: ``ScriptedBackend`` plays an upstream, ``check_backend`` checks a backend's contract.

It may import what third parties may.
"""

from embedroute.testing.contract import check_backend
from embedroute.testing.contract_http import close
from embedroute.testing.scripted import ScriptedBackend, Step, expected_vector

__all__ = ["ScriptedBackend", "Step", "check_backend", "close", "expected_vector"]
