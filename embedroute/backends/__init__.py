"""Holds the shipped backends, one file per upstream API; each is imported when a config uses it.

They may import what third parties may: ``backend``, ``errors``, ``inputs``, ``runtime`` and ``vectors``.
"""
