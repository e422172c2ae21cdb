"""Tests that the Azure backend obtains tokens of Microsoft Entra with azure-identity.

The token comes from a loopback server with the API of App Service's managed identity, which
azure-identity finds by two environment variables. So each test runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.backends import apis
from tests.support.fake_api import FakeAPI

pytestmark = pytest.mark.slow

EMBED = """
import sys
import anyio
from embedroute import Config, Gateway
from embedroute.errors import EmbedrouteError

config = Config(
    gateway={"auth": "open", "retries": {"attempts": 1, "repeats": 0}},
    providers={"azure": {"base_url": sys.argv[1], "scope": "https://ai.azure.com/.default"}},
    models={"m": {"endpoints": [{"provider": "azure"}]}},
)
gateway = Gateway(config)


async def embed():
    for text in ("a", "b"):
        await gateway.embed([text], model="m")


try:
    anyio.run(embed)
except EmbedrouteError as error:
    print(error.code, error.message)
"""


class ManagedIdentity(ThreadingHTTPServer):
    """The token service of App Service; it records its queries."""

    daemon_threads = True

    def __init__(self, status=200):
        self.queries = queries = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                queries.append(
                    (parse_qs(urlsplit(self.path).query), self.headers.get("x-identity-header"))
                )
                answer = {
                    "access_token": "entra-token",
                    "expires_on": "4102444800",
                    "resource": "r",
                    "token_type": "Bearer",
                }
                content = json.dumps(answer if status == 200 else {"message": "no"}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                """Log nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/msi/token"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def run(base_url, identity_url):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
    environ |= {
        "IDENTITY_ENDPOINT": identity_url,
        "IDENTITY_HEADER": "header",
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
    }
    return subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", EMBED, base_url],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_one_token_of_the_managed_identity_serves_several_calls():
    with FakeAPI(apis.openai) as fake, ManagedIdentity() as identity:
        printed = run(fake.url, identity.url)

    assert "" == printed
    assert ["Bearer entra-token"] * 2 == [
        request.headers["authorization"] for request in fake.requests
    ]
    [(query, header)] = identity.queries
    assert (["https://ai.azure.com"], "header") == (query["resource"], header)


def test_without_credentials_the_error_says_what_to_set():
    with FakeAPI(apis.openai) as fake, ManagedIdentity(status=400) as identity:
        printed = run(fake.url, identity.url)

    assert printed.startswith("upstream_credentials")
    assert [] == fake.requests
