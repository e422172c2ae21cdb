"""Starlette with the gateway mounted, and a route that counts the tasks inside embedroute."""

import asyncio
from collections.abc import Iterator
from typing import Any

import sniffio
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import embedroute
from tests.hosts.gateways import make

OURS = embedroute.__file__.removesuffix("__init__.py")


def coroutines() -> Iterator[Any]:
    """Return the coroutine of every task, on asyncio and on trio."""
    if sniffio.current_async_library() == "asyncio":
        yield from (task.get_coro() for task in asyncio.all_tasks())
        return
    tasks = [trio.lowlevel.current_root_task()]
    for task in tasks:
        tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        yield task.coro


def inside(coroutine: Any) -> bool:
    """Whether a coroutine awaits a coroutine of embedroute."""
    while coroutine is not None:
        code = getattr(coroutine, "cr_code", None)
        if code is not None and code.co_filename.startswith(OURS):
            return True
        coroutine = getattr(coroutine, "cr_await", None)
    return False


async def tasks(_request: Request) -> JSONResponse:
    return JSONResponse(sum(map(inside, coroutines())))


app = Starlette(
    routes=[Route("/tasks", tasks), Mount("/ai", app=embedroute.embeddings_app(make()))]
)
