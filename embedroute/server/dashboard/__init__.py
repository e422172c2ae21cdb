"""Serves the dashboard: a page of static files, and the numbers that it polls.

The page holds no data, so it needs no key. The numbers are only for callers that may debug. They
hold no input text and no secret.
"""

from embedroute.server.dashboard.assets import POLICY, Asset, find_asset
from embedroute.server.dashboard.recorder import Recorder

__all__ = ["POLICY", "Asset", "Recorder", "find_asset"]
