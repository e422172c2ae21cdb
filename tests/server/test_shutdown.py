"""Tests that a request which a server interrupts at its shutdown gets a 503, with real servers."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import anyio
import anyio.lowlevel
import httpx2
import pytest

from embedroute import Config, Gateway, Model, Provider, embeddings_app
from embedroute.runtime import cancellation
from embedroute.testing import ScriptedBackend
from tests.fault_upstream import Upstream
from tests.hosts.gateways import KEY
from tests.support.serving import ROOT, Serving
from tests.support.wait import until

GRACE = {
    "uvicorn": ["--timeout-graceful-shutdown", "1"],
    "uvicorn-uvloop": ["--timeout-graceful-shutdown", "1"],
    "hypercorn": ["--graceful-timeout", "1"],
    "hypercorn-trio": ["--graceful-timeout", "1"],
}
"""Server → the options for a graceful shutdown of one second."""
LONG = {server: [*options[:1], "60"] for server, options in GRACE.items()}
PATIENCE = 120
"""Seconds for a server to start, to respond and to stop."""


class Asking(threading.Thread):
    """A client that sends one request from a separate thread; ``answer`` is the response."""

    def __init__(self, url):
        super().__init__()
        self._url = url
        self.answer = None
        self.start()

    def run(self):
        self.answer = httpx2.post(
            f"{self._url}/ai/v1/embeddings",
            json={"model": "far", "input": "slow"},
            headers={"authorization": f"Bearer {KEY}"},
            trust_env=False,
            timeout=PATIENCE,
        )


def stop_while_asked(server, options, upstream):
    """Return the response to a request during which the server got SIGTERM, and its output."""
    with Serving(
        "tests.hosts.apps.sending",
        server,
        environ={"TEST_UPSTREAM": upstream.url},
        options=options,
    ) as serving:
        asking = Asking(serving.url)
        until(lambda: upstream.in_flight)
        os.kill(serving.pid, signal.SIGTERM)
        asking.join(PATIENCE)
    return asking.answer, serving.said


def assert_silent(said):
    """Check that no error of the gateway was logged.

    asyncio itself logs the cancelled connection of hypercorn on Python 3.11, and a signal that
    arrives when hypercorn has just closed its loop.
    """
    assert "unhandled exception" not in said
    assert "ASGI" not in said
    assert "/embedroute/" not in said.replace("/embedroute/.venv/", "")


@pytest.mark.parametrize("server", GRACE)
@pytest.mark.thorough
def test_a_request_that_the_server_cancels_gets_a_503(server):
    """The gateway is mounted, so it gets no lifespan event. It is cancelled after the grace."""
    if server == "hypercorn" and sys.version_info >= (3, 12):
        pytest.skip("hypercorn on asyncio waits for running requests without limit")
    with Upstream("stalled") as upstream:
        answer, said = stop_while_asked(server, GRACE[server], upstream)

    assert (503, "overloaded") == (answer.status_code, answer.json()["error"]["code"])
    assert "1" == answer.headers["retry-after"]
    assert "request failed" in said
    assert_silent(said)


@pytest.mark.parametrize("server", GRACE)
def test_a_request_that_ends_within_the_grace_gets_its_vectors(server):
    with Upstream(delay=0.7) as upstream:
        answer, said = stop_while_asked(server, LONG[server], upstream)

    assert (200, 1) == (answer.status_code, len(answer.json()["data"]))
    assert_silent(said)


@pytest.mark.skipif(find_spec("granian") is None, reason="granian is not installed")
def test_granian_waits_for_requests_in_flight(tmp_path):
    """It has no limit for that by default."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port)]
    output = tmp_path / "output"
    with Upstream(delay=0.7) as upstream, output.open("w") as file:
        server = subprocess.Popen(  # noqa: S603 - fixed arguments
            [*command, "tests.hosts.apps.sending:app"],
            cwd=ROOT,
            env={**os.environ, "TEST_UPSTREAM": upstream.url},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        until(lambda: accepts(port))
        asking = Asking(f"http://127.0.0.1:{port}")
        until(lambda: upstream.in_flight)
        server.terminate()
        asking.join(PATIENCE)
        assert 0 == server.wait(PATIENCE)

    assert 200 == asking.answer.status_code
    assert "Traceback" not in output.read_text()


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


class InProcess:
    """One request to an application in this process; ``sent`` are the messages of the response."""

    def __init__(self):
        gateway = Gateway(
            Config(
                gateway={"auth": "open"},
                providers={"up": Provider(backend=ScriptedBackend(then=sleep_forever))},
                models={"m": Model(endpoints=[{"provider": "up"}])},
            )
        )
        self.app = embeddings_app(gateway)
        self.sent = []
        self._body = [b'{"model":"m","input":"a"}']

    @property
    def statuses(self):
        return [message["status"] for message in self.sent if "status" in message]

    async def receive(self):
        if not self._body:
            await anyio.sleep_forever()
        return {"type": "http.request", "body": self._body.pop()}

    async def send(self, message):
        self.sent.append(message)

    async def run(self):
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": headers}
        await self.app(scope, self.receive, self.send)


async def sleep_forever(*_arguments):
    await anyio.sleep_forever()


async def cancel(serve, message):
    task = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    task.cancel(message)
    await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.parametrize(
    ("message", "returned"), [("why", []), (cancellation.UVICORN_STOPS, ["app"])]
)
def test_a_cancellation_is_not_lost(message, returned):
    """The application returns if uvicorn would log a traceback; then the next ``await`` fails."""

    async def main():
        steps = []
        request = InProcess()

        async def serve():
            await request.run()
            steps.append("app")
            await asyncio.sleep(0)
            steps.append("await")

        outcome = await cancel(serve, message), await cancel(InProcess().run, message)
        return request.statuses, steps, outcome

    assert ([503], returned, (True, True)) == asyncio.run(main())


def test_a_timeout_of_the_host_remains_a_timeout():
    async def main():
        request = InProcess()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await request.run()
        await asyncio.sleep(0)
        return request.statuses

    assert [503] == asyncio.run(main())


def test_the_server_waits_a_second_at_most_for_a_client_that_reads_nothing():
    async def main():
        request = InProcess()
        request.send = sleep_forever
        return await cancel(request.run, "why")

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.anyio
async def test_a_cancelled_scope_ends_the_request():
    request = InProcess()
    with anyio.move_on_after(0.05) as scope:
        await request.run()
    await anyio.lowlevel.checkpoint()

    assert ([503], True) == (request.statuses, scope.cancelled_caught)
    assert "overloaded" == json.loads(request.sent[1]["body"])["error"]["code"]


@pytest.mark.anyio
@pytest.mark.parametrize("at", ["start", "body"])
async def test_a_response_that_cannot_be_sent_does_not_delay_the_cancellation(at):
    """For more than a second; also if the response has started."""
    request = InProcess()

    async def send(message):
        request.sent.append(message)
        if message["type"] == f"http.response.{at}":
            await anyio.sleep_forever()

    request.send = send
    with anyio.fail_after(60), anyio.move_on_after(0.05):
        await request.run()

    assert [503] == request.statuses
