"""Tests of which transport a gateway opens, by its config and its event loop."""

import logging
import subprocess
import sys

import httpx2
import pytest

from embedroute import Config, Gateway, Provider, Settings, embeddings_app
from embedroute.backend import Secret
from embedroute.errors import ConfigError
from embedroute.transport import DEFAULT_CONFIG, TransportConfig, create_transport
from tests.support.asgi_client import call

HTTP2 = TransportConfig(http2=True)
PROXIED = TransportConfig(proxy=Secret("http://127.0.0.1:9"))


def client():
    return httpx2.AsyncClient()


@pytest.mark.parametrize(
    ("name", "connect", "client_of", "on_asyncio", "opened"),
    [
        ("auto", DEFAULT_CONFIG, None, True, "http1"),
        ("auto", DEFAULT_CONFIG, None, False, "httpx2"),
        ("auto", PROXIED, None, True, "http1"),
        ("http1", PROXIED, None, True, "http1"),
        ("httpx2", PROXIED, None, True, "httpx2"),
        ("auto", DEFAULT_CONFIG, client, True, "httpx2"),
        ("auto", PROXIED, None, False, "httpx2"),
        ("httpx2", DEFAULT_CONFIG, None, True, "httpx2"),
        ("httpx2", DEFAULT_CONFIG, None, False, "httpx2"),
        ("httpx2", DEFAULT_CONFIG, client, True, "httpx2"),
        ("http1", DEFAULT_CONFIG, None, True, "http1"),
        ("auto", HTTP2, None, True, "httpx2"),
        ("auto", HTTP2, None, False, "httpx2"),
        ("httpx2", HTTP2, None, True, "httpx2"),
    ],
)
def test_selects_the_http1_transport_if_it_can_be_used(
    name, connect, client_of, on_asyncio, opened, caplog
):
    """The log record names it in its message and in its fields."""
    caplog.set_level(logging.INFO, "embedroute.http")
    own = client_of() if client_of else None

    assert opened == create_transport(name, connect, own, on_asyncio=on_asyncio).name
    assert [(f"transport selected: transport={opened}", opened)] == [
        (record.getMessage(), record.transport) for record in caplog.records
    ]


@pytest.mark.parametrize(
    ("connect", "client_of", "on_asyncio", "word"),
    [
        (DEFAULT_CONFIG, None, False, "trio"),
        (DEFAULT_CONFIG, client, True, "http_client"),
        (HTTP2, None, True, "supports only HTTP/1.1"),
    ],
)
def test_rejects_http1_where_it_cannot_be_used(connect, client_of, on_asyncio, word):
    with pytest.raises(ConfigError, match=word):
        create_transport(
            "http1", connect, client_of() if client_of else None, on_asyncio=on_asyncio
        )


def test_rejects_http2_with_a_client_of_the_host():
    with pytest.raises(ConfigError, match=r"AsyncClient\(http2=True\)"):
        create_transport("auto", HTTP2, client(), on_asyncio=True)


HTTP1 = Config(gateway=Settings(auth="open", transport="http1"), providers={"hashed": Provider()})
BODY = b'{"model": "hashed/m", "input": "a"}'


def test_rejects_a_client_with_the_http1_transport_at_startup():
    with pytest.raises(ConfigError, match="http_client"):
        Gateway(HTTP1, http_client=client())


@pytest.mark.anyio
async def test_an_unsupported_event_loop_is_logged_and_not_shown_to_clients(
    anyio_backend_name, caplog
):
    answer = await call(
        embeddings_app(Gateway(HTTP1)),
        "POST",
        "/v1/embeddings",
        [("content-type", "application/json")],
        [BODY],
    )

    actual = {record.reason for record in caplog.records if hasattr(record, "reason")}
    if anyio_backend_name == "asyncio":
        assert (200, set()) == (answer.status, actual)
        return
    assert {
        '[gateway] transport = "http1" needs asyncio. Under trio, set transport = "httpx2".'
    } == actual
    assert (500, "server_error", None) == (
        answer.status,
        answer.error["type"],
        answer.error["param"],
    )
    assert "transport" not in answer.error["message"]


def test_rejects_http2_with_the_http1_transport():
    settings = Settings(auth="open", transport="http1", http2=True)
    with pytest.raises(ConfigError, match=r"supports only HTTP/1\.1"):
        Gateway(Config(gateway=settings, providers={"hashed": Provider()}))


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class HidingFinder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "h2" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = HidingFinder

from embedroute.transport import TransportConfig, transport_mistakes

print(transport_mistakes("auto", TransportConfig(http2=True)))
"""


def test_names_the_missing_extra_of_http2():
    ran = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False
    )

    assert "pip install 'embedroute[http2]'" in ran.stdout
    assert ran.stderr == ""


def test_http1_is_imported_without_httpx2():
    """Importing httpx2 takes longer than importing all of embedroute."""
    code = "import embedroute.transport.http1.pool, sys; print('httpx2' in sys.modules)"
    ran = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )

    assert ("False\n", "") == (ran.stdout, ran.stderr)
