"""Which engine a gateway uses: the quick one under asyncio where it is installed, else httpx2."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from embedroute.errors import ConfigError, MissingExtra
from embedroute.http import Connect, Engine

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("embedroute.http")

EngineName = Literal["auto", "httpx2", "fast"]


def open_engine(name: EngineName, connect: Connect, client: "httpx2.AsyncClient | None", *, on_asyncio: bool) -> Engine:
    """Make the engine of one event loop; a ``client`` of the host's decides for httpx2.

    Raises:
        MissingExtra: ``fast`` is asked for and not installed.
        ConfigError: ``fast`` is asked for where it cannot be: under trio, with a proxy, or with a client of the host's.
    """
    installed = find_spec("httptools") is not None
    if name == "fast" and not installed:
        raise MissingExtra("fast", "httptools")
    if name == "fast" and not on_asyncio:
        raise ConfigError(['[gateway] engine = "fast" needs asyncio; under trio write engine = "httpx2".'])
    if name == "fast" and connect.proxy is not None:
        raise ConfigError(['[gateway] engine = "fast" goes straight to upstreams; with a proxy write engine = "httpx2".'])
    if name == "fast" and client is not None:
        raise ConfigError(['[gateway] engine = "fast" has no use for an http_client; leave one of the two out.'])
    quick = client is None and connect.proxy is None and on_asyncio and installed and name != "httpx2"
    engine = _quick(connect) if quick else _default(client, connect)
    log.info("engine", extra={"engine": engine.name})
    return engine


# Neither is imported before it is used: httpx2 alone costs more to import than all of embedroute.
def _default(client: "httpx2.AsyncClient | None", connect: Connect) -> Engine:
    return import_module("embedroute.http.httpx2_engine").Httpx2Engine(client, connect)


def _quick(connect: Connect) -> Engine:
    return import_module("embedroute.http.fast_engine").FastEngine(connect)
