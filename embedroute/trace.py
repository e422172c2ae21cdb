"""Records what happened to one request.

Counts for the response headers are always recorded. Events and upstream bodies are recorded only if
the request's ``debug`` field enables them.
"""

import random
from collections.abc import Collection, Container, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec


def new_request_id() -> str:
    """Make a request id, for a request whose client sent none."""
    return f"req_{random.getrandbits(128):032x}"


Event = Mapping[str, Any]


class Bill(NamedTuple):
    """What an upstream call costs the request, by the prices of its endpoint.

    ``inputs`` are those of the request that it embedded, and ``images`` those in them.
    """

    provider: str
    prices: Mapping[str, Decimal]
    tokens: int
    images: int
    inputs: int

    def cost(self) -> Decimal | None:
        """Return the cost in USD, by token, image and call; None if the price is unknown."""
        prices = self.prices
        if "prompt" not in prices:
            return None
        cost = prices["prompt"] * self.tokens / 1_000_000
        if len(prices) > 1:
            cost += prices.get("request", 0) + prices.get("image", 0) * self.images
        return cost


class RequestTrace(msgspec.Struct, eq=False):
    """The record of one request; the dialect writes it into the response.

    ``model`` is the name that the client has sent. ``hits`` counts the inputs that were in the
    cache because this caller had requested them before. ``misses`` counts all others.
    ``shared_hits`` counts those misses that were in the cache because of other callers; it appears
    only in log records, since it reveals what others requested.

    ``public_model`` is the name of the model that serves the request, ``caller`` the name of its
    caller (None before it is known), ``inputs`` the number of its inputs, and ``served_tokens`` the
    tokens in its response.
    ``dispatched_at`` is when it began to wait for upstreams, and ``embedded_at`` when it had all
    vectors, in seconds of the gateway's clock; None before that.

    ``failures`` are the provider and the status of each failed call, in their order, and
    ``timed_out`` is the last provider that did not respond in time.

    ``limit_headers`` are the response headers that describe the rate limits of the request.

    ``cut_inputs`` are the positions of the inputs that were longer than the model's context, and of
    which only the first part was embedded, or the mean of the vectors of all parts.

    ``wait_ends`` is when the request stops waiting for rate limits, in seconds of the monotonic
    clock; None before it first waits.

    ``events`` is None unless the request enabled the trace, or ``is_internal``: then the gateway
    records them for its dashboard, and the response does not hold them. ``sent`` and ``received``
    hold the upstream's requests and responses and are None unless the request enabled them;
    ``sent_bytes`` and ``got_bytes`` are their sizes so far. ``full`` allows values and input texts
    in all three.
    """

    request_id: str
    model: str = ""
    public_model: str = ""
    caller: str | None = None
    inputs: int = 0
    served_tokens: int = 0
    dispatched_at: float | None = None
    embedded_at: float | None = None
    attempts: int = 0
    hits: int = 0
    misses: int = 0
    shared_hits: int = 0
    store_lookups: int = 0
    store_hits: int = 0
    bills: Sequence[Bill] = ()
    estimated: bool = False
    fallback: str | None = None
    providers: dict[str, None] = {}
    modality_tokens: dict[str, int] = {}
    failures: Sequence[tuple[str, int | None]] = ()
    timed_out: str = ""
    full: bool = False
    is_internal: bool = False
    events: list[Event] | None = None
    sent: list[Event] | None = None
    received: list[Event] | None = None
    sent_bytes: int = 0
    got_bytes: int = 0
    wait_ends: float | None = None
    limit_headers: Sequence[tuple[bytes, bytes]] = ()
    cut_inputs: Sequence[int] = ()

    def __repr__(self) -> str:
        """Show the request id only: the other fields may hold input texts."""
        return f"RequestTrace({self.request_id!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Show the request id only, in rich too."""
        return [("request_id", self.request_id)]

    def open(self, *, trace: bool, sent: bool, received: bool, full: bool) -> None:
        """Start to record what the ``debug`` field of the request enables."""
        self.full = full
        self.events = [] if trace else None
        self.sent = [] if sent else None
        self.received = [] if received else None

    @property
    def captures_bodies(self) -> bool:
        """Whether bodies of upstream requests or responses are recorded."""
        return self.sent is not None or self.received is not None

    def providers_for(self, status: int) -> Collection[str]:
        """The providers to name in the response.

        For a success these are the providers of its vectors, for an error all that were called.
        """
        if status < 400:
            return self.providers
        return dict.fromkeys([*(provider for provider, _ in self.failures), *self.providers])

    def upstream_seconds(self, now: float) -> float:
        """Return how long the request has waited for upstreams: queues, calls and retries.

        ``now`` is the end of a request that has failed meanwhile.
        """
        if self.dispatched_at is None or not self.misses:
            return 0.0
        return (now if self.embedded_at is None else self.embedded_at) - self.dispatched_at

    @property
    def billed_tokens(self) -> int:
        """The tokens that upstreams have billed for the request."""
        return sum([bill.tokens for bill in self.bills])

    @property
    def cost(self) -> Decimal | None:
        """USD spent upstream, by token, image and call; None if the price of a call is unknown."""
        return self.cost_since(0)

    def cost_since(self, bills: int) -> Decimal | None:
        """USD spent upstream, without the first ``bills`` bills; None if a price is unknown."""
        total = Decimal(0)
        for bill in self.bills[bills:]:
            cost = bill.cost()
            if cost is None:
                return None
            total += cost
        return total

    def record_cache(
        self,
        keys: Sequence[bytes],
        cached: Container[bytes],
        others: Container[bytes] = (),
        now: float = 0.0,
    ) -> None:
        """Count cache hits and misses; ``keys`` has one cache key per input.

        Upstreams are called for the misses from ``now`` on.

        ``cached`` holds the keys that are in the cache. Those in ``others`` are there only because
        of other callers, and count as misses.
        """
        self.shared_hits = sum([key in others for key in keys]) if others else 0
        self.hits = sum([key in cached for key in keys]) - self.shared_hits if cached else 0
        self.misses = len(keys) - self.hits
        if self.dispatched_at is None:
            self.dispatched_at = now
        if self.events is not None:
            self.add_event("cache", "looked up", hits=self.hits, misses=self.misses)

    def record_store_lookup(
        self, keys: Sequence[bytes], in_memory: Container[bytes], own: Container[bytes]
    ) -> None:
        """Count the inputs that were not ``in_memory``; ``own`` are the caller's hits in total."""
        missing = [key for key in keys if key not in in_memory]
        self.store_lookups = len(missing)
        self.store_hits = sum([key in own for key in missing])

    def record_usage(
        self,
        provider: str,
        prices: Mapping[str, Decimal],
        tokens: int,
        modality_tokens: Mapping[str, int],
        *,
        images: int = 0,
        inputs: int = 0,
    ) -> None:
        """Record the provider and the cost of one successful call.

        ``prices`` are those of the endpoint. If it has a price per image, tokens that the upstream
        reported for images are not billed again. ``inputs`` are those that the call embedded.
        """
        self.providers[provider] = None
        image_tokens = modality_tokens.get("image", 0) if "image" in prices else 0
        bill = Bill(provider, prices, max(tokens - image_tokens, 0), images, inputs)
        self.bills = (*self.bills, bill)
        for modality, count in modality_tokens.items():
            self.modality_tokens[modality] = self.modality_tokens.get(modality, 0) + count

    def add_event(
        self, stage: str, action: str, values: Event | None = None, /, **facts: object
    ) -> None:
        """Add an event if the trace is enabled.

        ``values`` are added to a full trace only. Do not pass secrets.
        """
        if self.events is not None:
            self.events.append(
                {"stage": stage, "action": action, **facts, **((values or {}) if self.full else {})}
            )

    def debug_fields(self) -> dict[str, Any]:
        """Return the debug fields of the response body, by name; empty ones are left out."""
        if self.events is self.sent is self.received is None:
            return {}
        recorded = {
            "upstream_request": _one_or_all(self.sent),
            "upstream_response": _one_or_all(self.received),
            "trace": None if self.is_internal else self.events,
        }
        return {name: value for name, value in recorded.items() if value}


def _one_or_all(bodies: Sequence[Event] | None) -> Event | Sequence[Event] | None:
    return bodies[0] if bodies is not None and len(bodies) == 1 else bodies
