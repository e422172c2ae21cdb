"""Keeps requests within the budgets of their caller and of the gateway.

Before the inputs of a request are sent upstream, the most that they can cost is reserved in every
budget that applies. Afterwards what they did cost is added, and the reservation is released. A
request that does not fit is refused, so a budget is never exceeded: not by concurrent requests, and
with a store not by several processes. Hits in the cache cost nothing and need no budget.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol, cast

import anyio
import msgspec

from embedroute.backend import LocalBackend
from embedroute.config import Budget, Config, Model
from embedroute.errors import BudgetExceeded, NoEligibleProvider, Overloaded
from embedroute.execution.context import DispatchContext, OnResult, Work
from embedroute.execution.dispatcher import Embed
from embedroute.execution.money import UNITS_PER_USD, to_units
from embedroute.inputs import ImagePart, Input, Part
from embedroute.routing import ResolvedEndpoint
from embedroute.runtime import time_limits
from embedroute.stores import (
    BudgetStore,
    Charge,
    MemoryBudgets,
    Refusal,
    Store,
    StoredKeys,
    StoreError,
    StoreWorker,
)

SPECIAL_TOKENS: Final = 16
"""Tokens of an input besides those of its text, at most."""
IMAGE_TOKENS: Final = 16_384
"""Tokens of an image at most, where images have no price of their own."""
RESERVE_TIMEOUT: Final = 1.0
"""Seconds that a request waits for the store to check its budgets."""
SETTLE_AGAIN: Final = 0.1
"""Seconds after which a settlement that failed is repeated."""


class Window(msgspec.Struct, frozen=True):
    """The period of a budget: its name, and when the next one starts ("" for never)."""

    name: str
    ends: str


def find_window(per: str, now: float) -> Window:
    """Return the period of a budget at ``now``, in seconds since 1970; days and months are UTC."""
    if per == "total":
        return Window("total", "")
    date = datetime.fromtimestamp(now, UTC).date()
    if per == "day":
        following = date.fromordinal(date.toordinal() + 1)
        return Window(date.isoformat(), f"{following.isoformat()}T00:00:00Z")
    year, month = divmod(date.year * 12 + date.month, 12)
    return Window(f"{date:%Y-%m}", f"{year:04}-{month + 1:02}-01T00:00:00Z")


def bound_cost(candidates: Sequence[ResolvedEndpoint], work: Work, model: Model) -> int:
    """Return the most that ``work`` can cost at the dearest of ``candidates``, in billionths.

    A token is at least one byte of UTF-8. A price per request is counted for each input, because
    the work may be split.
    """
    inputs = work.values()
    images = sum(map(_count_images, inputs))
    longest = max((len(text.encode()) for text in (model.prefixes or {}).values()), default=0)
    tokens = sum(map(_bound_tokens, inputs)) + len(inputs) * (SPECIAL_TOKENS + longest)
    return max(_cost(candidate.prices, tokens, len(inputs), images) for candidate in candidates)


def _cost(prices: Mapping[str, Decimal], tokens: int, calls: int, images: int) -> int:
    zero = Decimal(0)
    if "image" not in prices:
        tokens += images * IMAGE_TOKENS
    usd = prices.get("prompt", zero) * tokens / 1_000_000
    usd += prices.get("request", zero) * calls + prices.get("image", zero) * images
    return to_units(usd)


def _has_price(candidate: ResolvedEndpoint) -> bool:
    """Return whether the price of tokens is known. A model in this process costs nothing."""
    return "prompt" in candidate.prices or isinstance(candidate.backend, LocalBackend)


def _bound_tokens(item: Input) -> int:
    if isinstance(item, str):
        return len(item) if item.isascii() else len(item.encode())
    if isinstance(item[0], int):
        return len(item)
    texts = (part.text for part in _parts(item) if not isinstance(part, ImagePart))
    return sum(len(text.encode()) for text in texts)


def _count_images(item: Input) -> int:
    if isinstance(item, str) or isinstance(item[0], int):
        return 0
    return sum(isinstance(part, ImagePart) for part in _parts(item))


def _parts(item: Input) -> Collection[Part]:
    return cast("Collection[Part]", item)


class _Limit(msgspec.Struct, frozen=True):
    """A budget, its counter, and how a refusal names it."""

    budget: Budget
    counter: str
    whose: str

    def charge(self, amount: int, now: float) -> Charge:
        window = find_window(self.budget.per, now)
        return Charge(f"{self.counter}:{window.name}", to_units(self.budget.usd), amount)

    def refuse(self, left: int, now: float) -> BudgetExceeded:
        per = "in total" if self.budget.per == "total" else f"per {self.budget.per}"
        ends = find_window(self.budget.per, now).ends
        rest = Decimal(max(left, 0)) / UNITS_PER_USD
        return BudgetExceeded(
            f"This request may cost more than is left of the budget of {self.whose}: "
            f"{rest.normalize():f} of {self.budget.usd} USD {per}. "
            + (f"It resets at {ends}." if ends else "Ask the operator to raise it.")
        )


def _read_limits(config: Config) -> Mapping[str | None, _Limit]:
    """Return the budgets of a config by the name of the caller, and that of all under None."""
    limits: dict[str | None, _Limit] = {
        name: _Limit(key.budget, f"key:{name}", "this caller")
        for name, key in config.keys.items()
        if key.budget is not None and config.gateway.auth == "keys"
    }
    if config.gateway.budget is not None:
        limits[None] = _Limit(config.gateway.budget, "gateway", "the gateway")
    return limits


class Budgets(Protocol):
    """A ``BudgetStore`` for tasks."""

    async def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them."""
        ...

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> anyio.Event | None:
        """Release a reservation, and add what was spent. The event is set when that is stored."""
        ...


class LocalBudgets:
    """Budgets in the memory of this process."""

    def __init__(self, store: BudgetStore) -> None:
        """Take the counters."""
        self._store = store

    async def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them."""
        return self._store.reserve(reservation, charges, seconds)

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> None:
        """Release a reservation, and add what was spent."""
        self._store.settle(reservation, spent)


class SharedBudgets:
    """Budgets in a store. If the store fails, requests are refused, or served if ``fail_open``."""

    def __init__(self, worker: StoreWorker, *, fail_open: bool) -> None:
        """Take the worker of the store."""
        self._worker = worker
        self._fail_open = fail_open

    async def reserve(
        self, reservation: str, charges: Sequence[Charge], seconds: float
    ) -> Refusal | None:
        """Reserve all charges, or none of them.

        Raises:
            Overloaded: the store failed.
        """
        refusals: list[Refusal | None] = []

        def act(store: Store) -> None:
            refusals.append(store.reserve(reservation, charges, seconds))

        try:
            await self._worker.call(act, RESERVE_TIMEOUT)
        except StoreError:
            if self._fail_open:
                return None
            raise Overloaded(
                "The budget cannot be checked at the moment. Try again.", retry_after=1.0
            ) from None
        return refusals[0]

    def settle(self, reservation: str, spent: Sequence[tuple[str, int]]) -> anyio.Event:
        """Release a reservation, and add what was spent. It is repeated until the store works."""
        job = _Settlement(self._worker, reservation, spent)
        self._worker.submit(job)
        return job.ended


class _Settlement:
    """A job that settles a reservation."""

    def __init__(
        self, worker: StoreWorker, reservation: str, spent: Sequence[tuple[str, int]]
    ) -> None:
        self._worker = worker
        self._reservation = reservation
        self._spent = spent
        self._call_soon = time_limits.get_call_soon_threadsafe()
        self.ended = anyio.Event()

    def run(self, store: Store) -> None:
        store.settle(self._reservation, self._spent)
        with suppress(RuntimeError):  # the event loop has ended
            self._call_soon(self.ended.set)

    def fail(self, error: BaseException) -> None:
        del error
        self._worker.submit_later(self, SETTLE_AGAIN)


class BudgetedEmbed:
    """An ``Embed`` that keeps its requests within their budgets.

    A reservation whose process dies is released after twice the ``deadline`` of a request.
    """

    def __init__(
        self,
        config: Config,
        worker: StoreWorker | None,
        stored_keys: StoredKeys | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the budgets of a config; ``stored_keys`` have those of other callers.

        They are counted in the store of ``worker``, or in memory. A response waits until its cost
        is stored, but no longer than the ``timeout`` of the store. ``clock`` returns seconds since
        1970.
        """
        self._budgets: Budgets
        if worker is None:
            self._budgets = LocalBudgets(MemoryBudgets())
        else:
            fail_open = config.limits.on_store_failure == "open"
            self._budgets = SharedBudgets(worker, fail_open=fail_open)
        self._timeout = config.store.timeout
        self._stored_keys = stored_keys
        self._clock = clock
        self.change(config)

    def change(self, config: Config) -> None:
        """Apply the budgets of a config. What was spent remains spent."""
        self._limits: Mapping[str | None, _Limit] = _read_limits(config)
        self._seconds: float = 2 * config.gateway.deadline

    def _list_limits(self, caller: str) -> Sequence[_Limit]:
        limits = [each for name in (caller, None) if (each := self._limits.get(name))]
        if self._stored_keys is not None and (budget := self._stored_keys.budget_of(caller)):
            limits.append(_Limit(budget, f"key:{caller}", "this caller"))
        return limits

    def wrap(self, embed: Embed) -> Embed:
        """Return ``embed`` within the budgets, or itself if there are none."""
        if not self._limits and self._stored_keys is None:
            return embed

        async def embed_within_budget(
            candidates: Sequence[ResolvedEndpoint],
            context: DispatchContext,
            work: Work,
            on_result: OnResult,
        ) -> None:
            limits = self._list_limits(context.caller)
            if not limits:
                await embed(candidates, context, work, on_result)
                return
            priced = [each for each in candidates if _has_price(each)]
            if not priced:
                raise NoEligibleProvider(
                    "No provider of this model has a known price, which a budget needs."
                )
            amount = bound_cost(priced, work, context.prepared.route.model)
            charges = await self._reserve(limits, amount, reservation := secrets.token_hex(8))
            bills = len(context.trace.bills)
            try:
                await embed(priced, context, work, on_result)
            finally:
                cost = to_units(context.trace.cost_since(bills) or Decimal(0))
                spent = [(charge.counter, cost) for charge in charges]
                stored = self._budgets.settle(reservation, spent)
            if stored is not None:
                with suppress(TimeoutError), time_limits.fail_after(self._timeout):
                    await stored.wait()

        return embed_within_budget

    async def _reserve(
        self, limits: Sequence[_Limit], amount: int, reservation: str
    ) -> Sequence[Charge]:
        now = self._clock()
        charges = [limit.charge(amount, now) for limit in limits]
        refusal = await self._budgets.reserve(reservation, charges, self._seconds)
        if refusal is not None:
            raise limits[refusal.position].refuse(refusal.left, now)
        return charges
