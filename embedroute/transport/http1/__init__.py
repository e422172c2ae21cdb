"""Sends HTTP/1.1 requests over pooled asyncio connections.

It is imported only when it is used, because it needs asyncio and httptools. It may import what
``transport`` may.
"""
