"""Measures the gateway while its upstreams, its clients or its process fail or are overloaded.

Each script starts real processes on loopback: one with all upstreams, one with the gateway, one
with all clients. See README.md.
"""
