"""Sends HTTP/1.1 requests over pooled asyncio connections; needs httptools, so it is imported lazily.

It may import what ``transport`` may.
"""
