"""Limits what callers may use at once: today the bytes of request bodies in flight.

It may import the contracts and the foundation.
"""

from embedroute.limits.body_bytes import MOST_ACCOUNTS, Account, BodyBudget, admission_mistakes

__all__ = ["MOST_ACCOUNTS", "Account", "BodyBudget", "admission_mistakes"]
