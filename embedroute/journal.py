"""What happened to one request: counts for its headers always, events for its trace only when asked for."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any


class Journal:
    """The record of one request, written on the way and read by the encoder.

    ``events`` is None unless a trace was asked for; ``cost`` is USD spent on upstream calls.
    """

    __slots__ = (
        "attempts",
        "cost",
        "estimated",
        "events",
        "fallback",
        "hits",
        "misses",
        "modality_tokens",
        "providers",
        "request_id",
        "sent",
        "got",
        "keeps",
    )

    def __init__(self, request_id: str, *, trace: bool = False, keeps: bool = False) -> None:
        """Begin empty; ``keeps`` says whether upstream requests and answers are kept for debug."""
        self.request_id = request_id
        self.attempts = 0
        self.hits = 0
        self.misses = 0
        self.cost = Decimal(0)
        self.estimated = False
        self.fallback: str | None = None
        self.providers: dict[str, None] = {}
        self.modality_tokens: dict[str, int] = {}
        self.events: list[Mapping[str, Any]] | None = [] if trace else None
        self.keeps = keeps
        self.sent: list[Mapping[str, Any]] = []
        self.got: list[Mapping[str, Any]] = []

    def served(self, provider: str, cost: Decimal, modality_tokens: Mapping[str, int]) -> None:
        """Add what one answered call came from and cost in USD."""
        self.providers[provider] = None
        self.cost += cost
        for modality, tokens in modality_tokens.items():
            self.modality_tokens[modality] = self.modality_tokens.get(modality, 0) + tokens

    def note(self, stage: str, action: str, **facts: Any) -> None:
        """Add an event to the trace, if there is one; ``facts`` hold no secret and no input text."""
        if self.events is not None:
            self.events.append({"stage": stage, "action": action, **facts})
