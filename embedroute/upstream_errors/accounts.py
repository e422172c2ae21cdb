"""Decides whether a refusal of an account is permanent: spent, or a rate limit. Pure functions.

The evidence is, in this order: a documented code (see ``patterns``), the period that the message
names, a short wait that the upstream asks for, and words of payment.
"""

import re
from typing import Final

from embedroute.errors import LONGEST_RETRY_AFTER
from embedroute.upstream_errors.lazy_pattern import LazyPattern

STATUSES: Final = frozenset({403, 429})
"""Statuses of a refusal whose words are searched; a 402 is about payment without any."""

_URL: Final = re.compile(r"https?://\S+")

_SHORT_PERIOD: Final = LazyPattern(
    r"(\b(per|a|each|every|the|this)[ _-]|/ ?)(second|minute|min|sec)s?\b"
    r"|(per|by)_?(minute|second)|[RTQ]P[MS](?![a-z])|\bqps\b|concurren|in flight"
    r"|too many requests"
    "|每分钟|每秒|频率|速率|并发|过于频繁"
)
"""Limits that clear within minutes."""

_LONG_PERIOD: Final = LazyPattern(
    r"\b(daily|monthly|weekly)\b|(\b(per|a|each|this|next)|/) ?(day|month|week)s?\b|ByDay\b"
    r"|\bper 86400 ?s\b"
    "|每天|每日|每月|当天|当月"
)
"""Limits that clear within days."""

_RATE: Final = LazyPattern(
    r"\b(rate|call|request)s?[ -]limit|throttl|capacity|overloaded|slow down"
)

_PAYMENT: Final = LazyPattern(
    r"\b(billing|payment|balance|arrears|overdue|prepaid|top[ -]?up|trial|credits?|budget)\b"
    r"|\bfree (tier|allocat\w+|quota)|\b(your|current) plan\b|\bpaid plan\b"
    r"|quota (has been |is |was )?(exceeded|exhausted|used up)|exceeded .{0,40}\bquota"
    r"|\b(insufficient|out of|no) (\w+ )?quota|service has been paused|\baccount is not active"
    "|余额不足|欠费|充值"
)


_OWN_PAYMENT: Final = LazyPattern(
    r"\b(insufficient|no|not enough) (credits?|funds)\b|\bpayment method\b"
    r"|\b(insufficient|low|no|account) balance|\bbalance (is|was|has)\b|\barrears\b|\boverdue\b"
    r"|\bbilling\b|\b(your|free) quota|\bquota (has been |is |was )?(exceeded|exhausted|used up)"
    r"|\baccount is not active|\bfree tier|余额不足|欠费|充值"
)
"""Words of payment that are about the account itself."""


def find_spent_words(status: int, message: str, wait: float | None) -> str | None:
    """Return the words by which a message says that the account is spent, or None.

    ``wait`` is the number of seconds that the upstream asks to wait, if it states one.
    """
    if status not in STATUSES:
        return None
    text = _URL.sub(" ", message)
    if _SHORT_PERIOD.search(text):
        return None
    if status == 429 and (match := _LONG_PERIOD.search(text)):
        return match[0]
    if (wait is not None and wait <= LONGEST_RETRY_AFTER) or _RATE.search(text):
        return None
    # A 403 may be about the content of an input, which may concern money too.
    match = (_OWN_PAYMENT if status == 403 else _PAYMENT).search(text)
    return match and match[0]


def names_short_period(message: str) -> bool:
    """Return whether a message is about calls in a short time: no number is the size of a call."""
    text = _URL.sub(" ", message)
    return _SHORT_PERIOD.search(text) is not None
