"""Tests how responses are sent: to slow clients, within limits of time and of memory."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time

import anyio
import httpx2
import numpy as np
import pytest

from embedroute import Config, Gateway, Model, Provider, embeddings_app
from embedroute.backend import Backend, Vectors
from embedroute.protocol import LargeBody
from embedroute.runtime import run_cooperatively
from tests.hosts.gateways import KEY
from tests.support.commands import serving
from tests.support.serving import Serving
from tests.support.wait import until, until_on_loop

PATIENCE = 120
"""Seconds for a server to start and to respond."""
WIDTH = 1536
HELD = 2048 * WIDTH * 4
"""The bytes of the arrays of a large response."""


class Ones(Backend, frozen=True):
    """A backend whose vectors are all ones."""

    async def embed(self, batch):
        return Vectors(np.ones((len(batch), WIDTH), "<f4"), prompt_tokens=1)


class Client:
    """A client of an application in this process. It accepts ``most`` messages, and then none."""

    def __init__(
        self, app, count=2048, encoding_format="base64", most=0, key="one", http_version="1.1"
    ):
        self.app = app
        self.most = most
        self.http_version = http_version
        self.sent = []
        self.request_headers = [
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + key.encode()),
        ]
        inputs = [f"text {at}" for at in range(count)]
        body = {"model": "m", "input": inputs, "encoding_format": encoding_format}
        self._body = [json.dumps(body).encode()]
        self._gone = anyio.Event()
        self._reads = anyio.Event()

    def leave(self):
        self._gone.set()

    def read(self):
        self._reads.set()

    def stop_reading(self):
        self._reads = anyio.Event()

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def length(self):
        """The declared length of the body, or None."""
        declared = self.headers.get(b"content-length")
        return None if declared is None else int(declared)

    @property
    def body(self):
        return b"".join(message["body"] for message in self.sent[1:])

    async def receive(self):
        if self._body:
            return {"type": "http.request", "body": self._body.pop()}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if len(self.sent) >= self.most:
            await self._reads.wait()
        self.sent.append(message)

    async def run(self):
        scope = {
            "type": "http",
            "http_version": self.http_version,
            "method": "POST",
            "path": "/v1/embeddings",
            "headers": self.request_headers,
        }
        await self.app(scope, self.receive, self.send)


def make(**settings):
    return Gateway(
        Config(
            gateway={"auth": "keys", **settings},
            keys={"one": {"key": "one"}, "two": {"key": "two"}, "three": {"key": "three"}},
            cache={"bytes": 0},
            providers={"up": Provider(backend=Ones())},
            models={"m": Model(endpoints=[{"provider": "up"}])},
        )
    )


FORMATS = ["base64", "float"]


@pytest.mark.parametrize("base64", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 1536])
@pytest.mark.parametrize("dtype", ["<f4", "i1", "u1"])
def test_the_size_of_a_body_is_known_before_it_is_sent(dtype, width, base64):
    """For any number of rows, so any length of an index, and with and without base64 padding."""
    row = np.arange(1, width + 1).astype(dtype)
    for count in (1, 10, 11, 101, 1001):
        body = LargeBody(b'{"data":[],"model":"m"}', [row] * count, base64=base64)
        pieces = list(body)

        assert len(json.loads(b"".join(pieces))["data"]) == count
        assert sum(body.sizes()) == sum(map(len, pieces))


@pytest.mark.anyio
@pytest.mark.parametrize("http_version", ["1.0", "1.1", "2"])
@pytest.mark.parametrize("count", [1, 64, 255, 256, 2048])
@pytest.mark.parametrize("encoding_format", FORMATS)
async def test_the_declared_length_is_that_of_the_body(count, encoding_format, http_version):
    """It is not declared if it would be known only from encoding all numbers once more.

    Without chunks (HTTP/1.0), a client could not notice that a response was cut off.
    """
    client = Client(embeddings_app(make()), count, encoding_format, http_version=http_version)
    client.read()
    await client.run()
    data = json.loads(client.body)["data"]
    is_declared = count < 256 or encoding_format == "base64" or http_version == "1.0"

    assert (len(client.body) if is_declared else None) == client.length
    assert [row["index"] for row in data] == list(range(count))


@pytest.mark.anyio
@pytest.mark.parametrize("count", [128, 2048])
@pytest.mark.parametrize("encoding_format", FORMATS)
async def test_a_response_is_encoded_as_the_client_reads(count, encoding_format):
    """Only a piece waits in the server's buffer."""
    client = Client(embeddings_app(make()), count, encoding_format, most=3)
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)
        await until_on_loop(lambda: len(client.sent) == 3)
        assert len(client.body) < 1_000_000
        client.read()

    assert count == len(json.loads(client.body)["data"])


@pytest.mark.anyio
@pytest.mark.parametrize("count", [1, 128, 2048])
@pytest.mark.parametrize("most", [0, 1, 2])
async def test_a_client_that_reads_nothing_is_given_up(count, most, caplog):
    """The application returns, and the server closes the connection."""
    gateway = make(write_timeout=0.2)
    client = Client(embeddings_app(gateway), count, most=most)
    with caplog.at_level("INFO", "embedroute.access"), anyio.fail_after(PATIENCE):
        if count > 1 or most < 2:
            await client.run()

            assert ["client too slow"] == [record.event for record in caplog.records]
    assert (0, 0) == (gateway.responses.total, gateway.bodies.total)


@pytest.mark.anyio
@pytest.mark.parametrize("count", [128, 2048])
async def test_a_client_that_does_not_read_the_end_is_given_up(count, caplog):
    app = embeddings_app(make(write_timeout=0.2))
    reader = Client(app, count)
    reader.read()
    await reader.run()
    client = Client(app, count, most=len(reader.sent) - 1)
    with caplog.at_level("INFO", "embedroute.access"), anyio.fail_after(PATIENCE):
        await client.run()

    assert ["client too slow"] == [record.event for record in caplog.records]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/v1/openapi.json"])
async def test_every_response_has_a_write_timeout(path, caplog):
    client = Client(embeddings_app(make(write_timeout=0.2)))
    scope = {"type": "http", "method": "GET", "path": path, "headers": client.request_headers}
    with caplog.at_level("INFO", "embedroute.access"), anyio.fail_after(PATIENCE):
        await client.app(scope, client.receive, client.send)

    assert ["client too slow"] == [record.event for record in caplog.records]


@pytest.mark.anyio
async def test_a_slow_client_that_reads_is_not_given_up():
    """The timeout is for each piece, not for the response."""
    client = Client(embeddings_app(make(write_timeout=2.0)))
    async with anyio.create_task_group() as group:
        group.start_soon(client.run)
        for most in range(1, 31):
            client.most = most
            client.read()
            await anyio.sleep(0.1)
            client.stop_reading()
        client.most = 1 << 30
        client.read()

    assert client.length == len(client.body)


@pytest.mark.anyio
async def test_a_client_is_not_given_up_for_the_time_of_other_large_jobs():
    """The next piece waits for its turn for longer than the write timeout."""
    client = Client(embeddings_app(make(write_timeout=0.4)), most=3)
    started = []

    def job():
        for _ in range(90):
            started.append(True)
            time.sleep(0.01)
            yield

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await until_on_loop(lambda: len(client.sent) == 3)
            group.start_soon(run_cooperatively, job())
            await until_on_loop(lambda: started)
            client.read()

    assert client.length == len(client.body)


@pytest.mark.anyio
async def test_a_disconnect_ends_a_response_that_is_being_sent(caplog):
    gateway = make()
    client = Client(embeddings_app(gateway), most=4)
    with caplog.at_level("INFO", "embedroute.access"), anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(client.run)
            await until_on_loop(lambda: len(client.sent) == 4)
            client.leave()

    assert ["client disconnected"] == [record.event for record in caplog.records]
    assert 0 == gateway.responses.total


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("most", "clients", "statuses"),
    [
        (4 * HELD, ["one", "one", "one", "two", "two", "three"], [200, 200, 503, 200, 200, 503]),
        (HELD - 1, ["one", "one", "two"], [200, 503, 503]),
    ],
    ids=["half per caller", "one is always allowed"],
)
async def test_responses_that_clients_do_not_read_are_limited(most, clients, statuses):
    """A 503 with ``retry-after`` instead of vectors; small responses are not affected."""
    gateway = make(max_response_bytes_in_flight=most)
    app = embeddings_app(gateway)
    waiting = [Client(app, key=key, most=1) for key in clients]
    async with anyio.create_task_group() as group:
        for client in waiting:
            group.start_soon(client.run)
            await until_on_loop(lambda client=client: client.sent)
        small = Client(app, 1, key="three")
        small.read()
        await small.run()
        reserved = gateway.responses.total
        for client in waiting:
            client.read()

    assert statuses == [client.status for client in waiting]
    assert (reserved, 200) == (HELD * statuses.count(200), small.status)
    [refused, *_] = [client for client in waiting if client.status == 503]
    assert "overloaded" == json.loads(refused.body)["error"]["code"]
    assert b"1" == refused.headers[b"retry-after"]
    assert 0 == gateway.responses.total


# Real servers


@pytest.mark.parametrize("server", ["uvicorn", "uvicorn-uvloop", "hypercorn"])
@pytest.mark.thorough
def test_a_server_closes_the_connection_of_a_client_that_reads_nothing(server):
    """With hypercorn on trio it stays open, as ``send`` cannot be cancelled there."""
    body = json.dumps({"model": "wide", "input": [f"{at}" for at in range(2048)]}).encode()
    head = (
        f"POST /ai/v1/embeddings HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with Serving(
        "tests.hosts.apps.sending", server, environ={"TEST_WRITE_TIMEOUT": "1"}, debug=False
    ) as serving_:
        in_flight = f"{serving_.url}/in_flight"
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.settimeout(PATIENCE)
            wire.connect(("127.0.0.1", serving_.port))
            wire.sendall(head.encode() + body)
            until(lambda: httpx2.get(in_flight, trust_env=False, timeout=PATIENCE).json() > 0)
            until(lambda: httpx2.get(in_flight, trust_env=False, timeout=PATIENCE).json() == 0)
            received = b"".join(iter(lambda: wire.recv(1 << 16), b""))

    assert received.startswith(b"HTTP/1.1 200")
    assert b"\r\ntransfer-encoding: chunked\r\n" in received.lower()
    assert not received.endswith(b"\r\n0\r\n\r\n")
    assert "client too slow" in serving_.said
    assert "unhandled exception" not in serving_.said
    assert "Traceback" not in serving_.said


COUNT = 8
"""Large responses that wait for their clients at the same time."""

CONFIG = """
[gateway]
auth = "open"
[cache]
bytes = 0
[providers.one]
backend = "openai"
base_url = "{url}"
[models.m]
dimensions = 1536
endpoints = [{{ provider = "one" }}]
"""
SERVED = """
import os, sys
from pathlib import Path
from embedroute.cli import main
Path("pid").write_text(str(os.getpid()))
sys.exit(main())
"""


def resident(pid):
    """The resident memory of a process in MB."""
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123 - a file of the kernel
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("encoding_format", FORMATS)
@pytest.mark.thorough
def test_large_responses_to_slow_clients_leave_little_memory_behind(encoding_format, tmp_path):
    """After responses of 2048 x 1536 that all wait for their clients."""
    upstream = [sys.executable, "-m", "tests.fault_upstream", "--width", str(WIDTH)]
    command = [sys.executable, "-c", SERVED, "serve", "--port", "0"]
    statuses = []
    with subprocess.Popen(upstream, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - fixed arguments
        url = process.stdout.readline().strip()
        (tmp_path / "embedroute.toml").write_text(CONFIG.format(url=url))
        with serving(command, tmp_path) as gateway:
            pid = int((tmp_path / "pid").read_text())
            all_wait = threading.Barrier(COUNT)

            def ask(at, count=2048):
                connection = http.client.HTTPConnection(gateway[7:], timeout=PATIENCE)
                inputs = [f"{at} {part}" for part in range(count)]
                body = {"model": "m", "input": inputs, "encoding_format": encoding_format}
                headers = {"content-type": "application/json"}
                connection.request("POST", "/v1/embeddings", json.dumps(body), headers)
                response = connection.getresponse()
                if count > 1:
                    all_wait.wait(PATIENCE)
                statuses.append((response.status, len(response.read()) > 0))
                connection.close()

            ask(0, 1)
            before = resident(pid)
            clients = [threading.Thread(target=ask, args=[at]) for at in range(COUNT)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            ask(0, 1)
            kept = resident(pid) - before
        process.kill()

    assert [(200, True)] * (COUNT + 2) == statuses
    assert kept < 40  # 70 if glibc keeps the freed memory
