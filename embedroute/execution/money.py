"""Converts US dollars to the integers in which budgets and the ledger count."""

from decimal import ROUND_CEILING, Decimal
from typing import Final

UNITS_PER_USD: Final = 1_000_000_000
"""Amounts are integers in billionths of a dollar: a token costs less than a millionth."""


def to_units(usd: Decimal) -> int:
    """Convert US dollars to billionths, rounded up."""
    return int((usd * UNITS_PER_USD).to_integral_value(ROUND_CEILING))
