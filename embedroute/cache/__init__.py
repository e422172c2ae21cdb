"""Vectors that were computed before: per input, bounded in bytes, never in the way of a request."""
