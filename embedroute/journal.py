"""What happened to one request: counts for its headers always, events and bodies only when debug asks for them."""

import random
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any


def new_request_id() -> str:
    """Make the id of a request whose client sent none."""
    return f"req_{random.getrandbits(128):032x}"


Event = Mapping[str, Any]


class Journal:
    """The record of one request, written on the way and read by the dialect.

    ``events`` is None unless a trace was asked for, ``sent`` and ``got``
    unless the upstream's bodies were; ``full`` says whether values and input text may stand in them.
    """

    __slots__ = (
        "attempts",
        "bills",
        "estimated",
        "events",
        "failures",
        "fallback",
        "full",
        "got",
        "hits",
        "misses",
        "modality_tokens",
        "providers",
        "request_id",
        "sent",
    )

    def __init__(self, request_id: str) -> None:
        """Begin empty, with debug off."""
        self.request_id = request_id
        self.attempts = 0
        self.hits = 0
        self.misses = 0
        self.bills: list[tuple[Mapping[str, Decimal], int]] = []
        self.estimated = False
        self.fallback: str | None = None
        self.providers: dict[str, None] = {}
        self.modality_tokens: dict[str, int] = {}
        self.failures: list[tuple[str, int | None]] = []
        self.full = False
        self.events: list[Event] | None = None
        self.sent: list[Event] | None = None
        self.got: list[Event] | None = None

    def open(self, *, trace: bool, sent: bool, got: bool, full: bool) -> None:
        """Turn on what debug asked for."""
        self.full = full
        self.events = [] if trace else None
        self.sent = [] if sent else None
        self.got = [] if got else None

    @property
    def keeps(self) -> bool:
        """Whether any upstream body is to be kept."""
        return self.sent is not None or self.got is not None

    @property
    def cost(self) -> Decimal:
        """USD spent upstream: prompt tokens by the million, and so much a call; an unknown price counts as 0."""
        spent = (
            prices.get("prompt", 0) * tokens / Decimal(1_000_000) + prices.get("request", 0) for prices, tokens in self.bills
        )
        return sum(spent, Decimal(0))

    def served(self, provider: str, prices: Mapping[str, Decimal], tokens: int, modality_tokens: Mapping[str, int]) -> None:
        """Add what one answered call came from, and what it is billed by: the endpoint's ``prices`` and its tokens."""
        self.providers[provider] = None
        self.bills.append((prices, tokens))
        for modality, count in modality_tokens.items():
            self.modality_tokens[modality] = self.modality_tokens.get(modality, 0) + count

    def note(self, stage: str, action: str, values: Event | None = None, /, **facts: object) -> None:
        """Add an event to the trace, if there is one; ``values`` stand only in a full one. No secrets."""
        if self.events is not None:
            self.events.append({"stage": stage, "action": action, **facts, **((values or {}) if self.full else {})})

    def shown(self) -> dict[str, Any]:
        """What debug asked to see and there was, by the names it has on the wire."""
        shown = {"upstream_request": _one_or_all(self.sent), "upstream_response": _one_or_all(self.got), "trace": self.events}
        return {name: value for name, value in shown.items() if value}


def _one_or_all(bodies: Sequence[Event] | None) -> Event | Sequence[Event] | None:
    return bodies[0] if bodies is not None and len(bodies) == 1 else bodies
