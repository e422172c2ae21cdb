"""The one place that starts tasks and unwraps exception groups, so that no task outlives its request."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import anyio
from anyio import CapacityLimiter

T = TypeVar("T")


class ClientGone(Exception):
    """The client went away before its answer was ready."""


async def unless(gone: Callable[[], Awaitable[None]], work: Awaitable[T]) -> T:
    """Await ``work``, and cancel it when ``gone`` returns first.

    Raises:
        ClientGone: ``gone`` returned before the work was done.
    """
    scope = anyio.CancelScope()

    async def watch() -> None:
        await gone()
        scope.cancel()

    outcome: list[T] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            with scope:
                outcome.append(await work)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None
    if not outcome:
        raise ClientGone
    return outcome[0]


async def gather(work: Sequence[Callable[[], Awaitable[None]]], at_once: int) -> None:
    """Run all of ``work``, at most ``at_once`` at a time; the first failure cancels the rest and is raised."""
    if len(work) == 1:
        await work[0]()
        return
    limiter = CapacityLimiter(at_once)

    async def run(item: Callable[[], Awaitable[None]]) -> None:
        async with limiter:
            await item()

    try:
        async with anyio.create_task_group() as group:
            for item in work:
                group.start_soon(run, item)
    except BaseExceptionGroup as grouped:
        raise innermost(grouped) from None


def innermost(grouped: BaseExceptionGroup[BaseException]) -> BaseException:
    """Take the first plain exception out of nested groups."""
    first = grouped.exceptions[0]
    return innermost(cast("BaseExceptionGroup[BaseException]", first)) if isinstance(first, BaseExceptionGroup) else first
