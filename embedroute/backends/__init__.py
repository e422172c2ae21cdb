"""Contains the built-in backends, one module per upstream API.

A module is imported when a config uses its backend. It may import only what third-party backends
may: ``backend``, ``errors``, ``inputs``, ``runtime`` and ``vectors``.
"""
