"""Sends HTTP/1.1 requests over pooled asyncio connections.

It needs the optional package httptools, so it is imported only when it is used. It may import what
``transport`` may.
"""
