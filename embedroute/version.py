"""The version of this package. Reading it imports nothing, unlike ``importlib.metadata``."""

__version__ = "0.1.0"
