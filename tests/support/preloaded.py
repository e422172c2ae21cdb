"""Imports what the code of the documentation imports, once for all processes of ``forked``."""

import fastapi
import litestar
import quart

import embedroute.fastapi
import embedroute.testing

__all__ = ["embedroute", "fastapi", "litestar", "quart"]
