"""What happened to one request: counts for its headers always, events and bodies only when debug asks for them."""

import random
from collections.abc import Collection, Container, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec


def new_request_id() -> str:
    """Make the id of a request whose client sent none."""
    return f"req_{random.getrandbits(128):032x}"


Event = Mapping[str, Any]


class RequestTrace(msgspec.Struct, eq=False):
    """The record of one request, written on the way and read by the dialect.

    ``hits`` counts the inputs whose vectors the cache held because this caller had asked for them,
    ``shared_hits`` those among the ``misses`` that it held for others; only logs tell of these.
    ``events`` is None unless a trace was asked for, ``sent`` and ``received``
    unless the upstream's bodies were, of which ``sent_bytes`` and ``got_bytes`` are kept so far;
    ``full`` says whether values and input text may stand in them.
    """

    request_id: str
    attempts: int = 0
    hits: int = 0
    misses: int = 0
    shared_hits: int = 0
    bills: Sequence[tuple[Mapping[str, Decimal], int, int]] = ()
    estimated: bool = False
    fallback: str | None = None
    providers: dict[str, None] = {}
    modality_tokens: dict[str, int] = {}
    failures: Sequence[tuple[str, int | None]] = ()
    full: bool = False
    events: list[Event] | None = None
    sent: list[Event] | None = None
    received: list[Event] | None = None
    sent_bytes: int = 0
    got_bytes: int = 0

    def __repr__(self) -> str:
        """Name the request, and show nothing of what it asked and was told."""
        return f"RequestTrace({self.request_id!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show no more in rich."""
        return [("request_id", self.request_id)]

    def open(self, *, trace: bool, sent: bool, received: bool, full: bool) -> None:
        """Turn on what debug asked for."""
        self.full = full
        self.events = [] if trace else None
        self.sent = [] if sent else None
        self.received = [] if received else None

    @property
    def captures_bodies(self) -> bool:
        """Whether any upstream body is to be kept."""
        return self.sent is not None or self.received is not None

    def providers_for(self, status: int) -> Collection[str]:
        """The providers that an answer names: who gave its vectors or, in an error, who was called for them."""
        if status < 400:
            return self.providers
        return dict.fromkeys([*(provider for provider, _ in self.failures), *self.providers])

    @property
    def cost(self) -> Decimal:
        """USD spent upstream: prompt tokens by the million, so much an image and a call; an unknown price counts as 0."""
        return sum(
            (_billed(prices, tokens, images) for prices, tokens, images in self.bills), Decimal(0)
        )

    def record_cache(
        self,
        keys: Sequence[bytes],
        found: Container[bytes],
        others: Container[bytes] = (),
    ) -> None:
        """Count the inputs, by their ``keys``, whose vectors were there, and those whose were not.

        What was there for ``others`` only counts as not there.
        """
        self.shared_hits = sum([key in others for key in keys]) if others else 0
        self.hits = sum([key in found for key in keys]) - self.shared_hits if found else 0
        self.misses = len(keys) - self.hits
        if self.events is not None:
            self.add_event("cache", "looked up", hits=self.hits, misses=self.misses)

    def record_usage(
        self,
        provider: str,
        prices: Mapping[str, Decimal],
        tokens: int,
        modality_tokens: Mapping[str, int],
        *,
        images: int = 0,
    ) -> None:
        """Add what one answered call came from, and what it is billed by: the endpoint's ``prices``, tokens and images.

        Tokens that are known to be of images are not billed by the token where an image has a price of its own.
        """
        self.providers[provider] = None
        own = modality_tokens.get("image", 0) if "image" in prices else 0
        self.bills = (*self.bills, (prices, max(tokens - own, 0), images))
        for modality, count in modality_tokens.items():
            self.modality_tokens[modality] = self.modality_tokens.get(modality, 0) + count

    def add_event(
        self, stage: str, action: str, values: Event | None = None, /, **facts: object
    ) -> None:
        """Add an event to the trace, if there is one; ``values`` stand only in a full one. No secrets."""
        if self.events is not None:
            self.events.append(
                {"stage": stage, "action": action, **facts, **((values or {}) if self.full else {})}
            )

    def debug_fields(self) -> dict[str, Any]:
        """What debug asked to see and there was, by the names it has on the wire."""
        if self.events is self.sent is self.received is None:
            return {}
        shown = {
            "upstream_request": _one_or_all(self.sent),
            "upstream_response": _one_or_all(self.received),
            "trace": self.events,
        }
        return {name: value for name, value in shown.items() if value}


def _billed(prices: Mapping[str, Decimal], tokens: int, images: int) -> Decimal:
    by_unit = prices.get("request", Decimal(0)) + prices.get("image", Decimal(0)) * images
    return prices.get("prompt", Decimal(0)) * tokens / 1_000_000 + by_unit


def _one_or_all(bodies: Sequence[Event] | None) -> Event | Sequence[Event] | None:
    return bodies[0] if bodies is not None and len(bodies) == 1 else bodies
