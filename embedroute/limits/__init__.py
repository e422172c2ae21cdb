"""Limits what callers may use at once: today the bytes of requests and responses in flight.

It may import the contracts and the foundation.
"""

from embedroute.limits.byte_budget import MOST_ACCOUNTS, Account, ByteBudget, admission_mistakes

__all__ = ["MOST_ACCOUNTS", "Account", "ByteBudget", "admission_mistakes"]
