"""Starlette with the gateway mounted, and a route that returns the response bytes in flight.

The gateway logs to standard error. Its write timeout is short.
"""

import logging
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

import embedroute
from tests.hosts.gateways import make

logging.getLogger("embedroute.access").addHandler(logging.StreamHandler())
logging.getLogger("embedroute.access").setLevel(logging.INFO)
gateway = make(write_timeout=float(os.environ.get("TEST_WRITE_TIMEOUT", "30")))


async def in_flight(_request: Request) -> JSONResponse:
    return JSONResponse(gateway.responses.total)


app = Starlette(
    routes=[Route("/in_flight", in_flight), Mount("/ai", app=embedroute.embeddings_app(gateway))]
)
